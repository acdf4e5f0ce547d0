//! `bdev_nvme_*` that attach, change and detach controllers.

use std::sync::Arc;
use std::time::Duration;

use nvme_backend::ControllerState;
use rpc::{Registry, RpcError, When, errno};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::framework::done;
use super::{Result, absent, exists, invalid, not_built};
use crate::control::config::Entry;
use crate::control::link::{DeviceError, NvmeTransport, Recipe};
use crate::control::node::Node;
use crate::control::nvme::{self, NvmeController, NvmeOptions};
use crate::control::nvme_disk::{NvmeDisk, Saved};
use crate::control::{Control, names};

/// Most of a period or a timeout: a day.
const MICROSECONDS_MAX: u64 = 86_400_000_000;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Attach {
    /// Name of the controller; its bdevs are called name, n and the namespace's number.
    name: String,
    /// PCIe: through VFIO. VFIOUSER: a server of the vfio-user protocol in another process.
    trtype: String,
    /// PCIe: the address, as 0000:01:00.0. VFIOUSER: the path of the socket, or of the folder with the socket "cntrl".
    traddr: String,
    /// The NVMe qualified name the subsystem must have; any when absent.
    subnqn: Option<String>,
    /// I/O queue pairs, at most; one for each reactor and one more when absent.
    num_io_queues: Option<u16>,
    /// Namespaces that become bdevs, at most.
    max_bdevs: Option<u32>,
    /// Checks the reference tag of protection information; only false is built.
    #[serde(default)]
    prchk_reftag: bool,
    /// Checks the guard of protection information; only false is built.
    #[serde(default)]
    prchk_guard: bool,
    /// disable, failover or multipath: what a second path under the same name would do. None can be added, so it is
    /// accepted and has no effect.
    multipath: Option<String>,
    /// Seconds to wait for a lost controller: only -1 (and 0, which other servers save) is built. Its bdevs stay, without a medium, until it is back.
    ctrlr_loss_timeout_sec: Option<i32>,
    /// Only 0 is built: bdev_nvme_set_hotplug says how often a lost controller is looked for.
    reconnect_delay_sec: Option<u32>,
    /// Only 0 is built: I/O to a lost controller fails at once.
    fast_io_fail_timeout_sec: Option<u32>,
    /// As save_config wrote them. In a configuration file: while the controller is not there, these stand in for its
    /// bdevs, without a medium, until it comes. At other times they are not looked at.
    #[serde(default)]
    namespaces: Vec<SavedNamespace>,
    /// Of NVMe over Fabrics; not built.
    adrfam: Option<String>,
    /// Of NVMe over Fabrics; not built.
    trsvcid: Option<String>,
    /// Of NVMe over Fabrics; not built.
    priority: Option<String>,
    /// Of NVMe over Fabrics; not built.
    hostnqn: Option<String>,
    /// Of NVMe over Fabrics; not built.
    hostaddr: Option<String>,
    /// Of NVMe over Fabrics; not built.
    hostsvcid: Option<String>,
    /// Of NVMe over Fabrics; only false is built.
    #[serde(default)]
    hdgst: bool,
    /// Of NVMe over Fabrics; only false is built.
    #[serde(default)]
    ddgst: bool,
    /// Of NVMe over Fabrics; not built.
    psk: Option<String>,
    /// Of NVMe over Fabrics; not built.
    dhchap_key: Option<String>,
    /// Of NVMe over Fabrics; not built.
    dhchap_ctrlr_key: Option<String>,
    /// Of NVMe over Fabrics; not built.
    fabrics_connect_timeout_us: Option<u64>,
}

/// A namespace as it was when it was saved.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct SavedNamespace {
    /// Namespace identifier.
    nsid: u32,
    /// Logical blocks.
    num_blocks: u64,
    /// Bytes of a logical block.
    block_size: u32,
    /// UUID of its bdev.
    uuid: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Detach {
    /// Name of the controller.
    name: String,
    /// When given: nothing is detached unless this is how the controller is reached.
    trtype: Option<String>,
    /// When given: nothing is detached unless this is where the controller is.
    traddr: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reset {
    /// Name of the controller.
    name: String,
    /// Of NVMe over Fabrics with several paths; not built.
    cntlid: Option<u16>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Hotplug {
    /// Whether controllers that appear on the PCI bus, bound to vfio-pci, are attached by themselves, as HotInNvmeN.
    enable: bool,
    /// Microseconds between two looks for controllers that came, or came back: at most 10,000,000; 0 is the default, 1,000,000.
    #[serde(default)]
    period_us: u64,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "bdev_nvme_attach_controller",
        When::Runtime,
        "Drives an NVMe controller and makes a bdev of each namespace. A controller that is removed later keeps its bdevs, without a medium, until it is back or detached. Returns the names of the bdevs.",
        |control: Arc<Control>, p: Attach| async move { control.attach(p).await },
    );
    registry.register(
        "bdev_nvme_detach_controller",
        When::Runtime,
        "Deletes the bdevs of a controller, shuts it down and lets go of it. Targets lose the LUNs that stand on them, and so do bdevs made on them.",
        |control: Arc<Control>, p: Detach| async move { done(control.detach(p).await) },
    );
    registry.register(
        "bdev_nvme_reset_controller",
        When::Runtime,
        "Resets a controller, also one that failed, and returns when it works again. I/O waits meanwhile.",
        |control: Arc<Control>, p: Reset| async move { done(control.reset(p).await) },
    );
    registry.register(
        "bdev_nvme_get_controllers",
        When::Runtime,
        "The controllers and what they are doing: enabled, resetting, failed (with the reason), removed (until it is back), awaited (not seen since the start) or deleting.",
        |control: Arc<Control>, p: OptionalName| async move { control.controllers(p.name.as_deref()) },
    );
    registry.register(
        "bdev_nvme_set_options",
        When::Always,
        "Sets how controllers are driven that are attached later. Refused while there are some. What is left out stays.",
        |control: Arc<Control>, p: SetOptions| async move { done(control.set_nvme_options(&p).await) },
    );
    registry.register(
        "bdev_nvme_set_hotplug",
        When::Always,
        "Whether controllers that appear are attached, and how often is looked for those that are lost. Lost ones are looked for in any case.",
        |control: Arc<Control>, p: Hotplug| async move { done(control.set_hotplug(&p).await) },
    );
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OptionalName {
    /// Only this one; all when absent.
    name: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    /// What follows when a command takes too long. none: it is waited for. abort: abort, then a queue reset, then a
    /// controller reset. reset: a controller reset at once.
    action_on_timeout: Option<String>,
    /// Microseconds an I/O command may take; 0: for ever.
    timeout_us: Option<u64>,
    /// Microseconds an admin command may take; 0: 60 seconds.
    timeout_admin_us: Option<u64>,
    /// Microseconds the service thread sleeps at most, 1 to 1,000,000.
    nvme_adminq_poll_period_us: Option<u64>,
    /// Times a command is sent again that was lost in a reset or failed with a passing error: 0 to 255.
    transport_retry_count: Option<u8>,
    /// Former name of transport_retry_count.
    retry_count: Option<u8>,
    /// I/O commands outstanding on one queue pair: 2 to 1,024. 0 leaves it.
    io_queue_requests: Option<u16>,
    /// Doorbells are written once a turn; only true is built.
    delay_cmd_submit: Option<bool>,
    /// Of NVMe over Fabrics: PCIe controllers have no keep alive, so any value is accepted.
    keep_alive_timeout_ms: Option<u64>,
    /// Only 0 is built.
    arbitration_burst: Option<u64>,
    /// Only 0 is built.
    low_priority_weight: Option<u64>,
    /// Only 0 is built.
    medium_priority_weight: Option<u64>,
    /// Only 0 is built.
    high_priority_weight: Option<u64>,
    /// Only 0 is built: reactors poll their queues every turn.
    nvme_ioq_poll_period_us: Option<u64>,
    /// Only 0 and 3 (which other servers save) are accepted: without several paths nothing is tried on another.
    bdev_retry_count: Option<i64>,
    /// Only 0 is built.
    transport_ack_timeout: Option<u64>,
    /// Only -1 and 0 are built.
    ctrlr_loss_timeout_sec: Option<i64>,
    /// Only 0 is built.
    reconnect_delay_sec: Option<u64>,
    /// Only 0 is built.
    fast_io_fail_timeout_sec: Option<u64>,
    /// Only false is built.
    disable_auto_failback: Option<bool>,
    /// Accepted: namespaces without an identifier get a UUID that stays in any case.
    generate_uuids: Option<bool>,
    /// Only 0 is built.
    transport_tos: Option<u64>,
    /// Only false is built.
    nvme_error_stat: Option<bool>,
    /// Only 0 is built.
    rdma_srq_size: Option<u64>,
    /// Only false is built.
    io_path_stat: Option<bool>,
    /// Only false is built.
    allow_accel_sequence: Option<bool>,
    /// Only 0 is built.
    rdma_max_cq_size: Option<u64>,
    /// Only 0 is built.
    rdma_cm_event_timeout_ms: Option<u64>,
    /// Of NVMe over Fabrics: any value is accepted.
    dhchap_digests: Option<Vec<String>>,
    /// Of NVMe over Fabrics: any value is accepted.
    dhchap_dhgroups: Option<Vec<String>>,
}

/// Whether an option that is not built has a value that asks for nothing; other servers save such values.
fn asks_for_nothing(option: &str, value: &Value) -> bool {
    let zero = || value.as_i64() == Some(0);
    match option {
        _ if value.is_null() => true,
        "keep_alive_timeout_ms" | "generate_uuids" | "dhchap_digests" | "dhchap_dhgroups" => true,
        "arbitration_burst"
        | "low_priority_weight"
        | "medium_priority_weight"
        | "high_priority_weight"
        | "nvme_ioq_poll_period_us"
        | "transport_ack_timeout"
        | "reconnect_delay_sec"
        | "fast_io_fail_timeout_sec"
        | "transport_tos"
        | "rdma_srq_size"
        | "rdma_max_cq_size"
        | "rdma_cm_event_timeout_ms" => zero(),
        "bdev_retry_count" => zero() || value.as_i64() == Some(3),
        "ctrlr_loss_timeout_sec" => zero() || value.as_i64() == Some(-1),
        _ => *value == Value::Bool(false),
    }
}

impl SetOptions {
    /// The options that are not built, as they were given.
    fn not_built(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("keep_alive_timeout_ms", json!(self.keep_alive_timeout_ms)),
            ("arbitration_burst", json!(self.arbitration_burst)),
            ("low_priority_weight", json!(self.low_priority_weight)),
            ("medium_priority_weight", json!(self.medium_priority_weight)),
            ("high_priority_weight", json!(self.high_priority_weight)),
            ("nvme_ioq_poll_period_us", json!(self.nvme_ioq_poll_period_us)),
            ("bdev_retry_count", json!(self.bdev_retry_count)),
            ("transport_ack_timeout", json!(self.transport_ack_timeout)),
            ("ctrlr_loss_timeout_sec", json!(self.ctrlr_loss_timeout_sec)),
            ("reconnect_delay_sec", json!(self.reconnect_delay_sec)),
            ("fast_io_fail_timeout_sec", json!(self.fast_io_fail_timeout_sec)),
            ("disable_auto_failback", json!(self.disable_auto_failback)),
            ("generate_uuids", json!(self.generate_uuids)),
            ("transport_tos", json!(self.transport_tos)),
            ("nvme_error_stat", json!(self.nvme_error_stat)),
            ("rdma_srq_size", json!(self.rdma_srq_size)),
            ("io_path_stat", json!(self.io_path_stat)),
            ("allow_accel_sequence", json!(self.allow_accel_sequence)),
            ("rdma_max_cq_size", json!(self.rdma_max_cq_size)),
            ("rdma_cm_event_timeout_ms", json!(self.rdma_cm_event_timeout_ms)),
            ("dhchap_digests", json!(self.dhchap_digests)),
            ("dhchap_dhgroups", json!(self.dhchap_dhgroups)),
        ]
    }

    fn apply(&self, options: &mut NvmeOptions) -> Result<()> {
        let method = "bdev_nvme_set_options";
        let microseconds = |parameter: &str, value: u64| {
            if value > MICROSECONDS_MAX {
                let text = format!("{value} is more than a day. Remedy: use at most {MICROSECONDS_MAX}");
                return Err(invalid(method, parameter, text));
            }
            Ok(Duration::from_micros(value))
        };
        if let Some((option, _)) =
            self.not_built().iter().find(|(option, value)| !asks_for_nothing(option, value))
        {
            return Err(not_built(method, option, "leave it out"));
        }
        if let Some(text) = &self.action_on_timeout {
            options.controller.timeout_action = nvme::timeout_action(text).ok_or_else(|| {
                invalid(
                    method,
                    "action_on_timeout",
                    format!("{text:?} is no action. Remedy: use none, abort or reset"),
                )
            })?;
        }
        if let Some(value) = self.timeout_us {
            options.controller.timeout = microseconds("timeout_us", value)?;
        }
        if let Some(value) = self.timeout_admin_us {
            options.controller.timeout_admin = microseconds("timeout_admin_us", value)?;
        }
        if let Some(value) = self.nvme_adminq_poll_period_us {
            if !(1..=1_000_000).contains(&value) {
                let text = format!("{value} is out of range. Remedy: use 1 to 1000000");
                return Err(invalid(method, "nvme_adminq_poll_period_us", text));
            }
            options.poll_period = Duration::from_micros(value);
        }
        if let Some(count) = self.transport_retry_count.or(self.retry_count) {
            options.controller.retries_max = count;
        }
        match self.io_queue_requests {
            None | Some(0) => {}
            Some(depth @ 2..=1024) => options.controller.queue_depth = depth,
            Some(depth) => {
                let text = format!("{depth} is out of range. Remedy: use 2 to 1024");
                return Err(invalid(method, "io_queue_requests", text));
            }
        }
        if self.delay_cmd_submit == Some(false) {
            return Err(not_built(method, "delay_cmd_submit", "leave it out, or use true"));
        }
        Ok(())
    }
}

impl Attach {
    /// Refuses what is not built.
    fn check(&self) -> Result<()> {
        let method = "bdev_nvme_attach_controller";
        let fabrics = [
            ("adrfam", self.adrfam.is_some()),
            ("trsvcid", self.trsvcid.is_some()),
            ("priority", self.priority.is_some()),
            ("hostnqn", self.hostnqn.is_some()),
            ("hostaddr", self.hostaddr.is_some()),
            ("hostsvcid", self.hostsvcid.is_some()),
            ("hdgst", self.hdgst),
            ("ddgst", self.ddgst),
            ("psk", self.psk.is_some()),
            ("dhchap_key", self.dhchap_key.is_some()),
            ("dhchap_ctrlr_key", self.dhchap_ctrlr_key.is_some()),
            ("fabrics_connect_timeout_us", self.fabrics_connect_timeout_us.is_some()),
        ];
        if let Some((parameter, _)) = fabrics.iter().find(|(_, given)| *given) {
            return Err(not_built(method, parameter, "leave it out: it belongs to NVMe over Fabrics"));
        }
        for (parameter, given) in [("prchk_reftag", self.prchk_reftag), ("prchk_guard", self.prchk_guard)] {
            if given {
                let remedy = "leave it out: the controller checks what its format says";
                return Err(not_built(method, parameter, remedy));
            }
        }
        if !matches!(self.ctrlr_loss_timeout_sec, None | Some(0 | -1)) {
            return Err(not_built(
                method,
                "ctrlr_loss_timeout_sec",
                "use -1: detach the controller to delete its bdevs",
            ));
        }
        for (parameter, value) in [
            ("reconnect_delay_sec", self.reconnect_delay_sec),
            ("fast_io_fail_timeout_sec", self.fast_io_fail_timeout_sec),
        ] {
            if !matches!(value, None | Some(0)) {
                return Err(not_built(method, parameter, "leave it out, or use 0"));
            }
        }
        if let Some(text) = self.multipath.as_deref()
            && !matches!(text, "disable" | "failover" | "multipath")
        {
            let text = format!("{text:?} is no such behaviour. Remedy: use disable, failover or multipath");
            return Err(invalid(method, "multipath", text));
        }
        if self.num_io_queues == Some(0) {
            return Err(invalid(method, "num_io_queues", "0 is no number of queues. Remedy: use 1 or more"));
        }
        if !matches!(self.max_bdevs, None | Some(1..=1024)) {
            return Err(invalid(method, "max_bdevs", "is out of range. Remedy: use 1 to 1024"));
        }
        Ok(())
    }

    /// What is to be attached.
    fn entry(&self) -> Result<NvmeController> {
        let method = "bdev_nvme_attach_controller";
        self.check()?;
        // Names of bdevs are made of it.
        names::bdev_name(&self.name)
            .map_err(|text| invalid(method, "name", format!("{text}. Remedy: choose another")))?;
        let transport = parse_transport(method, &self.trtype)?;
        let address = match transport {
            NvmeTransport::Pcie => pci_address(&self.traddr).ok_or_else(|| {
                let text = format!("{:?} is no PCI address. Remedy: use the form 0000:01:00.0", self.traddr);
                invalid(method, "traddr", text)
            })?,
            NvmeTransport::VfioUser if self.traddr.starts_with('/') => self.traddr.clone(),
            NvmeTransport::VfioUser => {
                let text = format!(
                    "{:?} is no absolute path. Remedy: use the socket's, beginning with /",
                    self.traddr
                );
                return Err(invalid(method, "traddr", text));
            }
        };
        Ok(NvmeController {
            name: self.name.clone(),
            order: 0,
            transport,
            address,
            queue_pairs_max: self.num_io_queues,
            namespaces_max: self.max_bdevs,
            hot: false,
            controller: None,
        })
    }
}

fn parse_transport(method: &str, text: &str) -> Result<NvmeTransport> {
    match text.to_ascii_lowercase().as_str() {
        "pcie" => Ok(NvmeTransport::Pcie),
        "vfiouser" => Ok(NvmeTransport::VfioUser),
        "rdma" | "tcp" | "fc" => Err(not_built(method, "trtype", "use PCIe or VFIOUSER")),
        _ => {
            Err(invalid(method, "trtype", format!("{text:?} is no transport. Remedy: use PCIe or VFIOUSER")))
        }
    }
}

/// A PCI address in its long form: `01:00.0` and `0000:1:0.0` are `0000:01:00.0`.
fn pci_address(text: &str) -> Option<String> {
    let (rest, function) = text.rsplit_once('.')?;
    let mut parts: Vec<&str> = rest.split(':').collect();
    if parts.len() == 2 {
        parts.insert(0, "0");
    }
    let [domain, bus, device] = parts.as_slice() else { return None };
    let hex = |text: &str, max: u32| {
        let plain = !text.is_empty() && text.len() <= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(text, 16).ok().filter(|number| plain && *number <= max)
    };
    let (domain, bus) = (hex(domain, u32::MAX)?, hex(bus, 0xFF)?);
    let (device, function) = (hex(device, 0x1F)?, hex(function, 7)?);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// The controller's entry.
pub(super) fn find_controller(node: &Node, method: &str, name: &str) -> Result<Arc<NvmeController>> {
    let found = node.controllers.get(name).cloned();
    found.ok_or_else(|| absent(method, format!("NVMe controller \"{name}\""), "bdev_nvme_get_controllers"))
}

/// SPDK's words for what a controller is doing, and three of our own: `removed`, `awaited`, `starting`.
fn state_name(entry: &NvmeController) -> &'static str {
    match entry.controller.as_ref().map(|controller| controller.state()) {
        None => "awaited",
        Some(ControllerState::Ready) => "enabled",
        Some(ControllerState::Starting | ControllerState::Resetting) => "resetting",
        Some(ControllerState::Failed) => "failed",
        Some(ControllerState::Gone) => "removed",
        Some(ControllerState::Detaching | ControllerState::Detached) => "deleting",
    }
}

/// A transport identifier as SPDK shows it.
pub(super) fn trid(entry: &NvmeController) -> Value {
    let mut trid = json!({"trtype": entry.transport.name(), "traddr": entry.address});
    let identity = entry.controller.as_ref().and_then(|controller| controller.identity());
    if let Some(name) = identity.map(|identity| identity.subsystem_name).filter(|name| !name.is_empty()) {
        trid["subnqn"] = json!(name);
    }
    trid
}

impl Control {
    async fn attach(&self, p: Attach) -> Result<Vec<String>> {
        let method = "bdev_nvme_attach_controller";
        let entry = p.entry()?;
        let name = entry.name.clone();
        let names = self.attach_controller(method, entry, &p.namespaces).await?;
        let state = self.state();
        let controller = state.controllers.get(&name).and_then(|entry| entry.controller.clone());
        let found =
            controller.and_then(|controller| controller.identity()).map(|identity| identity.subsystem_name);
        if let (Some(wanted), Some(found)) = (p.subnqn, found)
            && wanted != found
        {
            self.detach(Detach { name, trtype: None, traddr: None }).await?;
            let text = format!("the controller is of subsystem {found:?}. Remedy: use that, or leave it out");
            return Err(invalid(method, "subnqn", text));
        }
        Ok(names)
    }

    /// Brings a controller up and makes its bdevs. While the start-up configuration loads, one that is not there is
    /// awaited, if it is known what it had.
    ///
    /// # Errors
    /// What is in the way; nothing has changed then.
    pub(in crate::control) async fn attach_controller(
        &self,
        method: &str,
        entry: NvmeController,
        saved: &[SavedNamespace],
    ) -> Result<Vec<String>> {
        let turn = self.turn().await;
        let mut node = Node::clone(&self.state());
        if node.controllers.contains_key(&entry.name) {
            return Err(exists(method, format!("NVMe controller \"{}\"", entry.name)));
        }
        let taken = node.controllers.values().find(|other| other.place() == entry.place());
        if let Some(other) = taken {
            let text = format!("NVMe controller \"{}\", which is the one at {},", other.name, entry.address);
            return Err(exists(method, text));
        }
        let options = entry.options(&node);
        let (name, hot) = (entry.name.clone(), entry.hot);
        let mut entry = NvmeController { order: node.order_next, ..entry };
        node.order_next += 1;
        let waits = !node.ready && !saved.is_empty();
        let controller = match self.bring_up(entry.transport, &entry.address, options).await {
            Ok(controller) => Some(controller),
            Err(error) if waits && error.errno == errno::ENODEV => {
                tracing::warn!(target: "nvme", controller = name, %error, "the controller is not there yet; its bdevs wait for it without a medium");
                None
            }
            Err(error) => return Err(error.rpc(method)),
        };
        entry.controller.clone_from(&controller);
        node.controllers.insert(name.clone(), Arc::new(entry));
        // What came up is told by the bdevs; later events are for the watch.
        let made = (|| {
            let mut names = match &controller {
                Some(controller) => {
                    drop(controller.take_events());
                    nvme::add_bdevs(&mut node, &name, controller)?
                }
                None => Vec::new(),
            };
            if waits {
                names.extend(add_awaited(method, &mut node, &name, saved)?);
            }
            Ok(names)
        })();
        let done: Result<Vec<String>> = match made {
            Ok(names) => self.commit(&turn, node).await.map(|()| names),
            Err(error) => Err(error),
        };
        if let (Err(_), Some(controller)) = (&done, &controller) {
            self.shut_down(controller).await;
        }
        if hot {
            self.settle_media().await;
        }
        done
    }

    async fn detach(&self, p: Detach) -> Result<()> {
        let method = "bdev_nvme_detach_controller";
        let transport = p.trtype.as_deref().map(|text| parse_transport(method, text)).transpose()?;
        let entry = self
            .change(|node| {
                let entry = find_controller(node, method, &p.name)?;
                let address = p.traddr.as_deref().map(|text| pci_address(text).unwrap_or_else(|| text.to_owned()));
                let is_other = transport.is_some_and(|transport| transport != entry.transport)
                    || address.is_some_and(|address| address != entry.address);
                if is_other {
                    let text = format!(
                        "{method}: NVMe controller \"{}\" is at {} {}, not there. Remedy: leave trtype and traddr out",
                        p.name,
                        entry.transport.name(),
                        entry.address
                    );
                    return Err(RpcError::errno(errno::ENODEV, text));
                }
                let bdevs: Vec<String> = nvme::bdevs_of(node, &p.name).map(|(bdev, _)| bdev.name.clone()).collect();
                for bdev in bdevs {
                    node.remove_bdev(&bdev);
                }
                node.controllers.remove(&p.name);
                Ok(entry)
            })
            .await?;
        if let Some(controller) = &entry.controller {
            self.shut_down(controller).await;
        }
        Ok(())
    }

    async fn reset(&self, p: Reset) -> Result<()> {
        let method = "bdev_nvme_reset_controller";
        if p.cntlid.is_some() {
            return Err(not_built(method, "cntlid", "leave it out: a controller has one path"));
        }
        let entry = find_controller(&self.state(), method, &p.name)?;
        let failed = |error: DeviceError| error.rpc(method);
        let gone = || failed(DeviceError::new(errno::ENODEV, format!("\"{}\" is not there", p.name)));
        let controller = entry.controller.as_ref().ok_or_else(gone)?;
        if controller.state() == ControllerState::Gone {
            return Err(gone());
        }
        let before = controller.statistics().controller_resets;
        controller.request_reset();
        self.nvme.wake();
        // It begins when the service thread comes by.
        let end = tokio::time::Instant::now() + Duration::from_secs(5);
        while controller.statistics().controller_resets == before && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.await_ready(controller, &entry.address).await.map_err(failed)
    }

    fn controllers(&self, only: Option<&str>) -> Result<Vec<Value>> {
        let node = self.state();
        let entries = match only {
            Some(name) => vec![find_controller(&node, "bdev_nvme_get_controllers", name)?],
            None => node.controllers.values().cloned().collect(),
        };
        let describe = |entry: Arc<NvmeController>| {
            let identity = entry.controller.as_ref().and_then(|controller| controller.identity());
            let mut path = json!({
                "state": state_name(&entry),
                "trid": trid(&entry),
                "cntlid": identity.as_ref().map_or(0, |identity| identity.controller),
                "host": {"nqn": "", "addr": "", "svcid": ""},
            });
            if let Some(reason) = entry.controller.as_ref().and_then(|controller| controller.failure()) {
                path["failure"] = json!(reason);
            }
            json!({"name": entry.name, "ctrlrs": [path]})
        };
        Ok(entries.into_iter().map(describe).collect())
    }

    async fn set_nvme_options(&self, p: &SetOptions) -> Result<()> {
        self.change(|node| {
            p.apply(&mut node.nvme_options)?;
            if node.controllers.is_empty() {
                return Ok(());
            }
            let text = "bdev_nvme_set_options: there are controllers already, which would go on as they are. Remedy: call it before the first bdev_nvme_attach_controller";
            Err(RpcError::errno(errno::EPERM, text))
        })
        .await?;
        self.nvme.set_period(self.state().nvme_options.poll_period);
        Ok(())
    }

    async fn set_hotplug(&self, p: &Hotplug) -> Result<()> {
        if p.period_us > 10_000_000 {
            let text = "is more than 10 seconds. Remedy: use at most 10000000";
            return Err(invalid("bdev_nvme_set_hotplug", "period_us", text));
        }
        self.change(|node| {
            node.nvme_options.hotplug = p.enable;
            node.nvme_options.scan_period = match p.period_us {
                0 => NvmeOptions::default().scan_period,
                // A look asks the file system, and other processes.
                period => Duration::from_micros(period.max(10_000)),
            };
            Ok(())
        })
        .await?;
        self.nvme.moved();
        Ok(())
    }
}

/// Enters what stands in for the namespaces of a controller that are not there.
fn add_awaited(method: &str, node: &mut Node, name: &str, saved: &[SavedNamespace]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for namespace in saved {
        if nvme::bdevs_of(node, name).any(|(_, nsid)| nsid == namespace.nsid) {
            continue;
        }
        let wrong =
            |text: &str| invalid(method, "namespaces", format!("namespace {}: {text}", namespace.nsid));
        let uuid = uuid::Uuid::parse_str(&namespace.uuid)
            .map_err(|_| wrong("its uuid is none. Remedy: use what save_config wrote"))?;
        let fits = namespace.block_size.is_power_of_two()
            && (512..=65_536).contains(&namespace.block_size)
            && namespace.num_blocks > 0
            && namespace.num_blocks <= (1 << 62) / u64::from(namespace.block_size);
        if !fits {
            return Err(wrong("it cannot have this size. Remedy: use what save_config wrote"));
        }
        let disk =
            NvmeDisk::awaited(Saved { blocks: namespace.num_blocks, block_size: namespace.block_size });
        let recipe = Recipe::Nvme { controller: name.to_owned(), nsid: namespace.nsid };
        let bdev = nvme::bdev_name(name, namespace.nsid);
        nvme::add_bdev(node, &bdev, recipe, uuid, disk)?;
        names.push(bdev);
    }
    Ok(names)
}

/// The call that makes a controller what it is.
pub(super) fn attach_call(node: &Node, entry: &NvmeController) -> Entry {
    let mut params = json!({"name": entry.name, "trtype": entry.transport.name(), "traddr": entry.address});
    if let Some(queues) = entry.queue_pairs_max {
        params["num_io_queues"] = json!(queues);
    }
    if let Some(namespaces) = entry.namespaces_max {
        params["max_bdevs"] = json!(namespaces);
    }
    let mut namespaces: Vec<SavedNamespace> = nvme::bdevs_of(node, &entry.name)
        .map(|(bdev, nsid)| {
            let geometry = bdev.device.device.geometry();
            let (num_blocks, block_size) = (geometry.blocks, geometry.block_size);
            SavedNamespace { nsid, num_blocks, block_size, uuid: bdev.uuid.to_string() }
        })
        .collect();
    namespaces.sort_by_key(|namespace| namespace.nsid);
    if !namespaces.is_empty() {
        params["namespaces"] = json!(namespaces);
    }
    Entry { method: "bdev_nvme_attach_controller".to_owned(), params: Some(params) }
}

/// The calls that come before the first controller.
pub(super) fn option_calls(node: &Node) -> Vec<Entry> {
    let (options, standard) = (&node.nvme_options, NvmeOptions::default());
    let mut calls = Vec::new();
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if options.controller != standard.controller || options.poll_period != standard.poll_period {
        let params = json!({
            "action_on_timeout": nvme::timeout_action_name(options.controller.timeout_action),
            "timeout_us": micros(options.controller.timeout),
            "timeout_admin_us": micros(options.controller.timeout_admin),
            "nvme_adminq_poll_period_us": micros(options.poll_period),
            "transport_retry_count": options.controller.retries_max,
            "io_queue_requests": options.controller.queue_depth,
        });
        calls.push(Entry { method: "bdev_nvme_set_options".to_owned(), params: Some(params) });
    }
    if options.hotplug != standard.hotplug || options.scan_period != standard.scan_period {
        let params = json!({"enable": options.hotplug, "period_us": micros(options.scan_period)});
        calls.push(Entry { method: "bdev_nvme_set_hotplug".to_owned(), params: Some(params) });
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        for text in ["0000:01:00.0", "01:00.0", "0:1:0.0", "1:0.0"] {
            assert_eq!(pci_address(text).as_deref(), Some("0000:01:00.0"), "{text}");
        }
        assert_eq!(pci_address("10000:E1:1f.7").as_deref(), Some("10000:e1:1f.7"));
        for bad in
            ["", "01:00", "01:20.0", "01:00.8", "100:00.0", "x:00.0", "0:0:0:0.0", "+1:00.0", "/dev/nvme0"]
        {
            assert_eq!(pci_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn options_that_ask_for_nothing() {
        assert!(
            asks_for_nothing("arbitration_burst", &json!(0))
                && asks_for_nothing("arbitration_burst", &Value::Null)
        );
        assert!(
            !asks_for_nothing("arbitration_burst", &json!(1))
                && !asks_for_nothing("io_path_stat", &json!(true))
        );
        assert!(
            asks_for_nothing("bdev_retry_count", &json!(3))
                && !asks_for_nothing("bdev_retry_count", &json!(4))
        );
        assert!(
            asks_for_nothing("io_path_stat", &json!(false))
                && asks_for_nothing("keep_alive_timeout_ms", &json!(9))
        );
    }
}
