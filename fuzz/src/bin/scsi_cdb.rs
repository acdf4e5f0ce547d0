//! CDBs and parameter lists through lookup, plan and render of the command table.

use std::process::ExitCode;

use fuzz::Target;

fn run(data: &[u8]) {
    scsi::fuzz_cdb(data);
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    // The first bytes of every operation code there is, so that mutation starts inside each command.
    (0..=255u8)
        .map(|code| {
            let mut input = vec![0u8; 64];
            input[0] = code;
            (format!("operation-{code:02x}"), input)
        })
        .collect()
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "scsi_cdb", run, seeds })
}
