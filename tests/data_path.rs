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

/// The load before allocations are counted, and while they are: what grows with the load shows.
const WARM_UP: Load = Load { count: 16, depth: 2 };
const COUNTED: Load = Load { count: 240, depth: 32 };
/// The load of the test that counts copies.
const COPIES: Load = Load { count: 64, depth: 16 };
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
    /// A write whose data comes as the session says.
    Write,
    /// A write with a quarter of its data in the command, the rest by R2T (all of it without immediate data).
    SplitWrite,
    /// Writes and reads in turns.
    Mixed,
}

/// What a session negotiates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Data comes with the command, what is left by R2T.
    Immediate,
    /// All data comes by R2T.
    Solicited,
    /// Data comes in unsolicited Data-Out PDUs.
    Unsolicited,
}

struct Lane {
    name: String,
    data: Data,
    host: Initiator,
}

/// The sessions of a test: each way of sending data, with and without digests.
fn sessions(node: &Node) -> Vec<Lane> {
    let mut lanes = Vec::new();
    for data in [Data::Immediate, Data::Solicited, Data::Unsolicited] {
        for digest in ["None", "CRC32C"] {
            let mut config = host::config("data", u8::try_from(lanes.len()).expect("a few"));
            config.keys = OperationalKeys {
                header_digest: digest.into(),
                data_digest: digest.into(),
                immediate_data: data == Data::Immediate,
                initial_r2t: data != Data::Unsolicited,
                ..OperationalKeys::default()
            };
            let mut host = Initiator::login(node.address(), config);
            for lun in 1..DISKS.len() {
                while host.run(Command { lun: lun_of(lun), ..ready() }).unit_attention().is_some() {}
            }
            let rules = host.session.negotiated();
            assert_eq!(rules.immediate_data, data == Data::Immediate);
            assert_eq!(rules.initial_r2t, data != Data::Unsolicited);
            assert_eq!((rules.header_digest, rules.data_digest), (digest != "None", digest != "None"));
            lanes.push(Lane { name: format!("{data:?} data, digests {digest}"), data, host });
        }
    }
    lanes
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

/// How much work: commands of each kind, and how many are outstanding at a time.
#[derive(Debug, Clone, Copy)]
struct Load {
    count: u32,
    depth: usize,
}

/// Runs commands of a kind and checks what reads bring.
fn work(session: &mut Initiator, disk: usize, kind: Kind, blocks: u16, Load { count, depth }: Load) {
    let mut pending = VecDeque::with_capacity(depth);
    let slots = DISK_BLOCKS / 256;
    for number in 0..count {
        // All over the disk, and no place twice among those outstanding.
        let lba = (number * 37 % slots) * 256;
        let now = if kind == Kind::Mixed { [Kind::Write, Kind::Read][number as usize % 2] } else { kind };
        let command = match now {
            Kind::Read => host::read(lba, blocks),
            Kind::Write | Kind::Mixed => host::write(lba, pattern(lba, blocks)),
            Kind::SplitWrite => Command {
                immediate_data_max: Some(u32::from(blocks) * 128),
                ..host::write(lba, pattern(lba, blocks))
            },
        };
        pending.push_back((now, lba, session.submit(Command { lun: lun_of(disk), ..command })));
        if pending.len() == depth || number + 1 == count {
            let keep = if number + 1 == count { 0 } else { depth / 2 };
            while pending.len() > keep {
                let (kind, lba, tag) = pending.pop_front().expect("it is not empty");
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

/// Everything a test does: each session writes and reads, small and large, on each disk.
fn all_work(lanes: &mut [Lane], load: Load, mut after: impl FnMut(&Lane, usize, Kind, u16)) {
    for disk in 0..DISKS.len() {
        for lane in &mut *lanes {
            for blocks in [256, 8] {
                for kind in [Kind::Write, Kind::SplitWrite, Kind::Read, Kind::Mixed] {
                    work(&mut lane.host, disk, kind, blocks, load);
                    after(lane, disk, kind, blocks);
                }
            }
        }
    }
}

#[test]
fn reactors_allocate_nothing_on_the_data_path() {
    let _alone = alone();
    let node = start("allocations");
    let mut lanes = sessions(&node);
    all_work(&mut lanes, WARM_UP, |_, _, _, _| {});
    let reactors = threads_named("reactor_");
    assert_eq!(reactors.len(), 2, "threads of reactors");
    let mut before: Vec<u64> = reactors.iter().map(|&thread| allocations_of(thread)).collect();
    assert!(before.iter().all(|&count| count > 0), "starting allocates: the count works");
    reactors.iter().for_each(|&thread| watch(thread, true));
    let mut faults = Vec::new();
    all_work(&mut lanes, COUNTED, |lane, disk, kind, blocks| {
        for (&thread, before) in reactors.iter().zip(&mut before) {
            let now = allocations_of(thread);
            if now > *before {
                let (count, disk, name) = (now - *before, DISKS[disk], &lane.name);
                faults.push(format!("{disk} disk, {name}, {kind:?} of {blocks} blocks: {count} allocations"));
                *before = now;
            }
        }
    });
    reactors.iter().for_each(|&thread| watch(thread, false));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    lanes.into_iter().for_each(|lane| lane.host.logout());
    node.stop();
}

/// Copies the direct file disk made to aligned memory.
fn bounces(node: &mut Node) -> u64 {
    let all = node.rpc("bdev_get_bdevs", json!({"name": "Direct0"}));
    all[0]["driver_specific"]["uring"]["bounce_copies"].as_u64().unwrap_or_else(|| panic!("no count: {all}"))
}

#[test]
fn no_payload_is_copied_and_every_buffer_comes_home() {
    let _alone = alone();
    let mut node = start("copies");
    let mut lanes = sessions(&node);
    let mut faults = Vec::new();
    let (mut copied, mut bounced) = (0, 0);
    all_work(&mut lanes, COPIES, |lane, disk, kind, blocks| {
        let what = format!("{} disk, {}, {kind:?} of {blocks} blocks", DISKS[disk], lane.name);
        let now = node.statistic("payload_bytes_copied");
        if now > copied {
            faults.push(format!("{what}: {} bytes copied", now - copied));
            copied = now;
        }
        let now = bounces(&mut node);
        if now > bounced {
            // Immediate and unsolicited data stands in memory where it arrived, between headers.
            let unaligned = lane.data != Data::Solicited && kind != Kind::Read;
            let text = format!("{what}: {} bounce copies", now - bounced);
            eprintln!("{text}");
            if !unaligned {
                faults.push(text);
            }
            bounced = now;
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // The count works: data in the command that ends inside a block has to be moved to the rest of its block.
    let odd = Command { immediate_data_max: Some(1000), ..host::write(0, pattern(0, 8)) };
    lanes[0].host.run(odd).expect_good();
    assert!(node.statistic("payload_bytes_copied") > 0);
    assert!(lanes[0].host.read(0, 8) == pattern(0, 8));
    lanes.into_iter().for_each(|lane| lane.host.logout());
    for holder in ["running", "nexuses", "tasks", "buffers_outstanding"] {
        node.wait_for_statistic(holder, 0);
    }
    assert!(node.statistic("buffers") > 0);
    node.stop();
}
