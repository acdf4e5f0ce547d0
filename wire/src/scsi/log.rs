//! Log pages (SPC-5 §7.3, SBC-4 §6.4).

use super::Writer;

/// Page codes.
pub mod page {
    /// Supported Log Pages; with subpage FFh, Supported Log Pages and Subpages.
    pub const SUPPORTED: u8 = 0x00;
    /// Temperature.
    pub const TEMPERATURE: u8 = 0x0D;
    /// Solid State Media.
    pub const SOLID_STATE_MEDIA: u8 = 0x11;
    /// Informational Exceptions.
    pub const INFORMATIONAL_EXCEPTIONS: u8 = 0x2F;
    /// The subpage code that stands for all subpages.
    pub const ALL_SUBPAGES: u8 = 0xFF;
}

/// FORMAT AND LINKING 11b: a binary list parameter. Neither saved nor compared with a threshold.
const BINARY_LIST: u8 = 0x03;

/// A temperature that is not known, or not between 0 °C and 254 °C.
const NO_TEMPERATURE: u8 = 0xFF;

/// Writes a page: its four-byte header, what `body` writes, and then the page's length into the header. Returns the
/// full length.
fn emit(code: u8, subpage: Option<u8>, out: &mut [u8], body: impl FnOnce(&mut Writer<'_>)) -> usize {
    let mut writer = Writer::new(out);
    // SPF says that there is a subpage code.
    let format = if subpage.is_some() { 0x40 } else { 0 };
    writer.bytes(&[format | code, subpage.unwrap_or(0), 0, 0]);
    body(&mut writer);
    let length = writer.length() - 4;
    writer.patch_u16(2, u16::try_from(length).unwrap_or(u16::MAX));
    writer.length()
}

/// Supported Log Pages, or with `subpages` Supported Log Pages and Subpages. `pages` in ascending order; none of them
/// has subpages.
pub fn emit_supported(pages: &[u8], subpages: bool, out: &mut [u8]) -> usize {
    emit(page::SUPPORTED, subpages.then_some(page::ALL_SUBPAGES), out, |writer| {
        for &code in pages {
            writer.u8(code);
            if subpages {
                writer.u8(0);
                if code == page::SUPPORTED {
                    writer.bytes(&[code, page::ALL_SUBPAGES]);
                }
            }
        }
    })
}

/// A log parameter and where its value goes.
fn parameter(code: u16, value: &[u8], writer: &mut Writer<'_>) {
    writer.u16(code);
    writer.bytes(&[BINARY_LIST, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
    writer.bytes(value);
}

fn temperature(celsius: Option<i16>) -> u8 {
    celsius.and_then(|celsius| u8::try_from(celsius).ok()).unwrap_or(NO_TEMPERATURE)
}

/// Temperature (SPC-5 §7.3): the temperature, and the one up to which the device may work all the time. Parameters
/// from code `first` on.
pub fn emit_temperature(celsius: Option<i16>, reference: Option<i16>, first: u16, out: &mut [u8]) -> usize {
    emit(page::TEMPERATURE, None, out, |writer| {
        for (code, celsius) in [(0, celsius), (1, reference)] {
            if code >= first {
                parameter(code, &[0, temperature(celsius)], writer);
            }
        }
    })
}

/// Solid State Media (SBC-4 §6.4): how much of the expected life is used up, in percent; 255 is that or more.
pub fn emit_solid_state_media(used_percent: u8, first: u16, out: &mut [u8]) -> usize {
    emit(page::SOLID_STATE_MEDIA, None, out, |writer| {
        if first <= 1 {
            parameter(1, &[0, 0, 0, used_percent], writer);
        }
    })
}

/// Informational Exceptions (SPC-5 §7.3): what the device warns of, zeros for nothing, and its temperature.
pub fn emit_informational_exceptions(
    code: (u8, u8),
    celsius: Option<i16>,
    first: u16,
    out: &mut [u8],
) -> usize {
    emit(page::INFORMATIONAL_EXCEPTIONS, None, out, |writer| {
        if first == 0 {
            parameter(0, &[code.0, code.1, temperature(celsius), 0], writer);
        }
    })
}

/// One parameter of a log page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// PARAMETER CODE.
    pub code: u16,
    /// The parameter control byte.
    pub control: u8,
    /// The value.
    pub value: &'a [u8],
}

/// Page code, subpage code and parameters of a page that has parameters. What is cut off is left out; `None` for less
/// than a header.
#[must_use]
pub fn parse(data: &[u8]) -> Option<(u8, u8, Vec<Parameter<'_>>)> {
    let &[code, subpage, high, low, ref rest @ ..] = data else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let mut rest = rest.get(..length).unwrap_or(rest);
    let mut parameters = Vec::new();
    while let &[a, b, control, length, ref after @ ..] = rest {
        let Some((value, next)) = after.split_at_checked(usize::from(length)) else { break };
        parameters.push(Parameter { code: u16::from_be_bytes([a, b]), control, value });
        rest = next;
    }
    Some((code & 0x3F, subpage, parameters))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_pages() {
        let mut out = [0xEE; 64];
        assert_eq!(emit_supported(&[0x00, 0x0D, 0x2F], false, &mut out), 7);
        assert_eq!(&out[..7], &[0x00, 0, 0, 3, 0x00, 0x0D, 0x2F]);
        assert_eq!(emit_supported(&[0x00, 0x0D], true, &mut out), 10);
        assert_eq!(&out[..10], &[0x40, 0xFF, 0, 6, 0x00, 0x00, 0x00, 0xFF, 0x0D, 0x00]);
    }

    #[test]
    fn the_bytes_are_the_standards() {
        let mut out = [0xEE; 64];
        assert_eq!(emit_temperature(Some(37), Some(70), 0, &mut out), 16);
        assert_eq!(&out[..16], &[0x0D, 0, 0, 12, 0, 0, 3, 2, 0, 37, 0, 1, 3, 2, 0, 70]);
        assert_eq!(emit_temperature(Some(-1), None, 1, &mut out), 10);
        assert_eq!(&out[..10], &[0x0D, 0, 0, 6, 0, 1, 3, 2, 0, 0xFF]);
        assert_eq!(emit_solid_state_media(7, 0, &mut out), 12);
        assert_eq!(&out[..12], &[0x11, 0, 0, 8, 0, 1, 3, 4, 0, 0, 0, 7]);
        assert_eq!(emit_informational_exceptions((0x5D, 0x03), Some(40), 0, &mut out), 12);
        assert_eq!(&out[..12], &[0x2F, 0, 0, 8, 0, 0, 3, 4, 0x5D, 0x03, 40, 0]);
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_what_is_parsed(
            celsius: Option<i16>, reference: Option<i16>, used: u8, code: (u8, u8), first in 0..3_u16,
        ) {
            let mut out = [0xEE; 64];
            let temperatures = emit_temperature(celsius, reference, first, &mut out);
            let parsed = parse(&out[..temperatures]).expect("a page");
            let expected: Vec<_> =
                [(0, temperature(celsius)), (1, temperature(reference))].into_iter().filter(|(code, _)| *code >= first).collect();
            let found: Vec<_> = parsed.2.iter().map(|parameter| (parameter.code, parameter.value[1])).collect();
            prop_assert_eq!((parsed.0, parsed.1, found), (page::TEMPERATURE, 0, expected));
            let wear = [0, 0, 0, used];
            let length = emit_solid_state_media(used, first, &mut out);
            let (_, _, parameters) = parse(&out[..length]).expect("a page");
            prop_assert_eq!(parameters.first().map(|p| (p.code, p.value)), (first < 2).then_some((1, &wear[..])));
            let length = emit_informational_exceptions(code, celsius, first, &mut out);
            let (_, _, parameters) = parse(&out[..length]).expect("a page");
            let value = [code.0, code.1, temperature(celsius), 0];
            prop_assert_eq!(parameters.first().map(|p| p.value), (first == 0).then_some(&value[..]));
            for room in 0..length {
                let mut short = vec![0xEE; room];
                prop_assert_eq!(emit_informational_exceptions(code, celsius, first, &mut short), length);
                prop_assert_eq!(&short[..], &out[..room]);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&data);
        }
    }
}
