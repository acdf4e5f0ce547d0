use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::*;
use crate::DmaMemory;

const TIMEOUT: Duration = Duration::from_secs(5);
/// BAR 0: three pages, the second can be mapped.
const BAR_LENGTH: u64 = 12288;

/// How the server misbehaves, at the command it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    No,
    Refuse(u32),
    WrongId,
    WrongCommand,
    Length(u32),
    NotAReply,
    Longer(usize),
    Shorter(usize),
    Zeros,
    Ones,
    Silence,
    Vanish,
    HalfAnAnswer,
    AsksFirst,
    Garbage,
    ErrorWithData,
}

/// What it has seen and does.
#[derive(Default)]
struct Model {
    config: Vec<u8>,
    registers: BTreeMap<u64, u32>,
    posted: u32,
    refused_by_us: u32,
    resets: u32,
    memory: BTreeMap<u64, (u64, std::fs::File)>,
    events: BTreeMap<u32, std::fs::File>,
    interrupt_messages: u32,
}

struct Server {
    socket: UnixStream,
    at: u16,
    lie: Lie,
    /// Lies from this occurrence of the command on.
    skip: u32,
    doorbells: OwnedFd,
    descriptors_max: u32,
    map: bool,
    model: Arc<Mutex<Model>>,
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn long_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

impl Server {
    fn receive(&self, length: usize) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let (mut bytes, mut files, mut got) = (vec![0; length], Vec::new(), 0);
        while got < length {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes[got..])];
            let message =
                rustix::net::recvmsg(&self.socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                    .ok()?;
            if message.bytes == 0 {
                return None;
            }
            got += message.bytes;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    files.extend(more);
                }
            }
        }
        Some((bytes, files))
    }

    fn send(&self, bytes: &[u8], file: Option<&OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let _ =
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    }

    /// Serves until the client closes, or a lie ends it.
    fn run(mut self) {
        while let Some((header, files)) = self.receive(16) {
            let (command, flags) = (u16::from_le_bytes([header[2], header[3]]), word_at(&header, 8));
            let Some((body, _)) = self.receive(word_at(&header, 4) as usize - 16) else { return };
            if flags & 0xF == 1 {
                // The answer to what `AsksFirst` asked.
                assert_eq!(word_at(&header, 12), 95, "EOPNOTSUPP");
                self.model.lock().unwrap().refused_by_us += 1;
                continue;
            }
            let (answer, file) = self.serve(command, &body, files);
            if flags & 0x10 != 0 {
                continue;
            }
            let lies = command == self.at && self.skip == 0;
            if command == self.at {
                self.skip = self.skip.saturating_sub(1);
            }
            let mut reply = header.clone();
            reply[8..12].copy_from_slice(&1u32.to_le_bytes());
            reply[4..8].copy_from_slice(&(16 + answer.len() as u32).to_le_bytes());
            reply.extend(&answer);
            let map = self.map;
            if lies && self.lies(&mut reply) {
                return;
            }
            self.send(&reply, if map { file.as_ref() } else { None });
        }
    }

    /// Spoils a reply. True: it was sent already, or never will be, and the server ends here.
    fn lies(&mut self, reply: &mut Vec<u8>) -> bool {
        match self.lie {
            Lie::No => {}
            Lie::Refuse(error) => {
                reply.truncate(16);
                reply[4..16].copy_from_slice(&words(&[16, 1 | 1 << 5, error]));
            }
            Lie::WrongId => reply[0] ^= 1,
            Lie::WrongCommand => reply[2] ^= 1,
            Lie::Length(length) => reply[4..8].copy_from_slice(&length.to_le_bytes()),
            Lie::NotAReply => reply[8] = 2,
            Lie::Longer(more) => {
                reply.resize(reply.len() + more, 0xEE);
                let length = reply.len() as u32;
                reply[4..8].copy_from_slice(&length.to_le_bytes());
            }
            Lie::Shorter(less) => {
                reply.truncate(reply.len().saturating_sub(less).max(16));
                let length = reply.len() as u32;
                reply[4..8].copy_from_slice(&length.to_le_bytes());
            }
            Lie::Zeros => reply[16..].fill(0),
            Lie::Ones => reply[16..].fill(0xFF),
            Lie::Silence => {
                // Until the client gives up.
                while self.receive(1).is_some() {}
                return true;
            }
            Lie::Vanish => {
                let _ = self.socket.shutdown(std::net::Shutdown::Both);
                return true;
            }
            Lie::HalfAnAnswer => {
                self.send(&reply[..reply.len() / 2], None);
                while self.receive(1).is_some() {}
                return true;
            }
            Lie::AsksFirst => {
                // A DMA read with an answer, and a DMA write of 100,000 bytes without.
                self.send(&words(&[11 << 16 | 77, 32, 0, 0, 0, 0, 64, 0]), None);
                self.send(&words(&[12 << 16 | 78, 16 + 100_000, 1 << 4, 0]), None);
                self.send(&vec![0xAB; 100_000], None);
            }
            Lie::Garbage => reply.fill(0x5A),
            Lie::ErrorWithData => reply[8] |= 1 << 5,
        }
        false
    }

    fn serve(&mut self, command: u16, body: &[u8], files: Vec<OwnedFd>) -> (Vec<u8>, Option<OwnedFd>) {
        let mut model = self.model.lock().unwrap();
        let answer = match command {
            command::VERSION => {
                let text = format!("{{\"capabilities\":{{\"max_msg_fds\":{}}}}}\0", self.descriptors_max);
                [&[0, 0, 1, 0], text.as_bytes()].concat()
            }
            command::DEVICE_GET_INFO => words(&[16, 3, 9, 5]),
            command::DEVICE_GET_REGION_INFO => {
                let index = word_at(body, 8);
                let (length, flags) = [(BAR_LENGTH, 15), (256, 3)][usize::from(index != 0)];
                let length = if index == 0 || index == 7 { length } else { 0 };
                let mut info = words(&[if index == 0 { 64 } else { 32 }, flags, index, 32]);
                info.extend(length.to_le_bytes());
                info.extend(0u64.to_le_bytes());
                if index == 0 {
                    info.extend(words(&[1 | 1 << 16, 0, 1, 0]));
                    info.extend(4096u64.to_le_bytes());
                    info.extend(4096u64.to_le_bytes());
                    return (info, Some(self.doorbells.try_clone().unwrap()));
                }
                info
            }
            command::DEVICE_GET_IRQ_INFO => words(&[16, 1, word_at(body, 8), 4]),
            command::DEVICE_SET_IRQS => {
                let (first, count) = (word_at(body, 12), word_at(body, 16));
                assert_eq!(files.len(), count as usize);
                model.interrupt_messages += 1;
                if count == 0 {
                    model.events.clear();
                }
                for (number, file) in (first..).zip(files) {
                    model.events.insert(number, file.into());
                }
                Vec::new()
            }
            command::REGION_READ => {
                let (offset, region, count) =
                    (long_at(body, 0), word_at(body, 8), word_at(body, 12) as usize);
                let mut answer = body.to_vec();
                match region {
                    CONFIG_REGION => answer.extend(&model.config[offset as usize..offset as usize + count]),
                    _ => answer.extend(model.registers.get(&offset).unwrap_or(&0).to_le_bytes()),
                }
                answer
            }
            command::REGION_WRITE => {
                let (offset, region) = (long_at(body, 0), word_at(body, 8));
                if region == CONFIG_REGION {
                    let at = offset as usize;
                    model.config[at..at + body.len() - 16].copy_from_slice(&body[16..]);
                } else {
                    model.posted += 1;
                    model.registers.insert(offset, word_at(body, 16));
                }
                body[..16].to_vec()
            }
            command::DMA_MAP => {
                let (offset, address, length) = (long_at(body, 8), long_at(body, 16), long_at(body, 24));
                assert_eq!((offset, files.len()), (0, 1));
                model.memory.insert(address, (length, files.into_iter().next().unwrap().into()));
                Vec::new()
            }
            command::DMA_UNMAP => {
                model.memory.remove(&long_at(body, 8)).expect("mapped");
                body.to_vec()
            }
            command::DEVICE_RESET => {
                model.resets += 1;
                Vec::new()
            }
            other => panic!("command {other}"),
        };
        (answer, None)
    }
}

struct Scene {
    model: Arc<Mutex<Model>>,
    doorbells: OwnedFd,
    ended: mpsc::Receiver<()>,
    /// The server's end.
    socket: UnixStream,
}

struct Setting {
    at: u16,
    lie: Lie,
    skip: u32,
    map: bool,
    descriptors_max: u32,
    timeout: Duration,
}

const HONEST: Setting =
    Setting { at: 0, lie: Lie::No, skip: 0, map: true, descriptors_max: 3, timeout: TIMEOUT };

fn scene(setting: Setting) -> (Result<VfioUserDevice, DeviceError>, Scene) {
    let (client, server) = UnixStream::pair().unwrap();
    let doorbells = rustix::fs::memfd_create("doorbells", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&doorbells, BAR_LENGTH).unwrap();
    let socket = server.try_clone().unwrap();
    let mut config = vec![0; 256];
    config[..12].copy_from_slice(&[0x36, 0x1B, 0x10, 0, 0, 0, 0, 0, 2, 2, 8, 1]);
    let model = Arc::new(Mutex::new(Model { config, ..Model::default() }));
    let server = Server {
        socket: server,
        at: setting.at,
        lie: setting.lie,
        skip: setting.skip,
        doorbells: doorbells.try_clone().unwrap(),
        descriptors_max: setting.descriptors_max,
        map: setting.map,
        model: model.clone(),
    };
    let (end, ended) = mpsc::channel();
    std::thread::spawn(move || {
        server.run();
        let _ = end.send(());
    });
    let device = VfioUserDevice::from_stream("test".to_owned(), client, setting.timeout);
    (device, Scene { model, doorbells, ended, socket })
}

#[test]
fn a_device_is_driven_over_the_protocol() {
    let (device, scene) = scene(HONEST);
    let device = device.unwrap();
    assert_eq!(
        (device.identity().vendor, device.identity().class, device.vectors_max()),
        (0x1B36, 0x01_0802, 4)
    );
    device.set_bus_master(true).unwrap();
    assert_eq!(scene.model.lock().unwrap().config[4], 6);
    device.set_bus_master(false).unwrap();
    let mut bytes = [0; 9];
    device.read_config(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0x36, 0x1B, 0x10, 0, 2, 0, 0, 0, 2]);
    device.reset().unwrap();
    assert_eq!(scene.model.lock().unwrap().resets, 1);
    assert!(device.open_bar(1).is_err() && device.open_bar(6).is_err() && device.open_bar(255).is_err());
    assert!(device.is_present());
    drop(device);
    scene.ended.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn registers_are_stored_where_they_are_shared_and_sent_where_not() {
    for map in [true, false] {
        let (device, scene) = scene(Setting { map, ..HONEST });
        let device = device.unwrap();
        let bar = device.open_bar(0).unwrap();
        assert_eq!(bar.length(), BAR_LENGTH);
        scene.model.lock().unwrap().registers.extend([(0, 0x0403_0201), (4, 0x0807_0605)]);
        assert_eq!(bar.read64(0), Ok(0x0807_0605_0403_0201));
        bar.write32(4096 + 8, 42).unwrap();
        bar.write32(20, 7).unwrap();
        // Posted writes are in order, so they have happened when a later read is answered.
        assert_eq!(bar.read32(20), Ok(7));
        assert_eq!(bar.read32(4096 + 8), Ok(42));
        assert_eq!(scene.model.lock().unwrap().posted, if map { 1 } else { 2 });
        let mut seen = [0; 4];
        std::fs::File::from(scene.doorbells.try_clone().unwrap()).read_exact_at(&mut seen, 4096 + 8).unwrap();
        assert_eq!(seen[0], if map { 42 } else { 0 });
        assert!(bar.read32(BAR_LENGTH).is_err() && bar.read32(2).is_err());
    }
}

#[test]
fn memory_is_shared_by_its_file_and_given_back() {
    let (device, scene) = scene(HONEST);
    let device = device.unwrap();
    let memory = DmaMemory::new(1 << 20, false).unwrap();
    let address = device.map_dma(&memory.region()).unwrap();
    memory.store32(4096, 0x1234_5678);
    {
        let model = scene.model.lock().unwrap();
        let (length, file) = &model.memory[&address];
        assert_eq!(*length, memory.length() as u64);
        let mut seen = [0; 4];
        file.read_exact_at(&mut seen, 4096).unwrap();
        assert_eq!(u32::from_le_bytes(seen), 0x1234_5678);
        file.write_all_at(&[9, 0, 0, 0], 8192).unwrap();
    }
    assert_eq!(memory.load32(8192), 9);
    assert!(device.unmap_dma(address + 4096).is_err());
    device.unmap_dma(address).unwrap();
    assert!(scene.model.lock().unwrap().memory.is_empty());
    assert!(device.unmap_dma(address).is_err());
    let private = base::BufferPool::plain(&[base::PoolClass { size: 4096, count: 4 }]);
    let error = device.map_dma(&DmaRegion::of_pool(&private)).unwrap_err().to_string();
    assert!(error.contains("--shared-buffers"), "{error}");
}

#[test]
fn what_is_still_mapped_goes_with_the_device() {
    let (device, scene) = scene(HONEST);
    let device = device.unwrap();
    let memory = DmaMemory::new(1 << 20, false).unwrap();
    device.map_dma(&memory.region()).unwrap();
    drop(device);
    scene.ended.recv_timeout(TIMEOUT).unwrap();
    assert!(scene.model.lock().unwrap().memory.is_empty());
}

#[test]
fn interrupts_come_through_eventfds_as_many_at_once_as_the_server_takes() {
    let (device, scene) = scene(HONEST);
    let device = device.unwrap();
    let events = device.enable_interrupts(4).unwrap();
    assert_eq!(scene.model.lock().unwrap().interrupt_messages, 2);
    for (number, file) in &mut scene.model.lock().unwrap().events {
        file.write_all(&(u64::from(*number) + 1).to_ne_bytes()).unwrap();
    }
    for (number, event) in events.iter().enumerate() {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), number as u64 + 1);
    }
    assert!(device.enable_interrupts(5).is_err());
    assert_eq!(device.enable_interrupts(0).unwrap().len(), 0);
    assert!(scene.model.lock().unwrap().events.is_empty());
}

#[test]
fn interrupts_that_came_on_in_part_are_taken_off() {
    let refused = Setting { at: command::DEVICE_SET_IRQS, skip: 1, lie: Lie::Refuse(22), ..HONEST };
    let (device, scene) = scene(refused);
    let device = device.unwrap();
    assert!(device.enable_interrupts(4).unwrap_err().to_string().contains("Invalid argument"));
    assert!(!scene.model.lock().unwrap().events.is_empty());
    // The server refuses this as well, after it has done it.
    assert!(device.enable_interrupts(0).is_err());
    assert!(scene.model.lock().unwrap().events.is_empty());
}

/// What each lie does to the command that reads a register: the error, and whether the device is lost.
#[test]
fn a_lie_costs_the_device_and_nothing_else() {
    let gone = Err(DeviceError::Gone);
    for lie in [
        Lie::WrongId,
        Lie::WrongCommand,
        Lie::Length(0),
        Lie::Length(15),
        Lie::Length(35),
        Lie::Length(u32::MAX),
        Lie::NotAReply,
        Lie::Longer(1),
        Lie::Longer(100_000),
        Lie::Shorter(1),
        Lie::Shorter(99),
        Lie::Zeros,
        Lie::Ones,
        Lie::Vanish,
        Lie::Garbage,
        Lie::ErrorWithData,
    ] {
        // The identity takes 16 reads, the command register one.
        let (device, _scene) = scene(Setting { at: command::REGION_READ, skip: 17, lie, ..HONEST });
        let device = device.unwrap_or_else(|error| panic!("{lie:?}: {error}"));
        let bar = device.open_bar(0).unwrap();
        assert_eq!(bar.read32(0), gone, "{lie:?}");
        assert!(!device.is_present(), "{lie:?}");
        assert_eq!(bar.read32(4096), gone, "{lie:?}: also what is mapped");
        assert_eq!(bar.write32(0, 1), Err(DeviceError::Gone), "{lie:?}");
        assert_eq!(device.set_bus_master(true), Err(DeviceError::Gone), "{lie:?}");
        assert_eq!(device.enable_interrupts(1).err(), Some(DeviceError::Gone), "{lie:?}");
    }
}

#[test]
fn a_refusal_is_an_error_of_its_own() {
    let (device, _scene) = scene(Setting { at: command::DMA_MAP, lie: Lie::Refuse(28), ..HONEST });
    let device = device.unwrap();
    let memory = DmaMemory::new(4096, false).unwrap();
    let error = device.map_dma(&memory.region()).unwrap_err().to_string();
    assert!(error.contains("No space left"), "{error}");
    assert!(device.is_present() && device.reset().is_ok());
}

#[test]
fn a_server_that_asks_something_is_answered_and_forgotten() {
    let (device, scene) =
        scene(Setting { at: command::REGION_READ, skip: 17, lie: Lie::AsksFirst, ..HONEST });
    let device = device.unwrap();
    let bar = device.open_bar(0).unwrap();
    for _ in 0..3 {
        assert_eq!(bar.read32(0), Ok(0));
    }
    device.reset().unwrap();
    assert_eq!(scene.model.lock().unwrap().refused_by_us, 3);
}

#[test]
fn a_server_that_hangs_is_given_up_in_time() {
    let timeout = Duration::from_millis(200);
    for lie in [Lie::Silence, Lie::HalfAnAnswer] {
        let (device, _scene) = scene(Setting { at: command::DEVICE_RESET, lie, timeout, ..HONEST });
        let device = device.unwrap();
        let begin = Instant::now();
        assert_eq!(device.reset(), Err(DeviceError::Gone));
        let waited = begin.elapsed();
        assert!(waited >= timeout, "{waited:?}");
        // Afterwards nothing waits any more: a hundred calls take less than one wait.
        let bar = device.open_bar(0).err();
        assert_eq!(bar, Some(DeviceError::Gone));
        let begin = Instant::now();
        for _ in 0..100 {
            assert_eq!(device.reset(), Err(DeviceError::Gone));
        }
        assert!(begin.elapsed() < timeout * 10);
        let mut event = [0; 8];
        rustix::io::read(device.connection.removal(), &mut event).unwrap();
    }
}

#[test]
fn doorbells_do_not_wait_for_a_server_that_does_not_read() {
    let timeout = Duration::from_millis(200);
    // It answers one read and then reads nothing: `Silence` would read on, so the lie is a vanished thread that keeps
    // its socket open.
    let (client, server) = UnixStream::pair().unwrap();
    let connection = Connection::new("test".to_owned(), client, timeout).unwrap();
    let mut posted = 0;
    let fault = loop {
        let begin = Instant::now();
        match connection.write(0, 4096, &[1, 2, 3, 4]) {
            Ok(()) => {
                posted += 1;
                assert!(begin.elapsed() < timeout);
            }
            Err(fault) => break fault,
        }
        assert!(posted < 1_000_000);
    };
    assert_eq!(fault, DeviceError::Gone);
    assert!(posted > 100, "{posted}");
    drop(server);
}

#[test]
fn a_server_that_vanishes_is_noticed_without_asking() {
    let (device, scene) = scene(HONEST);
    let device = device.unwrap();
    let bar = device.open_bar(0).unwrap();
    let descriptor = device.connection.removal().try_clone().unwrap();
    assert_eq!(device.removal_descriptor(), Some(device.connection.removal().as_raw_fd()));
    assert!(device.is_present());
    scene.socket.shutdown(std::net::Shutdown::Both).unwrap();
    let mut set = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
    let wait = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut set, Some(&wait)), Ok(1));
    assert!(!device.is_present());
    // A doorbell that is mapped could still be written; nobody would look at it.
    assert_eq!(bar.write32(4096, 1), Err(DeviceError::Gone));
}

#[test]
fn shared_registers_that_are_taken_away_read_as_gone() {
    let (device, scene) = scene(HONEST);
    let device = device.unwrap();
    let bar = device.open_bar(0).unwrap();
    bar.write32(4096, 3).unwrap();
    assert_eq!(bar.read32(4096), Ok(3));
    rustix::fs::ftruncate(&scene.doorbells, 0).unwrap();
    assert_eq!(bar.read32(4096), Err(DeviceError::Gone));
    assert!(!device.is_present());
}

/// Every command of the start, with every lie: connecting ends with a device or an error.
#[test]
fn no_lie_at_the_start_hangs_or_panics() {
    let lies = [
        Lie::Refuse(1),
        Lie::Refuse(u32::MAX),
        Lie::WrongId,
        Lie::WrongCommand,
        Lie::Length(3),
        Lie::Length(1 << 31),
        Lie::NotAReply,
        Lie::Longer(9),
        Lie::Shorter(5),
        Lie::Zeros,
        Lie::Ones,
        Lie::Vanish,
        Lie::Garbage,
        Lie::ErrorWithData,
        Lie::AsksFirst,
    ];
    for at in [
        command::VERSION,
        command::DEVICE_GET_INFO,
        command::DEVICE_GET_IRQ_INFO,
        command::REGION_READ,
        command::REGION_WRITE,
        command::DEVICE_GET_REGION_INFO,
    ] {
        for lie in lies {
            let (device, _scene) = scene(Setting { at, lie, ..HONEST });
            match device {
                Ok(device) => drop(device.open_bar(0).map(|bar| (bar.read32(4096), bar.read32(0)))),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn nobody_listening_is_an_error_with_a_remedy() {
    let path = std::env::temp_dir().join(format!("pollux-no-server-{}", std::process::id()));
    let error = VfioUserDevice::connect(&path).unwrap_err().to_string();
    assert!(error.contains("Remedy: start it first"), "{error}");
    // A server that never accepts: the connection is made by the kernel, the version is never answered.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let error =
        VfioUserDevice::from_stream("test".to_owned(), client, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error, DeviceError::Gone);
    drop(listener);
    std::fs::remove_file(path).unwrap();
}
