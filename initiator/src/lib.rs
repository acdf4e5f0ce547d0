//! The other end of the wire: a sans-IO iSCSI initiator (RFC 7143) for the simulation, the conformance tests and the
//! benchmark.
//!
//! It is an oracle as much as a peer: whatever the target does against the standard comes out as
//! [`Event::ProtocolViolation`]. It takes bytes and gives bytes; time is an argument.

#![forbid(unsafe_code)]

mod chap;
mod command;
mod config;
mod event;
mod login;
mod negotiation;
mod session;
mod transfer;
mod window;

pub use chap::ChapAlgorithm;
pub use command::Command;
pub use config::{Authentication, Chap, Config, MutualChap, OperationalKeys, SessionKind};
pub use event::{Event, Residual};
pub use negotiation::Negotiated;
pub use session::Session;
