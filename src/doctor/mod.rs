//! `pollux doctor`: looks at a machine with the eyes of polluxd, and says what is in its way and what removes it.
//!
//! Nothing is changed, and nothing but /proc, /sys, /dev, the unit files of systemd and the RPC socket is read. All
//! paths are taken below a root, so that a made-up tree is judged by the same code as a machine.

mod devices;
mod machine;
mod memory;
mod service;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

pub use service::Daemon;
pub use tree::Tree;

/// The form of [`Report::json`]. It grows only when a field changes its meaning or goes away.
pub const JSON_FORMAT: u32 = 1;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be, or of no concern to what was asked for.
    Ok,
    /// It works, but slower or with less than was meant.
    Warn,
    /// What was asked for will not work.
    Fail,
}

impl Status {
    /// `"ok"`, `"warn"` or `"fail"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check it belongs to: a name of [`CHECKS`].
    pub check: &'static str,
    /// What was looked at: a CPU, a NUMA node, a device; empty for the machine as a whole.
    pub subject: String,
    /// How to take it.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: String,
    /// The command that removes it; `None` when all is well, or when no command does.
    pub fix: Option<String>,
}

/// What is asked of the machine.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// CPUs of the reactors, as polluxd's `-m`. Empty: one reactor, anywhere.
    pub cpus: Vec<usize>,
    /// Buffer memory of each reactor in MiB, as polluxd's `--memory`.
    pub memory_mib: u64,
    /// The machine is to be a dedicated node: NVMe controllers by VFIO, hugepages, isolated cores. What is missing for
    /// that is then a failure; otherwise a warning.
    pub dedicated: bool,
    /// TCP port of the iSCSI portal.
    pub port: u16,
    /// Only these checks; all when empty.
    pub only: Vec<String>,
    /// Below which /proc and /sys are looked for.
    pub root: PathBuf,
    /// The daemon's RPC socket.
    pub socket: PathBuf,
}

/// What every check looks at.
struct Look<'a> {
    tree: &'a Tree,
    options: &'a Options,
    daemon: &'a Daemon,
}

impl Look<'_> {
    /// What a dedicated node must have and others may lack.
    fn lacking(&self) -> Status {
        if self.options.dedicated { Status::Fail } else { Status::Warn }
    }

    fn reactors(&self) -> u64 {
        self.options.cpus.len().max(1) as u64
    }
}

/// Makes findings of one check.
struct Findings {
    check: &'static str,
    list: Vec<Finding>,
}

impl Findings {
    fn ok(&mut self, subject: impl Into<String>, found: impl Into<String>, why: &str) {
        self.add(Status::Ok, subject, found, why, None);
    }

    fn bad(
        &mut self,
        status: Status,
        subject: impl Into<String>,
        found: impl Into<String>,
        why: &str,
        fix: impl Into<String>,
    ) {
        self.add(status, subject, found, why, Some(fix.into()));
    }

    fn add(
        &mut self,
        status: Status,
        subject: impl Into<String>,
        found: impl Into<String>,
        why: &str,
        fix: Option<String>,
    ) {
        let finding = Finding {
            check: self.check,
            subject: subject.into(),
            status,
            found: found.into(),
            why: why.to_owned(),
            fix,
        };
        self.list.push(finding);
    }
}

/// One check: its name, what it looks at, and the function.
pub struct Check {
    /// What `--only` takes.
    pub name: &'static str,
    /// What it looks at, in a few words.
    pub about: &'static str,
    run: fn(&Look<'_>, &mut Findings),
}

macro_rules! check {
    ($name:literal, $about:literal, $run:path) => {
        Check { name: $name, about: $about, run: $run }
    };
}

/// Every check, in the order they run.
pub const CHECKS: [Check; 15] = [
    check!("kernel", "the kernel's version", machine::kernel),
    check!(
        "cpu",
        "the reactors' CPUs: there, with an invariant time stamp counter and fast CRC",
        machine::cpu
    ),
    check!(
        "isolation",
        "isolcpus, nohz_full, rcu_nocbs, siblings and interrupts of the reactors' CPUs",
        machine::isolation
    ),
    check!("governor", "the frequency governor of the reactors' CPUs", machine::governor),
    check!("hugepages", "2 MiB hugepages, on each NUMA node that runs reactors", memory::hugepages),
    check!("thp", "transparent hugepages", memory::transparent),
    check!("memlock", "the limit of locked memory", memory::locked),
    check!("files", "the limit of open files", memory::open_files),
    check!("io_uring", "whether the kernel lets the daemon use io_uring", service::io_uring),
    check!("iommu", "the IOMMU, and the groups it makes", devices::iommu),
    check!("vfio", "the VFIO drivers and their device nodes", devices::vfio),
    check!("nvme", "NVMe controllers, and who drives them", devices::nvme),
    check!("port", "who listens on the iSCSI port", service::port),
    check!("rpc", "whether the daemon answers", service::rpc),
    check!("systemd", "the limits that polluxd.service sets", service::systemd),
];

/// Everything found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order of [`CHECKS`].
    pub findings: Vec<Finding>,
}

/// Looks.
///
/// # Errors
/// A name in `options.only` that is no check.
pub fn examine(options: &Options) -> Result<Report, String> {
    if let Some(unknown) = options.only.iter().find(|name| !CHECKS.iter().any(|check| check.name == **name)) {
        let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        return Err(format!("{unknown:?} is not a check. Remedy: use one of {}", names.join(", ")));
    }
    let tree = Tree::new(&options.root);
    let daemon = Daemon::ask(&options.socket);
    let look = Look { tree: &tree, options, daemon: &daemon };
    let mut findings = Vec::new();
    for check in &CHECKS {
        if options.only.is_empty() || options.only.iter().any(|name| name == check.name) {
            let mut found = Findings { check: check.name, list: Vec::new() };
            (check.run)(&look, &mut found);
            findings.append(&mut found.list);
        }
    }
    Ok(Report { findings })
}

impl Report {
    /// The worst of all findings.
    #[must_use]
    pub fn status(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok)
    }

    /// 0: nothing to do; 1: warnings; 2: failures.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.status() {
            Status::Ok => 0,
            Status::Warn => 1,
            Status::Fail => 2,
        }
    }

    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    /// `{"format", "status", "summary": {"ok", "warn", "fail"}, "findings": [{"check", "subject", "status", "found",
    /// "why", "fix"}]}`; see docs/doctor.md.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "format": JSON_FORMAT,
            "status": self.status().name(),
            "summary": {
                "ok": self.count(Status::Ok),
                "warn": self.count(Status::Warn),
                "fail": self.count(Status::Fail),
            },
            "findings": self.findings,
        })
    }

    /// For people: a line for each finding, and what to do below those that are not well.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let about = if finding.subject.is_empty() {
                finding.found.clone()
            } else {
                format!("{}: {}", finding.subject, finding.found)
            };
            let _ = writeln!(out, "{:4}  {:9}  {about}", finding.status.name(), finding.check);
            if finding.status != Status::Ok {
                let _ = writeln!(out, "{:17}why: {}", "", finding.why);
                if let Some(fix) = &finding.fix {
                    let _ = writeln!(out, "{:17}fix: {fix}", "");
                }
            }
        }
        let _ = write!(
            out,
            "\n{} ok, {} to be warned of, {} failed",
            self.count(Status::Ok),
            self.count(Status::Warn),
            self.count(Status::Fail)
        );
        out
    }
}

/// `[2, 3, 5]` as `2-3,5`.
fn cpu_list(cpus: &[usize]) -> String {
    let mut parts = Vec::new();
    let mut rest = cpus;
    while let Some(&first) = rest.first() {
        let run = rest.iter().enumerate().take_while(|&(i, &cpu)| cpu == first + i).count();
        parts.push(if run > 1 { format!("{first}-{}", first + run - 1) } else { first.to_string() });
        rest = rest.get(run..).unwrap_or_default();
    }
    parts.join(",")
}

/// Adds words to the kernel's command line, on Debian and its children.
fn kernel_line(words: &str) -> String {
    format!(
        "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {words}\"' >> /etc/default/grub.d/pollux.cfg && update-grub && reboot"
    )
}
