//! How a controller is taken down and brought up again, and when memory may be given back.
//!
//! A command that is in flight is only given up when the controller cannot touch its memory any more: CSTS.RDY was seen to
//! be 0, its queue was deleted, or the device was cut off from memory (bus master off and every mapping taken back).

use std::time::Duration;

use base::{Instant, Progress};
use wire::nvme::{Configuration, register};

use crate::admin::{ADMIN_SLOTS, Admin, Area};
use crate::bring_up::{Step, Task};
use crate::gate::Door;
use crate::queue_pair::{Layout, QueuePair, QueuePairParts};
use crate::{ControllerEvent, ControllerState, ResetReason};

/// Shutdown may take so long (RTD3E is not looked at).
const SHUTDOWN: Duration = Duration::from_secs(10);

/// How long a reset waits for the cores to stop ringing doorbells before it begins without them: a core polls while it
/// has commands in flight, so it is a matter of microseconds, unless the core is stuck.
const PARKING: Duration = Duration::from_millis(100);

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Failed,
    Gone,
    Detached,
}

/// What the controller is going through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is mapped yet.
    Begin,
    /// A reset is wanted; waits for the cores to let go of their queue pairs, for a disabled controller must not have its
    /// doorbells rung.
    Parking { until: Instant },
    /// CC.EN is 0; waits for CSTS.RDY to be 0. `forced`: the function was reset, too.
    Disabling { until: Instant, forced: bool },
    /// The controller is disabled; waits for the cores to let go of their queue pairs.
    Quiescing,
    /// CC.EN is 1; waits for CSTS.RDY to be 1.
    Enabling { until: Instant },
    /// Identifies, makes queues, looks for namespaces.
    Configuring,
    /// Serves I/O.
    Running,
    /// Waits for the end of shutdown processing.
    ShuttingDown { until: Instant },
    /// The device is cut off; waits for the cores to let go of their queue pairs.
    Leaving(End),
    /// Nothing is mapped any more.
    Ended(End),
}

impl Phase {
    /// True when the device does not matter any more.
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Phase::Leaving(_) | Phase::Ended(_))
    }

    /// When the phase wants to be looked at.
    pub(crate) fn next_timeout(self, now: Instant) -> Option<Instant> {
        match self {
            Phase::Begin | Phase::Parking { .. } | Phase::Quiescing | Phase::Leaving(_) => Some(now),
            // Registers do not tell when they change.
            Phase::Disabling { .. } | Phase::Enabling { .. } | Phase::ShuttingDown { .. } => {
                Some(now + Duration::from_millis(1))
            }
            Phase::Configuring | Phase::Running | Phase::Ended(_) => None,
        }
    }
}

impl Admin {
    pub(crate) fn step_phase(&mut self) -> Progress {
        let before = self.phase;
        match self.phase {
            Phase::Begin => self.begin(),
            Phase::Parking { until } => self.parking(until),
            Phase::Disabling { until, forced } => self.disabling(until, forced),
            Phase::Quiescing => self.quiescing(),
            Phase::Enabling { until } => self.enabling(until),
            Phase::ShuttingDown { until } => self.shutting_down(until),
            Phase::Leaving(end) => self.leaving(end),
            Phase::Ended(_) => self.service.refuse(&self.shared),
            Phase::Configuring | Phase::Running => {}
        }
        if self.phase == before { Progress::Idle } else { Progress::Busy }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        // A device that is gone is noticed by reading.
        let _ = self.function.bar.write32(offset, value);
    }

    fn configuration(&self, enable: bool, shutdown: u8) -> u32 {
        let capabilities = self.function.capabilities;
        let command_set = if capabilities.nvm_command_set() { 0 } else { 6 };
        Configuration { enable, command_set, page_shift: capabilities.page_shift_min(), shutdown }.emit()
    }

    /// CAP.TO, or what CRTO says, and something for good measure.
    fn ready_timeout(&self) -> Duration {
        let mut timeout = self.function.capabilities.timeout_ms();
        if self.function.capabilities.has_ready_timeouts() {
            let ready = self.read32(register::CRTO);
            timeout = timeout.max(u64::from(ready & 0xFFFF) * 500);
        }
        Duration::from_millis(timeout.clamp(500, 130_000) + 500)
    }

    /// Maps what the device must see, and disables it: nobody knows what it did before.
    fn begin(&mut self) {
        if let Err(reason) = self.map() {
            return self.fail(reason);
        }
        self.disable();
    }

    fn map(&mut self) -> Result<(), String> {
        let device = self.function.device.clone();
        let refused = |error: reactor::DeviceError| format!("{}: {error}", device.name());
        device.set_bus_master(true).map_err(refused)?;
        let page = self.function.page();
        if self.mapped.is_none() {
            let bus = device.map_dma(&self.memory.region()).map_err(refused)?;
            self.mapped = Some((bus, Layout::new(ADMIN_SLOTS, page, bus)));
        }
        for index in 0..self.seats_mapped.len() {
            if self.seats_mapped[index].is_none() {
                let memory = self.shared.seats.get(index).map_or(&self.service_memory, |seat| &seat.memory);
                self.seats_mapped[index] = Some(device.map_dma(&memory.region()).map_err(refused)?);
            }
        }
        if self.shared.options.interrupts && self.interrupts.is_empty() {
            self.enable_interrupts();
        }
        self.shared.bus().device = Some(device);
        Ok(())
    }

    /// MSI-X vectors: one for the admin queue and one for each queue pair, or as many as there are. None is no error.
    fn enable_interrupts(&mut self) {
        let mut wanted = self.shared.seats.len() as u16 + 2;
        while wanted >= 2 {
            if let Ok(descriptors) = self.function.device.enable_interrupts(wanted) {
                let nonblocking = |descriptor: &std::os::fd::OwnedFd| {
                    rustix::fs::fcntl_getfl(descriptor)
                        .and_then(|flags| {
                            rustix::fs::fcntl_setfl(descriptor, flags | rustix::fs::OFlags::NONBLOCK)
                        })
                        .is_ok()
                };
                if descriptors.iter().all(nonblocking) {
                    self.interrupts = descriptors.into_iter().map(std::sync::Arc::new).collect();
                }
                return;
            }
            wanted /= 2;
        }
    }

    /// A reset begins: I/O waits from now on.
    pub(crate) fn begin_reset(&mut self, reason: ResetReason) {
        let under_way = matches!(
            self.phase,
            Phase::Parking { .. } | Phase::Disabling { .. } | Phase::Quiescing | Phase::ShuttingDown { .. }
        );
        if self.phase.is_over() || under_way {
            return;
        }
        if self.reset_reason.is_none() {
            self.reset_reason = Some(reason);
            self.events.push(ControllerEvent::ResetBegun(reason));
        }
        self.controller_resets += 1;
        self.resets_in_a_row = self.resets_in_a_row.saturating_add(1);
        if self.resets_in_a_row > self.shared.options.resets_max {
            return self.fail(format!(
                "{}: {} resets in a row did not help (the last because of {reason:?}); check the device, then reset it by hand",
                self.function.device.name(),
                self.shared.options.resets_max
            ));
        }
        if self.shared.state() == ControllerState::Ready {
            self.set_state(ControllerState::Resetting);
        }
        self.disable();
    }

    /// A failed controller is tried once more.
    pub(crate) fn begin_again(&mut self) {
        self.failure = None;
        self.resets_in_a_row = 0;
        if self.reset_reason.is_none() {
            self.reset_reason = Some(ResetReason::Requested);
            self.events.push(ControllerEvent::ResetBegun(ResetReason::Requested));
        }
        self.set_state(ControllerState::Resetting);
        self.phase = Phase::Begin;
    }

    /// There is another device in the place of one that has gone.
    pub(crate) fn begin_return(&mut self) {
        self.failure = None;
        self.resets_in_a_row = 0;
        self.reset_reason = None;
        self.critical_warning = 0;
        self.error_count = None;
        self.returning = true;
        self.set_state(ControllerState::Resetting);
        self.phase = Phase::Begin;
    }

    fn park_all(&self) -> bool {
        let mut parked = true;
        for seat in &self.shared.seats {
            if !seat.gate.park() {
                parked = false;
                seat.wake();
            }
        }
        parked
    }

    fn disable(&mut self) {
        self.parking(self.now + PARKING);
    }

    fn parking(&mut self, until: Instant) {
        if !self.park_all() && self.now < until && !self.status().absent() {
            self.phase = Phase::Parking { until };
            return;
        }
        self.write32(register::CC, self.configuration(false, 0));
        self.phase = Phase::Disabling { until: self.now + self.ready_timeout(), forced: false };
    }

    fn disabling(&mut self, until: Instant, forced: bool) {
        let status = self.status();
        if status.absent() {
            return self.gone();
        }
        if !status.ready() {
            // From here on the controller touches no memory.
            self.drop_queue();
            self.phase = Phase::Quiescing;
            return self.quiescing();
        }
        if self.now < until {
            return;
        }
        if !forced && self.function.device.reset().is_ok() {
            // The bus reset may have taken these from it.
            let _ = self.function.device.set_bus_master(true);
            self.write32(register::CC, self.configuration(false, 0));
            self.phase = Phase::Disabling { until: self.now + self.ready_timeout(), forced: true };
            return;
        }
        self.fail(format!(
            "{}: it does not become disabled (CSTS.RDY stays 1) and cannot be reset by the bus; power-cycle it",
            self.function.device.name()
        ));
    }

    fn quiescing(&mut self) {
        if !self.park_all() {
            return;
        }
        for seat in &self.shared.seats {
            seat.home().pair = None;
            // The old commands are lost; new ones wait.
            seat.gate.begin_epoch(Door::Parked);
            seat.wake();
        }
        self.service.lose(&self.shared, false);
        self.made.clear();
        self.roles.clear();
        self.enable();
    }

    fn enable(&mut self) {
        let Some((bus, layout)) = self.mapped else { return };
        let stride = self.function.capabilities.doorbell_stride();
        let queue = QueuePair::new(QueuePairParts {
            id: 0,
            layout,
            memory: self.memory.clone(),
            bus,
            bar: self.function.bar.clone(),
            submission_doorbell: wire::nvme::doorbell_offset(0, false, stride),
            completion_doorbell: wire::nvme::doorbell_offset(0, true, stride),
            shadows: None,
            sgl: None,
            interrupt: self.interrupts.first().cloned(),
        });
        self.queue = Some(queue);
        let entries = layout.entries() - 1;
        self.write32(register::AQA, entries << 16 | entries);
        for (offset, place) in [(register::ASQ, layout.submission()), (register::ACQ, layout.completion())] {
            let _ = self.function.bar.write64(offset, bus + place as u64);
        }
        self.write32(register::CC, self.configuration(true, 0));
        self.phase = Phase::Enabling { until: self.now + self.ready_timeout() };
    }

    fn enabling(&mut self, until: Instant) {
        let status = self.status();
        if status.absent() {
            return self.gone();
        }
        if status.ready() && !status.fatal() {
            self.version = self.read32(register::VS);
            self.phase = Phase::Configuring;
            self.start_task(Task::BringUp, Step::IdentifyController);
        } else if status.fatal() || self.now >= until {
            self.begin_reset(ResetReason::BringUp);
        }
    }

    /// The device was removed.
    pub(crate) fn gone(&mut self) {
        if self.phase.is_over() {
            return;
        }
        self.leave(End::Gone);
    }

    /// It cannot be brought up or back.
    pub(crate) fn fail(&mut self, reason: String) {
        if self.phase.is_over() {
            return;
        }
        self.failure = Some(reason);
        self.leave(End::Failed);
    }

    pub(crate) fn begin_detach(&mut self) {
        match self.phase {
            Phase::Ended(End::Detached) | Phase::Leaving(End::Detached) => {}
            Phase::Leaving(_) | Phase::Ended(_) => {
                self.phase = Phase::Leaving(End::Detached);
                self.set_state(ControllerState::Detaching);
            }
            Phase::Begin => self.leave(End::Detached),
            _ => {
                self.set_state(ControllerState::Detaching);
                let _ = self.park_all();
                self.task = None;
                let enabled = self.status().ready();
                self.write32(register::CC, self.configuration(enabled, 1));
                self.phase = Phase::ShuttingDown { until: self.now + SHUTDOWN };
            }
        }
    }

    fn shutting_down(&mut self, until: Instant) {
        let status = self.status();
        if status.shutdown_complete() || status.absent() || !status.ready() || self.now >= until {
            self.write32(register::CC, self.configuration(false, 0));
            self.leave(End::Detached);
        }
    }

    /// Cuts the device off from memory, and waits for the cores.
    fn leave(&mut self, end: End) {
        let _ = self.park_all();
        self.cut_off();
        self.drop_queue();
        self.chores.clear();
        self.phase = Phase::Leaving(end);
        self.leaving(end);
    }

    /// After this the device reaches no memory of ours, whatever it does.
    fn cut_off(&mut self) {
        let device = self.function.device.clone();
        if device.set_bus_master(false).is_err() {
            let _ = device.reset();
        }
        let mut addresses: Vec<u64> = self.seats_mapped.iter_mut().filter_map(Option::take).collect();
        addresses.extend(self.mapped.take().map(|(bus, _)| bus));
        {
            let mut bus = self.shared.bus();
            addresses.append(&mut bus.pools);
            bus.device = None;
            bus.generation += 1;
        }
        for address in addresses {
            // What is not mapped any more needs no unmapping.
            let _ = device.unmap_dma(address);
        }
        if !self.interrupts.is_empty() {
            let _ = device.enable_interrupts(0);
            self.interrupts.clear();
        }
    }

    /// Nobody polls it any more: lets go of everything that can be let go of without waiting.
    pub(crate) fn abandon(&mut self) {
        if self.phase.is_over() || self.phase == Phase::Begin {
            return;
        }
        self.write32(register::CC, self.configuration(false, 0));
        self.leave(End::Detached);
    }

    fn leaving(&mut self, end: End) {
        if !self.park_all() {
            return;
        }
        let (door, state) = match end {
            End::Failed => (Door::Failed, ControllerState::Failed),
            End::Gone => (Door::Gone, ControllerState::Gone),
            End::Detached => (Door::Gone, ControllerState::Detached),
        };
        for seat in &self.shared.seats {
            {
                let mut home = seat.home();
                home.pair = None;
                home.memory = None;
                home.interrupt = None;
            }
            seat.gate.begin_epoch(door);
            seat.bell.ring();
        }
        self.service.lose(&self.shared, true);
        self.made.clear();
        self.roles.clear();
        self.reset_reason = None;
        self.phase = Phase::Ended(end);
        self.set_state(state);
        match end {
            End::Failed => {
                self.events.push(ControllerEvent::Failed(self.failure.clone().unwrap_or_default()))
            }
            End::Gone => self.all_absent(),
            End::Detached => {
                self.namespaces.values().for_each(|namespace| namespace.medium().set_present(false));
            }
        }
    }

    /// The namespaces went with the device; so did what was in its cache.
    fn all_absent(&mut self) {
        self.events.push(ControllerEvent::Gone);
        let cached = self.identify.as_ref().is_some_and(|identify| identify.has_write_cache());
        for (&nsid, namespace) in &self.namespaces {
            if cached && namespace.medium().cache_lost() {
                self.events.push(ControllerEvent::CacheLost { nsid });
            }
            namespace.medium().set_present(false);
        }
    }

    /// Everything is there: the cores may go on.
    pub(crate) fn publish(&mut self) {
        for index in 0..self.roles.len() {
            self.publish_pair(index);
        }
        for (index, seat) in self.shared.seats.iter().enumerate() {
            let slots = self.slots();
            if !self.roles.contains(&crate::admin::Role::Seat(index)) {
                let page = self.function.page();
                seat.home().memory = self.seats_mapped[index].map(|bus| (bus, Layout::new(slots, page, bus)));
                seat.gate.begin_epoch(Door::Shared);
                seat.wake();
            }
        }
        self.resets_in_a_row = 0;
        self.phase = Phase::Running;
        self.set_state(ControllerState::Ready);
        if let Some(reason) = self.reset_reason.take() {
            self.events.push(ControllerEvent::ResetDone(reason));
        }
        if std::mem::take(&mut self.returning) {
            self.events.push(ControllerEvent::Returned);
        }
    }

    /// Hands one new queue pair to who drives it.
    pub(crate) fn publish_pair(&mut self, index: usize) {
        let Some(pair) = self.made.get_mut(index).and_then(Option::take) else { return };
        match self.roles[index] {
            crate::admin::Role::Service => self.service.set_pair(pair),
            crate::admin::Role::Seat(number) => {
                let page = self.function.page();
                let slots = pair.slots();
                let seat = &self.shared.seats[number];
                {
                    let mut home = seat.home();
                    home.interrupt = pair.interrupt().cloned();
                    home.memory = self.seats_mapped[number].map(|bus| (bus, Layout::new(slots, page, bus)));
                    home.pair = Some(pair);
                }
                seat.gate.begin_epoch(Door::Idle);
                seat.wake();
            }
        }
    }

    /// Where an area of the admin memory is, in it.
    pub(crate) fn area(&self, area: Area) -> Option<usize> {
        self.mapped.map(|(_, layout)| layout.bounce(area as usize))
    }
}
