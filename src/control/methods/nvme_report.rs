//! `bdev_nvme_*` that ask controllers, and what `bdev_get_bdevs` says of their bdevs.

use std::sync::Arc;
use std::time::Duration;

use nvme_backend::{
    AdminAnswer, AdminError, AdminRequest, Controller, ControllerState, ControllerStatistics,
    TRANSFER_BYTES_MAX, Transfer,
};
use rpc::{NoParameters, Registry, RpcError, When, errno};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::framework::thread_name;
use super::nvme::{find_controller, trid};
use super::{Result, find_bdev, invalid, not_built};
use crate::control::Control;
use crate::control::link::{NvmeTransport, Recipe};
use crate::control::node::{Bdev, Node};

/// How long an answer is waited for beyond the controller's own time for admin commands.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Admin commands that change nothing: Get Log Page, Identify, Get Features (NVMe Base 2.0 §5).
const READING_OPCODES: [u8; 3] = [0x02, 0x06, 0x0A];

/// Admin commands that are the driver's own, because it would lose track: queues, asynchronous events, aborts, keep
/// alive, doorbells.
const DRIVER_OPCODES: [u8; 8] = [0x00, 0x01, 0x04, 0x05, 0x08, 0x0C, 0x18, 0x7C];

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Name {
    /// Name of the controller.
    name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetIoPaths {
    /// Only this bdev; all when absent.
    name: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SendCommand {
    /// Name of the controller.
    name: String,
    /// admin; io is not built.
    cmd_type: String,
    /// c2h: data comes from the controller. h2c: data goes to it.
    data_direction: String,
    /// The command, 64 bytes in base64url. Command identifier and data pointers are filled in.
    cmdbuf: String,
    /// The data of h2c, in base64url.
    data: Option<String>,
    /// Bytes of data for c2h.
    #[serde(default)]
    data_len: u32,
    /// Not built.
    metadata: Option<String>,
    /// Only 0 is built.
    #[serde(default)]
    metadata_len: u32,
    /// Milliseconds to wait for the answer; 0: as long as the controller is given.
    #[serde(default)]
    timeout_ms: u64,
    /// Also commands that change something, such as Format NVM or firmware commands. Without it only Get Log Page,
    /// Identify and Get Features are sent.
    #[serde(default)]
    allow_changes: bool,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "bdev_nvme_get_controller_health_info",
        When::Runtime,
        "The SMART / Health Information log page of a controller.",
        |control: Arc<Control>, p: Name| async move { control.health_info(&p.name).await },
    );
    registry.register(
        "bdev_nvme_get_transport_statistics",
        When::Runtime,
        "Counters of the queue pairs, summed over the cores: by transport, and for each controller.",
        |control: Arc<Control>, _: NoParameters| async move {
            Ok::<Value, RpcError>(control.transport_statistics())
        },
    );
    registry.register(
        "bdev_nvme_get_io_paths",
        When::Runtime,
        "The way of each reactor to each NVMe bdev. There is one.",
        |control: Arc<Control>, p: GetIoPaths| async move { control.io_paths(p.name.as_deref()) },
    );
    registry.register(
        "bdev_nvme_send_cmd",
        When::Runtime,
        "Sends an admin command to a controller. Returns the completion (16 bytes, of which dwords 0 and 1 and the status field are the controller's) and the data, in base64url.",
        |control: Arc<Control>, p: SendCommand| async move { control.send_command(p).await },
    );
}

/// Base64 with the alphabet for URLs (RFC 4648 §5), padded.
fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |at: usize| u32::from(part.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = ALPHABET.get((word >> (18 - 6 * at) & 63) as usize).copied().unwrap_or(b'A');
            text.push(if at <= part.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// The bytes of such a text, padded or not; `None` when it is none. The caller bounds its length.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for part in text.chunks(4) {
        let mut word = 0u32;
        for letter in part {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            word = word << 6 | u32::from(value);
        }
        match part.len() {
            4 => bytes.extend_from_slice(word.to_be_bytes().get(1..)?),
            3 => bytes.extend_from_slice((word >> 2).to_be_bytes().get(2..)?),
            2 => bytes.extend_from_slice((word >> 4).to_be_bytes().get(3..)?),
            _ => return None,
        }
    }
    Some(bytes)
}

/// A counter of the log, which may have 128 bits, as far as JSON numbers go.
fn counter(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

impl Control {
    /// The controller of this name, which is there and works.
    fn working_controller(&self, method: &str, name: &str) -> Result<(Arc<Controller>, String)> {
        let entry = find_controller(&self.state(), method, name)?;
        let controller = entry.controller.clone();
        controller.filter(|controller| controller.state() == ControllerState::Ready).map_or_else(
            || {
                let text = format!(
                    "{method}: NVMe controller \"{name}\" does not work at this moment. Remedy: bdev_nvme_get_controllers says why"
                );
                Err(RpcError::errno(errno::ENODEV, text))
            },
            |controller| Ok((controller, entry.address.clone())),
        )
    }

    /// Asks a controller and waits for the answer.
    async fn ask_controller(
        &self,
        method: &str,
        controller: &Controller,
        request: AdminRequest,
        wait: Duration,
    ) -> Result<std::result::Result<AdminAnswer, AdminError>> {
        let failed = |number, text: String| RpcError::errno(number, format!("{method}: {text}"));
        let ticket = controller.request(request).map_err(|error| {
            failed(if error == AdminError::Busy { errno::EBUSY } else { errno::EIO }, error.to_string())
        })?;
        self.nvme.wake();
        let end = tokio::time::Instant::now() + wait;
        loop {
            if let Some(answer) = controller.take_answer(ticket) {
                return Ok(answer);
            }
            if tokio::time::Instant::now() >= end {
                controller.forget(ticket);
                return Err(failed(errno::ETIMEDOUT, format!("no answer within {} ms", wait.as_millis())));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn answer_time(&self) -> Duration {
        let time = self.state().nvme_options.controller.timeout_admin;
        ANSWER_MARGIN + if time.is_zero() { Duration::from_secs(60) } else { time }
    }

    async fn health_info(&self, name: &str) -> Result<Value> {
        let method = "bdev_nvme_get_controller_health_info";
        let (controller, address) = self.working_controller(method, name)?;
        let answer =
            self.ask_controller(method, &controller, AdminRequest::Health, self.answer_time()).await?;
        let log = match answer {
            Ok(AdminAnswer::Health(log)) => log,
            Ok(_) => return Err(RpcError::internal(format!("{method}: the answer is no health log"))),
            Err(error) => return Err(RpcError::errno(errno::EIO, format!("{method}: {error}"))),
        };
        let identity = controller.identity().unwrap_or_default();
        Ok(json!({
            "model_number": identity.model,
            "serial_number": identity.serial,
            "firmware_revision": identity.firmware,
            "traddr": address,
            "critical_warning": log.critical_warning,
            "temperature_celsius": i32::from(log.temperature_kelvin) - 273,
            "available_spare_percentage": log.available_spare,
            "available_spare_threshold_percentage": log.available_spare_threshold,
            "percentage_used": log.percentage_used,
            "data_units_read": counter(log.data_units_read),
            "data_units_written": counter(log.data_units_written),
            "host_read_commands": counter(log.host_read_commands),
            "host_write_commands": counter(log.host_write_commands),
            "controller_busy_time": counter(log.controller_busy_minutes),
            "power_cycles": counter(log.power_cycles),
            "power_on_hours": counter(log.power_on_hours),
            "unsafe_shutdowns": counter(log.unsafe_shutdowns),
            "media_errors": counter(log.media_errors),
            "num_err_log_entries": counter(log.error_log_entries),
            "warning_temperature_time_minutes": log.warning_temperature_minutes,
            "critical_composite_temperature_time_minutes": log.critical_temperature_minutes,
        }))
    }

    fn transport_statistics(&self) -> Value {
        let node = self.state();
        let all: Vec<(String, NvmeTransport, ControllerStatistics)> = node
            .controllers
            .values()
            .filter_map(|entry| {
                Some((entry.name.clone(), entry.transport, entry.controller.as_ref()?.statistics()))
            })
            .collect();
        let transports: Vec<Value> = [NvmeTransport::Pcie, NvmeTransport::VfioUser]
            .into_iter()
            .filter(|transport| all.iter().any(|(_, other, _)| other == transport))
            .map(|transport| {
                let sum = |of: fn(&ControllerStatistics) -> u64| {
                    let parts = all.iter().filter(|(_, other, _)| *other == transport);
                    parts.map(|(.., statistics)| of(statistics)).fold(0, u64::saturating_add)
                };
                json!({
                    "trname": transport.name(),
                    "completions": sum(|s| s.completions),
                    "cq_mmio_doorbell_updates": sum(|s| s.completion_doorbells),
                    "submitted_requests": sum(|s| s.commands),
                    "sq_mmio_doorbell_updates": sum(|s| s.submission_doorbells),
                })
            })
            .collect();
        let controllers: Vec<Value> = all
            .iter()
            .map(|(name, _, s)| {
                json!({
                    "name": name, "queue_pairs": s.queue_pairs, "cores_sharing": s.cores_sharing,
                    "submitted_requests": s.commands, "completions": s.completions, "errors": s.errors,
                    "strange_completions": s.strange_completions, "timeouts": s.timeouts, "retries": s.retries,
                    "aborts": s.aborts, "queue_resets": s.queue_resets, "controller_resets": s.controller_resets,
                    "asynchronous_events": s.asynchronous_events, "bounce_copies": s.bounce_copies,
                    "events_dropped": s.events_dropped,
                })
            })
            .collect();
        json!({"poll_groups": [{"thread": "all", "transports": transports}], "controllers": controllers})
    }

    fn io_paths(&self, only: Option<&str>) -> Result<Value> {
        let method = "bdev_nvme_get_io_paths";
        let node = self.state();
        if let Some(name) = only
            && !matches!(find_bdev(&node, method, name)?.recipe, Recipe::Nvme { .. })
        {
            let text = format!("\"{name}\" is not an NVMe bdev. Remedy: bdev_get_bdevs shows the kinds");
            return Err(invalid(method, "name", text));
        }
        let mut paths = Vec::new();
        for bdev in node.bdevs.values().filter(|bdev| only.is_none_or(|name| bdev.name == name)) {
            let Recipe::Nvme { controller, .. } = &bdev.recipe else { continue };
            let Some(entry) = node.controllers.get(controller) else { continue };
            let identity = entry.controller.as_ref().and_then(|controller| controller.identity());
            let present = bdev.device.controls.is_present();
            paths.push(json!({
                "bdev_name": bdev.name,
                "cntlid": identity.map_or(0, |identity| identity.controller),
                "current": true,
                "connected": present != Some(false),
                "accessible": present == Some(true),
                "transport": trid(entry),
            }));
        }
        let groups: Vec<Value> = self
            .machine
            .reactors()
            .iter()
            .map(|reactor| json!({"thread": thread_name(reactor), "io_paths": paths}))
            .collect();
        Ok(json!({"poll_groups": groups}))
    }

    async fn send_command(&self, p: SendCommand) -> Result<Value> {
        let method = "bdev_nvme_send_cmd";
        let (command, transfer) = p.command(method)?;
        let (controller, _) = self.working_controller(method, &p.name)?;
        let wait = if p.timeout_ms == 0 {
            self.answer_time()
        } else {
            Duration::from_millis(p.timeout_ms.min(600_000))
        };
        let request = AdminRequest::Passthrough { io: false, command, transfer };
        let (dwords, status, data) = match self.ask_controller(method, &controller, request, wait).await? {
            Ok(AdminAnswer::Done { dword0, dword1 }) => ([dword0, dword1], 0, Vec::new()),
            Ok(AdminAnswer::Data { dword0, data }) => ([dword0, 0], 0, data),
            Ok(AdminAnswer::Health(_)) => {
                return Err(RpcError::internal(format!("{method}: the answer is of another request")));
            }
            Err(AdminError::Status(status)) => ([0, 0], status.0, Vec::new()),
            Err(error) => return Err(RpcError::errno(errno::EIO, format!("{method}: {error}"))),
        };
        let mut completion = [0u8; 16];
        for (to, from) in completion.iter_mut().zip(dwords.iter().flat_map(|dword| dword.to_le_bytes())) {
            *to = from;
        }
        // The status field stands above the phase tag.
        let [.., low, high] = &mut completion;
        [*low, *high] = (status << 1).to_le_bytes();
        let mut result = json!({"cpl": encode(&completion)});
        if !data.is_empty() {
            result["data"] = json!(encode(&data));
        }
        Ok(result)
    }
}

impl SendCommand {
    fn command(&self, method: &str) -> Result<([u8; 64], Transfer)> {
        match self.cmd_type.as_str() {
            "admin" => {}
            "io" => return Err(not_built(method, "cmd_type", "use admin")),
            other => {
                return Err(invalid(method, "cmd_type", format!("{other:?} is none. Remedy: use admin")));
            }
        }
        if self.metadata.is_some() {
            return Err(not_built(method, "metadata", "leave it out"));
        }
        if self.metadata_len != 0 {
            return Err(not_built(method, "metadata_len", "leave it out"));
        }
        let command: [u8; 64] = Some(&self.cmdbuf)
            .filter(|text| text.len() <= 88)
            .and_then(|text| decode(text)?.try_into().ok())
            .ok_or_else(|| {
                invalid(method, "cmdbuf", "is not 64 bytes in base64url. Remedy: encode the command so")
            })?;
        let [opcode, ..] = command;
        if DRIVER_OPCODES.contains(&opcode) {
            let text = format!(
                "opcode {opcode:02x}h is the driver's own: it would lose track of its queues. Remedy: send another command"
            );
            return Err(invalid(method, "cmdbuf", text));
        }
        if !READING_OPCODES.contains(&opcode) && !self.allow_changes {
            let text = format!(
                "opcode {opcode:02x}h may change the controller or its data. Remedy: set allow_changes if that is meant"
            );
            return Err(invalid(method, "cmdbuf", text));
        }
        let too_long = |parameter| {
            invalid(method, parameter, format!("is longer than {TRANSFER_BYTES_MAX} bytes. Remedy: use less"))
        };
        let transfer = match self.data_direction.as_str() {
            "c2h" if self.data_len > TRANSFER_BYTES_MAX => return Err(too_long("data_len")),
            "c2h" if self.data_len == 0 => Transfer::None,
            "c2h" => Transfer::In(self.data_len),
            "h2c" => match &self.data {
                None => Transfer::None,
                Some(text) if text.len() > TRANSFER_BYTES_MAX as usize / 3 * 4 + 4 => {
                    return Err(too_long("data"));
                }
                Some(text) => Transfer::Out(
                    decode(text)
                        .ok_or_else(|| invalid(method, "data", "is no base64url. Remedy: encode it so"))?,
                ),
            },
            other => {
                return Err(invalid(
                    method,
                    "data_direction",
                    format!("{other:?} is none. Remedy: use c2h or h2c"),
                ));
            }
        };
        Ok((command, transfer))
    }
}

/// `driver_specific` of a bdev that is a namespace: SPDK's form, with one path.
pub(super) fn specific(node: &Node, bdev: &Bdev, controller: &str, nsid: u32) -> Value {
    let Some(entry) = node.controllers.get(controller) else { return json!({}) };
    let mut path = Map::new();
    if entry.transport == NvmeTransport::Pcie {
        path.insert("pci_address".to_owned(), json!(entry.address));
    }
    path.insert("trid".to_owned(), trid(entry));
    if let Some(identity) = entry.controller.as_ref().and_then(|controller| controller.identity()) {
        let bit = |bit: u32| u32::from(identity.admin_commands) >> bit & 1;
        let data = json!({
            "cntlid": identity.controller,
            "vendor_id": format!("{:#06x}", identity.vendor),
            "model_number": identity.model,
            "serial_number": identity.serial,
            "firmware_revision": identity.firmware,
            "subnqn": identity.subsystem_name,
            // OACS (NVMe Base 2.0 §5.17.2.1).
            "oacs": {"security": bit(0), "format": bit(1), "firmware": bit(2), "ns_manage": bit(3)},
            // CMIC: bit 1, several controllers; bit 3, asymmetric namespace access.
            "multi_ctrlr": identity.sharing & 2 != 0,
            "ana_reporting": identity.sharing & 8 != 0,
        });
        path.insert("ctrlr_data".to_owned(), data);
        let (major, minor, third) =
            (identity.version >> 16, identity.version >> 8 & 0xFF, identity.version & 0xFF);
        let version =
            if third == 0 { format!("{major}.{minor}") } else { format!("{major}.{minor}.{third}") };
        path.insert("vs".to_owned(), json!({"nvme_version": version}));
    }
    let can_share = bdev
        .device
        .controls
        .nvme()
        .and_then(|disk| disk.namespace())
        .is_some_and(|namespace| namespace.identify().sharing & 1 != 0);
    path.insert("ns_data".to_owned(), json!({"id": nsid, "can_share": can_share}));
    json!({"nvme": [path], "mp_policy": "active_passive"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_both_ways() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (&[0xFB, 0xFF, 0xFE], "-__-"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).as_deref(), Some(bytes));
            assert_eq!(decode(text.trim_end_matches('=')).as_deref(), Some(bytes));
        }
        assert_eq!((decode("Z"), decode("Zm+v"), decode("Zm9v=A")), (None, None, None));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
    }

    fn command(opcode: u8) -> SendCommand {
        let mut bytes = [0u8; 64];
        bytes[0] = opcode;
        SendCommand {
            name: "Nvme0".to_owned(),
            cmd_type: "admin".to_owned(),
            data_direction: "c2h".to_owned(),
            cmdbuf: encode(&bytes),
            data: None,
            data_len: 4096,
            metadata: None,
            metadata_len: 0,
            timeout_ms: 0,
            allow_changes: false,
        }
    }

    #[test]
    fn only_commands_that_change_nothing_unless_allowed() {
        for opcode in 0..=255 {
            let reads = READING_OPCODES.contains(&opcode);
            assert_eq!(command(opcode).command("m").is_ok(), reads, "{opcode:#x}");
            let allowed = SendCommand { allow_changes: true, ..command(opcode) };
            assert_eq!(allowed.command("m").is_ok(), !DRIVER_OPCODES.contains(&opcode), "{opcode:#x}");
        }
        let (bytes, transfer) = command(6).command("m").unwrap();
        assert_eq!((bytes[0], transfer), (6, Transfer::In(4096)));
    }

    #[test]
    fn commands_that_cannot_be() {
        let refused = |command: SendCommand, word: &str| {
            let error = command.command("m").unwrap_err();
            assert!(error.message.contains(word), "{}", error.message);
        };
        refused(SendCommand { cmd_type: "io".into(), ..command(2) }, "cmd_type");
        refused(SendCommand { cmdbuf: "AAAA".into(), ..command(2) }, "cmdbuf");
        refused(SendCommand { cmdbuf: "A".repeat(1000), ..command(2) }, "cmdbuf");
        refused(SendCommand { data_len: u32::MAX, ..command(2) }, "data_len");
        refused(SendCommand { data_direction: "up".into(), ..command(2) }, "data_direction");
        refused(SendCommand { metadata_len: 8, ..command(2) }, "metadata_len");
        let h2c = |data: &str| SendCommand {
            data_direction: "h2c".into(),
            data: Some(data.to_owned()),
            ..command(2)
        };
        refused(h2c("???"), "data");
        refused(h2c(&"A".repeat(300_000)), "data");
        assert_eq!(h2c("Zm9v").command("m").unwrap().1, Transfer::Out(b"foo".to_vec()));
    }
}
