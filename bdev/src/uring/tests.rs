use super::*;
use crate::conformance::{self, Bench, Traits};
use crate::{BlockOp, IoValue};
use std::sync::atomic::AtomicU32;

/// A sparse file that goes away with the value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(bytes: u64) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bdev-test-{}-{number}", std::process::id()));
        File::create_new(&path).unwrap().set_len(bytes).unwrap();
        Scratch(path)
    }

    pub(super) fn options(&self, direct: bool) -> FileOptions {
        FileOptions { direct, block_size: Some(if direct { 4096 } else { 512 }), ..FileOptions::new(&self.0) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The device, or nothing with a word about it where the host cannot do it.
pub(super) fn open(options: &FileOptions) -> Option<FileDevice> {
    match FileDevice::open(options) {
        Ok(device) => Some(device),
        Err(error) if matches!(error.reason, FileProblem::Uring(_) | FileProblem::Direct) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_buffered_file_conforms() {
    let scratch = Scratch::new(8 << 20);
    let Some(device) = open(&scratch.options(false)) else { return };
    conformance::run(&device, 11, 600, Traits::default());
    assert_eq!(device.bounce_copies(), 0, "buffered access takes any buffer");
}

#[test]
fn a_direct_file_conforms_and_counts_its_copies() {
    let scratch = Scratch::new(16 << 20);
    let Some(device) = open(&scratch.options(true)) else { return };
    conformance::run(&device, 12, 400, Traits::default());
    assert!(device.bounce_copies() > 0, "the kit uses unaligned buffers");
}

#[test]
fn threads_conform_where_there_is_no_io_uring() {
    for direct in [false, true] {
        let scratch = Scratch::new(16 << 20);
        let options = FileOptions { carrier: Carrier::Threads, ..scratch.options(direct) };
        let Some(device) = open(&options) else { continue };
        assert!(!device.uses_uring());
        conformance::run(&device, 13, 400, Traits::default());
    }
}

#[test]
fn threads_bring_every_buffer_home_and_wake_a_sleeper() {
    let scratch = Scratch::new(64 << 20);
    let Some(device) = open(&FileOptions { carrier: Carrier::Threads, ..scratch.options(false) }) else {
        return;
    };
    let mut bench = Bench::new(&device);
    let fd = bench.channel().wake_descriptor().unwrap();
    for op in [BlockOp::Flush, BlockOp::Extent] {
        bench.submit(op, 0, 1, None).unwrap();
        bench.channel().flush();
        assert!(system::readable(fd, 5000), "{op:?}");
        bench.drain();
        bench.turn();
        assert!(!system::readable(fd, 0), "{op:?}");
    }
    let pool = bench.pool().clone();
    for turn in 0..20u64 {
        let data = bench.buffer(1 << 20);
        bench.submit(BlockOp::Write { fua: true }, turn * 2048, 2048, Some(data)).unwrap();
    }
    drop(bench);
    assert_eq!(pool.statistics().outstanding, 0);
}

#[test]
fn a_file_system_without_holes_gets_zeros_written() {
    let scratch = Scratch::new(8 << 20);
    for direct in [false, true] {
        let Some(device) = open(&scratch.options(direct)) else { continue };
        device.shared.zero_range.store(false, Ordering::Relaxed);
        device.shared.punch.store(false, Ordering::Relaxed);
        assert!(!device.geometry().provisioning.discard);
        let mut bench = Bench::new(&device);
        let block = device.geometry().block_size as usize;
        let blocks = (1 << 20) / block as u64;
        bench.fill(0, 1 << 20, blocks, 0x77);
        let zeroes = BlockOp::WriteZeroes { may_deallocate: true, fua: true };
        assert_eq!(bench.one(zeroes, 1, blocks - 2, None).result, Ok(IoValue::Done));
        let content = bench.read(0, 1 << 20, blocks);
        let expected = |at: usize| if (block..(1 << 20) - block).contains(&at) { 0 } else { 0x77 };
        assert!(content.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
        assert_eq!(bench.one(BlockOp::Discard, 0, 1, None).result, Err(BlockError::Unsupported));
    }
}

#[test]
fn a_failed_flush_is_sticky_on_every_channel() {
    let scratch = Scratch::new(1 << 20);
    let Some(device) = open(&scratch.options(false)) else { return };
    let (mut one, mut other) = (Bench::new(&device), Bench::new(&device));
    assert_eq!(one.one(BlockOp::Flush, 0, 0, None).result, Ok(IoValue::Done));
    device.shared.flush_failed.store(true, Ordering::Release);
    for bench in [&mut one, &mut other] {
        assert_eq!(bench.one(BlockOp::Flush, 0, 0, None).result, Err(BlockError::FlushFailed));
        let data = bench.buffer(512);
        let done = bench.one(BlockOp::Write { fua: true }, 0, 1, Some(data));
        assert_eq!(done.result, Err(BlockError::FlushFailed));
        assert!(done.data.is_some());
        bench.fill(0, 512, 1, 1);
    }
}

#[test]
fn a_file_that_shrank_is_a_medium_error_at_the_first_missing_block() {
    let scratch = Scratch::new(64 << 10);
    let Some(device) = open(&scratch.options(false)) else { return };
    let mut bench = Bench::new(&device);
    OpenOptions::new().write(true).open(&scratch.0).unwrap().set_len(4096).unwrap();
    let data = bench.buffer(8192);
    assert_eq!(bench.one(BlockOp::Read, 0, 16, Some(data)).result, Err(BlockError::Medium { lba: Some(8) }));
    assert_eq!(device.rescan(), Ok(8));
    assert_eq!(device.geometry().blocks, 8);
    let data = bench.buffer(512);
    assert_eq!(bench.one(BlockOp::Read, 8, 1, Some(data)).result, Err(BlockError::OutOfRange));
}

#[test]
fn a_registered_pool_serves_the_same_data() {
    let scratch = Scratch::new(1 << 20);
    let Some(device) = open(&scratch.options(true)) else { return };
    let mut bench = Bench::new(&device);
    let pool = bench.pool().clone();
    if !bench.channel().register_pool(&pool) {
        return eprintln!("skipped: the system locks no memory for us");
    }
    assert!(!bench.channel().register_pool(&pool), "once is enough");
    bench.fill(3, 65536, 16, 0x3C);
    assert_eq!(bench.read(3, 65536, 16), vec![0x3C; 65536]);
}

#[test]
fn a_full_queue_gives_the_request_back() {
    let scratch = Scratch::new(1 << 20);
    let options = FileOptions { queue_depth: 4, ..scratch.options(false) };
    let Some(device) = open(&options) else { return };
    let mut bench = Bench::new(&device);
    for lba in 0..4 {
        let data = bench.buffer(512);
        bench.submit(BlockOp::Read, lba, 1, Some(data)).unwrap();
    }
    let data = bench.buffer(512);
    assert!(bench.submit(BlockOp::Read, 0, 1, Some(data)).is_err());
    assert_eq!(bench.drain().len(), 4);
    for _ in 0..4 {
        bench.submit(BlockOp::Discard, u64::MAX, 1, None).unwrap();
    }
    assert!(bench.submit(BlockOp::Discard, u64::MAX, 1, None).is_err(), "refused requests take room too");
}

#[test]
fn dropping_a_channel_with_requests_outstanding_brings_every_buffer_home() {
    let scratch = Scratch::new(64 << 20);
    let Some(device) = open(&scratch.options(true)) else { return };
    let mut bench = Bench::new(&device);
    let pool = bench.pool().clone();
    for turn in 0..20u64 {
        let data = bench.buffer(1 << 20);
        bench.submit(BlockOp::Write { fua: true }, turn * 256, 256, Some(data)).unwrap();
    }
    bench.channel().flush();
    assert_eq!(pool.statistics().outstanding, 20);
    drop(bench);
    assert_eq!(pool.statistics().outstanding, 0);
}

#[test]
fn the_wake_descriptor_is_readable_when_something_finished() {
    let scratch = Scratch::new(1 << 20);
    let Some(device) = open(&scratch.options(false)) else { return };
    let mut bench = Bench::new(&device);
    let fd = bench.channel().wake_descriptor().unwrap();
    for op in [BlockOp::Flush, BlockOp::Extent] {
        assert!(!system::readable(fd, 0));
        bench.submit(op, 0, 1, None).unwrap();
        bench.channel().flush();
        assert!(system::readable(fd, 5000), "{op:?}");
        bench.drain();
        bench.turn();
    }
}

#[test]
fn extents_of_a_file_follow_its_holes() {
    let scratch = Scratch::new(1 << 20);
    let Some(device) = open(&scratch.options(false)) else { return };
    let mut bench = Bench::new(&device);
    bench.fill(256, 65536, 128, 1);
    let Ok(IoValue::Extent(hole)) = bench.one(BlockOp::Extent, 0, 2048, None).result else {
        panic!("no extent")
    };
    let Ok(IoValue::Extent(data)) = bench.one(BlockOp::Extent, 256, 2048 - 256, None).result else {
        panic!("no extent")
    };
    assert_eq!((hole.state, hole.blocks), (crate::ExtentState::Deallocated, 256));
    assert_eq!((data.state, data.blocks), (crate::ExtentState::Mapped, 128));
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_a_reason() {
    let scratch = Scratch::new(100);
    let reason = |options: &FileOptions| FileDevice::open(options).err().map(|error| error.reason);
    if matches!(reason(&scratch.options(false)), Some(FileProblem::Uring(_))) {
        return eprintln!("skipped: no io_uring");
    }
    assert_eq!(reason(&scratch.options(false)), Some(FileProblem::TooSmall(100)));
    let scratch = Scratch::new(1 << 20);
    let odd = FileOptions { block_size: Some(520), ..scratch.options(false) };
    assert_eq!(reason(&odd), Some(FileProblem::BlockSize(520)));
    assert_eq!(reason(&FileOptions::new("/nonexistent")), Some(FileProblem::System(libc::ENOENT)));
    assert_eq!(reason(&FileOptions::new(std::env::temp_dir())), Some(FileProblem::Kind));
    let first = open(&scratch.options(false)).unwrap();
    assert_eq!(reason(&scratch.options(false)), Some(FileProblem::InUse));
    drop(first);
    let readers = FileOptions { read_only: true, ..scratch.options(false) };
    let (one, _two) = (open(&readers).unwrap(), open(&readers).unwrap());
    let mut bench = Bench::new(&one);
    let data = bench.buffer(512);
    assert_eq!(bench.one(BlockOp::Write { fua: false }, 0, 1, Some(data)).result, Err(BlockError::ReadOnly));
    let error = FileDevice::open(&FileOptions::new("/nonexistent")).err().unwrap();
    assert!(error.to_string().starts_with("/nonexistent: "), "{error}");
}

/// Needs a block device that may be overwritten, named by the environment: a loop device will do.
#[test]
fn a_block_device_conforms() {
    let Some(path) = std::env::var_os("BDEV_TEST_BLOCK_DEVICE") else {
        return eprintln!("skipped: BDEV_TEST_BLOCK_DEVICE names no block device to overwrite");
    };
    for direct in [true, false] {
        let Some(device) = open(&FileOptions { direct, ..FileOptions::new(&path) }) else { return };
        let again = FileDevice::open(&FileOptions::new(&path)).err().map(|error| error.reason);
        assert_eq!(again, Some(FileProblem::InUse));
        let geometry = device.geometry();
        eprintln!("{geometry:?}");
        let mut bench = Bench::new(&device);
        let zeroes = BlockOp::WriteZeroes { may_deallocate: false, fua: false };
        assert_eq!(bench.one(zeroes, 0, geometry.blocks, None).result, Ok(IoValue::Done));
        drop(bench);
        conformance::run(&device, 21, 400, Traits::default());
    }
}
