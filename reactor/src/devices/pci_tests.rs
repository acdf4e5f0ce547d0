use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A folder of its own, gone with the value.
struct Tree(PathBuf);

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Tree {
    fn new(name: &str) -> Tree {
        let folder = std::env::temp_dir().join(format!("pollux-pci-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("sys/bus/pci/devices")).unwrap();
        fs::create_dir_all(folder.join("sys/class/block")).unwrap();
        Tree(folder)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.0.join(target), path).unwrap();
    }

    fn function(&self, address: &str, class: &str, driver: &str, group: u32) {
        let folder = format!("sys/devices/pci0000:00/{address}");
        for (name, text) in [
            ("vendor", "0x1b36\n"),
            ("device", "0x0010\n"),
            ("subsystem_vendor", "0x1af4\n"),
            ("subsystem_device", "0x1100\n"),
            ("revision", "0x02\n"),
            ("class", class),
            ("numa_node", "-1\n"),
        ] {
            self.write(&format!("{folder}/{name}"), text);
        }
        fs::create_dir_all(self.0.join(format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        self.link(&format!("{folder}/driver"), &format!("sys/bus/pci/drivers/{driver}"));
        self.link(&format!("{folder}/iommu_group"), &format!("sys/kernel/iommu_groups/{group}"));
        self.link(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), &folder);
        self.link(&format!("sys/bus/pci/devices/{address}"), &folder);
    }

    /// A block device below a folder of sysfs.
    fn block(&self, folder: &str, name: &str, number: &str) {
        self.write(&format!("{folder}/dev"), number);
        fs::create_dir_all(self.0.join(format!("{folder}/holders"))).unwrap();
        self.link(&format!("sys/class/block/{name}"), folder);
    }

    fn bus(&self) -> PciBus {
        PciBus::new(&self.0)
    }
}

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

#[test]
fn addresses_are_read_and_written() {
    for (text, shown) in [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("10000:e1:1f.7", "10000:e1:1f.7"),
        ("abcd:EF:0a.1", "abcd:ef:0a.1"),
    ] {
        assert_eq!(address(text).to_string(), shown);
    }
    for text in [
        "",
        "01:00",
        "0000:01:20.0",
        "0000:01:00.8",
        "g0:00.0",
        "0000:100:00.0",
        "0:0:0:0.0",
        "+1:00.0",
        "01:00.0 ",
        "1:.0",
        "../x:00.0",
    ] {
        let error = text.parse::<PciAddress>().unwrap_err();
        assert!(error.contains("Remedy"), "{text}: {error}");
    }
}

#[test]
fn functions_say_what_they_are() {
    let tree = Tree::new("functions");
    tree.function("0000:00:04.0", "0x010802\n", "nvme", 3);
    tree.function("0000:00:03.0", "0x010802\n", "vfio-pci", 3);
    tree.function("0000:00:02.0", "0x020000\n", "virtio-pci", 9);
    tree.write("sys/devices/pci0000:00/0000:00:04.0/numa_node", "1\n");
    let bus = tree.bus();
    assert_eq!(bus.addresses().len(), 3);
    let found = bus.functions(CLASS_NVME);
    let shown: Vec<String> = found.iter().map(|function| function.address.to_string()).collect();
    assert_eq!(shown, ["0000:00:03.0", "0000:00:04.0"]);
    let function = &found[1];
    assert_eq!(
        (function.driver.as_deref(), function.iommu_group, function.numa_node),
        (Some("nvme"), Some(3), Some(1))
    );
    assert_eq!(found[0].numa_node, None);
    let identity = PciIdentity {
        vendor: 0x1B36,
        device: 0x10,
        subsystem_vendor: 0x1AF4,
        subsystem: 0x1100,
        class: CLASS_NVME,
        revision: 2,
    };
    assert_eq!(function.identity, identity);
    let hindrances = bus.group_hindrances(3);
    assert_eq!(hindrances.len(), 1);
    assert_eq!(hindrances[0].driver.as_deref(), Some("nvme"));
    assert_eq!(bus.function(address("0000:07:00.0")), Err(DeviceError::Gone));
    tree.write("sys/kernel/iommu_groups/9/name", "vfio-noiommu\n");
    assert!(bus.is_group_without_iommu(9) && !bus.is_group_without_iommu(3));
}

#[test]
fn what_uses_a_disk_is_named() {
    let tree = Tree::new("uses");
    tree.function("0000:00:04.0", "0x010802\n", "nvme", 3);
    tree.function("0000:00:05.0", "0x010802\n", "nvme", 4);
    let disk = "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1";
    tree.block(disk, "nvme0n1", "259:0\n");
    for (part, number) in [(1, "259:1\n"), (2, "259:2\n"), (3, "259:3\n")] {
        tree.block(&format!("{disk}/nvme0n1p{part}"), &format!("nvme0n1p{part}"), number);
    }
    tree.block("sys/devices/pci0000:00/0000:00:05.0/nvme/nvme1/nvme1n1", "nvme1n1", "259:9\n");
    tree.block("sys/devices/virtual/block/dm-0", "dm-0", "253:0\n");
    tree.write("sys/devices/virtual/block/dm-0/dm/name", "vg-root\n");
    tree.write(&format!("{disk}/nvme0n1p3/holders/dm-0"), "");
    tree.write(
        "proc/self/mountinfo",
        "21 1 253:0 / / rw shared:1 - ext4 /dev/mapper/vg-root rw\n\
         22 21 259:1 / /boot rw,relatime shared:2 - ext4 /dev/nvme0n1p1 rw\n\
         23 21 0:40 /sub /data rw - btrfs /dev/nvme0n1p1 rw\n\
         24 21 8:1 / /other rw - ext4 /dev/sda1 rw\n",
    );
    tree.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 100 0 -2\n");
    let shown: Vec<String> =
        tree.bus().usages(address("0000:00:04.0")).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "dm-0 is mounted at /",
            "nvme0n1p1 is mounted at /boot",
            "nvme0n1p1 is mounted at /data",
            "nvme0n1p2 is swap space",
            "nvme0n1p3 is part of dm-0 (vg-root)",
        ]
    );
    assert_eq!(tree.bus().usages(address("0000:00:05.0")), []);
}

#[test]
fn a_disk_with_several_paths_belongs_to_each() {
    let tree = Tree::new("multipath");
    tree.function("0000:00:04.0", "0x010802\n", "nvme", 3);
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    tree.block(&format!("{subsystem}/nvme0n1"), "nvme0n1", "259:0\n");
    tree.write("sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/transport", "pcie\n");
    tree.link(&format!("{subsystem}/nvme0"), "sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0");
    tree.write("proc/self/mountinfo", "22 21 259:0 / /data rw - xfs /dev/nvme0n1 rw\n");
    assert_eq!(tree.bus().usages(address("00:04.0")).len(), 1);
}

#[test]
fn what_uses_a_network_interface_is_named() {
    let tree = Tree::new("net");
    tree.function("0000:00:02.0", "0x020000\n", "virtio-pci", 9);
    tree.function("0000:00:03.0", "0x020000\n", "e1000e", 10);
    tree.write("sys/devices/pci0000:00/0000:00:02.0/virtio0/net/eth0/flags", "0x1003\n");
    tree.write("sys/devices/pci0000:00/0000:00:03.0/net/eth1/flags", "0x1002\n");
    tree.write(
        "proc/net/route",
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
         eth0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n",
    );
    let shown: Vec<String> = tree.bus().usages(address("00:02.0")).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["eth0 is up and carries the default route"]);
    assert_eq!(tree.bus().usages(address("00:03.0")), []);
    tree.write("sys/devices/pci0000:00/0000:00:03.0/net/eth1/flags", "0x1003\n");
    tree.link("sys/devices/pci0000:00/0000:00:03.0/net/eth1/master", "sys/devices/virtual/net/bond0");
    let shown: Vec<String> = tree.bus().usages(address("00:03.0")).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["eth1 is up and is part of bond0"]);
}

#[test]
fn functions_that_come_and_go_are_seen() {
    let tree = Tree::new("watch");
    let mut watch = PciWatch::new(tree.bus(), CLASS_NVME);
    assert_eq!(watch.scan(), []);
    tree.function("0000:00:04.0", "0x010802\n", "nvme", 3);
    tree.function("0000:00:02.0", "0x020000\n", "e1000e", 9);
    assert_eq!(watch.scan(), [PciChange::Arrived(address("00:04.0"))]);
    assert_eq!(watch.scan(), []);
    tree.function("0000:00:05.0", "0x010802\n", "nvme", 4);
    fs::remove_file(tree.0.join("sys/bus/pci/devices/0000:00:04.0")).unwrap();
    assert_eq!(watch.scan(), [PciChange::Left(address("00:04.0")), PciChange::Arrived(address("00:05.0"))]);
}
