//! `nvme-model`: serves the NVMe model over vfio-user, for virtual machines and user-space drivers.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sim::nvme::server::{LiveModel, serve};
use sim::nvme::{Config, FORMATS, Model, NamespaceConfig, control};

/// Serves a model of an NVMe controller over vfio-user. Rules that the host breaks are printed, one a line, beginning
/// with "violation:".
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Listen on this Unix socket
    #[arg(long)]
    socket: PathBuf,
    /// Bytes of each namespace, with K, M or G
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    size: u64,
    /// Namespaces
    #[arg(long, default_value_t = 1)]
    namespaces: u32,
    /// Bytes of data, and of metadata, in a block: 512, 4096, 512+8 or 4096+8
    #[arg(long, default_value = "512", value_parser = parse_format)]
    format: u8,
    /// Protection information type, with a format that has metadata
    #[arg(long, default_value_t = 0)]
    protection: u8,
    /// Metadata travels at the end of each block's data
    #[arg(long)]
    extended: bool,
    /// Every choice of the model follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the first namespace's blocks in this file
    #[arg(long)]
    file: Option<PathBuf>,
    /// Have a volatile write cache
    #[arg(long)]
    vwc: bool,
    /// I/O queue pairs
    #[arg(long, default_value_t = 16)]
    queues: u16,
    /// CAP.DSTRD
    #[arg(long, default_value_t = 0)]
    doorbell_stride: u8,
    /// MDTS
    #[arg(long, default_value_t = 7)]
    mdts: u8,
    /// No Doorbell Buffer Config
    #[arg(long)]
    no_shadow_doorbells: bool,
    /// Faults and how many of a million commands they befall: late=1000,lost=10
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Take commands on this Unix socket; "help" lists them
    #[arg(long)]
    control: Option<PathBuf>,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size such as 64M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

fn parse_format(text: &str) -> Result<u8, String> {
    let name = |i: usize| {
        let (data, metadata) = (1u32 << FORMATS[i].data_shift, FORMATS[i].metadata);
        if metadata == 0 { data.to_string() } else { format!("{data}+{metadata}") }
    };
    let found = (0..FORMATS.len()).find(|&i| name(i) == text);
    found.map(|i| i as u8).ok_or_else(|| format!("{text:?} is none of 512, 4096, 512+8, 4096+8"))
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let mut namespaces = Vec::new();
    for number in 0..arguments.namespaces {
        let file = match arguments.file.as_ref().filter(|_| number == 0) {
            Some(path) => {
                let mut options = std::fs::OpenOptions::new();
                let opened = options.read(true).write(true).create(true).truncate(false).open(path);
                Some(opened.map_err(|e| format!("{}: {e}", path.display()))?)
            }
            None => None,
        };
        namespaces.push(NamespaceConfig {
            bytes: arguments.size,
            format: arguments.format,
            extended: arguments.extended,
            protection: arguments.protection,
            file,
        });
    }
    let vectors = (arguments.queues + 1).min(64);
    let mut model = Model::new(Config {
        seed: arguments.seed,
        queue_pairs: arguments.queues,
        vectors,
        doorbell_stride: arguments.doorbell_stride,
        mdts: arguments.mdts,
        write_cache: arguments.vwc,
        shadow_doorbells: !arguments.no_shadow_doorbells,
        namespaces,
        ..Config::default()
    })?;
    for fault in &arguments.faults {
        let parsed = fault.split_once('=').and_then(|(name, rate)| Some((name, rate.parse().ok()?)));
        let (name, rate) =
            parsed.ok_or_else(|| format!("--faults {fault:?}: write name=rate, such as late=1000"))?;
        control::set_rate(&mut model, name, rate)?;
    }
    let live = LiveModel::start(model).map_err(|e| format!("no thread for the model: {e}"))?;
    if let Some(path) = &arguments.control {
        control::listen(&live, path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    println!("listening on {}", arguments.socket.display());
    serve(&live, &arguments.socket, vectors)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::FAILURE
        }
    }
}
