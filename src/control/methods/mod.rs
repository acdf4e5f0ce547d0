//! The methods, by subsystem. Each is a parameter type, a result type, and a function.

mod bdev;
mod bdev_report;
mod framework;
mod iscsi_groups;
mod iscsi_options;
mod iscsi_targets;
mod log;
mod nvme;
mod nvme_report;

use rpc::{Registry, RpcError, errno};

use super::Control;
use super::node::{Bdev, Node};
use std::sync::Arc;

type Result<T> = std::result::Result<T, RpcError>;

/// Adds every method of the node.
pub fn register(registry: &mut Registry<Control>) {
    framework::register(registry);
    log::register(registry);
    bdev::register(registry);
    bdev_report::register(registry);
    nvme::register(registry);
    nvme_report::register(registry);
    iscsi_groups::register(registry);
    iscsi_options::register(registry);
    iscsi_targets::register(registry);
}

/// The calls that make the bdev subsystem what it is.
pub(super) use bdev::saved as saved_bdevs;

/// −32602: `parameter` of `method` has a value that cannot be.
fn invalid(method: &str, parameter: &str, text: impl std::fmt::Display) -> RpcError {
    RpcError::invalid_params(format!("{method}: parameter \"{parameter}\": {text}"))
}

/// −32602: `parameter` asks for something this version does not have.
fn not_built(method: &str, parameter: &str, remedy: &str) -> RpcError {
    invalid(method, parameter, format!("not built into this version. Remedy: {remedy}"))
}

/// −17: there is one already.
fn exists(method: &str, what: impl std::fmt::Display) -> RpcError {
    RpcError::errno(
        errno::EEXIST,
        format!("{method}: {what} exists already. Remedy: choose another or delete it first"),
    )
}

/// −19: there is none.
fn absent(method: &str, what: impl std::fmt::Display, lister: &str) -> RpcError {
    RpcError::errno(
        errno::ENODEV,
        format!("{method}: No such device: {what} does not exist. Remedy: {lister} lists what exists"),
    )
}

fn find_bdev(node: &Node, method: &str, name: &str) -> Result<Arc<Bdev>> {
    node.bdevs.get(name).cloned().ok_or_else(|| absent(method, format!("bdev \"{name}\""), "bdev_get_bdevs"))
}
