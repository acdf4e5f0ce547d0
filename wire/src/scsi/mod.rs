//! SCSI structures: CDBs, status, sense data, LUNs, parameter data (SAM-5, SPC-5, SBC-4).

mod cdb;
pub mod inquiry;
pub mod log;
mod lun;
pub mod mode;
pub mod parameter_data;
mod sense;
mod status;
pub mod vpd;
mod writer;

pub use cdb::{CDB_INLINE_MAX, Cdb};
pub use lun::Lun;
pub use sense::{SENSE_LENGTH_MAX, Sense, SenseKey, SenseSpecific};
pub use status::{Status, TaskAttribute};
pub use writer::Writer;
