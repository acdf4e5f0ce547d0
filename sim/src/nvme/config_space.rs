//! The PCI configuration space: header, power management, MSI-X and PCI Express capabilities (PCIe Transport 1.0 §3.8).

/// Vendor ID of the model; no manufacturer has it.
pub const VENDOR: u16 = 0x4E56;
/// Device ID.
pub const DEVICE: u16 = 0x0001;
/// The BAR with the MSI-X table and pending bits.
pub const MSIX_BAR: u8 = 4;
/// Bytes of that BAR.
pub const MSIX_BAR_LENGTH: u64 = 0x1000;
/// Bytes of configuration space.
pub const LENGTH: usize = 4096;

const POWER: usize = 0x40;
const MSIX: usize = 0x50;
const EXPRESS: usize = 0x60;
const PBA: u32 = 0x800;

/// What a write to configuration space asks for beyond its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Initiate Function Level Reset.
    Reset,
}

/// The bytes, and which bits of them software may change.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; LENGTH]>,
    writable: Box<[u8; LENGTH]>,
    initial: Box<[u8; LENGTH]>,
}

impl ConfigSpace {
    /// Of an NVMe I/O controller with a BAR 0 of `bar0` bytes (a power of two) and so many vectors.
    #[must_use]
    pub fn new(bar0: u64, vectors: u16) -> ConfigSpace {
        let mut bytes = Box::new([0; LENGTH]);
        let mut writable = Box::new([0; LENGTH]);
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(0x00, &VENDOR.to_le_bytes());
        set(0x02, &DEVICE.to_le_bytes());
        // Capabilities list.
        set(0x06, &[0x10, 0]);
        // Revision 1; class 01h, subclass 08h, interface 02h.
        set(0x08, &[0x01, 0x02, 0x08, 0x01]);
        // BAR 0 is a 64-bit memory BAR.
        set(0x10, &[0x04]);
        set(0x2C, &VENDOR.to_le_bytes());
        set(0x2E, &DEVICE.to_le_bytes());
        set(0x34, &[POWER as u8]);
        // Power management, version 3; No_Soft_Reset.
        set(POWER, &[0x01, MSIX as u8, 0x03, 0x00, 0x08]);
        set(MSIX, &[0x11, EXPRESS as u8]);
        set(MSIX + 2, &(vectors - 1).to_le_bytes());
        set(MSIX + 4, &u32::from(MSIX_BAR).to_le_bytes());
        set(MSIX + 8, &(PBA | u32::from(MSIX_BAR)).to_le_bytes());
        // PCI Express endpoint, version 2; role-based errors, function level reset; a link of 8 GT/s, four lanes.
        set(EXPRESS, &[0x10, 0x00, 0x02, 0x00]);
        set(EXPRESS + 4, &(1u32 << 15 | 1 << 28).to_le_bytes());
        set(EXPRESS + 0x0C, &(3u32 | 4 << 4).to_le_bytes());
        set(EXPRESS + 0x12, &(3u16 | 4 << 4).to_le_bytes());
        let mut open = |at: usize, mask: &[u8]| writable[at..at + mask.len()].copy_from_slice(mask);
        open(0x04, &0x0546u16.to_le_bytes());
        open(0x0C, &[0xFF]);
        open(0x10, &(!(bar0 - 1)).to_le_bytes());
        open(0x20, &(!(MSIX_BAR_LENGTH as u32 - 1)).to_le_bytes());
        open(0x3C, &[0xFF]);
        open(POWER + 4, &[0x03]);
        open(MSIX + 3, &[0xC0]);
        open(EXPRESS + 8, &[0xFF, 0x7F]);
        let initial = bytes.clone();
        ConfigSpace { bytes, writable, initial }
    }

    /// As after power on.
    pub fn reset(&mut self) {
        let (command, bars) = ([self.bytes[4], self.bytes[5]], self.bytes[0x10..0x28].to_vec());
        self.bytes.copy_from_slice(&self.initial[..]);
        // Whoever resets a function restores what the system had assigned; the model does that for them.
        self.bytes[4..6].copy_from_slice(&command);
        self.bytes[0x10..0x28].copy_from_slice(&bars);
    }

    /// Reads; beyond the end there are zeros.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        for (i, byte) in into.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + i).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that may be written.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Effect {
        let mut effect = Effect::None;
        for (i, &byte) in from.iter().enumerate() {
            let at = offset + i;
            if at >= LENGTH {
                break;
            }
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
            if at == EXPRESS + 9 && byte & 0x80 != 0 {
                effect = Effect::Reset;
            }
        }
        effect
    }

    /// Command register: Memory Space Enable.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.bytes[4] & 0x02 != 0
    }

    /// Command register: Bus Master Enable.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.bytes[4] & 0x04 != 0
    }

    /// MSI-X Enable.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        self.bytes[MSIX + 3] & 0x80 != 0
    }
}
