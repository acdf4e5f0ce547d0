//! A socket to bother a served model by: one command a line, one answer a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::faults::{AbortManner, CommandFault};
use super::model::Model;
use super::server::LiveModel;

/// What can be asked.
pub const HELP: &str = "statistics | resize NSID BLOCKS | attach NSID | detach NSID | power-cut | remove | restore | \
    fail | hang QUEUE | hang-admin | abort honest|nothing|lies|late | storm COUNT | heal | \
    rate late|lost|duplicate|wrong-phase|unknown-cid|wrong-queue|wild-head|media|transient|internal|fatal PER_MILLION | \
    next lost|duplicate|wrong-phase|unknown-cid|wrong-queue|wild-head|fatal";

/// Listens at `path` on a thread of its own.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(live: &LiveModel, path: &Path) -> std::io::Result<()> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let live = live.clone();
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(e) = talk(&live, &stream) {
                eprintln!("nvme-model: control: {e}");
            }
        }
    })?;
    Ok(())
}

fn talk(live: &LiveModel, stream: &UnixStream) -> std::io::Result<()> {
    let mut answers = stream;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let answer = live.with(|model| obey(model, &line)).unwrap_or_else(|e| format!("error: {e}"));
        println!("control: {line}: {answer}");
        writeln!(answers, "{answer}")?;
    }
    Ok(())
}

/// Carries out one line.
///
/// # Errors
/// A sentence, when the line means nothing or cannot be done.
pub fn obey(model: &mut Model, line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let verb = words.next().unwrap_or("");
    let words: Vec<&str> = words.collect();
    let number = |at: usize| -> Result<u64, String> {
        let word = words.get(at).ok_or_else(|| format!("{verb} needs more words: {HELP}"))?;
        word.parse().map_err(|_| format!("{word:?} is not a number"))
    };
    let small = |at: usize| u32::try_from(number(at)?).map_err(|e| e.to_string());
    match verb {
        "statistics" => return Ok(format!("{:?}", model.statistics())),
        "resize" => model.resize_namespace(small(0)?, number(1)?).map_err(|e| e.to_string())?,
        "attach" | "detach" => {
            if !model.attach_namespace(small(0)?, verb == "attach") {
                return Err("no such namespace".to_owned());
            }
        }
        "power-cut" => model.power_cut().map_err(|e| e.to_string())?,
        "remove" => model.remove(),
        "restore" => model.restore(),
        "fail" => model.fail(),
        "hang" => {
            if !model.hang_queue(u16::try_from(number(0)?).map_err(|e| e.to_string())?) {
                return Err("no such queue".to_owned());
            }
        }
        "hang-admin" => model.faults_mut().admin_hung = true,
        "abort" => {
            model.faults_mut().abort = match words.first() {
                Some(&"honest") => AbortManner::Honest,
                Some(&"nothing") => AbortManner::Nothing,
                Some(&"lies") => AbortManner::Lies,
                Some(&"late") => AbortManner::Late(Duration::from_millis(500)),
                _ => return Err(format!("abort how? {HELP}")),
            }
        }
        "storm" => model.event_storm(small(0)?),
        "heal" => model.faults_mut().heal(),
        "rate" => set_rate(model, words.first().copied().unwrap_or(""), small(1)?)?,
        "next" => {
            let fault = match words.first() {
                Some(&"lost") => CommandFault::Lost,
                Some(&"duplicate") => CommandFault::Duplicate,
                Some(&"wrong-phase") => CommandFault::WrongPhase,
                Some(&"unknown-cid") => CommandFault::UnknownCid,
                Some(&"wrong-queue") => CommandFault::WrongQueue,
                Some(&"wild-head") => CommandFault::WildHead,
                Some(&"fatal") => CommandFault::Fatal,
                _ => return Err(format!("which fault? {HELP}")),
            };
            model.faults_mut().plan(0, fault);
        }
        _ => return Err(format!("{verb:?} is none of: {HELP}")),
    }
    Ok("done".to_owned())
}

/// Sets how often a fault happens, by its name in [`HELP`].
///
/// # Errors
/// When there is no such fault.
pub fn set_rate(model: &mut Model, name: &str, per_million: u32) -> Result<(), String> {
    let rates = &mut model.faults_mut().rates;
    let rate = match name {
        "late" => {
            rates.late_max = Duration::from_millis(50);
            &mut rates.late
        }
        "lost" => &mut rates.lost,
        "duplicate" => &mut rates.duplicate,
        "wrong-phase" => &mut rates.wrong_phase,
        "unknown-cid" => &mut rates.unknown_cid,
        "wrong-queue" => &mut rates.wrong_queue,
        "wild-head" => &mut rates.wild_head,
        "media" => &mut rates.media,
        "transient" => &mut rates.transient,
        "internal" => &mut rates.internal,
        "fatal" => &mut rates.fatal,
        _ => return Err(format!("{name:?} is no fault: {HELP}")),
    };
    *rate = per_million;
    Ok(())
}
