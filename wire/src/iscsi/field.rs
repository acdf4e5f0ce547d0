use super::pdu::{Bhs, RejectReason};
use crate::scsi::Lun;

/// The most bytes of additional header segments one PDU can carry (RFC 7143 §11.2.1.5).
pub const AHS_MAX: usize = 255 * 4;
/// The most bytes a data segment can have (RFC 7143 §11.2.1.6).
pub const DATA_SEGMENT_MAX: u32 = 0x00FF_FFFF;

/// What follows a basic header segment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// All additional header segments together; a multiple of four, at most [`AHS_MAX`].
    pub ahs: usize,
    /// The data segment without its padding, at most [`DATA_SEGMENT_MAX`].
    pub data: usize,
}

/// TotalAHSLength and DataSegmentLength of a header (RFC 7143 §11.2.1.5 and .6), whatever its opcode.
#[must_use]
pub fn lengths(bhs: &Bhs) -> Lengths {
    Lengths { ahs: usize::from(bhs[4]) * 4, data: data_segment_length(bhs) as usize }
}

/// `n` with the padding to whole four-byte words (RFC 7143 §11.1).
#[must_use]
pub fn padded(n: usize) -> usize {
    n.saturating_add(n.wrapping_neg() & 3)
}

/// Why a PDU makes no sense: the reason a Reject would give, and the field at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseError {
    /// The reason of RFC 7143 §11.17.1.
    pub reason: RejectReason,
    /// The field, as RFC 7143 §11 names it.
    pub field: &'static str,
}

impl ParseError {
    pub(super) const fn invalid(field: &'static str) -> ParseError {
        ParseError { reason: RejectReason::InvalidPduField, field }
    }

    pub(super) const fn protocol(field: &'static str) -> ParseError {
        ParseError { reason: RejectReason::ProtocolError, field }
    }

    pub(super) const fn unsupported(field: &'static str) -> ParseError {
        ParseError { reason: RejectReason::CommandNotSupported, field }
    }
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = match self.reason {
            RejectReason::CommandNotSupported => "command not supported",
            RejectReason::ProtocolError => "protocol error",
            RejectReason::InvalidPduField => "invalid PDU field",
            _ => "rejected",
        };
        write!(f, "{reason}: {}", self.field)
    }
}

impl std::error::Error for ParseError {}

// Big-endian fields at constant offsets below 48: const generics let the compiler prove every index.

pub(super) fn u16_at<const AT: usize>(bhs: &Bhs) -> u16 {
    u16::from_be_bytes([bhs[AT], bhs[AT + 1]])
}

pub(super) fn u32_at<const AT: usize>(bhs: &Bhs) -> u32 {
    u32::from_be_bytes([bhs[AT], bhs[AT + 1], bhs[AT + 2], bhs[AT + 3]])
}

pub(super) fn put_u16<const AT: usize>(bhs: &mut Bhs, value: u16) {
    bhs[AT..AT + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn put_u32<const AT: usize>(bhs: &mut Bhs, value: u32) {
    bhs[AT..AT + 4].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn bit<const AT: usize>(bhs: &Bhs, mask: u8) -> bool {
    bhs[AT] & mask != 0
}

/// `mask` when `set`.
pub(super) fn flag(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}

pub(super) fn data_segment_length(bhs: &Bhs) -> u32 {
    u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]])
}

pub(super) fn put_data_segment_length(bhs: &mut Bhs, length: u32) {
    let [_, a, b, c] = length.min(DATA_SEGMENT_MAX).to_be_bytes();
    bhs[5] = a;
    bhs[6] = b;
    bhs[7] = c;
}

/// Refuses a data segment on a PDU that has none.
pub(super) fn no_data(bhs: &Bhs) -> Result<(), ParseError> {
    if data_segment_length(bhs) == 0 { Ok(()) } else { Err(ParseError::invalid("DataSegmentLength")) }
}

pub(super) fn lun(bhs: &Bhs) -> Lun {
    Lun((u64::from(u32_at::<8>(bhs)) << 32) | u64::from(u32_at::<12>(bhs)))
}

pub(super) fn put_lun(bhs: &mut Bhs, lun: Lun) {
    bhs[8..16].copy_from_slice(&lun.0.to_be_bytes());
}

/// A header of zeros with byte 0 and byte 1.
pub(super) fn start(bhs: &mut Bhs, byte0: u8, byte1: u8) {
    *bhs = [0; 48];
    bhs[0] = byte0;
    bhs[1] = byte1;
}
