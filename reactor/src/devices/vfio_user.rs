//! Devices that another process serves, by the vfio-user protocol (version 0.1, its specification is part of QEMU's
//! documentation): a model, another machine's emulator, a storage service.
//!
//! The server shares its registers as a memory file where it can; a doorbell is then a store. What it does not share
//! is read by a message and its answer, and written by a message without one, so that a reactor does not wait for the
//! server when it rings. A read waits, [`ANSWER_TIMEOUT`] at most; then the device is gone.
//!
//! What the server says is checked and sizes nothing. What it does to the memory it was given is in its hands: nothing
//! can take a shared file back, so one that hangs, is given up and then goes on may still finish a transfer. Serve
//! devices from processes that are trusted with the data.

mod connection;
mod message;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use self::connection::{Connection, Fault};
use self::message::command;
use super::bar::{RegionBar, Slow, Window, pages_of};
use super::info::{
    CONFIG_REGION, DEVICE_PCI, DEVICE_RESET, IRQS_EVENTS, IRQS_OFF, MSIX_INDEX, REGION_INFO_LENGTH,
    REGION_INFO_MAX, RegionInfo, word,
};
use super::mmio::Mapping;
use super::{Bar, DeviceError, DmaRegion, PciDevice, PciIdentity, config};

/// How long a server may take for an answer, or for making room for a message, before its device counts as gone.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most vectors MSI-X has (PCI Local Bus 3.0 §6.8.2).
const VECTORS_MAX: u32 = 2048;
/// Bytes of the longest version message that is read.
const VERSION_MAX: usize = 4096;

/// A PCI function by vfio-user.
pub struct VfioUserDevice {
    connection: Arc<Connection>,
    identity: PciIdentity,
    resettable: bool,
    vectors_max: u16,
    descriptors_max: usize,
    vectors: Mutex<u16>,
    /// First address and bytes of what is mapped.
    mapped: Mutex<Vec<(u64, u64)>>,
    stop: OwnedFd,
    watcher: Option<JoinHandle<()>>,
}

impl fmt::Debug for VfioUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioUserDevice").field("name", &self.connection.name()).finish_non_exhaustive()
    }
}

impl VfioUserDevice {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// A sentence, when nobody listens, or who listens does not serve a PCI device.
    pub fn connect(path: &Path) -> Result<VfioUserDevice, DeviceError> {
        let name = path.display().to_string();
        let refused = |text: String| {
            DeviceError::Refused(format!(
                "the device server at {name} cannot be reached: {text}. Remedy: start it first, and let this user \
                 read and write its socket"
            ))
        };
        let address = SocketAddrUnix::new(path).map_err(|error| refused(error.to_string()))?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let socket = loop {
            // Not blocking: a server that never accepts would hold this thread for ever.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .map_err(|error| refused(error.to_string()))?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => break socket,
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(refused(error.to_string())),
            }
        };
        VfioUserDevice::from_stream(name.clone(), UnixStream::from(socket), ANSWER_TIMEOUT)
    }

    /// Speaks to a server over a stream that is connected already. `timeout` is how long it may take to answer.
    ///
    /// # Errors
    /// As [`VfioUserDevice::connect`].
    pub fn from_stream(
        name: String,
        stream: UnixStream,
        timeout: Duration,
    ) -> Result<VfioUserDevice, DeviceError> {
        let eventfd = |error: Errno| DeviceError::Refused(format!("no eventfd can be had: {error}"));
        let connection = Arc::new(Connection::new(name, stream, timeout).map_err(eventfd)?);
        let name = connection.name();
        let descriptors_max = negotiate(&connection)?;
        let mut info = [0; 16];
        let mut question = [0; 16];
        question[..4].copy_from_slice(&16u32.to_le_bytes());
        ask_all(&connection, command::DEVICE_GET_INFO, &question, &mut info)
            .map_err(|fault| fault.explain(name, "to describe its device"))?;
        let flags = word(&info, 4).unwrap_or(0);
        if flags & DEVICE_PCI == 0 {
            connection.lose(None);
            return Err(DeviceError::Unsupported(format!(
                "the device server at {name} serves no PCI device"
            )));
        }
        let identity =
            config::identity(|offset, bytes| connection.read(CONFIG_REGION, u64::from(offset), bytes))?;
        let vectors_max = vectors(&connection)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(eventfd)?;
        let mut device = VfioUserDevice {
            identity,
            resettable: flags & DEVICE_RESET != 0,
            vectors_max,
            descriptors_max,
            vectors: Mutex::new(0),
            mapped: Mutex::default(),
            stop,
            watcher: None,
            connection,
        };
        device.change_command(config::MEMORY_SPACE, 0)?;
        let (connection, stop) = (device.connection.clone(), device.stop.try_clone());
        let stop = stop.map_err(|error| DeviceError::Refused(error.to_string()))?;
        let watcher =
            std::thread::Builder::new().name("vfio-user".to_owned()).spawn(move || connection.watch(&stop));
        device.watcher = Some(
            watcher.map_err(|error| DeviceError::Refused(format!("a thread cannot be started: {error}")))?,
        );
        Ok(device)
    }

    /// Vectors of its MSI-X table; none when it has no MSI-X.
    #[must_use]
    pub fn vectors_max(&self) -> u16 {
        self.vectors_max
    }

    /// Sets and clears bits of the command register.
    fn change_command(&self, set: u16, clear: u16) -> Result<(), DeviceError> {
        let mut bytes = [0; 2];
        self.connection.read(CONFIG_REGION, u64::from(config::COMMAND), &mut bytes)?;
        let command = (u16::from_le_bytes(bytes) & !clear) | set;
        self.write_config(config::COMMAND, &command.to_le_bytes())
    }

    /// Writes to the configuration space and waits until that is done.
    ///
    /// # Errors
    /// When the device is gone or its server refuses.
    pub fn write_config(&self, offset: u16, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut message = access(CONFIG_REGION, u64::from(offset), bytes.len());
        message.extend(bytes);
        self.connection
            .ask(command::REGION_WRITE, &message, &[], &mut [0; 16])
            .map(drop)
            .map_err(|fault| fault.explain(self.connection.name(), "a write to the configuration space"))
    }
}

/// The version message; how many descriptors the server takes at once.
fn negotiate(connection: &Connection) -> Result<usize, DeviceError> {
    // Major 0, minor 1.
    let question = [&[0, 0, 1, 0], message::OURS].concat();
    let mut answer = vec![0; VERSION_MAX];
    let (length, _) = connection
        .ask(command::VERSION, &question, &[], &mut answer)
        .map_err(|fault| fault.explain(connection.name(), "version 0.1 of the protocol"))?;
    match message::parse_version(&answer[..length]) {
        Ok(capabilities) => Ok(capabilities.descriptors_max),
        Err(text) => {
            connection.lose(Some(&text));
            let name = connection.name();
            Err(DeviceError::Refused(format!(
                "the server at {name} does not speak vfio-user as we do: it has {text}"
            )))
        }
    }
}

/// Asks for an answer of a fixed length.
fn ask_all(connection: &Connection, command: u16, question: &[u8], answer: &mut [u8]) -> Result<(), Fault> {
    let (length, _) = connection.ask(command, question, &[], answer)?;
    if length == answer.len() {
        Ok(())
    } else {
        connection
            .lose(Some(&format!("an answer of {length} bytes to command {command}, not {}", answer.len())));
        Err(Fault::Gone)
    }
}

fn vectors(connection: &Connection) -> Result<u16, DeviceError> {
    let mut question = [0; 16];
    question[..4].copy_from_slice(&16u32.to_le_bytes());
    question[8..12].copy_from_slice(&MSIX_INDEX.to_le_bytes());
    let mut info = [0; 16];
    match ask_all(connection, command::DEVICE_GET_IRQ_INFO, &question, &mut info) {
        Ok(()) => Ok(word(&info, 12).unwrap_or(0).min(VECTORS_MAX) as u16),
        // It does not know MSI-X.
        Err(Fault::Refused(_)) => Ok(0),
        Err(Fault::Gone) => Err(DeviceError::Gone),
    }
}

/// Offset, region and count of a REGION_READ or REGION_WRITE.
fn access(region: u32, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(offset.to_le_bytes());
    bytes.extend(region.to_le_bytes());
    bytes.extend((length as u32).to_le_bytes());
    bytes
}

fn region_info(connection: &Connection, index: u32) -> Result<(RegionInfo, Option<OwnedFd>), Fault> {
    let mut question = [0; REGION_INFO_LENGTH];
    question[..4].copy_from_slice(&(REGION_INFO_MAX as u32).to_le_bytes());
    question[8..12].copy_from_slice(&index.to_le_bytes());
    let mut answer = vec![0; REGION_INFO_MAX];
    let (length, file) = connection.ask(command::DEVICE_GET_REGION_INFO, &question, &[], &mut answer)?;
    match RegionInfo::parse(&answer[..length]) {
        Some(info) => Ok((info, file)),
        None => {
            connection.lose(Some("a description of a region that is cut short"));
            Err(Fault::Gone)
        }
    }
}

/// True for a memory file that is long enough. Other files could make an access wait for their server.
fn is_memory(file: BorrowedFd<'_>, end: u64) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let memory = rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC);
    memory && rustix::fs::fstat(file).is_ok_and(|file| file.st_size >= 0 && file.st_size as u64 >= end)
}

impl Slow for Connection {
    fn read(&self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let question = access(region, offset, bytes.len());
        let mut answer = [0; 16 + 256];
        let answer = answer
            .get_mut(..16 + bytes.len())
            .ok_or_else(|| DeviceError::Unsupported(format!("{} bytes at once", bytes.len())))?;
        ask_all(self, command::REGION_READ, &question, answer).map_err(|fault| {
            fault.explain(self.name(), &format!("a read of region {region} at {offset:#x}"))
        })?;
        let (echo, data) = answer.split_at(16);
        if echo != question {
            self.lose(Some("an answer to another read than was sent"));
            return Err(DeviceError::Gone);
        }
        bytes.copy_from_slice(data);
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut message = [0; 24];
        let length = 16 + bytes.len().min(8);
        message[..8].copy_from_slice(&offset.to_le_bytes());
        message[8..12].copy_from_slice(&region.to_le_bytes());
        message[12..16].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        message[16..length].copy_from_slice(&bytes[..length - 16]);
        self.post(command::REGION_WRITE, &message[..length]).map_err(|fault| {
            fault.explain(self.name(), &format!("a write to region {region} at {offset:#x}"))
        })
    }

    fn read_when_gone(&self) -> Result<u64, DeviceError> {
        Err(DeviceError::Gone)
    }

    #[inline]
    fn is_present(&self) -> bool {
        Connection::is_present(self)
    }

    fn suspect(&self, faulted: bool) {
        if faulted {
            self.lose(Some("it has taken its registers away"));
        }
    }
}

impl PciDevice for VfioUserDevice {
    fn name(&self) -> &str {
        self.connection.name()
    }

    fn identity(&self) -> PciIdentity {
        self.identity
    }

    fn open_bar(&self, index: u8) -> Result<Box<dyn Bar>, DeviceError> {
        let name = self.connection.name();
        let none = || DeviceError::Unsupported(format!("the device at {name} has no BAR {index}"));
        if index > 5 {
            return Err(none());
        }
        let (info, file) = match region_info(&self.connection, u32::from(index)) {
            Ok(answer) => answer,
            Err(Fault::Refused(_)) => return Err(none()),
            Err(Fault::Gone) => return Err(DeviceError::Gone),
        };
        if info.length == 0 {
            return Err(none());
        }
        let mut windows = Vec::new();
        for (start, length) in pages_of(&info.areas, info.length, false) {
            let end =
                info.offset.checked_add(start).and_then(|offset| Some((offset, offset.checked_add(length)?)));
            let (Some(file), Some((offset, end))) = (&file, end) else { continue };
            // What cannot be mapped is reached by messages.
            if is_memory(file.as_fd(), end) {
                match Mapping::new(file.as_fd(), offset, length) {
                    Ok(mapping) => windows.push(Window { start, mapping: Arc::new(mapping) }),
                    Err(text) => tracing::warn!(target: "reactor", device = %name, "BAR {index}: {text}"),
                }
            }
        }
        let slow = self.connection.clone();
        Ok(Box::new(RegionBar { region: u32::from(index), length: info.length, windows, slow }))
    }

    fn read_config(&self, offset: u16, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // Word by word: not every server knows longer accesses.
        for (at, part) in bytes.chunks_mut(4).enumerate() {
            self.connection.read(CONFIG_REGION, u64::from(offset) + 4 * at as u64, part)?;
        }
        Ok(())
    }

    fn set_bus_master(&self, enabled: bool) -> Result<(), DeviceError> {
        let bit = config::BUS_MASTER;
        if enabled { self.change_command(bit, 0) } else { self.change_command(0, bit) }
    }

    fn map_dma(&self, region: &DmaRegion<'_>) -> Result<u64, DeviceError> {
        let name = self.connection.name();
        let file = region.descriptor().ok_or_else(|| {
            DeviceError::Refused(format!(
                "memory of this process alone cannot be shared with the device server at {name}. Remedy: start \
                 polluxd with --hugepages or --shared-buffers"
            ))
        })?;
        let (address, length) = (region.address() as u64, region.length() as u64);
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        // argsz, flags (read, write), offset in the file, address, size.
        let mut message = Vec::with_capacity(32);
        message.extend(32u32.to_le_bytes());
        message.extend(3u32.to_le_bytes());
        for word in [0, address, length] {
            message.extend(word.to_le_bytes());
        }
        self.connection
            .ask(command::DMA_MAP, &message, &[file], &mut [0; 32])
            .map_err(|fault| fault.explain(name, &format!("{length} bytes of memory")))?;
        mapped.push((address, length));
        Ok(address)
    }

    fn unmap_dma(&self, address: u64) -> Result<(), DeviceError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let name = self.connection.name();
        let at = mapped.iter().position(|&(start, _)| start == address).ok_or_else(|| {
            DeviceError::Refused(format!("nothing is mapped for the device at {name} at {address:#x}"))
        })?;
        unmap(&self.connection, mapped[at])?;
        mapped.swap_remove(at);
        Ok(())
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<Vec<OwnedFd>, DeviceError> {
        let (name, max) = (self.connection.name(), self.vectors_max);
        if vectors > max {
            return Err(DeviceError::Unsupported(format!("{name} has {max} MSI-X vectors, not {vectors}")));
        }
        let mut on = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        if *on > 0 {
            set_interrupts(&self.connection, IRQS_OFF, 0, 0, &[])?;
            *on = 0;
        }
        let mut events = Vec::new();
        for _ in 0..vectors {
            let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
            events.push(event.map_err(|error| {
                DeviceError::Refused(format!(
                    "no eventfd can be had: {error}. Remedy: raise the limit of open files (ulimit -n)"
                ))
            })?);
        }
        // Also when only some of them come on, the next call takes them off first.
        *on = vectors;
        // As many at once as the server takes.
        for (part, chunk) in events.chunks(self.descriptors_max).enumerate() {
            let first = (part * self.descriptors_max) as u32;
            let descriptors: Vec<BorrowedFd<'_>> = chunk.iter().map(AsFd::as_fd).collect();
            set_interrupts(&self.connection, IRQS_EVENTS, first, chunk.len() as u32, &descriptors)?;
        }
        Ok(events)
    }

    fn reset(&self) -> Result<(), DeviceError> {
        let name = self.connection.name();
        if !self.resettable {
            return Err(DeviceError::Unsupported(format!("the device at {name} cannot be reset by itself")));
        }
        self.connection
            .ask(command::DEVICE_RESET, &[], &[], &mut [])
            .map(drop)
            .map_err(|fault| fault.explain(name, "a reset"))
    }

    fn is_present(&self) -> bool {
        self.connection.is_present()
    }

    fn removal_descriptor(&self) -> Option<RawFd> {
        Some(self.connection.removal().as_raw_fd())
    }
}

fn unmap(connection: &Connection, (address, length): (u64, u64)) -> Result<(), DeviceError> {
    // argsz, flags, address, size.
    let mut message = Vec::with_capacity(24);
    message.extend(24u32.to_le_bytes());
    message.extend(0u32.to_le_bytes());
    message.extend(address.to_le_bytes());
    message.extend(length.to_le_bytes());
    connection
        .ask(command::DMA_UNMAP, &message, &[], &mut [0; 24])
        .map(drop)
        .map_err(|fault| fault.explain(connection.name(), "to give memory back"))
}

fn set_interrupts(
    connection: &Connection,
    flags: u32,
    first: u32,
    count: u32,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), DeviceError> {
    let mut message = Vec::with_capacity(20);
    for word in [20, flags, MSIX_INDEX, first, count] {
        message.extend(word.to_le_bytes());
    }
    connection
        .ask(command::DEVICE_SET_IRQS, &message, descriptors, &mut [0; 20])
        .map(drop)
        .map_err(|fault| fault.explain(connection.name(), "interrupts"))
}

impl Drop for VfioUserDevice {
    fn drop(&mut self) {
        for mapped in self.mapped.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if !self.connection.is_present() || unmap(&self.connection, mapped).is_err() {
                break;
            }
        }
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        self.connection.lose(None);
    }
}

#[cfg(test)]
#[path = "vfio_user_tests.rs"]
mod tests;
