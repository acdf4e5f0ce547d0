//! One connection to a device server. Whatever the server does, a call ends: with the answer, or with the connection.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::super::DeviceError;
use super::message::{HEADER_LENGTH, Header, Incoming};

/// Descriptors that one message may bring; what comes beyond is closed unseen.
const DESCRIPTORS_IN: usize = 8;
/// Descriptors that one message may take.
const DESCRIPTORS_OUT: usize = 16;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server has gone, does not answer in time, or does not keep to the protocol.
    Gone,
    /// The server refused, with an errno.
    Refused(i32),
}

impl Fault {
    /// The error of a driver's call, where `what` was refused.
    pub(super) fn explain(self, name: &str, what: &str) -> DeviceError {
        match self {
            Fault::Gone => DeviceError::Gone,
            Fault::Refused(error) => {
                let error = std::io::Error::from_raw_os_error(error);
                DeviceError::Refused(format!("the device server at {name} refuses {what}: {error}"))
            }
        }
    }
}

/// A connection. Shared by the device, its BARs and the thread that watches for the end.
pub(super) struct Connection {
    name: String,
    socket: UnixStream,
    timeout: Duration,
    /// The next message's identifier. Held while a message is sent, so that messages stay whole.
    sender: Mutex<u16>,
    /// Held by the one who waits for an answer.
    waiting: Mutex<()>,
    gone: AtomicBool,
    /// Readable once it is gone.
    removal: OwnedFd,
}

impl Connection {
    pub(super) fn new(name: String, socket: UnixStream, timeout: Duration) -> rustix::io::Result<Connection> {
        let removal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (sender, waiting) = (Mutex::new(0), Mutex::new(()));
        Ok(Connection { name, socket, timeout, sender, waiting, gone: AtomicBool::new(false), removal })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(super) fn is_present(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn removal(&self) -> &OwnedFd {
        &self.removal
    }

    /// Ends the connection; a reason is logged once, none when the end is ours.
    pub(super) fn lose(&self, reason: Option<&str>) {
        if self.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(reason) = reason {
            tracing::warn!(target: "reactor", device = %self.name, "the device server is lost: {reason}");
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.removal, &1u64.to_ne_bytes());
    }

    fn lost(&self, reason: &str) -> Fault {
        self.lose(Some(reason));
        Fault::Gone
    }

    /// Sends a command that wants no answer.
    pub(super) fn post(&self, command: u16, payload: &[u8]) -> Result<(), Fault> {
        let deadline = Instant::now() + self.timeout;
        self.send(command, payload, &[], false, deadline).map(drop)
    }

    /// Sends a command and waits for its answer, which is put into `answer`: its length, and the first descriptor that
    /// came with it.
    pub(super) fn ask(
        &self,
        command: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
        answer: &mut [u8],
    ) -> Result<(usize, Option<OwnedFd>), Fault> {
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + self.timeout;
        let sent = self.send(command, payload, descriptors, true, deadline)?;
        loop {
            let mut header = [0; HEADER_LENGTH];
            let descriptor = self.receive(&mut header, deadline)?;
            let header = Header::parse(&header);
            match header.judge(&sent, answer.len()).map_err(|text| self.lost(&text))? {
                Incoming::Answer(length) => {
                    // Every message has a descriptor at most with its first byte.
                    drop(self.receive(&mut answer[..length], deadline)?);
                    return Ok((length, descriptor));
                }
                Incoming::Refusal(error) => return Err(Fault::Refused(error)),
                Incoming::Asked(length, answered) => {
                    self.skip(length, deadline)?;
                    if answered {
                        // All memory is given as files that the server maps, so it has nothing to ask for.
                        let refusal = header.refusal(Errno::OPNOTSUPP.raw_os_error()).emit();
                        let _sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
                        self.send_all(&[&refusal], &[], deadline)?;
                    }
                }
            }
        }
    }

    fn send(
        &self,
        command: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
        answered: bool,
        deadline: Instant,
    ) -> Result<Header, Fault> {
        let mut id = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let header = Header::command(*id, command, payload.len(), answered);
        *id = id.wrapping_add(1);
        self.send_all(&[&header.emit(), payload], descriptors, deadline)?;
        Ok(header)
    }

    /// Sends all parts, the descriptors with the first byte. The caller holds `sender`.
    fn send_all(
        &self,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), Fault> {
        debug_assert!(descriptors.len() <= DESCRIPTORS_OUT);
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut sent = 0;
        while sent < total {
            if !self.is_present() {
                return Err(Fault::Gone);
            }
            let mut skip = sent;
            let slices: [IoSlice<'_>; 2] = std::array::from_fn(|part| {
                let part = parts.get(part).copied().unwrap_or(&[]);
                let rest = &part[skip.min(part.len())..];
                skip -= skip.min(part.len());
                IoSlice::new(rest)
            });
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_OUT))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.socket, &slices, &mut ancillary, flags) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline, "does not take messages")?,
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
        Ok(())
    }

    /// Fills `bytes`. The first descriptor that came is kept, all others are closed.
    fn receive(&self, bytes: &mut [u8], deadline: Instant) -> Result<Option<OwnedFd>, Fault> {
        let mut received = 0;
        let mut kept = None;
        while received < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_IN))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes[received..])];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut slices, &mut ancillary, flags) {
                Ok(message) if message.bytes == 0 => return Err(self.lost("it has closed the connection")),
                Ok(message) => {
                    received += message.bytes;
                    for message in ancillary.drain() {
                        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                            for descriptor in descriptors {
                                kept.get_or_insert(descriptor);
                            }
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline, "does not answer")?,
                Err(error) => return Err(self.lost(&error.to_string())),
            }
        }
        Ok(kept)
    }

    /// Reads `length` bytes away.
    fn skip(&self, mut length: usize, deadline: Instant) -> Result<(), Fault> {
        let mut bytes = [0; 4096];
        while length > 0 {
            let part = length.min(bytes.len());
            drop(self.receive(&mut bytes[..part], deadline)?);
            length -= part;
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags, deadline: Instant, what: &str) -> Result<(), Fault> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.lost(&format!("it {what} for {} ms", self.timeout.as_millis())));
        }
        let mut set = [PollFd::from_borrowed_fd(self.socket.as_fd(), flags)];
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut set, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(self.lost(&error.to_string())),
        }
    }

    /// Sleeps until the server closes its end, or `stop` becomes readable. A thread's whole work.
    pub(super) fn watch(&self, stop: &OwnedFd) {
        loop {
            let mut set = [
                PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::RDHUP),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut set, None) {
                Ok(_) if !set[1].revents().is_empty() => return,
                Ok(_) if !set[0].revents().is_empty() => {
                    return self.lose(Some("it has closed the connection"));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return self.lose(Some(&error.to_string())),
            }
        }
    }
}
