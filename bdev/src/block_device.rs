use base::{BufferPool, DataBuf, Instant, Progress};

use crate::CoreShared;

/// How a device maps blocks to storage (SBC-4 §4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Provisioning {
    /// `Discard` deallocates. False means fully provisioned.
    pub discard: bool,
    /// Deallocated blocks read as zeros.
    pub reads_zeros: bool,
    /// The device can tell mapped from deallocated blocks (`BlockOp::Extent`).
    pub reports_extents: bool,
    /// Discards of less than this many blocks may do nothing. At least 1.
    pub granularity_blocks: u32,
    /// The most blocks one `Discard` takes; 0 means no limit.
    pub discard_blocks_max: u64,
}

/// What a device does beyond reading, writing, zeroing, discarding and flushing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// It does [`BlockOp::Verify`].
    pub verify: bool,
    /// It does [`BlockOp::Compare`].
    pub compare: bool,
    /// The most blocks of one [`BlockOp::Copy`]; 0 means it does none.
    pub copy_blocks_max: u64,
}

/// Which writes reach the medium wholly or not at all, whatever fails in between, power included (SBC-4 §4.29; NVMe's
/// atomic write units under power fail). What another request sees that is in the device at the same moment is not
/// promised: whoever needs that keeps them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AtomicWrites {
    /// The most blocks of such a [`BlockOp::Write`]; 0 means that nothing is promised.
    pub blocks_max: u32,
    /// A write that crosses a multiple of this many blocks is not promised to be whole; 0 means no such boundary.
    pub boundary_blocks: u32,
    /// Their length must be a multiple of this many blocks; 0 is the same as 1.
    pub granularity_blocks: u32,
}

/// The shape and the promises of a device. May change while the device is open (resize); the engine is told by
/// the control plane and asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a logical block: 512 to 65,536, a power of two.
    pub block_size: u32,
    /// Logical blocks.
    pub blocks: u64,
    /// Logical blocks per physical block, as a power of two.
    pub physical_block_exponent: u8,
    /// The first logical block that starts a physical block.
    pub lowest_aligned_block: u16,
    /// Preferred granularity of transfers, in blocks; 0 when none is known.
    pub optimal_granularity_blocks: u16,
    /// Preferred length of a transfer, in blocks; 0 when none is known.
    pub optimal_transfer_blocks: u32,
    /// A completed write may still be in a volatile cache until `Flush` or FUA.
    pub write_cache: bool,
    /// Writes are refused with [`BlockError::ReadOnly`].
    pub read_only: bool,
    /// The medium rotates.
    pub rotational: bool,
    /// What happens to blocks nobody wrote.
    pub provisioning: Provisioning,
    /// Alignment in bytes that a buffer must have to be used without a bounce copy; 1 when any will do.
    pub buffer_alignment: u32,
    /// What it does beyond the ordinary.
    pub capabilities: Capabilities,
    /// Which writes are whole.
    pub atomic: AtomicWrites,
}

/// The submitter's name for one request; comes back in its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoTag(pub u64);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOp {
    /// Medium to buffer. `data.len()` is `blocks × block_size`.
    Read,
    /// Buffer to medium. With `fua`, completes only when the data is on stable media.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Zeros to the medium, without a buffer. With `may_deallocate` the device may deallocate instead, when its
    /// deallocated blocks read as zeros.
    WriteZeroes {
        /// Deallocating is as good as writing.
        may_deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Deallocate. A hint to the device, but what `Provisioning` promises holds afterwards.
    Discard,
    /// Everything completed before is on stable media when this completes. The range is advice. A failed flush
    /// is sticky: later flushes fail too until the device is opened anew.
    Flush,
    /// Ask in which state the extent beginning at `lba` is; answers [`IoValue::Extent`].
    Extent,
    /// Check that the medium can be read, without a buffer. Needs [`Capabilities::verify`].
    Verify,
    /// Medium against buffer: [`BlockError::Miscompare`] when they differ. The buffer comes back as it was. Needs
    /// [`Capabilities::compare`].
    Compare,
    /// The blocks beginning at `from` to those beginning at `lba`, inside the device. The two ranges must not overlap.
    /// Needs [`Capabilities::copy_blocks_max`] of at least `blocks`.
    Copy {
        /// The first block of the source.
        from: u64,
    },
}

impl BlockOp {
    /// True when the request needs a buffer of its blocks' length.
    #[must_use]
    pub fn has_payload(self) -> bool {
        matches!(self, BlockOp::Read | BlockOp::Write { .. } | BlockOp::Compare)
    }
}

/// One request to a device.
#[derive(Debug)]
pub struct BlockIo {
    /// Names the request; unique among those outstanding on the channel.
    pub tag: IoTag,
    /// What to do.
    pub op: BlockOp,
    /// The first logical block.
    pub lba: u64,
    /// How many logical blocks.
    pub blocks: u64,
    /// The buffer, for `Read`, `Write` and `Compare`.
    pub data: Option<DataBuf>,
}

/// Whether an extent is backed by storage (SBC-4 §5.7, provisioning status).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentState {
    /// Mapped to storage.
    Mapped,
    /// Not backed by storage.
    Deallocated,
    /// Not mapped, storage reserved.
    Anchored,
}

/// A run of blocks in one state, beginning at the `lba` asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The state of every block of the run.
    pub state: ExtentState,
    /// Its length in blocks; at least 1, and not more than was asked for.
    pub blocks: u64,
}

/// What a successful request yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoValue {
    /// Done.
    Done,
    /// The answer to [`BlockOp::Extent`].
    Extent(Extent),
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockError {
    /// The range is not on the device.
    OutOfRange,
    /// The medium could not be read or written; the first bad block when known.
    Medium {
        /// First block in error.
        lba: Option<u64>,
    },
    /// No storage left behind a thin device.
    OutOfSpace,
    /// The device refuses writes.
    ReadOnly,
    /// The device does not do this operation.
    Unsupported,
    /// The device is gone.
    Gone,
    /// The device is there, and will do this later: it is being reset, or formatted, or brought up.
    NotReady,
    /// The request was cancelled before it reached the medium.
    Cancelled,
    /// The device did not answer in time.
    Timeout,
    /// An earlier flush failed, so acknowledged writes may be lost; sticky.
    FlushFailed,
    /// The medium differs from the buffer of a [`BlockOp::Compare`].
    Miscompare,
    /// The protection information of a block does not fit its data or its place.
    Protection {
        /// First block in error.
        lba: Option<u64>,
    },
    /// The device failed in itself.
    Internal,
    /// The host system's error number.
    System(i32),
}

/// The end of one request.
#[derive(Debug)]
pub struct IoCompletion {
    /// The request's tag.
    pub tag: IoTag,
    /// How it ended.
    pub result: Result<IoValue, BlockError>,
    /// The buffer of the request, back.
    pub data: Option<DataBuf>,
}

/// Printable ASCII of at most `N` characters, without spaces around it; empty when the device does not say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceText<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> DeviceText<N> {
    /// What `bytes` say before the first zero, without spaces around it. What is not printable ASCII becomes a space,
    /// and what is beyond `N` bytes is left out.
    #[must_use]
    pub fn new(bytes: &[u8]) -> DeviceText<N> {
        let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut text = DeviceText { bytes: [b' '; N], length: 0 };
        for (to, &from) in text.bytes.iter_mut().zip(bytes.trim_ascii()) {
            *to = if (0x20..=0x7E).contains(&from) { from } else { b' ' };
        }
        let content = text.bytes.trim_ascii();
        let (mut bytes, length) = ([b' '; N], content.len());
        bytes.iter_mut().zip(content).for_each(|(to, &from)| *to = from);
        text.bytes = bytes;
        text.length = length;
        text
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<const N: usize> Default for DeviceText<N> {
    fn default() -> DeviceText<N> {
        DeviceText { bytes: [b' '; N], length: 0 }
    }
}

impl<const N: usize> std::fmt::Debug for DeviceText<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// The names a device was given by its maker. All absent for a device that has none, as memory or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceIdentity {
    /// NVMe's namespace globally unique identifier: an EUI-64 based 16-byte identifier.
    pub nguid: Option<[u8; 16]>,
    /// IEEE's extended unique identifier.
    pub eui64: Option<[u8; 8]>,
    /// RFC 9562's universally unique identifier.
    pub uuid: Option<[u8; 16]>,
    /// Serial number.
    pub serial: DeviceText<20>,
    /// Model.
    pub model: DeviceText<40>,
    /// Firmware revision.
    pub firmware: DeviceText<8>,
}

/// A device's critical warnings (NVMe's SMART / Health Information, byte 0); true is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CriticalWarnings {
    /// Available spare is below its threshold.
    pub spare: bool,
    /// A temperature is beyond its threshold.
    pub temperature: bool,
    /// Reliability is degraded by media or internal errors.
    pub reliability: bool,
    /// The medium can only be read.
    pub read_only: bool,
    /// The backup of volatile memory failed.
    pub volatile_backup: bool,
}

impl CriticalWarnings {
    /// True when one is set.
    #[must_use]
    pub fn any(self) -> bool {
        self != CriticalWarnings::default()
    }
}

/// How a device is, as it said last. What it does not say is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// What it warns of.
    pub critical_warnings: CriticalWarnings,
    /// Temperature, in °C.
    pub temperature_celsius: Option<i16>,
    /// From this temperature on it warns, in °C.
    pub temperature_warning_celsius: Option<i16>,
    /// From this temperature on it is in danger, in °C.
    pub temperature_critical_celsius: Option<i16>,
    /// Spare capacity that is left, in percent.
    pub available_spare_percent: Option<u8>,
    /// Below this much spare capacity it warns, in percent.
    pub available_spare_threshold_percent: Option<u8>,
    /// Life that is used up, in percent of what the maker expects; may exceed 100, and stays at 255.
    pub used_percent: Option<u8>,
    /// Hours under power.
    pub power_on_hours: Option<u64>,
    /// Times it was switched on.
    pub power_cycles: Option<u64>,
    /// Times it lost power without notice.
    pub unsafe_shutdowns: Option<u64>,
    /// Errors of the medium that could not be corrected.
    pub media_errors: Option<u64>,
    /// Bytes that hosts have read over its life.
    pub bytes_read: Option<u64>,
    /// Bytes that hosts have written over its life.
    pub bytes_written: Option<u64>,
    /// Read commands over its life.
    pub reads: Option<u64>,
    /// Write commands over its life.
    pub writes: Option<u64>,
}

/// A block device, shared by all cores.
pub trait BlockDevice: Send + Sync {
    /// The present shape.
    fn geometry(&self) -> Geometry;

    /// A short word for the kind of device: `"Malloc disk"`, `"URING bdev"`; shown to people.
    fn product_name(&self) -> &'static str;

    /// Opens one core's private queue to the device. Called on that core's thread, with what its channels share.
    ///
    /// # Errors
    /// [`BlockError::Gone`] or [`BlockError::System`] when the device cannot be used from there.
    fn open_channel(&self, core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError>;

    /// Times a payload was copied between a buffer handed in and another one, because of its alignment.
    /// The RAM disk's own copy between the medium and the buffer does not count.
    fn bounce_copies(&self) -> u64 {
        0
    }

    /// The names its maker gave it. Does not wait for the device.
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity::default()
    }

    /// How it is, as it said last; `None` for a device that does not say. Cheap, and never waits for the device: what
    /// it answers is brought up to date elsewhere.
    fn health(&self) -> Option<Health> {
        None
    }
}

/// One core's private queue to a device.
pub trait IoChannel {
    /// Takes a request. Malformed requests (a buffer of the wrong length, a range beyond the end) are accepted
    /// and completed with an error.
    ///
    /// # Errors
    /// Gives the request back when the queue is full; try again after a completion.
    fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo>;

    /// Rings the doorbell for all that was submitted since the last flush: one system call, or one register write.
    fn flush(&mut self);

    /// A hint that nobody wants this request any more. The completion still comes, exactly once.
    fn cancel(&mut self, tag: IoTag);

    /// Hands every finished request to `on`, and does timed work.
    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress;

    /// Visits the tag of every request that was taken and not completed.
    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag));

    /// When `poll` wants to be called although nothing outside happened.
    fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// A descriptor that becomes readable when a request finishes, for a reactor that sleeps. `None` when
    /// requests finish inside `submit`, `flush` or `poll`.
    fn wake_descriptor(&self) -> Option<i32> {
        None
    }

    /// Offers the memory that this core's buffers come from, before the first request, so that the channel may
    /// register it with its device. True when it did; everything works without.
    fn register_pool(&mut self, pool: &BufferPool) -> bool {
        let _ = pool;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_text_is_trimmed_printable_and_bounded() {
        let cases: [(&[u8], &str); 6] = [
            (b"  S3RIAL 1   ", "S3RIAL 1"),
            (b"ab\0cd", "ab"),
            (b"a\xFF\x1Bb", "a  b"),
            (b"\x01x\x02", "x"),
            (b"0123456789012345678 tail", "0123456789012345678"),
            (b"", ""),
        ];
        for (bytes, expected) in cases {
            let text = DeviceText::<20>::new(bytes);
            assert_eq!(text.as_str(), expected);
            assert_eq!(text.is_empty(), expected.is_empty());
            assert_eq!(text, DeviceText::new(expected.as_bytes()));
        }
    }
}
