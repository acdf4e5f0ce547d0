//! iSCSI names (RFC 7143 §4.2.7, RFC 3722).

use std::fmt;

/// Longest iSCSI name in bytes (RFC 7143 §4.2.7.1).
pub const NAME_BYTES_MAX: usize = 223;

/// Why a string is not an iSCSI name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// No characters, or nothing after the type.
    Empty,
    /// More than [`NAME_BYTES_MAX`] bytes.
    TooLong,
    /// Neither `iqn.`, `eui.` nor `naa.`.
    UnknownType,
    /// `iqn.` without a year, a month and a naming authority (RFC 7143 §4.2.7.4).
    NoAuthority,
    /// `eui.` or `naa.` with the wrong number of hexadecimal digits (RFC 7143 §4.2.7.5, §4.2.7.6).
    BadDigits,
    /// A character RFC 3722 forbids.
    ForbiddenCharacter,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameError::Empty => "the name is empty",
            NameError::TooLong => "the name is longer than 223 bytes",
            NameError::UnknownType => "the name begins with none of iqn., eui. and naa.",
            NameError::NoAuthority => "the name lacks the yyyy-mm.reversed-domain part after iqn.",
            NameError::BadDigits => "eui. takes 16 hexadecimal digits, naa. 16 or 32",
            NameError::ForbiddenCharacter => "the name has a character other than a-z, 0-9, '-', '.' and ':'",
        })
    }
}

impl std::error::Error for NameError {}

/// The normal form of a name an initiator gave (RFC 3722 §3: upper case is mapped to lower case). Only ASCII is
/// taken: without NFKC two spellings of one name would be two initiators to the access rules. `_` is let through
/// because initiators make names from host names that have it.
///
/// # Errors
/// What is wrong with the name.
pub fn normalise(name: &str) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'_')) {
        return Err(NameError::ForbiddenCharacter);
    }
    let name = name.to_ascii_lowercase();
    let (kind, rest) = name.split_at_checked(4).ok_or(NameError::UnknownType)?;
    let hexadecimal = rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    match kind {
        "iqn." | "eui." | "naa." if rest.is_empty() => Err(NameError::Empty),
        "iqn." => Ok(name),
        "eui." if hexadecimal && rest.len() == 16 => Ok(name),
        "naa." if hexadecimal && matches!(rest.len(), 16 | 32) => Ok(name),
        "eui." | "naa." => Err(NameError::BadDigits),
        _ => Err(NameError::UnknownType),
    }
}

/// The normal form of a name of ours, which must keep every rule: we are the ones who announce it.
///
/// # Errors
/// What is wrong with the name.
pub fn normalise_target(name: &str) -> Result<String, NameError> {
    let name = normalise(name)?;
    if name.contains('_') {
        return Err(NameError::ForbiddenCharacter);
    }
    if let Some(rest) = name.strip_prefix("iqn.")
        && !has_authority(rest)
    {
        return Err(NameError::NoAuthority);
    }
    Ok(name)
}

/// `yyyy-mm.` and at least one character of a reversed domain name.
fn has_authority(rest: &str) -> bool {
    let Some((date, authority)) = rest.split_once('.') else { return false };
    let Some((year, month)) = date.split_once('-') else { return false };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let month_known =
        month.len() == 2 && digits(month) && (1..=12).contains(&month.parse::<u8>().unwrap_or(0));
    year.len() == 4
        && digits(year)
        && month_known
        && !authority.is_empty()
        && !authority.starts_with([':', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_case_becomes_lower_case() {
        assert_eq!(normalise("IQN.2001-04.com.Example:Disk").as_deref(), Ok("iqn.2001-04.com.example:disk"));
        assert_eq!(normalise("eui.02004567A425678D").as_deref(), Ok("eui.02004567a425678d"));
        assert_eq!(normalise("naa.62004567BA64678D0123456789ABCDEF").map(|name| name.len()), Ok(36));
    }

    #[test]
    fn bad_names_are_named() {
        assert_eq!(normalise(""), Err(NameError::Empty));
        assert_eq!(normalise("iqn."), Err(NameError::Empty));
        assert_eq!(normalise("disk"), Err(NameError::UnknownType));
        assert_eq!(normalise("iq"), Err(NameError::UnknownType));
        assert_eq!(normalise("eui.0200"), Err(NameError::BadDigits));
        assert_eq!(normalise("naa.g2004567ba64678d"), Err(NameError::BadDigits));
        assert_eq!(normalise(&format!("iqn.{}", "a".repeat(219))).map(|name| name.len()), Ok(223));
        assert_eq!(normalise(&format!("iqn.{}", "a".repeat(220))), Err(NameError::TooLong));
        for bad in ["\n", "\u{7f}", " ", "/", ",", "é", "\u{200b}", "=", "\0", "~", "%s"] {
            let name = format!("iqn.2001-04.com.example:{bad}");
            assert_eq!(normalise(&name), Err(NameError::ForbiddenCharacter), "{name:?}");
        }
    }

    #[test]
    fn our_own_names_keep_every_rule() {
        assert!(normalise_target("iqn.2001-04.com.example").is_ok());
        assert_eq!(normalise_target("iqn.2001-04.com.example:a_b"), Err(NameError::ForbiddenCharacter));
        for bad in [
            "iqn.disk",
            "iqn.2001-13.com",
            "iqn.2001-04.",
            "iqn.01-04.com",
            "iqn.2001-4.com",
            "iqn.2001-04:x",
        ] {
            assert_eq!(normalise_target(bad), Err(NameError::NoAuthority), "{bad}");
        }
        assert!(normalise("iqn.host1").is_ok());
    }
}
