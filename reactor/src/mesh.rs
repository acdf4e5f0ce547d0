use std::collections::VecDeque;
use std::sync::Arc;

use base::{CoreId, Outbox};

use crate::Doorbell;

/// Messages one ring of the mesh holds.
pub const MESH_RING_CAPACITY: usize = 1024;

/// One core's end of the mesh: a single-producer single-consumer ring to and from every other core, and a queue to
/// itself. Messages from one core to another arrive in the order they were sent.
pub struct MeshEndpoint<M> {
    core: CoreId,
    /// By receiving core; `None` for this one.
    outgoing: Vec<Option<rtrb::Producer<M>>>,
    /// By sending core; `None` for this one.
    incoming: Vec<Option<rtrb::Consumer<M>>>,
    own: VecDeque<M>,
    bells: Arc<[Doorbell]>,
    /// Where the next round over the incoming rings begins, so that a busy core starves nobody.
    first: usize,
}

impl<M> std::fmt::Debug for MeshEndpoint<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshEndpoint").field("core", &self.core).field("cores", &self.incoming.len()).finish()
    }
}

/// Rings between every pair of `cores`; the endpoint with index `n` belongs to core `n`. All memory is reserved now.
///
/// # Errors
/// The host system's, when there are no descriptors left for the wake-ups.
pub fn mesh<M: Send>(cores: u16) -> std::io::Result<Vec<MeshEndpoint<M>>> {
    let count = usize::from(cores);
    let bells = (0..count).map(|_| Doorbell::new()).collect::<std::io::Result<Vec<_>>>()?;
    let bells: Arc<[Doorbell]> = bells.into();
    let mut endpoints: Vec<MeshEndpoint<M>> = (0..cores)
        .map(|core| MeshEndpoint {
            core: CoreId(core),
            outgoing: (0..count).map(|_| None).collect(),
            incoming: (0..count).map(|_| None).collect(),
            own: VecDeque::with_capacity(MESH_RING_CAPACITY),
            bells: Arc::clone(&bells),
            first: 0,
        })
        .collect();
    for from in 0..count {
        for to in (0..count).filter(|&to| to != from) {
            let (producer, consumer) = rtrb::RingBuffer::new(MESH_RING_CAPACITY);
            endpoints[from].outgoing[to] = Some(producer);
            endpoints[to].incoming[from] = Some(consumer);
        }
    }
    Ok(endpoints)
}

impl<M: Send> Outbox<M> for MeshEndpoint<M> {
    /// A core that is not in the mesh takes nothing, as if its ring were full.
    fn send(&mut self, to: CoreId, message: M) -> Result<(), M> {
        if to == self.core {
            if self.own.len() == MESH_RING_CAPACITY {
                return Err(message);
            }
            self.own.push_back(message);
            return Ok(());
        }
        match self.outgoing.get_mut(to.index()) {
            Some(Some(ring)) => ring.push(message).map_err(|rtrb::PushError::Full(message)| message)?,
            _ => return Err(message),
        }
        if let Some(bell) = self.bells.get(to.index()) {
            bell.ring();
        }
        Ok(())
    }
}

impl<M: Send> MeshEndpoint<M> {
    /// The core it belongs to.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// How many cores the mesh has.
    #[must_use]
    pub fn cores(&self) -> u16 {
        u16::try_from(self.incoming.len()).unwrap_or(u16::MAX)
    }

    /// Takes the next message that has arrived, from each core in turn.
    pub fn try_receive(&mut self) -> Option<(CoreId, M)> {
        let count = self.incoming.len();
        for step in 0..count {
            let from = (self.first + step) % count;
            let message = match self.incoming.get_mut(from) {
                Some(Some(ring)) => ring.pop().ok(),
                _ => self.own.pop_front(),
            };
            if let Some(message) = message {
                self.first = (from + 1) % count;
                if let Some(bell) = self.bells.get(self.core.index()) {
                    bell.disarm();
                }
                return Some((CoreId(u16::try_from(from).unwrap_or(u16::MAX)), message));
            }
        }
        None
    }

    /// Hands up to `budget` messages to `on` and says how many there were.
    pub fn receive(&mut self, on: &mut dyn FnMut(CoreId, M), budget: u32) -> u32 {
        for count in 0..budget {
            match self.try_receive() {
                Some((from, message)) => on(from, message),
                None => return count,
            }
        }
        budget
    }

    /// For [`crate::Poller::wake_descriptors`]: arms this core's bell. Receive once more before sleeping.
    #[must_use]
    pub fn wake_descriptor(&self) -> Option<i32> {
        self.bells.get(self.core.index()).map(Doorbell::arm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll_fd::sleep_until_readable;
    use std::time::Duration;

    #[test]
    fn a_core_reaches_itself_and_full_rings_give_back() {
        let mut endpoints = mesh::<usize>(2).unwrap();
        let mut one = endpoints.pop().unwrap();
        let mut zero = endpoints.pop().unwrap();
        for value in 0..MESH_RING_CAPACITY {
            assert_eq!(zero.send(CoreId(0), value), Ok(()));
            assert_eq!(zero.send(CoreId(1), value), Ok(()));
        }
        assert_eq!(zero.send(CoreId(0), 7), Err(7));
        assert_eq!(zero.send(CoreId(1), 8), Err(8));
        assert_eq!(zero.send(CoreId(2), 9), Err(9), "there is no core 2");
        let mut seen = Vec::new();
        assert_eq!(one.receive(&mut |from, value| seen.push((from, value)), 2), 2);
        assert_eq!(seen, [(CoreId(0), 0), (CoreId(0), 1)]);
        assert_eq!(zero.try_receive(), Some((CoreId(0), 0)));
        assert_eq!(zero.send(CoreId(1), 8), Ok(()));
    }

    #[test]
    fn a_busy_core_starves_nobody() {
        let mut endpoints = mesh::<u8>(3).unwrap();
        for from in [0, 1] {
            for _ in 0..10 {
                endpoints[from].send(CoreId(2), 0).unwrap();
            }
        }
        let mut froms = Vec::new();
        endpoints[2].receive(&mut |from, _| froms.push(from.0), 4);
        assert_eq!(froms, [0, 1, 0, 1]);
    }

    #[test]
    fn nothing_is_lost_between_sleeping_threads_and_order_holds() {
        const CORES: u16 = 3;
        const MESSAGES: u64 = 30_000;
        let threads: Vec<_> = mesh::<u64>(CORES)
            .unwrap()
            .into_iter()
            .map(|mut endpoint| {
                std::thread::spawn(move || {
                    let mut sent = [0u64; CORES as usize];
                    let mut seen = [0u64; CORES as usize];
                    let done = [MESSAGES; CORES as usize];
                    let mut sleeps = 0u32;
                    while sent != done || seen != done {
                        let mut moved = false;
                        for to in 0..CORES {
                            let next = &mut sent[usize::from(to)];
                            if *next < MESSAGES && endpoint.send(CoreId(to), *next).is_ok() {
                                *next += 1;
                                moved = true;
                            }
                        }
                        let mut take = |endpoint: &mut MeshEndpoint<u64>| {
                            endpoint.receive(
                                &mut |from, value| {
                                    assert_eq!(value, seen[from.index()]);
                                    seen[from.index()] += 1;
                                },
                                64,
                            )
                        };
                        moved |= take(&mut endpoint) > 0;
                        if !moved && sent == done {
                            let descriptor = endpoint.wake_descriptor().unwrap();
                            if take(&mut endpoint) == 0 && seen != done {
                                sleeps += 1;
                                // Ten seconds pass only when a wake-up was lost.
                                assert!(sleep_until_readable(&[descriptor], Some(Duration::from_secs(10))));
                            }
                        }
                    }
                    sleeps
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
