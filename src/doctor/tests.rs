//! Made-up machines: one where all is well, and for each finding the one change that brings it about.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A tree of a dedicated node with four CPUs on two NUMA nodes, reactors on 2 and 3, and one NVMe controller.
struct Machine {
    root: PathBuf,
    options: Options,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

const LIMITS: &str = "Limit  Soft Limit  Hard Limit  Units\nMax open files            8192                 8192                 files     \nMax locked memory         unlimited            unlimited            bytes     \n";

const UNIT_TEXT: &str =
    "[Unit]\nDescription=x\n[Service]\nLimitMEMLOCK=infinity\nLimitNOFILE=65536\n[Install]\nLimitNOFILE=1\n";

impl Machine {
    fn new() -> Machine {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("pollux-doctor-{}-{number}", std::process::id()));
        let options = Options {
            cpus: vec![2, 3],
            memory_mib: 64,
            dedicated: true,
            port: 3260,
            only: Vec::new(),
            socket: root.join("pollux.sock"),
            root: root.clone(),
        };
        let machine = Machine { root, options };
        machine.write("/proc/sys/kernel/osrelease", "6.1.0-25-amd64\n");
        machine.write("/proc/sys/kernel/io_uring_disabled", "0\n");
        machine.write(
            "/proc/cpuinfo",
            "vendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 pclmulqdq constant_tsc nonstop_tsc\n",
        );
        machine.write("/proc/cmdline", "quiet rcu_nocbs=2-3\n");
        machine.write("/proc/self/limits", LIMITS);
        machine.write("/proc/self/status", "Name:\tpollux\nCapEff:\t0000000000000000\nSeccomp:\t0\n");
        machine.write("/proc/net/tcp", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1\n   1: 0100007F:0CBC 0100007F:9999 01 00000000:00000000 00:00000000 00000000 0 0 778 1\n");
        machine.write("/proc/mounts", "/dev/sda1 / ext4 rw 0 0\n");
        machine.write("/proc/swaps", "Filename Type Size Used Priority\n");
        machine.write("/proc/irq/10/smp_affinity_list", "0-3\n");
        machine.write("/proc/irq/10/effective_affinity_list", "1\n");
        machine.folder("/proc/irq/10/eth0");
        machine.write("/proc/irq/11/effective_affinity_list", "2\n");
        machine.write("/proc/irq/12/effective_affinity_list", "3\n");
        machine.folder("/proc/irq/12/vfio-msix[0](0000:01:00.0)");
        machine.write("/proc/irq/default_smp_affinity", "f\n");
        let cpu = "/sys/devices/system/cpu";
        machine.write(&format!("{cpu}/online"), "0-3\n");
        machine.write(&format!("{cpu}/isolated"), "2-3\n");
        machine.write(&format!("{cpu}/nohz_full"), "2-3\n");
        for number in 0..4 {
            machine.folder(&format!("{cpu}/cpu{number}/node{}", number / 2));
            machine
                .write(&format!("{cpu}/cpu{number}/topology/thread_siblings_list"), &format!("{number}\n"));
            machine.write(&format!("{cpu}/cpu{number}/cpufreq/scaling_governor"), "performance\n");
        }
        machine.write("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        machine.folder("/sys/kernel/mm/hugepages/hugepages-2048kB");
        for (node, pages) in [(0, 0), (1, 68)] {
            let folder = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
            machine.write(&format!("{folder}/nr_hugepages"), &format!("{pages}\n"));
            machine.write(&format!("{folder}/free_hugepages"), &format!("{pages}\n"));
        }
        machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        machine.folder("/sys/class/iommu/dmar0");
        machine.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n");
        machine.write("/dev/vfio/vfio", "");
        machine.write("/dev/vfio/7", "");
        machine.folder("/sys/bus/pci/drivers/vfio-pci");
        machine.pci("0000:01:00.0", "0x010802", Some("vfio-pci"), "7");
        machine.write("/sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n");
        machine.write("/sys/bus/pci/devices/0000:01:00.0/local_cpulist", "2-3\n");
        machine.pci("0000:00:1c.0", "0x060400", Some("pcieport"), "7");
        machine.write("/etc/systemd/system/polluxd.service", UNIT_TEXT);
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }

    fn pci(&self, address: &str, class: &str, driver: Option<&str>, group: &str) {
        let folder = format!("/sys/bus/pci/devices/{address}");
        self.write(&format!("{folder}/class"), class);
        if let Some(driver) = driver {
            symlink(format!("../../../bus/pci/drivers/{driver}"), self.path(&format!("{folder}/driver")))
                .unwrap();
        }
        symlink(format!("../../../kernel/iommu_groups/{group}"), self.path(&format!("{folder}/iommu_group")))
            .unwrap();
        self.folder(&format!("/sys/kernel/iommu_groups/{group}/devices/{address}"));
    }

    /// Another controller, of the kernel's driver, with one disk of two partitions.
    fn kernel_nvme(&self) {
        self.pci("0000:02:00.0", "0x010802", Some("nvme"), "8");
        self.folder("/sys/bus/pci/devices/0000:02:00.0/nvme/nvme0/nvme0n1");
        self.folder("/sys/block/nvme0n1/nvme0n1p1/holders");
        self.folder("/sys/block/nvme0n1/nvme0n1p2/holders");
        self.folder("/sys/block/nvme0n1/holders");
    }

    fn look(&self) -> Report {
        examine(&self.options).unwrap()
    }

    /// What one check finds.
    fn check(&self, name: &str) -> Vec<Finding> {
        let findings =
            examine(&Options { only: vec![name.to_owned()], ..self.options.clone() }).unwrap().findings;
        assert!(!findings.is_empty() && findings.iter().all(|finding| finding.check == name), "{findings:?}");
        findings
    }

    /// The one finding of a check that is not well: its status, with words that must be in what was found and in the
    /// fix. Every such finding has to say why and, but for the few that `fix` is empty for, what helps.
    #[track_caller]
    fn finds(&self, check: &str, status: Status, found: &str, fix: &str) {
        let findings = self.check(check);
        let bad: Vec<&Finding> = findings.iter().filter(|finding| finding.status != Status::Ok).collect();
        assert_eq!(bad.len(), 1, "{findings:#?}");
        let bad = bad[0];
        assert_eq!(bad.status, status, "{bad:?}");
        let place = format!("{}: {}", bad.subject, bad.found);
        assert!(place.contains(found), "{place:?} does not say {found:?}");
        assert!(!bad.why.is_empty());
        assert_eq!(bad.fix.is_none(), fix.is_empty(), "{bad:?}");
        assert!(bad.fix.clone().unwrap_or_default().contains(fix), "{bad:?}");
    }

    #[track_caller]
    fn is_well(&self, check: &str) {
        let findings = self.check(check);
        assert!(
            findings.iter().all(|finding| finding.status == Status::Ok && finding.fix.is_none()),
            "{findings:#?}"
        );
    }

    /// A socket that answers the two questions of the doctor.
    fn daemon(&self, answers: &'static [&'static str]) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(&self.options.socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer.as_bytes());
            }
        })
    }
}

const VERSION: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"version":"Pollux 0.1.0"}}"#;
const REACTORS: &str =
    r#"{"jsonrpc":"2.0","id":1,"result":{"pid":4711,"reactors":[{"lcore":0,"cpu":2},{"lcore":1,"cpu":3}]}}"#;

use Status::{Fail, Ok as Well, Warn};

#[test]
fn all_is_well_but_that_no_daemon_runs() {
    let machine = Machine::new();
    let report = machine.look();
    let bad: Vec<&Finding> = report.findings.iter().filter(|finding| finding.status != Well).collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    assert_eq!((bad[0].check, report.exit_status()), ("rpc", 1));
    for check in &CHECKS {
        assert!(
            report.findings.iter().any(|finding| finding.check == check.name),
            "{} said nothing",
            check.name
        );
    }
    let daemon = machine.daemon(&[VERSION, REACTORS]);
    let report = machine.look();
    daemon.join().unwrap();
    assert_eq!((report.status(), report.exit_status()), (Well, 0), "{}", report.text());
}

#[test]
fn the_report_as_json_and_as_text() {
    let machine = Machine::new();
    machine.write("/proc/sys/kernel/osrelease", "3.10.0\n");
    let report = machine.look();
    let json = report.json();
    assert_eq!((json["format"].as_u64(), json["status"].as_str()), (Some(1), Some("fail")));
    assert_eq!((json["summary"]["fail"].as_u64(), json["summary"]["warn"].as_u64()), (Some(1), Some(1)));
    let kernel = &json["findings"][0];
    let keys: Vec<&str> = kernel.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["check", "fix", "found", "status", "subject", "why"]);
    assert_eq!((kernel["check"].as_str(), kernel["status"].as_str()), (Some("kernel"), Some("fail")));
    assert_eq!(json["findings"][1]["fix"], serde_json::Value::Null);
    let text = report.text();
    assert!(
        text.contains("fail  kernel     Linux 3.10.0 is too old\n") && text.contains("fix: apt-get"),
        "{text}"
    );
    assert_eq!(report.exit_status(), 2);
    let error = examine(&Options { only: vec!["colour".to_owned()], ..machine.options.clone() }).unwrap_err();
    assert!(error.contains("colour") && error.contains("hugepages"), "{error}");
}

#[test]
fn every_check_is_in_the_document() {
    let document = include_str!("../../docs/doctor.md");
    for check in &CHECKS {
        assert!(
            document.contains(&format!("| `{}` | {}", check.name, check.about)),
            "{}: {}",
            check.name,
            check.about
        );
    }
}

#[test]
fn kernels() {
    let machine = Machine::new();
    for (release, status) in [("5.10.0-30-amd64", Warn), ("4.18.0-553.el8", Warn), ("4.9.0", Fail)] {
        machine.write("/proc/sys/kernel/osrelease", release);
        machine.finds("kernel", status, release, "apt-get install");
    }
    machine.write("/proc/sys/kernel/osrelease", "generic");
    machine.finds("kernel", Warn, "generic", "");
    machine.remove("/proc/sys/kernel/osrelease");
    machine.finds("kernel", Fail, "/proc is not there", "mount -t proc");
}

#[test]
fn cpus() {
    let machine = Machine::new();
    machine.write("/sys/devices/system/cpu/online", "0-2\n");
    machine.finds(
        "cpu",
        Fail,
        "CPU 3 is not online; 0-2 are",
        "echo 1 > /sys/devices/system/cpu/cpu3/online",
    );
    machine.write("/sys/devices/system/cpu/online", "0-3\n");
    machine.write("/proc/cpuinfo", "flags : fpu sse4_2 constant_tsc\n");
    machine.finds("cpu", Warn, "lacks nonstop_tsc, pclmulqdq", "invtsc");
    machine.write("/proc/cpuinfo", "Features : fp asimd crc32\n");
    machine.is_well("cpu");
    machine.write("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    machine.finds("cpu", Warn, "hpet", "echo tsc >");
}

#[test]
fn isolation() {
    let mut machine = Machine::new();
    let line = "isolcpus=managed_irq,domain,2-3 nohz_full=2-3 rcu_nocbs=2-3 irqaffinity=0-1";
    machine.write("/sys/devices/system/cpu/isolated", "3\n");
    machine.finds("isolation", Fail, "isolcpus: does not cover CPU 2", line);
    machine.options.dedicated = false;
    machine.finds("isolation", Warn, "isolcpus: does not cover CPU 2", line);
    machine.write("/sys/devices/system/cpu/isolated", "2-3\n");
    // Without the tick there are no callbacks either, so the command line need not say so twice.
    machine.write("/proc/cmdline", "quiet\n");
    machine.is_well("isolation");
    machine.write("/proc/cmdline", "rcu_nocbs=2-3\n");
    machine.write("/sys/devices/system/cpu/nohz_full", " (null)\n");
    machine.finds("isolation", Warn, "nohz_full: does not cover CPU 2-3", line);
    machine.remove("/sys/devices/system/cpu/nohz_full");
    machine.finds("isolation", Warn, "nohz_full: the kernel has no nohz_full", "CONFIG_NO_HZ_FULL");
    machine.write("/sys/devices/system/cpu/nohz_full", "2-3\n");
    machine.write("/sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "0,2\n");
    machine.finds(
        "isolation",
        Warn,
        "siblings: CPU 0 shares",
        "echo 0 > /sys/devices/system/cpu/cpu0/online",
    );
    machine.write("/sys/devices/system/cpu/cpu2/topology/thread_siblings_list", "2-3\n");
    machine.is_well("isolation");
    machine.write("/proc/irq/10/effective_affinity_list", "3\n");
    machine.finds(
        "isolation",
        Warn,
        "irq: interrupts 10 (eth0)",
        "for i in 10; do echo 0-1 > /proc/irq/$i/smp_affinity_list",
    );
    machine.write("/proc/irq/10/effective_affinity_list", "1\n");
    machine.options.cpus = Vec::new();
    machine.is_well("isolation");
    machine.options.dedicated = true;
    machine.finds("isolation", Warn, "no CPUs were named", "--cores");
}

#[test]
fn rcu_callbacks_and_a_cpu_for_the_system() {
    let mut machine = Machine::new();
    machine.write("/proc/cmdline", "rcu_nocbs=2\n");
    machine.write("/sys/devices/system/cpu/nohz_full", "2\n");
    let findings = machine.check("isolation");
    let bad: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.status == Fail)
        .map(|finding| finding.subject.as_str())
        .collect();
    assert_eq!(bad, ["nohz_full", "rcu_nocbs"]);
    let machine = {
        machine.write("/proc/cmdline", "rcu_nocbs=0-3\n");
        for list in ["isolated", "nohz_full"] {
            machine.write(&format!("/sys/devices/system/cpu/{list}"), "0-3\n");
        }
        machine.remove("/proc/irq");
        machine.options.cpus = vec![0, 1, 2, 3];
        machine
    };
    machine.finds("isolation", Fail, "the reactors take every CPU (0-3)", "leave CPU 0");
}

#[test]
fn governors() {
    let machine = Machine::new();
    machine.write("/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n");
    machine.finds(
        "governor",
        Warn,
        "CPU 3: powersave",
        "echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
    );
    for cpu in 2..4 {
        machine.remove(&format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq"));
    }
    machine.is_well("governor");
}

#[test]
fn hugepages() {
    let mut machine = Machine::new();
    let folder = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
    machine.write(&format!("{folder}/nr_hugepages"), "70\n");
    machine.write(&format!("{folder}/free_hugepages"), "60\n");
    machine.finds(
        "hugepages",
        Fail,
        "node 1: 70 reserved, 60 free; the reactors take 68, 4 of them the queues of a controller",
        &format!("echo 78 > {folder}/nr_hugepages"),
    );
    // A daemon that runs holds some of them.
    let daemon = machine.daemon(&[VERSION, REACTORS]);
    machine.is_well("hugepages");
    daemon.join().unwrap();
    machine.options.memory_mib = 128;
    machine.options.dedicated = false;
    machine.finds("hugepages", Warn, "take 132", "echo 142");
    machine.options.memory_mib = 64;
    // Reactors on both nodes: each node must have its part.
    machine.options.cpus = vec![1, 2];
    machine.finds(
        "hugepages",
        Warn,
        "node 0: 0 reserved, 0 free; the reactors take 36, 4 of them the queues of a controller",
        "node0",
    );
    machine.remove("/sys/kernel/mm/hugepages");
    machine.finds("hugepages", Warn, "no 2 MiB hugepages", "CONFIG_HUGETLBFS");
}

#[test]
fn hugepages_of_a_machine_without_nodes() {
    let machine = Machine::new();
    machine.remove("/sys/devices/system/node");
    machine.write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "32\n");
    machine.write("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "32\n");
    machine.finds("hugepages", Fail, "32 free", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
}

#[test]
fn transparent_hugepages() {
    let machine = Machine::new();
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    machine.finds("thp", Warn, "never", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    machine.remove("/sys/kernel/mm/transparent_hugepage");
    machine.is_well("thp");
}

#[test]
fn limits_of_the_process() {
    let mut machine = Machine::new();
    machine.write(
        "/proc/self/limits",
        "Max open files  1024  1024 files\nMax locked memory  8388608  8388608 bytes\n",
    );
    machine.finds("files", Warn, "1024; all sessions there may be take 2560", "ulimit -n 2560");
    machine.finds("memlock", Fail, "this shell: 8 MiB", "ulimit -l unlimited");
    machine.options.dedicated = false;
    machine.finds("memlock", Warn, "8 MiB", "LimitMEMLOCK=infinity");
    machine.write("/proc/self/status", "CapEff:\t0000000000004000\n");
    machine.is_well("memlock");
    // The limits of a daemon that runs are what counts, not those of the shell.
    machine.write("/proc/self/status", "CapEff:\t0000000000000000\n");
    machine.write(
        "/proc/4711/limits",
        "Max open files  65536  65536 files\nMax locked memory  1073741824 1073741824 bytes\n",
    );
    for check in ["memlock", "files"] {
        let daemon = machine.daemon(&[VERSION, REACTORS]);
        machine.is_well(check);
        daemon.join().unwrap();
        fs::remove_file(&machine.options.socket).unwrap();
    }
}

#[test]
fn io_uring() {
    let machine = Machine::new();
    machine.write("/proc/sys/kernel/io_uring_disabled", "1\n");
    machine.finds("io_uring", Warn, "users without privilege", "sysctl -w kernel.io_uring_disabled=0");
    machine.write("/proc/sys/kernel/io_uring_disabled", "2\n");
    machine.finds("io_uring", Warn, "everybody", "sysctl -w kernel.io_uring_disabled=0");
    machine.remove("/proc/sys/kernel/io_uring_disabled");
    machine.is_well("io_uring");
}

#[test]
fn iommus() {
    let mut machine = Machine::new();
    machine.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
    machine.finds("iommu", Warn, "without an IOMMU", "echo N >");
    machine.remove("/sys/module/vfio");
    machine.pci("0000:01:00.1", "0x010802", Some("nvme"), "7");
    machine.finds(
        "iommu",
        Fail,
        "0000:01:00.0: group 7 also holds 0000:01:00.1 (nvme)",
        "scripts/bind bind 0000:01:00.1",
    );
    machine.remove("/sys/bus/pci/devices/0000:01:00.1");
    machine.remove("/sys/bus/pci/devices/0000:01:00.0/iommu_group");
    machine.finds("iommu", Fail, "in no IOMMU group", "IOMMU");
    machine.remove("/sys/bus/pci/devices/0000:01:00.0");
    machine.remove("/sys/class/iommu/dmar0");
    machine.finds("iommu", Fail, "no IOMMU", "intel_iommu=on iommu=pt");
    machine.write("/proc/cpuinfo", "vendor_id : AuthenticAMD\n");
    machine.options.dedicated = false;
    machine.finds("iommu", Warn, "no IOMMU", "AMD-Vi");
}

#[test]
fn vfio_drivers_and_nodes() {
    let machine = Machine::new();
    machine.remove("/dev/vfio/7");
    machine.finds(
        "vfio",
        Fail,
        "/dev/vfio/7: is not there",
        "scripts/bind unbind 0000:01:00.0 && scripts/bind bind 0000:01:00.0",
    );
    machine.write("/dev/vfio/7", "");
    machine.remove("/dev/vfio/vfio");
    machine.finds("vfio", Fail, "/dev/vfio/vfio: is not there", "modprobe vfio");
    // A folder cannot be opened for writing, whoever asks.
    machine.folder("/dev/vfio/vfio");
    machine.finds("vfio", Fail, "cannot be opened", "chmod 0666 /dev/vfio/vfio");
    machine.remove("/dev/vfio/vfio");
    machine.write("/dev/vfio/vfio", "");
    machine.remove("/sys/bus/pci/drivers/vfio-pci");
    machine.finds("vfio", Fail, "vfio-pci is not loaded", "modprobe vfio-pci");
}

#[test]
fn controllers_and_their_drivers() {
    let mut machine = Machine::new();
    machine.kernel_nvme();
    machine.is_well("nvme");
    machine.options.cpus = vec![0, 1];
    machine.finds("nvme", Warn, "0000:01:00.0: on NUMA node 1", "CPUs 2-3");
    machine.options.cpus = vec![2, 3];
    machine.remove("/sys/bus/pci/devices/0000:01:00.0");
    machine.finds("nvme", Fail, "none is bound to vfio-pci", "scripts/bind bind 0000:02:00.0");
    let said = |machine: &Machine| format!("{:?}", machine.check("nvme"));
    assert!(said(&machine).contains("not in use"));
    machine.write("/proc/mounts", "/dev/nvme0n1p2 /srv ext4 rw 0 0\n");
    assert!(said(&machine).contains("/dev/nvme0n1p2 is mounted on /srv"));
    machine.finds("nvme", Fail, "none is free to be", "");
    machine.write("/proc/mounts", "");
    machine.write("/proc/swaps", "Filename\n/dev/nvme0n1p1  partition 1 0 -2\n");
    assert!(said(&machine).contains("is swap space"));
    machine.write("/proc/swaps", "");
    machine.folder("/sys/block/nvme0n1/nvme0n1p1/holders/dm-0");
    assert!(said(&machine).contains("is part of dm-0"));
    machine.options.dedicated = false;
    machine.is_well("nvme");
    machine.remove("/sys/bus/pci/devices/0000:02:00.0");
    machine.options.dedicated = true;
    machine.finds("nvme", Fail, "there are none", "");
}

#[test]
fn ports() {
    let machine = Machine::new();
    let line = "h\n 0: 00000000000000000000000000000000:0CBC 00000000:0000 0A 0:0 0:0 0 0 0 9001 1\n";
    machine.write("/proc/net/tcp6", line);
    machine.finds("port", Warn, "3260/tcp: somebody listens", "ss -ltnp");
    machine.write("/proc/815/comm", "tgtd\n");
    machine.folder("/proc/815/fd");
    symlink("socket:[9001]", machine.path("/proc/815/fd/4")).unwrap();
    machine.finds("port", Fail, "tgtd (process 815)", "kill 815");
    machine.remove("/proc/815");
    machine.folder("/proc/4711/fd");
    symlink("socket:[9001]", machine.path("/proc/4711/fd/9")).unwrap();
    let daemon = machine.daemon(&[VERSION, REACTORS]);
    machine.is_well("port");
    daemon.join().unwrap();
}

#[test]
fn daemons() {
    let mut machine = Machine::new();
    machine.finds("rpc", Warn, "no daemon runs here", "polluxd -r");
    drop(UnixListener::bind(&machine.options.socket).unwrap());
    machine.finds("rpc", Warn, "its daemon has ended", "polluxd -r");
    fs::remove_file(&machine.options.socket).unwrap();
    let daemon = machine.daemon(&["[not json"]);
    machine.finds("rpc", Fail, "cannot be read", "root");
    daemon.join().unwrap();
    fs::remove_file(&machine.options.socket).unwrap();
    let daemon = machine.daemon(&[VERSION, REACTORS]);
    machine.options.cpus = vec![1];
    machine.finds("rpc", Warn, "on CPU 2-3, not on 1", "--cores '[2-3]'");
    daemon.join().unwrap();
}

#[test]
fn units_of_systemd() {
    let mut machine = Machine::new();
    let unit = "/etc/systemd/system/polluxd.service";
    machine.write(unit, "[Service]\nLimitNOFILE=65536\n");
    machine.finds("systemd", Fail, "LimitMEMLOCK=8M (the default)", "LimitMEMLOCK=infinity");
    machine.write(unit, "[Service]\nLimitNOFILE=65536\nLimitMEMLOCK=1G:2G\n");
    machine.is_well("systemd");
    machine.write(unit, "[Service]\nLimitMEMLOCK=infinity\n");
    machine.finds("systemd", Warn, "LimitNOFILE=1024 (the default)", "LimitNOFILE=2560");
    // A drop-in counts over the unit, and a later one over an earlier one, whatever folder they lie in.
    machine
        .write("/usr/lib/systemd/system/polluxd.service.d/90-files.conf", "[Service]\nLimitNOFILE=65536\n");
    machine.write("/etc/systemd/system/polluxd.service.d/10-files.conf", "[Service]\nLimitNOFILE=10\n");
    machine.is_well("systemd");
    for (line, status, found, fix) in [
        ("PrivateDevices=yes", Fail, "PrivateDevices=yes", "PrivateDevices=no"),
        ("CPUQuota=50%", Warn, "CPUQuota=50%", "CPUQuota="),
        ("CPUAffinity=0 1", Fail, "without CPU 2-3", "CPUAffinity="),
    ] {
        machine.write(unit, &format!("{UNIT_TEXT}[Service]\n{line}\n"));
        machine.finds("systemd", status, found, fix);
    }
    machine.options.cpus = vec![1];
    machine.is_well("systemd");
    machine.remove(unit);
    machine.is_well("systemd");
}

#[test]
fn this_machine_can_be_looked_at() {
    let options = Options {
        memory_mib: 64,
        port: 3260,
        root: PathBuf::from("/"),
        socket: std::env::temp_dir().join("pollux-doctor-no-such-socket"),
        ..Options::default()
    };
    let report = examine(&options).unwrap();
    let io_uring = report.findings.iter().find(|finding| finding.check == "io_uring").unwrap();
    assert_eq!(io_uring.status == Well, bdev::probe_io_uring().is_ok(), "{io_uring:?}");
    let kernel = report.findings.iter().find(|finding| finding.check == "kernel").unwrap();
    assert!(kernel.found.contains(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim()));
}
