//! Text data segments: what reads as pairs writes back as the same pairs, in no more bytes.

use std::process::ExitCode;

use fuzz::Target;
use wire::iscsi::text;

fn run(data: &[u8]) {
    let mut buffer = vec![0; data.len()];
    let mut writer = text::Writer::new(&mut buffer);
    let mut read = Vec::new();
    for pair in text::pairs(data) {
        let Ok((key, value)) = pair else { break };
        assert!(!key.is_empty() && key.len() <= text::KEY_MAX && value.len() <= text::VALUE_MAX);
        assert!(!key.contains(['=', '\0']) && !value.contains('\0'));
        assert_eq!(writer.push(key, value), Ok(()));
        read.push((key, value));
    }
    let again: Result<Vec<_>, _> = text::pairs(writer.written()).collect();
    assert_eq!(again, Ok(read));
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let long = [b"X-long=".as_slice(), &[b'v'; 300], b"\0"].concat();
    let seeds: [(&str, &[u8]); 6] = [
        (
            "login",
            b"InitiatorName=iqn.2004-10.com.example:i\0SessionType=Normal\0TargetName=iqn.2004-10.com.example:t\0\
              AuthMethod=CHAP,None\0",
        ),
        ("chap", b"CHAP_N=user\0CHAP_R=0x00112233445566778899aabbccddeeff\0CHAP_I=1\0CHAP_C=0bAAECAwQFBgc=\0"),
        (
            "operational",
            b"HeaderDigest=CRC32C,None\0DataDigest=None\0MaxRecvDataSegmentLength=262144\0InitialR2T=No\0\
              ImmediateData=Yes\0MaxBurstLength=1048576\0FirstBurstLength=65536\0ErrorRecoveryLevel=0\0",
        ),
        ("send_targets", b"SendTargets=All\0"),
        ("nulls", b"\0\0A=\0\0\0B==\0"),
        ("long", &long),
    ];
    seeds.into_iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect()
}

fn main() -> ExitCode {
    fuzz::run(Target { name: "iscsi_text", run, seeds })
}
