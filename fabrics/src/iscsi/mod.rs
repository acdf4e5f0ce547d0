//! The iSCSI target port (RFC 7143).

mod config;
mod login;

pub use config::{AuthGroup, AuthPolicy, AuthSecret, Config, InitiatorGroup, Options, Portal, PortalGroup, PortalGroupMap, TargetNode};
pub use login::{LoginEnvironment, LoginMachine, LoginOutcome, LoginStep, SessionParameters, SessionType};
