//! A BAR made of mapped windows and of what cannot be mapped.

use std::sync::Arc;

use super::mmio::Mapping;
use super::{Bar, DeviceError};

/// The longest window that is mapped. What lies beyond is reached the slow way; no controller has its doorbells there.
pub(super) const WINDOW_MAX: u64 = 1 << 30;
/// The most windows of one BAR.
pub(super) const WINDOWS_MAX: usize = 16;
const PAGE: u64 = 4096;

/// The way to registers that are not mapped, and what is known about the device.
pub(super) trait Slow: Send + Sync {
    /// Reads registers; at most 4 bytes, aligned.
    fn read(&self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError>;
    /// Writes registers; at most 4 bytes, aligned.
    fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), DeviceError>;
    /// What a read gives once the device is gone.
    fn read_when_gone(&self) -> Result<u64, DeviceError>;
    /// False once the device is known to be gone. One load.
    fn is_present(&self) -> bool;
    /// A mapped register read as all ones or was not there: finds out whether the device is gone.
    fn suspect(&self, faulted: bool);
}

/// A window of a BAR: where it begins in the BAR, and its mapping.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) mapping: Arc<Mapping>,
}

/// Cuts areas that may be mapped to whole pages inside a region of `length` bytes. A region shorter than a page is
/// mapped with the rest of its page when `short_too`.
pub(super) fn pages_of(areas: &[(u64, u64)], length: u64, short_too: bool) -> Vec<(u64, u64)> {
    let mut pages = Vec::new();
    for &(offset, size) in areas.iter().take(WINDOWS_MAX) {
        let Some(end) = offset.checked_add(size) else { continue };
        let start = offset.next_multiple_of(PAGE);
        let mut end = end.min(length);
        if short_too && length < PAGE && end == length {
            end = PAGE;
        }
        let end = end / PAGE * PAGE;
        if start < end {
            pages.push((start, (end - start).min(WINDOW_MAX)));
        }
    }
    pages
}

/// One BAR of one device.
pub(super) struct RegionBar<S> {
    pub(super) region: u32,
    pub(super) length: u64,
    pub(super) windows: Vec<Window>,
    pub(super) slow: Arc<S>,
}

impl<S: Slow> RegionBar<S> {
    /// Bytes of a register, checked: inside and aligned to its width.
    #[inline]
    fn check(&self, offset: u64, width: u64) -> Result<(), DeviceError> {
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.length);
        if inside && offset.is_multiple_of(width) {
            Ok(())
        } else {
            Err(DeviceError::OutOfBar { offset, length: self.length })
        }
    }

    #[inline]
    fn window(&self, offset: u64, width: u64) -> Option<(&Mapping, u64)> {
        self.windows.iter().find_map(|window| {
            let at = offset.checked_sub(window.start)?;
            (at + width <= window.mapping.length()).then_some((&*window.mapping, at))
        })
    }

    /// A mapped read that gave `value`: what it means.
    #[inline]
    fn judge(&self, mapping: &Mapping, value: u64, ones: u64) -> Result<u64, DeviceError> {
        if value == ones || mapping.has_faulted() {
            self.slow.suspect(mapping.has_faulted());
            if !self.slow.is_present() {
                return self.slow.read_when_gone();
            }
        }
        Ok(value)
    }

    fn slow_read(&self, offset: u64) -> Result<u32, DeviceError> {
        let mut bytes = [0; 4];
        match self.slow.read(self.region, offset, &mut bytes) {
            Err(DeviceError::Gone) => self.slow.read_when_gone().map(|ones| ones as u32),
            result => result.map(|()| u32::from_le_bytes(bytes)),
        }
    }

    fn slow_write(&self, offset: u64, value: u32) -> Result<(), DeviceError> {
        match self.slow.write(self.region, offset, &value.to_le_bytes()) {
            Err(DeviceError::Gone) => self.slow.read_when_gone().map(|_| ()),
            result => result,
        }
    }
}

impl<S: Slow> Bar for RegionBar<S> {
    fn length(&self) -> u64 {
        self.length
    }

    fn read32(&self, offset: u64) -> Result<u32, DeviceError> {
        self.check(offset, 4)?;
        if !self.slow.is_present() {
            return self.slow.read_when_gone().map(|ones| ones as u32);
        }
        match self.window(offset, 4) {
            Some((mapping, at)) => {
                let value = mapping.read32(at);
                self.judge(mapping, u64::from(value), u64::from(u32::MAX)).map(|value| value as u32)
            }
            None => self.slow_read(offset),
        }
    }

    #[inline]
    fn write32(&self, offset: u64, value: u32) -> Result<(), DeviceError> {
        self.check(offset, 4)?;
        if !self.slow.is_present() {
            return self.slow.read_when_gone().map(|_| ());
        }
        match self.window(offset, 4) {
            Some((mapping, at)) => {
                mapping.write32(at, value);
                if mapping.has_faulted() {
                    self.slow.suspect(true);
                }
                Ok(())
            }
            None => self.slow_write(offset, value),
        }
    }

    fn read64(&self, offset: u64) -> Result<u64, DeviceError> {
        self.check(offset, 8)?;
        if !self.slow.is_present() {
            return self.slow.read_when_gone();
        }
        match self.window(offset, 8) {
            Some((mapping, at)) => self.judge(mapping, mapping.read64(at), u64::MAX),
            None => {
                let low = self.slow_read(offset)?;
                Ok(u64::from(low) | u64::from(self.slow_read(offset + 4)?) << 32)
            }
        }
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), DeviceError> {
        self.check(offset, 8)?;
        if !self.slow.is_present() {
            return self.slow.read_when_gone().map(|_| ());
        }
        match self.window(offset, 8) {
            Some((mapping, at)) => {
                mapping.write64(at, value);
                if mapping.has_faulted() {
                    self.slow.suspect(true);
                }
                Ok(())
            }
            None => {
                self.slow_write(offset, value as u32)?;
                self.slow_write(offset + 4, (value >> 32) as u32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use rustix::fs::MemfdFlags;

    use super::*;

    #[derive(Default)]
    struct Device {
        registers: Mutex<Vec<(u64, Vec<u8>)>>,
        gone: AtomicBool,
        suspected: AtomicU32,
    }

    impl Slow for Device {
        fn read(&self, _region: u32, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
            if self.gone.load(Ordering::Relaxed) {
                return Err(DeviceError::Gone);
            }
            bytes.copy_from_slice(&(offset as u32 + 1).to_le_bytes());
            Ok(())
        }
        fn write(&self, _region: u32, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
            self.registers.lock().unwrap().push((offset, bytes.to_vec()));
            Ok(())
        }
        fn read_when_gone(&self) -> Result<u64, DeviceError> {
            Ok(u64::MAX)
        }
        fn is_present(&self) -> bool {
            !self.gone.load(Ordering::Relaxed)
        }
        fn suspect(&self, faulted: bool) {
            self.suspected.fetch_add(1, Ordering::Relaxed);
            self.gone.fetch_or(faulted, Ordering::Relaxed);
        }
    }

    fn bar() -> (RegionBar<Device>, std::os::fd::OwnedFd) {
        let file = rustix::fs::memfd_create("bar", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 16384).unwrap();
        let windows = pages_of(&[(0, 4096), (8192, 4096)], 16384, false)
            .into_iter()
            .map(|(start, length)| Window {
                start,
                mapping: Arc::new(Mapping::new(file.as_fd(), start, length).unwrap()),
            })
            .collect();
        (RegionBar { region: 0, length: 16384, windows, slow: Arc::default() }, file)
    }

    #[test]
    fn what_is_not_mapped_goes_the_slow_way() {
        let (bar, _file) = bar();
        bar.write32(8192, 77).unwrap();
        assert_eq!(bar.read32(8192), Ok(77));
        assert_eq!(bar.read32(4096), Ok(4097));
        assert_eq!(bar.read64(4096), Ok(4097 | 4101 << 32));
        bar.write64(12288, 0x0807_0605_0403_0201).unwrap();
        let written = bar.slow.registers.lock().unwrap().clone();
        assert_eq!(written, [(12288, vec![1, 2, 3, 4]), (12292, vec![5, 6, 7, 8])]);
    }

    #[test]
    fn accesses_outside_touch_nothing() {
        let (bar, _file) = bar();
        for offset in [16384, 16382, 2, u64::MAX - 3, u64::MAX] {
            let outside = DeviceError::OutOfBar { offset, length: 16384 };
            assert_eq!(bar.read32(offset), Err(outside.clone()));
            assert_eq!(bar.write32(offset, 1), Err(outside));
        }
        assert!(bar.read64(16380).is_err() && bar.write64(4, 1).is_err());
        assert!(bar.slow.registers.lock().unwrap().is_empty());
    }

    #[test]
    fn a_bar_that_goes_away_reads_as_ones_for_ever() {
        let (bar, file) = bar();
        rustix::fs::ftruncate(&file, 0).unwrap();
        bar.write32(8, 3).unwrap();
        assert!(!bar.slow.is_present());
        assert_eq!(
            (bar.read32(8), bar.read64(8192), bar.read32(4096)),
            (Ok(u32::MAX), Ok(u64::MAX), Ok(u32::MAX))
        );
        bar.write32(4096, 1).unwrap();
        assert!(bar.slow.registers.lock().unwrap().is_empty());
    }

    #[test]
    fn ones_are_suspect_but_may_be_true() {
        let (bar, _file) = bar();
        bar.write32(16, u32::MAX).unwrap();
        assert_eq!(bar.read32(16), Ok(u32::MAX));
        assert_eq!(bar.slow.suspected.load(Ordering::Relaxed), 1);
        assert_eq!(bar.read32(8192), Ok(0));
    }

    #[test]
    fn areas_are_cut_to_whole_pages_inside() {
        assert_eq!(pages_of(&[(0, 16384)], 16384, false), [(0, 16384)]);
        assert_eq!(pages_of(&[(100, 8192)], 16384, false), [(4096, 4096)]);
        assert_eq!(pages_of(&[(4096, u64::MAX - 4096), (0, 1)], 10000, false), [(4096, 4096)]);
        assert_eq!(pages_of(&[(0, 256)], 256, false), []);
        assert_eq!(pages_of(&[(0, 256)], 256, true), [(0, 4096)]);
        assert_eq!(pages_of(&[(u64::MAX - 10, 20)], u64::MAX, false), []);
        assert_eq!(pages_of(&[(0, 4096); 99], 4096, false).len(), WINDOWS_MAX);
        assert_eq!(pages_of(&[(0, 1 << 40)], 1 << 40, false), [(0, WINDOW_MAX)]);
    }
}
