use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::CoreId;
use reactor::MailboxSender;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::kernel_tcp::{Loads, TcpStream, watch};
use crate::{Accepted, ListenError};

/// Connections the kernel may hold for us before they are accepted.
const BACKLOG: i32 = 1024;
/// Connections taken from one listener in a row.
const ACCEPTS_MAX: usize = 64;
/// How long accepting rests when the process has no descriptors or memory left.
const REST: Duration = Duration::from_millis(100);
/// At most one log line of a kind in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The epoll tokens of listeners count down from here. A port's tokens are slab keys, whose generations do not get there.
const TOKEN_LAST: u64 = u64::MAX;

#[derive(Debug)]
struct Listener {
    /// The address asked for.
    portal: SocketAddr,
    socket: OwnedFd,
    token: u64,
    /// Edge-triggered: true until `accept` has said that nobody waits.
    ready: bool,
}

/// The listening sockets of the node, on core 0's thread. New streams are dealt out to the cores.
#[derive(Debug)]
pub struct Listeners {
    open: Vec<Listener>,
    token_next: u64,
    cores: Vec<MailboxSender<Accepted<TcpStream>>>,
    loads: Arc<Loads>,
    /// Where the search for the least loaded core begins: equals take turns.
    first: usize,
    rests_until: Option<Instant>,
    logged: Option<Instant>,
    suppressed: u64,
}

impl Listeners {
    pub(crate) fn new(cores: Vec<MailboxSender<Accepted<TcpStream>>>, loads: Arc<Loads>) -> Listeners {
        Listeners {
            open: Vec::new(),
            token_next: TOKEN_LAST,
            cores,
            loads,
            first: 0,
            rests_until: None,
            logged: None,
            suppressed: 0,
        }
    }

    /// The addresses listened on, as the system knows them.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.open.iter().map(|listener| address_of(&listener.socket).unwrap_or(listener.portal)).collect()
    }

    /// Listens on these addresses and on no others; connections that exist go on. Either all of it happens or nothing.
    ///
    /// # Errors
    /// The first address that cannot be listened on.
    pub fn set_portals(&mut self, epoll: &OwnedFd, portals: &[SocketAddr]) -> Result<(), ListenError> {
        // A portal that goes may stand in the way of one that comes (0.0.0.0 and an address of its own, same port):
        // those that share a port close first, and open again if something fails.
        let added: Vec<SocketAddr> = portals
            .iter()
            .enumerate()
            .filter(|&(index, portal)| {
                !self.open.iter().any(|listener| listener.portal == *portal)
                    && !portals.iter().take(index).any(|earlier| earlier == portal)
            })
            .map(|(_, &portal)| portal)
            .collect();
        let mut closed = Vec::new();
        self.open.retain(|listener| {
            let goes = !portals.contains(&listener.portal);
            let in_the_way = goes && added.iter().any(|portal| portal.port() == listener.portal.port());
            if in_the_way {
                closed.push(listener.portal);
            }
            !in_the_way
        });
        let count = self.open.len();
        for &portal in &added {
            if let Err(error) = self.open_portal(epoll, portal) {
                self.open.truncate(count);
                for portal in closed {
                    if let Err(error) = self.open_portal(epoll, portal) {
                        tracing::error!(%error, "a portal closed for a change that failed could not be opened again");
                    }
                }
                return Err(error);
            }
        }
        self.open.retain(|listener| portals.contains(&listener.portal));
        Ok(())
    }

    fn open_portal(&mut self, epoll: &OwnedFd, portal: SocketAddr) -> Result<(), ListenError> {
        let socket = listen(portal).map_err(|error| listen_error(portal, error))?;
        let token = self.token_next;
        watch(epoll, token, &socket, EventFlags::IN).map_err(|error| ListenError {
            address: portal,
            reason: error.to_string(),
            remedy: "raise the limit of watched descriptors (fs.epoll.max_user_watches)",
        })?;
        self.token_next = self.token_next.wrapping_sub(1);
        self.open.push(Listener { portal, socket, token, ready: true });
        Ok(())
    }

    /// Notes that somebody waits at the listener with this token; false when the token is not a listener's.
    pub(crate) fn mark_ready(&mut self, token: u64) -> bool {
        if token <= self.token_next {
            return false;
        }
        if let Some(listener) = self.open.iter_mut().find(|listener| listener.token == token) {
            listener.ready = true;
        }
        true
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.open.iter().any(|listener| listener.ready)
    }

    /// Accepts what waits and deals it out; says how many connections that were.
    pub(crate) fn accept(&mut self, now: Instant) -> usize {
        if self.rests_until.is_some_and(|until| now < until) {
            return 0;
        }
        self.rests_until = None;
        let mut count = 0;
        for index in 0..self.open.len() {
            for _ in 0..ACCEPTS_MAX {
                let Some(listener) = self.open.get_mut(index).filter(|listener| listener.ready) else {
                    break;
                };
                match rustix::net::acceptfrom_with(
                    &listener.socket,
                    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
                ) {
                    Ok((socket, peer)) => {
                        count += 1;
                        self.deal_out(socket, peer.and_then(|peer| SocketAddr::try_from(peer).ok()), now);
                    }
                    Err(Errno::AGAIN) => listener.ready = false,
                    // The connection died while it waited, or its network did (accept(2)): the next one may live.
                    Err(
                        Errno::INTR
                        | Errno::CONNABORTED
                        | Errno::PROTO
                        | Errno::NETDOWN
                        | Errno::NETUNREACH
                        | Errno::HOSTDOWN
                        | Errno::HOSTUNREACH
                        | Errno::OPNOTSUPP
                        | Errno::PERM,
                    ) => {}
                    Err(error) => {
                        // EMFILE, ENFILE, ENOBUFS, ENOMEM: trying again at once would only burn the core.
                        self.rests_until = Some(now + REST);
                        self.log(now, &format!("connections cannot be accepted: {error}"));
                        return count;
                    }
                }
            }
        }
        count
    }

    /// Hands a new connection to the core with the fewest, or to the next that has room.
    fn deal_out(&mut self, socket: OwnedFd, peer: Option<SocketAddr>, now: Instant) {
        // Without a peer the connection is already gone.
        let (Some(peer), Some(local)) = (peer, address_of(&socket)) else { return };
        let stream = match TcpStream::from_socket(socket) {
            Ok(stream) => stream,
            Err(error) => return self.log(now, &format!("a connection from {peer} is unusable: {error}")),
        };
        let count = self.cores.len();
        let mut accepted = Accepted { stream, peer, local };
        let best = (0..count).map(|step| (self.first + step) % count).min_by_key(|&core| self.loads.of(core));
        let Some(best) = best else { return };
        self.first = (best + 1) % count;
        for core in (0..count).map(|step| (best + step) % count) {
            accepted.stream.place(&self.loads, CoreId(u16::try_from(core).unwrap_or(u16::MAX)));
            match self.cores.get(core).map(|sender| sender.send(accepted)) {
                Some(Err(back)) => accepted = back,
                _ => return,
            }
        }
        self.log(
            now,
            &format!("a connection from {peer} was closed: every core has too many new ones waiting"),
        );
    }

    fn log(&mut self, now: Instant, text: &str) {
        if self.logged.is_some_and(|logged| now.duration_since(logged) < LOG_EVERY) {
            self.suppressed += 1;
            return;
        }
        tracing::warn!(not_shown = self.suppressed, "{text}");
        (self.logged, self.suppressed) = (Some(now), 0);
    }
}

fn address_of(socket: &OwnedFd) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(socket).ok()?).ok()
}

fn listen(portal: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if portal.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // A restarted target binds although connections of the old one are in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if portal.is_ipv6() {
        // [::] and 0.0.0.0 are two portals, not one that shuts the other out.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &portal)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn listen_error(address: SocketAddr, error: Errno) -> ListenError {
    let remedy = match error {
        Errno::ADDRINUSE => {
            "another process or another portal listens there: stop it, or choose another port"
        }
        Errno::ADDRNOTAVAIL => {
            "no interface of this host has that address: configure it first, or use a wildcard"
        }
        Errno::ACCESS | Errno::PERM => "ports below 1024 need the right to bind them (CAP_NET_BIND_SERVICE)",
        Errno::AFNOSUPPORT => "this kernel does not speak that address family: use the other one",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files",
        _ => "check the address and the host's network",
    };
    ListenError { address, reason: error.to_string(), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactor::mailbox;
    use rustix::event::epoll;
    use std::net::TcpStream as Client;

    struct Node {
        listeners: Listeners,
        epoll: OwnedFd,
        arrivals: reactor::MailboxReceiver<Accepted<TcpStream>>,
    }

    fn node(arrivals_max: usize) -> Node {
        let (sender, arrivals) = mailbox(arrivals_max).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        Node { listeners: Listeners::new(vec![sender], Loads::new(1)), epoll, arrivals }
    }

    impl Node {
        fn set(&mut self, portals: &[SocketAddr]) -> Result<(), ListenError> {
            self.listeners.set_portals(&self.epoll, portals)
        }
    }

    fn free_address() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn portals_come_and_go() {
        let mut node = node(4);
        let (one, two) = (free_address(), free_address());
        node.set(&[one, one]).unwrap();
        assert_eq!(node.listeners.addresses(), [one]);
        Client::connect(one).unwrap();
        node.set(&[two]).unwrap();
        assert!(Client::connect(one).is_err());
        Client::connect(two).unwrap();
        node.set(&[]).unwrap();
        assert!(Client::connect(two).is_err());
    }

    #[test]
    fn a_portal_that_fails_changes_nothing_and_says_why() {
        let mut node = node(4);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (kept, taken) = (free_address(), taken.local_addr().unwrap());
        node.set(&[kept]).unwrap();
        let error = node.set(&[free_address(), taken]).unwrap_err();
        assert_eq!(error.address, taken);
        assert!(error.to_string().starts_with(&format!("cannot listen on {taken}: ")), "{error}");
        assert!(error.to_string().contains("another process or another portal"), "{error}");
        assert_eq!(node.listeners.addresses(), [kept]);
        let error = node.set(&[kept, "192.0.2.1:3260".parse().unwrap()]).unwrap_err();
        assert!(error.remedy.contains("no interface"), "{error}");
        Client::connect(kept).unwrap();
    }

    #[test]
    fn a_wildcard_replaces_an_address_of_the_same_port() {
        let mut node = node(4);
        let one = free_address();
        let wildcard = SocketAddr::new("0.0.0.0".parse().unwrap(), one.port());
        node.set(&[one]).unwrap();
        node.set(&[wildcard]).unwrap();
        assert_eq!(node.listeners.addresses(), [wildcard]);
        // And when the change fails, the address listens again.
        assert!(node.set(&[one, "192.0.2.1:3260".parse().unwrap()]).is_err());
        assert_eq!(node.listeners.addresses(), [wildcard]);
        Client::connect(one).unwrap();
    }

    #[test]
    fn both_families_share_a_port() {
        let mut node = node(4);
        let port = free_address().port();
        let (four, six) =
            (SocketAddr::new("0.0.0.0".parse().unwrap(), port), SocketAddr::new("::".parse().unwrap(), port));
        match node.set(&[four, six]) {
            Ok(()) => assert_eq!(node.listeners.addresses(), [four, six]),
            // A host without IPv6 says so.
            Err(error) => assert_eq!(error.address, six),
        }
    }

    #[test]
    fn what_no_core_has_room_for_is_closed() {
        let mut node = node(1);
        let address = free_address();
        node.set(&[address]).unwrap();
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(address).unwrap()).collect();
        assert_eq!(node.listeners.accept(Instant::now()), 3);
        assert!(!node.listeners.has_ready());
        let arrived = node.arrivals.try_receive().unwrap();
        assert!(node.arrivals.try_receive().is_none());
        assert_eq!(arrived.peer, clients[0].local_addr().unwrap());
        assert_eq!(node.listeners.loads.of(0), 1, "closed connections are not counted");
        let mut byte = [0u8];
        assert_eq!(std::io::Read::read(&mut clients[2], &mut byte).unwrap_or(0), 0);
        drop(arrived);
        assert_eq!(node.listeners.loads.of(0), 0);
    }
}
