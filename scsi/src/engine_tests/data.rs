use base::{DataBuf, Limits};
use bdev::BlockError;
use wire::scsi::{SenseKey, Status, TaskAttribute};

use super::world::*;

#[test]
fn what_is_written_is_read_with_every_amount_of_immediate_data() {
    let length = 33 * BLOCK;
    let data = pattern(1, length);
    for immediate in [0, 1, 511, 512, 700, 4096, 4097, 5000, 8192] {
        let mut w = World::with(1, Limits { burst_length_bytes: 8192, ..limits() }, 32);
        let n = w.nexus(0, 1, "a");
        let x = w.command(0, n, TaskAttribute::Simple, &write10(7, 33), 0, &data, immediate.min(8192));
        w.settle();
        assert!(w.is_good(x), "{immediate}: {:?}", w.end_of(x));
        assert_eq!(&w.medium[7 * BLOCK..40 * BLOCK], &data[..], "immediate {immediate}");
        let x = w.simple(0, n, &read10(7, 33), length as u32, &[]);
        w.settle();
        assert!(w.is_good(x));
        assert_eq!(w.exchanges[&x].data_in, data);
        assert_eq!(
            w.cores[0].target.payload_bytes_copied() == 0,
            immediate % BLOCK == 0,
            "immediate {immediate}"
        );
        w.assert_clean();
    }
}

#[test]
fn residuals_bound_what_is_moved() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.medium.fill(0xEE);
    // Longer than the command: an underflow for the port to report.
    let x = w.simple(0, n, &read10(0, 1), 10_000, &[]);
    // Shorter, none, and two blocks with room for one and a half.
    let y = w.simple(0, n, &read10(0, 1), 200, &[]);
    let z = w.simple(0, n, &read10(0, 1), 0, &[]);
    let v = w.simple(0, n, &read10(0, 2), 768, &[]);
    w.settle();
    assert_eq!(w.end_of(x), End::Status(Status::Good, None, 512, 0));
    assert_eq!(w.end_of(y), End::Status(Status::Good, None, 512, 0));
    assert_eq!(w.end_of(z), End::Status(Status::Good, None, 512, 0));
    let lengths = [x, y, z, v].map(|x| w.exchanges[&x].data_in.len());
    assert_eq!(lengths, [512, 200, 0, 768]);
    let x = w.simple(0, n, &write10(0, 2), 0, &[1; 700]);
    let y = w.simple(0, n, &write10(4, 1), 0, &[2; 1024]);
    let z = w.simple(0, n, &write10(8, 1), 0, &[]);
    w.settle();
    assert_eq!(w.end_of(x), End::Status(Status::Good, None, 0, 1024));
    assert_eq!(w.end_of(y), End::Status(Status::Good, None, 0, 512));
    assert_eq!(w.end_of(z), End::Status(Status::Good, None, 0, 512));
    assert_eq!((w.medium[0], w.medium[511], w.medium[512]), (1, 1, 0xEE));
    assert_eq!((w.medium[4 * BLOCK], w.medium[5 * BLOCK], w.medium[8 * BLOCK]), (2, 0xEE, 0xEE));
    w.assert_clean();
}

#[test]
fn a_medium_error_names_the_block() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.fail_next = Some(BlockError::Medium { lba: Some(3) });
    let x = w.simple(0, n, &read10(0, 8), 4096, &[]);
    w.settle();
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(x) else { panic!() };
    assert_eq!(
        (sense.key, sense.asc, sense.ascq, sense.information),
        (SenseKey::MediumError, 0x11, 0, Some(3))
    );
    w.fail_next = Some(BlockError::OutOfSpace);
    let x = w.simple(0, n, &write10(0, 40), 0, &vec![1; 40 * BLOCK]);
    w.settle();
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(x) else { panic!() };
    assert_eq!((sense.key, sense.asc, sense.ascq), (SenseKey::DataProtect, 0x27, 0x07));
    w.assert_clean();
}

#[test]
fn compare_and_write_writes_only_on_a_match() {
    for immediate in [0, 100, 1024] {
        let mut w = World::new(1);
        let n = w.nexus(0, 1, "a");
        let old = vec![0; BLOCK];
        let new = pattern(3, BLOCK);
        let out = [old, new.clone()].concat();
        let x = w.command(0, n, TaskAttribute::Simple, &compare_and_write(9, 1), 0, &out, immediate);
        w.settle();
        assert!(w.is_good(x), "{:?}", w.end_of(x));
        assert_eq!(&w.medium[9 * BLOCK..10 * BLOCK], &new[..]);
        let mut wrong = new.clone();
        wrong[17] ^= 1;
        let out = [wrong, vec![7; BLOCK]].concat();
        let x = w.command(0, n, TaskAttribute::Simple, &compare_and_write(9, 1), 0, &out, immediate);
        w.settle();
        let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(x) else { panic!() };
        assert_eq!((sense.key, sense.asc, sense.information), (SenseKey::Miscompare, 0x1D, Some(17)));
        assert_eq!(&w.medium[9 * BLOCK..10 * BLOCK], &new[..]);
        w.assert_clean();
    }
}

#[test]
fn the_other_writing_commands_do_what_they_say() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    let data = pattern(5, 20 * BLOCK);
    // ORWRITE (16) onto a medium of ones and zeros.
    w.medium[..20 * BLOCK].fill(0x0F);
    let mut orwrite = [0; 16];
    orwrite[0] = 0x8B;
    orwrite[13] = 20;
    let x = w.command(0, n, TaskAttribute::Simple, &orwrite, 0, &data, 700);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    assert!(w.medium[..20 * BLOCK].iter().zip(&data).all(|(on, out)| *on == out | 0x0F));
    // WRITE AND VERIFY with compare.
    let mut cdb = cdb10(0x2E, 40, 20);
    cdb[1] = 0x02;
    let x = w.simple(0, n, &cdb, 0, &data);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    assert_eq!(&w.medium[40 * BLOCK..60 * BLOCK], &data[..]);
    // VERIFY: medium only, with data that matches, with data that does not.
    let x = w.simple(0, n, &cdb10(0x2F, 40, 20), 0, &[]);
    let mut cdb = cdb10(0x2F, 40, 20);
    cdb[1] = 0x02;
    let y = w.command(0, n, TaskAttribute::Simple, &cdb, 0, &data, 4096);
    let mut wrong = data.clone();
    wrong[19 * BLOCK + 5] ^= 0x80;
    let z = w.simple(0, n, &cdb, 0, &wrong);
    w.settle();
    assert!(w.is_good(x) && w.is_good(y), "{:?} {:?}", w.end_of(x), w.end_of(y));
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(z) else { panic!() };
    assert_eq!((sense.key, sense.information), (SenseKey::Miscompare, Some((19 * BLOCK + 5) as u64)));
    // WRITE SAME with a pattern, then with zeros.
    let x = w.simple(0, n, &cdb10(0x41, 100, 30), 0, &data[..BLOCK]);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    assert!(w.medium[100 * BLOCK..130 * BLOCK].chunks(BLOCK).all(|block| block == &data[..BLOCK]));
    assert_eq!((w.medium[100 * BLOCK - 1], w.medium[130 * BLOCK]), (0, 0));
    w.fail_next = Some(BlockError::Unsupported);
    let x = w.simple(0, n, &cdb10(0x41, 101, 28), 0, &[0; BLOCK]);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    assert!(w.medium[101 * BLOCK..129 * BLOCK].iter().all(|&byte| byte == 0));
    assert_eq!(&w.medium[129 * BLOCK..130 * BLOCK], &data[..BLOCK]);
    // UNMAP of two ranges.
    w.medium.fill(1);
    let mut list = vec![0; 8 + 32];
    list[..2].copy_from_slice(&38u16.to_be_bytes());
    list[2..4].copy_from_slice(&32u16.to_be_bytes());
    list[15] = 10;
    list[19] = 2;
    list[31] = 20;
    list[35] = 1;
    let x = w.simple(0, n, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], 0, &list);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    let zeroed: Vec<usize> = (0..BLOCKS as usize).filter(|b| w.medium[b * BLOCK] == 0).collect();
    assert_eq!(zeroed, [10, 11, 20]);
    w.assert_clean();
}

#[test]
fn synchronize_immed_answers_before_the_flush_and_is_tracked() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    w.device_holds = true;
    let x = w.simple(0, n, &[0x35, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]);
    w.settle();
    assert!(w.is_good(x));
    assert_eq!(w.cores[0].target.task_count(), 1);
    w.device_holds = false;
    w.settle();
    assert_eq!(w.flushes, 1);
    w.assert_clean();
}

#[test]
fn inquiry_passes_a_unit_attention_and_request_sense_takes_it() {
    let mut w = World::new(1);
    w.request_nexus(0, 1, "a");
    w.settle();
    let n = w.established[&1];
    let x = w.simple(0, n, &[0x12, 0, 0, 0, 36, 0], 36, &[]);
    w.settle();
    assert!(w.is_good(x));
    assert_eq!(w.exchanges[&x].data_in.len(), 36);
    let x = w.simple(0, n, &[0x03, 0, 0, 0, 18, 0], 18, &[]);
    w.settle();
    assert!(w.is_good(x));
    let sense = &w.exchanges[&x].data_in;
    assert_eq!((sense[2] & 0xF, sense[12], sense[13]), (6, 0x29, 0));
    w.expect_ready(0, n);
    w.assert_clean();
}

#[test]
fn few_buffers_are_enough_for_many_commands() {
    let mut w = World::with(1, limits(), 3);
    let n = w.nexus(0, 1, "a");
    let data = pattern(9, 24 * BLOCK);
    let mut all = Vec::new();
    for number in 0..8 {
        all.push(w.simple(0, n, &write10(number * 24, 24), 0, &data));
        all.push(w.simple(0, n, &read10(number * 24, 24), 24 * 512, &[]));
        all.push(w.simple(0, n, &cdb10(0x2F, 0, 24), 0, &[]));
    }
    let mut orwrite = [0; 16];
    orwrite[0] = 0x8B;
    orwrite[13] = 20;
    all.push(w.simple(0, n, &orwrite, 0, &data[..20 * BLOCK]));
    w.settle();
    for _ in 0..100 {
        w.pass(2);
        w.settle();
    }
    assert!(all.iter().all(|&x| w.is_good(x)));
    w.assert_clean();
}

#[test]
fn buffers_held_elsewhere_are_waited_for() {
    let mut w = World::with(1, limits(), 2);
    let n = w.nexus(0, 1, "a");
    let held: Vec<DataBuf> = (0..2).map(|_| w.cores[0].pool.acquire(1).unwrap()).collect();
    let x = w.simple(0, n, &read10(0, 1), 512, &[]);
    w.settle();
    assert!(!w.has_ended(x));
    drop(held);
    w.pass(5);
    w.settle();
    assert!(w.is_good(x));
    w.assert_clean();
}

#[test]
fn a_full_task_table_still_answers() {
    let mut w = World::with(1, Limits { tasks_max: 8, tasks_per_nexus_max: 6, ..limits() }, 32);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(0, 2, "b"));
    let c = w.nexus(0, 3, "c");
    w.device_holds = true;
    let mut all: Vec<u64> = (0..10).map(|_| w.simple(0, a, &read10(0, 1), 512, &[])).collect();
    w.settle();
    all.extend((0..10).map(|_| w.simple(0, b, &read10(0, 1), 512, &[])));
    w.settle();
    let last = w.simple(0, c, &read10(0, 1), 512, &[]);
    w.settle();
    let full =
        |w: &World, x: u64| w.has_ended(x) && matches!(w.end_of(x), End::Status(Status::TaskSetFull, ..));
    assert_eq!(all[..10].iter().filter(|&&x| full(&w, x)).count(), 4);
    assert_eq!(all.iter().filter(|&&x| !w.has_ended(x)).count(), 8);
    assert!(matches!(w.end_of(last), End::Status(Status::Busy, ..)));
    w.device_holds = false;
    w.settle();
    w.assert_clean();
}

#[test]
fn extents_are_reported_until_the_end() {
    let mut w = World::new(1);
    let n = w.nexus(0, 1, "a");
    let mut cdb = [0; 16];
    cdb[0] = 0x9E;
    cdb[1] = 0x12;
    cdb[12] = 1;
    let x = w.simple(0, n, &cdb, 256, &[]);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    // 256 blocks in extents of at most 100: three descriptors.
    let data = &w.exchanges[&x].data_in;
    assert_eq!(data.len(), 8 + 3 * 16);
    assert_eq!(u32::from_be_bytes([data[0], data[1], data[2], data[3]]), 4 + 3 * 16);
    assert_eq!(data[8 + 32 + 11], 56);
    w.assert_clean();
}

#[test]
fn a_forced_read_flushes_first_and_mode_select_waits_for_its_change() {
    let mut w = World::new(1);
    let (a, b) = (w.nexus(0, 1, "a"), w.nexus(0, 2, "b"));
    let mut cdb = read10(0, 1);
    cdb[1] = 0x08;
    let x = w.simple(0, a, &cdb, 512, &[]);
    w.settle();
    assert!(w.is_good(x));
    assert_eq!(w.flushes, 1);
    // MODE SELECT (6) of the Control page with SWP set, as MODE SENSE gave it.
    let x = w.simple(0, a, &[0x1A, 0x08, 0x0A, 0, 64, 0], 64, &[]);
    w.settle();
    let mut list = w.exchanges[&x].data_in.clone();
    assert!(list.len() >= 16, "{list:?}");
    list[0] = 0;
    list[2] = 0;
    list[4] &= 0x3F;
    list[4 + 4] |= 0x08;
    let x = w.command(0, a, TaskAttribute::Ordered, &[0x15, 0x10, 0, 0, list.len() as u8, 0], 0, &list, 0);
    w.settle();
    assert!(w.is_good(x), "{:?}", w.end_of(x));
    w.expect_attention(0, b, 0x2A, 0x01);
    w.expect_ready(0, a);
    let x = w.simple(0, b, &write10(0, 1), 0, &[1; BLOCK]);
    w.settle();
    let End::Status(Status::CheckCondition, Some(sense), ..) = w.end_of(x) else { panic!() };
    assert_eq!(sense.key, SenseKey::DataProtect);
    w.assert_clean();
}

#[test]
fn data_that_came_with_commands_cannot_hold_all_buffers_for_ever() {
    let verify = [0x2F, 0x02, 0, 0, 0, 0, 0, 0, 1, 0];
    // VERIFY wants a second buffer; WRITE wants two for a block of which half is here, after writing a whole one.
    for (cdb, length, immediate) in [(verify, BLOCK, BLOCK), (write10(0, 2), 2 * BLOCK, BLOCK + 100)] {
        let mut w = World::with(1, limits(), 4);
        let a = w.nexus(0, 1, "a");
        let mut hoard: Vec<_> = (0..3).map(|_| w.cores[0].pool.acquire(4096).unwrap()).collect();
        let mut all = Vec::new();
        // What becomes free goes to the port first, and nothing is left for those who wait.
        loop {
            all.push(w.command(0, a, TaskAttribute::Simple, &cdb, 0, &vec![0; length], immediate));
            w.settle();
            if hoard.pop().is_none() {
                break;
            }
        }
        assert!(all.iter().all(|&x| !w.has_ended(x)));
        for _ in 0..2000 {
            w.pass(1);
            w.settle();
        }
        let good = all.iter().filter(|&&x| w.is_good(x)).count();
        assert!((1..4).contains(&good), "{good} of 4");
        w.assert_clean();
    }
}

#[test]
fn requested_tasks_hold_no_more_data_than_dormant_ones() {
    let mut w = World::with(2, limits(), 8);
    let a = w.nexus(0, 1, "a");
    w.messages_hold = true;
    let swap = compare_and_write(0, 1);
    let data = vec![0; 2 * BLOCK];
    let all: Vec<_> =
        (0..8).map(|_| w.command(0, a, TaskAttribute::Simple, &swap, 0, &data, 2 * BLOCK)).collect();
    w.settle();
    assert_eq!(all.iter().filter(|&&x| w.has_ended(x)).count(), 4, "TASK SET FULL");
    w.messages_hold = false;
    w.settle();
    assert_eq!(all.iter().filter(|&&x| w.is_good(x)).count(), 4);
    w.assert_clean();
}
