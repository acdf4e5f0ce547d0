//! What a device's error means to an initiator.

use bdev::BlockError;
use wire::scsi::{Sense, SenseKey};

use crate::message::{Change, MediumChange, Message};
use crate::target::TicketHolder;
use crate::{Effect, LogicalUnitId, Notification, Target, UnitState};

/// What the device was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The sense data for `error`; `lba` is the first block of the request.
pub(crate) fn sense(error: BlockError, access: Access, lba: u64) -> Sense {
    let code = match access {
        // UNRECOVERED READ ERROR, WRITE ERROR.
        Access::Read => (0x11, 0x00),
        Access::Write => (0x0C, 0x00),
    };
    let (key, (asc, ascq), information) = match error {
        BlockError::Medium { lba: bad } => (SenseKey::MediumError, code, Some(bad.unwrap_or(lba))),
        // The capacity shrank under the command: LOGICAL BLOCK ADDRESS OUT OF RANGE.
        BlockError::OutOfRange => (SenseKey::IllegalRequest, (0x21, 0x00), Some(lba)),
        // SPACE ALLOCATION FAILED WRITE PROTECT.
        BlockError::OutOfSpace => (SenseKey::DataProtect, (0x27, 0x07), None),
        BlockError::ReadOnly => (SenseKey::DataProtect, (0x27, 0x00), None),
        // INVALID COMMAND OPERATION CODE.
        BlockError::Unsupported => (SenseKey::IllegalRequest, (0x20, 0x00), None),
        // MEDIUM NOT PRESENT.
        BlockError::Gone => (SenseKey::NotReady, (0x3A, 0x00), None),
        // LOGICAL UNIT IS IN PROCESS OF BECOMING READY.
        BlockError::NotReady => (SenseKey::NotReady, (0x04, 0x01), None),
        // COMMAND TIMEOUT DURING PROCESSING.
        BlockError::Cancelled | BlockError::Timeout => (SenseKey::AbortedCommand, (0x2E, 0x02), None),
        BlockError::FlushFailed => (SenseKey::MediumError, (0x0C, 0x00), None),
        // MISCOMPARE DURING VERIFY OPERATION.
        BlockError::Miscompare => (SenseKey::Miscompare, (0x1D, 0x00), None),
        // LOGICAL BLOCK GUARD CHECK FAILED.
        BlockError::Protection { lba: bad } => (SenseKey::AbortedCommand, (0x10, 0x01), bad.or(Some(lba))),
        // INTERNAL TARGET FAILURE.
        BlockError::Internal | BlockError::System(_) => (SenseKey::HardwareError, (0x44, 0x00), None),
    };
    Sense { information, ..Sense::new(key, asc, ascq) }
}

impl Target {
    /// Tells the control plane of errors that a person should know about, and the home core that a device is gone.
    pub(super) fn notify_error(&mut self, unit: LogicalUnitId, error: BlockError) {
        let notification = match error {
            BlockError::FlushFailed => Notification::FlushFailed { unit },
            BlockError::Medium { .. } | BlockError::Protection { .. } | BlockError::Internal => {
                Notification::MediumError { unit }
            }
            BlockError::Gone => return self.device_lost(unit),
            _ => return,
        };
        self.effects.push_back(Effect::Notify(notification));
    }

    /// The unit has no medium from now on, on every core; the first request that fails asks for that.
    fn device_lost(&mut self, unit: LogicalUnitId) {
        let Some(found) = self.unit_mut(unit) else { return };
        if !matches!(found.view.state, UnitState::Ready | UnitState::Stopped)
            || std::mem::replace(&mut found.lost, true)
        {
            return;
        }
        let (home, epoch) = (found.home_core, found.view.epoch);
        let ticket = self.ticket(TicketHolder::Nobody);
        let change = Change::Medium(MediumChange::Lost { epoch });
        self.send(home, Message::ChangeRequested { unit, ticket, change, origin: None });
    }
}
