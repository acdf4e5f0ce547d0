//! The iSCSI target port (RFC 7143).

pub mod access;
pub mod chap;
mod config;
mod connection;
mod data_in;
mod data_out;
pub mod discovery;
mod establishment;
mod exchange;
mod fuzz;
mod login;
pub mod names;
pub mod negotiation;
mod port;
#[cfg(test)]
mod port_tests;
mod receive;
mod report;
mod session;
mod tables;
mod task_management;
mod transmit;
mod validation;

pub use config::{
    AuthGroup, AuthPolicy, AuthSecret, Config, InitiatorGroup, Options, Portal, PortalGroup, PortalGroupMap,
    TargetNode,
};
pub use discovery::{TextMachine, TextStep};
#[doc(hidden)]
pub use fuzz::fuzz_login;
pub use login::{LoginEnvironment, LoginMachine, LoginOutcome, LoginStep, SessionParameters, SessionType};
pub use port::IscsiPort;
pub use validation::ConfigError;
