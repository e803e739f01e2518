//! Runs commands of `pinseal`, with their output.

use std::{
    path::Path,
    process::{Command, Output},
};

pub(crate) fn pinseal(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pinseal")).args(arguments).output().unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that must succeed. Returns its output.
pub(crate) fn done(arguments: &[&str]) -> String {
    let output = pinseal(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// Runs a command that must fail with this exit code. Returns its output.
pub(crate) fn refused(code: i32, arguments: &[&str]) -> String {
    let output = pinseal(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    said(&output)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
