//! The user-space NVMe driver on the model of a controller: what every block device must pass, on controllers of many
//! kinds, with an oracle inside the model that sees every rule of the specification that the driver breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::Instant;
use bdev::conformance::{Traits, run};
use nvme_backend::{Controller, ControllerOptions, ControllerState, Namespace};
use sim::nvme::{Config, Model, ModelDevice, NamespaceConfig};

/// A controller on a model, with a clock that both follow.
struct World {
    device: ModelDevice,
    controller: Arc<Controller>,
    now: Instant,
}

impl World {
    fn new(config: Config, options: ControllerOptions, cores: u16) -> World {
        let device = ModelDevice::new("model", Model::new(config).unwrap());
        let controller = Controller::new(Arc::new(device.clone()), options, cores).unwrap();
        let mut world = World { device, controller, now: Instant::from_nanos(1) };
        for _ in 0..10_000 {
            world.step();
            if world.controller.state() == ControllerState::Ready {
                return world;
            }
        }
        panic!("{:?}: {:?}", world.controller.state(), world.controller.failure());
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(20);
        self.device.step(self.now);
        let _ = self.controller.poll(self.now);
    }

    fn namespace(&self) -> Arc<Namespace> {
        self.controller.namespaces().first().cloned().unwrap()
    }

    /// Runs the kit on the first namespace, while another thread is the device and the service thread.
    fn conforms(mut self, seed: u64) -> World {
        let namespace = self.namespace();
        assert_eq!(namespace.unusable(), None);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    self.step();
                    std::thread::yield_now();
                }
                self
            }
        });
        run(namespace.as_ref(), seed, 400, Traits::default());
        stop.store(true, Ordering::Relaxed);
        let world = thread.join().unwrap();
        let violations = world.device.model().take_violations();
        assert!(violations.is_empty(), "{violations:#?}");
        world
    }
}

fn options() -> ControllerOptions {
    ControllerOptions { hugepages: false, queue_depth: 64, ..ControllerOptions::default() }
}

fn namespace(format: u8, extended: bool, protection: u8) -> Vec<NamespaceConfig> {
    vec![NamespaceConfig { bytes: 8 << 20, format, extended, protection, ..NamespaceConfig::default() }]
}

#[test]
fn every_kind_of_controller_passes_what_every_device_must() {
    let plain = || Config { namespaces: namespace(0, false, 0), ..Config::default() };
    let kinds = [
        ("plain", plain(), options(), 1),
        (
            "no SGL, no shadow doorbells",
            Config { sgl: false, shadow_doorbells: false, ..plain() },
            options(),
            1,
        ),
        ("small transfers", Config { mdts: 1, sgl: false, ..plain() }, options(), 1),
        ("no limit", Config { mdts: 0, ..plain() }, options(), 1),
        ("tiny queues", Config { entries_max: 2, ..plain() }, options(), 1),
        ("wide doorbells", Config { doorbell_stride: 3, ..plain() }, options(), 1),
        ("shared queue pair", Config { queue_pairs: 1, ..plain() }, options(), 3),
        ("no cache", Config { write_cache: false, ..plain() }, options(), 1),
        ("4 KiB blocks", Config { namespaces: namespace(1, false, 0), ..Config::default() }, options(), 1),
        ("metadata apart", Config { namespaces: namespace(2, false, 0), ..Config::default() }, options(), 1),
        (
            "protection type 1",
            Config { namespaces: namespace(3, false, 1), ..Config::default() },
            options(),
            1,
        ),
        (
            "protection type 2, extended",
            Config { namespaces: namespace(2, true, 2), ..Config::default() },
            options(),
            1,
        ),
        (
            "protection type 3",
            Config { namespaces: namespace(3, true, 3), ..Config::default() },
            options(),
            1,
        ),
    ];
    for (seed, (name, config, options, cores)) in kinds.into_iter().enumerate() {
        println!("{name}");
        let world = World::new(config, options, cores).conforms(seed as u64);
        world.controller.detach();
        let mut world = world;
        for _ in 0..1000 {
            world.step();
        }
        assert_eq!(world.controller.state(), ControllerState::Detached, "{name}");
    }
}
