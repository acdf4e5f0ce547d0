/// A logical unit number: the eight bytes of SAM-5 §4.7, big-endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lun(pub u64);

impl Lun {
    /// LUN 0.
    pub const ZERO: Lun = Lun(0);
    /// The REPORT LUNS well-known logical unit (SPC-5 §8.2).
    pub const REPORT_LUNS: Lun = Lun(0xC101_0000_0000_0000);

    /// The simple LUN for `number`: peripheral device addressing below 256, flat space addressing to 16,383.
    #[must_use]
    pub fn from_number(number: u16) -> Lun {
        if number < 256 {
            Lun(u64::from(number) << 48)
        } else {
            Lun(u64::from(0x4000 | (number & 0x3FFF)) << 48)
        }
    }

    /// The number of a single-level LUN (peripheral, bus 0, or flat space addressing); `None` for any other form.
    #[must_use]
    pub fn number(self) -> Option<u16> {
        if self.0 & 0x0000_FFFF_FFFF_FFFF != 0 {
            return None;
        }
        let first = (self.0 >> 48) as u16;
        match first >> 14 {
            0 if first < 256 => Some(first),
            1 => Some(first & 0x3FFF),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Lun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number() {
            Some(number) => write!(f, "Lun({number})"),
            None => write!(f, "Lun({:#018x})", self.0),
        }
    }
}
