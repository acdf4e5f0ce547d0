//! Header and data digests: CRC32C (RFC 7143 §13.1).
//!
//! The value is computed over the bytes in wire order, padding included, and goes on the wire with its least
//! significant byte first.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes of a digest on the wire.
pub const DIGEST_LENGTH: usize = 4;

/// CRC32C over pieces that arrive one after the other.
#[derive(Debug, Clone)]
pub struct Crc32c {
    state: Digest,
}

impl Crc32c {
    /// The state before the first byte.
    #[must_use]
    pub fn new() -> Crc32c {
        Crc32c { state: Digest::new(CrcAlgorithm::Crc32Iscsi) }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The value over everything taken so far.
    #[must_use]
    pub fn value(&self) -> u32 {
        // A 32-bit CRC: the upper half is zero.
        self.state.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Crc32c {
        Crc32c::new()
    }
}

/// CRC32C of one slice.
#[must_use]
pub fn crc32c_of(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC32C of the concatenation of `parts`.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    if let [only] = parts {
        return crc32c_of(only);
    }
    let mut state = Crc32c::new();
    for part in parts {
        state.update(part);
    }
    state.value()
}

/// The digest as it goes on the wire.
#[must_use]
pub const fn to_wire(value: u32) -> [u8; DIGEST_LENGTH] {
    value.to_le_bytes()
}

/// The value of a digest from the wire.
#[must_use]
pub const fn from_wire(bytes: [u8; DIGEST_LENGTH]) -> u32 {
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 B.4, "An iSCSI - SCSI Read (10) Command PDU".
    const READ: [u8; 48] = [
        0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0,
        0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn vectors_of_rfc_3720_b4() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c_of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c_of(&[0xFF; 32]), 0x62a8_ab43);
        assert_eq!(crc32c_of(&up), 0x46dd_794e);
        assert_eq!(crc32c_of(&down), 0x113f_db5c);
        assert_eq!(crc32c_of(&READ), 0xd996_3a56);
    }

    #[test]
    fn wire_order_is_least_significant_byte_first() {
        // RFC 3720 B.4 prints the digest of 32 zeros as "aa 36 91 8a".
        assert_eq!(to_wire(crc32c_of(&[0; 32])), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(from_wire([0x56, 0x3a, 0x96, 0xd9]), crc32c_of(&READ));
    }

    #[test]
    fn parts_equal_the_whole() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for cut in [0, 1, 3, 48, 63, 64, 255, 4096, 5000] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(crc32c(&[head, tail]), crc32c_of(&bytes), "cut at {cut}");
            let mut state = Crc32c::new();
            state.update(head);
            state.update(tail);
            assert_eq!(state.value(), crc32c_of(&bytes));
        }
        assert_eq!(crc32c(&[]), crc32c_of(&[]));
    }
}
