//! The rules of STYLE.md that a program can check. Bounds are ratchets: an exception is a line below, with the
//! present figure, and the figure may only fall.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use (ARCHITECTURE.md, "The rooms"). `None`: everything.
const ROOMS: &[(&str, Option<&[&str]>)] = &[
    ("base", Some(&[])),
    ("wire", Some(&[])),
    ("bdev", Some(&["base"])),
    ("scsi", Some(&["base", "wire", "bdev"])),
    ("reactor", Some(&["base"])),
    ("nvme_backend", Some(&["base", "wire", "bdev", "reactor"])),
    ("fabrics", Some(&["base", "wire", "scsi", "bdev", "reactor"])),
    ("rpc", Some(&["base"])),
    ("initiator", Some(&["base", "wire"])),
    ("sim", None),
    ("fuzz", None),
];

/// The only files that may hold `unsafe`.
const UNSAFE_FILES: &[&str] = &[
    // The pool's memory: one mapping cut into slots, each reached by the one handle that owns it.
    "base/src/pool.rs",
    // The RAM disk's memory: a sparse mapping shared by all cores, each access under its region's lock.
    "bdev/src/ram_memory.rs",
    // The io_uring: entries pushed, whose memory outlives them.
    "bdev/src/uring/ring.rs",
    // The memory the kernel may be reading or writing while a request is in flight.
    "bdev/src/uring/slots.rs",
    // System calls the standard library lacks: ioctl, statx, fallocate, eventfd, epoll.
    "bdev/src/uring/system.rs",
    // The threads that serve where io_uring is refused, with the memory of the request.
    "bdev/src/uring/workers.rs",
    // Memory shared with a device: reached by atomics only.
    "reactor/src/devices/dma.rs",
    // Mapped device registers: volatile accesses, bounds checked.
    "reactor/src/devices/mmio.rs",
    // The handler that keeps a register that has gone from ending the process.
    "reactor/src/devices/sigbus.rs",
    // The system calls of VFIO and iommufd.
    "reactor/src/devices/vfio/sys.rs",
    // Mapping of hugepages.
    "reactor/src/hugepages.rs",
    // Descriptors of the poll set, borrowed raw for the kernel to read.
    "reactor/src/poll_fd.rs",
    // RDTSC and CPUID.
    "reactor/src/tsc.rs",
    // The counting allocator of the data path's tests.
    "tests/common/counting_allocator.rs",
];

/// Lines of a source file without its tests, and of one function.
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;

/// Files and functions over the bound when the rule came; each argued for where it stands.
const LONG_FILES: &[(&str, usize)] = &[];
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !name.starts_with("target") && name != "node_modules" {
                files_below(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn files(extension: &str) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    files_below(&root(), extension, &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("readable text"))
        })
        .collect()
}

/// The source with comments, strings and character literals blanked, line for line.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |out: &mut String, range: &[u8]| {
        for &byte in range {
            out.push(if byte == b'\n' { '\n' } else { ' ' });
        }
    };
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|w| w == b"*/").map_or(rest.len(), |p| p + 2)
        } else if let Some(hashes) = raw_string_hashes(bytes, at) {
            let mut end = vec![b'"'];
            end.extend(std::iter::repeat_n(b'#', hashes));
            let body = hashes + 2;
            rest[body..]
                .windows(end.len())
                .position(|w| w == end)
                .map_or(rest.len(), |p| body + p + end.len())
        } else if rest[0] == b'"' {
            let mut i = 1;
            while i < rest.len() && rest[i] != b'"' {
                i += if rest[i] == b'\\' { 2 } else { 1 };
            }
            (i + 1).min(rest.len())
        } else if rest[0] == b'\'' && rest.len() > 2 && (rest[1] == b'\\' || rest[2] == b'\'') {
            let start = if rest[1] == b'\\' { 3 } else { 2 };
            rest[start..].iter().position(|&b| b == b'\'').map_or(1, |p| start + p + 1)
        } else {
            0
        };
        if length == 0 {
            out.push(char::from(if rest[0].is_ascii() { rest[0] } else { b'?' }));
            at += 1;
        } else {
            blank(&mut out, &rest[..length]);
            at += length;
        }
    }
    out
}

fn raw_string_hashes(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes[at] != b'r' || (at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')) {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|&&b| b == b'#').count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some(hashes)
}

fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod ").map_or(code, |end| &code[..end])
}

fn is_test_file(name: &str) -> bool {
    name.starts_with("tests/")
        || name.contains("/tests/")
        || name.ends_with("/tests.rs")
        || name.ends_with("_tests.rs")
}

fn report(rule: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

#[test]
fn rooms_use_only_what_the_architecture_allows() {
    let mut faults = Vec::new();
    for (room, allowed) in ROOMS {
        let manifest = root().join(room).join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else {
            continue;
        };
        let Some(allowed) = allowed else { continue };
        let mut section = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = if name.starts_with("dependencies") { "dependencies" } else { "other" };
            }
            let used = line.split(['.', ' ', '=']).next().unwrap_or("");
            if section == "dependencies"
                && ROOMS.iter().any(|(name, _)| *name == used)
                && !allowed.contains(&used)
            {
                faults.push(format!("{room} uses {used}; it may use only {allowed:?}"));
            }
        }
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace manifest");
    let members = workspace.lines().find(|line| line.starts_with("members")).expect("members");
    for member in members.split('"').skip(1).step_by(2) {
        if !ROOMS.iter().any(|(room, _)| *room == member) {
            faults.push(format!("{member} is a workspace member, but no rule says what it may use"));
        }
    }
    report("dependency direction", faults);
}

#[test]
fn unsafe_code_stands_only_in_the_listed_files() {
    let mut faults = Vec::new();
    for (name, text) in files("rs") {
        let code = code_only(&text);
        let has_unsafe =
            code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe");
        if has_unsafe && !UNSAFE_FILES.contains(&name.as_str()) {
            faults.push(format!("{name} holds unsafe and is not on the list"));
        }
        if name.ends_with("src/lib.rs") || name.ends_with("src/main.rs") {
            let room = name.split("/src").next().unwrap_or("");
            let may = UNSAFE_FILES.iter().any(|file| file.starts_with(&format!("{room}/")));
            let wanted = if may { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
            if !text.contains(wanted) {
                faults.push(format!("{name} lacks {wanted}"));
            }
        }
    }
    for file in UNSAFE_FILES {
        if !root().join(file).exists() {
            faults.push(format!("{file} is on the list of unsafe files and does not exist"));
        }
    }
    report("unsafe code", faults);
}

#[test]
fn files_and_functions_stay_short() {
    let mut faults = Vec::new();
    let long_files: BTreeMap<_, _> = LONG_FILES.iter().copied().collect();
    let long_functions: BTreeMap<_, _> = LONG_FUNCTIONS.iter().copied().collect();
    for (name, text) in files("rs") {
        if is_test_file(&name) {
            continue;
        }
        let code = code_only(&text);
        let lines = without_tests(&code).lines().count();
        let bound = long_files.get(name.as_str()).copied().unwrap_or(FILE_LINES_MAX);
        if lines > bound {
            faults.push(format!("{name}: {lines} lines, at most {bound}"));
        }
        for (function, length) in functions(without_tests(&code)) {
            let key = format!("{name}::{function}");
            let bound = long_functions.get(key.as_str()).copied().unwrap_or(FUNCTION_LINES_MAX);
            if length > bound {
                faults.push(format!("{key}: {length} lines, at most {bound}"));
            }
        }
    }
    report("length", faults);
}

/// Each function with a body, and its length in lines, signature included.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find("fn ") {
        let before = rest[..start].chars().next_back().unwrap_or(' ');
        let name: String =
            rest[start + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let signature = &rest[start..];
        rest = &rest[start + 3..];
        if before.is_alphanumeric() || before == '_' || name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(signature) {
            found.push((name, signature[..=end].lines().count()));
        }
    }
    found
}

/// Where the body of the function that starts `code` ends; `None` for a declaration without one.
fn body_end(code: &str) -> Option<usize> {
    // A semicolon inside brackets belongs to an array type of the signature, not to its end.
    let mut brackets = 0usize;
    let mut braces = 0usize;
    for (i, c) in code.char_indices() {
        match c {
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets = brackets.checked_sub(1)?,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' if brackets == 0 => braces += 1,
            '}' if brackets == 0 => {
                braces = braces.checked_sub(1)?;
                if braces == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn the_scanner_measures_bodies_and_skips_declarations() {
    let code = "trait T {\n    fn declared(&self, a: [u8; 4]) -> u8;\n}\nfn short(a: [u8; 2]) {\n    { a; }\n}\nfn one() {}\n";
    assert_eq!(functions(code), [("short".to_string(), 3), ("one".to_string(), 1)]);
}

#[test]
fn links_and_code_paths_in_documents_resolve() {
    let mut faults = Vec::new();
    for (name, text) in files("md") {
        let folder = root().join(&name).parent().expect("a folder").to_path_buf();
        for (number, line) in text.lines().enumerate() {
            let place = format!("{name}:{}", number + 1);
            for link in line.split("](").skip(1) {
                let target = link.split([')', '#', ' ']).next().unwrap_or("");
                if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                if !folder.join(target).exists() {
                    faults.push(format!("{place}: the link to {target} leads nowhere"));
                }
            }
            for code in line.split('`').skip(1).step_by(2) {
                let path = code.split([':', ' ']).next().unwrap_or("");
                let rooted = ROOMS.iter().any(|(room, _)| path.starts_with(&format!("{room}/")))
                    || ["src/", "tests/", "scripts/", "docs/", "perf/", ".ci/"]
                        .iter()
                        .any(|p| path.starts_with(p));
                let plain = !path.contains(['*', '{', '<', '…', '$']);
                if rooted && plain && !root().join(path).exists() {
                    faults.push(format!("{place}: `{path}` does not exist"));
                }
            }
        }
    }
    report("documents", faults);
}

#[test]
fn nothing_of_one_machine_is_written_down() {
    let home = format!("/{}/", "root");
    let mut faults = Vec::new();
    for extension in ["rs", "md", "py", "toml", "json", "sh", "tsv"] {
        for (name, text) in files(extension) {
            for (number, line) in text.lines().enumerate() {
                if line.contains(&home) || line.contains(&format!("/{}/", "home")) {
                    faults.push(format!("{name}:{}: an absolute path of one machine", number + 1));
                }
            }
        }
    }
    report("machine paths", faults);
}

#[test]
fn every_room_denies_missing_documentation() {
    let mut faults = Vec::new();
    for (room, _) in ROOMS {
        let Ok(text) = fs::read_to_string(root().join(room).join("Cargo.toml")) else { continue };
        if !text.contains("[lints]\nworkspace = true") {
            faults.push(format!("{room}/Cargo.toml does not take the workspace's lints"));
        }
    }
    report("lints", faults);
}
