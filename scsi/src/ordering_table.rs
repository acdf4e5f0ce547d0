//! The ordering table: class of the older task × class of the newer one → run, wait, or wait when they overlap
//! (SAM-5 §8.4 to §8.7).

use wire::scsi::TaskAttribute;

use crate::Plan;

/// How a task is ordered in its task set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskClass {
    /// Neither waits nor is waited for: commands that SPC-5 lets a device server process out of order (INQUIRY,
    /// REPORT LUNS, REQUEST SENSE).
    Free,
    /// SIMPLE task attribute.
    Simple,
    /// ORDERED task attribute.
    Ordered,
    /// HEAD OF QUEUE task attribute.
    HeadOfQueue,
}

impl TaskClass {
    /// The class of a command: `implicit_head_of_queue` comes from the command table.
    #[must_use]
    pub fn of(attribute: TaskAttribute, implicit_head_of_queue: bool) -> TaskClass {
        match (implicit_head_of_queue, attribute) {
            (true, _) => TaskClass::Free,
            (false, TaskAttribute::Simple | TaskAttribute::Aca) => TaskClass::Simple,
            (false, TaskAttribute::Ordered) => TaskClass::Ordered,
            (false, TaskAttribute::HeadOfQueue) => TaskClass::HeadOfQueue,
        }
    }
}

/// What a newer task does about an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Run beside it.
    Run,
    /// Wait until it has ended.
    Wait,
    /// Wait when one of the two is atomic and their blocks overlap.
    WaitForOverlap,
}

/// The table.
#[must_use]
pub fn order(older: TaskClass, newer: TaskClass) -> Order {
    use TaskClass::{Free, HeadOfQueue, Ordered, Simple};
    match (older, newer) {
        (Free, _) | (_, Free) => Order::Run,
        (_, Ordered) | (Ordered | HeadOfQueue, Simple) => Order::Wait,
        (Simple, Simple) | (_, HeadOfQueue) => Order::WaitForOverlap,
    }
}

/// The logical blocks a task touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediumRange {
    /// None.
    Nothing,
    /// `blocks` blocks from `lba`.
    Blocks {
        /// First block.
        lba: u64,
        /// How many.
        blocks: u64,
    },
    /// Not known before it runs, so any.
    Anything,
}

impl MediumRange {
    /// What `plan` touches.
    #[must_use]
    pub fn of(plan: &Plan) -> MediumRange {
        let (lba, blocks) = match *plan {
            Plan::Read { lba, blocks, .. }
            | Plan::Write { lba, blocks, .. }
            | Plan::WriteAndVerify { lba, blocks, .. }
            | Plan::VerifyMedium { lba, blocks }
            | Plan::VerifyCompare { lba, blocks, .. }
            | Plan::CompareAndWrite { lba, blocks, .. }
            | Plan::WriteAtomic { lba, blocks, .. }
            | Plan::OrWrite { lba, blocks, .. } => (lba, u64::from(blocks)),
            Plan::WriteSame { lba, blocks, .. } => (lba, blocks),
            Plan::Unmap { .. } => return MediumRange::Anything,
            _ => return MediumRange::Nothing,
        };
        if blocks == 0 { MediumRange::Nothing } else { MediumRange::Blocks { lba, blocks } }
    }

    /// True when both may touch one block.
    #[must_use]
    pub fn overlaps(self, other: MediumRange) -> bool {
        match (self, other) {
            (MediumRange::Nothing, _) | (_, MediumRange::Nothing) => false,
            (MediumRange::Anything, _) | (_, MediumRange::Anything) => true,
            (MediumRange::Blocks { lba: a, blocks: m }, MediumRange::Blocks { lba: b, blocks: n }) => {
                a < b.saturating_add(n) && b < a.saturating_add(m)
            }
        }
    }
}

/// COMPARE AND WRITE and ORWRITE read and write as one, and nobody may see a part of a WRITE ATOMIC: no other command may
/// touch their blocks in between. A READ that is several requests could see one otherwise, whatever the device promises.
#[must_use]
pub fn is_atomic(plan: &Plan) -> bool {
    matches!(plan, Plan::CompareAndWrite { .. } | Plan::WriteAtomic { .. } | Plan::OrWrite { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sam_5_table_44() {
        use TaskClass::{Free, HeadOfQueue, Ordered, Simple};
        assert_eq!(order(Ordered, Simple), Order::Wait);
        assert_eq!(order(HeadOfQueue, Simple), Order::Wait);
        assert_eq!(order(Simple, Simple), Order::WaitForOverlap);
        assert_eq!(order(Simple, Ordered), Order::Wait);
        assert_eq!(order(HeadOfQueue, Ordered), Order::Wait);
        assert_eq!(order(Ordered, HeadOfQueue), Order::WaitForOverlap);
        for class in [Free, Simple, Ordered, HeadOfQueue] {
            assert_eq!(order(Free, class), Order::Run);
            assert_eq!(order(class, Free), Order::Run);
        }
    }

    #[test]
    fn ranges_overlap_by_a_shared_block() {
        let a = MediumRange::Blocks { lba: 10, blocks: 10 };
        assert!(a.overlaps(MediumRange::Blocks { lba: 19, blocks: 1 }));
        assert!(!a.overlaps(MediumRange::Blocks { lba: 20, blocks: 1 }));
        assert!(!a.overlaps(MediumRange::Blocks { lba: 0, blocks: 10 }));
        assert!(a.overlaps(MediumRange::Anything));
        assert!(!a.overlaps(MediumRange::Nothing));
        assert!(a.overlaps(MediumRange::Blocks { lba: 0, blocks: u64::MAX }));
    }
}
