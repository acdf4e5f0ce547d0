//! One core at one controller: the requests of all its channels, as commands in its queue pair or by way of the service
//! thread.

mod route;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{BufferPool, DataBuf, Instant, Progress};
use bdev::check::{Verdict, finish, judge};
use bdev::{BlockError, BlockIo, BlockOp, CoreShared, IoCompletion, IoTag, IoValue};
use wire::nvme::Status;

use crate::gate::Door;
use crate::namespace::Medium;
use crate::outcome::{Outcome, judge_status};
use crate::plan::{next_part, plan};
use crate::queue_pair::{BOUNCES, Layout, QueuePair};
use crate::shared::{RemoteAnswer, RemoteCommand, RemoteEnd, RemotePort, Report, Seat, Shared};
use crate::sweep::{overdue, sweep_interval};
use crate::view::View;

/// The system's EBUSY.
const BUSY: i32 = 16;
const NO_BOUNCE: u8 = u8::MAX;

/// How the core reaches the controller now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Not at all for the moment; requests wait.
    Waiting,
    /// By its own queue pair.
    Own,
    /// By the service thread's.
    Shared,
    /// Not any more.
    Closed(BlockError),
}

/// One request of a channel.
pub(crate) struct Request {
    pub(crate) tag: IoTag,
    pub(crate) data: Option<DataBuf>,
    /// Where the device sees the data; `None` when it has to be copied.
    pub(crate) bus: Option<u64>,
    pub(crate) op: BlockOp,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    /// Blocks that commands were made for.
    pub(crate) issued: u64,
    channel: u16,
    /// Commands that are not answered yet.
    outstanding: u16,
    /// For a flush, its epoch.
    flush_epoch: u64,
    error: Option<BlockError>,
    cancelled: bool,
    live: bool,
}

/// A part of a request: one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    request: u16,
    tries: u8,
    bounce: u8,
    live: bool,
    pub(crate) offset: u64,
    pub(crate) blocks: u64,
}

impl Part {
    const NONE: Part = Part { request: 0, tries: 0, bounce: NO_BOUNCE, live: false, offset: 0, blocks: 0 };
}

/// One channel of this core.
struct Channel {
    medium: Arc<Medium>,
    version: u64,
    /// `None` while the namespace is not there or cannot be used.
    view: Option<Rc<View>>,
    dirty_epoch: u64,
    ready: VecDeque<IoCompletion>,
    held: usize,
}

/// The place of a core at a controller, as its channels share it.
pub(crate) struct SharedCoreQueue(pub(crate) RefCell<CoreQueue>);

impl SharedCoreQueue {
    pub(crate) fn open(shared: &Arc<Shared>, core: &CoreShared) -> Result<SharedCoreQueue, BlockError> {
        CoreQueue::open(shared, core).map(|queue| SharedCoreQueue(RefCell::new(queue)))
    }
}

/// See the module.
pub(crate) struct CoreQueue {
    shared: Arc<Shared>,
    seat: usize,
    epoch: u64,
    route: Route,
    entered: bool,
    own: Option<Box<QueuePair>>,
    remote: Option<RemotePort>,
    /// Remote commands that are not answered.
    remote_in_flight: u16,
    requests: Vec<Request>,
    free_requests: Vec<u16>,
    /// By command slot.
    parts: Vec<Part>,
    free_slots: Vec<u16>,
    /// Parts that were lost, or failed with a passing error, and go out again.
    again: VecDeque<Part>,
    /// Requests for which not all commands were made.
    waiting: VecDeque<u16>,
    channels: Vec<Option<Channel>>,
    pool: Option<BufferPool>,
    pool_start: usize,
    pool_length: usize,
    /// Where the device sees the pool.
    pool_bus: Option<u64>,
    pool_generation: u64,
    bounces_free: Vec<u8>,
    /// Where the device sees this core's queue memory, and the layout of it.
    memory: Option<(u64, Layout)>,
    now: Instant,
    next_sweep: Option<Instant>,
}

impl CoreQueue {
    fn open(shared: &Arc<Shared>, core: &CoreShared) -> Result<CoreQueue, BlockError> {
        let seat = core.core().index();
        let place = shared.seats.get(seat).ok_or(BlockError::Unsupported)?;
        if place.open.swap(true, Ordering::AcqRel) {
            // Two tables of channels on one core: nobody does that.
            return Err(BlockError::System(BUSY));
        }
        let depth = usize::from(shared.options.queue_depth);
        let (remote, remote_in_flight) = {
            let mut home = place.home();
            (home.remote.take(), std::mem::take(&mut home.remote_stale))
        };
        let (pool_start, pool_length) =
            core.pool().map_or((0, 0), |pool| (pool.region().0.as_ptr().addr(), pool.region().1));
        let request = || Request {
            tag: IoTag(0),
            data: None,
            bus: None,
            op: BlockOp::Flush,
            lba: 0,
            blocks: 0,
            issued: 0,
            channel: 0,
            outstanding: 0,
            flush_epoch: 0,
            error: None,
            cancelled: false,
            live: false,
        };
        Ok(CoreQueue {
            shared: Arc::clone(shared),
            seat,
            epoch: 0,
            route: Route::Waiting,
            entered: false,
            own: None,
            remote,
            remote_in_flight,
            requests: (0..depth).map(|_| request()).collect(),
            free_requests: (0..depth as u16).rev().collect(),
            parts: vec![Part::NONE; depth],
            free_slots: Vec::with_capacity(depth),
            again: VecDeque::with_capacity(depth),
            waiting: VecDeque::with_capacity(depth),
            channels: Vec::new(),
            pool: core.pool().cloned(),
            pool_start,
            pool_length,
            pool_bus: None,
            pool_generation: u64::MAX,
            bounces_free: (0..BOUNCES as u8).collect(),
            memory: None,
            now: Instant::ZERO,
            next_sweep: None,
        })
    }

    fn place(&self) -> &Seat {
        &self.shared.seats[self.seat]
    }

    /// A channel to a namespace; its number.
    pub(crate) fn open_channel(&mut self, medium: &Arc<Medium>) -> u16 {
        let depth = self.requests.len();
        let channel = Channel {
            medium: Arc::clone(medium),
            version: 0,
            view: None,
            dirty_epoch: 0,
            ready: VecDeque::with_capacity(2 * depth),
            held: 0,
        };
        let free = self.channels.iter().position(Option::is_none).unwrap_or_else(|| {
            self.channels.push(None);
            self.channels.len() - 1
        });
        self.channels[free] = Some(channel);
        u16::try_from(free).unwrap_or(u16::MAX)
    }

    /// The channel is closed. What it still has outstanding completes for nobody.
    pub(crate) fn close_channel(&mut self, channel: u16) {
        for request in self.requests.iter_mut().filter(|request| request.live && request.channel == channel) {
            request.channel = u16::MAX;
            request.cancelled = true;
        }
        if let Some(place) = self.channels.get_mut(usize::from(channel)) {
            *place = None;
        }
    }

    /// Takes a request; gives it back when there is no room.
    #[inline]
    pub(crate) fn submit(&mut self, number: u16, mut io: BlockIo) -> Result<(), BlockIo> {
        let depth = self.requests.len();
        let Some(Some(channel)) = self.channels.get_mut(usize::from(number)) else { return Err(io) };
        if channel.ready.len() >= depth {
            return Err(io);
        }
        let version = channel.medium.version();
        if version != channel.version {
            let state = channel.medium.state();
            channel.view = state.view.as_ref().ok().filter(|_| state.present).map(|view| Rc::new(*view));
            channel.version = version;
        }
        let verdict = match &channel.view {
            None => Err(Err(BlockError::Gone)),
            Some(view) => match judge(&io, &view.geometry) {
                Verdict::Proceed => plan(&io, view, channel.medium.flush_failed()),
                Verdict::Empty => Err(Ok(IoValue::Done)),
                Verdict::Refuse(error) => Err(Err(error)),
            },
        };
        if let Err(result) = verdict {
            channel.ready.push_back(finish(io, result));
            return Ok(());
        }
        if !self.entered {
            self.refresh();
            if let Route::Closed(error) = self.route {
                self.ready(number, finish(io, Err(error)));
                return Ok(());
            }
        }
        let Some(index) = self.free_requests.pop() else { return Err(io) };
        let data = io.data.take();
        let bus = data.as_ref().and_then(|data| self.bus_address(data));
        let is_flush = io.op == BlockOp::Flush;
        // The range of a flush is advice and was not checked: it must not get into arithmetic.
        let (lba, blocks) = if is_flush { (0, 1) } else { (io.lba, io.blocks) };
        if let Some(Some(channel)) = self.channels.get_mut(usize::from(number)) {
            channel.held += 1;
        }
        self.requests[usize::from(index)] = Request {
            tag: io.tag,
            data,
            bus,
            op: io.op,
            lba,
            blocks,
            issued: 0,
            channel: number,
            outstanding: 0,
            flush_epoch: 0,
            error: None,
            cancelled: false,
            live: true,
        };
        if !self.waiting.is_empty() || !self.again.is_empty() || !self.issue(index) {
            self.waiting.push_back(index);
        } else if self.requests[usize::from(index)].error.is_some() {
            self.settle(index);
        }
        Ok(())
    }

    /// Where the device sees a buffer; `None` when it does not, or not well.
    #[inline]
    fn bus_address(&self, data: &DataBuf) -> Option<u64> {
        let offset = data.as_ptr().addr().wrapping_sub(self.pool_start);
        let inside = offset < self.pool_length && data.len() <= self.pool_length - offset;
        let bus = self.pool_bus? + offset as u64;
        (inside && bus.is_multiple_of(4)).then_some(bus)
    }

    /// Enters the queue pair, or sees that the service thread takes commands.
    #[inline]
    fn can_send(&mut self) -> bool {
        match self.route {
            Route::Own if self.entered => true,
            Route::Own => {
                self.entered = self.place().gate.enter(self.epoch);
                self.entered
            }
            Route::Shared => true,
            Route::Waiting | Route::Closed(_) => false,
        }
    }

    /// Makes the commands of a request. False when there was no room for all.
    #[inline]
    fn issue(&mut self, index: u16) -> bool {
        if !self.can_send() {
            return false;
        }
        loop {
            let request = &self.requests[usize::from(index)];
            if request.issued == request.blocks || request.error.is_some() {
                return true;
            }
            let Some(view) = self.view_of(request.channel) else {
                self.requests[usize::from(index)].error = Some(BlockError::Gone);
                return true;
            };
            let blocks = next_part(request, &view);
            let part = Part {
                request: index,
                tries: 0,
                bounce: NO_BOUNCE,
                live: true,
                offset: request.issued,
                blocks,
            };
            if !self.send(part, &view) {
                return false;
            }
            let request = &mut self.requests[usize::from(index)];
            request.issued += blocks;
            request.outstanding += 1;
        }
    }

    #[inline]
    fn view_of(&self, channel: u16) -> Option<Rc<View>> {
        self.channels.get(usize::from(channel))?.as_ref()?.view.clone()
    }

    /// Sends one command. False when there is no slot, or no bounce buffer.
    #[inline]
    fn send(&mut self, mut part: Part, view: &View) -> bool {
        let Some(&slot) = self.free_slots.last() else { return false };
        let request = &mut self.requests[usize::from(part.request)];
        let mut bus = request.bus.map(|bus| bus + (part.offset << view.block_shift));
        if bus.is_none() && request.data.is_some() {
            let (Some((memory_bus, layout)), Some(bounce)) = (self.memory, self.bounces_free.pop()) else {
                return false;
            };
            part.bounce = bounce;
            let place = layout.bounce(usize::from(bounce));
            bus = Some(memory_bus + place as u64);
            self.shared.bounce_copies.fetch_add(1, Ordering::Relaxed);
            if request.op != BlockOp::Read
                && let Some(bytes) = bytes_of(request, part, view)
            {
                self.shared.seats[self.seat].memory.write(place, bytes);
            }
        }
        if request.op == BlockOp::Flush
            && request.flush_epoch == 0
            && let Some(Some(channel)) = self.channels.get(usize::from(request.channel))
        {
            request.flush_epoch = channel.medium.flush_begins();
        }
        let command = crate::plan::command(request, part.offset, part.blocks, bus.unwrap_or(0), view);
        let sent = match (&mut self.own, &mut self.remote) {
            (Some(pair), _) if self.route == Route::Own => pair.submit(slot, &command),
            (_, Some(port)) if self.route == Route::Shared => {
                let sent = port.commands.push(RemoteCommand { slot, command }).is_ok();
                self.remote_in_flight += u16::from(sent);
                sent
            }
            _ => false,
        };
        if sent {
            self.free_slots.pop();
            self.parts[usize::from(slot)] = part;
        } else if part.bounce != NO_BOUNCE {
            self.bounces_free.push(part.bounce);
        }
        sent
    }

    /// A command ended: answered by the controller.
    #[inline]
    fn answered(&mut self, slot: u16, status: Status) {
        let Some(part) = self.take_part(slot) else { return };
        if status.is_success() {
            if part.bounce != NO_BOUNCE {
                self.unbounce(part, true);
            }
            let request = &mut self.requests[usize::from(part.request)];
            request.outstanding -= 1;
            self.settle(part.request);
            return;
        }
        if part.bounce != NO_BOUNCE {
            self.unbounce(part, false);
        }
        match judge_status(status, self.requests[usize::from(part.request)].op) {
            Outcome::Again(error) => self.lost(part, error),
            Outcome::Failed(error) => {
                // A command that was aborted because nobody wanted it was cancelled; otherwise it took too long.
                let cancelled = self.requests[usize::from(part.request)].cancelled;
                let error =
                    if error == BlockError::Cancelled && !cancelled { BlockError::Timeout } else { error };
                self.part_failed(part, error);
            }
        }
    }

    fn take_part(&mut self, slot: u16) -> Option<Part> {
        let part = self.parts.get_mut(usize::from(slot)).filter(|part| part.live)?;
        part.live = false;
        let part = Part { live: true, ..*part };
        self.free_slots.push(slot);
        Some(part)
    }

    /// Ends the use of a bounce buffer; what was read goes to the request's own.
    #[cold]
    fn unbounce(&mut self, part: Part, good: bool) {
        self.bounces_free.push(part.bounce);
        let view = self.view_of(self.requests[usize::from(part.request)].channel);
        let request = &mut self.requests[usize::from(part.request)];
        let (Some(view), Some((_, layout)), true) = (view, self.memory, good && request.op == BlockOp::Read)
        else {
            return;
        };
        if let Some(bytes) = bytes_of_mut(request, part, &view) {
            self.shared.seats[self.seat].memory.read(layout.bounce(usize::from(part.bounce)), bytes);
        }
    }

    /// A command will not be answered, or wants to be sent again: it goes out again, or fails with `error`.
    #[cold]
    fn lost(&mut self, part: Part, error: BlockError) {
        let request = &self.requests[usize::from(part.request)];
        if request.cancelled {
            return self.part_failed(part, BlockError::Cancelled);
        }
        // A copy may have been done, and its source be written since.
        let repeatable = !matches!(request.op, BlockOp::Copy { .. });
        if let Route::Closed(error) = self.route {
            return self.part_failed(part, error);
        }
        if !repeatable || part.tries >= self.shared.options.retries_max || request.error.is_some() {
            return self.part_failed(part, error);
        }
        self.place().counters.retries.fetch_add(1, Ordering::Relaxed);
        self.again.push_back(Part { tries: part.tries + 1, bounce: NO_BOUNCE, ..part });
    }

    #[cold]
    fn part_failed(&mut self, part: Part, error: BlockError) {
        let request = &mut self.requests[usize::from(part.request)];
        request.outstanding -= 1;
        request.error.get_or_insert(error);
        self.settle(part.request);
    }

    /// Ends a request, when all its commands ended.
    #[inline]
    fn settle(&mut self, index: u16) {
        let request = &mut self.requests[usize::from(index)];
        if request.outstanding > 0
            || (request.issued < request.blocks && request.error.is_none())
            || !request.live
        {
            return;
        }
        request.live = false;
        let data = request.data.take();
        let (tag, number) = (request.tag, request.channel);
        let mut result = request.error.map_or(Ok(IoValue::Done), Err);
        let partly = request.issued < request.blocks;
        if let Some(Some(channel)) = self.channels.get_mut(usize::from(number)) {
            channel.held -= 1;
            let caches = channel.view.as_ref().is_some_and(|view| view.geometry.write_cache);
            match request.op {
                BlockOp::Write { fua } | BlockOp::WriteZeroes { fua, .. } if caches => {
                    if fua && result.is_ok() && channel.medium.flush_failed() {
                        result = Err(BlockError::FlushFailed);
                    }
                    channel.note_dirty();
                }
                BlockOp::Copy { .. } | BlockOp::Discard if caches => channel.note_dirty(),
                BlockOp::Flush => result = channel.flushed(result, request.flush_epoch),
                _ => {}
            }
            channel.ready.push_back(IoCompletion { tag, result, data });
        }
        if partly {
            // It may still stand in the line of those that wait.
            self.waiting.retain(|&waiting| waiting != index);
        }
        self.free_requests.push(index);
    }

    fn ready(&mut self, number: u16, completion: IoCompletion) {
        if let Some(Some(channel)) = self.channels.get_mut(usize::from(number)) {
            channel.ready.push_back(completion);
        }
    }

    /// Sends what waits, oldest first.
    fn advance(&mut self) {
        while let Some(&part) = self.again.front() {
            if !self.can_send() {
                return;
            }
            let number = self.requests[usize::from(part.request)].channel;
            let view = self.view_of(number);
            let doomed = self.requests[usize::from(part.request)].cancelled || view.is_none();
            if let Some(view) = view.as_ref().filter(|_| !doomed) {
                if !self.send(part, view) {
                    return;
                }
                self.again.pop_front();
            } else {
                self.again.pop_front();
                self.part_failed(part, if view.is_some() { BlockError::Cancelled } else { BlockError::Gone });
            }
        }
        while let Some(&index) = self.waiting.front() {
            if !self.issue(index) {
                return;
            }
            self.waiting.pop_front();
            self.settle(index);
        }
    }

    /// Rings the doorbells.
    #[inline]
    pub(crate) fn flush(&mut self) {
        if !self.entered {
            if self.route == Route::Shared && self.remote_in_flight > 0 {
                self.shared.bell.ring();
            }
            return;
        }
        if let Some(pair) = &mut self.own {
            pair.ring_submissions();
            if pair.is_broken() {
                self.shared.report(Report::Broken);
            }
        }
    }

    /// Takes completions, and hands those of channel `number` to `on`.
    pub(crate) fn poll(&mut self, number: u16, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        self.now = now;
        let mut moved = self.reap();
        let door = self.place().gate.state();
        if door.epoch != self.epoch || door.door != Door::Busy {
            self.refresh();
        }
        moved += self.take_answers();
        if !self.again.is_empty() || !self.waiting.is_empty() {
            self.advance();
        }
        self.sweep();
        self.flush();
        self.leave();
        if let Some(Some(channel)) = self.channels.get_mut(usize::from(number)) {
            while let Some(completion) = channel.ready.pop_front() {
                moved += 1;
                on(completion);
            }
        }
        Progress::from_count(moved)
    }

    #[inline]
    fn reap(&mut self) -> usize {
        if !self.entered {
            return 0;
        }
        let mut count = 0;
        let mut budget = self.parts.len() as u32;
        while let Some(pair) = &mut self.own
            && let Some((slot, completion)) = pair.next(&mut budget)
        {
            count += 1;
            self.answered(slot, completion.status);
        }
        if let Some(pair) = &mut self.own {
            pair.ring_completions();
            if count > 0 {
                self.shared.seats[self.seat].counters.add(&mut pair.counters);
            }
        }
        count
    }

    fn take_answers(&mut self) -> usize {
        let mut count = 0;
        while self.remote_in_flight > 0
            && let Some(RemoteAnswer { slot, end }) =
                self.remote.as_mut().and_then(|port| port.answers.pop().ok())
        {
            self.remote_in_flight -= 1;
            count += 1;
            match end {
                RemoteEnd::Answered(status) => self.answered(slot, status),
                RemoteEnd::Lost => {
                    if let Some(part) = self.take_part(slot) {
                        if part.bounce != NO_BOUNCE {
                            self.unbounce(part, false);
                        }
                        self.lost(part, BlockError::Timeout);
                    }
                }
            }
        }
        if count > 0 && self.remote_in_flight == 0 && self.route != Route::Shared {
            self.refresh();
        }
        count
    }

    /// Gives the queue pair back when nothing is in it.
    #[inline]
    fn leave(&mut self) {
        let empty = self.own.as_ref().is_some_and(|pair| pair.in_flight() == 0 && pair.is_rung());
        if self.entered && empty && self.waiting.is_empty() && self.again.is_empty() {
            self.entered = false;
            self.next_sweep = None;
            if self.place().gate.leave(self.epoch) {
                self.route = Route::Waiting;
                self.shared.bell.ring();
            }
        }
    }

    /// Looks for commands that take too long.
    #[inline]
    fn sweep(&mut self) {
        let Some(interval) = sweep_interval(self.shared.options.timeout).filter(|_| self.entered) else {
            return;
        };
        match self.next_sweep {
            Some(next) if self.now < next => return,
            None => {
                self.next_sweep = Some(self.now + interval);
                return;
            }
            Some(_) => self.next_sweep = Some(self.now + interval),
        }
        let (shared, seat, epoch) = (&self.shared, self.seat, self.epoch);
        let Some(pair) = &mut self.own else { return };
        let queue = pair.id();
        pair.sweep(|_, command, age| {
            overdue(shared, seat, Report::Abort { queue, epoch, command }, age, epoch)
        });
    }

    /// Nobody wants this request any more.
    pub(crate) fn cancel(&mut self, number: u16, tag: IoTag) {
        let found = self
            .requests
            .iter()
            .position(|request| request.live && request.channel == number && request.tag == tag);
        let Some(index) = found else { return };
        self.requests[index].cancelled = true;
        let request = &self.requests[index];
        if request.issued == 0 && request.outstanding == 0 {
            self.requests[index].error = Some(BlockError::Cancelled);
            self.settle(index as u16);
            return;
        }
        if request.issued < request.blocks {
            self.requests[index].error.get_or_insert(BlockError::Cancelled);
        }
        let (Some(pair), true) = (&self.own, self.entered) else { return };
        let parts =
            self.parts.iter().enumerate().filter(|(_, part)| part.live && usize::from(part.request) == index);
        for command in parts.filter_map(|(slot, _)| pair.command_id(slot as u16)) {
            self.shared.report(Report::Abort { queue: pair.id(), epoch: self.epoch, command });
        }
    }

    /// Visits what channel `number` holds.
    pub(crate) fn for_each_held(&self, number: u16, visit: &mut dyn FnMut(IoTag)) {
        if let Some(Some(channel)) = self.channels.get(usize::from(number)) {
            channel.ready.iter().for_each(|completion| visit(completion.tag));
        }
        let own = self.requests.iter().filter(|request| request.live && request.channel == number);
        own.for_each(|request| visit(request.tag));
    }

    /// When channel `number` wants to be polled.
    pub(crate) fn next_timeout(&self, number: u16) -> Option<Instant> {
        let channel = self.channels.get(usize::from(number))?.as_ref()?;
        if !channel.ready.is_empty() {
            return Some(self.now);
        }
        let pair = self.own.as_ref().filter(|_| self.entered && channel.held > 0)?;
        match pair.interrupt() {
            Some(_) => self.next_sweep,
            // Nothing will wake anybody.
            None => Some(self.now),
        }
    }

    /// The descriptor that tells of completions, armed.
    pub(crate) fn wake_descriptor(&self) -> Option<i32> {
        use std::os::fd::{AsFd, AsRawFd};
        if let Some(interrupt) = self.own.as_ref().and_then(|pair| pair.interrupt()) {
            let mut counter = [0; 8];
            // EAGAIN: no interrupt came. What comes after this makes it readable again.
            let _ = rustix::io::read(interrupt.as_fd(), &mut counter);
            return Some(interrupt.as_raw_fd());
        }
        Some(self.place().bell.arm())
    }
}

fn byte_range(part: Part, view: &View) -> Option<std::ops::Range<usize>> {
    let from = usize::try_from(part.offset << view.block_shift).ok()?;
    let length = usize::try_from(part.blocks << view.block_shift).ok()?;
    Some(from..from.checked_add(length)?)
}

fn bytes_of<'a>(request: &'a Request, part: Part, view: &View) -> Option<&'a [u8]> {
    request.data.as_ref()?.get(byte_range(part, view)?)
}

fn bytes_of_mut<'a>(request: &'a mut Request, part: Part, view: &View) -> Option<&'a mut [u8]> {
    request.data.as_mut()?.get_mut(byte_range(part, view)?)
}

impl Channel {
    /// A write was completed into the cache.
    fn note_dirty(&mut self) {
        let epoch = self.medium.flush_epoch();
        if epoch != self.dirty_epoch {
            self.dirty_epoch = epoch;
            self.medium.note_dirty(epoch);
        }
    }

    /// A flush ended: a failure is remembered by the namespace, for ever.
    fn flushed(&self, result: Result<IoValue, BlockError>, epoch: u64) -> Result<IoValue, BlockError> {
        match result {
            Ok(_) if self.medium.flush_failed() => Err(BlockError::FlushFailed),
            Ok(value) => {
                self.medium.flushed(epoch);
                Ok(value)
            }
            // Nobody knows what it did: the next flush will tell.
            Err(
                error @ (BlockError::Gone
                | BlockError::Timeout
                | BlockError::Cancelled
                | BlockError::NotReady),
            ) => Err(error),
            Err(_) => {
                self.medium.set_flush_failed();
                Err(BlockError::FlushFailed)
            }
        }
    }
}
