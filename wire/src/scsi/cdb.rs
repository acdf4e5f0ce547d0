/// The bytes of a CDB that are kept. Every command we know fits.
pub const CDB_INLINE_MAX: usize = 32;

/// A command descriptor block. A CDB longer than 32 bytes keeps its first 32 and its true length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cdb {
    length: u16,
    bytes: [u8; CDB_INLINE_MAX],
}

impl Cdb {
    /// The CDB in `bytes`, zero-padded.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Cdb {
        let mut cdb =
            Cdb { length: u16::try_from(bytes.len()).unwrap_or(u16::MAX), bytes: [0; CDB_INLINE_MAX] };
        let kept = bytes.len().min(CDB_INLINE_MAX);
        cdb.bytes[..kept].copy_from_slice(&bytes[..kept]);
        cdb
    }

    /// Byte 0.
    #[must_use]
    pub fn operation_code(&self) -> u8 {
        self.bytes[0]
    }

    /// Bytes the transport carried.
    #[must_use]
    pub fn length(&self) -> usize {
        usize::from(self.length)
    }

    /// The kept bytes, zero-padded to 32. Transports that carry a fixed 16 bytes pad the same way.
    #[must_use]
    pub fn bytes(&self) -> &[u8; CDB_INLINE_MAX] {
        &self.bytes
    }

    /// Byte `offset`.
    #[must_use]
    pub fn u8_at(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    /// Two bytes at `offset`, big-endian.
    #[must_use]
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Four bytes at `offset`, big-endian.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|i| self.bytes[offset + i]))
    }

    /// Eight bytes at `offset`, big-endian.
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|i| self.bytes[offset + i]))
    }
}

impl std::fmt::Debug for Cdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cdb({:02x?})", &self.bytes[..self.length().clamp(6, 16)])
    }
}
