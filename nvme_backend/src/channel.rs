use std::rc::Rc;
use std::sync::Arc;

use base::{BufferPool, Instant, Progress};
use bdev::{BlockError, BlockIo, IoChannel, IoCompletion, IoTag};

use crate::core_queue::SharedCoreQueue;
use crate::namespace::Medium;

/// One core's channel to a namespace; the work is done by what it shares with the core's other channels.
pub(crate) struct NamespaceChannel {
    queue: Rc<SharedCoreQueue>,
    number: u16,
}

impl NamespaceChannel {
    pub(crate) fn new(
        queue: Rc<SharedCoreQueue>,
        medium: &Arc<Medium>,
    ) -> Result<NamespaceChannel, BlockError> {
        let number = queue.0.borrow_mut().open_channel(medium);
        Ok(NamespaceChannel { queue, number })
    }
}

// Nobody calls a channel from inside a channel's callback, so the borrows below never meet; should somebody, requests are
// given back and the rest does nothing.
impl IoChannel for NamespaceChannel {
    fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo> {
        match self.queue.0.try_borrow_mut() {
            Ok(mut queue) => queue.submit(self.number, io),
            Err(_) => Err(io),
        }
    }

    fn flush(&mut self) {
        if let Ok(mut queue) = self.queue.0.try_borrow_mut() {
            queue.flush();
        }
    }

    fn cancel(&mut self, tag: IoTag) {
        if let Ok(mut queue) = self.queue.0.try_borrow_mut() {
            queue.cancel(self.number, tag);
        }
    }

    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        match self.queue.0.try_borrow_mut() {
            Ok(mut queue) => queue.poll(self.number, now, on),
            Err(_) => Progress::Idle,
        }
    }

    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
        if let Ok(queue) = self.queue.0.try_borrow() {
            queue.for_each_held(self.number, visit);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.queue.0.try_borrow().ok()?.next_timeout(self.number)
    }

    fn wake_descriptor(&self) -> Option<i32> {
        self.queue.0.try_borrow().ok()?.wake_descriptor()
    }

    fn register_pool(&mut self, pool: &BufferPool) -> bool {
        self.queue.0.try_borrow_mut().is_ok_and(|mut queue| queue.register_pool(pool))
    }
}

impl Drop for NamespaceChannel {
    fn drop(&mut self) {
        if let Ok(mut queue) = self.queue.0.try_borrow_mut() {
            queue.close_channel(self.number);
        }
    }
}
