//! Task management codes (RFC 7143 §11.5.1 and §11.6.1, RFC 7144 §4.2) and what they are to the engine.

use scsi::{RequestToken, TaskManagementFunction, TaskManagementResponse};

/// TASK REASSIGN.
pub(super) const TASK_REASSIGN: u8 = 8;
/// The protocol level from which the functions of RFC 7144 may be used (RFC 7144 §7.1.1).
const LEVEL_OF_RFC_7144: u8 = 2;

/// Response codes (RFC 7143 §11.6.1).
pub(super) mod response {
    pub const COMPLETE: u8 = 0;
    pub const TASK_DOES_NOT_EXIST: u8 = 1;
    pub const LUN_DOES_NOT_EXIST: u8 = 2;
    pub const REASSIGN_NOT_SUPPORTED: u8 = 4;
    pub const NOT_SUPPORTED: u8 = 5;
    pub const SUCCEEDED: u8 = 7;
    pub const REJECTED: u8 = 255;
}

/// The engine's name for `code`, or the response code that refuses it.
pub(super) fn function(code: u8, protocol_level: u8) -> Result<TaskManagementFunction, u8> {
    use TaskManagementFunction as F;
    Ok(match code {
        1 => F::AbortTask,
        2 => F::AbortTaskSet,
        3 => F::ClearAca,
        4 => F::ClearTaskSet,
        5 => F::LogicalUnitReset,
        6 => F::TargetWarmReset,
        7 => F::TargetColdReset,
        TASK_REASSIGN => return Err(response::REASSIGN_NOT_SUPPORTED),
        9..=12 if protocol_level < LEVEL_OF_RFC_7144 => return Err(response::NOT_SUPPORTED),
        9 => F::QueryTask,
        10 => F::QueryTaskSet,
        11 => F::ITNexusReset,
        12 => F::QueryAsynchronousEvent,
        _ => return Err(response::NOT_SUPPORTED),
    })
}

/// A token that holds the request's tag and function, so that no table of requests is needed.
pub(super) fn token(tag: u32, code: u8) -> RequestToken {
    RequestToken(u64::from(tag) | (u64::from(code) << 32))
}

/// Tag and function of a token.
pub(super) fn parts(token: RequestToken) -> (u32, u8) {
    ((token.0 & 0xFFFF_FFFF) as u32, ((token.0 >> 32) & 0xFF) as u8)
}

/// The response code for the engine's answer to function `code`.
pub(super) fn response_code(code: u8, answer: TaskManagementResponse) -> u8 {
    match answer {
        TaskManagementResponse::Complete => response::COMPLETE,
        TaskManagementResponse::Succeeded => response::SUCCEEDED,
        // CLEAR ACA is what a target without ACA does not support; all else was refused for a reason.
        TaskManagementResponse::Rejected if code == 3 => response::NOT_SUPPORTED,
        TaskManagementResponse::Rejected | TaskManagementResponse::Failed => response::REJECTED,
        TaskManagementResponse::IncorrectLun => response::LUN_DOES_NOT_EXIST,
        TaskManagementResponse::TaskDoesNotExist => response::TASK_DOES_NOT_EXIST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_rfc_7144_need_their_protocol_level() {
        assert_eq!(function(9, 1), Err(response::NOT_SUPPORTED));
        assert_eq!(function(9, 2), Ok(TaskManagementFunction::QueryTask));
        assert_eq!(function(8, 2), Err(response::REASSIGN_NOT_SUPPORTED));
        assert_eq!(function(0, 2), Err(response::NOT_SUPPORTED));
        assert_eq!(function(13, 2), Err(response::NOT_SUPPORTED));
    }

    #[test]
    fn a_token_keeps_tag_and_function() {
        assert_eq!(parts(token(0xFFFF_FFFE, 12)), (0xFFFF_FFFE, 12));
    }
}
