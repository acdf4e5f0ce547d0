use base::{DataBuf, Instant, Progress};
use scsi::{
    CommandStatus, DropReason, ExchangeId, NexusId, NexusToken, PortEvent, RequestToken, TaskId,
    TaskManagementResponse,
};
use wire::scsi::{Lun, Sense};

/// SAM-5's transport protocol services (SAM-5 §5.4.2, §7.12): what the engine asks of a port. Each method is the
/// execution of the `scsi::Effect` of the same name; see there for the rules of order.
pub trait TargetPort {
    /// Receive Data-Out.
    fn receive_data_out(&mut self, exchange: ExchangeId, task: TaskId, offset: u32, data: DataBuf);
    /// Send Data-In, with the status when this is the last burst.
    fn send_data_in(
        &mut self,
        exchange: ExchangeId,
        task: TaskId,
        offset: u32,
        data: DataBuf,
        status: Option<CommandStatus>,
    );
    /// Terminate Data Transfer.
    fn terminate_data_transfer(&mut self, exchange: ExchangeId, task: TaskId);
    /// Send Command Complete.
    fn send_command_complete(&mut self, exchange: ExchangeId, task: TaskId, status: CommandStatus);
    /// Task Management Function Executed.
    fn task_management_function_executed(
        &mut self,
        token: NexusToken,
        request: RequestToken,
        response: TaskManagementResponse,
    );
    /// The nexus asked for exists (`Some`) or is refused (`None`).
    fn nexus_answered(&mut self, token: NexusToken, nexus: Option<NexusId>);
    /// Every task of the lost nexus is gone.
    fn nexus_closed(&mut self, token: NexusToken);
    /// End the session.
    fn drop_nexus(&mut self, token: NexusToken, reason: DropReason);
    /// Tell the initiator of a unit attention, where the protocol can.
    fn asynchronous_event(&mut self, token: NexusToken, lun: Lun, sense: Sense);
    /// Receives what has arrived and reports it.
    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(PortEvent)) -> Progress;
    /// Sends what is queued: one system call per peer.
    fn flush(&mut self, now: Instant);
    /// When `poll` wants to be called although nothing arrives.
    fn next_timeout(&self) -> Option<Instant>;
}
