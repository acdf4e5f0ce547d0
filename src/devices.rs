//! Makes devices of recipes: the one place that knows every kind of device.

use std::path::Path;
use std::sync::Arc;

use bdev::{
    BlockDevice, BlockError, Carrier, DelayDevice, Fault, FaultDevice, FaultKind, FaultOp, FileDevice,
    FileError, FileOptions, FileProblem, NullDisk, NullOptions, RamDisk, RamError, RamOptions,
};
use reactor::{CLASS_NVME, PciAddress, PciBus, PciDevice, VfioDevice, VfioUserDevice};
use rpc::errno;

use crate::control::link::{
    Device, DeviceControls, DeviceError, DeviceFactory, InjectedError, InjectedIo, Injection, Latencies,
    NvmeTransport, Recipe,
};

/// The factory of the daemon.
pub(crate) struct Devices;

impl DeviceFactory for Devices {
    fn create(&self, recipe: &Recipe, base: Option<Arc<dyn BlockDevice>>) -> Result<Device, DeviceError> {
        let below =
            || base.clone().ok_or_else(|| DeviceError::new(errno::ENODEV, "the bdev below is not there"));
        match recipe {
            Recipe::Malloc { num_blocks, block_size, physical_block_size, .. } => {
                let options = RamOptions {
                    block_size: *block_size,
                    blocks: *num_blocks,
                    physical_block_exponent: exponent(*physical_block_size, *block_size),
                    ..RamOptions::default()
                };
                let disk = RamDisk::new(&options).map_err(|error| {
                    let number = if let RamError::Memory(number) = error { number } else { errno::EINVAL };
                    DeviceError::new(number, format!("{error}. Remedy: choose another size"))
                })?;
                Ok(Device { device: Arc::new(disk), controls: Arc::new(Fixed) })
            }
            Recipe::Null { num_blocks, block_size, physical_block_size } => {
                let options = NullOptions {
                    block_size: *block_size,
                    blocks: *num_blocks,
                    physical_block_exponent: exponent(*physical_block_size, *block_size),
                };
                let disk = NullDisk::new(&options)
                    .ok_or_else(|| DeviceError::new(errno::EINVAL, "a null disk cannot have this shape"))?;
                let disk = Arc::new(disk);
                Ok(Device { device: disk.clone(), controls: disk })
            }
            Recipe::File { filename, block_size, readonly, direct, .. } => {
                let options = FileOptions {
                    block_size: *block_size,
                    direct: *direct,
                    read_only: *readonly,
                    carrier: Carrier::Any,
                    product_name: if *direct { "URING bdev" } else { "AIO disk" },
                    ..FileOptions::new(filename)
                };
                let file = Arc::new(FileDevice::open(&options).map_err(|error| file_error(&error))?);
                Ok(Device { device: file.clone(), controls: file })
            }
            Recipe::Delay { latency, .. } => {
                let device = Arc::new(DelayDevice::new(below()?, latencies(*latency)));
                Ok(Device { device: device.clone(), controls: device })
            }
            Recipe::Error { .. } => {
                let device = Arc::new(FaultDevice::new(below()?, 1));
                Ok(Device { device: device.clone(), controls: device })
            }
            Recipe::Nvme { .. } => {
                Err(DeviceError::new(errno::EINVAL, "a namespace comes with its controller"))
            }
        }
    }

    fn open_pci(&self, transport: NvmeTransport, address: &str) -> Result<Arc<dyn PciDevice>, DeviceError> {
        match transport {
            NvmeTransport::Pcie => {
                let place: PciAddress = address
                    .parse()
                    .map_err(|_| DeviceError::new(errno::EINVAL, format!("{address} is no PCI address")))?;
                if PciBus::default().function(place).is_err() {
                    let text = format!(
                        "{address}: there is no such PCI function. Remedy: \"scripts/bind status\" lists them"
                    );
                    return Err(DeviceError::new(errno::ENODEV, text));
                }
                let device = VfioDevice::open(place).map_err(|error| pci_error(address, &error))?;
                Ok(Arc::new(device))
            }
            NvmeTransport::VfioUser => {
                let given = Path::new(address);
                let socket = if given.is_dir() { given.join("cntrl") } else { given.to_owned() };
                if !socket.exists() {
                    let text = format!(
                        "{}: there is no such socket. Remedy: start the server that makes it",
                        socket.display()
                    );
                    return Err(DeviceError::new(errno::ENODEV, text));
                }
                let device = VfioUserDevice::connect(&socket).map_err(|error| pci_error(address, &error))?;
                Ok(Arc::new(device))
            }
        }
    }

    fn free_controllers(&self) -> Vec<String> {
        let functions = PciBus::default().functions(CLASS_NVME).into_iter();
        let free = functions.filter(|function| function.driver.as_deref() == Some("vfio-pci"));
        free.map(|function| function.address.to_string()).collect()
    }
}

fn pci_error(address: &str, error: &reactor::DeviceError) -> DeviceError {
    // A socket that nobody serves any more is a device that is not there.
    let is_away = match error {
        reactor::DeviceError::Gone => true,
        reactor::DeviceError::Refused(_) => address.starts_with('/'),
        _ => false,
    };
    let number = if is_away { errno::ENODEV } else { errno::EIO };
    let remedy = if *error == reactor::DeviceError::Gone {
        ". Remedy: see that it, or the process that serves it, lives and serves nobody else"
    } else {
        ""
    };
    DeviceError::new(number, format!("{address}: {error}{remedy}"))
}

fn exponent(physical: u32, logical: u32) -> u8 {
    let ratio = physical.checked_div(logical).unwrap_or(1).max(1);
    u8::try_from(ratio.ilog2()).unwrap_or(0)
}

fn latencies(latency: Latencies) -> bdev::Latencies {
    bdev::Latencies {
        average_read: latency.avg_read,
        p99_read: latency.p99_read,
        average_write: latency.avg_write,
        p99_write: latency.p99_write,
    }
}

fn file_error(error: &FileError) -> DeviceError {
    let number = match error.reason {
        FileProblem::System(number) | FileProblem::Uring(number) => number,
        FileProblem::InUse => errno::EBUSY,
        _ => errno::EINVAL,
    };
    DeviceError::new(number, error.to_string())
}

/// A device nothing can be done to.
struct Fixed;

impl DeviceControls for Fixed {}

impl DeviceControls for NullDisk {
    fn resize(&self, blocks: u64) -> Result<(), DeviceError> {
        if NullDisk::resize(self, blocks) {
            Ok(())
        } else {
            Err(DeviceError::new(
                errno::EINVAL,
                format!("{blocks} blocks are no size. Remedy: use 1 or more"),
            ))
        }
    }
}

impl DeviceControls for FileDevice {
    fn rescan(&self) -> Result<(), DeviceError> {
        FileDevice::rescan(self).map(|_| ()).map_err(|error| file_error(&error))
    }
}

impl DeviceControls for DelayDevice {
    fn set_latency(&self, latency: Latencies) -> Result<(), DeviceError> {
        self.change(latencies(latency));
        Ok(())
    }
}

impl DeviceControls for FaultDevice {
    fn inject(&self, injection: Injection) -> Result<(), DeviceError> {
        let op = match injection.io_type {
            None => FaultOp::All,
            Some(InjectedIo::Read) => FaultOp::Read,
            Some(InjectedIo::Write) => FaultOp::Write,
            Some(InjectedIo::Unmap) => FaultOp::Discard,
            Some(InjectedIo::Flush) => FaultOp::Flush,
            Some(InjectedIo::WriteZeroes) => FaultOp::WriteZeroes,
        };
        let kind = match injection.error {
            None => {
                self.clear(op);
                return Ok(());
            }
            Some(InjectedError::Failure) => FaultKind::Failure(BlockError::Medium { lba: None }),
            Some(InjectedError::Pending) => FaultKind::Pending,
            Some(InjectedError::Corrupt { offset, value }) => {
                FaultKind::Corrupt { offset: offset as usize, value }
            }
            Some(InjectedError::NoMemory) => {
                let text =
                    "parameter \"error_type\": nomem is not built into this version. Remedy: use pending";
                return Err(DeviceError::new(errno::EOPNOTSUPP, text));
            }
        };
        let fault = Fault { op, blocks: None, per_million: 1_000_000, count: Some(injection.count), kind };
        if FaultDevice::inject(self, fault) {
            return Ok(());
        }
        let text = "the fault would do nothing (num or corrupt_value is 0), or there are 64 already. Remedy: correct it, or clear first";
        Err(DeviceError::new(errno::EINVAL, text))
    }

    fn resume_pending(&self) -> Result<(), DeviceError> {
        FaultDevice::resume_pending(self);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_become_devices() {
        let malloc = Recipe::Malloc {
            num_blocks: 100,
            block_size: 512,
            physical_block_size: 4096,
            optimal_io_boundary: 0,
        };
        let ram = Devices.create(&malloc, None).unwrap();
        let geometry = ram.device.geometry();
        assert_eq!((geometry.blocks, geometry.block_size, geometry.physical_block_exponent), (100, 512, 3));
        let null = Recipe::Null { num_blocks: 10, block_size: 4096, physical_block_size: 4096 };
        let null = Devices.create(&null, None).unwrap();
        null.controls.resize(20).unwrap();
        assert_eq!(null.device.geometry().blocks, 20);
        assert_eq!(ram.controls.resize(1).unwrap_err().errno, errno::EOPNOTSUPP);
        let faulty = Devices.create(&Recipe::Error { base: "x".into() }, Some(ram.device)).unwrap();
        let failure =
            Injection { io_type: Some(InjectedIo::Read), error: Some(InjectedError::Failure), count: 1 };
        faulty.controls.inject(failure).unwrap();
        assert!(faulty.controls.inject(Injection { count: 0, ..failure }).is_err());
        assert!(Devices.create(&Recipe::Error { base: "x".into() }, None).is_err());
        let file = Recipe::File {
            filename: "/nonexistent/disk".into(),
            block_size: None,
            readonly: false,
            direct: false,
            fallocate: false,
        };
        let Err(error) = Devices.create(&file, None) else { panic!("there is no such file") };
        assert_eq!(error.errno, errno::ENOENT);
        assert!(error.text.contains("/nonexistent/disk"));
    }
}
