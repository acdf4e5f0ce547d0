//! Which log lines are shown, changeable while the daemon runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Filter};

/// The levels, as SPDK names them, from the gravest. `NOTICE` is what tracing calls info, `INFO` its debug, `DEBUG`
/// its trace.
pub const LEVELS: [&str; 5] = ["ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"];

/// Parts of the daemon that may be made to say everything.
pub const FLAGS: [&str; 7] = ["bdev", "control", "fabrics", "iscsi", "reactor", "rpc", "scsi"];

const NOTICE: u8 = 2;

#[derive(Debug)]
struct Inner {
    level: AtomicU8,
    print_level: AtomicU8,
    timestamps: AtomicBool,
    flags: [AtomicBool; FLAGS.len()],
}

/// The switches of the log. Clones are the same switches.
#[derive(Debug, Clone)]
pub struct LogControl(Arc<Inner>);

impl Default for LogControl {
    fn default() -> LogControl {
        LogControl(Arc::new(Inner {
            level: AtomicU8::new(NOTICE),
            print_level: AtomicU8::new(NOTICE),
            timestamps: AtomicBool::new(true),
            flags: Default::default(),
        }))
    }
}

/// The number of a level's name.
#[must_use]
pub fn level_number(name: &str) -> Option<u8> {
    LEVELS.iter().position(|known| known.eq_ignore_ascii_case(name)).and_then(|at| u8::try_from(at).ok())
}

impl LogControl {
    /// The level of the log.
    #[must_use]
    pub fn level(&self) -> &'static str {
        name_of(self.0.level.load(Ordering::Relaxed))
    }

    /// The level of what goes to standard error. There is no other log, so the higher of the two levels counts.
    #[must_use]
    pub fn print_level(&self) -> &'static str {
        name_of(self.0.print_level.load(Ordering::Relaxed))
    }

    /// Sets the level of the log, by its number in [`LEVELS`].
    pub fn set_level(&self, level: u8) {
        self.0.level.store(level, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets the level of standard error, by its number in [`LEVELS`].
    pub fn set_print_level(&self, level: u8) {
        self.0.print_level.store(level, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Whether lines begin with the time.
    pub fn set_timestamps(&self, on: bool) {
        self.0.timestamps.store(on, Ordering::Relaxed);
    }

    /// Switches one part (or `"all"`); false when there is no such part.
    #[must_use]
    pub fn set_flag(&self, flag: &str, on: bool) -> bool {
        let mut found = false;
        for (name, switch) in FLAGS.iter().zip(&self.0.flags) {
            if flag == *name || flag == "all" {
                switch.store(on, Ordering::Relaxed);
                found = true;
            }
        }
        tracing::callsite::rebuild_interest_cache();
        found
    }

    /// Each part and whether it is on.
    pub fn flags(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        FLAGS.iter().zip(&self.0.flags).map(|(name, switch)| (*name, switch.load(Ordering::Relaxed)))
    }

    fn threshold(&self) -> LevelFilter {
        match self.0.level.load(Ordering::Relaxed).max(self.0.print_level.load(Ordering::Relaxed)) {
            0 => LevelFilter::ERROR,
            1 => LevelFilter::WARN,
            NOTICE => LevelFilter::INFO,
            3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }

    fn shows(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.threshold()
            || self.flags().any(|(name, on)| on && metadata.target().split("::").any(|part| part == name))
    }
}

fn name_of(level: u8) -> &'static str {
    LEVELS.get(usize::from(level)).copied().unwrap_or("DEBUG")
}

impl<S: Subscriber> Filter<S> for LogControl {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.shows(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // Rebuilt at every change, so a disabled line costs one load.
        if self.shows(metadata) {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        if self.flags().any(|(_, on)| on) { Some(LevelFilter::TRACE) } else { Some(self.threshold()) }
    }
}

impl FormatTime for LogControl {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        if self.0.timestamps.load(Ordering::Relaxed) { SystemTime.format_time(writer) } else { Ok(()) }
    }
}

/// Makes standard error the place of the log, once for the process; later calls change nothing.
pub fn install(log: &LogControl) {
    use std::io::IsTerminal;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_timer(log.clone())
        .with_filter(log.clone());
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_flags() {
        let log = LogControl::default();
        assert_eq!((log.level(), log.print_level()), ("NOTICE", "NOTICE"));
        assert_eq!(log.threshold(), LevelFilter::INFO);
        log.set_print_level(level_number("debug").unwrap());
        assert_eq!(log.threshold(), LevelFilter::TRACE);
        assert_eq!(level_number("LOUD"), None);
        assert!(!log.set_flag("nothing", true));
        assert!(log.set_flag("iscsi", true));
        assert_eq!(log.flags().filter(|(_, on)| *on).map(|(name, _)| name).collect::<Vec<_>>(), ["iscsi"]);
        assert!(log.set_flag("all", false));
        assert_eq!(log.flags().filter(|(_, on)| *on).count(), 0);
    }
}
