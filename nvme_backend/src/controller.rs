use std::sync::Arc;
use std::sync::Mutex;

use base::{Instant, Progress};
use reactor::{DeviceError, PciDevice};

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
    device: Mutex<Arc<dyn PciDevice>>,
}

impl Controller {
    /// A controller on `device`, for `cores` cores with the numbers 0 to `cores - 1`. It begins with the first
    /// [`Controller::poll`]. Queue memory is allocated now.
    ///
    /// # Errors
    /// When the device is no NVMe controller, its registers cannot be mapped, or there is no memory.
    pub fn new(
        device: Arc<dyn PciDevice>,
        options: ControllerOptions,
        cores: u16,
    ) -> Result<Arc<Controller>, ControllerError> {
        let _ = (options, cores);
        Ok(Arc::new(Controller { device: Mutex::new(device) }))
    }

    /// The name of its device.
    #[must_use]
    pub fn name(&self) -> String {
        self.device.lock().map_or_else(|_| String::new(), |device| device.name().to_owned())
    }

    /// Takes the administration further: state changes, admin completions, events, timeouts, and the I/O of cores that
    /// share the service thread's queue pair.
    pub fn poll(&self, now: Instant) -> Progress {
        let _ = now;
        Progress::Idle
    }

    /// When [`Controller::poll`] wants to be called although no wake descriptor is readable.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// Visits the descriptors that become readable when there is something to poll, and arms them: poll once more after
    /// this, before sleeping.
    pub fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        let _ = visit;
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> ControllerState {
        ControllerState::Starting
    }

    /// Why it failed, when it did: what happened and what to do.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        None
    }

    /// What it says about itself; `None` before it was identified.
    #[must_use]
    pub fn identity(&self) -> Option<ControllerIdentity> {
        None
    }

    /// Every namespace it has or had, by identifier. See [`Namespace::is_present`] and [`Namespace::unusable`].
    #[must_use]
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        Vec::new()
    }

    /// What happened since the last call. At most 256 events are kept.
    #[must_use]
    pub fn take_events(&self) -> Vec<ControllerEvent> {
        Vec::new()
    }

    /// Asks for a controller reset, also of one that failed. [`ControllerEvent::ResetDone`] or
    /// [`ControllerEvent::Failed`] tells of the end.
    pub fn request_reset(&self) {}

    /// Shuts the controller down and lets go of the device. What is outstanding ends with [`bdev::BlockError::Gone`].
    /// Over when the state is [`ControllerState::Detached`].
    pub fn detach(&self) {}

    /// Gives a controller that is gone or failed a device again: the same one after its return, or its successor in the
    /// slot. Namespaces with the same identity come back to life; channels that are open go on working.
    ///
    /// # Errors
    /// When the device is no NVMe controller or cannot be mapped, or the present one still works.
    pub fn replace(&self, device: Arc<dyn PciDevice>) -> Result<(), ControllerError> {
        let _ = device;
        Ok(())
    }

    /// Asks the controller for something. At most 16 requests may be outstanding or unanswered.
    ///
    /// # Errors
    /// When it cannot be asked now, or the request makes no sense.
    pub fn request(&self, request: AdminRequest) -> Result<Ticket, AdminError> {
        let _ = request;
        Err(AdminError::Busy)
    }

    /// The answer to a request, once; `None` while there is none.
    #[must_use]
    pub fn take_answer(&self, ticket: Ticket) -> Option<Result<AdminAnswer, AdminError>> {
        let _ = ticket;
        None
    }

    /// Says that nobody waits for this answer any more.
    pub fn forget(&self, ticket: Ticket) {
        let _ = ticket;
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> ControllerStatistics {
        ControllerStatistics::default()
    }
}
