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
            // Two bytes of world, the length of the CDB, the CDB, a parameter list.
            let mut input = vec![0u8; 64];
            input[2] = [6, 10, 10, 16, 16, 12, 16, 16][usize::from(code >> 5)];
            input[3] = code;
            (format!("operation-{code:02x}"), input)
        })
        .collect()
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "scsi_cdb", run, seeds })
}
