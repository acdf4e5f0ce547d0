//! `sim nvme`: runs worlds of the NVMe driver.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::TRACE;
use crate::nvme_world::{Scenario, Summary, run as run_world};
use crate::oracle::Violation;

/// Seeds that once found a bug, each with a word on it.
const PINNED: &str = include_str!("../pinned_nvme_seeds.txt");
/// Requests of one world.
const COMMANDS: u64 = 1000;

/// What to simulate.
#[derive(clap::Args)]
pub struct Arguments {
    /// Replay this one seed and print its summary
    seed: Option<u64>,
    /// Run seeds until so many requests were made
    #[arg(long, default_value_t = 0)]
    commands: u64,
    /// The first of those seeds
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run every pinned seed, each twice: a seed must give the same history again
    #[arg(long)]
    pinned: bool,
    /// Stop at the first violation
    #[arg(long)]
    stop_at_first: bool,
    /// Threads; each runs worlds of its own
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// With a seed: print what happens
    #[arg(long, requires = "seed")]
    trace: bool,
}

#[derive(Default)]
struct Totals {
    worlds: u64,
    violations: u64,
    good: u64,
    failed: u64,
    resets: u64,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: &Result<Summary, Violation>) {
        self.worlds += 1;
        match outcome {
            Ok(summary) => {
                self.good += summary.good;
                self.failed += summary.failed;
                self.resets += summary.resets;
            }
            Err(violation) => {
                self.violations += 1;
                println!(
                    "nvme seed {seed}: violation at {} us: {}",
                    violation.at.as_nanos() / 1000,
                    violation.what
                );
            }
        }
    }
}

/// Runs what was asked for.
pub fn run(arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let totals = Mutex::new(Totals::default());
    let add = |seed: u64, outcome: &Result<Summary, Violation>| {
        if let Ok(mut totals) = totals.lock() {
            totals.add(seed, outcome);
        }
    };
    if let Some(seed) = arguments.seed {
        TRACE.store(arguments.trace, Ordering::Relaxed);
        let scenario = Scenario::new(seed, COMMANDS);
        println!("{scenario:?}");
        let outcome = run_world(&scenario);
        add(seed, &outcome);
        if let Ok(summary) = outcome {
            println!("{summary:?}");
        }
    }
    if arguments.pinned {
        for line in PINNED.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let Some(seed) = line.split_whitespace().next().and_then(|word| word.parse().ok()) else {
                println!("sim/pinned_nvme_seeds.txt: {line:?} does not begin with a seed");
                return ExitCode::FAILURE;
            };
            let (first, second) =
                (run_world(&Scenario::new(seed, COMMANDS)), run_world(&Scenario::new(seed, COMMANDS)));
            add(seed, &first);
            if first.as_ref().ok() != second.as_ref().ok() {
                println!("nvme seed {seed}: violation: two runs of it differ");
                return ExitCode::FAILURE;
            }
        }
    }
    if arguments.commands > 0 {
        let worlds = arguments.commands.div_ceil(COMMANDS);
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..arguments.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= worlds {
                            break;
                        }
                        let seed = arguments.first_seed.saturating_add(number);
                        let outcome = run_world(&Scenario::new(seed, COMMANDS));
                        add(seed, &outcome);
                        if outcome.is_err() && arguments.stop_at_first {
                            next.store(worlds, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
    }
    let totals = totals.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{} worlds in {:.0} s: {} requests ended well, {} otherwise, {} controller resets, {} violations",
        totals.worlds,
        started.elapsed().as_secs_f64(),
        totals.good,
        totals.failed,
        totals.resets,
        totals.violations
    );
    println!("totals: {} passed, {} failed, 0 skipped", totals.worlds - totals.violations, totals.violations);
    if totals.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
