//! REPORT commands, REQUEST SENSE and LOG SENSE parameter data.

use wire::scsi::{Lun, Sense, SenseKey, Writer, parameter_data};

use crate::command_table::{CommandEntry, Found, commands, find};
use crate::{Environment, UnitState};

/// REQUEST SENSE: the pending sense data, or what would be said of the unit's state, or NO SENSE.
pub(crate) fn request_sense_data(descriptor: bool, environment: &Environment<'_>, out: &mut [u8]) -> usize {
    let sense = environment.pending_sense.unwrap_or_else(|| match environment.unit.map(|unit| unit.state) {
        None if environment.lun != Lun::REPORT_LUNS => Sense::new(SenseKey::IllegalRequest, 0x25, 0x00),
        Some(UnitState::Stopped) => Sense::new(SenseKey::NotReady, 0x04, 0x02),
        Some(UnitState::MediumNotPresent) => Sense::new(SenseKey::NotReady, 0x3A, 0x00),
        Some(UnitState::Fenced) => Sense::new(SenseKey::HardwareError, 0x44, 0x00),
        _ => Sense::new(SenseKey::NoSense, 0x00, 0x00),
    });
    sense.emit(descriptor, out)
}

/// REPORT LUNS (SPC-5 §6.27): well-known units for 01h and 02h, ordinary ones for 00h, 02h and 11h. There are no
/// administrative units, so 10h and 12h list nothing.
pub(crate) fn report_luns_data(select: u8, environment: &Environment<'_>, out: &mut [u8]) -> usize {
    let well_known = matches!(select, 0x01 | 0x02).then_some(Lun::REPORT_LUNS);
    let mapped = matches!(select, 0x00 | 0x02 | 0x11).then_some(&environment.luns.mappings);
    let mapped = mapped.into_iter().flatten().map(|mapping| mapping.lun);
    parameter_data::emit_luns(well_known.into_iter().chain(mapped), out)
}

/// Refuses reporting options that do not fit the operation code (SPC-5 §6.29.1): 001b for one with service
/// actions, 010b for one without.
pub(super) fn check_reporting_option(
    option: u8,
    operation_code: u8,
    environment: &Environment<'_>,
) -> Result<(), Sense> {
    let with_actions = match find(operation_code, 0xFFFF) {
        Found::ServiceAction => Some(true),
        Found::Entry(entry) if entry.available(environment) => Some(false),
        _ => None,
    };
    match (option, with_actions) {
        (0b000 | 0b011, _) | (0b001, Some(false) | None) | (0b010, Some(true) | None) => Ok(()),
        _ => Err(Sense::invalid_field_in_cdb(2, Some(2))),
    }
}

/// REPORT SUPPORTED OPERATION CODES data.
pub(crate) fn supported_operation_codes_data(
    option: u8,
    operation_code: u8,
    service_action: u16,
    timeouts: bool,
    environment: &Environment<'_>,
    out: &mut [u8],
) -> usize {
    let mut writer = Writer::new(out);
    if option == 0 {
        writer.u32(0);
        for entry in commands().iter().filter(|entry| entry.available(environment)) {
            parameter_data::emit_command_descriptor(
                &mut writer,
                entry.operation_code,
                entry.service_action,
                entry.cdb_length,
                timeouts,
            );
        }
        let length = writer.length() - 4;
        writer.patch_u32(0, length as u32);
        return writer.length();
    }
    let entry = match find(operation_code, service_action) {
        // 011b asks without knowing whether there are service actions; then there must be none asked for.
        Found::Entry(entry) if option == 0b011 && entry.service_action.is_none() && service_action != 0 => {
            None
        }
        Found::Entry(entry) if entry.available(environment) => Some(entry),
        _ => None,
    };
    match entry {
        Some(entry) => one_command(entry, timeouts, environment, &mut writer),
        // SUPPORT 001b: not supported.
        None => writer.bytes(&[0, 0x01, 0, 0]),
    }
    writer.length()
}

fn one_command(entry: &CommandEntry, timeouts: bool, environment: &Environment<'_>, writer: &mut Writer<'_>) {
    // CTDP; SUPPORT 011b: supported in conformance with a standard.
    writer.bytes(&[0, u8::from(timeouts) << 7 | 0x03]);
    writer.u16(u16::from(entry.cdb_length));
    for index in 0..usize::from(entry.cdb_length) {
        writer.u8(entry.usage_at(index, environment));
    }
    if timeouts {
        parameter_data::emit_command_timeouts(writer);
    }
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: all but CLEAR ACA, WAKEUP and the obsolete ones.
pub(crate) fn supported_task_management_functions_data(extended: bool, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    // ATS ATSS CTSS LURS QTS TRS; QAES QTSS ITNRS.
    writer.bytes(&[0xDE, 0x07, 0x00, if extended { 0x0C } else { 0x00 }]);
    if extended {
        writer.zeros_to(16);
    }
    writer.length()
}

/// LOG SENSE data.
pub(crate) fn log_data(subpage: u8, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    if subpage == 0xFF {
        writer.bytes(&[0x40, 0xFF, 0, 4, 0x00, 0x00, 0x00, 0xFF]);
    } else {
        writer.bytes(&[0x00, 0x00, 0, 1, 0x00]);
    }
    writer.length()
}
