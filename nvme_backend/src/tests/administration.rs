use super::*;
use crate::{AdminAnswer, AdminError, AdminRequest, ControllerEvent, Transfer};

fn ask(world: &mut World, request: AdminRequest) -> Result<AdminAnswer, AdminError> {
    let ticket = world.controller.request(request)?;
    for _ in 0..1000 {
        world.step();
        if let Some(answer) = world.controller.take_answer(ticket) {
            assert!(world.controller.take_answer(ticket).is_none());
            return answer;
        }
    }
    panic!("no answer")
}

#[test]
fn namespaces_come_change_and_go() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    assert_eq!(world.controller.take_events(), [ControllerEvent::NamespaceAdded { nsid: 1 }]);
    let mut host = world.host(0, 1);
    fake.lock().namespaces.insert(2, FakeNamespace { nguid: [3; 16], ..FakeNamespace::new(9, 64) });
    let grown = FakeNamespace::new(12, 600);
    fake.lock().namespaces.insert(1, grown);
    let changed = |world: &mut World| {
        for _ in 0..10 {
            world.step();
        }
        world.fake.event(0x0004_0002);
        for _ in 0..10 {
            world.step();
        }
        world.controller.take_events()
    };
    let expected = [
        ControllerEvent::NamespaceChanged { nsid: 1, blocks: 600 },
        ControllerEvent::NamespaceAdded { nsid: 2 },
    ];
    assert_eq!(changed(&mut world), expected);
    assert_eq!(world.namespace(1).geometry().blocks, 600);
    // A channel that is open sees it.
    let data = host.buffer(4096, 5);
    assert_eq!(one(&mut world, &mut host, WRITE, 599, 1, Some(data)).result, DONE);
    fake.lock().namespaces.remove(&1);
    assert_eq!(changed(&mut world), [ControllerEvent::NamespaceRemoved { nsid: 1 }]);
    let data = host.buffer(4096, 5);
    assert_eq!(one(&mut world, &mut host, WRITE, 0, 1, Some(data)).result, Err(BlockError::Gone));
    fake.lock().namespaces.insert(1, FakeNamespace::new(12, 600));
    assert_eq!(changed(&mut world), [ControllerEvent::NamespaceAdded { nsid: 1 }]);
    let data = host.buffer(4096, 5);
    assert_eq!(one(&mut world, &mut host, WRITE, 0, 1, Some(data)).result, DONE);
}

#[test]
fn formats_that_cannot_be_used_are_named() {
    let cases = [
        (FakeNamespace { metadata: (16, 1), ..FakeNamespace::new(9, 64) }, "type 1 in 16 bytes"),
        (
            FakeNamespace { metadata: (8, 0), extended: true, ..FakeNamespace::new(9, 64) },
            "extended by 8 bytes",
        ),
        (FakeNamespace { shift: 3, ..FakeNamespace::new(9, 64) }, "2^3 bytes"),
        (FakeNamespace { shift: 63, ..FakeNamespace::new(9, 64) }, "2^63 bytes"),
        (FakeNamespace { blocks: u64::MAX, ..FakeNamespace::new(9, 64) }, "18446744073709551615 blocks"),
    ];
    for (namespace, reason) in cases {
        let fake = Fake::new(&[(1, namespace)]);
        let world = World::new(&fake, 1);
        let namespace = world.namespace(1);
        assert!(namespace.unusable().unwrap().contains(reason), "{:?}", namespace.unusable());
        assert!(namespace.open_channel(&CoreShared::new(CoreId(0))).is_err());
        assert!(matches!(
            world.controller.take_events()[..],
            [ControllerEvent::NamespaceUnusable { nsid: 1, .. }]
        ));
    }
}

#[test]
fn health_is_read_and_warnings_are_told_once() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    for _ in 0..10 {
        world.step();
    }
    let health = world.namespace(1).health().unwrap();
    assert_eq!((health.temperature_celsius, health.critical_warnings.any()), (Some(27), false));
    let _ = world.controller.take_events();
    fake.lock().health = 0b101;
    for _ in 0..3 {
        fake.event(0x0002_0101);
        for _ in 0..10 {
            world.step();
        }
    }
    assert_eq!(world.controller.take_events(), [ControllerEvent::HealthWarning { critical_warning: 0b101 }]);
    assert!(world.namespace(1).health().unwrap().critical_warnings.reliability);
    fake.event(0x0001_0200);
    for _ in 0..10 {
        world.step();
    }
    let entry = ControllerEvent::ErrorLogEntry { count: 9, status: 0, lba: 77, nsid: 1 };
    assert_eq!(world.controller.take_events(), [entry]);
    assert_eq!(world.controller.statistics().asynchronous_events, 4);
}

#[test]
fn requests_are_answered_once_and_senseless_ones_refused() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    let answer = ask(&mut world, AdminRequest::Identify { cns: 1, nsid: 0, csi: 0 });
    let Ok(AdminAnswer::Data { data, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!((&data[4..12], data.len()), (&b"FAKE0001"[..], 4096));
    let answer =
        ask(&mut world, AdminRequest::GetFeature { feature: 6, nsid: 0, select: 0, dword11: 0, length: 0 });
    assert_eq!(answer, Ok(AdminAnswer::Done { dword0: 0x55, dword1: 0 }));
    assert!(
        matches!(ask(&mut world, AdminRequest::Health), Ok(AdminAnswer::Health(log)) if log.temperature_kelvin == 300)
    );
    let answer = ask(&mut world, AdminRequest::Identify { cns: 0x77, nsid: 0, csi: 0 });
    assert_eq!(answer, Err(AdminError::Status(wire::nvme::Status::INVALID_FIELD)));
    let mut command = [0; 64];
    command[0] = 2;
    command[4] = 1;
    fake.lock().namespaces.get_mut(&1).unwrap().media[..4096].fill(0x42);
    let read = AdminRequest::Passthrough { io: true, command, transfer: Transfer::In(4096) };
    assert_eq!(ask(&mut world, read), Ok(AdminAnswer::Data { dword0: 0, data: vec![0x42; 4096] }));
    command[0] = 1;
    let write = AdminRequest::Passthrough { io: true, command, transfer: Transfer::Out(vec![0x43; 4096]) };
    assert_eq!(ask(&mut world, write), Ok(AdminAnswer::Done { dword0: 0, dword1: 0 }));
    assert_eq!(fake.lock().namespaces[&1].media[4095], 0x43);
    let refused = [
        AdminRequest::Log { page: 2, nsid: 0, length: 3 },
        AdminRequest::Log { page: 2, nsid: 0, length: 1 << 30 },
        AdminRequest::Passthrough { io: false, command: [0; 64], transfer: Transfer::None },
        AdminRequest::Format { nsid: 1, format: 64, secure_erase: 0, protection: 0, extended: false },
    ];
    for request in refused {
        assert!(matches!(world.controller.request(request), Err(AdminError::Invalid(_))));
    }
    for _ in 0..16 {
        world.controller.request(AdminRequest::Health).unwrap();
    }
    assert_eq!(world.controller.request(AdminRequest::Health), Err(AdminError::Busy));
}

#[test]
fn a_reset_answers_requests_that_it_cut_short() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    for _ in 0..10 {
        world.step();
    }
    fake.lock().faults.mute = true;
    let one = world.controller.request(AdminRequest::Health).unwrap();
    let forgotten = world.controller.request(AdminRequest::Health).unwrap();
    world.controller.forget(forgotten);
    world.step();
    fake.lock().faults.mute = false;
    world.controller.request_reset();
    for _ in 0..100 {
        world.step();
    }
    assert_eq!(world.controller.state(), ControllerState::Ready);
    assert_eq!(world.controller.take_answer(one), Some(Err(AdminError::Interrupted)));
    assert_eq!(world.controller.take_answer(forgotten), None);
}

#[test]
fn detaching_shuts_down_and_lets_go() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    let mut world = World::new(&fake, 1);
    let mut host = world.host(0, 1);
    fake.lock().faults.hold = true;
    let data = host.buffer(4096, 0);
    host.submit(BlockOp::Read, 0, 1, Some(data));
    host.turn(world.now);
    world.controller.detach();
    world.drain(&mut [&mut host]);
    assert_eq!(host.only().result, Err(BlockError::Gone));
    assert_eq!(world.controller.state(), ControllerState::Detached);
    assert_eq!(fake.reach(), (0, false));
    fake.lock().faults.hold = false;
    world.controller.replace(fake.device()).unwrap();
    world.until(ControllerState::Ready);
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, DONE);
}

#[test]
fn old_controllers_without_lists_are_searched() {
    // Ninety namespaces, of which the limit lets 10 in.
    let many: Vec<(u32, FakeNamespace)> = (1..=90)
        .map(|nsid| (nsid, FakeNamespace { nguid: [nsid as u8; 16], ..FakeNamespace::new(9, 8) }))
        .collect();
    let fake = Fake::new(&many);
    let world = World::with(&fake, 1, ControllerOptions { namespaces_max: 10, ..options() });
    assert_eq!(world.controller.namespaces().len(), 10);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, ..Default::default() })]
    #[test]
    fn a_controller_that_says_anything_makes_no_panic(
        garbage in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..600),
        posts in proptest::collection::vec(proptest::prelude::any::<(u16, u16, u16, u32, u16)>(), 0..60),
    ) {
        let fake = Fake::new(&[(1, FakeNamespace::new(9, 64))]);
        fake.lock().faults.garbage = Some(garbage);
        let controller = Controller::new(fake.device(), options(), 1).unwrap();
        let mut world = World { fake: fake.clone(), controller, now: Instant::from_nanos(1) };
        for _ in 0..3000 {
            world.step();
        }
        for (queue, named, id, dword0, status) in posts {
            fake.lock().post(queue % 3, named % 3, id % 64, id, dword0, status % 0x8000);
            world.step();
        }
        for namespace in world.controller.namespaces() {
            let geometry = namespace.geometry();
            if let Ok(mut channel) = namespace.open_channel(&CoreShared::new(CoreId(0))) {
                let io = BlockIo { tag: IoTag(1), op: BlockOp::Verify, lba: 0, blocks: geometry.blocks, data: None };
                let _ = channel.submit(io);
                channel.flush();
            }
        }
        for _ in 0..100 {
            world.step();
        }
    }
}
