use wire::scsi::{Cdb, Lun, TaskAttribute};

/// A SCSI command to send.
#[derive(Debug, Clone)]
pub struct Command {
    /// Logical unit.
    pub lun: Lun,
    /// The CDB; shorter ones are padded to sixteen bytes.
    pub cdb: Cdb,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Data for the target; empty when nothing is written.
    pub data_out: Vec<u8>,
    /// Bytes of the buffer for what the target sends; 0 when nothing is read.
    pub data_in_length: u32,
    /// Send as an immediate command, outside of the command window.
    pub immediate: bool,
    /// At most this much immediate data; `None` as much as negotiation allows.
    pub immediate_data_max: Option<u32>,
    /// Send unsolicited Data-Out PDUs when negotiation allows them.
    pub unsolicited: bool,
    /// Expected Data Transfer Length to announce in place of the true one, for negative tests.
    pub expected_length: Option<u32>,
    /// CmdSN to use in place of the next one, which is then not advanced.
    pub cmd_sn: Option<u32>,
}

impl Command {
    /// A command that moves no data.
    #[must_use]
    pub fn new(lun: Lun, cdb: &[u8]) -> Command {
        Command {
            lun,
            cdb: Cdb::new(cdb),
            attribute: TaskAttribute::Simple,
            data_out: Vec::new(),
            data_in_length: 0,
            immediate: false,
            immediate_data_max: None,
            unsolicited: true,
            expected_length: None,
            cmd_sn: None,
        }
    }

    /// A command that reads up to `length` bytes.
    #[must_use]
    pub fn read(lun: Lun, cdb: &[u8], length: u32) -> Command {
        Command { data_in_length: length, ..Command::new(lun, cdb) }
    }

    /// A command that writes `data`.
    #[must_use]
    pub fn write(lun: Lun, cdb: &[u8], data: Vec<u8>) -> Command {
        Command { data_out: data, ..Command::new(lun, cdb) }
    }

    /// The same command with another task attribute.
    #[must_use]
    pub fn attribute(self, attribute: TaskAttribute) -> Command {
        Command { attribute, ..self }
    }
}
