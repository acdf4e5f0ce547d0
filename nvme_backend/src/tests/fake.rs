//! A small NVMe controller that does what a test tells it. It reaches memory through the descriptors of what was mapped, so
//! that an access outside of a mapping fails the test.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use reactor::{Bar, DeviceError, DmaRegion, PciDevice, PciIdentity};

/// A namespace of the fake.
#[derive(Clone)]
pub(crate) struct FakeNamespace {
    pub(crate) shift: u32,
    pub(crate) blocks: u64,
    pub(crate) nguid: [u8; 16],
    pub(crate) noiob: u16,
    /// Metadata bytes and protection type.
    pub(crate) metadata: (u16, u8),
    pub(crate) extended: bool,
    pub(crate) media: Vec<u8>,
}

impl FakeNamespace {
    pub(crate) fn new(shift: u32, blocks: u64) -> FakeNamespace {
        FakeNamespace {
            shift,
            blocks,
            nguid: [7; 16],
            noiob: 0,
            metadata: (0, 0),
            extended: false,
            media: vec![0; (blocks << shift) as usize],
        }
    }
}

struct Mapping {
    bus: u64,
    length: u64,
    file: File,
}

#[derive(Default, Clone, Copy)]
struct Ring {
    base: u64,
    entries: u32,
    at: u32,
    /// Of a submission queue.
    tail: u32,
    /// Of a completion queue.
    phase: bool,
}

/// A command that was fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetched {
    pub(crate) queue: u16,
    pub(crate) id: u16,
    pub(crate) words: [u64; 8],
}

impl Fetched {
    pub(crate) fn opcode(&self) -> u8 {
        self.words[0] as u8
    }
    pub(crate) fn nsid(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }
    fn dword(&self, index: usize) -> u32 {
        (self.words[index / 2] >> (32 * (index % 2))) as u32
    }
}

/// What the fake does wrong.
#[derive(Default)]
pub(crate) struct Faults {
    /// I/O commands are fetched and not answered.
    pub(crate) hold: bool,
    /// Aborts do nothing.
    pub(crate) deaf: bool,
    /// Queues cannot be deleted: no answer.
    pub(crate) undeletable: bool,
    /// CSTS.RDY stays 1.
    pub(crate) undisableable: bool,
    /// It never becomes ready.
    pub(crate) unready: bool,
    /// The next I/O commands are answered with these.
    pub(crate) statuses: VecDeque<u16>,
    pub(crate) fatal: bool,
    /// Every I/O completion is posted twice.
    pub(crate) twice: bool,
    /// Admin commands are not answered.
    pub(crate) mute: bool,
    /// Identify structures are these bytes, repeated.
    pub(crate) garbage: Option<Vec<u8>>,
}

pub(crate) struct State {
    pub(crate) present: bool,
    bus_master: bool,
    cc: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    ready: bool,
    shutdown: bool,
    mappings: Vec<Mapping>,
    next_bus: u64,
    submissions: BTreeMap<u16, Ring>,
    completions: BTreeMap<u16, Ring>,
    doorbell_buffers: Option<(u64, u64)>,
    pub(crate) namespaces: BTreeMap<u32, FakeNamespace>,
    pub(crate) faults: Faults,
    pub(crate) held: Vec<Fetched>,
    pub(crate) events: Vec<Fetched>,
    /// Every command that was fetched from an I/O queue.
    pub(crate) log: Vec<Fetched>,
    pub(crate) queues: u16,
    pub(crate) mdts: u8,
    pub(crate) sgl: bool,
    pub(crate) shadow: bool,
    pub(crate) cached: bool,
    pub(crate) zeroes: bool,
    pub(crate) resets: u32,
    pub(crate) health: u8,
    pub(crate) doorbell_writes: u32,
}

/// The device; its registers are in [`FakeBar`].
pub(crate) struct Fake {
    pub(crate) state: Mutex<State>,
}

struct FakeBar(Arc<Fake>);
/// A handle that can be given away.
pub(crate) struct FakeDevice(pub(crate) Arc<Fake>);

impl Fake {
    pub(crate) fn new(namespaces: &[(u32, FakeNamespace)]) -> Arc<Fake> {
        Arc::new(Fake {
            state: Mutex::new(State {
                present: true,
                bus_master: false,
                cc: 0,
                aqa: 0,
                asq: 0,
                acq: 0,
                ready: false,
                shutdown: false,
                mappings: Vec::new(),
                // Not aligned to anything larger than a page.
                next_bus: 0x1_0000_1000,
                submissions: BTreeMap::new(),
                completions: BTreeMap::new(),
                doorbell_buffers: None,
                namespaces: namespaces.iter().cloned().collect(),
                faults: Faults::default(),
                held: Vec::new(),
                events: Vec::new(),
                log: Vec::new(),
                queues: 8,
                mdts: 6,
                sgl: false,
                shadow: false,
                cached: true,
                zeroes: true,
                resets: 0,
                health: 0,
                doorbell_writes: 0,
            }),
        })
    }

    pub(crate) fn device(self: &Arc<Fake>) -> Arc<dyn PciDevice> {
        Arc::new(FakeDevice(self.clone()))
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many regions the device may reach, and whether it may reach anything.
    pub(crate) fn reach(&self) -> (usize, bool) {
        let state = self.lock();
        (state.mappings.len(), state.bus_master)
    }

    /// Answers everything that is held.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.faults.hold = false;
        for command in std::mem::take(&mut state.held) {
            state.io(command);
        }
    }

    /// Sends an asynchronous event.
    pub(crate) fn event(&self, dword0: u32) {
        let mut state = self.lock();
        if let Some(request) = state.events.pop() {
            state.complete(request.queue, request.id, dword0, 0);
        }
    }

    /// The device goes away.
    pub(crate) fn remove(&self) {
        let mut state = self.lock();
        state.present = false;
        state.mappings.clear();
    }

    /// With doorbell buffers: looks at the shadow doorbells.
    pub(crate) fn look(&self) {
        let mut state = self.lock();
        let Some((values, _)) = state.doorbell_buffers else { return };
        let queues: Vec<u16> = state.submissions.keys().copied().filter(|&queue| queue > 0).collect();
        for queue in queues {
            let tail = state.read64(values + u64::from(queue) * 8) as u32;
            state.run(queue, tail);
        }
    }
}

impl State {
    fn reset(&mut self) {
        self.ready = false;
        self.shutdown = false;
        self.submissions.clear();
        self.completions.clear();
        self.held.clear();
        self.events.clear();
        self.doorbell_buffers = None;
        self.resets += 1;
    }

    fn place(&self, bus: u64, length: usize) -> (&File, u64) {
        assert!(self.bus_master, "DMA without bus mastering");
        let found = self
            .mappings
            .iter()
            .find(|mapping| bus >= mapping.bus && bus + length as u64 <= mapping.bus + mapping.length);
        let mapping =
            found.unwrap_or_else(|| panic!("DMA of {length} bytes at {bus:#x}, which is not mapped"));
        (&mapping.file, bus - mapping.bus)
    }

    pub(crate) fn read(&self, bus: u64, bytes: &mut [u8]) {
        let (file, offset) = self.place(bus, bytes.len());
        file.read_exact_at(bytes, offset).unwrap();
    }

    pub(crate) fn write(&self, bus: u64, bytes: &[u8]) {
        let (file, offset) = self.place(bus, bytes.len());
        file.write_all_at(bytes, offset).unwrap();
    }

    fn read64(&self, bus: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(bus, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The pieces of memory a command names.
    fn pieces(&self, command: &Fetched, length: usize) -> Vec<(u64, usize)> {
        if command.words[0] >> 14 & 3 == 1 {
            assert_eq!(command.words[4] as usize, length, "the length of the data block");
            return vec![(command.words[3], length)];
        }
        let first = 4096 - (command.words[3] & 4095) as usize;
        let mut pieces = vec![(command.words[3], first.min(length))];
        let rest = length.saturating_sub(first);
        if rest > 4096 {
            for page in 0..rest.div_ceil(4096) {
                let entry = self.read64(command.words[4] + 8 * page as u64);
                assert_eq!(entry & 4095, 0, "a PRP entry of a list is a whole page");
                pieces.push((entry, (rest - page * 4096).min(4096)));
            }
        } else if rest > 0 {
            assert_eq!(command.words[4] & 4095, 0);
            pieces.push((command.words[4], rest));
        }
        pieces
    }

    fn to_host(&self, command: &Fetched, bytes: &[u8]) {
        let mut at = 0;
        for (bus, length) in self.pieces(command, bytes.len()) {
            self.write(bus, &bytes[at..at + length]);
            at += length;
        }
    }

    fn host_bytes(&self, command: &Fetched, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (bus, length) in self.pieces(command, length) {
            let mut piece = vec![0; length];
            self.read(bus, &mut piece);
            bytes.extend(piece);
        }
        bytes
    }

    pub(crate) fn complete(&mut self, queue: u16, id: u16, dword0: u32, status: u16) {
        let head = self.submissions.get(&queue).map_or(0, |ring| ring.at);
        self.post(queue, queue, id, head as u16, dword0, status);
    }

    /// Posts a completion, true or not.
    pub(crate) fn post(&mut self, queue: u16, named: u16, id: u16, head: u16, dword0: u32, status: u16) {
        let Some(mut ring) = self.completions.get(&queue).copied() else { return };
        let mut entry = [0u8; 16];
        entry[..4].copy_from_slice(&dword0.to_le_bytes());
        entry[8..10].copy_from_slice(&head.to_le_bytes());
        entry[10..12].copy_from_slice(&named.to_le_bytes());
        entry[12..14].copy_from_slice(&id.to_le_bytes());
        entry[14..].copy_from_slice(&(status << 1 | u16::from(ring.phase)).to_le_bytes());
        self.write(ring.base + 16 * u64::from(ring.at), &entry);
        ring.at += 1;
        if ring.at == ring.entries {
            ring.at = 0;
            ring.phase = !ring.phase;
        }
        self.completions.insert(queue, ring);
    }

    /// The tail of a submission queue moved.
    fn run(&mut self, queue: u16, tail: u32) {
        loop {
            let Some(ring) = self.submissions.get_mut(&queue) else { return };
            assert!(tail < ring.entries, "a doorbell beyond its queue");
            ring.tail = tail;
            if ring.at == ring.tail || !self.ready {
                return;
            }
            let place = ring.base + 64 * u64::from(ring.at);
            ring.at = (ring.at + 1) % ring.entries;
            let mut words = [0; 8];
            for (at, word) in words.iter_mut().enumerate() {
                *word = self.read64(place + 8 * at as u64);
            }
            let command = Fetched { queue, id: (words[0] >> 16) as u16, words };
            if queue == 0 {
                self.admin(command);
            } else {
                self.log.push(command);
                if self.faults.hold { self.held.push(command) } else { self.io(command) }
            }
        }
    }

    fn io(&mut self, command: Fetched) {
        let status = match self.faults.statuses.pop_front() {
            Some(status) => status,
            None => self.carry_out(&command),
        };
        self.complete(command.queue, command.id, 0, status);
        if self.faults.twice {
            self.complete(command.queue, command.id, 0, status);
        }
    }

    fn carry_out(&mut self, command: &Fetched) -> u16 {
        let Some(namespace) = self.namespaces.get(&command.nsid()).cloned() else { return 0x0B };
        let (lba, blocks) = (command.words[5], u64::from(command.dword(12) & 0xFFFF) + 1);
        let range = |lba: u64, blocks: u64| {
            let end = lba.checked_add(blocks).filter(|&end| end <= namespace.blocks)?;
            Some((lba << namespace.shift) as usize..(end << namespace.shift) as usize)
        };
        let length = (blocks << namespace.shift) as usize;
        if matches!(command.opcode(), 1 | 2 | 5) {
            assert!(length as u64 <= 4096 << self.mdts, "MDTS");
            if namespace.metadata.1 == 0 && namespace.metadata.0 > 0 {
                let mut metadata = vec![0; blocks as usize * usize::from(namespace.metadata.0)];
                self.read(command.words[2], &mut metadata);
                assert!(command.opcode() == 2 || metadata.iter().all(|&byte| byte == 0));
                if command.opcode() == 2 {
                    self.write(command.words[2], &vec![0xEE; metadata.len()]);
                }
            }
            let protected = namespace.metadata.1 != 0;
            assert_eq!(command.dword(12) >> 29 & 1 == 1, protected, "PRACT");
            if matches!(namespace.metadata.1, 1 | 2) {
                assert_eq!(command.dword(14), lba as u32, "the reference tag");
            }
        }
        let media = |state: &mut State| {
            state.namespaces.get_mut(&command.nsid()).map(|n| std::mem::take(&mut n.media))
        };
        let Some(mut content) = media(self) else { return 0x0B };
        let status = (|| match command.opcode() {
            0 => 0,
            1 => {
                let Some(range) = range(lba, blocks) else { return 0x80 };
                content[range].copy_from_slice(&self.host_bytes(command, length));
                0
            }
            2 => {
                let Some(range) = range(lba, blocks) else { return 0x80 };
                self.to_host(command, &content[range]);
                0
            }
            5 => {
                let Some(range) = range(lba, blocks) else { return 0x80 };
                if content[range] == self.host_bytes(command, length) { 0 } else { 0x285 }
            }
            8 if self.zeroes => {
                let Some(range) = range(lba, blocks) else { return 0x80 };
                content[range].fill(0);
                0
            }
            9 => {
                assert_eq!((command.dword(10), command.dword(11)), (0, 4));
                let bytes = self.host_bytes(command, 16);
                let blocks = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
                let lba = u64::from_le_bytes(bytes[8..].try_into().unwrap());
                let Some(range) = range(lba, u64::from(blocks)) else { return 0x80 };
                content[range].fill(0);
                0
            }
            0x0C => range(lba, blocks).map_or(0x80, |_| 0),
            0x19 => {
                let bytes = self.host_bytes(command, 32);
                let from = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                let blocks = u64::from(u16::from_le_bytes(bytes[16..18].try_into().unwrap())) + 1;
                let (Some(from), Some(to)) = (range(from, blocks), range(lba, blocks)) else { return 0x80 };
                content.copy_within(from, to.start);
                0
            }
            _ => 0x01,
        })();
        if let Some(namespace) = self.namespaces.get_mut(&command.nsid()) {
            namespace.media = content;
        }
        status
    }

    fn admin(&mut self, command: Fetched) {
        if self.faults.mute {
            return;
        }
        let (ten, eleven) = (command.dword(10), command.dword(11));
        let mut dword0 = 0;
        let status = match command.opcode() {
            0x00 | 0x04 if self.faults.undeletable => return,
            0x00 => {
                self.submissions.remove(&(ten as u16));
                self.held.retain(|held| held.queue != ten as u16);
                0
            }
            0x04 => {
                assert!(!self.submissions.contains_key(&(ten as u16)), "a submission queue is deleted first");
                self.completions.remove(&(ten as u16));
                0
            }
            0x01 | 0x05 => {
                let ring =
                    Ring { base: command.words[3], entries: (ten >> 16) + 1, phase: true, ..Ring::default() };
                let rings = if command.opcode() == 1 { &mut self.submissions } else { &mut self.completions };
                assert!(rings.insert(ten as u16, ring).is_none(), "the queue is there already");
                0
            }
            0x02 => self.log_page(&command, ten as u8),
            0x06 => self.identify(&command, ten as u8),
            0x08 => {
                dword0 = 1;
                let found = self.held.iter().position(|held| {
                    u32::from(held.queue) == ten & 0xFFFF && u32::from(held.id) == ten >> 16
                });
                if let (Some(found), false) = (found, self.faults.deaf) {
                    let held = self.held.remove(found);
                    self.complete(held.queue, held.id, 0, 0x07);
                    dword0 = 0;
                }
                0
            }
            0x09 if ten & 0xFF == 7 => {
                let granted = u32::from(self.queues).min((eleven & 0xFFFF) + 1) - 1;
                dword0 = granted << 16 | granted;
                0
            }
            0x09 => 0,
            0x0A => {
                dword0 = 0x55;
                0
            }
            0x0C => {
                self.events.push(command);
                return;
            }
            0x7C if self.shadow => {
                self.doorbell_buffers = Some((command.words[3], command.words[4]));
                0
            }
            0x80 => {
                for namespace in self.namespaces.values_mut() {
                    namespace.media.fill(0);
                }
                0
            }
            _ => 0x01,
        };
        self.complete(0, command.id, dword0, status);
    }

    fn log_page(&mut self, command: &Fetched, page: u8) -> u16 {
        let length = ((command.dword(10) >> 16) as usize + 1) * 4;
        let mut bytes = vec![0; length];
        match page {
            2 => {
                bytes[0] = self.health;
                bytes[1..3].copy_from_slice(&300u16.to_le_bytes());
            }
            4 => bytes[0] = 1,
            1 => {
                bytes[0] = 9;
                bytes[16] = 77;
                bytes[24] = 1;
            }
            _ => {}
        }
        self.to_host(command, &bytes);
        0
    }

    fn identify(&mut self, command: &Fetched, cns: u8) -> u16 {
        let mut data = vec![0u8; 4096];
        if let Some(garbage) = self.faults.garbage.as_ref().filter(|garbage| !garbage.is_empty()) {
            for (at, byte) in data.iter_mut().enumerate() {
                *byte = garbage[at % garbage.len()];
            }
            self.to_host(command, &data);
            return 0;
        }
        match cns {
            0x00 => {
                let Some(namespace) = self.namespaces.get(&command.nsid()) else { return 0x0B };
                data[..8].copy_from_slice(&namespace.blocks.to_le_bytes());
                data[8..16].copy_from_slice(&namespace.blocks.to_le_bytes());
                data[26] = u8::from(namespace.extended) << 4;
                data[29] = namespace.metadata.1;
                data[33] = 0b1001;
                data[46..48].copy_from_slice(&namespace.noiob.to_le_bytes());
                data[74..76].copy_from_slice(&64u16.to_le_bytes());
                data[76..80].copy_from_slice(&64u32.to_le_bytes());
                data[104..120].copy_from_slice(&namespace.nguid);
                data[128..130].copy_from_slice(&namespace.metadata.0.to_le_bytes());
                data[130] = namespace.shift as u8;
            }
            0x01 => {
                data[4..24].copy_from_slice(b"FAKE0001            ");
                data[24..64].copy_from_slice(b"Fake NVMe                               ");
                data[64..72].copy_from_slice(b"1.0     ");
                data[77] = self.mdts;
                data[92] = 0;
                data[93] = 3;
                data[256] = 2;
                data[257] = u8::from(self.shadow);
                data[258] = 3;
                data[259] = 3;
                data[516] = 4;
                let oncs = 0x185u16 | u16::from(self.zeroes) << 3;
                data[520..522].copy_from_slice(&oncs.to_le_bytes());
                data[525] = u8::from(self.cached);
                data[534] = 1;
                data[536] = u8::from(self.sgl);
            }
            0x02 => {
                let after = command.nsid();
                for (at, (nsid, _)) in self.namespaces.range(after + 1..).enumerate() {
                    data[4 * at..4 * at + 4].copy_from_slice(&nsid.to_le_bytes());
                }
            }
            0x03 => {
                let Some(namespace) = self.namespaces.get(&command.nsid()) else { return 0x0B };
                data[..2].copy_from_slice(&[2, 16]);
                data[4..20].copy_from_slice(&namespace.nguid);
            }
            _ => return 0x02,
        }
        self.to_host(command, &data);
        0
    }
}

impl Bar for FakeBar {
    fn length(&self) -> u64 {
        0x2000
    }

    fn read32(&self, offset: u64) -> Result<u32, DeviceError> {
        let state = self.0.lock();
        if !state.present {
            return Ok(u32::MAX);
        }
        Ok(match offset {
            0x08 => 0x2_0000,
            0x14 => state.cc,
            0x1C => {
                u32::from(state.ready)
                    | u32::from(state.faults.fatal) << 1
                    | if state.shutdown { 2 << 2 } else { 0 }
            }
            _ => 0,
        })
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), DeviceError> {
        let mut state = self.0.lock();
        if !state.present {
            return Ok(());
        }
        match offset {
            0x14 => {
                let before = state.cc & 1;
                state.cc = value;
                state.shutdown = value >> 14 & 3 == 1;
                if value & 1 == 0 && state.ready && !state.faults.undisableable {
                    state.reset();
                }
                if value & 1 == 1 && before == 0 && !state.faults.unready {
                    state.faults.fatal = false;
                    state.ready = true;
                    let entries = (state.aqa & 0xFFF) + 1;
                    let (asq, acq) = (state.asq, state.acq);
                    state.submissions.insert(0, Ring { base: asq, entries, ..Ring::default() });
                    state.completions.insert(0, Ring { base: acq, entries, phase: true, ..Ring::default() });
                }
            }
            0x24 => state.aqa = value,
            0x1000.. => {
                state.doorbell_writes += 1;
                let queue = ((offset - 0x1000) / 8) as u16;
                if (offset - 0x1000).is_multiple_of(8) {
                    state.run(queue, value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn read64(&self, offset: u64) -> Result<u64, DeviceError> {
        // 256 entries, contiguous, 1 s, NVM command set, pages of 4 KiB.
        Ok(if offset == 0 && self.0.lock().present { 0x0000_0020_0201_00FF } else { u64::MAX })
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), DeviceError> {
        let mut state = self.0.lock();
        match offset {
            0x28 => state.asq = value,
            0x30 => state.acq = value,
            _ => {}
        }
        Ok(())
    }
}

impl PciDevice for FakeDevice {
    fn name(&self) -> &str {
        "fake"
    }
    fn identity(&self) -> PciIdentity {
        PciIdentity { class: 0x01_08_02, ..PciIdentity::default() }
    }
    fn open_bar(&self, _: u8) -> Result<Box<dyn Bar>, DeviceError> {
        Ok(Box::new(FakeBar(self.0.clone())))
    }
    fn read_config(&self, _: u16, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn set_bus_master(&self, enabled: bool) -> Result<(), DeviceError> {
        self.0.lock().bus_master = enabled;
        Ok(())
    }
    fn map_dma(&self, region: &DmaRegion<'_>) -> Result<u64, DeviceError> {
        let descriptor =
            region.descriptor().ok_or_else(|| DeviceError::Refused("private memory".to_owned()))?;
        let mut state = self.0.lock();
        if !state.present {
            return Err(DeviceError::Gone);
        }
        let bus = state.next_bus;
        state.next_bus += (region.length() as u64).next_multiple_of(4096) + 0x1000;
        let file = File::from(descriptor.try_clone_to_owned().unwrap());
        state.mappings.push(Mapping { bus, length: region.length() as u64, file });
        Ok(bus)
    }
    fn unmap_dma(&self, address: u64) -> Result<(), DeviceError> {
        let mut state = self.0.lock();
        match state.mappings.iter().position(|mapping| mapping.bus == address) {
            Some(at) => {
                state.mappings.swap_remove(at);
                Ok(())
            }
            None => Err(DeviceError::Refused("nothing is mapped there".to_owned())),
        }
    }
    fn enable_interrupts(&self, _: u16) -> Result<Vec<OwnedFd>, DeviceError> {
        Err(DeviceError::Unsupported("no interrupts".to_owned()))
    }
    fn reset(&self) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("no function level reset".to_owned()))
    }
    fn is_present(&self) -> bool {
        self.0.lock().present
    }
}
