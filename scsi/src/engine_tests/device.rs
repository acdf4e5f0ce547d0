//! What a device can do is used, and what becomes of it is told.

use base::Prng;
use bdev::BlockError;
use wire::scsi::{Sense, SenseKey, Status, TaskAttribute};

use super::world::*;
use crate::*;

const VERIFY_DATA: u8 = 0x02;

fn verify10(flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = cdb10(0x2F, lba, blocks);
    cdb[1] = flags;
    cdb
}

fn able(cores: u16) -> World {
    World::shaped(cores, able_geometry)
}

fn sense_of(w: &World, exchange: u64) -> Sense {
    match w.end_of(exchange) {
        End::Status(Status::CheckCondition, Some(sense), ..) => sense,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_verifies_is_asked_to_and_moves_no_data() {
    let mut w = able(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &verify10(0, 3, 200), 0, &[]);
    w.settle();
    let held: Vec<_> =
        w.cores[0].device.iter().map(|(_, io)| (io.op, io.lba, io.blocks, io.data.is_some())).collect();
    assert_eq!(held, [(bdev::BlockOp::Verify, 3, 200, false)]);
    assert_eq!(w.cores[0].pool.statistics().outstanding, 0);
    w.device_holds = false;
    w.settle();
    assert!(w.is_good(x) && w.verifies == 1);
    let x = w.simple(0, n, &verify10(0, 7, 0), 0, &[]);
    w.settle();
    assert!(w.is_good(x) && w.verifies == 1, "no blocks, nothing to ask");
    for (lba, expected) in [(Some(77), 77), (None, 3)] {
        w.fail_next = Some(BlockError::Medium { lba });
        let x = w.simple(0, n, &verify10(0, 3, 200), 0, &[]);
        w.settle();
        let sense = sense_of(&w, x);
        assert_eq!((sense.key, sense.asc, sense.information), (SenseKey::MediumError, 0x11, Some(expected)));
    }
    // An aborted one ends when the device has answered.
    w.device_holds = true;
    let x = w.simple(0, n, &verify10(0, 0, 9), 0, &[]);
    let f = w.function(0, n, TaskManagementFunction::AbortTask, Some(x));
    w.settle();
    assert!(!w.functions.contains_key(&f));
    w.device_holds = false;
    w.settle();
    assert_eq!(w.functions[&f], TaskManagementResponse::Complete);
    w.assert_clean();
}

#[test]
fn a_device_that_compares_is_asked_to_and_a_difference_is_found_again() {
    let data = pattern(5, 20 * BLOCK);
    for immediate in [0, 700, 4096] {
        let mut w = able(1);
        let n = w.nexus(0, 1, "a");
        w.medium[40 * BLOCK..60 * BLOCK].copy_from_slice(&data);
        let cdb = verify10(VERIFY_DATA, 40, 20);
        let x = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &data, immediate);
        w.settle();
        assert!(w.is_good(x), "{:?}", w.end_of(x));
        assert_eq!(w.compares, 3, "chunks of eight blocks");
        let mut wrong = data.clone();
        wrong[19 * BLOCK + 5] ^= 0x80;
        let x = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &wrong, immediate);
        w.settle();
        let sense = sense_of(&w, x);
        assert_eq!((sense.key, sense.asc), (SenseKey::Miscompare, 0x1D));
        assert_eq!(sense.information, Some((19 * BLOCK + 5) as u64));
        // The device saw a difference that is not there any more.
        w.fail_next = Some(BlockError::Miscompare);
        let x = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &data, immediate);
        w.settle();
        let sense = sense_of(&w, x);
        assert_eq!((sense.key, sense.information), (SenseKey::Miscompare, None));
        w.fail_next = Some(BlockError::Medium { lba: None });
        let x = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &data, immediate);
        w.settle();
        assert_eq!((sense_of(&w, x).asc, sense_of(&w, x).information), (0x11, Some(40)));
        w.assert_clean();
    }
}

#[test]
fn one_block_for_all_is_compared_here() {
    let mut w = able(1);
    let n = w.nexus(0, 1, "a");
    let block = pattern(3, BLOCK);
    for at in 10..40 {
        w.medium[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(&block);
    }
    let x = w.simple(0, n, &verify10(0x06, 10, 30), 0, &block);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    w.medium[39 * BLOCK + 1] ^= 1;
    let x = w.simple(0, n, &verify10(0x06, 10, 30), 0, &block);
    w.settle();
    assert_eq!(sense_of(&w, x).information, Some(29 * BLOCK as u64 + 1));
    assert_eq!(w.compares, 0);
    w.assert_clean();
}

#[test]
fn write_and_verify_looks_at_the_medium_after_the_write() {
    let data = pattern(8, 20 * BLOCK);
    for (flags, immediate) in [(0, 0), (0, 900), (VERIFY_DATA, 0), (VERIFY_DATA, 900)] {
        let mut w = able(1);
        let n = w.nexus(0, 1, "a");
        let mut cdb = cdb10(0x2E, 40, 20);
        cdb[1] = flags;
        let x = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &data, immediate);
        w.settle();
        assert!(w.is_good(x), "{:?}", w.end_of(x));
        assert_eq!(&w.medium[40 * BLOCK..60 * BLOCK], &data[..]);
        let looked = if flags == 0 { (3, 0) } else { (0, 3) };
        assert_eq!((w.verifies, w.compares), looked);
        // The medium does not hold what was written.
        w.device_holds = true;
        let x = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &data[..8 * BLOCK], immediate);
        w.settle();
        w.device_step(0, 0);
        w.medium[41 * BLOCK] ^= 1;
        w.device_holds = false;
        w.settle();
        if flags == 0 {
            assert!(w.is_good(x), "a medium that can be read");
        } else {
            assert_eq!(sense_of(&w, x).information, Some(BLOCK as u64));
        }
        w.assert_clean();
    }
}

#[test]
fn an_atomic_write_is_one_request_however_its_data_comes() {
    for cores in [1, 2] {
        for immediate in [0, 100, 512, 4096] {
            let mut w = able(cores);
            let n = w.nexus(0, 1, "a");
            let data = pattern(6, 8 * BLOCK);
            let x = w.command(0, n, TaskAttribute::Simple, &write_atomic(5, 8), 0, &data, immediate);
            w.settle();
            assert!(w.is_good(x), "{:?}", w.end_of(x));
            assert_eq!(w.writes_seen, [(5, 8)]);
            assert_eq!(&w.medium[5 * BLOCK..13 * BLOCK], &data[..]);
            let x = w.simple(0, n, &write_atomic(9, 0), 0, &[]);
            w.settle();
            assert!(w.is_good(x));
            // More than a burst, and less data than blocks: refused whole.
            let x = w.simple(0, n, &write_atomic(5, 9), 0, &[0; 9 * BLOCK]);
            let y = w.simple(0, n, &write_atomic(5, 8), 0, &data[..7 * BLOCK]);
            w.settle();
            for x in [x, y] {
                assert_eq!(sense_of(&w, x), Sense::invalid_field_in_cdb(12, None));
            }
            w.fail_next = Some(BlockError::OutOfSpace);
            let x = w.simple(0, n, &write_atomic(5, 8), 0, &data);
            w.settle();
            assert_eq!(sense_of(&w, x).key, SenseKey::DataProtect);
            assert_eq!(w.writes_seen.len(), 2);
            w.assert_clean();
        }
    }
}

#[test]
fn a_device_without_the_promise_has_no_atomic_write() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    let x = w.simple(0, n, &write_atomic(0, 1), 0, &[1; BLOCK]);
    w.settle();
    assert_eq!(sense_of(&w, x), Sense::new(SenseKey::IllegalRequest, 0x20, 0x00));
    w.assert_clean();
}

/// Atomic writes of one byte each, on every core, over blocks that a READ gets in two bursts; nobody may see two bytes.
#[test]
fn nobody_sees_a_part_of_an_atomic_write() {
    for seed in 0..90 {
        let cores = 1 + (seed % 3) as u16;
        let mut prng = Prng::new(seed);
        let mut w = able(cores);
        let nexuses: Vec<_> = (0..cores)
            .map(|core| w.nexus(usize::from(core), u64::from(core) + 1, &format!("i{core}")))
            .collect();
        let mut reads = Vec::new();
        for byte in 1..40_u8 {
            let core = prng.below(u64::from(cores)) as usize;
            let nexus = nexuses[core];
            if prng.chance(1, 2) {
                let x = w.simple(core, nexus, &write_atomic(4, 8), 0, &[byte; 8 * BLOCK]);
                assert!(x > 0);
            } else {
                // Bursts of eight blocks from 0 on: they meet inside of the written ones.
                reads.push(w.simple(core, nexus, &read10(0, 16), 16 * BLOCK as u32, &[]));
            }
            for _ in 0..prng.below(6) {
                w.random_step(&mut prng);
            }
        }
        w.settle();
        for x in reads {
            assert!(w.is_good(x), "seed {seed}");
            let seen = &w.exchanges[&x].data_in[4 * BLOCK..12 * BLOCK];
            assert!(seen.iter().all(|&byte| byte == seen[0]), "seed {seed}: a READ saw a part");
        }
        w.assert_clean();
    }
}

/// MODE SELECT (6) of the caching page.
fn write_cache(w: &mut World, nexus: NexusId, enabled: bool) -> u64 {
    let mut list = [0; 24];
    list[4..7].copy_from_slice(&[0x08, 0x12, u8::from(enabled) << 2]);
    let x = w.simple(0, nexus, &[0x15, 0x10, 0, 0, 24, 0], 0, &list);
    w.settle();
    x
}

#[test]
fn switching_the_write_cache_off_empties_it_before_the_answer() {
    for cores in [1, 2] {
        let mut w = World::new(cores);
        let a = w.nexus(0, 1, "a");
        w.device_holds = true;
        let x = write_cache(&mut w, a, false);
        assert!(!w.has_ended(x), "the flush is still out");
        w.device_holds = false;
        w.settle();
        assert!(w.is_good(x) && w.flushes == 1);
        // Off already, and on again: nothing to empty.
        let same = write_cache(&mut w, a, false);
        let on = write_cache(&mut w, a, true);
        assert!(w.is_good(same) && w.is_good(on) && w.flushes == 1);
        w.fail_next = Some(BlockError::FlushFailed);
        let x = write_cache(&mut w, a, false);
        assert_eq!(sense_of(&w, x).key, SenseKey::MediumError);
        w.assert_clean();
    }
}

fn medium(present: bool) -> ControlRequest {
    ControlRequest::MediumChanged { unit: UNIT, present }
}

fn expect_no_medium(w: &mut World, core: usize, nexus: NexusId) {
    for cdb in [&[0; 6][..], &read10(0, 1), &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let x = w.simple(core, nexus, cdb, 512, &[]);
        w.settle();
        assert_eq!(sense_of(w, x), Sense::new(SenseKey::NotReady, 0x3A, 0x00));
    }
}

#[test]
fn a_device_that_goes_takes_the_medium_with_it_and_brings_it_back() {
    for cores in 1..=3_u16 {
        let mut w = World::new(cores);
        let home = usize::from(cores - 1);
        let a = w.nexus(0, 1, "a");
        let b = w.nexus(home, 2, "b");
        // The first request that fails is enough; all the others say nothing new.
        w.device_holds = true;
        let all: Vec<u64> = (0..3).map(|lba| w.simple(0, a, &read10(lba, 1), 512, &[])).collect();
        w.settle();
        w.messages_hold = true;
        for _ in 0..3 {
            w.fail_next = Some(BlockError::Gone);
            w.device_step(0, 0);
        }
        assert_eq!(w.cores[0].target.tickets.len(), 1, "asked for once");
        w.messages_hold = false;
        w.device_holds = false;
        w.settle();
        for x in all {
            assert_eq!(sense_of(&w, x), Sense::new(SenseKey::NotReady, 0x3A, 0x00));
        }
        assert_eq!(w.notes, [Notification::DeviceGone { unit: UNIT }]);
        expect_no_medium(&mut w, 0, a);
        expect_no_medium(&mut w, home, b);
        // The unit itself is still there, and cannot be started.
        let x = w.simple(0, a, &[0x12, 0, 0, 0, 36, 0], 36, &[]);
        let y = w.simple(0, a, &[0x1B, 0, 0, 0, 1, 0], 0, &[]);
        w.settle();
        assert!(w.is_good(x));
        assert_eq!(sense_of(&w, y).asc, 0x3A);
        // The control plane says the same: no news.
        w.control(home, 20, medium(false));
        w.settle();
        w.device.reshape(|geometry| geometry.blocks = 128);
        w.control(home, 21, medium(true));
        w.settle();
        assert_eq!((&w.done[&20], &w.done[&21]), (&ControlOutcome::Done, &ControlOutcome::Done));
        let news = [Notification::DeviceGone { unit: UNIT }, Notification::DeviceReturned { unit: UNIT }];
        assert_eq!(w.notes, news);
        w.expect_attention(0, a, 0x28, 0x00);
        w.expect_attention(home, b, 0x28, 0x00);
        w.expect_ready(0, a);
        w.expect_ready(home, b);
        let x = w.simple(0, a, &read10(128, 1), 512, &[]);
        w.settle();
        assert_eq!(sense_of(&w, x).asc, 0x21, "the geometry is asked anew");
        // It can go again.
        w.fail_next = Some(BlockError::Gone);
        let x = w.simple(0, a, &read10(0, 1), 512, &[]);
        w.settle();
        assert_eq!(sense_of(&w, x).asc, 0x3A);
        expect_no_medium(&mut w, home, b);
        assert_eq!(w.notes.len(), 3);
        w.assert_clean();
    }
}

#[test]
fn nobody_waits_for_what_is_still_in_a_device_that_is_gone() {
    for cores in [1, 2] {
        let mut w = World::new(cores);
        let home = usize::from(cores - 1);
        let a = w.nexus(0, 1, "a");
        w.device_holds = true;
        let stuck = w.simple(0, a, &write10(0, 1), 0, &[1; BLOCK]);
        w.settle();
        w.control(home, 20, medium(false));
        w.settle();
        assert_eq!(w.done[&20], ControlOutcome::Done);
        expect_no_medium(&mut w, 0, a);
        assert!(!w.has_ended(stuck));
        // Coming back waits for it: nothing of before may reach the medium afterwards.
        w.control(home, 21, medium(true));
        w.settle();
        assert!(!w.done.contains_key(&21));
        w.fail_next = Some(BlockError::Gone);
        w.device_step(0, 0);
        w.device_holds = false;
        w.settle();
        assert_eq!(w.done[&21], ControlOutcome::Done);
        assert_eq!(sense_of(&w, stuck).asc, 0x3A);
        w.expect_attention(0, a, 0x28, 0x00);
        w.expect_ready(0, a);
        assert_eq!(w.notes.len(), 2, "the late failure is no news: {:?}", w.notes);
        w.assert_clean();
    }
}

#[test]
fn a_failure_from_before_the_return_takes_nothing_away() {
    let mut w = World::new(2);
    let a = w.nexus(0, 1, "a");
    let x = w.simple(0, a, &read10(0, 1), 512, &[]);
    w.messages_hold = true;
    w.fail_next = Some(BlockError::Gone);
    w.settle();
    assert_eq!(sense_of(&w, x).asc, 0x3A);
    // The home has frozen everybody for the return before it hears of the failure.
    w.control(1, 20, medium(false));
    w.control(1, 21, medium(true));
    for _ in 0..40 {
        w.message_step(1, 1);
        w.message_step(1, 0);
    }
    w.messages_hold = false;
    w.settle();
    assert_eq!((&w.done[&20], &w.done[&21]), (&ControlOutcome::Done, &ControlOutcome::Done));
    w.expect_attention(0, a, 0x28, 0x00);
    w.expect_ready(0, a);
    w.assert_clean();
}

#[test]
fn a_device_that_was_never_missed_changes_nothing_but_its_size() {
    let mut w = World::new(1);
    let a = w.nexus(0, 1, "a");
    w.control(0, 20, medium(true));
    w.settle();
    w.expect_ready(0, a);
    w.device.reshape(|geometry| geometry.blocks = 100);
    w.control(0, 21, medium(true));
    w.settle();
    w.expect_attention(0, a, 0x2A, 0x09);
    w.expect_ready(0, a);
    assert!(w.notes.is_empty());
    w.control(0, 22, ControlRequest::MediumChanged { unit: LogicalUnitId(3), present: true });
    w.settle();
    assert!(matches!(w.done[&22], ControlOutcome::Failed(_)));
    w.assert_clean();
}

#[test]
fn devices_that_fail_are_told_by_what_they_said() {
    let mut w = World::new(1);
    let a = w.nexus(0, 1, "a");
    let cases = [
        (BlockError::NotReady, SenseKey::NotReady, 0x04, 0x01, None),
        (BlockError::Timeout, SenseKey::AbortedCommand, 0x2E, 0x02, None),
        (BlockError::ReadOnly, SenseKey::DataProtect, 0x27, 0x00, None),
        (BlockError::Protection { lba: Some(9) }, SenseKey::AbortedCommand, 0x10, 0x01, Some(9)),
        (BlockError::Protection { lba: None }, SenseKey::AbortedCommand, 0x10, 0x01, Some(8)),
        (BlockError::Internal, SenseKey::HardwareError, 0x44, 0x00, None),
        (BlockError::Gone, SenseKey::NotReady, 0x3A, 0x00, None),
    ];
    for (error, key, asc, ascq, information) in cases {
        w.fail_next = Some(error);
        let x = w.simple(0, a, &read10(8, 4), 4 * 512, &[]);
        w.settle();
        let sense = sense_of(&w, x);
        assert_eq!((sense.key, sense.asc, sense.ascq, sense.information), (key, asc, ascq, information));
    }
    let medium = Notification::MediumError { unit: UNIT };
    let gone = Notification::DeviceGone { unit: UNIT };
    assert_eq!(w.notes, [medium.clone(), medium.clone(), medium, gone]);
    w.assert_clean();
}
