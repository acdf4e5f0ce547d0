//! What was acknowledged is there after the daemon was killed, and again after it was started anew: a real polluxd.

mod common;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};

use common::initiator::config;
use common::{Folder, Initiator, TARGET, cdb, free_port, wait_until};
use initiator::Command;
use pollux::client::Client;
use serde_json::{Value, json};
use wire::scsi::Lun;

const BLOCKS: u32 = 8192;
/// Blocks of 512 bytes in each write.
const WRITE_BLOCKS: u16 = 16;
const WRITES: u32 = 64;

/// A polluxd of this test's own. Killed when dropped.
struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one with the configuration at `file`.
    ///
    /// # Errors
    /// What it said, when it ended at once.
    fn start(folder: &Path, file: &Path) -> Result<Daemon, String> {
        let socket = folder.join("rpc.sock");
        let log = folder.join("polluxd.log");
        let output = File::create(&log).expect("a log file");
        let process = Process::new(env!("CARGO_BIN_EXE_polluxd"))
            .arg("-r")
            .arg(&socket)
            .arg("-c")
            .arg(file)
            .args(["--memory", "16"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the log file"))
            .stderr(output)
            .spawn()
            .expect("polluxd starts");
        let mut daemon = Daemon { process, socket };
        let mut ended = false;
        wait_until("the daemon to answer", || {
            ended = daemon.process.try_wait().expect("its state").is_some();
            let answers = Client::connect(&daemon.socket)
                .is_ok_and(|mut client| client.call("spdk_get_version", None).is_ok());
            ended || answers
        });
        if ended {
            return Err(std::fs::read_to_string(&log).unwrap_or_default());
        }
        Ok(daemon)
    }

    /// SIGKILL: it can do nothing about it.
    fn kill(mut self) {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it ends");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(method: &str, disk: &Path, port: u16) -> Value {
    let call = |method: &str, params: Value| json!({"method": method, "params": params});
    json!({"subsystems": [
        {"subsystem": "bdev", "config": [
            call(method, json!({"name": "Disk0", "filename": disk, "block_size": 512})),
        ]},
        {"subsystem": "iscsi", "config": [
            call("iscsi_create_portal_group",
                json!({"tag": 1, "portals": [{"host": "127.0.0.1", "port": port.to_string()}]})),
            call("iscsi_create_initiator_group",
                json!({"tag": 1, "initiators": ["ANY"], "netmasks": ["127.0.0.0/8"]})),
            call("iscsi_create_target_node", json!({
                "name": TARGET, "alias_name": "test", "queue_depth": 64, "disable_chap": true,
                "luns": [{"bdev_name": "Disk0", "lun_id": 0}],
                "pg_ig_maps": [{"pg_tag": 1, "ig_tag": 1}],
            })),
        ]},
    ]})
}

/// Starts the first daemon, on a port that was free. Others may take it first: then on another one.
fn start_somewhere(folder: &Folder, file: &Path, method: &str, disk: &Path) -> (Daemon, SocketAddr) {
    let mut last = String::new();
    for _ in 0..10 {
        let port = free_port();
        std::fs::write(file, configuration(method, disk, port).to_string()).expect("a configuration");
        match Daemon::start(folder.path(), file) {
            Ok(daemon) => return (daemon, SocketAddr::from(([127, 0, 0, 1], port))),
            Err(text) => last = text,
        }
    }
    panic!("polluxd does not start: {last}");
}

fn pattern(number: u32) -> Vec<u8> {
    let word = number.wrapping_mul(0x9E37_79B9) | 1;
    word.to_be_bytes().repeat(usize::from(WRITE_BLOCKS) * 128)
}

/// Where write `number` goes: spread out, no two in one place.
fn place(number: u32) -> u32 {
    number * 37 % WRITES * (BLOCKS / WRITES)
}

fn acknowledged_writes_outlive_the_daemon(method: &str) {
    let folder = Folder::new(method);
    let disk = folder.file("disk.img", u64::from(BLOCKS) * 512);
    let file = folder.path().join("config.json");
    let (daemon, address) = start_somewhere(&folder, &file, method, &disk);
    let mut host = Initiator::login(address, config("durable", 1));
    for number in 0..WRITES {
        let command = cdb::write_fua(place(number), WRITE_BLOCKS);
        host.run(Command::write(Lun::ZERO, &command, pattern(number))).expect_good();
    }
    daemon.kill();
    let bytes = std::fs::read(&disk).expect("the disk's file");
    for number in 0..WRITES {
        let at = place(number) as usize * 512;
        let there = bytes.get(at..at + usize::from(WRITE_BLOCKS) * 512);
        assert!(there == Some(&pattern(number)[..]), "acknowledged write {number} is not in the file");
    }
    // The old session was cut, not ended: the host simply comes back.
    drop(host);
    let daemon = Daemon::start(folder.path(), &file)
        .unwrap_or_else(|text| panic!("polluxd does not start again: {text}"));
    let mut host = Initiator::login(address, config("durable", 1));
    for number in 0..WRITES {
        assert!(host.read(place(number), WRITE_BLOCKS) == pattern(number), "write {number} reads otherwise");
    }
    host.write(0, pattern(4711));
    assert!(host.read(0, WRITE_BLOCKS) == pattern(4711));
    host.logout();
    daemon.kill();
}

#[test]
fn acknowledged_writes_outlive_the_daemon_through_the_page_cache() {
    acknowledged_writes_outlive_the_daemon("bdev_aio_create");
}

#[test]
fn acknowledged_writes_outlive_the_daemon_past_the_page_cache() {
    acknowledged_writes_outlive_the_daemon("bdev_uring_create");
}
