//! What must hold, whatever happens. The oracle knows every write by a stamp that fills its blocks, when it was sent, when
//! it was acknowledged, and when something promised that it is over.

use std::collections::{BTreeMap, HashMap};

use base::Instant;

use crate::BLOCK;
use crate::disk::Applied;

/// Logical time: counts events, so that "before" is never a tie.
pub type Moment = u64;

const NEVER: Moment = Moment::MAX;

/// One block of one write.
#[derive(Debug, Clone)]
struct Write {
    lba: u64,
    invoked: Moment,
    /// Acknowledged with GOOD, or seen by a reader: it took effect before this.
    effective_by: Moment,
    /// After this it can no longer take effect: acknowledged, or its task is over.
    ended: Moment,
    /// Why it is over, when it was not acknowledged.
    reason: &'static str,
    /// Acknowledged by then as stable: FUA, or a later SYNCHRONIZE CACHE.
    durable_by: Moment,
    acknowledged: bool,
    /// It writes zeros, which carry no stamp on the medium.
    zeros: bool,
    /// The first and the last stamp of the atomic write it belongs to.
    atomic: Option<(u64, u64)>,
}

/// The history of one logical unit.
#[derive(Debug, Default)]
pub struct History {
    clock: Moment,
    writes: HashMap<u64, Write>,
    by_block: BTreeMap<u64, Vec<u64>>,
    next_stamp: u64,
}

impl History {
    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }

    /// A write of one block is about to be sent; the stamp fills the block.
    pub fn invoke(&mut self, lba: u64) -> u64 {
        self.invoke_as(lba, false)
    }

    /// Zeros are about to be written to one block. They all look alike and get a stamp for bookkeeping only.
    pub fn invoke_zeros(&mut self, lba: u64) -> u64 {
        self.invoke_as(lba, true)
    }

    /// The writes of these stamps, which follow each other, are one: nobody may see some of them without the others.
    pub fn tie(&mut self, stamps: &[u64]) {
        let (Some(&first), Some(&last)) = (stamps.first(), stamps.last()) else { return };
        for stamp in stamps {
            if let Some(write) = self.writes.get_mut(stamp) {
                write.atomic = Some((first, last));
            }
        }
    }

    fn invoke_as(&mut self, lba: u64, zeros: bool) -> u64 {
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        let invoked = self.tick();
        self.writes.insert(
            stamp,
            Write {
                lba,
                invoked,
                effective_by: NEVER,
                ended: NEVER,
                reason: "",
                durable_by: NEVER,
                acknowledged: false,
                zeros,
                atomic: None,
            },
        );
        self.by_block.entry(lba).or_default().push(stamp);
        stamp
    }

    /// The write was acknowledged.
    pub fn acknowledge(&mut self, stamp: u64, durable: bool) {
        let now = self.tick();
        if let Some(write) = self.writes.get_mut(&stamp) {
            write.effective_by = write.effective_by.min(now);
            write.ended = write.ended.min(now);
            write.acknowledged = true;
            if durable {
                write.durable_by = write.durable_by.min(now);
            }
        }
    }

    /// The write is over without an acknowledgement: it took effect or did not, but it will not any more.
    pub fn end(&mut self, stamp: u64, reason: &'static str) {
        let now = self.tick();
        if let Some(write) = self.writes.get_mut(&stamp)
            && write.ended == NEVER
        {
            write.ended = now;
            write.reason = reason;
        }
    }

    /// A SYNCHRONIZE CACHE that was sent at `sent` is acknowledged: what was acknowledged before is durable.
    pub fn synchronized(&mut self, sent: Moment) {
        let now = self.tick();
        for write in self.writes.values_mut() {
            if write.acknowledged && write.effective_by < sent {
                write.durable_by = write.durable_by.min(now);
            }
        }
    }

    /// The disk changed a block. An ended write must not reach it.
    pub fn applied(&mut self, applied: &Applied) -> Result<(), String> {
        let now = self.tick();
        let Some(write) = self.writes.get(&applied.stamp) else {
            return Ok(());
        };
        if write.lba != applied.lba {
            return Err(format!(
                "write {} for block {} reached block {}",
                applied.stamp, write.lba, applied.lba
            ));
        }
        if write.ended < now && !write.acknowledged {
            return Err(format!(
                "write {} to block {} reached the medium at {} although it was over ({})",
                applied.stamp,
                applied.lba,
                applied.at.as_nanos(),
                write.reason
            ));
        }
        if write.ended < now {
            return Err(format!(
                "write {} to block {} reached the medium after it was acknowledged",
                applied.stamp, applied.lba
            ));
        }
        Ok(())
    }

    /// A read sent at `sent` returned `block` for `lba`.
    pub fn read(&mut self, lba: u64, sent: Moment, block: &[u8]) -> Result<(), String> {
        let now = self.tick();
        let stamp = crate::disk::stamp_of(block);
        if stamp != 0 {
            if block != fill(stamp, lba) {
                return Err(format!("block {lba} is torn or mixed: stamp {stamp}, but not its pattern"));
            }
        } else if block.iter().any(|&byte| byte != 0) {
            return Err(format!("block {lba} holds bytes nobody wrote"));
        }
        self.legal(lba, stamp, sent, |write| write.effective_by)?;
        if let Some(write) = self.writes.get_mut(&stamp) {
            write.effective_by = write.effective_by.min(now);
        }
        Ok(())
    }

    /// A reader saw these blocks from `lba` on as one: where it saw one block of an atomic write, it saw none of the
    /// others as it was before that.
    pub fn read_as_one(&self, lba: u64, blocks: &[u8]) -> Result<(), String> {
        let seen: Vec<u64> = blocks.chunks_exact(BLOCK).map(crate::disk::stamp_of).collect();
        for &stamp in &seen {
            let Some(write) = self.writes.get(&stamp) else { continue };
            let Some((first, last)) = write.atomic else { continue };
            for tied in first..=last {
                let Some(other) = self.writes.get(&tied) else { continue };
                let Some(&found) = other.lba.checked_sub(lba).and_then(|at| seen.get(at as usize)) else {
                    continue;
                };
                if found != tied && self.was_before(other.lba, found, write.invoked) {
                    return Err(format!(
                        "a reader saw write {stamp} to block {}, but block {} as it was before that ({found} instead of {tied})",
                        write.lba, other.lba
                    ));
                }
            }
        }
        Ok(())
    }

    /// True when what shows `stamp` in `lba` certainly came before `moment`.
    fn was_before(&self, lba: u64, stamp: u64, moment: Moment) -> bool {
        self.candidates(lba, stamp).iter().all(|&(ended, _)| ended < moment)
    }

    /// What may have left a block with `stamp`: when it was over, and its own stamp. Zeros are there from the beginning.
    fn candidates(&self, lba: u64, stamp: u64) -> Vec<(Moment, u64)> {
        if stamp != 0 {
            return self.writes.get(&stamp).map(|write| (write.ended, stamp)).into_iter().collect();
        }
        let zeros = self.by_block.get(&lba).into_iter().flatten().filter_map(|own| {
            let write = self.writes.get(own).filter(|write| write.zeros)?;
            Some((write.ended, *own))
        });
        std::iter::once((0, 0)).chain(zeros).collect()
    }

    /// After a power cut `block` is on the medium: no durable write may be lost.
    pub fn survived(&mut self, lba: u64, block: &[u8]) -> Result<(), String> {
        let now = self.tick();
        let stamp = crate::disk::stamp_of(block);
        self.legal(lba, stamp, now, |write| write.durable_by).map_err(|e| format!("after a power cut: {e}"))
    }

    /// `stamp` may be the value of `lba` for a reader that began at `sent` unless some write certainly came after it
    /// and certainly took effect before `sent`. `by` tells when a write certainly had taken effect.
    fn legal(&self, lba: u64, stamp: u64, sent: Moment, by: impl Fn(&Write) -> Moment) -> Result<(), String> {
        if stamp != 0 {
            let Some(write) = self.writes.get(&stamp) else {
                return Err(format!("block {lba} carries stamp {stamp}, which nobody wrote"));
            };
            if write.lba != lba || write.zeros {
                return Err(format!("block {lba} carries stamp {stamp}, written to block {}", write.lba));
            }
        }
        let mut verdict = Ok(());
        for (ended, own) in self.candidates(lba, stamp) {
            let overwritten = self.by_block.get(&lba).into_iter().flatten().find_map(|later| {
                let write = self.writes.get(later)?;
                (*later != own && write.invoked > ended && by(write) < sent).then_some((later, write))
            });
            let Some((later, write)) = overwritten else { return Ok(()) };
            verdict = Err(format!(
                "block {lba} shows write {own} (over {ended}) to a reader that began at {sent}, although write {later} (sent {}) took effect by {}",
                write.invoked,
                by(write)
            ));
        }
        verdict
    }
}

/// The content of a block that carries `stamp`.
pub fn fill(stamp: u64, lba: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (i, chunk) in block.chunks_exact_mut(8).enumerate() {
        let word =
            if i == 0 { stamp } else { stamp.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (lba << 8) ^ i as u64 };
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    block
}

/// Something that must not happen, happened.
#[derive(Debug, Clone)]
pub struct Violation {
    /// When.
    pub at: Instant,
    /// What.
    pub what: String,
}
