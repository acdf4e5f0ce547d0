use std::sync::Arc;

use base::{CoreId, DataBuf};
use bdev::BlockDevice;
use wire::scsi::{Cdb, Lun, TaskAttribute};

use crate::{ExchangeId, LogicalUnitId, NexusId, NexusToken, RequestToken, TargetDeviceId, TaskId, TaskTag};

/// What a target port tells the engine: SAM-5's transport protocol services, and the births and deaths of nexuses.
#[derive(Debug)]
pub enum PortEvent {
    /// A session wants its I_T nexus. The engine first ends any nexus with the same identity, on whichever core,
    /// and waits until none of its tasks can touch the medium or the wire (RFC 7143 §6.3.5: reinstatement). It
    /// answers `Effect::NexusEstablished` or `Effect::NexusRefused`.
    NexusRequested {
        /// The port's name for the session.
        token: NexusToken,
        /// Who with whom.
        identity: NexusIdentity,
    },
    /// The session is gone (SAM-5 I_T nexus loss): every task is aborted without an answer; then
    /// `Effect::NexusClosed`. The port keeps the session's exchanges until they are terminated. Also takes back a
    /// request that was not answered yet.
    NexusLost {
        /// The port's name for the session.
        token: NexusToken,
    },
    /// SCSI Command Received.
    CommandReceived(CommandReceived),
    /// Data-Out Received: the burst that `Effect::ReceiveDataOut` asked for is complete. `data` has its length and
    /// content, but need not be the buffer that was lent.
    DataOutReceived {
        /// The task.
        task: TaskId,
        /// Offset of the burst in the command's data.
        offset: u32,
        /// The data.
        data: DataBuf,
    },
    /// The burst cannot be received (a data digest error, say): the command ends with ABORTED COMMAND and this code.
    DataOutFailed {
        /// The task.
        task: TaskId,
        /// Offset of the burst in the command's data.
        offset: u32,
        /// Additional sense code.
        asc: u8,
        /// Additional sense code qualifier.
        ascq: u8,
    },
    /// The transport has taken the Data-In burst at `offset`; its buffer is free again. Not sent for the burst that
    /// carried status: `Delivered` says that.
    DataInDelivered {
        /// The task.
        task: TaskId,
        /// Offset of the burst in the command's data.
        offset: u32,
    },
    /// Status was handed to the transport completely; the exchange is forgotten. The last word on a task.
    Delivered {
        /// The task.
        task: TaskId,
    },
    /// Answer to `Effect::TerminateDataTransfer`: no byte of this task will be sent or received any more; lent
    /// buffers are home; the exchange is forgotten. The last word on a task.
    DataTransferTerminated {
        /// The task.
        task: TaskId,
    },
    /// Task Management Request Received.
    TaskManagementRequested(TaskManagementRequest),
}

/// SCSI Command Received (SAM-5 §5.4.2.3).
#[derive(Debug)]
pub struct CommandReceived {
    /// The nexus.
    pub nexus: NexusId,
    /// The port's name for the exchange.
    pub exchange: ExchangeId,
    /// The logical unit addressed.
    pub lun: Lun,
    /// The initiator's tag.
    pub tag: TaskTag,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// The command.
    pub cdb: Cdb,
    /// Bytes the initiator will take, when the transport says so. `Some(0)` means no Data-In at all.
    pub expected_data_in: Option<u32>,
    /// Bytes the initiator will give, when the transport says so. `Some(0)` means no Data-Out at all.
    pub expected_data_out: Option<u32>,
    /// Data-Out from offset 0 that came with the command (immediate data).
    pub data_out: Option<DataBuf>,
    /// The port had no memory for the command's data and throws it away: answer TASK SET FULL.
    pub starved: bool,
}

/// Task management functions (SAM-5 §7, RFC 7143 §11.5.1, RFC 7144 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TaskManagementFunction {
    AbortTask,
    AbortTaskSet,
    ClearAca,
    ClearTaskSet,
    LogicalUnitReset,
    TargetWarmReset,
    TargetColdReset,
    QueryTask,
    QueryTaskSet,
    ITNexusReset,
    QueryAsynchronousEvent,
}

/// Task Management Request Received.
#[derive(Debug, Clone, Copy)]
pub struct TaskManagementRequest {
    /// The nexus.
    pub nexus: NexusId,
    /// The port's name for the request; answered once by `Effect::TaskManagementFunctionExecuted`.
    pub request: RequestToken,
    /// What to do.
    pub function: TaskManagementFunction,
    /// The logical unit addressed; ignored by target resets.
    pub lun: Lun,
    /// The task addressed by ABORT TASK and QUERY TASK.
    pub tag: Option<TaskTag>,
}

/// Service response of a task management function (SAM-5 §7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskManagementResponse {
    /// FUNCTION COMPLETE.
    Complete,
    /// FUNCTION SUCCEEDED (QUERY functions: yes).
    Succeeded,
    /// FUNCTION REJECTED, or not supported.
    Rejected,
    /// INCORRECT LOGICAL UNIT NUMBER.
    IncorrectLun,
    /// The task named does not exist (iSCSI "task does not exist"; for SAM, FUNCTION COMPLETE).
    TaskDoesNotExist,
    /// The deadline passed; the logical unit is fenced. Never a lie: the covered tasks may still be in the device.
    Failed,
}

/// Who with whom: the I_T nexus (SAM-5 §4.8). Two sessions with equal identities are the same nexus.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NexusIdentity {
    /// SCSI initiator port name: for iSCSI `"iqn…,i,0x<ISID>"` (RFC 7143 §4.4.1).
    pub initiator_port: Arc<str>,
    /// The initiator device's name: the part before `",i,"`.
    pub initiator: Arc<str>,
    /// SCSI target port name: for iSCSI `"iqn…,t,0x<TPGT>"`.
    pub target_port: Arc<str>,
    /// The target device.
    pub target: TargetDeviceId,
    /// Relative target port identifier, 1 and up (SPC-5 §7.8.6.6).
    pub relative_target_port: u16,
    /// Every target nexus is unique by identity; a discovery session has none and makes no request.
    pub protocol: u8,
}

/// One LUN of a target device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LunMapping {
    /// The number initiators use.
    pub lun: Lun,
    /// The unit behind it.
    pub unit: LogicalUnitId,
    /// Writes through this mapping are refused with WRITE PROTECTED.
    pub read_only: bool,
}

/// The LUNs of a target device, sorted by LUN.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LunMap {
    /// Sorted by `lun`, no LUN twice.
    pub mappings: Vec<LunMapping>,
}

/// What INQUIRY and the VPD pages say a unit is. Stable across restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitIdentity {
    /// T10 vendor identification, at most 8 characters.
    pub vendor: String,
    /// Product identification, at most 16 characters.
    pub product: String,
    /// Product revision, at most 4 characters.
    pub revision: String,
    /// Unit serial number.
    pub serial: String,
    /// NAA locally assigned or registered extended designator, 16 bytes beginning with 0x6 or 0x3.
    pub naa: [u8; 16],
    /// UUID of the backing device.
    pub uuid: [u8; 16],
}

/// What the control plane asks of the engine. Sent to the core named with each variant; answered by
/// `Effect::ControlDone` when every core has done its part.
pub enum ControlRequest {
    /// A new logical unit, to its home core. Every core opens a channel to `device` before the answer.
    AddLogicalUnit {
        /// The unit.
        unit: LogicalUnitId,
        /// Its home core: the core this request is sent to.
        home: CoreId,
        /// What stores its blocks.
        device: Arc<dyn BlockDevice>,
        /// What it says it is.
        identity: UnitIdentity,
    },
    /// Ends a unit, to its home core: aborts its tasks, closes every channel, then answers. LUN maps that still
    /// name it make LUNs that are not there.
    RemoveLogicalUnit {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// The device's geometry changed, to the home core: CAPACITY DATA HAS CHANGED to every nexus.
    CapacityChanged {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// The device went away, or came back, to the home core. While it is away every command that needs a medium ends
    /// with MEDIUM NOT PRESENT; when it is back its geometry is asked anew, and every nexus is told NOT READY TO READY
    /// CHANGE, MEDIUM MAY HAVE CHANGED. Nobody waits for the tasks of a device that is away.
    MediumChanged {
        /// The unit.
        unit: LogicalUnitId,
        /// It is there.
        present: bool,
    },
    /// Sets the LUNs of a target device on every core, sent to core 0: aborts tasks of LUNs that go, and tells
    /// every nexus REPORTED LUNS DATA HAS CHANGED when the map differs. Creates the target device when it is new.
    SetLunMap {
        /// The target device.
        target: TargetDeviceId,
        /// Its LUNs.
        map: Arc<LunMap>,
    },
    /// Ends a target device, sent to core 0: drops every nexus with it first.
    RemoveTarget {
        /// The target device.
        target: TargetDeviceId,
    },
    /// Drains everything on this core before the process ends.
    Quiesce,
}

/// The answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlOutcome {
    /// Done on every core.
    Done,
    /// Refused or failed; the text says what and why.
    Failed(String),
}
