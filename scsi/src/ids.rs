use base::Key;

/// A logical unit of this node, whatever LUNs it is mapped at. Dense from 0; assigned by the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogicalUnitId(pub u32);

/// A SCSI target device (an iSCSI target node). Assigned by the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetDeviceId(pub u32);

/// An I_T nexus on this core, named by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexusId(pub Key);

/// A task on this core, named by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub Key);

/// The port's own name for the exchange that carries a task; comes back in every effect about the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// The port's own name for a session; comes back in every effect about the nexus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexusToken(pub u64);

/// The port's own name for a task management request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestToken(pub u64);

/// The initiator's tag of a command, unique within its nexus (SAM-5 command identifier; the iSCSI Initiator Task Tag).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskTag(pub u64);

/// The control plane's name for one of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControlId(pub u64);
