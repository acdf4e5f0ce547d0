//! Submission and completion queues.

use std::collections::VecDeque;

use super::command::Command;

/// A completion queue entry without its phase tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Command specific, dwords 0 and 1.
    pub result: u64,
    /// SQ Head Pointer.
    pub sq_head: u16,
    /// SQ Identifier.
    pub sq_id: u16,
    /// Command Identifier.
    pub cid: u16,
    /// Status without phase.
    pub status: u16,
    /// The phase tag is turned, by a fault.
    pub wrong_phase: bool,
}

/// A submission queue.
pub struct SubmissionQueue {
    /// Address of entry 0.
    pub base: u64,
    /// Entries.
    pub size: u16,
    /// Next entry to fetch.
    pub head: u16,
    /// The host's tail.
    pub tail: u16,
    /// Where its completions go.
    pub cq: u16,
    /// Nothing is fetched any more, by a fault.
    pub hung: bool,
    /// The first half of a fused operation waits for the second.
    pub fused: Option<Command>,
    /// Command identifiers in use, a bit for each.
    cids: Box<[u64; 1024]>,
}

impl SubmissionQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(base: u64, size: u16, cq: u16) -> SubmissionQueue {
        SubmissionQueue {
            base,
            size,
            head: 0,
            tail: 0,
            cq,
            hung: false,
            fused: None,
            cids: Box::new([0; 1024]),
        }
    }

    /// Takes a command identifier; false when it is in use.
    #[inline]
    pub fn take_cid(&mut self, cid: u16) -> bool {
        let word = &mut self.cids[usize::from(cid / 64)];
        let bit = 1 << (cid % 64);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    /// Gives a command identifier back.
    #[inline]
    pub fn free_cid(&mut self, cid: u16) {
        self.cids[usize::from(cid / 64)] &= !(1 << (cid % 64));
    }

    /// Entries from `from` up to `to`, going round.
    #[inline]
    pub fn distance(&self, from: u16, to: u16) -> u16 {
        if to >= from { to - from } else { self.size - from + to }
    }
}

/// A completion queue.
pub struct CompletionQueue {
    /// Address of entry 0.
    pub base: u64,
    /// Entries.
    pub size: u16,
    /// The host's head.
    pub head: u16,
    /// Next entry to fill.
    pub tail: u16,
    /// Phase tag of this round.
    pub phase: bool,
    /// Interrupt vector, when interrupts are enabled.
    pub vector: Option<u16>,
    /// Completions that found the queue full.
    pub backlog: VecDeque<Completion>,
    /// Entries were added since the last interrupt.
    pub signal: bool,
    /// Submission queues that use it.
    pub users: u16,
}

impl CompletionQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(base: u64, size: u16, vector: Option<u16>) -> CompletionQueue {
        CompletionQueue {
            base,
            size,
            head: 0,
            tail: 0,
            phase: true,
            vector,
            backlog: VecDeque::new(),
            signal: false,
            users: 0,
        }
    }

    /// Entries from `from` up to `to`, going round.
    #[inline]
    pub fn distance(&self, from: u16, to: u16) -> u16 {
        if to >= from { to - from } else { self.size - from + to }
    }

    /// No entry is free.
    #[inline]
    pub fn is_full(&self) -> bool {
        let next = if self.tail + 1 == self.size { 0 } else { self.tail + 1 };
        next == self.head
    }
}
