//! The engine that is an io_uring.
//!
//! The safety argument: a request's memory is owned by [`Slots`], and stays there from the moment its entry is pushed
//! until the kernel has posted its completion; the shared zeros and the registered pool are owned by the ring. Dropping
//! the ring first waits for the kernel; if the kernel does not answer, the memory is leaked.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, DataBuf};
use io_uring::{IoUring, opcode, squeue, types};

use super::engine::{Answer, Direction, Engine, Step};
use super::slots::{Slots, Zeros};

/// The most bytes of one registered buffer.
const REGISTERED_MAX: usize = 1 << 30;

/// Cancellations outstanding at most; they are hints, more are dropped.
const CANCELS_MAX: usize = 64;

/// Longest wait for the kernel when a channel is dropped.
const DRAIN: Duration = Duration::from_secs(30);

const CANCEL: u64 = 1 << 32;
const POLL: u64 = 1 << 33;

/// One ring, its slots, its bounce buffers. See the module's safety argument.
pub(super) struct Ring {
    uring: IoUring,
    slots: Slots,
    zeros: Arc<Zeros>,
    file: Arc<File>,
    registered_file: bool,
    /// Kept so that the registered memory lives as long as its registration.
    registered_pool: Option<BufferPool>,
    cancels: usize,
    /// A poll on this descriptor is in flight.
    watching: Option<i32>,
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
        Ok(Ring {
            uring,
            slots: Slots::new(depth, memory_alignment)?,
            zeros,
            file,
            registered_file,
            registered_pool: None,
            cancels: 0,
            watching: None,
            unsubmitted: false,
            answers: VecDeque::with_capacity(depth as usize),
        })
    }

    fn collect(&mut self) {
        let Ring { uring, slots, answers, cancels, watching, .. } = self;
        for entry in uring.completion() {
            match entry.user_data() {
                CANCEL => *cancels = cancels.saturating_sub(1),
                POLL => *watching = None,
                slot => {
                    let answer = Answer { slot: slot as usize, result: entry.result() };
                    if slots.answered(answer) {
                        answers.push_back(answer);
                    }
                }
            }
        }
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

impl Engine for Ring {
    fn hold(&mut self, slot: usize, data: Option<DataBuf>) {
        self.slots.hold(slot, data);
    }

    fn release(&mut self, slot: usize) -> Option<DataBuf> {
        self.slots.release(slot)
    }

    fn start(&mut self, slot: usize, step: Step) -> bool {
        if self.uring.submission().is_full() {
            return false;
        }
        let Some((address, length)) = self.slots.memory_for(slot, step, &self.zeros) else { return false };
        let entry = match step {
            Step::Transfer { direction, offset, .. } => {
                self.transfer_entry(direction, address, length, offset)
            }
            Step::Zeros { offset, .. } => {
                self.transfer_entry(Direction::Write { durable: false }, address, length, offset)
            }
            Step::Sync => self.sync_entry(),
            Step::Allocate { mode, offset, length } => self.allocate_entry(mode, offset, length),
        };
        let pushed = self.push(&entry.user_data(slot as u64));
        if pushed {
            self.slots.launched(slot);
        } else {
            self.slots.not_launched(slot);
        }
        pushed
    }

    fn cancel(&mut self, slot: usize) {
        if self.slots.is_in_flight(slot) && self.cancels < CANCELS_MAX {
            let entry = opcode::AsyncCancel::new(slot as u64).build().user_data(CANCEL);
            self.cancels += usize::from(self.push(&entry));
        }
    }

    fn watch(&mut self, fd: i32) {
        if self.watching.is_none() {
            let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build().user_data(POLL);
            self.watching = self.push(&entry).then_some(fd);
        }
    }

    fn submit(&mut self) {
        // A busy kernel is asked again next time.
        if self.unsubmitted && self.uring.submit().is_ok() {
            self.unsubmitted = !self.uring.submission().is_empty();
        }
    }

    fn has_unsubmitted(&self) -> bool {
        self.unsubmitted
    }

    fn reap(&mut self) {
        let queue = self.uring.submission();
        let pending = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        // Lets the kernel finish what it left for this thread to do.
        if pending && self.uring.submit().is_ok() {
            self.unsubmitted = !self.uring.submission().is_empty();
        }
        self.collect();
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    fn take_bounce_copies(&mut self) -> u64 {
        self.slots.take_bounce_copies()
    }

    fn descriptor(&self) -> i32 {
        self.uring.as_raw_fd()
    }

    /// False when refused (RLIMIT_MEMLOCK) or done before; everything works without.
    fn register_pool(&mut self, pool: &BufferPool) -> bool {
        if self.registered_pool.is_some() || self.slots.in_flight() > 0 {
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
        // `registered_pool` is dropped after the ring, which is declared before it.
        let registered = unsafe { self.uring.submitter().register_buffers(&vectors) }.is_ok();
        if registered {
            self.registered_pool = Some(pool.clone());
        }
        registered
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let start = std::time::Instant::now();
        while self.slots.in_flight() > 0 && start.elapsed() < DRAIN {
            let wait = types::Timespec::new().sec(1);
            let arguments = types::SubmitArgs::new().timespec(&wait);
            if self.uring.submitter().submit_with_args(1, &arguments).is_err() {
                // Interrupted, timed out, or a kernel too old for timed waits.
                std::thread::sleep(Duration::from_millis(1));
                let _ = self.uring.submit();
            }
            self.collect();
        }
        if self.slots.in_flight() > 0 {
            // The kernel still owns these; the slots see to theirs.
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
