//! NVM commands (NVM Command Set 1.0 §3.2).

use super::command::{Command, NSID_ALL, io};
use super::fetch::Outcome;
use super::identify::{COPY_BLOCKS_MAX, COPY_RANGE_BLOCKS_MAX, COPY_RANGES_MAX};
use super::media::State;
use super::model::{Job, Model};
use super::namespace::Namespace;
use super::protection::Protection;
use super::status;
use super::transfer::{Direction, Refusal, check_reach, gather, scatter, walk_prp, walk_sgl};
use super::violation::Rule;

/// Blocks of one command.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Index of the namespace.
    index: usize,
    lba: u64,
    count: u64,
}

/// How blocks travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As they are on the media: data, and metadata if any right behind it.
    Whole,
    /// Data only, although the media have metadata.
    DataAlone,
    /// Metadata by a pointer of its own.
    Apart,
}

/// How the blocks of a command travel, and the bytes by each pointer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layout: Layout,
    data: u64,
    metadata: u64,
}

impl Model {
    #[inline]
    pub(super) fn execute_io(&mut self, queue: u16, command: &Command) -> Result<Outcome, Refusal> {
        match command.opcode() {
            io::READ => self.read(command),
            io::WRITE => self.write(command),
            io::FLUSH => self.flush(command),
            io::COMPARE => self.compare(command),
            io::VERIFY => self.verify(command),
            io::WRITE_ZEROES => self.write_zeroes(command),
            io::WRITE_UNCORRECTABLE => self.write_uncorrectable(command),
            io::DATASET_MANAGEMENT => self.dataset_management(command),
            _ => self.copy(command),
        }
        .map_err(|refusal| self.name_queue(queue, refusal))
    }

    #[cold]
    fn name_queue(&self, queue: u16, refusal: Refusal) -> Refusal {
        let broken = refusal.broken.map(|(rule, what)| (rule, format!("SQ {queue}: {what}")));
        Refusal { broken, ..refusal }
    }

    fn index(&self, nsid: u32) -> Result<usize, Refusal> {
        if self.namespace(nsid).is_some() {
            return Ok(nsid as usize - 1);
        }
        // A namespace that was there may have gone before the host could know.
        let possible = nsid != 0 && nsid as usize <= self.namespaces.len();
        let status = status::INVALID_NAMESPACE | status::DNR;
        if possible {
            return Err(Refusal::plain(status));
        }
        Err(Refusal::broken(status, Rule::Unsupported, format!("I/O to NSID {nsid:#x}")))
    }

    fn check_range(&self, index: usize, lba: u64, count: u64) -> Result<(), Refusal> {
        let Some(namespace) = &self.namespaces[index] else {
            return Err(Refusal::plain(status::INVALID_NAMESPACE | status::DNR));
        };
        let end = lba.checked_add(count);
        if end.is_some_and(|end| end <= namespace.media.blocks()) {
            return Ok(());
        }
        let status = status::LBA_OUT_OF_RANGE | status::DNR;
        // It may have shrunk before the host could know.
        let lied = self.faults.lies.blocks.is_some();
        if lied || end.is_some_and(|end| end <= namespace.blocks_peak) {
            return Err(Refusal::plain(status));
        }
        let what = format!("LBA {lba:#x}+{count} of {}", namespace.media.blocks());
        Err(Refusal::broken(status, Rule::Bounds, what))
    }

    fn blocks(&self, command: &Command) -> Result<Blocks, Refusal> {
        let index = self.index(command.nsid())?;
        let (lba, count) = (command.qword(10), u64::from(command.dword(12) & 0xFFFF) + 1);
        self.check_range(index, lba, count)?;
        Ok(Blocks { index, lba, count })
    }

    fn at(&self, index: usize) -> Result<&Namespace, Refusal> {
        self.namespaces[index].as_ref().ok_or_else(|| Refusal::plain(status::INVALID_NAMESPACE | status::DNR))
    }

    /// Finds where data and metadata of a command go. True when metadata goes by a pointer of its own.
    fn locate(
        &mut self,
        command: &Command,
        data: u64,
        metadata: u64,
        direction: Direction,
    ) -> Result<(), Refusal> {
        if self.config.mdts > 0 && data > 4096 << self.config.mdts && self.faults.lies.mdts.is_none() {
            let what = format!("a transfer of {data} bytes, beyond MDTS");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Bounds, what));
        }
        let (page, psdt) = (self.page(), command.psdt());
        self.metadata_segments.clear();
        if psdt == 0 {
            walk_prp(&self.memory, page, command.prp1(), command.prp2(), data, &mut self.segments)?;
        } else {
            if psdt == 3 || !self.config.sgl {
                let what = format!("PSDT {psdt}, SGLs supported: {}", self.config.sgl);
                return Err(Refusal::broken(status::INVALID_FIELD, Rule::Sgl, what));
            }
            walk_sgl(&self.memory, command.sgl1(), data, direction, &mut self.segments)?;
        }
        if metadata == 0 {
            return Ok(());
        }
        let pointer = command.metadata_pointer();
        if psdt == 2 {
            let mut descriptor = [0; 16];
            self.memory.read(pointer, &mut descriptor)?;
            return walk_sgl(&self.memory, descriptor, metadata, direction, &mut self.metadata_segments)
                .map_err(|refusal| match refusal.status & 0x7FF {
                    status::DATA_SGL_LENGTH_INVALID => {
                        Refusal { status: status::METADATA_SGL_LENGTH_INVALID | status::DNR, ..refusal }
                    }
                    _ => refusal,
                });
        }
        if psdt == 0 && !pointer.is_multiple_of(4) {
            let what = format!("MPTR {pointer:#x} is not dword aligned");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Prp, what));
        }
        self.metadata_segments.push(super::transfer::Segment { address: Some(pointer), length: metadata });
        Ok(())
    }

    /// How the blocks of a command travel, and how many bytes go by which pointer.
    fn shape(namespace: &Namespace, protection: Option<Protection>, count: u64) -> Shape {
        let (data, metadata) = (namespace.data_bytes() as u64, namespace.metadata_bytes() as u64);
        // PRACT with metadata of protection information alone: it never leaves the controller.
        let stripped = metadata == 8 && protection.is_some_and(|protection| protection.act);
        match (metadata, stripped, namespace.extended) {
            (0, _, _) => Shape { layout: Layout::Whole, data: count * data, metadata: 0 },
            (_, true, _) => Shape { layout: Layout::DataAlone, data: count * data, metadata: 0 },
            (_, false, true) => Shape { layout: Layout::Whole, data: count * (data + metadata), metadata: 0 },
            (_, false, false) => {
                Shape { layout: Layout::Apart, data: count * data, metadata: count * metadata }
            }
        }
    }

    #[inline]
    fn read(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let blocks = self.blocks(command)?;
        let namespace = self.at(blocks.index)?;
        let protection = Protection::of(command, namespace.protection, blocks.lba, false)?;
        let shape = Self::shape(namespace, protection, blocks.count);
        let plain = namespace.metadata_bytes() == 0;
        self.locate(command, shape.data, shape.metadata, Direction::ToHost)?;
        self.logs.reads += 1;
        self.logs.read_units += shape.data >> 9;
        let namespace = self.at(blocks.index)?;
        if namespace.media.uncorrectable(blocks.lba, blocks.count) {
            return Err(Refusal::plain(status::UNRECOVERED_READ_ERROR));
        }
        if namespace.report_deallocated && namespace.media.deallocated(blocks.lba, blocks.count) > 0 {
            return Err(Refusal::plain(status::DEALLOCATED_BLOCK | status::DNR));
        }
        if self.config.light {
            check_reach(&self.memory, &self.segments)?;
            return Ok(Outcome::Done(0));
        }
        if plain && let Some(content) = namespace.media.view(blocks.lba, blocks.count) {
            scatter(&self.memory, &self.segments, 0, content)?;
            return Ok(Outcome::Done(0));
        }
        let mut content = std::mem::take(&mut self.scratch);
        let result = self
            .fetch_blocks(blocks, protection, &mut content)
            .and_then(|()| self.send_blocks(blocks.index, shape, &content));
        self.scratch = content;
        result.map(|()| Outcome::Done(0))
    }

    /// Reads blocks with their metadata into `content` and checks protection information.
    fn fetch_blocks(
        &self,
        blocks: Blocks,
        protection: Option<Protection>,
        content: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let namespace = self.at(blocks.index)?;
        let (stride, data) = (namespace.stride(), namespace.data_bytes());
        content.clear();
        content.resize(stride * blocks.count as usize, 0);
        if namespace.media.read(blocks.lba, content).is_err() {
            return Err(Refusal::plain(status::UNRECOVERED_READ_ERROR));
        }
        for (i, block) in content.chunks_mut(stride).enumerate() {
            // Deallocated blocks carry protection information that passes every check (§3.2.3.2.1).
            if namespace.protection > 0 && namespace.media.state(blocks.lba + i as u64) == State::Deallocated
            {
                block[data..].fill(0xFF);
            }
            if let Some(protection) = protection {
                let (bytes, tuple) = block.split_at(data);
                protection.verify(bytes, tuple, i as u64).map_err(Refusal::plain)?;
            }
        }
        Ok(())
    }

    /// Sends blocks that lie in `content` with their metadata, the way the command wants them.
    fn send_blocks(&self, index: usize, shape: Shape, content: &[u8]) -> Result<(), Refusal> {
        let namespace = self.at(index)?;
        let (stride, data) = (namespace.stride(), namespace.data_bytes());
        if shape.layout == Layout::Whole {
            return Ok(scatter(&self.memory, &self.segments, 0, content)?);
        }
        for (i, block) in content.chunks(stride).enumerate() {
            let (bytes, metadata) = block.split_at(data);
            scatter(&self.memory, &self.segments, (i * data) as u64, bytes)?;
            if shape.layout == Layout::Apart {
                scatter(&self.memory, &self.metadata_segments, (i * metadata.len()) as u64, metadata)?;
            }
        }
        Ok(())
    }

    /// Takes a command's blocks from the host into `content`, with metadata behind each block's data.
    fn take_blocks(&self, index: usize, shape: Shape, content: &mut Vec<u8>) -> Result<(), Refusal> {
        let namespace = self.at(index)?;
        let (stride, data) = (namespace.stride(), namespace.data_bytes());
        let metadata = stride - data;
        content.clear();
        if shape.layout == Layout::Whole {
            content.resize(shape.data as usize, 0);
            gather(&self.memory, &self.segments, content)?;
            return Ok(());
        }
        let count = shape.data as usize / data;
        let mut flat = vec![0; shape.data as usize];
        gather(&self.memory, &self.segments, &mut flat)?;
        let mut tuples = vec![0; shape.metadata as usize];
        gather(&self.memory, &self.metadata_segments, &mut tuples)?;
        content.resize(count * stride, 0);
        for (i, block) in content.chunks_mut(stride).enumerate() {
            let (bytes, tail) = block.split_at_mut(data);
            bytes.copy_from_slice(&flat[i * data..(i + 1) * data]);
            if !tuples.is_empty() {
                tail.copy_from_slice(&tuples[i * metadata..(i + 1) * metadata]);
            }
        }
        Ok(())
    }

    fn write(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let blocks = self.blocks(command)?;
        let namespace = self.at(blocks.index)?;
        let protection = Protection::of(command, namespace.protection, blocks.lba, true)?;
        let shape = Self::shape(namespace, protection, blocks.count);
        self.locate(command, shape.data, shape.metadata, Direction::FromHost)?;
        self.logs.writes += 1;
        self.logs.written_units += shape.data >> 9;
        if self.config.light {
            check_reach(&self.memory, &self.segments)?;
            return Ok(Outcome::Done(0));
        }
        let mut content = std::mem::take(&mut self.scratch);
        let fua = command.dword(12) & 1 << 30 != 0;
        let result = self
            .take_blocks(blocks.index, shape, &mut content)
            .and_then(|()| self.protect(blocks.index, protection, &mut content))
            .and_then(|()| self.store_blocks(blocks.index, blocks.lba, &content, State::Written, fua));
        self.scratch = content;
        result.map(|()| Outcome::Done(0))
    }

    /// Inserts protection information, or checks what the host sent.
    fn protect(
        &self,
        index: usize,
        protection: Option<Protection>,
        content: &mut [u8],
    ) -> Result<(), Refusal> {
        let Some(protection) = protection else { return Ok(()) };
        let namespace = self.at(index)?;
        let (stride, data) = (namespace.stride(), namespace.data_bytes());
        for (i, block) in content.chunks_mut(stride).enumerate() {
            let (bytes, tuple) = block.split_at_mut(data);
            if protection.act {
                protection.generate(bytes, tuple, i as u64);
            } else {
                protection.verify(bytes, tuple, i as u64).map_err(Refusal::plain)?;
            }
        }
        Ok(())
    }

    fn store_blocks(
        &mut self,
        index: usize,
        lba: u64,
        content: &[u8],
        state: State,
        fua: bool,
    ) -> Result<(), Refusal> {
        let cached = self.features.write_cache && !fua;
        let Some(namespace) = &mut self.namespaces[index] else { return Ok(()) };
        namespace.media.write(lba, content, state, cached).map_err(|_| Refusal::plain(status::WRITE_FAULT))
    }

    fn fill_blocks(
        &mut self,
        index: usize,
        lba: u64,
        count: u64,
        state: State,
        fua: bool,
    ) -> Result<(), Refusal> {
        let cached = self.features.write_cache && !fua;
        let Some(namespace) = &mut self.namespaces[index] else { return Ok(()) };
        namespace.media.fill(lba, count, state, cached).map_err(|_| Refusal::plain(status::WRITE_FAULT))
    }

    fn flush(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        if command.nsid() == NSID_ALL {
            self.namespaces.iter_mut().flatten().for_each(|namespace| namespace.media.flush());
        } else {
            let index = self.index(command.nsid())?;
            if let Some(namespace) = &mut self.namespaces[index] {
                namespace.media.flush();
            }
        }
        Ok(Outcome::Done(0))
    }

    fn compare(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let blocks = self.blocks(command)?;
        let namespace = self.at(blocks.index)?;
        let protection = Protection::of(command, namespace.protection, blocks.lba, false)?;
        let shape = Self::shape(namespace, protection, blocks.count);
        self.locate(command, shape.data, shape.metadata, Direction::FromHost)?;
        let namespace = self.at(blocks.index)?;
        if namespace.media.uncorrectable(blocks.lba, blocks.count) {
            return Err(Refusal::plain(status::UNRECOVERED_READ_ERROR));
        }
        let (mut sent, mut stored) = (Vec::new(), Vec::new());
        self.take_blocks(blocks.index, shape, &mut sent)?;
        self.fetch_blocks(blocks, protection, &mut stored)?;
        let namespace = self.at(blocks.index)?;
        let (stride, bytes) = (namespace.stride(), namespace.data_bytes());
        let whole = protection.is_none_or(|protection| !protection.act);
        let compared = if whole { stride } else { bytes };
        let equal =
            sent.chunks(stride).zip(stored.chunks(stride)).all(|(a, b)| a[..compared] == b[..compared]);
        if equal { Ok(Outcome::Done(0)) } else { Err(Refusal::plain(status::COMPARE_FAILURE | status::DNR)) }
    }

    fn verify(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let blocks = self.blocks(command)?;
        let namespace = self.at(blocks.index)?;
        let protection = Protection::of(command, namespace.protection, blocks.lba, false)?;
        if namespace.media.uncorrectable(blocks.lba, blocks.count) {
            return Err(Refusal::plain(status::UNRECOVERED_READ_ERROR));
        }
        self.fetch_blocks(blocks, protection, &mut Vec::new())?;
        Ok(Outcome::Done(0))
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let blocks = self.blocks(command)?;
        let (deallocate, fua) = (command.dword(12) & 1 << 25 != 0, command.dword(12) & 1 << 30 != 0);
        let namespace = self.at(blocks.index)?;
        let protection = Protection::of(command, namespace.protection, blocks.lba, true)?;
        if deallocate {
            self.fill_blocks(blocks.index, blocks.lba, blocks.count, State::Deallocated, fua)?;
            return Ok(Outcome::Done(0));
        }
        match protection.filter(|protection| protection.act) {
            None => self.fill_blocks(blocks.index, blocks.lba, blocks.count, State::Written, fua)?,
            Some(_) => {
                let mut content = vec![0; namespace.stride() * blocks.count as usize];
                self.protect(blocks.index, protection, &mut content)?;
                self.store_blocks(blocks.index, blocks.lba, &content, State::Written, fua)?;
            }
        }
        Ok(Outcome::Done(0))
    }

    fn write_uncorrectable(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let blocks = self.blocks(command)?;
        self.fill_blocks(blocks.index, blocks.lba, blocks.count, State::Uncorrectable, false)?;
        Ok(Outcome::Done(0))
    }

    fn dataset_management(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let index = self.index(command.nsid())?;
        let ranges = (command.dword(10) & 0xFF) as usize + 1;
        self.locate(command, 16 * ranges as u64, 0, Direction::FromHost)?;
        let mut bytes = vec![0; 16 * ranges];
        gather(&self.memory, &self.segments, &mut bytes)?;
        if command.dword(11) & 4 == 0 {
            return Ok(Outcome::Done(0));
        }
        let parsed = bytes.as_chunks::<16>().0.iter().map(|range| {
            let command =
                |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
            (u64::from(command(8)) | u64::from(command(12)) << 32, u64::from(command(4)))
        });
        let parsed: Vec<(u64, u64)> = parsed.collect();
        for &(lba, count) in &parsed {
            self.check_range(index, lba, count)?;
        }
        for (lba, count) in parsed {
            self.fill_blocks(index, lba, count, State::Deallocated, false)?;
        }
        Ok(Outcome::Done(0))
    }

    fn copy(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let index = self.index(command.nsid())?;
        let word = command.dword(12);
        let ranges = (word & 0xFF) as usize + 1;
        if word >> 8 & 15 != 0 {
            let what = format!("Copy descriptor format {}", word >> 8 & 15);
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Unsupported, what));
        }
        if ranges > usize::from(COPY_RANGES_MAX) + 1 {
            let what = format!("Copy of {ranges} ranges");
            return Err(Refusal::broken(status::COMMAND_SIZE_LIMIT_EXCEEDED, Rule::Bounds, what));
        }
        self.locate(command, 32 * ranges as u64, 0, Direction::FromHost)?;
        let mut bytes = vec![0; 32 * ranges];
        gather(&self.memory, &self.segments, &mut bytes)?;
        let mut content = Vec::new();
        let mut total = 0;
        for range in bytes.as_chunks::<32>().0 {
            let half = |at: usize| u16::from_le_bytes([range[at], range[at + 1]]);
            let word_at = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
            let lba = u64::from(word_at(8)) | u64::from(word_at(12)) << 32;
            let count = u64::from(half(16)) + 1;
            total += count;
            if count > u64::from(COPY_RANGE_BLOCKS_MAX) || total > u64::from(COPY_BLOCKS_MAX) {
                let what = format!("Copy of {count} blocks, {total} so far");
                return Err(Refusal::broken(status::COMMAND_SIZE_LIMIT_EXCEEDED, Rule::Bounds, what));
            }
            self.check_range(index, lba, count)?;
            let namespace = self.at(index)?;
            if namespace.media.uncorrectable(lba, count) {
                return Err(Refusal::plain(status::UNRECOVERED_READ_ERROR));
            }
            let tags = (half(28), half(30));
            let protection =
                Protection::new(namespace.protection, word >> 12 & 15, word_at(24), tags, lba, false)?;
            let mut part = Vec::new();
            self.fetch_blocks(Blocks { index, lba, count }, protection, &mut part)?;
            content.append(&mut part);
        }
        let to = command.qword(10);
        self.check_range(index, to, total)?;
        let kind = self.at(index)?.protection;
        let protection = Protection::of(command, kind, to, true)?;
        self.protect(index, protection, &mut content)?;
        self.store_blocks(index, to, &content, State::Written, word & 1 << 30 != 0)?;
        Ok(Outcome::Done(0))
    }

    /// Writes that were fetched and not carried out when power failed: each may have reached stable media in part,
    /// in units that AWUPF keeps together.
    pub(super) fn tear_unfinished(&mut self) {
        let jobs = std::mem::take(&mut self.jobs);
        for (_, job) in jobs {
            let Job::Execute(taken, None) = job else { continue };
            if taken.queue == 0 || taken.command.opcode() != io::WRITE || !self.prng.chance(1, 2) {
                continue;
            }
            // Carried out as if cached: the dice of the power cut then fall for each unit.
            let mut command = taken.command;
            command.0[12] &= !(1 << 30);
            let cache = std::mem::replace(&mut self.features.write_cache, true);
            let _ = self.write(&command);
            self.features.write_cache = cache;
        }
    }
}
