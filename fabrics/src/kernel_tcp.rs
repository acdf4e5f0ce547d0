//! Byte streams over the kernel's TCP: non-blocking sockets, vectored system calls, one edge-triggered epoll set per
//! core.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base::{CoreId, Progress};
use reactor::{MailboxReceiver, mailbox};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{SendAncillaryBuffer, SendFlags, sockopt};

use crate::listeners::Listeners;
use crate::{Accepted, ByteStream, ListenError, Network, Readiness, StreamToken};

/// The most buffers one system call takes (UIO_MAXIOV).
const BUFFERS_MAX: usize = 1024;
/// Events taken from the kernel in one poll.
const EVENTS_MAX: usize = 256;
/// Streams on their way from the listening core to one other core.
const ARRIVALS_MAX: usize = 256;

/// How many streams live on each core.
#[derive(Debug)]
pub(crate) struct Loads {
    cores: Box<[AtomicU32]>,
}

impl Loads {
    pub(crate) fn new(cores: u16) -> Arc<Loads> {
        Arc::new(Loads { cores: (0..cores).map(|_| AtomicU32::new(0)).collect() })
    }

    /// Streams on core `index`; a core that does not exist is infinitely busy.
    pub(crate) fn of(&self, index: usize) -> u32 {
        self.cores.get(index).map_or(u32::MAX, |load| load.load(Ordering::Relaxed))
    }

    fn change(&self, core: CoreId, by: u32) {
        if let Some(load) = self.cores.get(core.index()) {
            load.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// One TCP connection. Dropping it closes it.
#[derive(Debug)]
pub struct TcpStream {
    socket: OwnedFd,
    place: Option<(Arc<Loads>, CoreId)>,
}

impl TcpStream {
    /// Takes over a connected socket: makes it non-blocking, sends small segments at once (`TCP_NODELAY`), and probes
    /// a silent peer after 60 s, every 15 s, four times.
    ///
    /// # Errors
    /// The host system's, when the socket cannot be made non-blocking.
    pub fn from_socket(socket: OwnedFd) -> io::Result<TcpStream> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // Comfort only: a socket that refuses these still carries bytes.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let _ = sockopt::set_socket_keepalive(&socket, true);
        let _ = sockopt::set_tcp_keepidle(&socket, Duration::from_secs(60));
        let _ = sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(15));
        let _ = sockopt::set_tcp_keepcnt(&socket, 4);
        Ok(TcpStream { socket, place: None })
    }

    /// Counts the stream as one of `core`'s until it is dropped.
    pub(crate) fn place(&mut self, loads: &Arc<Loads>, core: CoreId) {
        self.displace();
        loads.change(core, 1);
        self.place = Some((Arc::clone(loads), core));
    }

    fn displace(&mut self) {
        if let Some((loads, core)) = self.place.take() {
            loads.change(core, 1u32.wrapping_neg());
        }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.displace();
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ByteStream for TcpStream {
    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let count = buffers.len().min(BUFFERS_MAX);
        let Some(buffers) =
            buffers.get_mut(..count).filter(|buffers| buffers.iter().any(|buffer| !buffer.is_empty()))
        else {
            // Nothing to fill would be taken for the end of the stream.
            return Err(io::ErrorKind::InvalidInput.into());
        };
        loop {
            match rustix::io::readv(&self.socket, buffers) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn send(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let buffers = buffers.get(..BUFFERS_MAX).unwrap_or(buffers);
        loop {
            let mut nothing = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(
                &self.socket,
                buffers,
                &mut nothing,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

/// One core's share of the kernel's TCP. Core 0's also listens, and deals new streams out to all cores: each goes to
/// the core with the fewest.
#[derive(Debug)]
pub struct KernelTcp {
    core: CoreId,
    epoll: OwnedFd,
    arrivals: MailboxReceiver<Accepted<TcpStream>>,
    listeners: Option<Listeners>,
}

impl KernelTcp {
    /// One network for each of `cores`; the one with index `n` goes to core `n`'s thread.
    ///
    /// # Errors
    /// The host system's, when there are no descriptors left.
    pub fn for_cores(cores: u16) -> io::Result<Vec<KernelTcp>> {
        let mut senders = Vec::new();
        let mut networks = Vec::new();
        for core in (0..cores).map(CoreId) {
            let (sender, arrivals) = mailbox(ARRIVALS_MAX)?;
            senders.push(sender);
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            networks.push(KernelTcp { core, epoll, arrivals, listeners: None });
        }
        if let Some(first) = networks.first_mut() {
            first.listeners = Some(Listeners::new(senders, Loads::new(cores)));
        }
        Ok(networks)
    }

    /// The addresses listened on, with the ports the system chose where port 0 was asked for. Empty except on core 0.
    #[must_use]
    pub fn listening_on(&self) -> Vec<SocketAddr> {
        self.listeners.as_ref().map(Listeners::addresses).unwrap_or_default()
    }
}

/// Begins to watch `source` under `token`, edge-triggered.
pub(crate) fn watch(epoll: &OwnedFd, token: u64, source: impl AsFd, flags: EventFlags) -> io::Result<()> {
    epoll::add(epoll, source, EventData::new_u64(token), flags | EventFlags::ET)?;
    Ok(())
}

impl Network for KernelTcp {
    type Stream = TcpStream;

    fn accept(&mut self) -> Option<Accepted<TcpStream>> {
        self.arrivals.try_receive()
    }

    /// Closing the stream ends the watch; a late event may still carry its token.
    fn watch(&mut self, token: StreamToken, stream: &TcpStream) -> io::Result<()> {
        watch(&self.epoll, token.0, stream, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP)
    }

    fn poll(&mut self, ready: &mut dyn FnMut(StreamToken, Readiness)) -> Progress {
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut space = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_MAX];
        let events: &[epoll::Event] = match epoll::wait(&self.epoll, &mut space, Some(&at_once)) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => &[],
            Err(error) => {
                // Only a broken descriptor can do that: no stream of this core would ever move again.
                tracing::error!(core = self.core.0, %error, "the epoll set of this core is broken");
                &[]
            }
        };
        let mut count = events.len();
        for event in events {
            let (token, flags) = (event.data.u64(), event.flags);
            if self.listeners.as_mut().is_some_and(|listeners| listeners.mark_ready(token)) {
                continue;
            }
            let over = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            let readiness = Readiness {
                readable: over || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                writable: over || flags.contains(EventFlags::OUT),
            };
            ready(StreamToken(token), readiness);
        }
        if let Some(listeners) = &mut self.listeners
            && listeners.has_ready()
        {
            count += listeners.accept(Instant::now());
        }
        if !self.arrivals.is_empty() {
            count += 1;
        }
        Progress::from_count(count)
    }

    fn set_portals(&mut self, portals: &[SocketAddr]) -> Result<(), ListenError> {
        match &mut self.listeners {
            Some(listeners) => listeners.set_portals(&self.epoll, portals),
            None => Ok(()),
        }
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        visit(self.epoll.as_raw_fd());
        visit(self.arrivals.wake_descriptor());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactor::{Poller, ReactorConfig, ReactorMode, Reactors, Turn};
    use std::io::{Read, Write};
    use std::sync::Mutex;

    fn networks(cores: u16) -> (Vec<KernelTcp>, SocketAddr) {
        let mut networks = KernelTcp::for_cores(cores).unwrap();
        networks[0].set_portals(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = networks[0].listening_on()[0];
        (networks, address)
    }

    fn poll_until<T>(
        networks: &mut [KernelTcp],
        mut done: impl FnMut(&mut [KernelTcp], &[(usize, StreamToken, Readiness)]) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            for (core, network) in networks.iter_mut().enumerate() {
                network.poll(&mut |token, readiness| seen.push((core, token, readiness)));
            }
            if let Some(value) = done(networks, &seen) {
                return value;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing happened; seen: {seen:?}");
    }

    #[test]
    fn a_stream_is_accepted_echoes_and_tells_its_end() {
        let (mut networks, address) = networks(1);
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let accepted = poll_until(&mut networks, |networks, _| networks[0].accept());
        assert_eq!((accepted.peer, accepted.local), (client.local_addr().unwrap(), address));
        let mut stream = accepted.stream;
        assert!(sockopt::tcp_nodelay(&stream).unwrap() && sockopt::socket_keepalive(&stream).unwrap());
        networks[0].watch(StreamToken(7), &stream).unwrap();
        let (mut head, mut tail) = ([0u8; 3], [0u8; 16]);
        let mut buffers = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
        assert_eq!(stream.receive(&mut buffers).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(stream.receive(&mut []).unwrap_err().kind(), io::ErrorKind::InvalidInput);

        client.write_all(b"hello").unwrap();
        poll_until(&mut networks, |_, seen| {
            seen.iter().find(|(_, token, r)| token.0 == 7 && r.readable).map(|_| ())
        });
        assert_eq!(stream.receive(&mut buffers).unwrap(), 5);
        assert_eq!((&head, &tail[..2]), (b"hel", b"lo".as_slice()));

        let pieces: Vec<[u8; 1]> = (0..2000u32).map(|value| [value as u8]).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let sent = stream.send(&slices).unwrap();
        assert_eq!(sent, BUFFERS_MAX, "more buffers than one call takes are sent in part");
        let mut echoed = vec![0u8; sent];
        client.read_exact(&mut echoed).unwrap();
        assert!(echoed.iter().zip(0u32..).all(|(&byte, value)| byte == value as u8));

        drop(client);
        poll_until(&mut networks, |_, seen| {
            seen.iter().find(|(_, token, r)| token.0 == 7 && r.readable).map(|_| ())
        });
        let mut byte = [0u8];
        assert_eq!(stream.receive(&mut [IoSliceMut::new(&mut byte)]).unwrap(), 0);
    }

    #[test]
    fn a_full_socket_says_would_block_and_then_writable() {
        let (mut networks, address) = networks(1);
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let mut stream = poll_until(&mut networks, |networks, _| networks[0].accept()).stream;
        networks[0].watch(StreamToken(1), &stream).unwrap();
        networks[0].poll(&mut |_, _| {});
        let block = vec![1u8; 1 << 20];
        let mut sent = 0;
        let error = loop {
            match stream.send(&[IoSlice::new(&block)]) {
                Ok(length) => sent += length,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        networks[0].poll(&mut |_, _| {});
        let mut received = vec![0u8; sent];
        client.read_exact(&mut received).unwrap();
        poll_until(&mut networks, |_, seen| seen.iter().find(|(_, _, r)| r.writable).map(|_| ()));
        assert!(stream.send(&[IoSlice::new(&block)]).unwrap() > 0);
    }

    #[test]
    fn streams_go_to_the_core_with_the_fewest() {
        let (mut networks, address) = networks(3);
        let clients: Vec<_> = (0..6).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let mut streams: Vec<Vec<TcpStream>> = (0..3).map(|_| Vec::new()).collect();
        poll_until(&mut networks, |networks, _| {
            for (core, network) in networks.iter_mut().enumerate() {
                while let Some(accepted) = network.accept() {
                    streams[core].push(accepted.stream);
                }
            }
            (streams.iter().map(Vec::len).sum::<usize>() == 6).then_some(())
        });
        assert_eq!(streams.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
        // Core 1 loses its two: the next two go there.
        streams[1].clear();
        let _more: Vec<_> = (0..2).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        poll_until(&mut networks, |networks, _| {
            streams[1].extend(networks[1].accept().map(|accepted| accepted.stream));
            (streams[1].len() == 2).then_some(())
        });
        drop(clients);
    }

    /// Sends back what it receives.
    struct Echo {
        network: KernelTcp,
        streams: Vec<TcpStream>,
    }

    impl Poller for Echo {
        fn poll(&mut self, _: &mut Turn) -> Progress {
            let mut ready = Vec::new();
            let mut progress = self.network.poll(&mut |token, _| ready.push(token.0));
            while let Some(accepted) = self.network.accept() {
                self.network.watch(StreamToken(self.streams.len() as u64), &accepted.stream).unwrap();
                self.streams.push(accepted.stream);
                progress = Progress::Busy;
            }
            for index in ready {
                let mut bytes = [0u8; 64];
                if let Ok(length) = self.streams[index as usize].receive(&mut [IoSliceMut::new(&mut bytes)]) {
                    self.streams[index as usize].send(&[IoSlice::new(&bytes[..length])]).unwrap();
                }
            }
            progress
        }

        fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
            self.network.wake_descriptors(visit);
        }
    }

    #[test]
    fn new_streams_and_bytes_wake_sleeping_cores() {
        let (networks, address) = networks(2);
        let networks = Mutex::new(networks.into_iter().map(Some).collect::<Vec<_>>());
        let cpu = reactor::Topology::discover().cpus[0].number;
        let config =
            ReactorConfig { cpus: vec![cpu, cpu], mode: ReactorMode::Adaptive, name: "reactor".to_owned() };
        let reactors = Reactors::start(&config, move |core, _| {
            let network = networks.lock().unwrap()[core.index()].take().unwrap();
            Ok(Box::new(Echo { network, streams: Vec::new() }))
        })
        .unwrap();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(10));
            let mut client = std::net::TcpStream::connect(address).unwrap();
            // Less than the longest sleep of a reactor, which would heal a lost wake-up.
            client.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            for value in 0..5u8 {
                std::thread::sleep(Duration::from_millis(3));
                client.write_all(&[value]).unwrap();
                let mut echoed = [0u8];
                client.read_exact(&mut echoed).unwrap();
                assert_eq!(echoed, [value]);
            }
        }
        assert!(reactors.handles().iter().all(|handle| handle.statistics().sleeps > 0));
    }
}
