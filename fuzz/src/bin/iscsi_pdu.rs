//! iSCSI PDUs: a header, its AHS, and the rest. What parses means the same after it is written and read again.

use std::process::ExitCode;

use fuzz::Target;
use wire::iscsi::{BHS_LENGTH, Bhs, Pdu, lengths, opcode, padded};

/// The longest CDB that `emit_ahs` writes whole.
const CDB_EMIT_MAX: usize = 68;

fn emitted(pdu: &Pdu) -> (Bhs, Vec<u8>) {
    let (mut bhs, mut ahs) = ([0xA5; BHS_LENGTH], [0xA5; 64]);
    pdu.emit(&mut bhs);
    let length = if let Pdu::ScsiCommand(command) = pdu { command.emit_ahs(&mut ahs) } else { 0 };
    (bhs, ahs[..length].to_vec())
}

fn run(data: &[u8]) {
    let Some((bhs, rest)) = data.split_first_chunk::<BHS_LENGTH>() else { return };
    let lengths = lengths(bhs);
    assert!(lengths.ahs <= wire::iscsi::AHS_MAX && padded(lengths.data) >= lengths.data);
    // Truncated and surplus AHS go in as well: the parser must not trust that the caller cut right.
    let ahs = rest.get(..lengths.ahs).unwrap_or(rest);
    match Pdu::parse(bhs, ahs) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(pdu) => {
            assert_eq!(pdu.opcode(), bhs[0] & opcode::MASK);
            assert!(!matches!(pdu, Pdu::ScsiCommand(_)) || ahs.len() == lengths.ahs);
            let (again, ahs) = emitted(&pdu);
            assert_eq!(wire::iscsi::lengths(&again).ahs, ahs.len());
            if !matches!(pdu, Pdu::ScsiCommand(command) if command.cdb.length() > CDB_EMIT_MAX) {
                assert_eq!(Pdu::parse(&again, &ahs), Ok(pdu));
            }
        }
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let codes = [
        ("nop_out", opcode::NOP_OUT, 0x80),
        ("scsi_command_read", opcode::SCSI_COMMAND, 0xC1),
        ("scsi_command_write", opcode::SCSI_COMMAND, 0xA1),
        ("task_management_request", opcode::TASK_MANAGEMENT_REQUEST, 0x81),
        ("login_request", opcode::LOGIN_REQUEST | opcode::IMMEDIATE, 0x87),
        ("text_request", opcode::TEXT_REQUEST, 0x80),
        ("data_out", opcode::DATA_OUT, 0x80),
        ("logout_request", opcode::LOGOUT_REQUEST, 0x81),
        ("snack_request", opcode::SNACK_REQUEST, 0x80),
        ("nop_in", opcode::NOP_IN, 0x80),
        ("scsi_response", opcode::SCSI_RESPONSE, 0x82),
        ("task_management_response", opcode::TASK_MANAGEMENT_RESPONSE, 0x80),
        ("login_response", opcode::LOGIN_RESPONSE, 0x87),
        ("text_response", opcode::TEXT_RESPONSE, 0x80),
        ("data_in", opcode::DATA_IN, 0x81),
        ("logout_response", opcode::LOGOUT_RESPONSE, 0x80),
        ("r2t", opcode::R2T, 0x80),
        ("async_message", opcode::ASYNC_MESSAGE, 0x80),
    ];
    let mut seeds = Vec::new();
    for (name, byte0, byte1) in codes {
        let mut bhs = [0; BHS_LENGTH];
        bhs[..2].copy_from_slice(&[byte0, byte1]);
        // Recognisable values in every word, so that a field read at the wrong place shows.
        for (at, byte) in bhs.iter_mut().enumerate().skip(16) {
            *byte = at as u8;
        }
        if byte0 == opcode::ASYNC_MESSAGE {
            bhs[36] = 2;
        }
        seeds.push((name.to_string(), bhs.to_vec()));
    }
    let mut reject = [0; BHS_LENGTH];
    reject[..3].copy_from_slice(&[opcode::REJECT, 0x80, 9]);
    reject[7] = 48;
    seeds.push(("reject".to_string(), reject.to_vec()));
    let mut extended = vec![opcode::SCSI_COMMAND, 0xE1, 0, 0, 7];
    extended.resize(BHS_LENGTH, 1);
    extended.extend_from_slice(&[0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    extended.extend_from_slice(&[0, 5, 2, 0, 0, 0, 2, 0]);
    seeds.push(("scsi_command_ahs".to_string(), extended));
    seeds
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "iscsi_pdu", run, seeds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_parses_and_every_pdu_has_one() {
        let mut seen = std::collections::BTreeSet::new();
        for (name, bytes) in seeds() {
            let (bhs, ahs) = bytes.split_first_chunk::<BHS_LENGTH>().unwrap();
            let pdu = Pdu::parse(bhs, ahs).unwrap_or_else(|error| panic!("{name}: {error}"));
            seen.insert(pdu.opcode());
            run(&bytes);
        }
        assert_eq!(seen.len(), 18);
    }
}
