use std::sync::Arc;

use base::{CoreId, DataBuf};
use bdev::{BlockDevice, BlockIo, IoTag};
use wire::scsi::{Lun, Sense, Status};

use crate::{
    ControlId, ControlOutcome, ExchangeId, LogicalUnitId, NexusId, NexusToken, RequestToken, TaskId,
    TaskManagementResponse,
};

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandStatus {
    /// SCSI status.
    pub status: Status,
    /// Sense data with CHECK CONDITION.
    pub sense: Option<Sense>,
    /// The D_SENSE bit of the unit's Control mode page: descriptor format (SPC-5 §7.5.10).
    pub descriptor_sense: bool,
    /// Bytes of Data-In the command had to send, whatever the initiator expected. The port makes residuals of it.
    pub data_in_length: u64,
    /// Bytes of Data-Out the command wanted, whatever the initiator expected.
    pub data_out_length: u64,
}

/// Why the engine wants a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// A new session with the same identity takes its place.
    Reinstated,
    /// TARGET COLD RESET, I_T NEXUS RESET.
    Reset,
    /// The target device is being removed.
    Removed,
    /// The peer does not take what is sent and a task management deadline passed.
    Stalled,
}

/// What the engine wants done. Effects are data; the conductor carries them out in order.
pub enum Effect {
    /// Receive Data-Out: fill `data` with the command's bytes from `offset`. For one task, offsets only grow.
    ReceiveDataOut {
        /// The port's exchange.
        exchange: ExchangeId,
        /// The task.
        task: TaskId,
        /// Offset in the command's data.
        offset: u32,
        /// Where to put it; its length is the burst's.
        data: DataBuf,
    },
    /// Send Data-In: for one task, in order of `offset`, without gaps. `status` with the last burst collapses the
    /// response into it; the port then reports `Delivered`.
    SendDataIn {
        /// The port's exchange.
        exchange: ExchangeId,
        /// The task.
        task: TaskId,
        /// Offset in the command's data.
        offset: u32,
        /// The bytes.
        data: DataBuf,
        /// GOOD status to go with the last burst.
        status: Option<CommandStatus>,
    },
    /// Send Command Complete; the port then reports `Delivered`.
    SendCommandComplete {
        /// The port's exchange.
        exchange: ExchangeId,
        /// The task.
        task: TaskId,
        /// The end of the command.
        status: CommandStatus,
    },
    /// Terminate Data Transfer: stop moving bytes of this task, forget the exchange, send no response; answer
    /// `DataTransferTerminated`.
    TerminateDataTransfer {
        /// The port's exchange.
        exchange: ExchangeId,
        /// The task.
        task: TaskId,
    },
    /// Task Management Function Executed.
    TaskManagementFunctionExecuted {
        /// The session.
        token: NexusToken,
        /// The port's name for the request.
        request: RequestToken,
        /// The answer.
        response: TaskManagementResponse,
    },
    /// The nexus that `NexusRequested` asked for exists.
    NexusEstablished {
        /// The session.
        token: NexusToken,
        /// The engine's name for the nexus.
        nexus: NexusId,
    },
    /// The nexus cannot be had: no such target device any more, or the table is full.
    NexusRefused {
        /// The session.
        token: NexusToken,
    },
    /// Every task of a lost nexus is gone; the session may be forgotten.
    NexusClosed {
        /// The session.
        token: NexusToken,
    },
    /// End this session: the port stops reading, and reports `NexusLost`. For iSCSI an Asynchronous Message may go first.
    DropNexus {
        /// The session.
        token: NexusToken,
        /// Why.
        reason: DropReason,
    },
    /// An asynchronous event: sense data for a unit attention just established (RFC 7143 §11.9.1, event 0).
    AsynchronousEvent {
        /// The session.
        token: NexusToken,
        /// The logical unit.
        lun: Lun,
        /// What happened.
        sense: Sense,
    },
    /// Submit `io` on this core's channel to the unit's device. When the queue is full the conductor keeps it and
    /// tries again.
    Submit {
        /// The unit.
        unit: LogicalUnitId,
        /// The request.
        io: BlockIo,
    },
    /// Nobody wants this request any more; the completion is still awaited.
    Cancel {
        /// The unit.
        unit: LogicalUnitId,
        /// The request.
        tag: IoTag,
    },
    /// Open this core's channel to a new unit's device. The conductor answers `Target::handle_channel_opened`.
    OpenChannel {
        /// The unit.
        unit: LogicalUnitId,
        /// Its device.
        device: Arc<dyn BlockDevice>,
    },
    /// Close this core's channel; nothing is outstanding on it.
    CloseChannel {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// A message to another core (or to this one: loop it back).
    Send {
        /// The receiver.
        to: CoreId,
        /// The message.
        message: crate::Message,
    },
    /// The answer to a control request.
    ControlDone {
        /// The control plane's name for the request.
        id: ControlId,
        /// How it ended.
        outcome: ControlOutcome,
    },
    /// Something worth an event in the control plane.
    Notify(Notification),
}

/// Events for the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// A task management deadline passed and the unit answers nothing but errors until it is added anew.
    UnitFenced {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// A flush failed: acknowledged writes may be lost.
    FlushFailed {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// The unit's device is gone: the unit has no medium until the control plane says that it is back.
    DeviceGone {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// The unit's device is back.
    DeviceReturned {
        /// The unit.
        unit: LogicalUnitId,
    },
    /// The unit's device reported an error.
    MediumError {
        /// The unit.
        unit: LogicalUnitId,
    },
}
