//! Taking PDUs off a stream, without copying payload.
//!
//! Two ways, chosen before each receive. With a **slot** (a pool buffer) one system call takes as much as there
//! is, and PDUs are parsed in place; immediate data leaves the slot as a handle of its own. **Header first** takes
//! exactly the rest of the PDU at hand and the next header, so that solicited and large payloads land where they
//! belong. In both, one vectored receive covers: the rest of the payload, its padding and digest, the next header,
//! and the slot if there is one. A slot is filled to its half only, so that the last PDU in it fits entirely.

use std::io::{self, IoSliceMut};

use base::{BufferPool, DataBuf, Key};
use wire::iscsi::digest::{self, DIGEST_LENGTH};
use wire::iscsi::{AHS_MAX, BHS_LENGTH, Bhs, Pdu, lengths, opcode};

use crate::ByteStream;

/// Bytes of a slot; the smaller size is taken when the pool has no large one.
const SLOT_LENGTHS: [u32; 2] = [256 * 1024, 64 * 1024];
/// Payloads from this length on are not worth a slot: they are received straight into a buffer of their own.
const DIRECT_LENGTH: usize = 16 * 1024;
/// Header, additional headers, header digest.
const HEAD_MAX: usize = BHS_LENGTH + AHS_MAX + DIGEST_LENGTH;
/// Padding and data digest.
const TAIL_MAX: usize = 3 + DIGEST_LENGTH;

/// Where the payload of the PDU at hand goes.
#[derive(Debug)]
pub(super) enum Place {
    /// Into this buffer from its start; its length is the payload's.
    Own(DataBuf),
    /// Into a buffer of an exchange, from `start` on.
    Lent {
        /// The buffer, on loan from the exchange.
        data: DataBuf,
        /// Where the payload begins in it.
        start: usize,
    },
    /// Nowhere.
    Discard,
}

/// What becomes of the PDU at hand once its payload is there; decided when its header was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Carry it out.
    Accept,
    /// As if it had not come.
    Ignore,
    /// Answer with a Reject.
    Reject(wire::iscsi::RejectReason),
    /// There was no memory for its payload.
    Starved,
    /// A Data-Out PDU for this exchange; the offset says which burst, `None` the unsolicited data.
    Data(Key, Option<u32>),
}

/// A PDU whose header is complete.
#[derive(Debug)]
pub(super) struct Incoming {
    pub bhs: Bhs,
    pub pdu: Option<Pdu>,
    pub verdict: Verdict,
    pub place: Place,
    /// Payload bytes, without padding.
    pub length: usize,
    /// False when the data digest did not match.
    pub intact: bool,
}

#[derive(Debug)]
struct Payload {
    incoming: Incoming,
    filled: usize,
    tail: [u8; TAIL_MAX],
    tail_length: usize,
    tail_filled: usize,
}

impl Payload {
    fn rest(&self) -> usize {
        self.incoming.length - self.filled
    }
}

/// What [`Receiver::advance`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// More bytes are needed.
    Starved,
    /// A header is complete: look at it, then call [`Receiver::begin`].
    Head,
    /// The PDU is complete: call [`Receiver::take`].
    Whole,
    /// The header digest is wrong: the stream has lost its framing.
    HeaderDigest,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    head: Box<[u8; HEAD_MAX]>,
    head_filled: usize,
    head_length: usize,
    payload: Option<Payload>,
    slot: Option<DataBuf>,
    /// Bytes the slot had when it was new.
    slot_length: usize,
    /// Received bytes at the front of the slot that are not parsed yet.
    available: usize,
    /// The buffer given out last was cut from the slot.
    cut: bool,
    /// How large payloads of late were.
    hint: usize,
    header_digest: bool,
    data_digest: bool,
    /// Payload bytes that had to be copied.
    pub copied: u64,
}

impl Receiver {
    pub fn new() -> Receiver {
        Receiver {
            head: Box::new([0; HEAD_MAX]),
            head_filled: 0,
            head_length: BHS_LENGTH,
            payload: None,
            slot: None,
            slot_length: 0,
            available: 0,
            cut: false,
            hint: 0,
            header_digest: false,
            data_digest: false,
            copied: 0,
        }
    }

    /// Gives every buffer back: the connection is over.
    pub fn clear(&mut self) {
        self.payload = None;
        self.slot = None;
        self.available = 0;
        self.head_filled = 0;
        self.head_length = self.head_length_least();
    }

    /// Sets the digests that PDUs carry from the next one on.
    pub fn set_digests(&mut self, header: bool, data: bool) {
        self.header_digest = header;
        self.data_digest = data;
        self.head_length = self.head_length_least();
    }

    fn head_length_least(&self) -> usize {
        BHS_LENGTH + if self.header_digest { DIGEST_LENGTH } else { 0 }
    }

    /// Gives the slot back when nothing in it is waiting to be parsed and, unless `force`, nothing in it is lent.
    pub fn release_slot(&mut self, force: bool) {
        if self.available == 0 && self.slot.as_ref().is_some_and(|slot| force || slot.is_sole()) {
            self.slot = None;
        }
    }

    /// Payload of the PDU in progress was to go to exchange `key`: throw it away instead.
    pub fn divert(&mut self, key: Key) {
        if let Some(payload) = &mut self.payload
            && matches!(payload.incoming.verdict, Verdict::Data(of, _) if of == key)
        {
            payload.incoming.place = Place::Discard;
            payload.incoming.verdict = Verdict::Ignore;
        }
    }

    /// The exchange whose buffer is being filled.
    pub fn filling(&self) -> Option<Key> {
        match self.payload.as_ref()?.incoming.verdict {
            Verdict::Data(key, _) => Some(key),
            _ => None,
        }
    }

    /// The complete header.
    pub fn bhs(&self) -> Bhs {
        let mut bhs = [0; BHS_LENGTH];
        bhs.copy_from_slice(&self.head[..BHS_LENGTH]);
        bhs
    }

    /// The operation code of the header that is coming, once its basic header segment is there.
    pub fn opcode(&self) -> Option<u8> {
        let there = self.payload.is_none() && self.head_filled >= BHS_LENGTH;
        there.then(|| self.head[0] & opcode::MASK)
    }

    /// The additional header segments of the complete header.
    pub fn ahs(&self) -> &[u8] {
        let digest = if self.header_digest { DIGEST_LENGTH } else { 0 };
        self.head.get(BHS_LENGTH..self.head_length - digest).unwrap_or(&[])
    }

    /// Moves on with the bytes that are there.
    pub fn advance(&mut self) -> Advance {
        if self.payload.is_some() {
            return self.advance_payload();
        }
        loop {
            if self.head_filled < self.head_length {
                let wanted = (self.head_length - self.head_filled).min(self.available);
                if wanted == 0 {
                    return Advance::Starved;
                }
                let Some(slot) = &mut self.slot else { return Advance::Starved };
                let front = slot.split_to(wanted);
                self.head[self.head_filled..self.head_filled + wanted].copy_from_slice(&front);
                self.head_filled += wanted;
                self.available -= wanted;
            }
            if self.head_filled < self.head_length {
                return Advance::Starved;
            }
            let digest = if self.header_digest { DIGEST_LENGTH } else { 0 };
            let length = BHS_LENGTH + lengths(&self.bhs()).ahs + digest;
            if self.head_length != length {
                self.head_length = length;
                continue;
            }
            if self.header_digest && !self.header_digest_matches() {
                return Advance::HeaderDigest;
            }
            return Advance::Head;
        }
    }

    fn header_digest_matches(&self) -> bool {
        let at = self.head_length - DIGEST_LENGTH;
        let mut bytes = [0; DIGEST_LENGTH];
        bytes.copy_from_slice(&self.head[at..self.head_length]);
        digest::from_wire(bytes) == digest::crc32c_of(&self.head[..at])
    }

    /// A buffer for `length` bytes of payload that follow the complete header: the place in the slot where they
    /// stand or will stand, else a buffer from the pool.
    pub fn own_place(&mut self, pool: &BufferPool, length: usize) -> Option<DataBuf> {
        if let Some(data) = self.slot_place(length) {
            return Some(data);
        }
        self.cut = false;
        pool.acquire(u32::try_from(length).ok()?)
    }

    /// The place in the slot where `length` bytes of payload that follow the complete header stand or will stand.
    /// `None` without a slot, or when they are better received elsewhere.
    pub fn slot_place(&mut self, length: usize) -> Option<DataBuf> {
        self.hint = length.max(self.hint - self.hint / 8);
        let worth = self.available > 0 || length < DIRECT_LENGTH;
        let slot = self.slot.as_mut().filter(|slot| length <= slot.len() && worth)?;
        self.cut = true;
        Some(slot.split_to(length))
    }

    /// Begins with the payload of the header that was looked at (or ends the PDU when it has none).
    pub fn begin(&mut self, incoming: Incoming) {
        let mut filled = 0;
        if incoming.length == 0 {
            self.hint -= self.hint / 8;
        }
        if matches!(incoming.place, Place::Own(_)) && std::mem::take(&mut self.cut) {
            filled = incoming.length.min(self.available);
            self.available -= filled;
        }
        let padding = if incoming.length == 0 { 0 } else { incoming.length.wrapping_neg() % 4 };
        let digest = if self.data_digest && incoming.length > 0 { DIGEST_LENGTH } else { 0 };
        self.head_filled = 0;
        self.head_length = self.head_length_least();
        self.payload = Some(Payload {
            incoming,
            filled,
            tail: [0; TAIL_MAX],
            tail_length: padding + digest,
            tail_filled: 0,
        });
    }

    fn advance_payload(&mut self) -> Advance {
        let Some(payload) = &mut self.payload else { return Advance::Starved };
        let wanted = payload.rest().min(self.available);
        if wanted > 0
            && let Some(slot) = &mut self.slot
        {
            let front = slot.split_to(wanted);
            self.available -= wanted;
            let filled = payload.filled;
            let into = match &mut payload.incoming.place {
                Place::Own(data) => data.get_mut(filled..filled + wanted),
                Place::Lent { data, start } => data.get_mut(*start + filled..*start + filled + wanted),
                Place::Discard => None,
            };
            if let Some(into) = into {
                into.copy_from_slice(&front);
                self.copied = self.copied.saturating_add(wanted as u64);
                // More of the same will come: do not take it into a slot.
                self.hint = self.hint.max(4 * DIRECT_LENGTH);
            }
            payload.filled += wanted;
        }
        if payload.rest() > 0 {
            return Advance::Starved;
        }
        let wanted = (payload.tail_length - payload.tail_filled).min(self.available);
        if wanted > 0
            && let Some(slot) = &mut self.slot
        {
            let front = slot.split_to(wanted);
            self.available -= wanted;
            payload.tail[payload.tail_filled..payload.tail_filled + wanted].copy_from_slice(&front);
            payload.tail_filled += wanted;
        }
        if payload.tail_filled < payload.tail_length {
            return Advance::Starved;
        }
        Advance::Whole
    }

    /// The complete PDU.
    pub fn take(&mut self) -> Option<Incoming> {
        let payload = self.payload.take()?;
        let mut incoming = payload.incoming;
        incoming.intact = true;
        if self.data_digest && incoming.length > 0 {
            let bytes: &[u8] = match &incoming.place {
                Place::Own(data) => data,
                Place::Lent { data, start } => data.get(*start..*start + incoming.length).unwrap_or(&[]),
                // Nobody will look at it.
                Place::Discard => return Some(incoming),
            };
            let padding = payload.tail_length - DIGEST_LENGTH;
            let mut expected = [0; DIGEST_LENGTH];
            expected.copy_from_slice(&payload.tail[padding..payload.tail_length]);
            incoming.intact =
                digest::from_wire(expected) == digest::crc32c(&[bytes, &payload.tail[..padding]]);
        }
        Some(incoming)
    }

    /// One receive. `slot`: whether a slot may be used; `scratch` takes what nobody wants.
    ///
    /// # Errors
    /// The stream's.
    pub fn receive<S: ByteStream>(
        &mut self,
        stream: &mut S,
        pool: &BufferPool,
        slot: bool,
        scratch: &mut [u8],
    ) -> io::Result<usize> {
        let with_slot = slot && self.hint < DIRECT_LENGTH;
        if with_slot {
            self.refresh_slot(pool);
        } else {
            self.release_slot(true);
        }
        let mut parts: [IoSliceMut<'_>; 4] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut limits = [0usize; 4];
        let mut follow = true;
        if let Some(payload) = &mut self.payload {
            let rest = payload.rest();
            let filled = payload.filled;
            let into: &mut [u8] = match &mut payload.incoming.place {
                Place::Own(data) => data.get_mut(filled..filled + rest).unwrap_or(&mut []),
                Place::Lent { data, start } => {
                    data.get_mut(*start + filled..*start + filled + rest).unwrap_or(&mut [])
                }
                Place::Discard => {
                    let part = rest.min(scratch.len());
                    follow = part == rest;
                    &mut scratch[..part]
                }
            };
            limits[0] = into.len();
            parts[0] = IoSliceMut::new(into);
            if follow {
                let tail = &mut payload.tail[payload.tail_filled..payload.tail_length];
                limits[1] = tail.len();
                parts[1] = IoSliceMut::new(tail);
            }
        }
        if follow {
            let head = &mut self.head[self.head_filled..self.head_length];
            limits[2] = head.len();
            parts[2] = IoSliceMut::new(head);
            if with_slot && let Some(slot) = &mut self.slot {
                let window = slot.len().saturating_sub(self.slot_length / 2);
                limits[3] = window;
                parts[3] = IoSliceMut::new(&mut slot[..window]);
            }
        }
        let first = limits.iter().position(|&limit| limit > 0).unwrap_or(2);
        let last = limits.iter().rposition(|&limit| limit > 0).unwrap_or(2);
        let count = stream.receive(&mut parts[first..=last])?;
        self.distribute(count, limits);
        Ok(count)
    }

    fn distribute(&mut self, count: usize, limits: [usize; 4]) {
        let mut rest = count;
        let mut next = |limit: usize| {
            let part = rest.min(limit);
            rest -= part;
            part
        };
        let (payload, tail, head, slot) =
            (next(limits[0]), next(limits[1]), next(limits[2]), next(limits[3]));
        if let Some(current) = &mut self.payload {
            current.filled += payload;
            current.tail_filled += tail;
        }
        self.head_filled += head;
        self.available += slot;
    }

    /// Takes a new slot when there is none, or when the one there is nearly used up.
    fn refresh_slot(&mut self, pool: &BufferPool) {
        if let Some(slot) = &self.slot {
            let half = self.slot_length / 2;
            if slot.len() >= half + half / 8 {
                return;
            }
            self.slot = None;
        }
        self.slot = SLOT_LENGTHS.iter().find_map(|&length| pool.acquire(length));
        self.slot_length = self.slot.as_ref().map_or(0, |slot| slot.len());
    }
}
