use super::*;

#[test]
fn it_comes_up_and_moves_blocks() {
    let fake = Fake::new(&[(1, FakeNamespace::new(9, 4096)), (3, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 2);
    assert_eq!(world.controller.namespaces().len(), 2);
    let identity = world.controller.identity().unwrap();
    assert_eq!((identity.serial.as_str(), identity.model.as_str()), ("FAKE0001", "Fake NVMe"));
    assert_eq!(world.controller.statistics().queue_pairs, 3);
    let geometry = world.namespace(3).geometry();
    assert_eq!((geometry.block_size, geometry.blocks, geometry.write_cache), (4096, 512, true));
    let mut host = world.host(1, 3);
    let data = host.buffer(8192, 0x5A);
    assert_eq!(one(&mut world, &mut host, WRITE, 7, 2, Some(data)).result, DONE);
    assert_eq!(one(&mut world, &mut host, BlockOp::Flush, 0, 0, None).result, DONE);
    let data = host.buffer(4096 * 4, 0xFF);
    let read = one(&mut world, &mut host, BlockOp::Read, 6, 4, Some(data));
    let bytes: Vec<u8> = read.data.unwrap().iter().step_by(4096).copied().collect();
    assert_eq!((read.result, bytes), (DONE, vec![0, 0x5A, 0x5A, 0]));
    let opcodes: Vec<u8> = fake.lock().log.iter().map(|command| command.opcode()).collect();
    assert_eq!(opcodes, [1, 0, 2]);
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length).map(|at| ((at as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Writes and reads back ranges of all shapes, and compares with a copy.
fn shapes(fake: &Arc<Fake>, world: &mut World, host: &mut Host, nsid: u32) {
    let shift = fake.lock().namespaces[&nsid].shift;
    let mut model = fake.lock().namespaces[&nsid].media.clone();
    let shapes: [(u64, u64, usize); 12] = [
        (0, 1, 0),
        (1, 8, 0),
        (3, 9, 512),
        (5, 16, 0),
        (5, 17, 4),
        (60, 40, 0),
        (100, 512, 0),
        (100, 513, 1024),
        (700, 128, 3),
        (700, 600, 1),
        (0, 1500, 8),
        (2047, 1, 0),
    ];
    for (seed, (lba, blocks, skew)) in shapes.into_iter().enumerate() {
        let length = (blocks << shift) as usize;
        let mut data = host.buffer(length + skew, 0);
        drop(data.split_to(skew));
        data.copy_from_slice(&pattern(length, seed as u64));
        let at = (lba << shift) as usize;
        model[at..at + length].copy_from_slice(&data);
        let written = one(world, host, WRITE, lba, blocks, Some(data));
        assert_eq!(written.result, DONE, "{blocks} blocks at {lba}");
        assert!(fake.lock().namespaces[&nsid].media == model, "{blocks} blocks at {lba}, skew {skew}");
        let mut data = host.buffer(length + skew, 0xEE);
        drop(data.split_to(skew));
        let read = one(world, host, BlockOp::Read, lba, blocks, Some(data));
        assert_eq!(read.result, DONE);
        assert!(*read.data.unwrap() == model[at..at + length], "{blocks} blocks at {lba}, skew {skew}");
    }
}

#[test]
fn transfers_of_every_shape_reach_the_right_bytes() {
    for (sgl, mdts, noiob, metadata) in [
        (false, 6, 0, (0, 0)),
        (true, 5, 0, (0, 0)),
        (false, 1, 0, (0, 0)),
        (false, 8, 100, (0, 0)),
        (false, 6, 0, (8, 1)),
        (true, 6, 100, (8, 3)),
        (false, 6, 0, (16, 0)),
    ] {
        let namespace = FakeNamespace { noiob, metadata, ..FakeNamespace::new(9, 2048) };
        let fake = Fake::new(&[(1, namespace)]);
        fake.lock().sgl = sgl;
        fake.lock().mdts = mdts;
        let mut world = World::new(&fake, 1);
        let mut host = world.host(0, 1);
        shapes(&fake, &mut world, &mut host, 1);
        let log = std::mem::take(&mut fake.lock().log);
        assert_eq!(log.iter().any(|command| command.words[0] >> 14 & 3 == 1), sgl);
        if noiob > 0 {
            let crosses = |command: &fake::Fetched| {
                let (lba, blocks) = (command.words[5], (command.words[6] & 0xFFFF) + 1);
                lba / u64::from(noiob) != (lba + blocks - 1) / u64::from(noiob)
            };
            assert!(!log.iter().any(crosses), "a command crosses the optimal boundary");
        }
        assert!(world.namespace(1).bounce_copies() > 0, "unaligned buffers are copied");
    }
}

#[test]
fn aligned_buffers_of_the_pool_are_never_copied() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    for (blocks, skew) in [(1, 0), (2, 4), (64, 0), (200, 128)] {
        let mut data = host.buffer((blocks << 12) as usize + skew, 1);
        drop(data.split_to(skew));
        assert_eq!(one(&mut world, &mut host, WRITE, 0, blocks, Some(data)).result, DONE);
    }
    assert_eq!(world.namespace(1).bounce_copies(), 0);
    assert_eq!(host.pool.statistics().outstanding, 0);
}

#[test]
fn one_doorbell_serves_all_that_was_submitted_in_a_turn() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    one(&mut world, &mut host, BlockOp::Flush, 0, 0, None);
    let before = fake.lock().doorbell_writes;
    for lba in 0..16 {
        let data = host.buffer(4096, 1);
        host.submit(WRITE, lba, 1, Some(data));
    }
    host.turn(world.now);
    assert_eq!(host.done.len(), 16);
    assert_eq!(fake.lock().doorbell_writes - before, 2, "one for the submissions, one for the completions");
}

#[test]
fn shadow_doorbells_take_the_place_of_registers() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    fake.lock().shadow = true;
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    for round in 0..200 {
        let data = host.buffer(4096, round as u8);
        assert_eq!(one(&mut world, &mut host, WRITE, round, 1, Some(data)).result, DONE);
    }
    // The fake never moves the event index, so only what passes it is written: the first, and those after a wrap.
    let statistics = world.controller.statistics();
    assert_eq!(statistics.commands, 200);
    assert!(statistics.submission_doorbells < 20, "{statistics:?}");
}

#[test]
fn zeros_discards_compares_verifies_and_copies() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    for zeroes in [true, false] {
        fake.lock().zeroes = zeroes;
        let mut world = World::new(&fake, 1);
        let mut host = world.host(0, 1);
        let fill = host.buffer(64 * 4096, 9);
        one(&mut world, &mut host, WRITE, 0, 64, Some(fill));
        let op = BlockOp::WriteZeroes { may_deallocate: true, fua: true };
        assert_eq!(one(&mut world, &mut host, op, 3, 40, None).result, DONE);
        assert_eq!(one(&mut world, &mut host, BlockOp::Discard, 50, 5, None).result, DONE);
        assert_eq!(one(&mut world, &mut host, BlockOp::Copy { from: 0 }, 100, 2, None).result, DONE);
        assert_eq!(one(&mut world, &mut host, BlockOp::Verify, 0, 64, None).result, DONE);
        let bytes: Vec<u8> = fake.lock().namespaces[&1].media.iter().step_by(4096).copied().collect();
        let expected = |block: usize| match block {
            3..43 | 50..55 => 0,
            0..64 | 100 | 101 => 9,
            _ => 0,
        };
        assert!((0..512).all(|block| bytes[block] == expected(block)), "{bytes:?}");
        let same = host.buffer(4096, 9);
        assert_eq!(one(&mut world, &mut host, BlockOp::Compare, 1, 1, Some(same)).result, DONE);
        let other = host.buffer(4096, 8);
        let compared = one(&mut world, &mut host, BlockOp::Compare, 1, 1, Some(other));
        assert_eq!(compared.result, Err(BlockError::Miscompare));
        assert_eq!(
            one(&mut world, &mut host, BlockOp::Extent, 0, 1, None).result,
            Err(BlockError::Unsupported)
        );
        let log = std::mem::take(&mut fake.lock().log);
        let zeroing = log
            .iter()
            .find(|command| command.opcode() == if zeroes { 8 } else { 1 } && command.words[5] == 3);
        assert_eq!(zeroing.unwrap().words[6] >> 30 & 1, 1, "FUA");
        assert_eq!(zeroing.unwrap().words[6] >> 25 & 1 == 1, zeroes, "DEAC");
        fake.lock().namespaces.get_mut(&1).unwrap().media.fill(0);
        drop(host);
        world.controller.detach();
        world.until(ControllerState::Detached);
    }
}

#[test]
fn flush_is_a_command_with_a_cache_and_nothing_without() {
    for cached in [true, false] {
        let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
        fake.lock().cached = cached;
        let mut world = World::new(&fake, 1);
        let mut host = world.host(0, 1);
        assert_eq!(one(&mut world, &mut host, BlockOp::Flush, u64::MAX, u64::MAX, None).result, DONE);
        assert_eq!(fake.lock().log.len(), usize::from(cached));
    }
}

#[test]
fn a_failed_flush_is_remembered() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 2);
    let (mut one_core, mut other_core) = (world.host(0, 1), world.host(1, 1));
    fake.lock().faults.statuses.push_back(0x280 | 1 << 14);
    let failed = Err(BlockError::FlushFailed);
    assert_eq!(one(&mut world, &mut one_core, BlockOp::Flush, 0, 0, None).result, failed);
    assert_eq!(one(&mut world, &mut other_core, BlockOp::Flush, 0, 0, None).result, failed);
    let data = other_core.buffer(4096, 1);
    let fua = BlockOp::Write { fua: true };
    assert_eq!(one(&mut world, &mut other_core, fua, 0, 1, Some(data)).result, failed);
    world.namespace(1).acknowledge_loss();
    assert_eq!(one(&mut world, &mut other_core, BlockOp::Flush, 0, 0, None).result, DONE);
}

#[test]
fn errors_become_words_and_passing_ones_are_tried_again() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    let mut read = |world: &mut World, statuses: &[u16]| {
        fake.lock().faults.statuses.extend(statuses);
        let data = host.buffer(4096, 0);
        let done = one(world, &mut host, BlockOp::Read, 0, 1, Some(data));
        assert!(done.data.is_some());
        done.result
    };
    assert_eq!(read(&mut world, &[0x281]), Err(BlockError::Medium { lba: None }));
    assert_eq!(read(&mut world, &[0x06, 0x06]), DONE);
    assert_eq!(read(&mut world, &[0x06, 0x06, 0x06]), Err(BlockError::Internal));
    assert_eq!(read(&mut world, &[0x82 | 1 << 14]), Err(BlockError::NotReady));
    assert_eq!(world.controller.statistics().retries, 4);
}

#[test]
fn cores_without_a_queue_pair_send_to_the_service_thread() {
    let fake = Fake::new(&[(1, FakeNamespace::new(9, 2048)), (2, FakeNamespace::new(12, 512))]);
    fake.lock().queues = 2;
    let mut world = World::new(&fake, 4);
    let statistics = world.controller.statistics();
    assert_eq!((statistics.queue_pairs, statistics.cores_sharing), (2, 3));
    let mut hosts: Vec<Host> = (0..4).map(|core| world.host(core, 2)).collect();
    for round in 0..20u64 {
        for (core, host) in hosts.iter_mut().enumerate() {
            let data = host.buffer(4096, round as u8);
            host.submit(WRITE, core as u64 * 20 + round, 1, Some(data));
        }
    }
    let mut all: Vec<&mut Host> = hosts.iter_mut().collect();
    world.drain(&mut all);
    assert!(
        hosts.iter().all(|host| host.done.iter().all(|done| done.result == DONE) && host.done.len() == 20)
    );
    let written = fake.lock().namespaces[&2].media.iter().step_by(4096).take(80).copied().collect::<Vec<_>>();
    assert_eq!(written, (0..4).flat_map(|_| 0..20).collect::<Vec<u8>>());
    drop(hosts);
    let mut host = world.host(3, 1);
    shapes(&fake, &mut world, &mut host, 1);
}

#[test]
fn more_requests_than_slots_wait_their_turn() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    fake.lock().mdts = 1;
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    fake.lock().faults.hold = true;
    // Eight requests of 128 commands each, for 32 slots.
    for byte in 0..4 {
        let data = host.buffer(1 << 20, byte);
        host.submit(WRITE, 0, 256, Some(data));
    }
    host.turn(world.now);
    assert_eq!(fake.lock().held.len(), 32);
    let tag = *host.held.last().unwrap();
    host.channel.cancel(tag);
    host.turn(world.now);
    assert_eq!(host.only().result, Err(BlockError::Cancelled));
    fake.release();
    world.drain(&mut [&mut host]);
    assert_eq!(host.done.len(), 3);
    assert!(host.done.iter().all(|done| done.result == DONE));
    assert_eq!(fake.lock().log.len(), 3 * 128);
}

#[test]
fn a_full_channel_gives_requests_back() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    fake.lock().faults.hold = true;
    let mut taken = 0;
    for tag in 1000.. {
        let io = BlockIo { tag: IoTag(tag), op: BlockOp::Verify, lba: 0, blocks: 1, data: None };
        if host.channel.submit(io).is_err() {
            break;
        }
        host.held.insert(IoTag(tag));
        taken += 1;
    }
    assert_eq!(taken, 32);
    host.turn(world.now);
    fake.release();
    world.drain(&mut [&mut host]);
    assert_eq!(host.done.len(), 32);
}

#[test]
fn it_passes_what_every_device_must() {
    use bdev::conformance::{Traits, run};
    for (queues, sgl, noiob) in [(8, false, 0), (8, true, 24), (1, false, 0)] {
        let fake = Fake::new(&[(1, FakeNamespace { noiob, ..FakeNamespace::new(12, 512) })]);
        fake.lock().queues = queues;
        fake.lock().sgl = sgl;
        let world = World::new(&fake, 1);
        let namespace = world.namespace(1);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (stop, mut world) = (stop.clone(), world);
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    world.step();
                    std::thread::yield_now();
                }
            }
        });
        run(namespace.as_ref(), 7, 600, Traits::default());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        thread.join().unwrap();
    }
}
