//! Arbitrary CDBs and parameter lists through the command table: nothing may panic, no plan may leave the medium.

use std::sync::Arc;

use base::{CoreId, Limits};
use bdev::{
    AtomicWrites, BlockDevice, BlockError, CoreShared, DeviceIdentity, DeviceText, Geometry, Health,
    IoChannel, Provisioning,
};
use wire::scsi::{Cdb, Lun, SENSE_LENGTH_MAX, Sense};

use crate::message::DeviceHandle;
use crate::{
    Environment, LogicalUnitId, LunMap, LunMapping, ModePages, NexusIdentity, ParameterIn, Plan,
    TargetDeviceId, UnitIdentity, UnitState, UnitView, lookup, parameter,
};

/// A device that can only say who and how it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Described {
    pub(crate) identity: DeviceIdentity,
    pub(crate) health: Option<Health>,
}

impl BlockDevice for Described {
    fn geometry(&self) -> Geometry {
        World::geometry()
    }
    fn product_name(&self) -> &'static str {
        "described"
    }
    fn open_channel(&self, _: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Err(BlockError::Unsupported)
    }
    fn identity(&self) -> DeviceIdentity {
        self.identity
    }
    fn health(&self) -> Option<Health> {
        self.health
    }
}

/// Everything an [`Environment`] borrows: a RAM disk of 2,048 blocks of 512 bytes at LUN 0.
pub(crate) struct World {
    pub(crate) unit: Option<UnitView>,
    pub(crate) lun: Lun,
    pub(crate) mapping_read_only: bool,
    pub(crate) pending_sense: Option<Sense>,
    pub(crate) nexus: NexusIdentity,
    pub(crate) luns: LunMap,
    pub(crate) limits: Limits,
}

impl World {
    /// The data, as long as its allocation length lets it be, that a command with parameter data answers.
    #[cfg(test)]
    pub(crate) fn data_in(&self, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
        let (cdb, environment) = (Cdb::new(cdb), self.environment());
        let plan = lookup(&cdb, &environment)?.plan(&cdb, &environment)?;
        let (length, _) = plan.data_lengths(&environment);
        let Plan::ParameterIn { kind, .. } = plan else { panic!("{plan:?}") };
        let mut data = vec![0xEE; length as usize];
        kind.render(&environment, &mut data);
        Ok(data)
    }

    fn geometry() -> Geometry {
        Geometry {
            block_size: 512,
            blocks: 2048,
            physical_block_exponent: 0,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: 8,
            optimal_transfer_blocks: 256,
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
            capabilities: bdev::Capabilities::default(),
            atomic: AtomicWrites { blocks_max: 64, boundary_blocks: 0, granularity_blocks: 1 },
        }
    }

    /// A device that says all it can.
    pub(crate) fn described() -> Described {
        let identity = DeviceIdentity {
            nguid: Some([0x22; 16]),
            eui64: Some([0x33; 8]),
            uuid: Some([0x44; 16]),
            serial: DeviceText::new(b"SERIAL"),
            model: DeviceText::new(b"MODEL"),
            firmware: DeviceText::new(b"1.0"),
        };
        let health = Health {
            temperature_celsius: Some(37),
            temperature_warning_celsius: Some(70),
            used_percent: Some(3),
            ..Health::default()
        };
        Described { identity, health: Some(health) }
    }

    #[cfg(test)]
    pub(crate) fn set_device(&mut self, device: Described) {
        if let Some(unit) = self.unit.as_mut() {
            unit.device = DeviceHandle(Arc::new(device));
        }
    }

    pub(crate) fn new() -> World {
        let geometry = World::geometry();
        let identity = UnitIdentity {
            vendor: "POLLUX".into(),
            product: "RAM disk".into(),
            revision: "0001".into(),
            serial: "0123456789".into(),
            naa: [0x60; 16],
            uuid: [0x11; 16],
        };
        let unit = UnitView {
            epoch: 1,
            unit: LogicalUnitId(0),
            home: CoreId(0),
            geometry,
            identity: Arc::new(identity),
            mode: ModePages { write_cache_enabled: true, ..ModePages::default() },
            state: UnitState::Ready,
            removal_prevented: false,
            device: DeviceHandle(Arc::new(World::described())),
        };
        let nexus = NexusIdentity {
            initiator_port: "iqn.2026-01.test:initiator,i,0x400001370000".into(),
            initiator: "iqn.2026-01.test:initiator".into(),
            target_port: "iqn.2026-01.test:target,t,0x0001".into(),
            target: TargetDeviceId(0),
            relative_target_port: 1,
            protocol: 5,
        };
        let mapping = LunMapping { lun: Lun::ZERO, unit: LogicalUnitId(0), read_only: false };
        World {
            unit: Some(unit),
            lun: Lun::ZERO,
            mapping_read_only: false,
            pending_sense: None,
            nexus,
            luns: LunMap { mappings: vec![mapping] },
            limits: Limits::default(),
        }
    }

    pub(crate) fn environment(&self) -> Environment<'_> {
        Environment {
            unit: self.unit.as_ref(),
            lun: self.lun,
            mapping_read_only: self.mapping_read_only,
            nexus: &self.nexus,
            luns: &self.luns,
            limits: &self.limits,
            pending_sense: self.pending_sense,
        }
    }

    /// A world whose bits are chosen by two bytes.
    fn of(bits: [u8; 2]) -> World {
        let mut world = World::new();
        let [bits, shape] = bits;
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.read_only = bits & 0x01 != 0;
            unit.geometry.write_cache = bits & 0x02 != 0;
            unit.geometry.provisioning.discard = bits & 0x04 != 0;
            unit.mode.software_write_protect = bits & 0x08 != 0;
            unit.removal_prevented = bits & 0x10 != 0;
            unit.state = match (bits >> 5) & 0x03 {
                0 => UnitState::Ready,
                1 => UnitState::Stopped,
                2 => UnitState::MediumNotPresent,
                _ => UnitState::Fenced,
            };
            unit.geometry.block_size = 512 << (shape & 0x07);
            unit.geometry.blocks = match (shape >> 3) & 0x07 {
                0 => 0,
                1 => 1,
                2 => 2048,
                3 => u64::from(u32::MAX),
                4 => u64::from(u32::MAX) + 1,
                5 => 1 << 40,
                6 => u64::MAX - 1,
                _ => u64::MAX,
            };
            unit.geometry.provisioning.discard_blocks_max = if shape & 0x40 != 0 { 100 } else { 0 };
            let of = |blocks_max, boundary_blocks, granularity_blocks| AtomicWrites {
                blocks_max,
                boundary_blocks,
                granularity_blocks,
            };
            unit.geometry.atomic = match (bits ^ shape) & 0x07 {
                0 => of(0, 0, 0),
                1 => of(1, 0, 0),
                2 => of(u32::MAX, 0, 1),
                3 => of(100, 64, 0),
                4 => of(100, 48, 16),
                5 => of(7, 9, 3),
                6 => of(u32::MAX, u32::MAX, u32::MAX),
                _ => of(33, 0, 4),
            };
            if shape & 0x20 != 0 {
                unit.device = DeviceHandle(Arc::new(Described::default()));
            }
        }
        if bits & 0x80 != 0 {
            world.unit = None;
            world.lun = if shape & 0x80 != 0 { Lun::REPORT_LUNS } else { Lun::from_number(7) };
        }
        world
    }
}

/// Two bytes of world, one byte of CDB length, the CDB, then a parameter list; missing bytes are zero.
///
/// # Panics
/// When something is wrong in the command table: this is what a fuzzer looks for.
pub fn fuzz_cdb(data: &[u8]) {
    let at = |index: usize| data.get(index).copied().unwrap_or(0);
    let world = World::of([at(0), at(1)]);
    let environment = world.environment();
    let rest = data.get(3..).unwrap_or(&[]);
    let (cdb, list) = rest.split_at(usize::from(at(2) % 40).min(rest.len()));
    let cdb = Cdb::new(cdb);
    let plan = lookup(&cdb, &environment).and_then(|entry| entry.plan(&cdb, &environment));
    match plan {
        Ok(plan) => check_plan(&plan, &cdb, &environment, list),
        Err(sense) => check_sense(sense),
    }
}

fn check_sense(sense: Sense) {
    let mut out = [0; SENSE_LENGTH_MAX];
    for descriptor in [false, true] {
        let length = sense.emit(descriptor, &mut out);
        assert_eq!(Sense::parse(&out[..length]), Some(sense));
    }
}

fn check_plan(plan: &Plan, cdb: &Cdb, environment: &Environment<'_>, list: &[u8]) {
    if let Some((lba, blocks)) = range(plan) {
        let capacity = environment.unit.map_or(0, |unit| unit.geometry.blocks);
        assert!(lba.checked_add(blocks).is_some_and(|end| end <= capacity), "{plan:?} of {capacity} blocks");
    }
    let (data_in, data_out) = plan.data_lengths(environment);
    assert!(data_in == 0 || data_out == 0);
    assert!(data_in.max(data_out) <= u64::from(u32::MAX));
    if let Err(sense) = plan.check_data_out(environment, cdb, Some(list.len() as u32)) {
        check_sense(sense);
    }
    match *plan {
        Plan::ParameterIn { kind, .. } => check_render(kind, environment, list.len()),
        Plan::ParameterOut { kind, .. } => {
            if let Err(sense) = kind.apply(environment, list) {
                check_sense(sense);
            }
        }
        Plan::Unmap { .. } => {
            if let Err(sense) = parameter::unmap_check(list, environment) {
                check_sense(sense);
            } else {
                for index in 0..parameter::unmap_count(list) {
                    assert!(matches!(parameter::unmap_descriptor(list, index, environment), Some(Ok(_))));
                }
            }
        }
        _ => {}
    }
}

/// Parameter data is the same whatever the room, only shorter; behind its end there are zeros.
fn check_render(kind: ParameterIn, environment: &Environment<'_>, room: usize) {
    let mut whole = vec![0xEE; 8192];
    let length = kind.render(environment, &mut whole);
    assert!(length <= whole.len());
    assert!(whole[length..].iter().all(|byte| *byte == 0));
    let mut short = vec![0xEE; room];
    assert_eq!(kind.render(environment, &mut short), length);
    let same = room.min(length);
    // Length fields that were patched after truncation are the same too.
    assert_eq!(short[..same], whole[..same]);
}

/// The blocks a plan names.
fn range(plan: &Plan) -> Option<(u64, u64)> {
    Some(match *plan {
        Plan::Read { lba, blocks, .. }
        | Plan::Write { lba, blocks, .. }
        | Plan::WriteAndVerify { lba, blocks, .. }
        | Plan::VerifyMedium { lba, blocks }
        | Plan::VerifyCompare { lba, blocks, .. }
        | Plan::CompareAndWrite { lba, blocks, .. }
        | Plan::WriteAtomic { lba, blocks, .. }
        | Plan::OrWrite { lba, blocks, .. } => (lba, u64::from(blocks)),
        Plan::WriteSame { lba, blocks, .. }
        | Plan::Synchronize { lba, blocks, .. }
        | Plan::PreFetch { lba, blocks, .. } => (lba, blocks),
        Plan::LbaStatus { lba, .. } => (lba, 1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fuzz_cdb;
    use crate::command_table::commands;

    /// Mostly zeros, so that addresses and lengths are often on the medium or just beyond it.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![6 => Just(0_u8), 2 => 0..9_u8, 1 => any::<u8>()], 16)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn arbitrary_bytes(data in proptest::collection::vec(any::<u8>(), 0..96)) {
            fuzz_cdb(&data);
        }

        #[test]
        fn commands_with_only_allowed_bits(
            world in any::<[u8; 2]>(),
            which in 0..commands().len(),
            noise in noise(),
            list in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let entry = &commands()[which];
            let mut cdb: Vec<u8> = entry.usage.iter().zip(noise).map(|(usage, noise)| usage & noise).collect();
            cdb[0] = entry.operation_code;
            if let Some(action) = entry.service_action {
                cdb[1] = action as u8;
            }
            let mut data = vec![world[0], world[1], cdb.len() as u8];
            data.extend(cdb);
            data.extend(list);
            fuzz_cdb(&data);
        }
    }
}
