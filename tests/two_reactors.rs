//! One logical unit, two sessions, two cores: task management, task attributes and unit attentions across cores, with
//! the whole daemon in this process and real TCP. A slow device holds writes long enough to be overtaken; what counts
//! is which data is on the medium, never how fast anything was.

mod common;

use std::time::Duration;

use common::initiator::{CLEAR_TASK_SET, LOGICAL_UNIT_RESET, config, read, write};
use common::{Initiator, Node, cdb};
use initiator::Command;
use wire::scsi::{Lun, Status, TaskAttribute};

/// How long a slow write stays in the device: enough for whatever the test does meanwhile.
const SLOW_MS: u64 = 1500;

const BUS_DEVICE_RESET: (u8, u8) = (0x29, 0x03);
const COMMANDS_CLEARED: (u8, u8) = (0x2F, 0x00);
const MODE_PARAMETERS_CHANGED: (u8, u8) = (0x2A, 0x01);

/// A daemon with two reactors and one slow unit, and a session on each core.
fn two_sessions(name: &str) -> (Node, Initiator, Initiator) {
    let mut node = Node::start(name, 2);
    node.ram_disk("Ram0", 4096);
    node.delay("Slow0", "Ram0", SLOW_MS);
    node.export(&["Slow0"]);
    let a = node.login("a", 1);
    let b = node.login("b", 2);
    assert_ne!(node.core_of("a", 1), node.core_of("b", 2), "the sessions are on different cores");
    (node, a, b)
}

fn blocks(count: usize, byte: u8) -> Vec<u8> {
    vec![byte; count * 512]
}

/// Waits until every write that was in the slow device would have come out of it.
fn outlast_the_device() {
    std::thread::sleep(Duration::from_millis(SLOW_MS + 500));
}

#[test]
fn a_reset_keeps_the_writes_of_the_other_core_off_the_medium() {
    let (mut node, mut a, mut b) = two_sessions("reset");
    for lba in [0, 8, 16, 24] {
        b.submit(write(lba, blocks(8, 0xBB)));
    }
    node.wait_for_statistic("tasks", 4);
    let reset = a.manage(LOGICAL_UNIT_RESET, None);
    a.wait_managed(reset);
    node.set_write_delay("Slow0", 0);
    assert_eq!(a.clear_unit_attentions(), [BUS_DEVICE_RESET], "A learns of the reset once");
    a.write(0, blocks(32, 0xAA));
    outlast_the_device();
    assert!(a.read(0, 32) == blocks(32, 0xAA), "a write from before the reset reached the medium after it");
    assert_eq!(b.clear_unit_attentions(), [BUS_DEVICE_RESET], "B learns of the reset once");
    b.assert_nothing_done();
    assert!(b.read(0, 32) == blocks(32, 0xAA));
    node.wait_for_statistic("tasks", 0);
    a.logout();
    b.logout();
    node.wait_for_statistic("buffers_outstanding", 0);
    node.stop();
}

/// Here the device cannot take a request back, and some of the data is still to be asked for: the reset has to wait for
/// what is in flight, and to forget what is not.
#[test]
fn a_reset_waits_for_what_a_file_is_writing() {
    const LENGTH: usize = 4096;
    let mut node = Node::start("race", 2);
    let path = node.folder.file("disk.img", LENGTH as u64 * 512);
    node.rpc("bdev_uring_create", serde_json::json!({"name": "Disk0", "filename": path, "block_size": 512}));
    node.export(&["Disk0"]);
    let (mut a, mut b) = (node.login("a", 1), node.login("b", 2));
    assert_ne!(node.core_of("a", 1), node.core_of("b", 2), "the sessions are on different cores");
    let mut answered = 0;
    for round in 0..24u8 {
        let tag = b.submit(write(0, blocks(LENGTH, 0xB0)));
        // Each round the reset meets the write at another point.
        (0..round % 12).for_each(|_| assert!(b.pump()));
        let reset = a.manage(LOGICAL_UNIT_RESET, None);
        a.wait_managed(reset);
        assert_eq!(a.clear_unit_attentions(), [BUS_DEVICE_RESET], "A learns of reset {round} once");
        a.write(0, blocks(LENGTH, round));
        // What B still sends for its write arrives too late.
        let attentions = b.clear_unit_attentions();
        assert!(
            a.read(0, LENGTH as u16) == blocks(LENGTH, round),
            "round {round}: a write survived the reset"
        );
        if b.is_done(tag) {
            let done = b.wait(tag);
            answered += 1;
            let told = if done.status == Status::Good { None } else { Some(BUS_DEVICE_RESET) };
            assert_eq!(
                done.unit_attention(),
                told,
                "round {round}: done before the reset, or refused after it"
            );
            assert_eq!(attentions.len() + usize::from(told.is_some()), 1, "B learns of reset {round} once");
        } else {
            assert_eq!(attentions, [BUS_DEVICE_RESET], "B learns of reset {round} once");
        }
        b.assert_nothing_done();
    }
    eprintln!("writes that ended before their reset, or came after it: {answered} of 24");
    node.wait_for_statistic("tasks", 0);
    a.logout();
    b.logout();
    node.wait_for_statistic("buffers_outstanding", 0);
    node.stop();
}

#[test]
fn an_ordered_write_stands_between_the_other_cores_older_and_newer_writes() {
    let (mut node, mut a, mut b) = two_sessions("ordered");
    b.take_order();
    // The older a write is, the longer the device takes for it. Without the ordering rules, the newest would be on the
    // medium first and the oldest last.
    let older = [b.submit(write(0, blocks(8, 0x01))), b.submit(write(16, blocks(8, 0x01)))];
    node.wait_for_statistic("tasks", 2);
    node.set_write_delay("Slow0", SLOW_MS / 4);
    let ordered = a.submit(write(4, blocks(16, 0x0A)).attribute(TaskAttribute::Ordered));
    node.wait_for_statistic("tasks", 3);
    node.set_write_delay("Slow0", 0);
    let newer = [b.submit(write(12, blocks(4, 0x02))), b.submit(write(20, blocks(4, 0x02)))];
    a.wait(ordered).expect_good();
    for tag in older.into_iter().chain(newer) {
        b.drive("a write", |b| b.is_done(tag));
    }
    let order = b.take_order();
    assert!(older.iter().all(|tag| order[..2].contains(tag)), "newer writes ended before older: {order:?}");
    for tag in older.into_iter().chain(newer) {
        b.wait(tag).expect_good();
    }
    outlast_the_device();
    let medium = a.read(0, 24);
    let seen: Vec<u8> = medium.iter().step_by(512).copied().collect();
    let wanted: Vec<u8> = [(4, 0x01), (8, 0x0A), (4, 0x02), (4, 0x0A), (4, 0x02)]
        .iter()
        .flat_map(|&(n, byte)| vec![byte; n])
        .collect();
    assert_eq!(seen, wanted, "older 01, then ordered 0A, then newer 02");
    node.stop();
}

/// Adds one to the number in block 0, `count` times.
fn increment(session: &mut Initiator, count: u32) -> u32 {
    let mut failed = 0;
    for _ in 0..count {
        loop {
            let old = session.read(0, 1);
            let number = u64::from_be_bytes(old[..8].try_into().expect("eight bytes"));
            let mut new = old.clone();
            new[..8].copy_from_slice(&(number + 1).to_be_bytes());
            let both = [old, new].concat();
            let done = session.run(Command::write(Lun::ZERO, &cdb::compare_and_write(0, 1), both));
            if done.status == Status::Good {
                break;
            }
            assert_eq!(done.sense(), (0x0E, 0x1D, 0x00), "the only way to fail is MISCOMPARE");
            failed += 1;
        }
    }
    failed
}

#[test]
fn compare_and_write_is_atomic_across_cores() {
    const INCREMENTS: u32 = 200;
    let (mut node, mut a, mut b) = two_sessions("counter");
    node.set_write_delay("Slow0", 0);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| increment(&mut a, INCREMENTS));
        let second = scope.spawn(|| increment(&mut b, INCREMENTS));
        let failed = (first.join().expect("session A"), second.join().expect("session B"));
        eprintln!("lost races: {failed:?}");
    });
    let last = a.read(0, 1);
    assert_eq!(u64::from_be_bytes(last[..8].try_into().expect("eight bytes")), u64::from(2 * INCREMENTS));
    node.stop();
}

#[test]
fn clear_task_set_tells_the_other_core_once() {
    let (mut node, mut a, mut b) = two_sessions("clear");
    let own = a.submit(write(100, blocks(8, 0xA0)));
    for lba in [0, 8] {
        b.submit(write(lba, blocks(8, 0xBB)));
    }
    node.wait_for_statistic("tasks", 3);
    let clear = a.manage(CLEAR_TASK_SET, None);
    a.wait_managed(clear);
    assert_eq!(a.take_aborted(), [own]);
    node.set_write_delay("Slow0", 0);
    a.test_unit_ready().expect_good();
    a.write(0, blocks(16, 0xAA));
    assert_eq!(b.clear_unit_attentions(), [COMMANDS_CLEARED], "B learns of it once");
    outlast_the_device();
    assert!(b.read(0, 16) == blocks(16, 0xAA), "a cleared write reached the medium");
    b.assert_nothing_done();
    assert!(b.read(100, 8) == blocks(8, 0), "a cleared write reached the medium");
    node.wait_for_statistic("tasks", 0);
    node.stop();
}

#[test]
fn a_reinstated_session_leaves_no_write_behind() {
    let mut node = Node::start("reinstatement", 2);
    node.ram_disk("Ram0", 4096);
    node.delay("Slow0", "Ram0", SLOW_MS);
    node.export(&["Slow0"]);
    let mut old = node.login("a", 7);
    let old_core = node.core_of("a", 7);
    for lba in [0, 8] {
        old.submit(write(lba, blocks(8, 0xBB)));
    }
    node.wait_for_statistic("tasks", 2);
    node.set_write_delay("Slow0", 0);
    // The core with the fewest connections is the other one.
    let mut new = Initiator::login(node.address(), config("a", 7));
    new.write(0, blocks(16, 0xAA));
    assert_ne!(node.core_of("a", 7), old_core, "the new session is on the other core");
    outlast_the_device();
    assert!(
        new.read(0, 16) == blocks(16, 0xAA),
        "a write of the old session reached the medium after the login"
    );
    common::wait_until("the old connection to close", || !old.pump());
    old.assert_nothing_done();
    node.wait_for_statistic("nexuses", 1);
    node.wait_for_statistic("tasks", 0);
    new.logout();
    node.wait_for_statistic("buffers_outstanding", 0);
    node.stop();
}

#[test]
fn mode_select_tells_the_other_core() {
    let (node, mut a, mut b) = two_sessions("mode");
    const CONTROL_PAGE: u8 = 0x0A;
    /// TAS, in byte 5 of the Control mode page (SPC-5 §7.5.10).
    const TASK_ABORTED_STATUS: u8 = 0x40;
    let control = |session: &mut Initiator| {
        let sense = Command::read(Lun::ZERO, &cdb::mode_sense(CONTROL_PAGE), 255);
        session.run(sense).expect_good()[4..].to_vec()
    };
    let mut page = control(&mut a);
    assert_eq!(page[5] & TASK_ABORTED_STATUS, 0);
    page[5] |= TASK_ABORTED_STATUS;
    page[0] &= 0x3F;
    let list = [vec![0; 4], page].concat();
    let length = u8::try_from(list.len()).expect("a short list");
    a.run(Command::write(Lun::ZERO, &cdb::mode_select(length), list)).expect_good();
    assert_eq!(b.clear_unit_attentions(), [MODE_PARAMETERS_CHANGED], "B learns of it once");
    a.test_unit_ready().expect_good();
    assert_eq!(control(&mut b)[5] & TASK_ABORTED_STATUS, TASK_ABORTED_STATUS, "B sees the change");
    let done = b.run(read(0, 1));
    assert_eq!(done.status, Status::Good);
    node.stop();
}
