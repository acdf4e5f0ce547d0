//! The model under a virtual machine: the vfio-user protocol, version 0.0, on a Unix socket.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as WallInstant};

use base::Instant;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS,
    VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use super::config_space::{self, Effect};
use super::model::Model;

/// A model that runs by the clock of the machine, shared by its server, its control socket and its own thread.
#[derive(Clone)]
pub struct LiveModel {
    inner: Arc<Inner>,
}

struct Inner {
    model: Mutex<Model>,
    changed: Condvar,
    started: WallInstant,
}

impl std::fmt::Debug for LiveModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LiveModel")
    }
}

impl LiveModel {
    /// Starts the thread that does what is due.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(model: Model) -> std::io::Result<LiveModel> {
        let inner = Inner { model: Mutex::new(model), changed: Condvar::new(), started: WallInstant::now() };
        let live = LiveModel { inner: Arc::new(inner) };
        let own = live.clone();
        std::thread::Builder::new().name("nvme-model".to_owned()).spawn(move || own.run())?;
        Ok(live)
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.inner.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.inner.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the model, then what is due, and tells the violations that were found.
    pub fn with<T>(&self, act: impl FnOnce(&mut Model) -> T) -> T {
        let mut model = self.lock();
        let result = act(&mut model);
        model.step(self.now());
        for violation in model.take_violations() {
            println!("violation: {violation}");
        }
        drop(model);
        self.inner.changed.notify_one();
        result
    }

    fn run(&self) {
        let mut model = self.lock();
        loop {
            let now = self.now();
            model.step(now);
            let wait = model.next_event().map_or(Duration::from_secs(3600), |at| at.since(now));
            let waited = self.inner.changed.wait_timeout(model, wait.max(Duration::from_micros(20)));
            model = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Backend {
    live: LiveModel,
    /// MSI-X table and pending bits. The client keeps the real ones; these are what it stored.
    msix: Box<[u8; config_space::MSIX_BAR_LENGTH as usize]>,
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, what.into())
}

fn msix_range(offset: u64, length: usize) -> Result<std::ops::Range<usize>, Error> {
    let start = usize::try_from(offset).map_err(|_| invalid("an offset beyond the BAR"))?;
    let end = start.checked_add(length).filter(|&end| end <= config_space::MSIX_BAR_LENGTH as usize);
    Ok(start..end.ok_or_else(|| invalid("an access beyond the BAR"))?)
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => {
                let value = self.live.with(|model| model.read_register(offset, data.len() as u64));
                let bytes = value.to_le_bytes();
                let used = data.len().min(8);
                data[..used].copy_from_slice(&bytes[..used]);
                Ok(())
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                let offset = usize::try_from(offset).map_err(|_| invalid("an offset beyond the space"))?;
                self.live.with(|model| model.pci_mut().read(offset, data));
                Ok(())
            }
            index if index == u32::from(config_space::MSIX_BAR) => {
                data.copy_from_slice(&self.msix[msix_range(offset, data.len())?]);
                Ok(())
            }
            _ => Err(invalid(format!("a read of region {region}, which the device does not have"))),
        }
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => {
                let mut bytes = [0; 8];
                let used = data.len().min(8);
                bytes[..used].copy_from_slice(&data[..used]);
                let value = u64::from_le_bytes(bytes);
                self.live.with(|model| model.write_register(offset, data.len() as u64, value));
                Ok(())
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                let offset = usize::try_from(offset).map_err(|_| invalid("an offset beyond the space"))?;
                self.live.with(|model| {
                    if model.pci_mut().write(offset, data) == Effect::Reset {
                        model.reset_function();
                    }
                });
                Ok(())
            }
            index if index == u32::from(config_space::MSIX_BAR) => {
                self.msix[msix_range(offset, data.len())?].copy_from_slice(data);
                Ok(())
            }
            _ => Err(invalid(format!("a write of region {region}, which the device does not have"))),
        }
    }

    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> Result<(), Error> {
        self.live.with(|model| model.memory_mut().map(address, size, fd, offset)).map_err(|what| {
            eprintln!("nvme-model: {what}");
            invalid(what)
        })
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> Result<(), Error> {
        self.live.with(|model| {
            if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
                model.memory_mut().clear();
                return Ok(());
            }
            if model.memory_mut().unmap(address, size) {
                return Ok(());
            }
            Err(invalid(format!("no DMA range {address:#x}+{size:#x} is mapped")))
        })
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.live.with(Model::reset_function);
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> Result<(), Error> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX
            || flags & VFIO_IRQ_SET_ACTION_TYPE_MASK != VFIO_IRQ_SET_ACTION_TRIGGER
        {
            // The device has no other interrupts, so there is nothing to mask or to route.
            return Ok(());
        }
        // No vector at all means: none is routed any more.
        let count = if count == 0 { u32::from(u16::MAX) } else { count };
        let mut fds = fds.into_iter();
        self.live.with(|model| {
            for vector in start..start.saturating_add(count) {
                match u16::try_from(vector) {
                    Ok(vector) => model.set_vector(vector, fds.next()),
                    Err(_) => break,
                }
            }
        });
        Ok(())
    }
}

fn regions(bar0: u64) -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = match index {
                VFIO_PCI_BAR0_REGION_INDEX => bar0,
                VFIO_PCI_CONFIG_REGION_INDEX => config_space::LENGTH as u64,
                index if index == u32::from(config_space::MSIX_BAR) => config_space::MSIX_BAR_LENGTH,
                _ => 0,
            };
            let flags = if size > 0 { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE } else { 0 };
            let region_info = vfio_region_info {
                argsz: size_of::<vfio_region_info>() as u32,
                flags,
                index,
                cap_offset: 0,
                size,
                offset: 0,
            };
            ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
        })
        .collect()
}

fn interrupts(vectors: u32) -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| {
            let ours = index == VFIO_PCI_MSIX_IRQ_INDEX;
            IrqInfo {
                index,
                flags: if ours { VFIO_IRQ_INFO_EVENTFD } else { 0 },
                count: if ours { vectors } else { 0 },
            }
        })
        .collect()
}

/// Serves the model at `path`, one client after the other, for ever. A client that goes leaves the device as after a
/// reset: nothing of its memory stays mapped.
///
/// # Errors
/// A sentence, when the socket cannot be made or listened on. An old socket file is replaced.
pub fn serve(live: &LiveModel, path: &Path, vectors: u16) -> Result<(), String> {
    if path.exists() {
        std::fs::remove_file(path)
            .map_err(|e| format!("{} is there and cannot be replaced: {e}", path.display()))?;
    }
    let bar0 = live.with(|model| model.bar0_length());
    let server = Server::new(path, true, interrupts(u32::from(vectors)), regions(bar0))
        .map_err(|e| format!("{}: {e}", path.display()))?;
    loop {
        let mut backend = Backend { live: live.clone(), msix: Box::new([0; _]) };
        match server.run(&mut backend) {
            Ok(()) => println!("client: gone"),
            Err(vfio_user::Error::SocketAccept(e)) => return Err(format!("{}: {e}", path.display())),
            Err(e) => println!("client: lost: {e}"),
        }
        live.with(|model| {
            model.reset_function();
            model.memory_mut().clear();
            for vector in 0..vectors {
                model.set_vector(vector, None);
            }
        });
    }
}
