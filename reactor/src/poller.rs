use base::{Instant, Progress};

/// One turn of the poll loop.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Read once per turn.
    pub now: Instant,
    /// How many items a poller should handle before it lets others run.
    pub budget: u32,
}

/// Something a reactor calls again and again.
pub trait Poller {
    /// Does what there is to do, without blocking.
    fn poll(&mut self, turn: &mut Turn) -> Progress;

    /// When it wants to be called although none of its descriptors is ready. `None`: never.
    fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// Asked once before the reactor sleeps (adaptive mode): the descriptors that must wake it. May change between
    /// calls. Readiness must be level-triggered as seen by the reactor.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        let _ = visit;
    }
}
