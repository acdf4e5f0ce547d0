//! The desired state of the node, as plain data. A change edits a copy; when every core has followed, the copy
//! becomes the state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use base::CoreId;
use fabrics::iscsi;
use scsi::{LogicalUnitId, LunMap, LunMapping, TargetDeviceId};
use wire::scsi::Lun;

use super::link::{Device, Recipe};
use super::nvme::{NvmeController, NvmeOptions};

/// A block device.
#[derive(Clone)]
pub struct Bdev {
    /// Its name.
    pub name: String,
    /// Grows with every creation: bases come before what stands on them.
    pub order: u64,
    /// How it was made.
    pub recipe: Recipe,
    /// Its UUID.
    pub uuid: uuid::Uuid,
    /// The UUID was given or made up at random, so that a saved configuration must carry it.
    pub uuid_saved: bool,
    /// The device.
    pub device: Device,
    /// The logical unit, while some target maps it.
    pub unit: Option<(LogicalUnitId, CoreId)>,
}

/// A portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portal {
    /// Host as it was written.
    pub host: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What discovery tells instead of `address`, with its host as it was written.
    pub advertised: Option<(String, SocketAddr)>,
}

/// A portal group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalGroup {
    /// Its portals.
    pub portals: Vec<Portal>,
    /// Discovery only.
    pub private: bool,
    /// It listens.
    pub started: bool,
}

/// An initiator group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitiatorGroup {
    /// Patterns of names.
    pub initiators: Vec<String>,
    /// Netmasks.
    pub netmasks: Vec<String>,
}

/// A target node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The engine's name for it.
    pub id: TargetDeviceId,
    /// iSCSI name.
    pub name: Arc<str>,
    /// Alias.
    pub alias: Option<String>,
    /// Names of bdevs by LUN.
    pub luns: BTreeMap<u16, String>,
    /// Who reaches it where.
    pub maps: Vec<iscsi::PortalGroupMap>,
    /// Authentication.
    pub auth: iscsi::AuthPolicy,
    /// Header digest required.
    pub header_digest: bool,
    /// Data digest required.
    pub data_digest: bool,
    /// Commands of one session; 0 is the option's.
    pub queue_depth: u32,
}

/// Options of `iscsi_set_options` that the port does not need, kept to be shown again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// What a target name without a type begins with.
    pub node_base: String,
    /// Sessions on the node.
    pub max_sessions: u32,
}

impl Default for NodeOptions {
    fn default() -> NodeOptions {
        NodeOptions { node_base: "iqn.2026-01.io.pollux".to_owned(), max_sessions: 1024 }
    }
}

/// The whole desired state. Cheap to clone: devices and targets are shared.
#[derive(Clone, Default)]
pub struct Node {
    /// Devices by name.
    pub bdevs: BTreeMap<String, Arc<Bdev>>,
    /// NVMe controllers by name.
    pub controllers: BTreeMap<String, Arc<NvmeController>>,
    /// How the next NVMe controller is driven.
    pub nvme_options: NvmeOptions,
    /// The next device's `order`.
    pub order_next: u64,
    /// Options of the port.
    pub options: iscsi::Options,
    /// Options of the node.
    pub node_options: NodeOptions,
    /// Portal groups by tag.
    pub portal_groups: BTreeMap<u16, PortalGroup>,
    /// Initiator groups by tag.
    pub initiator_groups: BTreeMap<u32, InitiatorGroup>,
    /// Secrets by tag.
    pub auth_groups: BTreeMap<u32, Vec<iscsi::AuthSecret>>,
    /// Targets by name.
    pub targets: BTreeMap<Arc<str>, Arc<Target>>,
    /// Authentication of discovery sessions.
    pub discovery_auth: iscsi::AuthPolicy,
    /// The start-up configuration is loaded.
    pub ready: bool,
}

impl Node {
    /// Devices standing on `name`.
    pub fn above<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Bdev>> {
        self.bdevs.values().filter(move |bdev| bdev.recipe.base() == Some(name))
    }

    /// Takes `name` and everything that stands on it out of the node and of every target.
    pub fn remove_bdev(&mut self, name: &str) {
        let mut gone = vec![name.to_owned()];
        let mut at = 0;
        while let Some(name) = gone.get(at).cloned() {
            gone.extend(self.above(&name).map(|bdev| bdev.name.clone()));
            at += 1;
        }
        for name in &gone {
            self.bdevs.remove(name);
        }
        for target in self.targets.values_mut() {
            if target.luns.values().any(|bdev| gone.contains(bdev)) {
                Arc::make_mut(target).luns.retain(|_, bdev| !gone.contains(bdev));
            }
        }
    }

    /// Gives a unit to every device that became mapped, and takes it from those that are not any more.
    /// Homes go round the cores. `None` when there are no more unit numbers below `units_max`.
    pub fn assign_units(&mut self, cores: u16, units_max: u32) -> Option<()> {
        let mapped: BTreeSet<&str> =
            self.targets.values().flat_map(|target| target.luns.values().map(String::as_str)).collect();
        let mut used: BTreeSet<u32> = BTreeSet::new();
        let mut wanting = Vec::new();
        for bdev in self.bdevs.values() {
            match (bdev.unit, mapped.contains(bdev.name.as_str())) {
                (Some((unit, _)), true) => {
                    used.insert(unit.0);
                }
                (None, true) | (Some(_), false) => {
                    wanting.push((bdev.order, bdev.name.clone(), bdev.unit.is_none()))
                }
                (None, false) => {}
            }
        }
        wanting.sort();
        let mut free = (0..units_max).filter(|number| !used.contains(number));
        let mut changes = Vec::new();
        for (_, name, wants) in wanting {
            let unit = if wants {
                let number = free.next()?;
                Some((LogicalUnitId(number), CoreId((number % u32::from(cores.max(1))) as u16)))
            } else {
                None
            };
            changes.push((name, unit));
        }
        for (name, unit) in changes {
            if let Some(bdev) = self.bdevs.get_mut(&name) {
                Arc::make_mut(bdev).unit = unit;
            }
        }
        Some(())
    }

    /// The LUN map of a target, for the engine.
    #[must_use]
    pub fn lun_map(&self, target: &Target) -> LunMap {
        let mut mappings: Vec<LunMapping> = target
            .luns
            .iter()
            .filter_map(|(lun, name)| {
                let bdev = self.bdevs.get(name)?;
                let read_only = bdev.device.device.geometry().read_only;
                Some(LunMapping { lun: Lun::from_number(*lun), unit: bdev.unit?.0, read_only })
            })
            .collect();
        mappings.sort_by_key(|mapping| mapping.lun);
        LunMap { mappings }
    }

    /// The lowest number no target has.
    #[must_use]
    pub fn free_target_id(&self) -> TargetDeviceId {
        let used: BTreeSet<u32> = self.targets.values().map(|target| target.id.0).collect();
        TargetDeviceId((0..u32::MAX).find(|number| !used.contains(number)).unwrap_or(u32::MAX))
    }

    /// What the iSCSI port gets.
    #[must_use]
    pub fn iscsi_config(&self, generation: u64) -> iscsi::Config {
        iscsi::Config {
            generation,
            options: self.options.clone(),
            portal_groups: self
                .portal_groups
                .iter()
                .filter(|(_, group)| group.started)
                .map(|(tag, group)| iscsi::PortalGroup {
                    tag: *tag,
                    portals: group
                        .portals
                        .iter()
                        .map(|portal| iscsi::Portal {
                            address: portal.address,
                            advertised: portal.advertised.as_ref().map(|(_, address)| *address),
                        })
                        .collect(),
                    private: group.private,
                })
                .collect(),
            initiator_groups: self
                .initiator_groups
                .iter()
                .map(|(tag, group)| iscsi::InitiatorGroup {
                    tag: *tag,
                    initiators: group.initiators.clone(),
                    netmasks: group.netmasks.clone(),
                })
                .collect(),
            auth_groups: self
                .auth_groups
                .iter()
                .map(|(tag, secrets)| iscsi::AuthGroup { tag: *tag, secrets: secrets.clone() })
                .collect(),
            targets: self
                .targets
                .values()
                .map(|target| iscsi::TargetNode {
                    target: target.id,
                    name: target.name.clone(),
                    alias: target.alias.clone(),
                    // A group that does not listen yet lets nobody in.
                    maps: target
                        .maps
                        .iter()
                        .filter(|map| {
                            self.portal_groups.get(&map.portal_group).is_some_and(|group| group.started)
                        })
                        .copied()
                        .collect(),
                    auth: target.auth,
                    header_digest: target.header_digest,
                    data_digest: target.data_digest,
                    queue_depth: target.queue_depth,
                })
                .collect(),
            discovery_auth: self.discovery_auth,
            ready: self.ready,
        }
    }

    /// True when the two would give the iSCSI port different configurations.
    #[must_use]
    pub fn iscsi_differs(&self, other: &Node) -> bool {
        // What the port does not see of a target is its LUNs.
        let seen = |node: &Node| -> Vec<Target> {
            node.targets
                .values()
                .map(|target| Target { luns: BTreeMap::new(), ..Target::clone(target) })
                .collect()
        };
        self.portal_groups != other.portal_groups
            || self.initiator_groups != other.initiator_groups
            || self.auth_groups != other.auth_groups
            || self.discovery_auth != other.discovery_auth
            || self.ready != other.ready
            || format!("{:?}", self.options) != format!("{:?}", other.options)
            || seen(self) != seen(other)
    }
}
