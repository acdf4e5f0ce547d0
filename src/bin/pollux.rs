//! `pollux`: looks at a running daemon, and calls its methods.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pollux::client::{Client, ClientError};
use pollux::daemon::default_socket;
use pollux::doctor;
use pollux::limits::{BUFFER_MIB_DEFAULT, BUFFER_MIB_MIN};
use reactor::CoreMask;
use serde_json::{Map, Value};

/// Looks at a running polluxd, and calls its methods.
#[derive(Parser)]
#[command(name = "pollux", version)]
struct Arguments {
    /// RPC socket of the daemon [default: as polluxd's]
    #[arg(short = 'r', long, value_name = "SOCKET", global = true)]
    rpc_socket: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The daemon in a few lines
    Status,
    /// Block devices
    Bdevs,
    /// NVMe controllers
    Controllers,
    /// Target nodes
    Targets,
    /// Connections of initiators
    Connections,
    /// Reactors, and how busy they are
    Reactors,
    /// The methods, or one method's parameters
    Methods {
        /// Describe this one
        method: Option<String>,
    },
    /// Looks at the machine: what is in polluxd's way, and the command that removes it. Exit status 0: nothing;
    /// 1: warnings; 2: failures
    Doctor(DoctorArguments),
    /// Calls a method
    Rpc {
        /// The method
        method: String,
        /// Its parameters as key=value; values are JSON where they parse as such, else text
        parameters: Vec<String>,
    },
}

#[derive(clap::Args)]
struct DoctorArguments {
    /// CPUs of the reactors, as polluxd's -m: 0x3, [0,2-3] or 0,1
    #[arg(short = 'm', long, visible_alias = "cpumask", value_name = "MASK", allow_hyphen_values = true)]
    cores: Option<String>,
    /// Buffer memory of each reactor in MiB, as polluxd's
    #[arg(long, value_name = "MIB", default_value_t = BUFFER_MIB_DEFAULT,
          value_parser = clap::value_parser!(u64).range(BUFFER_MIB_MIN..=1 << 20))]
    memory: u64,
    /// What a dedicated node needs (VFIO, IOMMU, hugepages, isolated cores) must be there
    #[arg(long)]
    dedicated: bool,
    /// TCP port of the iSCSI portal
    #[arg(long, default_value_t = 3260)]
    port: u16,
    /// Only this check; may be given several times
    #[arg(long, value_name = "CHECK")]
    only: Vec<String>,
    /// Look below this folder instead of /
    #[arg(long, value_name = "PATH", default_value = "/")]
    root: PathBuf,
}

/// Looks, prints, and says by its exit status how the machine is.
fn examine(arguments: &Arguments, doctor: &DoctorArguments) -> Result<ExitCode, String> {
    let cpus = match &doctor.cores {
        None => Vec::new(),
        Some(text) => CoreMask::parse(text).map_err(|error| format!("--cores: {error}"))?.cpus().to_vec(),
    };
    let root =
        doctor.root.canonicalize().map_err(|error| format!("--root {}: {error}", doctor.root.display()))?;
    // A socket that is not named is looked for below the root, as everything else.
    let below = || root.join(default_socket().strip_prefix("/").map(Path::to_owned).unwrap_or_default());
    let options = doctor::Options {
        cpus,
        memory_mib: doctor.memory,
        dedicated: doctor.dedicated,
        port: doctor.port,
        only: doctor.only.clone(),
        socket: arguments.rpc_socket.clone().unwrap_or_else(below),
        root,
    };
    let report = doctor::examine(&options).map_err(|error| format!("--only: {error}"))?;
    let text = if arguments.json { format!("{:#}", report.json()) } else { report.text() };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(ExitCode::from(report.exit_status()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Doctor(doctor) = &arguments.command {
        return examine(&arguments, doctor).unwrap_or_else(|error| {
            eprintln!("pollux: {error}");
            // As a failure: nothing is known to be well.
            ExitCode::from(2)
        });
    }
    match run(&arguments) {
        Ok(text) => {
            // A reader that has gone (head, less) is no error.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pollux: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String, String> {
    let path = arguments.rpc_socket.clone().unwrap_or_else(default_socket);
    let mut client = Client::connect(&path).map_err(|error: ClientError| error.to_string())?;
    let mut call =
        |method: &str, params: Option<Value>| client.call(method, params).map_err(|error| error.to_string());
    let (value, table): (Value, fn(&Value) -> String) = match &arguments.command {
        Command::Status => {
            let status = serde_json::json!({
                "version": call("spdk_get_version", None)?["version"],
                "reactors": call("framework_get_reactors", None)?,
                "bdevs": count(&call("bdev_get_bdevs", None)?),
                "targets": count(&call("iscsi_get_target_nodes", None)?),
                "portals": call("iscsi_get_portal_groups", None)?,
                "connections": count(&call("iscsi_get_connections", None)?),
                "socket": path.display().to_string(),
            });
            (status, status_text)
        }
        Command::Bdevs => (call("bdev_get_bdevs", None)?, bdevs_text),
        Command::Controllers => (call("bdev_nvme_get_controllers", None)?, controllers_text),
        Command::Targets => (call("iscsi_get_target_nodes", None)?, targets_text),
        Command::Connections => (call("iscsi_get_connections", None)?, connections_text),
        Command::Reactors => (call("framework_get_reactors", None)?, reactors_text),
        Command::Methods { method } => {
            let mut methods = call("rpc.discover", None)?["methods"].take();
            if let (Some(name), Some(list)) = (method, methods.as_array_mut()) {
                list.retain(|entry| entry["name"] == name.as_str());
                if list.is_empty() {
                    return Err(format!(
                        "{name} is not a method of this daemon. Remedy: \"pollux methods\" lists them"
                    ));
                }
            }
            (methods, if method.is_some() { method_text } else { methods_text })
        }
        Command::Doctor(_) => return Err("doctor needs no daemon".to_owned()),
        Command::Rpc { method, parameters } => {
            let params = read_parameters(parameters)?;
            return Ok(format!("{:#}", call(method, params)?));
        }
    };
    Ok(if arguments.json { format!("{value:#}") } else { table(&value) })
}

fn read_parameters(parameters: &[String]) -> Result<Option<Value>, String> {
    let mut map = Map::new();
    for parameter in parameters {
        let (key, text) = parameter
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| format!("{parameter:?} is not key=value"))?;
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        map.insert(key.to_owned(), value);
    }
    Ok(if map.is_empty() { None } else { Some(Value::Object(map)) })
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn count(value: &Value) -> usize {
    items(value).len()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Columns as wide as their widest cell. `empty` is said when there are no rows.
fn table(head: &[&str], rows: &[Vec<String>], empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let step = (bytes.max(1).ilog2() / 10).min(5);
    let scaled = bytes as f64 / (1u64 << (10 * step)) as f64;
    let unit = UNITS.get(step as usize).copied().unwrap_or("B");
    if scaled.fract() == 0.0 { format!("{scaled} {unit}") } else { format!("{scaled:.1} {unit}") }
}

fn busy(reactor: &Value) -> String {
    let (busy, idle) = (reactor["busy"].as_f64().unwrap_or(0.0), reactor["idle"].as_f64().unwrap_or(0.0));
    if busy + idle > 0.0 { format!("{:.1} %", 100.0 * busy / (busy + idle)) } else { "-".to_owned() }
}

fn status_text(value: &Value) -> String {
    let reactors = &value["reactors"]["reactors"];
    let mode = items(reactors).first().map_or_else(|| "-".to_owned(), |reactor| text(&reactor["mode"]));
    let portals: Vec<String> = items(&value["portals"])
        .iter()
        .flat_map(|group| items(&group["portals"]))
        .map(|portal| format!("{}:{}", text(&portal["host"]), text(&portal["port"])))
        .collect();
    let portals = if portals.is_empty() { "none".to_owned() } else { portals.join(", ") };
    format!(
        "{}\nsocket       {}\npid          {}\nreactors     {} ({mode})\nbdevs        {}\ntargets      {}\nportals      {portals}\nconnections  {}\n",
        text(&value["version"]),
        text(&value["socket"]),
        text(&value["reactors"]["pid"]),
        count(reactors),
        value["bdevs"],
        value["targets"],
        value["connections"],
    )
}

fn bdevs_text(value: &Value) -> String {
    let row = |bdev: &Value| {
        let (block, blocks) =
            (bdev["block_size"].as_u64().unwrap_or(0), bdev["num_blocks"].as_u64().unwrap_or(0));
        let used = if bdev["claimed"] == true { "yes" } else { "no" };
        vec![
            text(&bdev["name"]),
            text(&bdev["product_name"]),
            size(block.saturating_mul(blocks)),
            block.to_string(),
            used.to_owned(),
            text(&bdev["uuid"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(value).iter().map(row).collect();
    table(&["NAME", "KIND", "SIZE", "BLOCK", "USED", "UUID"], &rows, "no bdevs")
}

fn controllers_text(value: &Value) -> String {
    let row = |controller: &Value| {
        let path = items(&controller["ctrlrs"]).first().unwrap_or(&Value::Null);
        vec![
            text(&controller["name"]),
            text(&path["state"]),
            text(&path["trid"]["trtype"]),
            text(&path["trid"]["traddr"]),
            text(&path["failure"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(value).iter().map(row).collect();
    table(&["NAME", "STATE", "TRANSPORT", "ADDRESS", "REASON"], &rows, "no controllers")
}

fn targets_text(value: &Value) -> String {
    let row = |target: &Value| {
        let luns: Vec<String> = items(&target["luns"])
            .iter()
            .map(|lun| format!("{}={}", lun["lun_id"], text(&lun["bdev_name"])))
            .collect();
        let maps: Vec<String> = items(&target["pg_ig_maps"])
            .iter()
            .map(|map| format!("{}:{}", map["pg_tag"], map["ig_tag"]))
            .collect();
        let chap = match (&target["require_chap"], &target["mutual_chap"], &target["disable_chap"]) {
            (_, Value::Bool(true), _) => "mutual",
            (Value::Bool(true), ..) => "required",
            (_, _, Value::Bool(true)) => "off",
            _ => "offered",
        };
        vec![text(&target["name"]), luns.join(" "), maps.join(" "), chap.to_owned()]
    };
    let rows: Vec<Vec<String>> = items(value).iter().map(row).collect();
    table(&["NAME", "LUNS", "PORTAL:INITIATOR GROUPS", "CHAP"], &rows, "no targets")
}

fn connections_text(value: &Value) -> String {
    let row = |connection: &Value| {
        let from = format!("{}:{}", text(&connection["initiator_addr"]), connection["initiator_port"]);
        vec![
            text(&connection["id"]),
            text(&connection["initiator_name"]),
            from,
            text(&connection["target_node_name"]),
            text(&connection["state"]),
            text(&connection["lcore_id"]),
            text(&connection["outstanding"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(value).iter().map(row).collect();
    table(&["ID", "INITIATOR", "FROM", "TARGET", "STATE", "CORE", "COMMANDS"], &rows, "no connections")
}

fn reactors_text(value: &Value) -> String {
    let row = |reactor: &Value| {
        vec![text(&reactor["lcore"]), text(&reactor["cpu"]), text(&reactor["mode"]), busy(reactor)]
    };
    let rows: Vec<Vec<String>> = items(&value["reactors"]).iter().map(row).collect();
    table(&["CORE", "CPU", "MODE", "BUSY"], &rows, "no reactors")
}

fn methods_text(value: &Value) -> String {
    let rows: Vec<Vec<String>> =
        items(value).iter().map(|method| vec![text(&method["name"]), text(&method["description"])]).collect();
    table(&["METHOD", "WHAT IT DOES"], &rows, "no methods")
}

fn method_text(value: &Value) -> String {
    let mut out = String::new();
    for method in items(value) {
        out.push_str(&format!("{}\n{}\n\n", text(&method["name"]), text(&method["description"])));
        let row = |parameter: &Value| {
            let kind = match &parameter["schema"]["type"] {
                Value::Array(kinds) => kinds
                    .iter()
                    .filter_map(Value::as_str)
                    .filter(|kind| *kind != "null")
                    .collect::<Vec<_>>()
                    .join("|"),
                Value::String(kind) => kind.clone(),
                _ => "value".to_owned(),
            };
            let needed = if parameter["required"] == true { "required" } else { "optional" };
            vec![
                text(&parameter["name"]),
                kind,
                needed.to_owned(),
                text(&parameter["description"]).replace('\n', " "),
            ]
        };
        let rows: Vec<Vec<String>> = items(&method["params"]).iter().map(row).collect();
        out.push_str(&table(&["PARAMETER", "TYPE", "", "MEANING"], &rows, "no parameters"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_json_where_they_parse() {
        let given: Vec<String> = ["a=1", "b=x=y", "c=[{\"d\":true}]", "e="].map(str::to_owned).to_vec();
        assert_eq!(
            read_parameters(&given).unwrap(),
            Some(serde_json::json!({"a": 1, "b": "x=y", "c": [{"d": true}], "e": ""}))
        );
        assert!(read_parameters(&["=1".to_owned()]).is_err() && read_parameters(&["a".to_owned()]).is_err());
        assert_eq!(read_parameters(&[]).unwrap(), None);
    }

    #[test]
    fn tables_and_sizes() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["bbb".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["N", "V"], &rows, "none"), "N    V\na    long cell\nbbb  x\n");
        assert_eq!(table(&["N"], &[], "none"), "none");
        assert_eq!(
            (size(512), size(1536 << 20), size(0)),
            ("512 B".to_owned(), "1.5 GiB".to_owned(), "0 B".to_owned())
        );
    }
}
