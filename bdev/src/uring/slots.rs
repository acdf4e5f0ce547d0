//! The memory that the kernel may be reading or writing, for as long as it may.
//!
//! The safety argument: a request's memory (its [`DataBuf`], or its bounce buffer) is owned by [`Slots`] from the
//! moment its step is launched until the answer has come. Nothing hands it out before; what is dropped before is
//! leaked.

use std::ptr::NonNull;
use std::rc::Rc;

use base::{DataBuf, PlainMemory, PoolMemory};

use super::engine::{Answer, Direction, Step};

/// Bytes of a bounce buffer, and of the shared zeros.
pub(super) const CHUNK: usize = 128 << 10;

/// Bounce buffers of one channel.
const BOUNCES: usize = 8;

/// The most bytes the kernel moves in one request (MAX_RW_COUNT), rounded down to the largest block.
const TRANSFER_MAX: usize = 0x7FFF_0000;

/// Zeros that every channel of a device writes from; never written to.
pub(super) struct Zeros(PlainMemory);

// SAFETY: the memory is never written after its creation, so any thread may read it, or have the kernel read it.
unsafe impl Send for Zeros {}
// SAFETY: as above.
unsafe impl Sync for Zeros {}

impl Zeros {
    pub(super) fn new() -> Option<Zeros> {
        PlainMemory::new(CHUNK).map(Zeros)
    }

    /// `CHUNK` bytes of zeros, to be read only.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.0.base()
    }
}

#[derive(Default)]
struct Hold {
    data: Option<DataBuf>,
    in_flight: bool,
    /// The bounce buffer in use, and for a read where its bytes go.
    bounce: Option<(usize, Option<usize>)>,
}

/// The slots of one channel with their buffers. See the module's safety argument.
pub(super) struct Slots {
    holds: Vec<Hold>,
    bounce_memory: Rc<PlainMemory>,
    free_bounces: Vec<usize>,
    memory_alignment: usize,
    in_flight: usize,
    bounce_copies: u64,
}

impl Slots {
    /// `depth` slots. Memory for direct I/O must be aligned to `memory_alignment` bytes.
    pub(super) fn new(depth: u32, memory_alignment: u32) -> std::io::Result<Slots> {
        let no_memory = || std::io::Error::from_raw_os_error(libc::ENOMEM);
        Ok(Slots {
            holds: (0..depth).map(|_| Hold::default()).collect(),
            bounce_memory: Rc::new(PlainMemory::new(BOUNCES * CHUNK).ok_or_else(no_memory)?),
            free_bounces: (0..BOUNCES).collect(),
            memory_alignment: memory_alignment.max(1) as usize,
            in_flight: 0,
            bounce_copies: 0,
        })
    }

    /// Slots that are with the kernel.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// True when this slot is with the kernel.
    pub(super) fn is_in_flight(&self, slot: usize) -> bool {
        self.holds.get(slot).is_some_and(|hold| hold.in_flight)
    }

    /// Copies made through bounce buffers since the last call.
    pub(super) fn take_bounce_copies(&mut self) -> u64 {
        std::mem::take(&mut self.bounce_copies)
    }

    /// Puts a request's buffer into a free slot.
    pub(super) fn hold(&mut self, slot: usize, data: Option<DataBuf>) {
        let hold = &mut self.holds[slot];
        assert!(!hold.in_flight && hold.data.is_none(), "slot {slot} is in use");
        hold.data = data;
    }

    /// Takes the buffer out of a slot that the kernel is done with.
    pub(super) fn release(&mut self, slot: usize) -> Option<DataBuf> {
        let hold = &mut self.holds[slot];
        assert!(!hold.in_flight, "slot {slot} is with the kernel");
        hold.data.take()
    }

    /// The memory for a step, dangling and empty for steps without. `None` when all bounce buffers are in use.
    /// To be followed by [`Slots::launched`] or [`Slots::not_launched`].
    pub(super) fn memory_for(
        &mut self,
        slot: usize,
        step: Step,
        zeros: &Zeros,
    ) -> Option<(NonNull<u8>, usize)> {
        let hold = &mut self.holds[slot];
        assert!(!hold.in_flight, "slot {slot} is with the kernel");
        let (direction, at, length) = match step {
            Step::Transfer { direction, at, length, .. } => (direction, at, length),
            Step::Zeros { length, .. } => {
                return Some((
                    zeros.base(),
                    usize::try_from(length).map_or(CHUNK, |length| length.min(CHUNK)),
                ));
            }
            Step::Sync | Step::Allocate { .. } => return Some((NonNull::dangling(), 0)),
        };
        let data = hold.data.as_deref_mut().and_then(|data| data.get_mut(at..at.checked_add(length)?));
        let data = data.unwrap_or(&mut []);
        let address = NonNull::from(&mut *data).cast::<u8>();
        if address.as_ptr().addr().is_multiple_of(self.memory_alignment) {
            return Some((address, data.len().min(TRANSFER_MAX)));
        }
        let bounce = self.free_bounces.pop()?;
        self.bounce_copies += 1;
        let count = data.len().min(CHUNK);
        // SAFETY: `bounce` is below BOUNCES, so the buffer lies in our own memory, `BOUNCES * CHUNK` bytes long.
        let memory = unsafe { self.bounce_memory.base().add(bounce * CHUNK) };
        if direction == Direction::Read {
            hold.bounce = Some((bounce, Some(at)));
        } else {
            // SAFETY: `count` bytes are in both; the bounce buffer was free, so nobody else reads or writes it.
            unsafe { memory.copy_from_nonoverlapping(address, count) };
            hold.bounce = Some((bounce, None));
        }
        Some((memory, count))
    }

    /// The step is with the kernel now.
    pub(super) fn launched(&mut self, slot: usize) {
        self.holds[slot].in_flight = true;
        self.in_flight += 1;
    }

    /// The step was not launched after all.
    pub(super) fn not_launched(&mut self, slot: usize) {
        self.return_bounce(slot, 0);
    }

    /// The kernel is done with a slot. False when it was not with the kernel: an answer to be ignored.
    pub(super) fn answered(&mut self, answer: Answer) -> bool {
        let Some(hold) = self.holds.get_mut(answer.slot).filter(|hold| hold.in_flight) else { return false };
        hold.in_flight = false;
        self.in_flight -= 1;
        self.return_bounce(answer.slot, usize::try_from(answer.result).unwrap_or(0));
        true
    }

    /// Ends the use of a slot's bounce buffer; a read's first `count` bytes go to its buffer.
    fn return_bounce(&mut self, slot: usize, count: usize) {
        let hold = &mut self.holds[slot];
        assert!(!hold.in_flight, "slot {slot} is with the kernel");
        let Some((bounce, destination)) = hold.bounce.take() else { return };
        self.free_bounces.push(bounce);
        let Some(at) = destination else { return };
        let Some(into) = hold.data.as_deref_mut().and_then(|data| data.get_mut(at..)) else { return };
        let count = count.min(CHUNK).min(into.len());
        // SAFETY: `bounce` is below BOUNCES, so the buffer lies in our own memory.
        let memory = unsafe { self.bounce_memory.base().add(bounce * CHUNK) };
        // SAFETY: the kernel is done with the bounce buffer (`in_flight` is false); the destination has `count` bytes
        // and is other memory.
        unsafe { memory.copy_to_nonoverlapping(NonNull::from(into).cast(), count) };
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            return;
        }
        // The kernel did not answer and still owns these: whoever got the memory next would be overwritten.
        for hold in self.holds.iter_mut().filter(|hold| hold.in_flight) {
            std::mem::forget(hold.data.take());
        }
        std::mem::forget(self.bounce_memory.clone());
    }
}
