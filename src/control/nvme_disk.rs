//! The block device of a namespace, also while the namespace has not been seen yet.
//!
//! A controller may come after the daemon that is to serve it. What was saved of its namespaces stands in for them
//! until then, so that targets have their LUNs, without a medium.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use base::{BufferPool, Instant, Progress};
use bdev::{
    BlockDevice, BlockError, BlockIo, CoreShared, DeviceIdentity, Geometry, Health, IoChannel, IoCompletion,
    IoTag,
};
use nvme_backend::{Controller, ControllerState, Namespace};

use super::link::DeviceControls;

/// Requests to a namespace that is not there, of which the completion is not fetched yet.
const REFUSED_MAX: usize = 64;

/// What is saved of a namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
}

impl Saved {
    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.block_size,
            blocks: self.blocks,
            physical_block_exponent: 0,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: 0,
            optimal_transfer_blocks: 0,
            write_cache: false,
            read_only: false,
            rotational: false,
            provisioning: bdev::Provisioning::default(),
            buffer_alignment: 4,
            capabilities: bdev::Capabilities::default(),
            atomic: bdev::AtomicWrites::default(),
        }
    }
}

/// A namespace and its controller.
struct Found {
    namespace: Arc<Namespace>,
    controller: Arc<Controller>,
}

/// See the module.
pub struct NvmeDisk {
    /// The shape until it is found.
    saved: Option<Saved>,
    found: Arc<OnceLock<Found>>,
}

impl NvmeDisk {
    /// Of a namespace that is there.
    #[must_use]
    pub fn new(namespace: Arc<Namespace>, controller: Arc<Controller>) -> Arc<NvmeDisk> {
        let disk = NvmeDisk { saved: None, found: Arc::default() };
        disk.fill(namespace, controller);
        Arc::new(disk)
    }

    /// Of a namespace that is awaited.
    #[must_use]
    pub fn awaited(saved: Saved) -> Arc<NvmeDisk> {
        Arc::new(NvmeDisk { saved: Some(saved), found: Arc::default() })
    }

    /// The namespace has come. The first one stays.
    pub fn fill(&self, namespace: Arc<Namespace>, controller: Arc<Controller>) {
        let _ = self.found.set(Found { namespace, controller });
    }

    /// The namespace, once it was seen.
    #[must_use]
    pub fn namespace(&self) -> Option<&Arc<Namespace>> {
        self.found.get().map(|found| &found.namespace)
    }
}

impl DeviceControls for NvmeDisk {
    fn is_present(&self) -> Option<bool> {
        let Some(found) = self.found.get() else { return Some(false) };
        match found.controller.state() {
            ControllerState::Ready => Some(found.namespace.is_present()),
            ControllerState::Resetting => None,
            _ => Some(false),
        }
    }

    fn nvme(&self) -> Option<&NvmeDisk> {
        Some(self)
    }
}

impl BlockDevice for NvmeDisk {
    fn geometry(&self) -> Geometry {
        match (self.found.get(), self.saved) {
            (Some(found), _) => found.namespace.geometry(),
            (None, saved) => saved.unwrap_or_default().geometry(),
        }
    }

    fn product_name(&self) -> &'static str {
        "NVMe disk"
    }

    fn open_channel(&self, core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        match self.found.get() {
            Some(found) => found.namespace.open_channel(core),
            None => Ok(Box::new(AwaitingChannel {
                found: self.found.clone(),
                core: core.clone(),
                inner: None,
                refused: VecDeque::with_capacity(REFUSED_MAX),
            })),
        }
    }

    fn bounce_copies(&self) -> u64 {
        self.found.get().map_or(0, |found| found.namespace.bounce_copies())
    }

    fn identity(&self) -> DeviceIdentity {
        self.found.get().map(|found| BlockDevice::identity(&*found.namespace)).unwrap_or_default()
    }

    fn health(&self) -> Option<Health> {
        self.found.get().and_then(|found| found.namespace.health())
    }
}

/// A core's queue to a namespace that was not there when it was opened: it has nothing until the namespace comes, and
/// then is a channel of the namespace.
struct AwaitingChannel {
    found: Arc<OnceLock<Found>>,
    core: CoreShared,
    inner: Option<Box<dyn IoChannel>>,
    refused: VecDeque<IoCompletion>,
}

impl AwaitingChannel {
    fn inner(&mut self) -> Option<&mut Box<dyn IoChannel>> {
        if self.inner.is_none()
            && let Some(found) = self.found.get()
        {
            let mut channel = found.namespace.open_channel(&self.core).ok()?;
            if let Some(pool) = self.core.pool() {
                channel.register_pool(pool);
            }
            self.inner = Some(channel);
        }
        self.inner.as_mut()
    }
}

impl IoChannel for AwaitingChannel {
    fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo> {
        if let Some(inner) = self.inner() {
            return inner.submit(io);
        }
        if self.refused.len() == REFUSED_MAX {
            return Err(io);
        }
        self.refused.push_back(IoCompletion { tag: io.tag, result: Err(BlockError::Gone), data: io.data });
        Ok(())
    }

    fn flush(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.flush();
        }
    }

    fn cancel(&mut self, tag: IoTag) {
        // What was refused is complete already.
        if let Some(inner) = &mut self.inner {
            inner.cancel(tag);
        }
    }

    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(completion) = self.refused.pop_front() {
            progress = Progress::Busy;
            on(completion);
        }
        match &mut self.inner {
            Some(inner) => inner.poll(now, on).or(progress),
            None => progress,
        }
    }

    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
        self.refused.iter().for_each(|completion| visit(completion.tag));
        if let Some(inner) = &self.inner {
            inner.for_each_held(visit);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        if !self.refused.is_empty() {
            return Some(Instant::ZERO);
        }
        self.inner.as_ref().and_then(|inner| inner.next_timeout())
    }

    fn wake_descriptor(&self) -> Option<i32> {
        self.inner.as_ref().and_then(|inner| inner.wake_descriptor())
    }

    fn register_pool(&mut self, pool: &BufferPool) -> bool {
        match &mut self.inner {
            Some(inner) => inner.register_pool(pool),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::CoreId;
    use bdev::BlockOp;

    #[test]
    fn an_awaited_namespace_has_its_shape_and_no_medium() {
        let disk = NvmeDisk::awaited(Saved { blocks: 1000, block_size: 4096 });
        let geometry = disk.geometry();
        assert_eq!((geometry.blocks, geometry.block_size), (1000, 4096));
        assert_eq!(disk.is_present(), Some(false));
        assert!(disk.namespace().is_none());
        let mut channel = disk.open_channel(&CoreShared::new(CoreId(0))).unwrap();
        let io = |tag| BlockIo { tag: IoTag(tag), op: BlockOp::Flush, lba: 0, blocks: 0, data: None };
        for tag in 0..REFUSED_MAX as u64 {
            channel.submit(io(tag)).unwrap();
        }
        assert_eq!(channel.submit(io(99)).unwrap_err().tag, IoTag(99));
        assert!(channel.next_timeout().is_some());
        let mut held = 0;
        channel.for_each_held(&mut |_| held += 1);
        let mut ended = Vec::new();
        assert_eq!(channel.poll(Instant::ZERO, &mut |completion| ended.push(completion)), Progress::Busy);
        assert_eq!((held, ended.len()), (REFUSED_MAX, REFUSED_MAX));
        assert!(
            ended
                .iter()
                .enumerate()
                .all(|(at, end)| end.tag == IoTag(at as u64) && end.result == Err(BlockError::Gone))
        );
        assert_eq!(channel.poll(Instant::ZERO, &mut |_| {}), Progress::Idle);
        assert!(channel.next_timeout().is_none() && channel.wake_descriptor().is_none());
    }
}
