//! The SCSI target engine. Sans-IO: [`Target`] takes events (`handle_*`, with `now` as an argument) and gives
//! effects (`poll_*`); the conductor in `fabrics` carries them out. One `Target` per core; cores agree by
//! [`Message`]s only.

#![forbid(unsafe_code)]

mod effect;
mod event;
mod ids;
mod message;
mod parameter;
mod plan;
mod view;

pub use effect::{CommandStatus, DropReason, Effect, Notification};
pub use event::{
    CommandReceived, ControlOutcome, ControlRequest, LunMap, LunMapping, NexusIdentity, PortEvent, TaskManagementFunction,
    TaskManagementRequest, TaskManagementResponse, UnitIdentity,
};
pub use ids::{ControlId, ExchangeId, LogicalUnitId, NexusId, NexusToken, RequestToken, TargetDeviceId, TaskId, TaskTag};
pub use plan::Plan;
pub use message::Message;
pub use parameter::{ModePages, ParameterIn, ParameterOut, UnitChange};
pub use view::{Environment, UnitState, UnitView};
