//! LOG SENSE: a unit has the pages that its device gives the data of.

use bdev::{CriticalWarnings, Health};
use wire::scsi::log::{self, page};
use wire::scsi::{Cdb, Sense};

use crate::{Environment, ParameterIn, Plan, UnitView};

/// Every page, ascending.
const PAGES: [u8; 4] =
    [page::SUPPORTED, page::TEMPERATURE, page::SOLID_STATE_MEDIA, page::INFORMATIONAL_EXCEPTIONS];

/// The greatest parameter code of a page, when a device in this health has the page.
fn last_parameter(code: u8, health: Option<&Health>) -> Option<u16> {
    match (code, health) {
        (page::SUPPORTED, _) => Some(0),
        (page::TEMPERATURE, Some(health)) => health.temperature_celsius.map(|_| 1),
        (page::SOLID_STATE_MEDIA, Some(health)) => health.used_percent.map(|_| 1),
        (page::INFORMATIONAL_EXCEPTIONS, Some(_)) => Some(0),
        _ => None,
    }
}

pub(crate) fn log_sense(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let (page, subpage) = (cdb.u8_at(2) & 0x3F, cdb.u8_at(3));
    let first = cdb.u16_at(5);
    // PC is ignored: these pages hold lists, and no counters that could have a threshold (SPC-5 §7.3).
    let health = environment.unit.and_then(|unit| unit.device.0.health());
    let Some(last) = last_parameter(page, health.as_ref()) else {
        return Err(Sense::invalid_field_in_cdb(2, Some(5)));
    };
    let all = page == page::SUPPORTED && subpage == page::ALL_SUBPAGES;
    if subpage != 0 && !all {
        return Err(Sense::invalid_field_in_cdb(3, None));
    }
    if first > last {
        // PARAMETER POINTER beyond the last parameter.
        return Err(Sense::invalid_field_in_cdb(5, None));
    }
    let kind = ParameterIn::LogSense { page, subpage, first };
    Ok(Plan::ParameterIn { kind, allocation_length: u32::from(cdb.u16_at(7)) })
}

/// LOG SENSE data. A page that the device has ceased to give the data of is empty.
pub(crate) fn log_data(code: u8, subpage: u8, first: u16, unit: &UnitView, out: &mut [u8]) -> usize {
    let health = unit.device.0.health();
    let known = health.unwrap_or_default();
    match code {
        page::TEMPERATURE => {
            let reference = known.temperature_warning_celsius;
            log::emit_temperature(known.temperature_celsius, reference, first, out)
        }
        page::SOLID_STATE_MEDIA => log::emit_solid_state_media(known.used_percent.unwrap_or(0), first, out),
        page::INFORMATIONAL_EXCEPTIONS => {
            let code = exception(known.critical_warnings);
            log::emit_informational_exceptions(code, known.temperature_celsius, first, out)
        }
        _ => {
            let mut pages = [0; PAGES.len()];
            let mut count = 0;
            for code in PAGES.into_iter().filter(|code| last_parameter(*code, health.as_ref()).is_some()) {
                if let Some(place) = pages.get_mut(count) {
                    *place = code;
                    count += 1;
                }
            }
            log::emit_supported(pages.get(..count).unwrap_or(&pages), subpage == page::ALL_SUBPAGES, out)
        }
    }
}

/// Additional sense code and qualifier of what a device warns of; of several, the worst. Zeros for nothing.
fn exception(warnings: CriticalWarnings) -> (u8, u8) {
    match warnings {
        // FAILURE PREDICTION THRESHOLD EXCEEDED.
        CriticalWarnings { reliability: true, .. } => (0x5D, 0x00),
        // MEDIA FAILURE PREDICTION THRESHOLD EXCEEDED.
        CriticalWarnings { read_only: true, .. } => (0x5D, 0x01),
        // SPARE AREA EXHAUSTION PREDICTION THRESHOLD EXCEEDED.
        CriticalWarnings { spare: true, .. } => (0x5D, 0x03),
        // WARNING - NON-VOLATILE CACHE NOW VOLATILE.
        CriticalWarnings { volatile_backup: true, .. } => (0x0B, 0x06),
        // WARNING - SPECIFIED TEMPERATURE EXCEEDED.
        CriticalWarnings { temperature: true, .. } => (0x0B, 0x01),
        _ => (0, 0),
    }
}

/// What the unit's device warns of, as additional sense code and qualifier.
pub(super) fn informational_exception(unit: &UnitView) -> (u8, u8) {
    unit.device.0.health().map_or((0, 0), |health| exception(health.critical_warnings))
}

#[cfg(test)]
mod tests {
    use wire::scsi::{Sense, SenseKey};

    use super::*;
    use crate::fuzz::{Described, World};

    fn log_from(page: u8, subpage: u8, first: u8, world: &World) -> Result<Vec<u8>, Sense> {
        world.data_in(&[0x4D, 0, 0x40 | page, subpage, 0, 0, first, 1, 0, 0])
    }

    fn with_health(health: Option<Health>) -> World {
        let mut world = World::new();
        world.set_device(Described { health, ..Described::default() });
        world
    }

    #[test]
    fn a_page_is_there_when_the_device_gives_its_data_and_no_other() {
        let some = Health { temperature_celsius: Some(300), ..Health::default() };
        let all = World::described().health;
        let cases: [(Option<Health>, &[u8]); 4] = [
            (None, &[0x00]),
            (Some(Health::default()), &[0x00, 0x2F]),
            (Some(some), &[0x00, 0x0D, 0x2F]),
            (all, &[0x00, 0x0D, 0x11, 0x2F]),
        ];
        for (health, pages) in cases {
            let world = with_health(health);
            assert_eq!(log_from(0, 0, 0, &world).map(|data| data[4..].to_vec()), Ok(pages.to_vec()));
            let with_subpages = log_from(0, 0xFF, 0, &world).expect("page 00h, FFh");
            let mut expected = vec![0, 0, 0, 0xFF];
            expected.extend(pages[1..].iter().flat_map(|page| [*page, 0]));
            assert_eq!(with_subpages[..4], [0x40, 0xFF, 0, expected.len() as u8]);
            assert_eq!(with_subpages[4..], expected);
            for page in 0..0x40 {
                let data = log_from(page, 0, 0, &world);
                match data {
                    Ok(data) => {
                        let (code, subpage, _) = log::parse(&data).expect("a page");
                        assert_eq!((code, subpage), (page, 0));
                        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])) + 4, data.len());
                        assert!(pages.contains(&page), "{page:02x}h");
                        assert_eq!(log_from(page, 1, 0, &world), Err(Sense::invalid_field_in_cdb(3, None)));
                    }
                    Err(sense) => {
                        assert!(!pages.contains(&page), "{page:02x}h");
                        assert_eq!(sense, Sense::invalid_field_in_cdb(2, Some(5)));
                    }
                }
            }
        }
    }

    #[test]
    fn parameters_are_those_of_the_device_from_the_pointer_on() {
        let world = with_health(World::described().health);
        let values = |page, first| {
            let data = log_from(page, 0, first, &world)?;
            let (_, _, parameters) = log::parse(&data).expect("a page");
            Ok(parameters.iter().map(|p| (p.code, p.control, p.value.to_vec())).collect::<Vec<_>>())
        };
        let warm = [(0, 3, vec![0, 37]), (1, 3, vec![0, 70])];
        assert_eq!(values(0x0D, 0), Ok(warm.to_vec()));
        assert_eq!(values(0x0D, 1), Ok(warm[1..].to_vec()));
        assert_eq!(values(0x11, 0), Ok(vec![(1, 3, vec![0, 0, 0, 3])]));
        assert_eq!(values(0x11, 1), values(0x11, 0));
        assert_eq!(values(0x2F, 0), Ok(vec![(0, 3, vec![0, 0, 37, 0])]));
        let beyond = Err(Sense::invalid_field_in_cdb(5, None));
        assert_eq!(
            (values(0x0D, 2), values(0x11, 2), values(0x2F, 1)),
            (beyond.clone(), beyond.clone(), beyond)
        );
        assert_eq!(log_from(0, 0, 1, &world), Err(Sense::invalid_field_in_cdb(5, None)));
    }

    #[test]
    fn what_a_device_warns_of_is_told_in_the_page_and_on_request() {
        type Set = fn(&mut CriticalWarnings);
        let warnings: [(Set, (u8, u8)); 5] = [
            (|w| w.temperature = true, (0x0B, 0x01)),
            (|w| w.volatile_backup = true, (0x0B, 0x06)),
            (|w| w.spare = true, (0x5D, 0x03)),
            (|w| w.read_only = true, (0x5D, 0x01)),
            (|w| w.reliability = true, (0x5D, 0x00)),
        ];
        let mut health = Health::default();
        assert!(!health.critical_warnings.any());
        for (set, (asc, ascq)) in warnings {
            // All that were set before are still there: this one is worse.
            set(&mut health.critical_warnings);
            assert!(health.critical_warnings.any());
            let mut world = with_health(Some(health));
            let data = log_from(0x2F, 0, 0, &world).expect("page 2Fh");
            assert_eq!(data[8..12], [asc, ascq, 0xFF, 0]);
            let ask =
                |world: &World| Sense::parse(&world.data_in(&[0x03, 0, 0, 0, 18, 0]).expect("sense data"));
            assert_eq!(ask(&world), Some(Sense::new(SenseKey::NoSense, asc, ascq)));
            // What is pending goes first, and what the unit's state says.
            world.pending_sense = Some(Sense::new(SenseKey::UnitAttention, 0x29, 0x00));
            assert_eq!(ask(&world), world.pending_sense);
            world.pending_sense = None;
            if let Some(unit) = world.unit.as_mut() {
                unit.state = crate::UnitState::Stopped;
            }
            assert_eq!(ask(&world), Some(Sense::new(SenseKey::NotReady, 0x04, 0x02)));
        }
    }

    #[test]
    fn the_mode_page_says_whether_warnings_are_told() {
        let page =
            |world: &World| world.data_in(&[0x1A, 0x08, 0x1C, 0, 255, 0]).map(|data| data[4..8].to_vec());
        assert_eq!(page(&with_health(None)), Ok(vec![0x1C, 0x0A, 0x08, 0]));
        assert_eq!(page(&with_health(Some(Health::default()))), Ok(vec![0x1C, 0x0A, 0, 6]));
    }
}
