//! What the tests of the whole daemon share: a daemon in this process, and a blocking initiator on real TCP.

// Every test binary uses a part of it.
#![allow(dead_code)]

pub mod initiator;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pollux::client::Client;
use pollux::daemon::{Options, Running};
use serde_json::{Value, json};

pub use initiator::Initiator;

/// The target every test uses.
pub const TARGET: &str = "iqn.2026-01.io.pollux:test";

/// Longer than anything takes on the slowest machine: a test that waits so long has found a hang.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A folder of its own, removed when dropped: in the system's temporary folder, because a socket's path must be short,
/// and one for disks below cargo's, because temporary folders are often memory, past whose cache nobody gets.
pub struct Folder {
    path: PathBuf,
    disks: PathBuf,
}

impl Folder {
    pub fn new(name: &str) -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let own = format!("pollux-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(&own);
        let disks = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&own);
        for folder in [&path, &disks] {
            std::fs::create_dir_all(folder).expect("a folder for the test");
        }
        Folder { path, disks }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of `bytes` zeros, for a disk.
    pub fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.disks.join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file for the test");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for folder in [&self.path, &self.disks] {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A port nobody listens on now. Somebody else may take it: try again then.
pub fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.1:0").expect("a port");
    probe.local_addr().expect("its address").port()
}

/// A call that must succeed.
pub fn call(client: &mut Client, method: &str, params: Value) -> Value {
    let params = (!params.is_null()).then_some(params);
    client.call(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
}

/// Listens on a free port and exports `bdevs` as LUNs 0, 1, … to everybody on this machine.
pub fn export(client: &mut Client, bdevs: &[&str]) -> SocketAddr {
    let address = (0..20)
        .find_map(|_| {
            let port = free_port();
            let portal = json!({"tag": 1, "portals": [{"host": "127.0.0.1", "port": port.to_string()}]});
            client.call("iscsi_create_portal_group", Some(portal)).ok()?;
            Some(SocketAddr::from(([127, 0, 0, 1], port)))
        })
        .expect("no portal could be opened");
    let group = json!({"tag": 1, "initiators": ["ANY"], "netmasks": ["127.0.0.0/8"]});
    call(client, "iscsi_create_initiator_group", group);
    let luns: Vec<Value> =
        bdevs.iter().enumerate().map(|(lun, name)| json!({"bdev_name": name, "lun_id": lun})).collect();
    let target = json!({
        "name": TARGET, "alias_name": "test", "queue_depth": 64, "disable_chap": true, "luns": luns,
        "pg_ig_maps": [{"pg_tag": 1, "ig_tag": 1}],
    });
    call(client, "iscsi_create_target_node", target);
    address
}

/// A daemon in this process.
pub struct Node {
    running: Option<Running>,
    client: Client,
    pub folder: Folder,
    address: Option<SocketAddr>,
}

impl Node {
    /// Starts one with `cores` reactors. They share a CPU when there are not enough.
    pub fn start(name: &str, cores: usize) -> Node {
        let folder = Folder::new(name);
        let socket = folder.path().join("rpc.sock");
        let there: Vec<usize> = reactor::Topology::discover().cpus.iter().map(|cpu| cpu.number).collect();
        let cpus = there.iter().copied().cycle().take(cores).collect();
        let options = Options { cpus, memory_mib: 32, ..Options::new(socket.clone()) };
        let running = Running::start(options).expect("the daemon starts");
        let client = Client::connect(&socket).expect("the daemon answers");
        Node { running: Some(running), client, folder, address: None }
    }

    pub fn rpc(&mut self, method: &str, params: Value) -> Value {
        call(&mut self.client, method, params)
    }

    /// A RAM disk with blocks of 512 bytes.
    pub fn ram_disk(&mut self, name: &str, blocks: u64) {
        let params = json!({"name": name, "num_blocks": blocks, "block_size": 512});
        self.rpc("bdev_malloc_create", params);
    }

    /// A device on `base` whose writes take `write_ms` milliseconds more.
    pub fn delay(&mut self, name: &str, base: &str, write_ms: u64) {
        let us = write_ms * 1000;
        let params = json!({
            "name": name, "base_bdev_name": base, "avg_read_latency": 0, "p99_read_latency": 0,
            "avg_write_latency": us, "p99_write_latency": us,
        });
        self.rpc("bdev_delay_create", params);
    }

    /// Changes how long writes of a delay device take from now on.
    pub fn set_write_delay(&mut self, name: &str, write_ms: u64) {
        for kind in ["avg_write", "p99_write"] {
            let params =
                json!({"delay_bdev_name": name, "latency_type": kind, "latency_us": write_ms * 1000});
            self.rpc("bdev_delay_update_latency", params);
        }
    }

    pub fn export(&mut self, bdevs: &[&str]) {
        self.address = Some(export(&mut self.client, bdevs));
    }

    pub fn address(&self) -> SocketAddr {
        self.address.expect("something is exported")
    }

    /// Logs in as `name`, with the last byte of the ISID as given.
    pub fn login(&self, name: &str, isid: u8) -> Initiator {
        Initiator::login(self.address(), initiator::config(name, isid))
    }

    /// A number of `iscsi_get_stats`.
    pub fn statistic(&mut self, name: &str) -> u64 {
        let all = self.rpc("iscsi_get_stats", Value::Null);
        all[name].as_u64().unwrap_or_else(|| panic!("iscsi_get_stats has no {name}: {all}"))
    }

    /// Waits until a number of `iscsi_get_stats` is `wanted`.
    pub fn wait_for_statistic(&mut self, name: &str, wanted: u64) {
        let mut last = 0;
        wait_until(&format!("{name} to become {wanted}"), || {
            last = self.statistic(name);
            last == wanted
        });
    }

    /// The core of each connection in full feature phase, by ISID's last byte and initiator name.
    pub fn core_of(&mut self, name: &str, isid: u8) -> u64 {
        let all = self.rpc("iscsi_get_connections", Value::Null);
        let name = initiator::name(name);
        let mine = all.as_array().into_iter().flatten().find(|one| {
            one["initiator_name"] == name.as_str()
                && one["isid"].as_str().is_some_and(|text| text.ends_with(&format!("{isid:02x}")))
        });
        mine.and_then(|one| one["lcore_id"].as_u64())
            .unwrap_or_else(|| panic!("{name} is not connected: {all}"))
    }

    /// Stops it, which must succeed.
    pub fn stop(mut self) {
        self.running.take().expect("it runs").stop().expect("a clean end");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop();
        }
    }
}

/// Waits for `condition`.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// CDBs, by hand: what the daemon parses must not be what the test emits with.
pub mod cdb {
    pub const TEST_UNIT_READY: [u8; 6] = [0; 6];

    fn ten_bytes(code: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
        let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
        [code, flags, lba[0], lba[1], lba[2], lba[3], 0, blocks[0], blocks[1], 0]
    }

    pub fn read(lba: u32, blocks: u16) -> [u8; 10] {
        ten_bytes(0x28, 0, lba, blocks)
    }

    pub fn write(lba: u32, blocks: u16) -> [u8; 10] {
        ten_bytes(0x2A, 0, lba, blocks)
    }

    /// WRITE(10) with FUA: answered when the data is on the medium.
    pub fn write_fua(lba: u32, blocks: u16) -> [u8; 10] {
        ten_bytes(0x2A, 0x08, lba, blocks)
    }

    pub fn compare_and_write(lba: u64, blocks: u8) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = 0x89;
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[13] = blocks;
        cdb
    }

    /// MODE SELECT(6) with PF.
    pub fn mode_select(length: u8) -> [u8; 6] {
        [0x15, 0x10, 0, 0, length, 0]
    }

    /// MODE SENSE(6) without block descriptors, current values.
    pub fn mode_sense(page: u8) -> [u8; 6] {
        [0x1A, 0x08, page, 0, 255, 0]
    }
}
