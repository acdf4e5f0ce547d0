//! io_uring, the iSCSI port, the daemon and its unit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Limits;

use super::{Findings, Look, Status, tree};
use crate::client::{Client, ClientError};
use crate::limits;

/// How long the daemon may take to say who it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon, as its socket shows it.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Answers {
        version: String,
        pid: Option<u64>,
        cpus: Vec<usize>,
    },
    /// There is no socket.
    Absent,
    /// There is one, and nobody behind it.
    Stale,
    /// It may not be opened, or does not answer as a daemon does.
    Refused(String),
}

impl State {
    fn of(mut client: Client) -> Result<State, ClientError> {
        client.set_timeout(ANSWER_TIMEOUT)?;
        let version = client.call("spdk_get_version", None)?;
        let reactors = client.call("framework_get_reactors", None)?;
        let cpus = reactors["reactors"].as_array().into_iter().flatten();
        Ok(State::Answers {
            version: version["version"].as_str().unwrap_or("a daemon").to_owned(),
            pid: reactors["pid"].as_u64(),
            cpus: cpus
                .filter_map(|reactor| reactor["cpu"].as_u64())
                .filter_map(|cpu| usize::try_from(cpu).ok())
                .collect(),
        })
    }
}

impl Daemon {
    /// Asks whoever answers at `socket`.
    #[must_use]
    pub fn ask(socket: &Path) -> Daemon {
        let state = match Client::connect(socket) {
            Err(ClientError::NoDaemon { error, .. }) => match error.kind() {
                std::io::ErrorKind::NotFound => State::Absent,
                std::io::ErrorKind::ConnectionRefused => State::Stale,
                _ => State::Refused(error.to_string()),
            },
            Err(error) => State::Refused(error.to_string()),
            Ok(client) => State::of(client).unwrap_or_else(|error| State::Refused(error.to_string())),
        };
        Daemon { socket: socket.to_owned(), state }
    }

    /// True when it runs and answers.
    #[must_use]
    pub fn answers(&self) -> bool {
        matches!(self.state, State::Answers { .. })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u64> {
        match self.state {
            State::Answers { pid, .. } => pid,
            _ => None,
        }
    }
}

pub(super) fn rpc(look: &Look<'_>, out: &mut Findings) {
    let why = "pollux and scripts/rpc.py control the daemon through its socket";
    let path = look.daemon.socket.display().to_string();
    match &look.daemon.state {
        State::Answers { version, pid, cpus } => {
            let pid = pid.map_or("-".to_owned(), |pid| pid.to_string());
            out.ok(path.as_str(), format!("{version} answers, process {pid}"), why);
            let mut wanted = look.options.cpus.clone();
            wanted.sort_unstable();
            if !wanted.is_empty() && *cpus != wanted {
                let found = format!(
                    "its reactors run on CPU {}, not on {}",
                    super::cpu_list(cpus),
                    super::cpu_list(&wanted)
                );
                let why = "the other checks looked at the CPUs named, which are not the ones in use";
                out.bad(
                    Status::Warn,
                    path,
                    found,
                    why,
                    format!("pollux doctor --cores '[{}]'", super::cpu_list(cpus)),
                );
            }
        }
        State::Absent => {
            out.bad(Status::Warn, path.as_str(), "no daemon runs here", why, format!("polluxd -r {path}"));
        }
        State::Stale => {
            let found = "a socket is there, and nobody answers: its daemon has ended";
            out.bad(Status::Warn, path.as_str(), found, why, format!("polluxd -r {path}"));
        }
        State::Refused(error) => {
            let fix = "run this as the user of the daemon, or as root";
            out.bad(Status::Fail, path.as_str(), error.as_str(), why, fix);
        }
    }
}

pub(super) fn io_uring(look: &Look<'_>, out: &mut Findings) {
    let why = "files and block devices are reached through io_uring; where it is refused, through threads, at more cost";
    let setting = look.tree.number("/proc/sys/kernel/io_uring_disabled");
    let filtered = look.tree.text("/proc/self/status").is_some_and(|text| {
        text.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
    });
    let fix = "sysctl -w kernel.io_uring_disabled=0; for good: echo kernel.io_uring_disabled=0 > /etc/sysctl.d/90-pollux.conf";
    // What counts is whether it works; the settings say why it does not.
    let tried = if look.tree.is_machine() { Some(bdev::probe_io_uring()) } else { None };
    match (tried, setting) {
        (Some(Ok(())), _) => out.ok("", "works", why),
        (_, Some(2)) => {
            out.bad(Status::Warn, "", "disabled for everybody (kernel.io_uring_disabled=2)", why, fix)
        }
        (None, Some(1)) | (Some(Err(_)), Some(1)) => {
            out.bad(
                Status::Warn,
                "",
                "disabled for users without privilege (kernel.io_uring_disabled=1)",
                why,
                fix,
            );
        }
        (Some(Err(error)), _) => {
            let (found, fix) = if filtered {
                (
                    format!("refused ({error}) by a seccomp filter"),
                    "run outside the container, or with a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register",
                )
            } else {
                (format!("refused: {error}"), "use a kernel with CONFIG_IO_URING")
            };
            out.bad(Status::Warn, "", found, why, fix);
        }
        (None, _) => out.ok("", "not disabled", why),
    }
}

/// A socket that listens: its inode.
fn listener(look: &Look<'_>, port: u16) -> Option<String> {
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = look.tree.text(file).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let number = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            // 0A: LISTEN.
            if number == Some(port) && *state == "0A" {
                return Some((*inode).to_owned());
            }
        }
    }
    None
}

/// The process that holds a socket: number and name.
fn owner(look: &Look<'_>, inode: &str) -> Option<(u64, String)> {
    let wanted = format!("socket:[{inode}]");
    look.tree.names("/proc").iter().filter_map(|name| name.parse::<u64>().ok()).find_map(|pid| {
        let folder = format!("/proc/{pid}/fd");
        let holds = look
            .tree
            .names(&folder)
            .iter()
            .any(|fd| look.tree.link_text(&format!("{folder}/{fd}")).as_deref() == Some(wanted.as_str()));
        holds.then(|| (pid, look.tree.text(&format!("/proc/{pid}/comm")).unwrap_or_default()))
    })
}

pub(super) fn port(look: &Look<'_>, out: &mut Findings) {
    let why = "initiators look for targets there";
    let port = look.options.port;
    let subject = format!("{port}/tcp");
    let Some(inode) = listener(look, port) else {
        out.ok(subject, "nobody listens: free for a portal", why);
        return;
    };
    match owner(look, &inode) {
        Some((pid, _)) if Some(pid) == look.daemon.pid() => {
            out.ok(subject, format!("polluxd {pid} listens"), why);
        }
        Some((pid, name)) => {
            let found = format!("{name} (process {pid}) listens");
            let fix = format!("kill {pid}, or give the portal another port (iscsi_create_portal_group)");
            out.bad(Status::Fail, subject, found, why, fix);
        }
        None if look.daemon.answers() => {
            out.ok(subject, "somebody listens, who cannot be seen by this user", why)
        }
        None => {
            let fix =
                format!("ss -ltnp 'sport = :{port}', as root, shows who; or give the portal another port");
            out.bad(Status::Warn, subject, "somebody listens, who cannot be seen by this user", why, fix);
        }
    }
}

/// Where systemd looks for units, the strongest first.
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const UNIT: &str = "polluxd.service";

/// The settings of `[Service]`: the unit's, and those of its drop-ins over them. `None` when there is no unit.
fn unit(look: &Look<'_>) -> Option<(String, BTreeMap<String, String>)> {
    let folder = UNIT_FOLDERS.iter().find(|folder| look.tree.exists(&format!("{folder}/{UNIT}")))?;
    let mut settings = BTreeMap::new();
    let path = format!("{folder}/{UNIT}");
    read_unit(look, &path, &mut settings);
    // By file name, whatever folder it lies in; the last one counts.
    let mut drop_ins: BTreeMap<String, String> = BTreeMap::new();
    for folder in UNIT_FOLDERS.iter().rev() {
        for name in look.tree.names(&format!("{folder}/{UNIT}.d")) {
            if name.ends_with(".conf") {
                drop_ins.insert(name.clone(), format!("{folder}/{UNIT}.d/{name}"));
            }
        }
    }
    for path in drop_ins.values() {
        read_unit(look, path, &mut settings);
    }
    Some((path, settings))
}

fn read_unit(look: &Look<'_>, path: &str, settings: &mut BTreeMap<String, String>) {
    let mut in_service = false;
    for line in look.tree.text(path).unwrap_or_default().lines().map(str::trim) {
        if line.starts_with('[') {
            in_service = line == "[Service]";
        } else if let Some((key, value)) =
            line.split_once('=').filter(|_| in_service && !line.starts_with(['#', ';']))
        {
            settings.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
}

/// A limit as systemd writes it: `infinity`, a number with a suffix, `soft:hard`. `None` is no limit.
fn unit_limit(text: &str) -> Option<u64> {
    let soft = text.split(':').next().unwrap_or(text);
    let (digits, factor) = match soft.chars().last() {
        Some('K') => (soft.trim_end_matches('K'), 1 << 10),
        Some('M') => (soft.trim_end_matches('M'), 1 << 20),
        Some('G') => (soft.trim_end_matches('G'), 1 << 30),
        Some('T') => (soft.trim_end_matches('T'), 1 << 40),
        _ => (soft, 1),
    };
    digits.parse::<u64>().ok().map(|number| number.saturating_mul(factor))
}

pub(super) fn systemd(look: &Look<'_>, out: &mut Findings) {
    let why = "a service has the limits of its unit, not those of a shell";
    let Some((path, settings)) = unit(look) else {
        out.ok("", "there is no polluxd.service", why);
        return;
    };
    let before = out.list.len();
    let mut set = |status: Status, found: String, why: &str, setting: &str| {
        let fix = format!(
            "mkdir -p /etc/systemd/system/{UNIT}.d && printf '[Service]\\n{setting}\\n' > /etc/systemd/system/{UNIT}.d/90-doctor-{}.conf && systemctl daemon-reload && systemctl restart polluxd",
            setting.split('=').next().unwrap_or("limits").to_lowercase()
        );
        out.bad(status, path.as_str(), found, why, fix);
    };
    let get = |key: &str| settings.get(key).map(String::as_str);
    let classes = limits::pool_classes(&Limits::default(), look.options.memory_mib);
    let cores = u16::try_from(look.reactors()).unwrap_or(u16::MAX);
    let memory = limits::bill(&Limits::default(), cores, &classes).total_bytes();
    // systemd's own default is 8 MiB.
    let locked = get("LimitMEMLOCK").map_or(Some(8 << 20), unit_limit);
    if locked.is_some_and(|bytes| bytes < memory) {
        let found = format!("LimitMEMLOCK={}", get("LimitMEMLOCK").unwrap_or("8M (the default)"));
        set(look.lacking(), found, "VFIO refuses to lock more", "LimitMEMLOCK=infinity");
    }
    let files = get("LimitNOFILE").map_or(Some(1024), unit_limit);
    let needed = u64::from(Limits::default().sessions_max) * look.reactors() + 512;
    if files.is_some_and(|files| files < needed) {
        let found = format!("LimitNOFILE={}", get("LimitNOFILE").unwrap_or("1024 (the default)"));
        set(Status::Warn, found, "each session is an open file", &format!("LimitNOFILE={needed}"));
    }
    if matches!(get("PrivateDevices"), Some("yes" | "true" | "1" | "on")) {
        set(
            look.lacking(),
            "PrivateDevices=yes".to_owned(),
            "/dev/vfio is then hidden from the daemon",
            "PrivateDevices=no",
        );
    }
    if get("CPUQuota").is_some_and(|quota| !quota.is_empty()) {
        let found = format!("CPUQuota={}", get("CPUQuota").unwrap_or_default());
        set(
            Status::Warn,
            found,
            "a reactor that polls uses its whole CPU, and is stopped at the quota",
            "CPUQuota=",
        );
    }
    if let Some(affinity) = get("CPUAffinity").filter(|text| !text.is_empty()) {
        let allowed = tree::cpus(&affinity.replace(' ', ","));
        if look.options.cpus.iter().any(|cpu| !allowed.contains(cpu)) {
            let found =
                format!("CPUAffinity={affinity}, without CPU {}", super::cpu_list(&look.options.cpus));
            set(Status::Fail, found, "a reactor cannot be pinned outside of it", "CPUAffinity=");
        }
    }
    if out.list.len() == before {
        out.ok(path, "its limits are enough", why);
    }
}
