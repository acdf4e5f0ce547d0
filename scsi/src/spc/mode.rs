//! MODE SENSE and MODE SELECT: the pages of a unit, their changeable bits, and parameter lists.

use wire::scsi::mode::{self, Control, Header, page};
use wire::scsi::{Sense, SenseKey, Writer};

use crate::{Environment, ModePages, PageControl, UnitChange, UnitView};

/// Page and subpage codes of a unit, ascending.
const PAGES: [(u8, u8); 5] = [
    (page::READ_WRITE_ERROR_RECOVERY, 0x00),
    (page::CACHING, 0x00),
    (page::CONTROL, 0x00),
    (page::CONTROL, 0x01),
    (page::INFORMATIONAL_EXCEPTIONS, 0x00),
];

/// Whether a page can be asked for.
pub(super) enum Supported {
    Yes,
    NoPage,
    NoSubpage,
}

pub(super) fn supported(code: u8, subpage: u8, _: &Environment<'_>) -> Supported {
    if code == page::ALL {
        // 3Fh with subpage 00h or FFh; others are reserved.
        return if matches!(subpage, 0x00 | page::ALL_SUBPAGES) {
            Supported::Yes
        } else {
            Supported::NoSubpage
        };
    }
    let mut subpages = PAGES.iter().filter(|(known, _)| *known == code).peekable();
    if subpages.peek().is_none() {
        Supported::NoPage
    } else if subpage == page::ALL_SUBPAGES || subpages.any(|(_, known)| *known == subpage) {
        Supported::Yes
    } else {
        Supported::NoSubpage
    }
}

/// A page's bytes; the longest has 32.
#[derive(Clone, Copy)]
struct Page {
    bytes: [u8; 32],
    length: usize,
}

impl Page {
    fn new(bytes: &[u8]) -> Page {
        let mut page = Page { bytes: [0; 32], length: bytes.len().min(32) };
        page.bytes[..page.length].copy_from_slice(&bytes[..page.length]);
        page
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The page as it is with these values.
fn page_bytes(code: u8, subpage: u8, values: &ModePages) -> Option<Page> {
    Some(match (code, subpage) {
        (page::READ_WRITE_ERROR_RECOVERY, 0) => Page::new(&mode::read_write_error_recovery()),
        (page::CACHING, 0) => Page::new(&mode::caching(values.write_cache_enabled)),
        (page::CONTROL, 0) => Page::new(&control(values).bytes()),
        (page::CONTROL, 1) => Page::new(&mode::control_extension()),
        (page::INFORMATIONAL_EXCEPTIONS, 0) => Page::new(&mode::informational_exceptions()),
        _ => return None,
    })
}

fn control(values: &ModePages) -> Control {
    Control {
        descriptor_sense: values.descriptor_sense,
        software_write_protect: values.software_write_protect,
        task_aborted_status: values.task_aborted_status,
    }
}

/// The values a page's bytes stand for; other pages' values stay.
fn values_of(code: u8, subpage: u8, bytes: &[u8], values: ModePages) -> ModePages {
    match (code, subpage) {
        (page::CACHING, 0) => ModePages { write_cache_enabled: mode::caching_enabled(bytes), ..values },
        (page::CONTROL, 0) => {
            let control = Control::parse(bytes);
            ModePages {
                descriptor_sense: control.descriptor_sense,
                software_write_protect: control.software_write_protect,
                task_aborted_status: control.task_aborted_status,
                ..values
            }
        }
        _ => values,
    }
}

/// What a unit's pages are after power on: the write cache is used when there is one.
fn default_values(unit: &UnitView) -> ModePages {
    ModePages { write_cache_enabled: unit.geometry.write_cache, ..ModePages::default() }
}

/// Current values. Without a volatile cache there is no WCE, whatever was stored.
fn current_values(unit: &UnitView) -> ModePages {
    ModePages { write_cache_enabled: unit.mode.write_cache_enabled && unit.geometry.write_cache, ..unit.mode }
}

/// The page with a one in every bit that MODE SELECT may change, and its code and length.
fn changeable(code: u8, subpage: u8, unit: &UnitView) -> Option<Page> {
    let none = ModePages::default();
    let all = ModePages {
        write_cache_enabled: unit.geometry.write_cache,
        descriptor_sense: true,
        software_write_protect: true,
        task_aborted_status: true,
    };
    let mut mask = page_bytes(code, subpage, &all)?;
    let base = page_bytes(code, subpage, &none)?;
    let header = header_length(code, subpage);
    for (bit, base) in mask.bytes.iter_mut().zip(base.bytes).skip(header) {
        *bit ^= base;
    }
    Some(mask)
}

/// Bytes before a page's fields: two, or four in the subpage format.
fn header_length(_code: u8, subpage: u8) -> usize {
    if subpage == 0 { 2 } else { 4 }
}

/// Parameters of a MODE SENSE command.
pub(crate) struct ModeSense {
    pub(crate) long: bool,
    pub(crate) disable_block_descriptors: bool,
    pub(crate) long_lba: bool,
    pub(crate) control: PageControl,
    pub(crate) page: u8,
    pub(crate) subpage: u8,
}

pub(crate) fn mode_sense_data(
    request: &ModeSense,
    unit: &UnitView,
    environment: &Environment<'_>,
    out: &mut [u8],
) -> usize {
    let mut writer = Writer::new(out);
    let header = Header {
        long: request.long,
        write_protected: unit.geometry.read_only
            || environment.mapping_read_only
            || unit.mode.software_write_protect,
        block_descriptor: (!request.disable_block_descriptors)
            .then_some((unit.geometry.blocks, unit.geometry.block_size)),
        long_lba: request.long_lba,
    };
    header.emit(&mut writer);
    for (code, subpage) in PAGES {
        let wanted = (request.page == page::ALL || request.page == code)
            && (request.subpage == page::ALL_SUBPAGES || request.subpage == subpage);
        if !wanted {
            continue;
        }
        let page = match request.control {
            PageControl::Current => page_bytes(code, subpage, &current_values(unit)),
            PageControl::Default => page_bytes(code, subpage, &default_values(unit)),
            PageControl::Changeable => changeable(code, subpage, unit),
        };
        if let Some(page) = page {
            writer.bytes(page.as_slice());
        }
    }
    header.finish(&mut writer);
    writer.length()
}

/// PARAMETER LIST LENGTH ERROR.
const LENGTH_ERROR: Sense = Sense::new(SenseKey::IllegalRequest, 0x1A, 0x00);

/// INVALID FIELD IN PARAMETER LIST at `byte`.
fn invalid(byte: usize, bit: Option<u8>) -> Sense {
    Sense::invalid_field_in_parameter_list(u16::try_from(byte).unwrap_or(u16::MAX), bit)
}

/// Reads a MODE SELECT parameter list. Nothing changes unless all of it is right.
pub(crate) fn mode_select(long: bool, unit: &UnitView, list: &[u8]) -> Result<Option<UnitChange>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let mut at = check_header(long, unit, list)?;
    let before = current_values(unit);
    let mut values = before;
    while let Some(rest) = list.get(at..).filter(|rest| !rest.is_empty()) {
        let (consumed, changed) = select_page(rest, at, unit, values)?;
        values = changed;
        at += consumed;
    }
    Ok((values != before).then_some(UnitChange::ModePages(values)))
}

/// Checks header and block descriptor; returns where the pages begin. Blocks can be named but not changed.
fn check_header(long: bool, unit: &UnitView, list: &[u8]) -> Result<usize, Sense> {
    let (medium_type, long_lba, descriptor_length, header) = match (long, list) {
        (false, &[_, medium_type, _, length, ..]) => ((1, medium_type), false, (3, usize::from(length)), 4),
        (true, &[_, _, medium_type, _, flags, _, high, low, ..]) => {
            let length = usize::from(u16::from_be_bytes([high, low]));
            ((2, medium_type), flags & 0x01 != 0, (6, length), 8)
        }
        _ => return Err(LENGTH_ERROR),
    };
    if medium_type.1 != 0 {
        return Err(invalid(medium_type.0, None));
    }
    let (length_at, descriptor_length) = descriptor_length;
    if descriptor_length == 0 {
        return Ok(header);
    }
    if descriptor_length != if long_lba { 16 } else { 8 } {
        return Err(invalid(length_at, None));
    }
    let descriptor = list.get(header..header + descriptor_length).ok_or(LENGTH_ERROR)?;
    let (blocks, all, size, size_at) = match *descriptor {
        [a, b, c, d, e, f, g, h, _, _, _, _, i, j, k, l] => {
            (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::MAX, u32::from_be_bytes([i, j, k, l]), 12)
        }
        [a, b, c, d, _, e, f, g] => {
            let blocks = u64::from(u32::from_be_bytes([a, b, c, d]));
            (blocks, u64::from(u32::MAX), u32::from_be_bytes([0, e, f, g]), 5)
        }
        _ => return Err(LENGTH_ERROR),
    };
    if blocks != 0 && blocks != all && blocks != unit.geometry.blocks {
        return Err(invalid(header, None));
    }
    if size != unit.geometry.block_size {
        return Err(invalid(header + size_at, None));
    }
    Ok(header + descriptor_length)
}

/// Reads the page at the beginning of `rest`, which stands at byte `at` of the list. Returns its length and the
/// values with its changes.
fn select_page(
    rest: &[u8],
    at: usize,
    unit: &UnitView,
    values: ModePages,
) -> Result<(usize, ModePages), Sense> {
    let (code, subpage, length) = match *rest {
        [first, length, ..] if first & 0x40 == 0 => (first & 0x3F, 0, 2 + usize::from(length)),
        [first, subpage, high, low, ..] if subpage != 0 => {
            (first & 0x3F, subpage, 4 + usize::from(u16::from_be_bytes([high, low])))
        }
        [_, 0, ..] => return Err(invalid(at + 1, None)),
        _ => return Err(LENGTH_ERROR),
    };
    let (Some(current), Some(mask)) = (page_bytes(code, subpage, &values), changeable(code, subpage, unit))
    else {
        return Err(invalid(at, Some(5)));
    };
    let header = header_length(code, subpage);
    if length != current.length {
        return Err(invalid(at + header - if header == 2 { 1 } else { 2 }, None));
    }
    let new = rest.get(..length).ok_or(LENGTH_ERROR)?;
    let fields = new.iter().zip(current.as_slice()).zip(mask.as_slice()).enumerate().skip(header);
    for (index, ((new, current), mask)) in fields {
        let forbidden = (new ^ current) & !mask;
        if forbidden != 0 {
            return Err(invalid(at + index, Some(7 - forbidden.leading_zeros() as u8)));
        }
    }
    Ok((length, values_of(code, subpage, new, values)))
}
