//! Data-Out: R2Ts, solicited and unsolicited data (RFC 7143 §4.2.5, §11.7, §11.8).

use std::time::Duration;

use base::{DataBuf, Key};
use scsi::{CommandStatus, PortEvent, TaskId};
use wire::iscsi::{DataOut, R2t, RESERVED_TAG, RejectReason};

use super::connection::{Connection, Fatal};
use super::exchange::{BURSTS_MAX, Burst, Solicitation};
use super::receive::{Incoming, Place, Verdict};
use super::tables::{Tables, Timer};
use super::transmit::Item;

/// How long a terminated task waits for data its R2Ts asked for. RFC 7143 §4.2.3.3 makes the target wait, but some
/// initiators send nothing more for a task they abort; later data is known by its tag and thrown away.
const TERMINATION_WAIT: Duration = Duration::from_secs(1);
/// PROTOCOL SERVICE CRC ERROR (RFC 7143 §11.4.7.2).
const PROTOCOL_SERVICE_CRC_ERROR: (u8, u8) = (0x47, 0x05);
/// INTERNAL TARGET FAILURE.
const INTERNAL_TARGET_FAILURE: (u8, u8) = (0x44, 0x00);

impl Connection {
    /// The engine lends a buffer for `offset..offset + data.len()` of the command's data.
    pub fn lend(&mut self, tables: &mut Tables, key: Key, task: TaskId, offset: u32, data: DataBuf) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        exchange.task = Some(task);
        if exchange.terminating || exchange.answered || exchange.held.is_some() {
            return;
        }
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let inside = offset.checked_add(length).is_some_and(|end| end <= exchange.expected_out);
        if length == 0 {
            tables.events.push_back(PortEvent::DataOutReceived { task, offset, data });
            return;
        }
        let place = exchange.bursts.iter_mut().find(|place| place.is_none());
        let (true, Some(place)) = (inside, place) else {
            let (asc, ascq) = INTERNAL_TARGET_FAILURE;
            tables.events.push_back(PortEvent::DataOutFailed { task, offset, asc, ascq });
            return;
        };
        *place = Some(Burst { offset, length, data: Some(data), filled: 0, requested: 0, damaged: false });
        self.settle(tables, key);
    }

    /// Serves lent bursts from the stash when all unsolicited data is there, then asks for the rest.
    fn settle(&mut self, tables: &mut Tables, key: Key) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        if exchange.unsolicited.is_some() {
            return;
        }
        let Some(task) = exchange.task else { return };
        while let Some(mut stash) = exchange.stash.take() {
            let Some(mut data) = stash.data.take() else { break };
            if stash.filled == 0 {
                break;
            }
            let Some(place) = exchange
                .bursts
                .iter_mut()
                .find(|place| place.as_ref().is_some_and(|b| b.offset == stash.offset))
            else {
                stash.data = Some(data);
                exchange.stash = Some(stash);
                break;
            };
            let Some(burst) = place else { break };
            if burst.length <= stash.filled {
                let length = burst.length;
                let rest = stash.filled - length;
                let piece = if rest == 0 {
                    data.truncate(length as usize);
                    data
                } else {
                    let piece = data.split_to(length as usize);
                    stash.data = Some(data);
                    piece
                };
                let offset = burst.offset;
                *place = None;
                tables.events.push_back(received(task, offset, piece, stash.damaged));
                if rest > 0 {
                    stash.offset += length;
                    stash.filled = rest;
                    exchange.stash = Some(stash);
                }
            } else {
                let filled = stash.filled as usize;
                if let Some(into) = burst.data.as_mut().and_then(|into| into.get_mut(..filled))
                    && let Some(from) = data.get(..filled)
                {
                    into.copy_from_slice(from);
                    tables.copied = tables.copied.saturating_add(filled as u64);
                }
                burst.filled = stash.filled;
                burst.requested = stash.filled;
                burst.damaged |= stash.damaged;
            }
        }
        self.solicit(tables, key);
    }

    /// Sends as many R2Ts as may be outstanding.
    fn solicit(&mut self, tables: &mut Tables, key: Key) {
        let most = usize::from(self.parameters.max_outstanding_r2t).clamp(1, BURSTS_MAX);
        loop {
            let tag = tables.new_target_transfer_tag();
            let Some(exchange) = tables.exchanges.get_mut(key) else { return };
            if exchange.terminating || exchange.held.is_some() || exchange.outstanding_r2t() >= most {
                return;
            }
            let next = exchange
                .bursts
                .iter_mut()
                .flatten()
                .filter(|b| b.requested < b.length)
                .min_by_key(|b| b.offset);
            let Some(burst) = next else { return };
            let length = (burst.length - burst.requested).min(self.parameters.max_burst_length.max(512));
            let start = burst.offset + burst.requested;
            burst.requested += length;
            let solicitation = Solicitation {
                target_transfer_tag: tag,
                burst: burst.offset,
                next: start,
                end: start + length,
                data_sn: 0,
            };
            let Some(place) = exchange.solicitations.iter_mut().find(|place| place.is_none()) else { return };
            *place = Some(solicitation);
            let pdu = R2t {
                lun: exchange.lun,
                initiator_task_tag: exchange.tag,
                target_transfer_tag: tag,
                stat_sn: 0,
                exp_cmd_sn: 0,
                max_cmd_sn: 0,
                r2t_sn: exchange.data_sn,
                buffer_offset: start,
                desired_data_transfer_length: length,
            };
            exchange.data_sn = exchange.data_sn.wrapping_add(1);
            self.solicited += 1;
            exchange.data_at = tables.now;
            self.transmitter.push(Item::R2t { exchange: key, pdu });
        }
    }

    /// The header of a Data-Out PDU is here: where does its payload go?
    pub fn place_data_out(&mut self, tables: &mut Tables, pdu: &DataOut) -> Result<(Verdict, Place), Fatal> {
        let Some(session) = self.session else { return Err(Fatal("Data-Out without a session")) };
        let length = pdu.data_segment_length;
        let unsolicited = pdu.target_transfer_tag == RESERVED_TAG;
        let unknown = if unsolicited || tables.was_issued(pdu.target_transfer_tag) {
            // For a task that ended while its data was on the way.
            Verdict::Ignore
        } else {
            Verdict::Reject(RejectReason::InvalidPduField)
        };
        let Some(key) = tables.exchange_of(session, pdu.initiator_task_tag) else {
            return Ok((unknown, Place::Discard));
        };
        let Some(exchange) = tables.exchanges.get_mut(key) else { return Ok((unknown, Place::Discard)) };
        let ending = exchange.terminating || exchange.held.is_some();
        if unsolicited {
            let Some(expected) = &exchange.unsolicited else {
                if ending {
                    return Ok((Verdict::Ignore, Place::Discard));
                }
                return Err(Fatal("unsolicited data where none is allowed"));
            };
            check_sequence(pdu, expected.next, expected.end, true)?;
            let in_order = pdu.data_sn == expected.data_sn;
            let place = match &mut exchange.stash {
                Some(stash) => {
                    stash.damaged |= !in_order;
                    // All of it in one PDU that has come along with other PDUs: it need not move.
                    let all =
                        pdu.final_ && stash.filled == 0 && pdu.buffer_offset == stash.offset && length > 0;
                    if all && let Some(data) = self.receiver.slot_place(length as usize) {
                        stash.data = None;
                        return Ok((Verdict::Data(key, None), Place::Own(data)));
                    }
                    match stash.data.take() {
                        Some(data) => {
                            Place::Lent { data, start: (pdu.buffer_offset - stash.offset) as usize }
                        }
                        None => Place::Discard,
                    }
                }
                None => Place::Discard,
            };
            return Ok((Verdict::Data(key, None), place));
        }
        let Some(solicitation) = exchange.solicitation_mut(pdu.target_transfer_tag).copied() else {
            return Ok((unknown, Place::Discard));
        };
        check_sequence(pdu, solicitation.next, solicitation.end, ending)?;
        let in_order = pdu.data_sn == solicitation.data_sn;
        let mut burst = exchange.burst_mut(solicitation.burst);
        if let Some(burst) = &mut burst {
            // A DataSN out of order implies a lost PDU; like a digest error it fails the command once its data has
            // come (RFC 7143 §7.9, §7.8).
            burst.damaged |= !in_order;
        }
        let place = burst.and_then(|burst| burst.data.take()).map_or(Place::Discard, |data| Place::Lent {
            data,
            start: (solicitation.next - solicitation.burst) as usize,
        });
        debug_assert!(
            matches!(&place, Place::Lent { data, start } if start + length as usize <= data.len())
                || matches!(place, Place::Discard)
        );
        Ok((Verdict::Data(key, Some(solicitation.burst)), place))
    }

    /// The payload of a Data-Out PDU is here.
    pub fn finish_data_out(&mut self, tables: &mut Tables, incoming: Incoming, pdu: &DataOut) {
        let Verdict::Data(key, burst_offset) = incoming.verdict else { return };
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        let data = match incoming.place {
            Place::Lent { data, .. } | Place::Own(data) => Some(data),
            Place::Discard => None,
        };
        exchange.data_at = tables.now;
        let length = pdu.data_segment_length;
        let Some(offset) = burst_offset else {
            if let Some(stash) = &mut exchange.stash {
                stash.data = data;
                stash.filled = stash.filled.saturating_add(length);
                stash.damaged |= !incoming.intact;
            }
            if let Some(expected) = &mut exchange.unsolicited {
                expected.next = expected.next.saturating_add(length);
                expected.data_sn = expected.data_sn.wrapping_add(1);
                if pdu.final_ {
                    exchange.unsolicited = None;
                    self.solicited = self.solicited.saturating_sub(1);
                }
            }
            self.continue_exchange(tables, key);
            return;
        };
        if let Some(one) = exchange.solicitation_mut(pdu.target_transfer_tag) {
            one.next = one.next.saturating_add(length);
            one.data_sn = one.data_sn.wrapping_add(1);
        }
        if pdu.final_ && exchange.retire(pdu.target_transfer_tag) {
            self.solicited = self.solicited.saturating_sub(1);
        }
        let ending = exchange.terminating || exchange.held.is_some();
        let task = exchange.task;
        if let Some(place) =
            exchange.bursts.iter_mut().find(|b| b.as_ref().is_some_and(|b| b.offset == offset))
            && let Some(burst) = place
        {
            burst.data = data;
            burst.filled = burst.filled.saturating_add(length);
            burst.damaged |= !incoming.intact;
            if burst.filled >= burst.length && !ending {
                let damaged = burst.damaged;
                let whole = place.take().and_then(|burst| burst.data);
                if let (Some(task), Some(whole)) = (task, whole) {
                    tables.events.push_back(received(task, offset, whole, damaged));
                }
            }
        }
        self.continue_exchange(tables, key);
    }

    /// After data came in: more R2Ts, or the end that waited for it.
    fn continue_exchange(&mut self, tables: &mut Tables, key: Key) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        if exchange.terminating {
            self.finish_termination(tables, key);
        } else if exchange.held.is_some() {
            exchange.release_unsolicited_bursts();
            if !exchange.awaits_data()
                && let Some(status) = exchange.held.take()
            {
                exchange.stash = None;
                exchange.answered = true;
                self.transmitter.push(Item::Response { exchange: key, status });
            }
        } else {
            self.settle(tables, key);
        }
    }

    /// Status of a command: goes out now, or once all data that is on its way is here (RFC 7143 §11.4.2).
    pub fn complete(&mut self, tables: &mut Tables, key: Key, task: TaskId, status: CommandStatus) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        exchange.task = Some(task);
        if exchange.terminating || exchange.answered || exchange.held.is_some() {
            return;
        }
        exchange.held = Some(status);
        self.take_back_unsent(tables, key);
        self.continue_exchange(tables, key);
    }

    /// Takes back R2Ts that are still in the transmit queue.
    fn take_back_unsent(&mut self, tables: &mut Tables, key: Key) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        if exchange.outstanding_r2t() == 0 {
            return;
        }
        let mut retired = 0u32;
        let removed = self.transmitter.cancel_r2ts(key, |tag| retired += u32::from(exchange.retire(tag)));
        exchange.in_ring = exchange.in_ring.saturating_sub(removed);
        self.solicited = self.solicited.saturating_sub(retired);
    }

    /// Terminate Data Transfer.
    pub fn terminate(&mut self, tables: &mut Tables, key: Key, task: TaskId) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        exchange.task = Some(task);
        exchange.terminating = true;
        exchange.held = None;
        exchange.stash = None;
        if exchange.unsolicited.take().is_some() {
            self.solicited = self.solicited.saturating_sub(1);
            if self.receiver.filling() == Some(key) && exchange.outstanding_r2t() == 0 {
                self.receiver.divert(key);
            }
        }
        let mut retired = 0u32;
        let removed = self.transmitter.cancel(key, |tag| retired += u32::from(exchange.retire(tag)));
        exchange.in_ring = exchange.in_ring.saturating_sub(removed);
        self.solicited = self.solicited.saturating_sub(retired);
        if !self.finish_termination(tables, key) {
            let at = tables.now + TERMINATION_WAIT;
            tables.schedule(at, Timer::Exchange(key));
        }
    }

    /// Ends a terminating exchange when nothing of it is on the way any more.
    pub fn finish_termination(&mut self, tables: &mut Tables, key: Key) -> bool {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return true };
        exchange.release_unsolicited_bursts();
        if exchange.awaits_data() || exchange.in_ring > 0 {
            return false;
        }
        if let Some(task) = exchange.task {
            tables.events.push_back(PortEvent::DataTransferTerminated { task });
        }
        self.receiver.divert(key);
        tables.forget_exchange(key);
        true
    }

    /// The wait for a terminated task's data is over.
    pub fn stop_waiting(&mut self, tables: &mut Tables, key: Key) {
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        if !exchange.terminating {
            return;
        }
        self.receiver.divert(key);
        let count = exchange.outstanding_r2t();
        self.solicited = self.solicited.saturating_sub(u32::try_from(count).unwrap_or(0));
        exchange.solicitations = Default::default();
        self.finish_termination(tables, key);
    }
}

fn received(task: TaskId, offset: u32, data: DataBuf, damaged: bool) -> PortEvent {
    if damaged {
        let (asc, ascq) = PROTOCOL_SERVICE_CRC_ERROR;
        PortEvent::DataOutFailed { task, offset, asc, ascq }
    } else {
        PortEvent::DataOutReceived { task, offset, data }
    }
}

/// Data PDUs must follow each other, stay inside the sequence, and end it with the F bit (RFC 7143 §11.7.5, §13.18).
/// Without recovery a violation ends the session. `early`: the sequence may end before its end.
fn check_sequence(pdu: &DataOut, next: u32, end: u32, early: bool) -> Result<(), Fatal> {
    let Some(reached) = pdu.buffer_offset.checked_add(pdu.data_segment_length) else {
        return Err(Fatal("Data-Out beyond 4 GiB"));
    };
    if pdu.buffer_offset != next {
        return Err(Fatal("buffer offset of a Data-Out PDU is out of order"));
    }
    if reached > end {
        return Err(Fatal("Data-Out beyond its sequence"));
    }
    if reached == end && !pdu.final_ {
        return Err(Fatal("the last Data-Out PDU of a sequence lacks the F bit"));
    }
    if reached < end && pdu.final_ && !early {
        return Err(Fatal("the F bit came before the end of the sequence"));
    }
    Ok(())
}
