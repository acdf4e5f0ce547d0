//! NVMe controllers: the thread that polls them, and what follows from what happens to them.
//!
//! One thread serves the administration of all controllers, so that no reactor ever touches an admin queue. It only
//! polls; what comes of it is fetched and acted upon by a task of the control plane ([`Control::watch_nvme`]).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use base::{Clock, CoreId, Progress};
use nvme_backend::{
    Controller, ControllerEvent, ControllerOptions, ControllerState, Namespace, TimeoutAction,
};
use reactor::{Doorbell, PciDevice, SleepSet};
use rpc::{RpcError, errno};
use scsi::{ControlRequest, LogicalUnitId};

use super::Control;
use super::identity::stable_uuid;
use super::link::{Device, DeviceError, NvmeTransport, Recipe};
use super::node::{Bdev, Node};
use super::nvme_disk::NvmeDisk;

/// How long bringing a controller up may take: its own limit (CAP.TO) is two minutes at most, seconds in life.
const BRING_UP_MAX: Duration = Duration::from_secs(90);

/// How long a controller may take to shut down.
const SHUT_DOWN_MAX: Duration = Duration::from_secs(10);

/// Between two looks at a controller that somebody waits for.
const LOOK: Duration = Duration::from_millis(2);

/// A name in front of those that hotplug gives.
const HOT_NAME: &str = "HotInNvme";

/// How controllers are driven, as `bdev_nvme_set_options` and `bdev_nvme_set_hotplug` set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeOptions {
    /// What each controller is given.
    pub controller: ControllerOptions,
    /// The longest that the thread sleeps while there are controllers.
    pub poll_period: Duration,
    /// Controllers that appear on the PCI bus are attached by themselves.
    pub hotplug: bool,
    /// Between two looks for controllers that came or came back.
    pub scan_period: Duration,
}

impl Default for NvmeOptions {
    fn default() -> NvmeOptions {
        NvmeOptions {
            controller: ControllerOptions::default(),
            poll_period: Duration::from_millis(4),
            hotplug: false,
            scan_period: Duration::from_secs(1),
        }
    }
}

/// A controller that was attached.
pub struct NvmeController {
    /// Its name.
    pub name: String,
    /// In the row of everything that was made.
    pub order: u64,
    /// How it is reached.
    pub transport: NvmeTransport,
    /// Where: a PCI address, or the path of a socket.
    pub address: String,
    /// I/O queue pairs, when fewer than the driver would take were asked for.
    pub queue_pairs_max: Option<u16>,
    /// Namespaces, when a bound was asked for.
    pub namespaces_max: Option<u32>,
    /// Hotplug found it, so it is saved only if something stands on it.
    pub hot: bool,
    /// `None` while it has not been seen since the daemon started.
    pub controller: Option<Arc<Controller>>,
}

impl NvmeController {
    /// Where it is, whichever way that was written: a folder is the same as the socket in it.
    pub(super) fn place(&self) -> &str {
        match self.transport {
            NvmeTransport::Pcie => &self.address,
            NvmeTransport::VfioUser => {
                let path = self.address.trim_end_matches('/');
                path.strip_suffix("/cntrl").unwrap_or(path)
            }
        }
    }

    /// What the driver is given for it.
    pub(super) fn options(&self, node: &Node) -> ControllerOptions {
        let mut options = node.nvme_options.controller;
        options.queue_pairs_max = self.queue_pairs_max.unwrap_or(options.queue_pairs_max);
        options.namespaces_max = self.namespaces_max.unwrap_or(options.namespaces_max);
        options
    }
}

/// A controller, and the device it works on.
type DeviceOf = (Weak<Controller>, Weak<dyn PciDevice>);

/// The thread's part.
pub struct NvmeService {
    polled: Mutex<Vec<Arc<Controller>>>,
    /// The device of each of those, for as long as the driver keeps it.
    devices: Mutex<Vec<DeviceOf>>,
    bell: Doorbell,
    stopping: AtomicBool,
    period_us: AtomicU64,
    moved: tokio::sync::Notify,
    /// Controllers somebody tries to bring back at this moment.
    reviving: Mutex<BTreeSet<String>>,
    /// Units that were told that their medium is away.
    away: Mutex<BTreeSet<LogicalUnitId>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NvmeService {
    /// With no controllers.
    ///
    /// # Errors
    /// The host system's, when there is no descriptor for the thread's bell.
    pub fn new() -> std::io::Result<Arc<NvmeService>> {
        Ok(Arc::new(NvmeService {
            polled: Mutex::default(),
            devices: Mutex::default(),
            bell: Doorbell::new()?,
            stopping: AtomicBool::new(false),
            period_us: AtomicU64::new(4000),
            moved: tokio::sync::Notify::new(),
            reviving: Mutex::default(),
            away: Mutex::default(),
        }))
    }

    /// Polls until [`NvmeService::stop`]. For a thread of its own; `clock` is the reactors'.
    pub fn run(&self, clock: &dyn Clock) {
        let mut set = SleepSet::with_capacity(16);
        while !self.stopping.load(Ordering::Acquire) {
            let polled = locked(&self.polled).clone();
            if self.poll(&polled, clock) == Progress::Busy {
                continue;
            }
            set.clear();
            set.push(self.bell.arm());
            let period = Duration::from_micros(self.period_us.load(Ordering::Relaxed));
            let mut wake = clock.now() + if polled.is_empty() { Duration::from_secs(3600) } else { period };
            for controller in &polled {
                controller.wake_descriptors(&mut |descriptor| set.push(descriptor));
                wake = controller.next_timeout().map_or(wake, |timeout| wake.min(timeout));
            }
            // What came between the poll and the arming rings no bell. The list is looked at too: whoever changes it rings.
            let unchanged = locked(&self.polled).len() == polled.len();
            if unchanged
                && self.poll(&polled, clock) == Progress::Idle
                && !self.stopping.load(Ordering::Acquire)
            {
                set.sleep(Some(wake.since(clock.now())));
            }
            self.bell.disarm();
        }
    }

    fn poll(&self, polled: &[Arc<Controller>], clock: &dyn Clock) -> Progress {
        let mut progress = Progress::Idle;
        for controller in polled {
            progress = progress.or(controller.poll(clock.now()));
        }
        if progress == Progress::Busy {
            self.moved.notify_one();
        }
        progress
    }

    /// Has the thread look at its controllers now.
    pub(super) fn wake(&self) {
        self.bell.ring();
    }

    /// Has the watch look at what happened now.
    pub(super) fn moved(&self) {
        self.moved.notify_one();
    }

    /// Ends [`NvmeService::run`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Sets the longest sleep.
    pub(super) fn set_period(&self, period: Duration) {
        self.period_us.store(u64::try_from(period.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.bell.ring();
    }

    fn add(&self, controller: &Arc<Controller>) {
        locked(&self.polled).push(controller.clone());
        self.bell.ring();
    }

    /// Remembers on which device a controller works.
    fn set_device(&self, controller: &Arc<Controller>, device: Weak<dyn PciDevice>) {
        let mut devices = locked(&self.devices);
        devices.retain(|(known, _)| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(controller));
        devices.push((Arc::downgrade(controller), device));
    }

    /// The device that the driver has for a controller.
    fn device(&self, controller: &Arc<Controller>) -> Option<Arc<dyn PciDevice>> {
        let devices = locked(&self.devices);
        devices.iter().find(|(known, _)| known.as_ptr() == Arc::as_ptr(controller))?.1.upgrade()
    }

    fn remove(&self, controller: &Arc<Controller>) {
        locked(&self.polled).retain(|other| !Arc::ptr_eq(other, controller));
        self.bell.ring();
    }

    /// The unit is new, or is gone: nothing is known of its medium.
    pub(super) fn forget_unit(&self, unit: LogicalUnitId) {
        locked(&self.away).remove(&unit);
    }
}

/// Marks a controller as being brought back, until it is dropped.
struct Reviving<'a> {
    service: &'a NvmeService,
    name: String,
}

impl<'a> Reviving<'a> {
    fn begin(service: &'a NvmeService, name: &str) -> Option<Reviving<'a>> {
        locked(&service.reviving).insert(name.to_owned()).then(|| Reviving { service, name: name.to_owned() })
    }
}

impl Drop for Reviving<'_> {
    fn drop(&mut self) {
        locked(&self.service.reviving).remove(&self.name);
    }
}

/// The UUID of a namespace: its own, or one that is made of what it has that never changes.
pub(super) fn namespace_uuid(namespace: &Namespace) -> uuid::Uuid {
    let identity = namespace.identity();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match (identity.uuid, identity.nguid, identity.eui64) {
        (Some(uuid), ..) if uuid != [0; 16] => uuid::Uuid::from_bytes(uuid),
        (_, Some(nguid), _) if nguid != [0; 16] => stable_uuid(&["nguid", &hex(&nguid)]),
        (_, _, Some(eui64)) if eui64 != [0; 8] => stable_uuid(&["eui64", &hex(&eui64)]),
        _ => stable_uuid(&["nvme", &identity.model, &identity.serial, &identity.nsid.to_string()]),
    }
}

/// The name of a namespace's bdev.
pub(super) fn bdev_name(controller: &str, nsid: u32) -> String {
    format!("{controller}n{nsid}")
}

/// The bdevs of a controller.
pub(super) fn bdevs_of<'a>(node: &'a Node, name: &'a str) -> impl Iterator<Item = (&'a Arc<Bdev>, u32)> {
    node.bdevs.values().filter_map(move |bdev| match &bdev.recipe {
        Recipe::Nvme { controller, nsid } if controller == name => Some((bdev, *nsid)),
        _ => None,
    })
}

/// Gives every namespace that can be used a bdev, unless it has one. Names of the new ones.
///
/// # Errors
/// `EEXIST` when a bdev has the name or the UUID.
pub(super) fn add_bdevs(
    node: &mut Node,
    name: &str,
    controller: &Arc<Controller>,
) -> Result<Vec<String>, RpcError> {
    let mut names = Vec::new();
    for namespace in controller.namespaces() {
        let nsid = namespace.nsid();
        if let Some(reason) = namespace.unusable() {
            tracing::warn!(target: "nvme", controller = name, nsid, reason, "a namespace cannot be used");
            continue;
        }
        if !namespace.is_present() || bdevs_of(node, name).any(|(_, known)| known == nsid) {
            continue;
        }
        let (bdev, uuid) = (bdev_name(name, nsid), namespace_uuid(&namespace));
        let disk = NvmeDisk::new(namespace, controller.clone());
        add_bdev(node, &bdev, Recipe::Nvme { controller: name.to_owned(), nsid }, uuid, disk)?;
        names.push(bdev);
    }
    Ok(names)
}

/// Enters one bdev of a controller.
///
/// # Errors
/// `EEXIST` when a bdev has the name or the UUID.
pub(super) fn add_bdev(
    node: &mut Node,
    name: &str,
    recipe: Recipe,
    uuid: uuid::Uuid,
    disk: Arc<NvmeDisk>,
) -> Result<(), RpcError> {
    if node.bdevs.contains_key(name) {
        let text = format!("bdev \"{name}\" exists already. Remedy: choose another name for the controller");
        return Err(RpcError::errno(errno::EEXIST, text));
    }
    if let Some(other) = node.bdevs.values().find(|bdev| bdev.uuid == uuid) {
        let text = format!(
            "bdev \"{}\" is the same namespace (uuid {uuid}): several paths to one are not built into this version. Remedy: attach one of its controllers only",
            other.name
        );
        return Err(RpcError::errno(errno::EEXIST, text));
    }
    let order = node.order_next;
    node.order_next += 1;
    let device = Device { device: disk.clone(), controls: disk };
    let bdev = Bdev { name: name.to_owned(), order, recipe, uuid, uuid_saved: false, device, unit: None };
    node.bdevs.insert(name.to_owned(), Arc::new(bdev));
    Ok(())
}

/// Whether the medium at the bottom of a bdev is there.
fn is_present(node: &Node, bdev: &Bdev) -> Option<bool> {
    match bdev.recipe.base().and_then(|base| node.bdevs.get(base)) {
        Some(base) => is_present(node, base),
        None => bdev.device.controls.is_present(),
    }
}

impl Control {
    /// Opens the device and brings a controller up on it. The caller shuts it down when it cannot keep it.
    pub(super) async fn bring_up(
        &self,
        transport: NvmeTransport,
        address: &str,
        options: ControllerOptions,
    ) -> Result<Arc<Controller>, DeviceError> {
        let (factory, place, cores) = (self.factory.clone(), address.to_owned(), self.link.cores());
        // Opening asks the kernel, or another process: not on the thread that answers calls.
        let (controller, device) = tokio::task::spawn_blocking(move || {
            let device = factory.open_pci(transport, &place)?;
            let weak = Arc::downgrade(&device);
            Controller::new(device, options, cores)
                .map(|controller| (controller, weak))
                .map_err(|error| DeviceError::new(errno::EIO, format!("{place}: {error}")))
        })
        .await
        .map_err(|error| DeviceError::new(errno::EIO, error.to_string()))??;
        self.nvme.set_device(&controller, device);
        self.nvme.add(&controller);
        match self.await_ready(&controller, address).await {
            Ok(()) => Ok(controller),
            Err(error) => {
                self.shut_down(&controller).await;
                Err(error)
            }
        }
    }

    /// Waits until a controller works, or does not.
    pub(super) async fn await_ready(
        &self,
        controller: &Controller,
        address: &str,
    ) -> Result<(), DeviceError> {
        let end = tokio::time::Instant::now() + BRING_UP_MAX;
        loop {
            match controller.state() {
                ControllerState::Ready => return Ok(()),
                ControllerState::Failed => {
                    let reason = controller.failure().unwrap_or_else(|| "it failed".to_owned());
                    return Err(DeviceError::new(errno::EIO, format!("{address}: {reason}")));
                }
                ControllerState::Gone | ControllerState::Detaching | ControllerState::Detached => {
                    return Err(DeviceError::new(
                        errno::ENODEV,
                        format!(
                            "{address}: the device went away while it was brought up. Remedy: see that it, or the process that serves it, lives and serves nobody else"
                        ),
                    ));
                }
                ControllerState::Starting | ControllerState::Resetting => {}
            }
            if tokio::time::Instant::now() >= end {
                let text =
                    format!("{address}: the controller is not ready after {} s", BRING_UP_MAX.as_secs());
                return Err(DeviceError::new(errno::ETIMEDOUT, text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Shuts a controller down and lets go of its device.
    pub(super) async fn shut_down(&self, controller: &Arc<Controller>) {
        controller.detach();
        let end = tokio::time::Instant::now() + SHUT_DOWN_MAX;
        while controller.state() != ControllerState::Detached {
            if tokio::time::Instant::now() >= end {
                tracing::warn!(target: "nvme", device = controller.name(), "the controller did not shut down in time");
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.nvme.remove(controller);
    }

    /// Shuts every controller down: for the end of the daemon, when no core does I/O any more.
    pub async fn shut_down_nvme(self: &Arc<Self>) {
        let node = self.state();
        let mut ending = tokio::task::JoinSet::new();
        for controller in node.controllers.values().filter_map(|entry| entry.controller.clone()) {
            let control = self.clone();
            ending.spawn(async move { control.shut_down(&controller).await });
        }
        ending.join_all().await;
    }

    /// Follows the controllers for ever.
    pub async fn watch_nvme(self: Arc<Self>) {
        let mut known = BTreeSet::new();
        let mut scanned = tokio::time::Instant::now();
        loop {
            let period = self.state().nvme_options.scan_period;
            let _ = tokio::time::timeout(period, self.nvme.moved.notified()).await;
            self.follow_nvme().await;
            if scanned.elapsed() >= period {
                scanned = tokio::time::Instant::now();
                self.scan_nvme(&mut known).await;
            }
            // A controller that is busy moves all the time.
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn follow_nvme(self: &Arc<Self>) {
        let node = self.state();
        for entry in node.controllers.values() {
            for event in entry.controller.iter().flat_map(|controller| controller.take_events()) {
                self.nvme_event(&node, &entry.name, &event).await;
            }
        }
        self.settle_media().await;
    }

    async fn nvme_event(self: &Arc<Self>, node: &Node, name: &str, event: &ControllerEvent) {
        let note = |kind, subject: &str| {
            tracing::warn!(target: "nvme", controller = name, ?event, "a controller's state changed");
            self.events().add(kind, subject);
        };
        match event {
            ControllerEvent::NamespaceAdded { nsid } => {
                tracing::info!(target: "nvme", controller = name, nsid, "a namespace is there");
                let (control, name) = (self.clone(), name.to_owned());
                // A change may be under way, and takes as long as it takes.
                tokio::spawn(async move { control.namespaces_came(&name).await });
            }
            ControllerEvent::NamespaceUnusable { nsid, reason } => {
                tracing::warn!(target: "nvme", controller = name, nsid, reason, "a namespace cannot be used");
            }
            ControllerEvent::NamespaceRemoved { nsid } => {
                let bdev = bdev_name(name, *nsid);
                note("nvme_namespace_removed", &bdev);
                self.medium_went(node, &bdev).await;
            }
            ControllerEvent::NamespaceChanged { nsid, blocks } => {
                let bdev = bdev_name(name, *nsid);
                tracing::info!(target: "nvme", bdev, blocks, "a namespace changed");
                if let Err(error) = self.size_changed(&bdev).await {
                    tracing::error!(target: "nvme", bdev, %error, "a changed namespace could not be announced");
                }
            }
            ControllerEvent::CacheLost { nsid } => note("nvme_cache_lost", &bdev_name(name, *nsid)),
            ControllerEvent::ResetBegun(_) => note("nvme_reset_begun", name),
            ControllerEvent::ResetDone(_) => note("nvme_reset_done", name),
            ControllerEvent::Failed(_) | ControllerEvent::Gone => {
                let gone = *event == ControllerEvent::Gone;
                note(if gone { "nvme_controller_gone" } else { "nvme_controller_failed" }, name);
                let bdevs: Vec<String> = bdevs_of(node, name).map(|(bdev, _)| bdev.name.clone()).collect();
                for bdev in bdevs {
                    self.medium_went(node, &bdev).await;
                }
            }
            ControllerEvent::Returned => note("nvme_controller_returned", name),
            ControllerEvent::HealthWarning { .. } => note("nvme_health_warning", name),
            ControllerEvent::QueueReset { .. } => note("nvme_queue_reset", name),
            ControllerEvent::ErrorLogEntry { .. }
            | ControllerEvent::StrangeCompletions { .. }
            | ControllerEvent::FirmwareActivation => {
                tracing::warn!(target: "nvme", controller = name, ?event, "a controller reports");
            }
        }
    }

    async fn namespaces_came(self: &Arc<Self>, name: &str) {
        let change = self.change(|node| {
            let controller = node.controllers.get(name).and_then(|entry| entry.controller.clone());
            controller.map_or(Ok(Vec::new()), |controller| add_bdevs(node, name, &controller))
        });
        if let Err(error) = change.await {
            tracing::error!(target: "nvme", controller = name, %error, "a new namespace has no bdev");
        }
    }

    /// The medium of a bdev, and of all that stand on it, is away, even if it is back already.
    async fn medium_went(&self, node: &Node, name: &str) {
        let mut names = vec![name.to_owned()];
        while let Some(name) = names.pop() {
            if let Some(unit) = node.bdevs.get(&name).and_then(|bdev| bdev.unit) {
                self.tell_medium(&name, unit, false).await;
            }
            names.extend(node.above(&name).map(|bdev| bdev.name.clone()));
        }
    }

    async fn tell_medium(&self, name: &str, (unit, home): (LogicalUnitId, CoreId), present: bool) {
        let already_away = locked(&self.nvme.away).contains(&unit);
        if already_away != present {
            return;
        }
        match self.scsi(home, ControlRequest::MediumChanged { unit, present }).await {
            Ok(()) if present => locked(&self.nvme.away).remove(&unit),
            Ok(()) => locked(&self.nvme.away).insert(unit),
            Err(error) => {
                tracing::error!(target: "nvme", bdev = name, present, %error, "a change of medium could not be announced");
                false
            }
        };
    }

    /// Tells every unit whose medium came or went since it was told last.
    pub(super) async fn settle_media(&self) {
        let node = self.state();
        for bdev in node.bdevs.values() {
            if let (Some(unit), Some(present)) = (bdev.unit, is_present(&node, bdev)) {
                self.tell_medium(&bdev.name, unit, present).await;
            }
        }
    }

    /// Looks for controllers that came, or came back.
    async fn scan_nvme(self: &Arc<Self>, known: &mut BTreeSet<String>) {
        let node = self.state();
        for entry in node.controllers.values() {
            let is_gone = |controller: &Arc<Controller>| controller.state() == ControllerState::Gone;
            if entry.controller.as_ref().is_none_or(is_gone) {
                let (control, entry) = (self.clone(), entry.clone());
                tokio::spawn(async move { control.revive(&entry).await });
            }
        }
        if !node.nvme_options.hotplug {
            known.clear();
            return;
        }
        let factory = self.factory.clone();
        let Ok(free) = tokio::task::spawn_blocking(move || factory.free_controllers()).await else { return };
        known.retain(|address| free.contains(address));
        for address in free {
            let attached = node.controllers.values().any(|entry| entry.address == address);
            if known.insert(address.clone()) && !attached {
                let control = self.clone();
                tokio::spawn(async move { control.attach_hot(address).await });
            }
        }
    }

    async fn attach_hot(self: Arc<Self>, address: String) {
        let node = self.state();
        let name = (0u64..)
            .map(|number| format!("{HOT_NAME}{number}"))
            .find(|name| !node.controllers.contains_key(name));
        let entry = NvmeController {
            name: name.unwrap_or_default(),
            order: 0,
            transport: NvmeTransport::Pcie,
            address: address.clone(),
            queue_pairs_max: None,
            namespaces_max: None,
            hot: true,
            controller: None,
        };
        match self.attach_controller("hotplug", entry, &[]).await {
            Ok(bdevs) => tracing::info!(target: "nvme", address, ?bdevs, "a controller was attached"),
            Err(error) => {
                tracing::warn!(target: "nvme", address, %error, "a new controller cannot be attached")
            }
        }
    }

    /// Tries to bring back a controller that is gone, or was never there.
    async fn revive(&self, entry: &NvmeController) {
        let Some(_guard) = Reviving::begin(&self.nvme, &entry.name) else { return };
        let tried = match &entry.controller {
            Some(controller) => self.replace(entry, controller).await,
            None => self.arrived(entry).await,
        };
        if let Err(error) = tried {
            tracing::debug!(target: "nvme", controller = entry.name, %error, "the controller is not back");
        }
    }

    async fn replace(&self, entry: &NvmeController, controller: &Arc<Controller>) -> Result<(), DeviceError> {
        let (factory, transport, address) = (self.factory.clone(), entry.transport, entry.address.clone());
        let (nvme, controller) = (self.nvme.clone(), controller.clone());
        tokio::task::spawn_blocking(move || {
            let failed =
                |error: nvme_backend::ControllerError| DeviceError::new(errno::EIO, error.to_string());
            // A server that lives, or a slot whose device only lost its link, gives nobody else access: the device is
            // the one at hand, once its registers are back.
            if let Some(held) = nvme.device(&controller).filter(|device| device.is_present()) {
                return controller.replace(held).map_err(failed);
            }
            let device = factory.open_pci(transport, &address)?;
            // It may have been detached while the device was opened.
            if controller.state() != ControllerState::Gone {
                return Err(DeviceError::new(errno::EBUSY, "the controller is not gone any more"));
            }
            let weak = Arc::downgrade(&device);
            controller.replace(device).map_err(failed)?;
            nvme.set_device(&controller, weak);
            Ok(())
        })
        .await
        .map_err(|error| DeviceError::new(errno::EIO, error.to_string()))?
    }

    /// A controller that was awaited since the start is there.
    async fn arrived(&self, entry: &NvmeController) -> Result<(), DeviceError> {
        let options = entry.options(&self.state());
        let controller = self.bring_up(entry.transport, &entry.address, options).await?;
        let kept = self.keep_arrived(entry, &controller).await;
        if kept.is_err() {
            self.shut_down(&controller).await;
        }
        kept
    }

    async fn keep_arrived(
        &self,
        entry: &NvmeController,
        controller: &Arc<Controller>,
    ) -> Result<(), DeviceError> {
        let failed = |error: RpcError| DeviceError::new(errno::EIO, error.message);
        let turn = self.turn().await;
        let mut node = Node::clone(&self.state());
        let awaited = node.controllers.get(&entry.name).filter(|known| known.order == entry.order);
        if awaited.is_none_or(|known| known.controller.is_some()) {
            return Err(DeviceError::new(errno::ENODEV, "nobody waits for the controller any more"));
        }
        let entry = NvmeController {
            name: entry.name.clone(),
            address: entry.address.clone(),
            controller: Some(controller.clone()),
            ..*entry
        };
        let name = entry.name.clone();
        node.controllers.insert(name.clone(), Arc::new(entry));
        add_bdevs(&mut node, &name, controller).map_err(failed)?;
        self.commit(&turn, node).await.map_err(failed)?;
        self.fill_awaited(&name, controller);
        self.settle_media().await;
        self.events().add("nvme_controller_returned", &name);
        tracing::info!(target: "nvme", controller = name, "the controller has come");
        Ok(())
    }
}

impl Control {
    /// Gives the bdevs that waited for a controller their namespaces.
    fn fill_awaited(&self, name: &str, controller: &Arc<Controller>) {
        let node = self.state();
        let found = controller.namespaces();
        for (bdev, nsid) in bdevs_of(&node, name) {
            let namespace = found.iter().find(|namespace| namespace.nsid() == nsid && namespace.is_present());
            match (namespace, bdev.device.controls.nvme()) {
                (Some(namespace), Some(disk)) if namespace_uuid(namespace) == bdev.uuid => {
                    disk.fill(namespace.clone(), controller.clone());
                }
                (Some(_), _) => {
                    tracing::error!(target: "nvme", bdev = bdev.name, "another namespace is in its place: detach the controller and attach it again to use that");
                }
                (None, _) => {
                    tracing::warn!(target: "nvme", bdev = bdev.name, "the controller came without this namespace")
                }
            }
        }
    }
}

/// The driver's word for SPDK's.
pub(super) fn timeout_action(text: &str) -> Option<TimeoutAction> {
    match text {
        "none" => Some(TimeoutAction::None),
        "abort" => Some(TimeoutAction::Abort),
        "reset" => Some(TimeoutAction::Reset),
        _ => None,
    }
}

/// SPDK's word for the driver's.
pub(super) fn timeout_action_name(action: TimeoutAction) -> &'static str {
    match action {
        TimeoutAction::None => "none",
        TimeoutAction::Abort => "abort",
        TimeoutAction::Reset => "reset",
    }
}
