//! IOMMU, VFIO, NVMe controllers.

use super::memory::node_of;
use super::{Findings, Look, Status, kernel_line};

const PCI: &str = "/sys/bus/pci/devices";

/// Class, subclass and interface of an NVMe I/O controller, as sysfs writes them.
const NVME_CLASS: &str = "0x010802";

/// One NVMe controller.
struct Nvme {
    address: String,
    driver: Option<String>,
    group: Option<String>,
}

fn controllers(look: &Look<'_>) -> Vec<Nvme> {
    look.tree
        .names(PCI)
        .into_iter()
        .filter(|address| look.tree.text(&format!("{PCI}/{address}/class")).as_deref() == Some(NVME_CLASS))
        .map(|address| Nvme {
            driver: look.tree.link_name(&format!("{PCI}/{address}/driver")),
            group: look.tree.link_name(&format!("{PCI}/{address}/iommu_group")),
            address,
        })
        .collect()
}

/// Controllers that a daemon can attach.
pub(super) fn bound(look: &Look<'_>) -> u64 {
    controllers(look).iter().filter(|nvme| nvme.driver.as_deref() == Some("vfio-pci")).count() as u64
}

pub(super) fn iommu(look: &Look<'_>, out: &mut Findings) {
    let why = "behind an IOMMU a device reaches only the memory it was given; VFIO needs one";
    let units = look.tree.names("/sys/class/iommu");
    let groups = look.tree.names("/sys/kernel/iommu_groups");
    if units.is_empty() || groups.is_empty() {
        let intel = look.tree.text("/proc/cpuinfo").is_some_and(|text| text.contains("GenuineIntel"));
        let fix = if intel {
            format!("turn VT-d on in the firmware, then: {}", kernel_line("intel_iommu=on iommu=pt"))
        } else {
            "turn the IOMMU (AMD-Vi, SMMU) on in the firmware, and reboot".to_owned()
        };
        out.bad(look.lacking(), "", "the kernel drives no IOMMU", why, fix);
    } else {
        out.ok("", format!("{}; {} groups", units.join(", "), groups.len()), why);
    }
    let unsafe_mode = look.tree.text("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    if unsafe_mode.as_deref() == Some("Y") {
        let why = "a device without IOMMU writes wherever a fault of its own or of its driver points it";
        let fix = "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
        out.bad(Status::Warn, "vfio", "VFIO is allowed to work without an IOMMU", why, fix);
    }
    for nvme in controllers(look).iter().filter(|nvme| nvme.driver.as_deref() == Some("vfio-pci")) {
        group(look, nvme, out);
    }
}

/// All devices of a group go together: VFIO opens it only when no kernel driver holds any.
fn group(look: &Look<'_>, nvme: &Nvme, out: &mut Findings) {
    let why = "devices of one group can reach each other past the IOMMU, so VFIO gives out the whole group or nothing";
    let Some(group) = &nvme.group else {
        let fix = "boot with the IOMMU on (above)";
        out.bad(Status::Fail, nvme.address.as_str(), "in no IOMMU group", why, fix);
        return;
    };
    let held: Vec<(String, String)> = look
        .tree
        .names(&format!("/sys/kernel/iommu_groups/{group}/devices"))
        .into_iter()
        .filter(|other| *other != nvme.address)
        .filter_map(|other| {
            let driver = look.tree.link_name(&format!("{PCI}/{other}/driver"))?;
            // Bridges' drivers do no DMA of their own, and VFIO knows these.
            (!matches!(driver.as_str(), "vfio-pci" | "pcieport" | "pci-stub")).then_some((other, driver))
        })
        .collect();
    let Some((first, _)) = held.first() else {
        out.ok(nvme.address.as_str(), format!("group {group}, no kernel driver in it"), why);
        return;
    };
    let list: Vec<String> = held.iter().map(|(other, driver)| format!("{other} ({driver})")).collect();
    let found = format!("group {group} also holds {}", list.join(", "));
    out.bad(
        Status::Fail,
        nvme.address.as_str(),
        found,
        why,
        format!("scripts/bind bind {first}, if nothing uses it; else move the controller to another slot"),
    );
}

pub(super) fn vfio(look: &Look<'_>, out: &mut Findings) {
    let why = "vfio-pci is the driver that hands a PCI device to a process";
    if look.tree.exists("/sys/bus/pci/drivers/vfio-pci") {
        out.ok("", "vfio-pci is loaded", why);
    } else {
        let fix = "modprobe vfio-pci; at every start: echo vfio-pci > /etc/modules-load.d/vfio.conf";
        out.bad(look.lacking(), "", "vfio-pci is not loaded", why, fix);
    }
    let why = "through it a process gives a device its memory";
    let container = "/dev/vfio/vfio";
    if !look.tree.exists(container) {
        out.bad(look.lacking(), container, "is not there", why, "modprobe vfio");
    } else if opens(look, container) {
        out.ok(container, "can be opened", why);
    } else {
        out.bad(
            look.lacking(),
            container,
            "cannot be opened by this user",
            why,
            format!("chmod 0666 {container}"),
        );
    }
    let why = "who may open a group's node drives its devices";
    for nvme in controllers(look).iter().filter(|nvme| nvme.driver.as_deref() == Some("vfio-pci")) {
        let Some(group) = &nvme.group else { continue };
        // Only looked at: opening it would fail while a daemon has it.
        let node = format!("/dev/vfio/{group}");
        if !look.tree.exists(&node) {
            let fix = format!("scripts/bind unbind {0} && scripts/bind bind {0}", nvme.address);
            out.bad(Status::Fail, node, format!("is not there, for {}", nvme.address), why, fix);
        } else if may_write(look, &node) {
            out.ok(node, format!("for {}", nvme.address), why);
        } else {
            let fix = format!("chown \"$(id -un)\" {node}, as root");
            out.bad(look.lacking(), node, "belongs to another user", why, fix);
        }
    }
}

fn opens(look: &Look<'_>, path: &str) -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open(look.tree.path(path)).is_ok()
}

/// By owner and mode, as far as they tell: root may always, and groups are not looked into.
fn may_write(look: &Look<'_>, path: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let user = std::fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid());
    std::fs::metadata(look.tree.path(path))
        .is_ok_and(|node| user == 0 || node.uid() == user || node.mode() & 0o006 == 0o006)
}

pub(super) fn nvme(look: &Look<'_>, out: &mut Findings) {
    let why = "the driver of the daemon and the one of the kernel cannot both hold a controller";
    let all = controllers(look);
    let mut taken = 0;
    let mut free = None;
    for nvme in &all {
        let driver = nvme.driver.as_deref();
        let found = match driver {
            Some("vfio-pci") => {
                taken += 1;
                "held by vfio-pci: the daemon can attach it".to_owned()
            }
            Some("nvme") => match usage(look, &nvme.address) {
                Some(usage) => format!("held by the kernel's driver, and in use: {usage}"),
                None => {
                    free = free.or(Some(&nvme.address));
                    "held by the kernel's driver, not in use".to_owned()
                }
            },
            Some(other) => format!("held by {other}"),
            None => {
                free = free.or(Some(&nvme.address));
                "held by no driver".to_owned()
            }
        };
        out.ok(nvme.address.as_str(), found, why);
        if driver == Some("vfio-pci") {
            numa(look, &nvme.address, out);
        }
    }
    if taken == 0 {
        let found = if all.is_empty() { "there are none" } else { "none is bound to vfio-pci" };
        match (look.options.dedicated, free) {
            (false, _) => out.ok("", found, why),
            (true, Some(address)) => {
                out.bad(Status::Fail, "", found, why, format!("scripts/bind bind {address}"));
            }
            (true, None) => out.add(Status::Fail, "", format!("{found}, and none is free to be"), why, None),
        }
    }
}

/// A controller far from every reactor.
fn numa(look: &Look<'_>, address: &str, out: &mut Findings) {
    // −1: the machine has but one node.
    let Some(node) = look.tree.number(&format!("{PCI}/{address}/numa_node")) else { return };
    let nodes: Vec<u64> = look.options.cpus.iter().map(|cpu| node_of(look, *cpu)).collect();
    if nodes.is_empty() || nodes.contains(&node) {
        return;
    }
    let near = look.tree.text(&format!("{PCI}/{address}/local_cpulist")).unwrap_or_default();
    let why = "every transfer crosses from one socket to the other";
    let found = format!("on NUMA node {node}, where no reactor runs");
    out.bad(Status::Warn, address, found, why, format!("choose reactors among CPUs {near}"));
}

/// What the system does with the disks of a controller of the kernel's driver, if anything.
fn usage(look: &Look<'_>, address: &str) -> Option<String> {
    let mounts = look.tree.text("/proc/mounts").unwrap_or_default();
    let swaps = look.tree.text("/proc/swaps").unwrap_or_default();
    let folder = format!("{PCI}/{address}/nvme");
    for controller in look.tree.names(&folder) {
        let disks = look.tree.names(&format!("{folder}/{controller}"));
        for disk in disks
            .iter()
            .filter(|name| name.starts_with("nvme") && look.tree.exists(&format!("/sys/block/{name}")))
        {
            let base = format!("/sys/block/{disk}");
            let mut parts = look.tree.names(&base);
            parts.retain(|part| part.starts_with(disk.as_str()));
            parts.push(disk.clone());
            for part in parts {
                let node = format!("/dev/{part}");
                let folder = if part == *disk { base.clone() } else { format!("{base}/{part}") };
                if let Some(line) = mounts.lines().find(|line| line.split(' ').next() == Some(node.as_str()))
                {
                    let place = line.split(' ').nth(1).unwrap_or("?");
                    return Some(format!("{node} is mounted on {place}"));
                }
                if swaps.lines().any(|line| line.split_whitespace().next() == Some(node.as_str())) {
                    return Some(format!("{node} is swap space"));
                }
                if let Some(holder) = look.tree.names(&format!("{folder}/holders")).first() {
                    return Some(format!("{node} is part of {holder}"));
                }
            }
        }
    }
    None
}
