//! The memory bill: what each holder takes at start, added up. Nothing of the data path grows afterwards.

use std::fmt;

use base::{BufferPool, Limits, PoolClass};

/// Buffer memory of one core when none is asked for, in MiB.
pub const BUFFER_MIB_DEFAULT: u64 = 64;

/// The least buffer memory of one core, in MiB: fewer buffers would leave a command waiting for its own.
pub const BUFFER_MIB_MIN: u64 = 8;

/// Bytes of a task with what stands beside it: its CDB, its bursts, its sense data, its place in the task set.
const TASK_BYTES: u64 = 768;
/// Bytes of a nexus: its identity, its LUN map, its table of tags.
const NEXUS_BYTES: u64 = 1024;
/// Bytes of a connection: receive and transmit queues, negotiated values.
const CONNECTION_BYTES: u64 = 16 * 1024;
/// Bytes of a logical unit on one core: its view, its task set, its channel.
const UNIT_BYTES: u64 = 2 * 1024;
/// Bytes of a unit attention.
const ATTENTION_BYTES: u64 = 16;
/// Messages of a ring between two cores, and bytes of one.
const RING_BYTES: u64 = reactor::MESH_RING_CAPACITY as u64 * 256;
/// Bytes of a core's mailbox from the control plane.
const MAILBOX_BYTES: u64 = 256 * 256;

/// One holder's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Who holds it.
    pub holder: &'static str,
    /// How many.
    pub count: u64,
    /// Bytes of each.
    pub bytes: u64,
}

/// What the whole node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// Reactors.
    pub cores: u64,
    /// What one core takes.
    pub core: Vec<Line>,
}

/// The classes of one core's pool in `mib` MiB: most of it in whole bursts, which carry the payload; the rest in
/// small slots, for parameter data and short transfers, so that an INQUIRY never takes a burst.
#[must_use]
pub fn pool_classes(limits: &Limits, mib: u64) -> Vec<PoolClass> {
    let bytes = mib.max(BUFFER_MIB_MIN) * 1024 * 1024;
    let class = |size: u32, part: u64| PoolClass {
        size,
        count: u32::try_from((part / u64::from(size)).max(4)).unwrap_or(u32::MAX),
    };
    vec![
        class(4096, bytes / 16),
        class(64 * 1024, bytes / 4),
        class(limits.burst_length_bytes, bytes / 16 * 11),
    ]
}

/// Adds up.
#[must_use]
pub fn bill(limits: &Limits, cores: u16, classes: &[PoolClass]) -> Bill {
    let line = |holder, count: u32, bytes| Line { holder, count: u64::from(count), bytes };
    let core = vec![
        // Every payload byte between device and wire.
        line("data buffers", 1, BufferPool::memory_length(classes) as u64),
        // Commands from arrival to delivered status, and a quarter more that are only being refused.
        line("tasks", limits.tasks_max.saturating_add(limits.tasks_max / 4), TASK_BYTES),
        // Sessions, twice: a reinstated one overlaps with its successor.
        line("nexuses", limits.sessions_max.saturating_mul(2), NEXUS_BYTES),
        // One connection for each session, and those before login.
        line("connections", limits.sessions_max.saturating_add(256), CONNECTION_BYTES),
        // Every core sees every unit.
        line("logical units", limits.logical_units_max, UNIT_BYTES),
        // Each nexus keeps a queue for each unit it has met; most meet one.
        line(
            "unit attentions",
            limits.sessions_max.saturating_mul(limits.unit_attentions_max),
            ATTENTION_BYTES,
        ),
        // To every core, itself included.
        line("rings to cores", u32::from(cores), RING_BYTES),
        line("mailbox", 1, MAILBOX_BYTES),
    ];
    Bill { cores: u64::from(cores), core }
}

impl Bill {
    /// Bytes of one core.
    #[must_use]
    pub fn core_bytes(&self) -> u64 {
        self.core.iter().map(|line| line.count.saturating_mul(line.bytes)).fold(0, u64::saturating_add)
    }

    /// Bytes of all cores.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.core_bytes().saturating_mul(self.cores)
    }
}

impl fmt::Display for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes.div_ceil(1024);
        write!(
            f,
            "memory at most {} MiB: {} core(s), each",
            self.total_bytes().div_ceil(1 << 20),
            self.cores
        )?;
        for (at, line) in self.core.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma} {} KiB {}", kib(line.count.saturating_mul(line.bytes)), line.holder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bill_is_the_sum_of_its_lines() {
        let limits = Limits::default();
        let classes = pool_classes(&limits, 64);
        assert!(classes.iter().any(|class| class.size == limits.burst_length_bytes && class.count >= 3));
        let memory = BufferPool::memory_length(&classes) as u64;
        assert!(memory <= 64 << 20 && memory > 60 << 20);
        let one = bill(&limits, 1, &classes);
        let two = bill(&limits, 2, &classes);
        assert_eq!(two.total_bytes(), 2 * (one.total_bytes() + RING_BYTES));
        assert_eq!(one.core_bytes(), one.core.iter().map(|line| line.count * line.bytes).sum::<u64>());
        assert!(one.to_string().contains("data buffers"));
        // The least is still enough for a command's own bursts.
        assert!(pool_classes(&limits, 0).iter().all(|class| class.count >= 4));
    }
}
