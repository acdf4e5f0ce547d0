//! Target ports and what carries them: the [`TargetPort`] trait, iSCSI, byte streams, and the conductor that
//! drives one core's engine, ports and channels.

#![deny(unsafe_code)]

pub mod conductor;
pub mod iscsi;
mod stream;
mod target_port;

pub use stream::{Accepted, ByteStream, Network, Readiness, StreamToken};
pub use target_port::TargetPort;
