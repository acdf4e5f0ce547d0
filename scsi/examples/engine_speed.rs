//! Commands per second of one core's engine alone: READ (10) of 4 KiB, no port, no device, `depth` outstanding.

use std::sync::Arc;
use std::time::Instant as Wall;

use base::{BufferPool, CoreId, Instant, Limits, PoolClass};
use bdev::{BlockDevice, BlockError, CoreShared, Geometry, IoChannel, IoCompletion, IoValue, Provisioning};
use scsi::{
    CommandReceived, ControlId, ControlRequest, Effect, ExchangeId, LogicalUnitId, LunMap, LunMapping,
    NexusId, NexusIdentity, NexusToken, PortEvent, Target, TargetDeviceId, TaskId, TaskTag, UnitIdentity,
};
use wire::scsi::{Cdb, Lun, TaskAttribute};

struct Nothing;

impl BlockDevice for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 1 << 20,
            physical_block_exponent: 0,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: 0,
            optimal_transfer_blocks: 0,
            write_cache: false,
            read_only: false,
            rotational: false,
            provisioning: Provisioning::default(),
            buffer_alignment: 1,
            capabilities: bdev::Capabilities::default(),
            atomic: bdev::AtomicWrites::default(),
        }
    }
    fn product_name(&self) -> &'static str {
        "nothing"
    }
    fn open_channel(&self, _: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Err(BlockError::Unsupported)
    }
}

/// Carries out what must happen at once; gives back the tasks that ended and the nexus if one was made.
fn drive(target: &mut Target, ended: &mut Vec<TaskId>) -> Option<NexusId> {
    let mut nexus = None;
    let now = Instant::ZERO;
    while let Some(effect) = target.poll_effect() {
        match effect {
            Effect::Submit { unit, io } => {
                let completion = IoCompletion { tag: io.tag, result: Ok(IoValue::Done), data: io.data };
                target.handle_io_completion(now, unit, completion);
            }
            Effect::SendDataIn { task, status: Some(_), .. } | Effect::SendCommandComplete { task, .. } => {
                ended.push(task);
            }
            Effect::OpenChannel { unit, .. } => target.handle_channel_opened(now, unit, Ok(())),
            Effect::Send { message, .. } => target.handle_message(now, CoreId(0), message),
            Effect::NexusEstablished { nexus: made, .. } => nexus = Some(made),
            _ => {}
        }
    }
    nexus
}

fn main() {
    let depth = 32;
    let pool =
        BufferPool::plain(&[PoolClass { size: 4096, count: 64 }, PoolClass { size: 262_144, count: 4 }]);
    let mut target = Target::new(CoreId(0), 1, Limits::default(), pool);
    let now = Instant::ZERO;
    let identity = UnitIdentity {
        vendor: "POLLUX".into(),
        product: "disk".into(),
        revision: "1".into(),
        serial: "1".into(),
        naa: [0x60; 16],
        uuid: [0; 16],
    };
    let unit = LogicalUnitId(0);
    let add = ControlRequest::AddLogicalUnit { unit, home: CoreId(0), device: Arc::new(Nothing), identity };
    target.handle_control(now, ControlId(1), add);
    let mut ended = Vec::new();
    drive(&mut target, &mut ended);
    let map = LunMap { mappings: vec![LunMapping { lun: Lun::ZERO, unit, read_only: false }] };
    let map = Arc::new(map);
    target.handle_control(now, ControlId(2), ControlRequest::SetLunMap { target: TargetDeviceId(0), map });
    drive(&mut target, &mut ended);
    let identity = NexusIdentity {
        initiator_port: "i,i,0x1".into(),
        initiator: "i".into(),
        target_port: "t,t,0x1".into(),
        target: TargetDeviceId(0),
        relative_target_port: 1,
        protocol: 5,
    };
    target.handle_port_event(now, PortEvent::NexusRequested { token: NexusToken(1), identity });
    let nexus = drive(&mut target, &mut ended).expect("a nexus");
    let cdb = Cdb::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    let rounds = 200_000u64;
    let begun = Wall::now();
    for round in 0..rounds {
        for command in 0..depth {
            let number = round * depth + command;
            let received = CommandReceived {
                nexus,
                exchange: ExchangeId(number),
                lun: Lun::ZERO,
                tag: TaskTag(number),
                attribute: TaskAttribute::Simple,
                cdb,
                expected_data_in: Some(4096),
                expected_data_out: Some(0),
                data_out: None,
                starved: false,
            };
            target.handle_port_event(now, PortEvent::CommandReceived(received));
        }
        drive(&mut target, &mut ended);
        for task in ended.drain(..) {
            target.handle_port_event(now, PortEvent::Delivered { task });
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(target.task_count(), 0);
    println!("{:.2} million commands per second", (rounds * depth) as f64 / seconds / 1e6);
}
