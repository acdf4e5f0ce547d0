//! Names and addresses as people write them, checked before anything keeps them.

use std::net::{IpAddr, SocketAddr};

/// The longest iSCSI name (RFC 7143 §4.2.7.1).
const NAME_BYTES_MAX: usize = 223;

/// Normalises an iSCSI name (RFC 3722: lower case) and checks its form (RFC 7143 §4.2.7).
///
/// # Errors
/// What is wrong, as a sentence.
pub fn iscsi_name(name: &str) -> Result<String, String> {
    let name = name.to_ascii_lowercase();
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("the iSCSI name is longer than {NAME_BYTES_MAX} bytes"));
    }
    if let Some(bad) =
        name.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':')))
    {
        return Err(format!(
            "the iSCSI name has the character {bad:?}: only a-z, 0-9, '-', '.' and ':' may be used"
        ));
    }
    let ok = if let Some(rest) = name.strip_prefix("iqn.") {
        is_dated_authority(rest)
    } else if let Some(rest) = name.strip_prefix("eui.") {
        rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit())
    } else if let Some(rest) = name.strip_prefix("naa.") {
        matches!(rest.len(), 16 | 32) && rest.bytes().all(|b| b.is_ascii_hexdigit())
    } else {
        false
    };
    if ok {
        Ok(name)
    } else {
        Err(format!(
            "{name:?} is not an iSCSI name: use iqn.YYYY-MM.reversed.domain[:string], eui.<16 hex digits> or naa.<16 or 32 hex digits>"
        ))
    }
}

/// `YYYY-MM.domain` with anything after it.
fn is_dated_authority(rest: &str) -> bool {
    let bytes = rest.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    let month = rest.get(5..7).and_then(|month| month.parse::<u8>().ok());
    digits(0..4)
        && bytes.get(4) == Some(&b'-')
        && digits(5..7)
        && month.is_some_and(|month| (1..=12).contains(&month))
        && bytes.get(7) == Some(&b'.')
        && bytes.get(8).is_some_and(u8::is_ascii_alphanumeric)
}

/// True when `name` is a whole name and not the part after the node's base.
#[must_use]
pub fn is_full_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["iqn.", "eui.", "naa."].iter().any(|prefix| lower.starts_with(prefix))
}

/// An entry of an initiator group: `ANY`, a name, `prefix*`, or either with a leading `!`.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn initiator_pattern(text: &str) -> Result<String, String> {
    let (negation, rest) = text.strip_prefix('!').map_or(("", text), |rest| ("!", rest));
    // SPDK's former word for it.
    if rest == "ANY" || rest == "ALL" {
        return Ok(format!("{negation}ANY"));
    }
    if let Some(prefix) = rest.strip_suffix('*') {
        let prefix = prefix.to_ascii_lowercase();
        let clean = prefix
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':'));
        if !clean || prefix.len() > NAME_BYTES_MAX || prefix.is_empty() {
            return Err(format!("{text:?} is not a prefix of iSCSI names"));
        }
        return Ok(format!("{negation}{prefix}*"));
    }
    iscsi_name(rest).map(|name| format!("{negation}{name}"))
}

/// A netmask of an initiator group: `ANY`, an address, or a network.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn netmask(text: &str) -> Result<String, String> {
    if text == "ANY" || text == "ALL" {
        return Ok("ANY".to_owned());
    }
    let (address, prefix) =
        text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let bad = || {
        format!(
            "{text:?} is not a netmask: use ANY, an address, or a network such as 10.0.0.0/24 or [fe80::]/10"
        )
    };
    let ip: IpAddr = unbracketed(address).parse().map_err(|_| bad())?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    if let Some(prefix) = prefix {
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > bits {
            return Err(bad());
        }
    }
    Ok(text.to_owned())
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The address of a portal: a numeric host (`*` is every IPv4 address, `[*]` every address) and a port.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn portal(host: &str, port: u16) -> Result<SocketAddr, String> {
    let host = match host {
        "*" => "0.0.0.0",
        "[*]" => "::",
        other => unbracketed(other),
    };
    let ip: IpAddr = host.parse().map_err(|_| {
        format!("{host:?} is not a numeric address: use one as 192.0.2.1, [2001:db8::1], 0.0.0.0 or [::]")
    })?;
    if port == 0 {
        return Err("port 0 is no port: use 1 to 65535 (3260 is iSCSI's)".to_owned());
    }
    Ok(SocketAddr::new(ip, port))
}

/// A device's name: what may stand in a table, a log line and a file.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn bdev_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 255 {
        return Err("a name has 1 to 255 bytes".to_owned());
    }
    match name.chars().find(|c| c.is_control() || c.is_whitespace()) {
        Some(bad) => {
            Err(format!("the name has the character {bad:?}: use no white space and no control characters"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iscsi_names() {
        assert_eq!(iscsi_name("iqn.2016-06.IO.spdk:Disk1").unwrap(), "iqn.2016-06.io.spdk:disk1");
        assert!(iscsi_name("eui.02004567a425678d").is_ok());
        assert!(iscsi_name("naa.52004567ba64678d").is_ok());
        for bad in [
            "",
            "disk1",
            "iqn.2016-13.io",
            "iqn.2016-6.io",
            "iqn.2016-06",
            "iqn.2016-06.",
            "eui.12",
            "iqn.2016-06.io:a b",
            "iqn.2016-06.io:é",
            "iqn.2016-06.io:a\u{7}",
        ] {
            assert!(iscsi_name(bad).is_err(), "{bad:?}");
        }
        assert!(iscsi_name(&format!("iqn.2016-06.io:{}", "x".repeat(300))).unwrap_err().contains("223"));
    }

    #[test]
    fn patterns_and_netmasks() {
        assert_eq!(initiator_pattern("ALL").unwrap(), "ANY");
        assert_eq!(initiator_pattern("!iqn.2016-06.io:A").unwrap(), "!iqn.2016-06.io:a");
        assert_eq!(initiator_pattern("iqn.2016-06.io:*").unwrap(), "iqn.2016-06.io:*");
        assert!(initiator_pattern("*").is_err() && initiator_pattern("127.0.0.1").is_err());
        for good in ["ANY", "10.0.0.0/24", "127.0.0.1", "[fe80::]/10", "::1"] {
            netmask(good).unwrap();
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/24", "[::]/129", "host"] {
            assert!(netmask(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn portals() {
        assert_eq!(portal("[::1]", 3260).unwrap().to_string(), "[::1]:3260");
        assert_eq!(portal("*", 3260).unwrap().to_string(), "0.0.0.0:3260");
        assert!(portal("localhost", 3260).is_err() && portal("127.0.0.1", 0).is_err());
    }
}
