//! Devices by the kernel's VFIO: isolated by the IOMMU, driven from this process.
//!
//! # Removal
//! When a device is pulled, or an administrator unbinds it, the kernel asks for it back by an eventfd
//! ([`PciDevice::removal_descriptor`]) and then *waits* until nothing of it is open or mapped. So it is given back at once:
//! it stops, loses all memory, its registers are unmapped and its file is closed, whatever handles to it still live.
//! From then on it reads as all ones. The same happens when it is found to be gone. What its driver was doing is lost,
//! as it is when a device is pulled; nothing writes to memory that the driver takes back.

mod address_space;
#[allow(unsafe_code)]
mod sys;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;

use self::address_space::AddressSpace;
use self::sys::{Command, Message};
use super::bar::{RegionBar, Slow, Window, pages_of};
use super::info::{
    CONFIG_REGION, DEVICE_PCI, DEVICE_RESET, IRQS_EVENTS, IRQS_OFF, MSIX_INDEX, REGION_INFO_MAX, RegionInfo,
    word,
};
use super::mmio::Mapping;
use super::{Bar, DeviceError, DmaRegion, PciAddress, PciBus, PciDevice, PciIdentity, config};

/// `VFIO_PCI_ERR_IRQ_INDEX`: the bus reports an error that cannot be recovered from.
const ERROR_INDEX: u32 = 3;
/// `VFIO_PCI_REQ_IRQ_INDEX`: the kernel wants the device back.
const REQUEST_INDEX: u32 = 4;
/// The most vectors MSI-X has (PCI Local Bus 3.0 §6.8.2).
const VECTORS_MAX: u16 = 2048;

/// A PCI function by VFIO.
pub struct VfioDevice {
    identity: PciIdentity,
    shared: Arc<Shared>,
    resettable: bool,
    vectors_max: u16,
    /// The vectors that are on.
    vectors: Mutex<u16>,
    /// Ends the watcher.
    stop: OwnedFd,
    watcher: Option<JoinHandle<()>>,
}

/// What the device and its BARs share.
struct Shared {
    name: String,
    /// What the kernel gave us; `None` once it is given back. The data path takes no lock: it goes through the windows.
    kept: RwLock<Option<Kept>>,
    /// Offset in the file and bytes of the configuration space and of the BARs.
    regions: [(u64, u64); CONFIG_REGION as usize + 1],
    /// What is mapped of its registers.
    windows: Mutex<Vec<Weak<Mapping>>>,
    /// What it may reach of our memory.
    mapped: Mutex<Vec<u64>>,
    gone: AtomicBool,
    /// Readable once the kernel wants it back, or it is gone.
    removal: OwnedFd,
}

/// The order of the fields is the order in which they are closed.
struct Kept {
    device: OwnedFd,
    space: Arc<AddressSpace>,
}

impl VfioDevice {
    /// Takes the function at `address`, which must be bound to vfio-pci (`scripts/bind bind`).
    ///
    /// # Errors
    /// A sentence that says what is in the way, and the remedy.
    pub fn open(address: PciAddress) -> Result<VfioDevice, DeviceError> {
        let bus = PciBus::default();
        let function = bus.function(address).map_err(|_| {
            DeviceError::Refused(format!(
                "there is no PCI function {address}. Remedy: scripts/bind status lists them"
            ))
        })?;
        let driver = function.driver.as_deref().unwrap_or("no driver");
        if !driver.ends_with("vfio-pci") {
            return Err(DeviceError::Refused(format!(
                "{address} is bound to {driver}. Remedy: scripts/bind bind {address}"
            )));
        }
        // VFIO makes groups of its own for devices that were bound without an IOMMU.
        let group = function.iommu_group.filter(|&group| !bus.is_group_without_iommu(group)).ok_or_else(|| {
            DeviceError::Refused(format!(
                "{address} has no IOMMU group: the IOMMU is off. Remedy: switch it on in the firmware (VT-d, AMD-Vi) \
                 and boot with intel_iommu=on or amd_iommu=on"
            ))
        })?;
        let (device, space) = address_space::open_device(&bus, address, group)?;
        VfioDevice::new(address, device, space)
    }

    fn new(
        address: PciAddress,
        device: OwnedFd,
        space: Arc<AddressSpace>,
    ) -> Result<VfioDevice, DeviceError> {
        let mut info = [0; 16];
        sys::call(device.as_fd(), Message::DeviceInfo, &mut info)
            .map_err(|error| explain("device", &error))?;
        let flags = word(&info, 4).unwrap_or(0);
        if flags & DEVICE_PCI == 0 {
            return Err(DeviceError::Unsupported(format!("{address} is not a PCI device for VFIO")));
        }
        let mut regions = [(0, 0); CONFIG_REGION as usize + 1];
        for (index, region) in regions.iter_mut().enumerate() {
            // A BAR that is not there is answered with a length of 0, or an error; both mean the same.
            if let Ok(info) = region_info(&device, index as u32) {
                *region = (info.offset, info.length);
            }
        }
        let (removal, stop) = (eventfd()?, eventfd()?);
        for index in [REQUEST_INDEX, ERROR_INDEX] {
            if interrupts(&device, index) > 0 {
                set_interrupts(&device, index, IRQS_EVENTS, &[removal.as_raw_fd()])
                    .map_err(|error| explain("notice of removal", &error))?;
            }
        }
        let vectors_max = interrupts(&device, MSIX_INDEX).min(u32::from(VECTORS_MAX)) as u16;
        let shared = Arc::new(Shared {
            name: address.to_string(),
            kept: RwLock::new(Some(Kept { device, space })),
            regions,
            windows: Mutex::default(),
            mapped: Mutex::default(),
            gone: AtomicBool::new(false),
            removal,
        });
        let identity =
            config::identity(|offset, bytes| shared.read(CONFIG_REGION, u64::from(offset), bytes))?;
        // A function that was never driven may have its registers switched off.
        shared.change_command(config::MEMORY_SPACE, 0)?;
        let watched = (shared.clone(), stop.try_clone());
        let ended = watched.1.map_err(|error| DeviceError::Refused(error.to_string()))?;
        let watcher = std::thread::Builder::new()
            .name("vfio".to_owned())
            .spawn(move || watched.0.watch(&ended))
            .map_err(|error| DeviceError::Refused(format!("a thread cannot be started: {error}")))?;
        Ok(VfioDevice {
            identity,
            shared,
            resettable: flags & DEVICE_RESET != 0,
            vectors_max,
            vectors: Mutex::new(0),
            stop,
            watcher: Some(watcher),
        })
    }

    /// Vectors of its MSI-X table; none when it has no MSI-X.
    #[must_use]
    pub fn vectors_max(&self) -> u16 {
        self.vectors_max
    }

    /// Writes to the configuration space; the kernel keeps back what would harm others.
    ///
    /// # Errors
    /// When the device is gone or the range is not in its configuration space.
    pub fn write_config(&self, offset: u16, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.write(CONFIG_REGION, u64::from(offset), bytes)
    }
}

fn eventfd() -> Result<OwnedFd, DeviceError> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
        DeviceError::Refused(format!(
            "no eventfd can be had: {error}. Remedy: raise the limit of open files (ulimit -n)"
        ))
    })
}

fn explain(what: &str, error: &std::io::Error) -> DeviceError {
    match Errno::from_io_error(error) {
        Some(Errno::NODEV | Errno::NXIO) => DeviceError::Gone,
        _ => DeviceError::Refused(format!("VFIO refuses the {what}: {error}")),
    }
}

fn region_info(device: &OwnedFd, index: u32) -> std::io::Result<RegionInfo> {
    let mut bytes = vec![0; REGION_INFO_MAX];
    bytes[8..12].copy_from_slice(&index.to_ne_bytes());
    sys::call(device.as_fd(), Message::RegionInfo, &mut bytes)?;
    RegionInfo::parse(&bytes).ok_or_else(|| Errno::INVAL.into())
}

/// Interrupts of one kind that the device has.
fn interrupts(device: &OwnedFd, index: u32) -> u32 {
    let mut info = [0; 16];
    info[8..12].copy_from_slice(&index.to_ne_bytes());
    match sys::call(device.as_fd(), Message::IrqInfo, &mut info) {
        Ok(()) => word(&info, 12).unwrap_or(0),
        Err(_) => 0,
    }
}

fn set_interrupts(device: &OwnedFd, index: u32, flags: u32, events: &[RawFd]) -> std::io::Result<()> {
    // argsz, flags, index, start, count, descriptors.
    let mut message = vec![0; 4];
    for word in [flags, index, 0, events.len() as u32] {
        message.extend(word.to_ne_bytes());
    }
    for event in events {
        message.extend(event.to_ne_bytes());
    }
    sys::call(device.as_fd(), Message::SetIrqs, &mut message)
}

impl Shared {
    /// Does something with what the kernel gave us.
    fn with<T>(&self, what: impl FnOnce(&Kept) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        what(kept.as_ref().ok_or(DeviceError::Gone)?)
    }

    /// Gives everything back to the kernel, whatever handles still live; a reason is logged, none when the end is ours.
    /// Not from inside [`Shared::with`].
    fn release(&self, reason: Option<&str>) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = kept.take() else { return };
        let name = &self.name;
        if let Some(reason) = reason {
            tracing::warn!(target: "reactor", device = %name, "the PCI device is let go: {reason}");
        }
        // First it stops, then it loses the memory: the other way round the IOMMU would report faults.
        let command = self.regions[CONFIG_REGION as usize].0 + u64::from(config::COMMAND);
        let mut bytes = [0; 2];
        if rustix::io::pread(&kept.device, &mut bytes, command) == Ok(2) && bytes != [0xFF; 2] {
            let stopped = u16::from_le_bytes(bytes) & !config::BUS_MASTER;
            let _ = rustix::io::pwrite(&kept.device, &stopped.to_le_bytes(), command);
        }
        for iova in self.mapped.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Err(error) = kept.space.unmap(iova) {
                tracing::error!(target: "reactor", device = %name, "{error}");
            }
        }
        // Only now: whoever sees it takes back the memory it was given.
        self.gone.store(true, Ordering::Release);
        for window in self.windows.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(Err(text)) = window.upgrade().map(|window| window.retire()) {
                tracing::error!(target: "reactor", device = %name, "{text}");
            }
        }
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.removal, &1u64.to_ne_bytes());
    }

    /// Sleeps until the kernel wants the device back, or `stop` becomes readable. A thread's whole work.
    fn watch(&self, stop: &OwnedFd) {
        loop {
            let mut set = [PollFd::new(&self.removal, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match rustix::event::poll(&mut set, None) {
                Ok(_) if !set[1].revents().is_empty() => return,
                Ok(_) if !set[0].revents().is_empty() => {
                    return self.release(Some("the kernel wants it back, or its bus has failed"));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return self.release(Some(&error.to_string())),
            }
        }
    }

    /// Where a range of a region is in the device's file.
    fn place(&self, region: u32, offset: u64, length: usize) -> Result<u64, DeviceError> {
        let (start, size) = self.regions.get(region as usize).copied().unwrap_or((0, 0));
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > size) {
            return Err(DeviceError::OutOfBar { offset, length: size });
        }
        Ok(start + offset)
    }

    /// Sets and clears bits of the command register.
    fn change_command(&self, set: u16, clear: u16) -> Result<(), DeviceError> {
        let mut bytes = [0; 2];
        self.read(CONFIG_REGION, u64::from(config::COMMAND), &mut bytes)?;
        let command = u16::from_le_bytes(bytes);
        self.write(CONFIG_REGION, u64::from(config::COMMAND), &((command & !clear) | set).to_le_bytes())
    }
}

impl Slow for Shared {
    fn read(&self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let at = self.place(region, offset, bytes.len())?;
        let count = self.with(|kept| Ok(rustix::io::pread(&kept.device, &mut *bytes, at)))?;
        // The kernel reads registers that are switched off, or of a device that has gone, as an error.
        if count == Ok(bytes.len()) {
            return Ok(());
        }
        self.release(Some("a register cannot be read"));
        Err(DeviceError::Gone)
    }

    fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let at = self.place(region, offset, bytes.len())?;
        if self.with(|kept| Ok(rustix::io::pwrite(&kept.device, bytes, at)))? == Ok(bytes.len()) {
            return Ok(());
        }
        self.release(Some("a register cannot be written"));
        Err(DeviceError::Gone)
    }

    fn read_when_gone(&self) -> Result<u64, DeviceError> {
        Ok(u64::MAX)
    }

    #[inline]
    fn is_present(&self) -> bool {
        !self.gone.load(Ordering::Acquire)
    }

    fn suspect(&self, faulted: bool) {
        // The vendor 0xFFFF does not exist: it is what an empty slot reads as.
        let mut vendor = [0; 2];
        if faulted || self.read(CONFIG_REGION, 0, &mut vendor).is_err() || vendor == [0xFF; 2] {
            self.release(Some("its registers are not there any more"));
        }
    }
}

impl PciDevice for VfioDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn identity(&self) -> PciIdentity {
        self.identity
    }

    fn open_bar(&self, index: u8) -> Result<Box<dyn Bar>, DeviceError> {
        let name = &self.shared.name;
        let none = || DeviceError::Unsupported(format!("{name} has no memory BAR {index}"));
        if index > 5 {
            return Err(none());
        }
        self.shared.with(|kept| {
            let info = region_info(&kept.device, u32::from(index)).map_err(|_| none())?;
            if info.length == 0 {
                return Err(none());
            }
            let mut windows = Vec::new();
            let mut known = self.shared.windows.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|window| window.strong_count() > 0);
            for (start, length) in pages_of(&info.areas, info.length, true) {
                let offset = info.offset.saturating_add(start);
                match Mapping::new(kept.device.as_fd(), offset, length) {
                    Ok(mapping) => {
                        let mapping = Arc::new(mapping);
                        known.push(Arc::downgrade(&mapping));
                        windows.push(Window { start, mapping });
                    }
                    Err(text) => {
                        tracing::warn!(target: "reactor", device = %name, "BAR {index} is reached slowly: {text}");
                    }
                }
            }
            let (length, slow) = (info.length, self.shared.clone());
            Ok(Box::new(RegionBar { region: u32::from(index), length, windows, slow }) as Box<dyn Bar>)
        })
    }

    fn read_config(&self, offset: u16, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.shared.read(CONFIG_REGION, u64::from(offset), bytes)
    }

    fn set_bus_master(&self, enabled: bool) -> Result<(), DeviceError> {
        let bit = config::BUS_MASTER;
        if enabled { self.shared.change_command(bit, 0) } else { self.shared.change_command(0, bit) }
    }

    fn map_dma(&self, region: &DmaRegion<'_>) -> Result<u64, DeviceError> {
        self.shared.with(|kept| {
            let iova = kept.space.map(region)?;
            self.shared.mapped.lock().unwrap_or_else(PoisonError::into_inner).push(iova);
            Ok(iova)
        })
    }

    fn unmap_dma(&self, address: u64) -> Result<(), DeviceError> {
        if !self.is_present() {
            // All of it was taken back before.
            return Ok(());
        }
        self.shared.with(|kept| {
            let mut mapped = self.shared.mapped.lock().unwrap_or_else(PoisonError::into_inner);
            let at = mapped.iter().position(|&iova| iova == address).ok_or_else(|| {
                DeviceError::Refused(format!("nothing is mapped for {} at {address:#x}", self.shared.name))
            })?;
            kept.space.unmap(address)?;
            mapped.swap_remove(at);
            Ok(())
        })
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<Vec<OwnedFd>, DeviceError> {
        if vectors > self.vectors_max {
            let (name, max) = (&self.shared.name, self.vectors_max);
            return Err(DeviceError::Unsupported(format!("{name} has {max} MSI-X vectors, not {vectors}")));
        }
        let mut on = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.with(|kept| {
            let refused = |error: std::io::Error| explain("interrupts", &error);
            if *on > 0 {
                set_interrupts(&kept.device, MSIX_INDEX, IRQS_OFF, &[]).map_err(refused)?;
                *on = 0;
            }
            let events = (0..vectors).map(|_| eventfd()).collect::<Result<Vec<OwnedFd>, DeviceError>>()?;
            if vectors > 0 {
                let raw: Vec<RawFd> = events.iter().map(AsRawFd::as_raw_fd).collect();
                set_interrupts(&kept.device, MSIX_INDEX, IRQS_EVENTS, &raw).map_err(refused)?;
                *on = vectors;
            }
            Ok(events)
        })
    }

    fn reset(&self) -> Result<(), DeviceError> {
        if !self.resettable {
            return Err(DeviceError::Unsupported(format!("{} cannot be reset by itself", self.shared.name)));
        }
        self.shared.with(|kept| {
            let reset = sys::command(kept.device.as_fd(), Command::Reset, 0);
            reset.map(drop).map_err(|error| explain("reset", &error))
        })
    }

    fn is_present(&self) -> bool {
        self.shared.is_present()
    }

    fn removal_descriptor(&self) -> Option<RawFd> {
        Some(self.shared.removal.as_raw_fd())
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        self.shared.release(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_not_there_is_refused_with_a_remedy() {
        let error = VfioDevice::open("fffe:ff:1f.7".parse().unwrap()).err().unwrap();
        assert!(error.to_string().contains("scripts/bind status"), "{error}");
    }

    #[test]
    fn a_function_with_a_driver_of_the_kernel_is_refused() {
        let bus = PciBus::default();
        let driven = bus.addresses().into_iter().filter_map(|address| bus.function(address).ok());
        for function in driven.filter(|function| function.driver.as_deref() != Some("vfio-pci")) {
            let error = VfioDevice::open(function.address).err().unwrap().to_string();
            assert!(error.contains("scripts/bind bind"), "{error}");
        }
    }
}
