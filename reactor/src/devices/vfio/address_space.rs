//! What a device sees of our memory: a VFIO container, or an address space of an iommufd.

use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::info::{capabilities, double_word, word};
use super::super::iova::IovaSpace;
use super::super::{DeviceError, DmaRegion, PciAddress, PciBus};
use super::sys::{self, Command, Message};

const PAGE: usize = 4096;
/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: u32 = 3;
/// The group can be used: every device of it is in the hands of VFIO or of nobody.
const GROUP_VIABLE: u32 = 1;
/// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`.
const CAPABILITY_IOVA_RANGE: u16 = 1;
/// `VFIO_IOMMU_INFO_CAPS`.
const IOMMU_CAPABILITIES: u32 = 2;
/// What is assumed of a kernel that does not say (before 5.4): what every IOMMU has.
const RANGES_UNKNOWN: (u64, u64) = (0, (1 << 39) - 1);

/// How the kernel keeps it. The order of the fields is the order in which they are closed.
enum Kept {
    Container { group: OwnedFd, container: OwnedFd },
    Iommufd { iommufd: OwnedFd, ioas: u32 },
}

/// The devices of one IOMMU group share it, because the IOMMU cannot tell them apart.
pub(super) struct AddressSpace {
    group: u32,
    kept: Kept,
    addresses: Mutex<IovaSpace>,
}

/// Address spaces of this process, by IOMMU group: a group can be opened once only.
static SPACES: Mutex<Vec<(u32, Weak<AddressSpace>)>> = Mutex::new(Vec::new());

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

fn refused(text: String) -> DeviceError {
    DeviceError::Refused(text)
}

fn errno(error: &Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// Opens a device, with the address space of its group. The iommufd way where the kernel offers it for this device.
pub(super) fn open_device(
    bus: &PciBus,
    address: PciAddress,
    group: u32,
) -> Result<(OwnedFd, Arc<AddressSpace>), DeviceError> {
    let mut spaces = SPACES.lock().unwrap_or_else(PoisonError::into_inner);
    spaces.retain(|(_, space)| space.strong_count() > 0);
    let known = spaces.iter().find(|(number, _)| *number == group).and_then(|(_, space)| space.upgrade());
    let (device, space) = match known {
        Some(space) => (space.open_another(bus, address)?, space),
        None => {
            let (device, space) = match cdev_path(bus, address) {
                // Where the group can be opened as well, that is tried before giving up.
                Some(path) => AddressSpace::by_iommufd(&path, group, address).or_else(|error| {
                    let there = Path::new(&format!("/dev/vfio/{group}")).exists();
                    let other = there.then(|| AddressSpace::by_group(bus, group, address).ok());
                    other.flatten().ok_or(error)
                })?,
                None => AddressSpace::by_group(bus, group, address)?,
            };
            let space = Arc::new(space);
            spaces.push((group, Arc::downgrade(&space)));
            (device, space)
        }
    };
    space.learn_ranges()?;
    Ok((device, space))
}

/// The device's own character device, where there is one and iommufd beside it.
fn cdev_path(bus: &PciBus, address: PciAddress) -> Option<std::path::PathBuf> {
    let names = super::super::pci::names_in(&bus.folder(address).join("vfio-dev"));
    let path = Path::new("/dev/vfio/devices").join(names.first()?);
    (path.exists() && Path::new("/dev/iommu").exists()).then_some(path)
}

impl AddressSpace {
    fn by_group(
        bus: &PciBus,
        number: u32,
        address: PciAddress,
    ) -> Result<(OwnedFd, AddressSpace), DeviceError> {
        let path = format!("/dev/vfio/{number}");
        let container = open(Path::new("/dev/vfio/vfio"))
            .map_err(|error| open_error("/dev/vfio/vfio", error, address))?;
        let group = open(Path::new(&path)).map_err(|error| open_error(&path, error, address))?;
        if sys::command(container.as_fd(), Command::ApiVersion, 0).ok() != Some(0) {
            return Err(refused("this kernel speaks another version of VFIO than 0".to_owned()));
        }
        if sys::command(container.as_fd(), Command::CheckExtension, TYPE1V2).ok() != Some(1) {
            return Err(refused(
                "VFIO has no IOMMU driver of type 1. Remedy: modprobe vfio_iommu_type1".to_owned(),
            ));
        }
        let mut status = [0; 8];
        sys::call(group.as_fd(), Message::GroupStatus, &mut status)
            .map_err(|error| refused(format!("the state of IOMMU group {number} cannot be read: {error}")))?;
        if word(&status, 4).unwrap_or(0) & GROUP_VIABLE == 0 {
            let others: Vec<String> = bus
                .group_hindrances(number)
                .iter()
                .map(|other| {
                    format!("{} ({})", other.address, other.driver.as_deref().unwrap_or("no driver"))
                })
                .collect();
            return Err(refused(format!(
                "IOMMU group {number} of {address} holds functions with other drivers: {}. Remedy: scripts/bind bind \
                 them as well, or move the device to a slot with a group of its own",
                others.join(", ")
            )));
        }
        sys::set_container(group.as_fd(), container.as_fd())
            .map_err(|error| refused(format!("IOMMU group {number} cannot be taken: {error}")))?;
        sys::command(container.as_fd(), Command::SetIommu, TYPE1V2).map_err(|error| {
            let remedy = match errno(&error) {
                Some(Errno::PERM) => {
                    ". Remedy: the IOMMU of this machine cannot isolate interrupts; if that is accepted, set \
                     vfio_iommu_type1's allow_unsafe_interrupts=1"
                }
                _ => "",
            };
            refused(format!("the IOMMU refuses group {number}: {error}{remedy}"))
        })?;
        let device = group_device(&group, address)?;
        Ok((device, AddressSpace::new(number, Kept::Container { group, container })))
    }

    fn by_iommufd(
        path: &Path,
        group: u32,
        address: PciAddress,
    ) -> Result<(OwnedFd, AddressSpace), DeviceError> {
        let iommufd =
            open(Path::new("/dev/iommu")).map_err(|error| open_error("/dev/iommu", error, address))?;
        let mut message = [0; 12];
        sys::call(iommufd.as_fd(), Message::IoasAlloc, &mut message)
            .map_err(|error| refused(format!("iommufd gives no address space: {error}")))?;
        let ioas = word(&message, 8).unwrap_or(0);
        let space = AddressSpace::new(group, Kept::Iommufd { iommufd, ioas });
        let device = space.attach(path, address)?;
        Ok((device, space))
    }

    fn new(group: u32, kept: Kept) -> AddressSpace {
        AddressSpace { group, kept, addresses: Mutex::default() }
    }

    /// Opens another device of the same group.
    fn open_another(&self, bus: &PciBus, address: PciAddress) -> Result<OwnedFd, DeviceError> {
        match &self.kept {
            Kept::Container { group, .. } => group_device(group, address),
            Kept::Iommufd { .. } => {
                let path = cdev_path(bus, address).ok_or(DeviceError::Gone)?;
                self.attach(&path, address)
            }
        }
    }

    /// Opens a device by its own character device, binds it to the iommufd and attaches it to the address space.
    fn attach(&self, path: &Path, address: PciAddress) -> Result<OwnedFd, DeviceError> {
        let Kept::Iommufd { iommufd, ioas } = &self.kept else { return Err(DeviceError::Gone) };
        let shown = path.display().to_string();
        let device = open(path).map_err(|error| open_error(&shown, error, address))?;
        let mut bind = [0; 16];
        bind[8..12].copy_from_slice(&iommufd.as_raw_fd().to_ne_bytes());
        sys::call(device.as_fd(), Message::BindIommufd, &mut bind).map_err(|error| {
            let group = self.group;
            refused(format!(
                "{address} cannot be bound to iommufd: {error}. Remedy: every function of IOMMU group {group} must \
                 be bound to vfio-pci, and none opened by another process"
            ))
        })?;
        let mut attach = [0; 12];
        attach[8..].copy_from_slice(&ioas.to_ne_bytes());
        sys::call(device.as_fd(), Message::AttachIommufd, &mut attach)
            .map_err(|error| refused(format!("{address} cannot be given an address space: {error}")))?;
        Ok(device)
    }

    /// Asks the kernel which addresses the devices may use. Every device that joins may narrow them.
    fn learn_ranges(&self) -> Result<(), DeviceError> {
        let unreadable = |error| refused(format!("the IOMMU's address ranges cannot be read: {error}"));
        let ranges = match &self.kept {
            Kept::Container { container, .. } => {
                let mut info = vec![0; 8192];
                sys::call(container.as_fd(), Message::IommuInfo, &mut info).map_err(unreadable)?;
                container_ranges(&info)
            }
            Kept::Iommufd { iommufd, ioas } => {
                sys::ioas_ranges(iommufd.as_fd(), *ioas).map_err(unreadable)?
            }
        };
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).set_ranges(ranges);
        Ok(())
    }

    /// Lets the devices reach `region`; the address under which they see it.
    pub(super) fn map(&self, region: &DmaRegion<'_>) -> Result<u64, DeviceError> {
        let (address, length) = (region.address(), region.length());
        if length == 0 || !length.is_multiple_of(PAGE) || !address.is_multiple_of(PAGE) {
            return Err(refused(format!("{length} bytes at {address:#x} are not whole pages")));
        }
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let iova = addresses.take(address as u64, length as u64).ok_or_else(|| {
            refused(format!("the IOMMU has no {length} bytes of addresses left that a device may use"))
        })?;
        let mapped = match &self.kept {
            Kept::Container { container, .. } => sys::map_dma(container.as_fd(), region, iova),
            Kept::Iommufd { iommufd, ioas } => sys::map_ioas(iommufd.as_fd(), *ioas, region, iova),
        };
        if let Err(error) = mapped {
            addresses.give_back(iova);
            return Err(refused(map_error(&error, length, iova)));
        }
        Ok(iova)
    }

    /// Takes back what `map` gave at `iova`.
    pub(super) fn unmap(&self, iova: u64) -> Result<(), DeviceError> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let length = addresses
            .length_of(iova)
            .ok_or_else(|| refused(format!("nothing is mapped for the device at {iova:#x}")))?;
        // The container: argsz, flags, iova, size. The iommufd: size, IOAS, iova, length.
        let mut message = [0; 24];
        message[8..16].copy_from_slice(&iova.to_ne_bytes());
        message[16..].copy_from_slice(&length.to_ne_bytes());
        let unmapped = match &self.kept {
            Kept::Container { container, .. } => {
                sys::call(container.as_fd(), Message::UnmapDma, &mut message)
            }
            Kept::Iommufd { iommufd, ioas } => {
                message[4..8].copy_from_slice(&ioas.to_ne_bytes());
                sys::call(iommufd.as_fd(), Message::IoasUnmap, &mut message)
            }
        };
        unmapped.map_err(|error| refused(format!("{iova:#x} cannot be unmapped: {error}")))?;
        // The kernel says how much it has unmapped. Anything else than all of it means the device still sees the rest:
        // the range stays taken.
        if double_word(&message, 16) != Some(length) {
            return Err(refused(format!(
                "the kernel has unmapped less than the {length} bytes at {iova:#x}"
            )));
        }
        addresses.give_back(iova);
        Ok(())
    }
}

fn group_device(group: &OwnedFd, address: PciAddress) -> Result<OwnedFd, DeviceError> {
    sys::device_of(group.as_fd(), &address.to_string()).map_err(|error| match errno(&error) {
        Some(Errno::NODEV) => DeviceError::Gone,
        _ => refused(format!(
            "{address} cannot be opened by VFIO: {error}. Remedy: bind it with \"scripts/bind bind {address}\""
        )),
    })
}

/// The ranges in `struct vfio_iommu_type1_info`.
fn container_ranges(info: &[u8]) -> Vec<(u64, u64)> {
    if word(info, 4).unwrap_or(0) & IOMMU_CAPABILITIES != 0 {
        let first = word(info, 16).unwrap_or(0) as usize;
        let found = capabilities(info, first).find(|(id, _)| *id == CAPABILITY_IOVA_RANGE);
        if let Some((_, list)) = found {
            let count = word(list, 0).unwrap_or(0) as usize;
            return (0..count)
                .map_while(|range| {
                    let at = 8 + 16 * range;
                    Some((double_word(list, at)?, double_word(list, at + 8)?))
                })
                .collect();
        }
    }
    vec![RANGES_UNKNOWN]
}

fn open_error(path: &str, error: Errno, address: PciAddress) -> DeviceError {
    let remedy = match error {
        Errno::NOENT => "modprobe vfio-pci, then bind the device with scripts/bind".to_owned(),
        Errno::ACCESS | Errno::PERM => {
            format!("run as root, or give the file to the daemon's user (chown USER {path})")
        }
        Errno::BUSY => "another process drives a device of this IOMMU group; end it first".to_owned(),
        _ => "see the kernel's log (dmesg)".to_owned(),
    };
    refused(format!("{address}: {path} cannot be opened: {error}. Remedy: {remedy}"))
}

/// Why memory could not be mapped for a device, with what helps.
fn map_error(error: &Error, length: usize, iova: u64) -> String {
    let mib = length.div_ceil(1 << 20);
    let what = format!("{mib} MiB cannot be mapped for the device at {iova:#x}: {error}");
    match errno(error) {
        Some(Errno::NOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
            format!(
                "{what}. The pages are locked for the device, and the limit of locked memory (RLIMIT_MEMLOCK) is \
                 {limit}. Remedy: ulimit -l unlimited, LimitMEMLOCK=infinity in the systemd unit, or run as root"
            )
        }
        Some(Errno::NOSPC) => format!(
            "{what}. VFIO allows so many mappings for a container only. Remedy: raise the limit, modprobe \
             vfio_iommu_type1 dma_entry_limit=N (65535 unless set), or use hugepages and fewer pools"
        ),
        Some(Errno::EXIST) => {
            format!("{what}. A mapping stands there already, which this process did not make")
        }
        Some(Errno::FAULT) => format!("{what}. The memory is not there, or cannot be pinned"),
        _ => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_from_the_chain() {
        let mut info = Vec::new();
        for word in [8192u32, 3] {
            info.extend(word.to_ne_bytes());
        }
        info.extend(0x4020_1000u64.to_ne_bytes());
        info.extend(24u32.to_ne_bytes());
        info.extend([0; 4]);
        // Another capability, then the ranges.
        info.extend([3, 0, 1, 0, 40, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0]);
        info.extend([1, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let ranges = [(0u64, 0xFEDF_FFFFu64), (0xFEF0_0000, (1 << 48) - 1)];
        for (first, last) in ranges {
            info.extend(first.to_ne_bytes());
            info.extend(last.to_ne_bytes());
        }
        assert_eq!(container_ranges(&info), ranges);
        info.truncate(info.len() - 4);
        assert_eq!(container_ranges(&info), ranges[..1]);
        info[4] = 1;
        assert_eq!(container_ranges(&info), [RANGES_UNKNOWN]);
    }

    #[test]
    fn errors_name_the_limit_and_the_remedy() {
        let text = map_error(&Error::from(Errno::NOMEM), 8 << 20, 0x1000);
        assert!(
            text.contains("8 MiB") && text.contains("RLIMIT_MEMLOCK") && text.contains("ulimit -l"),
            "{text}"
        );
        let text = map_error(&Error::from(Errno::NOSPC), 4096, 0x1000);
        assert!(text.contains("dma_entry_limit"), "{text}");
        let address: PciAddress = "01:00.0".parse().unwrap();
        let DeviceError::Refused(text) = open_error("/dev/vfio/12", Errno::BUSY, address) else { panic!() };
        assert!(text.contains("/dev/vfio/12") && text.contains("another process"), "{text}");
    }
}
