//! The model under a driver in the same process.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::Instant;
use reactor::{Bar, DeviceError, DmaRegion, PciDevice, PciIdentity};
use rustix::event::{EventfdFlags, eventfd};

use super::model::Model;

/// A [`Model`] as a PCI function. Clones are one device.
///
/// Nothing happens by itself: a doorbell is only noted, and [`ModelDevice::step`] does what is due.
#[derive(Clone)]
pub struct ModelDevice {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    model: Mutex<Model>,
    next_address: Mutex<u64>,
}

/// Device addresses begin here, so that no address of this process passes for one.
const FIRST_ADDRESS: u64 = 0x10_0000_0000;
/// Nothing is mapped between two regions, so that a transfer beyond one is seen.
const GAP: u64 = 0x10_0000;

impl std::fmt::Debug for ModelDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ModelDevice").field(&self.shared.name).finish()
    }
}

impl ModelDevice {
    /// The function, with its memory space enabled as the system leaves it for drivers.
    #[must_use]
    pub fn new(name: &str, mut model: Model) -> ModelDevice {
        model.pci_mut().write(4, &[0x02]);
        let next_address = Mutex::new(FIRST_ADDRESS);
        ModelDevice {
            shared: Arc::new(Shared { name: name.to_owned(), model: Mutex::new(model), next_address }),
        }
    }

    /// The model itself, for the test to look at and to break.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.shared.model()
    }

    /// Lets the device do what is due at `now`.
    pub fn step(&self, now: Instant) {
        self.model().step(now);
    }

    /// When the device does something next; `None` when it waits for its host.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        self.model().next_event()
    }
}

impl Shared {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciDevice for ModelDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn identity(&self) -> PciIdentity {
        let mut model = self.model();
        let mut bytes = [0; 0x30];
        model.pci_mut().read(0, &mut bytes);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        PciIdentity {
            vendor: half(0),
            device: half(2),
            subsystem_vendor: half(0x2C),
            subsystem: half(0x2E),
            class: u32::from_le_bytes([bytes[9], bytes[10], bytes[11], 0]),
            revision: bytes[8],
        }
    }

    fn open_bar(&self, index: u8) -> Result<Box<dyn Bar>, DeviceError> {
        if index != 0 {
            return Err(DeviceError::Unsupported(format!(
                "{} has no BAR {index} to map; take BAR 0",
                self.name()
            )));
        }
        let length = self.model().bar0_length();
        Ok(Box::new(ModelBar { shared: Arc::clone(&self.shared), length }))
    }

    fn read_config(&self, offset: u16, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let mut model = self.model();
        if !model.is_present() {
            return Err(DeviceError::Gone);
        }
        let length = super::config_space::LENGTH as u64;
        if usize::from(offset) + bytes.len() > super::config_space::LENGTH {
            return Err(DeviceError::OutOfBar { offset: u64::from(offset), length });
        }
        model.pci_mut().read(usize::from(offset), bytes);
        Ok(())
    }

    fn set_bus_master(&self, enabled: bool) -> Result<(), DeviceError> {
        let mut model = self.model();
        if !model.is_present() {
            return Err(DeviceError::Gone);
        }
        model.pci_mut().write(4, &[if enabled { 0x06 } else { 0x02 }]);
        Ok(())
    }

    fn map_dma(&self, region: &DmaRegion<'_>) -> Result<u64, DeviceError> {
        let Some(descriptor) = region.descriptor() else {
            return Err(DeviceError::Refused(
                "the model cannot reach private memory; make the pool of shared memory".to_owned(),
            ));
        };
        let file = descriptor
            .try_clone_to_owned()
            .map_err(|e| DeviceError::Refused(format!("the descriptor of a DMA region: {e}")))?;
        let length = region.length() as u64;
        let mut next = self.shared.next_address.lock().unwrap_or_else(PoisonError::into_inner);
        let address = *next;
        *next = (address + length + GAP).next_multiple_of(GAP);
        self.model()
            .memory_mut()
            .map(address, length, Some(File::from(file)), 0)
            .map_err(DeviceError::Refused)?;
        Ok(address)
    }

    fn unmap_dma(&self, address: u64) -> Result<(), DeviceError> {
        if self.model().memory_mut().unmap(address, 0) {
            return Ok(());
        }
        Err(DeviceError::Refused(format!("nothing is mapped at {address:#x}")))
    }

    fn enable_interrupts(&self, vectors: u16) -> Result<Vec<OwnedFd>, DeviceError> {
        let mut model = self.model();
        let mut control = [0; 2];
        model.pci_mut().read(0x52, &mut control);
        let most = (u16::from_le_bytes(control) & 0x7FF) + 1;
        if vectors > most {
            return Err(DeviceError::Unsupported(format!("{vectors} vectors of {most}")));
        }
        for vector in 0..most {
            model.set_vector(vector, None);
        }
        let refused = |e: std::io::Error| DeviceError::Refused(format!("an eventfd: {e}"));
        let mut descriptors = Vec::new();
        for vector in 0..vectors {
            let descriptor =
                eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| refused(e.into()))?;
            let other = descriptor.try_clone().map_err(refused)?;
            model.set_vector(vector, Some(File::from(other)));
            descriptors.push(descriptor);
        }
        model.pci_mut().write(0x53, &[if vectors > 0 { 0x80 } else { 0 }]);
        Ok(descriptors)
    }

    fn reset(&self) -> Result<(), DeviceError> {
        let mut model = self.model();
        if !model.is_present() {
            return Err(DeviceError::Gone);
        }
        model.reset_function();
        Ok(())
    }

    fn is_present(&self) -> bool {
        self.model().is_present()
    }
}

struct ModelBar {
    shared: Arc<Shared>,
    length: u64,
}

impl ModelBar {
    fn check(&self, offset: u64, width: u64) -> Result<(), DeviceError> {
        let inside =
            offset.checked_add(width).is_some_and(|end| end <= self.length) && offset.is_multiple_of(width);
        if inside { Ok(()) } else { Err(DeviceError::OutOfBar { offset, length: self.length }) }
    }
}

impl Bar for ModelBar {
    fn length(&self) -> u64 {
        self.length
    }

    fn read32(&self, offset: u64) -> Result<u32, DeviceError> {
        self.check(offset, 4)?;
        Ok(self.shared.model().read_register(offset, 4) as u32)
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), DeviceError> {
        self.check(offset, 4)?;
        self.shared.model().write_register(offset, 4, u64::from(value));
        Ok(())
    }

    fn read64(&self, offset: u64) -> Result<u64, DeviceError> {
        self.check(offset, 8)?;
        Ok(self.shared.model().read_register(offset, 8))
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), DeviceError> {
        self.check(offset, 8)?;
        self.shared.model().write_register(offset, 8, value);
        Ok(())
    }
}
