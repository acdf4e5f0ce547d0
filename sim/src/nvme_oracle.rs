//! What a reader of a block may see: the history of one namespace, block by block.

use crate::oracle::Moment;

const NEVER: Moment = Moment::MAX;

/// One write of one block.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// What the block then carries; 0 for zeros, of which there may be many.
    stamp: u64,
    /// Names the write.
    id: u64,
    invoked: Moment,
    /// It took effect before this: acknowledged, or seen.
    effective_by: Moment,
    /// It cannot take effect after this: its request is over.
    ended: Moment,
    /// It was promised as stable by then.
    durable_by: Moment,
    /// Acknowledged.
    acknowledged: Moment,
}

/// The history of a namespace.
#[derive(Debug)]
pub struct BlockHistory {
    clock: Moment,
    next: u64,
    blocks: Vec<Vec<Version>>,
}

impl BlockHistory {
    /// All blocks are zeros.
    pub fn new(blocks: u64) -> BlockHistory {
        let zero = Version {
            stamp: 0,
            id: 0,
            invoked: 0,
            effective_by: 0,
            ended: 0,
            durable_by: 0,
            acknowledged: 0,
        };
        BlockHistory { clock: 0, next: 0, blocks: vec![vec![zero]; blocks as usize] }
    }

    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }

    /// A write of `count` blocks is about to be sent. Its name, which is the stamp of data.
    pub fn invoke(&mut self, lba: u64, count: u64, zeros: bool) -> u64 {
        self.next += 1;
        let (id, invoked) = (self.next, self.tick());
        let stamp = if zeros { 0 } else { id };
        for block in &mut self.blocks[lba as usize..(lba + count) as usize] {
            block.push(Version {
                stamp,
                id,
                invoked,
                effective_by: NEVER,
                ended: NEVER,
                durable_by: NEVER,
                acknowledged: NEVER,
            });
        }
        id
    }

    fn versions(&mut self, lba: u64, count: u64, id: u64) -> impl Iterator<Item = &mut Version> {
        let blocks = &mut self.blocks[lba as usize..(lba + count) as usize];
        blocks.iter_mut().flatten().filter(move |version| version.id == id)
    }

    /// The write is over. Acknowledged, it took effect; otherwise it did or did not, and will not any more. `oldest` is
    /// the oldest moment at which a request that is outstanding was sent.
    pub fn end(&mut self, lba: u64, count: u64, id: u64, acknowledged: bool, durable: bool, oldest: Moment) {
        let now = self.tick();
        for version in self.versions(lba, count, id) {
            version.ended = now;
            if acknowledged {
                version.effective_by = version.effective_by.min(now);
                version.acknowledged = now;
            }
            if acknowledged && durable {
                version.durable_by = now;
            }
        }
        for block in &mut self.blocks[lba as usize..(lba + count) as usize] {
            prune(block, oldest);
        }
    }

    /// A request that never reached the device.
    pub fn withdraw(&mut self, lba: u64, count: u64, id: u64) {
        for block in &mut self.blocks[lba as usize..(lba + count) as usize] {
            block.retain(|version| version.id != id);
        }
    }

    /// A flush that was sent at `sent` is acknowledged.
    pub fn flushed(&mut self, sent: Moment) {
        let now = self.tick();
        for version in self.blocks.iter_mut().flatten() {
            if version.acknowledged < sent {
                version.durable_by = version.durable_by.min(now);
            }
        }
    }

    /// A read that was sent at `sent` shows `stamp`.
    ///
    /// # Errors
    /// When no history allows it.
    pub fn read(&mut self, lba: u64, sent: Moment, stamp: u64) -> Result<(), String> {
        let now = self.tick();
        self.legal(lba, sent, stamp, |version| version.effective_by)?;
        if stamp != 0 {
            for version in self.versions(lba, 1, stamp) {
                version.effective_by = version.effective_by.min(now);
            }
        }
        Ok(())
    }

    /// After a power cut the block carries `stamp`.
    ///
    /// # Errors
    /// When something that was promised as stable is lost.
    pub fn survived(&mut self, lba: u64, stamp: u64) -> Result<(), String> {
        let now = self.tick();
        self.legal(lba, now, stamp, |version| version.durable_by)
            .map_err(|e| format!("after a power cut: {e}"))
    }

    fn legal(
        &self,
        lba: u64,
        sent: Moment,
        stamp: u64,
        by: impl Fn(&Version) -> Moment,
    ) -> Result<(), String> {
        let versions = &self.blocks[lba as usize];
        let covered = |version: &Version| {
            versions.iter().any(|later| later.invoked > version.ended && by(later) < sent)
        };
        let mut same = versions.iter().filter(|version| version.stamp == stamp).peekable();
        if same.peek().is_none() {
            return Err(format!(
                "block {lba} carries stamp {stamp}, which nobody wrote there, or which is long over"
            ));
        }
        if same.any(|version| !covered(version)) {
            return Ok(());
        }
        Err(format!(
            "block {lba} shows stamp {stamp} to a reader that began at {sent}, but it was overwritten: {versions:?}"
        ))
    }
}

/// Forgets what no reader, and no power cut, can show any more.
fn prune(versions: &mut Vec<Version>, oldest: Moment) {
    if versions.len() < 12 {
        return;
    }
    let last =
        versions.iter().filter(|version| version.durable_by < oldest).map(|version| version.invoked).max();
    let Some(last) = last else { return };
    versions.retain(|version| version.ended >= last);
}
