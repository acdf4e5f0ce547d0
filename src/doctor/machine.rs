//! Kernel, CPUs, isolation, governor.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, Look, Status, cpu_list, kernel_line, tree};

/// The oldest kernel polluxd is tested on (Debian 12).
const TESTED: (u32, u32) = (6, 1);
/// The oldest kernel with everything that has no substitute: memory files of hugepages with a page size.
const NEEDED: (u32, u32) = (4, 18);

/// Flags of x86 that matter, and for what.
const FLAGS: [(&str, &str); 4] = [
    ("constant_tsc", "the time stamp counter ticks at one rate"),
    ("nonstop_tsc", "the time stamp counter does not stop in sleep"),
    ("sse4_2", "CRC32C for digests in hardware"),
    ("pclmulqdq", "CRC32C and T10 CRC several times faster"),
];

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn kernel(look: &Look<'_>, out: &mut Findings) {
    let why =
        "io_uring, VFIO and hugepage memory files differ from kernel to kernel; tests run on 6.1 and later";
    let fix = "apt-get install linux-image-amd64 && reboot";
    match look.tree.text("/proc/sys/kernel/osrelease") {
        Some(release) => match version(&release) {
            Some(version) if version >= TESTED => out.ok("", format!("Linux {release}"), why),
            Some(version) if version >= NEEDED => {
                out.bad(
                    Status::Warn,
                    "",
                    format!("Linux {release}, older than any it is tested on"),
                    why,
                    fix,
                );
            }
            Some(_) => out.bad(Status::Fail, "", format!("Linux {release} is too old"), why, fix),
            None => out.add(Status::Warn, "", format!("the version {release:?} cannot be read"), why, None),
        },
        None => out.bad(Status::Fail, "", "/proc is not there", why, "mount -t proc proc /proc"),
    }
}

pub(super) fn cpu(look: &Look<'_>, out: &mut Findings) {
    let online = look.tree.cpus("/sys/devices/system/cpu/online");
    let missing: Vec<usize> =
        look.options.cpus.iter().copied().filter(|cpu| !online.is_empty() && !online.contains(cpu)).collect();
    let why = "each CPU named runs one reactor, pinned";
    if missing.is_empty() {
        out.ok("", format!("CPUs {} are online", cpu_list(&online)), why);
    } else {
        let found = format!("CPU {} is not online; {} are", cpu_list(&missing), cpu_list(&online));
        let fix: Vec<String> =
            missing.iter().map(|cpu| format!("echo 1 > /sys/devices/system/cpu/cpu{cpu}/online")).collect();
        out.bad(Status::Fail, "", found, why, fix.join(" && "));
    }
    let info = look.tree.text("/proc/cpuinfo").unwrap_or_default();
    if let Some(flags) = info.lines().find_map(|line| line.strip_prefix("flags")) {
        let flags: BTreeSet<&str> = flags.trim_start_matches([' ', '\t', ':']).split_whitespace().collect();
        let lacking: Vec<&str> =
            FLAGS.iter().map(|(flag, _)| *flag).filter(|flag| !flags.contains(flag)).collect();
        let meaning: Vec<String> = FLAGS.iter().map(|(flag, meaning)| format!("{flag}: {meaning}")).collect();
        let why = meaning.join("; ");
        if lacking.is_empty() {
            out.ok("features", "invariant time stamp counter, hardware CRC", &why);
        } else {
            let fix = "in a virtual machine, show it the host's CPU: qemu -cpu host,+invtsc; on hardware there is none";
            out.bad(Status::Warn, "features", format!("lacks {}", lacking.join(", ")), &why, fix);
        }
    }
    let source = look.tree.text("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let why = "where the time stamp counter is not invariant, every turn of a reactor asks the kernel's clock, and these need a system call";
    match source.as_deref() {
        Some(slow @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies")) => {
            let fix = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource";
            out.bad(Status::Warn, "clock", format!("the kernel's clock is {slow}"), why, fix);
        }
        Some(other) => out.ok("clock", format!("the kernel's clock is {other}"), why),
        None => {}
    }
}

/// The words for the kernel's command line that isolate these CPUs from the others.
fn isolation_words(cpus: &[usize], others: &[usize]) -> String {
    let list = cpu_list(cpus);
    format!(
        "isolcpus=managed_irq,domain,{list} nohz_full={list} rcu_nocbs={list} irqaffinity={}",
        cpu_list(others)
    )
}

pub(super) fn isolation(look: &Look<'_>, out: &mut Findings) {
    let cpus = &look.options.cpus;
    let why = "what else runs on a reactor's CPU stops its polling for as long as it runs";
    if cpus.is_empty() {
        let found = "no CPUs were named, so none are looked at; --cores names those of the reactors";
        match look.options.dedicated {
            true => out.bad(Status::Warn, "", found, why, "pollux doctor --dedicated --cores '[2-3]'"),
            false => out.ok("", found, why),
        }
        return;
    }
    let online = look.tree.cpus("/sys/devices/system/cpu/online");
    let others: Vec<usize> = online.iter().copied().filter(|cpu| !cpus.contains(cpu)).collect();
    if others.is_empty() {
        let found = format!("the reactors take every CPU ({})", cpu_list(cpus));
        let why = "interrupts, the control plane and the system need a CPU too";
        out.bad(look.lacking(), "", found, why, "name fewer CPUs: leave CPU 0 to the system");
    }
    let isolated = look.tree.cpus("/sys/devices/system/cpu/isolated");
    let nohz = look.tree.cpus("/sys/devices/system/cpu/nohz_full");
    // nohz_full takes RCU callbacks away too.
    let mut nocbs = tree::cpus(&look.tree.kernel_option("rcu_nocbs").unwrap_or_default());
    nocbs.extend(&nohz);
    let fix = kernel_line(&isolation_words(cpus, &others));
    for (name, have, why) in [
        ("isolcpus", &isolated, "the scheduler puts other threads on a CPU that is not isolated"),
        ("nohz_full", &nohz, "the scheduler's tick interrupts a CPU hundreds of times a second without it"),
        ("rcu_nocbs", &nocbs, "the kernel's deferred work (RCU) runs on the CPU without it"),
    ] {
        let lacking: Vec<usize> = cpus.iter().copied().filter(|cpu| !have.contains(cpu)).collect();
        if name == "nohz_full" && !look.tree.exists("/sys/devices/system/cpu/nohz_full") {
            let fix = "use a kernel with CONFIG_NO_HZ_FULL=y";
            out.bad(Status::Warn, name, "the kernel has no nohz_full", why, fix);
        } else if lacking.is_empty() {
            out.ok(name, format!("covers CPU {}", cpu_list(cpus)), why);
        } else {
            out.bad(look.lacking(), name, format!("does not cover CPU {}", cpu_list(&lacking)), why, &fix);
        }
    }
    siblings(look, out);
    interrupts(look, &others, out);
}

/// Another hardware thread of a reactor's core that is left to others.
fn siblings(look: &Look<'_>, out: &mut Findings) {
    let why = "two hardware threads share one core: what runs on the other takes half of it";
    let mut shared = Vec::new();
    for cpu in &look.options.cpus {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        shared.extend(look.tree.cpus(&path).into_iter().filter(|other| !look.options.cpus.contains(other)));
    }
    shared.sort_unstable();
    shared.dedup();
    let online = look.tree.cpus("/sys/devices/system/cpu/online");
    shared.retain(|cpu| online.contains(cpu));
    if shared.is_empty() {
        out.ok("siblings", "no other CPU shares a core with a reactor", why);
        return;
    }
    let fix: Vec<String> =
        shared.iter().map(|cpu| format!("echo 0 > /sys/devices/system/cpu/cpu{cpu}/online")).collect();
    let found = format!("CPU {} shares a core with a reactor", cpu_list(&shared));
    out.bad(Status::Warn, "siblings", found, why, fix.join(" && "));
}

/// Interrupts that are delivered to the reactors' CPUs.
fn interrupts(look: &Look<'_>, others: &[usize], out: &mut Findings) {
    let why = "an interrupt handler stops the reactor for microseconds, at any moment";
    let mut found = Vec::new();
    for number in look.tree.names("/proc/irq").into_iter().filter(|name| name.parse::<u32>().is_ok()) {
        let folder = format!("/proc/irq/{number}");
        // An interrupt that is in use has a folder for each handler. Those of VFIO wake the reactor itself.
        let Some(handler) = look
            .tree
            .names(&folder)
            .into_iter()
            .find(|name| look.tree.path(&format!("{folder}/{name}")).is_dir())
        else {
            continue;
        };
        if handler.starts_with("vfio") {
            continue;
        }
        let effective = look.tree.cpus(&format!("{folder}/effective_affinity_list"));
        let at = if effective.is_empty() {
            look.tree.cpus(&format!("{folder}/smp_affinity_list"))
        } else {
            effective
        };
        if at.iter().any(|cpu| look.options.cpus.contains(cpu)) {
            found.push((number, handler));
        }
    }
    if found.is_empty() {
        out.ok("irq", "no interrupt is delivered to the reactors' CPUs", why);
        return;
    }
    let names: Vec<String> = found.iter().map(|(number, handler)| format!("{number} ({handler})")).collect();
    let numbers: Vec<&str> = found.iter().map(|(number, _)| number.as_str()).collect();
    let fix = format!(
        "for i in {}; do echo {} > /proc/irq/$i/smp_affinity_list; done; one that the kernel refuses to move needs isolcpus=managed_irq",
        numbers.join(" "),
        cpu_list(others)
    );
    out.bad(Status::Warn, "irq", format!("interrupts {}", names.join(", ")), why, fix);
}

pub(super) fn governor(look: &Look<'_>, out: &mut Findings) {
    let why = "a CPU that changes its frequency answers late after every pause";
    let cpus = if look.options.cpus.is_empty() {
        look.tree.cpus("/sys/devices/system/cpu/online")
    } else {
        look.options.cpus.clone()
    };
    let mut by_governor: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for cpu in cpus {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
        if let Some(governor) = look.tree.text(&path) {
            by_governor.entry(governor).or_default().push(cpu);
        }
    }
    if by_governor.is_empty() {
        out.ok("", "frequencies are not the kernel's to govern", why);
    }
    for (governor, cpus) in by_governor {
        let found = format!("CPU {}: {governor}", cpu_list(&cpus));
        if governor == "performance" {
            out.ok("", found, why);
        } else {
            let fix: Vec<String> = cpus
                .iter()
                .map(|cpu| {
                    format!("echo performance > /sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")
                })
                .collect();
            out.bad(Status::Warn, "", found, why, fix.join(" && "));
        }
    }
}
