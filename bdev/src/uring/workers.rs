//! The engine that is a few threads: for hosts where io_uring is refused, as in many containers. Slower, the same
//! answers.
//!
//! The safety argument is that of the ring: a job's memory stays in [`Slots`] until a worker's answer is taken, and a
//! worker does not touch the memory after it has answered. Dropping the engine first waits for the answers.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{BufferPool, DataBuf};

use super::engine::{Answer, Direction, Engine, Step};
use super::slots::{Slots, Zeros};
use super::system::{EventFd, Gathering};

/// Threads of one device.
const THREADS: usize = 8;

/// Jobs that wait for the threads of one device at most.
const JOBS: usize = 4096;

/// Longest wait for the threads when a channel is dropped.
const DRAIN: Duration = Duration::from_secs(30);

/// Memory that a worker reads or writes while a slot owns it.
struct Memory(NonNull<u8>, usize);

// SAFETY: the memory belongs to a slot in flight, which nobody else touches until the worker has answered (module doc).
unsafe impl Send for Memory {}

struct Job {
    slot: usize,
    step: Step,
    memory: Memory,
    file: Arc<File>,
    /// Kept alive by the job: zeros may be its memory.
    _zeros: Arc<Zeros>,
    answers: Arc<Answers>,
}

/// Where the threads put one channel's answers.
struct Answers {
    list: Mutex<Vec<Answer>>,
    count: AtomicUsize,
    event: EventFd,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    closed: bool,
}

struct Queue {
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads of one device; they end when this is dropped.
pub(super) struct Crew {
    queue: Arc<Queue>,
}

impl Crew {
    pub(super) fn start() -> std::io::Result<Crew> {
        let jobs = Jobs { waiting: VecDeque::with_capacity(JOBS), closed: false };
        let crew = Crew { queue: Arc::new(Queue { jobs: Mutex::new(jobs), wake: Condvar::new() }) };
        for _ in 0..THREADS {
            let queue = crew.queue.clone();
            let thread = std::thread::Builder::new().name("file-io".into()).stack_size(64 << 10);
            thread.spawn(move || serve(&queue))?;
        }
        Ok(crew)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        lock(&self.queue.jobs).closed = true;
        self.queue.wake.notify_all();
    }
}

fn serve(queue: &Queue) {
    loop {
        let mut jobs = lock(&queue.jobs);
        let job = loop {
            if let Some(job) = jobs.waiting.pop_front() {
                break job;
            }
            if jobs.closed {
                return;
            }
            jobs = queue.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        };
        drop(jobs);
        let result = perform(&job);
        let mut list = lock(&job.answers.list);
        list.push(Answer { slot: job.slot, result });
        job.answers.count.store(list.len(), Ordering::Release);
        job.answers.event.signal();
    }
}

/// One blocking system call; a count or a negative error number.
fn perform(job: &Job) -> i32 {
    let fd = job.file.as_raw_fd();
    let Memory(address, length) = job.memory;
    let (direction, offset) = match job.step {
        Step::Transfer { direction, offset, .. } => (direction, offset),
        Step::Zeros { offset, .. } => (Direction::Write { durable: false }, offset),
        // SAFETY: no memory is involved.
        Step::Sync => return outcome(unsafe { libc::fdatasync(fd) } as isize),
        Step::Allocate { mode, offset, length } => {
            let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
                return -libc::EINVAL;
            };
            // SAFETY: no memory is involved.
            return outcome(unsafe { libc::fallocate64(fd, mode, offset, length) } as isize);
        }
    };
    let Ok(offset) = i64::try_from(offset) else { return -libc::EINVAL };
    if direction == Direction::Read {
        // SAFETY: `length` bytes that the slot owns for this job alone (module doc).
        return outcome(unsafe { libc::pread64(fd, address.as_ptr().cast(), length, offset) });
    }
    // SAFETY: as above; zeros are shared, and only read here.
    let written = outcome(unsafe { libc::pwrite64(fd, address.as_ptr().cast(), length, offset) });
    if written < 0 || direction != (Direction::Write { durable: true }) {
        return written;
    }
    // SAFETY: no memory is involved.
    let synced = outcome(unsafe { libc::fdatasync(fd) } as isize);
    match -synced {
        0 => written,
        libc::EINTR => synced,
        // The bytes were taken: what failed is the write-back, and maybe an earlier write's (see `Request::next`).
        _ => -libc::EIO,
    }
}

fn outcome(result: isize) -> i32 {
    if result < 0 {
        return -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    }
    i32::try_from(result).unwrap_or(i32::MAX)
}

/// One channel's part of the crew.
pub(super) struct Workers {
    slots: Slots,
    queue: Arc<Queue>,
    answers: Arc<Answers>,
    taken: VecDeque<Answer>,
    file: Arc<File>,
    zeros: Arc<Zeros>,
    gathering: Gathering,
}

impl Workers {
    /// A channel of `depth` slots on `file`, served by `crew`.
    pub(super) fn new(
        crew: &Crew,
        file: Arc<File>,
        depth: u32,
        memory_alignment: u32,
        zeros: Arc<Zeros>,
    ) -> std::io::Result<Workers> {
        let list = Mutex::new(Vec::with_capacity(depth as usize));
        let answers = Arc::new(Answers { list, count: AtomicUsize::new(0), event: EventFd::new()? });
        let gathering = Gathering::new()?;
        gathering.add(answers.event.raw())?;
        Ok(Workers {
            slots: Slots::new(depth, memory_alignment)?,
            queue: crew.queue.clone(),
            answers,
            taken: VecDeque::with_capacity(depth as usize),
            file,
            zeros,
            gathering,
        })
    }
}

impl Engine for Workers {
    fn hold(&mut self, slot: usize, data: Option<DataBuf>) {
        self.slots.hold(slot, data);
    }

    fn release(&mut self, slot: usize) -> Option<DataBuf> {
        self.slots.release(slot)
    }

    fn start(&mut self, slot: usize, step: Step) -> bool {
        let mut jobs = lock(&self.queue.jobs);
        if jobs.waiting.len() >= JOBS {
            return false;
        }
        let Some((address, length)) = self.slots.memory_for(slot, step, &self.zeros) else { return false };
        self.slots.launched(slot);
        jobs.waiting.push_back(Job {
            slot,
            step,
            memory: Memory(address, length),
            file: self.file.clone(),
            _zeros: self.zeros.clone(),
            answers: self.answers.clone(),
        });
        drop(jobs);
        self.queue.wake.notify_one();
        true
    }

    fn cancel(&mut self, _slot: usize) {}

    fn watch(&mut self, fd: i32) {
        // Added again and again is refused, and harmless.
        let _ = self.gathering.add(fd);
    }

    fn submit(&mut self) {}

    fn has_unsubmitted(&self) -> bool {
        false
    }

    fn reap(&mut self) {
        if self.answers.count.load(Ordering::Acquire) == 0 {
            return;
        }
        // List, count and event change together under the lock, so the event says truly whether something is there.
        let mut list = lock(&self.answers.list);
        self.answers.event.clear();
        self.answers.count.store(0, Ordering::Relaxed);
        for answer in list.drain(..) {
            if self.slots.answered(answer) {
                self.taken.push_back(answer);
            }
        }
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.taken.pop_front()
    }

    fn take_bounce_copies(&mut self) -> u64 {
        self.slots.take_bounce_copies()
    }

    fn descriptor(&self) -> i32 {
        self.gathering.raw()
    }

    fn register_pool(&mut self, _pool: &BufferPool) -> bool {
        false
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let start = std::time::Instant::now();
        while self.slots.in_flight() > 0 && start.elapsed() < DRAIN {
            self.reap();
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_whose_sync_fails_is_a_failed_write_back_whatever_the_number() {
        // Takes every byte and cannot be synced.
        let file = File::options().write(true).open("/dev/null").unwrap();
        let zeros = Arc::new(Zeros::new().unwrap());
        let answers =
            Answers { list: Mutex::new(vec![]), count: AtomicUsize::new(0), event: EventFd::new().unwrap() };
        let step = |durable| Step::Transfer {
            direction: Direction::Write { durable },
            at: 0,
            length: 512,
            offset: 0,
        };
        let mut job = Job {
            slot: 0,
            step: step(false),
            memory: Memory(zeros.base(), 512),
            file: Arc::new(file),
            _zeros: zeros,
            answers: Arc::new(answers),
        };
        assert_eq!(perform(&job), 512);
        job.step = step(true);
        assert_eq!(perform(&job), -libc::EIO);
    }
}
