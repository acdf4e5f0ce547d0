//! Devices of the simulation that other programs use too.
//!
//! [`nvme`] is a register-level model of an NVMe controller: the simulation drives it in process, and the binary
//! `nvme-model` serves it to virtual machines over vfio-user.

#![forbid(unsafe_code)]

pub mod nvme;
