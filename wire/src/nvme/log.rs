//! Log pages (NVMe Base 2.0 §5.16.1) and asynchronous events (§5.2).

use super::field::{u8_at, u16_at, u32_at, u64_at, u128_at};

/// Log page identifiers.
pub mod page {
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const HEALTH: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
}

/// SMART / Health Information (NVMe Base 2.0 §5.16.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HealthLog {
    /// Critical Warning: bit 0 spare, 1 temperature, 2 reliability, 3 read only, 4 volatile memory backup.
    pub critical_warning: u8,
    /// Composite temperature in kelvins.
    pub temperature_kelvin: u16,
    /// Available Spare, percent.
    pub available_spare: u8,
    /// Available Spare Threshold, percent.
    pub available_spare_threshold: u8,
    /// Percentage Used; may exceed 100.
    pub percentage_used: u8,
    /// Data Units Read, in thousands of 512 bytes.
    pub data_units_read: u128,
    /// Data Units Written, in thousands of 512 bytes.
    pub data_units_written: u128,
    /// Host Read Commands.
    pub host_read_commands: u128,
    /// Host Write Commands.
    pub host_write_commands: u128,
    /// Controller Busy Time, minutes.
    pub controller_busy_minutes: u128,
    /// Power Cycles.
    pub power_cycles: u128,
    /// Power On Hours.
    pub power_on_hours: u128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: u128,
    /// Media and Data Integrity Errors.
    pub media_errors: u128,
    /// Number of Error Information Log Entries.
    pub error_log_entries: u128,
    /// Warning Composite Temperature Time, minutes.
    pub warning_temperature_minutes: u32,
    /// Critical Composite Temperature Time, minutes.
    pub critical_temperature_minutes: u32,
    /// Temperature sensors 1 to 8 in kelvins; 0: not there.
    pub temperature_sensors_kelvin: [u16; 8],
}

impl HealthLog {
    /// Bytes of the page.
    pub const LENGTH: usize = 512;

    /// Takes the page apart; `None` when it is shorter than [`HealthLog::LENGTH`].
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<HealthLog> {
        let data = data.get(..HealthLog::LENGTH)?;
        Some(HealthLog {
            critical_warning: u8_at(data, 0),
            temperature_kelvin: u16_at(data, 1),
            available_spare: u8_at(data, 3),
            available_spare_threshold: u8_at(data, 4),
            percentage_used: u8_at(data, 5),
            data_units_read: u128_at(data, 32),
            data_units_written: u128_at(data, 48),
            host_read_commands: u128_at(data, 64),
            host_write_commands: u128_at(data, 80),
            controller_busy_minutes: u128_at(data, 96),
            power_cycles: u128_at(data, 112),
            power_on_hours: u128_at(data, 128),
            unsafe_shutdowns: u128_at(data, 144),
            media_errors: u128_at(data, 160),
            error_log_entries: u128_at(data, 176),
            warning_temperature_minutes: u32_at(data, 192),
            critical_temperature_minutes: u32_at(data, 196),
            temperature_sensors_kelvin: std::array::from_fn(|sensor| u16_at(data, 200 + 2 * sensor)),
        })
    }
}

/// One entry of Error Information (NVMe Base 2.0 §5.16.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorLogEntry {
    /// Error Count: unique for the life of the controller; 0 for no entry.
    pub count: u64,
    /// Submission Queue ID.
    pub submission_queue: u16,
    /// Command ID.
    pub command: u16,
    /// Status Field without the phase tag.
    pub status: u16,
    /// First logical block in error.
    pub lba: u64,
    /// Namespace.
    pub nsid: u32,
}

impl ErrorLogEntry {
    /// Bytes of an entry.
    pub const LENGTH: usize = 64;

    /// The entries of the page `data`, newest first; empty ones are left out.
    pub fn parse_all(data: &[u8]) -> impl Iterator<Item = ErrorLogEntry> {
        data.as_chunks::<64>()
            .0
            .iter()
            .map(|entry| ErrorLogEntry::parse(entry))
            .filter(|entry| entry.count != 0)
    }

    fn parse(data: &[u8]) -> ErrorLogEntry {
        ErrorLogEntry {
            count: u64_at(data, 0),
            submission_queue: u16_at(data, 8),
            command: u16_at(data, 10),
            status: u16_at(data, 12) >> 1,
            lba: u64_at(data, 16),
            nsid: u32_at(data, 24),
        }
    }
}

/// Changed Namespace List (NVMe Base 2.0 §5.16.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangedNamespaces {
    /// Each of so many entries of the list; 0 when nothing changed.
    Listed(u16),
    /// More than the list has room for: look at all.
    All,
}

impl ChangedNamespaces {
    /// What the page says.
    #[must_use]
    pub fn parse(data: &[u8]) -> ChangedNamespaces {
        if u32_at(data, 0) == super::NSID_ALL {
            return ChangedNamespaces::All;
        }
        let entries = data.as_chunks::<4>().0.iter().take(1024).take_while(|entry| **entry != [0; 4]).count();
        ChangedNamespaces::Listed(entries as u16)
    }
}

/// What an Asynchronous Event Request completed with (NVMe Base 2.0 §5.2.1, dword 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsynchronousEvent {
    /// Error status, with its information code; the log page to read.
    Error(u8),
    /// SMART / Health status, with its information code.
    Health(u8),
    /// Namespace Attribute Changed.
    NamespacesChanged,
    /// Firmware Activation Starting.
    FirmwareActivation,
    /// Another notice or another type; the code as it came.
    Other {
        /// Asynchronous Event Type.
        kind: u8,
        /// Asynchronous Event Information.
        information: u8,
    },
}

impl AsynchronousEvent {
    /// Persistent Internal Error, the information code of an error that a reset may end.
    pub const PERSISTENT_INTERNAL_ERROR: u8 = 3;

    /// The event, and the log page that must be read before another of its type comes.
    #[must_use]
    pub fn parse(dword0: u32) -> (AsynchronousEvent, u8) {
        let (kind, information, page) = (dword0 as u8 & 7, (dword0 >> 8) as u8, (dword0 >> 16) as u8);
        let event = match (kind, information) {
            (0, _) => AsynchronousEvent::Error(information),
            (1, _) => AsynchronousEvent::Health(information),
            (2, 0) => AsynchronousEvent::NamespacesChanged,
            (2, 1) => AsynchronousEvent::FirmwareActivation,
            _ => AsynchronousEvent::Other { kind, information },
        };
        (event, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_the_health_page() {
        let mut data = [0u8; 512];
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = index as u8;
        }
        let log = HealthLog::parse(&data).unwrap();
        assert_eq!((log.critical_warning, log.temperature_kelvin, log.percentage_used), (0, 0x0201, 5));
        assert_eq!(log.data_units_read.to_le_bytes()[..2], [32, 33]);
        assert_eq!(log.error_log_entries.to_le_bytes()[0], 176);
        assert_eq!(
            (log.warning_temperature_minutes as u8, log.temperature_sensors_kelvin[7] as u8),
            (192, 214)
        );
        assert_eq!(HealthLog::parse(&data[..511]), None);
    }

    #[test]
    fn error_entries_without_a_count_are_left_out() {
        let mut data = [0u8; 128];
        data[64] = 9;
        data[76] = 0x03;
        data[77] = 0x05;
        data[80] = 7;
        data[88] = 1;
        let entries: Vec<_> = ErrorLogEntry::parse_all(&data).collect();
        let expected = ErrorLogEntry { count: 9, status: 0x281, lba: 7, nsid: 1, ..ErrorLogEntry::default() };
        assert_eq!(entries, [expected]);
    }

    #[test]
    fn events() {
        assert_eq!(AsynchronousEvent::parse(0x0004_0002), (AsynchronousEvent::NamespacesChanged, 4));
        assert_eq!(AsynchronousEvent::parse(0x0002_0101), (AsynchronousEvent::Health(1), 2));
        assert_eq!(AsynchronousEvent::parse(0x0001_0300), (AsynchronousEvent::Error(3), 1));
        let other = AsynchronousEvent::Other { kind: 7, information: 9 };
        assert_eq!(AsynchronousEvent::parse(0x00C0_0907), (other, 0xC0));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_fail(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = HealthLog::parse(&data);
            prop_assert!(ErrorLogEntry::parse_all(&data).count() <= data.len() / 64);
            if let ChangedNamespaces::Listed(count) = ChangedNamespaces::parse(&data) {
                prop_assert!(usize::from(count) <= (data.len() / 4).min(1024));
            }
        }
    }
}
