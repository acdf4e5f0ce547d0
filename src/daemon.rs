//! The daemon: starts the reactors, the control plane and the RPC server, and takes them down again in order.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::{BufferPool, CoreId, Limits};
use fabrics::KernelTcp;
use fabrics::conductor::{Conductor, CoreMessage, CoreRequest, NumberedReply, NumberedRequest, ReactorLink};
use fabrics::iscsi::{Config, IscsiPort};
use reactor::{
    HugeMemory, MailboxReceiver, MailboxSender, MeshEndpoint, Poller, ReactorConfig, ReactorHandle,
    ReactorSeat, Reactors, mailbox, mesh, reply_queue,
};
use rpc::{BoundSocket, Server, ServerLimits};
use scsi::ControlRequest;
use tokio::sync::watch;

use crate::control::config::ConfigFile;
use crate::control::link::{CoreLink, Machine, ReactorMode, ReactorReport};
use crate::control::log::LogControl;
use crate::control::nvme::NvmeService;
use crate::control::{Control, Parts};
use crate::core_link::Mailboxes;
use crate::devices::Devices;
use crate::limits;

/// Requests a core's mailbox holds.
const MAILBOX_MAX: usize = 256;

/// How long each step of the end may take before the next begins anyway.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Where the RPC socket is made.
    pub socket: PathBuf,
    /// CPUs, one reactor for each. Empty is one reactor on the first CPU there is.
    pub cpus: Vec<usize>,
    /// How reactors spend idle time.
    pub mode: ReactorMode,
    /// Wait for `framework_start_init` before loading the file.
    pub wait_for_rpc: bool,
    /// Buffer memory of each reactor, in MiB.
    pub memory_mib: u64,
    /// Take buffer memory from hugepages when there are any.
    pub hugepages: bool,
    /// Let device servers in other processes map the buffer memory. Hugepages always let them.
    pub shared_buffers: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Options {
    /// One adaptive reactor, no hugepages, nothing configured.
    #[must_use]
    pub fn new(socket: PathBuf) -> Options {
        Options {
            config: None,
            socket,
            cpus: Vec::new(),
            mode: ReactorMode::Adaptive,
            wait_for_rpc: false,
            memory_mib: limits::BUFFER_MIB_DEFAULT,
            hugepages: false,
            shared_buffers: false,
            limits: Limits::default(),
        }
    }
}

/// The socket used when none is named: `/var/tmp/pollux.sock` for root, else in the user's runtime directory, else
/// in `/tmp` with the user's number.
#[must_use]
pub fn default_socket() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let user = std::fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid());
    if user == 0 {
        return PathBuf::from("/var/tmp/pollux.sock");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !directory.is_empty() => Path::new(&directory).join("pollux.sock"),
        _ => PathBuf::from(format!("/tmp/pollux-{user}.sock")),
    }
}

/// The reactors, as the control plane sees them.
struct Machines {
    handles: Vec<ReactorHandle>,
    stop: watch::Sender<bool>,
}

impl Machine for Machines {
    fn reactors(&self) -> Vec<ReactorReport> {
        let report = |handle: &ReactorHandle| {
            let statistics = handle.statistics();
            ReactorReport {
                core: handle.core(),
                cpu: handle.is_pinned().then(|| u32::try_from(handle.cpu()).unwrap_or(u32::MAX)),
                busy_ns: statistics.busy_ns,
                idle_ns: statistics.idle_ns,
                turns: statistics.polls,
                turns_busy: statistics.polls_busy,
            }
        };
        self.handles.iter().map(report).collect()
    }

    fn mode(&self) -> ReactorMode {
        match self.handles.first().map(ReactorHandle::mode) {
            Some(reactor::ReactorMode::Poll) => ReactorMode::Poll,
            _ => ReactorMode::Adaptive,
        }
    }

    fn set_mode(&self, mode: ReactorMode) {
        for handle in &self.handles {
            handle.set_mode(reactor_mode(mode));
        }
    }

    fn stop(&self) {
        self.stop.send_replace(true);
    }
}

fn reactor_mode(mode: ReactorMode) -> reactor::ReactorMode {
    match mode {
        ReactorMode::Poll => reactor::ReactorMode::Poll,
        ReactorMode::Adaptive => reactor::ReactorMode::Adaptive,
    }
}

/// What one core gets from the starting thread.
struct Seat {
    mesh: MeshEndpoint<CoreMessage>,
    network: KernelTcp,
    requests: MailboxReceiver<NumberedRequest>,
    entropy: u64,
}

/// Runs a daemon until `stop` becomes true or a method ends it. `ready` is called when the RPC socket answers.
///
/// # Errors
/// A sentence that says what could not be done, and where.
pub fn run(
    options: &Options,
    log: LogControl,
    stop: watch::Sender<bool>,
    ready: impl FnOnce(),
) -> Result<(), String> {
    let file = options.config.as_deref().map(read_config).transpose()?;
    // Before anything starts: a second daemon must find that out first.
    let socket = BoundSocket::bind(&options.socket).map_err(|error| error.to_string())?;
    let cpus = if options.cpus.is_empty() {
        reactor::Topology::discover().cpus.first().map(|cpu| cpu.number).into_iter().collect()
    } else {
        options.cpus.clone()
    };
    let cores = u16::try_from(cpus.len()).map_err(|_| "there are too many CPUs in the mask".to_owned())?;
    let classes = limits::pool_classes(&options.limits, options.memory_mib);
    tracing::info!(target: "control", "{}", limits::bill(&options.limits, cores, &classes));
    let (senders, replies_in, replies, seats) =
        make_seats(cores).map_err(|error| format!("cannot make the mailboxes: {error}"))?;
    let reactors = start_reactors(options, cpus, seats, replies_in)?;
    let nvme = NvmeService::new().map_err(|error| format!("cannot serve NVMe controllers: {error}"))?;
    let nvme_thread = {
        let (nvme, clock) = (nvme.clone(), reactors.clock());
        std::thread::Builder::new()
            .name("nvme".to_owned())
            .spawn(move || nvme.run(&clock))
            .map_err(|error| format!("cannot start a thread: {error}"))?
    };
    let machine = Arc::new(Machines { handles: reactors.handles().to_vec(), stop: stop.clone() });
    let link = Arc::new(Mailboxes::new(senders));
    let (control, dispatcher) = Control::new(Parts {
        link: link.clone(),
        machine,
        factory: Arc::new(Devices),
        nvme: nvme.clone(),
        limits: options.limits.clone(),
        log,
    });
    let delivery = {
        let (link, control) = (link.clone(), control.clone());
        std::thread::Builder::new()
            .name("replies".to_owned())
            .spawn(move || link.deliver(replies, &control))
            .map_err(|error| format!("cannot start a thread: {error}"))?
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the control plane: {error}"))?;
    let server = Server::new(socket, dispatcher, ServerLimits::default());
    let result = runtime.block_on(async {
        tokio::spawn(control.clone().watch_nvme());
        if options.wait_for_rpc {
            control.keep_for_start(file);
        } else {
            let path = options.config.as_deref().unwrap_or(Path::new("configuration"));
            control.start(file).await.map_err(|text| format!("{}: {text}", path.display()))?;
        }
        tracing::info!(target: "control", socket = %options.socket.display(), cores, mode = options.mode.name(), "ready");
        ready();
        let watched = watch_reactors(&reactors, stop.subscribe());
        let served = server.run(stop.subscribe());
        let (served, watched) = tokio::join!(served, async {
            let watched = watched.await;
            stop.send_replace(true);
            watched
        });
        served.map_err(|error| format!("the RPC server ended: {error}"))?;
        watched
    });
    runtime.block_on(wind_down(&*link, cores));
    runtime.block_on(control.shut_down_nvme());
    // Nothing of the control plane may outlive its runtime, or it would hold devices open.
    runtime.shutdown_timeout(Duration::from_secs(1));
    nvme.stop();
    let _ = nvme_thread.join();
    reactors.stop();
    let _ = delivery.join();
    result
}

fn read_config(path: &Path) -> Result<ConfigFile, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    ConfigFile::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

type Seats = (
    Vec<MailboxSender<NumberedRequest>>,
    MailboxSender<NumberedReply>,
    MailboxReceiver<NumberedReply>,
    Vec<Option<Seat>>,
);

fn make_seats(cores: u16) -> std::io::Result<Seats> {
    let (replies_in, replies) = reply_queue(MAILBOX_MAX * usize::from(cores) * 4)?;
    let mut senders = Vec::new();
    let mut seats = Vec::new();
    for (mesh, network) in mesh(cores)?.into_iter().zip(KernelTcp::for_cores(cores)?) {
        let (sender, requests) = mailbox(MAILBOX_MAX)?;
        senders.push(sender);
        let entropy = getrandom::u64().map_err(|error| std::io::Error::other(error.to_string()))?;
        seats.push(Some(Seat { mesh, network, requests, entropy }));
    }
    Ok((senders, replies_in, replies, seats))
}

fn start_reactors(
    options: &Options,
    cpus: Vec<usize>,
    seats: Vec<Option<Seat>>,
    replies: MailboxSender<NumberedReply>,
) -> Result<Reactors, String> {
    let config = ReactorConfig { cpus, mode: reactor_mode(options.mode), name: "reactor".to_owned() };
    let seats = Mutex::new(seats);
    let (bounds, hugepages, shared) = (options.limits.clone(), options.hugepages, options.shared_buffers);
    let classes = limits::pool_classes(&options.limits, options.memory_mib);
    let build = move |core: CoreId, place: ReactorSeat| -> Result<Box<dyn Poller>, String> {
        let seat =
            seats.lock().unwrap_or_else(PoisonError::into_inner).get_mut(core.index()).and_then(Option::take);
        let seat = seat.ok_or_else(|| format!("{core} was started twice"))?;
        // Here, on the reactor's own thread, so that its pages come from its own NUMA node.
        let length = BufferPool::memory_length(&classes);
        let memory = match (shared, hugepages) {
            (true, _) => HugeMemory::shared(length, hugepages)?,
            (false, true) => HugeMemory::new(length)?,
            (false, false) => HugeMemory::without_hugepages(length)?,
        };
        if let Some(shortfall) = memory.shortfall() {
            tracing::warn!(target: "reactor", %core, "{shortfall}");
        }
        let pool = BufferPool::new(Box::new(memory), &classes);
        let engine = scsi::Target::new(core, place.cores, bounds.clone(), pool.clone());
        let config = Arc::new(Config::default());
        let port = IscsiPort::new(core, seat.network, pool.clone(), bounds.clone(), config, seat.entropy);
        let link = ReactorLink { mesh: seat.mesh, requests: seat.requests, replies: replies.clone() };
        Ok(Box::new(Conductor::new(core, place.cores, engine, port, link, &bounds, pool)))
    };
    Reactors::start(&config, build).map_err(|error| format!("cannot start the reactors: {error}"))
}

/// Waits for the end, or for a reactor that ended by itself.
async fn watch_reactors(reactors: &Reactors, mut stop: watch::Receiver<bool>) -> Result<(), String> {
    loop {
        let waited = tokio::time::timeout(Duration::from_secs(1), stop.wait_for(|stop| *stop)).await;
        if waited.is_ok() {
            return Ok(());
        }
        if let Some(core) = reactors.failed() {
            return Err(format!("the reactor of {core} has failed; its last words are in the log"));
        }
    }
}

/// Ends every session, then lets every core finish what its devices still hold. Bounded: a device that never
/// answers must not keep the process.
async fn wind_down(link: &dyn CoreLink, cores: u16) {
    let nothing = Arc::new(Config { generation: u64::MAX, ..Config::default() });
    for core in (0..cores).map(CoreId) {
        let ended = link.request(core, CoreRequest::IscsiConfig(nothing.clone()));
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!(target: "control", %core, "sessions did not end in time");
        }
    }
    for core in (0..cores).map(CoreId) {
        let drained = link.request(core, CoreRequest::Scsi(ControlRequest::Quiesce));
        if tokio::time::timeout(STOP_TIMEOUT, drained).await.is_err() {
            tracing::warn!(target: "control", %core, "devices did not finish in time");
        }
    }
}

/// A daemon on a thread of this process.
pub struct Running {
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<Result<(), String>>,
}

impl Running {
    /// Starts a daemon and waits until its socket answers.
    ///
    /// # Errors
    /// As [`run`].
    pub fn start(options: Options) -> Result<Running, String> {
        let (stop, _) = watch::channel(false);
        let stopper = stop.clone();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                run(&options, LogControl::default(), stopper, move || {
                    let _ = ready.send(());
                })
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        match started.recv() {
            Ok(()) => Ok(Running { stop, thread }),
            Err(_) => Err(thread
                .join()
                .map_or_else(|_| "the daemon failed".to_owned(), |result| result.err().unwrap_or_default())),
        }
    }

    /// Ends it, and waits for that.
    ///
    /// # Errors
    /// As [`run`].
    pub fn stop(self) -> Result<(), String> {
        self.stop.send_replace(true);
        self.thread.join().map_err(|_| "the daemon failed".to_owned())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    #[test]
    fn a_daemon_with_shared_buffers_maps_a_file_for_them() {
        let socket = std::env::temp_dir().join(format!("pollux-shared-{}", std::process::id()));
        // Pages of memory files mapped for buffers; other tests of this process may map some too, so what counts is that
        // there are more of them while the daemon runs.
        let mapped = || -> u64 {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let bytes = |line: &str| {
                let (first, last) = line.split(' ').next()?.split_once('-')?;
                let parse = |text| u64::from_str_radix(text, 16).ok();
                Some(parse(last)? - parse(first)?)
            };
            maps.lines()
                .filter(|line| line.contains("memfd:pollux-buffers") && line.contains("rw-s"))
                .filter_map(bytes)
                .sum()
        };
        let before = mapped();
        let options = Options { memory_mib: 8, shared_buffers: true, ..Options::new(socket) };
        let running = Running::start(options).unwrap();
        assert!(mapped() >= before + (8 << 20), "{} and {}", before, mapped());
        running.stop().unwrap();
        assert_eq!(mapped(), before);
    }

    #[test]
    fn a_daemon_starts_answers_and_stops() {
        let socket = std::env::temp_dir().join(format!("pollux-daemon-{}", std::process::id()));
        let running = Running::start(Options { memory_mib: 8, ..Options::new(socket.clone()) }).unwrap();
        let mut client = Client::connect(&socket).unwrap();
        let name = client
            .call("bdev_malloc_create", Some(serde_json::json!({"num_blocks": 100, "block_size": 512})))
            .unwrap();
        assert_eq!(name, "Malloc0");
        let params = serde_json::json!({"name": "t", "luns": [{"bdev_name": "Malloc0", "lun_id": 0}], "pg_ig_maps": []});
        client.call("iscsi_create_target_node", Some(params)).unwrap();
        assert_eq!(client.call("iscsi_get_connections", None).unwrap(), serde_json::json!([]));
        client.call("bdev_malloc_delete", Some(serde_json::json!({"name": "Malloc0"}))).unwrap();
        assert!(Running::start(Options::new(socket.clone())).err().unwrap().contains("another daemon"));
        running.stop().unwrap();
        assert!(!socket.exists());
    }
}
