//! The control plane: turns JSON-RPC methods into messages to the cores. Off the reactors, on its own thread.
//!
//! The desired state is one value ([`node::Node`]). A change edits a copy, [`Control::commit`] sends the difference
//! to the cores step by step, and only when every step was answered does the copy become the state. A step that
//! fails is undone with those before it, so that nothing is left half made. Readers take the state without waiting
//! for a change under way.

pub mod config;
pub mod identity;
pub mod known;
pub mod link;
pub mod log;
mod methods;
pub mod names;
pub mod node;
pub mod notify;
pub mod nvme;
pub mod nvme_disk;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base::{CoreId, Limits};
use fabrics::conductor::{CoreReply, CoreReport, CoreRequest, UnitTraffic};
use rpc::{Dispatcher, Phase, Registry, RpcError, errno};
use scsi::{ControlOutcome, ControlRequest, LogicalUnitId, Notification, TargetDeviceId};

use self::link::{CoreLink, DeviceFactory, Machine};
use self::log::LogControl;
use self::node::{Bdev, Node, Target};
use self::notify::Events;
use self::nvme::NvmeService;

/// How long a core may take to report: it reads counters between two turns.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The control plane.
pub struct Control {
    state: RwLock<Arc<Node>>,
    /// Held by the one change under way.
    turn: tokio::sync::Mutex<()>,
    link: Arc<dyn CoreLink>,
    machine: Arc<dyn Machine>,
    factory: Arc<dyn DeviceFactory>,
    nvme: Arc<NvmeService>,
    limits: Limits,
    log: LogControl,
    phase: Phase,
    generation: AtomicU64,
    events: Mutex<Events>,
    /// Traffic at the last `bdev_reset_iostat`.
    baseline: Mutex<HashMap<LogicalUnitId, UnitTraffic>>,
    /// True when initialisation is over.
    initialised: tokio::sync::watch::Sender<bool>,
    /// What `framework_start_init` loads.
    startup: Mutex<Option<config::ConfigFile>>,
    dispatcher: std::sync::OnceLock<Dispatcher>,
}

/// One step of a change, with what undoes it.
enum Step {
    AddUnit(Arc<Bdev>),
    SetLunMap { target: TargetDeviceId, map: Arc<scsi::LunMap>, before: Option<Arc<scsi::LunMap>> },
    IscsiConfig,
    RemoveTarget { target: TargetDeviceId, before: Arc<scsi::LunMap> },
    RemoveUnit(Arc<Bdev>),
}

impl Step {
    fn name(&self) -> String {
        match self {
            Step::AddUnit(bdev) => format!("adding the logical unit of {}", bdev.name),
            Step::SetLunMap { target, .. } => format!("setting the LUNs of target {}", target.0),
            Step::IscsiConfig => "giving the configuration to the iSCSI port".to_owned(),
            Step::RemoveTarget { target, .. } => format!("removing target {}", target.0),
            Step::RemoveUnit(bdev) => format!("removing the logical unit of {}", bdev.name),
        }
    }
}

/// The right to make the next change; changes come one after the other.
pub struct Turn<'a> {
    _held: tokio::sync::MutexGuard<'a, ()>,
}

/// What [`Control::new`] needs.
pub struct Parts {
    /// The cores.
    pub link: Arc<dyn CoreLink>,
    /// The reactors.
    pub machine: Arc<dyn Machine>,
    /// What makes devices.
    pub factory: Arc<dyn DeviceFactory>,
    /// What polls NVMe controllers.
    pub nvme: Arc<NvmeService>,
    /// Bounds.
    pub limits: Limits,
    /// The log's switches.
    pub log: LogControl,
}

impl Control {
    /// A control plane of an empty node, and the methods that drive it.
    #[must_use]
    pub fn new(parts: Parts) -> (Arc<Control>, Dispatcher) {
        let phase = Phase::default();
        let mut node = Node::default();
        node.node_options.max_sessions =
            parts.limits.sessions_max.saturating_mul(u32::from(parts.link.cores()));
        node.options.queue_depth_max = node.options.queue_depth_max.min(parts.limits.tasks_per_nexus_max);
        let control = Arc::new(Control {
            state: RwLock::new(Arc::new(node)),
            turn: tokio::sync::Mutex::new(()),
            link: parts.link,
            machine: parts.machine,
            factory: parts.factory,
            nvme: parts.nvme,
            limits: parts.limits,
            log: parts.log,
            phase: phase.clone(),
            generation: AtomicU64::new(0),
            events: Mutex::default(),
            baseline: Mutex::default(),
            initialised: tokio::sync::watch::channel(false).0,
            startup: Mutex::default(),
            dispatcher: std::sync::OnceLock::new(),
        });
        let mut registry = Registry::new(control.clone(), phase, env!("CARGO_PKG_VERSION"));
        methods::register(&mut registry);
        registry.declare_not_built(&known::KNOWN_METHODS);
        let dispatcher = registry.finish();
        let _ = control.dispatcher.set(dispatcher.clone());
        (control, dispatcher)
    }

    /// The state of the moment.
    #[must_use]
    pub fn state(&self) -> Arc<Node> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the changes before this one.
    pub async fn turn(&self) -> Turn<'_> {
        Turn { _held: self.turn.lock().await }
    }

    /// One whole change: waits for its turn, edits, carries out, or leaves everything as it was.
    ///
    /// # Errors
    /// What `edit` said, or what a core said.
    pub async fn change<R>(
        &self,
        edit: impl FnOnce(&mut Node) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let turn = self.turn().await;
        let mut to = Node::clone(&self.state());
        let result = edit(&mut to)?;
        self.commit(&turn, to).await?;
        Ok(result)
    }

    /// Makes `to` the state: sends the difference to the cores; when a step fails, undoes those done.
    ///
    /// # Errors
    /// The step that failed and why. The state is then the one before.
    pub async fn commit(&self, _turn: &Turn<'_>, mut to: Node) -> Result<(), RpcError> {
        let from = self.state();
        to.assign_units(self.link.cores(), self.limits.logical_units_max).ok_or_else(|| {
            let text = format!(
                "the node has no more than {} logical units. Remedy: unmap some",
                self.limits.logical_units_max
            );
            RpcError::errno(errno::ENOSPC, text)
        })?;
        // The port's own rules, once more and over the whole; while the start-up file loads, calls may name what
        // comes later in it.
        if to.ready
            && let Err(errors) = to.iscsi_config(0).validate()
        {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(RpcError::errno(
                errno::EINVAL,
                format!("the configuration would contradict itself: {}", texts.join("; ")),
            ));
        }
        let steps = self.steps(&from, &to);
        for (at, step) in steps.iter().enumerate() {
            if let Err(error) = self.take_step(step, &to).await {
                for done in steps.iter().take(at).rev() {
                    if let Err(error) = self.undo_step(done, &from).await {
                        tracing::error!(target: "control", step = done.name(), %error, "undoing failed");
                    }
                }
                return Err(RpcError::new(error.code, format!("{} failed: {}", step.name(), error.message)));
            }
        }
        self.announce(&from, &to);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(to);
        // A unit begins with a medium; a controller may be away.
        self.settle_media().await;
        Ok(())
    }

    /// The difference between two states, in an order in which nothing names what is not there.
    fn steps(&self, from: &Node, to: &Node) -> Vec<Step> {
        let unit_of = |node: &Node, bdev: &Bdev| {
            node.bdevs.get(&bdev.name).filter(|other| other.order == bdev.order).and_then(|other| other.unit)
        };
        let mut steps = Vec::new();
        let mut added: Vec<&Arc<Bdev>> = to
            .bdevs
            .values()
            .filter(|bdev| bdev.unit.is_some() && unit_of(from, bdev) != bdev.unit)
            .collect();
        added.sort_by_key(|bdev| bdev.unit);
        steps.extend(added.into_iter().map(|bdev| Step::AddUnit(bdev.clone())));
        let same_target = |node: &Node, target: &Target| {
            node.targets.get(&target.name).cloned().filter(|t| t.id == target.id)
        };
        for target in to.targets.values() {
            let before = same_target(from, target).map(|old| Arc::new(from.lun_map(&old)));
            let map = Arc::new(to.lun_map(target));
            if before.as_ref() != Some(&map) {
                steps.push(Step::SetLunMap { target: target.id, map, before });
            }
        }
        // While the start-up configuration loads, only portals concern the port: it refuses logins anyway.
        let wanted = if to.ready { from.iscsi_differs(to) } else { from.portal_groups != to.portal_groups };
        if wanted || self.generation.load(Ordering::Relaxed) == 0 {
            steps.push(Step::IscsiConfig);
        }
        for target in from.targets.values().filter(|target| same_target(to, target).is_none()) {
            steps.push(Step::RemoveTarget { target: target.id, before: Arc::new(from.lun_map(target)) });
        }
        for bdev in from.bdevs.values().filter(|bdev| bdev.unit.is_some() && unit_of(to, bdev) != bdev.unit) {
            steps.push(Step::RemoveUnit(bdev.clone()));
        }
        steps
    }

    async fn take_step(&self, step: &Step, to: &Node) -> Result<(), RpcError> {
        match step {
            Step::AddUnit(bdev) => self.add_unit(bdev).await,
            Step::SetLunMap { target, map, .. } => self.set_lun_map(*target, map).await,
            Step::IscsiConfig => self.publish(to).await,
            Step::RemoveTarget { target, .. } => self.remove_target(*target).await,
            Step::RemoveUnit(bdev) => self.remove_unit(bdev).await,
        }
    }

    async fn undo_step(&self, step: &Step, from: &Node) -> Result<(), RpcError> {
        match step {
            Step::AddUnit(bdev) => self.remove_unit(bdev).await,
            Step::SetLunMap { target, before: Some(before), .. } => self.set_lun_map(*target, before).await,
            Step::SetLunMap { target, before: None, .. } => self.remove_target(*target).await,
            Step::IscsiConfig => self.publish(from).await,
            Step::RemoveTarget { target, before } => self.set_lun_map(*target, before).await,
            Step::RemoveUnit(bdev) => self.add_unit(bdev).await,
        }
    }

    async fn add_unit(&self, bdev: &Bdev) -> Result<(), RpcError> {
        let Some((unit, home)) = bdev.unit else { return Ok(()) };
        let request = ControlRequest::AddLogicalUnit {
            unit,
            home,
            device: bdev.device.device.clone(),
            identity: identity::unit_identity(bdev.uuid),
        };
        self.scsi(home, request).await
    }

    async fn remove_unit(&self, bdev: &Bdev) -> Result<(), RpcError> {
        let Some((unit, home)) = bdev.unit else { return Ok(()) };
        self.baseline().remove(&unit);
        self.nvme.forget_unit(unit);
        self.scsi(home, ControlRequest::RemoveLogicalUnit { unit }).await
    }

    async fn set_lun_map(&self, target: TargetDeviceId, map: &Arc<scsi::LunMap>) -> Result<(), RpcError> {
        self.scsi(CoreId(0), ControlRequest::SetLunMap { target, map: map.clone() }).await
    }

    async fn remove_target(&self, target: TargetDeviceId) -> Result<(), RpcError> {
        self.scsi(CoreId(0), ControlRequest::RemoveTarget { target }).await
    }

    /// Gives every core a snapshot of `node`. Core 0 first: it owns the listeners, and may find that it cannot have one.
    async fn publish(&self, node: &Node) -> Result<(), RpcError> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let config = Arc::new(node.iscsi_config(generation));
        for core in 0..self.link.cores() {
            self.outcome(CoreId(core), CoreRequest::IscsiConfig(config.clone())).await?;
        }
        Ok(())
    }

    async fn scsi(&self, core: CoreId, request: ControlRequest) -> Result<(), RpcError> {
        self.outcome(core, CoreRequest::Scsi(request)).await
    }

    /// Sends a request that is answered with an outcome. The bound is the one of task management and some more:
    /// by then the engine has fenced what does not end.
    async fn outcome(&self, core: CoreId, request: CoreRequest) -> Result<(), RpcError> {
        let bound = Duration::from_millis(u64::from(self.limits.task_management_deadline_ms))
            + Duration::from_secs(5);
        match self.ask(core, request, bound).await? {
            CoreReply::Outcome(ControlOutcome::Done) => Ok(()),
            CoreReply::Outcome(ControlOutcome::Failed(text)) => Err(RpcError::errno(errno::EIO, text)),
            other => Err(RpcError::internal(format!("{core} answered {other:?}"))),
        }
    }

    async fn ask(&self, core: CoreId, request: CoreRequest, bound: Duration) -> Result<CoreReply, RpcError> {
        match tokio::time::timeout(bound, self.link.request(core, request)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(RpcError::errno(errno::EBUSY, error.to_string())),
            Err(_) => {
                let text = format!("{core} did not answer within {} ms", bound.as_millis());
                Err(RpcError::errno(errno::ETIMEDOUT, text))
            }
        }
    }

    /// Asks every session to log out.
    pub(crate) async fn request_logout(
        &self,
        target: Option<Arc<str>>,
        portal_group: Option<u16>,
        seconds: u16,
    ) -> Result<(), RpcError> {
        for core in 0..self.link.cores() {
            let request = CoreRequest::RequestLogout { target: target.clone(), portal_group, seconds };
            self.outcome(CoreId(core), request).await?;
        }
        Ok(())
    }

    /// Tells a unit's home that its device has another size.
    pub(crate) async fn capacity_changed(&self, bdev: &Bdev) -> Result<(), RpcError> {
        match bdev.unit {
            Some((unit, home)) => self.scsi(home, ControlRequest::CapacityChanged { unit }).await,
            None => Ok(()),
        }
    }

    /// Tells the homes of a bdev's unit, and of the units of all that stands on it, that the device went away or came
    /// back: for whatever watches devices.
    ///
    /// # Errors
    /// `ENODEV` when there is no such bdev; what a core said.
    pub async fn medium_changed(&self, name: &str, present: bool) -> Result<(), RpcError> {
        let node = self.state();
        if !node.bdevs.contains_key(name) {
            let text = format!("there is no bdev {name:?}. Remedy: see bdev_get_bdevs");
            return Err(RpcError::errno(errno::ENODEV, text));
        }
        let mut names = vec![name.to_owned()];
        while let Some(name) = names.pop() {
            if let Some((unit, home)) = node.bdevs.get(&name).and_then(|bdev| bdev.unit) {
                self.scsi(home, ControlRequest::MediumChanged { unit, present }).await?;
            }
            names.extend(node.above(&name).map(|bdev| bdev.name.clone()));
        }
        Ok(())
    }

    /// The reports of all cores, asked at the same time.
    ///
    /// # Errors
    /// `ETIMEDOUT` when one does not answer.
    pub async fn reports(self: &Arc<Self>) -> Result<Vec<CoreReport>, RpcError> {
        let mut asked = tokio::task::JoinSet::new();
        for core in 0..self.link.cores() {
            let control = self.clone();
            asked.spawn(async move {
                (core, control.ask(CoreId(core), CoreRequest::Report, REPORT_TIMEOUT).await)
            });
        }
        let mut reports = Vec::new();
        for (core, reply) in asked.join_all().await {
            match reply? {
                CoreReply::Report(report) => reports.push((core, *report)),
                other => return Err(RpcError::internal(format!("core {core} answered {other:?}"))),
            }
        }
        reports.sort_by_key(|(core, _)| *core);
        Ok(reports.into_iter().map(|(_, report)| report).collect())
    }

    /// Records what a core noticed.
    pub fn handle_notification(&self, notification: &Notification) {
        let (kind, unit) = match notification {
            Notification::UnitFenced { unit } => ("unit_fenced", *unit),
            Notification::FlushFailed { unit } => ("flush_failed", *unit),
            Notification::MediumError { unit } => ("medium_error", *unit),
            Notification::DeviceGone { unit } => ("device_gone", *unit),
            Notification::DeviceReturned { unit } => ("device_returned", *unit),
        };
        let node = self.state();
        let name = node
            .bdevs
            .values()
            .find(|bdev| bdev.unit.is_some_and(|(u, _)| u == unit))
            .map(|bdev| bdev.name.as_str());
        tracing::warn!(target: "control", unit = unit.0, bdev = name, kind, "a core noticed something");
        self.events().add(kind, name.unwrap_or(""));
    }

    fn announce(&self, from: &Node, to: &Node) {
        let mut events = self.events();
        let has = |node: &Node, bdev: &Bdev| {
            node.bdevs.get(&bdev.name).is_some_and(|other| other.order == bdev.order)
        };
        for bdev in from.bdevs.values().filter(|bdev| !has(to, bdev)) {
            events.add("bdev_unregister", &bdev.name);
        }
        for bdev in to.bdevs.values().filter(|bdev| !has(from, bdev)) {
            events.add("bdev_register", &bdev.name);
        }
    }

    fn events(&self) -> std::sync::MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn baseline(&self) -> std::sync::MutexGuard<'_, HashMap<LogicalUnitId, UnitTraffic>> {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the start-up phase: loads `file` and then admits initiators.
    ///
    /// # Errors
    /// The place in the file and what is wrong there.
    pub async fn start(&self, file: Option<config::ConfigFile>) -> Result<(), String> {
        self.phase.enter_runtime();
        if let (Some(file), Some(dispatcher)) = (file, self.dispatcher.get()) {
            config::load(dispatcher, &file).await?;
        }
        let ready = self.change(|node| {
            node.ready = true;
            Ok(())
        });
        ready.await.map_err(|error| error.message)?;
        self.initialised.send_replace(true);
        Ok(())
    }

    /// Keeps `file` for `framework_start_init` (`--wait-for-rpc`).
    pub fn keep_for_start(&self, file: Option<config::ConfigFile>) {
        *self.startup.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}
