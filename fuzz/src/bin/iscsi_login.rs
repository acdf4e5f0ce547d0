//! Login requests, stage after stage, through the login machine.

use std::process::ExitCode;

use fuzz::Target;

fn run(data: &[u8]) {
    fabrics::iscsi::fuzz_login(data);
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let texts: [(&str, &[u8]); 4] = [
        ("none", b"InitiatorName=iqn.2004-10.com.example:i\0SessionType=Normal\0TargetName=iqn.2001-04.com.example:a\0AuthMethod=None\0"),
        ("chap", b"CHAP_A=5,6,7,8\0CHAP_N=user\0CHAP_R=0x00112233445566778899aabbccddeeff\0CHAP_I=1\0CHAP_C=0bAAECAwQFBgc=\0"),
        ("operational", b"HeaderDigest=CRC32C,None\0MaxRecvDataSegmentLength=262144\0InitialR2T=No\0MaxBurstLength=1048576\0"),
        ("discovery", b"InitiatorName=iqn.2004-10.com.example:i\0SessionType=Discovery\0AuthMethod=CHAP,None\0"),
    ];
    let mut seeds = Vec::new();
    for (name, text) in texts {
        for flags in [0x00u8, 0x81, 0x83, 0x87, 0x04, 0x40] {
            // Flags and stages, the length of the text, the text; then once more as the next request.
            let mut input = Vec::new();
            for request in [flags, 0x87] {
                input.push(request);
                input.extend_from_slice(&(text.len() as u16).to_be_bytes());
                input.extend_from_slice(text);
            }
            seeds.push((format!("{name}-{flags:02x}"), input));
        }
    }
    seeds
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "iscsi_login", run, seeds })
}
