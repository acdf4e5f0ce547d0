//! The NVMe model judged from outside: registers, queues, commands and faults, by a host written by hand.

mod nvme_host;

use std::time::Duration;

use base::Instant;
use nvme_host::{ADMIN_SQ, DATA, ENTRIES, Host, IO_CQ, IO_SQ, LIST, OTHER, config, pattern};
use reactor::PciDevice;
use sim::nvme::{AbortManner, CommandFault, Config, Model, ModelDevice, NamespaceConfig, Rule, guard_of};

const READ: u32 = 2;
const WRITE: u32 = 1;
const FLUSH: u32 = 0;
const COMPARE: u32 = 5;

fn small() -> Config {
    config(1 << 20, 0)
}

#[test]
fn registers_say_what_the_specification_gives_them() {
    let host = Host::cold(Config { entries_max: 256, doorbell_stride: 2, ..small() });
    let capabilities = host.bar.read64(0).unwrap();
    assert_eq!(capabilities & 0xFFFF, 255, "MQES");
    assert_eq!(capabilities >> 16 & 1, 1, "CQR");
    assert_eq!(capabilities >> 32 & 15, 2, "DSTRD");
    assert_eq!(capabilities >> 37 & 0xFF, 1, "CSS");
    assert_eq!(capabilities >> 48 & 15, 0, "MPSMIN");
    assert_eq!(host.read32(8), 0x0002_0000, "VS");
    assert_eq!(host.read32(0x1C), 0, "CSTS");
    assert_eq!((host.read32(0x38), host.read32(0x3C)), (0, 0), "no controller memory buffer");
    let identity = host.device.identity();
    assert_eq!(identity.class, 0x01_0802);
    host.clean();
    host.write32(8, 1);
    assert_eq!(host.broken(), Rule::RegisterAccess);
}

#[test]
fn the_capabilities_of_the_configuration_space_are_linked() {
    let host = Host::cold(small());
    let mut space = [0; 256];
    host.device.read_config(0, &mut space).unwrap();
    let (mut at, mut found) = (usize::from(space[0x34]), Vec::new());
    while at != 0 && found.len() < 10 {
        found.push(space[at]);
        at = usize::from(space[at + 1]);
    }
    assert_eq!(found, [0x01, 0x11, 0x10]);
}

#[test]
fn enabling_takes_its_time_and_disabling_forgets_queues() {
    let mut host = Host::cold(Config { ready_after: Duration::from_millis(3), ..small() });
    host.write32(0x24, 15 << 16 | 15);
    host.bar.write64(0x28, host.base).unwrap();
    host.bar.write64(0x30, host.base + 0x1000).unwrap();
    host.write32(0x14, 4 << 20 | 6 << 16 | 1);
    host.step();
    assert_eq!(host.read32(0x1C), 0);
    assert_eq!(host.device.next_event(), Some(Instant::from_nanos(3_000_000)));
    host.now = Instant::from_nanos(4_000_000);
    host.step();
    assert_eq!(host.read32(0x1C), 1);
    host.write32(0x14, 4 << 20 | 6 << 16);
    assert_eq!(host.read32(0x1C), 1);
    host.now = host.now + Duration::from_millis(3);
    host.step();
    assert_eq!(host.read32(0x1C), 0);
    host.clean();
    host.write32(0x1000, 1);
    assert_eq!(host.broken(), Rule::LateDoorbell);
    host.write32(0x1008, 1);
    assert_eq!(host.broken(), Rule::DoorbellQueue);
}

#[test]
fn a_bad_configuration_is_fatal() {
    for (aqa, cc) in
        [(15 << 16, 0x46_0001), (15 << 16 | 15, 0x46_0001 | 5 << 7), (15 << 16 | 15, 0x46_0001 | 1 << 11)]
    {
        let mut host = Host::cold(small());
        host.write32(0x24, aqa);
        host.bar.write64(0x28, host.base).unwrap();
        host.bar.write64(0x30, host.base + 0x1000).unwrap();
        host.write32(0x14, cc);
        host.step();
        assert_eq!(host.read32(0x1C), 2, "CFS");
        let violations = host.violations();
        assert!(
            !violations.is_empty() && violations.iter().all(|v| v.rule == Rule::Configuration),
            "{violations:?}"
        );
    }
}

#[test]
fn shutdown_completes_and_stops_fetching() {
    let mut host = Host::ready(small());
    host.write32(0x14, 4 << 20 | 6 << 16 | 1 << 14 | 1);
    host.step();
    assert_eq!(host.read32(0x1C) >> 2 & 3, 2);
    let words = host.entry(FLUSH, 0, 1, 0, 0);
    host.put(1, words);
    host.ring(1);
    assert_eq!(host.poll(1), None);
}

#[test]
fn identify_tells_sizes_and_limits() {
    let mut host = Host::enabled(Config { mdts: 5, ..config(1 << 20, 1) });
    assert_eq!(host.admin([6, 0, host.low(DATA), host.high(DATA), 1, 0]).status, 0);
    let page = host.bytes(DATA, 4096);
    assert_eq!(&page[4..18], b"POLLUX-MODEL-1");
    assert_eq!((page[77], page[512], page[513]), (5, 0x66, 0x44));
    assert_eq!(&page[516..520], &[1, 0, 0, 0]);
    assert_eq!(page[525] & 1, 1, "a volatile write cache");
    assert_eq!(host.admin([6, 1, host.low(DATA), host.high(DATA), 0, 0]).status, 0);
    let page = host.bytes(DATA, 4096);
    assert_eq!(&page[0..8], &256u64.to_le_bytes());
    assert_eq!((page[26], page[128 + 4 + 2]), (1, 12));
    assert_eq!(host.admin([6, 0, host.low(DATA), host.high(DATA), 2, 0]).status, 0);
    assert_eq!(host.bytes(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    host.clean();
    assert_eq!(host.admin([6, 9, host.low(DATA), host.high(DATA), 0, 0]).status, 0x400B);
    assert_eq!(host.broken(), Rule::Unsupported);
    assert_eq!(host.admin([6, 1, host.low(DATA), host.high(DATA), 0x55, 0]).status, 0x4002);
}

#[test]
fn queue_commands_check_everything() {
    let mut host = Host::enabled(small());
    let at = (host.low(IO_CQ), host.high(IO_CQ));
    let cases: [([u32; 6], u16); 11] = [
        ([5, 0, at.0, at.1, 15 << 16, 1], 0x4101),
        ([5, 0, at.0, at.1, 15 << 16 | 17, 1], 0x4101),
        ([5, 0, at.0, at.1, 1, 1], 0x4102),
        ([5, 0, at.0, at.1, 1024 << 16 | 1, 1], 0x4102),
        ([5, 0, at.0, at.1, 15 << 16 | 1, 0], 0x4002),
        ([5, 0, at.0 + 64, at.1, 15 << 16 | 1, 1], 0x4013),
        ([5, 0, at.0, at.1, 15 << 16 | 1, 3 | 17 << 16], 0x4108),
        ([1, 0, at.0, at.1, 15 << 16 | 1, 1], 0x4101),
        ([1, 0, at.0, at.1, 15 << 16 | 1, 1 | 2 << 16], 0x4100),
        ([0, 0, 0, 0, 1, 0], 0x4101),
        ([4, 0, 0, 0, 1, 0], 0x4101),
    ];
    for (words, status) in cases {
        assert_eq!(host.admin(words).status, status, "{words:x?}");
        assert_eq!(host.violations().len(), 1, "{words:x?}");
    }
    host.create_queues();
    assert_eq!(host.admin([4, 0, 0, 0, 1, 0]).status, 0x410C, "it has a submission queue");
    assert_eq!(host.broken(), Rule::Sequence);
    assert_eq!(host.admin([0, 0, 0, 0, 1, 0]).status, 0);
    assert_eq!(host.admin([4, 0, 0, 0, 1, 0]).status, 0);
    host.clean();
}

#[test]
fn what_is_written_is_read() {
    for format in [0, 1] {
        let mut host = Host::ready(config(1 << 20, format));
        let data = pattern(3, 8192);
        host.memory.write(DATA as usize, &data);
        let blocks = 8192 >> [9, 12][usize::from(format)];
        assert_eq!(host.io(WRITE, 2, blocks, DATA, 8192).status, 0);
        assert_eq!(host.io(READ, 2, blocks, OTHER, 8192).status, 0);
        assert_eq!(host.bytes(OTHER, 8192), data);
        assert_eq!(host.io(COMPARE, 2, blocks, DATA, 8192).status, 0);
        host.memory.write(DATA as usize, &[!data[0]]);
        assert_eq!(host.io(COMPARE, 2, blocks, DATA, 8192).status, 0x4285);
        assert_eq!(host.one(1, host.entry(FLUSH, 0, 1, 0, 0)).status, 0);
        host.clean();
    }
}

#[test]
fn queues_go_round_with_turned_phase() {
    let mut host = Host::ready(small());
    for i in 0..5 * ENTRIES {
        assert_eq!(host.io(READ, u64::from(i), 1, DATA, 512).status, 0);
    }
    host.clean();
}

#[test]
fn a_full_completion_queue_waits_for_its_host() {
    let mut host = Host::ready(small());
    for _ in 0..ENTRIES - 1 {
        let words = host.entry(READ, 0, 1, host.base + DATA, 0);
        host.put(1, words);
    }
    host.ring(1);
    // The queue has room for 15; nothing was taken yet.
    for _ in 0..4 {
        let words = host.entry(READ, 0, 1, host.base + DATA, 0);
        host.put(1, words);
    }
    host.ring(1);
    let mut count = 0;
    while let Some(done) = host.poll(1) {
        assert_eq!(done.status, 0);
        count += 1;
    }
    assert_eq!(count, ENTRIES + 3);
    host.clean();
}

#[test]
fn doorbells_out_of_range_are_noticed() {
    let mut host = Host::ready(small());
    for (offset, value, rule) in [
        (0x1008, ENTRIES, Rule::DoorbellValue),
        (0x1008, 0, Rule::DoorbellValue),
        (0x100C, 1, Rule::DoorbellValue),
        (0x1010, 1, Rule::DoorbellQueue),
        (0x1FF0, 1, Rule::DoorbellQueue),
    ] {
        host.write32(offset, value);
        host.step();
        assert_eq!(host.broken(), rule, "{offset:#x} {value}");
    }
    // An event tells of it.
    host.put(0, [0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    host.ring(0);
    let event = host.poll(0).expect("an event");
    assert_eq!(event.result & 0xFF_FF07, 0x01_0100, "error, invalid doorbell value, error log");
}

#[test]
fn a_tail_that_passes_the_head_is_noticed() {
    let mut host = Host::ready(small());
    host.device.model().hang_queue(1);
    host.write32(0x1008, 10);
    host.step();
    host.clean();
    host.write32(0x1008, 3);
    host.step();
    assert_eq!(host.broken(), Rule::DoorbellValue);
}

#[test]
fn a_command_identifier_is_used_once_at_a_time() {
    let mut host = Host::ready(small());
    host.device.model().faults_mut().plan(0, CommandFault::Late(Duration::from_micros(5)));
    let mut words = host.entry(READ, 0, 1, host.base + DATA, 0);
    words[0] |= 7 << 16;
    host.put_raw(1, words);
    host.put_raw(1, words);
    host.ring(1);
    assert_eq!(host.poll(1).expect("refused at once").status, 0x4003);
    assert_eq!(host.broken(), Rule::CommandId);
    host.now = host.device.next_event().expect("one is late");
    host.step();
    assert_eq!(host.poll(1).expect("the first").status, 0);
    host.put_raw(1, words);
    host.ring(1);
    host.clean();
}

#[test]
fn no_transfer_goes_where_nothing_is_mapped() {
    let mut host = Host::ready(small());
    let words = host.entry(READ, 0, 1, host.base + host.memory.length() as u64, 0);
    assert_eq!(host.one(1, words).status, 0x4004);
    assert_eq!(host.broken(), Rule::Dma);
    let words = host.entry(READ, 0, 1, 0xDEAD_0000, 0);
    assert_eq!(host.one(1, words).status, 0x4004);
    assert_eq!(host.broken(), Rule::Dma);
    // Everything unmapped: the doorbell makes it fetch, which is fatal.
    host.device.unmap_dma(host.base).unwrap();
    host.put(1, words);
    host.ring(1);
    assert_eq!(host.broken(), Rule::Dma);
    assert_eq!(host.read32(0x1C) & 2, 2);
}

#[test]
fn prp_lists_are_walked_and_checked() {
    let mut host = Host::ready(small());
    let data = pattern(9, 5 * 4096);
    host.memory.write(DATA as usize + 512, &data);
    // Beginning 512 bytes into a page: 3584 bytes, four whole pages, the rest; by a list.
    for i in 0..5 {
        host.memory.store64(LIST as usize + 8 * i, host.base + DATA + 4096 * (1 + i as u64));
    }
    let words = host.entry(WRITE, 0, 40, host.base + DATA + 512, host.base + LIST);
    assert_eq!(host.one(1, words).status, 0);
    let words = host.entry(READ, 0, 40, host.base + DATA + 512, host.base + LIST);
    host.memory.write(DATA as usize, &[0; 6 * 4096]);
    assert_eq!(host.one(1, words).status, 0);
    assert_eq!(host.bytes(DATA + 512, data.len()), data);
    host.clean();
    let refused = |host: &mut Host, prp1: u64, prp2: u64, blocks: u32| {
        let words = host.entry(READ, 0, blocks, prp1, prp2);
        assert_eq!(host.one(1, words).status, 0x4013);
        assert_eq!(host.broken(), Rule::Prp);
    };
    let base = host.base;
    refused(&mut host, base + DATA + 2, 0, 1);
    refused(&mut host, base + DATA, base + DATA + 4096 + 8, 16);
    refused(&mut host, base + DATA, base + LIST + 4, 40);
    host.memory.store64(LIST as usize + 8, base + DATA + 64);
    refused(&mut host, base + DATA, base + LIST, 40);
}

#[test]
fn a_prp_list_goes_on_in_the_next_page() {
    let mut host = Host::ready(small());
    let base = host.base;
    // The list begins two entries before its page ends: one entry, then the pointer to the rest.
    host.memory.store64(LIST as usize + 4096 - 16, base + DATA + 4096);
    host.memory.store64(LIST as usize + 4096 - 8, base + LIST + 8192);
    for i in 0..3 {
        host.memory.store64(LIST as usize + 8192 + 8 * i, base + DATA + 4096 * (2 + i as u64));
    }
    let data = pattern(4, 5 * 4096);
    host.memory.write(DATA as usize, &data);
    let words = host.entry(WRITE, 0, 40, base + DATA, base + LIST + 4096 - 16);
    assert_eq!(host.one(1, words).status, 0);
    for block in 0..40 {
        let stored = host.device.model().block(1, block).unwrap();
        assert_eq!(stored, &data[block as usize * 512..][..512]);
    }
    host.clean();
}

fn descriptor(host: &Host, place: u64, address: u64, length: u32, kind: u8) {
    host.memory.store64(place as usize, address);
    host.memory.store32(place as usize + 8, length);
    host.memory.store32(place as usize + 12, u32::from(kind) << 24);
}

fn sgl(host: &Host, opcode: u32, blocks: u32, address: u64, length: u32, kind: u8) -> [u32; 16] {
    let mut words = host.entry(opcode | 1 << 14, 0, blocks, address, 0);
    (words[8], words[9]) = (length, u32::from(kind) << 24);
    words
}

#[test]
fn sgls_are_walked_and_checked() {
    let mut host = Host::ready(small());
    let base = host.base;
    let data = pattern(5, 2048);
    host.memory.write(DATA as usize + 3, &data);
    assert_eq!(host.one(1, sgl(&host, WRITE, 4, base + DATA + 3, 2048, 0)).status, 0);
    // Two segments: 100 bytes, a bucket of 412, then 536 and 1000.
    descriptor(&host, LIST, base + OTHER, 100, 0);
    descriptor(&host, LIST + 16, 0, 412, 0x10);
    descriptor(&host, LIST + 32, base + LIST + 64, 32, 0x30);
    descriptor(&host, LIST + 64, base + OTHER + 100, 536, 0);
    descriptor(&host, LIST + 80, base + OTHER + 636, 1000, 0);
    assert_eq!(host.one(1, sgl(&host, READ, 4, base + LIST, 48, 0x20)).status, 0);
    assert_eq!(host.bytes(OTHER, 100), &data[..100]);
    assert_eq!(host.bytes(OTHER + 100, 1536), &data[512..]);
    host.clean();
    for (address, length, kind, status) in [
        (base + OTHER, 2047, 0, 0x400F),
        (base + OTHER, 4096, 0, 0x400F),
        (base + LIST, 40, 0x30, 0x400D),
        (base + LIST, 48, 0x30, 0x400D),
        (base + LIST + 64, 32, 0x20, 0x400D),
        (base + OTHER, 2048, 0x40, 0x4011),
        (base + OTHER, 2048, 0x01, 0x4011),
    ] {
        let words = sgl(&host, READ, 4, address, length, kind);
        assert_eq!(host.one(1, words).status, status, "{length} {kind:#x}");
        assert_eq!(host.broken(), Rule::Sgl);
    }
    let mut words = [0; 16];
    (words[0], words[1], words[10]) = (6 | 1 << 14, 1, 1);
    assert_eq!(host.one(0, words).status, 0x4002, "no SGLs for admin commands");
}

#[test]
fn limits_are_enforced() {
    let mut host = Host::ready(Config { mdts: 1, ..small() });
    let words = host.entry(READ, 0, 17, host.base + DATA, host.base + LIST);
    assert_eq!(host.one(1, words).status, 0x4002, "beyond MDTS");
    assert_eq!(host.broken(), Rule::Bounds);
    assert_eq!(host.io(READ, 2048, 1, DATA, 512).status, 0x4080);
    assert_eq!(host.broken(), Rule::Bounds);
    assert_eq!(host.io(READ, u64::MAX, 1, DATA, 512).status, 0x4080);
    assert_eq!(host.broken(), Rule::Bounds);
    let mut words = host.entry(READ, 0, 1, host.base + DATA, 0);
    words[1] = 2;
    assert_eq!(host.one(1, words).status, 0x400B);
    words = host.entry(0x7F, 0, 1, 0, 0);
    assert_eq!(host.one(1, words).status, 0x4001);
    let mut words = host.entry(READ, 0, 1, host.base + DATA, 0);
    words[13] = 1 << 9;
    host.violations();
    assert_eq!(host.one(1, words).status, 0);
    assert_eq!(host.broken(), Rule::Reserved);
}

#[test]
fn write_zeroes_deallocate_and_uncorrectable() {
    let mut host = Host::ready(small());
    let data = pattern(6, 4096);
    host.memory.write(DATA as usize, &data);
    assert_eq!(host.io(WRITE, 0, 8, DATA, 4096).status, 0);
    let mut zeroes = host.entry(8, 1, 1, 0, 0);
    assert_eq!(host.one(1, zeroes).status, 0);
    zeroes[10] = 2;
    zeroes[12] |= 1 << 25;
    assert_eq!(host.one(1, zeroes).status, 0);
    // Two ranges: block 4, and 6 with 7.
    for (i, (lba, count)) in [(4u64, 1u32), (6, 2)].into_iter().enumerate() {
        host.memory.store32(OTHER as usize + 16 * i, 0);
        host.memory.store32(OTHER as usize + 16 * i + 4, count);
        host.memory.store64(OTHER as usize + 16 * i + 8, lba);
    }
    let mut dsm = host.entry(9, 0, 1, host.base + OTHER, 0);
    (dsm[10], dsm[11], dsm[12]) = (1, 4, 0);
    assert_eq!(host.one(1, dsm).status, 0);
    let uncorrectable = host.entry(4, 3, 1, 0, 0);
    assert_eq!(host.one(1, uncorrectable).status, 0);
    assert_eq!(host.io(READ, 3, 1, OTHER, 512).status, 0x281);
    assert_eq!(host.io(READ, 0, 8, OTHER, 4096).status, 0x281);
    let verify = host.entry(0x0C, 3, 1, 0, 0);
    assert_eq!(host.one(1, verify).status, 0x281);
    host.memory.write(DATA as usize, &data[3 * 512..4 * 512]);
    assert_eq!(host.io(WRITE, 3, 1, DATA, 512).status, 0);
    assert_eq!(host.io(READ, 0, 8, OTHER, 4096).status, 0);
    let read = host.bytes(OTHER, 4096);
    for block in 0..8 {
        let zero = [1, 2, 4, 6, 7].contains(&block);
        let expected = if zero { vec![0; 512] } else { data[block * 512..(block + 1) * 512].to_vec() };
        assert_eq!(read[block * 512..(block + 1) * 512], expected, "block {block}");
    }
    host.clean();
}

#[test]
fn copy_moves_ranges() {
    let mut host = Host::ready(small());
    let data = pattern(7, 4096);
    host.memory.write(DATA as usize, &data);
    assert_eq!(host.io(WRITE, 0, 8, DATA, 4096).status, 0);
    for (i, (lba, count)) in [(6u64, 2u32), (0, 1)].into_iter().enumerate() {
        host.memory.write(OTHER as usize + 32 * i, &[0; 32]);
        host.memory.store64(OTHER as usize + 32 * i + 8, lba);
        host.memory.store32(OTHER as usize + 32 * i + 16, count - 1);
    }
    let mut copy = host.entry(0x19, 100, 1, host.base + OTHER, 0);
    copy[12] = 1;
    assert_eq!(host.one(1, copy).status, 0);
    assert_eq!(host.io(READ, 100, 3, OTHER, 1536).status, 0);
    let expected = [&data[3072..4096], &data[..512]].concat();
    assert_eq!(host.bytes(OTHER, 1536), expected);
    copy[12] = 1 << 8;
    assert_eq!(host.one(1, copy).status, 0x4002, "descriptor format 1");
}

#[test]
fn fused_compare_and_write_is_one() {
    let mut host = Host::ready(small());
    let (old, new) = (pattern(1, 512), pattern(2, 512));
    host.memory.write(DATA as usize, &[old.clone(), new.clone()].concat());
    assert_eq!(host.io(WRITE, 5, 1, DATA, 512).status, 0);
    for (statuses, now) in [([0, 0], &new), ([0x4285, 0x9], &new)] {
        let compare = host.entry(COMPARE | 1 << 8, 5, 1, host.base + DATA, 0);
        let write = host.entry(WRITE | 2 << 8, 5, 1, host.base + DATA + 512, 0);
        host.put(1, compare);
        host.put(1, write);
        host.ring(1);
        let ends = [host.poll(1).unwrap().status, host.poll(1).unwrap().status];
        assert_eq!(ends, statuses);
        assert_eq!(host.device.model().block(1, 5).as_ref(), Some(now));
    }
    host.clean();
    let alone = host.entry(COMPARE | 1 << 8, 5, 1, host.base + DATA, 0);
    assert_eq!(host.one(1, alone).status, 0x400A);
    assert_eq!(host.broken(), Rule::Fused);
}

fn protected(format: u8, protection: u8, extended: bool) -> Host {
    let namespace =
        NamespaceConfig { bytes: 1 << 20, format, protection, extended, ..NamespaceConfig::default() };
    Host::ready(Config { namespaces: vec![namespace], ..Config::default() })
}

#[test]
fn protection_information_is_inserted_checked_and_stripped() {
    for kind in 1..=3u32 {
        let mut host = protected(2, kind as u8, false);
        let data = pattern(11, 1024);
        host.memory.write(DATA as usize, &data);
        let mut write = host.entry(WRITE, 9, 2, host.base + DATA, 0);
        write[12] |= 1 << 29;
        (write[14], write[15]) = (9, 0xFFFF_1234);
        assert_eq!(host.one(1, write).status, 0);
        for i in 0..2 {
            let block = host.device.model().block(1, 9 + i).unwrap();
            let guard = guard_of(&data[i as usize * 512..][..512]);
            let reference = if kind == 3 { 9 } else { 9 + i as u32 };
            assert_eq!(block[512..514], guard.to_be_bytes());
            assert_eq!(block[514..516], [0x12, 0x34]);
            assert_eq!(block[516..520], reference.to_be_bytes());
        }
        let check = if kind == 3 { 6 << 26 } else { 7 << 26 };
        let mut read = host.entry(READ, 9, 2, host.base + OTHER, 0);
        read[12] |= 1 << 29 | check;
        (read[14], read[15]) = (9, 0xFFFF_1234);
        assert_eq!(host.one(1, read).status, 0);
        assert_eq!(host.bytes(OTHER, 1024), data);
        read[15] = 0xFFFF_1235;
        assert_eq!(host.one(1, read).status, 0x283, "application tag");
        host.clean();
        if kind == 2 {
            (read[14], read[15]) = (8, 0xFFFF_1234);
            assert_eq!(host.one(1, read).status, 0x284, "reference tag");
        }
        if kind == 1 {
            read[14] = 8;
            assert_eq!(host.one(1, read).status, 0x4181);
        }
    }
}

#[test]
fn metadata_travels_apart_or_behind_each_block() {
    for extended in [false, true] {
        let mut host = protected(2, 1, extended);
        let mut blocks: Vec<u8> = Vec::new();
        let mut tuples: Vec<u8> = Vec::new();
        for i in 0..2u32 {
            let data = pattern(u64::from(i) + 20, 512);
            let mut tuple = guard_of(&data).to_be_bytes().to_vec();
            tuple.extend([0, 0]);
            tuple.extend((4 + i).to_be_bytes());
            blocks.extend(&data);
            if extended { blocks.extend(&tuple) } else { tuples.extend(&tuple) }
        }
        host.memory.write(DATA as usize, &blocks);
        host.memory.write(LIST as usize, &tuples);
        let mut words = host.entry(WRITE, 4, 2, host.base + DATA, 0);
        words[12] |= 7 << 26;
        words[14] = 4;
        if !extended {
            (words[4], words[5]) = (host.low(LIST), host.high(LIST));
        }
        assert_eq!(host.one(1, words).status, 0);
        let mut read = words;
        read[0] = READ;
        (read[6], read[7]) = (host.low(OTHER), host.high(OTHER));
        if !extended {
            (read[4], read[5]) = (host.low(LIST + 64), host.high(LIST + 64));
        }
        assert_eq!(host.one(1, read).status, 0);
        assert_eq!(host.bytes(OTHER, blocks.len()), blocks);
        assert_eq!(host.bytes(LIST + 64, tuples.len()), tuples);
        // One bit of the data turned: the guard no longer fits.
        host.memory.write(DATA as usize + 77, &[!blocks[77]]);
        assert_eq!(host.one(1, words).status, 0x282);
        host.clean();
    }
}

#[test]
fn formatting_changes_blocks_and_forgets_data() {
    let mut host = Host::ready(small());
    host.memory.write(DATA as usize, &pattern(1, 512));
    assert_eq!(host.io(WRITE, 0, 1, DATA, 512).status, 0);
    assert_eq!(host.admin([0x80, 1, 0, 0, 1, 0]).status, 0);
    assert_eq!(host.io(READ, 0, 1, OTHER, 4096).status, 0);
    assert_eq!(host.bytes(OTHER, 4096), [0; 4096]);
    assert_eq!(host.io(READ, 256, 1, OTHER, 4096).status, 0x4080);
    assert_eq!(host.admin([0x80, 1, 0, 0, 4, 0]).status, 0x410A);
    assert_eq!(
        host.admin([0x80, 1, 0, 0, 1 | 1 << 5, 0]).status,
        0x410A,
        "no room for protection information"
    );
    assert_eq!(host.admin([0x80, 1, 0, 0, 3 | 1 << 5, 0]).status, 0);
}

#[test]
fn features_are_kept_until_a_reset() {
    let mut host = Host::enabled(small());
    let done = host.admin([9, 0, 0, 0, 7, 3 | 5 << 16]);
    assert_eq!((done.status, done.result), (0, 3 | 5 << 16));
    let done = host.admin([9, 0, 0, 0, 7, 99 | 99 << 16]);
    assert_eq!((done.status, done.result), (0, 15 | 15 << 16), "no more than there are");
    assert_eq!(host.admin([9, 0, 0, 0, 7, 0xFFFF]).status, 0x4002);
    host.violations();
    assert_eq!(host.admin([0x0A, 0, 0, 0, 6, 0]).result, 1);
    assert_eq!(host.admin([9, 0, 0, 0, 6, 0]).status, 0);
    assert_eq!(host.admin([0x0A, 0, 0, 0, 6, 0]).result, 0);
    assert_eq!(host.admin([0x0A, 0, 0, 0, 6 | 1 << 8, 0]).result, 1, "the default");
    host.create_queues();
    assert_eq!(host.admin([9, 0, 0, 0, 7, 1 | 1 << 16]).status, 0x400C, "queues are there");
    assert_eq!(host.broken(), Rule::Sequence);
    assert_eq!(host.admin([9, 0, 0, 0, 6 | 1 << 31, 0]).status, 0x410D, "not saveable");
    host.violations();
    host.write32(0x14, 4 << 20 | 6 << 16);
    host.step();
    host.enable();
    assert_eq!(host.admin([0x0A, 0, 0, 0, 6, 0]).result, 1);
    host.clean();
}

#[test]
fn a_changed_namespace_is_told_once_until_its_log_is_read() {
    let mut host = Host::enabled(small());
    assert_eq!(host.admin([9, 0, 0, 0, 0x0B, 1 << 8]).status, 0);
    let request = [0x0C, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    host.put(0, request);
    host.put(0, request);
    host.ring(0);
    assert_eq!(host.poll(0), None);
    host.device.model().resize_namespace(1, 4096).unwrap();
    host.step();
    let event = host.poll(0).expect("told");
    assert_eq!((event.status, event.result), (0, 0x04_0002));
    host.device.model().attach_namespace(1, false);
    host.step();
    assert_eq!(host.poll(0), None, "masked");
    let log = host.admin([2, 0, host.low(DATA), host.high(DATA), 4 | 1023 << 16, 0]);
    assert_eq!(log.status, 0);
    assert_eq!(host.bytes(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(host.poll(0), None, "the log told it all");
    host.device.model().attach_namespace(1, true);
    host.step();
    assert_eq!(host.poll(0).expect("told again").result, 0x04_0002);
    host.clean();
}

#[test]
fn abort_takes_back_what_was_not_done() {
    let latency = (Duration::from_micros(50), Duration::from_micros(50));
    let mut host = Host::cold(Config { latency, ..small() });
    host.device.model().faults_mut().abort = AbortManner::Honest;
    host.enable();
    // Admin commands take their time too.
    let wait = |host: &mut Host| {
        host.now = host.now + Duration::from_micros(60);
        host.step();
    };
    let (cq, sq) = (host.low(IO_CQ), host.low(IO_SQ));
    let high = host.high(0);
    for words in [[5, 0, cq, high, 15 << 16 | 1, 1], [1, 0, sq, high, 15 << 16 | 1, 1 | 1 << 16]] {
        let mut entry = [0; 16];
        (entry[0], entry[6], entry[7], entry[10], entry[11]) =
            (words[0], words[2], words[3], words[4], words[5]);
        host.put(0, entry);
        host.ring(0);
        wait(&mut host);
        assert_eq!(host.poll(0).expect("created").status, 0);
    }
    let read = host.entry(READ, 0, 1, host.base + DATA, 0);
    // Aborted while it waits: the abort is done 50 us after, so the read must take longer.
    host.device.model().faults_mut().plan(0, CommandFault::Late(Duration::from_millis(1)));
    let cid = host.put(1, read);
    host.ring(1);
    let mut abort = [0; 16];
    (abort[0], abort[10]) = (8, u32::from(cid) << 16 | 1);
    host.put(0, abort);
    host.ring(0);
    wait(&mut host);
    let done = host.poll(0).expect("the abort");
    assert_eq!((done.status, done.result & 1), (0, 0));
    assert_eq!(host.poll(1).expect("aborted").status, 7);
    // And one that is over.
    host.put(0, abort);
    host.ring(0);
    wait(&mut host);
    assert_eq!(host.poll(0).expect("the abort").result & 1, 1);
    host.clean();
}

#[test]
fn deleting_a_queue_ends_its_commands() {
    let mut host = Host::ready(small());
    host.device.model().faults_mut().plan(0, CommandFault::Late(Duration::from_millis(1)));
    let read = host.entry(READ, 0, 1, host.base + DATA, 0);
    host.put(1, read);
    host.ring(1);
    assert_eq!(host.poll(1), None);
    assert_eq!(host.admin([0, 0, 0, 0, 1, 0]).status, 0);
    assert_eq!(host.poll(1).expect("ended").status, 8);
    host.now = host.now + Duration::from_millis(2);
    host.step();
    assert_eq!(host.poll(1), None, "and not twice");
}

#[test]
fn shadow_doorbells_are_followed() {
    let mut host = Host::enabled(small());
    let (shadow, events) = (0x5000u64, 0x6000u64);
    host.memory.write(shadow as usize, &[0; 0x2000]);
    let mut words = [0; 16];
    (words[0], words[6], words[7]) = (0x7C, host.low(shadow), host.high(shadow));
    (words[8], words[9]) = (host.low(events), host.high(events));
    assert_eq!(host.one(0, words).status, 0);
    host.create_queues();
    // By memory alone: a polling controller sees it.
    let read = host.entry(READ, 0, 1, host.base + DATA, 0);
    host.put(1, read);
    host.memory.store32(shadow as usize + 8, 1);
    host.step();
    assert_eq!(host.poll(1).expect("seen").status, 0);
    assert_eq!(host.memory.load32(events as usize + 8), 1, "the event index follows");
    host.put(1, read);
    host.memory.store32(shadow as usize + 8, 2);
    host.memory.store32(shadow as usize + 12, 1);
    host.write32(0x1008, 2);
    host.step();
    assert_eq!(host.poll(1).expect("seen").status, 0);
    host.memory.store32(shadow as usize + 12, 2);
    // A register write that was overtaken by the shadow is no tail that went round.
    host.put(1, read);
    host.put(1, read);
    host.memory.store32(shadow as usize + 8, 4);
    host.step();
    host.write32(0x1008, 3);
    host.step();
    assert_eq!(
        host.device.model().statistics().completions,
        4 + 3,
        "three admin commands before, and four reads"
    );
    host.clean();
    host.memory.store32(shadow as usize + 8, ENTRIES + 1);
    host.step();
    assert_eq!(host.broken(), Rule::DoorbellValue);
}

#[test]
fn completions_go_wrong_as_planned() {
    let mut host = Host::ready(small());
    let read = host.entry(READ, 0, 1, host.base + DATA, 0);
    let mut meet = |fault: CommandFault| {
        host.device.model().faults_mut().plan(0, fault);
        let cid = host.put(1, read);
        host.ring(1);
        let mut seen = Vec::new();
        while let Some(done) = host.poll(1) {
            seen.push((done.cid == cid, done.queue, done.status, done.head < ENTRIES as u16));
        }
        seen
    };
    assert_eq!(meet(CommandFault::Lost), []);
    assert_eq!(meet(CommandFault::Duplicate), [(true, 1, 0, true), (true, 1, 0, true)]);
    assert_eq!(meet(CommandFault::UnknownCid), [(false, 1, 0, true), (true, 1, 0, true)]);
    assert_eq!(meet(CommandFault::WrongQueue), [(true, 2, 0, true)]);
    assert_eq!(meet(CommandFault::WildHead), [(true, 1, 0, false)]);
    assert_eq!(meet(CommandFault::Status(0x281)), [(true, 1, 0x281, true)]);
    assert_eq!(meet(CommandFault::Late(Duration::from_secs(1))), []);
    assert_eq!(meet(CommandFault::WrongPhase), []);
    assert_eq!(meet(CommandFault::Fatal), []);
    assert_eq!(host.read32(0x1C) & 2, 2);
    host.clean();
}

#[test]
fn a_late_read_writes_memory_late() {
    let mut host = Host::ready(small());
    host.memory.write(DATA as usize, &[7; 512]);
    host.device.model().faults_mut().plan(0, CommandFault::Late(Duration::from_millis(1)));
    let read = host.entry(READ, 0, 1, host.base + DATA, 0);
    host.put(1, read);
    host.ring(1);
    assert_eq!(host.bytes(DATA, 512), [7; 512]);
    host.now = host.now + Duration::from_millis(1);
    host.step();
    assert_eq!(host.bytes(DATA, 512), [0; 512]);
    assert!(host.poll(1).is_some());
}

#[test]
fn a_device_that_is_pulled_reads_as_ones_and_comes_back_cold() {
    let mut host = Host::ready(small());
    host.memory.write(DATA as usize, &pattern(1, 512));
    assert_eq!(host.io(WRITE, 0, 1, DATA, 512).status, 0);
    host.device.model().remove();
    assert_eq!(host.read32(0x1C), u32::MAX);
    assert!(!host.device.is_present());
    host.write32(0x1008, 5);
    host.step();
    host.device.model().restore();
    assert_eq!(host.read32(0x1C), 0);
    host.enable();
    host.create_queues();
    assert_eq!(host.io(READ, 0, 1, OTHER, 512).status, 0);
    assert_eq!(host.bytes(OTHER, 512), pattern(1, 512));
    host.clean();
}

#[test]
fn a_power_cut_keeps_what_was_promised_and_tears_nothing_small() {
    for seed in 0..40 {
        let mut host = Host::ready(Config { seed, atomic_blocks: 4, ..small() });
        let fill = |host: &Host, byte: u8| host.memory.write(DATA as usize, &[byte; 2048]);
        fill(&host, 1);
        assert_eq!(host.io(WRITE, 0, 4, DATA, 2048).status, 0);
        assert_eq!(host.io(WRITE, 8, 4, DATA, 2048).status, 0);
        assert_eq!(host.one(1, host.entry(FLUSH, 0, 1, 0, 0)).status, 0);
        fill(&host, 2);
        assert_eq!(host.io(WRITE, 0, 4, DATA, 2048).status, 0);
        fill(&host, 3);
        let mut fua = host.entry(WRITE, 8, 4, host.base + DATA, 0);
        fua[12] |= 1 << 30;
        assert_eq!(host.one(1, fua).status, 0);
        host.device.model().power_cut().unwrap();
        let model = host.device.model();
        let first: Vec<u8> = (0..4).map(|lba| model.block(1, lba).unwrap()[0]).collect();
        assert!(first == [1; 4] || first == [2; 4], "{first:?}");
        assert!((8..12).all(|lba| model.block(1, lba).unwrap() == [3; 512]), "FUA is stable");
    }
}

#[test]
fn one_seed_is_one_history() {
    let history = |seed: u64| {
        let latency = (Duration::from_nanos(100), Duration::from_micros(90));
        let mut host = Host::ready(Config { seed, ..small() });
        drop(host.device.model().take_violations());
        host.device.model().faults_mut().rates.late = 500_000;
        host.device.model().faults_mut().rates.late_max = latency.1;
        let mut order = Vec::new();
        for round in 0..40 {
            for lba in 0..8 {
                let words = host.entry(READ, lba, 1, host.base + DATA, 0);
                host.put(1, words);
            }
            host.ring(1);
            while let Some(at) = host.device.next_event() {
                host.now = at;
                host.step();
            }
            while let Some(done) = host.poll(1) {
                order.push((round, done.cid));
            }
        }
        host.clean();
        order
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}

#[test]
fn interrupts_are_signalled_by_vector() {
    let mut host = Host::cold(small());
    let descriptors = host.device.enable_interrupts(2).unwrap();
    host.enable();
    host.create_queues();
    let count = |n: usize| {
        let mut bytes = [0; 8];
        rustix::io::read(&descriptors[n], &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
    };
    assert_eq!(count(0), 2, "two admin commands");
    assert_eq!(count(1), 0);
    assert_eq!(host.io(READ, 0, 1, DATA, 512).status, 0);
    assert_eq!((count(0), count(1)), (0, 1));
    assert!(host.device.enable_interrupts(18).is_err());
}

/// Not a test of right and wrong: what the fast path costs. Run with --release -- --ignored --nocapture.
#[test]
#[ignore = "a measurement"]
fn the_price_of_a_read() {
    for light in [true, false] {
        let device = ModelDevice::new("model", Model::new(Config { light, ..Config::default() }).unwrap());
        drop(device);
        let mut host = Host::ready(Config { light, ..Config::default() });
        let words = host.entry(READ, 64, 8, host.base + DATA, 0);
        let batch = ENTRIES - 1;
        let rounds = 200_000;
        let mut model_time = Duration::ZERO;
        for _ in 0..rounds {
            for _ in 0..batch {
                host.put(1, words);
            }
            let started = std::time::Instant::now();
            host.ring(1);
            model_time += started.elapsed();
            let mut seen = 0;
            while host.poll(1).is_some() {
                seen += 1;
            }
            assert_eq!(seen, batch);
        }
        println!("light {light}: {:.1} ns a read", model_time.as_nanos() as f64 / f64::from(rounds * batch));
    }
    let _ = ADMIN_SQ;
}
