use std::sync::Arc;

use base::{CoreId, Limits};
use bdev::Geometry;
use wire::scsi::{Lun, Sense};

use crate::message::DeviceHandle;
use crate::{LogicalUnitId, LunMap, ModePages, NexusIdentity, UnitIdentity};

/// Whether a unit can do medium access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// Ready.
    Ready,
    /// Stopped by START STOP UNIT: NOT READY, INITIALIZING COMMAND REQUIRED.
    Stopped,
    /// Ejected, or the backing device went away: NOT READY, MEDIUM NOT PRESENT.
    MediumNotPresent,
    /// A task management deadline passed: HARDWARE ERROR until added anew.
    Fenced,
}

/// What every core knows of a logical unit. The home core owns the truth; a new view with a higher epoch comes
/// with a thaw.
#[derive(Debug, Clone)]
pub struct UnitView {
    /// Grows with every change.
    pub epoch: u64,
    /// The unit.
    pub unit: LogicalUnitId,
    /// Its home core.
    pub home: CoreId,
    /// The device's shape.
    pub geometry: Geometry,
    /// What it says it is.
    pub identity: Arc<UnitIdentity>,
    /// Current mode page values.
    pub mode: ModePages,
    /// Medium access allowed?
    pub state: UnitState,
    /// Some nexus prevents medium removal.
    pub removal_prevented: bool,
    /// What stores its blocks: asked for its names and its health when an initiator asks for them.
    pub device: DeviceHandle,
}

/// What a command's checks and parameter data may look at.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// The unit addressed; `None` for a LUN that is not mapped and for the REPORT LUNS well-known unit.
    pub unit: Option<&'a UnitView>,
    /// The LUN the command was addressed to.
    pub lun: Lun,
    /// The mapping refuses writes.
    pub mapping_read_only: bool,
    /// Who asks.
    pub nexus: &'a NexusIdentity,
    /// The LUNs this nexus sees.
    pub luns: &'a LunMap,
    /// The bounds of the node.
    pub limits: &'a Limits,
    /// What REQUEST SENSE reports: the unit attention it consumes, if there is one.
    pub pending_sense: Option<Sense>,
}
