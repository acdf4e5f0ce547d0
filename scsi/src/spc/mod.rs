//! Primary commands (SPC-5): from CDB to [`Plan`], and the parameter data of INQUIRY, MODE SENSE, LOG SENSE and
//! the REPORT commands.

mod inquiry;
mod log;
mod mode;
mod report;

use wire::scsi::{Cdb, Sense, SenseKey, Status};

pub(crate) use inquiry::{inquiry_data, vital_product_data};
pub(crate) use log::{log_data, log_sense};
pub(crate) use mode::{ModeSense, mode_select, mode_sense_data};
pub(crate) use report::{
    report_luns_data, request_sense_data, supported_operation_codes_data,
    supported_task_management_functions_data,
};

use crate::{Environment, PageControl, ParameterIn, ParameterOut, Plan};

pub(crate) fn test_unit_ready(_: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    Ok(Plan::Finish(Status::Good))
}

pub(crate) fn request_sense(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    let kind = ParameterIn::RequestSense { descriptor: cdb.u8_at(1) & 0x01 != 0 };
    Ok(Plan::ParameterIn { kind, allocation_length: u32::from(cdb.u8_at(4)) })
}

pub(crate) fn inquiry(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let (vital, page) = (cdb.u8_at(1) & 0x01 != 0, cdb.u8_at(2));
    let kind = match (vital, page) {
        (false, 0) => ParameterIn::Inquiry,
        (true, page) if inquiry::supported(page, environment) => ParameterIn::VitalProductData { page },
        _ => return Err(Sense::invalid_field_in_cdb(2, None)),
    };
    Ok(Plan::ParameterIn { kind, allocation_length: u32::from(cdb.u16_at(3)) })
}

pub(crate) fn mode_select_6(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    mode_select_plan(false, cdb, u32::from(cdb.u8_at(4)))
}

pub(crate) fn mode_select_10(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    mode_select_plan(true, cdb, u32::from(cdb.u16_at(7)))
}

/// The longest parameter list of MODE SELECT: every page, a header and one block descriptor fit many times over.
pub(crate) const MODE_SELECT_LENGTH_MAX: u32 = 4096;

fn mode_select_plan(long: bool, cdb: &Cdb, length: u32) -> Result<Plan, Sense> {
    if cdb.u8_at(1) & 0x10 == 0 {
        // PF zero: the pages would be vendor specific (SPC-5 §6.15).
        return Err(Sense::invalid_field_in_cdb(1, Some(4)));
    }
    if length > MODE_SELECT_LENGTH_MAX {
        return Err(Sense::invalid_field_in_cdb(7, None));
    }
    Ok(Plan::ParameterOut { kind: ParameterOut::ModeSelect { long }, length })
}

pub(crate) fn mode_sense_6(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    mode_sense(false, cdb, environment, u32::from(cdb.u8_at(4)))
}

pub(crate) fn mode_sense_10(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    mode_sense(true, cdb, environment, u32::from(cdb.u16_at(7)))
}

fn mode_sense(
    long: bool,
    cdb: &Cdb,
    environment: &Environment<'_>,
    allocation_length: u32,
) -> Result<Plan, Sense> {
    let control = match cdb.u8_at(2) >> 6 {
        0 => PageControl::Current,
        1 => PageControl::Changeable,
        2 => PageControl::Default,
        // SAVING PARAMETERS NOT SUPPORTED.
        _ => return Err(Sense::new(SenseKey::IllegalRequest, 0x39, 0x00)),
    };
    let (page, subpage) = (cdb.u8_at(2) & 0x3F, cdb.u8_at(3));
    match mode::supported(page, subpage, environment) {
        mode::Supported::Yes => {}
        mode::Supported::NoPage => return Err(Sense::invalid_field_in_cdb(2, Some(5))),
        mode::Supported::NoSubpage => return Err(Sense::invalid_field_in_cdb(3, None)),
    }
    let kind = ParameterIn::ModeSense {
        long,
        disable_block_descriptors: cdb.u8_at(1) & 0x08 != 0,
        long_lba: long && cdb.u8_at(1) & 0x10 != 0,
        control,
        page,
        subpage,
    };
    Ok(Plan::ParameterIn { kind, allocation_length })
}

/// The default self-test: the unit answers, so it passes. Everything else is refused by the usage data.
pub(crate) fn send_diagnostic(_: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    Ok(Plan::Finish(Status::Good))
}

pub(crate) fn report_luns(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    let select = cdb.u8_at(2);
    if !matches!(select, 0x00..=0x02 | 0x10..=0x12) {
        return Err(Sense::invalid_field_in_cdb(2, None));
    }
    Ok(Plan::ParameterIn { kind: ParameterIn::ReportLuns { select }, allocation_length: cdb.u32_at(6) })
}

pub(crate) fn report_supported_operation_codes(
    cdb: &Cdb,
    environment: &Environment<'_>,
) -> Result<Plan, Sense> {
    let option = cdb.u8_at(2) & 0x07;
    let (operation_code, service_action) = (cdb.u8_at(3), cdb.u16_at(4));
    report::check_reporting_option(option, operation_code, environment)?;
    let kind = ParameterIn::SupportedOperationCodes {
        timeouts: cdb.u8_at(2) & 0x80 != 0,
        option,
        operation_code,
        service_action,
    };
    Ok(Plan::ParameterIn { kind, allocation_length: cdb.u32_at(6) })
}

pub(crate) fn report_supported_task_management_functions(
    cdb: &Cdb,
    _: &Environment<'_>,
) -> Result<Plan, Sense> {
    let kind = ParameterIn::SupportedTaskManagementFunctions { extended: cdb.u8_at(2) & 0x80 != 0 };
    Ok(Plan::ParameterIn { kind, allocation_length: cdb.u32_at(6) })
}
