//! Signals to a process, and waiting for a condition.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use postgres_server::{PATIENCE, process_tree::is_stopped};

/// Sends a signal by its name without SIG.
pub fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap().success());
}

/// Stops a process, and returns when none of its threads runs: on a busy machine some answer a little longer.
pub fn stop(process: u32) {
    signal(process, "STOP");
    let began = Instant::now();
    while !is_stopped(process) {
        assert!(began.elapsed() < PATIENCE, "process {process} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Usually within a second; the limit is longer for a busy machine.
pub async fn soon<T>(what: &str, find: impl AsyncFnMut() -> Option<T>) -> T {
    within(Duration::from_secs(20), what, find).await
}

/// Asks until there is an answer, a thousand times at most. Panics with `what` after the limit.
pub async fn within<T>(limit: Duration, what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = find().await {
            return found;
        }
        assert!(began.elapsed() < limit, "{what}");
        tokio::time::sleep(limit / 1_000).await;
    }
}
