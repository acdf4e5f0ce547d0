//! A port, a disk and the rings between cores, each as small as can be. Everything that could happen next is in a
//! queue; the test (or a random number) chooses.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::{BufferPool, CoreId, DataBuf, Instant, Limits, PoolClass, Prng};
use bdev::{
    AtomicWrites, BlockDevice, BlockError, BlockIo, BlockOp, Capabilities, CoreShared, Extent, ExtentState,
    Geometry, IoChannel, IoCompletion, IoValue, Provisioning,
};
use wire::scsi::{Cdb, Lun, Sense, Status, TaskAttribute};

use crate::*;

pub(super) const BLOCK: usize = 512;
pub(super) const BLOCKS: u64 = 256;
pub(super) const UNIT: LogicalUnitId = LogicalUnitId(0);

pub(super) struct FakeDevice(Mutex<Geometry>);

impl FakeDevice {
    pub(super) fn new(geometry: Geometry) -> Arc<FakeDevice> {
        Arc::new(FakeDevice(Mutex::new(geometry)))
    }

    /// Gives it another shape; whoever wants to know is to be told.
    pub(super) fn reshape(&self, change: impl FnOnce(&mut Geometry)) {
        change(&mut self.0.lock().unwrap());
    }
}

pub(super) fn geometry() -> Geometry {
    Geometry {
        block_size: BLOCK as u32,
        blocks: BLOCKS,
        physical_block_exponent: 0,
        lowest_aligned_block: 0,
        optimal_granularity_blocks: 0,
        optimal_transfer_blocks: 0,
        write_cache: true,
        read_only: false,
        rotational: false,
        provisioning: Provisioning {
            discard: true,
            reads_zeros: true,
            reports_extents: true,
            granularity_blocks: 1,
            discard_blocks_max: 0,
        },
        buffer_alignment: 1,
        capabilities: Capabilities::default(),
        atomic: AtomicWrites::default(),
    }
}

impl BlockDevice for FakeDevice {
    fn geometry(&self) -> Geometry {
        *self.0.lock().unwrap()
    }
    fn product_name(&self) -> &'static str {
        "fake"
    }
    fn open_channel(&self, _: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Err(BlockError::Unsupported)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    Status(Status, Option<Sense>, u64, u64),
    Terminated,
}

pub(super) struct Exchange {
    pub(super) core: usize,
    pub(super) nexus: NexusId,
    pub(super) tag: TaskTag,
    pub(super) data_out: Vec<u8>,
    pub(super) data_in: Vec<u8>,
    pub(super) ends: Vec<End>,
    terminating: bool,
}

enum PortWork {
    Receive { exchange: u64, task: TaskId, offset: u32, data: DataBuf },
    Sent { exchange: u64, task: TaskId, offset: u32, _data: DataBuf, status: Option<CommandStatus> },
    Complete { exchange: u64, task: TaskId, status: CommandStatus },
    Terminate { exchange: u64, task: TaskId },
    Lost(NexusToken),
    Open(LogicalUnitId),
}

impl PortWork {
    fn exchange(&self) -> Option<u64> {
        match self {
            PortWork::Receive { exchange, .. }
            | PortWork::Sent { exchange, .. }
            | PortWork::Complete { exchange, .. }
            | PortWork::Terminate { exchange, .. } => Some(*exchange),
            _ => None,
        }
    }
}

pub(super) struct Core {
    pub(super) target: Target,
    pub(super) pool: BufferPool,
    port: VecDeque<PortWork>,
    pub(super) device: Vec<(LogicalUnitId, BlockIo)>,
}

pub(super) struct World {
    pub(super) cores: Vec<Core>,
    /// `wires[from][to]`.
    wires: Vec<Vec<VecDeque<Message>>>,
    pub(super) now: Instant,
    pub(super) medium: Vec<u8>,
    pub(super) exchanges: BTreeMap<u64, Exchange>,
    next: u64,
    pub(super) established: BTreeMap<u64, NexusId>,
    pub(super) refused: Vec<u64>,
    pub(super) closed: Vec<u64>,
    pub(super) drops: Vec<(u64, DropReason)>,
    pub(super) functions: BTreeMap<u64, TaskManagementResponse>,
    pub(super) done: BTreeMap<u64, ControlOutcome>,
    pub(super) notes: Vec<Notification>,
    pub(super) device_holds: bool,
    pub(super) port_holds: bool,
    pub(super) messages_hold: bool,
    pub(super) fail_next: Option<BlockError>,
    pub(super) writes_seen: Vec<(u64, u64)>,
    pub(super) flushes: usize,
    pub(super) verifies: usize,
    pub(super) compares: usize,
    /// Where commands and functions go.
    pub(super) lun: Lun,
    /// The core that cannot open channels.
    pub(super) open_fails_at: Option<usize>,
    /// Channels closed, by core.
    pub(super) closes: Vec<(usize, LogicalUnitId)>,
    /// What unit 0 stands on.
    pub(super) device: Arc<FakeDevice>,
}

/// Asks for another unit.
pub(super) fn add_unit(unit: LogicalUnitId, home: u16) -> ControlRequest {
    add_unit_of(unit, home, FakeDevice::new(geometry()))
}

fn add_unit_of(unit: LogicalUnitId, home: u16, device: Arc<FakeDevice>) -> ControlRequest {
    let identity = UnitIdentity {
        vendor: "POLLUX".into(),
        product: "disk".into(),
        revision: "1".into(),
        serial: "1".into(),
        naa: [0x60; 16],
        uuid: [1; 16],
    };
    ControlRequest::AddLogicalUnit { unit, home: CoreId(home), device, identity }
}

pub(super) fn limits() -> Limits {
    Limits {
        sessions_max: 8,
        tasks_max: 64,
        tasks_per_nexus_max: 32,
        logical_units_max: 4,
        luns_per_target_max: 4,
        burst_length_bytes: 4096,
        bursts_per_task_max: 3,
        unit_attentions_max: 4,
        task_management_deadline_ms: 1000,
    }
}

impl World {
    pub(super) fn new(cores: u16) -> World {
        World::with(cores, limits(), 32)
    }

    /// `buffers` bursts for each core; unit 0 at LUN 0 of target 0, its home on the last core.
    pub(super) fn with(cores: u16, limits: Limits, buffers: u32) -> World {
        World::on(FakeDevice::new(geometry()), cores, limits, buffers)
    }

    /// The same, on a device of this shape.
    pub(super) fn shaped(cores: u16, change: impl FnOnce(&mut Geometry)) -> World {
        let device = FakeDevice::new(geometry());
        device.reshape(change);
        World::on(device, cores, limits(), 32)
    }

    pub(super) fn on(device: Arc<FakeDevice>, cores: u16, limits: Limits, buffers: u32) -> World {
        let made = (0..cores).map(|core| {
            let pool = BufferPool::plain(&[PoolClass { size: limits.burst_length_bytes, count: buffers }]);
            let target = Target::new(CoreId(core), cores, limits.clone(), pool.clone());
            Core { target, pool, port: VecDeque::new(), device: Vec::new() }
        });
        let mut world = World {
            cores: made.collect(),
            wires: (0..cores).map(|_| (0..cores).map(|_| VecDeque::new()).collect()).collect(),
            now: Instant::from_nanos(1),
            medium: vec![0; BLOCK * BLOCKS as usize],
            exchanges: BTreeMap::new(),
            next: 1,
            established: BTreeMap::new(),
            refused: Vec::new(),
            closed: Vec::new(),
            drops: Vec::new(),
            functions: BTreeMap::new(),
            done: BTreeMap::new(),
            notes: Vec::new(),
            device_holds: false,
            port_holds: false,
            messages_hold: false,
            fail_next: None,
            writes_seen: Vec::new(),
            flushes: 0,
            verifies: 0,
            compares: 0,
            lun: Lun::ZERO,
            open_fails_at: None,
            closes: Vec::new(),
            device: Arc::clone(&device),
        };
        let home = usize::from(cores - 1);
        world.control(home, 1, add_unit_of(UNIT, cores - 1, device));
        world.settle();
        let map = LunMap { mappings: vec![LunMapping { lun: Lun::ZERO, unit: UNIT, read_only: false }] };
        world.control(0, 2, ControlRequest::SetLunMap { target: TargetDeviceId(0), map: Arc::new(map) });
        world.settle();
        assert_eq!(world.done.get(&1), Some(&ControlOutcome::Done));
        assert_eq!(world.done.get(&2), Some(&ControlOutcome::Done));
        world
    }

    pub(super) fn control(&mut self, core: usize, id: u64, request: ControlRequest) {
        self.cores[core].target.handle_control(self.now, ControlId(id), request);
        self.collect(core);
    }

    pub(super) fn event(&mut self, core: usize, event: PortEvent) {
        self.cores[core].target.handle_port_event(self.now, event);
        self.collect(core);
    }

    pub(super) fn request_nexus(&mut self, core: usize, token: u64, initiator: &str) {
        let identity = NexusIdentity {
            initiator_port: format!("{initiator},i,0x1").into(),
            initiator: initiator.into(),
            target_port: "t,t,0x1".into(),
            target: TargetDeviceId(0),
            relative_target_port: 1,
            protocol: 5,
        };
        self.event(core, PortEvent::NexusRequested { token: NexusToken(token), identity });
    }

    /// A nexus with its power-on unit attention cleared.
    pub(super) fn nexus(&mut self, core: usize, token: u64, initiator: &str) -> NexusId {
        self.request_nexus(core, token, initiator);
        self.settle();
        let nexus = self.established[&token];
        self.expect_attention(core, nexus, 0x29, 0x00);
        nexus
    }

    pub(super) fn expect_attention(&mut self, core: usize, nexus: NexusId, asc: u8, ascq: u8) {
        let x = self.simple(core, nexus, &[0; 6], 0, &[]);
        self.settle();
        match self.end_of(x) {
            End::Status(Status::CheckCondition, Some(sense), ..) => {
                assert_eq!((sense.asc, sense.ascq), (asc, ascq))
            }
            other => panic!("expected a unit attention {asc:02x}/{ascq:02x}, got {other:?}"),
        }
    }

    pub(super) fn expect_ready(&mut self, core: usize, nexus: NexusId) {
        let x = self.simple(core, nexus, &[0; 6], 0, &[]);
        self.settle();
        assert!(matches!(self.end_of(x), End::Status(Status::Good, ..)), "{:?}", self.end_of(x));
    }

    pub(super) fn simple(
        &mut self,
        core: usize,
        nexus: NexusId,
        cdb: &[u8],
        expected_in: u32,
        out: &[u8],
    ) -> u64 {
        self.command(core, nexus, TaskAttribute::Simple, cdb, expected_in, out, 0)
    }

    /// Sends a command; `immediate` bytes of `out` come with it. The tag is the exchange's number.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn command(
        &mut self,
        core: usize,
        nexus: NexusId,
        attribute: TaskAttribute,
        cdb: &[u8],
        expected_in: u32,
        out: &[u8],
        immediate: usize,
    ) -> u64 {
        let exchange = self.next;
        self.next += 1;
        let tag = TaskTag(exchange);
        let record = Exchange {
            core,
            nexus,
            tag,
            data_out: out.to_vec(),
            data_in: Vec::new(),
            ends: Vec::new(),
            terminating: false,
        };
        self.exchanges.insert(exchange, record);
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        let data_out = (immediate > 0).then(|| {
            let mut data =
                self.cores[core].pool.acquire(immediate as u32).expect("a buffer for immediate data");
            data.copy_from_slice(&out[..immediate]);
            data
        });
        let received = CommandReceived {
            nexus,
            exchange: ExchangeId(exchange),
            lun: self.lun,
            tag,
            attribute,
            cdb: Cdb::new(&padded),
            expected_data_in: Some(expected_in),
            expected_data_out: Some(out.len() as u32),
            data_out,
            starved: false,
        };
        self.event(core, PortEvent::CommandReceived(received));
        exchange
    }

    pub(super) fn function(
        &mut self,
        core: usize,
        nexus: NexusId,
        function: TaskManagementFunction,
        tag: Option<u64>,
    ) -> u64 {
        let request = self.next;
        self.next += 1;
        let asked = TaskManagementRequest {
            nexus,
            request: RequestToken(request),
            function,
            lun: self.lun,
            tag: tag.map(TaskTag),
        };
        self.event(core, PortEvent::TaskManagementRequested(asked));
        request
    }

    pub(super) fn end_of(&self, exchange: u64) -> End {
        let ends = &self.exchanges[&exchange].ends;
        assert_eq!(ends.len(), 1, "exchange {exchange} ended {} times: {ends:?}", ends.len());
        ends[0].clone()
    }

    pub(super) fn has_ended(&self, exchange: u64) -> bool {
        !self.exchanges[&exchange].ends.is_empty()
    }

    pub(super) fn is_good(&self, exchange: u64) -> bool {
        matches!(self.end_of(exchange), End::Status(Status::Good, ..))
    }

    fn collect(&mut self, core: usize) {
        while let Some(effect) = self.cores[core].target.poll_effect() {
            self.carry_out(core, effect);
        }
    }

    fn carry_out(&mut self, core: usize, effect: Effect) {
        let here = &mut self.cores[core];
        match effect {
            Effect::ReceiveDataOut { exchange: ExchangeId(exchange), task, offset, data } => {
                here.port.push_back(PortWork::Receive { exchange, task, offset, data });
            }
            Effect::SendDataIn { exchange: ExchangeId(exchange), task, offset, data, status } => {
                let record = self.exchanges.get_mut(&exchange).expect("a known exchange");
                assert_eq!(record.data_in.len(), offset as usize, "Data-In out of order");
                record.data_in.extend_from_slice(&data);
                here.port.push_back(PortWork::Sent { exchange, task, offset, _data: data, status });
            }
            Effect::SendCommandComplete { exchange: ExchangeId(exchange), task, status } => {
                here.port.push_back(PortWork::Complete { exchange, task, status });
            }
            Effect::TerminateDataTransfer { exchange: ExchangeId(exchange), task } => {
                let record = self.exchanges.get_mut(&exchange).expect("a known exchange");
                if record.ends.is_empty() {
                    record.terminating = true;
                    here.port.retain(|work| work.exchange() != Some(exchange));
                    here.port.push_back(PortWork::Terminate { exchange, task });
                }
            }
            Effect::TaskManagementFunctionExecuted { request, response, .. } => {
                assert!(
                    self.functions.insert(request.0, response).is_none(),
                    "a function was answered twice"
                );
            }
            Effect::NexusEstablished { token, nexus } => {
                self.established.insert(token.0, nexus);
            }
            Effect::NexusRefused { token } => self.refused.push(token.0),
            Effect::NexusClosed { token } => self.closed.push(token.0),
            Effect::DropNexus { token, reason } => {
                self.drops.push((token.0, reason));
                here.port.push_back(PortWork::Lost(token));
            }
            Effect::AsynchronousEvent { .. } | Effect::Cancel { .. } => {}
            Effect::CloseChannel { unit } => self.closes.push((core, unit)),
            Effect::Submit { unit, io } => here.device.push((unit, io)),
            Effect::OpenChannel { unit, .. } => here.port.push_back(PortWork::Open(unit)),
            Effect::Send { to, message } => self.wires[core][to.index()].push_back(message),
            Effect::ControlDone { id, outcome } => {
                assert!(self.done.insert(id.0, outcome).is_none(), "a control request was answered twice");
            }
            Effect::Notify(note) => self.notes.push(note),
        }
    }

    fn end(&mut self, exchange: u64, end: End) {
        if let Some(record) = self.exchanges.get_mut(&exchange) {
            record.ends.push(end);
        }
    }

    fn port_step(&mut self, core: usize) {
        let Some(work) = self.cores[core].port.pop_front() else { return };
        let status_end =
            |s: &CommandStatus| End::Status(s.status, s.sense, s.data_in_length, s.data_out_length);
        match work {
            PortWork::Receive { exchange, task, offset, mut data } => {
                let from = &self.exchanges[&exchange].data_out;
                let part = from.get(offset as usize..offset as usize + data.len());
                data.copy_from_slice(part.expect("no more data asked for than there is"));
                self.event(core, PortEvent::DataOutReceived { task, offset, data });
            }
            PortWork::Sent { exchange, task, offset, status, .. } => match status {
                Some(status) => {
                    self.end(exchange, status_end(&status));
                    self.event(core, PortEvent::Delivered { task });
                }
                None => self.event(core, PortEvent::DataInDelivered { task, offset }),
            },
            PortWork::Complete { exchange, task, status } => {
                self.end(exchange, status_end(&status));
                self.event(core, PortEvent::Delivered { task });
            }
            PortWork::Terminate { exchange, task } => {
                self.end(exchange, End::Terminated);
                self.event(core, PortEvent::DataTransferTerminated { task });
            }
            PortWork::Lost(token) => self.event(core, PortEvent::NexusLost { token }),
            PortWork::Open(unit) => {
                let fails = self.open_fails_at == Some(core);
                let result = if fails { Err(BlockError::System(5)) } else { Ok(()) };
                self.cores[core].target.handle_channel_opened(self.now, unit, result);
                self.collect(core);
            }
        }
    }

    pub(super) fn device_step(&mut self, core: usize, at: usize) {
        if at >= self.cores[core].device.len() {
            return;
        }
        let (unit, mut io) = self.cores[core].device.swap_remove(at);
        let range = io.lba as usize * BLOCK..(io.lba + io.blocks) as usize * BLOCK;
        let mut value = IoValue::Done;
        let mut differs = false;
        match io.op {
            BlockOp::Verify => self.verifies += 1,
            BlockOp::Compare => {
                self.compares += 1;
                differs = io.data.as_deref().expect("a buffer") != &self.medium[range];
            }
            BlockOp::Copy { from } => {
                let from = from as usize * BLOCK;
                self.medium.copy_within(from..from + range.len(), range.start);
            }
            BlockOp::Read => io.data.as_mut().expect("a buffer").copy_from_slice(&self.medium[range]),
            BlockOp::Write { .. } => {
                self.medium[range].copy_from_slice(io.data.as_ref().expect("a buffer"));
                self.writes_seen.push((io.lba, io.blocks));
            }
            BlockOp::WriteZeroes { .. } | BlockOp::Discard => self.medium[range].fill(0),
            BlockOp::Flush => self.flushes += 1,
            BlockOp::Extent => {
                value = IoValue::Extent(Extent { state: ExtentState::Mapped, blocks: io.blocks.min(100) });
            }
        }
        let result = match self.fail_next.take() {
            Some(error) => Err(error),
            None if differs => Err(BlockError::Miscompare),
            None => Ok(value),
        };
        let completion = IoCompletion { tag: io.tag, result, data: io.data };
        self.cores[core].target.handle_io_completion(self.now, unit, completion);
        self.collect(core);
    }

    pub(super) fn message_step(&mut self, from: usize, to: usize) {
        if let Some(message) = self.wires[from][to].pop_front() {
            self.cores[to].target.handle_message(self.now, CoreId(from as u16), message);
            self.collect(to);
        }
    }

    /// Does one thing that can be done, chosen by `prng`. False when there is nothing.
    pub(super) fn random_step(&mut self, prng: &mut Prng) -> bool {
        let count = self.cores.len();
        let mut choices = Vec::new();
        for core in 0..count {
            if !self.port_holds && !self.cores[core].port.is_empty() {
                choices.push((0, core, 0));
            }
            if !self.device_holds {
                choices.extend((0..self.cores[core].device.len()).map(|at| (1, core, at)));
            }
            if !self.messages_hold {
                choices.extend(
                    (0..count).filter(|&to| !self.wires[core][to].is_empty()).map(|to| (2, core, to)),
                );
            }
        }
        let Some(&(kind, core, other)) = choices.get(prng.below(choices.len() as u64) as usize) else {
            return false;
        };
        match kind {
            0 => self.port_step(core),
            1 => self.device_step(core, other),
            _ => self.message_step(core, other),
        }
        true
    }

    /// Runs until nothing can be done any more.
    pub(super) fn settle(&mut self) {
        let mut prng = Prng::new(self.next);
        for _ in 0..1_000_000 {
            if !self.random_step(&mut prng) {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    pub(super) fn pass(&mut self, milliseconds: u64) {
        self.now = self.now + Duration::from_millis(milliseconds);
        for core in 0..self.cores.len() {
            if self.cores[core].target.poll_timeout().is_some_and(|at| at <= self.now) {
                self.cores[core].target.handle_timeout(self.now);
                self.collect(core);
            }
        }
    }

    /// Nothing is left anywhere: no task, no buffer.
    pub(super) fn assert_clean(&self) {
        for (number, core) in self.cores.iter().enumerate() {
            core.target.for_each_task(&mut |task| panic!("core {number} still has {task:?}"));
            assert_eq!(core.pool.statistics().outstanding, 0, "core {number}: buffers did not come home");
            assert!(core.device.is_empty() && core.port.is_empty());
        }
        for (exchange, record) in &self.exchanges {
            assert_eq!(record.ends.len(), 1, "exchange {exchange}: {:?}", record.ends);
            assert!(!record.terminating || record.ends[0] == End::Terminated);
        }
    }
}

pub(super) fn read10(lba: u32, blocks: u16) -> [u8; 10] {
    cdb10(0x28, lba, blocks)
}

pub(super) fn write10(lba: u32, blocks: u16) -> [u8; 10] {
    cdb10(0x2A, lba, blocks)
}

pub(super) fn cdb10(operation: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let (l, b) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [operation, 0, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

pub(super) fn compare_and_write(lba: u64, blocks: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[13] = blocks;
    cdb
}

pub(super) fn write_atomic(lba: u64, blocks: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x9C;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// A device that can do everything.
pub(super) fn able_geometry(geometry: &mut Geometry) {
    geometry.capabilities = Capabilities { verify: true, compare: true, copy_blocks_max: 0 };
    geometry.atomic = AtomicWrites { blocks_max: u32::MAX, boundary_blocks: 0, granularity_blocks: 1 };
}

pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Prng::new(seed).fill(&mut bytes);
    bytes
}
