//! A process and its descendants, stopped as a hanging machine would stop them.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// The pause before the processes are listed again.
const PERIOD: Duration = Duration::from_millis(5);

/// Stops a process and its descendants, and returns when none of them runs.
///
/// A process that is not stopped yet may start another one while the list is made. So the stop is complete only when every
/// process of a list is stopped, and a second list that was made after that has the same processes.
pub fn stop(root: u32) {
    let since = Instant::now();
    let mut stopped = BTreeSet::new();
    loop {
        let found = list(root);
        let running: Vec<_> = found.iter().copied().filter(|process| !is_stopped(*process)).collect();
        if running.is_empty() && found == stopped {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "the processes {running:?} below {root} do not stop");
        running.iter().for_each(|process| signal(*process, Signal::STOP));
        // A process that waits for the exec of its child (vfork(2)) stops only after that: the child runs for one period more.
        let waiting = running.iter().filter(|process| states(**process).contains(&'D'));
        waiting.flat_map(|process| children(*process)).for_each(|child| signal(child, Signal::CONT));
        if running.is_empty() {
            stopped = found;
        } else {
            thread::sleep(PERIOD);
        }
    }
}

/// Continues a process and its descendants.
pub fn resume(root: u32) {
    list(root).into_iter().for_each(|process| signal(process, Signal::CONT));
}

/// A process and its descendants.
pub fn list(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut left = vec![root];
    while let Some(process) = left.pop() {
        if found.insert(process) {
            left.extend(children(process));
        }
    }
    found
}

/// Whether every thread of a process is stopped or has ended.
pub fn is_stopped(process: u32) -> bool {
    states(process).iter().all(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// The state of each thread. The state follows the name, which is in parentheses and may have any character (proc_pid_stat(5)).
fn states(process: u32) -> Vec<char> {
    let state = |stat: &String| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    of_threads(process, "stat").iter().filter_map(state).collect()
}

fn children(process: u32) -> Vec<u32> {
    let lists = of_threads(process, "children");
    lists.iter().flat_map(|list| list.split_whitespace()).map(|id| id.parse().unwrap()).collect()
}

/// A file of each thread, as far as the thread has not ended.
fn of_threads(process: u32, file: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join(file)).ok()).collect()
}

fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    // The process may have ended.
    let _ = kill_process(process, signal);
}
