//! The SCSI target engine. Sans-IO: [`Target`] takes events (`handle_*`, with `now` as an argument) and gives
//! effects (`poll_*`); the conductor in `fabrics` carries them out. One `Target` per core; cores agree by
//! [`Message`]s only.

#![forbid(unsafe_code)]

pub mod command_table;
mod control;
mod effect;
#[cfg(test)]
mod engine_tests;
mod event;
mod executor;
mod freeze;
mod fuzz;
mod home;
mod ids;
mod logical_unit;
mod message;
mod nexus;
pub mod ordering_table;
pub mod parameter;
mod plan;
mod registry;
pub mod sbc;
mod session;
mod spc;
mod target;
mod task;
mod task_management;
mod task_set;
mod unit_attention;
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
pub use message::{Change, DeviceHandle, Message, NexusReference, Reset, Ticket};
pub use parameter::{ModePages, PageControl, ParameterIn, ParameterOut, UnitChange};
pub use plan::Plan;
pub use target::{Target, TaskReport};
pub use task::{Abort, PortSide, TaskPhase};
pub use unit_attention::{AttentionQueue, UnitAttention};
pub use view::{Environment, UnitState, UnitView};
