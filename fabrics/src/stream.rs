use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;

use base::Progress;

/// An ordered, reliable stream of bytes: kernel TCP, the simulation's network, later a user-space TCP.
/// Nothing blocks: `WouldBlock` says "not now".
pub trait ByteStream {
    /// Receives into `buffers` in order; 0 means the peer closed its side.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else ends the stream.
    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Sends from `buffers` in order (up to 1,024 of them), as much as fits.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; anything else ends the stream.
    fn send(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// The port's name for a stream, given back with its readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamToken(pub u64);

/// A new stream.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The stream.
    pub stream: S,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal's address, as the initiator reached it.
    pub local: SocketAddr,
}

/// Where streams come from and how they say that they are ready. Readiness is edge-triggered: after a token was
/// reported, the owner receives (or sends) until `WouldBlock`.
pub trait Network {
    /// Its streams.
    type Stream: ByteStream;

    /// The next stream that was placed on this core, if any.
    fn accept(&mut self) -> Option<Accepted<Self::Stream>>;

    /// Begins to report readiness of `stream` under `token`.
    ///
    /// # Errors
    /// The host system's, when it cannot watch more streams.
    fn watch(&mut self, token: StreamToken, stream: &Self::Stream) -> io::Result<()>;

    /// Reports tokens that became readable or writable since the last call.
    fn poll(&mut self, ready: &mut dyn FnMut(StreamToken, Readiness)) -> Progress;

    /// Listens on these addresses and on no others. Called on core 0 only; a network that does not listen for itself
    /// (the simulation's) takes any. When one address fails, what was listening before goes on.
    ///
    /// # Errors
    /// The first address that cannot be listened on, why, and what to do.
    fn set_portals(&mut self, portals: &[SocketAddr]) -> Result<(), ListenError> {
        let _ = portals;
        Ok(())
    }

    /// The descriptors that must wake a sleeping reactor; asked before each sleep, `poll` follows.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        let _ = visit;
    }
}

/// An address that cannot be listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub reason: String,
    /// What would help.
    pub remedy: &'static str,
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot listen on {}: {}; {}", self.address, self.reason, self.remedy)
    }
}

impl std::error::Error for ListenError {}

/// What a stream became ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Bytes, the end of the stream, or an error can be received.
    pub readable: bool,
    /// Bytes can be sent.
    pub writable: bool,
}
