//! The data path allocates nothing, copies no payload, and gives every buffer back: the whole daemon in this process,
//! over real TCP. Allocations are counted by the process's allocator, for each thread.

mod common;
#[path = "common/counting_allocator.rs"]
mod counting_allocator;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Initiator, Node, initiator as host};
use counting_allocator::{allocations_of, threads_named, watch};
use initiator::{Command, OperationalKeys};
use serde_json::json;
use wire::scsi::Lun;

#[global_allocator]
static ALLOCATOR: counting_allocator::Counting = counting_allocator::Counting;

/// Commands a session keeps outstanding.
const DEPTH: usize = 8;
/// Commands of one kind before anything is counted, and while it is.
const WARM_UP: u32 = 96;
const COUNTED: u32 = 320;
/// Blocks of 512 bytes each disk has.
const DISK_BLOCKS: u32 = 32 * 1024;

const DISKS: [&str; 3] = ["RAM", "buffered file", "direct file"];

/// One daemon at a time: the tests look at all threads that are called reactors.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(name: &str) -> Node {
    let mut node = Node::start(name, 2);
    node.ram_disk("Ram0", u64::from(DISK_BLOCKS));
    for (bdev, method) in [("Buffered0", "bdev_aio_create"), ("Direct0", "bdev_uring_create")] {
        let path = node.folder.file(bdev, u64::from(DISK_BLOCKS) * 512);
        node.rpc(method, json!({"name": bdev, "filename": path, "block_size": 512}));
    }
    node.export(&["Ram0", "Buffered0", "Direct0"]);
    node
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    /// A write whose data comes with the command, or with R2Ts in a session without immediate data.
    Write,
    /// A write with a quarter of its data in the command, the rest by R2T.
    SplitWrite,
}

/// The sessions of a test: with and without immediate data, with and without digests.
fn sessions(node: &Node) -> Vec<(String, Initiator)> {
    let mut sessions = Vec::new();
    for (isid, (immediate, digests)) in
        [(true, false), (true, true), (false, false), (false, true)].into_iter().enumerate()
    {
        let digest = if digests { "CRC32C" } else { "None" };
        let mut config = host::config("data", u8::try_from(isid).expect("a few"));
        config.keys = OperationalKeys {
            header_digest: digest.into(),
            data_digest: digest.into(),
            immediate_data: immediate,
            initial_r2t: true,
            ..OperationalKeys::default()
        };
        let name = format!("immediate data {immediate}, digests {digest}");
        let mut session = Initiator::login(node.address(), config);
        for lun in 1..DISKS.len() {
            while session.run(Command { lun: lun_of(lun), ..ready() }).unit_attention().is_some() {}
        }
        let negotiated = session.session.negotiated();
        assert_eq!((negotiated.immediate_data, negotiated.data_digest), (immediate, digests));
        sessions.push((name, session));
    }
    sessions
}

fn ready() -> Command {
    Command::new(Lun::ZERO, &common::cdb::TEST_UNIT_READY)
}

fn lun_of(disk: usize) -> Lun {
    Lun::from_number(u16::try_from(disk).expect("a small LUN"))
}

/// What every write puts at `lba`: never the same for two blocks of a disk.
fn pattern(lba: u32, blocks: u16) -> Vec<u8> {
    (lba..lba + u32::from(blocks))
        .flat_map(|block| block.wrapping_mul(0x9E37_79B9).to_be_bytes().repeat(128))
        .collect()
}

/// Runs `count` commands of a kind, `DEPTH` at a time, and checks what reads bring.
fn work(session: &mut Initiator, disk: usize, kind: Kind, blocks: u16, count: u32) {
    let mut pending = VecDeque::with_capacity(DEPTH);
    let slots = DISK_BLOCKS / 256;
    for number in 0..count {
        // All over the disk, and no place twice among those outstanding.
        let lba = (number * 37 % slots) * 256;
        let command = match kind {
            Kind::Read => host::read(lba, blocks),
            Kind::Write => host::write(lba, pattern(lba, blocks)),
            Kind::SplitWrite => Command {
                immediate_data_max: Some(u32::from(blocks) * 128),
                ..host::write(lba, pattern(lba, blocks))
            },
        };
        pending.push_back((lba, session.submit(Command { lun: lun_of(disk), ..command })));
        if pending.len() == DEPTH || number + 1 == count {
            let keep = if number + 1 == count { 0 } else { DEPTH / 2 };
            while pending.len() > keep {
                let (lba, tag) = pending.pop_front().expect("it is not empty");
                let data = session.wait(tag).expect_good();
                assert!(
                    kind != Kind::Read || data == pattern(lba, blocks),
                    "{} disk, block {lba}: other data than was written",
                    DISKS[disk]
                );
            }
        }
    }
}

/// Everything a test does: each session writes, splits writes, and reads, small and large, on each disk.
fn all_work(sessions: &mut [(String, Initiator)], count: u32, mut after: impl FnMut(&str, usize, Kind, u16)) {
    for disk in 0..DISKS.len() {
        for (name, session) in &mut *sessions {
            for (kind, blocks) in [
                (Kind::Write, 256),
                (Kind::SplitWrite, 256),
                (Kind::Read, 256),
                (Kind::Write, 8),
                (Kind::SplitWrite, 8),
                (Kind::Read, 8),
            ] {
                work(session, disk, kind, blocks, count);
                after(name, disk, kind, blocks);
            }
        }
    }
}

#[test]
fn reactors_allocate_nothing_on_the_data_path() {
    let _alone = alone();
    let node = start("allocations");
    let mut sessions = sessions(&node);
    all_work(&mut sessions, WARM_UP, |_, _, _, _| {});
    let reactors = threads_named("reactor_");
    assert_eq!(reactors.len(), 2, "threads of reactors");
    let mut before: Vec<u64> = reactors.iter().map(|&thread| allocations_of(thread)).collect();
    assert!(before.iter().all(|&count| count > 0), "starting allocates: the count works");
    reactors.iter().for_each(|&thread| watch(thread, true));
    let mut faults = Vec::new();
    all_work(&mut sessions, COUNTED, |name, disk, kind, blocks| {
        for (&thread, before) in reactors.iter().zip(&mut before) {
            let now = allocations_of(thread);
            if now > *before {
                faults.push(format!(
                    "{} disk, {name}, {kind:?} of {blocks} blocks: {} allocations in {COUNTED} commands",
                    DISKS[disk],
                    now - *before
                ));
                *before = now;
            }
        }
    });
    reactors.iter().for_each(|&thread| watch(thread, false));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    sessions.into_iter().for_each(|(_, session)| session.logout());
    node.stop();
}

#[test]
fn no_payload_is_copied_and_every_buffer_comes_home() {
    let _alone = alone();
    let mut node = start("copies");
    let mut sessions = sessions(&node);
    let mut faults = Vec::new();
    let mut before = 0;
    all_work(&mut sessions, COUNTED / 4, |name, disk, kind, blocks| {
        let now = node.statistic("payload_bytes_copied");
        if now > before {
            faults.push(format!(
                "{} disk, {name}, {kind:?} of {blocks} blocks: {} bytes copied in {} commands",
                DISKS[disk],
                now - before,
                COUNTED / 4
            ));
            before = now;
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    sessions.into_iter().for_each(|(_, session)| session.logout());
    for holder in ["running", "nexuses", "tasks", "buffers_outstanding"] {
        node.wait_for_statistic(holder, 0);
    }
    assert!(node.statistic("buffers") > 0);
    node.stop();
}
