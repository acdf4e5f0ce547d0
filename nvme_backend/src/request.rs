/// The number of an admin request; comes back with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Which way the data of a command goes, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// To the host: so many bytes, at most [`TRANSFER_BYTES_MAX`].
    In(u32),
    /// To the controller, at most [`TRANSFER_BYTES_MAX`] bytes.
    Out(Vec<u8>),
}

/// The most bytes an admin request carries.
pub const TRANSFER_BYTES_MAX: u32 = 128 * 1024;

/// What can be asked of a controller besides I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRequest {
    /// FORMAT NVM (NVM Command Set 1.0 §4.1.3). Its namespaces are identified anew afterwards.
    Format {
        /// Namespace identifier; `0xFFFF_FFFF` for all.
        nsid: u32,
        /// Index of the LBA format (LBAF), 0 to 63.
        format: u8,
        /// Secure erase settings (SES): 0 none, 1 user data, 2 cryptographic.
        secure_erase: u8,
        /// Protection information type (PI), 0 to 3.
        protection: u8,
        /// Metadata at the end of each extended logical block (MSET).
        extended: bool,
    },
    /// SMART / Health Information; answered by [`AdminAnswer::Health`].
    Health,
    /// A log page as it is; answered by [`AdminAnswer::Data`].
    Log {
        /// Log page identifier.
        page: u8,
        /// Namespace identifier, or `0xFFFF_FFFF`.
        nsid: u32,
        /// Bytes, a multiple of 4.
        length: u32,
    },
    /// IDENTIFY; answered by 4,096 bytes of [`AdminAnswer::Data`].
    Identify {
        /// Controller or Namespace Structure.
        cns: u8,
        /// Namespace identifier.
        nsid: u32,
        /// Command Set Identifier.
        csi: u8,
    },
    /// GET FEATURES; answered by [`AdminAnswer::Done`] with the value.
    GetFeature {
        /// Feature identifier.
        feature: u8,
        /// Namespace identifier, or 0.
        nsid: u32,
        /// Select: 0 current, 1 default, 2 saved, 3 supported capabilities.
        select: u8,
        /// Command dword 11.
        dword11: u32,
        /// Bytes of data to ask for.
        length: u32,
    },
    /// SET FEATURES.
    SetFeature {
        /// Feature identifier.
        feature: u8,
        /// Namespace identifier, or 0.
        nsid: u32,
        /// Keep it over power cycles.
        save: bool,
        /// Command dword 11.
        dword11: u32,
        /// Data, for features that have some.
        data: Vec<u8>,
    },
    /// Identify the namespaces again.
    Rescan,
    /// A command as it is, on the admin queue or on the service thread's I/O queue. The command identifier and the data
    /// pointers are filled in here.
    Passthrough {
        /// An NVM command instead of an admin command.
        io: bool,
        /// The submission queue entry.
        command: [u8; 64],
        /// Its data.
        transfer: Transfer,
    },
}

/// A completed admin request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAnswer {
    /// Done, without data.
    Done {
        /// Dword 0 of the completion.
        dword0: u32,
        /// Dword 1 of the completion.
        dword1: u32,
    },
    /// Done, with data.
    Data {
        /// Dword 0 of the completion.
        dword0: u32,
        /// What the controller sent.
        data: Vec<u8>,
    },
    /// The answer to [`AdminRequest::Health`].
    Health(Box<wire::nvme::HealthLog>),
}

/// Why an admin request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminError {
    /// The controller answered with this status.
    Status(wire::nvme::Status),
    /// It was cut short by a reset, or not answered in time.
    Interrupted,
    /// The controller cannot take it now; the text says why.
    NotReady(String),
    /// The request makes no sense for this controller; the text says why and what to do.
    Invalid(String),
    /// Too many requests are outstanding.
    Busy,
}

impl std::fmt::Display for AdminError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AdminError::Status(status) => write!(f, "the controller answered: {status}"),
            AdminError::Interrupted => f.write_str("a controller reset cut the command short; ask again"),
            AdminError::NotReady(text) | AdminError::Invalid(text) => f.write_str(text),
            AdminError::Busy => f.write_str("too many admin requests are outstanding; ask again later"),
        }
    }
}

impl std::error::Error for AdminError {}
