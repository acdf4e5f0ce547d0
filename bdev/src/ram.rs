//! The RAM disk: thin, sparse, shared by all cores.

use std::sync::Arc;

use crate::immediate::{ImmediateChannel, Medium};
use crate::ram_memory::RamMemory;
use crate::{
    AtomicWrites, BlockDevice, BlockError, Capabilities, CoreShared, Extent, ExtentState, Geometry,
    IoChannel, Provisioning,
};

/// The smallest granule of allocation, in bytes; larger when the block is larger.
const GRANULE: u32 = 4096;

/// The shape of a [`RamDisk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamOptions {
    /// Bytes of a logical block: 512 to 65,536, a power of two.
    pub block_size: u32,
    /// Logical blocks; at least 1.
    pub blocks: u64,
    /// Logical blocks per physical block, as a power of two; at most 15.
    pub physical_block_exponent: u8,
    /// At most this many bytes are ever allocated; a write beyond ends in [`BlockError::OutOfSpace`].
    pub allocation_limit: Option<u64>,
    /// Let the kernel back the disk with huge pages: faster, but memory is then taken in larger pieces than
    /// [`RamDisk::allocated_bytes`] counts.
    pub huge_pages: bool,
}

impl Default for RamOptions {
    fn default() -> RamOptions {
        RamOptions {
            block_size: 512,
            blocks: 0,
            physical_block_exponent: 0,
            allocation_limit: None,
            huge_pages: false,
        }
    }
}

/// Why there is no RAM disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamError {
    /// The block size is not a power of two from 512 to 65,536.
    BlockSize(u32),
    /// More logical blocks per physical block than SBC-4 can say.
    PhysicalBlockExponent(u8),
    /// No blocks, or more bytes than there are addresses.
    Size,
    /// The system refuses the address space; its error number.
    Memory(i32),
}

impl std::fmt::Display for RamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RamError::BlockSize(size) => {
                write!(f, "a block of {size} bytes is not a power of two from 512 to 65536")
            }
            RamError::PhysicalBlockExponent(exponent) => {
                write!(f, "the physical block exponent {exponent} is over 15")
            }
            RamError::Size => write!(f, "the disk has no blocks, or more bytes than can be addressed"),
            RamError::Memory(number) => {
                write!(f, "no address space for the disk: {}", std::io::Error::from_raw_os_error(*number))
            }
        }
    }
}

impl std::error::Error for RamError {}

struct Store {
    memory: RamMemory,
    shape: Geometry,
}

/// A disk in anonymous memory. Blocks nobody wrote, and discarded ones, read as zeros and take no memory.
pub struct RamDisk {
    store: Arc<Store>,
}

impl RamDisk {
    /// A disk full of zeros that takes no memory yet.
    ///
    /// # Errors
    /// [`RamError`] when the options make no disk, or the system has no address space.
    pub fn new(options: &RamOptions) -> Result<RamDisk, RamError> {
        let size = options.block_size;
        if !size.is_power_of_two() || !(512..=65536).contains(&size) {
            return Err(RamError::BlockSize(size));
        }
        if options.physical_block_exponent > 15 {
            return Err(RamError::PhysicalBlockExponent(options.physical_block_exponent));
        }
        let granule = size.max(GRANULE) as usize;
        let bytes = options.blocks.checked_mul(u64::from(size)).and_then(|bytes| usize::try_from(bytes).ok());
        // Half the addresses at most: everything that is added to an offset later stays far from overflow.
        let length = bytes.filter(|&bytes| bytes > 0 && bytes < usize::MAX / 2).ok_or(RamError::Size)?;
        let length = length.next_multiple_of(granule);
        let memory = RamMemory::new(length, granule, options.allocation_limit, options.huge_pages);
        let shape = Geometry {
            block_size: size,
            blocks: options.blocks,
            physical_block_exponent: options.physical_block_exponent,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: u16::try_from(granule as u32 / size).unwrap_or(0),
            optimal_transfer_blocks: 0,
            write_cache: false,
            read_only: false,
            rotational: false,
            provisioning: Provisioning {
                discard: true,
                reads_zeros: true,
                reports_extents: true,
                granularity_blocks: granule as u32 / size,
                discard_blocks_max: 0,
            },
            buffer_alignment: 1,
            capabilities: Capabilities { verify: true, compare: true, copy_blocks_max: u64::MAX },
            atomic: match options.allocation_limit {
                // Nothing that fails leaves a part of a write behind: with the power everything is gone.
                None => AtomicWrites { blocks_max: u32::MAX, boundary_blocks: 0, granularity_blocks: 1 },
                // The limit may be met between two granules.
                Some(_) => AtomicWrites {
                    blocks_max: granule as u32 / size,
                    boundary_blocks: granule as u32 / size,
                    granularity_blocks: 1,
                },
            },
        };
        Ok(RamDisk { store: Arc::new(Store { memory: memory.map_err(RamError::Memory)?, shape }) })
    }

    /// Bytes of storage that are allocated now, in whole granules.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.store.memory.allocated_bytes()
    }
}

impl Store {
    /// Byte offset of a block. Cannot overflow for a range inside the disk, which fits in `usize`.
    fn offset(&self, blocks: u64) -> usize {
        blocks as usize * self.shape.block_size as usize
    }
}

impl Medium for Store {
    fn shape(&self) -> Geometry {
        self.shape
    }
    fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), BlockError> {
        self.memory.read(self.offset(lba), data);
        Ok(())
    }
    fn write(&self, lba: u64, data: &[u8]) -> Result<(), BlockError> {
        self.memory.write(self.offset(lba), data).map_err(|_| BlockError::OutOfSpace)
    }
    fn zero(&self, lba: u64, blocks: u64, deallocate: bool) -> Result<(), BlockError> {
        let (offset, length) = (self.offset(lba), self.offset(blocks));
        if deallocate {
            self.memory.deallocate(offset, length);
            return Ok(());
        }
        self.memory.write_zeros(offset, length).map_err(|_| BlockError::OutOfSpace)
    }
    fn equals(&self, lba: u64, data: &[u8]) -> Result<bool, BlockError> {
        Ok(self.memory.equals(self.offset(lba), data))
    }
    fn copy(&self, from: u64, lba: u64, blocks: u64) -> Result<(), BlockError> {
        let (from, to, length) = (self.offset(from), self.offset(lba), self.offset(blocks));
        self.memory.copy(from, to, length).map_err(|_| BlockError::OutOfSpace)
    }
    fn extent(&self, lba: u64, blocks: u64) -> Result<Extent, BlockError> {
        let (mapped, bytes) = self.memory.extent(self.offset(lba), self.offset(blocks));
        let state = if mapped { ExtentState::Mapped } else { ExtentState::Deallocated };
        Ok(Extent { state, blocks: (bytes / self.shape.block_size as usize) as u64 })
    }
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        self.store.shape
    }
    fn product_name(&self) -> &'static str {
        "Malloc disk"
    }
    fn open_channel(&self, _core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Ok(Box::new(ImmediateChannel::new(self.store.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Bench, Traits};
    use crate::{BlockOp, IoValue};
    use proptest::prelude::*;

    fn disk(block_size: u32, blocks: u64) -> RamDisk {
        RamDisk::new(&RamOptions { block_size, blocks, ..RamOptions::default() }).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_ram_disk_conforms(seed: u64, shift in 9u32..=16, blocks in 300u64..3000) {
            conformance::run(&disk(1 << shift, blocks), seed, 400, Traits::default());
        }
    }

    #[test]
    fn a_limit_leaves_no_part_of_an_atomic_write() {
        for (block_size, most) in [(512, 8), (4096, 1), (65536, 1)] {
            let limit = 2 * u64::from(block_size.max(GRANULE));
            let options = RamOptions {
                block_size,
                blocks: 512,
                allocation_limit: Some(limit),
                ..RamOptions::default()
            };
            let disk = RamDisk::new(&options).unwrap();
            let atomic = disk.geometry().atomic;
            assert_eq!((atomic.blocks_max, atomic.boundary_blocks), (most, most));
            let mut bench = Bench::new(&disk);
            let bytes = (most * block_size) as usize;
            for number in 0..4 {
                let mut data = bench.buffer(bytes);
                data.fill(1);
                let (lba, blocks) = (u64::from(number * most), u64::from(most));
                let result = bench.one(BlockOp::Write { fua: false }, lba, blocks, Some(data)).result;
                let read = bench.read(lba, bytes, blocks);
                let expected = u8::from(result.is_ok());
                assert_eq!(result.is_ok(), number < 2);
                assert!(read.iter().all(|&byte| byte == expected), "a part of block {lba}");
            }
        }
    }

    #[test]
    fn untouched_and_discarded_blocks_take_no_memory() {
        let disk = disk(512, 1 << 31);
        let mut bench = Bench::new(&disk);
        assert_eq!(bench.read(1 << 30, 4096, 8), [0; 4096]);
        assert_eq!(disk.allocated_bytes(), 0);
        bench.fill(1 << 30, 65536, 128, 0x5A);
        assert_eq!(disk.allocated_bytes(), 65536);
        assert_eq!(bench.one(BlockOp::Discard, 1 << 30, 127, None).result, Ok(IoValue::Done));
        assert_eq!(disk.allocated_bytes(), 4096);
        assert_eq!(bench.read((1 << 30) + 126, 1024, 2), [[0; 512], [0x5A; 512]].concat());
        let whole = BlockOp::WriteZeroes { may_deallocate: true, fua: false };
        assert_eq!(bench.one(whole, (1 << 30) - 1000, 9000, None).result, Ok(IoValue::Done));
        assert_eq!(disk.allocated_bytes(), 0);
    }

    #[test]
    fn zeros_that_must_be_mapped_are_mapped() {
        let disk = disk(512, 1024);
        let mut bench = Bench::new(&disk);
        let zeroes = BlockOp::WriteZeroes { may_deallocate: false, fua: true };
        assert_eq!(bench.one(zeroes, 0, 16, None).result, Ok(IoValue::Done));
        let extent = bench.one(BlockOp::Extent, 3, 1000, None).result;
        assert_eq!(extent, Ok(IoValue::Extent(Extent { state: ExtentState::Mapped, blocks: 13 })));
    }

    #[test]
    fn a_thin_disk_with_a_limit_runs_out_of_space() {
        let options = RamOptions { blocks: 1024, allocation_limit: Some(8192), ..RamOptions::default() };
        let disk = RamDisk::new(&options).unwrap();
        let mut bench = Bench::new(&disk);
        bench.fill(0, 8192, 16, 1);
        let data = bench.buffer(512);
        assert_eq!(
            bench.one(BlockOp::Write { fua: false }, 16, 1, Some(data)).result,
            Err(BlockError::OutOfSpace)
        );
        assert_eq!(bench.one(BlockOp::Discard, 0, 8, None).result, Ok(IoValue::Done));
        bench.fill(16, 512, 1, 2);
    }

    #[test]
    fn a_full_queue_gives_the_request_back_and_a_long_discard_takes_several_turns() {
        let disk = disk(4096, 1 << 20);
        let mut bench = Bench::new(&disk);
        bench.submit(BlockOp::Discard, 1, (1 << 20) - 1, None).unwrap();
        let tag = bench.submit(BlockOp::Flush, 0, 0, None).unwrap();
        for _ in 2..crate::immediate::QUEUE_DEPTH {
            bench.submit(BlockOp::Flush, 0, 0, None).unwrap();
        }
        assert!(bench.submit(BlockOp::Flush, 0, 0, None).is_err());
        assert!(bench.turn().is_empty());
        assert!(bench.channel().next_timeout().is_some());
        bench.channel().cancel(tag);
        let done = bench.drain();
        assert_eq!(done.iter().filter(|one| one.result == Err(BlockError::Cancelled)).count(), 1);
        assert!(bench.channel().next_timeout().is_none());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let make = |options: RamOptions| RamDisk::new(&options).err();
        let good = RamOptions { blocks: 8, ..RamOptions::default() };
        assert_eq!(make(good), None);
        assert_eq!(make(RamOptions { block_size: 520, ..good }), Some(RamError::BlockSize(520)));
        assert_eq!(
            make(RamOptions { physical_block_exponent: 16, ..good }),
            Some(RamError::PhysicalBlockExponent(16))
        );
        assert_eq!(make(RamOptions { blocks: 0, ..good }), Some(RamError::Size));
        assert_eq!(make(RamOptions { blocks: u64::MAX / 512, ..good }), Some(RamError::Size));
        assert!(matches!(make(RamOptions { blocks: 1 << 50, ..good }), Some(RamError::Memory(_))));
    }
}
