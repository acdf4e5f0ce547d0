//! Who may come in, and through which portal: initiator groups, portal groups, and the names of the ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use scsi::NexusIdentity;

use super::{Config, InitiatorGroup, Portal, PortalGroup, TargetNode};

/// PROTOCOL IDENTIFIER of iSCSI (SPC-5 §7.6.1).
const PROTOCOL_ISCSI: u8 = 5;

/// What an initiator group says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Admitted,
    Refused,
    NotMentioned,
}

/// An entry of `InitiatorGroup::netmasks`, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Netmask {
    /// Every address.
    Any,
    /// Addresses whose first `prefix` bits are those of `network`.
    Network {
        /// Address of the network.
        network: IpAddr,
        /// Bits that count.
        prefix: u8,
    },
}

impl Netmask {
    /// Reads `ANY`, `10.0.0.1`, `10.0.0.0/24`, `fe80::1`, `[fe80::1]`, `[fe80::]/10` or `fe80::/10`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Netmask> {
        if text == "ANY" {
            return Some(Netmask::Any);
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = match address.strip_prefix('[') {
            Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
            None => address.parse().ok()?,
        };
        let bits = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse::<u8>().ok().filter(|&prefix| prefix <= bits)?
            }
            Some(_) => return None,
            None => bits,
        };
        Some(Netmask::Network { network, prefix })
    }

    /// Whether `address` lies in it. An IPv4 address that arrives mapped into IPv6 is judged as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match *self {
            Netmask::Any => true,
            Netmask::Network { network, prefix } => match (network.to_canonical(), address.to_canonical()) {
                (IpAddr::V4(network), IpAddr::V4(address)) => {
                    // A network written in mapped form counts its prefix from bit 96.
                    let bits = u32::from(prefix).min(32);
                    let mask = u32::MAX.checked_shl(32u32.saturating_sub(bits)).unwrap_or(0);
                    u32::from(network) & mask == u32::from(address) & mask
                }
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    let mask = u128::MAX.checked_shl(128u32.saturating_sub(u32::from(prefix))).unwrap_or(0);
                    u128::from(network) & mask == u128::from(address) & mask
                }
                _ => false,
            },
        }
    }
}

/// First match wins. `!` refuses, `ANY` matches all, a `*` at the end matches what begins so.
fn judge_name(group: &InitiatorGroup, initiator: &str) -> Verdict {
    for entry in &group.initiators {
        let (pattern, verdict) = match entry.strip_prefix('!') {
            Some(pattern) => (pattern, Verdict::Refused),
            None => (entry.as_str(), Verdict::Admitted),
        };
        let matches = match pattern.strip_suffix('*') {
            _ if pattern == "ANY" => true,
            Some(beginning) => {
                initiator.get(..beginning.len()).is_some_and(|start| start.eq_ignore_ascii_case(beginning))
            }
            None => initiator.eq_ignore_ascii_case(pattern),
        };
        if matches {
            return verdict;
        }
    }
    Verdict::NotMentioned
}

/// Whether `initiator` coming from `peer` may log in to `target` through the portal group `portal_group`. Closed by
/// default: no map, an unknown group or an entry that cannot be read admits nobody; a refusal by name in any map of
/// this portal group stands against every other map.
#[must_use]
pub fn admits(
    config: &Config,
    target: &TargetNode,
    portal_group: u16,
    initiator: &str,
    peer: SocketAddr,
) -> bool {
    let mut admitted = false;
    for map in target.maps.iter().filter(|map| map.portal_group == portal_group) {
        let Some(group) = config.initiator_groups.iter().find(|group| group.tag == map.initiator_group)
        else {
            continue;
        };
        match judge_name(group, initiator) {
            Verdict::Refused => return false,
            Verdict::NotMentioned => {}
            Verdict::Admitted => {
                admitted |= group
                    .netmasks
                    .iter()
                    .filter_map(|entry| Netmask::parse(entry))
                    .any(|netmask| netmask.contains(peer.ip()));
            }
        }
    }
    admitted
}

/// The portal group that serves the local address of a connection: the one with exactly this portal, else one that
/// listens on every address of the port.
#[must_use]
pub fn portal_group(config: &Config, local: SocketAddr) -> Option<&PortalGroup> {
    let address = local.ip().to_canonical();
    let serves = |portal: &Portal, exact: bool| {
        let ours = portal.address.ip();
        let same = if exact {
            ours.to_canonical() == address
        } else {
            // `[::]` takes IPv4 too, as sockets do unless told otherwise.
            ours == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                || (ours == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && address.is_ipv4())
        };
        same && portal.address.port() == local.port()
    };
    let find = |exact: bool| {
        config.portal_groups.iter().find(|group| group.portals.iter().any(|portal| serves(portal, exact)))
    };
    find(true).or_else(|| find(false))
}

/// The target of this (normalised) name.
#[must_use]
pub fn find_target<'a>(config: &'a Config, name: &str) -> Option<&'a TargetNode> {
    config.targets.iter().find(|target| &*target.name == name)
}

/// Relative target port identifier of a target's port (SPC-5 §7.8.6.6): a target node has one SCSI port per portal
/// group (RFC 7143 §4.4.1), so its tag serves; 0 is reserved.
#[must_use]
pub fn relative_target_port(portal_group: u16) -> u16 {
    portal_group.max(1)
}

/// The I_T nexus of a normal session (RFC 7143 §4.4.1, §4.4.2).
#[must_use]
pub fn nexus_identity(
    target: &TargetNode,
    portal_group: u16,
    initiator: &Arc<str>,
    isid: [u8; 6],
) -> NexusIdentity {
    let [a, b, c, d, e, f] = isid;
    NexusIdentity {
        initiator_port: format!("{initiator},i,0x{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}").into(),
        initiator: Arc::clone(initiator),
        target_port: format!("{},t,0x{portal_group:04x}", target.name).into(),
        target: target.target,
        relative_target_port: relative_target_port(portal_group),
        protocol: PROTOCOL_ISCSI,
    }
}

#[cfg(test)]
mod tests {
    use super::super::PortalGroupMap;
    use super::super::login::tests::{group, target};
    use super::*;

    const HOST: &str = "iqn.2001-04.com.example:host1";
    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)), 40_000);

    fn admitted(initiators: &[&str], netmasks: &[&str], name: &str, peer: SocketAddr) -> bool {
        let config = Config { initiator_groups: vec![group(1, initiators, netmasks)], ..Config::default() };
        let node = target("iqn.2001-04.com.example:t", &[(1, 1)]);
        admits(&config, &node, 1, name, peer)
    }

    #[test]
    fn closed_by_default() {
        let config = Config { initiator_groups: vec![group(1, &["ANY"], &["ANY"])], ..Config::default() };
        assert!(!admits(&config, &target("iqn.2001-04.com.example:t", &[]), 1, HOST, PEER));
        assert!(!admits(&config, &target("iqn.2001-04.com.example:t", &[(1, 9)]), 1, HOST, PEER));
        assert!(!admits(&config, &target("iqn.2001-04.com.example:t", &[(2, 1)]), 1, HOST, PEER));
        assert!(admits(&config, &target("iqn.2001-04.com.example:t", &[(1, 1)]), 1, HOST, PEER));
        assert!(!admitted(&[], &["ANY"], HOST, PEER));
        assert!(!admitted(&["ANY"], &[], HOST, PEER));
        assert!(!admitted(&["ANY"], &["nonsense", "10.0.0.0/33"], HOST, PEER));
    }

    #[test]
    fn names_first_match_wins() {
        assert!(admitted(&[HOST], &["ANY"], HOST, PEER));
        assert!(!admitted(&["!iqn.2001-04.com.example:host1", "ANY"], &["ANY"], HOST, PEER));
        assert!(admitted(&["ANY", "!iqn.2001-04.com.example:host1"], &["ANY"], HOST, PEER));
        assert!(admitted(&["iqn.2001-04.com.example:*"], &["ANY"], HOST, PEER));
        assert!(!admitted(
            &["iqn.2001-04.com.example:host1*"],
            &["ANY"],
            "iqn.2001-04.com.example:host",
            PEER
        ));
        assert!(!admitted(&["!iqn.2001-04.com.example:*", "ANY"], &["ANY"], HOST, PEER));
        assert!(!admitted(&["!ANY"], &["ANY"], HOST, PEER));
        assert!(!admitted(&["iqn.2001-04.com.example:host"], &["ANY"], HOST, PEER));
    }

    #[test]
    fn a_refusal_in_another_map_stands() {
        let config = Config {
            initiator_groups: vec![group(1, &["ANY"], &["ANY"]), group(2, &[&format!("!{HOST}")], &["ANY"])],
            ..Config::default()
        };
        let mut node = target("iqn.2001-04.com.example:t", &[(1, 1), (1, 2)]);
        assert!(!admits(&config, &node, 1, HOST, PEER));
        node.maps.retain(|map| *map == PortalGroupMap { portal_group: 1, initiator_group: 1 });
        assert!(admits(&config, &node, 1, HOST, PEER));
    }

    #[test]
    fn netmasks() {
        let yes = |mask: &str, address: &str| {
            Netmask::parse(mask).is_some_and(|netmask| netmask.contains(address.parse().expect("address")))
        };
        assert!(yes("ANY", "1.2.3.4"));
        assert!(yes("10.0.0.0/24", "10.0.0.255") && !yes("10.0.0.0/24", "10.0.1.0"));
        assert!(yes("0.0.0.0/0", "8.8.8.8") && !yes("0.0.0.0/0", "fe80::1"));
        assert!(yes("10.0.0.1", "10.0.0.1") && !yes("10.0.0.1", "10.0.0.2"));
        assert!(yes("10.0.0.0/24", "::ffff:10.0.0.9"));
        assert!(yes("[fe80::]/10", "febf::1") && !yes("[fe80::]/10", "fec0::1"));
        assert!(yes("[::]/0", "fec0::1") && yes("fec0::/16", "fec0::1") && yes("[fec0::1]", "fec0::1"));
        for bad in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "[fe80::",
            "[10.0.0.1]",
            "[::]/129",
            "any",
        ] {
            assert_eq!(Netmask::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_portal_group_of_a_local_address() {
        let portal = |text: &str| Portal { address: text.parse().expect("address"), advertised: None };
        let config = Config {
            portal_groups: vec![
                PortalGroup { tag: 1, portals: vec![portal("0.0.0.0:3260")], private: false },
                PortalGroup {
                    tag: 2,
                    portals: vec![portal("10.0.0.1:3260"), portal("[::]:3261")],
                    private: false,
                },
            ],
            ..Config::default()
        };
        let tag = |local: &str| portal_group(&config, local.parse().expect("address")).map(|group| group.tag);
        assert_eq!(tag("10.0.0.1:3260"), Some(2));
        assert_eq!(tag("[::ffff:10.0.0.1]:3260"), Some(2));
        assert_eq!(tag("10.0.0.2:3260"), Some(1));
        assert_eq!(tag("10.0.0.2:3261"), Some(2));
        assert_eq!(tag("[fe80::1]:3260"), None);
        assert_eq!(tag("10.0.0.2:3262"), None);
    }

    #[test]
    fn identity_names_both_ports() {
        let node = target("iqn.2001-04.com.example:t", &[]);
        let identity = nexus_identity(&node, 7, &HOST.into(), [0x40, 1, 2, 3, 0, 0xFF]);
        assert_eq!(&*identity.initiator_port, "iqn.2001-04.com.example:host1,i,0x4001020300ff");
        assert_eq!(&*identity.target_port, "iqn.2001-04.com.example:t,t,0x0007");
        assert_eq!((identity.relative_target_port, identity.protocol), (7, 5));
    }
}
