use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering, fence};

use rustix::event::EventfdFlags;

/// The receiver is awake: ringing costs nothing.
const AWAKE: u8 = 0;
/// The receiver sleeps or is about to: the next ring writes the eventfd.
const ARMED: u8 = 1;
/// The eventfd was written for this sleep.
const RUNG: u8 = 2;

/// Wakes a sleeping receiver through an eventfd; costs one load when it is awake.
///
/// The sender makes its message visible, then calls [`Doorbell::ring`]. The receiver calls [`Doorbell::arm`], then
/// looks for messages once more, then sleeps on the descriptor.
#[derive(Debug)]
pub struct Doorbell {
    state: AtomicU8,
    event: OwnedFd,
}

impl Doorbell {
    /// A bell that is not armed.
    ///
    /// # Errors
    /// The host system's, when there are no descriptors left.
    pub fn new() -> std::io::Result<Doorbell> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Doorbell { state: AtomicU8::new(AWAKE), event })
    }

    /// Wakes the receiver if it sleeps. Any thread, any number of them.
    pub fn ring(&self) {
        // Orders the message before the look at the state; pairs with the fence in `arm`.
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == ARMED
            && self.state.compare_exchange(ARMED, RUNG, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            // Fails only when the counter is full, and then the descriptor is readable anyway.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Says that the receiver is about to sleep, and takes back an old ring. Afterwards it must look for messages once
    /// more before it sleeps on the descriptor returned. Receiver only.
    pub fn arm(&self) -> i32 {
        let mut counter = [0u8; 8];
        // EAGAIN: it was not rung. A ring that comes between here and the store stays in the eventfd and only wakes
        // the receiver for nothing.
        let _ = rustix::io::read(&self.event, &mut counter);
        self.state.store(ARMED, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.event.as_raw_fd()
    }

    /// Says that the receiver is awake, so that senders save their system call. Receiver only; cheap when it is known.
    pub fn disarm(&self) {
        if self.state.load(Ordering::Relaxed) != AWAKE {
            self.state.store(AWAKE, Ordering::Relaxed);
        }
    }

    /// The descriptor, readable after a ring.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll_fd::sleep_until_readable;
    use std::time::Duration;

    fn readable(bell: &Doorbell) -> bool {
        sleep_until_readable(&[bell.descriptor()], Some(Duration::ZERO))
    }

    #[test]
    fn it_rings_only_when_armed_and_once_for_each_arming() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        assert!(!readable(&bell));
        bell.arm();
        bell.ring();
        bell.ring();
        assert!(readable(&bell));
        bell.arm();
        assert!(!readable(&bell), "arming takes the old ring back");
        bell.disarm();
        bell.ring();
        assert!(!readable(&bell));
    }
}
