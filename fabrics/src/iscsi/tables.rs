//! What the connections of one core share: sessions, exchanges, buffers, events on their way to the engine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use base::{BufferPool, CoreId, Instant, Key, Limits, Slab};
use scsi::PortEvent;

use super::Config;
use super::exchange::Exchange;
use super::report::LineBudget;
use super::session::Session;

/// Bytes nobody wants are received here.
const SCRATCH_LENGTH: usize = 64 * 1024;

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Look at this connection's deadlines.
    Connection(Key),
    /// This exchange has waited long enough for its outstanding target transfer tags.
    Exchange(Key),
}

/// A hash for small integers, seeded so that an initiator cannot choose tags that collide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed(pub u64);

pub(super) struct TagHasher(u64);

impl BuildHasher for Seed {
    type Hasher = TagHasher;
    fn build_hasher(&self) -> TagHasher {
        TagHasher(self.0)
    }
}

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        // Two rounds of multiply and fold, as in wyhash: the seed reaches every bit.
        for constant in [0xA076_1D64_78BD_642F_u64, 0xE703_7ED1_A0B4_28DB] {
            let product = u128::from(self.0 ^ value ^ constant) * u128::from(constant | 1);
            self.0 = (product as u64) ^ ((product >> 64) as u64);
        }
    }
}

/// See the module.
pub(super) struct Tables {
    pub core: CoreId,
    pub config: Arc<Config>,
    pub limits: Limits,
    pub pool: BufferPool,
    pub sessions: Slab<Session>,
    pub exchanges: Slab<Exchange>,
    /// (session slot, initiator task tag) to exchange.
    tags: HashMap<u64, Key, Seed>,
    pub events: VecDeque<PortEvent>,
    pub now: Instant,
    pub copied: u64,
    pub scratch: Box<[u8]>,
    pub lines: LineBudget,
    pub timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    /// Text of login and text responses on their way to a PDU.
    pub reply: Vec<u8>,
    next_tag: u32,
    next_tsih: u16,
    next_connection: u64,
}

fn tag_key(session: Key, tag: u32) -> u64 {
    ((session.index() as u64) << 32) | u64::from(tag)
}

impl Tables {
    pub fn new(core: CoreId, pool: BufferPool, limits: Limits, config: Arc<Config>, entropy: u64) -> Tables {
        let (sessions, tasks) = (limits.sessions_max as usize, limits.tasks_max as usize);
        Tables {
            core,
            config,
            pool,
            sessions: Slab::with_capacity(sessions),
            exchanges: Slab::with_capacity(tasks),
            // Twice the room: removals leave marks, and a full table would be built anew.
            tags: HashMap::with_capacity_and_hasher(tasks * 2, Seed(entropy)),
            events: VecDeque::with_capacity(tasks * 4),
            now: Instant::ZERO,
            copied: 0,
            scratch: vec![0; SCRATCH_LENGTH].into_boxed_slice(),
            lines: LineBudget::new(),
            timers: BinaryHeap::with_capacity(4 * sessions + tasks + 64),
            reply: Vec::with_capacity(16 * 1024),
            next_tag: (entropy >> 32) as u32,
            next_tsih: 0,
            next_connection: 0,
            limits,
        }
    }

    /// The exchange of `tag` in `session`.
    pub fn exchange_of(&self, session: Key, tag: u32) -> Option<Key> {
        self.tags.get(&tag_key(session, tag)).copied()
    }

    /// Takes a new exchange in; `None` when the table is full.
    pub fn open_exchange(&mut self, exchange: Exchange) -> Option<Key> {
        let at = tag_key(exchange.session, exchange.tag);
        let key = self.exchanges.insert(exchange).ok()?;
        self.tags.insert(at, key);
        Some(key)
    }

    /// Forgets an exchange and gives its place in the window back.
    pub fn forget_exchange(&mut self, key: Key) -> Option<Exchange> {
        let exchange = self.exchanges.remove(key)?;
        self.tags.remove(&tag_key(exchange.session, exchange.tag));
        if exchange.counted
            && let Some(session) = self.sessions.get_mut(exchange.session)
        {
            let count = if exchange.immediate {
                &mut session.immediate_outstanding
            } else {
                &mut session.outstanding
            };
            *count = count.saturating_sub(1);
        }
        Some(exchange)
    }

    /// A target transfer tag that no R2T or NOP-In of late has.
    pub fn new_target_transfer_tag(&mut self) -> u32 {
        self.next_tag = self.next_tag.wrapping_add(1);
        if self.next_tag == wire::iscsi::RESERVED_TAG {
            self.next_tag = 0;
        }
        self.next_tag
    }

    /// True for a tag that was given out not long ago: data for it may still come when its task is gone.
    pub fn was_issued(&self, tag: u32) -> bool {
        self.next_tag.wrapping_sub(tag) < 1 << 20
    }

    /// A session handle that is not 0 and not in use on this node: the core in the high bits, then a counter.
    pub fn new_tsih(&mut self) -> Option<u16> {
        const COUNTER_BITS: u32 = 11;
        let core = (self.core.0 & 0x1F) << COUNTER_BITS;
        for _ in 0..1u32 << COUNTER_BITS {
            self.next_tsih = (self.next_tsih + 1) & ((1 << COUNTER_BITS) - 1);
            let tsih = core | self.next_tsih;
            if tsih != 0 && !self.sessions.iter().any(|(_, session)| session.tsih == tsih) {
                return Some(tsih);
            }
        }
        None
    }

    /// A connection number that is unique on the node.
    pub fn new_connection_id(&mut self) -> u64 {
        self.next_connection += 1;
        (u64::from(self.core.0) << 48) | self.next_connection
    }

    pub fn schedule(&mut self, at: Instant, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }
}
