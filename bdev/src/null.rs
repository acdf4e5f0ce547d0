//! The null disk: reads zeros, forgets writes. For measuring everything above a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::immediate::{ImmediateChannel, Medium};
use crate::{
    AtomicWrites, BlockDevice, BlockError, Capabilities, CoreShared, Extent, ExtentState, Geometry,
    IoChannel, Provisioning,
};

/// The shape of a [`NullDisk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NullOptions {
    /// Bytes of a logical block: 512 to 65,536, a power of two.
    pub block_size: u32,
    /// Logical blocks; at least 1.
    pub blocks: u64,
    /// Logical blocks per physical block, as a power of two; at most 15.
    pub physical_block_exponent: u8,
}

#[derive(Debug)]
struct Void {
    options: NullOptions,
    blocks: AtomicU64,
}

/// A device without a medium. A read fills its buffer with zeros, so that nothing an earlier user left in the
/// buffer is ever shown to anyone.
#[derive(Debug)]
pub struct NullDisk {
    void: Arc<Void>,
}

impl NullDisk {
    /// A null disk, or `None` when the shape is not one that [`NullOptions`] allows.
    #[must_use]
    pub fn new(options: &NullOptions) -> Option<NullDisk> {
        let size = options.block_size;
        let valid =
            size.is_power_of_two() && (512..=65536).contains(&size) && options.physical_block_exponent <= 15;
        (valid && fits(size, options.blocks)).then(|| NullDisk {
            void: Arc::new(Void { options: *options, blocks: AtomicU64::new(options.blocks) }),
        })
    }

    /// Changes the number of blocks. False, and no change, when `blocks` is 0 or too many to count in bytes.
    pub fn resize(&self, blocks: u64) -> bool {
        let fits = fits(self.void.options.block_size, blocks);
        if fits {
            self.void.blocks.store(blocks, Ordering::Release);
        }
        fits
    }
}

fn fits(block_size: u32, blocks: u64) -> bool {
    blocks > 0 && blocks.checked_mul(u64::from(block_size)).is_some()
}

impl Medium for Void {
    fn shape(&self) -> Geometry {
        Geometry {
            block_size: self.options.block_size,
            blocks: self.blocks.load(Ordering::Acquire),
            physical_block_exponent: self.options.physical_block_exponent,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: 0,
            optimal_transfer_blocks: 0,
            write_cache: false,
            read_only: false,
            rotational: false,
            provisioning: Provisioning {
                discard: true,
                reads_zeros: true,
                reports_extents: true,
                granularity_blocks: 1,
                discard_blocks_max: 0,
            },
            buffer_alignment: 1,
            capabilities: Capabilities { verify: true, compare: true, copy_blocks_max: u64::MAX },
            atomic: AtomicWrites::default(),
        }
    }
    fn read(&self, _lba: u64, data: &mut [u8]) -> Result<(), BlockError> {
        data.fill(0);
        Ok(())
    }
    fn write(&self, _lba: u64, _data: &[u8]) -> Result<(), BlockError> {
        Ok(())
    }
    fn zero(&self, _lba: u64, _blocks: u64, _deallocate: bool) -> Result<(), BlockError> {
        Ok(())
    }
    fn equals(&self, _lba: u64, data: &[u8]) -> Result<bool, BlockError> {
        Ok(data.iter().all(|&byte| byte == 0))
    }
    fn copy(&self, _from: u64, _lba: u64, _blocks: u64) -> Result<(), BlockError> {
        Ok(())
    }
    fn extent(&self, _lba: u64, blocks: u64) -> Result<Extent, BlockError> {
        Ok(Extent { state: ExtentState::Deallocated, blocks })
    }
}

impl BlockDevice for NullDisk {
    fn geometry(&self) -> Geometry {
        self.void.shape()
    }
    fn product_name(&self) -> &'static str {
        "Null disk"
    }
    fn open_channel(&self, _core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Ok(Box::new(ImmediateChannel::new(self.void.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Bench, Traits};
    use crate::{BlockOp, IoValue};

    fn disk(block_size: u32) -> NullDisk {
        NullDisk::new(&NullOptions { block_size, blocks: 4096, physical_block_exponent: 0 }).unwrap()
    }

    #[test]
    fn a_null_disk_conforms_and_reads_zeros() {
        for size in [512, 4096, 65536] {
            conformance::run(&disk(size), 3, 300, Traits { forgets_writes: true });
        }
    }

    #[test]
    fn a_read_never_shows_what_was_in_the_buffer() {
        let disk = disk(512);
        let mut bench = Bench::new(&disk);
        let mut data = bench.buffer(512);
        data.fill(0xEE);
        let done = bench.one(BlockOp::Read, 7, 1, Some(data));
        assert_eq!(done.result, Ok(IoValue::Done));
        assert!(done.data.unwrap().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn resizing_moves_the_end() {
        let disk = disk(512);
        let mut bench = Bench::new(&disk);
        assert!(disk.resize(10) && !disk.resize(0) && !disk.resize(u64::MAX));
        assert_eq!(disk.geometry().blocks, 10);
        let data = bench.buffer(512);
        assert_eq!(bench.one(BlockOp::Read, 10, 1, Some(data)).result, Err(BlockError::OutOfRange));
        assert!(disk.resize(11));
        let data = bench.buffer(512);
        assert_eq!(bench.one(BlockOp::Read, 10, 1, Some(data)).result, Ok(IoValue::Done));
    }

    #[test]
    fn shapes_nobody_can_serve_are_refused() {
        for (block_size, blocks, exponent) in
            [(500, 1, 0), (256, 1, 0), (131_072, 1, 0), (512, 0, 0), (512, 1, 16), (512, u64::MAX, 0)]
        {
            assert!(
                NullDisk::new(&NullOptions { block_size, blocks, physical_block_exponent: exponent })
                    .is_none()
            );
        }
    }
}
