//! Comparison of 32-bit serial numbers (RFC 1982, used by RFC 7143 §4.2.2.1): CmdSN, StatSN, DataSN, R2TSN wrap.

/// `a` comes before `b`. False for both orders when they are exactly 2^31 apart, where RFC 1982 defines none.
#[must_use]
pub const fn less(a: u32, b: u32) -> bool {
    let distance = distance(a, b);
    distance != 0 && distance < 0x8000_0000
}

/// `a` comes before `b` or is `b`.
#[must_use]
pub const fn less_or_equal(a: u32, b: u32) -> bool {
    a == b || less(a, b)
}

/// How often 1 must be added to `from` to reach `to`.
#[must_use]
pub const fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        assert!(less(1, 2));
        assert!(!less(2, 1));
        assert!(!less(7, 7));
        assert!(less(0xFFFF_FFFF, 0));
        assert!(!less(0, 0xFFFF_FFFF));
        assert!(less(0, 0x7FFF_FFFF));
        assert!(!less(0, 0x8000_0000) && !less(0x8000_0000, 0));
        assert!(less_or_equal(7, 7) && less_or_equal(0xFFFF_FFF0, 3) && !less_or_equal(3, 0xFFFF_FFF0));
        assert_eq!(distance(0xFFFF_FFFE, 3), 5);
    }
}
