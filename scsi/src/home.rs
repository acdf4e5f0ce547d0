//! What a unit's home core owns: the truth about the unit, and the queue of changes (design: one mechanism for every
//! cross-core change). This file decides; `freeze.rs` sends and receives.

use std::collections::VecDeque;
use std::sync::Arc;

use bdev::BlockDevice;

use crate::message::{Change, MediumChange, NexusReference, Ticket};
use crate::{ControlId, ModePages, UnitChange, UnitState, UnitView};

/// A change asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChangeRequest {
    pub(crate) ticket: Ticket,
    pub(crate) change: Change,
    pub(crate) origin: Option<NexusReference>,
}

#[derive(Debug)]
struct Running {
    request: ChangeRequest,
    /// Cores that have not said `Frozen`.
    awaiting: u16,
    failed: bool,
}

/// A request that was taken back.
pub(crate) enum Withdrawn {
    /// No core has heard of it.
    Queued,
    /// Cores are freezing for it.
    Draining(ChangeRequest),
}

/// One change at a time, the others in order. Two lanes run beside each other, so that an aborting change reaches the
/// tasks that a waiting change waits for.
#[derive(Debug, Default)]
struct Lane {
    running: Option<Running>,
    queue: VecDeque<ChangeRequest>,
}

/// The home core's state of a unit.
pub(crate) struct Home {
    pub(crate) truth: UnitView,
    pub(crate) device: Arc<dyn BlockDevice>,
    lanes: [Lane; 2],
    /// Nexuses that prevent medium removal.
    preventing: Vec<NexusReference>,
    /// The epoch since which the device is there.
    present_since: u64,
    /// Cores that have not answered `UnitAdded`, and the control request to answer.
    pub(crate) opening: Option<(ControlId, u16, Option<bdev::BlockError>)>,
    cores: u16,
}

impl Home {
    pub(crate) fn new(truth: UnitView, device: Arc<dyn BlockDevice>, control: ControlId, cores: u16) -> Home {
        Home {
            truth,
            device,
            lanes: Default::default(),
            preventing: Vec::new(),
            present_since: 0,
            opening: Some((control, cores, None)),
            cores,
        }
    }

    /// Takes a request; gives it back when it is its turn at once and every core must be told to freeze.
    pub(crate) fn request(&mut self, request: ChangeRequest) -> Option<ChangeRequest> {
        let lane = &mut self.lanes[request.change.lane()];
        if lane.running.is_some() {
            lane.queue.push_back(request);
            return None;
        }
        lane.running = Some(Running { request, awaiting: self.cores, failed: false });
        Some(request)
    }

    /// Forgets a request whose time has not come: what waits stays bounded by the tasks that wait. Nothing when all
    /// cores are frozen for it already, or when it is over.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> Option<Withdrawn> {
        for lane in &mut self.lanes {
            if let Some(at) = lane.queue.iter().position(|request| request.ticket == ticket) {
                lane.queue.remove(at);
                return Some(Withdrawn::Queued);
            }
            if let Some(running) = &lane.running
                && running.request.ticket == ticket
            {
                return (running.awaiting > 0).then_some(Withdrawn::Draining(running.request));
            }
        }
        None
    }

    /// A core is frozen. Gives the change when it was the last one, and whether any core failed.
    pub(crate) fn frozen(&mut self, ticket: Ticket, failed: bool) -> Option<(ChangeRequest, bool)> {
        let running = self
            .lanes
            .iter_mut()
            .filter_map(|lane| lane.running.as_mut())
            .find(|r| r.request.ticket == ticket)?;
        running.failed |= failed;
        running.awaiting = running.awaiting.checked_sub(1)?;
        (running.awaiting == 0).then_some((running.request, running.failed))
    }

    /// The change that runs under `ticket`, when every core is frozen for it.
    pub(crate) fn running(&self, ticket: Ticket) -> Option<ChangeRequest> {
        let running =
            self.lanes.iter().filter_map(|l| l.running.as_ref()).find(|r| r.request.ticket == ticket)?;
        (running.awaiting == 0).then_some(running.request)
    }

    /// Ends the running change of the lane of `change`; gives the next one to freeze for.
    pub(crate) fn next(&mut self, change: Change) -> Option<ChangeRequest> {
        let lane = &mut self.lanes[change.lane()];
        lane.running = None;
        let next = lane.queue.pop_front()?;
        lane.running = Some(Running { request: next, awaiting: self.cores, failed: false });
        Some(next)
    }

    /// Everything that still waits, when the unit goes.
    pub(crate) fn abandon(&mut self) -> Vec<ChangeRequest> {
        let mut all = Vec::new();
        for lane in &mut self.lanes {
            all.extend(lane.running.take().map(|running| running.request));
            all.extend(lane.queue.drain(..));
        }
        all
    }

    /// Makes the change in the truth. Every core is frozen for it.
    pub(crate) fn apply(&mut self, request: &ChangeRequest, failed: bool) {
        if failed {
            self.truth.state = UnitState::Fenced;
        }
        match request.change {
            Change::Ordered | Change::Exclusive(_) | Change::ClearTaskSet | Change::Remove => {}
            Change::Capacity => self.truth.geometry = self.device.geometry(),
            Change::Medium(change) => self.apply_medium_change(change),
            Change::Unit(change) => self.apply_unit_change(change, request.origin),
            Change::Reset(_) => {
                // SAM-5 §6.3.3: mode parameters go back to their saved or default values, and PREVENT is forgotten.
                self.truth.mode = default_mode(&self.truth.geometry);
                self.preventing.clear();
            }
        }
        self.truth.removal_prevented = !self.preventing.is_empty();
        self.truth.epoch += 1;
    }

    fn apply_medium_change(&mut self, change: MediumChange) {
        match (change, self.truth.state) {
            // Somebody's request failed before the device came back.
            (MediumChange::Lost { epoch }, _) if epoch < self.present_since => {}
            (MediumChange::Lost { .. } | MediumChange::Absent, UnitState::Ready | UnitState::Stopped) => {
                self.truth.state = UnitState::MediumNotPresent;
            }
            (MediumChange::Present, state) => {
                self.truth.geometry = self.device.geometry();
                if state == UnitState::MediumNotPresent {
                    self.truth.state = UnitState::Ready;
                }
                // The epoch that this change makes.
                self.present_since = self.truth.epoch + 1;
            }
            _ => {}
        }
    }

    fn apply_unit_change(&mut self, change: UnitChange, origin: Option<NexusReference>) {
        match change {
            UnitChange::ModePages { before, after } => self.truth.mode.merge(before, after),
            UnitChange::StartStop { start, load_eject, .. } => {
                // A device that is away does not come back by being started.
                if matches!(self.truth.state, UnitState::Ready | UnitState::Stopped) {
                    self.truth.state = match (start, load_eject) {
                        (true, _) => UnitState::Ready,
                        (false, false) => UnitState::Stopped,
                        (false, true) => UnitState::MediumNotPresent,
                    };
                }
            }
            UnitChange::PreventRemoval(prevent) => {
                if let Some(origin) = origin {
                    self.preventing.retain(|&nexus| nexus != origin);
                    if prevent {
                        self.preventing.push(origin);
                    }
                }
            }
        }
    }
}

/// Mode pages of a unit that nobody changed: the write cache is on when there is one.
pub(crate) fn default_mode(geometry: &bdev::Geometry) -> ModePages {
    ModePages { write_cache_enabled: geometry.write_cache, ..ModePages::default() }
}

/// One core's answer to `UnitAdded`. Gives the control request and the first error when it was the last one.
pub(crate) fn opened(
    home: &mut Home,
    error: Option<bdev::BlockError>,
) -> Option<(ControlId, Option<bdev::BlockError>)> {
    let (control, awaiting, first) = home.opening.as_mut()?;
    *first = first.or(error);
    *awaiting = awaiting.saturating_sub(1);
    if *awaiting > 0 {
        return None;
    }
    let answer = (*control, *first);
    home.opening = None;
    Some(answer)
}

/// A unit that is going: its home core counts the cores that closed their channel.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) unit: crate::LogicalUnitId,
    pub(crate) awaiting: u16,
    /// The control request to answer, and how.
    pub(crate) answer: Option<(ControlId, crate::ControlOutcome)>,
}

/// Core 0's count of cores that took a target's new LUN map.
#[derive(Debug)]
pub(crate) struct TargetChange {
    pub(crate) control: ControlId,
    pub(crate) awaiting: u16,
    pub(crate) failed: bool,
}
