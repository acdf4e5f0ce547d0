//! The blocks of one namespace: content, state, a volatile write cache, and what a power cut makes of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use base::Prng;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing: reads as zeros.
    Deallocated = 0,
    /// What was written.
    Written = 1,
    /// Reading it fails (Write Uncorrectable).
    Uncorrectable = 2,
}

impl State {
    fn of(byte: u8) -> State {
        match byte {
            0 => State::Deallocated,
            1 => State::Written,
            _ => State::Uncorrectable,
        }
    }
}

enum Store {
    Memory(Vec<u8>),
    File(File),
}

/// One write since the last flush. It survives a power cut whole or not at all.
struct Entry {
    lba: u64,
    content: Vec<u8>,
    state: State,
    durable: bool,
}

/// Bytes of writes that the cache remembers; with more it writes them to stable media, as any cache may.
const CACHE_BYTES_MAX: usize = 16 << 20;

/// Blocks of `stride` bytes: data, and metadata right behind it.
pub struct Media {
    store: Store,
    stride: usize,
    states: Vec<u8>,
    /// Blocks changed since the last flush, as stable media hold them.
    stable: BTreeMap<u64, (Vec<u8>, State)>,
    journal: Vec<Entry>,
    journal_bytes: usize,
    /// Blocks that one write keeps together in a power cut (AWUPF, not zero-based).
    atomic_blocks: u64,
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Media").field("blocks", &self.states.len()).field("stride", &self.stride).finish()
    }
}

impl Media {
    /// `blocks` blocks, in memory or in `file`. What a file holds already is taken as written.
    ///
    /// # Errors
    /// When the file cannot be made long enough.
    pub fn new(blocks: u64, stride: usize, atomic_blocks: u64, file: Option<File>) -> std::io::Result<Media> {
        let bytes = usize::try_from(blocks).ok().and_then(|blocks| blocks.checked_mul(stride));
        let bytes = bytes.ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut states = vec![State::Deallocated as u8; blocks as usize];
        let store = match file {
            Some(file) => {
                let before = file.metadata()?.len();
                if before < bytes as u64 {
                    file.set_len(bytes as u64)?;
                }
                let written = (before / stride as u64).min(blocks) as usize;
                states[..written].fill(State::Written as u8);
                Store::File(file)
            }
            None => Store::Memory(vec![0; bytes]),
        };
        Ok(Media {
            store,
            stride,
            states,
            stable: BTreeMap::new(),
            journal: Vec::new(),
            journal_bytes: 0,
            atomic_blocks,
        })
    }

    /// Blocks.
    pub fn blocks(&self) -> u64 {
        self.states.len() as u64
    }

    /// All content gone, with another size of block.
    ///
    /// # Errors
    /// When the file cannot be made long enough.
    pub fn format(&mut self, blocks: u64, stride: usize) -> std::io::Result<()> {
        let store = std::mem::replace(&mut self.store, Store::Memory(Vec::new()));
        let file = match store {
            Store::File(file) => {
                file.set_len(0)?;
                Some(file)
            }
            Store::Memory(_) => None,
        };
        *self = Media::new(blocks, stride, self.atomic_blocks, file)?;
        Ok(())
    }

    /// Another number of blocks; those beyond are lost, new ones are deallocated.
    ///
    /// # Errors
    /// When there is no room.
    pub fn resize(&mut self, blocks: u64) -> std::io::Result<()> {
        self.flush();
        let bytes = usize::try_from(blocks).ok().and_then(|blocks| blocks.checked_mul(self.stride));
        let bytes = bytes.ok_or(std::io::ErrorKind::OutOfMemory)?;
        match &mut self.store {
            Store::Memory(content) => content.resize(bytes, 0),
            Store::File(file) => file.set_len(bytes as u64)?,
        }
        self.states.resize(blocks as usize, State::Deallocated as u8);
        Ok(())
    }

    /// The state of a block.
    pub fn state(&self, lba: u64) -> State {
        State::of(self.states[lba as usize])
    }

    /// Blocks of a range that are deallocated.
    pub fn deallocated(&self, lba: u64, blocks: u64) -> u64 {
        self.range(lba, blocks).iter().filter(|&&state| state == State::Deallocated as u8).count() as u64
    }

    /// Blocks that are not deallocated.
    pub fn used(&self) -> u64 {
        self.blocks() - self.deallocated(0, self.blocks())
    }

    /// Whether a block of the range cannot be read.
    pub fn uncorrectable(&self, lba: u64, blocks: u64) -> bool {
        self.range(lba, blocks).contains(&(State::Uncorrectable as u8))
    }

    fn range(&self, lba: u64, blocks: u64) -> &[u8] {
        &self.states[lba as usize..(lba + blocks) as usize]
    }

    /// The bytes of blocks, when they are in memory.
    pub fn view(&self, lba: u64, blocks: u64) -> Option<&[u8]> {
        match &self.store {
            Store::Memory(content) => {
                let start = lba as usize * self.stride;
                content.get(start..start + blocks as usize * self.stride)
            }
            Store::File(_) => None,
        }
    }

    /// Copies blocks out; `content` is a whole number of them.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read(&self, lba: u64, content: &mut [u8]) -> std::io::Result<()> {
        match &self.store {
            Store::Memory(memory) => {
                let start = lba as usize * self.stride;
                content.copy_from_slice(&memory[start..start + content.len()]);
                Ok(())
            }
            Store::File(file) => file.read_exact_at(content, lba * self.stride as u64),
        }
    }

    fn put(&mut self, lba: u64, content: &[u8], state: State) -> std::io::Result<()> {
        match &mut self.store {
            Store::Memory(memory) => {
                let start = lba as usize * self.stride;
                memory[start..start + content.len()].copy_from_slice(content);
            }
            Store::File(file) => file.write_all_at(content, lba * self.stride as u64)?,
        }
        let blocks = content.len() / self.stride;
        self.states[lba as usize..lba as usize + blocks].fill(state as u8);
        Ok(())
    }

    /// Writes a whole number of blocks. With `cached` they may be lost until a flush; without, they are stable.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&mut self, lba: u64, content: &[u8], state: State, cached: bool) -> std::io::Result<()> {
        if cached || !self.journal.is_empty() {
            self.remember(lba, content, state, !cached)?;
        }
        self.put(lba, content, state)
    }

    /// Writes zeros, or deallocates, or marks as uncorrectable.
    ///
    /// # Errors
    /// Those of the file.
    pub fn fill(&mut self, lba: u64, blocks: u64, state: State, cached: bool) -> std::io::Result<()> {
        const STEP: u64 = 256;
        let zeros = vec![0; STEP.min(blocks) as usize * self.stride];
        let mut at = 0;
        while at < blocks {
            let part = STEP.min(blocks - at);
            self.write(lba + at, &zeros[..part as usize * self.stride], state, cached)?;
            at += part;
        }
        Ok(())
    }

    fn remember(&mut self, lba: u64, content: &[u8], state: State, durable: bool) -> std::io::Result<()> {
        let blocks = (content.len() / self.stride) as u64;
        for block in lba..lba + blocks {
            if !self.stable.contains_key(&block) {
                let mut before = vec![0; self.stride];
                self.read(block, &mut before)?;
                self.stable.insert(block, (before, self.state(block)));
            }
        }
        let together = if blocks <= self.atomic_blocks { blocks } else { 1 };
        for (i, part) in content.chunks(together.max(1) as usize * self.stride).enumerate() {
            self.journal.push(Entry {
                lba: lba + i as u64 * together,
                content: part.to_vec(),
                state,
                durable,
            });
        }
        self.journal_bytes += content.len();
        if self.journal_bytes > CACHE_BYTES_MAX {
            self.flush();
        }
        Ok(())
    }

    /// Everything written so far is stable.
    pub fn flush(&mut self) {
        self.stable.clear();
        self.journal.clear();
        self.journal_bytes = 0;
    }

    /// Power fails: each write since the last flush is kept or lost, as the dice say; what was promised stays.
    ///
    /// # Errors
    /// Those of the file.
    pub fn power_cut(&mut self, prng: &mut Prng) -> std::io::Result<()> {
        let journal = std::mem::take(&mut self.journal);
        for (lba, (content, state)) in std::mem::take(&mut self.stable) {
            self.put(lba, &content, state)?;
        }
        for entry in journal {
            if entry.durable || prng.chance(1, 2) {
                self.put(entry.lba, &entry.content, entry.state)?;
            }
        }
        self.journal_bytes = 0;
        Ok(())
    }
}
