//! What a namespace's identify structure means for I/O.

use bdev::{AtomicWrites, Capabilities, Geometry, Provisioning};
use wire::nvme::command::range_flag;
use wire::nvme::{IdentifyController, IdentifyNamespace, NvmLimits};

use crate::queue_pair::{BOUNCE_BYTES, METADATA_BYTES, TRANSFER_MAX};

/// The most blocks any command names (NLB is 16 bits, 0's based).
const COMMAND_BLOCKS_MAX: u64 = 65_536;

/// How commands to one namespace are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) nsid: u32,
    pub(crate) geometry: Geometry,
    /// Bytes of a block, as a power of two.
    pub(crate) block_shift: u32,
    /// Blocks of one command with data.
    pub(crate) transfer_blocks_max: u32,
    /// Blocks of one command whose data is copied to a bounce buffer.
    pub(crate) bounce_blocks_max: u32,
    /// Commands do not cross multiples of this; 0: they may.
    pub(crate) boundary: u32,
    /// Flags of every command that names a range: protection information.
    pub(crate) range_flags: u32,
    /// The initial reference tag is the first LBA (types 1 and 2).
    pub(crate) reference_tags: bool,
    /// There is separate metadata: zeros are written, and what is read is dropped.
    pub(crate) scratch_metadata: bool,
    /// Blocks of one WRITE ZEROES; 0: the command is not there.
    pub(crate) zeroes_blocks_max: u32,
    /// WRITE ZEROES may deallocate.
    pub(crate) zeroes_deallocate: bool,
    /// Blocks of one range of DATASET MANAGEMENT; 0: the command is not there.
    pub(crate) discard_blocks_max: u32,
    /// Blocks of one VERIFY; 0: the command is not there.
    pub(crate) verify_blocks_max: u32,
    /// Blocks of one COPY; 0: the command is not there.
    pub(crate) copy_blocks_max: u32,
}

impl View {
    /// The view of a namespace, or why it cannot be used. `page_shift` is that of the controller's smallest page.
    pub(crate) fn new(
        nsid: u32,
        controller: &IdentifyController,
        limits: &NvmLimits,
        namespace: &IdentifyNamespace,
        page_shift: u32,
    ) -> Result<View, String> {
        let format = namespace.format;
        let index = namespace.format_index();
        if u16::from(index) > u16::from(namespace.formats) {
            return Err(format!(
                "it says that it has LBA format {index}, which it does not list; update its firmware"
            ));
        }
        let shift = u32::from(format.data_shift);
        if !(9..=16).contains(&shift) {
            return Err(format!(
                "its logical blocks have 2^{shift} bytes; format it with blocks of 512 to 65,536 bytes"
            ));
        }
        let blocks = namespace.size;
        if blocks == 0 || blocks > u64::MAX >> shift {
            return Err(format!(
                "it says that it has {blocks} blocks of 2^{shift} bytes; update its firmware"
            ));
        }
        let (range_flags, reference_tags, scratch_metadata) = metadata(namespace)?;
        let transfer =
            controller.transfer_bytes_max(page_shift).unwrap_or(u64::MAX).min(u64::from(TRANSFER_MAX));
        let mut transfer_blocks_max = (transfer >> shift).min(COMMAND_BLOCKS_MAX);
        if scratch_metadata {
            let metadata = u64::from(format.metadata_bytes).max(1);
            transfer_blocks_max = transfer_blocks_max.min(METADATA_BYTES as u64 / metadata);
        }
        if transfer_blocks_max == 0 {
            return Err(format!(
                "the controller transfers {transfer} bytes at most, less than one block of 2^{shift}; format it with smaller blocks"
            ));
        }
        let clamp = |blocks: u64| blocks.min(COMMAND_BLOCKS_MAX) as u32;
        // Without a limit of their own, commands without data keep to that of transfers: what devices are known to do well.
        let own_limit = |limit: u8| match u32::from(limit) {
            0 => clamp(transfer >> shift),
            limit => clamp(1u64.checked_shl(limit + page_shift).unwrap_or(u64::MAX) >> shift).max(1),
        };
        let transfer_blocks_max = clamp(transfer_blocks_max);
        let bounce_blocks_max = transfer_blocks_max.min(((BOUNCE_BYTES >> shift) as u32).max(1));
        let copy_blocks_max = if controller.copies() {
            clamp(u64::from(namespace.copy_range_blocks_max).min(u64::from(namespace.copy_blocks_max)))
        } else {
            0
        };
        let mut geometry = geometry(controller, namespace, bounce_blocks_max, copy_blocks_max);
        // COMPARE has no protection information of ours to compare with.
        geometry.capabilities.compare &= range_flags == 0;
        let view = View {
            nsid,
            geometry,
            block_shift: shift,
            transfer_blocks_max,
            bounce_blocks_max,
            boundary: u32::from(namespace.optimal_boundary),
            range_flags,
            reference_tags,
            scratch_metadata,
            zeroes_blocks_max: if controller.writes_zeroes() {
                own_limit(limits.write_zeroes_shift_max)
            } else {
                0
            },
            zeroes_deallocate: namespace.deallocated_reads_zeros() && namespace.write_zeroes_deallocates(),
            discard_blocks_max: match (controller.deallocates(), limits.deallocate_range_blocks_max) {
                (false, _) => 0,
                (true, 0) => u32::MAX,
                (true, blocks) => blocks,
            },
            verify_blocks_max: if controller.verifies() { own_limit(limits.verify_shift_max) } else { 0 },
            copy_blocks_max,
        };
        Ok(view)
    }
}

/// Flags of commands that name a range, whether they carry a reference tag, and whether metadata needs scratch memory.
fn metadata(namespace: &IdentifyNamespace) -> Result<(u32, bool, bool), String> {
    let bytes = namespace.format.metadata_bytes;
    let remedy = "format it with an LBA format without metadata, or with 8 bytes of protection information";
    match (namespace.protection_type(), bytes) {
        (0, 0) => Ok((0, false, false)),
        (0, _) if namespace.is_extended() => {
            Err(format!("its logical blocks are extended by {bytes} bytes of metadata; {remedy}"))
        }
        (0, _) if usize::from(bytes) > METADATA_BYTES => {
            Err(format!("its blocks have {bytes} bytes of metadata; {remedy}"))
        }
        (0, _) => Ok((0, false, true)),
        // With 8 bytes the controller inserts and strips them all (NVM Command Set 1.0 §5.2.2.1).
        (kind @ 1..=3, 8) => {
            let tags = if kind == 3 { 0 } else { range_flag::CHECK_REFERENCE_TAG };
            Ok((range_flag::PRACT | range_flag::CHECK_GUARD | tags, kind != 3, false))
        }
        (kind, _) => Err(format!(
            "it has protection information of type {kind} in {bytes} bytes of metadata; {remedy}"
        )),
    }
}

fn geometry(
    controller: &IdentifyController,
    namespace: &IdentifyNamespace,
    atomic_max: u32,
    copy_blocks_max: u32,
) -> Geometry {
    let preferred = |value: u16| if namespace.has_preferences() { u32::from(value) + 1 } else { 1 };
    let atomic = atomic(controller, namespace, atomic_max);
    let granularity = preferred(namespace.preferred_write_granularity);
    let power_fail = match namespace.atomic_write_unit_power_fail {
        0 => u32::from(controller.atomic_write_unit_power_fail) + 1,
        own => u32::from(own) + 1,
    };
    let optimal = match preferred(namespace.optimal_write_size) {
        1 => u32::from(namespace.optimal_boundary),
        size => size,
    };
    Geometry {
        block_size: 1 << namespace.format.data_shift,
        blocks: namespace.size,
        // A physical block is what is written without reading around it, and never torn.
        physical_block_exponent: granularity.min(power_fail).ilog2() as u8,
        lowest_aligned_block: 0,
        optimal_granularity_blocks: if granularity > 1 { granularity.min(0xFFFF) as u16 } else { 0 },
        optimal_transfer_blocks: optimal,
        write_cache: controller.has_write_cache(),
        read_only: namespace.is_write_protected(),
        rotational: false,
        provisioning: Provisioning {
            discard: controller.deallocates(),
            reads_zeros: namespace.deallocated_reads_zeros(),
            reports_extents: false,
            granularity_blocks: preferred(namespace.preferred_deallocate_granularity),
            discard_blocks_max: 0,
        },
        buffer_alignment: 4,
        capabilities: Capabilities {
            verify: controller.verifies(),
            compare: controller.compares(),
            copy_blocks_max: u64::from(copy_blocks_max),
        },
        atomic,
    }
}

/// AWUN, AWUPF and their namespace's own (NVM Command Set 1.0 §2.1.4): both must hold.
fn atomic(controller: &IdentifyController, namespace: &IdentifyNamespace, most: u32) -> AtomicWrites {
    let own = |own: u16, common: u16| {
        u32::from(if namespace.has_own_atomics() && own != 0 { own } else { common }) + 1
    };
    let normal = own(namespace.atomic_write_unit, controller.atomic_write_unit);
    let power_fail = own(namespace.atomic_write_unit_power_fail, controller.atomic_write_unit_power_fail);
    let boundaries = [namespace.atomic_boundary, namespace.atomic_boundary_power_fail];
    let boundary =
        match boundaries.iter().filter(|_| namespace.has_own_atomics()).filter(|&&size| size != 0).min() {
            Some(&size) => u32::from(size) + 1,
            None => 0,
        };
    let nested =
        boundaries.iter().all(|&size| size == 0 || (u32::from(size) + 1).is_multiple_of(boundary.max(1)));
    if boundary > 0 && (namespace.atomic_boundary_offset != 0 || !nested) {
        // Boundaries that are not multiples of one number: only what cannot cross any is promised.
        return AtomicWrites { blocks_max: 1, boundary_blocks: 0, granularity_blocks: 0 };
    }
    AtomicWrites {
        blocks_max: normal.min(power_fail).min(most),
        boundary_blocks: boundary,
        granularity_blocks: 0,
    }
}
