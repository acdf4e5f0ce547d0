//! Identities that stay: UUIDs from what does not change, and from them what INQUIRY and the VPD pages say.

use scsi::UnitIdentity;

/// FNV-1a of 128 bits: a spread, not a secret.
fn fnv(parts: &[&[u8]]) -> u128 {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for part in parts {
        for &byte in *part {
            hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        // A separator that no UTF-8 text contains keeps ("ab", "c") and ("a", "bc") apart.
        hash = (hash ^ 0xff).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    hash
}

/// A UUID (version 8 of RFC 9562) that is the same whenever `parts` are.
#[must_use]
pub fn stable_uuid(parts: &[&str]) -> uuid::Uuid {
    let bytes: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    uuid::Builder::from_u128(fnv(&bytes))
        .with_variant(uuid::Variant::RFC4122)
        .with_version(uuid::Version::Custom)
        .into_uuid()
}

/// What tells this node from others that may have files of the same name: the machine's id.
#[must_use]
pub fn machine_id() -> String {
    std::fs::read_to_string("/etc/machine-id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// What a unit with this UUID says it is. Vendor and product are equal for all units: some hosts refuse to copy
/// between units whose names differ (EXTENDED COPY).
#[must_use]
pub fn unit_identity(uuid: uuid::Uuid) -> UnitIdentity {
    // NAA 6h, then 24 bits of an organisation's number that is locally administered (so it is nobody's), then
    // 100 bits of the hash (SPC-5 §7.8.6.6.5).
    let hash = fnv(&[b"naa", uuid.as_bytes()]) & ((1u128 << 100) - 1);
    let naa = (0x6_02_50_4f_u128 << 100) | hash;
    UnitIdentity {
        vendor: "POLLUX".to_owned(),
        product: "Pollux disk".to_owned(),
        revision: revision(),
        serial: uuid.simple().to_string(),
        naa: naa.to_be_bytes(),
        uuid: *uuid.as_bytes(),
    }
}

/// Major and minor version: four characters are all there is.
fn revision() -> String {
    format!("{}.{}", env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"))
        .chars()
        .take(4)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_stable_and_differ() {
        let a = stable_uuid(&["m", "/a"]);
        assert_eq!(a, stable_uuid(&["m", "/a"]));
        assert_ne!(a, stable_uuid(&["m/", "a"]));
        assert_eq!(a.get_version_num(), 8);
        let one = unit_identity(a);
        assert_eq!(one, unit_identity(a));
        assert_eq!(one.naa[0] >> 4, 6);
        assert_eq!(&one.naa[..3], &[0x60, 0x25, 0x04]);
        let two = unit_identity(stable_uuid(&["m", "/b"]));
        assert_ne!(one.naa, two.naa);
        assert_eq!((one.vendor, one.product), (two.vendor, two.product));
        assert!(one.revision.len() <= 4 && one.serial.len() == 32);
    }
}
