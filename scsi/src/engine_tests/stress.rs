//! Random commands, functions, losses and message orders. Two promises: every command ends exactly once, and no task
//! outlives the answer of a function that covered it.

use base::Prng;
use wire::scsi::TaskAttribute;

use super::world::*;
use crate::*;

struct Covered {
    function: u64,
    exchanges: Vec<u64>,
}

fn alive(w: &World) -> Vec<(usize, TaskTag)> {
    let mut all = Vec::new();
    for (core, c) in w.cores.iter().enumerate() {
        c.target.for_each_task(&mut |task| {
            if task.unit.is_some() {
                all.push((core, task.tag));
            }
        });
    }
    all
}

fn run(seed: u64, cores: u16) {
    let prng = &mut Prng::new(seed);
    let buffers = prng.between(3, 12) as u32;
    let device = FakeDevice::new(geometry());
    if prng.chance(1, 2) {
        device.reshape(able_geometry);
    }
    let mut w = World::on(device, cores, limits(), buffers);
    let mut controls = 10;
    let mut sessions: Vec<Option<(usize, u64, NexusId)>> = Vec::new();
    let mut token = 1;
    for _ in 0..4 {
        let core = prng.below(u64::from(cores)) as usize;
        let nexus = w.nexus(core, token, &format!("i{token}"));
        sessions.push(Some((core, token, nexus)));
        token += 1;
    }
    let mut covered: Vec<Covered> = Vec::new();
    for _ in 0..400 {
        for _ in 0..prng.below(12) {
            w.random_step(prng);
            check_covered(&w, &mut covered, seed);
        }
        for session in &mut sessions {
            if session.is_some_and(|(_, token, _)| w.drops.iter().any(|drop| drop.0 == token)) {
                *session = None;
            }
        }
        let at = prng.below(sessions.len() as u64) as usize;
        let Some((core, session, nexus)) = sessions[at] else {
            let core = prng.below(u64::from(cores)) as usize;
            // Now and then the identity of a session that is still there.
            let initiator = prng.below(sessions.len() as u64 + 2);
            w.request_nexus(core, token, &format!("i{initiator}"));
            w.settle();
            sessions[at] = w.established.get(&token).map(|&nexus| (core, token, nexus));
            token += 1;
            continue;
        };
        match prng.below(100) {
            0..=2 => {
                w.event(core, PortEvent::NexusLost { token: NexusToken(session) });
                sessions[at] = None;
            }
            3..=12 => {
                use TaskManagementFunction as F;
                let mine = |w: &World, all: bool| -> Vec<u64> {
                    let live = alive(w);
                    let is_mine = |e: &Exchange| all || (e.core == core && e.nexus == nexus);
                    let known =
                        w.exchanges.iter().filter(|(_, e)| live.contains(&(e.core, e.tag)) && is_mine(e));
                    known.map(|(&x, _)| x).collect()
                };
                let (function, exchanges) = match prng.below(4) {
                    0 => (F::AbortTaskSet, mine(&w, false)),
                    1 => (F::ClearTaskSet, mine(&w, true)),
                    2 => (F::LogicalUnitReset, mine(&w, true)),
                    _ => (F::AbortTask, Vec::new()),
                };
                let tag = mine(&w, false).first().copied();
                let exchanges = if function == F::AbortTask { tag.into_iter().collect() } else { exchanges };
                let function = w.function(core, nexus, function, tag);
                covered.push(Covered { function, exchanges });
            }
            13 | 14 => {
                device_goes_and_returns(&mut w, prng, controls, &mut covered, seed);
                controls += 2;
            }
            _ => send_something(&mut w, prng, core, nexus),
        }
    }
    w.settle();
    for _ in 0..20 {
        w.pass(3);
        w.settle();
    }
    let expected = |drop: &(u64, DropReason)| drop.1 == DropReason::Reinstated;
    let known = |note: &Notification| {
        matches!(note, Notification::DeviceGone { .. } | Notification::DeviceReturned { .. })
    };
    assert!(
        w.drops.iter().all(expected) && w.notes.iter().all(known),
        "seed {seed}: {:?} {:?}",
        w.drops,
        w.notes
    );
    for c in &covered {
        assert!(
            w.functions.contains_key(&c.function),
            "seed {seed}: function {} was never answered",
            c.function
        );
    }
    w.assert_clean();
    for (core, token, _) in sessions.into_iter().flatten() {
        w.event(core, PortEvent::NexusLost { token: NexusToken(token) });
    }
    w.settle();
    assert_nothing_is_left(&w, seed);
}

/// With the last session everything that was kept for one is gone.
fn assert_nothing_is_left(w: &World, seed: u64) {
    assert!(!super::changes::is_prevented(w), "seed {seed}: somebody who is gone prevents removal");
    for core in &w.cores {
        let target = &core.target;
        assert!(target.tickets.is_empty() && target.functions.is_empty() && target.resets.is_empty());
        assert!(target.claims.is_empty() && target.sessions.is_empty(), "seed {seed}");
    }
}

/// The device goes, as its next request or the control plane says; it comes back in a while.
fn device_goes_and_returns(w: &mut World, prng: &mut Prng, id: u64, covered: &mut Vec<Covered>, seed: u64) {
    let home = w.cores.len() - 1;
    if prng.chance(1, 2) {
        w.fail_next = Some(bdev::BlockError::Gone);
    } else {
        w.control(home, id, ControlRequest::MediumChanged { unit: UNIT, present: false });
    }
    for _ in 0..prng.below(40) {
        w.random_step(prng);
        check_covered(w, covered, seed);
    }
    w.control(home, id + 1, ControlRequest::MediumChanged { unit: UNIT, present: true });
}

/// No task outlives the answer of a function that covered it; forgets functions that were answered.
fn check_covered(w: &World, covered: &mut Vec<Covered>, seed: u64) {
    covered.retain(|c| {
        if !w.functions.contains_key(&c.function) {
            return true;
        }
        let alive = alive(w);
        for x in &c.exchanges {
            let record = &w.exchanges[x];
            assert!(!alive.contains(&(record.core, record.tag)), "seed {seed}: task {x} outlives its abort");
        }
        false
    });
}

fn send_something(w: &mut World, prng: &mut Prng, core: usize, nexus: NexusId) {
    let attribute = match prng.below(10) {
        0 => TaskAttribute::Ordered,
        1 => TaskAttribute::HeadOfQueue,
        _ => TaskAttribute::Simple,
    };
    let (lba, blocks) = (prng.below(200) as u32, prng.between(1, 40) as u16);
    let length = usize::from(blocks) * BLOCK;
    let room = w.cores[core].pool.statistics();
    let has_room = room.outstanding + 3 < room.slots;
    let immediate =
        if has_room && prng.chance(1, 3) { prng.below(length.min(4096) as u64) as usize } else { 0 };
    let data = |length: usize| vec![7; length];
    match prng.below(10) {
        0..=2 => w.command(core, nexus, attribute, &read10(lba, blocks), length as u32, &[], 0),
        3 | 4 => w.command(core, nexus, attribute, &write10(lba, blocks), 0, &data(length), immediate),
        5 => {
            let cdb = compare_and_write(u64::from(lba), 2);
            w.command(core, nexus, attribute, &cdb, 0, &data(4 * BLOCK), immediate.min(4 * BLOCK))
        }
        6 => match prng.below(4) {
            0 => w.command(core, nexus, attribute, &cdb10(0x2F, lba, blocks), 0, &[], 0),
            1 => {
                let cdb = write_atomic(u64::from(lba), 8);
                w.command(core, nexus, attribute, &cdb, 0, &data(8 * BLOCK), immediate.min(8 * BLOCK))
            }
            kind => {
                let mut cdb = cdb10(if kind == 2 { 0x2F } else { 0x2E }, lba, blocks);
                cdb[1] = 0x02;
                w.command(core, nexus, attribute, &cdb, 0, &data(length), immediate)
            }
        },
        7 => {
            let prevent = prng.below(2) as u8;
            w.command(core, nexus, attribute, &[0x1E, 0, 0, 0, prevent, 0], 0, &[], 0)
        }
        8 => {
            // MODE SELECT of the caching page.
            let mut list = [0; 24];
            list[4..7].copy_from_slice(&[0x08, 0x12, prng.below(2) as u8 * 0x04]);
            w.command(core, nexus, attribute, &[0x15, 0x10, 0, 0, 24, 0], 0, &list, immediate.min(24))
        }
        _ => w.command(core, nexus, attribute, &[0x12, 0, 0, 0, 36, 0], 36, &[], 0),
    };
}

#[test]
fn one_core() {
    for seed in 0..60 {
        run(seed, 1);
    }
}

#[test]
fn two_cores() {
    for seed in 1000..1060 {
        run(seed, 2);
    }
}

#[test]
fn three_cores() {
    for seed in 2000..2060 {
        run(seed, 3);
    }
}
