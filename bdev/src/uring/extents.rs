//! Extent queries of files. `SEEK_DATA` may read the file system's maps and block, so a thread of the device asks.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use super::system::{EventFd, seek};
use crate::{BlockError, Extent, ExtentState};

/// Queries that wait for the thread at most.
const QUERIES: usize = 256;

/// Where one channel finds its answers.
pub(super) struct Mailbox {
    answers: Mutex<Vec<(usize, Result<Extent, BlockError>)>>,
    event: EventFd,
}

impl Mailbox {
    /// A mailbox for at most `capacity` answers.
    pub(super) fn new(capacity: usize) -> io::Result<Mailbox> {
        Ok(Mailbox { answers: Mutex::new(Vec::with_capacity(capacity)), event: EventFd::new()? })
    }

    /// Readable while an answer is there.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes one answer out; nothing when the thread is just putting one in. The event is cleared with the last: both
    /// change under the lock only, so the event says truly whether something is there.
    pub(super) fn take(&self) -> Option<(usize, Result<Extent, BlockError>)> {
        let mut answers = self.answers.try_lock().ok()?;
        let answer = answers.pop();
        if answer.is_some() && answers.is_empty() {
            self.event.clear();
        }
        answer
    }

    fn put(&self, slot: usize, answer: Result<Extent, BlockError>) {
        if let Ok(mut answers) = self.answers.lock() {
            answers.push((slot, answer));
            self.event.signal();
        }
    }
}

/// One question: in which state is the extent that begins at `lba`?
pub(super) struct Query {
    pub(super) slot: usize,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    pub(super) mailbox: Arc<Mailbox>,
}

/// Starts the thread; it ends when the last sender is dropped.
pub(super) fn start(file: Arc<File>, block_size: u32) -> io::Result<SyncSender<Query>> {
    let (sender, receiver) = sync_channel(QUERIES);
    let work = move || serve(&receiver, &file, u64::from(block_size));
    std::thread::Builder::new().name("extents".into()).stack_size(64 << 10).spawn(work)?;
    Ok(sender)
}

fn serve(receiver: &Receiver<Query>, file: &File, block_size: u64) {
    while let Ok(query) = receiver.recv() {
        let answer = extent(file, block_size, query.lba, query.blocks)
            .map_err(|error| super::channel::block_error(error.raw_os_error().unwrap_or(libc::EIO)));
        query.mailbox.put(query.slot, answer);
    }
}

/// The extent at `lba`. A block that is partly a hole counts as mapped.
fn extent(file: &File, block_size: u64, lba: u64, blocks: u64) -> io::Result<Extent> {
    let start = lba * block_size;
    let data = seek(file, start, true)?.unwrap_or(u64::MAX);
    let hole_blocks = data.saturating_sub(start) / block_size;
    if hole_blocks > 0 {
        return Ok(Extent { state: ExtentState::Deallocated, blocks: blocks.min(hole_blocks) });
    }
    let end = seek(file, data.max(start), false)?.unwrap_or(u64::MAX);
    let mapped = end.saturating_sub(start).div_ceil(block_size);
    Ok(Extent { state: ExtentState::Mapped, blocks: mapped.clamp(1, blocks) })
}
