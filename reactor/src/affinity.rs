use std::path::Path;

use rustix::thread::CpuSet;

use crate::CoreMask;

/// One CPU the process may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The operating system's number.
    pub number: usize,
    /// CPUs that share its physical core, itself included.
    pub siblings: Vec<usize>,
    /// Its NUMA node, when the kernel says.
    pub numa_node: Option<usize>,
    /// The scheduler leaves it alone (`isolcpus=`).
    pub isolated: bool,
}

/// The CPUs available to this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Ascending by number.
    pub cpus: Vec<Cpu>,
}

impl Topology {
    /// Asks the kernel: the calling thread's affinity mask, and sysfs for siblings and NUMA nodes. What sysfs does not
    /// tell (a container may hide it) is left out. Isolated CPUs are in nobody's affinity mask until somebody asks for
    /// them, so they are asked for.
    #[must_use]
    pub fn discover() -> Topology {
        let sysfs = Path::new("/sys/devices/system/cpu");
        let mut available = available_cpus();
        let isolated = read_list(&sysfs.join("isolated"));
        available.extend(isolated.into_iter().filter(|cpu| may_run_on(*cpu)));
        available.sort_unstable();
        available.dedup();
        Topology::read(&available, sysfs)
    }

    fn read(available: &[usize], sysfs: &Path) -> Topology {
        let isolated = read_list(&sysfs.join("isolated"));
        let cpus = available.iter().map(|&number| {
            let directory = sysfs.join(format!("cpu{number}"));
            let mut siblings = read_list(&directory.join("topology/thread_siblings_list"));
            if siblings.is_empty() {
                siblings.push(number);
            }
            Cpu { number, siblings, numa_node: numa_node(&directory), isolated: isolated.contains(&number) }
        });
        Topology { cpus: cpus.collect() }
    }

    /// The CPU with this number, if the process may run on it.
    #[must_use]
    pub fn cpu(&self, number: usize) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.number == number)
    }

    /// Checks that every CPU of `mask` is available.
    ///
    /// # Errors
    /// A sentence that names those that are not, and those that are.
    pub fn check(&self, mask: &CoreMask) -> Result<(), String> {
        let missing: Vec<String> =
            mask.cpus().iter().filter(|&&cpu| self.cpu(cpu).is_none()).map(usize::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let here: Vec<String> = self.cpus.iter().map(|cpu| cpu.number.to_string()).collect();
        Err(format!(
            "CPU {} is not available to this process; these are: {}",
            missing.join(", "),
            here.join(", ")
        ))
    }
}

/// Numbers of the CPUs the calling thread may run on.
fn available_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        // A kernel with more CPUs than the set holds refuses; then count.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// Whether a thread of this process may be pinned to `cpu`; tried by one that ends at once.
fn may_run_on(cpu: usize) -> bool {
    std::thread::spawn(move || pin_to(cpu).is_ok()).join().unwrap_or(false)
}

/// Pins the calling thread to `cpu`.
pub(crate) fn pin_to(cpu: usize) -> Result<(), String> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(format!("CPU {cpu} is beyond the highest, {}", CpuSet::MAX_CPU - 1));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| error.to_string())
}

fn read_list(path: &Path) -> Vec<usize> {
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    let text = text.trim();
    if text.is_empty() {
        return Vec::new();
    }
    CoreMask::parse(&format!("[{text}]")).map(|mask| mask.cpus().to_vec()).unwrap_or_default()
}

fn numa_node(directory: &Path) -> Option<usize> {
    std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_somewhere() {
        let topology = Topology::discover();
        assert!(!topology.cpus.is_empty());
        for cpu in &topology.cpus {
            assert!(cpu.siblings.contains(&cpu.number));
        }
    }

    #[test]
    fn whether_it_may_run_is_tried_without_moving_the_caller() {
        let before = available_cpus();
        assert!(may_run_on(before[0]));
        assert!(!may_run_on(CpuSet::MAX_CPU - 1) && !may_run_on(CpuSet::MAX_CPU));
        assert_eq!(available_cpus(), before);
    }

    #[test]
    fn sysfs_tells_siblings_nodes_and_isolation() {
        let root = std::env::temp_dir().join(format!("topology-{}", std::process::id()));
        std::fs::create_dir_all(root.join("cpu2/topology")).unwrap();
        std::fs::create_dir_all(root.join("cpu2/node1")).unwrap();
        std::fs::write(root.join("cpu2/topology/thread_siblings_list"), "2,6\n").unwrap();
        std::fs::write(root.join("isolated"), "1-2\n").unwrap();
        let topology = Topology::read(&[2, 3], &root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            topology.cpus[0],
            Cpu { number: 2, siblings: vec![2, 6], numa_node: Some(1), isolated: true }
        );
        assert_eq!(topology.cpus[1], Cpu { number: 3, siblings: vec![3], numa_node: None, isolated: false });
    }

    #[test]
    fn a_mask_beyond_the_machine_is_named() {
        let cpu = |number| Cpu { number, siblings: vec![number], numa_node: None, isolated: false };
        let topology = Topology { cpus: vec![cpu(0), cpu(1)] };
        assert_eq!(topology.check(&CoreMask::parse("0x3").unwrap()), Ok(()));
        let text = topology.check(&CoreMask::parse("[1,7,9]").unwrap()).unwrap_err();
        assert_eq!(text, "CPU 7, 9 is not available to this process; these are: 0, 1");
    }

    #[test]
    fn a_thread_can_be_pinned_where_it_may_run() {
        let cpu = Topology::discover().cpus[0].number;
        let seen = std::thread::spawn(move || pin_to(cpu).map(|()| available_cpus())).join().unwrap();
        assert_eq!(seen, Ok(vec![cpu]));
        assert!(pin_to(1_000_000).is_err());
    }
}
