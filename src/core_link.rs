//! The real way to the cores: a mailbox to each, one queue of replies back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::CoreId;
use fabrics::conductor::{CoreReply, CoreRequest, NumberedReply, NumberedRequest};
use reactor::{MailboxReceiver, MailboxSender};
use scsi::ControlId;
use tokio::sync::oneshot;

use crate::control::Control;
use crate::control::link::{CoreLink, LinkError, Waiting};

type Waiters = Arc<Mutex<HashMap<u64, oneshot::Sender<CoreReply>>>>;

/// Mailboxes to the cores, and who waits for which reply.
pub(crate) struct Mailboxes {
    senders: Vec<MailboxSender<NumberedRequest>>,
    waiters: Waiters,
    /// 0 is the number of notifications.
    next: AtomicU64,
}

fn locked(waiters: &Waiters) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<CoreReply>>> {
    waiters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets a waiter that waits no more, however its wait ended.
struct Waiter<'a> {
    waiters: &'a Waiters,
    id: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        locked(self.waiters).remove(&self.id);
    }
}

impl Mailboxes {
    pub(crate) fn new(senders: Vec<MailboxSender<NumberedRequest>>) -> Mailboxes {
        Mailboxes { senders, waiters: Waiters::default(), next: AtomicU64::new(1) }
    }

    /// Hands replies to those who wait, and notifications to `control`, until every core is gone. For a thread of
    /// its own.
    pub(crate) fn deliver(&self, mut replies: MailboxReceiver<NumberedReply>, control: &Control) {
        loop {
            match replies.recv_timeout(Duration::from_secs(3600)) {
                Some(NumberedReply { reply: CoreReply::Notification(notification), .. }) => {
                    control.handle_notification(&notification);
                }
                Some(NumberedReply { id, reply, .. }) => {
                    // Nobody there: the wait ended by its timeout.
                    if let Some(waiter) = locked(&self.waiters).remove(&id.0) {
                        let _ = waiter.send(reply);
                    }
                }
                None if replies.is_abandoned() => return,
                None => {}
            }
        }
    }
}

impl CoreLink for Mailboxes {
    fn cores(&self) -> u16 {
        u16::try_from(self.senders.len()).unwrap_or(u16::MAX)
    }

    fn request(&self, core: CoreId, request: CoreRequest) -> Waiting<'_, Result<CoreReply, LinkError>> {
        Box::pin(async move {
            let sender = self.senders.get(core.index()).ok_or(LinkError::Stopped(core))?;
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let (waiter, reply) = oneshot::channel();
            locked(&self.waiters).insert(id, waiter);
            let _forget = Waiter { waiters: &self.waiters, id };
            if sender.send(NumberedRequest { id: ControlId(id), request }).is_err() {
                return Err(if sender.is_closed() {
                    LinkError::Stopped(core)
                } else {
                    LinkError::Full(core)
                });
            }
            reply.await.map_err(|_| LinkError::Stopped(core))
        })
    }
}
