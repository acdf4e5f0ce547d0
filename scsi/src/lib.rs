//! The SCSI target engine. Sans-IO: [`Target`] takes events (`handle_*`, with `now` as an argument) and gives
//! effects (`poll_*`); the conductor in `fabrics` carries them out. One `Target` per core; cores agree by
//! [`Message`]s only.

#![forbid(unsafe_code)]

pub mod command_table;
mod effect;
mod event;
mod fuzz;
mod ids;
mod message;
pub mod parameter;
mod plan;
pub mod sbc;
mod spc;
mod view;

pub use command_table::{CommandEntry, OrderingClass, Readiness, UnitAttentionRule, lookup};
pub use effect::{CommandStatus, DropReason, Effect, Notification};
pub use event::{
    CommandReceived, ControlOutcome, ControlRequest, LunMap, LunMapping, NexusIdentity, PortEvent,
    TaskManagementFunction, TaskManagementRequest, TaskManagementResponse, UnitIdentity,
};
#[doc(hidden)]
pub use fuzz::fuzz_cdb;
pub use ids::{
    ControlId, ExchangeId, LogicalUnitId, NexusId, NexusToken, RequestToken, TargetDeviceId, TaskId, TaskTag,
};
pub use message::Message;
pub use parameter::{ModePages, PageControl, ParameterIn, ParameterOut, UnitChange};
pub use plan::Plan;
pub use view::{Environment, UnitState, UnitView};
