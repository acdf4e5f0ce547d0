use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Sleeps until one of `descriptors` is readable (or in error) or `timeout` has passed; `None` waits for ever.
/// True when a descriptor is ready. A signal ends the sleep early, as if the time had passed.
///
/// The set is handed to the kernel anew each time (`ppoll`, nanosecond timeout) instead of being kept in an epoll
/// set: a descriptor that was closed and whose number was given out again cannot go unwatched unnoticed.
pub(crate) fn sleep_until_readable(descriptors: &[i32], timeout: Option<Duration>) -> bool {
    let mut set: Vec<PollFd<'_>> = Vec::with_capacity(descriptors.len());
    for &descriptor in descriptors.iter().filter(|&&descriptor| descriptor >= 0) {
        // SAFETY: the borrow lives only for the `ppoll` below, which reads nothing but the number; -1 is excluded.
        // A number that is not open is answered with POLLNVAL, which ends the sleep; nothing is done to the file.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        set.push(PollFd::from_borrowed_fd(borrowed, PollFlags::IN));
    }
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match rustix::event::poll(&mut set, timeout.as_ref()) {
        Ok(ready) => ready > 0,
        Err(Errno::INTR) => false,
        Err(error) => {
            // EINVAL (more descriptors than the process may have) or ENOMEM: do not spin on it, do not hang either.
            tracing::error!(%error, descriptors = descriptors.len(), "a reactor could not sleep");
            std::thread::sleep(Duration::from_millis(1));
            false
        }
    }
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
    fn time_passes_without_descriptors() {
        let start = Instant::now();
        assert!(!sleep_until_readable(&[-1], Some(Duration::from_micros(1500))));
        assert!(start.elapsed() >= Duration::from_micros(1500));
    }
}
