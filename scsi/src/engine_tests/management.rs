use wire::scsi::{Status, TaskAttribute};

use super::world::*;
use crate::*;

use TaskManagementFunction as F;
use TaskManagementResponse as R;

#[test]
fn abort_waits_for_the_device() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &write10(0, 8), 0, &[1; 4096]);
    w.settle();
    let f = w.function(0, n, F::AbortTask, Some(x));
    let g = w.function(0, n, F::AbortTaskSet, None);
    w.settle();
    assert_eq!(w.end_of(x), End::Terminated);
    assert!(w.functions.is_empty(), "answered while the device may still write");
    w.device_holds = false;
    w.settle();
    assert_eq!((w.functions[&f], w.functions[&g]), (R::Complete, R::Complete));
    assert!(w.drops.is_empty());
    w.assert_clean();
}

#[test]
fn abort_waits_for_the_wire() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.port_holds = true;
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    let f = w.function(0, n, F::AbortTask, Some(x));
    w.settle();
    assert!(w.functions.is_empty());
    w.port_holds = false;
    w.settle();
    assert_eq!(w.functions[&f], R::Complete);
    w.assert_clean();
}

#[test]
fn unknown_tasks_and_units_are_told_apart() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    let f = w.function(0, n, F::AbortTask, Some(12345));
    assert_eq!(w.functions[&f], R::TaskDoesNotExist);
    let request = RequestToken(99);
    let lun = wire::scsi::Lun::from_number(7);
    let asked = TaskManagementRequest { nexus: n, request, function: F::LogicalUnitReset, lun, tag: None };
    w.event(0, PortEvent::TaskManagementRequested(asked));
    assert_eq!(w.functions[&99], R::IncorrectLun);
    w.device_holds = true;
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    let f = w.function(0, n, F::QueryTask, Some(x));
    let g = w.function(0, n, F::QueryTask, Some(x + 1000));
    let h = w.function(0, n, F::QueryTaskSet, None);
    assert_eq!(
        (w.functions[&f], w.functions[&g], w.functions[&h]),
        (R::Succeeded, R::Complete, R::Succeeded)
    );
    w.device_holds = false;
    w.settle();
    let h = w.function(0, n, F::QueryTaskSet, None);
    assert_eq!(w.functions[&h], R::Complete);
    w.assert_clean();
}

#[test]
fn past_the_deadline_the_unit_is_fenced() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    let f = w.function(0, n, F::LogicalUnitReset, None);
    w.settle();
    w.pass(900);
    w.settle();
    assert!(w.functions.is_empty());
    w.pass(200);
    w.settle();
    assert_eq!(w.functions[&f], R::Failed);
    assert_eq!(w.notes.iter().filter(|note| **note == Notification::UnitFenced { unit: UNIT }).count(), 1);
    assert_eq!(w.end_of(x), End::Terminated);
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(x) else { panic!() };
    assert_eq!((sense.asc, sense.ascq), (0x3E, 0x01));
    w.device_holds = false;
    w.settle();
    w.assert_clean();
}

#[test]
fn a_port_that_does_not_let_go_loses_its_session_first() {
    let mut w = World::new(1);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(0, 2, "b"));
    w.port_holds = true;
    let _x = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
    let f = w.function(0, b, F::LogicalUnitReset, None);
    w.settle();
    w.pass(1100);
    assert_eq!(w.drops, [(1, DropReason::Stalled)]);
    w.port_holds = false;
    w.settle();
    assert_eq!(w.functions[&f], R::Complete);
    assert_eq!(w.closed, [1]);
    w.expect_attention(0, b, 0x29, 0x03);
    w.assert_clean();
}

#[test]
fn clear_task_set_tells_the_others() {
    for tas in [false, true] {
        let mut w = World::new(1);
        let (a, b) = (w.nexus(0, 1, "a"), w.nexus(0, 2, "b"));
        if tas {
            let x = w.simple(0, a, &[0x1A, 0x08, 0x0A, 0, 64, 0], 64, &[]);
            w.settle();
            let mut list = w.exchanges[&x].data_in.clone();
            (list[0], list[2]) = (0, 0);
            list[4] &= 0x3F;
            list[4 + 5] |= 0x40;
            let x = w.simple(0, a, &[0x15, 0x10, 0, 0, list.len() as u8, 0], 0, &list);
            w.settle();
            assert!(w.is_good(x), "{:?}", w.end_of(x));
            w.expect_attention(0, b, 0x2A, 0x01);
        }
        w.device_holds = true;
        let x = w.simple(0, a, &read10(0, 1), 512, &[]);
        let y = w.simple(0, b, &read10(0, 1), 512, &[]);
        let z = w.command(0, b, TaskAttribute::Ordered, &read10(0, 1), 512, &[], 0);
        let f = w.function(0, a, F::ClearTaskSet, None);
        w.settle();
        assert!(w.functions.is_empty());
        w.device_holds = false;
        w.settle();
        assert_eq!(w.functions[&f], R::Complete);
        assert_eq!(w.end_of(x), End::Terminated);
        if tas {
            for x in [y, z] {
                assert!(matches!(w.end_of(x), End::Status(Status::TaskAborted, ..)));
            }
        } else {
            assert_eq!((w.end_of(y), w.end_of(z)), (End::Terminated, End::Terminated));
            w.expect_attention(0, b, 0x2F, 0x00);
        }
        w.expect_ready(0, a);
        w.expect_ready(0, b);
        w.assert_clean();
    }
}

#[test]
fn ordered_runs_alone_and_head_of_queue_first() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let s = w.simple(0, n, &write10(0, 1), 0, &[1; BLOCK]);
    let o = w.command(0, n, TaskAttribute::Ordered, &write10(0, 1), 0, &[2; BLOCK], 0);
    let t = w.simple(0, n, &write10(0, 1), 0, &[3; BLOCK]);
    let h = w.command(0, n, TaskAttribute::HeadOfQueue, &write10(9, 1), 0, &[4; BLOCK], 0);
    let i = w.simple(0, n, &[0x12, 0, 0, 0, 36, 0], 36, &[]);
    w.settle();
    assert!(w.is_good(i), "INQUIRY waits for nobody");
    assert_eq!(w.cores[0].device.len(), 2, "the SIMPLE and the HEAD OF QUEUE one");
    w.device_step(0, 0);
    w.settle();
    w.device_step(0, 0);
    w.settle();
    assert!(w.is_good(s) && w.is_good(h) && !w.has_ended(o) && !w.has_ended(t));
    assert_eq!(w.cores[0].device.len(), 1, "the ORDERED one alone");
    w.device_step(0, 0);
    w.settle();
    assert!(w.is_good(o) && !w.has_ended(t));
    w.device_holds = false;
    w.settle();
    assert_eq!(w.medium[0], 3);
    w.assert_clean();
}

#[test]
fn atomic_commands_keep_overlapping_ones_away() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let out = [vec![0; BLOCK], vec![5; BLOCK]].concat();
    let c = w.simple(0, n, &compare_and_write(4, 1), 0, &out);
    let o = w.simple(0, n, &write10(3, 2), 0, &[7; 2 * BLOCK]);
    let d = w.simple(0, n, &compare_and_write(4, 1), 0, &out);
    let e = w.simple(0, n, &write10(8, 1), 0, &[8; BLOCK]);
    w.settle();
    assert_eq!(w.cores[0].device.len(), 2, "the first atomic one and the one elsewhere");
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(c) && w.is_good(o) && w.is_good(e));
    // The second compare finds what the WRITE between the two left.
    assert!(matches!(w.end_of(d), End::Status(Status::CheckCondition, ..)));
    assert_eq!(w.medium[4 * BLOCK], 7);
    w.assert_clean();
}

#[test]
fn a_lost_nexus_is_closed_when_its_tasks_are_gone() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &write10(0, 1), 0, &[1; BLOCK]);
    let y = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    w.event(0, PortEvent::NexusLost { token: NexusToken(1) });
    // A command that was on its way ends too.
    let z = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    assert!(w.closed.is_empty());
    w.device_holds = false;
    w.settle();
    assert_eq!(w.closed, [1]);
    for x in [x, y, z] {
        assert_eq!(w.end_of(x), End::Terminated);
    }
    let late = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    assert_eq!(w.end_of(late), End::Terminated);
    assert_eq!(w.cores[0].target.nexus_count(), 0);
    w.assert_clean();
}

#[test]
fn removal_ends_what_runs_and_what_waits() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    let o = w.command(0, n, TaskAttribute::Ordered, &read10(0, 1), 512, &[], 0);
    w.control(0, 10, ControlRequest::RemoveLogicalUnit { unit: UNIT });
    w.settle();
    let late = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    assert!(!w.done.contains_key(&10) && !w.has_ended(late));
    w.device_holds = false;
    w.settle();
    assert_eq!(w.done[&10], ControlOutcome::Done);
    for x in [x, o] {
        assert!(matches!(w.end_of(x), End::Status(Status::TaskAborted, ..)), "{:?}", w.end_of(x));
    }
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(late) else { panic!() };
    assert!(matches!((sense.asc, sense.ascq), (0x25, 0x00) | (0x3F, 0x0E)), "{sense:?}");
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(x) else { panic!() };
    assert_eq!((sense.asc, sense.ascq), (0x25, 0x00));
    w.assert_clean();
}

#[test]
fn a_lun_that_goes_takes_its_tasks_with_it() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    let map = std::sync::Arc::new(LunMap::default());
    w.control(0, 10, ControlRequest::SetLunMap { target: TargetDeviceId(0), map });
    w.settle();
    assert!(!w.done.contains_key(&10));
    w.device_holds = false;
    w.settle();
    assert_eq!(w.done[&10], ControlOutcome::Done);
    assert!(matches!(w.end_of(x), End::Status(Status::TaskAborted, ..)));
    w.assert_clean();
}

#[test]
fn a_cold_reset_ends_the_sessions() {
    let mut w = World::new(1);
    let (a, _b) = (w.nexus(0, 1, "a"), w.nexus(0, 2, "b"));
    let f = w.function(0, a, F::TargetColdReset, None);
    w.settle();
    assert_eq!(w.functions[&f], R::Complete);
    assert_eq!(w.drops.len(), 2);
    assert_eq!(w.closed.len(), 2);
    w.assert_clean();
}
