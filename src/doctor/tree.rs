//! A machine's /proc, /sys, /dev and /etc, or a made-up one below another root.

use std::path::{Path, PathBuf};

use reactor::CoreMask;

/// Files below a root.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// `/` is the machine itself.
    #[must_use]
    pub fn new(root: &Path) -> Tree {
        Tree { root: root.to_owned() }
    }

    /// True when it is the machine this runs on: only then can things be tried out.
    pub(super) fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where an absolute path lies.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// A file's text without white space around it; `None` when it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        std::fs::read(self.path(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a directory, sorted; none when there is no such directory.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The last part of where a symbolic link points.
    pub(super) fn link_name(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        target.file_name()?.to_str().map(str::to_owned)
    }

    /// What a symbolic link says, as it stands there.
    pub(super) fn link_text(&self, path: &str) -> Option<String> {
        std::fs::read_link(self.path(path)).ok()?.to_str().map(str::to_owned)
    }

    /// CPUs in the kernel's list form: `0-3,8`. None for an empty, absent or unreadable list (`(null)`).
    pub(super) fn cpus(&self, path: &str) -> Vec<usize> {
        cpus(&self.text(path).unwrap_or_default())
    }

    /// What follows `key=` on the kernel's command line; the last one counts.
    pub(super) fn kernel_option(&self, key: &str) -> Option<String> {
        let line = self.text("/proc/cmdline")?;
        line.split_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
            .next_back()
    }
}

/// The CPUs of a list such as `0-3,8`; none when it is none.
pub(super) fn cpus(list: &str) -> Vec<usize> {
    CoreMask::parse(&format!("[{list}]")).map(|mask| mask.cpus().to_vec()).unwrap_or_default()
}
