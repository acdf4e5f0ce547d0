/// Offsets of the controller's registers (NVMe over PCIe Transport 1.0 §3.1.1, NVMe Base 2.0 §3.1.3).
pub mod register {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u64 = 0x00;
    /// Version.
    pub const VS: u64 = 0x08;
    /// Controller Configuration.
    pub const CC: u64 = 0x14;
    /// Controller Status.
    pub const CSTS: u64 = 0x1C;
    /// Admin Queue Attributes.
    pub const AQA: u64 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: u64 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: u64 = 0x30;
    /// Controller Ready Timeouts.
    pub const CRTO: u64 = 0x68;
    /// The first doorbell.
    pub const DOORBELLS: u64 = 0x1000;
}

/// Where the doorbell of queue `queue` is (NVMe over PCIe Transport 1.0 §3.1.2): of its submission queue's tail, or of its
/// completion queue's head. `stride` is CAP.DSTRD.
#[must_use]
pub const fn doorbell_offset(queue: u16, completion: bool, stride: u8) -> u64 {
    register::DOORBELLS + (2 * queue as u64 + completion as u64) * (4 << (stride & 0xF))
}

/// CAP, Controller Capabilities (NVMe Base 2.0 §3.1.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Entries a queue may have: MQES, which is 0's based, plus one. 2 to 65,536.
    #[must_use]
    pub const fn queue_entries_max(self) -> u32 {
        let entries = (self.0 & 0xFFFF) as u32 + 1;
        if entries < 2 { 2 } else { entries }
    }

    /// Worst case time for CSTS.RDY to change, in milliseconds (TO).
    #[must_use]
    pub const fn timeout_ms(self) -> u64 {
        (self.0 >> 24 & 0xFF) * 500
    }

    /// Doorbell Stride (DSTRD).
    #[must_use]
    pub const fn doorbell_stride(self) -> u8 {
        (self.0 >> 32 & 0xF) as u8
    }

    /// The NVM Command Set can be chosen with CC.CSS 000b.
    #[must_use]
    pub const fn nvm_command_set(self) -> bool {
        self.0 >> 37 & 1 == 1
    }

    /// All supported I/O command sets can be chosen with CC.CSS 110b.
    #[must_use]
    pub const fn all_command_sets(self) -> bool {
        self.0 >> 43 & 1 == 1
    }

    /// The smallest memory page, as a power of two (12 + MPSMIN).
    #[must_use]
    pub const fn page_shift_min(self) -> u32 {
        12 + (self.0 >> 48 & 0xF) as u32
    }

    /// The largest memory page, as a power of two (12 + MPSMAX).
    #[must_use]
    pub const fn page_shift_max(self) -> u32 {
        12 + (self.0 >> 52 & 0xF) as u32
    }

    /// Controller Ready Timeouts (CRTO) says how long it takes to become ready (CRMS is not zero).
    #[must_use]
    pub const fn has_ready_timeouts(self) -> bool {
        self.0 >> 59 & 0b11 != 0
    }
}

/// CC, Controller Configuration (NVMe Base 2.0 §3.1.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Configuration {
    /// Enable (EN).
    pub enable: bool,
    /// I/O Command Set Selected (CSS): 0 NVM, 6 all supported.
    pub command_set: u8,
    /// Memory page size as a power of two; CC.MPS is this minus 12.
    pub page_shift: u32,
    /// Shutdown Notification (SHN): 0 none, 1 normal, 2 abrupt.
    pub shutdown: u8,
}

impl Configuration {
    /// The register. Queue entries are of 64 and 16 bytes, arbitration is round robin.
    #[must_use]
    pub const fn emit(self) -> u32 {
        self.enable as u32
            | (self.command_set as u32 & 7) << 4
            | (self.page_shift.saturating_sub(12) & 0xF) << 7
            | (self.shutdown as u32 & 3) << 14
            | 6 << 16
            | 4 << 20
    }
}

/// CSTS, Controller Status (NVMe Base 2.0 §3.1.3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// Ready (RDY).
    #[must_use]
    pub const fn ready(self) -> bool {
        self.0 & 1 == 1
    }

    /// Controller Fatal Status (CFS).
    #[must_use]
    pub const fn fatal(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// Shutdown processing complete (SHST is 10b).
    #[must_use]
    pub const fn shutdown_complete(self) -> bool {
        self.0 >> 2 & 3 == 2
    }

    /// All ones: what the bus answers for a device that is not there.
    #[must_use]
    pub const fn absent(self) -> bool {
        self.0 == u32::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        // QEMU's: 2,048 entries, contiguous queues, 7.5 s, NVM command set, pages of 4 KiB to 64 KiB.
        let capabilities = Capabilities(0x0040_0020_0F01_07FF);
        assert_eq!(capabilities.queue_entries_max(), 2048);
        assert_eq!(capabilities.timeout_ms(), 7500);
        assert_eq!((capabilities.doorbell_stride(), capabilities.nvm_command_set()), (0, true));
        assert_eq!((capabilities.page_shift_min(), capabilities.page_shift_max()), (12, 16));
        assert_eq!(Capabilities(0).queue_entries_max(), 2);
        let configuration = Configuration { enable: true, command_set: 0, page_shift: 12, shutdown: 1 };
        assert_eq!(configuration.emit(), 0x0046_4001);
        assert_eq!(Configuration { page_shift: 13, ..Configuration::default() }.emit(), 0x0046_0080);
        let status = ControllerStatus(0b1001);
        assert!(status.ready() && !status.fatal() && status.shutdown_complete() && !status.absent());
    }

    #[test]
    fn doorbells_are_interleaved_and_strided() {
        assert_eq!(doorbell_offset(0, false, 0), 0x1000);
        assert_eq!(doorbell_offset(0, true, 0), 0x1004);
        assert_eq!(doorbell_offset(3, true, 0), 0x101C);
        assert_eq!(doorbell_offset(1, false, 2), 0x1020);
        assert_eq!(doorbell_offset(u16::MAX, true, 15), 0x1000 + 131_071 * (4 << 15));
    }
}
