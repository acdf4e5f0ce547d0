use super::Writer;

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

impl SenseKey {
    /// The key with code `code`, of which the low four bits count; `None` for the one reserved value.
    #[must_use]
    pub fn from_code(code: u8) -> Option<SenseKey> {
        Some(match code & 0x0F {
            0x0 => SenseKey::NoSense,
            0x1 => SenseKey::RecoveredError,
            0x2 => SenseKey::NotReady,
            0x3 => SenseKey::MediumError,
            0x4 => SenseKey::HardwareError,
            0x5 => SenseKey::IllegalRequest,
            0x6 => SenseKey::UnitAttention,
            0x7 => SenseKey::DataProtect,
            0x8 => SenseKey::BlankCheck,
            0x9 => SenseKey::VendorSpecific,
            0xA => SenseKey::CopyAborted,
            0xB => SenseKey::AbortedCommand,
            0xD => SenseKey::VolumeOverflow,
            0xE => SenseKey::Miscompare,
            0xF => SenseKey::Completed,
            _ => return None,
        })
    }
}

impl SenseSpecific {
    /// The three bytes of the field, with SKSV set (SPC-5 §4.4.2.4).
    fn bytes(self) -> [u8; 3] {
        match self {
            SenseSpecific::FieldPointer { command, byte, bit } => {
                let [high, low] = byte.to_be_bytes();
                let bit = bit.map_or(0, |bit| 0x08 | (bit & 0x07));
                [0x80 | (u8::from(command) << 6) | bit, high, low]
            }
            SenseSpecific::Progress(progress) => {
                let [high, low] = progress.to_be_bytes();
                [0x80, high, low]
            }
        }
    }

    /// The meaning of the three bytes, which depends on the sense key; `None` when SKSV is clear or when the key
    /// gives the field a meaning that is not kept.
    fn parse(key: SenseKey, bytes: [u8; 3]) -> Option<SenseSpecific> {
        let [flags, high, low] = bytes;
        if flags & 0x80 == 0 {
            return None;
        }
        let value = u16::from_be_bytes([high, low]);
        match key {
            SenseKey::IllegalRequest => Some(SenseSpecific::FieldPointer {
                command: flags & 0x40 != 0,
                byte: value,
                bit: (flags & 0x08 != 0).then_some(flags & 0x07),
            }),
            SenseKey::NoSense | SenseKey::NotReady => Some(SenseSpecific::Progress(value)),
            _ => None,
        }
    }
}

/// The most bytes [`Sense::emit`] writes.
pub const SENSE_LENGTH_MAX: usize = 28;

impl Sense {
    /// Writes the sense data to `out`, in descriptor format (72h) or fixed format (70h), and returns its length.
    /// What does not fit is dropped. In fixed format an INFORMATION that needs more than 32 bits cannot be told:
    /// VALID stays clear (SPC-5 §4.4.3).
    pub fn emit(&self, descriptor: bool, out: &mut [u8]) -> usize {
        let mut writer = Writer::new(out);
        if descriptor {
            writer.bytes(&[0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, 0]);
            if let Some(information) = self.information {
                writer.bytes(&[0x00, 0x0A, 0x80, 0x00]);
                writer.u64(information);
            }
            if let Some(specific) = self.specific {
                writer.bytes(&[0x02, 0x06, 0, 0]);
                writer.bytes(&specific.bytes());
                writer.u8(0);
            }
            let additional = writer.length() - 8;
            writer.patch_u8(7, additional as u8);
        } else {
            let information = self.information.and_then(|information| u32::try_from(information).ok());
            writer.u8(0x70 | (u8::from(information.is_some()) << 7));
            writer.bytes(&[0, self.key as u8]);
            writer.u32(information.unwrap_or(0));
            writer.u8(10);
            writer.zeros(4);
            writer.bytes(&[self.asc, self.ascq, 0]);
            writer.bytes(&self.specific.map_or([0; 3], SenseSpecific::bytes));
        }
        writer.length()
    }

    /// Reads sense data of either format, current or deferred; `None` for anything else and for less than what
    /// names the key and the code.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Sense> {
        match data.first()? & 0x7F {
            0x70 | 0x71 => Sense::parse_fixed(data),
            0x72 | 0x73 => Sense::parse_descriptors(data),
            _ => None,
        }
    }

    fn parse_fixed(data: &[u8]) -> Option<Sense> {
        let end = data.len().min(8 + usize::from(*data.get(7)?));
        let data = data.get(..end)?;
        let at = |index: usize| data.get(index).copied().unwrap_or(0);
        let key = SenseKey::from_code(at(2))?;
        let information = (at(0) & 0x80 != 0).then(|| u32::from_be_bytes([at(3), at(4), at(5), at(6)]));
        Some(Sense {
            key,
            asc: at(12),
            ascq: at(13),
            information: information.map(u64::from),
            specific: SenseSpecific::parse(key, [at(15), at(16), at(17)]),
        })
    }

    fn parse_descriptors(data: &[u8]) -> Option<Sense> {
        let &[_, key, asc, ascq, _, _, _, additional, ref rest @ ..] = data else { return None };
        let key = SenseKey::from_code(key)?;
        let mut sense = Sense::new(key, asc, ascq);
        let mut rest = rest.get(..usize::from(additional).min(rest.len()))?;
        while let &[kind, length, ref after @ ..] = rest {
            let Some((body, next)) = after.split_at_checked(usize::from(length)) else { break };
            match (kind, body) {
                (0x00, &[flags, _, a, b, c, d, e, f, g, h, ..]) if flags & 0x80 != 0 => {
                    sense.information = Some(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
                }
                (0x02, &[_, _, a, b, c, ..]) => sense.specific = SenseSpecific::parse(key, [a, b, c]),
                _ => {}
            }
            rest = next;
        }
        Some(sense)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Sense, SenseKey, SenseSpecific};

    fn any_sense() -> impl Strategy<Value = Sense> {
        let key = any::<u8>().prop_filter_map("reserved key", SenseKey::from_code);
        (key, any::<(u8, u8)>(), any::<Option<u64>>(), any::<Option<(bool, u16, Option<u8>)>>()).prop_map(
            |(key, (asc, ascq), information, specific)| {
                let specific = specific.and_then(|(command, byte, bit)| match key {
                    SenseKey::IllegalRequest => {
                        Some(SenseSpecific::FieldPointer { command, byte, bit: bit.map(|bit| bit & 7) })
                    }
                    SenseKey::NoSense | SenseKey::NotReady => Some(SenseSpecific::Progress(byte)),
                    _ => None,
                });
                Sense { key, asc, ascq, information, specific }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_what_is_parsed(sense in any_sense(), descriptor: bool) {
            let mut out = [0xEE; 64];
            let length = sense.emit(descriptor, &mut out);
            prop_assert!(length <= super::SENSE_LENGTH_MAX);
            let mut expected = sense;
            if !descriptor {
                expected.information = sense.information.filter(|value| *value <= u64::from(u32::MAX));
            }
            prop_assert_eq!(Sense::parse(&out[..length]), Some(expected));
            for room in 0..length {
                let mut short = vec![0; room];
                prop_assert_eq!(sense.emit(descriptor, &mut short), length);
                prop_assert_eq!(&short[..room.min(7)], &out[..room.min(7)]);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Sense::parse(&data);
        }
    }

    #[test]
    fn the_bytes_are_the_standards() {
        let mut out = [0; 64];
        let mut sense = Sense::invalid_field_in_cdb(2, Some(5));
        sense.information = Some(0x1234);
        assert_eq!(sense.emit(false, &mut out), 18);
        assert_eq!(&out[..18], &[0xF0, 0, 5, 0, 0, 0x12, 0x34, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCD, 0, 2]);
        assert_eq!(sense.emit(true, &mut out), 28);
        assert_eq!(&out[..12], &[0x72, 5, 0x24, 0, 0, 0, 0, 20, 0, 0x0A, 0x80, 0]);
        assert_eq!(&out[20..28], &[2, 6, 0, 0, 0xCD, 0, 2, 0]);
    }
}
