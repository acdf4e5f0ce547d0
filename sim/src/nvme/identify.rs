//! Identify data structures (Base 2.0 §5.17; NVM Command Set 1.0 §4.1.5).

use super::command::{Command, NSID_ALL};
use super::events;
use super::features::WARNING_TEMPERATURE;
use super::fetch::Outcome;
use super::logs::ERROR_ENTRIES;
use super::model::{Model, VERSION};
use super::namespace::{FORMATS, Namespace};
use super::status;
use super::transfer::Refusal;
use super::violation::Rule;

/// Bytes of every Identify data structure.
const LENGTH: usize = 4096;
/// FR.
pub const FIRMWARE_REVISION: &[u8; 8] = b"1.0     ";
/// Copy: blocks of one source range at most (MSSRL).
pub const COPY_RANGE_BLOCKS_MAX: u16 = 256;
/// Copy: blocks of all source ranges (MCL).
pub const COPY_BLOCKS_MAX: u32 = 1024;
/// Copy: source ranges, zero-based (MSRC).
pub const COPY_RANGES_MAX: u8 = 15;
/// Controller Identifier.
const CONTROLLER: u16 = 1;

type Page = Box<[u8; LENGTH]>;

fn page() -> Page {
    Box::new([0; LENGTH])
}

fn put(page: &mut Page, at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_text(page: &mut Page, at: usize, length: usize, text: &str) {
    page[at..at + length].fill(b' ');
    let text = text.as_bytes();
    let used = text.len().min(length);
    page[at..at + used].copy_from_slice(&text[..used]);
}

impl Model {
    pub(super) fn identify(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (cns, nsid, csi) = (command.dword(10) as u8, command.nsid(), command.dword(11) >> 24);
        let unsupported = |what: String| Err(Refusal::broken(status::INVALID_FIELD, Rule::Unsupported, what));
        let page = match cns {
            0x00 if nsid == NSID_ALL => self.identify_common(),
            0x00 | 0x11 => match self.known(nsid, cns == 0x11)? {
                Some(namespace) => self.identify_namespace(namespace),
                None => page(),
            },
            0x01 => self.identify_controller(),
            0x02 | 0x07 | 0x10 => {
                if nsid >= 0xFFFF_FFFE {
                    return Err(Refusal::broken(
                        status::INVALID_NAMESPACE,
                        Rule::Unsupported,
                        format!("a list of namespaces after {nsid:#x}"),
                    ));
                }
                if cns == 0x07 && csi != 0 {
                    return unsupported(format!("command set {csi}"));
                }
                self.identify_list(nsid, cns == 0x10)
            }
            0x03 => match self.known(nsid, false)? {
                Some(namespace) => self.identify_descriptors(namespace),
                None => return Err(Refusal::plain(status::INVALID_NAMESPACE | status::DNR)),
            },
            0x05 | 0x06 if csi != 0 => return unsupported(format!("command set {csi}")),
            // No extended formats, and no limits of its own.
            0x05 => {
                self.known(nsid, false)?;
                page()
            }
            0x06 => page(),
            0x08 => {
                let mut page = page();
                if self.known(nsid, false)?.is_some() {
                    // NSTAT: ready.
                    page[14] = 1;
                }
                page
            }
            0x12 | 0x13 => {
                let mut page = page();
                let there = cns == 0x13 || self.known(nsid, false)?.is_some();
                if there && (command.dword(10) >> 16) as u16 <= CONTROLLER {
                    put(&mut page, 0, &[1, 0]);
                    put(&mut page, 2, &CONTROLLER.to_le_bytes());
                }
                page
            }
            0x1C => {
                let mut page = page();
                page[0] = 1;
                page
            }
            _ => return unsupported(format!("Identify CNS {cns:#04x}, which the controller does not have")),
        };
        self.send_admin(command, LENGTH as u64, &page[..])?;
        Ok(Outcome::Done(0))
    }

    /// The namespace `nsid`; nothing when it could exist and does not, or is not attached and only such count.
    fn known(&self, nsid: u32, allocated: bool) -> Result<Option<&Namespace>, Refusal> {
        let index = (nsid as usize).wrapping_sub(1);
        let Some(slot) = self.namespaces.get(index) else {
            return Err(Refusal::broken(
                status::INVALID_NAMESPACE,
                Rule::Unsupported,
                format!("NSID {nsid:#x} of {}", self.namespaces.len()),
            ));
        };
        Ok(slot.as_ref().filter(|namespace| allocated || namespace.attached))
    }

    fn identify_controller(&self) -> Page {
        let lies = &self.faults.lies;
        let mut page = page();
        put(&mut page, 0, &super::config_space::VENDOR.to_le_bytes());
        put(&mut page, 2, &super::config_space::VENDOR.to_le_bytes());
        put_text(&mut page, 4, 20, &self.config.serial);
        put_text(&mut page, 24, 40, "Pollux NVMe Model");
        put(&mut page, 64, FIRMWARE_REVISION);
        page[72] = 6;
        page[77] = lies.mdts.unwrap_or(self.config.mdts);
        put(&mut page, 78, &CONTROLLER.to_le_bytes());
        put(&mut page, 80, &VERSION.to_le_bytes());
        // OAES: Namespace Attribute Notices.
        put(&mut page, 92, &(1u32 << 8).to_le_bytes());
        // CNTRLTYPE: I/O controller.
        page[111] = 1;
        // OACS: Format NVM, Doorbell Buffer Config.
        put(&mut page, 256, &(1u16 << 1 | u16::from(self.config.shadow_doorbells) << 8).to_le_bytes());
        // ACL, AERL, FRMW (one slot, read-only), LPA (effects, extended data), ELPE, NPSS.
        put(&mut page, 258, &[3, events::REQUESTS_MAX as u8 - 1, 0x03, 0x06, ERROR_ENTRIES as u8 - 1, 0]);
        put(&mut page, 266, &WARNING_TEMPERATURE.to_le_bytes());
        put(&mut page, 268, &(WARNING_TEMPERATURE + 10).to_le_bytes());
        let (sqes, cqes) = lies.entry_sizes.unwrap_or((0x66, 0x44));
        put(&mut page, 512, &[sqes, cqes]);
        put(&mut page, 516, &lies.namespaces.unwrap_or(self.namespaces.len() as u32).to_le_bytes());
        // ONCS: Compare, Write Uncorrectable, DSM, Write Zeroes, Select, Timestamp, Verify, Copy.
        put(&mut page, 520, &0x01DFu16.to_le_bytes());
        // FUSES: Compare and Write.
        put(&mut page, 522, &1u16.to_le_bytes());
        // VWC: present; flush to all namespaces is supported.
        page[525] = 0b110 | u8::from(self.config.write_cache);
        let atomic = (self.config.atomic_blocks - 1).to_le_bytes();
        put(&mut page, 526, &atomic);
        put(&mut page, 528, &atomic);
        put(&mut page, 532, &atomic);
        // OCFS: format 0.
        put(&mut page, 534, &1u16.to_le_bytes());
        // SGLS: SGLs without alignment, bit bucket, byte aligned metadata, metadata by SGL.
        let sgls = if self.config.sgl { 1u32 | 1 << 16 | 1 << 17 | 1 << 19 } else { 0 };
        put(&mut page, 536, &sgls.to_le_bytes());
        let name = format!("nqn.2024-01.org.example:pollux-model:{}", self.config.serial);
        let used = name.len().min(223);
        put(&mut page, 768, &name.as_bytes()[..used]);
        // PSD0: 10 W.
        put(&mut page, 2048, &1000u16.to_le_bytes());
        page
    }

    /// What all namespaces have in common, for NSID FFFFFFFFh.
    fn identify_common(&self) -> Page {
        let mut page = page();
        self.put_formats(&mut page);
        page
    }

    fn put_formats(&self, page: &mut Page) {
        let lies = &self.faults.lies;
        // NSFEAT: Deallocated or Unwritten Logical Block error is supported.
        page[24] = 1 << 2;
        page[25] = lies.formats.unwrap_or(FORMATS.len() as u8 - 1);
        // MC: both ways; DPC: types 1 to 3, first and last eight bytes.
        page[27] = 0x03;
        page[28] = 0x1F;
        // DLFEAT: deallocated blocks read as zeros; Deallocate in Write Zeroes.
        page[33] = 0x09;
        put(page, 74, &COPY_RANGE_BLOCKS_MAX.to_le_bytes());
        put(page, 76, &COPY_BLOCKS_MAX.to_le_bytes());
        page[80] = COPY_RANGES_MAX;
        for (i, format) in FORMATS.iter().enumerate() {
            put(page, 128 + 4 * i, &lies.metadata.unwrap_or(format.metadata).to_le_bytes());
            page[128 + 4 * i + 2] = lies.data_shift.unwrap_or(format.data_shift);
        }
    }

    fn identify_namespace(&self, namespace: &Namespace) -> Page {
        let lies = &self.faults.lies;
        let mut page = page();
        self.put_formats(&mut page);
        let blocks = lies.blocks.unwrap_or(namespace.media.blocks());
        put(&mut page, 0, &blocks.to_le_bytes());
        put(&mut page, 8, &lies.capacity.unwrap_or(blocks).to_le_bytes());
        put(&mut page, 16, &namespace.media.used().to_le_bytes());
        page[26] = lies.flbas.unwrap_or(namespace.format | u8::from(namespace.extended) << 4);
        page[29] = namespace.protection | u8::from(namespace.protection_first) << 3;
        let bytes = u128::from(namespace.media.blocks()) << namespace.lba_format().data_shift;
        put(&mut page, 48, &bytes.to_le_bytes());
        put(&mut page, 104, &namespace.nguid);
        put(&mut page, 120, &namespace.nguid[8..]);
        page
    }

    fn identify_descriptors(&self, namespace: &Namespace) -> Page {
        let mut page = page();
        let mut at = 0;
        let mut uuid = namespace.nguid;
        // Version 4, variant 1 (RFC 9562).
        uuid[6] = uuid[6] & 0x0F | 0x40;
        uuid[8] = uuid[8] & 0x3F | 0x80;
        let descriptors: [(u8, &[u8]); 4] =
            [(1, &namespace.nguid[8..]), (2, &namespace.nguid), (3, &uuid), (4, &[0])];
        for (kind, value) in descriptors {
            put(&mut page, at, &[kind, value.len() as u8, 0, 0]);
            put(&mut page, at + 4, value);
            at += 4 + value.len();
        }
        page
    }

    fn identify_list(&self, after: u32, allocated: bool) -> Page {
        let mut page = page();
        let listed = self.namespaces.iter().enumerate().filter_map(|(i, namespace)| {
            let namespace = namespace.as_ref().filter(|namespace| allocated || namespace.attached)?;
            let _ = namespace;
            Some(i as u32 + 1)
        });
        for (i, nsid) in listed.filter(|&nsid| nsid > after).take(1024).enumerate() {
            put(&mut page, 4 * i, &nsid.to_le_bytes());
        }
        page
    }
}
