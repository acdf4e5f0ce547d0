//! Fuzzing on stable Rust: one small binary for each parser, sharing this main loop.
//!
//! A target is a file in `src/bin/` that calls [`run`] with a [`Target`]. Without arguments it replays every file
//! of `corpus/NAME/` (and of `crashes/NAME/`); `--seconds N` then mutates them for that long, `--seed S` from another
//! start; `--write-seeds` writes the target's own seeds to the corpus. An input that makes the target panic is kept
//! in `crashes/NAME/`.
//!
//! The mutator does not see coverage: what reaches deep has to be in the corpus.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::Prng;

/// Inputs longer than this are cut: parsers take one PDU or one text at a time.
const INPUT_MAX: usize = 16 * 1024;
/// Values that sit at the edges of lengths, offsets and serial numbers.
const EDGES: [u32; 10] = [0, 1, 3, 4, 5, 0x7F, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF];

/// A parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the binary and of its corpus folder.
    pub name: &'static str,
    /// Feeds it one input. Panics when a property does not hold.
    pub run: fn(&[u8]),
    /// Inputs to start from: file name and bytes.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

struct Options {
    seconds: u64,
    seed: u64,
    write_seeds: bool,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { seconds: 0, seed: 1, write_seeds: false };
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse().ok());
            value.ok_or_else(|| format!("{argument} wants a number"))
        };
        match argument.as_str() {
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            "--write-seeds" => options.write_seeds = true,
            _ => {
                return Err(format!(
                    "unknown argument {argument}; known: --seconds N, --seed S, --write-seeds"
                ));
            }
        }
    }
    Ok(options)
}

/// Files of a folder in the order of their names; none when it does not exist.
fn files(folder: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.sort();
    paths.iter().filter(|path| path.is_file()).map(std::fs::read).collect()
}

/// One to eight changes to a corpus input.
pub fn mutate(prng: &mut Prng, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
    let pick = |prng: &mut Prng, length: usize| prng.below(length as u64) as usize;
    input.clear();
    if let Some(start) = corpus.get(pick(prng, corpus.len())) {
        input.extend_from_slice(start);
    }
    for _ in 0..prng.between(1, 8) {
        let at = pick(prng, input.len());
        match prng.below(8) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << prng.below(8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = prng.next_u64() as u8;
                }
            }
            2 | 3 => {
                let edge = EDGES[pick(prng, EDGES.len())].to_be_bytes();
                let width = 1 << prng.below(3);
                for (to, from) in input.iter_mut().skip(at).zip(&edge[4 - width..]) {
                    *to = *from;
                }
            }
            4 => input.truncate(at),
            5 => {
                let end = (at + pick(prng, 64)).min(input.len());
                let copy = input.get(at..end).unwrap_or(&[]).to_vec();
                let to = pick(prng, input.len() + 1);
                input.splice(to..to, copy);
            }
            6 => {
                let end = (at + pick(prng, 16)).min(input.len());
                input.drain(at..end);
            }
            _ => {
                if let Some(other) = corpus.get(pick(prng, corpus.len())) {
                    input.truncate(at);
                    input.extend_from_slice(other.get(pick(prng, other.len())..).unwrap_or(&[]));
                }
            }
        }
    }
    input.truncate(INPUT_MAX);
}

/// Keeps the input at hand for the panic hook, so that a crash leaves a file even where panics abort.
fn keep_crashes(folder: PathBuf) -> Arc<Mutex<Vec<u8>>> {
    let current = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&current);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |information| {
        before(information);
        let Ok(input) = seen.lock() else { return };
        let hash = input.iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let path = folder.join(format!("{hash:016x}"));
        let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, &*input));
        match kept {
            Ok(()) => eprintln!("input of {} bytes kept in {}", input.len(), path.display()),
            Err(error) => eprintln!("input not kept ({error}): {:02x?}", &*input),
        }
    }));
    current
}

fn go(target: Target) -> Result<(), String> {
    let options = options(std::env::args().skip(1))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus_folder = root.join("corpus").join(target.name);
    let crash_folder = root.join("crashes").join(target.name);
    let failed = |error: std::io::Error| error.to_string();
    if options.write_seeds {
        std::fs::create_dir_all(&corpus_folder).map_err(failed)?;
        for (name, bytes) in (target.seeds)() {
            std::fs::write(corpus_folder.join(name), bytes).map_err(failed)?;
        }
    }
    let mut corpus = files(&corpus_folder).map_err(failed)?;
    corpus.extend(files(&crash_folder).map_err(failed)?);
    if corpus.is_empty() {
        return Err(format!("no corpus in {}", corpus_folder.display()));
    }
    let current = keep_crashes(crash_folder);
    let feed = |input: &[u8]| {
        if let Ok(mut current) = current.lock() {
            current.clear();
            current.extend_from_slice(input);
        }
        (target.run)(input);
    };
    corpus.iter().for_each(|input| feed(input));
    println!("{}: {} inputs replayed", target.name, corpus.len());
    if options.seconds > 0 {
        let mut prng = Prng::new(options.seed);
        let (start, limit) = (Instant::now(), Duration::from_secs(options.seconds));
        let (mut count, mut input) = (0u64, Vec::new());
        while start.elapsed() < limit {
            for _ in 0..1000 {
                mutate(&mut prng, &corpus, &mut input);
                feed(&input);
            }
            count += 1000;
        }
        println!("{}: {count} mutated inputs, seed {}", target.name, options.seed);
    }
    Ok(())
}

/// The main function of every target.
#[must_use]
pub fn run(target: Target) -> ExitCode {
    match go(target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", target.name);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutation_follows_from_its_seed_and_stays_bounded() {
        let corpus = vec![vec![1, 2, 3, 4], vec![0xAA; 10_000], Vec::new()];
        let sequence = |seed| {
            let (mut prng, mut input) = (Prng::new(seed), Vec::new());
            let mut all = Vec::new();
            for _ in 0..2000 {
                mutate(&mut prng, &corpus, &mut input);
                assert!(input.len() <= INPUT_MAX);
                all.push(input.clone());
            }
            all
        };
        assert_eq!(sequence(3), sequence(3));
        assert_ne!(sequence(3), sequence(4));
        assert!(sequence(3).iter().any(|input| !corpus.contains(input)));
    }

    #[test]
    fn arguments() {
        let parse = |list: &[&str]| options(list.iter().map(|text| (*text).to_string()));
        let read = parse(&["--seconds", "3", "--write-seeds"]).unwrap_or_else(|error| panic!("{error}"));
        assert!(read.seconds == 3 && read.seed == 1 && read.write_seeds);
        assert!(parse(&["--seconds"]).is_err() && parse(&["--what"]).is_err());
    }
}
