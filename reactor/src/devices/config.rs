//! The header of the configuration space (PCI Local Bus 3.0 §6.1).

use super::{DeviceError, PciIdentity};

/// Offset of the command register.
pub(super) const COMMAND: u16 = 4;
/// Command: the function answers in memory space.
pub(super) const MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function may start transfers.
pub(super) const BUS_MASTER: u16 = 1 << 2;

/// What a function says it is. The vendor 0xFFFF is what an empty slot reads as.
pub(super) fn identity(
    mut read: impl FnMut(u16, &mut [u8]) -> Result<(), DeviceError>,
) -> Result<PciIdentity, DeviceError> {
    let mut header = [0; 64];
    // Word by word: device servers need not know longer accesses.
    for at in (0..64).step_by(4) {
        read(at as u16, &mut header[at..at + 4])?;
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if half(0) == 0xFFFF {
        return Err(DeviceError::Gone);
    }
    Ok(PciIdentity {
        vendor: half(0),
        device: half(2),
        subsystem_vendor: half(0x2C),
        subsystem: half(0x2E),
        class: u32::from_le_bytes([header[9], header[10], header[11], 0]),
        revision: header[8],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_what_it_is() {
        let mut space = [0u8; 64];
        space[..12].copy_from_slice(&[0x36, 0x1B, 0x10, 0x00, 0, 0, 0, 0, 2, 0x02, 0x08, 0x01]);
        space[0x2C..0x30].copy_from_slice(&[0xF4, 0x1A, 0x00, 0x11]);
        let read = |offset: u16, bytes: &mut [u8]| {
            bytes.copy_from_slice(&space[usize::from(offset)..usize::from(offset) + bytes.len()]);
            Ok(())
        };
        let expected = PciIdentity {
            vendor: 0x1B36,
            device: 0x10,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x1100,
            class: 0x01_0802,
            revision: 2,
        };
        assert_eq!(identity(read), Ok(expected));
        let empty = |_: u16, bytes: &mut [u8]| {
            bytes.fill(0xFF);
            Ok(())
        };
        assert_eq!(identity(empty), Err(DeviceError::Gone));
    }
}
