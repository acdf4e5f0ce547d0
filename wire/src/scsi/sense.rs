/// Sense keys (SPC-5 §4.4.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SenseKey {
    NoSense = 0x0,
    RecoveredError = 0x1,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    BlankCheck = 0x8,
    VendorSpecific = 0x9,
    CopyAborted = 0xA,
    AbortedCommand = 0xB,
    VolumeOverflow = 0xD,
    Miscompare = 0xE,
    Completed = 0xF,
}

/// The sense-key specific field (SPC-5 §4.4.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenseSpecific {
    /// Which field of the CDB (`command`) or of the parameter list was wrong.
    FieldPointer {
        /// True for the CDB, false for the parameter list.
        command: bool,
        /// Byte offset.
        byte: u16,
        /// The most significant bit of the field, when it is not the whole byte.
        bit: Option<u8>,
    },
    /// How far an operation is, in 65,536ths.
    Progress(u16),
}

/// Sense data before it is given one of its two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: SenseKey,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// INFORMATION field.
    pub information: Option<u64>,
    /// Sense-key specific field.
    pub specific: Option<SenseSpecific>,
}

impl Sense {
    /// Sense with key and code only.
    #[must_use]
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Sense {
        Sense { key, asc, ascq, information: None, specific: None }
    }

    /// INVALID FIELD IN CDB pointing at `byte` (and `bit`).
    #[must_use]
    pub const fn invalid_field_in_cdb(byte: u16, bit: Option<u8>) -> Sense {
        Sense {
            key: SenseKey::IllegalRequest,
            asc: 0x24,
            ascq: 0x00,
            information: None,
            specific: Some(SenseSpecific::FieldPointer { command: true, byte, bit }),
        }
    }

    /// INVALID FIELD IN PARAMETER LIST pointing at `byte` (and `bit`).
    #[must_use]
    pub const fn invalid_field_in_parameter_list(byte: u16, bit: Option<u8>) -> Sense {
        Sense {
            key: SenseKey::IllegalRequest,
            asc: 0x26,
            ascq: 0x00,
            information: None,
            specific: Some(SenseSpecific::FieldPointer { command: false, byte, bit }),
        }
    }
}
