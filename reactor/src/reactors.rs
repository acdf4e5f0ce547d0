use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use base::CoreId;

use crate::run::{PollLoop, Shared};
use crate::statistics::Counters;
use crate::{Doorbell, Poller, ReactorClock, ReactorMode, ReactorStatistics, Topology, affinity};

/// Which reactors to start.
#[derive(Debug, Clone)]
pub struct ReactorConfig {
    /// The CPU of each reactor: the first is core 0's. A CPU may be named twice; its reactors then share it.
    pub cpus: Vec<usize>,
    /// How they begin.
    pub mode: ReactorMode,
    /// What their threads are called: `reactor` gives `reactor_0`, `reactor_1`, …
    pub name: String,
}

/// What a reactor's poller is built with, on the reactor's own thread, already pinned: memory touched there comes from
/// the right NUMA node.
#[derive(Debug, Clone)]
pub struct ReactorSeat {
    /// The reactor.
    pub core: CoreId,
    /// How many there are.
    pub cores: u16,
    /// Its CPU.
    pub cpu: usize,
    /// The CPU's NUMA node, when known.
    pub numa_node: Option<usize>,
    /// The clock of all reactors.
    pub clock: ReactorClock,
}

/// Why the reactors could not start; none is running then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError(pub String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// A running reactor, as other threads see it.
#[derive(Debug, Clone)]
pub struct ReactorHandle {
    core: CoreId,
    cpu: usize,
    clock: ReactorClock,
    shared: Arc<Shared>,
}

impl ReactorHandle {
    /// Its number.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// The CPU it was given.
    #[must_use]
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// False when the system refused to pin its thread to that CPU.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.shared.pinned.load(Ordering::Relaxed)
    }

    /// The kernel's number of its thread.
    #[must_use]
    pub fn thread_id(&self) -> i32 {
        self.shared.thread_id.load(Ordering::Relaxed)
    }

    /// Its mode.
    #[must_use]
    pub fn mode(&self) -> ReactorMode {
        self.shared.mode()
    }

    /// Switches the mode while it runs.
    pub fn set_mode(&self, mode: ReactorMode) {
        self.shared.mode.store(mode.to_bits(), Ordering::Relaxed);
        self.shared.bell.ring();
    }

    /// What it has done so far. Does not disturb it.
    #[must_use]
    pub fn statistics(&self) -> ReactorStatistics {
        self.shared.counters.snapshot(&self.clock, &self.shared.mode)
    }
}

/// The running reactors. Dropping it stops them.
#[derive(Debug)]
pub struct Reactors {
    handles: Vec<ReactorHandle>,
    threads: Vec<JoinHandle<()>>,
    clock: ReactorClock,
}

impl Reactors {
    /// Starts one thread for each CPU of `config`, pins it, and lets `build` make its poller there (pollers need not be
    /// `Send`). Returns when every poller is built. Not being allowed to pin a thread is only a warning: in a container
    /// that is normal.
    ///
    /// # Errors
    /// When no CPU is named, a thread cannot be started, or `build` fails; reactors already started are stopped again.
    pub fn start<B>(config: &ReactorConfig, build: B) -> Result<Reactors, StartError>
    where
        B: Fn(CoreId, ReactorSeat) -> Result<Box<dyn Poller>, String> + Send + Sync + 'static,
    {
        let cores =
            u16::try_from(config.cpus.len()).map_err(|_| StartError("too many reactors".to_owned()))?;
        if cores == 0 {
            return Err(StartError("no CPU is named for a reactor".to_owned()));
        }
        let topology = Topology::discover();
        let yields = shares_cpus(&config.cpus, &topology);
        if yields {
            tracing::warn!(
                "the reactors leave no CPU to other threads: idle ones offer theirs every few turns"
            );
        }
        let clock = ReactorClock::new();
        let build = Arc::new(build);
        let (built, results) = mpsc::channel();
        let mut reactors = Reactors { handles: Vec::new(), threads: Vec::new(), clock };
        for (core, &cpu) in (0..cores).map(CoreId).zip(&config.cpus) {
            let numa_node = topology.cpu(cpu).and_then(|cpu| cpu.numa_node);
            let seat = ReactorSeat { core, cores, cpu, numa_node, clock };
            let shared = Arc::new(Shared {
                mode: AtomicU8::new(config.mode.to_bits()),
                stop: AtomicBool::new(false),
                bell: Doorbell::new()
                    .map_err(|error| StartError(format!("no descriptor for {core}: {error}")))?,
                counters: Counters::default(),
                pinned: AtomicBool::new(false),
                thread_id: AtomicI32::new(0),
            });
            reactors.handles.push(ReactorHandle { core, cpu, clock, shared: Arc::clone(&shared) });
            let (build, built) = (Arc::clone(&build), built.clone());
            let thread = std::thread::Builder::new()
                .name(format!("{}_{}", config.name, core.0))
                .spawn(move || reactor_thread(seat, &shared, yields, build.as_ref(), built))
                .map_err(|error| StartError(format!("the thread of {core} cannot be started: {error}")))?;
            reactors.threads.push(thread);
        }
        drop((built, build));
        for _ in 0..cores {
            match results.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StartError("a reactor panicked while it was built".to_owned())),
            }
        }
        Ok(reactors)
    }

    /// One handle for each reactor, by core.
    #[must_use]
    pub fn handles(&self) -> &[ReactorHandle] {
        &self.handles
    }

    /// The clock of all reactors.
    #[must_use]
    pub fn clock(&self) -> ReactorClock {
        self.clock
    }

    /// The first reactor whose thread has ended although nobody stopped it (it panicked).
    #[must_use]
    pub fn failed(&self) -> Option<CoreId> {
        self.threads
            .iter()
            .zip(&self.handles)
            .find(|(thread, _)| thread.is_finished())
            .map(|(_, handle)| handle.core)
    }

    /// Ends every poll loop after its present turn, drops the pollers on their own threads, and waits for that.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.shared.stop.store(true, Ordering::Relaxed);
            handle.shared.bell.ring();
        }
        for (thread, handle) in self.threads.drain(..).zip(&self.handles) {
            if thread.join().is_err() {
                tracing::error!(core = handle.core.0, "the reactor had panicked");
            }
        }
    }
}

/// True when idle reactors must let other threads run: they hold every available CPU, or two share one.
fn shares_cpus(cpus: &[usize], topology: &Topology) -> bool {
    let mut different = cpus.to_vec();
    different.sort_unstable();
    different.dedup();
    different.len() < cpus.len() || cpus.len() >= topology.cpus.len()
}

fn reactor_thread<B>(
    seat: ReactorSeat,
    shared: &Shared,
    yields: bool,
    build: &B,
    built: mpsc::Sender<Result<(), StartError>>,
) where
    B: Fn(CoreId, ReactorSeat) -> Result<Box<dyn Poller>, String>,
{
    shared.thread_id.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    match affinity::pin_to(seat.cpu) {
        Ok(()) => shared.pinned.store(true, Ordering::Relaxed),
        Err(error) => tracing::warn!(core = seat.core.0, cpu = seat.cpu, %error, "the reactor is not pinned"),
    }
    let (core, clock) = (seat.core, seat.clock);
    let poller = match build(core, seat) {
        Ok(poller) => poller,
        Err(error) => {
            let _ = built.send(Err(StartError(format!("{core}: {error}"))));
            return;
        }
    };
    let _ = built.send(Ok(()));
    drop(built);
    PollLoop::new(poller, clock, shared, yields).run();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MailboxReceiver, MailboxSender, MeshEndpoint, Turn, mailbox, mesh, reply_queue};
    use base::{Instant, Outbox, Progress};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;
    use std::time::Duration;

    /// Answers each request with what woke it.
    struct Echo {
        requests: MailboxReceiver<u64>,
        replies: MailboxSender<(CoreId, u64)>,
        mesh: MeshEndpoint<u64>,
        stream: Option<TcpStream>,
        timer: Option<Instant>,
    }

    const PASS_ON: u64 = 1 << 32;
    const TIMER: u64 = 1 << 33;
    const FROM_STREAM: u64 = 1 << 34;

    impl Poller for Echo {
        fn poll(&mut self, turn: &mut Turn) -> Progress {
            let mut moved = 0;
            let core = self.mesh.core();
            while let Some(request) = self.requests.try_receive() {
                moved += 1;
                if request & PASS_ON != 0 {
                    self.mesh.send(CoreId(1), request & !PASS_ON).unwrap();
                } else if request & TIMER != 0 {
                    self.timer = Some(turn.now + Duration::from_millis(request & 0xFFFF));
                } else {
                    self.replies.send((core, request)).unwrap();
                }
            }
            while let Some((_, message)) = self.mesh.try_receive() {
                moved += 1;
                self.replies.send((core, message)).unwrap();
            }
            if self.timer.is_some_and(|at| at <= turn.now) {
                moved += 1;
                self.timer = None;
                self.replies.send((core, TIMER)).unwrap();
            }
            if let Some(stream) = &mut self.stream {
                let mut byte = [0u8];
                if std::io::Read::read(stream, &mut byte).is_ok_and(|length| length == 1) {
                    moved += 1;
                    self.replies.send((core, FROM_STREAM | u64::from(byte[0]))).unwrap();
                }
            }
            Progress::from_count(moved)
        }

        fn next_timeout(&self) -> Option<Instant> {
            self.timer
        }

        fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
            visit(self.requests.wake_descriptor());
            self.mesh.wake_descriptor().into_iter().for_each(&mut *visit);
            self.stream.iter().for_each(|stream| visit(stream.as_raw_fd()));
        }
    }

    struct Node {
        reactors: Reactors,
        requests: Vec<MailboxSender<u64>>,
        replies: MailboxReceiver<(CoreId, u64)>,
        peer: TcpStream,
    }

    fn start(mode: ReactorMode) -> Node {
        let (reply, replies) = reply_queue(1024).unwrap();
        let (requests, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| mailbox::<u64>(64).unwrap()).unzip();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        let mut stream = Some(stream);
        let seeds: Vec<_> =
            receivers.into_iter().zip(mesh(2).unwrap()).map(|(r, m)| Some((r, m, stream.take()))).collect();
        let seeds = Mutex::new(seeds);
        let cpu = Topology::discover().cpus[0].number;
        let config = ReactorConfig { cpus: vec![cpu, cpu], mode, name: "reactor".to_owned() };
        let reactors = Reactors::start(&config, move |core, seat| {
            assert_eq!((core, seat.cores), (seat.core, 2));
            assert_eq!(std::thread::current().name(), Some(format!("reactor_{}", core.0).as_str()));
            let (requests, mesh, stream) = seeds.lock().unwrap()[core.index()].take().unwrap();
            Ok(Box::new(Echo { requests, replies: reply.clone(), mesh, stream, timer: None }))
        })
        .unwrap();
        Node { reactors, requests, replies, peer }
    }

    fn reply(node: &mut Node) -> (CoreId, u64) {
        // Below the longest sleep, so that a lost wake-up is not healed by it.
        node.replies.recv_timeout(Duration::from_millis(800)).expect("an answer in time")
    }

    fn wait_until_asleep(node: &Node, core: usize) {
        let handle = &node.reactors.handles()[core];
        let before = handle.statistics().sleeps;
        let give_up = std::time::Instant::now() + Duration::from_secs(5);
        while handle.statistics().sleeps <= before && std::time::Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(1));
            handle.set_mode(handle.mode());
        }
        std::thread::sleep(Duration::from_millis(2));
    }

    #[test]
    fn an_adaptive_reactor_wakes_for_mailbox_ring_descriptor_and_timeout() {
        let mut node = start(ReactorMode::Adaptive);
        for round in 0..20 {
            wait_until_asleep(&node, 0);
            wait_until_asleep(&node, 1);
            node.requests[0].send(round).unwrap();
            assert_eq!(reply(&mut node), (CoreId(0), round));
            wait_until_asleep(&node, 1);
            node.requests[0].send(PASS_ON | round).unwrap();
            assert_eq!(reply(&mut node), (CoreId(1), round));
        }
        wait_until_asleep(&node, 0);
        node.peer.write_all(&[42]).unwrap();
        assert_eq!(reply(&mut node), (CoreId(0), FROM_STREAM | 42));
        node.requests[1].send(TIMER | 20).unwrap();
        let start = std::time::Instant::now();
        assert_eq!(reply(&mut node), (CoreId(1), TIMER));
        assert!(start.elapsed() >= Duration::from_millis(19));
        node.reactors.stop();
    }

    #[test]
    fn many_wakeups_in_a_row_lose_none() {
        let mut node = start(ReactorMode::Adaptive);
        for round in 0..3000u64 {
            let request = if round % 2 == 0 { round } else { PASS_ON | round };
            node.requests[0].send(request).unwrap();
            assert_eq!(reply(&mut node).1, round);
            if round % 10 == 0 {
                // Long enough to catch the reactors around the moment in which they fall asleep.
                std::thread::sleep(Duration::from_micros(60 + round % 100));
            }
        }
    }

    #[test]
    fn time_is_counted_in_both_modes_and_modes_switch_live() {
        let mut node = start(ReactorMode::Adaptive);
        let handle = node.reactors.handles()[0].clone();
        wait_until_asleep(&node, 0);
        std::thread::sleep(Duration::from_millis(50));
        let (first, start) = (handle.statistics(), std::time::Instant::now());
        std::thread::sleep(Duration::from_millis(100));
        let (second, passed) = (handle.statistics(), start.elapsed());
        let idle = Duration::from_nanos(second.idle_ns - first.idle_ns);
        assert!(idle.abs_diff(passed) < Duration::from_millis(50), "idle {idle:?} of {passed:?}");
        assert!(second.polls - first.polls < 1000, "it slept");
        handle.set_mode(ReactorMode::Poll);
        std::thread::sleep(Duration::from_millis(5));
        let polling = handle.statistics();
        let give_up = std::time::Instant::now() + Duration::from_secs(10);
        while handle.statistics().polls < polling.polls + 1000 {
            assert!(
                std::time::Instant::now() < give_up,
                "{} turns",
                handle.statistics().polls - polling.polls
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let later = handle.statistics();
        assert_eq!((later.mode, later.sleeps), (ReactorMode::Poll, polling.sleeps));
        node.requests[0].send(5).unwrap();
        assert_eq!(reply(&mut node), (CoreId(0), 5));
        // The turn that answered is counted when it ends.
        while handle.statistics().busy_ns == 0 {
            assert!(std::time::Instant::now() < give_up);
            std::thread::yield_now();
        }
        assert!(handle.thread_id() > 0);
        assert_eq!(node.reactors.failed(), None);
    }

    #[test]
    fn two_polling_reactors_share_one_cpu() {
        let mut node = start(ReactorMode::Poll);
        for round in 0..200 {
            node.requests[0].send(PASS_ON | round).unwrap();
            assert_eq!(reply(&mut node), (CoreId(1), round));
        }
    }

    #[test]
    fn a_poller_that_cannot_be_built_stops_the_start() {
        let config = ReactorConfig { cpus: vec![0, 0], mode: ReactorMode::Poll, name: "reactor".to_owned() };
        struct Nothing;
        impl Poller for Nothing {
            fn poll(&mut self, _: &mut Turn) -> Progress {
                Progress::Idle
            }
        }
        let error = Reactors::start(&config, |core, _| {
            if core == CoreId(1) {
                Err("no memory".to_owned())
            } else {
                Ok(Box::new(Nothing) as Box<dyn Poller>)
            }
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "core 1: no memory");
        let none = ReactorConfig { cpus: Vec::new(), ..config };
        assert!(Reactors::start(&none, |_, _| Err(String::new())).is_err());
    }
}
