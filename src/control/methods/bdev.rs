//! `bdev_*` that make, change and delete devices.

use std::sync::Arc;

use rpc::{NoParameters, Registry, RpcError, When, errno};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::framework::done;
use super::{Result, exists, find_bdev, invalid, not_built};
use crate::control::Control;
use crate::control::config::Entry;
use crate::control::identity::{machine_id, stable_uuid};
use crate::control::link::{InjectedError, InjectedIo, Injection, Latencies, Recipe};
use crate::control::node::{Bdev, Node};
use crate::control::{names, nvme};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateMalloc {
    /// Name of the new bdev; MallocN when absent.
    name: Option<String>,
    /// Logical blocks of the disk.
    num_blocks: u64,
    /// Bytes of a logical block: a power of two from 512 to 65,536.
    block_size: u32,
    /// Bytes of a physical block; the logical block's when absent.
    physical_block_size: Option<u32>,
    /// UUID of the new bdev; a random one when absent.
    uuid: Option<String>,
    /// Blocks a transfer should not cross; kept for clients, a RAM disk has no such boundary.
    #[serde(default)]
    optimal_io_boundary: u32,
    /// Bytes of metadata with each block; only 0 is built.
    md_size: Option<u32>,
    /// Metadata inside the block; only false is built.
    md_interleave: Option<bool>,
    /// Protection information; only 0 is built.
    dif_type: Option<u32>,
    /// Place of protection information; only false is built.
    dif_is_head_of_md: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateNull {
    /// Name of the new bdev.
    name: String,
    /// Logical blocks of the disk.
    num_blocks: u64,
    /// Bytes of a logical block: a power of two from 512 to 65,536.
    block_size: u32,
    /// Bytes of a physical block; the logical block's when absent.
    physical_block_size: Option<u32>,
    /// UUID of the new bdev; a random one when absent.
    uuid: Option<String>,
    /// Bytes of metadata with each block; only 0 is built.
    md_size: Option<u32>,
    /// Protection information; only 0 is built.
    dif_type: Option<u32>,
    /// Place of protection information; only false is built.
    dif_is_head_of_md: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateAio {
    /// Name of the new bdev.
    name: String,
    /// Path of a file or block device.
    filename: String,
    /// Bytes of a logical block; the device's own (512 for a file) when absent.
    block_size: Option<u32>,
    /// Refuse writes.
    #[serde(default)]
    readonly: bool,
    /// Accepted for clients: discards punch holes wherever the file system can.
    #[serde(default)]
    fallocate: bool,
    /// UUID of the new bdev; one made of machine and path when absent.
    uuid: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateUring {
    /// Name of the new bdev.
    name: String,
    /// Path of a file or block device, used past the page cache.
    filename: String,
    /// Bytes of a logical block; the device's own (512 for a file) when absent.
    block_size: Option<u32>,
    /// UUID of the new bdev; one made of machine and path when absent.
    uuid: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateDelay {
    /// Name of the new bdev.
    name: String,
    /// The bdev below.
    base_bdev_name: String,
    /// UUID of the new bdev; one made of the base's when absent.
    uuid: Option<String>,
    /// Microseconds added to most reads.
    avg_read_latency: u64,
    /// Microseconds added to one read in a hundred.
    p99_read_latency: u64,
    /// Microseconds added to most writes.
    avg_write_latency: u64,
    /// Microseconds added to one write in a hundred.
    p99_write_latency: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UpdateLatency {
    /// The delay bdev.
    delay_bdev_name: String,
    /// avg_read, p99_read, avg_write or p99_write.
    latency_type: String,
    /// Microseconds.
    latency_us: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateError {
    /// The bdev below; the new one is called EE_ and this.
    base_name: String,
    /// UUID of the new bdev; one made of the base's when absent.
    uuid: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InjectError {
    /// The error bdev.
    name: String,
    /// clear, all, read, write, unmap, flush or write_zeroes.
    io_type: String,
    /// failure, pending, nomem or corrupt_data. Not needed with clear.
    error_type: Option<String>,
    /// How many requests (default 1).
    num: Option<u64>,
    /// Requests that must be outstanding first; only 0 is built.
    queue_depth: Option<u64>,
    /// For corrupt_data: the byte of the buffer.
    #[serde(default)]
    corrupt_offset: u32,
    /// For corrupt_data: what the byte is changed by (exclusive or); not 0.
    #[serde(default)]
    corrupt_value: u8,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Name {
    /// Name of the bdev.
    name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Resize {
    /// Name of the bdev.
    name: String,
    /// The new size in MiB.
    new_size: u64,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    register_creates(registry);
    registry.register(
        "bdev_delay_update_latency",
        When::Runtime,
        "Changes one latency of a delay bdev.",
        |control: Arc<Control>, p: UpdateLatency| async move { done(control.update_latency(p).await) },
    );
    registry.register(
        "bdev_error_inject_error",
        When::Runtime,
        "Makes the next requests of an error bdev fail.",
        |control: Arc<Control>, p: InjectError| async move { done(control.inject_error(&p)) },
    );
    registry.register(
        "bdev_error_resume_pending",
        When::Runtime,
        "Lets requests go on that an error bdev holds.",
        |control: Arc<Control>, p: Name| async move {
            let method = "bdev_error_resume_pending";
            let bdev = control.bdev_of_kind(method, "name", &p.name, "error", |recipe| {
                matches!(recipe, Recipe::Error { .. })
            })?;
            done(bdev.device.controls.resume_pending().map_err(|error| error.rpc(method)))
        },
    );
    registry.register(
        "bdev_null_resize",
        When::Runtime,
        "Changes the size of a null bdev.",
        |control: Arc<Control>, p: Resize| async move { done(control.resize_null(p).await) },
    );
    register_deletes(registry);
    registry.register(
        "bdev_examine",
        When::Runtime,
        "Looks for what a bdev may carry. Nothing is looked for in this version.",
        |control: Arc<Control>, p: Name| async move {
            find_bdev(&control.state(), "bdev_examine", &p.name).map(|_| true)
        },
    );
    registry.register(
        "bdev_wait_for_examine",
        When::Runtime,
        "Returns when bdev_examine has nothing left to do: at once.",
        |_: Arc<Control>, _: NoParameters| async move { Ok(true) },
    );
}

fn register_creates(registry: &mut Registry<Control>) {
    registry.register(
        "bdev_malloc_create",
        When::Runtime,
        "Makes a RAM disk.",
        |control: Arc<Control>, p: CreateMalloc| async move { control.create_malloc(p).await },
    );
    registry.register(
        "bdev_null_create",
        When::Runtime,
        "Makes a disk that keeps nothing: writes vanish, reads give zeros.",
        |control: Arc<Control>, p: CreateNull| async move { control.create_null(p).await },
    );
    registry.register(
        "bdev_aio_create",
        When::Runtime,
        "Makes a bdev of a file or block device, through the page cache.",
        |control: Arc<Control>, p: CreateAio| async move {
            let recipe = Recipe::File {
                filename: p.filename,
                block_size: p.block_size,
                readonly: p.readonly,
                direct: false,
                fallocate: p.fallocate,
            };
            control.create("bdev_aio_create", p.name, p.uuid, recipe).await
        },
    );
    registry.register(
        "bdev_uring_create",
        When::Runtime,
        "Makes a bdev of a file or block device, past the page cache.",
        |control: Arc<Control>, p: CreateUring| async move {
            let recipe = Recipe::File {
                filename: p.filename,
                block_size: p.block_size,
                readonly: false,
                direct: true,
                fallocate: true,
            };
            control.create("bdev_uring_create", p.name, p.uuid, recipe).await
        },
    );
    registry.register(
        "bdev_delay_create",
        When::Runtime,
        "Makes a bdev that adds latency to another.",
        |control: Arc<Control>, p: CreateDelay| async move {
            let latency = Latencies {
                avg_read: p.avg_read_latency,
                p99_read: p.p99_read_latency,
                avg_write: p.avg_write_latency,
                p99_write: p.p99_write_latency,
            };
            check_latency("bdev_delay_create", latency)?;
            control
                .create(
                    "bdev_delay_create",
                    p.name,
                    p.uuid,
                    Recipe::Delay { base: p.base_bdev_name, latency },
                )
                .await
        },
    );
    registry.register(
        "bdev_error_create",
        When::Runtime,
        "Makes a bdev that can be made to fail, on another.",
        |control: Arc<Control>, p: CreateError| async move {
            let name = format!("EE_{}", p.base_name);
            control.create("bdev_error_create", name, p.uuid, Recipe::Error { base: p.base_name }).await?;
            Ok(true)
        },
    );
}

fn register_deletes(registry: &mut Registry<Control>) {
    type IsKind = fn(&Recipe) -> bool;
    let deletes: [(&'static str, &'static str, IsKind); 6] = [
        ("bdev_malloc_delete", "malloc", |recipe| matches!(recipe, Recipe::Malloc { .. })),
        ("bdev_null_delete", "null", |recipe| matches!(recipe, Recipe::Null { .. })),
        ("bdev_aio_delete", "aio", |recipe| matches!(recipe, Recipe::File { direct: false, .. })),
        ("bdev_uring_delete", "uring", |recipe| matches!(recipe, Recipe::File { direct: true, .. })),
        ("bdev_delay_delete", "delay", |recipe| matches!(recipe, Recipe::Delay { .. })),
        ("bdev_error_delete", "error", |recipe| matches!(recipe, Recipe::Error { .. })),
    ];
    for (method, kind, is_kind) in deletes {
        registry.register(
            method,
            When::Runtime,
            "Deletes a bdev. Targets lose the LUNs that stand on it, and so do bdevs made on it.",
            move |control: Arc<Control>, p: Name| async move {
                done(control.delete(method, &p.name, kind, is_kind).await)
            },
        );
    }
    for (method, direct) in [("bdev_aio_rescan", false), ("bdev_uring_rescan", true)] {
        registry.register(
            method,
            When::Runtime,
            "Asks the host for the size of the file or device anew.",
            move |control: Arc<Control>, p: Name| async move {
                done(control.rescan(method, &p.name, direct).await)
            },
        );
    }
}

/// Checks numbers of blocks and bytes of a disk that is made of nothing.
fn check_shape(method: &str, num_blocks: u64, block_size: u32, physical: Option<u32>) -> Result<u32> {
    if !block_size.is_power_of_two() || !(512..=65_536).contains(&block_size) {
        return Err(invalid(
            method,
            "block_size",
            format!("{block_size} is not a power of two from 512 to 65536. Remedy: use 512 or 4096"),
        ));
    }
    if num_blocks == 0
        || num_blocks.checked_mul(u64::from(block_size)).is_none_or(|bytes| bytes > i64::MAX as u64)
    {
        return Err(invalid(
            method,
            "num_blocks",
            format!(
                "{num_blocks} blocks of {block_size} bytes are no disk. Remedy: use 1 or more, and less than 8 EiB in all"
            ),
        ));
    }
    let physical = physical.filter(|bytes| *bytes != 0).unwrap_or(block_size);
    if !physical.is_power_of_two() || physical < block_size || physical / block_size > 1 << 15 {
        return Err(invalid(
            method,
            "physical_block_size",
            format!("{physical} is not a power of two of at least block_size. Remedy: leave it out"),
        ));
    }
    Ok(physical)
}

fn check_plain(
    method: &str,
    md_size: Option<u32>,
    interleave: Option<bool>,
    dif_type: Option<u32>,
    head: Option<bool>,
) -> Result<()> {
    let remedy = "leave it out: blocks carry no metadata";
    if md_size.is_some_and(|bytes| bytes != 0) {
        return Err(not_built(method, "md_size", remedy));
    }
    if interleave == Some(true) {
        return Err(not_built(method, "md_interleave", remedy));
    }
    if dif_type.is_some_and(|kind| kind != 0) {
        return Err(not_built(method, "dif_type", remedy));
    }
    if head == Some(true) {
        return Err(not_built(method, "dif_is_head_of_md", remedy));
    }
    Ok(())
}

fn check_latency(method: &str, latency: Latencies) -> Result<()> {
    for (average, p99, parameter) in [
        (latency.avg_read, latency.p99_read, "p99_read_latency"),
        (latency.avg_write, latency.p99_write, "p99_write_latency"),
    ] {
        if p99 < average {
            return Err(invalid(
                method,
                parameter,
                "is less than the average. Remedy: use at least the average",
            ));
        }
        if p99 > 3_600_000_000 {
            return Err(invalid(method, parameter, "is more than an hour. Remedy: use less"));
        }
    }
    Ok(())
}

impl Control {
    async fn create_malloc(&self, p: CreateMalloc) -> Result<String> {
        let method = "bdev_malloc_create";
        check_plain(method, p.md_size, p.md_interleave, p.dif_type, p.dif_is_head_of_md)?;
        let physical_block_size = check_shape(method, p.num_blocks, p.block_size, p.physical_block_size)?;
        let name = p.name.unwrap_or_else(|| {
            let node = self.state();
            (0u64..)
                .map(|number| format!("Malloc{number}"))
                .find(|name| !node.bdevs.contains_key(name))
                .unwrap_or_default()
        });
        let recipe = Recipe::Malloc {
            num_blocks: p.num_blocks,
            block_size: p.block_size,
            physical_block_size,
            optimal_io_boundary: p.optimal_io_boundary,
        };
        self.create(method, name, p.uuid, recipe).await
    }

    async fn create_null(&self, p: CreateNull) -> Result<String> {
        let method = "bdev_null_create";
        check_plain(method, p.md_size, None, p.dif_type, p.dif_is_head_of_md)?;
        let physical_block_size = check_shape(method, p.num_blocks, p.block_size, p.physical_block_size)?;
        let recipe = Recipe::Null { num_blocks: p.num_blocks, block_size: p.block_size, physical_block_size };
        self.create(method, p.name, p.uuid, recipe).await
    }

    /// Makes a device and enters it under `name`.
    async fn create(
        &self,
        method: &'static str,
        name: String,
        uuid: Option<String>,
        recipe: Recipe,
    ) -> Result<String> {
        names::bdev_name(&name)
            .map_err(|text| invalid(method, "name", format!("{text}. Remedy: choose another")))?;
        let turn = self.turn().await;
        let mut node = Node::clone(&self.state());
        if node.bdevs.contains_key(&name) {
            return Err(exists(method, format!("bdev \"{name}\"")));
        }
        let base = match recipe.base() {
            Some(base) => Some(free_base(&node, method, base)?),
            None => None,
        };
        let (uuid, uuid_saved) = match uuid {
            Some(text) => (parse_uuid(method, &text)?, true),
            None => made_up_uuid(&recipe, base.as_deref()),
        };
        if let Some(other) = node.bdevs.values().find(|bdev| bdev.uuid == uuid) {
            let text = format!("uuid {uuid}, which bdev \"{}\" has,", other.name);
            return Err(exists(method, text));
        }
        // Opening a file or filling memory may take long: not on the thread that answers calls.
        let (factory, making) = (self.factory.clone(), recipe.clone());
        let below = base.map(|bdev| bdev.device.device.clone());
        let device = tokio::task::spawn_blocking(move || factory.create(&making, below))
            .await
            .map_err(|error| RpcError::internal(format!("{method}: {error}")))?
            .map_err(|error| error.rpc(method))?;
        let order = node.order_next;
        node.order_next += 1;
        node.bdevs.insert(
            name.clone(),
            Arc::new(Bdev { name: name.clone(), order, recipe, uuid, uuid_saved, device, unit: None }),
        );
        self.commit(&turn, node).await?;
        Ok(name)
    }

    fn bdev_of_kind(
        &self,
        method: &str,
        parameter: &str,
        name: &str,
        kind: &str,
        is_kind: fn(&Recipe) -> bool,
    ) -> Result<Arc<Bdev>> {
        let bdev = find_bdev(&self.state(), method, name)?;
        if is_kind(&bdev.recipe) {
            Ok(bdev)
        } else {
            Err(invalid(
                method,
                parameter,
                format!("\"{name}\" is not a {kind} bdev. Remedy: bdev_get_bdevs shows the kinds"),
            ))
        }
    }

    async fn delete(
        &self,
        method: &'static str,
        name: &str,
        kind: &str,
        is_kind: fn(&Recipe) -> bool,
    ) -> Result<()> {
        self.bdev_of_kind(method, "name", name, kind, is_kind)?;
        self.change(|node| {
            find_bdev(node, method, name)?;
            node.remove_bdev(name);
            Ok(())
        })
        .await
    }

    async fn rescan(&self, method: &'static str, name: &str, direct: bool) -> Result<()> {
        let is_kind: fn(&Recipe) -> bool = if direct {
            |r| matches!(r, Recipe::File { direct: true, .. })
        } else {
            |r| matches!(r, Recipe::File { direct: false, .. })
        };
        let bdev = self.bdev_of_kind(method, "name", name, if direct { "uring" } else { "aio" }, is_kind)?;
        let _turn = self.turn().await;
        let before = bdev.device.device.geometry();
        let controls = bdev.device.controls.clone();
        tokio::task::spawn_blocking(move || controls.rescan())
            .await
            .map_err(|error| RpcError::internal(format!("{method}: {error}")))?
            .map_err(|error| error.rpc(method))?;
        // It answers: a unit that lost it has a medium again.
        self.medium_changed(name, true).await?;
        if bdev.device.device.geometry() != before {
            self.size_changed(name).await?;
        }
        Ok(())
    }

    async fn resize_null(&self, p: Resize) -> Result<()> {
        let method = "bdev_null_resize";
        let bdev = self
            .bdev_of_kind(method, "name", &p.name, "null", |recipe| matches!(recipe, Recipe::Null { .. }))?;
        let turn = self.turn().await;
        let block_size = u64::from(bdev.device.device.geometry().block_size);
        let blocks = p
            .new_size
            .checked_mul(1 << 20)
            .filter(|bytes| *bytes > 0 && *bytes <= i64::MAX as u64)
            .map(|bytes| bytes / block_size);
        let Some(blocks) = blocks else {
            return Err(invalid(
                method,
                "new_size",
                format!("{} MiB is no size. Remedy: use 1 or more, and less than 8 EiB", p.new_size),
            ));
        };
        bdev.device.controls.resize(blocks).map_err(|error| error.rpc(method))?;
        let mut node = Node::clone(&self.state());
        if let Some(Recipe::Null { num_blocks, .. }) =
            node.bdevs.get_mut(&p.name).map(|bdev| &mut Arc::make_mut(bdev).recipe)
        {
            *num_blocks = blocks;
        }
        self.commit(&turn, node).await?;
        self.size_changed(&p.name).await
    }

    /// Tells the homes of `name` and of all that stands on it.
    pub(in crate::control) async fn size_changed(&self, name: &str) -> Result<()> {
        let node = self.state();
        let mut names = vec![name.to_owned()];
        while let Some(name) = names.pop() {
            if let Some(bdev) = node.bdevs.get(&name) {
                self.capacity_changed(bdev).await?;
            }
            names.extend(node.above(&name).map(|bdev| bdev.name.clone()));
        }
        Ok(())
    }

    async fn update_latency(&self, p: UpdateLatency) -> Result<()> {
        let method = "bdev_delay_update_latency";
        let name = p.delay_bdev_name;
        let bdev = self.bdev_of_kind(method, "delay_bdev_name", &name, "delay", |recipe| {
            matches!(recipe, Recipe::Delay { .. })
        })?;
        let latency_us = p.latency_us;
        let latency = self
            .change(|node| {
                let Some(Recipe::Delay { latency, .. }) = node.bdevs.get_mut(&name).map(|bdev| &mut Arc::make_mut(bdev).recipe) else {
                    return Err(super::absent(method, format!("bdev \"{name}\""), "bdev_get_bdevs"));
                };
                match p.latency_type.as_str() {
                    "avg_read" => latency.avg_read = latency_us,
                    "p99_read" => latency.p99_read = latency_us,
                    "avg_write" => latency.avg_write = latency_us,
                    "p99_write" => latency.p99_write = latency_us,
                    other => {
                        return Err(invalid(method, "latency_type", format!("{other:?} is not a latency. Remedy: use avg_read, p99_read, avg_write or p99_write")));
                    }
                }
                if latency_us > 3_600_000_000 {
                    return Err(invalid(method, "latency_us", "is more than an hour. Remedy: use less"));
                }
                Ok(*latency)
            })
            .await?;
        bdev.device.controls.set_latency(latency).map_err(|error| error.rpc(method))
    }

    fn inject_error(&self, p: &InjectError) -> Result<()> {
        let method = "bdev_error_inject_error";
        let bdev = self.bdev_of_kind(method, "name", &p.name, "error", |recipe| {
            matches!(recipe, Recipe::Error { .. })
        })?;
        if p.queue_depth.is_some_and(|depth| depth != 0) {
            return Err(not_built(method, "queue_depth", "leave it out"));
        }
        let (io_type, clears) = match p.io_type.as_str() {
            "clear" => (None, true),
            "all" => (None, false),
            "read" => (Some(InjectedIo::Read), false),
            "write" => (Some(InjectedIo::Write), false),
            "unmap" => (Some(InjectedIo::Unmap), false),
            "flush" => (Some(InjectedIo::Flush), false),
            "write_zeroes" => (Some(InjectedIo::WriteZeroes), false),
            other => {
                return Err(invalid(
                    method,
                    "io_type",
                    format!(
                        "{other:?} is not a kind of request. Remedy: use clear, all, read, write, unmap, flush or write_zeroes"
                    ),
                ));
            }
        };
        let error = match p.error_type.as_deref() {
            _ if clears => None,
            Some("failure") => Some(InjectedError::Failure),
            Some("pending") => Some(InjectedError::Pending),
            Some("nomem") => Some(InjectedError::NoMemory),
            Some("corrupt_data") => {
                Some(InjectedError::Corrupt { offset: p.corrupt_offset, value: p.corrupt_value })
            }
            other => {
                return Err(invalid(
                    method,
                    "error_type",
                    format!("{other:?} is not an error. Remedy: use failure, pending, nomem or corrupt_data"),
                ));
            }
        };
        let injection = Injection { io_type, error, count: p.num.unwrap_or(1) };
        bdev.device.controls.inject(injection).map_err(|error| error.rpc(method))
    }
}

/// The bdev below a new one: there, and not in use.
fn free_base(node: &Node, method: &str, name: &str) -> Result<Arc<Bdev>> {
    let base = find_bdev(node, method, name)?;
    if let Some(user) = claimed_by(node, name) {
        let text = format!(
            "{method}: bdev \"{name}\" is in use by {user}. Remedy: use another, or take it out of there first"
        );
        return Err(RpcError::errno(errno::EPERM, text));
    }
    Ok(base)
}

/// Who uses a bdev so that nobody else may build on it.
pub(super) fn claimed_by(node: &Node, name: &str) -> Option<String> {
    let above = node.above(name).next().map(|bdev| format!("bdev \"{}\"", bdev.name));
    above.or_else(|| {
        let target = node.targets.values().find(|target| target.luns.values().any(|bdev| bdev == name))?;
        Some(format!("target \"{}\"", target.name))
    })
}

fn parse_uuid(method: &str, text: &str) -> Result<uuid::Uuid> {
    uuid::Uuid::parse_str(text).ok().filter(|uuid| !uuid.is_nil()).ok_or_else(|| {
        invalid(
            method,
            "uuid",
            format!("{text:?} is not a UUID. Remedy: use the form 913fc008-79a7-447f-b2c4-c73543638c31"),
        )
    })
}

/// A UUID nobody gave: what holds data keeps its UUID from run to run; what is new every time gets a new one, for a
/// host that sees an old one would take the disk for the old disk. True when it must be saved.
fn made_up_uuid(recipe: &Recipe, base: Option<&Bdev>) -> (uuid::Uuid, bool) {
    match (recipe, base) {
        (Recipe::File { filename, .. }, _) => {
            let path = std::fs::canonicalize(filename).unwrap_or_else(|_| filename.into());
            (stable_uuid(&[&machine_id(), &path.to_string_lossy()]), false)
        }
        (Recipe::Delay { .. }, Some(base)) => (stable_uuid(&["delay", &base.uuid.to_string()]), false),
        (Recipe::Error { .. }, Some(base)) => (stable_uuid(&["error", &base.uuid.to_string()]), false),
        _ => (uuid::Uuid::new_v4(), true),
    }
}

/// The calls that make these devices and controllers, in the order they were made.
pub(in crate::control) fn saved(node: &Node) -> Vec<Entry> {
    let mut calls: Vec<(u64, Entry)> = node
        .controllers
        .values()
        .filter(|entry| !entry.hot || is_used(node, &entry.name))
        .map(|entry| (entry.order, super::nvme::attach_call(node, entry)))
        .collect();
    for bdev in node.bdevs.values() {
        let Some((method, mut params)) = call_of(bdev) else { continue };
        if bdev.uuid_saved
            && let Some(params) = params.as_object_mut()
        {
            params.insert("uuid".to_owned(), Value::String(bdev.uuid.to_string()));
        }
        calls.push((bdev.order, Entry { method: method.to_owned(), params: Some(params) }));
    }
    calls.sort_by_key(|(order, _)| *order);
    let mut entries = super::nvme::option_calls(node);
    entries.extend(calls.into_iter().map(|(_, entry)| entry));
    entries.push(Entry { method: "bdev_wait_for_examine".to_owned(), params: None });
    entries
}

/// Whether something stands on a bdev of the controller.
fn is_used(node: &Node, controller: &str) -> bool {
    nvme::bdevs_of(node, controller).any(|(bdev, _)| claimed_by(node, &bdev.name).is_some())
}

/// `None` for a bdev that comes with something else.
fn call_of(bdev: &Bdev) -> Option<(&'static str, Value)> {
    let name = &bdev.name;
    Some(match &bdev.recipe {
        Recipe::Malloc { num_blocks, block_size, physical_block_size, optimal_io_boundary } => (
            "bdev_malloc_create",
            json!({"name": name, "num_blocks": num_blocks, "block_size": block_size, "physical_block_size": physical_block_size, "optimal_io_boundary": optimal_io_boundary}),
        ),
        Recipe::Null { num_blocks, block_size, physical_block_size } => (
            "bdev_null_create",
            json!({"name": name, "num_blocks": num_blocks, "block_size": block_size, "physical_block_size": physical_block_size}),
        ),
        Recipe::File { filename, block_size, readonly, direct: false, fallocate } => {
            let mut params =
                json!({"name": name, "filename": filename, "readonly": readonly, "fallocate": fallocate});
            if let Some(block_size) = block_size {
                params["block_size"] = json!(block_size);
            }
            ("bdev_aio_create", params)
        }
        Recipe::File { filename, block_size, direct: true, .. } => {
            let mut params = json!({"name": name, "filename": filename});
            if let Some(block_size) = block_size {
                params["block_size"] = json!(block_size);
            }
            ("bdev_uring_create", params)
        }
        Recipe::Delay { base, latency } => (
            "bdev_delay_create",
            json!({"name": name, "base_bdev_name": base, "avg_read_latency": latency.avg_read, "p99_read_latency": latency.p99_read, "avg_write_latency": latency.avg_write, "p99_write_latency": latency.p99_write}),
        ),
        Recipe::Error { base } => ("bdev_error_create", json!({"base_name": base})),
        Recipe::Nvme { .. } => return None,
    })
}
