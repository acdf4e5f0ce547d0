//! `polluxd`: the daemon's command line.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pollux::control::link::ReactorMode;
use pollux::control::log::{self, LogControl};
use pollux::daemon::{self, Options};
use pollux::limits::{BUFFER_MIB_DEFAULT, BUFFER_MIB_MIN};
use reactor::{CoreMask, Topology};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("POLLUX_COMMIT"),
    ", features ",
    env!("POLLUX_FEATURES"),
    ")"
);

const EXAMPLES: &str = "\
Examples:
  polluxd                          one reactor, sleeping when idle, no root and no hugepages needed
  polluxd -c node.json             with a configuration (made by \"scripts/rpc.py save_config\")
  polluxd -m 0x3 --mode poll       two reactors on CPUs 0 and 1 that never sleep

Then, from another terminal: pollux status, pollux methods, scripts/rpc.py METHOD key=value";

/// A SCSI target and storage appliance in user space, controlled by JSON-RPC.
#[derive(Parser)]
#[command(name = "polluxd", version = VERSION, after_help = EXAMPLES)]
struct Arguments {
    /// Configuration file, in the form "rpc.py save_config" prints
    #[arg(short = 'c', long, value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// RPC socket [default: /var/tmp/pollux.sock for root, else pollux.sock in $XDG_RUNTIME_DIR]
    #[arg(short = 'r', long, value_name = "SOCKET")]
    rpc_socket: Option<PathBuf>,
    /// CPUs, one reactor for each: 0x3, [0,2-3] or 0,1 [default: one reactor]
    #[arg(short = 'm', long, value_name = "MASK", allow_hyphen_values = true)]
    cpumask: Option<String>,
    /// What idle reactors do: poll (spin) or adaptive (sleep); reactor_set_mode switches it live
    #[arg(long, value_name = "MODE", default_value = "adaptive")]
    mode: ReactorMode,
    /// Wait for framework_start_init before loading the configuration
    #[arg(long)]
    wait_for_rpc: bool,
    /// Buffer memory of each reactor in MiB
    #[arg(long, value_name = "MIB", default_value_t = BUFFER_MIB_DEFAULT,
          value_parser = clap::value_parser!(u64).range(BUFFER_MIB_MIN..=1 << 20))]
    memory: u64,
    /// Take buffer memory from 2 MiB hugepages where the system has some
    #[arg(long)]
    hugepages: bool,
    /// Let vfio-user device servers map buffer memory that is not of hugepages, too
    #[arg(long)]
    shared_buffers: bool,
    /// Show log lines up to this level: ERROR, WARNING, NOTICE, INFO or DEBUG
    #[arg(short = 'L', long, value_name = "LEVEL", default_value = "NOTICE")]
    log_level: String,
}

fn options(arguments: Arguments) -> Result<Options, String> {
    let cpus = match arguments.cpumask {
        None => Vec::new(),
        Some(text) => {
            let mask = CoreMask::parse(&text).map_err(|error| format!("-m: {error}"))?;
            Topology::discover().check(&mask).map_err(|error| format!("-m: {error}"))?;
            mask.cpus().to_vec()
        }
    };
    Ok(Options {
        config: arguments.config,
        cpus,
        mode: arguments.mode,
        wait_for_rpc: arguments.wait_for_rpc,
        memory_mib: arguments.memory,
        hugepages: arguments.hugepages,
        shared_buffers: arguments.shared_buffers,
        ..Options::new(arguments.rpc_socket.unwrap_or_else(daemon::default_socket))
    })
}

/// Turns the first SIGINT or SIGTERM into a clean stop, the second into an end at once. A thread of its own, so that
/// nothing the control plane does can delay it.
fn watch_signals(stop: watch::Sender<bool>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            for again in [false, true] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if again {
                    std::process::exit(130);
                }
                tracing::info!(target: "control", "stopping");
                stop.send_replace(true);
            }
        });
    })?;
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let control = LogControl::default();
    let run = || -> Result<(), String> {
        let level = log::level_number(&arguments.log_level).ok_or_else(|| {
            format!(
                "-L: {:?} is not a level. Remedy: use one of {}",
                arguments.log_level,
                log::LEVELS.join(", ")
            )
        })?;
        control.set_print_level(level);
        control.set_level(level);
        log::install(&control);
        let options = options(arguments)?;
        let (stop, _) = watch::channel(false);
        watch_signals(stop.clone()).map_err(|error| format!("cannot watch for signals: {error}"))?;
        daemon::run(&options, control.clone(), stop, || {})
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polluxd: {error}");
            ExitCode::FAILURE
        }
    }
}
