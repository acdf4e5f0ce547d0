//! The storage daemon: the control plane, the memory bill, and how the rooms are wired together. The programs
//! `polluxd` and `pollux` are thin; tests start a daemon from here.

#![forbid(unsafe_code)]

pub mod client;
pub mod control;
mod core_link;
pub mod daemon;
mod devices;
pub mod doctor;
pub mod limits;
