use md5::Digest as _;

/// CHAP hash algorithms, by their numbers in CHAP_A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum ChapAlgorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3_256 = 8,
}

impl ChapAlgorithm {
    pub(crate) fn from_text(text: &str) -> Option<ChapAlgorithm> {
        Some(match text {
            "5" => ChapAlgorithm::Md5,
            "6" => ChapAlgorithm::Sha1,
            "7" => ChapAlgorithm::Sha256,
            "8" => ChapAlgorithm::Sha3_256,
            _ => return None,
        })
    }

    /// The response to a challenge: the hash of identifier, secret and challenge (RFC 1994 §4.1).
    #[must_use]
    pub fn response(self, identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        let parts = [&[identifier], secret, challenge].concat();
        match self {
            ChapAlgorithm::Md5 => md5::Md5::digest(parts).to_vec(),
            ChapAlgorithm::Sha1 => sha1::Sha1::digest(parts).to_vec(),
            ChapAlgorithm::Sha256 => sha2::Sha256::digest(parts).to_vec(),
            ChapAlgorithm::Sha3_256 => sha3::Sha3_256::digest(parts).to_vec(),
        }
    }
}

/// A binary value as a hex constant (RFC 7143 §6.1).
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A binary value from a hex or base64 constant.
pub(crate) fn binary(text: &str) -> Option<Vec<u8>> {
    let (prefix, digits) = text.split_at_checked(2)?;
    match prefix {
        "0x" | "0X" => {
            if digits.is_empty() || digits.len() % 2 != 0 {
                return None;
            }
            let nibbles: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
            nibbles?
                .chunks(2)
                .map(|pair| u8::try_from(pair.iter().fold(0, |value, n| value * 16 + n)).ok())
                .collect()
        }
        "0b" | "0B" => {
            let mut bytes = Vec::new();
            let (mut bits, mut count) = (0u32, 0);
            for digit in digits.trim_end_matches('=').bytes() {
                let value = match digit {
                    b'A'..=b'Z' => digit - b'A',
                    b'a'..=b'z' => digit - b'a' + 26,
                    b'0'..=b'9' => digit - b'0' + 52,
                    b'+' => 62,
                    b'/' => 63,
                    _ => return None,
                };
                bits = ((bits << 6) | u32::from(value)) & 0xFFFF;
                count += 6;
                if count >= 8 {
                    count -= 8;
                    bytes.push(((bits >> count) & 0xFF) as u8);
                }
            }
            (!bytes.is_empty()).then_some(bytes)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_values_in_both_encodings() {
        assert_eq!(binary("0x00ffA5"), Some(vec![0, 0xFF, 0xA5]));
        assert_eq!(binary("0bAP+l"), Some(vec![0, 0xFF, 0xA5]));
        assert_eq!(binary("0bAP8="), Some(vec![0, 0xFF]));
        assert_eq!(hex(&[0, 0xFF, 0xA5]), "0x00ffa5");
        for bad in ["", "0", "0x", "0x1", "0xzz", "0b!", "12"] {
            assert_eq!(binary(bad), None, "{bad}");
        }
    }

    #[test]
    fn responses() {
        // MD5 of 01 "a" "b", SHA-1 of the same: computed with coreutils.
        assert_eq!(hex(&ChapAlgorithm::Md5.response(1, b"a", b"b")), MD5);
        assert_eq!(hex(&ChapAlgorithm::Sha1.response(1, b"a", b"b")), SHA1);
        assert_eq!(hex(&ChapAlgorithm::Sha256.response(1, b"a", b"b")), SHA256);
        assert_eq!(ChapAlgorithm::Sha3_256.response(1, b"a", b"b").len(), 32);
    }

    const MD5: &str = "0x456b3330b7659caac46d2f439294584b";
    const SHA1: &str = "0x578025446ae719d04ca71161bd6d795dca01b6d6";
    const SHA256: &str = "0x170404e05440f45062c423052d5adcfb2c9d546ecfcb2022d6c34af474dbaf18";
}
