//! Parameter data and parameter lists: what is rendered for the initiator, and what is read from it.

use wire::scsi::Sense;

pub use crate::sbc::{
    LBA_STATUS_DESCRIPTORS_MAX, UNMAP_DESCRIPTORS_MAX, lba_status_descriptor, lba_status_header,
    lba_status_length, unmap_check, unmap_count, unmap_descriptor,
};
use crate::{Environment, sbc, spc};

/// Current values of the changeable mode pages. Plain data, copied into each view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModePages {
    /// Caching page WCE.
    pub write_cache_enabled: bool,
    /// Control page D_SENSE.
    pub descriptor_sense: bool,
    /// Control page SWP.
    pub software_write_protect: bool,
    /// Control page TAS.
    pub task_aborted_status: bool,
}

impl ModePages {
    /// Changes what differs between `before` and `after`.
    pub(crate) fn merge(&mut self, before: ModePages, after: ModePages) {
        let merge = |now: &mut bool, before, after| {
            if before != after {
                *now = after;
            }
        };
        merge(&mut self.write_cache_enabled, before.write_cache_enabled, after.write_cache_enabled);
        merge(&mut self.descriptor_sense, before.descriptor_sense, after.descriptor_sense);
        merge(&mut self.software_write_protect, before.software_write_protect, after.software_write_protect);
        merge(&mut self.task_aborted_status, before.task_aborted_status, after.task_aborted_status);
    }
}

/// PAGE CONTROL of MODE SENSE. Saved values do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageControl {
    /// Current values.
    Current,
    /// A one in every bit that can be changed.
    Changeable,
    /// Values after power on.
    Default,
}

/// Parameter data a unit can render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterIn {
    /// REQUEST SENSE.
    RequestSense {
        /// DESC: descriptor format.
        descriptor: bool,
    },
    /// Standard INQUIRY data.
    Inquiry,
    /// A VPD page, which is one the LUN has.
    VitalProductData {
        /// PAGE CODE.
        page: u8,
    },
    /// MODE SENSE.
    ModeSense {
        /// MODE SENSE(10).
        long: bool,
        /// DBD.
        disable_block_descriptors: bool,
        /// LLBAA: the block descriptor may be the long one.
        long_lba: bool,
        /// PC.
        control: PageControl,
        /// PAGE CODE; 3Fh is all.
        page: u8,
        /// SUBPAGE CODE; FFh is all.
        subpage: u8,
    },
    /// LOG SENSE of a page that the unit has.
    LogSense {
        /// PAGE CODE.
        page: u8,
        /// SUBPAGE CODE: 00h, or FFh for all.
        subpage: u8,
        /// PARAMETER POINTER: parameters from this code on.
        first: u16,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// SELECT REPORT.
        select: u8,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    SupportedOperationCodes {
        /// RCTD: with command timeouts descriptors.
        timeouts: bool,
        /// REPORTING OPTIONS, 0 to 3.
        option: u8,
        /// REQUESTED OPERATION CODE.
        operation_code: u8,
        /// REQUESTED SERVICE ACTION.
        service_action: u16,
    },
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    SupportedTaskManagementFunctions {
        /// REPD.
        extended: bool,
    },
    /// READ CAPACITY(10).
    ReadCapacity10,
    /// READ CAPACITY(16).
    ReadCapacity16,
    /// READ DEFECT DATA.
    DefectData {
        /// READ DEFECT DATA(12).
        long: bool,
        /// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT.
        request: u8,
    },
}

impl ParameterIn {
    /// Writes the parameter data to the beginning of `out`, truncated when it does not fit, and zeros behind it.
    /// Returns the full length, whatever the length of `out`; it is 0 when the unit is gone since the plan was
    /// made.
    pub fn render(&self, environment: &Environment<'_>, out: &mut [u8]) -> usize {
        let length = self.write(environment, out);
        if let Some(rest) = out.get_mut(length..) {
            rest.fill(0);
        }
        length
    }

    fn write(&self, environment: &Environment<'_>, out: &mut [u8]) -> usize {
        let unit = environment.unit;
        match *self {
            ParameterIn::RequestSense { descriptor } => spc::request_sense_data(descriptor, environment, out),
            ParameterIn::Inquiry => spc::inquiry_data(environment, out),
            ParameterIn::VitalProductData { page } => spc::vital_product_data(page, environment, out),
            ParameterIn::ModeSense { long, disable_block_descriptors, long_lba, control, page, subpage } => {
                let request =
                    spc::ModeSense { long, disable_block_descriptors, long_lba, control, page, subpage };
                unit.map_or(0, |unit| spc::mode_sense_data(&request, unit, environment, out))
            }
            ParameterIn::LogSense { page, subpage, first } => {
                unit.map_or(0, |unit| spc::log_data(page, subpage, first, unit, out))
            }
            ParameterIn::ReportLuns { select } => spc::report_luns_data(select, environment, out),
            ParameterIn::SupportedOperationCodes { timeouts, option, operation_code, service_action } => {
                spc::supported_operation_codes_data(
                    option,
                    operation_code,
                    service_action,
                    timeouts,
                    environment,
                    out,
                )
            }
            ParameterIn::SupportedTaskManagementFunctions { extended } => {
                spc::supported_task_management_functions_data(extended, out)
            }
            ParameterIn::ReadCapacity10 => unit.map_or(0, |unit| sbc::read_capacity_10_data(unit, out)),
            ParameterIn::ReadCapacity16 => unit.map_or(0, |unit| sbc::read_capacity_16_data(unit, out)),
            ParameterIn::DefectData { long, request } => sbc::read_defect_data(long, request, out),
        }
    }
}

/// Parameter lists a unit takes. UNMAP's is a [`crate::Plan`] of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterOut {
    /// MODE SELECT.
    ModeSelect {
        /// MODE SELECT(10).
        long: bool,
    },
}

impl ParameterOut {
    /// Reads the whole parameter list, of the length that the CDB gave, and says what is to change; `None` when it
    /// changes nothing.
    ///
    /// # Errors
    /// PARAMETER LIST LENGTH ERROR for a truncated list, INVALID FIELD IN PARAMETER LIST with a field pointer.
    pub fn apply(&self, environment: &Environment<'_>, list: &[u8]) -> Result<Option<UnitChange>, Sense> {
        match (*self, environment.unit) {
            (ParameterOut::ModeSelect { long }, Some(unit)) => spc::mode_select(long, unit, list),
            (_, None) => Ok(None),
        }
    }
}

/// A change of a unit's state that its home core makes under a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitChange {
    /// New values of the mode pages; MODE PARAMETERS CHANGED to every other nexus. Only what differs between the two
    /// is changed: another MODE SELECT may have been granted since `before` was looked at.
    ModePages {
        /// The values that the command found.
        before: ModePages,
        /// The values it wants.
        after: ModePages,
    },
    /// START STOP UNIT.
    StartStop {
        /// START bit.
        start: bool,
        /// LOEJ bit.
        load_eject: bool,
        /// The cache is written to the medium before the answer: NO_FLUSH is zero, and the unit stops.
        flush: bool,
    },
    /// PREVENT ALLOW MEDIUM REMOVAL of the asking nexus.
    PreventRemoval(bool),
}
