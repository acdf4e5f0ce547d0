//! Messages of the vfio-user protocol, version 0.1, little endian as it says.

/// Bytes of a header.
pub(super) const HEADER_LENGTH: usize = 16;
/// The longest message with which a server may ask something of us; all are refused, but they must be read to do so.
pub(super) const COMMAND_MAX: usize = (1 << 20) + 64;

/// Commands.
pub(super) mod command {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const DMA_MAP: u16 = 2;
    pub(crate) const DMA_UNMAP: u16 = 3;
    pub(crate) const DEVICE_GET_INFO: u16 = 4;
    pub(crate) const DEVICE_GET_REGION_INFO: u16 = 5;
    pub(crate) const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub(crate) const DEVICE_SET_IRQS: u16 = 8;
    pub(crate) const REGION_READ: u16 = 9;
    pub(crate) const REGION_WRITE: u16 = 10;
    pub(crate) const DEVICE_RESET: u16 = 13;
}

const TYPE: u32 = 0xF;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: u16,
    /// Bytes of the whole message.
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) error: u32,
}

/// What a message is that comes from a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Incoming {
    /// The answer, with so many bytes behind the header.
    Answer(usize),
    /// The answer: it was refused, with an errno.
    Refusal(i32),
    /// The server asks for something, with so many bytes behind the header. `true`: it wants an answer.
    Asked(usize, bool),
}

impl Header {
    /// A command of ours with `length` bytes behind the header.
    pub(super) fn command(id: u16, command: u16, length: usize, answered: bool) -> Header {
        let size = (HEADER_LENGTH + length) as u32;
        Header { id, command, size, flags: if answered { 0 } else { NO_REPLY }, error: 0 }
    }

    /// The answer to a command that we do not know.
    pub(super) fn refusal(&self, error: i32) -> Header {
        let size = HEADER_LENGTH as u32;
        Header { size, flags: REPLY | ERROR, error: error.unsigned_abs(), ..*self }
    }

    pub(super) fn emit(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..2].copy_from_slice(&self.id.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..].copy_from_slice(&self.error.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; HEADER_LENGTH]) -> Header {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        Header { id: half(0), command: half(2), size: word(4), flags: word(8), error: word(12) }
    }

    /// What this header means to somebody who waits for the answer to `sent`, with room for `room` bytes.
    ///
    /// # Errors
    /// A sentence that says how it breaks the protocol.
    pub(super) fn judge(&self, sent: &Header, room: usize) -> Result<Incoming, String> {
        let length = (self.size as usize)
            .checked_sub(HEADER_LENGTH)
            .ok_or_else(|| format!("a message of {} bytes is shorter than its header", self.size))?;
        match self.flags & TYPE {
            0 if self.size as usize <= COMMAND_MAX => Ok(Incoming::Asked(length, self.flags & NO_REPLY == 0)),
            0 => Err(format!("a command of {} bytes", self.size)),
            REPLY if self.id != sent.id || self.command != sent.command => Err(format!(
                "an answer to command {} number {}, where command {} number {} was sent",
                self.command, self.id, sent.command, sent.id
            )),
            // An error comes without data. Its number is the server's word, for a person to read.
            REPLY if self.flags & ERROR != 0 && length == 0 => {
                Ok(Incoming::Refusal(i32::try_from(self.error).unwrap_or(0)))
            }
            REPLY if self.flags & ERROR != 0 => Err(format!("an error with {length} bytes of data")),
            REPLY if length <= room => Ok(Incoming::Answer(length)),
            REPLY => Err(format!("an answer of {length} bytes to command {}, at most {room}", self.command)),
            kind => Err(format!("a message of type {kind}")),
        }
    }
}

/// What both sides can do, from the JSON text of the version message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Descriptors in one message to the server.
    pub(super) descriptors_max: usize,
}

/// Our own capabilities.
pub(super) const OURS: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}\0";
/// The most descriptors that are sent at once, whatever the server can take.
const DESCRIPTORS_MAX: u64 = 16;

/// Reads the server's version message: major, minor, and a text that ends with a zero, or none.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn parse_version(bytes: &[u8]) -> Result<Capabilities, String> {
    let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (Some(major), Some(minor)) = (half(0), half(2)) else {
        return Err(format!("a version message of {} bytes", bytes.len()));
    };
    if major != 0 || minor > 1 {
        return Err(format!("version {major}.{minor} of the protocol, where 0.1 was offered"));
    }
    let text = bytes.get(4..).unwrap_or(&[]);
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    let mut capabilities = Capabilities { descriptors_max: 1 };
    if text.is_empty() {
        return Ok(capabilities);
    }
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| format!("capabilities that are not JSON ({error})"))?;
    if let Some(count) = value["capabilities"]["max_msg_fds"].as_u64() {
        capabilities.descriptors_max = count.clamp(1, DESCRIPTORS_MAX) as usize;
    }
    Ok(capabilities)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Prng;

    #[test]
    fn headers_stand_as_the_protocol_says() {
        let header = Header::command(0x0102, command::REGION_WRITE, 20, false);
        assert_eq!(header.emit(), [2, 1, 10, 0, 36, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Header::parse(&header.emit()), header);
        assert_eq!(Header::command(1, 2, 0, true).flags, 0);
    }

    #[test]
    fn only_the_answer_waited_for_is_an_answer() {
        let sent = Header::command(7, command::REGION_READ, 16, true);
        let reply = |size, flags| Header { size, flags, ..sent }.judge(&sent, 20);
        assert_eq!(reply(36, REPLY), Ok(Incoming::Answer(20)));
        assert_eq!(reply(16, REPLY), Ok(Incoming::Answer(0)));
        assert_eq!(Header { error: 22, ..sent.refusal(22) }.judge(&sent, 20), Ok(Incoming::Refusal(22)));
        assert_eq!(reply(48, 0), Ok(Incoming::Asked(32, true)));
        assert_eq!(reply(16, NO_REPLY), Ok(Incoming::Asked(0, false)));
        for (size, flags) in
            [(37, REPLY), (15, REPLY), (0, 0), (u32::MAX, REPLY), (u32::MAX, 0), (17, REPLY | ERROR), (16, 2)]
        {
            assert!(reply(size, flags).is_err(), "{size} {flags}");
        }
        assert!(Header { id: 8, size: 16, flags: REPLY, ..sent }.judge(&sent, 20).is_err());
        assert!(Header { command: 1, size: 16, flags: REPLY, ..sent }.judge(&sent, 20).is_err());
    }

    #[test]
    fn versions_and_capabilities() {
        let version = |major: u16, minor: u16, text: &str| {
            let mut bytes = [major.to_le_bytes(), minor.to_le_bytes()].concat();
            bytes.extend(text.as_bytes());
            parse_version(&bytes).map(|capabilities| capabilities.descriptors_max)
        };
        assert_eq!(version(0, 0, ""), Ok(1));
        assert_eq!(version(0, 1, "{}\0"), Ok(1));
        assert_eq!(version(0, 1, "{\"capabilities\":{\"max_msg_fds\":8}}\0"), Ok(8));
        assert_eq!(version(0, 1, "{\"capabilities\":{\"max_msg_fds\":99999999}}"), Ok(16));
        assert_eq!(version(0, 1, "{\"capabilities\":{\"max_msg_fds\":0}}\0"), Ok(1));
        assert_eq!(version(0, 1, "{\"capabilities\":[\"max_msg_fds\"]}\0"), Ok(1));
        assert!(version(1, 0, "").is_err() && version(0, 2, "").is_err());
        assert!(version(0, 1, "{\0").is_err() && version(0, 1, "[[[[\0").is_err());
        assert!(parse_version(&[0, 0, 1]).is_err());
        assert!(parse_version(&[&[0, 0, 1, 0][..], &[b'['; 4000]].concat()).is_err());
    }

    #[test]
    fn our_own_capabilities_are_what_a_server_reads() {
        let bytes = [&[0, 0, 1, 0][..], OURS].concat();
        assert_eq!(parse_version(&bytes).unwrap().descriptors_max, 8);
    }

    #[test]
    fn no_header_makes_it_fail() {
        let mut prng = Prng::new(11);
        let sent = Header::command(7, command::REGION_READ, 16, true);
        for _ in 0..100_000 {
            let mut bytes = sent.emit();
            for _ in 0..prng.below(6) {
                bytes[prng.below(16) as usize] = prng.next_u64() as u8;
            }
            let header = Header::parse(&bytes);
            assert_eq!(header.emit(), bytes);
            match header.judge(&sent, 100) {
                Ok(Incoming::Answer(length)) => assert!(length <= 100 && header.id == 7),
                Ok(Incoming::Asked(length, _)) => assert!(length <= COMMAND_MAX),
                Ok(Incoming::Refusal(error)) => assert!(error >= 0),
                Err(text) => assert!(!text.is_empty()),
            }
        }
    }
}
