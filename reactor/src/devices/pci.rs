//! What stands on the PCI bus, as sysfs tells it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::usage::{Usage, usages};
use super::{DeviceError, PciIdentity};

/// The class code of NVM Express I/O controllers.
pub const CLASS_NVME: u32 = 0x01_0802;

/// Where a function is: domain, bus, device, function. Written `0000:01:00.0`; the domain may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain; 0 on most machines.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<PciAddress, String> {
        let parse = || {
            let hex = |digits: &str, longest: usize| {
                let right =
                    (1..=longest).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
                right.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
            };
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let address = PciAddress {
                domain: hex(domain, 8)?,
                bus: u8::try_from(hex(bus, 2)?).ok()?,
                device: u8::try_from(hex(device, 2)?).ok()?,
                function: u8::try_from(hex(function, 1)?).ok()?,
            };
            (address.device < 32 && address.function < 8).then_some(address)
        };
        parse().ok_or_else(|| {
            format!("{text:?} is not a PCI address. Remedy: write it as \"lspci -D\" does: 0000:01:00.0 or 01:00.0")
        })
    }
}

/// One function of the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub identity: PciIdentity,
    /// The kernel driver it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` when the IOMMU is off.
    pub iommu_group: Option<u32>,
    /// Its NUMA node, when the firmware says so.
    pub numa_node: Option<u32>,
}

/// The PCI bus below a root of the file system: `/`, or a test's.
#[derive(Debug, Clone)]
pub struct PciBus {
    root: PathBuf,
}

impl Default for PciBus {
    fn default() -> PciBus {
        PciBus::new(Path::new("/"))
    }
}

impl PciBus {
    /// The bus that `sys/` below `root` shows.
    #[must_use]
    pub fn new(root: &Path) -> PciBus {
        PciBus { root: root.to_path_buf() }
    }

    /// The folder of a function in sysfs.
    #[must_use]
    pub fn folder(&self, address: PciAddress) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address.to_string())
    }

    /// All addresses on the bus, in order. Empty where there is no PCI.
    #[must_use]
    pub fn addresses(&self) -> Vec<PciAddress> {
        let names = names_in(&self.root.join("sys/bus/pci/devices"));
        let mut found: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
        found.sort_unstable();
        found
    }

    /// What sysfs says of one function.
    ///
    /// # Errors
    /// [`DeviceError::Gone`] when there is none at this address.
    pub fn function(&self, address: PciAddress) -> Result<PciFunction, DeviceError> {
        let folder = self.folder(address);
        let number = |name: &str| hexadecimal(&folder.join(name)).ok_or(DeviceError::Gone);
        let identity = PciIdentity {
            vendor: number("vendor")? as u16,
            device: number("device")? as u16,
            subsystem_vendor: number("subsystem_vendor").unwrap_or(0) as u16,
            subsystem: number("subsystem_device").unwrap_or(0) as u16,
            class: number("class")? & 0xFF_FFFF,
            revision: number("revision").unwrap_or(0) as u8,
        };
        Ok(PciFunction {
            address,
            identity,
            driver: link_name(&folder.join("driver")),
            iommu_group: link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok()),
            // -1: unknown.
            numa_node: line(&folder.join("numa_node")).and_then(|text| text.parse().ok()),
        })
    }

    /// All functions of one class code ([`CLASS_NVME`]), in the order of their addresses.
    #[must_use]
    pub fn functions(&self, class: u32) -> Vec<PciFunction> {
        let found = self.addresses().into_iter().filter_map(|address| self.function(address).ok());
        found.filter(|function| function.identity.class == class).collect()
    }

    /// The functions of an IOMMU group: they can only be taken together.
    #[must_use]
    pub fn group(&self, group: u32) -> Vec<PciFunction> {
        let folder = self.root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
        let mut addresses: Vec<PciAddress> =
            names_in(&folder).iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.into_iter().filter_map(|address| self.function(address).ok()).collect()
    }

    /// True for a group that VFIO made up because there is no IOMMU: its devices can write to all memory.
    #[must_use]
    pub fn is_group_without_iommu(&self, group: u32) -> bool {
        line(&self.root.join(format!("sys/kernel/iommu_groups/{group}/name"))).as_deref()
            == Some("vfio-noiommu")
    }

    /// What hinders the group of a function from being driven from user space: each function with a driver that
    /// reaches memory on its own, by address and driver. Bridges of PCI Express (`pcieport`) do no harm.
    #[must_use]
    pub fn group_hindrances(&self, group: u32) -> Vec<PciFunction> {
        let harmless = |driver: &str| {
            matches!(driver, "vfio-pci" | "pcieport" | "pci-stub") || driver.ends_with("vfio-pci")
        };
        let functions = self.group(group).into_iter();
        functions.filter(|function| function.driver.as_deref().is_some_and(|name| !harmless(name))).collect()
    }

    /// What the machine uses a function for: mounted file systems, swap, arrays and volumes, network interfaces.
    /// While there is any, taking the function away from its driver breaks something.
    #[must_use]
    pub fn usages(&self, address: PciAddress) -> Vec<Usage> {
        usages(&self.root, &self.folder(address))
    }
}

/// A function that came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PciChange {
    /// It is there now.
    Arrived(PciAddress),
    /// It is not there any more.
    Left(PciAddress),
}

/// Sees functions of one class come and go.
#[derive(Debug)]
pub struct PciWatch {
    bus: PciBus,
    class: u32,
    known: BTreeSet<PciAddress>,
}

impl PciWatch {
    /// Watches one class code. Nothing is known yet, so the first scan reports all that is there.
    #[must_use]
    pub fn new(bus: PciBus, class: u32) -> PciWatch {
        PciWatch { bus, class, known: BTreeSet::new() }
    }

    /// Looks at the bus: what has changed since the last scan, departures first. Reads a few files; not for a
    /// reactor's turn.
    pub fn scan(&mut self) -> Vec<PciChange> {
        let now: BTreeSet<PciAddress> =
            self.bus.functions(self.class).into_iter().map(|function| function.address).collect();
        let left = self.known.difference(&now).copied().map(PciChange::Left);
        let arrived = now.difference(&self.known).copied().map(PciChange::Arrived);
        let changes = left.chain(arrived).collect();
        self.known = now;
        changes
    }
}

/// The names in a folder; none when it cannot be read.
pub(super) fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The one line of a small file.
pub(super) fn line(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The name that a link ends in.
pub(super) fn link_name(path: &Path) -> Option<String> {
    Some(std::fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

pub(super) fn hexadecimal(path: &Path) -> Option<u32> {
    let text = line(path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
