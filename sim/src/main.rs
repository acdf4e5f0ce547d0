//! The simulation: the production engine, iSCSI code, conductor and initiator on simulated cores, network, disks and time.
//! A seed replays exactly.

#![forbid(unsafe_code)]

/// Prints what happens, when a single seed is replayed with --trace.
macro_rules! trace {
    ($now:expr, $($words:tt)*) => {
        if crate::TRACE.load(std::sync::atomic::Ordering::Relaxed) {
            println!("{:>10} us  {}", $now.as_nanos() / 1000, format_args!($($words)*));
        }
    };
}

mod client;
mod disk;
mod network;
mod nvme_oracle;
mod nvme_run;
mod nvme_world;
mod oracle;
mod world;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;

use crate::oracle::Violation;
use crate::world::{Scenario, Summary};

/// Set by --trace.
static TRACE: AtomicBool = AtomicBool::new(false);

/// An event without its data.
fn brief(event: &initiator::Event) -> String {
    match event {
        initiator::Event::CommandDone { tag, response, status, sense, data, .. } => {
            format!(
                "tag {tag} ended: response {response}, {status:?}, sense {:02x?}, {} bytes",
                sense.get(..14),
                data.len()
            )
        }
        other => format!("{other:?}"),
    }
}

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// Seeds that once found a bug, each with a word on it.
const PINNED: &str = include_str!("../pinned_seeds.txt");

/// Simulates the whole target under faults and checks what must always hold.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    world: Option<World>,
    /// Replay this one seed and print its summary
    seed: Option<u64>,
    /// Run this many seeds
    #[arg(long, default_value_t = 0)]
    seeds: u64,
    /// The first of them: a number, or "random"
    #[arg(long, default_value = "1")]
    first_seed: String,
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
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Other worlds than the target's.
#[derive(clap::Subcommand)]
enum World {
    /// Simulates the NVMe driver on a model of a controller
    Nvme(nvme_run::Arguments),
}

#[derive(Default)]
struct Totals {
    worlds: AtomicU64,
    good: AtomicU64,
    failed: AtomicU64,
    steps: AtomicU64,
    violations: AtomicU64,
    stop: AtomicBool,
}

impl Totals {
    fn add(&self, seed: u64, outcome: &Result<Summary, Violation>) {
        self.worlds.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(summary) => {
                self.good.fetch_add(summary.commands_good, Ordering::Relaxed);
                self.failed.fetch_add(summary.commands_failed, Ordering::Relaxed);
                self.steps.fetch_add(summary.steps, Ordering::Relaxed);
            }
            Err(violation) => {
                self.violations.fetch_add(1, Ordering::Relaxed);
                println!(
                    "seed {seed}: violation at {} us: {}",
                    violation.at.as_nanos() / 1000,
                    violation.what
                );
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(World::Nvme(arguments)) = &arguments.world {
        return nvme_run::run(arguments);
    }
    let started = Instant::now();
    let totals = Totals::default();
    if let Some(seed) = arguments.seed {
        TRACE.store(arguments.trace, Ordering::Relaxed);
        let outcome = world::run(Scenario::new(seed));
        totals.add(seed, &outcome);
        println!("{:?}", Scenario::new(seed));
        if let Ok(summary) = &outcome {
            println!("{summary:?}");
        }
    }
    if arguments.pinned {
        run_pinned(&totals);
    }
    if arguments.seeds > 0 {
        let first = match arguments.first_seed.as_str() {
            "random" => {
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs() << 20)
            }
            text => match text.parse() {
                Ok(first) => first,
                Err(_) => {
                    eprintln!("error: --first-seed takes a number or \"random\", not {text:?}");
                    return ExitCode::from(2);
                }
            },
        };
        run_many(&arguments, first, &totals);
    }
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (worlds, violations) = (load(&totals.worlds), load(&totals.violations));
    if arguments.json {
        println!(
            "{{\"worlds\": {worlds}, \"violations\": {violations}, \"commands_good\": {}, \"commands_failed\": {}, \"steps\": {}, \"seconds\": {}}}",
            load(&totals.good),
            load(&totals.failed),
            load(&totals.steps),
            started.elapsed().as_secs()
        );
    } else {
        println!(
            "{worlds} worlds in {:.0} s: {} commands ended well, {} otherwise, {} steps, {violations} violations",
            started.elapsed().as_secs_f64(),
            load(&totals.good),
            load(&totals.failed),
            load(&totals.steps)
        );
        println!("totals: {} passed, {violations} failed, 0 skipped", worlds - violations);
    }
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_pinned(totals: &Totals) {
    for line in PINNED.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(seed) = line.split_whitespace().next().and_then(|word| word.parse().ok()) else {
            println!("sim/pinned_seeds.txt: {line:?} does not begin with a seed");
            totals.violations.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let first = world::run(Scenario::new(seed));
        let second = world::run(Scenario::new(seed));
        totals.add(seed, &first);
        if first.as_ref().ok().map(|s| s.fingerprint) != second.as_ref().ok().map(|s| s.fingerprint) {
            totals.violations.fetch_add(1, Ordering::Relaxed);
            println!("seed {seed}: violation: two runs of it differ");
        }
    }
}

fn run_many(arguments: &Arguments, first: u64, totals: &Totals) {
    println!("seeds {first} to {}", first.saturating_add(arguments.seeds - 1));
    let next = AtomicU64::new(0);
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= arguments.seeds || totals.stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let seed = first.saturating_add(number);
                        let outcome = world::run(Scenario::new(seed));
                        totals.add(seed, &outcome);
                        if outcome.is_err() && arguments.stop_at_first {
                            totals.stop.store(true, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| progress(arguments.seeds, totals, &finished));
        for worker in workers {
            if worker.join().is_err() {
                totals.violations.fetch_add(1, Ordering::Relaxed);
                totals.stop.store(true, Ordering::Relaxed);
            }
        }
        finished.store(true, Ordering::Relaxed);
    });
}

fn progress(seeds: u64, totals: &Totals, finished: &AtomicBool) {
    let tick = Duration::from_millis(200);
    let mut waited = Duration::ZERO;
    let terminal = std::io::stderr().is_terminal();
    let every = if terminal { Duration::from_secs(1) } else { Duration::from_secs(60) };
    while !finished.load(Ordering::Relaxed) {
        std::thread::sleep(tick);
        waited += tick;
        if waited >= every {
            waited = Duration::ZERO;
            let line = format!(
                "{} of {seeds} seeds, {} violations",
                totals.worlds.load(Ordering::Relaxed),
                totals.violations.load(Ordering::Relaxed)
            );
            let _ = if terminal {
                write!(std::io::stderr(), "\r{line}  ")
            } else {
                writeln!(std::io::stderr(), "{line}")
            };
        }
    }
    if terminal {
        eprintln!();
    }
}
