//! The commit that the binary is built from, for `pinseal --version`.

use std::process::Command;

fn main() {
    // Each commit and checkout appends to this file.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    // A source archive has no repository.
    let version = env!("CARGO_PKG_VERSION");
    let version = git(&["rev-parse", "--short=12", "HEAD"])
        .map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"));
    println!("cargo:rustc-env=PINSEAL_VERSION={version}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
