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
fn page_bytes(code: u8, subpage: u8, values: &ModePages, unit: &UnitView) -> Option<Page> {
    Some(match (code, subpage) {
        (page::READ_WRITE_ERROR_RECOVERY, 0) => Page::new(&mode::read_write_error_recovery()),
        (page::CACHING, 0) => Page::new(&mode::caching(values.write_cache_enabled)),
        (page::CONTROL, 0) => Page::new(&control(values).bytes()),
        (page::CONTROL, 1) => Page::new(&mode::control_extension()),
        (page::INFORMATIONAL_EXCEPTIONS, 0) => {
            let reported = unit.device.0.health().is_some();
            Page::new(&mode::informational_exceptions(reported))
        }
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
    let mut mask = page_bytes(code, subpage, &all, unit)?;
    let base = page_bytes(code, subpage, &none, unit)?;
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
            PageControl::Current => page_bytes(code, subpage, &current_values(unit), unit),
            PageControl::Default => page_bytes(code, subpage, &default_values(unit), unit),
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
    Ok((values != before).then_some(UnitChange::ModePages { before, after: values }))
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
    let (Some(current), Some(mask)) =
        (page_bytes(code, subpage, &values, unit), changeable(code, subpage, unit))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ParameterOut;
    use crate::fuzz::World;

    fn sense_6(page: u8, subpage: u8, world: &World) -> Result<Vec<u8>, Sense> {
        world.data_in(&[0x1A, 0x08, page, subpage, 255, 0])
    }

    fn select(long: bool, list: &[u8], world: &World) -> Result<Option<UnitChange>, Sense> {
        ParameterOut::ModeSelect { long }.apply(&world.environment(), list)
    }

    /// A MODE SELECT(6) list of one page of MODE SENSE(6) data.
    fn list_of(page: u8, world: &World) -> Vec<u8> {
        let mut list = sense_6(page, 0, world).expect("a known page");
        list[..4].fill(0);
        list
    }

    #[test]
    fn all_pages_in_order_and_their_lengths() {
        let world = World::new();
        let data = sense_6(0x3F, 0xFF, &world).expect("all pages");
        assert_eq!(usize::from(data[0]), data.len() - 1);
        assert_eq!(data[2..4], [0x10, 0]);
        let (mut rest, mut codes) = (&data[4..], Vec::new());
        while let [code, ..] = rest {
            let length = if code & 0x40 == 0 { 2 + usize::from(rest[1]) } else { 4 + usize::from(rest[3]) };
            codes.push((code & 0x3F, if code & 0x40 == 0 { 0 } else { rest[1] }));
            rest = &rest[length..];
        }
        assert_eq!(codes, PAGES);
        let without_subpages = sense_6(0x3F, 0, &world).expect("all pages");
        assert_eq!(without_subpages.len(), data.len() - 32);
    }

    #[test]
    fn headers_of_both_commands() {
        let mut world = World::new();
        let short = world.data_in(&[0x1A, 0, 0x08, 0, 255, 0]).expect("caching page");
        assert_eq!(short[..12], [31, 0, 0x10, 8, 0, 0, 8, 0, 0, 0, 2, 0]);
        assert_eq!(short[12..15], [0x08, 0x12, 0x04]);
        let long = world.data_in(&[0x5A, 0x10, 0x08, 0, 0, 0, 0, 1, 0, 0]).expect("caching page");
        assert_eq!(long[..8], [0, 42, 0, 0x10, 1, 0, 0, 16]);
        assert_eq!(long[8..24], [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(world.data_in(&[0x1A, 0, 0x3F, 0, 4, 0]).map(|data| data.len()), Ok(4));
        world.mapping_read_only = true;
        assert_eq!(sense_6(0x08, 0, &world).map(|data| data[2]), Ok(0x90));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let world = World::new();
        let saved = Sense::new(SenseKey::IllegalRequest, 0x39, 0x00);
        assert_eq!(sense_6(0xC8, 0, &world), Err(saved));
        assert_eq!(sense_6(0x02, 0, &world), Err(Sense::invalid_field_in_cdb(2, Some(5))));
        assert_eq!(sense_6(0x08, 1, &world), Err(Sense::invalid_field_in_cdb(3, None)));
        assert_eq!(sense_6(0x3F, 1, &world), Err(Sense::invalid_field_in_cdb(3, None)));
    }

    #[test]
    fn the_changeable_bits_and_only_those_change() {
        let world = World::new();
        for code in [0x01, 0x08, 0x0A, 0x1C] {
            let mask = sense_6(0x40 | code, 0, &world).expect("changeable values");
            let list = list_of(code, &world);
            assert_eq!(select(false, &list, &world), Ok(None));
            for byte in 6..list.len() {
                for bit in 0..8 {
                    let mut list = list.clone();
                    list[byte] ^= 1 << bit;
                    let result = select(false, &list, &world);
                    if mask[byte] & (1 << bit) != 0 {
                        assert!(
                            matches!(result, Ok(Some(UnitChange::ModePages { .. }))),
                            "{code:02x}h {byte}.{bit}"
                        );
                    } else {
                        assert_eq!(result, Err(invalid(byte, Some(bit))), "{code:02x}h {byte}.{bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_change_reads_back() {
        let mut world = World::new();
        let mut list = list_of(0x0A, &world);
        list[6] |= 0x04;
        list[8] |= 0x08;
        list[9] |= 0x40;
        list.extend([0x08, 0x12]);
        list.extend([0; 18]);
        let expected = ModePages {
            write_cache_enabled: false,
            descriptor_sense: true,
            software_write_protect: true,
            task_aborted_status: true,
        };
        let before = world.unit.as_ref().map(current_values).unwrap_or_default();
        let change = UnitChange::ModePages { before, after: expected };
        assert_eq!(select(false, &list, &world), Ok(Some(change)));
        if let Some(unit) = world.unit.as_mut() {
            unit.mode = expected;
        }
        let data = sense_6(0x0A, 0, &world).expect("control page");
        assert_eq!(data[2], 0x90);
        assert_eq!(data[4..10], [0x0A, 0x0A, 0x06, 0, 0x08, 0x40]);
        // Default values stay what they were.
        assert_eq!(sense_6(0x8A, 0, &world).map(|data| data[6]), Ok(0x02));
    }

    #[test]
    fn without_a_cache_there_is_no_write_cache_bit() {
        let mut world = World::new();
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.write_cache = false;
        }
        for control in [0x00, 0x40, 0x80] {
            assert_eq!(sense_6(control | 0x08, 0, &world).map(|data| data[6]), Ok(0));
        }
        let mut list = list_of(0x08, &world);
        list[6] = 0x04;
        assert_eq!(select(false, &list, &world), Err(invalid(6, Some(2))));
    }

    #[test]
    fn truncated_lists_change_nothing() {
        let world = World::new();
        let mut list = list_of(0x0A, &world);
        list[6] |= 0x04;
        for length in 1..list.len() {
            let expected = if length == 4 { Ok(None) } else { Err(LENGTH_ERROR) };
            assert_eq!(select(false, &list[..length], &world), expected, "{length} bytes");
        }
        assert_eq!(select(false, &[], &world), Ok(None));
        let mut wrong_length = list.clone();
        wrong_length[5] = 0x0B;
        assert_eq!(select(false, &wrong_length, &world), Err(invalid(5, None)));
    }

    #[test]
    fn block_descriptors_may_only_repeat_the_geometry() {
        let world = World::new();
        let list = |blocks: u32, size: u32| {
            let mut list = vec![0, 0, 0, 8];
            list.extend(blocks.to_be_bytes());
            list.extend(size.to_be_bytes());
            list
        };
        for blocks in [0, 2048, u32::MAX] {
            assert_eq!(select(false, &list(blocks, 512), &world), Ok(None));
        }
        assert_eq!(select(false, &list(1024, 512), &world), Err(invalid(4, None)));
        assert_eq!(select(false, &list(0, 4096), &world), Err(invalid(9, None)));
        assert_eq!(select(false, &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 2], &world), Err(invalid(3, None)));
        assert_eq!(select(false, &[0, 1, 0, 0], &world), Err(invalid(1, None)));
        let mut long = vec![0, 0, 0, 0, 1, 0, 0, 16];
        long.extend(2048_u64.to_be_bytes());
        long.extend([0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(select(true, &long, &world), Ok(None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn arbitrary_lists_do_not_panic(
            long: bool,
            code in prop_oneof![Just(0x01_u8), Just(0x08), Just(0x0A), Just(0x1C), Just(0x4A), any::<u8>()],
            length in prop_oneof![Just(0x0A_u8), Just(0x12), Just(0x01), any::<u8>()],
            header in prop_oneof![Just([0; 4]), any::<[u8; 4]>()],
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let world = World::new();
            let mut list = header.to_vec();
            if long {
                list.extend([0; 4]);
            }
            list.extend([code, length]);
            list.extend(body);
            for end in 0..=list.len() {
                let _ = select(long, &list[..end], &world);
            }
        }
    }
}
