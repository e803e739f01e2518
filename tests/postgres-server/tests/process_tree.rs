//! The stop of a process and its descendants.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise must fail")]

use std::{
    collections::BTreeSet,
    process::{Child, Command, Stdio},
    time::Instant,
};

use postgres_server::{PATIENCE, process_tree};

/// A shell that starts one process after another, each with a child.
struct Forking(Child);

impl Forking {
    fn start() -> Self {
        let script = "while :; do sh -c 'sleep 0.002; true' & wait; done";
        Self(Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Forking {
    fn drop(&mut self) {
        process_tree::stop(self.0.id());
        for process in process_tree::list(self.0.id()) {
            Command::new("kill").args(["-KILL", &process.to_string()]).status().unwrap();
        }
        self.0.wait().unwrap();
    }
}

/// Waits until the shell has a descendant that is not among these.
fn until_another(shell: &Forking, known: &BTreeSet<u32>) {
    let since = Instant::now();
    while process_tree::list(shell.0.id()).is_subset(known) {
        assert!(since.elapsed() < PATIENCE, "the shell starts no other process");
    }
}

#[test]
fn no_descendant_runs_after_a_stop() {
    let shell = Forking::start();
    for _ in 0..50 {
        until_another(&shell, &BTreeSet::from([shell.0.id()]));
        process_tree::stop(shell.0.id());
        let stopped = process_tree::list(shell.0.id());
        assert!(stopped.iter().all(|process| process_tree::is_stopped(*process)), "{stopped:?}");
        process_tree::resume(shell.0.id());
        until_another(&shell, &stopped);
    }
}

#[test]
fn a_resumed_process_is_not_stopped() {
    let shell = Forking::start();
    assert!(!process_tree::is_stopped(shell.0.id()));
    process_tree::stop(shell.0.id());
    assert!(process_tree::is_stopped(shell.0.id()));
    process_tree::resume(shell.0.id());
    until_another(&shell, &process_tree::list(shell.0.id()));
    assert!(!process_tree::is_stopped(shell.0.id()));
}
