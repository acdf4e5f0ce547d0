//! Hugepages, and the limits of a process.

use std::collections::BTreeMap;

use base::{BufferPool, Limits};

use super::{Findings, Look, Status, devices};
use crate::limits;

/// Bytes of a hugepage.
const HUGE_PAGE: u64 = 2 << 20;

/// Open files beside the sessions: the daemon's own, connections before login, devices.
const FILES_BESIDE: u64 = 512;

/// The capability to lock memory without limit (`CAP_IPC_LOCK`).
const IPC_LOCK: u32 = 14;

/// Buffer memory of one reactor, by the bill of `limits`.
pub(super) fn pool_bytes(look: &Look<'_>) -> u64 {
    let classes = limits::pool_classes(&Limits::default(), look.options.memory_mib);
    BufferPool::memory_length(&classes) as u64
}

pub(super) fn hugepages(look: &Look<'_>, out: &mut Findings) {
    let why = "the buffers of each reactor fit into few entries of the TLB and of the IOMMU, and never move";
    let pages = pool_bytes(look).div_ceil(HUGE_PAGE);
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    if look.options.cpus.is_empty() {
        needed.insert(0, pages);
    }
    for cpu in &look.options.cpus {
        *needed.entry(node_of(look, *cpu)).or_default() += pages;
    }
    // The queues of a controller: for each reactor, for the thread that serves it, and for its administration.
    let controllers = devices::bound(look);
    let queues = controllers * (look.reactors() + 2);
    if let Some(mut first) = needed.first_entry() {
        *first.get_mut() += queues;
    }
    let of_queues = match controllers {
        0 => String::new(),
        1 => format!(", {queues} of them the queues of a controller"),
        _ => format!(", {queues} of them the queues of {controllers} controllers"),
    };
    let mut of_queues = Some(of_queues);
    if !look.tree.exists("/sys/kernel/mm/hugepages/hugepages-2048kB") {
        let found = "the kernel has no 2 MiB hugepages";
        out.bad(look.lacking(), "", found, why, "use a kernel with CONFIG_HUGETLBFS");
        return;
    }
    for (node, needed) in needed {
        let folder = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
        let (folder, subject) = if look.tree.exists(&folder) {
            (folder, format!("node {node}"))
        } else {
            ("/sys/kernel/mm/hugepages/hugepages-2048kB".to_owned(), String::new())
        };
        let reserved = look.tree.number(&format!("{folder}/nr_hugepages")).unwrap_or(0);
        let free = look.tree.number(&format!("{folder}/free_hugepages")).unwrap_or(0);
        // What a running daemon holds is not free, and yet there for it.
        let have = if look.daemon.answers() { reserved } else { free };
        let of_queues = of_queues.take().unwrap_or_default();
        let found = format!("{reserved} reserved, {free} free; the reactors take {needed}{of_queues}");
        if have >= needed {
            out.ok(subject, found, why);
        } else {
            let wanted = reserved - free.min(reserved) + needed;
            let fix =
                format!("echo {wanted} > {folder}/nr_hugepages; for good: kernel option hugepages={wanted}");
            out.bad(look.lacking(), subject, found, why, fix);
        }
    }
}

/// The NUMA node of a CPU; 0 when the kernel does not say.
pub(super) fn node_of(look: &Look<'_>, cpu: usize) -> u64 {
    let names = look.tree.names(&format!("/sys/devices/system/cpu/cpu{cpu}"));
    names.iter().find_map(|name| name.strip_prefix("node")?.parse().ok()).unwrap_or(0)
}

pub(super) fn transparent(look: &Look<'_>, out: &mut Findings) {
    let why = "without reserved hugepages, polluxd asks the kernel for transparent ones (madvise)";
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let setting = look.tree.text(path).unwrap_or_default();
    let chosen = setting.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
    match chosen {
        Some("never") => {
            out.bad(Status::Warn, "", "never", why, format!("echo madvise > {path}"));
        }
        Some(chosen) => out.ok("", chosen, why),
        None => out.ok("", "the kernel has none", why),
    }
}

/// A soft limit of the daemon that runs, or else of this process: what was read where. `None` is unlimited.
fn limit(look: &Look<'_>, name: &str) -> Option<(Option<u64>, String)> {
    let (folder, whose) = process(look);
    let text = look.tree.text(&format!("{folder}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let soft = line.split_whitespace().next()?;
    Some((soft.parse().ok(), whose))
}

fn process(look: &Look<'_>) -> (String, String) {
    match look.daemon.pid() {
        Some(pid) if look.tree.exists(&format!("/proc/{pid}/limits")) => {
            (format!("/proc/{pid}"), format!("polluxd {pid}"))
        }
        _ => ("/proc/self".to_owned(), "this shell".to_owned()),
    }
}

pub(super) fn locked(look: &Look<'_>, out: &mut Findings) {
    let why = "memory that a device reaches is locked, and the kernel counts hugepages too; VFIO refuses beyond the limit";
    let Some((limit, whose)) = limit(look, "Max locked memory") else { return };
    let needed = limits::bill(
        &Limits::default(),
        u16::try_from(look.reactors()).unwrap_or(u16::MAX),
        &limits::pool_classes(&Limits::default(), look.options.memory_mib),
    )
    .total_bytes();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let capable = look
        .tree
        .text(&format!("{}/status", process(look).0))
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("CapEff:").map(str::trim).map(str::to_owned))
        })
        .and_then(|mask| u64::from_str_radix(&mask, 16).ok())
        .is_some_and(|mask| mask & (1 << IPC_LOCK) != 0);
    match limit {
        None => out.ok(whose, "unlimited", why),
        Some(bytes) if bytes >= needed => {
            out.ok(whose, format!("{} MiB, of which {} are needed", mib(bytes), mib(needed)), why);
        }
        Some(bytes) if capable => {
            out.ok(whose, format!("{} MiB, but CAP_IPC_LOCK lifts the limit", mib(bytes)), why);
        }
        Some(bytes) => {
            let found = format!("{} MiB; {} are needed", mib(bytes), mib(needed));
            let fix = "ulimit -l unlimited, as root; for a service: LimitMEMLOCK=infinity";
            out.bad(look.lacking(), whose, found, why, fix);
        }
    }
}

pub(super) fn open_files(look: &Look<'_>, out: &mut Findings) {
    let why = "each session is an open file: beyond the limit, logins are not accepted";
    let Some((limit, whose)) = limit(look, "Max open files") else { return };
    let needed = u64::from(Limits::default().sessions_max) * look.reactors() + FILES_BESIDE;
    match limit {
        Some(files) if files < needed => {
            let found = format!("{files}; all sessions there may be take {needed}");
            let fix = format!("ulimit -n {needed}; for a service: LimitNOFILE={needed}");
            out.bad(Status::Warn, whose, found, why, fix);
        }
        Some(files) => out.ok(whose, format!("{files}, of which {needed} are needed at most"), why),
        None => out.ok(whose, "unlimited", why),
    }
}
