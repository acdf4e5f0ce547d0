//! What a machine uses a PCI function for.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::pci::{hexadecimal, line, link_name, names_in};

/// One use of a function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// A file system on one of its block devices, or on a volume above it, is mounted.
    Mounted {
        /// The block device.
        device: String,
        /// Where.
        at: String,
    },
    /// The machine swaps to it.
    Swap {
        /// The block device.
        device: String,
    },
    /// An array or volume is built on it.
    Holder {
        /// The block device.
        device: String,
        /// The device above: `md0`, `dm-3 (vg-root)`.
        holder: String,
    },
    /// A network interface that is up.
    Interface {
        /// Its name.
        name: String,
        /// What leaves the machine by default goes through it.
        default_route: bool,
        /// The bond or bridge it is part of.
        master: Option<String>,
    },
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Usage::Mounted { device, at } => write!(f, "{device} is mounted at {at}"),
            Usage::Swap { device } => write!(f, "{device} is swap space"),
            Usage::Holder { device, holder } => write!(f, "{device} is part of {holder}"),
            Usage::Interface { name, default_route, master } => {
                write!(f, "{name} is up")?;
                if *default_route {
                    f.write_str(" and carries the default route")?;
                }
                match master {
                    Some(master) => write!(f, " and is part of {master}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// All uses of the function whose folder in sysfs is `folder`.
pub(super) fn usages(root: &Path, folder: &Path) -> Vec<Usage> {
    let mut found = BTreeSet::new();
    let blocks = blocks_of(root, folder);
    if !blocks.is_empty() {
        block_usages(root, blocks, &mut found);
    }
    interface_usages(root, folder, &mut found);
    found.into_iter().collect()
}

/// The block devices of a function with their partitions, by name.
fn blocks_of(root: &Path, folder: &Path) -> Vec<String> {
    let Ok(function) = folder.canonicalize() else { return Vec::new() };
    let class = root.join("sys/class/block");
    let belongs = |name: &String| {
        let Ok(place) = class.join(name).canonicalize() else { return false };
        place.starts_with(&function) || place.ancestors().any(|above| is_path_of(above, &function))
    };
    names_in(&class).into_iter().filter(belongs).collect()
}

/// With NVMe multipath the disk stands below its subsystem, which has links to its controllers.
fn is_path_of(above: &Path, function: &Path) -> bool {
    above.parent().and_then(Path::file_name).is_some_and(|name| name == "nvme-subsystem")
        && names_in(above)
            .iter()
            .filter(|name| name.starts_with("nvme"))
            .any(|name| above.join(name).canonicalize().is_ok_and(|place| place.starts_with(function)))
}

fn block_usages(root: &Path, mut waiting: Vec<String>, found: &mut BTreeSet<Usage>) {
    let class = root.join("sys/class/block");
    let mounts = std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let swaps = std::fs::read_to_string(root.join("proc/swaps")).unwrap_or_default();
    let mut seen = BTreeSet::new();
    while let Some(device) = waiting.pop() {
        if !seen.insert(device.clone()) {
            continue;
        }
        let number = line(&class.join(&device).join("dev")).unwrap_or_default();
        let volume = line(&class.join(&device).join("dm/name"));
        let is_it = |path: &str| {
            path.strip_prefix("/dev/").is_some_and(|name| {
                name == device
                    || name.strip_prefix("mapper/").is_some_and(|name| Some(name) == volume.as_deref())
            })
        };
        for mount in mounts.lines() {
            // Identifier, parent, major:minor, root, mount point, options, ..., "-", type, source.
            let mut fields = mount.split(' ');
            let major_minor = fields.nth(2).unwrap_or("");
            let at = fields.nth(1).unwrap_or("");
            let source = mount.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1)).unwrap_or("");
            if (!number.is_empty() && major_minor == number) || is_it(source) {
                found.insert(Usage::Mounted { device: device.clone(), at: at.to_owned() });
            }
        }
        if swaps.lines().skip(1).any(|swap| swap.split_whitespace().next().is_some_and(is_it)) {
            found.insert(Usage::Swap { device: device.clone() });
        }
        for holder in names_in(&class.join(&device).join("holders")) {
            let name = line(&class.join(&holder).join("dm/name"));
            let shown = name.map_or_else(|| holder.clone(), |name| format!("{holder} ({name})"));
            found.insert(Usage::Holder { device: device.clone(), holder: shown });
            waiting.push(holder);
        }
    }
}

fn interface_usages(root: &Path, folder: &Path, found: &mut BTreeSet<Usage>) {
    const IFF_UP: u32 = 1;
    let mut places = vec![folder.join("net")];
    // virtio devices have a folder of their own between the function and the interface.
    places.extend(
        names_in(folder)
            .iter()
            .filter(|name| name.starts_with("virtio"))
            .map(|name| folder.join(name).join("net")),
    );
    for place in places {
        for name in names_in(&place) {
            let interface = place.join(&name);
            if hexadecimal(&interface.join("flags")).is_some_and(|flags| flags & IFF_UP != 0) {
                let default_route = has_default_route(root, &name);
                let master = link_name(&interface.join("master"));
                found.insert(Usage::Interface { name, default_route, master });
            }
        }
    }
}

fn has_default_route(root: &Path, name: &str) -> bool {
    let routes = std::fs::read_to_string(root.join("proc/net/route")).unwrap_or_default();
    let old = routes.lines().skip(1).any(|route| {
        let fields: Vec<&str> = route.split_whitespace().collect();
        fields.first() == Some(&name)
            && fields.get(1) == Some(&"00000000")
            && fields.get(7) == Some(&"00000000")
    });
    let routes = std::fs::read_to_string(root.join("proc/net/ipv6_route")).unwrap_or_default();
    old || routes.lines().any(|route| {
        let fields: Vec<&str> = route.split_whitespace().collect();
        fields.last() == Some(&name)
            && fields.get(1) == Some(&"00")
            && fields.first().is_some_and(|destination| destination.bytes().all(|b| b == b'0'))
    })
}
