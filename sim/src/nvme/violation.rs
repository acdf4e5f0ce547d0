//! Rules a host can break, as the controller sees them. The simulation's oracle wants none.

use base::Instant;

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// A register access of a width or at a place that the register does not have, or a write to a read-only one.
    RegisterAccess,
    /// CC, AQA, ASQ or ACQ changed when it must not be (Base 2.0 §3.1.3).
    Configuration,
    /// A doorbell of a queue that does not exist, or while the controller is not ready.
    DoorbellQueue,
    /// A doorbell of a queue that was there before CC.EN was cleared, rung while it is 0. Nothing comes of it; drivers whose
    /// cores are not stopped before a reset do it.
    LateDoorbell,
    /// A doorbell value outside its queue, repeated, or beyond what the queue can hold.
    DoorbellValue,
    /// A command identifier used again while its command is outstanding (Base 2.0 §3.3.3.1).
    CommandId,
    /// Reserved bits that are not zero.
    Reserved,
    /// A malformed PRP entry or list (Base 2.0 §4.1.1).
    Prp,
    /// A malformed SGL (Base 2.0 §4.1.2).
    Sgl,
    /// An address that is not mapped for the device: DMA after unmap, or garbage.
    Dma,
    /// A fused operation whose other half is missing or does not match.
    Fused,
    /// An opcode, namespace or value the controller said it does not have.
    Unsupported,
    /// Out of the order the specification asks for.
    Sequence,
    /// A transfer beyond MDTS, or blocks beyond the namespace.
    Bounds,
}

/// A rule the host broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When, on the model's clock.
    pub at: Instant,
    /// Which rule.
    pub rule: Rule,
    /// The submission queue it came by; 0 for the admin queue and for registers.
    pub queue: u16,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ns, queue {}: {:?}: {}", self.at.as_nanos(), self.queue, self.rule, self.what)
    }
}
