//! Target ports and what carries them: the [`TargetPort`] trait, iSCSI, byte streams, and the conductor that
//! drives one core's engine, ports and channels.

#![forbid(unsafe_code)]

mod channel_table;
pub mod conductor;
pub mod iscsi;
mod kernel_tcp;
mod listeners;
mod stream;
mod target_port;

pub use kernel_tcp::{KernelTcp, TcpStream};
pub use listeners::Listeners;
pub use stream::{Accepted, ByteStream, ListenError, Network, Readiness, StreamToken};
pub use target_port::TargetPort;
