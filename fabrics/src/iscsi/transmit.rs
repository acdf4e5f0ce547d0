//! Sending: PDUs wait as *items* (a burst, a response), become *segments* (one PDU with its header bytes) in a
//! bounded ring when the stream takes more, and go out with one vectored send. Headers are numbered when they
//! enter the ring, so StatSN and the command window are those of the moment.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use base::{DataBuf, Key, Slab};
use scsi::{CommandStatus, PortEvent};
use wire::iscsi::digest::{self, DIGEST_LENGTH};
use wire::iscsi::{BHS_LENGTH, Bhs, Pdu, R2t};

use super::data_in::{self, DataInItem};
use super::exchange::Exchange;
use super::session::Session;
use super::tables::Tables;
use crate::ByteStream;

/// PDUs of one connection that are built and not yet taken by the stream.
const RING_MAX: usize = 128;
/// Pieces of one send: header, payload, padding with digest of each PDU.
const SLICES_MAX: usize = 3 * RING_MAX;
/// Bytes that stand right behind a header: sense data, a rejected header.
pub(super) const INLINE_MAX: usize = 64;
const HEAD_MAX: usize = BHS_LENGTH + DIGEST_LENGTH + INLINE_MAX + DIGEST_LENGTH;

/// Data of a control PDU.
#[derive(Debug)]
pub(super) enum ItemData {
    None,
    /// From the pool; its length is the segment's.
    Buffer(DataBuf),
    /// Text and login replies: not the data path.
    Heap(Vec<u8>),
    Inline([u8; INLINE_MAX], usize),
}

/// What to do when the last byte of a PDU was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    None,
    /// The end of a Data-In burst at this offset.
    Burst(u32),
    /// Status of the exchange.
    Status,
    /// The connection ends.
    Close,
}

/// Something to send.
#[derive(Debug)]
pub(super) enum Item {
    DataIn(DataInItem),
    Response { exchange: Key, status: CommandStatus },
    R2t { exchange: Key, pdu: R2t },
    Control { pdu: Pdu, data: ItemData, notice: Notice },
}

#[derive(Debug)]
enum SegmentData {
    None,
    Buffer(DataBuf),
    Heap(Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Segment {
    head: [u8; HEAD_MAX],
    head_length: usize,
    data: SegmentData,
    tail: [u8; 3 + DIGEST_LENGTH],
    tail_length: usize,
    exchange: Option<Key>,
    notice: Notice,
    /// Counts as heavy, see [`Transmitter::heavy`].
    heavy: bool,
    /// Carries a StatSN of its own.
    numbered: bool,
}

impl Segment {
    fn data(&self) -> &[u8] {
        match &self.data {
            SegmentData::None => &[],
            SegmentData::Buffer(data) => data,
            SegmentData::Heap(data) => data,
        }
    }

    /// The target transfer tag, if this is an R2T.
    fn r2t_tag(&self) -> Option<u32> {
        let tag = u32::from_be_bytes(std::array::from_fn(|i| self.head[20 + i]));
        (self.head[0] & wire::iscsi::opcode::MASK == wire::iscsi::opcode::R2T).then_some(tag)
    }

    /// Lowers the StatSN of a PDU that is not sent yet. Data-In without status has none.
    fn lower_stat_sn(&mut self, by: u32, header_digest: bool) {
        let data_in = self.head[0] & wire::iscsi::opcode::MASK == wire::iscsi::opcode::DATA_IN;
        if by == 0 || (data_in && !self.numbered) {
            return;
        }
        let stat_sn = u32::from_be_bytes(std::array::from_fn(|i| self.head[24 + i])).wrapping_sub(by);
        self.head[24..28].copy_from_slice(&stat_sn.to_be_bytes());
        let login = self.head[0] & wire::iscsi::opcode::MASK == wire::iscsi::opcode::LOGIN_RESPONSE;
        if header_digest && !login {
            let value = digest::to_wire(digest::crc32c_of(&self.head[..BHS_LENGTH]));
            self.head[BHS_LENGTH..BHS_LENGTH + DIGEST_LENGTH].copy_from_slice(&value);
        }
    }

    fn length(&self) -> usize {
        self.head_length + self.data().len() + self.tail_length
    }
}

/// The sending half of a connection.
#[derive(Debug)]
pub(super) struct Transmitter {
    items: VecDeque<Item>,
    ring: VecDeque<Segment>,
    /// Bytes of the first segment that were taken.
    front_sent: usize,
    /// The next StatSN.
    pub stat_sn: u32,
    pub header_digest: bool,
    pub data_digest: bool,
    /// MaxRecvDataSegmentLength of the initiator.
    pub segment_length_max: u32,
    pub burst_length_max: u32,
    /// The stream said `WouldBlock`: wait until it is writable.
    pub blocked: bool,
    /// Control PDUs with large data (echoes, text) that were not taken yet.
    heavy: usize,
    /// Bytes the stream took, ever.
    pub taken: u64,
}

/// What one flush came to.
pub(super) enum Flushed {
    /// All is sent, or the stream takes no more now.
    Quiet,
    /// The PDU after which the connection ends was taken.
    Close,
    /// The stream is broken.
    Broken,
}

impl Transmitter {
    pub fn new() -> Transmitter {
        Transmitter {
            items: VecDeque::with_capacity(8),
            ring: VecDeque::with_capacity(2),
            front_sent: 0,
            stat_sn: 0,
            header_digest: false,
            data_digest: false,
            segment_length_max: 8192,
            burst_length_max: 262_144,
            blocked: false,
            heavy: 0,
            taken: 0,
        }
    }

    /// Reserves all memory that full feature phase needs: nothing is allocated per PDU afterwards.
    pub fn reserve(&mut self, queue_depth: u32) {
        let items = (queue_depth as usize).min(4096) * 2 + RING_MAX;
        self.items.reserve(items.saturating_sub(self.items.len()));
        self.ring.reserve(RING_MAX.saturating_sub(self.ring.len()));
    }

    /// Nothing is waiting.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.ring.is_empty()
    }

    /// Items waiting to become PDUs.
    pub fn backlog(&self) -> usize {
        self.items.len()
    }

    /// Control PDUs with data of their own that wait. They hold memory that no command window bounds.
    pub fn heavy(&self) -> usize {
        self.heavy
    }

    pub fn push(&mut self, item: Item) {
        if let Item::Control { data: ItemData::Buffer(_) | ItemData::Heap(_), .. } = &item {
            self.heavy += 1;
        }
        self.items.push_back(item);
    }

    /// Drops everything that waits.
    pub fn clear(&mut self) {
        self.items.clear();
        self.ring.clear();
        self.front_sent = 0;
        self.heavy = 0;
    }

    /// Takes back what was not sent for `exchange`, except a PDU that is partly out. Gives each R2T tag taken back to
    /// `unsent`. Returns PDUs taken out of the ring.
    pub fn cancel(&mut self, exchange: Key, mut unsent: impl FnMut(u32)) -> u32 {
        self.items.retain(|item| match item {
            Item::DataIn(data) => data.exchange != exchange,
            Item::Response { exchange: of, .. } => *of != exchange,
            Item::R2t { exchange: of, pdu } => {
                if *of == exchange {
                    unsent(pdu.target_transfer_tag);
                }
                *of != exchange
            }
            Item::Control { .. } => true,
        });
        let mut first = self.front_sent > 0;
        let before = self.ring.len();
        // Status that is taken back leaves no hole: what follows moves up by its StatSN (RFC 7143 §4.2.2.2).
        let mut unnumbered = 0u32;
        let header_digest = self.header_digest;
        self.ring.retain_mut(|segment| {
            let keep = std::mem::take(&mut first) || segment.exchange != Some(exchange);
            if keep {
                segment.lower_stat_sn(unnumbered, header_digest);
            } else {
                unnumbered += u32::from(segment.numbered);
                if let Some(tag) = segment.r2t_tag() {
                    unsent(tag);
                }
            }
            keep
        });
        self.stat_sn = self.stat_sn.wrapping_sub(unnumbered);
        u32::try_from(before - self.ring.len()).unwrap_or(u32::MAX)
    }

    /// Takes back the R2Ts of `exchange` that were not sent. Returns PDUs taken out of the ring.
    pub fn cancel_r2ts(&mut self, exchange: Key, mut unsent: impl FnMut(u32)) -> u32 {
        self.items.retain(|item| match item {
            Item::R2t { exchange: of, pdu } if *of == exchange => {
                unsent(pdu.target_transfer_tag);
                false
            }
            _ => true,
        });
        let mut first = self.front_sent > 0;
        let before = self.ring.len();
        self.ring.retain(|segment| {
            let keep = std::mem::take(&mut first)
                || segment.exchange != Some(exchange)
                || segment.r2t_tag().is_none();
            if !keep && let Some(tag) = segment.r2t_tag() {
                unsent(tag);
            }
            keep
        });
        u32::try_from(before - self.ring.len()).unwrap_or(u32::MAX)
    }

    /// Fills the ring from the waiting items.
    fn build(&mut self, session: Option<Key>, tables: &mut Tables) {
        while self.ring.len() < RING_MAX {
            let Some(item) = self.items.pop_front() else { return };
            let (exp, max) = match session.and_then(|key| tables.sessions.get_mut(key)) {
                Some(session) => session.window(),
                None => (0, 0),
            };
            match item {
                Item::Control { mut pdu, data, notice } => {
                    let in_session = session.is_some();
                    let numbered = self.number(&mut pdu, in_session, exp, max);
                    self.put(&pdu, data, None, notice, numbered);
                }
                Item::R2t { exchange, mut pdu } => {
                    (pdu.stat_sn, pdu.exp_cmd_sn, pdu.max_cmd_sn) = (self.stat_sn, exp, max);
                    if let Some(of) = tables.exchanges.get_mut(exchange) {
                        of.in_ring += 1;
                        self.put(&Pdu::R2t(pdu), ItemData::None, Some(exchange), Notice::None, false);
                    }
                }
                Item::Response { exchange, status } => self.build_response(exchange, &status, tables),
                Item::DataIn(data) => self.build_data_in(data, tables),
            }
        }
    }

    fn build_response(&mut self, key: Key, status: &CommandStatus, tables: &mut Tables) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        exchange.in_ring += 1;
        let (exp, max) = uncount(exchange, &mut tables.sessions);
        let (mut response, inline, length) = data_in::response(exchange, status);
        (response.stat_sn, response.exp_cmd_sn, response.max_cmd_sn) = (self.stat_sn, exp, max);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        self.put(
            &Pdu::ScsiResponse(response),
            ItemData::Inline(inline, length),
            Some(key),
            Notice::Status,
            true,
        );
    }

    fn build_data_in(&mut self, mut item: DataInItem, tables: &mut Tables) {
        let Some(exchange) = tables.exchanges.get_mut(item.exchange) else { return };
        let limit = self.segment_length_max.min(self.burst_length_max).max(512);
        let Some((mut pdu, data, notice)) = item.next(exchange, limit, self.burst_length_max) else { return };
        exchange.in_ring += 1;
        let numbered = pdu.status.is_some();
        let (exp, max) = if numbered {
            uncount(exchange, &mut tables.sessions)
        } else {
            tables.sessions.get_mut(exchange.session).map_or((0, 0), Session::window)
        };
        (pdu.exp_cmd_sn, pdu.max_cmd_sn) = (exp, max);
        if numbered {
            pdu.stat_sn = self.stat_sn;
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        let key = item.exchange;
        if !item.is_done() {
            self.items.push_front(Item::DataIn(item));
        }
        self.put(&Pdu::DataIn(pdu), ItemData::Buffer(data), Some(key), notice, numbered);
    }

    /// Fills in StatSN, ExpCmdSN and MaxCmdSN; true when the PDU advanced StatSN.
    fn number(&mut self, pdu: &mut Pdu, in_session: bool, exp: u32, max: u32) -> bool {
        let stat_sn = self.stat_sn;
        let mut advances = true;
        match pdu {
            Pdu::NopIn(p) => {
                // A ping of ours carries the next StatSN without using it up (RFC 7143 §11.19.2).
                advances = p.initiator_task_tag != wire::iscsi::RESERVED_TAG;
                (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max);
            }
            Pdu::TaskManagementResponse(p) => (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max),
            Pdu::TextResponse(p) => (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max),
            Pdu::LogoutResponse(p) => (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max),
            Pdu::AsyncMessage(p) => (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max),
            Pdu::Reject(p) => (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max),
            Pdu::ScsiResponse(p) => (p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn) = (stat_sn, exp, max),
            Pdu::LoginResponse(p) => {
                p.stat_sn = stat_sn;
                if in_session {
                    (p.exp_cmd_sn, p.max_cmd_sn) = (exp, max);
                }
            }
            _ => advances = false,
        }
        if advances {
            self.stat_sn = stat_sn.wrapping_add(1);
        }
        advances
    }

    /// Lays one PDU out and puts it into the ring.
    fn put(&mut self, pdu: &Pdu, data: ItemData, exchange: Option<Key>, notice: Notice, numbered: bool) {
        let mut bhs: Bhs = [0; BHS_LENGTH];
        pdu.emit(&mut bhs);
        let mut segment = Segment {
            head: [0; HEAD_MAX],
            head_length: BHS_LENGTH,
            data: SegmentData::None,
            tail: [0; 3 + DIGEST_LENGTH],
            tail_length: 0,
            exchange,
            notice,
            heavy: exchange.is_none() && matches!(data, ItemData::Buffer(_) | ItemData::Heap(_)),
            numbered,
        };
        // Login PDUs never carry digests (RFC 7143 §13.1).
        let login = matches!(pdu, Pdu::LoginResponse(_));
        let (header_digest, data_digest) = (self.header_digest && !login, self.data_digest && !login);
        segment.head[..BHS_LENGTH].copy_from_slice(&bhs);
        if header_digest {
            let value = digest::to_wire(digest::crc32c_of(&bhs));
            segment.head[BHS_LENGTH..BHS_LENGTH + DIGEST_LENGTH].copy_from_slice(&value);
            segment.head_length += DIGEST_LENGTH;
        }
        match data {
            ItemData::None => {}
            ItemData::Inline(bytes, length) if length > 0 => {
                let length = length.min(INLINE_MAX);
                let start = segment.head_length;
                let padded = length.next_multiple_of(4);
                segment.head[start..start + length].copy_from_slice(&bytes[..length]);
                segment.head_length += padded;
                if data_digest {
                    let value = digest::to_wire(digest::crc32c_of(&segment.head[start..start + padded]));
                    segment.head[start + padded..start + padded + DIGEST_LENGTH].copy_from_slice(&value);
                    segment.head_length += DIGEST_LENGTH;
                }
            }
            ItemData::Inline(..) => {}
            ItemData::Buffer(data) => segment.data = SegmentData::Buffer(data),
            ItemData::Heap(data) => segment.data = SegmentData::Heap(data),
        }
        let length = segment.data().len();
        if length > 0 {
            let padding = length.wrapping_neg() % 4;
            segment.tail_length = padding;
            if data_digest {
                let value = digest::to_wire(digest::crc32c(&[segment.data(), &[0u8; 3][..padding]]));
                segment.tail[padding..padding + DIGEST_LENGTH].copy_from_slice(&value);
                segment.tail_length += DIGEST_LENGTH;
            }
        }
        self.ring.push_back(segment);
    }

    /// Sends until nothing is left or the stream takes no more. `done` hears of each PDU that was taken.
    pub fn flush<S: ByteStream>(
        &mut self,
        stream: &mut S,
        session: Option<Key>,
        tables: &mut Tables,
        finished: &mut Vec<(Option<Key>, Notice)>,
    ) -> Flushed {
        while !self.blocked {
            self.build(session, tables);
            if self.ring.is_empty() {
                return Flushed::Quiet;
            }
            let sent = match self.send_ring(stream) {
                Ok(0) => return Flushed::Broken,
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Flushed::Quiet;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Flushed::Broken,
            };
            if self.take_sent(sent, finished) {
                return Flushed::Close;
            }
        }
        Flushed::Quiet
    }

    fn send_ring<S: ByteStream>(&self, stream: &mut S) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut skip = self.front_sent;
        for segment in &self.ring {
            let parts =
                [&segment.head[..segment.head_length], segment.data(), &segment.tail[..segment.tail_length]];
            for part in parts {
                let cut = skip.min(part.len());
                skip -= cut;
                let part = &part[cut..];
                if !part.is_empty()
                    && let Some(slice) = slices.get_mut(count)
                {
                    *slice = IoSlice::new(part);
                    count += 1;
                }
            }
        }
        stream.send(&slices[..count])
    }

    fn take_sent(&mut self, sent: usize, finished: &mut Vec<(Option<Key>, Notice)>) -> bool {
        self.taken = self.taken.wrapping_add(sent as u64);
        let mut rest = self.front_sent.saturating_add(sent);
        let mut close = false;
        while let Some(front) = self.ring.front() {
            let length = front.length();
            if rest < length {
                break;
            }
            rest -= length;
            if let Some(segment) = self.ring.pop_front() {
                close |= segment.notice == Notice::Close;
                self.heavy -= usize::from(segment.heavy);
                finished.push((segment.exchange, segment.notice));
            }
        }
        self.front_sent = rest;
        close
    }
}

/// Gives the command's place in the window back: its status is on the way.
fn uncount(exchange: &mut Exchange, sessions: &mut Slab<Session>) -> (u32, u32) {
    let Some(session) = sessions.get_mut(exchange.session) else { return (0, 0) };
    if std::mem::take(&mut exchange.counted) {
        let count =
            if exchange.immediate { &mut session.immediate_outstanding } else { &mut session.outstanding };
        *count = count.saturating_sub(1);
    }
    session.window()
}

/// The event for a PDU of `exchange` that was taken, if there is one.
pub(super) fn event_of(exchange: &Exchange, notice: Notice) -> Option<PortEvent> {
    let task = exchange.task?;
    match notice {
        Notice::Burst(offset) if !exchange.terminating => Some(PortEvent::DataInDelivered { task, offset }),
        Notice::Status if exchange.terminating => Some(PortEvent::DataTransferTerminated { task }),
        Notice::Status => Some(PortEvent::Delivered { task }),
        _ => None,
    }
}
