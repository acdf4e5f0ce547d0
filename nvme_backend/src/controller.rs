use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{Instant, Progress};
use reactor::{DeviceError, DmaMemory, Doorbell, PciDevice, PciIdentity};

use crate::admin::{ADMIN_SLOTS, Admin, Function};
use crate::gate::Gate;
use crate::queue_pair::Layout;
use crate::reset::Phase;
use crate::scan::text;
use crate::service::Service;
use crate::shared::{Counters, Home, Seat, Shared, locked};
use crate::{
    AdminAnswer, AdminError, AdminRequest, ControllerEvent, ControllerOptions, ControllerStatistics,
    Namespace, Ticket,
};

/// What a controller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ControllerState {
    /// It is being enabled and identified for the first time.
    Starting,
    /// It serves I/O.
    Ready,
    /// It is being reset; I/O waits.
    Resetting,
    /// It could not be brought up or back; I/O fails. [`Controller::request_reset`] tries again.
    Failed,
    /// The device was removed; I/O fails with [`bdev::BlockError::Gone`]. [`Controller::replace`] brings it back.
    Gone,
    /// It is being shut down.
    Detaching,
    /// It was shut down, and the device can be given to others.
    Detached,
}

/// Why a controller cannot be driven at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerError {
    /// The device refused something.
    Device(DeviceError),
    /// There is no memory for its queues: the system's sentence.
    Memory(String),
    /// It is not something this driver can drive: what, and what to do.
    Unsuitable(String),
}

impl std::fmt::Display for ControllerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ControllerError::Device(error) => write!(f, "{error}"),
            ControllerError::Memory(text) | ControllerError::Unsuitable(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ControllerError {}

impl From<DeviceError> for ControllerError {
    fn from(error: DeviceError) -> ControllerError {
        ControllerError::Device(error)
    }
}

/// What a controller says about itself, as text without padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControllerIdentity {
    /// PCI vendor.
    pub vendor: u16,
    /// PCI subsystem vendor.
    pub subsystem_vendor: u16,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// NVMe qualified name of the subsystem.
    pub subsystem_name: String,
    /// Controller ID.
    pub controller: u16,
    /// Version, as in the VS register.
    pub version: u32,
    /// Optional Admin Command Support (OACS).
    pub admin_commands: u16,
    /// Optional NVM Command Support (ONCS).
    pub nvm_commands: u16,
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).
    pub sharing: u8,
    /// Bytes of the longest transfer of one command.
    pub transfer_bytes_max: u64,
    /// Total NVM capacity, bytes; 0 when not reported.
    pub total_capacity: u128,
    /// Unallocated NVM capacity, bytes.
    pub unallocated_capacity: u128,
}

/// One NVMe controller, driven from user space.
///
/// Nothing here blocks. All methods may be called from any thread but those of the reactors; [`Controller::poll`] is for
/// one thread.
pub struct Controller {
    shared: Arc<Shared>,
    admin: Mutex<Admin>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("name", &self.name()).field("state", &self.state()).finish()
    }
}

impl Controller {
    /// A controller on `device`, for `cores` cores with the numbers 0 to `cores - 1`. It begins with the first
    /// [`Controller::poll`]. Queue memory is allocated now.
    ///
    /// # Errors
    /// When the device is no NVMe controller, its registers cannot be mapped, or there is no memory.
    pub fn new(
        device: Arc<dyn PciDevice>,
        mut options: ControllerOptions,
        cores: u16,
    ) -> Result<Arc<Controller>, ControllerError> {
        options.queue_depth = options.queue_depth.clamp(1, 1024);
        options.namespaces_max = options.namespaces_max.clamp(1, 1024);
        let function = Function::open(device)?;
        let page = function.page();
        let memory = |slots: u16| {
            DmaMemory::new(Layout::length(slots, page), options.hugepages)
                .map(Arc::new)
                .map_err(ControllerError::Memory)
        };
        let bell = || {
            Doorbell::new()
                .map_err(|error| ControllerError::Memory(format!("no eventfd can be had: {error}")))
        };
        let (service, ports) = Service::new(usize::from(cores), options.queue_depth);
        let mut seats = Vec::with_capacity(usize::from(cores));
        for port in ports {
            seats.push(Seat {
                gate: Gate::new(),
                home: Mutex::new(Home { remote: Some(port), ..Home::default() }),
                bell: bell()?,
                memory: memory(options.queue_depth)?,
                counters: Counters::default(),
                open: AtomicBool::new(false),
            });
        }
        let shared = Arc::new(Shared::new(options, seats.into_boxed_slice(), bell()?));
        let (admin_memory, service_memory) = (memory(ADMIN_SLOTS)?, memory(options.queue_depth)?);
        let admin = Admin::new(Arc::clone(&shared), function, admin_memory, service_memory, service);
        Ok(Arc::new(Controller { shared, admin: Mutex::new(admin) }))
    }

    fn admin(&self) -> MutexGuard<'_, Admin> {
        locked(&self.admin)
    }

    /// The name of its device.
    #[must_use]
    pub fn name(&self) -> String {
        self.admin().function.device.name().to_owned()
    }

    /// Takes the administration further: state changes, admin completions, events, timeouts, and the I/O of cores that
    /// share the service thread's queue pair.
    pub fn poll(&self, now: Instant) -> Progress {
        self.admin().poll(now)
    }

    /// When [`Controller::poll`] wants to be called although no wake descriptor is readable.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.admin().next_timeout()
    }

    /// Visits the descriptors that become readable when there is something to poll, and arms them: poll once more after
    /// this, before sleeping.
    pub fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        self.admin().wake_descriptors(visit);
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> ControllerState {
        self.shared.state()
    }

    /// Why it failed, when it did: what happened and what to do.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.admin().failure.clone()
    }

    /// What it says about itself; `None` before it was identified.
    #[must_use]
    pub fn identity(&self) -> Option<ControllerIdentity> {
        let admin = self.admin();
        let identify = admin.identify.as_ref()?;
        let page_shift = admin.function.capabilities.page_shift_min();
        Some(ControllerIdentity {
            vendor: identify.vendor,
            subsystem_vendor: identify.subsystem_vendor,
            serial: text(&identify.serial),
            model: text(&identify.model),
            firmware: text(&identify.firmware),
            subsystem_name: identify.subsystem_name().to_owned(),
            controller: identify.controller,
            version: admin.version,
            admin_commands: identify.admin_commands,
            nvm_commands: identify.nvm_commands,
            sharing: identify.sharing,
            transfer_bytes_max: identify
                .transfer_bytes_max(page_shift)
                .unwrap_or(u64::MAX)
                .min(u64::from(crate::queue_pair::TRANSFER_MAX)),
            total_capacity: identify.total_capacity,
            unallocated_capacity: identify.unallocated_capacity,
        })
    }

    /// The device's PCI identity.
    #[must_use]
    pub fn pci_identity(&self) -> PciIdentity {
        self.admin().function.device.identity()
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> ControllerOptions {
        self.shared.options
    }

    /// Every namespace it has or had, by identifier. See [`Namespace::is_present`] and [`Namespace::unusable`].
    #[must_use]
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.admin().namespaces.values().cloned().collect()
    }

    /// What happened since the last call. At most 256 events are kept.
    #[must_use]
    pub fn take_events(&self) -> Vec<ControllerEvent> {
        self.admin().events.take()
    }

    /// Asks for a controller reset, also of one that failed. [`ControllerEvent::ResetDone`] or
    /// [`ControllerEvent::Failed`] tells of the end.
    pub fn request_reset(&self) {
        self.admin().reset_wanted = true;
        self.shared.bell.ring();
    }

    /// Shuts the controller down and lets go of the device. What is outstanding ends with [`bdev::BlockError::Gone`].
    /// Over when the state is [`ControllerState::Detached`].
    pub fn detach(&self) {
        self.admin().detach_wanted = true;
        self.shared.bell.ring();
    }

    /// Gives a controller that is gone, failed or detached a device again: the same one after its return, or its successor
    /// in the slot. Namespaces with the same identity come back to life; channels that are open go on working.
    ///
    /// # Errors
    /// When the device is no NVMe controller or cannot be mapped, or the present one still works.
    pub fn replace(&self, device: Arc<dyn PciDevice>) -> Result<(), ControllerError> {
        let mut admin = self.admin();
        let function = Function::open(device)?;
        if !matches!(admin.phase, Phase::Ended(_)) {
            return Err(ControllerError::Unsuitable(format!(
                "{} is still in use; detach it first",
                admin.function.device.name()
            )));
        }
        if Layout::length(self.shared.options.queue_depth, function.page()) > admin.service_memory.length() {
            return Err(ControllerError::Unsuitable(format!(
                "{} has larger pages than its predecessor; attach it as a new controller",
                function.device.name()
            )));
        }
        admin.function = function;
        admin.begin_return();
        drop(admin);
        self.shared.bell.ring();
        Ok(())
    }

    /// Asks the controller for something. At most 16 requests may be outstanding or unanswered.
    ///
    /// # Errors
    /// When it cannot be asked now, or the request makes no sense.
    pub fn request(&self, request: AdminRequest) -> Result<Ticket, AdminError> {
        self.admin().request(request)
    }

    /// The answer to a request, once; `None` while there is none.
    #[must_use]
    pub fn take_answer(&self, ticket: Ticket) -> Option<Result<AdminAnswer, AdminError>> {
        self.admin().tickets.take(ticket)
    }

    /// Says that nobody waits for this answer any more.
    pub fn forget(&self, ticket: Ticket) {
        self.admin().tickets.forget(ticket);
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> ControllerStatistics {
        self.admin().statistics()
    }
}

impl Drop for Controller {
    /// The device must not reach memory that is about to be freed. What cores still hold of it is told that it is gone.
    fn drop(&mut self) {
        let admin = self.admin.get_mut().unwrap_or_else(PoisonError::into_inner);
        admin.abandon();
    }
}
