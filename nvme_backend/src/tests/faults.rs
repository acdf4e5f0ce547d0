use super::*;
use crate::{ControllerEvent, ResetReason, TimeoutAction};

/// A read that is being held by the fake.
fn held_read(world: &World, host: &mut Host) -> IoTag {
    world.fake.lock().faults.hold = true;
    let data = host.buffer(4096, 0xEE);
    let tag = host.submit(BlockOp::Read, 5, 1, Some(data));
    host.turn(world.now);
    tag
}

fn world() -> (Arc<Fake>, World) {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    fake.lock().namespaces.get_mut(&1).unwrap().media.fill(0x11);
    let world = World::new(&fake, 2);
    let _ = world.controller.take_events();
    (fake, world)
}

#[test]
fn a_late_command_is_aborted_and_tried_no_more() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    held_read(&world, &mut host);
    world.drain(&mut [&mut host]);
    let done = host.only();
    assert_eq!((done.result, done.data.is_some()), (Err(BlockError::Timeout), true));
    assert!(world.now >= Instant::ZERO + Duration::from_secs(8));
    assert!(world.now <= Instant::ZERO + Duration::from_secs(10));
    let statistics = world.controller.statistics();
    assert_eq!((statistics.timeouts, statistics.aborts, statistics.queue_resets), (1, 1, 0));
    fake.lock().faults.hold = false;
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, DONE);
}

#[test]
fn when_aborts_do_not_help_the_queue_is_reset_and_the_command_sent_again() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    let mut other = world.host(1, 1);
    fake.lock().faults.deaf = true;
    held_read(&world, &mut host);
    // The first life of the command is lost; the second one is answered.
    for _ in 0..2000 {
        world.step();
        if world.controller.statistics().queue_resets == 1 {
            fake.lock().faults.hold = false;
        }
        host.turn(world.now);
    }
    let done = host.only();
    assert_eq!(done.result, DONE);
    assert!(done.data.unwrap().iter().all(|&byte| byte == 0x11));
    let statistics = world.controller.statistics();
    assert_eq!((statistics.queue_resets, statistics.controller_resets, statistics.retries), (1, 0, 1));
    assert_eq!(world.controller.take_events(), [ControllerEvent::QueueReset { queue: 1 }]);
    // The other core did not notice.
    let data = other.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut other, BlockOp::Read, 0, 1, Some(data)).result, DONE);
    assert_eq!(host.pool.statistics().outstanding, 0);
}

#[test]
fn when_the_queue_cannot_be_reset_the_controller_is() {
    for shared in [false, true] {
        let (fake, mut world) = if shared {
            let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
            fake.lock().queues = 1;
            let world = World::new(&fake, 2);
            let _ = world.controller.take_events();
            (fake, world)
        } else {
            world()
        };
        let (mut host, mut other) = (world.host(0, 1), world.host(1, 1));
        fake.lock().faults.deaf = true;
        fake.lock().faults.undeletable = true;
        held_read(&world, &mut host);
        let data = other.buffer(4096, 0x77);
        other.submit(WRITE, 9, 1, Some(data));
        other.turn(world.now);
        let before = fake.lock().resets;
        for _ in 0..20_000 {
            world.step();
            host.turn(world.now);
            other.turn(world.now);
            if fake.lock().resets > before {
                fake.lock().faults = fake::Faults::default();
            }
        }
        let (first, second) = (host.only(), other.only());
        assert_eq!((first.result, second.result), (DONE, DONE));
        assert_eq!(fake.lock().namespaces[&1].media[9 * 4096], 0x77);
        let reason = ResetReason::AdminTimeout;
        let events = world.controller.take_events();
        assert!(events.contains(&ControllerEvent::ResetDone(reason)), "{events:?}");
        assert_eq!(world.controller.statistics().controller_resets, 1);
    }
}

#[test]
fn a_command_that_is_lost_again_and_again_fails() {
    let (fake, _) = world();
    let options = ControllerOptions { timeout_action: TimeoutAction::Reset, ..options() };
    let fake = {
        drop(fake);
        Fake::new(&[(1, FakeNamespace::new(12, 512))])
    };
    let mut world = World::with(&fake, 1, options);
    let mut host = world.host(0, 1);
    held_read(&world, &mut host);
    world.drain(&mut [&mut host]);
    assert_eq!(host.only().result, Err(BlockError::Timeout));
    assert_eq!(world.controller.statistics().controller_resets, 3);
    world.until(ControllerState::Ready);
    fake.lock().faults.hold = false;
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, DONE);
}

#[test]
fn a_controller_that_cannot_be_stopped_is_cut_off_before_buffers_come_back() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    let tag = held_read(&world, &mut host);
    fake.lock().faults.undisableable = true;
    world.controller.request_reset();
    let mut masters = true;
    for _ in 0..5000 {
        world.step();
        let before = fake.reach().1;
        host.turn(world.now);
        if !host.done.is_empty() {
            masters = before;
            break;
        }
    }
    assert!(!masters, "the buffer came back while the device could write to it");
    let done = host.only();
    assert_eq!((done.tag, done.result), (tag, Err(BlockError::Timeout)));
    assert_eq!(fake.reach().0, 0);
    assert_eq!(world.controller.state(), ControllerState::Failed);
    assert!(world.controller.failure().unwrap().contains("power-cycle"));
    // New requests are refused, until somebody asks for another try.
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, Err(BlockError::Internal));
    fake.lock().faults = fake::Faults::default();
    world.controller.request_reset();
    world.until(ControllerState::Ready);
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, DONE);
}

#[test]
fn a_controller_that_never_becomes_ready_fails_in_bounded_time() {
    let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
    fake.lock().faults.unready = true;
    let controller = Controller::new(fake.device(), options(), 1).unwrap();
    let mut world = World { fake, controller, now: Instant::from_nanos(1) };
    world.until(ControllerState::Failed);
    assert!(world.now < Instant::ZERO + Duration::from_secs(60));
    assert_eq!(world.fake.reach().0, 0);
}

#[test]
fn fatal_status_resets_and_io_goes_on() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    held_read(&world, &mut host);
    fake.lock().faults.fatal = true;
    fake.lock().faults.hold = false;
    world.drain(&mut [&mut host]);
    assert_eq!(host.only().result, DONE);
    let expected = [
        ControllerEvent::ResetBegun(ResetReason::FatalStatus),
        ControllerEvent::ResetDone(ResetReason::FatalStatus),
    ];
    assert_eq!(world.controller.take_events(), expected);
}

#[test]
fn what_nobody_wants_is_not_sent_again_after_a_reset() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    fake.lock().faults.deaf = true;
    let tag = held_read(&world, &mut host);
    host.channel.cancel(tag);
    world.controller.request_reset();
    world.drain(&mut [&mut host]);
    assert_eq!(host.only().result, Err(BlockError::Cancelled));
}

#[test]
fn a_cancelled_command_is_aborted() {
    let (_fake, mut world) = world();
    let mut host = world.host(0, 1);
    let tag = held_read(&world, &mut host);
    host.channel.cancel(tag);
    host.channel.cancel(tag);
    let start = world.now;
    world.drain(&mut [&mut host]);
    assert_eq!(host.only().result, Err(BlockError::Cancelled));
    assert!(world.now.since(start) < Duration::from_secs(1));
}

#[test]
fn removal_fails_everything_once_and_return_brings_it_back() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    let mut idle = world.host(1, 1);
    one(&mut world, &mut host, BlockOp::Flush, 0, 0, None);
    held_read(&world, &mut host);
    fake.remove();
    world.drain(&mut [&mut host]);
    assert_eq!(host.only().result, Err(BlockError::Gone));
    assert_eq!(world.controller.state(), ControllerState::Gone);
    assert!(!world.namespace(1).is_present());
    let data = idle.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut idle, BlockOp::Read, 0, 1, Some(data)).result, Err(BlockError::Gone));
    let (old, namespace) = (world.namespace(1), FakeNamespace::new(12, 512));
    let fake = Fake::new(&[(1, namespace)]);
    world.controller.replace(fake.device()).unwrap();
    world.fake = fake.clone();
    world.until(ControllerState::Ready);
    assert!(Arc::ptr_eq(&old, &world.namespace(1)));
    for host in [&mut host, &mut idle] {
        let data = host.buffer(4096, 0xCD);
        assert_eq!(one(&mut world, host, WRITE, 3, 1, Some(data)).result, DONE);
    }
    assert_eq!(fake.lock().namespaces[&1].media[3 * 4096], 0xCD);
    let events = world.controller.take_events();
    assert!(
        events.contains(&ControllerEvent::Gone) && events.contains(&ControllerEvent::Returned),
        "{events:?}"
    );
}

#[test]
fn another_medium_in_the_slot_is_another_namespace() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    fake.remove();
    world.until(ControllerState::Gone);
    let old = world.namespace(1);
    let fake = Fake::new(&[(1, FakeNamespace { nguid: [9; 16], ..FakeNamespace::new(12, 512) })]);
    world.controller.replace(fake.device()).unwrap();
    world.fake = fake.clone();
    world.until(ControllerState::Ready);
    assert!(!Arc::ptr_eq(&old, &world.namespace(1)) && !old.is_present());
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, Err(BlockError::Gone));
}

#[test]
fn a_cache_that_goes_with_its_device_is_a_failed_flush() {
    for (flushed, lost) in [(false, true), (true, false)] {
        let (fake, mut world) = world();
        let mut host = world.host(0, 1);
        let data = host.buffer(4096, 1);
        one(&mut world, &mut host, WRITE, 0, 1, Some(data));
        if flushed {
            one(&mut world, &mut host, BlockOp::Flush, 0, 0, None);
        }
        fake.remove();
        world.until(ControllerState::Gone);
        let events = world.controller.take_events();
        assert_eq!(events.contains(&ControllerEvent::CacheLost { nsid: 1 }), lost);
        let fake = Fake::new(&[(1, FakeNamespace::new(12, 512))]);
        world.controller.replace(fake.device()).unwrap();
        world.fake = fake;
        world.until(ControllerState::Ready);
        let expected = if lost { Err(BlockError::FlushFailed) } else { DONE };
        assert_eq!(one(&mut world, &mut host, BlockOp::Flush, 0, 0, None).result, expected);
    }
}

#[test]
fn completions_that_belong_to_nothing_are_counted_and_end_nothing() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    fake.lock().faults.twice = true;
    for _ in 0..100 {
        let data = host.buffer(4096, 0);
        assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, DONE);
    }
    assert_eq!(world.controller.statistics().strange_completions, 100);
    fake.lock().faults.twice = false;
    let tag = held_read(&world, &mut host);
    let held = fake.lock().held[0];
    {
        let mut state = fake.lock();
        let head = (state.log.len() % 33) as u16;
        state.post(1, 1, held.id ^ 0x4000, head, 0, 0);
        state.post(1, 2, held.id, head, 0, 0);
        state.post(1, 1, 0xFFFF, head, 0, 0);
        state.post(1, 1, held.id, 0x7777, 0, 0x281);
    }
    host.turn(world.now);
    let done = host.only();
    assert_eq!(
        (done.tag, done.result),
        (tag, Err(BlockError::Medium { lba: None })),
        "a wrong head harms nobody"
    );
    assert_eq!(world.controller.statistics().strange_completions, 104);
    for _ in 0..100 {
        world.step();
    }
    let events = world.controller.take_events();
    let counted = events.iter().map(|event| match event {
        ControllerEvent::StrangeCompletions { count } => *count,
        _ => 0,
    });
    assert_eq!(counted.sum::<u64>(), 104);
}

#[test]
fn a_channel_closed_under_way_keeps_the_devices_buffers_away_from_others() {
    let (fake, mut world) = world();
    let mut host = world.host(0, 1);
    held_read(&world, &mut host);
    let (pool, core) = (host.pool.clone(), host.core);
    drop(host.channel);
    assert_eq!(pool.statistics().outstanding, 1, "the device may still write to it");
    // The queue pair is made anew, and then the core works again.
    for _ in 0..100 {
        world.step();
    }
    assert_eq!(world.controller.statistics().queue_resets, 1);
    fake.lock().faults.hold = false;
    drop(core);
    let mut host = world.host(0, 1);
    let data = host.buffer(4096, 0);
    assert_eq!(one(&mut world, &mut host, BlockOp::Read, 0, 1, Some(data)).result, DONE);
}

#[test]
fn dropping_the_controller_lets_go_of_the_device() {
    let (fake, world) = world();
    let mut host = world.host(0, 1);
    let now = world.now;
    drop(world);
    assert_eq!(fake.reach(), (0, false));
    let data = host.buffer(4096, 0);
    host.submit(BlockOp::Read, 0, 1, Some(data));
    host.turn(now);
    assert_eq!(host.only().result, Err(BlockError::Gone));
}
