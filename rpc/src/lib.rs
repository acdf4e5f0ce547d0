//! The JSON-RPC 2.0 server on a Unix socket, the method registry and its schema. Knows no storage nouns.
//!
//! The framing is SPDK's: JSON texts back to back, nothing between them, pipelined, and batch arrays. Answers come
//! in the order of the requests.

#![forbid(unsafe_code)]

mod dispatch;
mod error;
mod framing;
mod parameters;
mod registry;
mod server;
mod socket;

pub use dispatch::Dispatcher;
pub use error::{RpcError, errno};
pub use framing::{Framer, FramingError, FramingLimits};
pub use parameters::{NoParameters, parse_parameters};
pub use registry::{MethodInfo, Phase, Registry, When};
pub use server::{Server, ServerLimits};
pub use socket::{BindError, BoundSocket};
