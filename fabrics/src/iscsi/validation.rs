//! What a configuration must keep, and how to mend it.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use super::access::Netmask;
use super::chap::{NAME_BYTES_MAX, SECRET_BYTES_MIN};
use super::names::normalise_target;
use super::negotiation::LENGTHS;
use super::{AuthGroup, AuthPolicy, Config, InitiatorGroup, Options, PortalGroup, TargetNode};

/// Longest secret and alias, in bytes.
const TEXT_BYTES_MAX: usize = 255;

/// What is wrong with a configuration: where, and what would mend it. Never shows a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The object, as `target iqn…` or `portal group 1`.
    pub object: String,
    /// Its field.
    pub field: &'static str,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.remedy)
    }
}

impl std::error::Error for ConfigError {}

/// Gathers what is wrong with one object.
struct Findings<'a> {
    object: String,
    errors: &'a mut Vec<ConfigError>,
}

impl Findings<'_> {
    /// Notes `remedy` unless `holds`.
    fn check(&mut self, holds: bool, field: &'static str, remedy: impl Into<String>) {
        if !holds {
            self.errors.push(ConfigError { object: self.object.clone(), field, remedy: remedy.into() });
        }
    }

    fn range<T: PartialOrd + fmt::Display>(
        &mut self,
        value: T,
        range: RangeInclusive<T>,
        field: &'static str,
    ) {
        let remedy = format!("set it to {} to {}, not {value}", range.start(), range.end());
        self.check(range.contains(&value), field, remedy);
    }
}

impl Config {
    /// Checks everything a login relies on.
    ///
    /// # Errors
    /// All that is wrong, each with its object, field and remedy.
    pub fn validate(&self) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        check_options(&self.options, &mut errors);
        self.check_portal_groups(&mut errors);
        let mut tags = HashSet::new();
        for group in &self.initiator_groups {
            let mut found =
                Findings { object: format!("initiator group {}", group.tag), errors: &mut errors };
            found.check(tags.insert(group.tag), "tag", "give each initiator group its own tag");
            check_initiator_group(group, &mut found);
        }
        self.check_auth_groups(&mut errors);
        let mut names = HashSet::new();
        for target in &self.targets {
            let mut found = Findings { object: format!("target {}", target.name), errors: &mut errors };
            found.check(names.insert(&*target.name), "name", "give each target its own name");
            self.check_target(target, &mut found);
        }
        let mut found = Findings { object: "discovery".to_owned(), errors: &mut errors };
        self.check_policy(&self.discovery_auth, &mut found);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn check_portal_groups(&self, errors: &mut Vec<ConfigError>) {
        let (mut tags, mut portals) = (HashSet::new(), HashSet::new());
        for PortalGroup { tag, portals: own, .. } in &self.portal_groups {
            let mut found = Findings { object: format!("portal group {tag}"), errors };
            found.check(*tag != 0, "tag", "choose 1 to 65535");
            found.check(tags.insert(*tag), "tag", "give each portal group its own tag");
            for portal in own {
                let address = portal.address;
                let new = portals.insert((address.ip().to_canonical(), address.port()));
                found.check(new, "portals", format!("list {address} in one portal group only"));
            }
        }
    }

    fn check_auth_groups(&self, errors: &mut Vec<ConfigError>) {
        let secrets = || self.auth_groups.iter().flat_map(|group| &group.secrets);
        let initiators: HashSet<&str> = secrets().map(|secret| secret.secret.as_str()).collect();
        let mut tags = HashSet::new();
        for AuthGroup { tag, secrets } in &self.auth_groups {
            let mut found = Findings { object: format!("auth group {tag}"), errors };
            found.check(*tag != 0, "tag", "choose 1 and up: 0 means every group");
            found.check(tags.insert(*tag), "tag", "give each auth group its own tag");
            let mut users = HashSet::new();
            for secret in secrets {
                found.object = format!("auth group {tag}, user {:?}", secret.user);
                found.check(users.insert(&secret.user), "user", "name each user once");
                found.check(
                    is_user(&secret.user),
                    "user",
                    "choose 1 to 255 bytes without control characters",
                );
                found.check(is_secret(&secret.secret), "secret", SECRET_REMEDY);
                let paired = secret.mutual_user.is_some() == secret.mutual_secret.is_some();
                found.check(paired, "mutual_user", "set mutual_user and mutual_secret together");
                if let Some(user) = &secret.mutual_user {
                    found.check(
                        is_user(user),
                        "mutual_user",
                        "choose 1 to 255 bytes without control characters",
                    );
                }
                if let Some(mutual) = &secret.mutual_secret {
                    found.check(is_secret(mutual), "mutual_secret", SECRET_REMEDY);
                    // RFC 7143 §9.2.1: no secret serves both directions, whoever holds it.
                    let own = !initiators.contains(mutual.as_str());
                    found.check(own, "mutual_secret", "choose a secret that no initiator uses");
                }
            }
        }
    }

    fn check_target(&self, target: &TargetNode, found: &mut Findings<'_>) {
        match normalise_target(&target.name) {
            Ok(name) => found.check(*name == *target.name, "name", format!("write it as {name}")),
            Err(error) => found.check(false, "name", error.to_string()),
        }
        if let Some(alias) = &target.alias {
            let fit = alias.len() <= TEXT_BYTES_MAX && !alias.chars().any(char::is_control);
            found.check(fit, "alias", "use at most 255 bytes without control characters");
        }
        let mut maps = HashSet::new();
        for map in &target.maps {
            let (portals, initiators) = (map.portal_group, map.initiator_group);
            found.check(
                maps.insert((portals, initiators)),
                "maps",
                format!("map {portals}:{initiators} once"),
            );
            let known = self.portal_groups.iter().any(|group| group.tag == portals);
            found.check(known, "maps", format!("create portal group {portals} first"));
            let known = self.initiator_groups.iter().any(|group| group.tag == initiators);
            found.check(known, "maps", format!("create initiator group {initiators} first"));
        }
        self.check_policy(&target.auth, found);
    }

    fn check_policy(&self, policy: &AuthPolicy, found: &mut Findings<'_>) {
        let AuthPolicy { disable_chap, require_chap, mutual_chap, chap_group } = *policy;
        found.check(!(disable_chap && require_chap), "require_chap", "clear disable_chap or require_chap");
        found.check(!mutual_chap || require_chap, "mutual_chap", "set require_chap too");
        let known = chap_group == 0 || self.auth_groups.iter().any(|group| group.tag == chap_group);
        found.check(
            known,
            "chap_group",
            format!("create auth group {chap_group} first, or use 0 for every group"),
        );
    }
}

const SECRET_REMEDY: &str = "choose 12 to 255 random bytes (RFC 7143 9.2.1 wants 96 random bits)";

fn is_secret(secret: &str) -> bool {
    (SECRET_BYTES_MIN..=TEXT_BYTES_MAX).contains(&secret.len())
}

fn is_user(user: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&user.len()) && !user.chars().any(char::is_control)
}

fn check_initiator_group(group: &InitiatorGroup, found: &mut Findings<'_>) {
    for entry in &group.initiators {
        let pattern = entry.strip_prefix('!').unwrap_or(entry);
        let stem = pattern.strip_suffix('*').unwrap_or(pattern);
        let plain = stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte));
        let fit = (pattern.ends_with('*') || !stem.is_empty())
            && plain
            && stem.len() <= super::names::NAME_BYTES_MAX;
        found.check(
            fit,
            "initiators",
            format!("{entry:?}: write an iSCSI name, a prefix and *, or ANY, after ! to refuse"),
        );
    }
    for entry in &group.netmasks {
        let remedy = format!("{entry:?}: write ANY, an address, or a network as 10.0.0.0/24 or [fe80::]/10");
        found.check(Netmask::parse(entry).is_some(), "netmasks", remedy);
    }
}

fn check_options(options: &Options, errors: &mut Vec<ConfigError>) {
    let mut found = Findings { object: "options".to_owned(), errors };
    found.range(options.login_timeout_s, 1..=3600, "login_timeout_s");
    found.range(options.nop_in_interval_s, 0..=3600, "nop_in_interval_s");
    found.range(options.nop_timeout_s, 1..=3600, "nop_timeout_s");
    found.range(options.max_recv_data_segment_length, LENGTHS, "max_recv_data_segment_length");
    found.range(options.max_burst_length, LENGTHS, "max_burst_length");
    found.range(options.first_burst_length, LENGTHS, "first_burst_length");
    let ordered = options.first_burst_length <= options.max_burst_length;
    found.check(ordered, "first_burst_length", "set it to at most max_burst_length");
    found.range(options.max_outstanding_r2t, 1..=u16::MAX, "max_outstanding_r2t");
    found.range(options.half_open_connections_max, 1..=u32::MAX, "half_open_connections_max");
    let per_address = options.half_open_connections_per_address_max;
    found.range(per_address, 1..=u32::MAX, "half_open_connections_per_address_max");
    found.range(options.queue_depth_max, 1..=65_535, "queue_depth_max");
    found.range(options.default_time_to_wait, 0..=3600, "default_time_to_wait");
    found.range(options.default_time_to_retain, 0..=3600, "default_time_to_retain");
}

#[cfg(test)]
mod tests {
    use super::super::PortalGroupMap;
    use super::super::chap::tests::secret;
    use super::super::login::tests::{config, group, target};
    use super::*;

    /// The one thing wrong after `spoil`: object and field.
    fn found(spoil: impl FnOnce(&mut Config)) -> Vec<(String, &'static str)> {
        let mut config = config();
        assert_eq!(config.validate(), Ok(()));
        spoil(&mut config);
        config
            .validate()
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|error| (error.object, error.field))
            .collect()
    }

    #[test]
    fn options() {
        assert_eq!(Config::default().validate(), Ok(()));
        assert_eq!(
            found(|c| c.options.max_burst_length = 511),
            [("options".into(), "max_burst_length"), ("options".into(), "first_burst_length")]
        );
        assert_eq!(found(|c| c.options.login_timeout_s = 0), [("options".into(), "login_timeout_s")]);
        assert_eq!(found(|c| c.options.max_outstanding_r2t = 0), [("options".into(), "max_outstanding_r2t")]);
    }

    #[test]
    fn groups() {
        assert_eq!(
            found(|c| c.portal_groups.push(c.portal_groups[0].clone())),
            [("portal group 1".into(), "tag"), ("portal group 1".into(), "portals")]
        );
        assert_eq!(
            found(|c| c.initiator_groups.push(group(1, &["ANY"], &["ANY"]))),
            [("initiator group 1".into(), "tag")]
        );
        for bad in ["", "!", "iqn.\n", "iqn.*x", "iqn.a b"] {
            assert_eq!(
                found(|c| c.initiator_groups.push(group(9, &[bad], &[]))),
                [("initiator group 9".into(), "initiators")],
                "{bad}"
            );
        }
        for good in ["*", "!ANY", "iqn.2001-04.com.example:*"] {
            assert!(found(|c| c.initiator_groups.push(group(9, &[good], &[]))).is_empty(), "{good}");
        }
        assert_eq!(
            found(|c| c.initiator_groups.push(group(9, &[], &["10.0.0.0/33"]))),
            [("initiator group 9".into(), "netmasks")]
        );
    }

    #[test]
    fn secrets() {
        let add = |user: &str, value: &str, mutual: Option<&str>| {
            let mut entry = secret(user, value);
            entry.mutual_user = mutual.map(|_| "us".to_owned());
            entry.mutual_secret = mutual.map(str::to_owned);
            found(|config| config.auth_groups.push(AuthGroup { tag: 9, secrets: vec![entry] }))
        };
        let object = |field| vec![("auth group 9, user \"u\"".to_owned(), field)];
        assert!(add("u", "123456789012", None).is_empty());
        assert_eq!(add("u", "12345678901", None), object("secret"));
        assert_eq!(add("u", "123456789012", Some("12345678901")), object("mutual_secret"));
        assert_eq!(add("u", "123456789012", Some("123456789012")), object("mutual_secret"));
        assert!(add("u", "123456789012", Some("210987654321")).is_empty());
        assert_eq!(add("", "123456789012", None), [("auth group 9, user \"\"".into(), "user")]);
        let errors = Config {
            auth_groups: vec![AuthGroup { tag: 1, secrets: vec![secret("u", "tell nobody")] }],
            ..Config::default()
        };
        let shown = errors.validate().err().map(|errors| format!("{errors:?}")).unwrap_or_default();
        assert!(!shown.is_empty() && !shown.contains("tell nobody"));
    }

    #[test]
    fn targets() {
        let name = "iqn.2001-04.com.example:x";
        let add = |spoil: fn(&mut TargetNode)| {
            let mut node = target(name, &[(1, 1)]);
            spoil(&mut node);
            found(|config| config.targets.push(node)).into_iter().map(|error| error.1).collect::<Vec<_>>()
        };
        assert!(add(|_| {}).is_empty());
        assert_eq!(add(|t| t.name = "iqn.2001-04.com.example:X".into()), ["name"]);
        assert_eq!(add(|t| t.name = "iqn.2001-04.com.example:t".into()), ["name"]);
        assert_eq!(add(|t| t.name = "iqn.2001-04.com.example:\u{1b}".into()), ["name"]);
        assert_eq!(add(|t| t.alias = Some("a\n".into())), ["alias"]);
        assert_eq!(
            add(|t| t.maps.push(PortalGroupMap { portal_group: 9, initiator_group: 9 })),
            ["maps", "maps"]
        );
        assert_eq!(add(|t| t.auth.mutual_chap = true), ["mutual_chap"]);
        assert_eq!(add(|t| t.auth.chap_group = 77), ["chap_group"]);
        assert_eq!(add(|t| (t.auth.disable_chap, t.auth.require_chap) = (true, true)), ["require_chap"]);
    }
}
