//! Portal groups, initiator groups, auth groups.

use std::sync::Arc;

use fabrics::iscsi::AuthSecret;
use rpc::{NoParameters, Registry, When};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::framework::done;
use super::{Result, absent, exists, invalid, not_built};
use crate::control::node::{InitiatorGroup, Node, Portal, PortalGroup};
use crate::control::{Control, names};

/// A port number, as a number or as text: SPDK's clients send both.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PortalParameter {
    /// A numeric address: 192.0.2.1, [2001:db8::1], 0.0.0.0, [::].
    host: String,
    /// TCP port; 3260 when absent.
    port: Option<Port>,
    /// The numeric address discovery tells instead, where initiators reach the portal through an address translator or
    /// a forwarded port.
    advertised_host: Option<String>,
    /// The port discovery tells instead; `port` when absent.
    advertised_port: Option<Port>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreatePortalGroup {
    /// Portal group tag, 1 to 65,535.
    tag: u16,
    /// Addresses initiators connect to.
    portals: Vec<PortalParameter>,
    /// For discovery only.
    #[serde(default)]
    private: bool,
    /// Do not listen before iscsi_start_portal_group.
    #[serde(default)]
    wait: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PortalGroupTag {
    /// Portal group tag.
    tag: u16,
}

#[derive(Serialize, JsonSchema)]
struct PortalResult {
    host: String,
    port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertised_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertised_port: Option<String>,
}

impl From<&Portal> for PortalResult {
    fn from(portal: &Portal) -> PortalResult {
        let advertised = portal.advertised.as_ref();
        PortalResult {
            host: portal.host.clone(),
            port: portal.address.port().to_string(),
            advertised_host: advertised.map(|(host, _)| host.clone()),
            advertised_port: advertised.map(|(_, address)| address.port().to_string()),
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct PortalGroupResult {
    tag: u16,
    portals: Vec<PortalResult>,
    private: bool,
    /// Listens.
    started: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateInitiatorGroup {
    /// Initiator group tag, 1 and up.
    tag: u32,
    /// iSCSI names; ANY for all, ! before one refuses it, * after a prefix.
    initiators: Vec<String>,
    /// ANY, addresses, networks as 10.0.0.0/24 or [fe80::]/10.
    netmasks: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EditInitiatorGroup {
    /// Initiator group tag.
    tag: u32,
    /// iSCSI names.
    #[serde(default)]
    initiators: Vec<String>,
    /// Netmasks.
    #[serde(default)]
    netmasks: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tag {
    /// The group's tag.
    tag: u32,
}

#[derive(Serialize, JsonSchema)]
struct InitiatorGroupResult {
    tag: u32,
    initiators: Vec<String>,
    netmasks: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SecretParameter {
    /// The initiator's CHAP name.
    user: String,
    /// Its secret: 12 to 255 bytes.
    secret: String,
    /// Our CHAP name, for mutual authentication.
    muser: Option<String>,
    /// Our secret; not the initiator's.
    msecret: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateAuthGroup {
    /// Auth group tag, 1 and up.
    tag: u32,
    /// Its secrets.
    #[serde(default)]
    secrets: Vec<SecretParameter>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddSecret {
    /// Auth group tag.
    tag: u32,
    /// The initiator's CHAP name.
    user: String,
    /// Its secret: 12 to 255 bytes.
    secret: String,
    /// Our CHAP name, for mutual authentication.
    muser: Option<String>,
    /// Our secret; not the initiator's.
    msecret: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoveSecret {
    /// Auth group tag.
    tag: u32,
    /// The initiator's CHAP name.
    user: String,
}

#[derive(Serialize, JsonSchema)]
struct SecretResult {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    muser: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct AuthGroupResult {
    tag: u32,
    /// Users only: secrets are never shown.
    secrets: Vec<SecretResult>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct SetPortalGroupAuth {
    /// Portal group tag.
    tag: u16,
    /// CHAP is not offered.
    #[serde(default)]
    disable_chap: bool,
    /// Login without CHAP is refused.
    #[serde(default)]
    require_chap: bool,
    /// The initiator must ask for our proof.
    #[serde(default)]
    mutual_chap: bool,
    /// Auth group.
    #[serde(default)]
    chap_group: u32,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register("iscsi_create_portal_group", When::Runtime, "Makes a portal group and listens on its portals.", |control: Arc<Control>, p: CreatePortalGroup| async move {
        done(control.create_portal_group(p).await)
    });
    registry.register(
        "iscsi_start_portal_group",
        When::Runtime,
        "Listens on the portals of a group made with wait.",
        |control: Arc<Control>, p: PortalGroupTag| async move {
            done(
                control
                    .change(|node| {
                        portal_group(node, "iscsi_start_portal_group", p.tag)?.started = true;
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_delete_portal_group",
        When::Runtime,
        "Deletes a portal group, and what maps of targets name it.",
        |control: Arc<Control>, p: PortalGroupTag| async move {
            done(
                control
                    .change(|node| {
                        portal_group(node, "iscsi_delete_portal_group", p.tag)?;
                        node.portal_groups.remove(&p.tag);
                        drop_maps(node, |map| map.portal_group == p.tag);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_get_portal_groups",
        When::Runtime,
        "The portal groups.",
        |control: Arc<Control>, _: NoParameters| async move {
            Ok(control
                .state()
                .portal_groups
                .iter()
                .map(|(tag, group)| PortalGroupResult {
                    tag: *tag,
                    portals: group.portals.iter().map(PortalResult::from).collect(),
                    private: group.private,
                    started: group.started,
                })
                .collect::<Vec<_>>())
        },
    );
    registry.register(
        "iscsi_portal_group_set_auth",
        When::Runtime,
        "Authentication of discovery through one portal group: not built, discovery has one policy.",
        |control: Arc<Control>, p: SetPortalGroupAuth| async move {
            let method = "iscsi_portal_group_set_auth";
            if !control.state().portal_groups.contains_key(&p.tag) {
                return Err(absent(method, format!("portal group {}", p.tag), "iscsi_get_portal_groups"));
            }
            Err::<bool, _>(not_built(
                method,
                "tag",
                "use iscsi_set_discovery_auth, which counts for every portal group",
            ))
        },
    );
    register_initiators(registry);
    register_auth(registry);
}

fn register_initiators(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_create_initiator_group",
        When::Runtime,
        "Makes an initiator group.",
        |control: Arc<Control>, p: CreateInitiatorGroup| async move {
            let method = "iscsi_create_initiator_group";
            check_tag(method, p.tag)?;
            let group = InitiatorGroup {
                initiators: patterns(method, &p.initiators)?,
                netmasks: netmasks(method, &p.netmasks)?,
            };
            for (parameter, list) in [("initiators", &group.initiators), ("netmasks", &group.netmasks)] {
                if list.is_empty() {
                    return Err(invalid(
                        method,
                        parameter,
                        "is empty and would admit nobody. Remedy: give at least one entry",
                    ));
                }
            }
            done(
                control
                    .change(|node| {
                        if node.initiator_groups.contains_key(&p.tag) {
                            return Err(exists(method, format!("initiator group {}", p.tag)));
                        }
                        node.initiator_groups.insert(p.tag, group);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_delete_initiator_group",
        When::Runtime,
        "Deletes an initiator group, and what maps of targets name it.",
        |control: Arc<Control>, p: Tag| async move {
            done(
                control
                    .change(|node| {
                        initiator_group(node, "iscsi_delete_initiator_group", p.tag)?;
                        node.initiator_groups.remove(&p.tag);
                        drop_maps(node, |map| map.initiator_group == p.tag);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_get_initiator_groups",
        When::Runtime,
        "The initiator groups.",
        |control: Arc<Control>, _: NoParameters| async move {
            Ok(control
                .state()
                .initiator_groups
                .iter()
                .map(|(tag, group)| InitiatorGroupResult {
                    tag: *tag,
                    initiators: group.initiators.clone(),
                    netmasks: group.netmasks.clone(),
                })
                .collect::<Vec<_>>())
        },
    );
    register_initiator_entries(registry);
}

fn register_initiator_entries(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_initiator_group_add_initiators",
        When::Runtime,
        "Adds names and netmasks to an initiator group.",
        |control: Arc<Control>, p: EditInitiatorGroup| async move {
            let method = "iscsi_initiator_group_add_initiators";
            let (names, masks) = (patterns(method, &p.initiators)?, netmasks(method, &p.netmasks)?);
            done(
                control
                    .change(|node| {
                        let group = initiator_group(node, method, p.tag)?;
                        for (parameter, new, list) in [
                            ("initiators", names, &mut group.initiators),
                            ("netmasks", masks, &mut group.netmasks),
                        ] {
                            for entry in new {
                                if list.contains(&entry) {
                                    return Err(exists(
                                        method,
                                        format!(
                                            "entry \"{entry}\" of parameter \"{parameter}\" in group {}",
                                            p.tag
                                        ),
                                    ));
                                }
                                list.push(entry);
                            }
                        }
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_initiator_group_remove_initiators",
        When::Runtime,
        "Removes names and netmasks from an initiator group.",
        |control: Arc<Control>, p: EditInitiatorGroup| async move {
            let method = "iscsi_initiator_group_remove_initiators";
            let (names, masks) = (patterns(method, &p.initiators)?, netmasks(method, &p.netmasks)?);
            done(
                control
                    .change(|node| {
                        let group = initiator_group(node, method, p.tag)?;
                        for (parameter, old, list) in [
                            ("initiators", names, &mut group.initiators),
                            ("netmasks", masks, &mut group.netmasks),
                        ] {
                            for entry in old {
                                let Some(at) = list.iter().position(|known| *known == entry) else {
                                    return Err(absent(
                                        method,
                                        format!(
                                            "entry \"{entry}\" of parameter \"{parameter}\" in group {}",
                                            p.tag
                                        ),
                                        "iscsi_get_initiator_groups",
                                    ));
                                };
                                list.remove(at);
                            }
                        }
                        Ok(())
                    })
                    .await,
            )
        },
    );
}

fn register_auth(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_create_auth_group",
        When::Runtime,
        "Makes a group of CHAP secrets.",
        |control: Arc<Control>, p: CreateAuthGroup| async move {
            let method = "iscsi_create_auth_group";
            check_tag(method, p.tag)?;
            let mut secrets: Vec<AuthSecret> = Vec::new();
            for given in p.secrets {
                let given = secret(method, "secrets", given)?;
                if secrets.iter().any(|known| known.user == given.user) {
                    return Err(invalid(
                        method,
                        "secrets",
                        format!("user \"{}\" is there twice. Remedy: give each user one secret", given.user),
                    ));
                }
                secrets.push(given);
            }
            done(
                control
                    .change(|node| {
                        if node.auth_groups.contains_key(&p.tag) {
                            return Err(exists(method, format!("auth group {}", p.tag)));
                        }
                        node.auth_groups.insert(p.tag, secrets);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_delete_auth_group",
        When::Runtime,
        "Deletes a group of CHAP secrets.",
        |control: Arc<Control>, p: Tag| async move {
            done(
                control
                    .change(|node| {
                        auth_group(node, "iscsi_delete_auth_group", p.tag)?;
                        node.auth_groups.remove(&p.tag);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_get_auth_groups",
        When::Runtime,
        "The auth groups and their users. Secrets are never shown.",
        |control: Arc<Control>, _: NoParameters| async move {
            Ok(control
                .state()
                .auth_groups
                .iter()
                .map(|(tag, secrets)| AuthGroupResult {
                    tag: *tag,
                    secrets: secrets
                        .iter()
                        .map(|secret| SecretResult {
                            user: secret.user.clone(),
                            muser: secret.mutual_user.clone(),
                        })
                        .collect(),
                })
                .collect::<Vec<_>>())
        },
    );
    register_secrets(registry);
}

fn register_secrets(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_auth_group_add_secret",
        When::Runtime,
        "Adds a user's secret to an auth group.",
        |control: Arc<Control>, p: AddSecret| async move {
            let method = "iscsi_auth_group_add_secret";
            let given =
                SecretParameter { user: p.user, secret: p.secret, muser: p.muser, msecret: p.msecret };
            let given = secret(method, "secret", given)?;
            done(
                control
                    .change(|node| {
                        let group = auth_group(node, method, p.tag)?;
                        if group.iter().any(|known| known.user == given.user) {
                            return Err(exists(
                                method,
                                format!("user \"{}\" in auth group {}", given.user, p.tag),
                            ));
                        }
                        group.push(given);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_auth_group_remove_secret",
        When::Runtime,
        "Removes a user's secret from an auth group.",
        |control: Arc<Control>, p: RemoveSecret| async move {
            let method = "iscsi_auth_group_remove_secret";
            done(
                control
                    .change(|node| {
                        let group = auth_group(node, method, p.tag)?;
                        let Some(at) = group.iter().position(|known| known.user == p.user) else {
                            return Err(absent(
                                method,
                                format!("user \"{}\" in auth group {}", p.user, p.tag),
                                "iscsi_get_auth_groups",
                            ));
                        };
                        group.remove(at);
                        Ok(())
                    })
                    .await,
            )
        },
    );
}

fn check_tag(method: &str, tag: u32) -> Result<()> {
    if tag == 0 { Err(invalid(method, "tag", "0 is no tag. Remedy: use 1 or more")) } else { Ok(()) }
}

fn portal_group<'a>(node: &'a mut Node, method: &str, tag: u16) -> Result<&'a mut PortalGroup> {
    node.portal_groups
        .get_mut(&tag)
        .ok_or_else(|| absent(method, format!("portal group {tag}"), "iscsi_get_portal_groups"))
}

fn initiator_group<'a>(node: &'a mut Node, method: &str, tag: u32) -> Result<&'a mut InitiatorGroup> {
    node.initiator_groups
        .get_mut(&tag)
        .ok_or_else(|| absent(method, format!("initiator group {tag}"), "iscsi_get_initiator_groups"))
}

fn auth_group<'a>(node: &'a mut Node, method: &str, tag: u32) -> Result<&'a mut Vec<AuthSecret>> {
    node.auth_groups
        .get_mut(&tag)
        .ok_or_else(|| absent(method, format!("auth group {tag}"), "iscsi_get_auth_groups"))
}

fn drop_maps(node: &mut Node, gone: impl Fn(&fabrics::iscsi::PortalGroupMap) -> bool) {
    for target in node.targets.values_mut() {
        if target.maps.iter().any(&gone) {
            Arc::make_mut(target).maps.retain(|map| !gone(map));
        }
    }
}

fn patterns(method: &str, texts: &[String]) -> Result<Vec<String>> {
    texts
        .iter()
        .map(|text| {
            names::initiator_pattern(text)
                .map_err(|error| invalid(method, "initiators", format!("{error}. Remedy: correct the entry")))
        })
        .collect()
}

fn netmasks(method: &str, texts: &[String]) -> Result<Vec<String>> {
    texts
        .iter()
        .map(|text| {
            names::netmask(text)
                .map_err(|error| invalid(method, "netmasks", format!("{error}. Remedy: correct the entry")))
        })
        .collect()
}

/// Checks one user's secrets (RFC 7143 §12.1.3: at least 96 bits; never the same both ways). Messages name the user,
/// never a secret.
fn secret(method: &str, parameter: &str, given: SecretParameter) -> Result<AuthSecret> {
    let bad = |text: &str| invalid(method, parameter, format!("user {:?}: {text}", given.user));
    if given.user.is_empty() || given.user.len() > 255 {
        return Err(bad("a CHAP name has 1 to 255 bytes. Remedy: use another name"));
    }
    for text in [Some(&given.secret), given.msecret.as_ref()].into_iter().flatten() {
        if !(12..=255).contains(&text.len()) {
            return Err(bad("a secret has 12 to 255 bytes. Remedy: use a longer one"));
        }
    }
    if given.muser.is_some() != given.msecret.is_some() {
        return Err(bad("muser and msecret belong together. Remedy: give both or neither"));
    }
    if given.msecret.as_ref() == Some(&given.secret) {
        return Err(bad("secret and msecret are equal, which would prove nothing. Remedy: use two secrets"));
    }
    Ok(AuthSecret {
        user: given.user,
        secret: given.secret,
        mutual_user: given.muser,
        mutual_secret: given.msecret,
    })
}

fn port_number(port: Option<Port>, absent: u16) -> std::result::Result<u16, String> {
    match port {
        None => Ok(absent),
        Some(Port::Number(port)) => Ok(port),
        Some(Port::Text(text)) => {
            text.parse().map_err(|_| format!("port {text:?} is not a number. Remedy: use 1 to 65535"))
        }
    }
}

/// A portal as it was asked for; else what is wrong with it.
fn checked_portal(asked: PortalParameter) -> std::result::Result<Portal, String> {
    let numeric = |host: &str, port| {
        names::portal(host, port).map_err(|text| format!("{text}. Remedy: correct the portal"))
    };
    let address = numeric(&asked.host, port_number(asked.port, 3260)?)?;
    let advertised = match (asked.advertised_host, asked.advertised_port) {
        (None, None) => None,
        (None, Some(_)) => {
            return Err(
                "has advertised_port without advertised_host. Remedy: give the address too".to_owned()
            );
        }
        (Some(host), port) => {
            let told = numeric(&host, port_number(port, address.port())?)?;
            if told.ip().is_unspecified() {
                return Err(format!(
                    "would advertise {told}, where nobody can connect to. Remedy: give the address initiators use"
                ));
            }
            Some((host, told))
        }
    };
    Ok(Portal { host: asked.host, address, advertised })
}

impl Control {
    async fn create_portal_group(&self, p: CreatePortalGroup) -> Result<()> {
        let method = "iscsi_create_portal_group";
        check_tag(method, u32::from(p.tag))?;
        let mut portals = Vec::new();
        for portal in p.portals {
            let portal = checked_portal(portal).map_err(|text| invalid(method, "portals", text))?;
            let address = portal.address;
            if portals.iter().any(|other: &Portal| other.address == address) {
                return Err(invalid(
                    method,
                    "portals",
                    format!("{address} is there twice. Remedy: name it once"),
                ));
            }
            portals.push(portal);
        }
        if portals.is_empty() {
            return Err(invalid(method, "portals", "is empty. Remedy: give at least one portal"));
        }
        self.change(|node| {
            if node.portal_groups.contains_key(&p.tag) {
                return Err(exists(method, format!("portal group {}", p.tag)));
            }
            for (tag, group) in &node.portal_groups {
                let taken = |new: &&Portal| group.portals.iter().any(|old| old.address == new.address);
                if let Some(portal) = portals.iter().find(taken) {
                    return Err(exists(method, format!("portal {} in portal group {tag}", portal.address)));
                }
            }
            node.portal_groups.insert(p.tag, PortalGroup { portals, private: p.private, started: !p.wait });
            Ok(())
        })
        .await
    }
}

/// The calls that make these groups.
pub(super) fn saved(node: &Node, include_secrets: bool) -> Vec<(&'static str, Value)> {
    let mut calls = Vec::new();
    for (tag, group) in &node.portal_groups {
        let portals: Vec<PortalResult> = group.portals.iter().map(PortalResult::from).collect();
        let params =
            json!({"tag": tag, "portals": portals, "private": group.private, "wait": !group.started});
        calls.push(("iscsi_create_portal_group", params));
    }
    for (tag, group) in &node.initiator_groups {
        let params = json!({"tag": tag, "initiators": group.initiators, "netmasks": group.netmasks});
        calls.push(("iscsi_create_initiator_group", params));
    }
    for (tag, secrets) in &node.auth_groups {
        let mut params = json!({"tag": tag});
        if include_secrets {
            let secrets: Vec<Value> = secrets
                .iter()
                .map(|secret| {
                    let mut entry = json!({"user": secret.user, "secret": secret.secret});
                    if let (Some(user), Some(secret)) = (&secret.mutual_user, &secret.mutual_secret) {
                        entry["muser"] = json!(user);
                        entry["msecret"] = json!(secret);
                    }
                    entry
                })
                .collect();
            params["secrets"] = Value::Array(secrets);
        }
        calls.push(("iscsi_create_auth_group", params));
    }
    calls
}
