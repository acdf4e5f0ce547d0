use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use crate::Doorbell;
use crate::poll_fd::sleep_until_readable;

#[derive(Debug)]
struct Shared<M> {
    queue: ArrayQueue<M>,
    bell: Doorbell,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

/// The way into a mailbox, from any thread.
#[derive(Debug)]
pub struct MailboxSender<M> {
    shared: Arc<Shared<M>>,
}

/// The one end that takes messages out.
#[derive(Debug)]
pub struct MailboxReceiver<M> {
    shared: Arc<Shared<M>>,
    /// Arm the bell whenever the queue is found empty: for receivers that wait in somebody else's event loop.
    arms_when_empty: bool,
}

/// A bounded queue from any thread to a reactor (`capacity` messages, at least 1). The receiver polls
/// [`MailboxReceiver::try_receive`] and visits [`MailboxReceiver::wake_descriptor`] before it sleeps.
///
/// # Errors
/// The host system's, when there is no descriptor left for the wake-up.
pub fn mailbox<M: Send>(capacity: usize) -> std::io::Result<(MailboxSender<M>, MailboxReceiver<M>)> {
    new(capacity, false)
}

/// A bounded queue from reactors to a control thread, which waits in [`MailboxReceiver::recv_timeout`] or on the
/// receiver's descriptor in its own event loop: the descriptor becomes readable when a message arrives after
/// [`MailboxReceiver::try_receive`] has said `None`. An edge-triggered watcher (tokio's `AsyncFd`) clears its
/// readiness first, then receives until `None`, then waits.
///
/// # Errors
/// The host system's, when there is no descriptor left for the wake-up.
pub fn reply_queue<M: Send>(capacity: usize) -> std::io::Result<(MailboxSender<M>, MailboxReceiver<M>)> {
    new(capacity, true)
}

fn new<M: Send>(
    capacity: usize,
    arms_when_empty: bool,
) -> std::io::Result<(MailboxSender<M>, MailboxReceiver<M>)> {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        bell: Doorbell::new()?,
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
    });
    Ok((MailboxSender { shared: Arc::clone(&shared) }, MailboxReceiver { shared, arms_when_empty }))
}

impl<M: Send> MailboxSender<M> {
    /// Puts `message` in and wakes the receiver if it sleeps.
    ///
    /// # Errors
    /// Gives the message back when the mailbox is full, or when the receiver is gone ([`MailboxSender::is_closed`]).
    pub fn send(&self, message: M) -> Result<(), M> {
        if self.is_closed() {
            return Err(message);
        }
        self.shared.queue.push(message)?;
        self.shared.bell.ring();
        Ok(())
    }

    /// True when nobody will ever receive what is sent.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.receiver_gone.load(Ordering::Acquire)
    }
}

impl<M> Clone for MailboxSender<M> {
    fn clone(&self) -> MailboxSender<M> {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        MailboxSender { shared: Arc::clone(&self.shared) }
    }
}

impl<M> Drop for MailboxSender<M> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.bell.ring();
        }
    }
}

impl<M> Drop for MailboxReceiver<M> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
    }
}

impl<M: Send> MailboxReceiver<M> {
    /// The oldest message, if there is one. Never blocks.
    pub fn try_receive(&mut self) -> Option<M> {
        if let Some(message) = self.shared.queue.pop() {
            self.shared.bell.disarm();
            return Some(message);
        }
        if !self.arms_when_empty {
            return None;
        }
        self.shared.bell.arm();
        let message = self.shared.queue.pop()?;
        self.shared.bell.disarm();
        Some(message)
    }

    /// The oldest message; waits up to `timeout` for one. `None` early when every sender is gone.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Option<M> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let abandoned = self.is_abandoned();
            let descriptor = self.wake_descriptor();
            if let Some(message) = self.try_receive() {
                return Some(message);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if abandoned || self.is_abandoned() || left == Some(Duration::ZERO) {
                // The last sender may have put a message in just before it went.
                return self.try_receive();
            }
            sleep_until_readable(&[descriptor], left);
        }
    }

    /// True when nobody will send any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.shared.senders.load(Ordering::Acquire) == 0
    }

    /// For [`crate::Poller::wake_descriptors`]: arms the bell. Receive once more before sleeping.
    #[must_use]
    pub fn wake_descriptor(&self) -> i32 {
        self.shared.bell.arm()
    }

    /// Messages waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// True when no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }
}

impl<M> AsRawFd for MailboxReceiver<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.bell.descriptor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, mut receiver) = mailbox(2).unwrap();
        assert_eq!((sender.send(1), sender.send(2), sender.send(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(receiver.try_receive(), Some(1));
        assert_eq!(sender.send(3), Ok(()));
        drop(receiver);
        assert_eq!(sender.send(4), Err(4));
        assert!(sender.is_closed());
    }

    #[test]
    fn nothing_is_lost_and_each_sender_keeps_its_order() {
        const SENDERS: usize = 3;
        const MESSAGES: u64 = 20_000;
        let (sender, mut receiver) = reply_queue::<(usize, u64)>(64).unwrap();
        let threads: Vec<_> = (0..SENDERS)
            .map(|number| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for value in 0..MESSAGES {
                        let mut message = (number, value);
                        while let Err(back) = sender.send(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                        if value % 997 == 0 {
                            std::thread::sleep(Duration::from_micros(200));
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut next = [0u64; SENDERS];
        while let Some((number, value)) = receiver.recv_timeout(Duration::from_secs(20)) {
            assert_eq!(value, next[number]);
            next[number] += 1;
        }
        assert_eq!(next, [MESSAGES; SENDERS]);
        assert!(receiver.is_abandoned());
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn waiting_ends_with_the_time_or_with_the_last_sender() {
        let (sender, mut receiver) = mailbox::<u8>(1).unwrap();
        let start = Instant::now();
        assert_eq!(receiver.recv_timeout(Duration::from_millis(5)), None);
        assert!(start.elapsed() >= Duration::from_millis(5));
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            drop(sender);
        });
        let start = Instant::now();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), None);
        assert!(start.elapsed() < Duration::from_secs(30));
        thread.join().unwrap();
    }

    #[test]
    fn the_reply_descriptor_becomes_readable_after_none() {
        let (sender, mut receiver) = reply_queue(4).unwrap();
        let readable = |receiver: &MailboxReceiver<u8>| {
            sleep_until_readable(&[receiver.as_raw_fd()], Some(Duration::ZERO))
        };
        assert_eq!(receiver.try_receive(), None);
        assert!(!readable(&receiver));
        sender.send(1).unwrap();
        assert!(readable(&receiver));
        assert_eq!(receiver.try_receive(), Some(1));
        assert_eq!(receiver.try_receive(), None);
        assert!(!readable(&receiver));
    }
}
