use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// The descriptors one sleep waits for. Kept between sleeps for its memory only: going to sleep allocates nothing.
///
/// The set is handed to the kernel anew each time (`ppoll`, nanosecond timeout) instead of being kept in an epoll
/// set: a descriptor that was closed and whose number was given out again cannot go unwatched unnoticed.
#[derive(Debug)]
pub struct SleepSet(Vec<PollFd<'static>>);

impl SleepSet {
    /// An empty set with room for `room` descriptors.
    #[must_use]
    pub fn with_capacity(room: usize) -> SleepSet {
        SleepSet(Vec::with_capacity(room))
    }

    /// Forgets every descriptor.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a descriptor; a negative number is none.
    pub fn push(&mut self, descriptor: i32) {
        if descriptor < 0 {
            return;
        }
        // SAFETY: -1 is excluded. The set is private and all that is ever done with what it borrows is that `ppoll`
        // reads the number: one that is not open any more is answered with POLLNVAL, which ends the sleep; nothing
        // is done to the file.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        self.0.push(PollFd::from_borrowed_fd(borrowed, PollFlags::IN));
    }

    /// Sleeps until one of the descriptors is readable (or in error) or `timeout` has passed; `None` waits for ever.
    /// True when a descriptor is ready. A signal ends the sleep early, as if the time had passed.
    pub fn sleep(&mut self, timeout: Option<Duration>) -> bool {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut self.0, timeout.as_ref()) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            Err(error) => {
                // EINVAL (more descriptors than the process may have) or ENOMEM: do not spin on it, do not hang either.
                tracing::error!(%error, descriptors = self.0.len(), "a reactor could not sleep");
                std::thread::sleep(Duration::from_millis(1));
                false
            }
        }
    }
}

/// One sleep on `descriptors`, as [`SleepSet::sleep`]; for threads that may allocate.
pub(crate) fn sleep_until_readable(descriptors: &[i32], timeout: Option<Duration>) -> bool {
    let mut set = SleepSet::with_capacity(descriptors.len());
    descriptors.iter().for_each(|&descriptor| set.push(descriptor));
    set.sleep(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_closed_descriptor_wakes_instead_of_hanging() {
        assert!(sleep_until_readable(&[1_000_000], None));
    }

    #[test]
    fn a_set_that_is_used_again_watches_its_present_descriptors() {
        let mut set = SleepSet::with_capacity(1);
        set.push(1_000_000);
        assert!(set.sleep(Some(Duration::ZERO)));
        set.clear();
        assert!(!set.sleep(Some(Duration::ZERO)));
        set.push(-1);
        set.push(1_000_000);
        assert!(set.sleep(Some(Duration::ZERO)));
    }

    #[test]
    fn time_passes_without_descriptors() {
        let start = Instant::now();
        assert!(!sleep_until_readable(&[-1], Some(Duration::from_micros(1500))));
        assert!(start.elapsed() >= Duration::from_micros(1500));
    }
}
