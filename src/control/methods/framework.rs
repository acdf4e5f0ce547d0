//! `framework_*`, `thread_*`, `spdk_*`, `notify_*`, `reactor_set_mode`.

use std::sync::{Arc, PoisonError};

use rpc::{NoParameters, Registry, RpcError, When, errno};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Result, invalid};
use crate::control::link::ReactorReport;
use crate::control::notify::{Event, TYPES};
use crate::control::{Control, config};

/// Ticks are nanoseconds.
pub(super) const TICK_RATE: u64 = 1_000_000_000;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Kill {
    /// SIGINT, SIGTERM, SIGQUIT, SIGHUP: stops cleanly. SIGKILL: ends at once.
    sig_name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetConfig {
    /// The subsystem: one of framework_get_subsystems.
    name: String,
    /// Also CHAP secrets, in the clear. Without it auth groups are saved without their secrets.
    #[serde(default)]
    include_secrets: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetScheduler {
    /// "static": sessions stay on the core they were placed on.
    name: String,
    /// Microseconds between decisions. Nothing is decided, so it is accepted and has no effect.
    #[serde(default)]
    #[allow(dead_code)]
    period: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetMode {
    /// "poll": reactors always spin. "adaptive": they spin while busy and sleep when idle.
    mode: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Notifications {
    /// The first event wanted; the oldest kept when absent.
    #[serde(default)]
    id: u64,
    /// The most events wanted; all when absent.
    max: Option<u64>,
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "spdk_get_version",
        When::Always,
        "Name and version of the daemon.",
        |_: Arc<Control>, _: NoParameters| async move { Ok(version()) },
    );
    registry.register("spdk_kill_instance", When::Always, "Ends the daemon as the signal would.", |control: Arc<Control>, p: Kill| async move {
        match p.sig_name.as_str() {
            "SIGINT" | "SIGTERM" | "SIGQUIT" | "SIGHUP" | "INT" | "TERM" | "2" | "15" => control.machine.stop(),
            // As the signal does: nothing drains.
            "SIGKILL" | "KILL" | "9" => std::process::exit(137),
            other => return Err(invalid("spdk_kill_instance", "sig_name", format!("{other:?} cannot be sent. Remedy: use SIGINT, SIGTERM, SIGQUIT, SIGHUP or SIGKILL"))),
        }
        Ok(true)
    });
    registry.register(
        "framework_start_init",
        When::Startup,
        "Ends the start-up phase: loads the configuration file, if any, and admits initiators.",
        |control: Arc<Control>, _: NoParameters| async move {
            let file = control.startup.lock().unwrap_or_else(PoisonError::into_inner).take();
            control
                .start(file)
                .await
                .map_err(|text| RpcError::internal(format!("framework_start_init: {text}")))?;
            Ok(true)
        },
    );
    registry.register(
        "framework_wait_init",
        When::Always,
        "Returns when the start-up configuration is loaded.",
        |control: Arc<Control>, _: NoParameters| async move {
            let mut initialised = control.initialised.subscribe();
            let _ = initialised.wait_for(|done| *done).await;
            Ok(true)
        },
    );
    registry.register(
        "framework_get_subsystems",
        When::Always,
        "The subsystems in the order of initialisation.",
        |_: Arc<Control>, _: NoParameters| async move {
            Ok(config::SUBSYSTEMS
                .iter()
                .map(|(name, needs)| json!({"subsystem": name, "depends_on": needs}))
                .collect::<Vec<Value>>())
        },
    );
    registry.register("framework_get_config", When::Always, "The calls that make a subsystem what it is now.", |control: Arc<Control>, p: GetConfig| async move {
        control.saved(&p.name, p.include_secrets).ok_or_else(|| {
            RpcError::errno(errno::EINVAL, format!("framework_get_config: parameter \"name\": subsystem {:?} not found. Remedy: framework_get_subsystems lists them", p.name))
        })
    });
    registry.register("framework_get_scheduler", When::Always, "The scheduler. Sessions never move, which is what static means.", |_: Arc<Control>, _: NoParameters| async move {
        Ok(json!({"scheduler_name": "static", "scheduler_period": 0, "isolated_core_mask": "0x0", "scheduling_core": 0}))
    });
    registry.register("framework_set_scheduler", When::Always, "Selects the scheduler: only static is built.", |_: Arc<Control>, p: SetScheduler| async move {
        if p.name == "static" {
            return Ok(true);
        }
        Err(invalid("framework_set_scheduler", "name", format!("scheduler {:?} is not built into this version: sessions stay on the core they were placed on. Remedy: use \"static\"; to let idle reactors sleep use reactor_set_mode with mode adaptive", p.name)))
    });
    register_reactors(registry);
    registry.register(
        "notify_get_types",
        When::Always,
        "The types of events.",
        |_: Arc<Control>, _: NoParameters| async move { Ok(TYPES.to_vec()) },
    );
    registry.register(
        "notify_get_notifications",
        When::Always,
        "Events from a number on. The last 1,024 are kept.",
        |control: Arc<Control>, p: Notifications| async move {
            let max = p.max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
            Ok::<Vec<Event>, RpcError>(control.events().from(p.id, max))
        },
    );
}

fn register_reactors(registry: &mut Registry<Control>) {
    registry.register(
        "reactor_set_mode",
        When::Always,
        "Sets how reactors spend idle time, while they run.",
        |control: Arc<Control>, p: SetMode| async move {
            let mode = p.mode.parse().map_err(|text: String| {
                invalid("reactor_set_mode", "mode", format!("{text}. Remedy: use one of the two"))
            })?;
            control.machine.set_mode(mode);
            Ok(true)
        },
    );
    registry.register("framework_get_reactors", When::Always, "The reactors, and how busy they have been. Ticks are nanoseconds.", |control: Arc<Control>, _: NoParameters| async move {
        let mode = control.machine.mode().name();
        let reactors: Vec<Value> = control.machine.reactors().iter().map(|reactor| json!({
            "lcore": reactor.core.0,
            "cpu": reactor.cpu,
            "busy": reactor.busy_ns,
            "idle": reactor.idle_ns,
            "in_interrupt": false,
            "mode": mode,
            "lw_threads": [{"name": thread_name(reactor), "id": reactor.core.0 + 1, "cpumask": mask(reactor), "elapsed": reactor.busy_ns.saturating_add(reactor.idle_ns)}],
        })).collect();
        Ok(json!({"tick_rate": TICK_RATE, "pid": std::process::id(), "reactors": reactors}))
    });
    registry.register(
        "thread_get_stats",
        When::Always,
        "The threads (one for each reactor), and how busy they have been.",
        |control: Arc<Control>, _: NoParameters| async move {
            let threads: Vec<Value> = control
                .machine
                .reactors()
                .iter()
                .map(|reactor| {
                    json!({
                        "name": thread_name(reactor), "id": reactor.core.0 + 1, "cpumask": mask(reactor),
                        "busy": reactor.busy_ns, "idle": reactor.idle_ns, "in_interrupt": false,
                        "active_pollers_count": 1, "timed_pollers_count": 0, "paused_pollers_count": 0,
                    })
                })
                .collect();
            Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
        },
    );
    registry.register("thread_get_pollers", When::Always, "The pollers of each thread.", |control: Arc<Control>, _: NoParameters| async move {
        let threads: Vec<Value> = control.machine.reactors().iter().map(|reactor| json!({
            "name": thread_name(reactor), "id": reactor.core.0 + 1,
            "active_pollers": [{"name": "conductor", "id": 1, "state": "waiting", "run_count": reactor.turns, "busy_count": reactor.turns_busy}],
            "timed_pollers": [], "paused_pollers": [],
        })).collect();
        Ok(json!({"tick_rate": TICK_RATE, "threads": threads}))
    });
}

/// The thread's name, as `iscsi_get_connections` shows it too.
pub(super) fn thread_name(reactor: &ReactorReport) -> String {
    format!("reactor_{}", reactor.core.0)
}

fn mask(reactor: &ReactorReport) -> String {
    // Hexadecimal digits, of which the lowest stands for CPUs 0 to 3.
    let cpu = reactor.cpu.unwrap_or(u32::from(reactor.core.0)) as usize;
    format!("{}{}", 1u8 << (cpu % 4), "0".repeat(cpu / 4))
}

fn version() -> Value {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "version": format!("Pollux {} git sha1 {}", env!("CARGO_PKG_VERSION"), env!("POLLUX_COMMIT")),
        "fields": {
            "major": part(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": part(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": part(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
            "commit": env!("POLLUX_COMMIT"),
        }
    })
}

impl Control {
    /// The calls that make subsystem `name` what it is, or `None` when there is no such subsystem.
    #[must_use]
    pub fn saved(&self, name: &str, include_secrets: bool) -> Option<Vec<config::Entry>> {
        let node = self.state();
        match name {
            "bdev" => Some(super::saved_bdevs(&node)),
            "iscsi" => Some(super::iscsi_options::saved(&node, include_secrets)),
            "scsi" => Some(Vec::new()),
            _ => None,
        }
    }
}

/// Shared by methods that answer `true`.
pub(super) fn done(result: Result<()>) -> Result<bool> {
    result.map(|()| true)
}
