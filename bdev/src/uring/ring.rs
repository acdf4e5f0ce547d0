//! One io_uring with the memory that the kernel may be reading or writing.
//!
//! The safety argument: a request's memory (its [`DataBuf`], or its bounce buffer, or the shared zeros) is owned by
//! this type from the moment its entry is pushed until the kernel has posted its completion. Nothing hands it out
//! before, and dropping the ring first waits for the kernel; if the kernel does not answer, the memory is leaked.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, DataBuf, PlainMemory, PoolMemory};
use io_uring::{IoUring, opcode, squeue, types};

/// Bytes of a bounce buffer, and of the shared zeros.
pub(super) const CHUNK: usize = 128 << 10;

/// Bounce buffers of one channel.
const BOUNCES: usize = 8;

/// The most bytes the kernel moves in one request (MAX_RW_COUNT), rounded down to the largest block.
const TRANSFER_MAX: usize = 0x7FFF_0000;

/// The most bytes of one registered buffer.
const REGISTERED_MAX: usize = 1 << 30;

/// Cancellations outstanding at most; they are hints, more are dropped.
const CANCELS_MAX: usize = 64;

/// Longest wait for the kernel when a channel is dropped.
const DRAIN: Duration = Duration::from_secs(30);

const CANCEL: u64 = 1 << 32;
const POLL: u64 = 1 << 33;

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
}

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write { durable: bool },
}

/// What the kernel is asked to do for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Moves bytes between the slot's buffer from `at` on and the file; `length` is the most, fewer may be asked for.
    Transfer { direction: Direction, at: usize, length: usize, offset: u64 },
    /// Writes up to `length` zeros.
    Zeros { length: u64, offset: u64 },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { mode: i32, offset: u64, length: u64 },
}

/// An answer of the kernel: the slot, and a count or a negative error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) slot: usize,
    pub(super) result: i32,
}

#[derive(Default)]
struct Hold {
    data: Option<DataBuf>,
    in_flight: bool,
    /// The bounce buffer in use, and for a read where its bytes go.
    bounce: Option<(usize, Option<usize>)>,
}

/// One ring, its slots, its bounce buffers. See the module's safety argument.
pub(super) struct Ring {
    uring: IoUring,
    holds: Vec<Hold>,
    bounce_memory: Rc<PlainMemory>,
    free_bounces: Vec<usize>,
    zeros: Arc<Zeros>,
    file: Arc<File>,
    registered_file: bool,
    /// Kept so that the registered memory lives as long as its registration.
    registered_pool: Option<BufferPool>,
    memory_alignment: usize,
    in_flight: usize,
    cancels: usize,
    bounce_copies: u64,
    /// A poll on this descriptor is in flight.
    watching: Option<i32>,
    watched: bool,
    unsubmitted: bool,
    answers: VecDeque<Answer>,
}

impl Ring {
    /// A ring for `depth` slots on `file`. Memory for direct I/O must be aligned to `memory_alignment` bytes.
    pub(super) fn new(
        file: Arc<File>,
        depth: u32,
        memory_alignment: u32,
        zeros: Arc<Zeros>,
    ) -> std::io::Result<Ring> {
        let uring = build(depth)?;
        let registered_file = uring.submitter().register_files(&[file.as_raw_fd()]).is_ok();
        let no_memory = || std::io::Error::from_raw_os_error(libc::ENOMEM);
        Ok(Ring {
            uring,
            holds: (0..depth).map(|_| Hold::default()).collect(),
            bounce_memory: Rc::new(PlainMemory::new(BOUNCES * CHUNK).ok_or_else(no_memory)?),
            free_bounces: (0..BOUNCES).collect(),
            zeros,
            file,
            registered_file,
            registered_pool: None,
            memory_alignment: memory_alignment.max(1) as usize,
            in_flight: 0,
            cancels: 0,
            bounce_copies: 0,
            watching: None,
            watched: false,
            unsubmitted: false,
            answers: VecDeque::with_capacity(depth as usize),
        })
    }

    /// The ring's descriptor, which is readable while answers wait.
    pub(super) fn descriptor(&self) -> i32 {
        self.uring.as_raw_fd()
    }

    /// Copies made through bounce buffers since the last call.
    pub(super) fn take_bounce_copies(&mut self) -> u64 {
        std::mem::take(&mut self.bounce_copies)
    }

    /// Registers a pool's memory, so that the kernel need not map it anew for every request. False when refused
    /// (RLIMIT_MEMLOCK) or done before; everything works without.
    pub(super) fn register_pool(&mut self, pool: &BufferPool) -> bool {
        if self.registered_pool.is_some() || self.in_flight > 0 {
            return false;
        }
        let (base, length) = pool.region();
        let vectors: Vec<libc::iovec> = (0..length)
            .step_by(REGISTERED_MAX)
            .map(|start| libc::iovec {
                iov_base: base.as_ptr().wrapping_add(start).cast(),
                iov_len: (length - start).min(REGISTERED_MAX),
            })
            .collect();
        // SAFETY: the vectors describe the pool's own region, which lives as long as the pool; the clone kept in
        // `registered_pool` is dropped after the ring (see `Drop`).
        let registered = unsafe { self.uring.submitter().register_buffers(&vectors) }.is_ok();
        if registered {
            self.registered_pool = Some(pool.clone());
        }
        registered
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

    /// Starts one step of a slot; its answer comes from [`Ring::next_answer`]. False when there is no bounce buffer
    /// or no room in the submission queue now: try again after an answer.
    pub(super) fn start(&mut self, slot: usize, step: Step) -> bool {
        assert!(!self.holds[slot].in_flight, "slot {slot} is with the kernel");
        if self.uring.submission().is_full() {
            return false;
        }
        let entry = match step {
            Step::Transfer { direction, at, length, offset } => {
                let Some((address, length)) = self.memory_for(slot, direction, at, length) else {
                    return false;
                };
                self.transfer_entry(direction, address, length, offset)
            }
            Step::Zeros { length, offset } => {
                let length = usize::try_from(length).map_or(CHUNK, |length| length.min(CHUNK));
                let address = self.zeros.0.base();
                self.transfer_entry(Direction::Write { durable: false }, address, length, offset)
            }
            Step::Sync => self.sync_entry(),
            Step::Allocate { mode, offset, length } => self.allocate_entry(mode, offset, length),
        };
        let pushed = self.push(&entry.user_data(slot as u64));
        self.holds[slot].in_flight = pushed;
        self.in_flight += usize::from(pushed);
        if !pushed {
            self.return_bounce(slot, 0);
        }
        pushed
    }

    /// Asks the kernel to give up a slot's entry. A hint.
    pub(super) fn cancel(&mut self, slot: usize) {
        if !self.holds[slot].in_flight || self.cancels >= CANCELS_MAX {
            return;
        }
        let entry = opcode::AsyncCancel::new(slot as u64).build().user_data(CANCEL);
        self.cancels += usize::from(self.push(&entry));
    }

    /// Has the ring's own descriptor become readable when `fd` does; once.
    pub(super) fn watch(&mut self, fd: i32) {
        if self.watching.is_some() {
            return;
        }
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build().user_data(POLL);
        if self.push(&entry) {
            self.watching = Some(fd);
        }
    }

    /// True once after the watched descriptor became readable.
    pub(super) fn take_watched(&mut self) -> bool {
        std::mem::take(&mut self.watched)
    }

    /// Enters the kernel once if entries were pushed. A busy kernel is asked again next time.
    pub(super) fn submit(&mut self) {
        if self.unsubmitted && self.uring.submit().is_ok() {
            self.unsubmitted = !self.uring.submission().is_empty();
        }
    }

    /// True when entries wait for [`Ring::submit`].
    pub(super) fn has_unsubmitted(&self) -> bool {
        self.unsubmitted
    }

    /// Moves the kernel's answers to where [`Ring::next_answer`] finds them.
    pub(super) fn reap(&mut self) {
        let queue = self.uring.submission();
        let pending = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if pending {
            // Lets the kernel finish what it left for this thread to do; the result says nothing new.
            let _ = self.uring.submit();
        }
        self.collect();
    }

    /// The next answer; its slot is no longer with the kernel, and a bounced read has reached its buffer.
    pub(super) fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    fn collect(&mut self) {
        let Ring { uring, holds, answers, in_flight, cancels, watching, watched, .. } = self;
        let first_new = answers.len();
        for entry in uring.completion() {
            match entry.user_data() {
                CANCEL => *cancels = cancels.saturating_sub(1),
                POLL => {
                    *watching = None;
                    *watched = true;
                }
                slot => {
                    let slot = slot as usize;
                    if let Some(hold) = holds.get_mut(slot).filter(|hold| hold.in_flight) {
                        hold.in_flight = false;
                        *in_flight -= 1;
                        answers.push_back(Answer { slot, result: entry.result() });
                    }
                }
            }
        }
        for index in first_new..self.answers.len() {
            if let Some(&answer) = self.answers.get(index) {
                self.return_bounce(answer.slot, usize::try_from(answer.result).unwrap_or(0));
            }
        }
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
        // SAFETY: the bounce buffer is `CHUNK` bytes at this offset of our own memory, and the kernel is done with
        // it (`in_flight` is false); the destination has `count` bytes and is other memory.
        unsafe {
            self.bounce_memory
                .base()
                .add(bounce * CHUNK)
                .copy_to_nonoverlapping(NonNull::from(into).cast(), count)
        };
    }

    /// The memory of a transfer: the buffer itself where it is aligned, else a bounce buffer. `None` when all bounce
    /// buffers are in use.
    fn memory_for(
        &mut self,
        slot: usize,
        direction: Direction,
        at: usize,
        length: usize,
    ) -> Option<(NonNull<u8>, usize)> {
        let hold = &mut self.holds[slot];
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

    /// The registered buffer that the memory lies in, if it does.
    fn registered_index(&self, address: NonNull<u8>, length: usize) -> Option<u16> {
        let (base, region) = self.registered_pool.as_ref()?.region();
        let start = address.as_ptr().addr().checked_sub(base.as_ptr().addr())?;
        let end = start.checked_add(length)?;
        let index = start / REGISTERED_MAX;
        let inside = end <= region && length > 0 && (end - 1) / REGISTERED_MAX == index;
        if inside { u16::try_from(index).ok() } else { None }
    }

    fn transfer_entry(
        &self,
        direction: Direction,
        address: NonNull<u8>,
        length: usize,
        offset: u64,
    ) -> squeue::Entry {
        let index = self.registered_index(address, length);
        let (address, length) = (address.as_ptr(), u32::try_from(length).unwrap_or(0));
        let flags = if direction == (Direction::Write { durable: true }) { libc::RWF_DSYNC } else { 0 };
        let fd = types::Fd(self.file.as_raw_fd());
        let fixed = self.registered_file.then_some(types::Fixed(0));
        match (direction, index, fixed) {
            (Direction::Read, Some(index), Some(target)) => {
                opcode::ReadFixed::new(target, address, length, index).offset(offset).build()
            }
            (Direction::Read, Some(index), None) => {
                opcode::ReadFixed::new(fd, address, length, index).offset(offset).build()
            }
            (Direction::Read, None, Some(target)) => {
                opcode::Read::new(target, address, length).offset(offset).build()
            }
            (Direction::Read, None, None) => opcode::Read::new(fd, address, length).offset(offset).build(),
            (_, Some(index), Some(target)) => {
                opcode::WriteFixed::new(target, address, length, index).offset(offset).rw_flags(flags).build()
            }
            (_, Some(index), None) => {
                opcode::WriteFixed::new(fd, address, length, index).offset(offset).rw_flags(flags).build()
            }
            (_, None, Some(target)) => {
                opcode::Write::new(target, address, length).offset(offset).rw_flags(flags).build()
            }
            (_, None, None) => opcode::Write::new(fd, address, length).offset(offset).rw_flags(flags).build(),
        }
    }

    fn sync_entry(&self) -> squeue::Entry {
        let flags = types::FsyncFlags::DATASYNC;
        if self.registered_file {
            return opcode::Fsync::new(types::Fixed(0)).flags(flags).build();
        }
        opcode::Fsync::new(types::Fd(self.file.as_raw_fd())).flags(flags).build()
    }

    fn allocate_entry(&self, mode: i32, offset: u64, length: u64) -> squeue::Entry {
        if self.registered_file {
            return opcode::Fallocate::new(types::Fixed(0), length).offset(offset).mode(mode).build();
        }
        opcode::Fallocate::new(types::Fd(self.file.as_raw_fd()), length).offset(offset).mode(mode).build()
    }

    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entry's memory is owned by this value until the answer comes (module doc); entries without
        // memory have nothing to keep alive, and the descriptors live as long as the ring (`file`) or belong to the
        // channel that owns the ring.
        let pushed = unsafe { self.uring.submission().push(entry) }.is_ok();
        self.unsubmitted |= pushed;
        pushed
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let start = std::time::Instant::now();
        while self.in_flight > 0 && start.elapsed() < DRAIN {
            let wait = types::Timespec::new().sec(1);
            let arguments = types::SubmitArgs::new().timespec(&wait);
            if self.uring.submitter().submit_with_args(1, &arguments).is_err() {
                // Interrupted, timed out, or a kernel too old for timed waits.
                std::thread::sleep(Duration::from_millis(1));
                let _ = self.uring.submit();
            }
            self.collect();
        }
        if self.in_flight > 0 {
            // The kernel still owns these: whoever got the memory next would be overwritten.
            for hold in &mut self.holds {
                if hold.in_flight {
                    std::mem::forget(hold.data.take());
                }
            }
            std::mem::forget(self.bounce_memory.clone());
            std::mem::forget(self.zeros.clone());
            std::mem::forget(self.registered_pool.take());
        }
        if self.registered_pool.is_some() {
            let _ = self.uring.submitter().unregister_buffers();
        }
        // The kernel takes a ring down in its own time; the file must not stay open so long.
        let _ = self.uring.submitter().unregister_files();
    }
}

/// A ring of `depth` slots and some room for cancellations. Asks for the modes that save interruptions of the
/// polling thread, and does without them on kernels that lack them.
fn build(depth: u32) -> std::io::Result<IoUring> {
    let entries = (depth + CANCELS_MAX as u32 + 1).next_power_of_two();
    let modern = IoUring::builder().dontfork().setup_coop_taskrun().setup_taskrun_flag().build(entries);
    modern.or_else(|_| IoUring::builder().dontfork().build(entries))
}

/// Whether this kernel lets us do what the device needs; the error number otherwise.
pub(super) fn supported() -> Result<(), i32> {
    let number = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::ENOSYS);
    let uring = IoUring::new(2).map_err(number)?;
    let mut probe = io_uring::Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(number)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::AsyncCancel::CODE,
        opcode::PollAdd::CODE,
    ];
    if needed.into_iter().all(|code| probe.is_supported(code)) { Ok(()) } else { Err(libc::ENOSYS) }
}
