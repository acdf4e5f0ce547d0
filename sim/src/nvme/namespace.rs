//! A namespace: its format, protection and blocks.

use std::fs::File;

use super::media::Media;

/// An LBA format: bytes of data and of metadata in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaFormat {
    /// log2 of the bytes of data (LBADS).
    pub data_shift: u8,
    /// Bytes of metadata (MS).
    pub metadata: u16,
}

/// The formats the controller offers, by their index.
pub const FORMATS: [LbaFormat; 4] = [
    LbaFormat { data_shift: 9, metadata: 0 },
    LbaFormat { data_shift: 12, metadata: 0 },
    LbaFormat { data_shift: 9, metadata: 8 },
    LbaFormat { data_shift: 12, metadata: 8 },
];

/// What a namespace is made of.
#[derive(Debug, Default)]
pub struct NamespaceConfig {
    /// Bytes of data.
    pub bytes: u64,
    /// Index into [`FORMATS`].
    pub format: u8,
    /// Metadata goes at the end of each block's data, not by a pointer of its own.
    pub extended: bool,
    /// Protection information type: 0 is none.
    pub protection: u8,
    /// Where the blocks are kept; memory when there is none.
    pub file: Option<File>,
}

/// A namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Index into [`FORMATS`].
    pub format: u8,
    /// FLBAS bit 4: metadata is at the end of each block's data.
    pub extended: bool,
    /// DPS: protection information type.
    pub protection: u8,
    /// DPS bit 3: protection information is first in the metadata.
    pub protection_first: bool,
    /// Error Recovery feature: DULBE.
    pub report_deallocated: bool,
    /// Error Recovery feature: TLER.
    pub error_recovery_limit: u16,
    /// Bytes of data that the blocks may take.
    pub bytes: u64,
    /// The most blocks it ever had.
    pub blocks_peak: u64,
    /// Attached to the controller.
    pub attached: bool,
    /// The blocks.
    pub media: Media,
    /// NGUID; EUI64 is its last eight bytes.
    pub nguid: [u8; 16],
}

impl Namespace {
    /// Makes it, attached.
    ///
    /// # Errors
    /// A sentence, when format and protection do not go together or there is no room.
    pub fn new(config: NamespaceConfig, nguid: [u8; 16], atomic_blocks: u64) -> Result<Namespace, String> {
        let Some(format) = FORMATS.get(usize::from(config.format)) else {
            return Err(format!("there is no LBA format {}; take 0 to {}", config.format, FORMATS.len() - 1));
        };
        if config.protection > 3 || (config.protection > 0 && format.metadata < 8) {
            return Err(format!(
                "protection type {} needs a format with 8 bytes of metadata",
                config.protection
            ));
        }
        let blocks = config.bytes >> format.data_shift;
        let stride = (1usize << format.data_shift) + usize::from(format.metadata);
        let media = Media::new(blocks, stride, atomic_blocks, config.file)
            .map_err(|e| format!("a namespace of {blocks} blocks: {e}"))?;
        Ok(Namespace {
            format: config.format,
            extended: config.extended && format.metadata > 0,
            protection: config.protection,
            protection_first: false,
            report_deallocated: false,
            error_recovery_limit: 0,
            bytes: config.bytes,
            blocks_peak: blocks,
            attached: true,
            media,
            nguid,
        })
    }

    /// The current format.
    #[must_use]
    pub fn lba_format(&self) -> LbaFormat {
        FORMATS[usize::from(self.format)]
    }

    /// Bytes of data in a block.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        1 << self.lba_format().data_shift
    }

    /// Bytes of metadata in a block.
    #[must_use]
    pub fn metadata_bytes(&self) -> usize {
        usize::from(self.lba_format().metadata)
    }

    /// Bytes of a block in the media.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.data_bytes() + self.metadata_bytes()
    }
}
