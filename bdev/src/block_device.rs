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
    /// The buffer, for `Read` and `Write`.
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
    /// The device is gone or is not ready.
    Gone,
    /// The request was cancelled before it reached the medium.
    Cancelled,
    /// The device did not answer in time.
    Timeout,
    /// An earlier flush failed, so acknowledged writes may be lost; sticky.
    FlushFailed,
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
