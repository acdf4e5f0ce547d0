//! The iSCSI target port (RFC 7143).

pub mod access;
pub mod chap;
mod config;
pub mod discovery;
mod fuzz;
mod login;
pub mod names;
pub mod negotiation;
mod validation;

pub use config::{
    AuthGroup, AuthPolicy, AuthSecret, Config, InitiatorGroup, Options, Portal, PortalGroup, PortalGroupMap,
    TargetNode,
};
pub use discovery::{TextMachine, TextStep};
#[doc(hidden)]
pub use fuzz::fuzz_login;
pub use login::{LoginEnvironment, LoginMachine, LoginOutcome, LoginStep, SessionParameters, SessionType};
pub use validation::ConfigError;
