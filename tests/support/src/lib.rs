//! Shared by the integration tests: processes of the built programs, tokens, ceremonies, certificates.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that meets a surprise must fail"
)]

pub mod ceremony;
pub mod certificates;
pub mod edge_process;
pub mod engine_process;
pub mod hsm_process;
pub mod java;
pub mod known;
pub mod real_token;
pub mod rotation;
pub mod wait;
pub mod zone_party;

use std::{path::PathBuf, process::Command, sync::LazyLock};

/// The built program, `target/<profile>/pinseal`. Test binaries are in the directory `deps` beside it, other programs with it.
pub fn pinseal_path() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| {
        let own = std::env::current_exe().unwrap();
        let directory = own.parent().unwrap();
        let is_test = directory.ends_with("deps");
        let built = if is_test { directory.with_file_name("pinseal") } else { directory.join("pinseal") };
        built.to_str().unwrap().to_owned()
    });
    &PATH
}

/// One of the small programs beside `pinseal`. Cargo builds them for no test: `cargo build --workspace --bins` does.
pub fn small_binary(name: &str) -> PathBuf {
    let path = PathBuf::from(pinseal_path()).with_file_name(name);
    assert!(path.exists(), "{} is missing: run cargo build --workspace --bins", path.display());
    path
}

/// A command for a small program that drops its first argument, the subcommand of `pinseal`.
pub fn without_subcommand(name: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "shift; exec \"$0\" \"$@\""]).arg(small_binary(name));
    command
}
