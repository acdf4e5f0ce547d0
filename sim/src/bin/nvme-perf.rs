//! How fast the NVMe driver is on one core: reads of 4 KiB from the model in the same thread, which copies no payload.
//!
//! usage: `nvme-perf [QUEUE_DEPTH] [SECONDS]`

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, CoreId, Instant, PoolClass};
use bdev::{BlockDevice, BlockIo, BlockOp, CoreShared, IoTag};
use nvme_backend::{Controller, ControllerOptions, ControllerState};
use reactor::HugeMemory;
use sim::nvme::{Config, Model, ModelDevice, NamespaceConfig};

const BLOCKS: u64 = 16_384;

fn measure(depth: u16, seconds: u64) -> Result<(), String> {
    let namespace = NamespaceConfig { bytes: BLOCKS * 4096, format: 1, ..NamespaceConfig::default() };
    let config = Config { light: true, namespaces: vec![namespace], ..Config::default() };
    let device = ModelDevice::new("model", Model::new(config)?);
    let options = ControllerOptions { hugepages: false, queue_depth: depth, ..ControllerOptions::default() };
    let controller =
        Controller::new(Arc::new(device.clone()), options, 1).map_err(|error| error.to_string())?;
    let mut now = Instant::from_nanos(1);
    while controller.state() != ControllerState::Ready {
        now = now + Duration::from_micros(10);
        device.step(now);
        let _ = controller.poll(now);
    }
    let classes = [PoolClass { size: 4096, count: u32::from(depth) }];
    let pool =
        BufferPool::new(Box::new(HugeMemory::shared(BufferPool::memory_length(&classes), false)?), &classes);
    let core = CoreShared::with_pool(CoreId(0), &pool);
    let namespace = controller.namespaces().first().cloned().ok_or("the model has no namespace")?;
    let mut channel = namespace.open_channel(&core).map_err(|error| format!("{error:?}"))?;
    let (mut submitted, mut done, mut failed) = (0u64, 0u64, 0u64);
    let mut free: Vec<_> = (0..depth).filter_map(|_| pool.acquire(4096)).collect();
    // How much of the time is the model's is measured in the same run: every thousandth turn.
    let (mut turns, mut model_nanos, mut model_turns) = (0u64, 0u64, 0u64);
    let start = std::time::Instant::now();
    let limit = Duration::from_secs(seconds);
    loop {
        turns += 1;
        while let Some(data) = free.pop() {
            let lba = submitted.wrapping_mul(7919) % BLOCKS;
            let io = BlockIo { tag: IoTag(submitted), op: BlockOp::Read, lba, blocks: 1, data: Some(data) };
            if let Err(io) = channel.submit(io) {
                free.extend(io.data);
                break;
            }
            submitted += 1;
        }
        channel.flush();
        if turns.is_multiple_of(1000) {
            now = now + start.elapsed().saturating_sub(Duration::from_nanos(now.as_nanos()));
            let before = std::time::Instant::now();
            device.step(now);
            model_nanos += before.elapsed().as_nanos() as u64;
            model_turns += 1;
            if start.elapsed() >= limit {
                break;
            }
        } else {
            device.step(now);
        }
        let _ = channel.poll(now, &mut |completion| {
            done += 1;
            failed += u64::from(completion.result.is_err());
            free.extend(completion.data);
        });
    }
    let elapsed = start.elapsed();
    let rate = done as f64 / elapsed.as_secs_f64();
    let model = model_nanos as f64 * turns as f64 / model_turns.max(1) as f64 / elapsed.as_nanos() as f64;
    let statistics = controller.statistics();
    println!(
        "depth {depth}: {:.2} M reads/s of 4 KiB, {:.0} ns each, of which {:.0} % in the model ({:.0} ns in the driver); {failed} failed; {:.4} doorbells per command",
        rate / 1e6,
        1e9 / rate,
        100.0 * model,
        1e9 / rate * (1.0 - model),
        (statistics.submission_doorbells + statistics.completion_doorbells) as f64
            / statistics.commands.max(1) as f64,
    );
    Ok(())
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let depth = arguments.next().and_then(|depth| u16::try_from(depth).ok()).unwrap_or(128);
    match measure(depth, arguments.next().unwrap_or(5)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvme-perf: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
