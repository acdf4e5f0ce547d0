//! A blocking driver for the sans-IO initiator.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use initiator::{Command, Config, Event, Session};
use wire::iscsi::LogoutReason;
use wire::scsi::{Lun, Status};

use super::{PATIENCE, cdb};

/// Code of CLEAR TASK SET (RFC 7143 §11.5.1).
pub const CLEAR_TASK_SET: u8 = 4;
/// Code of LOGICAL UNIT RESET.
pub const LOGICAL_UNIT_RESET: u8 = 5;

/// The whole name of the initiator called `name`.
pub fn name(name: &str) -> String {
    format!("iqn.2026-01.io.pollux:host-{name}")
}

/// A normal session of the initiator called `host` with the tests' target.
pub fn config(host: &str, isid: u8) -> Config {
    Config { isid: [0x80, 0, 0, 0, 0, isid], ..Config::normal(&name(host), super::TARGET) }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    pub status: Status,
    pub sense: Vec<u8>,
    pub data: Vec<u8>,
}

impl Done {
    /// Sense key, ASC and ASCQ of fixed format sense data (SPC-4 §4.5.3); zeros without sense.
    pub fn sense(&self) -> (u8, u8, u8) {
        let byte = |at: usize| self.sense.get(at).copied().unwrap_or(0);
        (byte(2) & 0x0F, byte(12), byte(13))
    }

    /// A unit attention's ASC and ASCQ.
    pub fn unit_attention(&self) -> Option<(u8, u8)> {
        let (key, asc, ascq) = self.sense();
        (self.status == Status::CheckCondition && key == 6).then_some((asc, ascq))
    }

    pub fn expect_good(self) -> Vec<u8> {
        assert_eq!(self.status, Status::Good, "sense {:02x?}", self.sense());
        self.data
    }
}

/// One session on one TCP connection. Whatever is unexpected panics.
pub struct Initiator {
    pub session: Session,
    stream: TcpStream,
    begin: Instant,
    output: Vec<u8>,
    /// Bytes of `output` that are in the socket already.
    sent: usize,
    chunk: Vec<u8>,
    done: BTreeMap<u32, Done>,
    order: Vec<u32>,
    managed: BTreeMap<u32, u8>,
    aborted: Vec<u32>,
    logged_in: bool,
    logged_out: bool,
}

impl Initiator {
    /// Connects and logs in, but leaves unit attentions pending.
    pub fn login_bare(address: SocketAddr, config: Config) -> Initiator {
        let mut this = Initiator::begin(address, config);
        this.drive("login", |this| this.logged_in);
        this
    }

    /// Connects, logs in, and takes the unit attention a new nexus begins with.
    pub fn login(address: SocketAddr, config: Config) -> Initiator {
        let mut this = Initiator::login_bare(address, config);
        this.clear_unit_attentions();
        this
    }

    /// Connects and begins the login, without waiting for anything.
    pub fn begin(address: SocketAddr, config: Config) -> Initiator {
        let stream = TcpStream::connect(address).expect("the portal accepts");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a read timeout");
        stream.set_write_timeout(Some(Duration::from_millis(5))).expect("a write timeout");
        let mut session = Session::new(config);
        session.start(base::Instant::ZERO);
        Initiator {
            session,
            stream,
            begin: Instant::now(),
            output: Vec::new(),
            sent: 0,
            chunk: vec![0; 512 * 1024],
            done: BTreeMap::new(),
            order: Vec::new(),
            managed: BTreeMap::new(),
            aborted: Vec::new(),
            logged_in: false,
            logged_out: false,
        }
    }

    /// Sends what there is to send, takes what has come (waiting a few milliseconds for it). False when the peer has
    /// closed the connection.
    pub fn pump(&mut self) -> bool {
        if !self.send() {
            return false;
        }
        let open = match self.stream.read(&mut self.chunk) {
            Ok(0) => false,
            Ok(length) => {
                let elapsed = u64::try_from(self.begin.elapsed().as_nanos()).expect("centuries");
                let now = base::Instant::from_nanos(elapsed);
                self.session.handle_bytes(now, self.chunk.get(..length).expect("what was read"));
                true
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => true,
                ErrorKind::ConnectionReset => false,
                _ => panic!("{error}"),
            },
        };
        while let Some(event) = self.session.poll_event() {
            self.take(event);
        }
        open
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::LoggedIn { .. } => self.logged_in = true,
            Event::CommandDone { tag, response, status, sense, data, .. } => {
                assert_eq!(response, 0, "iSCSI response of command {tag}");
                self.order.push(tag);
                let twice = self.done.insert(tag, Done { status, sense, data });
                assert!(twice.is_none(), "command {tag} ended twice");
            }
            Event::CommandAborted { tag } => self.aborted.push(tag),
            Event::TaskManagementDone { tag, response } => {
                self.managed.insert(tag, response);
            }
            Event::LoggedOut { .. } => self.logged_out = true,
            Event::NopReceived { .. } | Event::NopDone { .. } | Event::AsyncMessage { .. } => {}
            other => panic!("unexpected: {other:?}"),
        }
    }

    /// Pumps until `finished`.
    pub fn drive(&mut self, what: &str, finished: impl Fn(&Initiator) -> bool) {
        let start = Instant::now();
        while !finished(self) {
            let open = self.pump();
            assert!(open || finished(self), "the target closed the connection during {what}");
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        }
    }

    pub fn is_logged_in(&self) -> bool {
        self.logged_in
    }

    /// Sends a command without waiting for it.
    pub fn submit(&mut self, command: Command) -> u32 {
        let tag = self.session.submit(command);
        self.send();
        tag
    }

    /// Puts into the socket what fits. Never waits for all of it: a target that wants its answers taken first must
    /// not meet a host that only sends. False when the peer has closed the connection.
    fn send(&mut self) -> bool {
        self.session.poll_bytes(&mut self.output);
        while self.sent < self.output.len() {
            match self.stream.write(self.output.get(self.sent..).expect("it is not all sent")) {
                Ok(length) => self.sent += length,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => return true,
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return false,
                    _ => panic!("{error}"),
                },
            }
        }
        self.output.clear();
        self.sent = 0;
        true
    }

    pub fn is_done(&self, tag: u32) -> bool {
        self.done.contains_key(&tag)
    }

    /// Waits for a command.
    pub fn wait(&mut self, tag: u32) -> Done {
        self.drive("a command", |this| this.is_done(tag));
        self.done.remove(&tag).expect("it is done")
    }

    /// Sends a command and waits for it.
    pub fn run(&mut self, command: Command) -> Done {
        let tag = self.submit(command);
        self.wait(tag)
    }

    pub fn test_unit_ready(&mut self) -> Done {
        self.run(Command::new(Lun::ZERO, &cdb::TEST_UNIT_READY))
    }

    /// Takes unit attentions until the unit is ready; returns them.
    pub fn clear_unit_attentions(&mut self) -> Vec<(u8, u8)> {
        let mut seen = Vec::new();
        loop {
            let done = self.test_unit_ready();
            match done.unit_attention() {
                Some(attention) => seen.push(attention),
                None => {
                    done.expect_good();
                    return seen;
                }
            }
            assert!(seen.len() < 32, "unit attentions without end: {seen:02x?}");
        }
    }

    pub fn read(&mut self, lba: u32, blocks: u16) -> Vec<u8> {
        self.run(read(lba, blocks)).expect_good()
    }

    pub fn write(&mut self, lba: u32, data: Vec<u8>) {
        self.run(write(lba, data)).expect_good();
    }

    /// Sends a task management function without waiting for it.
    pub fn manage(&mut self, function: u8, referenced: Option<u32>) -> u32 {
        let tag = self.session.task_management(function, Lun::ZERO, referenced);
        self.send();
        tag
    }

    /// Waits for a task management function, which must succeed.
    pub fn wait_managed(&mut self, tag: u32) {
        self.drive("task management", |this| this.managed.contains_key(&tag));
        assert_eq!(self.managed.remove(&tag), Some(0), "response of the task management function");
    }

    /// Commands that task management took away, as the session says.
    pub fn take_aborted(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.aborted)
    }

    /// Commands that ended, in that order, since the last call.
    pub fn take_order(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.order)
    }

    /// Nothing was answered but what was asked for since.
    pub fn assert_nothing_done(&self) {
        assert!(self.done.is_empty(), "answers nobody expects: {:?}", self.done);
    }

    pub fn logout(mut self) {
        self.session.logout(LogoutReason::CloseSession);
        self.drive("logout", |this| this.logged_out);
    }
}

/// READ(10) of blocks of 512 bytes.
pub fn read(lba: u32, blocks: u16) -> Command {
    Command::read(Lun::ZERO, &cdb::read(lba, blocks), u32::from(blocks) * 512)
}

/// WRITE(10) of blocks of 512 bytes.
pub fn write(lba: u32, data: Vec<u8>) -> Command {
    let blocks = u16::try_from(data.len() / 512).expect("a length WRITE(10) can say");
    Command::write(Lun::ZERO, &cdb::write(lba, blocks), data)
}
