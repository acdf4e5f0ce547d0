//! Target nodes, their LUNs and maps; sessions and connections; `scsi_get_devices`.

use std::collections::BTreeMap;
use std::sync::Arc;

use fabrics::iscsi::{AuthPolicy, PortalGroupMap};
use rpc::{NoParameters, Registry, RpcError, When, errno};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::framework::done;
use super::iscsi_options::check_policy;
use super::{Result, absent, exists, find_bdev, invalid, not_built};
use crate::control::node::{Node, Target};
use crate::control::{Control, names};

/// The highest LUN with a simple form (SAM-5 §4.7.4: flat space addressing).
const LUN_MAX: u16 = 0x3FFF;

/// Seconds an initiator gets to log out.
const LOGOUT_SECONDS: u16 = 60;

#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LunParameter {
    /// The bdev behind it.
    bdev_name: String,
    /// The LUN.
    lun_id: u16,
}

#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MapParameter {
    /// Portal group tag.
    pg_tag: u16,
    /// Initiator group tag.
    ig_tag: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateTarget {
    /// iSCSI name, or what follows the node's base and a colon.
    name: String,
    /// Alias.
    #[serde(default)]
    alias_name: String,
    /// Who reaches it through which portal group.
    pg_ig_maps: Vec<MapParameter>,
    /// Its LUNs.
    #[serde(default)]
    luns: Vec<LunParameter>,
    /// Commands of one session; 0 or more than max_queue_depth is max_queue_depth.
    #[serde(default)]
    queue_depth: u32,
    /// CHAP is not offered.
    #[serde(default)]
    disable_chap: bool,
    /// Login without CHAP is refused.
    #[serde(default)]
    require_chap: bool,
    /// The initiator must ask for our proof.
    #[serde(default)]
    mutual_chap: bool,
    /// Auth group; 0 looks in every group.
    #[serde(default)]
    chap_group: u32,
    /// Header digest is required.
    #[serde(default)]
    header_digest: bool,
    /// Data digest is required.
    #[serde(default)]
    data_digest: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetName {
    /// Target name.
    name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddLun {
    /// Target name.
    name: String,
    /// The bdev behind the new LUN.
    bdev_name: String,
    /// The LUN; the lowest free one when absent or -1.
    lun_id: Option<i32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EditMaps {
    /// Target name.
    name: String,
    /// Portal group and initiator group tags.
    pg_ig_maps: Vec<MapParameter>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetAuth {
    /// Target name.
    name: String,
    /// CHAP is not offered.
    #[serde(default)]
    disable_chap: bool,
    /// Login without CHAP is refused.
    #[serde(default)]
    require_chap: bool,
    /// The initiator must ask for our proof.
    #[serde(default)]
    mutual_chap: bool,
    /// Auth group; 0 looks in every group.
    #[serde(default)]
    chap_group: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RequestLogout {
    /// Target name.
    name: String,
    /// Only sessions through this portal group.
    pg_tag: Option<u16>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct SetRedirect {
    /// Target name.
    name: String,
    /// Portal group tag.
    pg_tag: u16,
    /// Where to send initiators.
    redirect_host: Option<String>,
    /// And to which port.
    redirect_port: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct TargetResult {
    name: String,
    alias_name: String,
    pg_ig_maps: Vec<MapParameter>,
    luns: Vec<LunParameter>,
    queue_depth: u32,
    disable_chap: bool,
    require_chap: bool,
    mutual_chap: bool,
    chap_group: u32,
    header_digest: bool,
    data_digest: bool,
}

#[derive(Serialize, JsonSchema)]
struct ScsiDevice {
    id: u32,
    device_name: String,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_create_target_node",
        When::Runtime,
        "Makes a target node.",
        |control: Arc<Control>, p: CreateTarget| async move { done(control.create_target(p).await) },
    );
    registry.register(
        "iscsi_delete_target_node",
        When::Runtime,
        "Deletes a target node and ends its sessions.",
        |control: Arc<Control>, p: TargetName| async move {
            done(
                control
                    .change(|node| {
                        let name = target(node, "iscsi_delete_target_node", &p.name)?.name.clone();
                        node.targets.remove(&name);
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_get_target_nodes",
        When::Runtime,
        "The target nodes.",
        |control: Arc<Control>, _: NoParameters| async move {
            let node = control.state();
            Ok(in_order(&node).into_iter().map(|target| result_of(&node, target)).collect::<Vec<_>>())
        },
    );
    registry.register(
        "iscsi_target_node_add_lun",
        When::Runtime,
        "Adds a LUN to a target node.",
        |control: Arc<Control>, p: AddLun| async move { done(control.add_lun(p).await) },
    );
    registry.register(
        "iscsi_target_node_set_auth",
        When::Runtime,
        "Sets the authentication of a target node.",
        |control: Arc<Control>, p: SetAuth| async move {
            let method = "iscsi_target_node_set_auth";
            let policy = AuthPolicy {
                disable_chap: p.disable_chap,
                require_chap: p.require_chap,
                mutual_chap: p.mutual_chap,
                chap_group: p.chap_group,
            };
            let policy = check_policy(method, policy)?;
            done(
                control
                    .change(|node| {
                        target(node, method, &p.name)?.auth = policy;
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_target_node_set_redirect",
        When::Runtime,
        "Login redirection: not built.",
        |control: Arc<Control>, p: SetRedirect| async move {
            let method = "iscsi_target_node_set_redirect";
            let mut node = Node::clone(&control.state());
            target(&mut node, method, &p.name)?;
            Err::<bool, _>(not_built(method, "redirect_host", "make a portal group at the other address"))
        },
    );
    registry.register(
        "iscsi_target_node_request_logout",
        When::Runtime,
        "Asks the initiators of a target node to log out.",
        |control: Arc<Control>, p: RequestLogout| async move {
            let method = "iscsi_target_node_request_logout";
            let mut node = Node::clone(&control.state());
            let name = target(&mut node, method, &p.name)?.name.clone();
            done(control.request_logout(Some(name), p.pg_tag, LOGOUT_SECONDS).await)
        },
    );
    register_reports(registry);
    register_maps(registry);
}

fn register_maps(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_target_node_add_pg_ig_maps",
        When::Runtime,
        "Lets more initiators reach a target node.",
        |control: Arc<Control>, p: EditMaps| async move {
            let method = "iscsi_target_node_add_pg_ig_maps";
            done(
                control
                    .change(|node| {
                        let new = maps(node, method, &p.pg_ig_maps)?;
                        let target = target(node, method, &p.name)?;
                        for map in new {
                            if target.maps.contains(&map) {
                                return Err(exists(
                                    method,
                                    format!(
                                        "the map of portal group {} and initiator group {}",
                                        map.portal_group, map.initiator_group
                                    ),
                                ));
                            }
                            target.maps.push(map);
                        }
                        Ok(())
                    })
                    .await,
            )
        },
    );
    registry.register(
        "iscsi_target_node_remove_pg_ig_maps",
        When::Runtime,
        "Takes maps from a target node; sessions they admitted end.",
        |control: Arc<Control>, p: EditMaps| async move {
            let method = "iscsi_target_node_remove_pg_ig_maps";
            done(
                control
                    .change(|node| {
                        let target = target(node, method, &p.name)?;
                        for map in &p.pg_ig_maps {
                            let Some(at) = target.maps.iter().position(|known| {
                                known.portal_group == map.pg_tag && known.initiator_group == map.ig_tag
                            }) else {
                                return Err(absent(
                                    method,
                                    format!(
                                        "the map of portal group {} and initiator group {}",
                                        map.pg_tag, map.ig_tag
                                    ),
                                    "iscsi_get_target_nodes",
                                ));
                            };
                            target.maps.remove(at);
                        }
                        Ok(())
                    })
                    .await,
            )
        },
    );
}

fn register_reports(registry: &mut Registry<Control>) {
    registry.register("iscsi_get_connections", When::Runtime, "The connections of the moment.", |control: Arc<Control>, _: NoParameters| async move {
        let reports = control.reports().await?;
        let mut all: Vec<Value> = Vec::new();
        for (core, report) in reports.iter().enumerate() {
            all.extend(report.connections.iter().map(|connection| json!({
                "id": connection.id, "cid": connection.cid, "tsih": connection.tsih, "lcore_id": core,
                "initiator_addr": connection.peer.ip().to_string(), "target_addr": connection.local.ip().to_string(),
                "target_node_name": connection.target, "thread_name": format!("reactor_{core}"),
                "initiator_name": connection.initiator, "state": connection.state,
                "initiator_port": connection.peer.port(), "target_port": connection.local.port(),
                "isid": connection.isid.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                "outstanding": connection.outstanding,
            })));
        }
        Ok(all)
    });
    registry.register("iscsi_get_stats", When::Runtime, "How many connections are in which state, and what the cores hold.", |control: Arc<Control>, _: NoParameters| async move {
        let reports = control.reports().await?;
        let count = |state: &str| reports.iter().flat_map(|report| &report.connections).filter(|connection| connection.state == state).count();
        Ok(json!({
            "invalid": count("login"), "running": count("full_feature"), "exiting": count("logout"), "exited": 0,
            "nexuses": reports.iter().map(|report| u64::from(report.nexuses)).sum::<u64>(),
            "tasks": reports.iter().map(|report| u64::from(report.tasks)).sum::<u64>(),
            "payload_bytes_copied": reports.iter().map(|report| report.payload_bytes_copied).sum::<u64>(),
            "buffers_outstanding": reports.iter().map(|report| u64::from(report.buffers_outstanding)).sum::<u64>(),
            "buffers": reports.iter().map(|report| u64::from(report.buffers)).sum::<u64>(),
        }))
    });
    registry.register(
        "scsi_get_devices",
        When::Runtime,
        "The SCSI target devices.",
        |control: Arc<Control>, _: NoParameters| async move {
            Ok(in_order(&control.state())
                .into_iter()
                .map(|target| ScsiDevice { id: target.id.0, device_name: target.name.to_string() })
                .collect::<Vec<_>>())
        },
    );
}

fn in_order(node: &Node) -> Vec<&Arc<Target>> {
    let mut targets: Vec<&Arc<Target>> = node.targets.values().collect();
    targets.sort_by_key(|target| target.id);
    targets
}

/// The whole name of a target: as given when it is one, else after the node's base.
fn full_name(node: &Node, method: &str, name: &str) -> Result<String> {
    let name = if names::is_full_name(name) {
        name.to_owned()
    } else {
        format!("{}:{name}", node.node_options.node_base)
    };
    names::iscsi_name(&name).map_err(|text| invalid(method, "name", format!("{text}. Remedy: correct it")))
}

fn target<'a>(node: &'a mut Node, method: &str, name: &str) -> Result<&'a mut Target> {
    let full = full_name(node, method, name)?;
    let found = node.targets.get_mut(full.as_str());
    found
        .map(Arc::make_mut)
        .ok_or_else(|| absent(method, format!("target node \"{full}\""), "iscsi_get_target_nodes"))
}

/// Maps, when the groups they name exist.
fn maps(node: &Node, method: &str, given: &[MapParameter]) -> Result<Vec<PortalGroupMap>> {
    let mut maps: Vec<PortalGroupMap> = Vec::new();
    for map in given {
        if !node.portal_groups.contains_key(&map.pg_tag) {
            return Err(absent(
                method,
                format!("parameter \"pg_ig_maps\": portal group {}", map.pg_tag),
                "iscsi_get_portal_groups",
            ));
        }
        if !node.initiator_groups.contains_key(&map.ig_tag) {
            return Err(absent(
                method,
                format!("parameter \"pg_ig_maps\": initiator group {}", map.ig_tag),
                "iscsi_get_initiator_groups",
            ));
        }
        let map = PortalGroupMap { portal_group: map.pg_tag, initiator_group: map.ig_tag };
        if maps.contains(&map) {
            return Err(invalid(
                method,
                "pg_ig_maps",
                format!(
                    "portal group {} and initiator group {} are there twice. Remedy: name them once",
                    map.portal_group, map.initiator_group
                ),
            ));
        }
        maps.push(map);
    }
    Ok(maps)
}

/// A bdev that may stand behind a LUN: no other bdev stands on it.
fn mappable(node: &Node, method: &str, name: &str) -> Result<()> {
    find_bdev(node, method, name)?;
    match node.above(name).next() {
        None => Ok(()),
        Some(user) => Err(RpcError::errno(
            errno::EPERM,
            format!(
                "{method}: parameter \"bdev_name\": bdev \"{name}\" is in use by bdev \"{0}\". Remedy: use \"{0}\"",
                user.name
            ),
        )),
    }
}

impl Control {
    async fn create_target(&self, p: CreateTarget) -> Result<()> {
        let method = "iscsi_create_target_node";
        let auth = AuthPolicy {
            disable_chap: p.disable_chap,
            require_chap: p.require_chap,
            mutual_chap: p.mutual_chap,
            chap_group: p.chap_group,
        };
        let auth = check_policy(method, auth)?;
        if p.alias_name.len() > 255 {
            return Err(invalid(method, "alias_name", "is longer than 255 bytes. Remedy: shorten it"));
        }
        let luns_max = self.limits.luns_per_target_max as usize;
        self.change(|node| {
            let name = full_name(node, method, &p.name)?;
            if node.targets.contains_key(name.as_str()) {
                return Err(exists(method, format!("target node \"{name}\"")));
            }
            let mut luns = BTreeMap::new();
            for lun in p.luns {
                if lun.lun_id > LUN_MAX {
                    return Err(invalid(method, "luns", format!("lun_id {} is more than {LUN_MAX}. Remedy: use less", lun.lun_id)));
                }
                mappable(node, method, &lun.bdev_name)?;
                if luns.insert(lun.lun_id, lun.bdev_name).is_some() {
                    return Err(invalid(method, "luns", format!("lun_id {} is there twice. Remedy: give each LUN one bdev", lun.lun_id)));
                }
            }
            if luns.len() > luns_max {
                return Err(RpcError::errno(errno::ENOSPC, format!("{method}: parameter \"luns\": a target has at most {luns_max} LUNs. Remedy: use more targets")));
            }
            let queue_depth = if p.queue_depth > node.options.queue_depth_max { 0 } else { p.queue_depth };
            let target = Target {
                id: node.free_target_id(),
                name: name.as_str().into(),
                alias: Some(p.alias_name).filter(|alias| !alias.is_empty()),
                luns,
                maps: maps(node, method, &p.pg_ig_maps)?,
                auth,
                header_digest: p.header_digest,
                data_digest: p.data_digest,
                queue_depth,
            };
            node.targets.insert(target.name.clone(), Arc::new(target));
            Ok(())
        })
        .await
    }

    async fn add_lun(&self, p: AddLun) -> Result<()> {
        let method = "iscsi_target_node_add_lun";
        let luns_max = self.limits.luns_per_target_max as usize;
        self.change(|node| {
            target(node, method, &p.name)?;
            mappable(node, method, &p.bdev_name)?;
            let target = target(node, method, &p.name)?;
            if target.luns.len() >= luns_max {
                return Err(RpcError::errno(
                    errno::ENOSPC,
                    format!("{method}: a target has at most {luns_max} LUNs. Remedy: use more targets"),
                ));
            }
            let lun = match p.lun_id {
                None | Some(-1) => {
                    (0..=LUN_MAX).find(|lun| !target.luns.contains_key(lun)).unwrap_or(LUN_MAX)
                }
                Some(lun) => u16::try_from(lun).ok().filter(|lun| *lun <= LUN_MAX).ok_or_else(|| {
                    invalid(
                        method,
                        "lun_id",
                        format!("{lun} is no LUN. Remedy: use 0 to {LUN_MAX}, or -1 for the lowest free one"),
                    )
                })?,
            };
            if target.luns.contains_key(&lun) {
                return Err(exists(method, format!("LUN {lun} of \"{}\"", target.name)));
            }
            target.luns.insert(lun, p.bdev_name);
            Ok(())
        })
        .await
    }
}

fn result_of(node: &Node, target: &Target) -> TargetResult {
    TargetResult {
        name: target.name.to_string(),
        alias_name: target.alias.clone().unwrap_or_default(),
        pg_ig_maps: target
            .maps
            .iter()
            .map(|map| MapParameter { pg_tag: map.portal_group, ig_tag: map.initiator_group })
            .collect(),
        luns: target
            .luns
            .iter()
            .map(|(lun, name)| LunParameter { bdev_name: name.clone(), lun_id: *lun })
            .collect(),
        queue_depth: if target.queue_depth == 0 { node.options.queue_depth_max } else { target.queue_depth },
        disable_chap: target.auth.disable_chap,
        require_chap: target.auth.require_chap,
        mutual_chap: target.auth.mutual_chap,
        chap_group: target.auth.chap_group,
        header_digest: target.header_digest,
        data_digest: target.data_digest,
    }
}

/// The calls that make these targets.
pub(super) fn saved(node: &Node) -> Vec<(&'static str, Value)> {
    let call = |target: &Arc<Target>| {
        let mut params = serde_json::to_value(result_of(node, target)).unwrap_or_default();
        params["queue_depth"] = json!(target.queue_depth);
        ("iscsi_create_target_node", params)
    };
    in_order(node).into_iter().map(call).collect()
}
