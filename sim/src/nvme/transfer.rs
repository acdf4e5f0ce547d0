//! Where a command's data is in host memory: PRP entries and lists (Base 2.0 §4.1.1) and SGLs (§4.1.2).

use super::memory::{Memory, NotMapped};
use super::status::{self, Status};
use super::violation::Rule;

/// Why a command is not carried out: the status it gets and, when the host broke a rule, which and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status, Do Not Retry included where it applies.
    pub status: Status,
    /// The rule, and what was seen.
    pub broken: Option<(Rule, String)>,
}

impl Refusal {
    /// A command fails without the host's fault.
    #[must_use]
    pub fn plain(status: Status) -> Refusal {
        Refusal { status, broken: None }
    }

    /// The host broke `rule`.
    #[must_use]
    pub fn broken(status: Status, rule: Rule, what: impl Into<String>) -> Refusal {
        Refusal { status: status | status::DNR, broken: Some((rule, what.into())) }
    }
}

impl From<NotMapped> for Refusal {
    fn from(not: NotMapped) -> Refusal {
        Refusal::broken(
            status::DATA_TRANSFER_ERROR,
            Rule::Dma,
            format!("{:#x}+{:#x} is not mapped for the device", not.address, not.length),
        )
    }
}

/// A run of bytes in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The device's address of its first byte; nothing when what would go there is thrown away (bit bucket).
    pub address: Option<u64>,
    /// Bytes.
    pub length: u64,
}

/// Segments of one transfer, in order.
pub type Segments = Vec<Segment>;

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the device to the host.
    ToHost,
    /// From the host to the device.
    FromHost,
}

/// SGL descriptors read by one command at most: a bound against loops.
const SGL_DESCRIPTORS_MAX: usize = 4096;

fn bad_prp(what: String) -> Refusal {
    Refusal::broken(status::PRP_OFFSET_INVALID, Rule::Prp, what)
}

fn push(out: &mut Segments, address: u64, length: u64) {
    if let Some(last) = out.last_mut()
        && last.address.is_some_and(|start| start.wrapping_add(last.length) == address)
    {
        last.length += length;
        return;
    }
    out.push(Segment { address: Some(address), length });
}

/// Follows PRP1 and PRP2 for `length` bytes with pages of `page` bytes.
///
/// # Errors
/// PRP Offset Invalid for a misaligned entry, Data Transfer Error for a list that cannot be read.
pub fn walk_prp(
    memory: &Memory,
    page: u64,
    prp1: u64,
    prp2: u64,
    length: u64,
    out: &mut Segments,
) -> Result<(), Refusal> {
    out.clear();
    if length == 0 {
        return Ok(());
    }
    if !prp1.is_multiple_of(4) {
        return Err(bad_prp(format!("PRP1 {prp1:#x} is not dword aligned")));
    }
    let first = length.min(page - prp1 % page);
    push(out, prp1, first);
    let mut left = length - first;
    if left == 0 {
        return Ok(());
    }
    if left <= page {
        if !prp2.is_multiple_of(page) {
            return Err(bad_prp(format!("PRP2 {prp2:#x} is a page, and has an offset")));
        }
        push(out, prp2, left);
        return Ok(());
    }
    if !prp2.is_multiple_of(8) {
        return Err(bad_prp(format!("PRP list {prp2:#x} is not qword aligned")));
    }
    let mut list = prp2;
    while left > 0 {
        let mut room = (page - list % page) / 8;
        let mut entries = left.div_ceil(page);
        while room > 0 && entries > 0 {
            let mut bytes = [0; 8];
            memory.read(list, &mut bytes)?;
            let entry = u64::from_le_bytes(bytes);
            if entry % page != 0 {
                return Err(bad_prp(format!("PRP list entry {entry:#x} at {list:#x} has an offset")));
            }
            if room == 1 && entries > 1 {
                list = entry;
                break;
            }
            let part = left.min(page);
            push(out, entry, part);
            left -= part;
            entries -= 1;
            room -= 1;
            list += 8;
        }
    }
    Ok(())
}

fn bad_sgl(status: Status, what: String) -> Refusal {
    Refusal::broken(status, Rule::Sgl, what)
}

/// Follows an SGL that begins with `descriptor` for exactly `length` bytes.
///
/// # Errors
/// The statuses of Base 2.0 §4.1.2 for descriptors of unknown type, bad segments, and lists that are too short or long.
pub fn walk_sgl(
    memory: &Memory,
    descriptor: [u8; 16],
    length: u64,
    direction: Direction,
    out: &mut Segments,
) -> Result<(), Refusal> {
    out.clear();
    let mut total = 0u64;
    let mut seen = 1usize;
    let mut next = segment_of(descriptor)?;
    if next.is_none() {
        total += element(descriptor, direction, out)?;
    }
    while let Some(Span { address, count, last }) = next.take() {
        seen += count;
        if seen > SGL_DESCRIPTORS_MAX {
            return Err(bad_sgl(
                status::INVALID_SGL_COUNT,
                format!("more than {SGL_DESCRIPTORS_MAX} SGL descriptors"),
            ));
        }
        for i in 0..count {
            let mut bytes = [0; 16];
            memory.read(address.wrapping_add(16 * i as u64), &mut bytes)?;
            next = segment_of(bytes)?;
            if next.is_none() {
                total = total.saturating_add(element(bytes, direction, out)?);
            } else if last || i + 1 != count {
                return Err(bad_sgl(
                    status::INVALID_SGL_SEGMENT,
                    format!("a segment descriptor at place {i} of {count}, last segment: {last}"),
                ));
            }
        }
        if next.is_none() && !last {
            return Err(bad_sgl(
                status::INVALID_SGL_SEGMENT,
                "a segment that is not the last names no other".into(),
            ));
        }
    }
    if total != length {
        return Err(bad_sgl(
            status::DATA_SGL_LENGTH_INVALID,
            format!("an SGL of {total} bytes for a transfer of {length}"),
        ));
    }
    Ok(())
}

/// A segment of descriptors that another descriptor names.
struct Span {
    address: u64,
    count: usize,
    last: bool,
}

fn parts(bytes: [u8; 16]) -> (u64, u32, u8) {
    let (words, _) = bytes.as_chunks::<4>();
    let word = |i: usize| u32::from_le_bytes(words[i]);
    (u64::from(word(0)) | u64::from(word(1)) << 32, word(2), bytes[15])
}

/// The segment that a Segment or Last Segment descriptor names; nothing for other types.
fn segment_of(bytes: [u8; 16]) -> Result<Option<Span>, Refusal> {
    let (address, length, kind) = parts(bytes);
    let last = match kind {
        0x20 => false,
        0x30 => true,
        _ => return Ok(None),
    };
    if length == 0 || length % 16 != 0 || address % 8 != 0 {
        return Err(bad_sgl(status::INVALID_SGL_SEGMENT, format!("an SGL segment {address:#x}+{length:#x}")));
    }
    Ok(Some(Span { address, count: length as usize / 16, last }))
}

/// Adds what a Data Block or Bit Bucket descriptor stands for; its bytes in the transfer.
fn element(bytes: [u8; 16], direction: Direction, out: &mut Segments) -> Result<u64, Refusal> {
    let (address, length, kind) = parts(bytes);
    if bytes[12..15] != [0; 3] {
        return Err(bad_sgl(
            status::SGL_TYPE_INVALID,
            format!("reserved bytes in SGL descriptor {bytes:02x?}"),
        ));
    }
    match kind {
        0x00 => {
            if length > 0 {
                push(out, address, u64::from(length));
            }
            Ok(u64::from(length))
        }
        // A bit bucket takes part only where data would go to it.
        0x10 if direction == Direction::ToHost => {
            out.push(Segment { address: None, length: u64::from(length) });
            Ok(u64::from(length))
        }
        0x10 => Ok(0),
        _ => Err(bad_sgl(status::SGL_TYPE_INVALID, format!("SGL descriptor type {kind:#04x}"))),
    }
}

/// Writes `bytes` to the host, beginning `skip` bytes into the transfer.
///
/// # Errors
/// When a segment is not mapped.
pub fn scatter(memory: &Memory, segments: &[Segment], skip: u64, bytes: &[u8]) -> Result<(), NotMapped> {
    let (mut skip, mut rest) = (skip, bytes);
    for segment in segments {
        if rest.is_empty() {
            break;
        }
        if skip >= segment.length {
            skip -= segment.length;
            continue;
        }
        let part = rest.len().min(usize::try_from(segment.length - skip).unwrap_or(usize::MAX));
        let (now, later) = rest.split_at(part);
        if let Some(address) = segment.address {
            memory.write(address.wrapping_add(skip), now)?;
        }
        rest = later;
        skip = 0;
    }
    Ok(())
}

/// Reads the whole transfer from the host into `bytes`.
///
/// # Errors
/// When a segment is not mapped.
pub fn gather(memory: &Memory, segments: &[Segment], bytes: &mut [u8]) -> Result<(), NotMapped> {
    let mut rest = bytes;
    for segment in segments {
        let part = rest.len().min(usize::try_from(segment.length).unwrap_or(usize::MAX));
        let (now, later) = rest.split_at_mut(part);
        if let Some(address) = segment.address {
            memory.read(address, now)?;
        }
        rest = later;
    }
    Ok(())
}

/// Whether every byte of the transfer can be reached.
///
/// # Errors
/// Names the segment that cannot.
pub fn check_reach(memory: &Memory, segments: &[Segment]) -> Result<(), NotMapped> {
    for segment in segments {
        if let Some(address) = segment.address
            && !memory.reaches(address, segment.length)
        {
            return Err(NotMapped { address, length: segment.length });
        }
    }
    Ok(())
}
