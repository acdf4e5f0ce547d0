//! The storage daemon: the control plane, the memory bill, and how the rooms are wired together. The programs
//! `polluxd` and `pollux` are thin; tests start a daemon from here.

#![forbid(unsafe_code)]

pub mod control;
