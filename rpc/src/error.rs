use jsonrpsee::types::ErrorObjectOwned;
use serde::Serialize;

/// Error numbers as the Linux kernel counts them; SPDK answers their negatives as JSON-RPC error codes.
pub mod errno {
    #![allow(missing_docs)]
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ETIMEDOUT: i32 = 110;
}

/// The error of one call: what goes in the `error` member of the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{message}")]
pub struct RpcError {
    /// JSON-RPC's reserved codes, SPDK's −1 for a method called in the wrong phase, or a negative errno.
    pub code: i32,
    /// For people: what was wrong with what, and what helps.
    pub message: String,
}

impl RpcError {
    /// JSON-RPC 2.0 §5.1.
    pub const PARSE_ERROR: i32 = -32700;
    /// JSON-RPC 2.0 §5.1.
    pub const INVALID_REQUEST: i32 = -32600;
    /// JSON-RPC 2.0 §5.1.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// JSON-RPC 2.0 §5.1.
    pub const INVALID_PARAMS: i32 = -32602;
    /// JSON-RPC 2.0 §5.1.
    pub const INTERNAL: i32 = -32603;
    /// SPDK: the method may not be called in this phase.
    pub const INVALID_STATE: i32 = -1;

    /// An error with any code.
    #[must_use]
    pub fn new(code: i32, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into() }
    }

    /// The text is not JSON, or breaks a limit.
    #[must_use]
    pub fn parse(message: impl Into<String>) -> RpcError {
        RpcError::new(RpcError::PARSE_ERROR, message)
    }

    /// The text is JSON but not a request.
    #[must_use]
    pub fn invalid_request(message: impl Into<String>) -> RpcError {
        RpcError::new(RpcError::INVALID_REQUEST, message)
    }

    /// Parameters are wrong; the message names the method, the parameter and the remedy.
    #[must_use]
    pub fn invalid_params(message: impl Into<String>) -> RpcError {
        RpcError::new(RpcError::INVALID_PARAMS, message)
    }

    /// Something inside went wrong.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> RpcError {
        RpcError::new(RpcError::INTERNAL, message)
    }

    /// Fails with the negative of `number` (see [`errno`]) as SPDK does.
    #[must_use]
    pub fn errno(number: i32, message: impl Into<String>) -> RpcError {
        RpcError::new(-number.abs(), message)
    }
}

impl From<RpcError> for ErrorObjectOwned {
    fn from(error: RpcError) -> ErrorObjectOwned {
        ErrorObjectOwned::owned(error.code, error.message, None::<()>)
    }
}
