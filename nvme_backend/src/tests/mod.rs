//! The driver against a small fake of a controller.

mod administration;
mod fake;
mod faults;
mod io;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, CoreId, DataBuf, Instant, PoolClass};
use bdev::{BlockDevice, BlockError, BlockIo, BlockOp, CoreShared, IoChannel, IoCompletion, IoTag};
use reactor::HugeMemory;

use crate::{Controller, ControllerOptions, ControllerState, Namespace};
use fake::{Fake, FakeNamespace};

/// A controller on a fake, with a clock.
struct World {
    fake: Arc<Fake>,
    controller: Arc<Controller>,
    now: Instant,
}

/// One core, with a channel to one namespace.
struct Host {
    core: CoreShared,
    pool: BufferPool,
    channel: Box<dyn IoChannel>,
    next: u64,
    held: BTreeSet<IoTag>,
    done: Vec<IoCompletion>,
}

fn options() -> ControllerOptions {
    ControllerOptions {
        hugepages: false,
        queue_depth: 32,
        timeout: Duration::from_secs(8),
        ..ControllerOptions::default()
    }
}

impl World {
    fn new(fake: &Arc<Fake>, cores: u16) -> World {
        World::with(fake, cores, options())
    }

    fn with(fake: &Arc<Fake>, cores: u16, options: ControllerOptions) -> World {
        let controller = Controller::new(fake.device(), options, cores).unwrap();
        let mut world = World { fake: fake.clone(), controller, now: Instant::from_nanos(1) };
        world.until(ControllerState::Ready);
        world
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(10);
        let _ = self.controller.poll(self.now);
        self.fake.look();
    }

    fn until(&mut self, state: ControllerState) {
        for _ in 0..20_000 {
            if self.controller.state() == state {
                return;
            }
            self.step();
        }
        panic!("{:?} instead of {state:?}: {:?}", self.controller.state(), self.controller.failure());
    }

    fn namespace(&self, nsid: u32) -> Arc<Namespace> {
        self.controller.namespaces().into_iter().find(|namespace| namespace.nsid() == nsid).unwrap()
    }

    fn host(&self, core: u16, nsid: u32) -> Host {
        Host::new(core, self.namespace(nsid).as_ref())
    }

    /// Lets everything run until the hosts have nothing outstanding; their completions.
    fn drain(&mut self, hosts: &mut [&mut Host]) {
        for _ in 0..20_000 {
            self.step();
            for host in hosts.iter_mut() {
                host.turn(self.now);
            }
            if hosts.iter().all(|host| host.held.is_empty()) {
                return;
            }
        }
        panic!("{:?} never completed", hosts.iter().map(|host| &host.held).collect::<Vec<_>>());
    }
}

impl Host {
    fn new(core: u16, namespace: &Namespace) -> Host {
        let classes = [PoolClass { size: 4096, count: 64 }, PoolClass { size: 1 << 20, count: 8 }];
        let memory = HugeMemory::shared(BufferPool::memory_length(&classes), false).unwrap();
        let pool = BufferPool::new(Box::new(memory), &classes);
        let core = CoreShared::with_pool(CoreId(core), &pool);
        let channel = namespace.open_channel(&core).unwrap();
        Host { core, pool, channel, next: 1, held: BTreeSet::new(), done: Vec::new() }
    }

    fn buffer(&self, length: usize, byte: u8) -> DataBuf {
        let mut data = self.pool.acquire(length as u32).unwrap();
        data.fill(byte);
        data
    }

    fn submit(&mut self, op: BlockOp, lba: u64, blocks: u64, data: Option<DataBuf>) -> IoTag {
        let tag = IoTag(self.next);
        self.next += 1;
        assert!(self.channel.submit(BlockIo { tag, op, lba, blocks, data }).is_ok(), "the channel is full");
        self.held.insert(tag);
        tag
    }

    fn turn(&mut self, now: Instant) {
        self.channel.flush();
        let (held, done) = (&mut self.held, &mut self.done);
        let _ = self.channel.poll(now, &mut |completion| {
            assert!(held.remove(&completion.tag), "{:?} completed twice", completion.tag);
            done.push(completion);
        });
        let mut reported = BTreeSet::new();
        self.channel.for_each_held(&mut |tag| assert!(reported.insert(tag)));
        assert_eq!(reported, self.held);
    }

    /// The only completion since the last look.
    fn only(&mut self) -> IoCompletion {
        assert_eq!(self.done.len(), 1);
        self.done.pop().unwrap()
    }
}

/// One request from beginning to end.
fn one(
    world: &mut World,
    host: &mut Host,
    op: BlockOp,
    lba: u64,
    blocks: u64,
    data: Option<DataBuf>,
) -> IoCompletion {
    host.submit(op, lba, blocks, data);
    world.drain(&mut [host]);
    host.only()
}

const WRITE: BlockOp = BlockOp::Write { fua: false };
type Answer = Result<bdev::IoValue, BlockError>;
const DONE: Answer = Ok(bdev::IoValue::Done);
