//! A host written by hand: queues, entries and lists as raw words, nothing shared with any driver.
#![allow(dead_code)]

use base::Instant;
use reactor::{Bar, DmaMemory, PciDevice};
use sim::nvme::{Config, Model, ModelDevice, NamespaceConfig, Rule, Violation};

pub const ENTRIES: u32 = 16;
/// Where things are in the host's memory.
pub const ADMIN_SQ: u64 = 0;
pub const ADMIN_CQ: u64 = 0x1000;
pub const IO_SQ: u64 = 0x2000;
pub const IO_CQ: u64 = 0x3000;
pub const LIST: u64 = 0x4000;
pub const DATA: u64 = 0x10000;
pub const OTHER: u64 = 0x80000;
pub const BYTES: usize = 0x100000;

/// A completion: dword 0, dword 1, SQ head, SQ id, CID, status without phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub result: u32,
    pub head: u16,
    pub queue: u16,
    pub cid: u16,
    pub status: u16,
}

pub struct Host {
    pub device: ModelDevice,
    pub bar: Box<dyn Bar>,
    pub memory: DmaMemory,
    /// The device's address of the memory's first byte.
    pub base: u64,
    pub now: Instant,
    tails: [u32; 2],
    heads: [u32; 2],
    phases: [bool; 2],
    pub next_cid: u16,
}

pub fn config(bytes: u64, format: u8) -> Config {
    Config {
        namespaces: vec![NamespaceConfig { bytes, format, ..NamespaceConfig::default() }],
        ..Config::default()
    }
}

impl Host {
    /// A controller that was not touched yet, with memory mapped.
    pub fn cold(config: Config) -> Host {
        let device = ModelDevice::new("model", Model::new(config).expect("a sound configuration"));
        let memory = DmaMemory::new(BYTES, false).expect("memory");
        let base = device.map_dma(&memory.region()).expect("mapped");
        device.set_bus_master(true).expect("there");
        let bar = device.open_bar(0).expect("BAR 0");
        Host {
            device,
            bar,
            memory,
            base,
            now: Instant::from_nanos(1),
            tails: [0; 2],
            heads: [0; 2],
            phases: [true; 2],
            next_cid: 0,
        }
    }

    /// Enabled, with admin queues of 16 entries.
    pub fn enabled(config: Config) -> Host {
        let mut host = Host::cold(config);
        host.enable();
        host
    }

    /// With I/O queue pair 1.
    pub fn ready(config: Config) -> Host {
        let mut host = Host::enabled(config);
        host.create_queues();
        host
    }

    pub fn enable(&mut self) {
        self.tails = [0; 2];
        self.heads = [0; 2];
        self.phases = [true; 2];
        self.memory.write(ADMIN_CQ as usize, &[0; 0x1000]);
        self.memory.write(IO_CQ as usize, &[0; 0x1000]);
        self.write32(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.bar.write64(0x28, self.base + ADMIN_SQ).unwrap();
        self.bar.write64(0x30, self.base + ADMIN_CQ).unwrap();
        self.write32(0x14, 4 << 20 | 6 << 16 | 1);
        self.step();
        assert_eq!(self.read32(0x1C) & 1, 1, "ready");
    }

    pub fn create_queues(&mut self) {
        let cq =
            self.admin([0x05, 0, self.low(IO_CQ), self.high(IO_CQ), (ENTRIES - 1) << 16 | 1, 3 | 1 << 16]);
        assert_eq!(cq.status, 0);
        let sq =
            self.admin([0x01, 0, self.low(IO_SQ), self.high(IO_SQ), (ENTRIES - 1) << 16 | 1, 1 | 1 << 16]);
        assert_eq!(sq.status, 0);
    }

    pub fn low(&self, offset: u64) -> u32 {
        (self.base + offset) as u32
    }

    pub fn high(&self, offset: u64) -> u32 {
        ((self.base + offset) >> 32) as u32
    }

    pub fn read32(&self, offset: u64) -> u32 {
        self.bar.read32(offset).unwrap()
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.bar.write32(offset, value).unwrap();
    }

    pub fn step(&mut self) {
        self.device.step(self.now);
    }

    /// Puts an entry into a queue (0 admin, 1 I/O) without the doorbell; its CID.
    pub fn put(&mut self, queue: usize, mut words: [u32; 16]) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1) & 0x7FFF;
        words[0] |= u32::from(cid) << 16;
        self.put_raw(queue, words);
        cid
    }

    pub fn put_raw(&mut self, queue: usize, words: [u32; 16]) {
        let base = if queue == 0 { ADMIN_SQ } else { IO_SQ };
        for (i, word) in words.iter().enumerate() {
            self.memory.store32((base as usize) + self.tails[queue] as usize * 64 + i * 4, *word);
        }
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES;
    }

    pub fn ring(&mut self, queue: usize) {
        self.write32(0x1000 + queue as u64 * 8, self.tails[queue]);
        self.step();
    }

    /// The next completion of a queue, if it is there; the head doorbell is written.
    pub fn poll(&mut self, queue: usize) -> Option<Done> {
        let base = if queue == 0 { ADMIN_CQ } else { IO_CQ } as usize + self.heads[queue] as usize * 16;
        let last = self.memory.load32(base + 12);
        if (last >> 16 & 1 == 1) != self.phases[queue] {
            return None;
        }
        let (result, third) = (self.memory.load32(base), self.memory.load32(base + 8));
        self.heads[queue] = (self.heads[queue] + 1) % ENTRIES;
        if self.heads[queue] == 0 {
            self.phases[queue] = !self.phases[queue];
        }
        self.write32(0x1004 + queue as u64 * 8, self.heads[queue]);
        Some(Done {
            result,
            head: third as u16,
            queue: (third >> 16) as u16,
            cid: last as u16,
            status: (last >> 17) as u16,
        })
    }

    pub fn one(&mut self, queue: usize, words: [u32; 16]) -> Done {
        let cid = self.put(queue, words);
        self.ring(queue);
        let done = self.poll(queue).expect("a completion");
        assert_eq!((done.cid, done.queue), (cid, queue as u16));
        done
    }

    /// An admin command: opcode, NSID, PRP1 low and high, dwords 10 and 11.
    pub fn admin(&mut self, [opcode, nsid, low, high, ten, eleven]: [u32; 6]) -> Done {
        let mut words = [0; 16];
        (words[0], words[1], words[6], words[7], words[10], words[11]) =
            (opcode, nsid, low, high, ten, eleven);
        self.one(0, words)
    }

    /// The entry of an I/O command on namespace 1 with PRP1 at DATA + `offset` and PRP2 as given.
    pub fn entry(&self, opcode: u32, lba: u64, blocks: u32, prp1: u64, prp2: u64) -> [u32; 16] {
        let mut words = [0; 16];
        (words[0], words[1]) = (opcode, 1);
        (words[6], words[7]) = (prp1 as u32, (prp1 >> 32) as u32);
        (words[8], words[9]) = (prp2 as u32, (prp2 >> 32) as u32);
        (words[10], words[11], words[12]) = (lba as u32, (lba >> 32) as u32, blocks - 1);
        words
    }

    /// An I/O command whose data lies at `offset` of the host's memory and fits two pages.
    pub fn io(&mut self, opcode: u32, lba: u64, blocks: u32, offset: u64, bytes: u64) -> Done {
        let prp1 = self.base + offset;
        let first = 4096 - prp1 % 4096;
        let prp2 = if bytes > first { prp1 + first } else { 0 };
        assert!(bytes <= first + 4096);
        let words = self.entry(opcode, lba, blocks, prp1, prp2);
        self.one(1, words)
    }

    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read(offset as usize, &mut bytes);
        bytes
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.device.model().take_violations()
    }

    pub fn clean(&self) {
        assert_eq!(self.violations(), []);
    }

    /// The one rule that was broken since the last look.
    pub fn broken(&self) -> Rule {
        let violations = self.violations();
        assert_eq!(violations.len(), 1, "{violations:?}");
        violations[0].rule
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    base::Prng::new(seed).fill(&mut bytes);
    bytes
}
