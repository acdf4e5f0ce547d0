//! The controller: registers, enabling and shutting down, time.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::time::Duration;

use base::{Instant, Prng};

use super::command::Command;
use super::config_space::ConfigSpace;
use super::events::Events;
use super::faults::{CommandFault, Faults};
use super::features::Features;
use super::logs::Logs;
use super::memory::Memory;
use super::namespace::{Namespace, NamespaceConfig};
use super::queues::{CompletionQueue, SubmissionQueue};
use super::registers as reg;
use super::status::Status;
use super::transfer::Segments;
use super::violation::{Rule, Violation};

/// What a controller is made of.
#[derive(Debug)]
pub struct Config {
    /// Serial Number, at most 20 characters.
    pub serial: String,
    /// Every choice the controller makes follows from it.
    pub seed: u64,
    /// I/O queue pairs, at most 256.
    pub queue_pairs: u16,
    /// Entries of a queue at most (CAP.MQES + 1), 2 to 32,768.
    pub entries_max: u16,
    /// CAP.DSTRD: doorbells are 4 << this bytes apart, at most 8.
    pub doorbell_stride: u8,
    /// MSI-X vectors, 1 to 64.
    pub vectors: u16,
    /// MDTS: transfers are at most 4096 << this bytes; 0 is no limit.
    pub mdts: u8,
    /// There is a volatile write cache.
    pub write_cache: bool,
    /// SGLs are supported.
    pub sgl: bool,
    /// Doorbell Buffer Config is supported.
    pub shadow_doorbells: bool,
    /// AWUPF + 1: blocks that a power cut does not tear.
    pub atomic_blocks: u16,
    /// Payload of Read and Write is not copied, for measuring drivers.
    pub light: bool,
    /// From setting CC.EN until ready, and from clearing until not ready.
    pub ready_after: Duration,
    /// Commands take at least and at most so long.
    pub latency: (Duration, Duration),
    /// NSIDs from 1 on.
    pub namespaces: Vec<NamespaceConfig>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            serial: "POLLUX-MODEL-1".to_owned(),
            seed: 1,
            queue_pairs: 16,
            entries_max: 1024,
            doorbell_stride: 0,
            vectors: 17,
            mdts: 7,
            write_cache: true,
            sgl: true,
            shadow_doorbells: true,
            atomic_blocks: 8,
            light: false,
            ready_after: Duration::ZERO,
            latency: (Duration::ZERO, Duration::ZERO),
            namespaces: vec![NamespaceConfig { bytes: 64 << 20, ..NamespaceConfig::default() }],
        }
    }
}

/// A command with the queue it came by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    pub queue: u16,
    pub command: Command,
    pub fault: Option<CommandFault>,
}

/// What is due at some instant.
#[derive(Debug)]
pub(super) enum Job {
    Ready,
    Disabled,
    ShutDown,
    /// Carry out a command, or both halves of a fused one.
    Execute(Taken, Option<Taken>),
    /// Post a completion that was held back.
    Complete {
        queue: u16,
        cid: u16,
        status: Status,
        result: u64,
    },
}

/// Counters, for tests and reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Commands fetched.
    pub commands: u64,
    /// Completions posted.
    pub completions: u64,
    /// Times the controller became ready.
    pub enabled: u64,
    /// Interrupts signalled.
    pub interrupts: u64,
}

/// Where shadow doorbells and event indices are (Base 2.0 §5.8).
#[derive(Debug, Clone, Copy)]
pub(super) struct Shadow {
    pub doorbells: u64,
    pub events: u64,
}

/// A register-level NVMe controller. It sees the host only by registers, configuration space and memory, and records
/// every rule the host breaks.
pub struct Model {
    pub(super) config: Config,
    pub(super) now: Instant,
    pub(super) prng: Prng,
    pub(super) memory: Memory,
    pub(super) pci: ConfigSpace,
    pub(super) cc: u32,
    pub(super) csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    pub(super) present: bool,
    /// CSTS.RDY does not follow CC.EN, by a fault that has struck.
    stuck: bool,
    /// It took long to become ready, by a fault: a host that gave up waiting is not to blame.
    overdue: bool,
    /// Queues that the last controller reset deleted, a bit for each; known while CC.EN is 0.
    pub(super) deleted: [u64; 5],
    pub(super) sqs: Vec<Option<SubmissionQueue>>,
    pub(super) cqs: Vec<Option<CompletionQueue>>,
    pub(super) shadow: Option<Shadow>,
    pub(super) jobs: BTreeMap<(Instant, u64), Job>,
    pub(super) sequence: u64,
    pub(super) namespaces: Vec<Option<Namespace>>,
    pub(super) features: Features,
    pub(super) logs: Logs,
    pub(super) events: Events,
    pub(super) faults: Faults,
    violations: VecDeque<Violation>,
    violations_dropped: u64,
    pub(super) vectors: Vec<Option<File>>,
    pub(super) signal: bool,
    pub(super) statistics: Statistics,
    pub(super) segments: Segments,
    pub(super) metadata_segments: Segments,
    pub(super) scratch: Vec<u8>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("cc", &self.cc).field("csts", &self.csts).finish_non_exhaustive()
    }
}

/// Violations that are kept; of more only the number.
const VIOLATIONS_MAX: usize = 1000;

impl Model {
    /// A controller that was just switched on.
    ///
    /// # Errors
    /// A sentence, when the configuration contradicts itself or there is no room for the namespaces.
    pub fn new(mut config: Config) -> Result<Model, String> {
        let bounds = [
            ("queue_pairs", config.queue_pairs, 1, 256),
            ("entries_max", config.entries_max, 2, 32_768),
            ("vectors", config.vectors, 1, 64),
            ("doorbell_stride", u16::from(config.doorbell_stride), 0, 8),
            ("mdts", u16::from(config.mdts), 0, 12),
            ("atomic_blocks", config.atomic_blocks, 1, 256),
        ];
        for (name, value, low, high) in bounds {
            if value < low || value > high {
                return Err(format!("{name} is {value}, and must be {low} to {high}"));
            }
        }
        let mut prng = Prng::new(config.seed);
        let mut namespaces = Vec::new();
        for namespace in std::mem::take(&mut config.namespaces) {
            let mut nguid = [0; 16];
            prng.fill(&mut nguid);
            namespaces.push(Some(Namespace::new(namespace, nguid, u64::from(config.atomic_blocks))?));
        }
        let pairs = usize::from(config.queue_pairs) + 1;
        Ok(Model {
            now: Instant::ZERO,
            prng,
            memory: Memory::default(),
            pci: ConfigSpace::new(bar0_length(&config), config.vectors),
            cc: 0,
            csts: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            present: true,
            stuck: false,
            overdue: false,
            deleted: [0; 5],
            sqs: (0..pairs).map(|_| None).collect(),
            cqs: (0..pairs).map(|_| None).collect(),
            shadow: None,
            jobs: BTreeMap::new(),
            sequence: 0,
            namespaces,
            features: Features::new(&config),
            logs: Logs::default(),
            events: Events::default(),
            faults: Faults::default(),
            violations: VecDeque::new(),
            violations_dropped: 0,
            vectors: (0..config.vectors).map(|_| None).collect(),
            signal: false,
            statistics: Statistics::default(),
            segments: Vec::new(),
            metadata_segments: Vec::new(),
            scratch: Vec::new(),
            config,
        })
    }

    /// Bytes of BAR 0.
    #[must_use]
    pub fn bar0_length(&self) -> u64 {
        bar0_length(&self.config)
    }

    /// The host memory the device may reach.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The configuration space.
    pub fn pci_mut(&mut self) -> &mut ConfigSpace {
        &mut self.pci
    }

    /// What goes wrong.
    pub fn faults_mut(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Rules broken since the last call, the first thousand.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        self.violations_dropped = 0;
        self.violations.drain(..).collect()
    }

    /// How many rules were broken since the last [`Model::take_violations`].
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.violations.len() as u64 + self.violations_dropped
    }

    #[cold]
    pub(super) fn violation(&mut self, rule: Rule, queue: u16, what: impl Into<String>) {
        if self.violations.len() >= VIOLATIONS_MAX {
            self.violations_dropped += 1;
            return;
        }
        self.violations.push_back(Violation { at: self.now, rule, queue, what: what.into() });
    }

    /// Gives interrupt vector `vector` a descriptor to signal, or takes it away.
    pub fn set_vector(&mut self, vector: u16, descriptor: Option<File>) {
        if let Some(slot) = self.vectors.get_mut(usize::from(vector)) {
            *slot = descriptor;
        }
    }

    pub(super) fn capabilities(&self) -> u64 {
        if let Some(lie) = self.faults.lies.capabilities {
            return lie;
        }
        let entries = u64::from(self.config.entries_max - 1);
        // CQR, TO = 20 (10 s), NSSRS, CSS = NVM command set, MPSMAX = 4 (64 KiB pages), CRMS.CRWMS.
        entries
            | 1 << 16
            | u64::from(READY_TIMEOUT) << 24
            | u64::from(self.config.doorbell_stride) << 32
            | 1 << 36
            | 1 << 37
            | u64::from(PAGE_SHIFT_MAX) << 52
            | 1 << 59
    }

    /// Reads BAR 0. `width` is 4 or 8 bytes.
    pub fn read_register(&mut self, offset: u64, width: u64) -> u64 {
        if !self.present || !self.pci.memory_enabled() {
            return if width == 8 { u64::MAX } else { u64::from(u32::MAX) };
        }
        if !matches!(width, 4 | 8) || !offset.is_multiple_of(width) || offset + width > self.bar0_length() {
            self.violation(Rule::RegisterAccess, 0, format!("read of {width} bytes at {offset:#x}"));
            return 0;
        }
        let low = u64::from(self.read_word(offset));
        if width == 4 { low } else { low | u64::from(self.read_word(offset + 4)) << 32 }
    }

    fn read_word(&self, offset: u64) -> u32 {
        match offset {
            reg::CAP => self.capabilities() as u32,
            0x04 => (self.capabilities() >> 32) as u32,
            reg::VS => VERSION,
            reg::CC => self.cc,
            reg::CSTS => self.csts,
            reg::AQA => self.aqa,
            reg::ASQ => self.asq as u32,
            0x2C => (self.asq >> 32) as u32,
            reg::ACQ => self.acq as u32,
            0x34 => (self.acq >> 32) as u32,
            // CRTO.CRWMT.
            0x68 => u32::from(READY_TIMEOUT),
            // INTMS and INTMC read as the mask, which MSI-X has no use for; CMBLOC, CMBSZ and the rest are not there.
            _ => 0,
        }
    }

    /// Writes BAR 0. `width` is 4 or 8 bytes.
    pub fn write_register(&mut self, offset: u64, width: u64, value: u64) {
        if !self.present || !self.pci.memory_enabled() {
            return;
        }
        if !matches!(width, 4 | 8) || !offset.is_multiple_of(width) || offset + width > self.bar0_length() {
            self.violation(Rule::RegisterAccess, 0, format!("write of {width} bytes at {offset:#x}"));
            return;
        }
        if offset >= reg::DOORBELLS {
            if width == 4 {
                self.ring(offset - reg::DOORBELLS, value as u32);
            } else {
                self.violation(
                    Rule::RegisterAccess,
                    0,
                    format!("write of 8 bytes to the doorbell at {offset:#x}"),
                );
            }
            return;
        }
        self.write_word(offset, value as u32);
        if width == 8 {
            self.write_word(offset + 4, (value >> 32) as u32);
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let high = |register: u64| register & 0xFFFF_FFFF | u64::from(value) << 32;
        let low = |register: u64| register & !0xFFFF_FFFF | u64::from(value);
        if matches!(offset, 0x24..0x38) && self.cc & reg::CC_EN != 0 {
            self.violation(Rule::Configuration, 0, format!("register {offset:#x} written while CC.EN is 1"));
            return;
        }
        match offset {
            reg::CC => self.write_configuration(value),
            reg::NSSR => {
                if value == reg::NSSR_MAGIC {
                    self.reset_subsystem();
                }
            }
            reg::AQA => {
                if value & 0xF000_F000 != 0 {
                    self.violation(Rule::Reserved, 0, format!("AQA {value:#x}"));
                }
                self.aqa = value & 0x0FFF_0FFF;
            }
            reg::ASQ => self.asq = low(self.asq),
            0x2C => self.asq = high(self.asq),
            reg::ACQ => self.acq = low(self.acq),
            0x34 => self.acq = high(self.acq),
            reg::CSTS if value & reg::CSTS_NSSRO != 0 => self.csts &= !reg::CSTS_NSSRO,
            reg::INTMS | reg::INTMC if !self.pci.msix_enabled() => {}
            reg::INTMS | reg::INTMC => {
                self.violation(Rule::RegisterAccess, 0, "interrupt masks written although MSI-X is in use");
            }
            _ => {
                self.violation(Rule::RegisterAccess, 0, format!("{value:#x} written to register {offset:#x}"))
            }
        }
    }

    fn write_configuration(&mut self, value: u32) {
        if value & !reg::CC_DEFINED != 0 {
            self.violation(Rule::Reserved, 0, format!("CC {value:#x}"));
        }
        let before = self.cc;
        let (was, is) = (before & reg::CC_EN != 0, value & reg::CC_EN != 0);
        if was && is && (before ^ value) & reg::CC_FIXED != 0 {
            self.violation(Rule::Configuration, 0, format!("CC {before:#x} to {value:#x} while enabled"));
        }
        self.cc = value & reg::CC_DEFINED;
        match (was, is) {
            (false, true) => self.enable(),
            (true, false) => self.disable(),
            _ => {}
        }
        if is && reg::cc_shn(value) != 0 && reg::cc_shn(before) == 0 {
            self.csts = self.csts & !reg::CSTS_SHST | reg::CSTS_SHST_OCCURRING;
            self.schedule(self.config.ready_after, Job::ShutDown);
        }
    }

    fn enable(&mut self) {
        if self.csts & reg::CSTS_RDY != 0 {
            self.violation(Rule::Configuration, 0, "CC.EN set while CSTS.RDY is still 1");
        }
        self.csts &= !reg::CSTS_SHST;
        self.deleted = [0; 5];
        let page = 4096u64 << reg::cc_mps(self.cc);
        let faults = [
            (reg::cc_css(self.cc) != 0, "CC.CSS is not the NVM command set"),
            (reg::cc_mps(self.cc) > PAGE_SHIFT_MAX, "CC.MPS beyond CAP.MPSMAX"),
            (reg::cc_ams(self.cc) != 0, "CC.AMS is not round robin"),
            (
                !self.asq.is_multiple_of(page) || !self.acq.is_multiple_of(page),
                "ASQ or ACQ has an offset in its page",
            ),
            (self.aqa & 0xFFF == 0 || self.aqa >> 16 == 0, "an admin queue of one entry"),
        ];
        for (_, what) in faults.iter().filter(|(broken, _)| *broken) {
            self.violation(Rule::Configuration, 0, *what);
            self.csts |= reg::CSTS_CFS;
        }
        if self.csts & reg::CSTS_CFS == 0 {
            self.stuck = self.faults.never_ready;
            self.overdue = self.stuck;
            self.follow();
        }
    }

    /// CSTS.RDY follows CC.EN, unless a fault holds it.
    fn follow(&mut self) {
        if !self.stuck {
            let job = if self.cc & reg::CC_EN != 0 { Job::Ready } else { Job::Disabled };
            self.schedule(self.config.ready_after, job);
        }
    }

    /// Lets CSTS.RDY go on when the fault that held it has ended.
    fn unstick(&mut self) {
        let held =
            if self.cc & reg::CC_EN != 0 { self.faults.never_ready } else { self.faults.never_disabled };
        if !held {
            self.stuck = false;
            self.follow();
        }
    }

    fn disable(&mut self) {
        let troubled = self.csts & reg::CSTS_CFS != 0 || self.overdue;
        if self.csts & reg::CSTS_RDY == 0 && !troubled {
            self.violation(Rule::Configuration, 0, "CC.EN cleared before CSTS.RDY was 1");
        }
        self.clear_queues();
        if self.csts & reg::CSTS_RDY == 0 {
            self.stuck = false;
            self.csts &= reg::CSTS_NSSRO;
        } else {
            self.stuck = self.faults.never_disabled;
            self.follow();
        }
    }

    /// What a controller level reset does besides registers (Base 2.0 §3.7.2).
    fn clear_queues(&mut self) {
        self.jobs.clear();
        for (id, queue) in self.sqs.iter().enumerate() {
            self.deleted[id / 64] |= u64::from(queue.is_some()) << (id % 64);
        }
        self.sqs.iter_mut().for_each(|queue| *queue = None);
        self.cqs.iter_mut().for_each(|queue| *queue = None);
        self.shadow = None;
        self.events.reset();
        self.features = Features::new(&self.config);
        for namespace in self.namespaces.iter_mut().flatten() {
            namespace.report_deallocated = false;
            namespace.error_recovery_limit = 0;
        }
    }

    fn reset_subsystem(&mut self) {
        self.reset_registers();
        self.csts = reg::CSTS_NSSRO;
    }

    fn reset_registers(&mut self) {
        self.clear_queues();
        self.stuck = false;
        self.cc = 0;
        self.csts = 0;
        self.aqa = 0;
        self.asq = 0;
        self.acq = 0;
    }

    /// A reset of the PCI function. Mapped memory stays mapped.
    pub fn reset_function(&mut self) {
        self.reset_registers();
        self.pci.reset();
    }

    /// Pulls the device: registers read as all ones, nothing is transferred any more.
    pub fn remove(&mut self) {
        self.reset_function();
        self.present = false;
    }

    /// Plugs it in again, as after power on.
    pub fn restore(&mut self) {
        self.reset_function();
        self.present = true;
    }

    /// Whether it is plugged in.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// Power fails and comes back: what was not flushed is lost in part, and writes that were not completed may be
    /// there in part, each within the atomicity that AWUPF promises. The controller is as after power on.
    ///
    /// # Errors
    /// Those of a backing file.
    pub fn power_cut(&mut self) -> std::io::Result<()> {
        self.tear_unfinished();
        let mut prng = self.prng.clone();
        for namespace in self.namespaces.iter_mut().flatten() {
            namespace.media.power_cut(&mut prng)?;
        }
        self.prng = prng;
        self.logs.unsafe_shutdowns += 1;
        self.logs.power_cycles += 1;
        self.reset_function();
        Ok(())
    }

    /// Controller Fatal Status: nothing is fetched or completed until a reset.
    pub fn fail(&mut self) {
        self.csts |= reg::CSTS_CFS;
        self.jobs.retain(|_, job| matches!(job, Job::Disabled));
    }

    /// Bytes of a memory page (CC.MPS).
    #[inline]
    pub(super) fn page(&self) -> u64 {
        4096 << reg::cc_mps(self.cc)
    }

    pub(super) fn schedule(&mut self, after: Duration, job: Job) {
        self.sequence += 1;
        self.jobs.insert((self.now + after, self.sequence), job);
    }

    /// Commands are fetched and carried out.
    #[inline]
    pub(super) fn running(&self) -> bool {
        self.csts & (reg::CSTS_RDY | reg::CSTS_CFS | reg::CSTS_SHST) == reg::CSTS_RDY
            && self.cc & reg::CC_EN != 0
    }

    /// Does what is due at `now`: becomes ready, fetches commands, carries them out, completes them, interrupts.
    pub fn step(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if !self.present {
            return;
        }
        if self.stuck {
            self.unstick();
        }
        while let Some(entry) = self.jobs.first_entry()
            && entry.key().0 <= self.now
        {
            let job = entry.remove();
            // A function that may not master the bus transfers nothing.
            let transfers = matches!(job, Job::Execute(..) | Job::Complete { .. });
            if !transfers || self.pci.bus_master() {
                self.run(job);
            }
        }
        if self.running() && self.pci.bus_master() {
            self.fetch();
        }
        if self.signal {
            self.interrupt();
        }
    }

    /// When something happens next without the host's doing; `None` when nothing will.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        if self.signal {
            return Some(self.now);
        }
        self.jobs.first_key_value().map(|((at, _), _)| *at)
    }

    fn run(&mut self, job: Job) {
        match job {
            Job::Ready => {
                let entries = |zero_based: u32| (zero_based & 0xFFF) as u16 + 1;
                let sq = SubmissionQueue::new(self.asq, entries(self.aqa), 0);
                let mut cq = CompletionQueue::new(self.acq, entries(self.aqa >> 16), Some(0));
                cq.users = 1;
                self.sqs[0] = Some(sq);
                self.cqs[0] = Some(cq);
                self.csts |= reg::CSTS_RDY;
                self.statistics.enabled += 1;
            }
            Job::Disabled => self.csts &= reg::CSTS_NSSRO,
            Job::ShutDown => {
                self.namespaces.iter_mut().flatten().for_each(|namespace| namespace.media.flush());
                if !self.faults.never_shut_down {
                    self.csts = self.csts & !reg::CSTS_SHST | reg::CSTS_SHST_COMPLETE;
                }
            }
            Job::Execute(first, second) => self.carry_out(first, second),
            Job::Complete { queue, cid, status, result } => self.complete(queue, cid, status, result),
        }
    }
}

/// CAP.TO, in 500 ms.
const READY_TIMEOUT: u8 = 20;
/// CAP.MPSMAX.
const PAGE_SHIFT_MAX: u32 = 4;
/// VS: 2.0.0.
pub(super) const VERSION: u32 = 0x0002_0000;

fn bar0_length(config: &Config) -> u64 {
    let doorbells = (u64::from(config.queue_pairs) + 1) * 2 * (4 << config.doorbell_stride);
    (reg::DOORBELLS + doorbells).next_power_of_two().max(0x4000)
}
