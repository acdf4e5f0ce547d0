use wire::scsi::TaskAttribute;

use super::world::*;
use crate::*;

use TaskManagementFunction as F;
use TaskManagementResponse as R;

#[test]
fn a_reset_reaches_every_core_and_each_nexus_hears_of_it_once() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let x = w.simple(0, a, &write10(0, 8), 0, &[1; 4096]);
    let y = w.simple(1, b, &write10(8, 8), 0, &[1; 4096]);
    w.settle();
    let f = w.function(0, a, F::LogicalUnitReset, None);
    w.settle();
    assert!(w.functions.is_empty());
    w.device_step(0, 0);
    w.settle();
    assert!(w.functions.is_empty(), "the other core's device still has a write");
    w.device_step(1, 0);
    w.settle();
    assert_eq!(w.functions[&f], R::Complete);
    assert_eq!((w.end_of(x), w.end_of(y)), (End::Terminated, End::Terminated));
    w.device_holds = false;
    for (core, nexus) in [(0, a), (1, b)] {
        w.expect_attention(core, nexus, 0x29, 0x03);
        w.expect_ready(core, nexus);
    }
    w.assert_clean();
}

#[test]
fn ordered_tasks_of_two_cores_both_end() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.messages_hold = true;
    let x = w.command(0, a, TaskAttribute::Ordered, &write10(0, 1), 0, &[1; BLOCK], 0);
    let y = w.command(1, b, TaskAttribute::Ordered, &write10(0, 1), 0, &[2; BLOCK], 0);
    let z = w.simple(0, a, &write10(0, 1), 0, &[3; BLOCK]);
    w.settle();
    assert!(!w.has_ended(x) && !w.has_ended(y) && !w.has_ended(z));
    w.messages_hold = false;
    w.settle();
    assert!(w.is_good(x) && w.is_good(y) && w.is_good(z));
    w.assert_clean();
}

#[test]
fn an_ordered_task_waits_for_the_other_core() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let s = w.simple(1, b, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    let o = w.command(0, a, TaskAttribute::Ordered, &write10(0, 1), 0, &[2; BLOCK], 0);
    w.settle();
    let t = w.simple(1, b, &write10(0, 1), 0, &[3; BLOCK]);
    let h = w.command(1, b, TaskAttribute::HeadOfQueue, &read10(0, 1), 512, &[], 0);
    w.settle();
    assert_eq!((w.cores[0].device.len(), w.cores[1].device.len()), (0, 2), "SIMPLE and HEAD OF QUEUE");
    w.device_step(1, 0);
    w.device_step(1, 0);
    w.settle();
    assert!(w.is_good(s) && w.is_good(h) && !w.has_ended(t));
    assert_eq!((w.cores[0].device.len(), w.cores[1].device.len()), (1, 0), "the ORDERED one alone");
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(o) && w.is_good(t));
    assert_eq!(w.medium[0], 3);
    w.assert_clean();
}

#[test]
fn a_reset_ends_an_ordered_task_that_waits_for_a_stuck_device() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let s = w.simple(1, b, &read10(0, 1), 512, &[]);
    let o = w.command(0, a, TaskAttribute::Ordered, &read10(0, 1), 512, &[], 0);
    w.settle();
    let g = w.function(0, a, F::AbortTask, Some(o));
    w.settle();
    assert_eq!(w.functions[&g], R::Complete, "an ordered task that waits can be aborted at once");
    let p = w.command(0, a, TaskAttribute::Ordered, &read10(0, 1), 512, &[], 0);
    w.settle();
    let f = w.function(1, b, F::LogicalUnitReset, None);
    w.settle();
    assert_eq!((w.end_of(s), w.end_of(p)), (End::Terminated, End::Terminated));
    assert!(!w.functions.contains_key(&f));
    w.device_holds = false;
    w.settle();
    assert_eq!(w.functions[&f], R::Complete);
    for (core, nexus) in [(0, a), (1, b)] {
        w.expect_attention(core, nexus, 0x29, 0x03);
        w.expect_ready(core, nexus);
    }
    w.assert_clean();
}

#[test]
fn compare_and_write_is_atomic_across_cores() {
    for seed in 0..20 {
        let mut w = World::new(3);
        let n: Vec<NexusId> =
            (0..3).map(|core| w.nexus(core, core as u64 + 1, &format!("i{core}"))).collect();
        let mut prng = base::Prng::new(seed);
        let out = [vec![0; BLOCK], vec![1; BLOCK]].concat();
        let all: Vec<u64> =
            (0..3).map(|core| w.simple(core, n[core], &compare_and_write(4, 1), 0, &out)).collect();
        while w.random_step(&mut prng) {}
        assert_eq!(all.iter().filter(|&&x| w.is_good(x)).count(), 1, "exactly one wins, seed {seed}");
        w.assert_clean();
    }
}

#[test]
fn reinstatement_waits_for_the_old_tasks_on_another_core() {
    let mut w = World::new(2);
    let a = w.nexus(0, 1, "same");
    w.device_holds = true;
    let x = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    w.request_nexus(1, 2, "same");
    w.settle();
    assert_eq!(w.drops, [(1, DropReason::Reinstated)]);
    assert!(!w.established.contains_key(&2), "the old task may still write");
    w.device_holds = false;
    w.settle();
    assert_eq!(w.end_of(x), End::Terminated);
    let b = w.established[&2];
    assert_eq!(w.closed, [1]);
    w.expect_attention(1, b, 0x29, 0x07);
    w.expect_ready(1, b);
    w.assert_clean();
}

#[test]
fn a_claim_can_be_taken_back() {
    let mut w = World::new(2);
    let a = w.nexus(0, 1, "same");
    w.device_holds = true;
    let _x = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    w.request_nexus(1, 2, "same");
    w.settle();
    w.event(1, PortEvent::NexusLost { token: NexusToken(2) });
    w.request_nexus(1, 3, "same");
    w.settle();
    assert_eq!(w.closed, [2]);
    w.device_holds = false;
    w.settle();
    assert!(w.established.contains_key(&3) && !w.established.contains_key(&2));
    w.event(1, PortEvent::NexusLost { token: NexusToken(3) });
    w.settle();
    let nexuses: usize = w.cores.iter().map(|core| core.target.nexus_count()).sum();
    assert_eq!(nexuses, 0);
    w.assert_clean();
}

#[test]
fn a_mode_change_is_in_force_everywhere_when_it_is_answered() {
    let mut w = World::new(3);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(2, 2, "b"));
    let x = w.simple(0, a, &[0x1A, 0x08, 0x0A, 0, 64, 0], 64, &[]);
    w.settle();
    let mut list = w.exchanges[&x].data_in.clone();
    (list[0], list[2]) = (0, 0);
    list[4] &= 0x3F;
    list[4 + 4] |= 0x08;
    let x = w.command(0, a, TaskAttribute::Ordered, &[0x15, 0x10, 0, 0, list.len() as u8, 0], 0, &list, 0);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    assert!(w.cores.iter().all(|core| core.target.unit_view(UNIT).unwrap().mode.software_write_protect));
    w.expect_attention(2, b, 0x2A, 0x01);
    w.expect_ready(0, a);
    w.control(2, 20, ControlRequest::CapacityChanged { unit: UNIT });
    w.settle();
    assert_eq!(w.done[&20], ControlOutcome::Done);
    w.expect_attention(0, a, 0x2A, 0x09);
    w.expect_attention(2, b, 0x2A, 0x09);
    w.assert_clean();
}

#[test]
fn a_device_that_never_answers_cannot_hold_up_reinstatement_or_refusals() {
    let mut w = World::new(2);
    let (a, c) = (w.nexus(0, 1, "same"), w.nexus(0, 3, "other"));
    w.device_holds = true;
    let x = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    // Its lease can never be granted: core 0 cannot drain.
    let d = w.nexus(1, 4, "third");
    let o = w.command(1, d, TaskAttribute::Ordered, &read10(0, 1), 512, &[], 0);
    w.settle();
    let s = w.simple(0, c, &read10(0, 1), 512, &[]);
    w.request_nexus(1, 2, "same");
    w.settle();
    assert!(!w.has_ended(o) && !w.has_ended(s));
    w.pass(1100);
    w.settle();
    assert!(w.established.contains_key(&2));
    assert_eq!(w.notes, [Notification::UnitFenced { unit: UNIT }]);
    assert!(w.has_ended(o) && w.has_ended(s), "a fenced unit refuses at once");
    assert_eq!(w.end_of(x), End::Terminated);
    w.device_holds = false;
    w.settle();
    w.assert_clean();
}

#[test]
fn leases_that_are_given_up_do_not_pile_up() {
    let mut w = World::new(2);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(1, 2, "b"));
    w.device_holds = true;
    let s = w.simple(1, b, &read10(0, 1), 512, &[]);
    w.settle();
    for _ in 0..50 {
        let o = w.command(0, a, TaskAttribute::Ordered, &read10(0, 1), 512, &[], 0);
        w.settle();
        let f = w.function(0, a, F::AbortTask, Some(o));
        w.settle();
        assert_eq!(w.functions[&f], R::Complete);
    }
    assert!(w.cores[0].target.tickets.len() <= 1);
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(s));
    w.expect_ready(0, a);
    w.assert_clean();
}
