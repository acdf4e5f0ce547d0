//! The simulated network: byte streams between initiators and cores, with latency, splitting, bounded buffers and
//! cuts. Nothing is lost or reordered inside a stream, as TCP promises; everything else may happen.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use base::{CoreId, Instant, Prng, Progress};
use fabrics::{Accepted, ByteStream, Network, Readiness, StreamToken};

/// One direction of a connection.
#[derive(Debug, Default)]
struct Half {
    /// Sent, not yet arrived: arrival time and bytes, in order.
    flying: VecDeque<(Instant, Vec<u8>)>,
    flying_bytes: usize,
    /// Arrived, not yet received.
    arrived: VecDeque<u8>,
    /// The sender closed; takes effect after all bytes.
    closed: bool,
}

impl Half {
    fn queued(&self) -> usize {
        self.flying_bytes + self.arrived.len()
    }
}

#[derive(Debug)]
struct Pipe {
    core: CoreId,
    token: Option<StreamToken>,
    to_target: Half,
    to_initiator: Half,
    /// The target's side was dropped, or the connection was cut: both ends see a reset.
    reset: bool,
    target_gone: bool,
    /// The target met `WouldBlock` on send and waits for room.
    blocked: bool,
    readable: bool,
    writable: bool,
}

/// How nasty the network is.
#[derive(Debug, Clone, Copy)]
pub struct NetworkWeather {
    /// Longest latency of a chunk.
    pub latency_max: Duration,
    /// Bytes one direction buffers.
    pub capacity: usize,
    /// Longest chunk that arrives at once.
    pub chunk_max: usize,
}

/// All connections of one world.
#[derive(Debug)]
pub struct Wire {
    pipes: Vec<Pipe>,
    accepting: Vec<VecDeque<usize>>,
    next_core: usize,
    weather: NetworkWeather,
    prng: Prng,
    now: Instant,
}

/// A handle to the wire; all handles are one wire.
#[derive(Debug, Clone)]
pub struct WireHandle(Rc<RefCell<Wire>>);

/// An initiator's end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipeId(usize);

impl WireHandle {
    /// A wire to `cores` cores.
    pub fn new(cores: u16, weather: NetworkWeather, prng: Prng) -> WireHandle {
        WireHandle(Rc::new(RefCell::new(Wire {
            pipes: Vec::new(),
            accepting: vec![VecDeque::new(); usize::from(cores)],
            next_core: 0,
            weather,
            prng,
            now: Instant::ZERO,
        })))
    }

    /// One core's view of the wire.
    pub fn network(&self, core: CoreId) -> SimNetwork {
        SimNetwork { wire: self.clone(), core }
    }

    /// A new connection, placed on the next core in turn.
    pub fn connect(&self) -> PipeId {
        let wire = &mut *self.0.borrow_mut();
        let core = CoreId(u16::try_from(wire.next_core).unwrap_or(0));
        wire.next_core = (wire.next_core + 1) % wire.accepting.len();
        let pipe = wire.pipes.len();
        wire.pipes.push(Pipe {
            core,
            token: None,
            to_target: Half::default(),
            to_initiator: Half::default(),
            reset: false,
            target_gone: false,
            blocked: false,
            readable: false,
            writable: false,
        });
        wire.accepting[core.index()].push_back(pipe);
        PipeId(pipe)
    }

    /// Moves time and lets bytes arrive. True when some did.
    pub fn advance(&self, now: Instant) -> bool {
        let wire = &mut *self.0.borrow_mut();
        wire.now = now;
        let mut moved = false;
        for pipe in &mut wire.pipes {
            while pipe.to_target.flying.front().is_some_and(|(at, _)| *at <= now) {
                let (_, bytes) = pipe.to_target.flying.pop_front().expect("a front");
                pipe.to_target.flying_bytes -= bytes.len();
                pipe.to_target.arrived.extend(bytes);
                pipe.readable = true;
                moved = true;
            }
            while pipe.to_initiator.flying.front().is_some_and(|(at, _)| *at <= now) {
                let (_, bytes) = pipe.to_initiator.flying.pop_front().expect("a front");
                pipe.to_initiator.flying_bytes -= bytes.len();
                pipe.to_initiator.arrived.extend(bytes);
                moved = true;
            }
        }
        moved
    }

    /// When the next chunk arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        let wire = self.0.borrow();
        wire.pipes
            .iter()
            .flat_map(|pipe| [pipe.to_target.flying.front(), pipe.to_initiator.flying.front()])
            .flatten()
            .map(|(at, _)| *at)
            .min()
    }

    /// The initiator sends; always takes everything, an initiator blocks by itself.
    pub fn initiator_send(&self, pipe: PipeId, bytes: &[u8]) {
        let wire = &mut *self.0.borrow_mut();
        let Pipe { to_target, reset, .. } = &mut wire.pipes[pipe.0];
        if !*reset && !bytes.is_empty() {
            fly(to_target, bytes, wire.now, &wire.weather, &mut wire.prng);
        }
    }

    /// Takes up to `bytes_max` arrived bytes; `None` when the connection is over for the initiator.
    pub fn initiator_receive(&self, pipe: PipeId, bytes_max: usize) -> Option<Vec<u8>> {
        let wire = &mut *self.0.borrow_mut();
        let pipe = &mut wire.pipes[pipe.0];
        let half = &mut pipe.to_initiator;
        if half.arrived.is_empty() {
            let over = pipe.reset || (half.closed && half.flying.is_empty());
            return (!over).then(Vec::new);
        }
        let taken: Vec<u8> = half.arrived.drain(..bytes_max.min(half.arrived.len())).collect();
        if pipe.blocked {
            pipe.blocked = false;
            pipe.writable = true;
        }
        Some(taken)
    }

    /// Cuts the connection: both ends see a reset, what was flying is lost.
    pub fn cut(&self, pipe: PipeId) {
        let wire = &mut *self.0.borrow_mut();
        let pipe = &mut wire.pipes[pipe.0];
        pipe.reset = true;
        pipe.readable = true;
        pipe.to_target = Half::default();
        pipe.to_initiator = Half::default();
    }

    /// The initiator closes its side; the target reads the rest and then the end.
    pub fn initiator_close(&self, pipe: PipeId) {
        let wire = &mut *self.0.borrow_mut();
        let pipe = &mut wire.pipes[pipe.0];
        pipe.to_target.closed = true;
        pipe.readable = true;
    }
}

fn fly(half: &mut Half, mut bytes: &[u8], now: Instant, weather: &NetworkWeather, prng: &mut Prng) {
    while !bytes.is_empty() {
        let length = (prng.between(1, weather.chunk_max as u64) as usize).min(bytes.len());
        let latency = Duration::from_nanos(prng.below(weather.latency_max.as_nanos() as u64 + 1));
        let earliest = half.flying.back().map_or(now, |(at, _)| *at);
        half.flying.push_back((earliest.max(now + latency), bytes[..length].to_vec()));
        half.flying_bytes += length;
        bytes = &bytes[length..];
    }
}

/// One core's network.
#[derive(Debug)]
pub struct SimNetwork {
    wire: WireHandle,
    core: CoreId,
}

/// The target's end of a connection.
#[derive(Debug)]
pub struct SimStream {
    wire: WireHandle,
    pipe: usize,
}

impl Network for SimNetwork {
    type Stream = SimStream;

    fn accept(&mut self) -> Option<Accepted<SimStream>> {
        let pipe = self.wire.0.borrow_mut().accepting[self.core.index()].pop_front()?;
        let port = 10_000 + (pipe % 50_000) as u16;
        Some(Accepted {
            stream: SimStream { wire: self.wire.clone(), pipe },
            peer: SocketAddr::from(([10, 0, 0, 2], port)),
            local: SocketAddr::from(([10, 0, 0, 1], 3260)),
        })
    }

    fn watch(&mut self, token: StreamToken, stream: &SimStream) -> io::Result<()> {
        let wire = &mut *self.wire.0.borrow_mut();
        let pipe = &mut wire.pipes[stream.pipe];
        pipe.token = Some(token);
        pipe.readable = true;
        pipe.writable = true;
        Ok(())
    }

    fn poll(&mut self, ready: &mut dyn FnMut(StreamToken, Readiness)) -> Progress {
        let mut found = Vec::new();
        {
            let wire = &mut *self.wire.0.borrow_mut();
            for pipe in wire.pipes.iter_mut().filter(|pipe| pipe.core == self.core && !pipe.target_gone) {
                if let (Some(token), true) = (pipe.token, pipe.readable || pipe.writable) {
                    found.push((token, Readiness { readable: pipe.readable, writable: pipe.writable }));
                    pipe.readable = false;
                    pipe.writable = false;
                }
            }
        }
        let progress = Progress::from_count(found.len());
        for (token, readiness) in found {
            ready(token, readiness);
        }
        progress
    }
}

impl ByteStream for SimStream {
    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let wire = &mut *self.wire.0.borrow_mut();
        let pipe = &mut wire.pipes[self.pipe];
        if pipe.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let half = &mut pipe.to_target;
        if half.arrived.is_empty() {
            return if half.closed && half.flying.is_empty() {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        // A receive may return less than is there.
        let room: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let all = half.arrived.len().min(room);
        let some =
            if wire.prng.chance(1, 4) { wire.prng.between(1, all.max(1) as u64) as usize } else { all };
        let some = some.min(all);
        let mut taken = 0;
        for buffer in buffers {
            let part = buffer.len().min(some - taken);
            for (slot, byte) in buffer[..part].iter_mut().zip(half.arrived.drain(..part)) {
                *slot = byte;
            }
            taken += part;
        }
        if some < all {
            // More is there: an edge-triggered owner goes on by itself, as it would with TCP.
            pipe.readable = true;
        }
        Ok(taken)
    }

    fn send(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let wire = &mut *self.wire.0.borrow_mut();
        let weather = wire.weather;
        let pipe = &mut wire.pipes[self.pipe];
        if pipe.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut room = weather.capacity.saturating_sub(pipe.to_initiator.queued());
        if room == 0 {
            pipe.blocked = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = Vec::new();
        for buffer in buffers {
            let part = buffer.len().min(room);
            bytes.extend_from_slice(&buffer[..part]);
            room -= part;
        }
        if bytes.len() > 1 && wire.prng.chance(1, 8) {
            let some = wire.prng.between(1, bytes.len() as u64) as usize;
            bytes.truncate(some);
        }
        fly(&mut pipe.to_initiator, &bytes, wire.now, &weather, &mut wire.prng);
        Ok(bytes.len())
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let wire = &mut *self.wire.0.borrow_mut();
        let pipe = &mut wire.pipes[self.pipe];
        pipe.target_gone = true;
        pipe.to_initiator.closed = true;
        pipe.to_target = Half::default();
    }
}
