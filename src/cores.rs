//! The cores of the daemon: starts a reactor with its conductor on each CPU, and carries the control plane's requests
//! to them and their replies back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{BufferPool, CoreId, Limits, PoolClass};
use fabrics::KernelTcp;
use fabrics::conductor::{
    Conductor, CoreMessage, CoreReply, CoreRequest, NumberedReply, NumberedRequest, ReactorLink,
};
use fabrics::iscsi::{Config, IscsiPort};
use reactor::{
    HugeMemory, MailboxReceiver, MailboxSender, MeshEndpoint, Poller, ReactorConfig, ReactorHandle,
    ReactorMode, ReactorSeat, Reactors, StartError, mailbox, mesh, reply_queue,
};
use scsi::{ControlId, Notification, Target};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Requests one core's mailbox holds.
const REQUESTS_MAX: usize = 256;
/// Replies of all cores that may wait for the control plane.
const REPLIES_MAX: usize = 4096;
/// Notifications that may wait for the control plane; more are dropped.
const NOTIFICATIONS_MAX: usize = 1024;

/// What the cores are started with.
#[derive(Debug, Clone)]
pub struct CoresConfig {
    /// The CPU of each core.
    pub cpus: Vec<usize>,
    /// How the reactors begin.
    pub mode: ReactorMode,
    /// The bounds of each core.
    pub limits: Limits,
    /// The classes of each core's buffer pool.
    pub pool: Vec<PoolClass>,
    /// Take the pools from hugepages where there are any.
    pub hugepages: bool,
}

/// Why a core did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestError {
    /// Its mailbox is full, or there is no such core.
    Full(CoreId),
    /// It has stopped.
    Stopped(CoreId),
}

/// Requests without an answer yet, by number.
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<CoreReply>>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is whole at every moment; a panic elsewhere does not change that.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running cores, as the control plane sees them.
pub struct Cores {
    reactors: Mutex<Option<Reactors>>,
    handles: Vec<ReactorHandle>,
    requests: Vec<MailboxSender<NumberedRequest>>,
    pending: Pending,
    next_id: AtomicU64,
}

/// The replies of all cores, to be carried on by [`Replies::run`].
pub struct Replies {
    receiver: MailboxReceiver<NumberedReply>,
    pending: Pending,
    notifications: mpsc::Sender<(CoreId, Notification)>,
}

/// What a core takes along to its own thread.
struct Seed {
    network: KernelTcp,
    mesh: MeshEndpoint<CoreMessage>,
    requests: MailboxReceiver<NumberedRequest>,
    replies: MailboxSender<NumberedReply>,
}

impl Cores {
    /// Starts the cores. They admit nobody until a configuration is sent. [`Replies::run`] must be spawned before the
    /// first request; notifications come out of the receiver.
    ///
    /// # Errors
    /// When there is not enough memory, or the system refuses threads or descriptors.
    pub fn start(
        config: &CoresConfig,
    ) -> Result<(Cores, Replies, mpsc::Receiver<(CoreId, Notification)>), StartError> {
        let failed = |error: std::io::Error| StartError(format!("the cores cannot be connected: {error}"));
        let count = u16::try_from(config.cpus.len()).map_err(|_| StartError("too many cores".to_owned()))?;
        let (replies, receiver) = reply_queue(REPLIES_MAX).map_err(failed)?;
        let mut requests = Vec::new();
        let mut seeds = Vec::new();
        let networks = KernelTcp::for_cores(count).map_err(failed)?;
        for (network, mesh) in networks.into_iter().zip(mesh(count).map_err(failed)?) {
            let (sender, mailbox) = mailbox(REQUESTS_MAX).map_err(failed)?;
            requests.push(sender);
            seeds.push(Some(Seed { network, mesh, requests: mailbox, replies: replies.clone() }));
        }
        drop(replies);
        let seeds = Mutex::new(seeds);
        let (limits, classes, hugepages) = (config.limits.clone(), config.pool.clone(), config.hugepages);
        let reactor_config =
            ReactorConfig { cpus: config.cpus.clone(), mode: config.mode, name: "reactor".to_owned() };
        let reactors = Reactors::start(&reactor_config, move |core, seat| {
            let seed = locked(&seeds).get_mut(core.index()).and_then(Option::take).ok_or("built twice")?;
            build(seed, &seat, &limits, &classes, hugepages)
        })?;
        let pending = Pending::default();
        let (notifications, notified) = mpsc::channel(NOTIFICATIONS_MAX);
        let cores = Cores {
            handles: reactors.handles().to_vec(),
            reactors: Mutex::new(Some(reactors)),
            requests,
            pending: Arc::clone(&pending),
            next_id: AtomicU64::new(1),
        };
        Ok((cores, Replies { receiver, pending, notifications }, notified))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.handles.len()).unwrap_or(u16::MAX)
    }

    /// The reactors, by core.
    #[must_use]
    pub fn reactors(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// Sends `request` to `core` and waits for its reply. When the future is dropped a late reply is thrown away.
    ///
    /// # Errors
    /// When the core does not take requests.
    pub async fn request(&self, core: CoreId, request: CoreRequest) -> Result<CoreReply, RequestError> {
        let sender = self.requests.get(core.index()).ok_or(RequestError::Full(core))?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        locked(&self.pending).insert(id, answer);
        let _forget = Forget { pending: &self.pending, id };
        if sender.send(NumberedRequest { id: ControlId(id), request }).is_err() {
            return Err(if sender.is_closed() {
                RequestError::Stopped(core)
            } else {
                RequestError::Full(core)
            });
        }
        answered.await.map_err(|_| RequestError::Stopped(core))
    }

    /// Stops every core and waits until its thread has ended. Blocks.
    pub fn stop(&self) {
        if let Some(reactors) = locked(&self.reactors).take() {
            reactors.stop();
        }
        locked(&self.pending).clear();
    }
}

/// Removes a request's entry, answered or not.
struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        locked(self.pending).remove(&self.id);
    }
}

impl Replies {
    /// Hands replies to those who wait for them, until every core has stopped.
    ///
    /// # Errors
    /// The runtime's, when it cannot watch the queue's descriptor.
    pub async fn run(self) -> std::io::Result<()> {
        let Replies { receiver, pending, notifications } = self;
        let mut replies = AsyncFd::with_interest(receiver, tokio::io::Interest::READABLE)?;
        let mut dropped = 0u64;
        loop {
            while let Some(NumberedReply { id, core, reply }) = replies.get_mut().try_receive() {
                match reply {
                    CoreReply::Notification(notification) => {
                        if notifications.try_send((core, notification)).is_err() {
                            dropped += 1;
                            tracing::warn!(dropped, "a notification was dropped: nobody takes them");
                        }
                    }
                    reply => {
                        if let Some(waiting) = locked(&pending).remove(&id.0) {
                            // It may have given up just now.
                            let _ = waiting.send(reply);
                        }
                    }
                }
            }
            if replies.get_ref().is_abandoned() {
                locked(&pending).clear();
                return Ok(());
            }
            replies.readable().await?.clear_ready();
        }
    }
}

/// Builds one core, on its own thread.
fn build(
    seed: Seed,
    seat: &ReactorSeat,
    limits: &Limits,
    classes: &[PoolClass],
    hugepages: bool,
) -> Result<Box<dyn Poller>, String> {
    let length = BufferPool::memory_length(classes);
    let memory = if hugepages { HugeMemory::new(length) } else { HugeMemory::without_hugepages(length) }?;
    if let Some(shortfall) = memory.shortfall() {
        tracing::info!(core = seat.core.0, "{shortfall}");
    }
    let pool = BufferPool::new(Box::new(memory), classes);
    let mut entropy = [0u8; 8];
    getrandom::fill(&mut entropy).map_err(|error| format!("no random numbers: {error}"))?;
    let entropy = u64::from_ne_bytes(entropy);
    let nobody = Arc::new(Config::default());
    let port = IscsiPort::new(seat.core, seed.network, pool.clone(), limits.clone(), nobody, entropy);
    let engine = Target::new(seat.core, seat.cores, limits.clone(), pool.clone());
    let link = ReactorLink { mesh: seed.mesh, requests: seed.requests, replies: seed.replies };
    Ok(Box::new(Conductor::new(seat.core, seat.cores, engine, port, link, limits, pool)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabrics::iscsi::{Portal, PortalGroup};
    use scsi::ControlOutcome;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    fn start(mode: ReactorMode) -> (Cores, Replies) {
        let cpu = reactor::Topology::discover().cpus[0].number;
        let limits = Limits { sessions_max: 16, tasks_max: 64, logical_units_max: 8, ..Limits::default() };
        let pool = vec![PoolClass { size: 4096, count: 64 }, PoolClass { size: 256 * 1024, count: 16 }];
        let config = CoresConfig { cpus: vec![cpu, cpu], mode, limits, pool, hugepages: true };
        let (cores, replies, _) = Cores::start(&config).unwrap();
        (cores, replies)
    }

    fn listen_on(address: SocketAddr) -> CoreRequest {
        let portal_groups = vec![PortalGroup { tag: 1, portals: vec![Portal { address }], private: false }];
        CoreRequest::IscsiConfig(Arc::new(Config { generation: 1, portal_groups, ..Config::default() }))
    }

    async fn ask(cores: &Cores, core: u16, request: CoreRequest) -> Result<CoreReply, RequestError> {
        tokio::time::timeout(Duration::from_secs(10), cores.request(CoreId(core), request))
            .await
            .expect("an answer")
    }

    #[tokio::test]
    async fn every_core_answers_in_both_modes_and_none_after_the_stop() {
        for mode in [ReactorMode::Poll, ReactorMode::Adaptive] {
            let (cores, replies) = start(mode);
            let pump = tokio::spawn(replies.run());
            for round in 0..50u16 {
                let reply = ask(&cores, round % 2, CoreRequest::Report).await.unwrap();
                let CoreReply::Report(report) = reply else { panic!("{reply:?}") };
                assert_eq!((report.buffers, report.buffers_outstanding), (80, 0));
                // Long enough for an adaptive core to fall asleep now and then.
                tokio::time::sleep(Duration::from_micros(u64::from(round) * 20)).await;
            }
            assert_eq!(ask(&cores, 2, CoreRequest::Report).await.unwrap_err(), RequestError::Full(CoreId(2)));
            cores.stop();
            assert_eq!(
                ask(&cores, 0, CoreRequest::Report).await.unwrap_err(),
                RequestError::Stopped(CoreId(0))
            );
            pump.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn portals_open_or_say_why_not() {
        let (cores, replies) = start(ReactorMode::Adaptive);
        tokio::spawn(replies.run());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        match ask(&cores, 0, listen_on(address)).await.unwrap() {
            CoreReply::Outcome(ControlOutcome::Failed(text)) => {
                assert!(text.starts_with(&format!("cannot listen on {address}: ")), "{text}");
            }
            reply => panic!("{reply:?}"),
        }
        drop(taken);
        for core in 0..2 {
            let reply = ask(&cores, core, listen_on(address)).await.unwrap();
            assert!(matches!(reply, CoreReply::Outcome(ControlOutcome::Done)), "{reply:?}");
        }
        let _streams: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut connections = [0, 0];
        for _ in 0..500 {
            for core in 0..2u16 {
                let CoreReply::Report(report) = ask(&cores, core, CoreRequest::Report).await.unwrap() else {
                    panic!()
                };
                connections[usize::from(core)] = report.connections.len();
            }
            if connections == [2, 2] {
                return cores.stop();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("connections by core: {connections:?}");
    }
}
