//! The control plane with cores, reactors and devices that are not there.

use std::sync::{Arc, Mutex};

use base::{CoreId, Limits};
use bdev::{BlockDevice, BlockError, CoreShared, Geometry, IoChannel, Provisioning};
use fabrics::conductor::{CoreReply, CoreReport, CoreRequest, UnitTraffic};
use rpc::Dispatcher;
use scsi::{ControlOutcome, ControlRequest, LogicalUnitId, Notification};
use serde_json::{Value, json};

use super::link::*;
use super::*;

struct Disk(Mutex<Geometry>);

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        *self.0.lock().unwrap()
    }
    fn product_name(&self) -> &'static str {
        "Fake disk"
    }
    fn open_channel(&self, _: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Err(BlockError::Gone)
    }
}

impl DeviceControls for Disk {
    fn resize(&self, blocks: u64) -> Result<(), DeviceError> {
        self.0.lock().unwrap().blocks = blocks;
        Ok(())
    }
    fn set_latency(&self, _: Latencies) -> Result<(), DeviceError> {
        Ok(())
    }
    fn inject(&self, _: Injection) -> Result<(), DeviceError> {
        Ok(())
    }
}

struct Factory;

impl DeviceFactory for Factory {
    fn create(&self, recipe: &Recipe, base: Option<Arc<dyn BlockDevice>>) -> Result<Device, DeviceError> {
        let (block_size, blocks) = match recipe {
            Recipe::Malloc { block_size, num_blocks, .. } | Recipe::Null { block_size, num_blocks, .. } => {
                (*block_size, *num_blocks)
            }
            Recipe::File { filename, .. } if filename == "/absent" => {
                return Err(DeviceError::new(
                    errno::ENOENT,
                    "cannot open /absent: No such file or directory",
                ));
            }
            Recipe::File { .. } => (512, 1000),
            _ => base.map(|base| (base.geometry().block_size, base.geometry().blocks)).unwrap(),
        };
        let geometry = Geometry {
            block_size,
            blocks,
            physical_block_exponent: 0,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: 0,
            optimal_transfer_blocks: 0,
            write_cache: false,
            read_only: false,
            rotational: false,
            provisioning: Provisioning::default(),
            buffer_alignment: 1,
            capabilities: bdev::Capabilities::default(),
            atomic: bdev::AtomicWrites::default(),
        };
        let disk = Arc::new(Disk(Mutex::new(geometry)));
        Ok(Device { device: disk.clone(), controls: disk })
    }

    fn open_pci(&self, _: NvmeTransport, address: &str) -> Result<Arc<dyn reactor::PciDevice>, DeviceError> {
        Err(DeviceError::new(errno::ENODEV, format!("{address}: there is no such device")))
    }

    fn free_controllers(&self) -> Vec<String> {
        Vec::new()
    }
}

#[derive(Default)]
struct Cores {
    log: Mutex<Vec<String>>,
    /// The request whose text begins so fails.
    failing: Mutex<Option<&'static str>>,
    silent: std::sync::atomic::AtomicBool,
    traffic: Mutex<Vec<UnitTraffic>>,
}

impl Cores {
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

fn text_of(request: &CoreRequest) -> String {
    match request {
        CoreRequest::Scsi(ControlRequest::AddLogicalUnit { unit, home, .. }) => {
            format!("add {} at {}", unit.0, home.0)
        }
        CoreRequest::Scsi(ControlRequest::RemoveLogicalUnit { unit }) => format!("remove {}", unit.0),
        CoreRequest::Scsi(ControlRequest::CapacityChanged { unit }) => format!("capacity {}", unit.0),
        CoreRequest::Scsi(ControlRequest::MediumChanged { unit, present }) => {
            format!("medium {} {present}", unit.0)
        }
        CoreRequest::Scsi(ControlRequest::SetLunMap { target, map }) => {
            let luns: Vec<String> =
                map.mappings.iter().map(|m| format!("{:?}={}", m.lun.number().unwrap(), m.unit.0)).collect();
            format!("map {} [{}]", target.0, luns.join(","))
        }
        CoreRequest::Scsi(ControlRequest::RemoveTarget { target }) => format!("untarget {}", target.0),
        CoreRequest::Scsi(ControlRequest::Quiesce) => "quiesce".to_owned(),
        CoreRequest::IscsiConfig(config) => format!(
            "config targets={} portals={} ready={}",
            config.targets.len(),
            config.portal_groups.len(),
            config.ready
        ),
        CoreRequest::RequestLogout { .. } => "logout".to_owned(),
        CoreRequest::Report => "report".to_owned(),
    }
}

impl CoreLink for Cores {
    fn cores(&self) -> u16 {
        2
    }
    fn request(&self, core: CoreId, request: CoreRequest) -> Waiting<'_, Result<CoreReply, LinkError>> {
        Box::pin(async move {
            if self.silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if matches!(request, CoreRequest::Report) {
                let units = if core.0 == 0 { self.traffic.lock().unwrap().clone() } else { Vec::new() };
                return Ok(CoreReply::Report(Box::new(CoreReport { units, ..CoreReport::default() })));
            }
            let text = text_of(&request);
            let fails = self.failing.lock().unwrap().is_some_and(|start| text.starts_with(start));
            self.log.lock().unwrap().push(format!("{}: {text}", core.0));
            let outcome =
                if fails { ControlOutcome::Failed("on purpose".to_owned()) } else { ControlOutcome::Done };
            Ok(CoreReply::Outcome(outcome))
        })
    }
}

#[derive(Default)]
struct Reactors(Mutex<Option<ReactorMode>>);

impl Machine for Reactors {
    fn reactors(&self) -> Vec<ReactorReport> {
        let report = |core| ReactorReport {
            core: CoreId(core),
            cpu: None,
            busy_ns: 5,
            idle_ns: 7,
            turns: 3,
            turns_busy: 2,
        };
        vec![report(0), report(1)]
    }
    fn mode(&self) -> ReactorMode {
        self.0.lock().unwrap().unwrap_or(ReactorMode::Adaptive)
    }
    fn set_mode(&self, mode: ReactorMode) {
        *self.0.lock().unwrap() = Some(mode);
    }
    fn stop(&self) {}
}

struct Bench {
    cores: Arc<Cores>,
    control: Arc<Control>,
    rpc: Dispatcher,
}

impl Bench {
    fn cold() -> Bench {
        let cores = Arc::new(Cores::default());
        let (control, rpc) = Control::new(Parts {
            link: cores.clone(),
            machine: Arc::new(Reactors::default()),
            factory: Arc::new(Factory),
            nvme: NvmeService::new().unwrap(),
            limits: Limits { logical_units_max: 8, luns_per_target_max: 4, ..Limits::default() },
            log: LogControl::default(),
        });
        Bench { cores, control, rpc }
    }

    async fn started() -> Bench {
        let bench = Bench::cold();
        bench.control.start(None).await.unwrap();
        bench.cores.taken();
        bench
    }

    async fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.rpc
            .call(method, Some(&params.to_string()))
            .await
            .map(|text| serde_json::from_str(&text).unwrap())
    }

    async fn ok(&self, method: &str, params: Value) -> Value {
        self.call(method, params.clone()).await.unwrap_or_else(|error| panic!("{method} {params}: {error:?}"))
    }

    async fn fails(&self, method: &str, params: Value) -> RpcError {
        self.call(method, params.clone()).await.expect_err(&format!("{method} {params}"))
    }

    /// Two disks, one target with both.
    async fn furnished() -> Bench {
        let bench = Bench::started().await;
        bench.ok("bdev_malloc_create", json!({"name": "A", "num_blocks": 100, "block_size": 512})).await;
        bench.ok("bdev_null_create", json!({"name": "B", "num_blocks": 2048, "block_size": 4096})).await;
        bench
            .ok(
                "iscsi_create_portal_group",
                json!({"tag": 1, "portals": [{"host": "127.0.0.1", "port": "3260"}]}),
            )
            .await;
        bench
            .ok(
                "iscsi_create_initiator_group",
                json!({"tag": 2, "initiators": ["ANY"], "netmasks": ["127.0.0.1/32"]}),
            )
            .await;
        bench.ok("iscsi_create_auth_group", json!({"tag": 3, "secrets": [{"user": "alice", "secret": "SECRETSECRET1", "muser": "node", "msecret": "SECRETSECRET2"}]})).await;
        let luns = json!([{"bdev_name": "A", "lun_id": 0}, {"bdev_name": "B", "lun_id": 1}]);
        bench.ok("iscsi_create_target_node", json!({"name": "disk1", "alias_name": "x", "luns": luns, "pg_ig_maps": [{"pg_tag": 1, "ig_tag": 2}], "queue_depth": 64, "require_chap": true, "chap_group": 3})).await;
        bench
    }
}

#[tokio::test]
async fn a_target_is_units_then_map_then_config() {
    let bench = Bench::furnished().await;
    let log = bench.cores.taken();
    let tail = &log[log.len() - 5..];
    assert_eq!(
        tail,
        [
            "0: add 0 at 0",
            "1: add 1 at 1",
            "0: map 0 [0=0,1=1]",
            "0: config targets=1 portals=1 ready=true",
            "1: config targets=1 portals=1 ready=true"
        ]
    );
    // A second target over the same disk uses the same unit.
    bench.ok("iscsi_create_target_node", json!({"name": "iqn.2020-01.org.x:two", "luns": [{"bdev_name": "A", "lun_id": 0}], "pg_ig_maps": []})).await;
    assert_eq!(bench.cores.taken()[0], "0: map 1 [0=0]");
    let targets = bench.ok("iscsi_get_target_nodes", json!({})).await;
    assert_eq!(targets[0]["name"], "iqn.2026-01.io.pollux:disk1");
    assert_eq!(targets[1]["name"], "iqn.2020-01.org.x:two");
    assert_eq!(
        bench.ok("scsi_get_devices", json!({})).await[1],
        json!({"id": 1, "device_name": "iqn.2020-01.org.x:two"})
    );
}

#[tokio::test]
async fn a_failed_step_leaves_nothing() {
    for (failing, undone) in [("add 1", "0: remove 0"), ("map 0", "1: remove 1"), ("config", "0: untarget 0")]
    {
        let bench = Bench::furnished().await;
        bench.ok("iscsi_delete_target_node", json!({"name": "disk1"})).await;
        bench.cores.taken();
        let before = bench.control.saved("iscsi", true).unwrap();
        *bench.cores.failing.lock().unwrap() = Some(failing);
        let params = json!({"name": "disk2", "luns": [{"bdev_name": "A", "lun_id": 0}, {"bdev_name": "B", "lun_id": 1}], "pg_ig_maps": [{"pg_tag": 1, "ig_tag": 2}]});
        let error = bench.fails("iscsi_create_target_node", params.clone()).await;
        assert!(error.message.contains("failed: on purpose"), "{error}");
        assert!(bench.cores.taken().contains(&undone.to_owned()), "{failing}");
        assert_eq!(
            serde_json::to_value(bench.control.saved("iscsi", true)).unwrap(),
            serde_json::to_value(Some(before)).unwrap()
        );
        assert!(bench.control.state().bdevs.values().all(|bdev| bdev.unit.is_none()));
        *bench.cores.failing.lock().unwrap() = None;
        bench.ok("iscsi_create_target_node", params).await;
    }
}

#[tokio::test]
async fn deleting_a_bdev_takes_its_luns_and_what_stands_on_it() {
    let bench = Bench::furnished().await;
    bench.cores.taken();
    bench.ok("bdev_malloc_delete", json!({"name": "A"})).await;
    assert_eq!(bench.cores.taken(), ["0: map 0 [1=1]", "0: remove 0"]);
    bench.ok("bdev_malloc_create", json!({"name": "C", "num_blocks": 8, "block_size": 512})).await;
    bench.ok("bdev_error_create", json!({"base_name": "C"})).await;
    bench.ok("bdev_delay_create", json!({"name": "D", "base_bdev_name": "EE_C", "avg_read_latency": 1, "p99_read_latency": 1, "avg_write_latency": 1, "p99_write_latency": 2})).await;
    bench.ok("iscsi_target_node_add_lun", json!({"name": "disk1", "bdev_name": "D"})).await;
    assert_eq!(bench.cores.taken(), ["0: add 0 at 0", "0: map 0 [0=0,1=1]"]);
    // What is in use by another cannot be used again.
    assert_eq!(
        bench.fails("iscsi_target_node_add_lun", json!({"name": "disk1", "bdev_name": "C"})).await.code,
        -errno::EPERM
    );
    assert_eq!(bench.fails("bdev_error_create", json!({"base_name": "D"})).await.code, -errno::EPERM);
    bench.ok("bdev_malloc_delete", json!({"name": "C"})).await;
    assert_eq!(bench.cores.taken(), ["0: map 0 [1=1]", "0: remove 0"]);
    assert_eq!(bench.ok("bdev_get_bdevs", json!({})).await.as_array().unwrap().len(), 1);
    let events = bench.ok("notify_get_notifications", json!({"id": 6})).await;
    assert_eq!(events.as_array().unwrap().len(), 3);
    assert_eq!(events[0]["type"], "bdev_unregister");
}

#[tokio::test]
async fn a_saved_configuration_gives_the_same_node() {
    let bench = Bench::furnished().await;
    bench.ok("bdev_uring_create", json!({"name": "F", "filename": "/dev/fake"})).await;
    bench.ok("bdev_delay_create", json!({"name": "D", "base_bdev_name": "F", "avg_read_latency": 1, "p99_read_latency": 3, "avg_write_latency": 1, "p99_write_latency": 2})).await;
    bench.ok("bdev_null_resize", json!({"name": "B", "new_size": 1})).await;
    bench.ok("iscsi_set_options", json!({"nop_in_interval": 7, "node_base": "iqn.2024-01.org.y"})).await;
    bench.ok("iscsi_set_discovery_auth", json!({"require_chap": true, "chap_group": 3})).await;
    let portal = json!({"host": "127.0.0.1", "port": "3261", "advertised_host": "192.0.2.1", "advertised_port": "8000"});
    bench.ok("iscsi_create_portal_group", json!({"tag": 7, "portals": [portal]})).await;
    let groups = bench.ok("iscsi_get_portal_groups", json!({})).await;
    assert_eq!(groups[1]["portals"], json!([portal]));
    let save = |control: &Control| {
        json!({"subsystems": [
            {"subsystem": "bdev", "config": control.saved("bdev", true)},
            {"subsystem": "accel", "config": null},
            {"subsystem": "iscsi", "config": control.saved("iscsi", true)},
        ]})
    };
    let saved = save(&bench.control);
    let other = Bench::cold();
    other.control.start(Some(config::ConfigFile::parse(&saved.to_string()).unwrap())).await.unwrap();
    assert_eq!(save(&other.control), saved);
    // Portals come up while loading, initiators are admitted only at the end.
    let log = other.cores.taken();
    assert!(log.contains(&"0: config targets=0 portals=2 ready=false".to_owned()));
    assert_eq!(log.last().unwrap(), "1: config targets=1 portals=2 ready=true");
    assert_eq!(log.iter().filter(|line| line.contains("ready=true")).count(), 2);
}

#[tokio::test]
async fn a_wrong_configuration_names_the_place() {
    for (text, place) in [
        (json!({"subsystems": [{"subsystem": "disks", "config": []}]}), "subsystem \"disks\" is not known"),
        (
            json!({"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_wait_for_examine"}, {"method": "bdev_malloc_create", "params": {"name": "A"}}]}]}),
            "subsystem \"bdev\", config[1], method \"bdev_malloc_create\": bdev_malloc_create: parameter \"num_blocks\" is missing",
        ),
        (
            json!({"subsystems": [{"subsystem": "iscsi", "config": [{"method": "iscsi_frobnicate"}]}]}),
            "subsystem \"iscsi\", config[0], method \"iscsi_frobnicate\": Method not found",
        ),
        (
            json!({"subsystems": [{"subsystem": "nvmf", "config": [{"method": "nvmf_create_transport"}]}]}),
            "not built into this version",
        ),
    ] {
        let bench = Bench::cold();
        let error = bench
            .control
            .start(Some(config::ConfigFile::parse(&text.to_string()).unwrap()))
            .await
            .unwrap_err();
        assert!(error.contains(place), "{error}");
        assert!(!bench.control.state().ready);
    }
}

#[tokio::test]
async fn secrets_are_in_no_output() {
    let bench = Bench::furnished().await;
    for method in bench.rpc.methods().iter().map(|method| method.name) {
        if method.contains("get_") || method.starts_with("rpc") {
            let params = if method == "framework_get_config" { json!({"name": "iscsi"}) } else { json!({}) };
            if let Ok(result) = bench.call(method, params).await {
                assert!(!result.to_string().contains("SECRETSECRET"), "{method}: {result}");
            }
        }
    }
    let groups = bench.ok("iscsi_get_auth_groups", json!({})).await;
    assert_eq!(groups, json!([{"tag": 3, "secrets": [{"user": "alice", "muser": "node"}]}]));
    for params in [
        json!({"tag": 3, "user": "bob", "secret": "short-SECRET"[..8]}),
        json!({"tag": 3, "user": "bob", "secret": "SECRETSECRET9", "msecret": "SECRETSECRET9", "muser": "n"}),
        json!({"tag": 3, "user": "alice", "secret": "SECRETSECRET9"}),
    ] {
        let error = bench.fails("iscsi_auth_group_add_secret", params).await;
        assert!(!error.message.contains("SECRET"), "{error}");
    }
    let asked = bench.ok("framework_get_config", json!({"name": "iscsi", "include_secrets": true})).await;
    assert!(asked.to_string().contains("SECRETSECRET1"));
}

#[tokio::test]
async fn every_method_refuses_a_wrong_parameter_by_name() {
    let bench = Bench::furnished().await;
    for info in bench.rpc.methods() {
        let error = bench.fails(info.name, json!({"no_such_parameter": 1})).await;
        if error.code == -1 {
            continue;
        }
        assert_eq!(error.code, RpcError::INVALID_PARAMS, "{}: {error}", info.name);
        assert!(
            error.message.starts_with(&format!(
                "{}: parameter \"no_such_parameter\" is not known. Remedy: ",
                info.name
            )),
            "{error}"
        );
        for name in info.parameters["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let error = bench.fails(info.name, json!({})).await;
            assert!(
                error.message.starts_with(&format!("{}: parameter \"", info.name))
                    && error.message.contains("Remedy: add"),
                "{error}"
            );
            let error = bench.fails(info.name, json!({name: [[]]})).await;
            assert!(error.message.starts_with(&format!("{}: parameter \"{name}\"", info.name)), "{error}");
            assert!(error.message.contains("Remedy: "), "{error}");
        }
    }
}

#[tokio::test]
async fn refusals_have_spdks_codes_and_name_the_parameter() {
    let bench = Bench::furnished().await;
    let map = json!([{"pg_tag": 1, "ig_tag": 2}]);
    for (method, params, code, words) in [
        (
            "bdev_malloc_create",
            json!({"name": "A", "num_blocks": 1, "block_size": 512}),
            -17,
            "bdev \"A\" exists already",
        ),
        ("bdev_malloc_create", json!({"num_blocks": 1, "block_size": 500}), -32602, "\"block_size\": 500"),
        ("bdev_malloc_create", json!({"num_blocks": 0, "block_size": 512}), -32602, "\"num_blocks\""),
        ("bdev_malloc_create", json!({"num_blocks": u64::MAX, "block_size": 512}), -32602, "\"num_blocks\""),
        ("bdev_malloc_create", json!({"num_blocks": 1, "block_size": 512, "uuid": "x"}), -32602, "\"uuid\""),
        (
            "bdev_malloc_create",
            json!({"num_blocks": 1, "block_size": 512, "md_size": 8}),
            -32602,
            "\"md_size\": not built",
        ),
        ("bdev_null_create", json!({"name": "a b", "num_blocks": 1, "block_size": 512}), -32602, "\"name\""),
        ("bdev_aio_create", json!({"name": "F", "filename": "/absent"}), -2, "/absent"),
        ("bdev_malloc_delete", json!({"name": "Z"}), -19, "bdev \"Z\" does not exist"),
        ("bdev_malloc_delete", json!({"name": "B"}), -32602, "not a malloc bdev"),
        ("bdev_get_bdevs", json!({"name": "Z"}), -19, "No such device"),
        (
            "bdev_delay_create",
            json!({"name": "D", "base_bdev_name": "A", "avg_read_latency": 1, "p99_read_latency": 1, "avg_write_latency": 1, "p99_write_latency": 1}),
            -1,
            "in use by target",
        ),
        ("bdev_error_inject_error", json!({"name": "A", "io_type": "read"}), -32602, "not a error bdev"),
        (
            "iscsi_create_portal_group",
            json!({"tag": 0, "portals": [{"host": "127.0.0.1"}]}),
            -32602,
            "\"tag\"",
        ),
        (
            "iscsi_create_portal_group",
            json!({"tag": 9, "portals": [{"host": "localhost"}]}),
            -32602,
            "\"portals\"",
        ),
        (
            "iscsi_create_portal_group",
            json!({"tag": 9, "portals": [{"host": "127.0.0.1", "port": 3260}]}),
            -17,
            "portal group 1",
        ),
        (
            "iscsi_create_portal_group",
            json!({"tag": 9, "portals": [{"host": "127.0.0.2", "advertised_host": "example.com"}]}),
            -32602,
            "numeric address",
        ),
        (
            "iscsi_create_portal_group",
            json!({"tag": 9, "portals": [{"host": "127.0.0.2", "advertised_host": "0.0.0.0"}]}),
            -32602,
            "nobody can connect",
        ),
        (
            "iscsi_create_portal_group",
            json!({"tag": 9, "portals": [{"host": "127.0.0.2", "advertised_port": 3260}]}),
            -32602,
            "without advertised_host",
        ),
        (
            "iscsi_create_portal_group",
            json!({"tag": 1, "portals": [{"host": "127.0.0.2"}]}),
            -17,
            "portal group 1",
        ),
        (
            "iscsi_create_initiator_group",
            json!({"tag": 5, "initiators": [], "netmasks": ["ANY"]}),
            -32602,
            "\"initiators\"",
        ),
        (
            "iscsi_create_initiator_group",
            json!({"tag": 5, "initiators": ["ANY"], "netmasks": ["x"]}),
            -32602,
            "\"netmasks\"",
        ),
        (
            "iscsi_initiator_group_remove_initiators",
            json!({"tag": 2, "netmasks": ["10.0.0.1"]}),
            -19,
            "10.0.0.1",
        ),
        ("iscsi_create_target_node", json!({"name": "disk1", "pg_ig_maps": map}), -17, "disk1"),
        ("iscsi_create_target_node", json!({"name": "d é", "pg_ig_maps": map}), -32602, "\"name\""),
        (
            "iscsi_create_target_node",
            json!({"name": "d2", "pg_ig_maps": [{"pg_tag": 7, "ig_tag": 2}]}),
            -19,
            "portal group 7",
        ),
        (
            "iscsi_create_target_node",
            json!({"name": "d2", "pg_ig_maps": map, "disable_chap": true, "require_chap": true}),
            -32602,
            "\"disable_chap\"",
        ),
        (
            "iscsi_create_target_node",
            json!({"name": "d2", "pg_ig_maps": map, "luns": [{"bdev_name": "Z", "lun_id": 0}]}),
            -19,
            "bdev \"Z\"",
        ),
        (
            "iscsi_create_target_node",
            json!({"name": "d2", "pg_ig_maps": map, "luns": [{"bdev_name": "A", "lun_id": 20000}]}),
            -32602,
            "\"luns\"",
        ),
        ("iscsi_target_node_add_lun", json!({"name": "disk1", "bdev_name": "A", "lun_id": 0}), -17, "LUN 0"),
        ("iscsi_target_node_set_redirect", json!({"name": "disk1", "pg_tag": 1}), -32602, "not built"),
        ("iscsi_set_options", json!({"max_sessions": 1_000_000}), -32602, "\"max_sessions\""),
        ("iscsi_set_options", json!({"first_burst_length": 100}), -32602, "\"first_burst_length\""),
        ("framework_set_scheduler", json!({"name": "dynamic"}), -32602, "\"name\""),
        ("framework_get_config", json!({"name": "x"}), -22, "\"name\""),
        ("reactor_set_mode", json!({"mode": "sleep"}), -32602, "\"mode\""),
        ("log_set_level", json!({"level": "LOUD"}), -32602, "\"level\""),
        ("log_set_flag", json!({"flag": "x"}), -32602, "\"flag\""),
        ("framework_start_init", json!({}), -1, "before framework_start_init"),
        ("nvmf_create_subsystem", json!({}), -32601, "not built into this version"),
        ("no_such_method", json!({}), -32601, "rpc_get_methods"),
    ] {
        let error = bench.fails(method, params).await;
        assert_eq!(error.code, code, "{method}: {error}");
        assert!(error.message.contains(words), "{method}: {error}");
        assert!(error.message.contains(method) || error.code == -32601, "{error}");
        assert!(error.message.contains("Remedy") || code == -2 || code == -32601, "{method}: {error}");
    }
}

#[tokio::test]
async fn runtime_methods_wait_for_the_start() {
    let bench = Bench::cold();
    assert_eq!(bench.fails("bdev_get_bdevs", json!({})).await.code, RpcError::INVALID_STATE);
    bench.ok("iscsi_set_options", json!({"nop_timeout": 9})).await;
    let (rpc, waited) = (bench.rpc.clone(), bench.rpc.clone());
    let waiting = tokio::spawn(async move { waited.call("framework_wait_init", None).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    bench.control.keep_for_start(Some(config::ConfigFile::parse(r#"{"subsystems":[{"subsystem":"bdev","config":[{"method":"bdev_malloc_create","params":{"num_blocks":1,"block_size":512}}]}]}"#).unwrap()));
    rpc.call("framework_start_init", None).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "true");
    assert_eq!(bench.ok("bdev_get_bdevs", json!({"name": "Malloc0"})).await[0]["num_blocks"], 1);
    assert_eq!(bench.ok("iscsi_get_options", json!({})).await["nop_timeout"], 9);
}

#[tokio::test]
async fn the_known_names_are_answered_or_explained() {
    let bench = Bench::started().await;
    let built: Vec<&str> = bench.rpc.methods().iter().map(|method| method.name).collect();
    for name in known::KNOWN_METHODS {
        if !built.contains(&name) {
            assert!(bench.fails(name, json!({})).await.message.contains("is a known SPDK method"), "{name}");
        }
    }
    let document = bench.ok("rpc.discover", json!({})).await;
    let described: Vec<&str> = document["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|method| method["name"].as_str().unwrap())
        .collect();
    assert_eq!(described, built);
    for method in document["methods"].as_array().unwrap() {
        assert!(method["description"].as_str().unwrap().len() > 10);
        for parameter in method["params"].as_array().unwrap() {
            assert!(parameter["description"].is_string(), "{} {}", method["name"], parameter["name"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_core_that_does_not_answer_does_not_hold_readers() {
    let bench = Bench::furnished().await;
    bench.cores.silent.store(true, Ordering::Relaxed);
    let rpc = bench.rpc.clone();
    let stuck =
        tokio::spawn(async move { rpc.call("iscsi_delete_target_node", Some(r#"{"name":"disk1"}"#)).await });
    tokio::task::yield_now().await;
    assert_eq!(bench.ok("bdev_get_bdevs", json!({})).await.as_array().unwrap().len(), 2);
    let error = bench.fails("iscsi_get_connections", json!({})).await;
    assert_eq!(
        (error.code, error.message.contains("did not answer within 2000 ms")),
        (-errno::ETIMEDOUT, true),
        "{error}"
    );
    let error = stuck.await.unwrap().unwrap_err();
    assert_eq!(error.code, -errno::ETIMEDOUT);
    assert_eq!(bench.control.state().targets.len(), 1);
}

#[tokio::test]
async fn what_watches_devices_reaches_the_homes_of_all_that_stand_on_them() {
    let bench = Bench::furnished().await;
    bench.cores.taken();
    bench.control.medium_changed("B", false).await.unwrap();
    bench.control.medium_changed("B", true).await.unwrap();
    assert_eq!(bench.cores.taken(), ["1: medium 1 false", "1: medium 1 true"]);
    bench.ok("bdev_malloc_create", json!({"name": "C", "num_blocks": 100, "block_size": 512})).await;
    bench.ok("bdev_error_create", json!({"base_name": "C"})).await;
    bench.ok("iscsi_target_node_add_lun", json!({"name": "disk1", "bdev_name": "EE_C"})).await;
    bench.cores.taken();
    bench.control.medium_changed("C", false).await.unwrap();
    let told = bench.cores.taken();
    assert!(told.len() == 1 && told[0].ends_with("medium 2 false"), "{told:?}");
    let error = bench.control.medium_changed("Z", false).await.unwrap_err();
    assert_eq!(error.code, -errno::ENODEV);
}

#[tokio::test]
async fn traffic_is_summed_and_reset() {
    let bench = Bench::furnished().await;
    let unit = UnitTraffic {
        unit: Some(LogicalUnitId(0)),
        reads: 10,
        bytes_read: 5120,
        read_latency_ns: 99,
        ..UnitTraffic::default()
    };
    *bench.cores.traffic.lock().unwrap() = vec![unit];
    let stat = bench.ok("bdev_get_iostat", json!({"name": "A"})).await;
    assert_eq!(
        (&stat["bdevs"][0]["num_read_ops"], &stat["bdevs"][0]["read_latency_ticks"]),
        (&json!(10), &json!(99))
    );
    assert_eq!(stat["tick_rate"], 1_000_000_000);
    bench.ok("bdev_reset_iostat", json!({})).await;
    let stat = bench.ok("bdev_get_iostat", json!({})).await;
    assert_eq!(stat["bdevs"][0]["num_read_ops"], 0);
    assert_eq!(stat["bdevs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn sizes_identities_and_what_cores_notice() {
    let bench = Bench::furnished().await;
    bench.cores.taken();
    bench.ok("bdev_null_resize", json!({"name": "B", "new_size": 16})).await;
    assert_eq!(bench.cores.taken(), ["1: capacity 1"]);
    assert_eq!(bench.ok("bdev_get_bdevs", json!({"name": "B"})).await[0]["num_blocks"], 4096);
    bench.ok("bdev_aio_create", json!({"name": "F", "filename": "/dev/fake"})).await;
    let first = bench.ok("bdev_get_bdevs", json!({"name": "F"})).await[0]["uuid"].clone();
    assert_eq!(bench.fails("bdev_aio_create", json!({"name": "G", "filename": "/dev/fake"})).await.code, -17);
    bench.ok("bdev_aio_delete", json!({"name": "F"})).await;
    bench.ok("bdev_aio_create", json!({"name": "G", "filename": "/dev/fake"})).await;
    assert_eq!(bench.ok("bdev_get_bdevs", json!({"name": "G"})).await[0]["uuid"], first);
    for notification in [
        Notification::DeviceGone { unit: LogicalUnitId(1) },
        Notification::DeviceReturned { unit: LogicalUnitId(1) },
        Notification::UnitFenced { unit: LogicalUnitId(1) },
    ] {
        bench.control.handle_notification(&notification);
    }
    let events = bench.ok("notify_get_notifications", json!({})).await;
    let last = events.as_array().unwrap().last().unwrap();
    assert_eq!((&last["type"], &last["ctx"]), (&json!("unit_fenced"), &json!("B")));
    let types: Vec<_> = events.as_array().unwrap().iter().rev().take(3).map(|event| &event["type"]).collect();
    assert_eq!(types, ["unit_fenced", "device_returned", "device_gone"]);
    let known = bench.ok("notify_get_types", json!({})).await;
    assert!(types.iter().all(|kind| known.as_array().unwrap().contains(kind)));
    for (method, member) in [
        ("framework_get_reactors", "reactors"),
        ("thread_get_stats", "threads"),
        ("thread_get_pollers", "threads"),
    ] {
        assert_eq!(bench.ok(method, json!({})).await[member].as_array().unwrap().len(), 2);
    }
    bench.ok("reactor_set_mode", json!({"mode": "poll"})).await;
    assert_eq!(bench.ok("framework_get_reactors", json!({})).await["reactors"][0]["mode"], "poll");
}

#[tokio::test]
async fn nvme_parameters_that_are_not_built_are_refused_by_name() {
    let bench = Bench::started().await;
    let refused = async |method: &str, good: Value, cases: &[(&str, Value)]| {
        for (parameter, value) in cases {
            let mut params = good.clone();
            params[*parameter] = value.clone();
            let error = bench.fails(method, params).await;
            assert_eq!(error.code, RpcError::INVALID_PARAMS, "{parameter}: {error}");
            assert!(error.message.contains(&format!("parameter \"{parameter}\"")), "{parameter}: {error}");
            assert!(error.message.contains("Remedy: "), "{error}");
        }
    };
    let attach = json!({"name": "Nvme0", "trtype": "PCIe", "traddr": "0000:01:00.0"});
    let cases = [
        ("trtype", json!("tcp")),
        ("trtype", json!("floppy")),
        ("traddr", json!("nonsense")),
        ("name", json!("a b")),
        ("adrfam", json!("ipv4")),
        ("trsvcid", json!("4420")),
        ("hostnqn", json!("nqn.x")),
        ("hdgst", json!(true)),
        ("psk", json!("key")),
        ("prchk_reftag", json!(true)),
        ("prchk_guard", json!(true)),
        ("ctrlr_loss_timeout_sec", json!(5)),
        ("reconnect_delay_sec", json!(1)),
        ("fast_io_fail_timeout_sec", json!(1)),
        ("multipath", json!("sometimes")),
        ("num_io_queues", json!(0)),
        ("max_bdevs", json!(0)),
    ];
    refused("bdev_nvme_attach_controller", attach.clone(), &cases).await;
    let vfio_user = json!({"name": "Nvme0", "trtype": "vfiouser", "traddr": "/run/x"});
    refused("bdev_nvme_attach_controller", vfio_user, &[("traddr", json!("run/x"))]).await;
    let options = [
        ("action_on_timeout", json!("panic")),
        ("timeout_us", json!(u64::MAX)),
        ("nvme_adminq_poll_period_us", json!(0)),
        ("io_queue_requests", json!(1)),
        ("delay_cmd_submit", json!(false)),
        ("arbitration_burst", json!(1)),
        ("bdev_retry_count", json!(7)),
        ("io_path_stat", json!(true)),
    ];
    refused("bdev_nvme_set_options", json!({}), &options).await;
    refused("bdev_nvme_set_hotplug", json!({"enable": true}), &[("period_us", json!(10_000_001))]).await;
    // What another server saves loads: values that ask for nothing.
    let foreign = json!({
        "action_on_timeout": "none", "timeout_us": 0, "timeout_admin_us": 0, "keep_alive_timeout_ms": 10000,
        "arbitration_burst": 0, "low_priority_weight": 0, "medium_priority_weight": 0, "high_priority_weight": 0,
        "nvme_adminq_poll_period_us": 10000, "nvme_ioq_poll_period_us": 0, "io_queue_requests": 0,
        "delay_cmd_submit": true, "transport_retry_count": 4, "bdev_retry_count": 3, "transport_ack_timeout": 0,
        "ctrlr_loss_timeout_sec": 0, "reconnect_delay_sec": 0, "fast_io_fail_timeout_sec": 0,
        "generate_uuids": false, "transport_tos": 0, "io_path_stat": false, "allow_accel_sequence": false
    });
    bench.ok("bdev_nvme_set_options", foreign).await;
    // The device is not there, and nothing is left of the attempt.
    let error = bench.fails("bdev_nvme_attach_controller", attach).await;
    assert_eq!(error.code, -errno::ENODEV, "{error}");
    assert_eq!(bench.ok("bdev_nvme_get_controllers", json!({})).await, json!([]));
    for method in
        ["bdev_nvme_detach_controller", "bdev_nvme_reset_controller", "bdev_nvme_get_controller_health_info"]
    {
        assert_eq!(bench.fails(method, json!({"name": "Nvme0"})).await.code, -errno::ENODEV, "{method}");
    }
    assert!(bench.fails("bdev_nvme_apply_firmware", json!({})).await.message.contains("not built"));
}

/// A configuration with a controller, what it had, and a target on it.
fn with_controller(namespaces: Value) -> Value {
    let mut attach = json!({"name": "Nvme0", "trtype": "PCIe", "traddr": "0000:01:00.0", "num_io_queues": 2});
    if !namespaces.is_null() {
        attach["namespaces"] = namespaces;
    }
    let delay = json!({"name": "Slow", "base_bdev_name": "Nvme0n3", "avg_read_latency": 1, "p99_read_latency": 1, "avg_write_latency": 1, "p99_write_latency": 1});
    let luns = json!([{"bdev_name": "Nvme0n1", "lun_id": 0}, {"bdev_name": "Slow", "lun_id": 1}]);
    json!({"subsystems": [
        {"subsystem": "bdev", "config": [
            {"method": "bdev_nvme_set_options", "params": {"action_on_timeout": "reset", "timeout_us": 5_000_000, "timeout_admin_us": 6_000_000, "nvme_adminq_poll_period_us": 1000, "transport_retry_count": 9, "io_queue_requests": 64}},
            {"method": "bdev_nvme_set_hotplug", "params": {"enable": true, "period_us": 50_000}},
            {"method": "bdev_nvme_attach_controller", "params": attach},
            {"method": "bdev_delay_create", "params": delay},
            {"method": "bdev_wait_for_examine"},
        ]},
        {"subsystem": "iscsi", "config": [
            {"method": "iscsi_create_target_node", "params": {"name": "iqn.2020-01.org.x:one", "alias_name": "one", "pg_ig_maps": [], "luns": luns}},
        ]},
    ]})
}

#[tokio::test]
async fn a_controller_that_is_not_there_at_the_start_is_awaited() {
    let uuid = |last: u8| format!("01020304-0506-4708-890a-0b0c0d0e0f{last:02x}");
    let namespaces = json!([
        {"nsid": 1, "num_blocks": 1000, "block_size": 4096, "uuid": uuid(1)},
        {"nsid": 3, "num_blocks": 2000, "block_size": 512, "uuid": uuid(3)},
    ]);
    let config = with_controller(namespaces);
    let bench = Bench::cold();
    bench.control.start(Some(config::ConfigFile::parse(&config.to_string()).unwrap())).await.unwrap();
    // The targets have their LUNs, and those have no medium.
    let log = bench.cores.taken();
    for line in
        ["0: add 0 at 0", "1: add 1 at 1", "0: map 0 [0=0,1=1]", "0: medium 0 false", "1: medium 1 false"]
    {
        assert_eq!(log.iter().filter(|known| *known == line).count(), 1, "{line}: {log:?}");
    }
    let controllers = bench.ok("bdev_nvme_get_controllers", json!({"name": "Nvme0"})).await;
    assert_eq!(controllers[0]["ctrlrs"][0]["state"], "awaited");
    assert_eq!(controllers[0]["ctrlrs"][0]["trid"], json!({"trtype": "PCIe", "traddr": "0000:01:00.0"}));
    let bdev = &bench.ok("bdev_get_bdevs", json!({"name": "Nvme0n1"})).await[0];
    assert_eq!((&bdev["num_blocks"], &bdev["block_size"]), (&json!(1000), &json!(4096)));
    assert_eq!((&bdev["uuid"], &bdev["product_name"]), (&json!(uuid(1)), &json!("NVMe disk")));
    assert_eq!(bdev["driver_specific"]["nvme"][0]["pci_address"], "0000:01:00.0");
    assert_eq!(bdev["driver_specific"]["nvme"][0]["ns_data"]["id"], 1);
    let paths = bench.ok("bdev_nvme_get_io_paths", json!({"name": "Nvme0n1"})).await;
    assert_eq!(paths["poll_groups"][0]["io_paths"][0]["connected"], false);
    // Saved again it is the same.
    let saved = bench.ok("framework_get_config", json!({"name": "bdev"})).await;
    assert_eq!(saved.as_array().unwrap()[..3], config["subsystems"][0]["config"].as_array().unwrap()[..3]);
    // Options would only be for controllers that come later.
    assert_eq!(bench.fails("bdev_nvme_set_options", json!({"timeout_us": 1})).await.code, -errno::EPERM);
    // Somewhere else it is not detached.
    let elsewhere = json!({"name": "Nvme0", "traddr": "0000:02:00.0"});
    assert_eq!(bench.fails("bdev_nvme_detach_controller", elsewhere).await.code, -errno::ENODEV);
    bench
        .ok("bdev_nvme_detach_controller", json!({"name": "Nvme0", "trtype": "pcie", "traddr": "01:00.0"}))
        .await;
    assert_eq!(bench.cores.taken(), ["0: map 0 []", "0: remove 0", "1: remove 1"]);
    assert_eq!(bench.ok("bdev_get_bdevs", json!({})).await, json!([]));
}

#[tokio::test]
async fn a_controller_nothing_is_known_of_stops_the_start() {
    let start = async |config: Value| {
        Bench::cold()
            .control
            .start(Some(config::ConfigFile::parse(&config.to_string()).unwrap()))
            .await
            .unwrap_err()
    };
    let error = start(with_controller(Value::Null)).await;
    assert!(error.contains("config[2]") && error.contains("0000:01:00.0"), "{error}");
    for (wrong, word) in [
        (json!({"nsid": 1, "num_blocks": 1, "block_size": 4096, "uuid": "x"}), "uuid"),
        (
            json!({"nsid": 1, "num_blocks": 0, "block_size": 4096, "uuid": uuid::Uuid::max().to_string()}),
            "size",
        ),
        (
            json!({"nsid": 1, "num_blocks": u64::MAX, "block_size": 512, "uuid": uuid::Uuid::max().to_string()}),
            "size",
        ),
        (
            json!({"nsid": 1, "num_blocks": 9, "block_size": 513, "uuid": uuid::Uuid::max().to_string()}),
            "size",
        ),
    ] {
        let error = start(with_controller(json!([wrong]))).await;
        assert!(error.contains("\"namespaces\"") && error.contains(word), "{error}");
    }
}
