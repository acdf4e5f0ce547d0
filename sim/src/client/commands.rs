//! What a host asks for: commands with their data, each known to the oracle before it is sent.

use base::Instant;
use initiator::Command;
use wire::scsi::Lun;

use super::{Client, Operation, Seen};
use crate::BLOCK;
use crate::oracle::fill;
use crate::world::Shared;

/// How blocks are written.
#[derive(Debug, Clone, Copy)]
enum Writing {
    Plain,
    Atomic,
    AndVerify { compare: bool },
}

/// A 16-byte CDB of a block command.
fn cdb16(operation: u8, flags: u8, lba: u64, blocks: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[operation, flags]);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&(blocks as u32).to_be_bytes());
    cdb
}

impl Client {
    pub(super) fn send_random_command(&mut self, now: Instant, shared: &mut Shared) {
        let unit = self.prng.below(shared.units.len() as u64) as usize;
        let blocks = shared.blocks;
        if shared.wide && self.prng.chance(1, 3) {
            return self.send_rarer_command(now, shared, unit);
        }
        match self.prng.below(100) {
            0..=39 => {
                let count = self.prng.between(1, 24);
                let lba = self.prng.between(1, blocks - count);
                self.send_write(now, shared, unit, lba, count);
            }
            40..=74 => {
                let count = self.prng.between(1, 24);
                let lba = self.prng.below(blocks - count + 1);
                self.send_read(now, shared, unit, lba, count);
            }
            75..=84 => self.send_compare_and_write(now, shared, unit),
            85..=89 => {
                let sent = shared.units[unit].history.tick();
                let command = Command::new(lun(unit), &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                self.submit(
                    now,
                    shared,
                    command,
                    Operation::Synchronize { unit, sent },
                    "SYNCHRONIZE CACHE".into(),
                );
            }
            90..=93 => self.submit(
                now,
                shared,
                Command::new(lun(unit), &[0; 6]),
                Operation::Other { unit },
                "TEST UNIT READY".into(),
            ),
            94..=96 => {
                let command = Command::read(lun(unit), &[0x12, 0, 0, 0, 96, 0], 96);
                self.submit(now, shared, command, Operation::Other { unit }, "INQUIRY".into());
            }
            _ => {
                let command = Command::read(lun(unit), &[0x03, 0, 0, 0, 252, 0], 252);
                self.submit(now, shared, command, Operation::Other { unit }, "REQUEST SENSE".into());
            }
        }
    }

    /// VERIFY, WRITE AND VERIFY, WRITE ATOMIC, UNMAP, WRITE SAME.
    fn send_rarer_command(&mut self, now: Instant, shared: &mut Shared, unit: usize) {
        let count = self.prng.between(1, 24);
        let lba = self.prng.between(1, shared.blocks - count);
        match self.prng.below(8) {
            0 => {
                let command = Command::new(lun(unit), &cdb16(0x8F, 0, lba, count));
                self.submit(now, shared, command, Operation::Other { unit }, format!("VERIFY {lba}+{count}"));
            }
            1 | 2 => match self.last_seen.take() {
                Some(seen) => self.send_verify(now, shared, seen),
                None => self.send_read(now, shared, unit, lba, count),
            },
            3 | 4 => {
                let count = count.min(shared.atomic_blocks_max);
                self.send_blocks(now, shared, unit, lba, count, Writing::Atomic);
            }
            5 => {
                let compare = self.prng.chance(1, 2);
                self.send_blocks(now, shared, unit, lba, count, Writing::AndVerify { compare });
            }
            6 => self.send_unmap(now, shared, unit),
            _ => {
                // NDOB: zeros, and with UNMAP they may be deallocated.
                let flags = if self.prng.chance(1, 2) { 0x09 } else { 0x01 };
                let stamps = self.invoke_zeros(shared, unit, lba, count);
                let command = Command::new(lun(unit), &cdb16(0x93, flags, lba, count));
                let operation = Operation::Write { unit, stamps, durable: !shared.write_cache };
                self.submit(now, shared, command, operation, format!("WRITE SAME {lba}+{count}"));
            }
        }
    }

    fn invoke_zeros(&mut self, shared: &mut Shared, unit: usize, lba: u64, count: u64) -> Vec<u64> {
        let stamps: Vec<u64> =
            (lba..lba + count).map(|block| shared.units[unit].history.invoke_zeros(block)).collect();
        shared.open_writes.extend(stamps.iter().map(|stamp| (unit, *stamp)));
        stamps
    }

    pub(super) fn send_verify(&mut self, now: Instant, shared: &mut Shared, seen: Seen) {
        let Seen { unit, lba, data, quiet } = seen;
        let sent = shared.units[unit].history.tick();
        let count = (data.len() / BLOCK) as u64;
        let command = Command::write(lun(unit), &cdb16(0x8F, 0x02, lba, count), data.clone());
        let operation = Operation::Verify { unit, lba, data, sent, quiet };
        self.submit(now, shared, command, operation, format!("VERIFY {lba}+{count} with data"));
    }

    fn send_unmap(&mut self, now: Instant, shared: &mut Shared, unit: usize) {
        let ranges = self.prng.between(1, 3);
        let mut list = vec![0; 8];
        let mut stamps = Vec::new();
        for _ in 0..ranges {
            let count = self.prng.between(1, 8);
            let lba = self.prng.between(1, shared.blocks - count);
            list.extend(lba.to_be_bytes());
            list.extend((count as u32).to_be_bytes());
            list.extend([0; 4]);
            stamps.extend(self.invoke_zeros(shared, unit, lba, count));
        }
        list[..2].copy_from_slice(&(16 * ranges as u16 + 6).to_be_bytes());
        list[2..4].copy_from_slice(&(16 * ranges as u16).to_be_bytes());
        let [high, low] = (list.len() as u16).to_be_bytes();
        let command = Command::write(lun(unit), &[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list);
        // Nothing makes a deallocation durable but SYNCHRONIZE CACHE.
        let durable = !shared.write_cache;
        let operation = Operation::Write { unit, stamps, durable };
        self.submit(now, shared, command, operation, format!("UNMAP of {ranges} ranges"));
    }

    fn send_write(&mut self, now: Instant, shared: &mut Shared, unit: usize, lba: u64, count: u64) {
        self.send_blocks(now, shared, unit, lba, count, Writing::Plain);
    }

    fn send_blocks(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        unit: usize,
        lba: u64,
        count: u64,
        writing: Writing,
    ) {
        let fua = self.prng.chance(1, 6);
        let mut data = Vec::with_capacity(count as usize * BLOCK);
        let mut stamps = Vec::new();
        for block in lba..lba + count {
            let stamp = shared.units[unit].history.invoke(block);
            data.extend_from_slice(&fill(stamp, block));
            stamps.push(stamp);
            shared.open_writes.insert((unit, stamp));
        }
        let force = if fua { 0x08 } else { 0 };
        let cdb = match writing {
            Writing::Plain => cdb16(0x8A, force, lba, count),
            Writing::Atomic => {
                shared.units[unit].history.tie(&stamps);
                cdb16(0x9C, force, lba, count)
            }
            Writing::AndVerify { compare } => cdb16(0x8E, u8::from(compare) << 1, lba, count),
        };
        let mut command = Command::write(lun(unit), &cdb, data);
        if self.prng.chance(1, 4) {
            command.immediate_data_max = Some(self.prng.below(count * BLOCK as u64 + 1) as u32);
        }
        command.unsolicited = self.prng.chance(3, 4);
        // WRITE AND VERIFY looks at the medium: what it writes is there.
        let durable = fua || !shared.write_cache || matches!(writing, Writing::AndVerify { .. });
        self.submit(
            now,
            shared,
            command,
            Operation::Write { unit, stamps, durable },
            format!("WRITE {writing:?} {lba}+{count} fua {fua}"),
        );
    }

    pub(super) fn send_read(&mut self, now: Instant, shared: &mut Shared, unit: usize, lba: u64, count: u64) {
        let sent = shared.units[unit].history.tick();
        let quiet = shared.faults_over && shared.open_writes.is_empty();
        let mut cdb = [0u8; 10];
        cdb[0] = 0x28;
        cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
        cdb[7..9].copy_from_slice(&(count as u16).to_be_bytes());
        let command = Command::read(lun(unit), &cdb, (count as usize * BLOCK) as u32);
        self.submit(
            now,
            shared,
            command,
            Operation::Read { unit, lba, blocks: count, sent, quiet },
            format!("READ {lba}+{count}"),
        );
    }

    /// Block 0 is written by COMPARE AND WRITE only, always on top of a value that was read.
    fn send_compare_and_write(&mut self, now: Instant, shared: &mut Shared, unit: usize) {
        let Some(old) = self.last_read.remove(&unit) else {
            return self.send_read(now, shared, unit, 0, 1);
        };
        let stamp = shared.units[unit].history.invoke(0);
        shared.open_writes.insert((unit, stamp));
        let mut cdb = [0u8; 16];
        cdb[0] = 0x89;
        cdb[13] = 1;
        let mut data = old.to_vec();
        data.extend_from_slice(&fill(stamp, 0));
        let command = Command::write(lun(unit), &cdb, data);
        self.submit(
            now,
            shared,
            command,
            Operation::CompareAndWrite { unit, old: Box::new(old), stamp },
            "COMPARE AND WRITE".into(),
        );
    }
}

fn lun(unit: usize) -> Lun {
    Lun::from_number(unit as u16)
}
