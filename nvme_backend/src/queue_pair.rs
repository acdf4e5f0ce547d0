//! A submission queue and its completion queue, for whoever owns them: a core, or the service thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use reactor::{Bar, DmaMemory};
use wire::nvme::{Completion, Entry};

/// Pages one command can name in its PRP list, besides the first.
const LIST_ENTRIES: usize = 256;
const LIST_BYTES: usize = 8 * LIST_ENTRIES;
/// The longest transfer of one command that is ever made, bytes: what the list of a slot holds with 4 KiB pages.
pub(crate) const TRANSFER_MAX: u32 = 4096 * LIST_ENTRIES as u32;
/// Bytes of the scratch areas for metadata: one of zeros to be written, one for what is read and not wanted.
pub(crate) const METADATA_BYTES: usize = 64 * 1024;
/// Bytes of a bounce buffer.
pub(crate) const BOUNCE_BYTES: usize = 128 * 1024;
/// Bounce buffers of a queue.
pub(crate) const BOUNCES: usize = 4;
/// A tracker without a command.
const FREE: u32 = u32::MAX;

/// Where things stand in a queue pair's memory. All parts begin on a page of the controller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    slots: u16,
    page: usize,
    start: usize,
}

impl Layout {
    /// Bytes that a queue pair of `slots` commands needs, with pages of `page` bytes, wherever the memory lies.
    pub(crate) fn length(slots: u16, page: usize) -> usize {
        Layout { slots, page, start: 0 }.end() + page
    }

    /// The layout in memory that the device sees at `bus`.
    pub(crate) fn new(slots: u16, page: usize, bus: u64) -> Layout {
        let over = (bus % page as u64) as usize;
        Layout { slots, page, start: if over == 0 { 0 } else { page - over } }
    }

    /// Entries of each queue: one more than commands, because a full queue looks like an empty one.
    pub(crate) fn entries(&self) -> u32 {
        u32::from(self.slots) + 1
    }

    pub(crate) fn submission(&self) -> usize {
        self.start
    }

    pub(crate) fn completion(&self) -> usize {
        self.submission() + (64 * self.entries() as usize).next_multiple_of(self.page)
    }

    fn list(&self, slot: u16) -> usize {
        self.lists() + usize::from(slot) * LIST_BYTES
    }

    fn lists(&self) -> usize {
        self.completion() + (16 * self.entries() as usize).next_multiple_of(self.page)
    }

    /// A page of zeros.
    fn zeros(&self) -> usize {
        self.lists() + (usize::from(self.slots) * LIST_BYTES).next_multiple_of(self.page)
    }

    fn metadata_zeros(&self) -> usize {
        self.zeros() + self.page
    }

    fn metadata_dump(&self) -> usize {
        self.metadata_zeros() + METADATA_BYTES
    }

    /// Where bounce buffer `index` is.
    pub(crate) fn bounce(&self, index: usize) -> usize {
        self.metadata_dump() + METADATA_BYTES + index * BOUNCE_BYTES
    }

    fn end(&self) -> usize {
        self.bounce(BOUNCES)
    }
}

/// What a command transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Nothing.
    None,
    /// So many bytes at a bus address; the rest follows without gaps.
    Data { bus: u64, length: u32 },
    /// So many zeros.
    Zeros { length: u32 },
    /// A range for DATASET MANAGEMENT.
    Range([u64; 2]),
    /// A source range for COPY.
    Source([u64; 4]),
}

/// What a command does about metadata that stands apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metadata {
    /// There is none, or the controller makes it.
    None,
    /// Zeros to the medium.
    Zeros,
    /// From the medium, for nobody.
    Dump,
}

/// A command without its identifier and pointers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    pub(crate) entry: Entry,
    pub(crate) payload: Payload,
    pub(crate) metadata: Metadata,
}

/// The doorbell buffers (Doorbell Buffer Config, NVMe Base 2.0 §5.8, Annex B.5).
#[derive(Debug, Clone)]
pub(crate) struct Shadow {
    pub(crate) memory: Arc<DmaMemory>,
    /// Offset of the shadow of this doorbell.
    pub(crate) value: usize,
    /// Offset of the event index of this doorbell.
    pub(crate) event: usize,
}

impl Shadow {
    /// Stores the new value and says whether the register must be written too.
    fn store(&self, old: u16, new: u16) -> bool {
        self.memory.store32(self.value, u32::from(new));
        // The value must be visible before the event index is looked at, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let event = self.memory.load32(self.event) as u16;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// What a queue pair is made of.
pub(crate) struct QueuePairParts {
    pub(crate) id: u16,
    pub(crate) layout: Layout,
    pub(crate) memory: Arc<DmaMemory>,
    pub(crate) bus: u64,
    pub(crate) bar: Arc<dyn Bar>,
    pub(crate) submission_doorbell: u64,
    pub(crate) completion_doorbell: u64,
    pub(crate) shadows: Option<[Shadow; 2]>,
    /// Alignment that SGLs need, when they are to be used.
    pub(crate) sgl: Option<u32>,
    pub(crate) interrupt: Option<Arc<OwnedFd>>,
}

/// Counters of one queue pair.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QueueCounters {
    pub(crate) commands: u64,
    pub(crate) completions: u64,
    pub(crate) errors: u64,
    pub(crate) submission_doorbells: u64,
    pub(crate) completion_doorbells: u64,
    pub(crate) strange: u64,
}

/// A pair of queues. Slots are numbered 0 to `slots - 1`; the caller chooses them.
pub(crate) struct QueuePair {
    parts: QueuePairParts,
    entries: u16,
    tail: u16,
    /// The tail that the device was told.
    rung: u16,
    submission_head: u16,
    head: u16,
    /// The head that the device was told.
    head_rung: u16,
    phase: bool,
    slot_mask: u16,
    slot_bits: u32,
    /// By slot: the command identifier in flight, or [`FREE`].
    expected: Box<[u32]>,
    /// By slot: the generation of its next identifier.
    generations: Box<[u16]>,
    /// By slot: how many sweeps have seen this command.
    ages: Box<[u8]>,
    in_flight: u16,
    /// The device did not take a doorbell: it is gone.
    broken: bool,
    pub(crate) counters: QueueCounters,
}

impl QueuePair {
    /// A pair with nothing in it. Clears the completion queue, so that no phase tag of former times is taken for a new one;
    /// the device must not know the queue yet.
    pub(crate) fn new(parts: QueuePairParts) -> QueuePair {
        let slots = usize::from(parts.layout.slots);
        let entries = parts.layout.entries();
        for at in 0..2 * entries as usize {
            parts.memory.store64(parts.layout.completion() + 8 * at, 0);
        }
        if let Some(shadows) = &parts.shadows {
            for shadow in shadows {
                shadow.memory.store32(shadow.value, 0);
                shadow.memory.store32(shadow.event, 0);
            }
        }
        let slot_bits = usize::BITS - (slots.max(2) - 1).leading_zeros();
        QueuePair {
            entries: u16::try_from(entries).unwrap_or(u16::MAX),
            parts,
            tail: 0,
            rung: 0,
            submission_head: 0,
            head: 0,
            head_rung: 0,
            phase: true,
            slot_mask: ((1u32 << slot_bits) - 1) as u16,
            slot_bits,
            expected: vec![FREE; slots].into_boxed_slice(),
            generations: vec![0; slots].into_boxed_slice(),
            ages: vec![0; slots].into_boxed_slice(),
            in_flight: 0,
            broken: false,
            counters: QueueCounters::default(),
        }
    }

    /// Queue identifier.
    pub(crate) fn id(&self) -> u16 {
        self.parts.id
    }

    /// Commands that may be in flight.
    pub(crate) fn slots(&self) -> u16 {
        self.parts.layout.slots
    }

    /// Commands in flight.
    pub(crate) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The eventfd that the completion queue signals.
    pub(crate) fn interrupt(&self) -> Option<&Arc<OwnedFd>> {
        self.parts.interrupt.as_ref()
    }

    /// True when a doorbell could not be written.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// True when the device was told of everything.
    pub(crate) fn is_rung(&self) -> bool {
        self.tail == self.rung
    }

    /// Bus address of an offset of this queue pair's memory.
    fn bus(&self, offset: usize) -> u64 {
        self.parts.bus + offset as u64
    }

    /// Puts a command into the submission queue. The slot must be free, and below [`QueuePair::slots`]: false otherwise.
    #[inline]
    pub(crate) fn submit(&mut self, slot: u16, command: &Command) -> bool {
        let index = usize::from(slot);
        if self.expected.get(index).is_none_or(|&expected| expected != FREE) {
            return false;
        }
        let mut generation = self.generations[index];
        let mut id = generation << self.slot_bits | slot;
        if id == u16::MAX {
            // Reserved for error log entries that belong to no command (NVMe Base 2.0 §5.16.1.2).
            generation = generation.wrapping_add(1);
            id = generation << self.slot_bits | slot;
        }
        self.generations[index] = generation.wrapping_add(1);
        self.expected[index] = u32::from(id);
        self.ages[index] = 0;
        self.in_flight += 1;
        let mut entry = command.entry.command(id);
        match command.payload {
            Payload::Data { bus, length } => entry = self.point_to_data(entry, slot, bus, length),
            Payload::None => {}
            other => entry = self.point_to_own(entry, slot, other),
        }
        match command.metadata {
            Metadata::None => {}
            Metadata::Zeros => entry = entry.metadata(self.bus(self.parts.layout.metadata_zeros())),
            Metadata::Dump => entry = entry.metadata(self.bus(self.parts.layout.metadata_dump())),
        }
        self.parts.memory.store_entry(self.parts.layout.submission() + 64 * usize::from(self.tail), &entry.0);
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
        self.counters.commands += 1;
        true
    }

    /// PRP entries, a PRP list, or an SGL (NVMe Base 2.0 §4.1.1, §4.1.2).
    #[inline]
    fn point_to_data(&self, entry: Entry, slot: u16, bus: u64, length: u32) -> Entry {
        let page = self.parts.layout.page as u64;
        let offset = bus & (page - 1);
        let end = offset + u64::from(length);
        if end <= page {
            return entry.prp(bus, 0);
        }
        let second = bus - offset + page;
        if end <= 2 * page {
            return entry.prp(bus, second);
        }
        if self
            .parts
            .sgl
            .is_some_and(|alignment| (bus | u64::from(length)).is_multiple_of(u64::from(alignment.max(1))))
        {
            return entry.sgl_data_block(bus, length);
        }
        let pages = (end.div_ceil(page) - 1) as usize;
        let list = self.parts.layout.list(slot);
        for at in 0..pages.min(LIST_ENTRIES) {
            self.parts.memory.store64(list + 8 * at, second + page * at as u64);
        }
        entry.prp(bus, self.bus(list))
    }

    /// Data that stands in this queue pair's own memory.
    fn point_to_own(&self, entry: Entry, slot: u16, payload: Payload) -> Entry {
        let list = self.parts.layout.list(slot);
        match payload {
            Payload::Zeros { length } => {
                let page = self.parts.layout.page;
                let zeros = self.bus(self.parts.layout.zeros());
                let pages = (length as usize).div_ceil(page);
                match pages {
                    0 | 1 => return entry.prp(zeros, 0),
                    2 => return entry.prp(zeros, zeros),
                    _ => {}
                }
                // The same page again and again.
                for at in 0..(pages - 1).min(LIST_ENTRIES) {
                    self.parts.memory.store64(list + 8 * at, zeros);
                }
                entry.prp(zeros, self.bus(list))
            }
            Payload::Range(words) => self.point_to_words(entry, list, &words),
            Payload::Source(words) => self.point_to_words(entry, list, &words),
            Payload::None | Payload::Data { .. } => entry,
        }
    }

    fn point_to_words(&self, entry: Entry, list: usize, words: &[u64]) -> Entry {
        for (at, &word) in words.iter().enumerate() {
            self.parts.memory.store64(list + 8 * at, word);
        }
        entry.prp(self.bus(list), 0)
    }

    /// The next completion of a command in flight; its slot is free again. At most `budget` entries are looked at.
    #[inline]
    pub(crate) fn next(&mut self, budget: &mut u32) -> Option<(u16, Completion)> {
        while *budget > 0 {
            let place = self.parts.layout.completion() + 16 * usize::from(self.head);
            let high = self.parts.memory.load64(place + 8);
            if (high >> 48 & 1 == 1) != self.phase {
                return None;
            }
            *budget -= 1;
            let completion = Completion::parse(self.parts.memory.load64(place), high);
            self.head += 1;
            if self.head == self.entries {
                self.head = 0;
                self.phase = !self.phase;
            }
            if let Some(slot) = self.accept(&completion) {
                return Some((slot, completion));
            }
        }
        None
    }

    /// The slot that a completion ends, if it ends one.
    #[inline]
    fn accept(&mut self, completion: &Completion) -> Option<u16> {
        let slot = completion.command & self.slot_mask;
        let known = self.expected.get(usize::from(slot)) == Some(&u32::from(completion.command));
        if !known || completion.submission_queue != self.parts.id {
            self.counters.strange += 1;
            return None;
        }
        let span = |to: u16| {
            let from = self.submission_head;
            if to >= from { to - from } else { to + (self.entries - from) }
        };
        if completion.submission_head < self.entries && span(completion.submission_head) <= span(self.tail) {
            self.submission_head = completion.submission_head;
        } else {
            // The command is answered all the same: nothing here depends on the head, because there are fewer slots than
            // entries.
            self.counters.strange += 1;
        }
        self.expected[usize::from(slot)] = FREE;
        self.in_flight -= 1;
        self.counters.completions += 1;
        self.counters.errors += u64::from(!completion.status.is_success());
        Some(slot)
    }

    /// Tells the device how far its completions were taken.
    #[inline]
    pub(crate) fn ring_completions(&mut self) {
        if self.head == self.head_rung {
            return;
        }
        let write =
            self.parts.shadows.as_ref().is_none_or(|[_, shadow]| shadow.store(self.head_rung, self.head));
        if write {
            self.counters.completion_doorbells += 1;
            self.broken |=
                self.parts.bar.write32(self.parts.completion_doorbell, u32::from(self.head)).is_err();
        }
        self.head_rung = self.head;
    }

    /// Tells the device of the commands put in since the last time.
    #[inline]
    pub(crate) fn ring_submissions(&mut self) {
        if self.tail == self.rung {
            return;
        }
        let write = self.parts.shadows.as_ref().is_none_or(|[shadow, _]| shadow.store(self.rung, self.tail));
        if write {
            self.counters.submission_doorbells += 1;
            self.broken |=
                self.parts.bar.write32(self.parts.submission_doorbell, u32::from(self.tail)).is_err();
        }
        self.rung = self.tail;
    }

    /// Makes every command in flight one sweep older and tells of each: its slot, its identifier, and how many sweeps have
    /// seen it.
    pub(crate) fn sweep(&mut self, mut on: impl FnMut(u16, u16, u8)) {
        for (slot, (age, &expected)) in self.ages.iter_mut().zip(&self.expected).enumerate() {
            if expected != FREE {
                *age = age.saturating_add(1);
                on(slot as u16, expected as u16, *age);
            }
        }
    }

    /// The identifier of the command in a slot.
    pub(crate) fn command_id(&self, slot: u16) -> Option<u16> {
        self.expected.get(usize::from(slot)).and_then(|&expected| u16::try_from(expected).ok())
    }
}
