//! Bytes and meaning. `Packet` types view bytes at fixed offsets; `Repr` types are the meaning. `parse` rejects
//! nonsense with the protocol's own reason; `emit` cannot fail. No state, no I/O, no allocation.

#![forbid(unsafe_code)]

pub mod iscsi;
pub mod nvme;
pub mod scsi;
