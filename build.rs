//! Stamps version, commit and enabled features into `polluxd --version`.

use std::process::Command;

fn main() {
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(
            || "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        );
    let mut features: Vec<String> = std::env::vars()
        .filter_map(|(name, _)| name.strip_prefix("CARGO_FEATURE_").map(str::to_lowercase))
        .filter(|name| name != "default")
        .collect();
    features.sort();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(",") };
    println!("cargo:rustc-env=POLLUX_COMMIT={commit}");
    println!("cargo:rustc-env=POLLUX_FEATURES={features}");
    // The reflog changes with every commit and checkout; HEAD itself names a branch and stays. git knows where they are
    // when this is a worktree. A path that does not exist would make cargo run this, and link again, every time.
    for file in ["logs/HEAD", "HEAD"] {
        let path = Command::new("git").args(["rev-parse", "--git-path", file]).output();
        let path = path.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        );
        if !path.is_empty() && std::path::Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
            break;
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
}
