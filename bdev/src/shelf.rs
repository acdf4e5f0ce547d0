//! Where middleware keeps the requests that it has taken and not yet passed on. Bounded, all memory reserved at
//! the start.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use base::Instant;

use crate::check::finish;
use crate::{BlockError, BlockIo, IoChannel, IoCompletion, IoTag};

/// Requests that a shelf holds at most.
pub(crate) const CAPACITY: usize = 1024;

/// How long an event from another core (requests let go) may go unnoticed by a reactor that sleeps.
const NOTICE: Duration = Duration::from_millis(10);

struct Held {
    due: Instant,
    sequence: u64,
    io: BlockIo,
}

impl Held {
    fn key(&self) -> (Instant, u64) {
        (self.due, self.sequence)
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    /// The earliest is the greatest: `BinaryHeap` gives that first.
    fn cmp(&self, other: &Held) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// Requests on their way to an inner channel, and completions that never went there.
pub(crate) struct Shelf {
    /// Taken since the last poll; their delay counts from the next one, so it is never too short.
    arriving: VecDeque<(Duration, BlockIo)>,
    timed: BinaryHeap<Held>,
    parked: VecDeque<BlockIo>,
    /// Refused by the inner channel, which was full.
    refused: VecDeque<BlockIo>,
    done: VecDeque<IoCompletion>,
    sequence: u64,
    now: Instant,
}

impl Shelf {
    pub(crate) fn new() -> Shelf {
        Shelf {
            arriving: VecDeque::with_capacity(CAPACITY),
            timed: BinaryHeap::with_capacity(CAPACITY),
            parked: VecDeque::with_capacity(CAPACITY),
            refused: VecDeque::with_capacity(CAPACITY),
            done: VecDeque::with_capacity(CAPACITY),
            sequence: 0,
            now: Instant::ZERO,
        }
    }

    /// True when nothing more may be put here.
    pub(crate) fn is_full(&self) -> bool {
        let held = self.arriving.len() + self.timed.len() + self.parked.len() + self.refused.len();
        held + self.done.len() >= CAPACITY
    }

    /// Keeps a request for `delay`.
    pub(crate) fn delay(&mut self, io: BlockIo, delay: Duration) {
        self.arriving.push_back((delay, io));
    }

    /// Keeps a request until [`Shelf::unpark`].
    pub(crate) fn park(&mut self, io: BlockIo) {
        self.parked.push_back(io);
    }

    /// Lets all parked requests go on at the next poll.
    pub(crate) fn unpark(&mut self) {
        while let Some(io) = self.parked.pop_front() {
            self.refused.push_back(io);
        }
    }

    /// Ends a request without the inner channel.
    pub(crate) fn complete(&mut self, completion: IoCompletion) {
        self.done.push_back(completion);
    }

    /// Passes a request on, or keeps it for the next poll when the inner channel is full.
    pub(crate) fn pass(&mut self, io: BlockIo, inner: &mut dyn IoChannel) {
        if !self.refused.is_empty() {
            self.refused.push_back(io);
        } else if let Err(io) = inner.submit(io) {
            self.refused.push_back(io);
        }
    }

    /// Completes a request that is still here as cancelled; false when it is not here.
    pub(crate) fn cancel(&mut self, tag: IoTag) -> bool {
        let mut found = None;
        if let Some(position) = self.arriving.iter().position(|(_, io)| io.tag == tag) {
            found = self.arriving.remove(position).map(|(_, io)| io);
        } else if let Some(position) = self.parked.iter().position(|io| io.tag == tag) {
            found = self.parked.remove(position);
        } else if let Some(position) = self.refused.iter().position(|io| io.tag == tag) {
            found = self.refused.remove(position);
        } else if self.timed.iter().any(|held| held.io.tag == tag) {
            // Into a vector and back: both in place, linear, and without allocation.
            let mut held = std::mem::take(&mut self.timed).into_vec();
            if let Some(position) = held.iter().position(|held| held.io.tag == tag) {
                found = Some(held.swap_remove(position).io);
            }
            self.timed = BinaryHeap::from(held);
        }
        if let Some(io) = found {
            self.done.push_back(finish(io, Err(BlockError::Cancelled)));
            return true;
        }
        self.done.iter().any(|completion| completion.tag == tag)
    }

    /// Passes on what is due. True when something was passed on, and the inner channel wants a flush.
    pub(crate) fn advance(&mut self, now: Instant, inner: &mut dyn IoChannel) -> bool {
        self.now = now;
        while let Some((delay, io)) = self.arriving.pop_front() {
            self.sequence += 1;
            self.timed.push(Held { due: now + delay, sequence: self.sequence, io });
        }
        let mut moved = false;
        while let Some(io) = self.refused.pop_front() {
            if let Err(io) = inner.submit(io) {
                self.refused.push_front(io);
                break;
            }
            moved = true;
        }
        while self.timed.peek().is_some_and(|held| held.due <= now) {
            let Some(held) = self.timed.pop() else { break };
            moved = true;
            self.pass(held.io, inner);
        }
        moved
    }

    /// The next completion that never went to the inner channel.
    pub(crate) fn next_done(&mut self) -> Option<IoCompletion> {
        self.done.pop_front()
    }

    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(IoTag)) {
        self.arriving.iter().for_each(|(_, io)| visit(io.tag));
        self.timed.iter().for_each(|held| visit(held.io.tag));
        self.parked.iter().for_each(|io| visit(io.tag));
        self.refused.iter().for_each(|io| visit(io.tag));
        self.done.iter().for_each(|completion| visit(completion.tag));
    }

    /// When the shelf wants to be advanced, or `inner` wants to be polled.
    pub(crate) fn next_timeout(&self, inner: Option<Instant>) -> Option<Instant> {
        let mut next = inner;
        let mut consider = |at: Instant| next = Some(next.map_or(at, |earlier| earlier.min(at)));
        if !self.arriving.is_empty() || !self.done.is_empty() {
            consider(self.now);
        }
        if let Some(held) = self.timed.peek() {
            consider(held.due);
        }
        if !self.parked.is_empty() || !self.refused.is_empty() {
            consider(self.now + NOTICE);
        }
        next
    }
}
