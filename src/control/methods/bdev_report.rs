//! `bdev_get_bdevs`, `bdev_get_iostat`, `bdev_reset_iostat`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fabrics::conductor::UnitTraffic;
use rpc::{Registry, When};
use schemars::JsonSchema;
use scsi::LogicalUnitId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bdev::claimed_by;
use super::framework::TICK_RATE;
use super::{Result, find_bdev, not_built};
use crate::control::Control;
use crate::control::link::Recipe;
use crate::control::node::{Bdev, Node};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetBdevs {
    /// Only this one (its name or its UUID); all when absent.
    name: Option<String>,
    /// Milliseconds to wait for it to appear.
    #[serde(default)]
    timeout: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetIostat {
    /// Only this one; all when absent.
    name: Option<String>,
    /// Counters of each channel; only false is built.
    per_channel: Option<bool>,
    /// all, maxmin or none: what to reset after reading.
    reset_mode: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResetIostat {
    /// Only this one; all when absent.
    name: Option<String>,
    /// all or maxmin. No extremes are kept, so maxmin resets nothing.
    mode: Option<String>,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "bdev_get_bdevs",
        When::Runtime,
        "Describes bdevs.",
        |control: Arc<Control>, p: GetBdevs| async move { control.bdevs(p).await },
    );
    registry.register(
        "bdev_get_iostat",
        When::Runtime,
        "Traffic of bdevs since their LUNs were mapped or bdev_reset_iostat. Ticks are nanoseconds.",
        |control: Arc<Control>, p: GetIostat| async move { control.iostat(p).await },
    );
    registry.register(
        "bdev_reset_iostat",
        When::Runtime,
        "Counts traffic from zero again.",
        |control: Arc<Control>, p: ResetIostat| async move {
            let method = "bdev_reset_iostat";
            check_reset(method, "mode", p.mode.as_deref())?;
            let node = control.state();
            let only = p.name.map(|name| find_bdev(&node, method, &name)).transpose()?;
            if p.mode.as_deref() != Some("maxmin") {
                let totals = control.traffic().await?;
                control.reset_baseline(&totals, only.as_deref());
            }
            Ok(true)
        },
    );
}

fn check_reset(method: &str, parameter: &str, mode: Option<&str>) -> Result<()> {
    match mode {
        None | Some("all" | "maxmin" | "none") => Ok(()),
        Some(other) => Err(super::invalid(
            method,
            parameter,
            format!("{other:?} is not a mode. Remedy: use all, maxmin or none"),
        )),
    }
}

impl Control {
    async fn bdevs(self: Arc<Self>, p: GetBdevs) -> Result<Vec<Value>> {
        let Some(name) = p.name else {
            let node = self.state();
            let mut bdevs: Vec<&Arc<Bdev>> = node.bdevs.values().collect();
            bdevs.sort_by_key(|bdev| bdev.order);
            return Ok(bdevs.into_iter().map(|bdev| describe(&node, bdev)).collect());
        };
        let end = tokio::time::Instant::now() + Duration::from_millis(p.timeout.min(600_000));
        loop {
            let node = self.state();
            let by_uuid = || node.bdevs.values().find(|bdev| bdev.uuid.to_string() == name).cloned();
            match find_bdev(&node, "bdev_get_bdevs", &name).or_else(|error| by_uuid().ok_or(error)) {
                Ok(bdev) => return Ok(vec![describe(&node, &bdev)]),
                Err(error) if tokio::time::Instant::now() >= end => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Traffic of each unit, over all cores.
    async fn traffic(self: &Arc<Self>) -> Result<HashMap<LogicalUnitId, UnitTraffic>> {
        let mut totals: HashMap<LogicalUnitId, UnitTraffic> = HashMap::new();
        for unit in self.reports().await?.iter().flat_map(|report| &report.units) {
            if let Some(id) = unit.unit {
                let total = totals
                    .entry(id)
                    .or_insert_with(|| UnitTraffic { unit: Some(id), ..UnitTraffic::default() });
                *total = combine(total, unit, u64::saturating_add);
            }
        }
        Ok(totals)
    }

    fn reset_baseline(&self, totals: &HashMap<LogicalUnitId, UnitTraffic>, only: Option<&Bdev>) {
        let mut baseline = self.baseline();
        for (id, total) in totals {
            if only.is_none_or(|bdev| bdev.unit.is_some_and(|(unit, _)| unit == *id)) {
                baseline.insert(*id, *total);
            }
        }
    }

    async fn iostat(self: Arc<Self>, p: GetIostat) -> Result<Value> {
        let method = "bdev_get_iostat";
        if p.per_channel == Some(true) {
            return Err(not_built(method, "per_channel", "leave it out: counters are summed over the cores"));
        }
        check_reset(method, "reset_mode", p.reset_mode.as_deref())?;
        let node = self.state();
        let only = p.name.map(|name| find_bdev(&node, method, &name)).transpose()?;
        let totals = self.traffic().await?;
        let ticks: u64 =
            self.machine.reactors().iter().map(|r| r.busy_ns.saturating_add(r.idle_ns)).max().unwrap_or(0);
        let mut bdevs: Vec<&Arc<Bdev>> = node
            .bdevs
            .values()
            .filter(|bdev| only.as_ref().is_none_or(|only| only.name == bdev.name))
            .collect();
        bdevs.sort_by_key(|bdev| bdev.order);
        let entries: Vec<Value> = {
            let baseline = self.baseline();
            bdevs
                .into_iter()
                .map(|bdev| {
                    let id = bdev.unit.map(|(unit, _)| unit);
                    let total = id.and_then(|id| totals.get(&id)).copied().unwrap_or_default();
                    let base = id.and_then(|id| baseline.get(&id)).copied().unwrap_or_default();
                    traffic_entry(&bdev.name, &combine(&total, &base, u64::saturating_sub))
                })
                .collect()
        };
        if p.reset_mode.as_deref() == Some("all") {
            self.reset_baseline(&totals, only.as_deref());
        }
        Ok(json!({"tick_rate": TICK_RATE, "ticks": ticks, "bdevs": entries}))
    }
}

/// `with` on every counter; what is outstanding stays a sum.
fn combine(a: &UnitTraffic, b: &UnitTraffic, with: fn(u64, u64) -> u64) -> UnitTraffic {
    UnitTraffic {
        unit: a.unit,
        reads: with(a.reads, b.reads),
        bytes_read: with(a.bytes_read, b.bytes_read),
        writes: with(a.writes, b.writes),
        bytes_written: with(a.bytes_written, b.bytes_written),
        unmaps: with(a.unmaps, b.unmaps),
        bytes_unmapped: with(a.bytes_unmapped, b.bytes_unmapped),
        errors: with(a.errors, b.errors),
        read_latency_ns: with(a.read_latency_ns, b.read_latency_ns),
        write_latency_ns: with(a.write_latency_ns, b.write_latency_ns),
        unmap_latency_ns: with(a.unmap_latency_ns, b.unmap_latency_ns),
        outstanding: a.outstanding.saturating_add(b.outstanding),
    }
}

fn traffic_entry(name: &str, unit: &UnitTraffic) -> Value {
    json!({
        "name": name,
        "bytes_read": unit.bytes_read, "num_read_ops": unit.reads,
        "bytes_written": unit.bytes_written, "num_write_ops": unit.writes,
        "bytes_unmapped": unit.bytes_unmapped, "num_unmap_ops": unit.unmaps,
        "bytes_copied": 0, "num_copy_ops": 0,
        "read_latency_ticks": unit.read_latency_ns, "write_latency_ticks": unit.write_latency_ns,
        "unmap_latency_ticks": unit.unmap_latency_ns, "copy_latency_ticks": 0,
        "num_errors": unit.errors,
        "io_error": {},
    })
}

fn describe(node: &Node, bdev: &Bdev) -> Value {
    let geometry = bdev.device.device.geometry();
    let claimed = claimed_by(node, &bdev.name);
    json!({
        "name": bdev.name,
        "aliases": [bdev.uuid.to_string()],
        "product_name": bdev.device.device.product_name(),
        "block_size": geometry.block_size,
        "physical_block_size": u64::from(geometry.block_size) << geometry.physical_block_exponent,
        "num_blocks": geometry.blocks,
        "uuid": bdev.uuid.to_string(),
        "assigned_rate_limits": {"rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0},
        "claimed": claimed.is_some(),
        "zoned": false,
        "supported_io_types": supported(&geometry),
        "driver_specific": specific(node, bdev),
    })
}

/// What the SCSI engine can do with the device: compare and write, and the like, are the engine's own doing.
fn supported(geometry: &bdev::Geometry) -> Value {
    let writes = !geometry.read_only;
    json!({
        "read": true, "write": writes, "unmap": writes && geometry.provisioning.discard, "flush": true, "reset": true,
        "nvme_admin": false, "nvme_io": false, "nvme_io_md": false, "write_zeroes": writes, "zcopy": false,
        "get_zone_info": false, "zone_management": false, "zone_append": false, "compare": true,
        "compare_and_write": writes, "abort": true, "seek_hole": geometry.provisioning.reports_extents,
        "seek_data": geometry.provisioning.reports_extents, "copy": false, "nvme_iov_md": false,
    })
}

fn specific(node: &Node, bdev: &Bdev) -> Value {
    match &bdev.recipe {
        Recipe::Malloc { .. } | Recipe::Null { .. } => json!({}),
        Recipe::File { filename, readonly, fallocate, direct: false, .. } => {
            let override_size = matches!(&bdev.recipe, Recipe::File { block_size: Some(_), .. });
            json!({"aio": {"filename": filename, "block_size_override": override_size, "readonly": readonly, "fallocate": fallocate}})
        }
        Recipe::File { filename, .. } => {
            json!({"uring": {"filename": filename, "bounce_copies": bdev.device.device.bounce_copies()}})
        }
        Recipe::Delay { base, latency } => json!({"delay": {
            "name": bdev.name, "base_bdev_name": base,
            "avg_read_latency": latency.avg_read, "p99_read_latency": latency.p99_read,
            "avg_write_latency": latency.avg_write, "p99_write_latency": latency.p99_write,
        }}),
        Recipe::Error { base } => json!({"error_disk": base}),
        Recipe::Nvme { controller, nsid } => super::nvme_report::specific(node, bdev, controller, *nsid),
    }
}
