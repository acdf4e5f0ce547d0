/// Writes big-endian fields one after another into a slice that may be shorter than what is written: what does
/// not fit is dropped, and counted. This is how ALLOCATION LENGTH truncates (SPC-5 §4.2.5.6) without a second
/// buffer and without a panic.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut [u8],
    length: usize,
}

impl<'a> Writer<'a> {
    /// A writer at the beginning of `out`.
    #[must_use]
    pub fn new(out: &'a mut [u8]) -> Writer<'a> {
        Writer { out, length: 0 }
    }

    /// Bytes written so far, those that did not fit included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.u8(*byte);
        }
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        if let Some(slot) = self.out.get_mut(self.length) {
            *slot = value;
        }
        self.length += 1;
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends `count` zeros.
    pub fn zeros(&mut self, count: usize) {
        for _ in 0..count {
            self.u8(0);
        }
    }

    /// Appends zeros until `length` bytes are written.
    pub fn zeros_to(&mut self, length: usize) {
        self.zeros(length.saturating_sub(self.length));
    }

    /// Appends `text` as a left-aligned field of `width` bytes, padded with spaces (SPC-5 §4.3.1). What is not
    /// printable ASCII becomes a space.
    pub fn text(&mut self, text: &str, width: usize) {
        let printable = text.bytes().map(|byte| if (0x20..0x7F).contains(&byte) { byte } else { b' ' });
        for byte in printable.chain(std::iter::repeat(b' ')).take(width) {
            self.u8(byte);
        }
    }

    /// Overwrites one byte that was written before.
    pub fn patch_u8(&mut self, at: usize, value: u8) {
        if let Some(slot) = self.out.get_mut(at) {
            *slot = value;
        }
    }

    /// Overwrites two bytes that were written before.
    pub fn patch_u16(&mut self, at: usize, value: u16) {
        for (index, byte) in value.to_be_bytes().into_iter().enumerate() {
            self.patch_u8(at + index, byte);
        }
    }

    /// Overwrites four bytes that were written before.
    pub fn patch_u32(&mut self, at: usize, value: u32) {
        for (index, byte) in value.to_be_bytes().into_iter().enumerate() {
            self.patch_u8(at + index, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Writer;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        for room in 0..24 {
            let mut whole = [0xEE_u8; 24];
            let mut short = vec![0xEE_u8; room];
            for out in [&mut whole[..], &mut short[..]] {
                let mut writer = Writer::new(out);
                writer.u8(1);
                writer.u16(0x0203);
                writer.u32(0x0405_0607);
                writer.u64(0x0809_0A0B_0C0D_0E0F);
                writer.text("a\u{e9}", 6);
                writer.patch_u16(1, 0x2233);
                writer.zeros_to(24);
                assert_eq!(writer.length(), 24);
            }
            assert_eq!(short, whole[..room]);
            assert_eq!(&whole[..3], &[1, 0x22, 0x33]);
            assert_eq!(&whole[15..], b"a     \0\0\0");
        }
    }
}
