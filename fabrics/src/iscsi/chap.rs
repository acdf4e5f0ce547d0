//! CHAP (RFC 1994, RFC 7143 §9.2.1 and §12.1.3): challenges, responses, and the proof in both directions.

use std::fmt;

use sha2::Digest;
use subtle::ConstantTimeEq;

use super::{AuthPolicy, AuthSecret, Config};

/// Longest challenge or response in bytes, decoded (RFC 7143 §12.1.3).
pub const BINARY_BYTES_MAX: usize = 1024;
/// Longest digest of the algorithms we have.
pub const DIGEST_BYTES_MAX: usize = 32;
/// Longest CHAP name we look at.
pub const NAME_BYTES_MAX: usize = 255;
/// Shortest secret in bytes (RFC 7143 §9.2.1: 96 bits).
pub const SECRET_BYTES_MIN: usize = 12;

/// Where challenges come from. Real cores ask the operating system, the simulation its seed.
pub trait Entropy: fmt::Debug {
    /// Fills `out` with random bytes; false when there are none to be had.
    fn fill(&mut self, out: &mut [u8]) -> bool;
}

/// The operating system's random source.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) -> bool {
        getrandom::fill(out).is_ok()
    }
}

/// CHAP algorithms, by their numbers (IANA "PPP Authentication Algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3_256 = 8,
}

impl Algorithm {
    /// Ours, the best first.
    const PREFERENCE: [Algorithm; 4] =
        [Algorithm::Sha3_256, Algorithm::Sha256, Algorithm::Sha1, Algorithm::Md5];

    /// The best algorithm of the initiator's list (CHAP_A). The order is ours: an initiator lists MD5 because it must.
    #[must_use]
    pub fn choose(offered: &str) -> Option<Algorithm> {
        Algorithm::PREFERENCE
            .into_iter()
            .find(|&algorithm| offered.split(',').any(|item| identifier(item) == Some(algorithm as u8)))
    }

    /// Bytes of a response.
    #[must_use]
    pub fn digest_bytes(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Sha3_256 => 32,
        }
    }

    /// The response to a challenge (RFC 1994 §4.1): the hash of identifier, secret and challenge.
    #[must_use]
    pub fn response(self, identifier: u8, secret: &[u8], challenge: &[u8]) -> Bytes<DIGEST_BYTES_MAX> {
        fn hash<D: Digest>(identifier: u8, secret: &[u8], challenge: &[u8]) -> Bytes<DIGEST_BYTES_MAX> {
            let digest =
                D::new().chain_update([identifier]).chain_update(secret).chain_update(challenge).finalize();
            Bytes::copy(&digest).unwrap_or_default()
        }
        match self {
            Algorithm::Md5 => hash::<md5::Md5>(identifier, secret, challenge),
            Algorithm::Sha1 => hash::<sha1::Sha1>(identifier, secret, challenge),
            Algorithm::Sha256 => hash::<sha2::Sha256>(identifier, secret, challenge),
            Algorithm::Sha3_256 => hash::<sha3::Sha3_256>(identifier, secret, challenge),
        }
    }
}

/// At most `N` bytes, held in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Default for Bytes<N> {
    fn default() -> Self {
        Bytes { bytes: [0; N], length: 0 }
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} of {N})", self.length)
    }
}

impl<const N: usize> Bytes<N> {
    /// A copy, if it fits.
    #[must_use]
    pub fn copy(from: &[u8]) -> Option<Self> {
        let mut bytes = Bytes::default();
        bytes.bytes.get_mut(..from.len())?.copy_from_slice(from);
        bytes.length = from.len();
        Some(bytes)
    }

    /// What is in it.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.length)? = byte;
        self.length += 1;
        Some(())
    }

    /// A binary-value (RFC 7143 §6.1): `0x`/`0X` and hexadecimal digits, or `0b`/`0B` and base64. What would not fit is
    /// refused by the length of the text, before any of it is decoded.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let (prefix, digits) = text.split_at_checked(2)?;
        match prefix {
            "0x" | "0X" => Self::decode_hex(digits.as_bytes()),
            "0b" | "0B" => Self::decode_base64(digits.as_bytes()),
            _ => None,
        }
    }

    fn decode_hex(digits: &[u8]) -> Option<Self> {
        if digits.is_empty() || digits.len().div_ceil(2) > N {
            return None;
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let mut out = Bytes::default();
        // An odd number of digits means (n + 1) / 2 bytes: the first digit stands alone.
        let (head, pairs) = digits.split_at_checked(digits.len() % 2)?;
        if let [digit] = head {
            out.push(nibble(*digit)?)?;
        }
        for pair in pairs.chunks_exact(2) {
            let [high, low] = pair else { return None };
            out.push(nibble(*high)? << 4 | nibble(*low)?)?;
        }
        Some(out)
    }

    fn decode_base64(digits: &[u8]) -> Option<Self> {
        let padding = digits.iter().rev().take_while(|&&digit| digit == b'=').count();
        if digits.is_empty() || !digits.len().is_multiple_of(4) || padding > 2 {
            return None;
        }
        if (digits.len() / 4).checked_mul(3)?.checked_sub(padding)? > N {
            return None;
        }
        let mut out = Bytes::default();
        let (mut accumulated, mut bits) = (0u32, 0u32);
        for &digit in digits.get(..digits.len().checked_sub(padding)?)? {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            accumulated = (accumulated << 6 | u32::from(value)) & 0xFFFF;
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                out.push(u8::try_from(accumulated >> bits & 0xFF).ok()?)?;
            }
        }
        // Bits behind the last byte must be 0 (RFC 4648 §3.5): one value, one spelling.
        (accumulated & ((1 << bits) - 1) == 0).then_some(out)
    }
}

/// An 8-bit number, decimal or hexadecimal.
#[must_use]
pub fn identifier(text: &str) -> Option<u8> {
    super::negotiation::parse_number(text).and_then(|number| u8::try_from(number).ok())
}

/// `0x` and hexadecimal digits.
#[must_use]
pub fn encode_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::from("0x");
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Our outstanding challenge: one in a login.
#[derive(Debug, Clone, Copy)]
pub struct Challenge {
    algorithm: Algorithm,
    identifier: u8,
    challenge: Bytes<DIGEST_BYTES_MAX>,
}

/// What the initiator asks us to prove.
#[derive(Debug, Clone, Copy)]
pub struct Counter<'a> {
    /// CHAP_I.
    pub identifier: &'a str,
    /// CHAP_C.
    pub challenge: &'a str,
}

/// A proof that held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Whose it is.
    pub user: String,
    /// Our name and response, when they were asked for.
    pub ours: Option<(String, String)>,
}

impl Challenge {
    /// A new challenge, as long as the digest; `None` without randomness.
    pub fn new(algorithm: Algorithm, entropy: &mut dyn Entropy) -> Option<Challenge> {
        let mut random = [0; DIGEST_BYTES_MAX + 1];
        if !entropy.fill(&mut random) {
            return None;
        }
        let [identifier, challenge @ ..] = random;
        let challenge = Bytes::copy(challenge.get(..algorithm.digest_bytes())?)?;
        Some(Challenge { algorithm, identifier, challenge })
    }

    /// CHAP_A, CHAP_I and CHAP_C.
    #[must_use]
    pub fn keys(&self) -> (u8, u8, String) {
        (self.algorithm as u8, self.identifier, encode_hex(self.challenge.as_slice()))
    }

    /// Judges the initiator's response, and answers its counter-challenge. A user nobody knows costs one hash too, so
    /// that time does not tell users apart.
    ///
    /// # Errors
    /// What to write into the log; the initiator only learns 0201h.
    pub fn verify(
        &self,
        config: &Config,
        policy: &AuthPolicy,
        user: &str,
        response: &str,
        counter: Option<Counter<'_>>,
    ) -> Result<Proof, &'static str> {
        if user.is_empty() || user.len() > NAME_BYTES_MAX {
            return Err("CHAP_N is empty or too long");
        }
        let response = Bytes::<DIGEST_BYTES_MAX>::decode(response)
            .ok_or("CHAP_R is not a binary value of a digest's length")?;
        if response.as_slice().len() != self.algorithm.digest_bytes() {
            return Err("CHAP_R has not the length of the digest");
        }
        let mut proven: Option<&AuthSecret> = None;
        let mut known = false;
        for secret in secrets(config, policy).filter(|secret| secret.user == user) {
            known = true;
            if self.answers(&secret.secret, &response) {
                proven = proven.or(Some(secret));
            }
        }
        if !known {
            let _ = self.answers("0123456789abcdef", &response);
        }
        let secret = proven.ok_or("wrong user or secret")?;
        if secret.secret.len() < SECRET_BYTES_MIN {
            return Err("the secret is shorter than 12 bytes");
        }
        let ours = match counter {
            Some(counter) => Some(self.answer(secret, counter, &response)?),
            None if policy.mutual_chap => {
                return Err("the initiator did not ask for our proof, as mutual CHAP demands");
            }
            None => None,
        };
        Ok(Proof { user: user.to_owned(), ours })
    }

    fn answers(&self, secret: &str, response: &Bytes<DIGEST_BYTES_MAX>) -> bool {
        let expected = self.algorithm.response(self.identifier, secret.as_bytes(), self.challenge.as_slice());
        bool::from(expected.as_slice().ct_eq(response.as_slice()))
    }

    /// Our name and response to the initiator's challenge, with the checks of RFC 7143 §9.2.1.
    fn answer(
        &self,
        secret: &AuthSecret,
        counter: Counter<'_>,
        response: &Bytes<DIGEST_BYTES_MAX>,
    ) -> Result<(String, String), &'static str> {
        let identifier = identifier(counter.identifier).ok_or("CHAP_I is not a number below 256")?;
        let challenge = Bytes::<BINARY_BYTES_MAX>::decode(counter.challenge)
            .ok_or("CHAP_C is not a binary value of 1 to 1024 bytes")?;
        if bool::from(challenge.as_slice().ct_eq(self.challenge.as_slice())) {
            return Err("the initiator reflects our challenge");
        }
        let (Some(name), Some(our_secret)) = (&secret.mutual_user, &secret.mutual_secret) else {
            return Err("the initiator asks for our proof and there is no mutual secret for it");
        };
        // The response we would have given to this challenge: one secret serves both directions.
        if our_secret == &secret.secret || self.answers(our_secret, response) {
            return Err("one secret for both directions");
        }
        if our_secret.len() < SECRET_BYTES_MIN {
            return Err("the mutual secret is shorter than 12 bytes");
        }
        let proof = self.algorithm.response(identifier, our_secret.as_bytes(), challenge.as_slice());
        Ok((name.clone(), encode_hex(proof.as_slice())))
    }
}

/// The secrets a policy looks in.
pub fn secrets<'a>(config: &'a Config, policy: &AuthPolicy) -> impl Iterator<Item = &'a AuthSecret> {
    let wanted = policy.chap_group;
    config
        .auth_groups
        .iter()
        .filter(move |group| wanted == 0 || group.tag == wanted)
        .flat_map(|group| &group.secrets)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use super::super::AuthGroup;
    use super::*;

    /// Counts up: the same every time.
    #[derive(Debug, Default)]
    pub(crate) struct Counting(pub u8);

    impl Entropy for Counting {
        fn fill(&mut self, out: &mut [u8]) -> bool {
            for byte in out {
                *byte = self.0;
                self.0 = self.0.wrapping_add(1);
            }
            true
        }
    }

    pub(crate) fn secret(user: &str, secret: &str) -> AuthSecret {
        AuthSecret { user: user.into(), secret: secret.into(), mutual_user: None, mutual_secret: None }
    }

    fn config(secrets: Vec<AuthSecret>) -> Config {
        Config { auth_groups: vec![AuthGroup { tag: 1, secrets }], ..Config::default() }
    }

    const SECRET: &str = "correct horse battery";

    #[test]
    fn known_answers() {
        let hex = |algorithm: Algorithm| encode_hex(algorithm.response(b'a', b"b", b"c").as_slice());
        assert_eq!(hex(Algorithm::Md5), "0x900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(Algorithm::Sha1), "0xa9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            hex(Algorithm::Sha256),
            "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(Algorithm::Sha3_256),
            "0x3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"
        );
    }

    #[test]
    fn the_best_algorithm_is_chosen() {
        assert_eq!(Algorithm::choose("5"), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("5,6,7,8"), Some(Algorithm::Sha3_256));
        assert_eq!(Algorithm::choose("5,0x7,6"), Some(Algorithm::Sha256));
        assert_eq!(Algorithm::choose("5,6"), Some(Algorithm::Sha1));
        for none in ["", "4", "261", "MD5", "05", "-5", " 5", "None"] {
            assert_eq!(Algorithm::choose(none), None, "{none}");
        }
    }

    #[test]
    fn binary_values() {
        let decode = |text: &str| Bytes::<4>::decode(text).map(|bytes| bytes.as_slice().to_vec());
        assert_eq!(decode("0x01aB"), Some(vec![1, 0xAB]));
        assert_eq!(decode("0X1ab"), Some(vec![1, 0xAB]));
        assert_eq!(decode("0x01020304"), Some(vec![1, 2, 3, 4]));
        assert_eq!(decode("0x0102030405"), None);
        assert_eq!(decode("0bAQID"), Some(vec![1, 2, 3]));
        assert_eq!(decode("0BAQIDBA=="), Some(vec![1, 2, 3, 4]));
        assert_eq!(decode("0bAQIDBAU="), None);
        for bad in [
            "", "0", "0x", "0b", "01", "1x01", "0xg0", "0x 1", "0bA", "0bAQI", "0b====", "0bA===", "0b=AAA",
            "0bAQ=A", "0bAR==", "0bAé=",
        ] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        let longest = format!("0x{}", "5a".repeat(BINARY_BYTES_MAX));
        assert_eq!(
            Bytes::<BINARY_BYTES_MAX>::decode(&longest).map(|bytes| bytes.as_slice().len()),
            Some(1024)
        );
        assert!(Bytes::<BINARY_BYTES_MAX>::decode(&format!("{longest}5")).is_none());
    }

    /// CVE-2018-14633 and `Base64Oversize`: CHAP_R of every length; only the right digest is taken.
    #[test]
    fn cve_2018_14633_chap_r_of_every_length() {
        let config = config(vec![secret("user", SECRET)]);
        for algorithm in Algorithm::PREFERENCE {
            let challenge = Challenge::new(algorithm, &mut Counting(9)).expect("random");
            let right =
                algorithm.response(challenge.identifier, SECRET.as_bytes(), challenge.challenge.as_slice());
            let right = encode_hex(right.as_slice());
            for length in 0..=4096usize {
                let digits = right.get(2..).unwrap_or("").chars().cycle().take(length).collect::<String>();
                let hex =
                    challenge.verify(&config, &AuthPolicy::default(), "user", &format!("0x{digits}"), None);
                assert_eq!(hex.is_ok(), length == algorithm.digest_bytes() * 2, "{algorithm:?} {length}");
                let base64 = format!("0b{}", "A".repeat(length));
                assert!(challenge.verify(&config, &AuthPolicy::default(), "user", &base64, None).is_err());
            }
        }
    }

    #[test]
    fn base64_responses_are_taken() {
        let config = config(vec![secret("user", SECRET)]);
        let challenge = Challenge::new(Algorithm::Md5, &mut Counting(0)).expect("random");
        let right = Algorithm::Md5.response(0, SECRET.as_bytes(), challenge.challenge.as_slice());
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::from("0b");
        for triple in right.as_slice().chunks(3) {
            let word = triple.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte))
                << (8 * (3 - triple.len()));
            for digit in 0..4 {
                let shown = digit <= triple.len();
                text.push(if shown {
                    char::from(alphabet[(word >> (18 - 6 * digit) & 63) as usize])
                } else {
                    '='
                });
            }
        }
        assert!(challenge.verify(&config, &AuthPolicy::default(), "user", &text, None).is_ok());
    }

    fn prove(challenge: &Challenge, secret: &str) -> String {
        let response = challenge.algorithm.response(
            challenge.identifier,
            secret.as_bytes(),
            challenge.challenge.as_slice(),
        );
        encode_hex(response.as_slice())
    }

    /// libiscsi HexName/Base64Name: a name is text, whatever it begins with.
    #[test]
    fn names_like_numbers_are_literal() {
        for name in ["0x75736572", "0b dXNlcg==", "0bdXNlcg==", "0X75736572"] {
            let challenge = Challenge::new(Algorithm::Sha256, &mut Counting(0)).expect("random");
            let proof = prove(&challenge, SECRET);
            let literal = config(vec![secret(name, SECRET)]);
            assert!(challenge.verify(&literal, &AuthPolicy::default(), name, &proof, None).is_ok());
            let plain = config(vec![secret("user", SECRET)]);
            assert!(challenge.verify(&plain, &AuthPolicy::default(), name, &proof, None).is_err());
        }
    }

    #[test]
    fn wrong_user_wrong_secret_wrong_group() {
        let config = config(vec![secret("user", SECRET), secret("weak", "short")]);
        let challenge = Challenge::new(Algorithm::Sha256, &mut Counting(0)).expect("random");
        let policy = AuthPolicy::default();
        assert!(challenge.verify(&config, &policy, "user", &prove(&challenge, SECRET), None).is_ok());
        assert!(
            challenge.verify(&config, &policy, "user", &prove(&challenge, "another secret"), None).is_err()
        );
        assert!(challenge.verify(&config, &policy, "User", &prove(&challenge, SECRET), None).is_err());
        assert!(challenge.verify(&config, &policy, "", &prove(&challenge, SECRET), None).is_err());
        assert!(
            challenge
                .verify(&config, &policy, "nobody", &prove(&challenge, "0123456789abcdef"), None)
                .is_err()
        );
        assert!(challenge.verify(&config, &policy, "weak", &prove(&challenge, "short"), None).is_err());
        let elsewhere = AuthPolicy { chap_group: 2, ..policy };
        assert!(challenge.verify(&config, &elsewhere, "user", &prove(&challenge, SECRET), None).is_err());
    }

    #[test]
    fn mutual_proof_and_reflection() {
        let mut both = secret("user", SECRET);
        both.mutual_user = Some("target".into());
        both.mutual_secret = Some("another long secret".into());
        let policy = AuthPolicy { mutual_chap: true, require_chap: true, ..AuthPolicy::default() };
        let challenge = Challenge::new(Algorithm::Sha256, &mut Counting(0)).expect("random");
        let proof = prove(&challenge, SECRET);
        let verify = |secret: &AuthSecret, identifier: &str, value: &str| {
            let counter = Counter { identifier, challenge: value };
            challenge.verify(&config(vec![secret.clone()]), &policy, "user", &proof, Some(counter))
        };
        let ours = verify(&both, "7", "0x0102").expect("proof").ours.expect("our proof");
        assert_eq!(ours.0, "target");
        assert_eq!(
            ours.1,
            encode_hex(Algorithm::Sha256.response(7, b"another long secret", &[1, 2]).as_slice())
        );
        let (_, _, reflected) = challenge.keys();
        assert_eq!(verify(&both, "7", &reflected), Err("the initiator reflects our challenge"));
        assert!(verify(&both, "256", "0x0102").is_err());
        assert!(verify(&both, "7", "0x").is_err());
        assert!(verify(&both, "7", &format!("0x{}", "00".repeat(1025))).is_err());
        assert!(verify(&both, "7", &format!("0x{}", "00".repeat(1024))).is_ok());
        assert!(challenge.verify(&config(vec![both.clone()]), &policy, "user", &proof, None).is_err());
        both.mutual_secret = Some(SECRET.into());
        assert_eq!(verify(&both, "7", "0x0102"), Err("one secret for both directions"));
        assert!(verify(&secret("user", SECRET), "7", "0x0102").is_err());
    }

    /// CVE-2024-45751: two boots share no challenge.
    #[test]
    fn cve_2024_45751_challenges_are_unique() {
        let mut seen = HashSet::new();
        for _ in 0..100_000 {
            let challenge = Challenge::new(Algorithm::Md5, &mut SystemEntropy).expect("random");
            assert_eq!(challenge.challenge.as_slice().len(), 16);
            assert!(seen.insert(challenge.challenge.as_slice().to_vec()));
        }
    }

    #[test]
    fn no_randomness_no_challenge() {
        #[derive(Debug)]
        struct Dry;
        impl Entropy for Dry {
            fn fill(&mut self, _: &mut [u8]) -> bool {
                false
            }
        }
        assert!(Challenge::new(Algorithm::Sha256, &mut Dry).is_none());
    }
}
