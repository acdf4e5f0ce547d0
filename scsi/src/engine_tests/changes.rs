//! Changes of a unit's state, and what happens to those who wait for them.

use wire::scsi::{Status, TaskAttribute};

use super::world::*;
use crate::*;

use TaskManagementFunction as F;
use TaskManagementResponse as R;

const STOP: [u8; 6] = [0x1B, 0, 0, 0, 0, 0];
const START: [u8; 6] = [0x1B, 0, 0, 0, 1, 0];
const PREVENT: [u8; 6] = [0x1E, 0, 0, 0, 1, 0];

/// MODE SELECT(6) of the caching page with WCE = 0.
fn write_cache_off() -> ([u8; 6], [u8; 24]) {
    let mut list = [0; 24];
    list[4] = 0x08;
    list[5] = 0x12;
    ([0x15, 0x10, 0, 0, 24, 0], list)
}

/// MODE SELECT(6) of the control page with D_SENSE = 1, all else as it is.
fn descriptor_sense_on(w: &mut World, core: usize, nexus: NexusId) -> ([u8; 6], Vec<u8>) {
    let x = w.simple(core, nexus, &[0x1A, 0x08, 0x0A, 0, 64, 0], 64, &[]);
    w.settle();
    let mut list = w.exchanges[&x].data_in.clone();
    list[..4].fill(0);
    list[4] &= 0x3F;
    list[6] |= 0x04;
    ([0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}

pub(super) fn is_prevented(w: &World) -> bool {
    w.cores[0].target.unit_view(UNIT).unwrap().removal_prevented
}

#[test]
fn a_command_planned_while_the_unit_was_stopped_is_still_atomic() {
    for cores in [1, 2] {
        let mut w = World::new(cores);
        let a = w.nexus(0, 1, "a");
        let stop = w.simple(0, a, &STOP, 0, &[]);
        w.settle();
        assert!(w.is_good(stop));
        w.messages_hold = true;
        let start = w.simple(0, a, &START, 0, &[]);
        // The request, and the freeze of this core.
        let home = usize::from(cores - 1);
        w.message_step(0, home);
        w.message_step(home, 0);
        // Refused if they were asked now; but they wait for the change.
        let write = w.simple(0, a, &write10(0, 2), 0, &[7; 2 * BLOCK]);
        let both = [vec![7; BLOCK], vec![9; BLOCK]].concat();
        let swap = w.simple(0, a, &compare_and_write(0, 1), 0, &both);
        assert!(!w.has_ended(write) && !w.has_ended(swap));
        w.device_holds = true;
        w.messages_hold = false;
        w.settle();
        assert!(w.is_good(start));
        assert_eq!(w.cores[0].device.len(), 1, "{cores} cores: the WRITE alone");
        w.device_holds = false;
        w.settle();
        assert!(w.is_good(write) && w.is_good(swap));
        assert_eq!((w.medium[0], w.medium[BLOCK]), (9, 7));
        w.assert_clean();
    }
}

#[test]
fn stopping_a_unit_empties_its_cache() {
    let mut w = World::new(2);
    let a = w.nexus(0, 1, "a");
    let x = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    let x = (x, w.simple(0, a, &[0x1B, 0, 0, 0, 4, 0], 0, &[]));
    w.settle();
    assert!(w.is_good(x.0) && w.is_good(x.1));
    assert_eq!(w.flushes, 0, "NO_FLUSH");
    let x = w.simple(0, a, &STOP, 0, &[]);
    w.settle();
    assert!(w.is_good(x));
    assert_eq!(w.flushes, 1);
    w.fail_next = Some(bdev::BlockError::FlushFailed);
    let x = w.simple(0, a, &STOP, 0, &[]);
    w.settle();
    assert!(matches!(w.end_of(x), End::Status(Status::CheckCondition, ..)));
    w.assert_clean();
}

#[test]
fn a_nexus_lost_while_it_asks_for_prevention_prevents_nothing() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.messages_hold = true;
    let x = w.simple(0, a, &PREVENT, 0, &[]);
    w.event(0, PortEvent::NexusLost { token: NexusToken(1) });
    // The request is on its way and cannot be called back in time: the change is made at once.
    w.messages_hold = false;
    w.settle();
    assert!(w.has_ended(x));
    assert!(!is_prevented(&w));
    w.expect_ready(1, b);
    w.assert_clean();
}

#[test]
fn a_lun_that_goes_is_not_prevented_any_more() {
    let mut w = World::new(1);
    let a = w.nexus(0, 1, "a");
    let x = w.simple(0, a, &PREVENT, 0, &[]);
    w.settle();
    assert!(w.is_good(x) && is_prevented(&w));
    let map = std::sync::Arc::new(LunMap { mappings: Vec::new() });
    w.control(0, 9, ControlRequest::SetLunMap { target: TargetDeviceId(0), map });
    w.settle();
    assert!(!is_prevented(&w));
    w.assert_clean();
}

#[test]
fn a_nexus_reset_forgets_prevention() {
    let mut w = World::new(1);
    let a = w.nexus(0, 1, "a");
    let x = w.simple(0, a, &PREVENT, 0, &[]);
    w.settle();
    assert!(w.is_good(x) && is_prevented(&w));
    let f = w.function(0, a, F::ITNexusReset, None);
    w.settle();
    assert_eq!(w.functions[&f], R::Complete);
    assert!(!is_prevented(&w));
    w.assert_clean();
}

#[test]
fn aborting_a_change_that_waits_for_a_stalled_host_fences_nothing() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let stalled = w.simple(1, b, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    let (cdb, list) = write_cache_off();
    let first = w.simple(0, a, &cdb, 0, &list);
    let second = w.simple(0, a, &PREVENT, 0, &[]);
    w.settle();
    assert!(!w.has_ended(first) && !w.has_ended(second));
    // One is being drained for, the other queues behind it.
    for x in [second, first] {
        let f = w.function(0, a, F::AbortTask, Some(x));
        w.settle();
        assert_eq!(w.functions.get(&f), Some(&R::Complete), "task {x}");
    }
    w.pass(2000);
    w.settle();
    assert!(w.notes.is_empty() && w.drops.is_empty(), "{:?} {:?}", w.notes, w.drops);
    let view = w.cores[0].target.unit_view(UNIT).unwrap();
    assert!(view.mode.write_cache_enabled && !view.removal_prevented, "neither change is made");
    // The unit is not frozen any more.
    w.expect_ready(1, b);
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(stalled));
    let x = w.simple(0, a, &cdb, 0, &list);
    w.settle();
    assert!(w.is_good(x));
    w.assert_clean();
}

#[test]
fn an_ordered_task_that_gives_up_thaws_the_unit() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let stalled = w.simple(1, b, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    let o = w.command(0, a, TaskAttribute::Ordered, &write10(0, 1), 0, &[2; BLOCK], 0);
    w.settle();
    let f = w.function(0, a, F::AbortTask, Some(o));
    w.settle();
    assert_eq!(w.functions.get(&f), Some(&R::Complete));
    assert!(w.cores.iter().all(|core| core.target.functions.is_empty()), "nobody drains for it any more");
    w.expect_ready(0, a);
    w.expect_ready(1, b);
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(stalled));
    assert_eq!(w.medium[0], 1);
    w.assert_clean();
}

#[test]
fn two_mode_selects_at_once_do_not_undo_each_other() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    let (other_cdb, other_list) = descriptor_sense_on(&mut w, 1, b);
    w.messages_hold = true;
    let (cdb, list) = write_cache_off();
    let x = w.simple(0, a, &cdb, 0, &list);
    let y = w.simple(1, b, &other_cdb, 0, &other_list);
    w.settle();
    w.messages_hold = false;
    w.settle();
    assert!(w.is_good(x) && w.is_good(y), "{:?} {:?}", w.end_of(x), w.end_of(y));
    let mode = w.cores[0].target.unit_view(UNIT).unwrap().mode;
    assert!(!mode.write_cache_enabled && mode.descriptor_sense, "{mode:?}");
}

#[test]
fn request_sense_without_room_leaves_the_unit_attention() {
    let mut w = World::new(1);
    w.request_nexus(0, 1, "a");
    w.settle();
    let a = w.established[&1];
    let x = w.simple(0, a, &[0x03, 0, 0, 0, 0, 0], 0, &[]);
    w.settle();
    assert!(w.is_good(x));
    w.expect_attention(0, a, 0x29, 0x00);
    w.assert_clean();
}

#[test]
fn an_ordered_atomic_command_keeps_head_of_queue_tasks_off_its_blocks() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let both = [vec![0; BLOCK], vec![9; BLOCK]].concat();
    let o = w.command(0, a, TaskAttribute::Ordered, &compare_and_write(0, 1), 0, &both, 0);
    w.settle();
    assert_eq!(w.cores[0].device.len(), 1, "it reads");
    let h = w.command(1, b, TaskAttribute::HeadOfQueue, &write10(0, 1), 0, &[5; BLOCK], 0);
    w.settle();
    assert_eq!(w.cores[1].device.len(), 0);
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(o) && w.is_good(h));
    assert_eq!(w.medium[0], 5);
    w.assert_clean();
}

#[test]
fn a_unit_that_one_core_cannot_open_ends_what_the_others_began() {
    let mut w = World::new(2);
    let a = w.nexus(0, 1, "a");
    let unit = LogicalUnitId(1);
    let lun = wire::scsi::Lun::from_number(1);
    let mapping = |lun, unit| LunMapping { lun, unit, read_only: false };
    let map = LunMap { mappings: vec![mapping(wire::scsi::Lun::ZERO, UNIT), mapping(lun, unit)] };
    let map = std::sync::Arc::new(map);
    w.control(0, 8, ControlRequest::SetLunMap { target: TargetDeviceId(0), map });
    w.settle();
    w.expect_attention(0, a, 0x3F, 0x0E);
    w.open_fails_at = Some(1);
    w.messages_hold = true;
    w.control(0, 9, add_unit(unit, 0));
    // This core opens its channel; the other one has not heard yet.
    w.message_step(0, 0);
    w.settle();
    w.lun = lun;
    w.expect_attention(0, a, 0x3F, 0x0E);
    w.device_holds = true;
    let x = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    assert_eq!(w.cores[0].device.len(), 1);
    w.messages_hold = false;
    w.settle();
    assert!(!w.closes.contains(&(0, unit)), "a channel with a write in it stays open");
    assert!(!w.done.contains_key(&9));
    w.device_holds = false;
    w.settle();
    assert!(w.has_ended(x));
    assert!(matches!(w.done.get(&9), Some(ControlOutcome::Failed(_))));
    assert!(w.closes.contains(&(0, unit)));
    w.assert_clean();
}

#[test]
fn a_lun_made_read_only_is_not_written_any_more() {
    let mut w = World::new(1);
    let a = w.nexus(0, 1, "a");
    w.device_holds = true;
    let lba = |lba| (write10(lba, 1), read10(lba, 1));
    let running = w.simple(0, a, &lba(0).0, 0, &[1; BLOCK]);
    let read = w.simple(0, a, &lba(1).1, BLOCK as u32, &[]);
    // Waits for the first, and its plan was made for a LUN that can be written.
    let waiting = w.command(0, a, TaskAttribute::Ordered, &lba(1).0, 0, &[2; BLOCK], 0);
    w.settle();
    let mapping = LunMapping { lun: wire::scsi::Lun::ZERO, unit: UNIT, read_only: true };
    let map = std::sync::Arc::new(LunMap { mappings: vec![mapping] });
    w.control(0, 9, ControlRequest::SetLunMap { target: TargetDeviceId(0), map });
    w.settle();
    assert!(!w.done.contains_key(&9), "the device still writes");
    w.device_holds = false;
    w.settle();
    assert_eq!(w.done.get(&9), Some(&ControlOutcome::Done));
    let aborted = |x| matches!(w.end_of(x), End::Status(Status::TaskAborted, ..));
    assert!(aborted(running) && aborted(waiting) && w.is_good(read));
    assert_eq!(w.medium[BLOCK], 0);
    w.assert_clean();
}

#[test]
fn report_luns_answers_the_unit_attention_that_asks_for_it() {
    let mut w = World::new(1);
    let a = w.nexus(0, 1, "a");
    w.control(0, 9, add_unit(LogicalUnitId(1), 0));
    let mapping = |n: u16| LunMapping {
        lun: wire::scsi::Lun::from_number(n),
        unit: LogicalUnitId(u32::from(n)),
        read_only: false,
    };
    let map = std::sync::Arc::new(LunMap { mappings: vec![mapping(0), mapping(1)] });
    w.control(0, 10, ControlRequest::SetLunMap { target: TargetDeviceId(0), map });
    w.settle();
    let mut cdb = [0; 12];
    (cdb[0], cdb[9]) = (0xA0, 64);
    let x = w.simple(0, a, &cdb, 64, &[]);
    w.settle();
    assert!(w.is_good(x) && w.exchanges[&x].data_in.len() == 24);
    w.expect_ready(0, a);
    w.lun = wire::scsi::Lun::from_number(1);
    w.expect_ready(0, a);
    w.assert_clean();
}
