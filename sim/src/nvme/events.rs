//! Asynchronous events (Base 2.0 §5.2).

use std::collections::VecDeque;

use super::logs;
use super::model::Model;
use super::status;
use super::transfer::Refusal;
use super::violation::Rule;

/// Event type: error status.
pub const ERROR: u8 = 0;
/// Event type: SMART / health status.
pub const HEALTH: u8 = 1;
/// Event type: notice.
pub const NOTICE: u8 = 2;

/// Error: a doorbell of no queue was written.
pub const INVALID_DOORBELL_REGISTER: u8 = 0;
/// Error: a doorbell got a value it must not have.
pub const INVALID_DOORBELL_VALUE: u8 = 1;
/// Health: temperature threshold.
pub const TEMPERATURE: u8 = 1;
/// Notice: Namespace Attribute Changed.
pub const NAMESPACE_CHANGED: u8 = 0;

/// Requests that may be outstanding (AERL + 1).
pub const REQUESTS_MAX: usize = 4;

/// Something the host is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Type.
    pub kind: u8,
    /// Information.
    pub info: u8,
    /// The log page that tells more, and clears it.
    pub log: u8,
}

/// Requests and events that wait for each other.
#[derive(Debug, Default)]
pub(super) struct Events {
    requests: VecDeque<u16>,
    pending: VecDeque<Event>,
    /// Types that are not reported again before their log page was read.
    masked: [bool; 8],
}

impl Events {
    pub fn reset(&mut self) {
        *self = Events::default();
    }
}

impl Model {
    /// An Asynchronous Event Request command.
    pub(super) fn event_request(&mut self, cid: u16) -> Result<(), Refusal> {
        if self.events.requests.len() >= REQUESTS_MAX {
            return Err(Refusal::broken(
                status::AER_LIMIT_EXCEEDED,
                Rule::Bounds,
                format!("more than {REQUESTS_MAX} Asynchronous Event Requests"),
            ));
        }
        self.events.requests.push_back(cid);
        self.deliver();
        Ok(())
    }

    /// Takes a request back, for Abort.
    pub(super) fn withdraw_request(&mut self, cid: u16) -> bool {
        let found = self.events.requests.iter().position(|&request| request == cid);
        found.is_some_and(|at| self.events.requests.remove(at).is_some())
    }

    /// Tells the host, now or as soon as it asks.
    pub fn event(&mut self, event: Event) {
        if !self.events.pending.contains(&event) && self.events.pending.len() < 64 {
            self.events.pending.push_back(event);
        }
        self.deliver();
    }

    /// `count` events with nothing behind them, one after the other, masks or not: a storm.
    pub fn event_storm(&mut self, count: u32) {
        for _ in 0..count {
            let Some(cid) = self.events.requests.pop_front() else { return };
            let result = u64::from(NOTICE) | u64::from(logs::CHANGED_NAMESPACES) << 16;
            self.complete(0, cid, status::SUCCESS, result);
        }
    }

    /// A log page was read without Retain Asynchronous Event.
    pub(super) fn clear_events(&mut self, log: u8) {
        self.events.pending.retain(|event| event.log != log);
        let kind = match log {
            logs::ERROR_LOG => ERROR,
            logs::HEALTH => HEALTH,
            logs::CHANGED_NAMESPACES => NOTICE,
            _ => return,
        };
        self.events.masked[usize::from(kind)] = false;
        self.deliver();
    }

    fn deliver(&mut self) {
        while let Some(at) =
            self.events.pending.iter().position(|event| !self.events.masked[usize::from(event.kind & 7)])
        {
            let Some(cid) = self.events.requests.pop_front() else { return };
            let Some(event) = self.events.pending.remove(at) else { return };
            self.events.masked[usize::from(event.kind & 7)] = true;
            let result = u64::from(event.kind) | u64::from(event.info) << 8 | u64::from(event.log) << 16;
            self.complete(0, cid, status::SUCCESS, result);
        }
    }

    pub(super) fn namespace_changed(&mut self, nsid: u32) {
        self.logs.namespace_changed(nsid);
        if self.features.event_configuration & 1 << 8 != 0 {
            self.event(Event { kind: NOTICE, info: NAMESPACE_CHANGED, log: logs::CHANGED_NAMESPACES });
        }
    }
}
