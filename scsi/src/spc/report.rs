//! REPORT commands and REQUEST SENSE parameter data.

use wire::scsi::{Lun, Sense, SenseKey, Writer, parameter_data};

use crate::command_table::{CommandEntry, Found, commands, find};
use crate::{Environment, UnitState};

/// REQUEST SENSE: the pending sense data, or what would be said of the unit's state, or NO SENSE with what the device
/// warns of (MRIE 6 of the Informational Exceptions Control page), if it does.
pub(crate) fn request_sense_data(descriptor: bool, environment: &Environment<'_>, out: &mut [u8]) -> usize {
    let sense = environment.pending_sense.unwrap_or_else(|| match environment.unit.map(|unit| unit.state) {
        None if environment.lun != Lun::REPORT_LUNS => Sense::new(SenseKey::IllegalRequest, 0x25, 0x00),
        Some(UnitState::Stopped) => Sense::new(SenseKey::NotReady, 0x04, 0x02),
        Some(UnitState::MediumNotPresent) => Sense::new(SenseKey::NotReady, 0x3A, 0x00),
        Some(UnitState::Fenced) => Sense::new(SenseKey::HardwareError, 0x44, 0x00),
        _ => {
            let (asc, ascq) = environment.unit.map_or((0, 0), super::log::informational_exception);
            Sense::new(SenseKey::NoSense, asc, ascq)
        }
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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::fuzz::World;
    use crate::{LogicalUnitId, LunMapping};

    fn operation_codes(option: u8, code: u8, action: u16, world: &World) -> Result<Vec<u8>, Sense> {
        let [high, low] = action.to_be_bytes();
        world.data_in(&[0xA3, 0x0C, option, code, high, low, 0, 0, 0xFF, 0xFF, 0, 0])
    }

    #[test]
    fn the_list_is_the_table() {
        let mut world = World::new();
        for (discard, timeouts) in [(true, false), (true, true), (false, false), (false, true)] {
            if let Some(unit) = world.unit.as_mut() {
                unit.geometry.provisioning.discard = discard;
            }
            let data = operation_codes(if timeouts { 0x80 } else { 0 }, 0, 0, &world).expect("a list");
            assert_eq!(u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize, data.len() - 4);
            let descriptors: Vec<_> = data[4..].chunks(if timeouts { 20 } else { 8 }).collect();
            let expected: Vec<_> =
                commands().iter().filter(|entry| discard || entry.operation_code != 0x42).collect();
            assert_eq!(descriptors.len(), expected.len());
            for (descriptor, entry) in descriptors.iter().zip(expected) {
                let [high, low] = entry.service_action.unwrap_or(0).to_be_bytes();
                let flags = u8::from(entry.service_action.is_some()) | u8::from(timeouts) << 1;
                assert_eq!(
                    descriptor[..8],
                    [entry.operation_code, 0, high, low, 0, flags, 0, entry.cdb_length]
                );
                if timeouts {
                    assert_eq!(descriptor[8..10], [0, 0x0A]);
                }
            }
        }
    }

    #[test]
    fn one_command_says_what_the_table_says() {
        let world = World::new();
        let wrong_option = Err(Sense::invalid_field_in_cdb(2, Some(2)));
        for entry in commands() {
            let action = entry.service_action.unwrap_or(0);
            let (fits, fits_not) = if entry.service_action.is_some() { (2, 1) } else { (1, 2) };
            assert_eq!(operation_codes(fits_not, entry.operation_code, action, &world), wrong_option);
            for option in [fits, 3] {
                let data = operation_codes(option, entry.operation_code, action, &world).expect("an answer");
                assert_eq!(data[..4], [0, 3, 0, entry.cdb_length]);
                assert_eq!(&data[4..], entry.usage);
            }
            let timed =
                operation_codes(0x80 | fits, entry.operation_code, action, &world).expect("an answer");
            assert_eq!(timed.len(), 4 + entry.usage.len() + 12);
            assert_eq!(timed[1], 0x83);
        }
        for unknown in [0x5E, 0x5F, 0x83, 0x9D, 0x16, 0x17, 0x48, 0xFF] {
            assert_eq!(operation_codes(1, unknown, 0, &world), Ok(vec![0, 1, 0, 0]));
            assert_eq!(operation_codes(3, unknown, 0, &world), Ok(vec![0, 1, 0, 0]));
        }
        assert_eq!(operation_codes(2, 0x9E, 0x1F, &world), Ok(vec![0, 1, 0, 0]));
        assert_eq!(operation_codes(3, 0x28, 1, &world), Ok(vec![0, 1, 0, 0]));
        assert_eq!(operation_codes(4, 0x28, 0, &world), wrong_option);
    }

    #[test]
    fn without_discard_usage_data_lacks_the_unmap_bit() {
        let mut world = World::new();
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.provisioning.discard = false;
        }
        assert_eq!(operation_codes(1, 0x93, 0, &world).map(|data| data[5]), Ok(0x01));
        assert_eq!(operation_codes(1, 0x42, 0, &world), Ok(vec![0, 1, 0, 0]));
    }

    #[test]
    fn luns_of_each_selection() {
        let mut world = World::new();
        let mapping = LunMapping { lun: Lun::from_number(300), unit: LogicalUnitId(1), read_only: false };
        world.luns.mappings.push(mapping);
        let luns = |select: u8| {
            let data = world.data_in(&[0xA0, 0, select, 0, 0, 0, 0, 0, 1, 0, 0, 0])?;
            assert_eq!(u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize, data.len() - 8);
            Ok(data[8..].chunks(8).map(|lun| (lun[0], lun[1])).collect::<Vec<_>>())
        };
        let (zero, large, well_known) = ((0, 0), (0x41, 0x2C), (0xC1, 0x01));
        assert_eq!(luns(0), Ok(vec![zero, large]));
        assert_eq!(luns(1), Ok(vec![well_known]));
        assert_eq!(luns(2), Ok(vec![well_known, zero, large]));
        assert_eq!(luns(0x10), Ok(vec![]));
        assert_eq!(luns(0x11), Ok(vec![zero, large]));
        assert_eq!(luns(0x12), Ok(vec![]));
        assert_eq!(luns(3), Err(Sense::invalid_field_in_cdb(2, None)));
    }

    #[test]
    fn request_sense_tells_the_unit_attention_or_the_state() {
        let mut world = World::new();
        let ask = |descriptor: u8, world: &World| {
            let data = world.data_in(&[0x03, descriptor, 0, 0, 252, 0]).expect("sense data");
            assert_eq!(data[0], if descriptor == 0 { 0x70 } else { 0x72 });
            Sense::parse(&data).expect("sense data")
        };
        assert_eq!(ask(0, &world), Sense::new(SenseKey::NoSense, 0, 0));
        let attention = Sense::new(SenseKey::UnitAttention, 0x29, 0x00);
        world.pending_sense = Some(attention);
        assert_eq!(ask(0, &world), attention);
        assert_eq!(ask(1, &world), attention);
        world.pending_sense = None;
        if let Some(unit) = world.unit.as_mut() {
            unit.state = UnitState::Stopped;
        }
        assert_eq!(ask(1, &world), Sense::new(SenseKey::NotReady, 0x04, 0x02));
        world.unit = None;
        world.lun = Lun::from_number(1);
        assert_eq!(ask(0, &world), Sense::new(SenseKey::IllegalRequest, 0x25, 0x00));
    }

    #[test]
    fn task_management_functions() {
        let world = World::new();
        let functions = |extended: u8| world.data_in(&[0xA3, 0x0D, extended, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(functions(0), Ok(vec![0xDE, 0x07, 0, 0]));
        let mut extended = vec![0xDE, 0x07, 0, 0x0C];
        extended.resize(16, 0);
        assert_eq!(functions(0x80), Ok(extended));
    }
}
