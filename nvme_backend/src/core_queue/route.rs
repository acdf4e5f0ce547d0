//! How a core's way to the controller opens and closes.

use std::sync::atomic::Ordering;

use base::BufferPool;
use bdev::BlockError;
use reactor::DmaRegion;

use super::{CoreQueue, NO_BOUNCE, Route};
use crate::gate::{Door, GateState};
use crate::shared::Report;

impl CoreQueue {
    /// Looks at the gate, and follows what it says.
    pub(crate) fn refresh(&mut self) {
        let state = self.place().gate.state();
        if state.epoch != self.epoch {
            self.new_epoch(state);
        }
        match state.door {
            Door::ParkRequested if self.entered => self.park(),
            Door::Failed => self.close(BlockError::Internal, BlockError::Timeout),
            Door::Gone => self.close(BlockError::Gone, BlockError::Gone),
            Door::Shared if self.route != Route::Shared => self.use_service(),
            Door::Idle if self.route != Route::Own => self.use_own(state),
            Door::Parked if matches!(self.route, Route::Own | Route::Shared) => self.route = Route::Waiting,
            _ => {}
        }
    }

    fn park(&mut self) {
        if self.place().gate.park_if_requested(self.epoch) {
            self.entered = false;
            self.route = Route::Waiting;
            self.shared.bell.ring();
        }
    }

    /// A new epoch: no command in the old queue pair will be answered, and the device has let go of their memory.
    fn new_epoch(&mut self, state: GateState) {
        self.epoch = state.epoch;
        self.entered = false;
        self.route = Route::Waiting;
        let error = if state.door == Door::Gone { BlockError::Gone } else { BlockError::Timeout };
        if let Some(mut pair) = self.own.take() {
            self.place().counters.add(&mut pair.counters);
            for slot in 0..self.parts.len() as u16 {
                if let Some(part) = self.take_part(slot) {
                    if part.bounce != NO_BOUNCE {
                        self.unbounce(part, false);
                    }
                    self.lost(part, error);
                }
            }
        }
    }

    fn use_own(&mut self, state: GateState) {
        if self.remote_in_flight > 0 {
            // The service thread answers these first.
            return;
        }
        let (pair, memory) = {
            let mut home = self.place().home();
            (home.pair.take(), home.memory)
        };
        let Some(pair) = pair else { return };
        if self.place().gate.state() != state {
            // It is being replaced: what is taken here is already stale.
            return;
        }
        self.memory = memory;
        let slots = pair.slots().min(self.parts.len() as u16);
        self.own = Some(pair);
        self.start_route(Route::Own, slots);
    }

    fn use_service(&mut self) {
        let memory = self.place().home().memory;
        self.memory = memory;
        if self.remote_in_flight == 0 {
            self.start_route(Route::Shared, self.parts.len() as u16);
        }
    }

    /// A way is open again: all slots are free, and the pool is mapped.
    fn start_route(&mut self, route: Route, slots: u16) {
        self.route = route;
        self.free_slots.clear();
        self.free_slots.extend((0..slots).rev());
        self.next_sweep = None;
        self.map_pool();
    }

    /// Maps the pool, once for each life of the device on the bus. Without it everything is copied.
    fn map_pool(&mut self) {
        let Some(pool) = &self.pool else { return };
        let mut bus = self.shared.bus();
        if bus.generation != self.pool_generation {
            self.pool_generation = bus.generation;
            self.pool_bus =
                bus.device.as_ref().and_then(|device| device.map_dma(&DmaRegion::of_pool(pool)).ok());
            if let Some(address) = self.pool_bus {
                bus.pools.push(address);
            }
            drop(bus);
            self.find_buses();
        }
    }

    /// The pool is somewhere else on the bus: requests that go on must follow.
    fn find_buses(&mut self) {
        for index in 0..self.requests.len() {
            let bus = self.requests[index].data.as_ref().and_then(|data| self.bus_address(data));
            // What is in flight was lost before this, so no command uses the old address.
            self.requests[index].bus = bus;
        }
    }

    /// The controller is not there any more: new requests fail with `error`, those that it had with `had`.
    #[cold]
    fn close(&mut self, error: BlockError, had: BlockError) {
        self.route = Route::Closed(error);
        while let Some(part) = self.again.pop_front() {
            self.part_failed(part, had);
        }
        while let Some(index) = self.waiting.pop_front() {
            self.requests[usize::from(index)].error.get_or_insert(error);
            self.settle(index);
        }
    }

    /// Offers the pool that buffers come from. True when the device can reach it.
    pub(crate) fn register_pool(&mut self, pool: &BufferPool) -> bool {
        let region = pool.region();
        let (start, length) = (region.0.as_ptr().addr(), region.1);
        if self.pool.is_none() && self.requests.iter().all(|request| !request.live) {
            self.pool = Some(pool.clone());
            (self.pool_start, self.pool_length) = (start, length);
            self.refresh();
            if matches!(self.route, Route::Own | Route::Shared) {
                self.map_pool();
            }
        }
        (start, length) == (self.pool_start, self.pool_length)
    }
}

impl Drop for CoreQueue {
    fn drop(&mut self) {
        let in_flight = self.own.as_ref().map_or(0, |pair| pair.in_flight()) + self.remote_in_flight;
        if in_flight > 0 {
            // The device still owns these buffers: whoever got them next would be overwritten.
            for request in self.requests.iter_mut().filter(|request| request.live) {
                std::mem::forget(request.data.take());
            }
            std::mem::forget(self.pool.take());
        }
        let mut pools = Vec::new();
        if let Some(address) = self.pool_bus.filter(|_| in_flight == 0) {
            let mut bus = self.shared.bus();
            if bus.generation == self.pool_generation
                && let Some(at) = bus.pools.iter().position(|&pool| pool == address)
            {
                bus.pools.swap_remove(at);
                pools.extend(bus.device.clone().map(|device| (device, address)));
            }
        }
        for (device, address) in pools {
            // It was mapped here; a device that has gone forgets it by itself.
            let _ = device.unmap_dma(address);
        }
        let place = &self.shared.seats[self.seat];
        if self.entered {
            place.gate.abandon(self.epoch);
        }
        let mut home = place.home();
        if let Some(mut pair) = self.own.take() {
            place.counters.add(&mut pair.counters);
            if in_flight == 0
                && !self.entered
                && place.gate.state() == (GateState { epoch: self.epoch, door: Door::Idle })
                && home.pair.is_none()
            {
                home.pair = Some(pair);
            }
        }
        home.remote = self.remote.take();
        home.remote_stale = self.remote_in_flight;
        drop(home);
        place.open.store(false, Ordering::Release);
        if self.entered {
            self.shared.report(Report::Stuck { core: self.seat, epoch: self.epoch });
        }
    }
}
