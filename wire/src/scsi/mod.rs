//! SCSI structures: CDBs, status, sense data, LUNs, parameter data (SAM-5, SPC-5, SBC-4).

mod cdb;
mod lun;
mod sense;
mod status;

pub use cdb::{CDB_INLINE_MAX, Cdb};
pub use lun::Lun;
pub use sense::{Sense, SenseKey, SenseSpecific};
pub use status::{Status, TaskAttribute};
