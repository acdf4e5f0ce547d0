use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bdev::{
    BlockDevice, BlockError, CoreShared, CriticalWarnings, DeviceIdentity, DeviceText, Geometry, Health,
    IoChannel,
};
use wire::nvme::{HealthLog, IdentifyController, IdentifyNamespace};

use crate::channel::NamespaceChannel;
use crate::core_queue::SharedCoreQueue;
use crate::shared::{Shared, locked};
use crate::view::View;

/// How a namespace is told from others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceIdentity {
    /// Namespace identifier on its controller.
    pub nsid: u32,
    /// Namespace Globally Unique Identifier.
    pub nguid: Option<[u8; 16]>,
    /// IEEE Extended Unique Identifier.
    pub eui64: Option<[u8; 8]>,
    /// Namespace UUID.
    pub uuid: Option<[u8; 16]>,
    /// Serial number of the controller it was found on.
    pub serial: String,
    /// Model of the controller.
    pub model: String,
    /// Firmware revision of the controller.
    pub firmware: String,
}

impl NamespaceIdentity {
    /// True when both name the same storage. Globally unique names decide when both sides have one of a kind; without
    /// any, the identifier on a controller with the same serial number does.
    pub(crate) fn is_same(&self, other: &NamespaceIdentity) -> bool {
        fn decide<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<bool> {
            Some(one? == other?)
        }
        decide(self.uuid, other.uuid)
            .or_else(|| decide(self.nguid, other.nguid))
            .or_else(|| decide(self.eui64, other.eui64))
            .unwrap_or_else(|| {
                self.nsid == other.nsid && self.serial == other.serial && self.model == other.model
            })
    }
}

/// What changes about a namespace.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    pub(crate) identity: NamespaceIdentity,
    pub(crate) identify: IdentifyNamespace,
    pub(crate) view: Result<View, String>,
    pub(crate) present: bool,
}

/// What the channels of a namespace see of it.
pub(crate) struct Medium {
    state: Mutex<Present>,
    /// Grows whenever `state` changes; channels compare it with what they have copied.
    version: AtomicU64,
    flush_failed: AtomicBool,
    /// Grows with every flush that is sent.
    flush_epoch: AtomicU64,
    /// The flush epoch in which a write was last completed into the cache.
    dirty_epoch: AtomicU64,
    /// Writes of this epoch and before are on stable media.
    clean_epoch: AtomicU64,
}

impl Medium {
    fn new(state: Present) -> Medium {
        Medium {
            state: Mutex::new(state),
            version: AtomicU64::new(1),
            flush_failed: AtomicBool::new(false),
            flush_epoch: AtomicU64::new(1),
            dirty_epoch: AtomicU64::new(0),
            clean_epoch: AtomicU64::new(0),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, Present> {
        locked(&self.state)
    }

    /// Replaces what is known; every channel sees it before its next request.
    pub(crate) fn set(&self, state: Present) {
        *self.state() = state;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// It is not there any more, or is there again as it was.
    pub(crate) fn set_present(&self, present: bool) {
        self.state().present = present;
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    pub(crate) fn set_flush_failed(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }

    /// The epoch of now, in which completed writes are noted.
    pub(crate) fn flush_epoch(&self) -> u64 {
        self.flush_epoch.load(Ordering::Relaxed)
    }

    /// A write was completed into the cache.
    pub(crate) fn note_dirty(&self, epoch: u64) {
        self.dirty_epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// A flush is sent: what was noted until now is covered by it.
    pub(crate) fn flush_begins(&self) -> u64 {
        self.flush_epoch.fetch_add(1, Ordering::AcqRel)
    }

    /// The flush that began with `epoch` succeeded.
    pub(crate) fn flushed(&self, epoch: u64) {
        self.clean_epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// The cache is gone with what was in it. True when that was something.
    pub(crate) fn cache_lost(&self) -> bool {
        let lost = self.dirty_epoch.load(Ordering::Acquire) > self.clean_epoch.load(Ordering::Acquire);
        if lost {
            self.set_flush_failed();
        }
        lost
    }

    fn acknowledge_loss(&self) {
        self.clean_epoch.fetch_max(self.flush_begins(), Ordering::AcqRel);
        self.flush_failed.store(false, Ordering::Release);
    }
}

/// A namespace, as a block device. It outlives resets, and removal and return of its controller.
pub struct Namespace {
    shared: Arc<Shared>,
    medium: Arc<Medium>,
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespace").field("nsid", &self.nsid()).finish_non_exhaustive()
    }
}

impl Namespace {
    pub(crate) fn new(shared: Arc<Shared>, state: Present) -> Namespace {
        Namespace { shared, medium: Arc::new(Medium::new(state)) }
    }

    pub(crate) fn medium(&self) -> &Arc<Medium> {
        &self.medium
    }

    fn state(&self) -> MutexGuard<'_, Present> {
        self.medium.state()
    }

    /// Says that whoever wrote to it knows that unflushed writes were lost: flushes may succeed again.
    pub fn acknowledge_loss(&self) {
        self.medium.acknowledge_loss();
    }

    /// Namespace identifier.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.state().identity.nsid
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> NamespaceIdentity {
        self.state().identity.clone()
    }

    /// True while the controller has it. A namespace that is not present answers [`BlockError::Gone`].
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.state().present
    }

    /// Why it cannot be used, when that is so: its format, for a person.
    #[must_use]
    pub fn unusable(&self) -> Option<String> {
        self.state().view.as_ref().err().cloned()
    }

    /// What IDENTIFY said last.
    #[must_use]
    pub fn identify(&self) -> IdentifyNamespace {
        self.state().identify
    }
}

impl BlockDevice for Namespace {
    /// Of a namespace that cannot be used: no blocks, of 512 bytes.
    fn geometry(&self) -> Geometry {
        self.state().view.as_ref().map_or_else(
            |_| Geometry {
                block_size: 512,
                blocks: 0,
                physical_block_exponent: 0,
                lowest_aligned_block: 0,
                optimal_granularity_blocks: 0,
                optimal_transfer_blocks: 0,
                write_cache: false,
                read_only: true,
                rotational: false,
                provisioning: bdev::Provisioning::default(),
                buffer_alignment: 4,
                capabilities: bdev::Capabilities::default(),
                atomic: bdev::AtomicWrites::default(),
            },
            |view| view.geometry,
        )
    }

    fn product_name(&self) -> &'static str {
        "NVMe disk"
    }

    fn open_channel(&self, core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        if self.unusable().is_some() {
            return Err(BlockError::Unsupported);
        }
        let key = Arc::as_ptr(&self.shared).addr();
        let queue = core.share(key, || SharedCoreQueue::open(&self.shared, core))?;
        Ok(Box::new(NamespaceChannel::new(queue, &self.medium)?))
    }

    fn bounce_copies(&self) -> u64 {
        self.shared.bounce_copies.load(Ordering::Relaxed)
    }

    fn identity(&self) -> DeviceIdentity {
        let state = self.state();
        let identity = &state.identity;
        DeviceIdentity {
            nguid: identity.nguid,
            eui64: identity.eui64,
            uuid: identity.uuid,
            serial: DeviceText::new(identity.serial.as_bytes()),
            model: DeviceText::new(identity.model.as_bytes()),
            firmware: DeviceText::new(identity.firmware.as_bytes()),
        }
    }

    fn health(&self) -> Option<Health> {
        *locked(&self.shared.health)
    }
}

/// What the health log says in the words of all devices.
pub(crate) fn health(log: &HealthLog, identify: Option<&IdentifyController>) -> Health {
    // Zero: it does not say.
    let celsius =
        |kelvin: u16| (kelvin != 0).then(|| i16::try_from(i32::from(kelvin) - 273).unwrap_or(i16::MAX));
    let bit = |bit: u8| log.critical_warning >> bit & 1 == 1;
    let count = |value: u128| Some(u64::try_from(value).unwrap_or(u64::MAX));
    // Data units are thousands of 512 bytes.
    let bytes = |units: u128| count(units.saturating_mul(512_000));
    Health {
        critical_warnings: CriticalWarnings {
            spare: bit(0),
            temperature: bit(1),
            reliability: bit(2),
            read_only: bit(3),
            volatile_backup: bit(4),
        },
        temperature_celsius: celsius(log.temperature_kelvin),
        temperature_warning_celsius: celsius(
            identify.map_or(0, |identify| identify.warning_temperature_kelvin),
        ),
        temperature_critical_celsius: celsius(
            identify.map_or(0, |identify| identify.critical_temperature_kelvin),
        ),
        available_spare_percent: Some(log.available_spare),
        available_spare_threshold_percent: Some(log.available_spare_threshold),
        used_percent: Some(log.percentage_used),
        power_on_hours: count(log.power_on_hours),
        power_cycles: count(log.power_cycles),
        unsafe_shutdowns: count(log.unsafe_shutdowns),
        media_errors: count(log.media_errors),
        bytes_read: bytes(log.data_units_read),
        bytes_written: bytes(log.data_units_written),
        reads: count(log.host_read_commands),
        writes: count(log.host_write_commands),
    }
}
