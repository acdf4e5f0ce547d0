//! Log pages (Base 2.0 §5.16).

use std::collections::{BTreeSet, VecDeque};

use super::command::{Command, admin_fields, io_fields};
use super::fetch::Outcome;
use super::model::Model;
use super::status::{self, Status};
use super::transfer::Refusal;
use super::violation::Rule;

/// Supported Log Pages.
pub const SUPPORTED: u8 = 0x00;
/// Error Information.
pub const ERROR_LOG: u8 = 0x01;
/// SMART / Health Information.
pub const HEALTH: u8 = 0x02;
/// Firmware Slot Information.
pub const FIRMWARE: u8 = 0x03;
/// Changed Namespace List.
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Commands Supported and Effects.
pub const EFFECTS: u8 = 0x05;
/// Feature Identifiers Supported and Effects.
pub const FEATURES: u8 = 0x12;

/// Entries of the error log (ELPE + 1).
pub const ERROR_ENTRIES: usize = 64;

#[derive(Debug, Clone, Copy)]
struct ErrorEntry {
    count: u64,
    queue: u16,
    cid: u16,
    status: Status,
}

/// What logs are made from.
#[derive(Debug, Default)]
pub(super) struct Logs {
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    changed: BTreeSet<u32>,
    pub unsafe_shutdowns: u64,
    pub power_cycles: u64,
    pub media_errors: u64,
    /// 512-byte units.
    pub read_units: u64,
    pub written_units: u64,
    pub reads: u64,
    pub writes: u64,
    /// Critical Warning.
    pub warning: u8,
}

impl Logs {
    pub fn error(&mut self, queue: u16, cid: u16, status: Status) {
        self.error_count += 1;
        self.errors.push_front(ErrorEntry { count: self.error_count, queue, cid, status });
        self.errors.truncate(ERROR_ENTRIES);
        self.media_errors += u64::from(matches!(status & 0x7FF, 0x280..=0x284));
    }

    pub fn namespace_changed(&mut self, nsid: u32) {
        self.changed.insert(nsid);
    }

    fn error_page(&self) -> Vec<u8> {
        let mut page = vec![0; ERROR_ENTRIES * 64];
        for (entry, bytes) in self.errors.iter().zip(page.chunks_mut(64)) {
            bytes[0..8].copy_from_slice(&entry.count.to_le_bytes());
            bytes[8..10].copy_from_slice(&entry.queue.to_le_bytes());
            bytes[10..12].copy_from_slice(&entry.cid.to_le_bytes());
            bytes[12..14].copy_from_slice(&(entry.status << 1).to_le_bytes());
            // No parameter is blamed.
            bytes[14..16].copy_from_slice(&0xFFFFu16.to_le_bytes());
        }
        page
    }

    fn health_page(&self, temperature: u16) -> Vec<u8> {
        let mut page = vec![0; 512];
        let mut put = |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(32, self.read_units.div_ceil(1000));
        put(48, self.written_units.div_ceil(1000));
        put(64, self.reads);
        put(80, self.writes);
        put(112, self.power_cycles);
        put(144, self.unsafe_shutdowns);
        put(160, self.media_errors);
        put(176, self.error_count);
        page[0] = self.warning;
        page[1..3].copy_from_slice(&temperature.to_le_bytes());
        page[3] = 100;
        page[4] = 10;
        page
    }

    fn changed_page(&self) -> Vec<u8> {
        let mut page = vec![0; 4096];
        if self.changed.len() > 1024 {
            page[0..4].fill(0xFF);
            return page;
        }
        for (nsid, bytes) in self.changed.iter().zip(page.chunks_mut(4)) {
            bytes.copy_from_slice(&nsid.to_le_bytes());
        }
        page
    }
}

fn words(values: impl Iterator<Item = (usize, u32)>, length: usize) -> Vec<u8> {
    let mut page = vec![0; length];
    for (at, value) in values {
        page[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// CSUPP, and LBCC for what changes blocks; Format changes namespaces and tolerates nothing beside it.
fn effects_page() -> Vec<u8> {
    use super::command::{admin, io};
    let admin = (0..=255u8).filter(|&op| admin_fields(op).is_some()).map(|op| {
        let more = if op == admin::FORMAT_NVM { 1 << 1 | 1 << 2 | 2 << 16 } else { 0 };
        (usize::from(op), 1 | more)
    });
    let io = (0..=255u8).filter(|&op| io_fields(op).is_some()).map(|op| {
        let changes = matches!(
            op,
            io::WRITE | io::WRITE_ZEROES | io::WRITE_UNCORRECTABLE | io::DATASET_MANAGEMENT | io::COPY
        );
        (256 + usize::from(op), 1 | u32::from(changes) << 1)
    });
    words(admin.chain(io), 4096)
}

impl Model {
    pub(super) fn get_log_page(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (lid, retain) = (command.dword(10) as u8, command.dword(10) & 1 << 15 != 0);
        let dwords = u64::from(command.dword(10) >> 16) | u64::from(command.dword(11) & 0xFFFF) << 16;
        let length = (dwords + 1) * 4;
        let offset = command.qword(12);
        let page = match lid {
            SUPPORTED => words(
                [SUPPORTED, ERROR_LOG, HEALTH, FIRMWARE, CHANGED_NAMESPACES, EFFECTS, FEATURES]
                    .into_iter()
                    .map(|lid| (usize::from(lid), 1)),
                1024,
            ),
            ERROR_LOG => self.logs.error_page(),
            HEALTH => self.logs.health_page(self.features.temperature),
            FIRMWARE => {
                let mut page = vec![0; 512];
                page[0] = 1;
                page[8..16].copy_from_slice(super::identify::FIRMWARE_REVISION);
                page
            }
            CHANGED_NAMESPACES => self.logs.changed_page(),
            EFFECTS => effects_page(),
            FEATURES => words(super::features::IDENTIFIERS.iter().map(|&fid| (usize::from(fid), 1)), 1024),
            _ => {
                return Err(Refusal::broken(
                    status::INVALID_LOG_PAGE,
                    Rule::Unsupported,
                    format!("log page {lid:#04x}, which the controller does not have"),
                ));
            }
        };
        if !offset.is_multiple_of(4) || offset > page.len() as u64 {
            return Err(Refusal::broken(
                status::INVALID_FIELD,
                Rule::Bounds,
                format!("log page {lid:#04x} from byte {offset} of {}", page.len()),
            ));
        }
        // What lies beyond the page is undefined; nothing is transferred for it.
        let part = &page[offset as usize..];
        let part = &part[..part.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        self.send_admin(command, length, part)?;
        if !retain {
            if lid == CHANGED_NAMESPACES {
                self.logs.changed.clear();
            }
            self.clear_events(lid);
        }
        Ok(Outcome::Done(0))
    }
}
