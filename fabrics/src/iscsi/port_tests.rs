//! The port against a scripted engine and initiators made of bytes.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, CoreId, DataBuf, Instant, Key, Limits, PoolClass, Progress};
use proptest::prelude::*;
use scsi::{
    CommandReceived, CommandStatus, DropReason, ExchangeId, NexusId, NexusToken, PortEvent, TargetDeviceId,
    TaskId, TaskManagementResponse,
};
use wire::iscsi::*;
use wire::scsi::{Cdb, Lun, Sense, SenseKey, Status, TaskAttribute};

use super::{
    AuthPolicy, Config, InitiatorGroup, IscsiPort, Options, Portal, PortalGroup, PortalGroupMap, TargetNode,
};
use crate::{Accepted, ByteStream, Network, Readiness, StreamToken, TargetPort};

const BURST: u32 = 64 * 1024;

#[derive(Default)]
struct Wire {
    to_port: VecDeque<u8>,
    from_port: Vec<u8>,
    closed: bool,
    token: Option<StreamToken>,
    receive_max: Option<usize>,
    send_max: Option<usize>,
    /// Bytes the port may still send; `None` is without bound.
    window: Option<usize>,
    dropped: bool,
    readiness: Readiness,
    receives: usize,
}

struct End(Rc<RefCell<Wire>>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.borrow_mut().dropped = true;
    }
}

impl ByteStream for End {
    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        wire.receives += 1;
        if wire.to_port.is_empty() {
            return if wire.closed { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let mut left = wire.receive_max.unwrap_or(usize::MAX);
        let mut count = 0;
        for buffer in buffers {
            let part = buffer.len().min(wire.to_port.len()).min(left);
            for (to, byte) in buffer.iter_mut().zip(wire.to_port.drain(..part)) {
                *to = byte;
            }
            left -= part;
            count += part;
        }
        Ok(count)
    }

    fn send(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        assert!(buffers.len() <= 1024);
        if wire.window == Some(0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut left = wire.send_max.unwrap_or(usize::MAX).min(wire.window.unwrap_or(usize::MAX));
        let mut count = 0;
        for buffer in buffers {
            let part = buffer.len().min(left);
            wire.from_port.extend_from_slice(&buffer[..part]);
            left -= part;
            count += part;
        }
        if let Some(window) = &mut wire.window {
            *window -= count;
        }
        Ok(count)
    }
}

#[derive(Default)]
struct Net {
    arriving: VecDeque<Rc<RefCell<Wire>>>,
    wires: Vec<Rc<RefCell<Wire>>>,
}

impl Network for Net {
    type Stream = End;
    fn accept(&mut self) -> Option<Accepted<End>> {
        let wire = self.arriving.pop_front()?;
        self.wires.push(Rc::clone(&wire));
        let (peer, local) = ("10.0.0.9:40000".parse().unwrap(), "10.0.0.1:3260".parse().unwrap());
        Some(Accepted { stream: End(wire), peer, local })
    }
    fn watch(&mut self, token: StreamToken, stream: &End) -> io::Result<()> {
        stream.0.borrow_mut().token = Some(token);
        Ok(())
    }
    fn poll(&mut self, ready: &mut dyn FnMut(StreamToken, Readiness)) -> Progress {
        for wire in &self.wires {
            let mut wire = wire.borrow_mut();
            let readiness = std::mem::take(&mut wire.readiness);
            if let Some(token) = wire.token
                && readiness != Readiness::default()
            {
                ready(token, readiness);
            }
        }
        Progress::Idle
    }
}

struct Task {
    exchange: ExchangeId,
    written: Vec<u8>,
    total: u32,
    lent: u32,
    received: u32,
}

/// Answers READ (28h), WRITE (2Ah) and TEST UNIT READY (00h); keeps commands with opcode FFh to itself.
struct Engine {
    pool: BufferPool,
    tasks: HashMap<TaskId, Task>,
    next_task: u64,
    blocks: HashMap<u32, Vec<u8>>,
    log: Vec<String>,
    kept: Vec<(ExchangeId, TaskId)>,
    hold_nexus: bool,
    bursts: u32,
}

fn status(status: Status) -> CommandStatus {
    CommandStatus { status, sense: None, descriptor_sense: false, data_in_length: 0, data_out_length: 0 }
}

fn pattern(offset: u32, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((offset as usize + i) * 7 % 251) as u8).collect()
}

impl Engine {
    fn handle(&mut self, port: &mut IscsiPort<Net>, event: PortEvent) {
        match event {
            PortEvent::NexusRequested { token, .. } => {
                self.log.push("nexus requested".into());
                if !self.hold_nexus {
                    port.nexus_answered(token, Some(NexusId(Key::from_u64(token.0))));
                }
            }
            PortEvent::NexusLost { token } => {
                self.log.push("nexus lost".into());
                for (task, of) in self.tasks.drain() {
                    port.terminate_data_transfer(of.exchange, task);
                }
                for (exchange, task) in self.kept.drain(..) {
                    port.terminate_data_transfer(exchange, task);
                }
                port.nexus_closed(token);
            }
            PortEvent::CommandReceived(command) => self.command(port, command),
            PortEvent::DataOutReceived { task, offset, data } => {
                let Some(of) = self.tasks.get_mut(&task) else { return };
                of.written[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                of.received += data.len() as u32;
                self.go_on(port, task);
            }
            PortEvent::DataOutFailed { task, asc, ascq, .. } => {
                self.log.push(format!("failed {asc:02x}/{ascq:02x}"));
                let exchange = self.tasks[&task].exchange;
                let sense = Some(Sense::new(SenseKey::AbortedCommand, asc, ascq));
                port.send_command_complete(
                    exchange,
                    task,
                    CommandStatus { sense, ..status(Status::CheckCondition) },
                );
            }
            PortEvent::DataInDelivered { .. } => {}
            PortEvent::Delivered { task } => {
                self.log.push("delivered".into());
                self.tasks.remove(&task);
            }
            PortEvent::DataTransferTerminated { task } => {
                self.log.push("terminated".into());
                self.tasks.remove(&task);
            }
            PortEvent::TaskManagementRequested(request) => {
                self.log.push(format!("{:?} {:?}", request.function, request.tag));
                let token = NexusToken(request.nexus.0.to_u64());
                port.task_management_function_executed(
                    token,
                    request.request,
                    TaskManagementResponse::Complete,
                );
            }
        }
    }

    fn command(&mut self, port: &mut IscsiPort<Net>, command: CommandReceived) {
        self.next_task += 1;
        let task = TaskId(Key::from_u64((1 << 32) | self.next_task));
        let exchange = command.exchange;
        if command.starved {
            port.send_command_complete(exchange, task, status(Status::TaskSetFull));
            return;
        }
        let total_out = command.expected_data_out.unwrap();
        match command.cdb.operation_code() {
            0x28 => {
                let wanted = u32::from(command.cdb.u16_at(7)) * 512;
                let total = wanted.min(command.expected_data_in.unwrap());
                let full = CommandStatus { data_in_length: u64::from(wanted), ..status(Status::Good) };
                let mut offset = 0;
                self.tasks.insert(task, Task { exchange, written: vec![], total, lent: 0, received: 0 });
                while offset < total {
                    let length = BURST.min(total - offset);
                    let mut data = self.pool.acquire(length).unwrap();
                    data.copy_from_slice(&pattern(offset, length as usize));
                    let last = offset + length == total;
                    port.send_data_in(exchange, task, offset, data, last.then_some(full));
                    offset += length;
                }
                if total == 0 {
                    port.send_command_complete(exchange, task, full);
                }
            }
            0x2A => {
                let mut written = vec![0; total_out as usize];
                let mut received = 0;
                if let Some(data) = &command.data_out {
                    written[..data.len()].copy_from_slice(data);
                    received = data.len() as u32;
                }
                self.tasks
                    .insert(task, Task { exchange, written, total: total_out, lent: received, received });
                self.go_on(port, task);
            }
            0xFF => self.kept.push((exchange, task)),
            _ => {
                self.tasks.insert(task, Task { exchange, written: vec![], total: 0, lent: 0, received: 0 });
                port.send_command_complete(exchange, task, status(Status::Good));
            }
        }
    }

    fn go_on(&mut self, port: &mut IscsiPort<Net>, task: TaskId) {
        let of = self.tasks.get_mut(&task).unwrap();
        if of.received == of.total {
            self.blocks.insert(of.total, std::mem::take(&mut of.written));
            let good = CommandStatus { data_out_length: u64::from(of.total), ..status(Status::Good) };
            port.send_command_complete(of.exchange, task, good);
            return;
        }
        while of.lent < of.total && of.lent - of.received < self.bursts * BURST {
            let length = BURST.min(of.total - of.lent);
            let data = self.pool.acquire(length).unwrap();
            let offset = of.lent;
            of.lent += length;
            port.receive_data_out(of.exchange, task, offset, data);
        }
    }
}

struct Lab {
    port: IscsiPort<Net>,
    engine: Engine,
    pool: BufferPool,
    now: Instant,
}

fn config(options: Options, digests: bool) -> Arc<Config> {
    Arc::new(Config {
        generation: 1,
        options,
        portal_groups: vec![PortalGroup {
            tag: 1,
            portals: vec![Portal { address: "10.0.0.1:3260".parse().unwrap(), advertised: None }],
            private: false,
        }],
        initiator_groups: vec![InitiatorGroup {
            tag: 1,
            initiators: vec!["ANY".into()],
            netmasks: vec!["ANY".into()],
        }],
        targets: vec![TargetNode {
            target: TargetDeviceId(0),
            name: "iqn.2024-01.org.test:disk".into(),
            alias: None,
            maps: vec![PortalGroupMap { portal_group: 1, initiator_group: 1 }],
            auth: AuthPolicy { disable_chap: true, ..AuthPolicy::default() },
            header_digest: digests,
            data_digest: digests,
            queue_depth: 0,
        }],
        discovery_auth: AuthPolicy { disable_chap: true, ..AuthPolicy::default() },
        ready: true,
        ..Config::default()
    })
}

impl Lab {
    fn new(options: Options, digests: bool) -> Lab {
        Lab::with_pool(options, digests, 64)
    }

    fn with_pool(options: Options, digests: bool, slots: u32) -> Lab {
        let pool = BufferPool::plain(&[
            PoolClass { size: 8192, count: slots },
            PoolClass { size: 65536, count: slots },
            PoolClass { size: 262_144, count: slots },
        ]);
        let limits = Limits { sessions_max: 8, tasks_max: 64, ..Limits::default() };
        let port =
            IscsiPort::new(CoreId(1), Net::default(), pool.clone(), limits, config(options, digests), 99);
        let engine = Engine {
            pool: pool.clone(),
            tasks: HashMap::new(),
            next_task: 0,
            blocks: HashMap::new(),
            log: vec![],
            kept: vec![],
            hold_nexus: false,
            bursts: 2,
        };
        Lab { port, engine, pool, now: Instant::from_nanos(1_000_000_000) }
    }

    fn connect(&mut self) -> Initiator {
        let wire = Rc::new(RefCell::new(Wire::default()));
        self.port.network_mut().arriving.push_back(Rc::clone(&wire));
        Initiator {
            wire,
            header_digest: false,
            data_digest: false,
            cmd_sn: 10,
            taken: 0,
            tag: 100,
            stat_sn: None,
        }
    }

    fn turn(&mut self) {
        let mut events = vec![];
        self.port.poll(self.now, &mut |event| events.push(event));
        for event in events {
            self.engine.handle(&mut self.port, event);
        }
        self.port.flush(self.now);
    }

    fn run(&mut self) {
        for _ in 0..12 {
            self.turn();
        }
    }

    fn login(&mut self, keys: &str) -> Initiator {
        let mut initiator = self.connect();
        initiator.login(self, keys);
        initiator
    }

    fn outstanding(&self) -> u32 {
        self.pool.statistics().outstanding
    }
}

struct Initiator {
    wire: Rc<RefCell<Wire>>,
    header_digest: bool,
    data_digest: bool,
    cmd_sn: u32,
    taken: usize,
    tag: u32,
    stat_sn: Option<u32>,
}

impl Initiator {
    fn bytes(&self, pdu: &Pdu, data: &[u8]) -> Vec<u8> {
        let mut bhs = [0; 48];
        pdu.emit(&mut bhs);
        let mut out = bhs.to_vec();
        if self.header_digest {
            out.extend(digest::to_wire(digest::crc32c_of(&bhs)));
        }
        if !data.is_empty() {
            let mut padded = data.to_vec();
            padded.resize(data.len().next_multiple_of(4), 0);
            let value = digest::to_wire(digest::crc32c_of(&padded));
            out.extend(padded);
            if self.data_digest {
                out.extend(value);
            }
        }
        out
    }

    fn raw(&self, bytes: &[u8]) {
        let mut wire = self.wire.borrow_mut();
        wire.to_port.extend(bytes);
        wire.readiness.readable = true;
    }

    fn send(&self, pdu: &Pdu, data: &[u8]) {
        self.raw(&self.bytes(pdu, data));
    }

    fn login(&mut self, lab: &mut Lab, keys: &str) {
        let text = format!(
            "InitiatorName=iqn.2024-01.org.test:host\0TargetName=iqn.2024-01.org.test:disk\0SessionType=Normal\0{keys}"
        );
        self.send(&Pdu::LoginRequest(self.login_request(text.len())), text.as_bytes());
        lab.run();
        let (pdu, data) = self.next().expect("a login response");
        let Pdu::LoginResponse(response) = pdu else { panic!("{pdu:?}") };
        let reply = String::from_utf8_lossy(&data).replace('\0', " ");
        assert_eq!((response.status_class, response.status_detail), (0, 0), "{reply}");
        assert!(
            response.transit && response.next_stage == LoginStage::FullFeaturePhase,
            "{response:?} {reply}"
        );
        assert_ne!(response.tsih, 0);
        assert_eq!(response.exp_cmd_sn, self.cmd_sn);
        self.header_digest = reply.contains("HeaderDigest=CRC32C");
        self.data_digest = reply.contains("DataDigest=CRC32C");
    }

    fn login_request(&self, length: usize) -> LoginRequest {
        LoginRequest {
            transit: true,
            continue_: false,
            current_stage: LoginStage::LoginOperationalNegotiation,
            next_stage: LoginStage::FullFeaturePhase,
            version_max: 0,
            version_min: 0,
            isid: [0x40, 0, 0, 1, 0, 1],
            tsih: 0,
            initiator_task_tag: 1,
            cid: 7,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
            data_segment_length: length as u32,
        }
    }

    /// The next PDU the port sent, with digests checked and StatSN followed.
    fn next(&mut self) -> Option<(Pdu, Vec<u8>)> {
        let wire = self.wire.borrow();
        let bytes = &wire.from_port[self.taken..];
        let bhs: Bhs = bytes.get(..48)?.try_into().unwrap();
        let lengths = lengths(&bhs);
        let mut at = 48;
        if self.header_digest {
            let value: [u8; 4] = bytes.get(at..at + 4)?.try_into().unwrap();
            assert_eq!(digest::from_wire(value), digest::crc32c_of(&bhs), "header digest");
            at += 4;
        }
        let data = bytes.get(at..at + lengths.data)?.to_vec();
        let end = at + lengths.data.next_multiple_of(4);
        let padded = bytes.get(at..end)?;
        at = end;
        if self.data_digest && lengths.data > 0 {
            let value: [u8; 4] = bytes.get(at..at + 4)?.try_into().unwrap();
            assert_eq!(digest::from_wire(value), digest::crc32c_of(padded), "data digest");
            at += 4;
        }
        self.taken += at;
        let pdu = Pdu::parse(&bhs, &[]).expect("the port sends what can be parsed");
        let stat_sn = match &pdu {
            Pdu::ScsiResponse(p) => Some(p.stat_sn),
            Pdu::DataIn(p) if p.status.is_some() => Some(p.stat_sn),
            Pdu::LoginResponse(p) => Some(p.stat_sn),
            Pdu::Reject(p) => Some(p.stat_sn),
            Pdu::TaskManagementResponse(p) => Some(p.stat_sn),
            Pdu::LogoutResponse(p) => Some(p.stat_sn),
            Pdu::TextResponse(p) => Some(p.stat_sn),
            Pdu::AsyncMessage(p) => Some(p.stat_sn),
            Pdu::NopIn(p) if p.initiator_task_tag != RESERVED_TAG => Some(p.stat_sn),
            _ => None,
        };
        if let Some(stat_sn) = stat_sn {
            assert_eq!(stat_sn, *self.stat_sn.get_or_insert(stat_sn), "StatSN without gaps");
            self.stat_sn = Some(stat_sn.wrapping_add(1));
        }
        Some((pdu, data))
    }

    fn all(&mut self) -> Vec<(Pdu, Vec<u8>)> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn scsi(&mut self, opcode: u8, blocks: u16) -> ScsiCommand {
        let mut cdb = [0u8; 16];
        cdb[0] = opcode;
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        self.tag += 1;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        ScsiCommand {
            immediate: false,
            final_: true,
            read: opcode == 0x28,
            write: opcode == 0x2A,
            attribute: TaskAttribute::Simple,
            lun: Lun::ZERO,
            initiator_task_tag: self.tag,
            expected_data_transfer_length: u32::from(blocks) * 512,
            cmd_sn: self.cmd_sn.wrapping_sub(1),
            exp_stat_sn: 0,
            cdb: Cdb::new(&cdb),
            bidirectional_read_length: None,
            data_segment_length: 0,
        }
    }

    fn command(&mut self, command: ScsiCommand, data: &[u8]) {
        let command = ScsiCommand { data_segment_length: data.len() as u32, ..command };
        self.send(&Pdu::ScsiCommand(command), data);
    }

    fn data_out(&self, tag: u32, ttt: u32, sn: u32, offset: u32, final_: bool, data: &[u8]) {
        let pdu = DataOut {
            final_,
            lun: Lun::ZERO,
            initiator_task_tag: tag,
            target_transfer_tag: ttt,
            exp_stat_sn: 0,
            data_sn: sn,
            buffer_offset: offset,
            data_segment_length: data.len() as u32,
        };
        self.send(&Pdu::DataOut(pdu), data);
    }

    /// Writes `data`, answering R2Ts with PDUs of at most `segment`; returns the response.
    fn write(
        &mut self,
        lab: &mut Lab,
        data: &[u8],
        immediate: usize,
        unsolicited: usize,
        segment: usize,
    ) -> ScsiResponse {
        let mut command = self.scsi(0x2A, (data.len() / 512) as u16);
        command.final_ = unsolicited == 0;
        let tag = command.initiator_task_tag;
        self.command(command, &data[..immediate]);
        let mut at = immediate;
        let mut sn = 0;
        while at < immediate + unsolicited {
            let end = (at + segment).min(immediate + unsolicited);
            self.data_out(tag, RESERVED_TAG, sn, at as u32, end == immediate + unsolicited, &data[at..end]);
            (at, sn) = (end, sn + 1);
        }
        for _ in 0..1000 {
            lab.turn();
            for (pdu, _) in self.all() {
                match pdu {
                    Pdu::R2t(r2t) => {
                        let (mut at, mut sn) = (r2t.buffer_offset as usize, 0);
                        let end = at + r2t.desired_data_transfer_length as usize;
                        while at < end {
                            let next = (at + segment).min(end);
                            let ttt = r2t.target_transfer_tag;
                            self.data_out(tag, ttt, sn, at as u32, next == end, &data[at..next]);
                            (at, sn) = (next, sn + 1);
                        }
                    }
                    Pdu::ScsiResponse(response) if response.initiator_task_tag == tag => return response,
                    other => panic!("{other:?}"),
                }
            }
        }
        panic!("no response");
    }

    /// Reads; returns the data and the last PDU.
    fn read(&mut self, lab: &mut Lab, blocks: u16) -> (Vec<u8>, Pdu) {
        let command = self.scsi(0x28, blocks);
        self.command(command, &[]);
        let mut data = vec![];
        let mut sn = 0;
        for _ in 0..1000 {
            lab.turn();
            for (pdu, bytes) in self.all() {
                if let Pdu::DataIn(p) = &pdu {
                    assert_eq!((p.data_sn, p.buffer_offset as usize), (sn, data.len()));
                    sn += 1;
                    data.extend(bytes);
                }
                if matches!(pdu, Pdu::ScsiResponse(_)) || matches!(pdu, Pdu::DataIn(p) if p.status.is_some())
                {
                    return (data, pdu);
                }
            }
        }
        panic!("no response");
    }
}

const KEYS: &str = "InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=16384\0MaxBurstLength=262144\0FirstBurstLength=65536\0MaxOutstandingR2T=4\0";

#[test]
fn reads_are_cut_into_segments_and_status_is_collapsed() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let (data, last) = initiator.read(&mut lab, 200);
    assert_eq!(data, {
        let mut all = pattern(0, BURST as usize);
        all.extend(pattern(BURST, 200 * 512 - BURST as usize));
        all
    });
    let Pdu::DataIn(last) = last else { panic!("{last:?}") };
    assert!(last.final_ && last.status == Some(Status::Good) && !last.residual_underflow);
    assert_eq!((last.exp_cmd_sn, last.max_cmd_sn), (11, 11 + 127));
    lab.run();
    assert_eq!(lab.engine.log.last().unwrap(), "delivered");
    assert_eq!(lab.outstanding(), 0);
}

#[test]
fn residuals_say_what_was_not_moved() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let mut command = initiator.scsi(0x28, 2);
    command.expected_data_transfer_length = 512;
    initiator.command(command, &[]);
    let mut command = initiator.scsi(0x28, 2);
    command.expected_data_transfer_length = 4096;
    initiator.command(command, &[]);
    lab.run();
    let all = initiator.all();
    let Pdu::DataIn(over) = all[0].0 else { panic!() };
    let Pdu::DataIn(under) = all[1].0 else { panic!() };
    assert!(over.residual_overflow && over.residual_count == 512 && over.data_segment_length == 512);
    assert!(under.residual_underflow && under.residual_count == 3072);
}

#[test]
fn writes_arrive_whole_and_are_never_copied() {
    for digests in [false, true] {
        let mut lab = Lab::new(Options::default(), digests);
        let keys = if digests {
            format!("{KEYS}HeaderDigest=CRC32C\0DataDigest=CRC32C\0")
        } else {
            KEYS.to_string()
        };
        let mut initiator = lab.login(&keys);
        assert_eq!(initiator.header_digest && initiator.data_digest, digests);
        // (length, immediate): all immediate, part immediate, all solicited.
        for (blocks, immediate) in [(8, 4096), (128, 65536), (300, 65536), (300, 1000), (600, 0)] {
            let data = pattern(3, blocks * 512);
            let response = initiator.write(&mut lab, &data, immediate, 0, 10_000);
            assert_eq!((response.status, response.residual_count), (Status::Good, 0));
            assert_eq!(
                lab.engine.blocks[&(data.len() as u32)],
                data,
                "{blocks} blocks, {immediate} immediate"
            );
        }
        assert_eq!(lab.port.payload_bytes_copied(), 0);
        assert_eq!(lab.outstanding(), 0);
    }
}

#[test]
fn unsolicited_data_is_kept_and_the_rest_is_solicited() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    for (blocks, immediate, unsolicited) in
        [(128, 0, 65536), (300, 0, 65536), (300, 4096, 61440), (16, 0, 8192)]
    {
        let data = pattern(9, blocks * 512);
        let response = initiator.write(&mut lab, &data, immediate, unsolicited, 8192);
        assert_eq!(response.status, Status::Good);
        assert_eq!(lab.engine.blocks[&(data.len() as u32)], data);
        assert_eq!(lab.outstanding(), 0);
    }
}

#[test]
fn unsolicited_data_in_one_pdu_is_not_copied() {
    for (digests, step) in [(false, None), (true, None), (false, Some(1000)), (true, Some(1000))] {
        let mut lab = Lab::new(Options::default(), digests);
        let digest = if digests { "HeaderDigest=CRC32C\0DataDigest=CRC32C\0" } else { "" };
        let mut initiator = lab.login(&format!("{KEYS}{digest}"));
        initiator.wire.borrow_mut().receive_max = step;
        for blocks in [8, 16, 128, 1, 8] {
            let data = pattern(5, blocks * 512);
            let response = initiator.write(&mut lab, &data, 0, data.len(), 65536);
            assert_eq!(response.status, Status::Good);
            assert_eq!(lab.engine.blocks[&(data.len() as u32)], data);
            assert_eq!(lab.port.payload_bytes_copied(), 0, "{blocks} blocks");
        }
        lab.run();
        assert_eq!(lab.outstanding(), 0);
    }
}

#[test]
fn unsolicited_data_is_never_more_than_a_buffer_holds() {
    let options = Options { max_burst_length: 1 << 20, first_burst_length: 1 << 20, ..Options::default() };
    let mut lab = Lab::new(options, false);
    let keys = "InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=1048576\0FirstBurstLength=1048576\0";
    let mut initiator = lab.connect();
    initiator.login(&mut lab, keys);
    let reply = String::from_utf8_lossy(&initiator.wire.borrow().from_port).replace('\0', " ");
    let first = reply.split("FirstBurstLength=").nth(1).and_then(|rest| rest.split(' ').next());
    let first: usize = first.expect("an answer").parse().unwrap();
    let data = pattern(0, 512 * 1024);
    let unsolicited = first.min(data.len());
    let response = initiator.write(&mut lab, &data, 0, unsolicited, 8192);
    assert_eq!(response.status, Status::Good);
    assert_eq!(lab.engine.blocks[&(512 * 1024)], data);
}

#[test]
fn bytes_split_anywhere_change_nothing() {
    for digests in [false, true] {
        for step in (1..64).chain([100, 1000, 4095]) {
            let mut lab = Lab::new(Options::default(), digests);
            let keys = if digests {
                format!("{KEYS}HeaderDigest=CRC32C\0DataDigest=CRC32C\0")
            } else {
                KEYS.to_string()
            };
            let mut initiator = lab.login(&keys);
            {
                let mut wire = initiator.wire.borrow_mut();
                wire.receive_max = Some(step);
                wire.send_max = Some(step);
            }
            let data = pattern(1, 10 * 512);
            assert_eq!(initiator.write(&mut lab, &data, 1001, 0, 777).status, Status::Good);
            assert_eq!(lab.engine.blocks[&5120], data);
            assert_eq!(initiator.read(&mut lab, 3).0, pattern(0, 1536));
            assert_eq!(lab.outstanding(), 0);
        }
    }
}

#[test]
fn many_small_writes_share_one_receive() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let receives = initiator.wire.borrow().receives;
    for _ in 0..30 {
        let command = initiator.scsi(0x2A, 8);
        initiator.command(command, &pattern(5, 4096));
    }
    lab.turn();
    let responses = initiator.all();
    assert_eq!(responses.len(), 30);
    assert!(initiator.wire.borrow().receives - receives <= 4);
    assert_eq!(lab.port.payload_bytes_copied(), 0);
    lab.run();
    assert_eq!(lab.outstanding(), 0);
}

#[test]
fn commands_outside_the_window_are_ignored() {
    let mut lab = Lab::new(Options { queue_depth_max: 4, ..Options::default() }, false);
    let mut initiator = lab.login(KEYS);
    let mut late = initiator.scsi(0x2A, 1);
    late.cmd_sn = 9;
    initiator.command(late, &[1; 512]);
    late.cmd_sn = 14;
    initiator.command(late, &[2; 512]);
    lab.run();
    assert!(initiator.all().is_empty());
    initiator.cmd_sn = 10;
    assert_eq!(initiator.read(&mut lab, 1).0.len(), 512);
    let mut gap = initiator.scsi(0x00, 0);
    gap.cmd_sn += 1;
    initiator.command(gap, &[]);
    lab.run();
    assert!(initiator.wire.borrow().dropped, "a hole in CmdSN never fills without recovery");
    assert_eq!(lab.engine.log.last().unwrap(), "nexus lost");
}

#[test]
fn a_full_queue_closes_the_window() {
    let mut lab = Lab::new(Options { queue_depth_max: 2, ..Options::default() }, false);
    let mut initiator = lab.login(KEYS);
    for _ in 0..3 {
        let mut command = initiator.scsi(0xFF, 0);
        command.read = false;
        initiator.command(command, &[]);
    }
    lab.run();
    assert_eq!(lab.engine.kept.len(), 2, "the third is outside the window");
    let (exchange, task) = lab.engine.kept.remove(0);
    lab.port.send_command_complete(exchange, task, status(Status::Good));
    lab.run();
    let Pdu::ScsiResponse(response) = initiator.all()[0].0 else { panic!() };
    assert_eq!((response.exp_cmd_sn, response.max_cmd_sn), (12, 12));
}

#[test]
fn nop_and_logout_and_task_management() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let nop = NopOut {
        immediate: true,
        lun: Lun::ZERO,
        initiator_task_tag: 5,
        target_transfer_tag: RESERVED_TAG,
        cmd_sn: 10,
        exp_stat_sn: 0,
        data_segment_length: 5,
    };
    initiator.send(&Pdu::NopOut(nop), b"hello");
    let abort = TaskManagementRequest {
        immediate: true,
        function: 1,
        lun: Lun::ZERO,
        initiator_task_tag: 6,
        referenced_task_tag: 77,
        cmd_sn: 10,
        exp_stat_sn: 0,
        ref_cmd_sn: 3,
        exp_data_sn: 0,
    };
    initiator.send(&Pdu::TaskManagementRequest(abort), &[]);
    initiator.send(&Pdu::TaskManagementRequest(TaskManagementRequest { function: 8, ..abort }), &[]);
    lab.run();
    let all = initiator.all();
    assert!(matches!(all[0], (Pdu::NopIn(p), ref data) if p.initiator_task_tag == 5 && data == b"hello"));
    assert!(matches!(all[1].0, Pdu::TaskManagementResponse(p) if p.response == 4));
    assert!(matches!(all[2].0, Pdu::TaskManagementResponse(p) if p.response == 0));
    assert!(
        lab.engine.log.iter().any(|line| line.contains("AbortTask Some(TaskTag(77))")),
        "{:?}",
        lab.engine.log
    );
    let logout = LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseConnection,
        initiator_task_tag: 9,
        cid: 8,
        cmd_sn: 10,
        exp_stat_sn: 0,
    };
    initiator.send(&Pdu::LogoutRequest(logout), &[]);
    initiator.send(&Pdu::LogoutRequest(LogoutRequest { cid: 7, ..logout }), &[]);
    lab.run();
    let all = initiator.all();
    assert!(matches!(all[0].0, Pdu::LogoutResponse(p) if p.response == LogoutResponseCode::CidNotFound));
    assert!(matches!(all[1].0, Pdu::LogoutResponse(p) if p.response == LogoutResponseCode::Closed));
    assert!(initiator.wire.borrow().dropped);
    assert_eq!(lab.engine.log.last().unwrap(), "nexus lost");
    assert_eq!((lab.outstanding(), lab.port.sessions_to_end()), (0, 0));
}

#[test]
fn a_terminated_write_waits_for_its_data_and_gets_no_answer() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let command = initiator.scsi(0x2A, 128);
    let tag = command.initiator_task_tag;
    initiator.command(command, &[]);
    lab.run();
    let Pdu::R2t(r2t) = initiator.all()[0].0 else { panic!() };
    let task = *lab.engine.tasks.keys().next().unwrap();
    lab.port.terminate_data_transfer(lab.engine.tasks[&task].exchange, task);
    lab.run();
    assert!(!lab.engine.log.contains(&"terminated".to_string()), "an R2T is outstanding");
    initiator.data_out(tag, r2t.target_transfer_tag, 0, 0, true, &[7; 1000]);
    lab.run();
    assert_eq!(lab.engine.log.last().unwrap(), "terminated");
    assert_eq!(lab.outstanding(), 0);
    // Late data for it is thrown away, and the connection goes on.
    initiator.data_out(tag, r2t.target_transfer_tag, 1, 1000, true, &[7; 1000]);
    assert_eq!(initiator.read(&mut lab, 1).0.len(), 512);
}

#[test]
fn a_terminated_write_does_not_wait_forever() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let command = initiator.scsi(0x2A, 128);
    let tag = command.initiator_task_tag;
    initiator.command(command, &[]);
    lab.run();
    let Pdu::R2t(r2t) = initiator.all()[0].0 else { panic!() };
    let bytes = {
        initiator.data_out(tag, r2t.target_transfer_tag, 0, 0, false, &[7; 1000]);
        let mut wire = initiator.wire.borrow_mut();
        let keep = wire.to_port.len() - 500;
        wire.to_port.split_off(keep).into_iter().collect::<Vec<u8>>()
    };
    lab.run();
    let task = *lab.engine.tasks.keys().next().unwrap();
    lab.port.terminate_data_transfer(lab.engine.tasks[&task].exchange, task);
    lab.run();
    lab.now = lab.now + Duration::from_secs(2);
    lab.run();
    assert_eq!(lab.engine.log.last().unwrap(), "terminated");
    assert_eq!(lab.outstanding(), 0, "lent buffers are home although the PDU is half here");
    initiator.raw(&bytes);
    assert_eq!(initiator.read(&mut lab, 1).0.len(), 512);
}

#[test]
fn an_early_error_waits_for_the_data_that_was_asked_for() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    let command = initiator.scsi(0x2A, 128);
    let tag = command.initiator_task_tag;
    initiator.command(command, &[]);
    lab.run();
    let Pdu::R2t(r2t) = initiator.all()[0].0 else { panic!() };
    let task = *lab.engine.tasks.keys().next().unwrap();
    let sense = Some(Sense::new(SenseKey::MediumError, 0x0C, 0));
    let failed = CommandStatus { sense, ..status(Status::CheckCondition) };
    lab.port.send_command_complete(lab.engine.tasks[&task].exchange, task, failed);
    lab.run();
    assert!(initiator.all().is_empty());
    initiator.data_out(tag, r2t.target_transfer_tag, 0, 0, true, &[7; 65536]);
    lab.run();
    let all = initiator.all();
    let Pdu::ScsiResponse(response) = all[0].0 else { panic!() };
    assert_eq!(response.status, Status::CheckCondition);
    assert_eq!(&all[0].1[..5], &[0, 18, 0x70, 0, 0x03]);
    assert_eq!((all[0].1[14], all[0].1[15]), (0x0C, 0));
}

#[test]
fn data_digest_errors_fail_the_task_only() {
    let mut lab = Lab::new(Options::default(), true);
    let mut initiator = lab.login(&format!("{KEYS}HeaderDigest=CRC32C\0DataDigest=CRC32C\0"));
    let command = initiator.scsi(0x2A, 1);
    let tag = command.initiator_task_tag;
    initiator.command(command, &[]);
    lab.run();
    let Pdu::R2t(r2t) = initiator.all()[0].0 else { panic!() };
    initiator.data_out(tag, r2t.target_transfer_tag, 0, 0, true, &[7; 512]);
    *initiator.wire.borrow_mut().to_port.back_mut().unwrap() ^= 1;
    lab.run();
    let all = initiator.all();
    assert!(matches!(all[0].0, Pdu::Reject(p) if p.reason == RejectReason::DataDigestError));
    assert!(matches!(all[1].0, Pdu::ScsiResponse(p) if p.status == Status::CheckCondition));
    assert!(lab.engine.log.contains(&"failed 47/05".to_string()));
    // A header digest error is the end of the connection.
    let command = initiator.scsi(0x00, 0);
    initiator.command(command, &[]);
    *initiator.wire.borrow_mut().to_port.back_mut().unwrap() ^= 1;
    lab.run();
    assert!(initiator.wire.borrow().dropped);
}

#[test]
fn violations_are_rejected_or_end_the_session() {
    let mut lab = Lab::new(Options { immediate_data: false, ..Options::default() }, false);
    let mut initiator = lab.login("ImmediateData=No\0InitialR2T=Yes\0");
    let command = initiator.scsi(0x2A, 1);
    initiator.command(command, &[1; 512]);
    let mut command = initiator.scsi(0x2A, 1);
    command.final_ = false;
    initiator.command(command, &[]);
    let mut bhs = [0; 48];
    bhs[0] = 0x1C;
    initiator.raw(&bhs);
    let snack = SnackRequest {
        kind: SnackType::Status,
        lun: Lun::ZERO,
        initiator_task_tag: RESERVED_TAG,
        target_transfer_tag: RESERVED_TAG,
        exp_stat_sn: 0,
        beg_run: 0,
        run_length: 0,
    };
    initiator.send(&Pdu::SnackRequest(snack), &[]);
    lab.run();
    let reasons: Vec<_> = initiator
        .all()
        .iter()
        .map(|(pdu, data)| {
            assert_eq!(data.len(), 48);
            let Pdu::Reject(reject) = pdu else { panic!("{pdu:?}") };
            reject.reason
        })
        .collect();
    assert_eq!(&reasons[..2], &[RejectReason::ProtocolError; 2]);
    assert_eq!(reasons[3], RejectReason::SnackReject);
    assert_eq!(initiator.read(&mut lab, 1).0.len(), 512, "the session goes on");
    let command = initiator.scsi(0x2A, 128);
    let tag = command.initiator_task_tag;
    initiator.command(command, &[]);
    lab.run();
    let Pdu::R2t(r2t) = initiator.all()[0].0 else { panic!() };
    initiator.data_out(tag, r2t.target_transfer_tag, 0, 512, false, &[7; 512]);
    lab.run();
    assert!(initiator.wire.borrow().dropped, "data out of order");
    assert_eq!(lab.outstanding(), 0);
}

#[test]
fn a_dry_pool_starves_commands_and_nothing_hangs() {
    let mut lab = Lab::with_pool(Options::default(), false, 2);
    let mut initiator = lab.login(KEYS);
    let hoard: Vec<DataBuf> = std::iter::from_fn(|| lab.pool.acquire(1)).collect();
    let command = initiator.scsi(0x2A, 8);
    initiator.command(command, &[1; 4096]);
    let mut command = initiator.scsi(0x2A, 16);
    command.final_ = false;
    let tag = command.initiator_task_tag;
    initiator.command(command, &[]);
    initiator.data_out(tag, RESERVED_TAG, 0, 0, true, &[1; 8192]);
    lab.run();
    let all = initiator.all();
    assert_eq!(all.len(), 2);
    for (pdu, _) in all {
        assert!(matches!(pdu, Pdu::ScsiResponse(p) if p.status == Status::TaskSetFull), "{pdu:?}");
    }
    drop(hoard);
    assert_eq!(initiator.read(&mut lab, 1).0.len(), 512);
    assert_eq!(lab.outstanding(), 0);
}

#[test]
fn a_dead_connection_answers_for_its_exchanges() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    initiator.wire.borrow_mut().window = Some(100);
    let command = initiator.scsi(0x2A, 128);
    initiator.command(command, &[]);
    for (opcode, blocks) in [(0x28, 100), (0x28, 100), (0xFF, 0)] {
        let command = initiator.scsi(opcode, blocks);
        initiator.command(command, &[]);
    }
    lab.run();
    assert!(lab.outstanding() > 0);
    initiator.wire.borrow_mut().closed = true;
    initiator.wire.borrow_mut().readiness.readable = true;
    lab.run();
    assert_eq!(lab.engine.log.iter().filter(|line| *line == "nexus lost").count(), 1, "{:?}", lab.engine.log);
    assert_eq!(lab.engine.log.iter().filter(|line| *line == "terminated").count(), 2);
    assert!(lab.engine.tasks.is_empty());
    assert_eq!(lab.outstanding(), 0);
    let mut reports = vec![];
    lab.port.report(&mut reports);
    assert!(reports.is_empty());
    lab.login(KEYS);
}

#[test]
fn a_silent_peer_is_asked_and_then_dropped() {
    let mut lab = Lab::new(Options { nop_in_interval_s: 5, nop_timeout_s: 3, ..Options::default() }, false);
    let mut initiator = lab.login(KEYS);
    lab.now = lab.now + Duration::from_secs(6);
    lab.run();
    let Pdu::NopIn(ping) = initiator.all()[0].0 else { panic!() };
    assert_eq!(ping.initiator_task_tag, RESERVED_TAG);
    let answer = NopOut {
        immediate: true,
        lun: Lun::ZERO,
        initiator_task_tag: RESERVED_TAG,
        target_transfer_tag: ping.target_transfer_tag,
        cmd_sn: 10,
        exp_stat_sn: 0,
        data_segment_length: 0,
    };
    initiator.send(&Pdu::NopOut(answer), &[]);
    lab.run();
    lab.now = lab.now + Duration::from_secs(4);
    lab.run();
    assert!(!initiator.wire.borrow().dropped);
    lab.now = lab.now + Duration::from_secs(2);
    lab.run();
    assert_eq!(initiator.all().len(), 1);
    lab.now = lab.now + Duration::from_secs(4);
    lab.run();
    assert!(initiator.wire.borrow().dropped);
}

fn answer_to(ping: &NopIn, cmd_sn: u32) -> Pdu {
    Pdu::NopOut(NopOut {
        immediate: true,
        lun: Lun::ZERO,
        initiator_task_tag: RESERVED_TAG,
        target_transfer_tag: ping.target_transfer_tag,
        cmd_sn,
        exp_stat_sn: 0,
        data_segment_length: 0,
    })
}

fn pings(pdus: &[(Pdu, Vec<u8>)]) -> Vec<NopIn> {
    pdus.iter().filter_map(|(pdu, _)| if let Pdu::NopIn(ping) = pdu { Some(*ping) } else { None }).collect()
}

#[test]
fn a_peer_that_takes_data_slowly_is_not_silent() {
    let options = Options { nop_in_interval_s: 5, nop_timeout_s: 3, ..Options::default() };
    let mut lab = Lab::new(options, false);
    let mut initiator = lab.login(KEYS);
    initiator.wire.borrow_mut().window = Some(0);
    for _ in 0..4 {
        let command = initiator.scsi(0x28, 256);
        initiator.command(command, &[]);
    }
    // The ping waits behind half a megabyte, which takes longer than both times together.
    let mut seen = vec![];
    for _ in 0..30 {
        lab.run();
        lab.now = lab.now + Duration::from_secs(1);
        let mut wire = initiator.wire.borrow_mut();
        assert!(!wire.dropped, "dropped while data flowed");
        wire.window = Some(wire.window.unwrap_or(0) + 30_000);
        wire.readiness.writable = true;
        drop(wire);
        seen.extend(initiator.all());
        if let Some(ping) = pings(&seen).last() {
            initiator.send(&answer_to(ping, initiator.cmd_sn), &[]);
            lab.run();
            break;
        }
    }
    assert_eq!(pings(&seen).len(), 1);
    // Then it takes nothing and says nothing.
    for _ in 0..10 {
        lab.now = lab.now + Duration::from_secs(1);
        lab.run();
    }
    assert!(initiator.wire.borrow().dropped);
}

#[test]
fn a_peer_that_answers_pings_but_withholds_its_data_is_dropped() {
    let mut lab = Lab::new(Options { nop_in_interval_s: 5, ..Options::default() }, false);
    let mut initiator = lab.login(KEYS);
    let command = ScsiCommand { final_: true, ..initiator.scsi(0x2A, 128) };
    initiator.command(command, &[]);
    lab.run();
    assert!(matches!(initiator.all()[0].0, Pdu::R2t(_)));
    let mut seconds = 0;
    while !initiator.wire.borrow().dropped && seconds < 120 {
        lab.now = lab.now + Duration::from_secs(1);
        seconds += 1;
        lab.run();
        for ping in pings(&initiator.all()) {
            initiator.send(&answer_to(&ping, initiator.cmd_sn), &[]);
        }
        lab.run();
    }
    assert!((60..=75).contains(&seconds), "dropped after {seconds} s");
}

#[test]
fn a_peer_that_sends_data_slowly_is_not_silent() {
    let options = Options { nop_in_interval_s: 5, nop_timeout_s: 3, ..Options::default() };
    let mut lab = Lab::new(options, false);
    let mut initiator = lab.login(KEYS);
    let command = ScsiCommand { final_: true, ..initiator.scsi(0x2A, 128) };
    initiator.command(command, &[]);
    lab.run();
    let Pdu::R2t(r2t) = initiator.all()[0].0 else { panic!() };
    lab.now = lab.now + Duration::from_secs(6);
    lab.run();
    let ping = pings(&initiator.all())[0];
    let data = pattern(0, 128 * 512);
    let pdu = DataOut {
        final_: true,
        lun: Lun::ZERO,
        initiator_task_tag: command.initiator_task_tag,
        target_transfer_tag: r2t.target_transfer_tag,
        exp_stat_sn: 0,
        data_sn: 0,
        buffer_offset: 0,
        data_segment_length: data.len() as u32,
    };
    let bytes = initiator.bytes(&Pdu::DataOut(pdu), &data);
    for piece in bytes.chunks(8192) {
        lab.now = lab.now + Duration::from_secs(1);
        initiator.raw(piece);
        lab.run();
        assert!(!initiator.wire.borrow().dropped, "dropped while data flowed");
    }
    initiator.send(&answer_to(&ping, initiator.cmd_sn), &[]);
    lab.run();
    assert!(matches!(initiator.all()[0].0, Pdu::ScsiResponse(_)));
    assert_eq!(lab.engine.blocks[&(128 * 512)], data);
}

#[test]
fn logins_are_bounded_in_time_and_number() {
    let options = Options { half_open_connections_max: 3, login_timeout_s: 5, ..Options::default() };
    let mut lab = Lab::new(options, false);
    let waiting: Vec<_> = (0..5).map(|_| lab.connect()).collect();
    lab.run();
    assert_eq!(waiting.iter().filter(|one| one.wire.borrow().dropped).count(), 2);
    lab.now = lab.now + Duration::from_secs(6);
    lab.run();
    assert!(waiting.iter().all(|one| one.wire.borrow().dropped));
    let mut early = lab.connect();
    let command = early.scsi(0x00, 0);
    early.command(command, &[]);
    lab.run();
    assert!(early.wire.borrow().dropped);
    lab.login(KEYS);
    lab.login(KEYS);
    lab.login(KEYS);
    lab.login(KEYS);
}

#[test]
fn only_logins_log_in() {
    let mut lab = Lab::new(Options::default(), false);
    // Additional headers are not waited for when the header says enough.
    let mut early = lab.connect();
    let command = early.scsi(0x00, 0);
    let mut head = early.bytes(&Pdu::ScsiCommand(command), &[]);
    head[4] = 47;
    early.raw(&head);
    lab.run();
    assert!(early.wire.borrow().dropped && early.all().is_empty());
    let mut late = lab.connect();
    let text = b"InitiatorName=iqn.2024-01.org.test:host\0SessionType=Discovery\0";
    late.send(&Pdu::LoginRequest(LoginRequest { transit: false, ..late.login_request(text.len()) }), text);
    lab.run();
    assert_eq!(late.all().len(), 1);
    let command = late.scsi(0x00, 0);
    late.command(command, &[]);
    lab.run();
    let answers = late.all();
    assert!(
        matches!(
            answers[..],
            [(Pdu::LoginResponse(LoginResponse { status_class: 2, status_detail: 0x0B, .. }), _)]
        ),
        "{answers:?}"
    );
    assert!(late.wire.borrow().dropped);
}

#[test]
fn the_last_login_response_waits_for_the_nexus() {
    let mut lab = Lab::new(Options::default(), false);
    lab.engine.hold_nexus = true;
    let mut initiator = lab.connect();
    let text =
        "InitiatorName=iqn.2024-01.org.test:host\0TargetName=iqn.2024-01.org.test:disk\0SessionType=Normal\0";
    initiator.send(&Pdu::LoginRequest(initiator.login_request(text.len())), text.as_bytes());
    lab.run();
    assert_eq!(lab.engine.log, ["nexus requested"]);
    assert!(initiator.all().is_empty());
    let token = {
        let (key, _) = lab.port.session_keys().next().unwrap();
        NexusToken(key.to_u64())
    };
    lab.port.nexus_answered(token, None);
    lab.run();
    let all = initiator.all();
    assert!(matches!(all[0].0, Pdu::LoginResponse(p) if p.status_class == 3), "{all:?}");
    assert!(initiator.wire.borrow().dropped);
    assert_eq!(lab.port.session_keys().count(), 0);
}

#[test]
fn a_config_without_the_target_ends_its_sessions() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.login(KEYS);
    lab.port.request_logout(lab.now, None, Some(1), 10);
    lab.run();
    let told = initiator.all();
    assert!(
        matches!(told[0].0, Pdu::AsyncMessage(p) if p.event == AsyncEvent::LogoutRequest { seconds: 10 })
    );
    let mut without = Config::clone(&config(Options::default(), false));
    without.targets.clear();
    lab.port.set_config(lab.now, Arc::new(without));
    assert_eq!(lab.port.sessions_to_end(), 1);
    lab.run();
    assert_eq!(lab.port.sessions_to_end(), 0);
    let told = initiator.all();
    assert!(
        matches!(told[0].0, Pdu::AsyncMessage(p) if matches!(p.event, AsyncEvent::SessionDropped { .. }))
    );
    assert!(initiator.wire.borrow().dropped);
}

#[test]
fn the_engine_may_drop_a_session() {
    let mut lab = Lab::new(Options::default(), false);
    let initiator = lab.login(KEYS);
    let token = NexusToken(lab.port.session_keys().next().unwrap().0.to_u64());
    lab.port.drop_nexus(token, DropReason::Reinstated);
    lab.run();
    assert!(initiator.wire.borrow().dropped);
    assert_eq!(lab.engine.log.last().unwrap(), "nexus lost");
    assert_eq!(lab.port.session_keys().count(), 0);
}

#[test]
fn a_peer_that_takes_nothing_is_not_read_for_ever() {
    let mut lab = Lab::new(Options { queue_depth_max: 4, ..Options::default() }, false);
    let initiator = lab.login(KEYS);
    initiator.wire.borrow_mut().window = Some(10);
    let nop = NopOut {
        immediate: true,
        lun: Lun::ZERO,
        initiator_task_tag: 5,
        target_transfer_tag: RESERVED_TAG,
        cmd_sn: 10,
        exp_stat_sn: 0,
        data_segment_length: 0,
    };
    for _ in 0..10_000 {
        initiator.send(&Pdu::NopOut(nop), &[]);
    }
    for _ in 0..100 {
        lab.turn();
    }
    assert!(initiator.wire.borrow().to_port.len() > 5000 * 48, "one slot was taken and no more");
    initiator.wire.borrow_mut().window = None;
    initiator.wire.borrow_mut().readiness.writable = true;
    for _ in 0..300 {
        lab.turn();
    }
    let mut initiator = initiator;
    assert_eq!(initiator.all().len(), 10_000);
}

#[test]
fn a_discovery_session_lists_targets_and_takes_no_commands() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.connect();
    let text = "InitiatorName=iqn.2024-01.org.test:host\0SessionType=Discovery\0";
    initiator.send(&Pdu::LoginRequest(initiator.login_request(text.len())), text.as_bytes());
    lab.run();
    assert!(matches!(initiator.all()[0].0, Pdu::LoginResponse(p) if p.status_class == 0 && p.tsih != 0));
    assert!(lab.engine.log.is_empty(), "no nexus for discovery");
    let request = TextRequest {
        immediate: true,
        final_: true,
        continue_: false,
        lun: Lun::ZERO,
        initiator_task_tag: 3,
        target_transfer_tag: RESERVED_TAG,
        cmd_sn: 10,
        exp_stat_sn: 0,
        data_segment_length: 16,
    };
    initiator.send(&Pdu::TextRequest(request), b"SendTargets=All\0");
    let command = initiator.scsi(0x00, 0);
    initiator.command(command, &[]);
    lab.run();
    let all = initiator.all();
    let text = String::from_utf8_lossy(&all[0].1).to_string();
    assert!(matches!(all[0].0, Pdu::TextResponse(p) if p.final_ && p.initiator_task_tag == 3));
    assert!(text.contains("TargetName=iqn.2024-01.org.test:disk\0TargetAddress=10.0.0.1:3260,1\0"), "{text}");
    assert!(matches!(all[1].0, Pdu::Reject(_)));
    initiator.wire.borrow_mut().closed = true;
    initiator.wire.borrow_mut().readiness.readable = true;
    lab.run();
    assert_eq!((lab.outstanding(), lab.port.session_keys().count()), (0, 0));
}

#[test]
fn an_unknown_session_handle_is_refused() {
    let mut lab = Lab::new(Options::default(), false);
    let mut initiator = lab.connect();
    let text =
        "InitiatorName=iqn.2024-01.org.test:host\0TargetName=iqn.2024-01.org.test:disk\0SessionType=Normal\0";
    let request = LoginRequest { tsih: 77, ..initiator.login_request(text.len()) };
    initiator.send(&Pdu::LoginRequest(request), text.as_bytes());
    lab.run();
    assert!(
        matches!(initiator.all()[0].0, Pdu::LoginResponse(p) if (p.status_class, p.status_detail) == (2, 0x0A))
    );
    assert!(initiator.wire.borrow().dropped);
}

#[test]
fn terminating_a_read_takes_back_what_was_not_sent() {
    let mut lab = Lab::new(Options::default(), true);
    let mut initiator = lab.login(&format!("{KEYS}HeaderDigest=CRC32C\0DataDigest=CRC32C\0"));
    initiator.wire.borrow_mut().window = Some(20_000);
    let command = initiator.scsi(0x28, 600);
    initiator.command(command, &[]);
    lab.run();
    let other = initiator.scsi(0x00, 0);
    initiator.command(other, &[]);
    lab.run();
    let task = *lab.engine.tasks.iter().find(|(_, task)| task.total > 0).unwrap().0;
    lab.port.terminate_data_transfer(lab.engine.tasks[&task].exchange, task);
    lab.run();
    assert!(!lab.engine.log.contains(&"terminated".to_string()), "one PDU is half out");
    assert_eq!(lab.outstanding(), 1, "only its buffer is kept");
    initiator.wire.borrow_mut().window = None;
    initiator.wire.borrow_mut().readiness.writable = true;
    lab.run();
    assert!(lab.engine.log.contains(&"terminated".to_string()));
    assert_eq!(lab.outstanding(), 0);
    let all = initiator.all();
    assert_eq!(all.len(), 3, "two PDUs of 16 KiB and no status; the other command's response");
    assert!(matches!(all[2].0, Pdu::ScsiResponse(p) if p.initiator_task_tag == other.initiator_task_tag));
    assert_eq!(initiator.read(&mut lab, 1).0.len(), 512);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hostile_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..3000), logged_in: bool) {
        let mut lab = Lab::new(Options::default(), false);
        let initiator = if logged_in { lab.login(KEYS) } else { lab.connect() };
        initiator.raw(&noise);
        lab.run();
        initiator.wire.borrow_mut().closed = true;
        initiator.wire.borrow_mut().readiness.readable = true;
        lab.run();
        prop_assert_eq!(lab.outstanding(), 0);
    }

    #[test]
    fn hostile_headers_never_panic(
        pdus in proptest::collection::vec(
            (0usize..8, any::<[u8; 4]>(), 0u32..5, any::<u8>(), 0usize..600, 0u32..4, 0u32..2000), 1..40),
        step in 1usize..5000,
    ) {
        let mut lab = Lab::with_pool(Options::default(), false, 6);
        let mut initiator = lab.login(KEYS);
        initiator.wire.borrow_mut().receive_max = Some(step);
        for (kind, noise, tag, flags, length, sn, offset) in pdus {
            let mut bhs = [0u8; 48];
            bhs[0] = [0x00, 0x41, 0x01, 0x02, 0x05, 0x06, 0x10, 0x04][kind];
            bhs[1] = flags;
            bhs[4] = u8::from(noise[0] > 250);
            bhs[5..8].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
            bhs[16..20].copy_from_slice(&tag.to_be_bytes());
            let ttt = if noise[1] > 128 { RESERVED_TAG } else { offset };
            bhs[20..24].copy_from_slice(&ttt.to_be_bytes());
            bhs[24..28].copy_from_slice(&initiator.cmd_sn.wrapping_add(sn / 3).to_be_bytes());
            bhs[32] = [0x28, 0x2A, 0x00, 0xFF][usize::from(noise[2] % 4)];
            if kind == 4 {
                bhs[36..40].copy_from_slice(&sn.to_be_bytes());
                bhs[40..44].copy_from_slice(&offset.to_be_bytes());
            } else {
                bhs[20..24].copy_from_slice(&(offset * 100).to_be_bytes());
                bhs[40] = noise[3] % 2;
            }
            initiator.raw(&bhs);
            initiator.raw(&vec![0; length.next_multiple_of(4) + usize::from(bhs[4]) * 4]);
            if matches!(kind, 0 | 2 | 3 | 5 | 7) && sn / 3 == 0 {
                initiator.cmd_sn = initiator.cmd_sn.wrapping_add(1);
            }
            lab.turn();
            lab.turn();
        }
        lab.run();
        initiator.wire.borrow_mut().closed = true;
        initiator.wire.borrow_mut().readiness.readable = true;
        for _ in 0..2000 { lab.turn(); }
        prop_assert_eq!(lab.outstanding(), 0);
        prop_assert_eq!(lab.port.session_keys().count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    /// Initiator::next checks every digest and that StatSN has no gaps.
    #[test]
    fn what_is_terminated_in_the_middle_leaves_no_trace(
        steps in proptest::collection::vec((0u8..9, any::<u16>()), 1..250),
    ) {
        let mut lab = Lab::new(Options::default(), true);
        let keys = format!("{KEYS}HeaderDigest=CRC32C\0DataDigest=CRC32C\0");
        let mut initiator = lab.login(&keys);
        assert!(initiator.header_digest && initiator.data_digest);
        let ping = |tag: u32, cmd_sn: u32, length: usize| NopOut {
            immediate: true,
            lun: Lun::ZERO,
            initiator_task_tag: tag,
            target_transfer_tag: RESERVED_TAG,
            cmd_sn,
            exp_stat_sn: 0,
            data_segment_length: length as u32,
        };
        initiator.wire.borrow_mut().window = Some(0);
        let mut highest = initiator.cmd_sn;
        let mut asked: Vec<u32> = vec![];
        let mut answered: Vec<u32> = vec![];
        let mut solicited: Vec<R2t> = vec![];
        let mut ended: Vec<TaskId> = vec![];
        let mut written: HashMap<u32, u32> = HashMap::new();
        let window_end = |pdu: &Pdu| match pdu {
            Pdu::ScsiResponse(p) => Some(p.max_cmd_sn),
            Pdu::DataIn(p) => Some(p.max_cmd_sn),
            Pdu::NopIn(p) => Some(p.max_cmd_sn),
            Pdu::R2t(p) => Some(p.max_cmd_sn),
            _ => None,
        };
        let finish = steps.len();
        let drain = (0..40).flat_map(|_| [(5, u16::MAX), (6, 0)]);
        for (number, (step, value)) in steps.into_iter().chain(drain).enumerate() {
            let open = !serial::less(highest, initiator.cmd_sn) && lab.engine.tasks.len() < 40;
            match step {
                0 | 1 if open => {
                    let command =
                        if step == 0 { initiator.scsi(0x28, 1 + value % 64) } else { initiator.scsi(0x00, 0) };
                    asked.push(command.initiator_task_tag);
                    initiator.command(command, &[]);
                }
                2 | 7 if open => {
                    let blocks = 16 + (initiator.tag % 200) as u16;
                    let mut command = initiator.scsi(0x2A, blocks);
                    let tag = command.initiator_task_tag;
                    command.final_ = step == 2;
                    asked.push(tag);
                    written.insert(u32::from(blocks) * 512, tag);
                    let data = vec![tag as u8; usize::from(value) % 4096 / 512 * 512];
                    initiator.command(command, &data);
                    if step == 7 {
                        let more = vec![tag as u8; 2048];
                        initiator.data_out(tag, RESERVED_TAG, 0, data.len() as u32, true, &more);
                    }
                }
                3 => {
                    let data = vec![9; usize::from(value) % 700];
                    initiator.send(&Pdu::NopOut(ping(5, initiator.cmd_sn, data.len())), &data);
                }
                4 => {
                    let mut live: Vec<(TaskId, ExchangeId)> =
                        lab.engine.tasks.iter().map(|(task, of)| (*task, of.exchange)).collect();
                    live.retain(|(task, _)| !ended.contains(task));
                    live.sort_by_key(|(_, exchange)| exchange.0);
                    if !live.is_empty() {
                        let (task, exchange) = live[usize::from(value) % live.len()];
                        ended.push(task);
                        lab.port.terminate_data_transfer(exchange, task);
                    }
                }
                5 | 8 => {
                    let mut wire = initiator.wire.borrow_mut();
                    wire.window = Some(wire.window.unwrap_or(0) + usize::from(value));
                    wire.readiness.writable = true;
                }
                6 => {
                    for r2t in solicited.drain(..) {
                        let tag = r2t.initiator_task_tag;
                        let (offset, ttt) = (r2t.buffer_offset, r2t.target_transfer_tag);
                        let data = vec![tag as u8; r2t.desired_data_transfer_length as usize];
                        let half = data.len() / 1024 * 512;
                        if half > 0 && value % 2 == 1 {
                            initiator.data_out(tag, ttt, 0, offset, false, &data[..half]);
                            initiator.data_out(tag, ttt, 1, offset + half as u32, true, &data[half..]);
                        } else {
                            initiator.data_out(tag, ttt, 0, offset, true, &data);
                        }
                    }
                }
                _ => {}
            }
            if value % 3 > 0 || number >= finish {
                lab.turn();
            }
            assert!(!initiator.wire.borrow().dropped, "{:?}", lab.engine.log);
            for (pdu, _) in initiator.all() {
                if let Some(end) = window_end(&pdu) {
                    assert!(!serial::less(end, highest), "MaxCmdSN goes back");
                    highest = if serial::less(highest, end) { end } else { highest };
                }
                match pdu {
                    Pdu::R2t(r2t) => solicited.push(r2t),
                    Pdu::ScsiResponse(p) => {
                        assert_eq!(p.status, Status::Good);
                        answered.push(p.initiator_task_tag);
                    }
                    Pdu::DataIn(p) if p.status.is_some() => answered.push(p.initiator_task_tag),
                    Pdu::DataIn(_) | Pdu::NopIn(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        lab.now = lab.now + Duration::from_secs(2);
        lab.run();
        assert!(lab.engine.tasks.is_empty(), "{:?}", lab.engine.log);
        let mut once = answered.clone();
        once.dedup();
        assert_eq!(once.len(), answered.len());
        assert!(answered.iter().all(|tag| asked.contains(tag)));
        assert!(answered.len() + ended.len() >= asked.len(), "a command without an end");
        for (total, tag) in &written {
            if let Some(data) = lab.engine.blocks.get(total).filter(|_| answered.contains(tag)) {
                assert!(data.iter().all(|byte| *byte == *tag as u8), "data of another task");
            }
        }
        assert!(lab.outstanding() <= 1, "only the receive slot");
        initiator.wire.borrow_mut().window = None;
        initiator.wire.borrow_mut().readiness.writable = true;
        initiator.send(&Pdu::NopOut(ping(6, initiator.cmd_sn, 0)), &[]);
        lab.run();
        let last = initiator.all().pop().expect("an echo").0;
        let Pdu::NopIn(last) = last else { panic!("{last:?}") };
        assert_eq!(last.exp_cmd_sn, initiator.cmd_sn);
        let depth = Limits::default().tasks_per_nexus_max.min(Options::default().queue_depth_max);
        assert_eq!(last.max_cmd_sn.wrapping_sub(last.exp_cmd_sn) + 1, depth, "the window is open again");
    }
}
