//! Little-endian fields of structures whose length was checked: what is beyond the end reads as zero.

/// `N` bytes at `offset`.
pub(super) fn bytes<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(data.get(offset..).unwrap_or(&[])) {
        *to = *from;
    }
    field
}

pub(super) fn u8_at(data: &[u8], offset: usize) -> u8 {
    data.get(offset).copied().unwrap_or(0)
}

pub(super) fn u16_at(data: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes(data, offset))
}

pub(super) fn u32_at(data: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes(data, offset))
}

pub(super) fn u64_at(data: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes(data, offset))
}

pub(super) fn u128_at(data: &[u8], offset: usize) -> u128 {
    u128::from_le_bytes(bytes(data, offset))
}
