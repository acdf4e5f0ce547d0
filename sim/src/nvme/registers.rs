//! Controller registers (NVM Express Base Specification 2.0, §3.1.3; PCIe Transport 1.0 §3.1.2).

/// Controller Capabilities, 8 bytes.
pub const CAP: u64 = 0x00;
/// Version.
pub const VS: u64 = 0x08;
/// Interrupt Mask Set.
pub const INTMS: u64 = 0x0C;
/// Interrupt Mask Clear.
pub const INTMC: u64 = 0x10;
/// Controller Configuration.
pub const CC: u64 = 0x14;
/// Controller Status.
pub const CSTS: u64 = 0x1C;
/// NVM Subsystem Reset.
pub const NSSR: u64 = 0x20;
/// Admin Queue Attributes.
pub const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address, 8 bytes.
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address, 8 bytes.
pub const ACQ: u64 = 0x30;
/// First doorbell.
pub const DOORBELLS: u64 = 0x1000;

/// What must be written to NSSR: "NVMe".
pub const NSSR_MAGIC: u32 = 0x4E56_4D65;

/// CC.EN.
pub const CC_EN: u32 = 1;
/// CC bits that have a meaning; bit 24 is CRIME, which this controller does not have.
pub const CC_DEFINED: u32 = 0x00FF_FFF1;
/// CC bits that must not change while the controller is enabled: CSS, MPS, AMS.
pub const CC_FIXED: u32 = 0x0000_3FF0;

/// CSTS.RDY.
pub const CSTS_RDY: u32 = 1;
/// CSTS.CFS.
pub const CSTS_CFS: u32 = 1 << 1;
/// CSTS.SHST: shutdown is going on.
pub const CSTS_SHST_OCCURRING: u32 = 1 << 2;
/// CSTS.SHST: shutdown is complete.
pub const CSTS_SHST_COMPLETE: u32 = 2 << 2;
/// CSTS.SHST, all bits.
pub const CSTS_SHST: u32 = 3 << 2;
/// CSTS.NSSRO.
pub const CSTS_NSSRO: u32 = 1 << 4;

/// CC.CSS.
pub fn cc_css(cc: u32) -> u32 {
    (cc >> 4) & 7
}
/// CC.MPS: pages are 2^(12 + MPS) bytes.
pub fn cc_mps(cc: u32) -> u32 {
    (cc >> 7) & 15
}
/// CC.AMS.
pub fn cc_ams(cc: u32) -> u32 {
    (cc >> 11) & 7
}
/// CC.SHN.
pub fn cc_shn(cc: u32) -> u32 {
    (cc >> 14) & 3
}
/// CC.IOSQES: entries of I/O submission queues are 2^n bytes.
pub fn cc_iosqes(cc: u32) -> u32 {
    (cc >> 16) & 15
}
/// CC.IOCQES.
pub fn cc_iocqes(cc: u32) -> u32 {
    (cc >> 20) & 15
}
