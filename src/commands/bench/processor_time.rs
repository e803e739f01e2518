//! The processor time of processes, from their clocks (clock_getcpuclockid(3)), and their children.

use std::io;

use nix::{sys::time::TimeSpec, time::ClockId, unistd::Pid};

/// The processor time of this process without its children, in seconds.
pub(super) fn own_processor_seconds() -> io::Result<f64> {
    Ok(seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?))
}

/// The processor time of a process and its children, in seconds.
pub(super) fn processor_seconds_of(process: u32) -> io::Result<f64> {
    let id = Pid::from_raw(i32::try_from(process).unwrap_or_default());
    let mut all = seconds(ClockId::pid_cpu_clock_id(id)?.now()?);
    for child in children_of(process)? {
        // An ended process has no clock.
        let used = ClockId::pid_cpu_clock_id(Pid::from_raw(child.cast_signed())).and_then(ClockId::now);
        all += used.map(seconds).unwrap_or_default();
    }
    Ok(all)
}

/// The processes that a process started and that still run, from `/proc/PID/task/*/children` (proc(5)).
///
/// # Errors
/// `/proc` can't be read, or the process does not exist.
pub(super) fn children_of(process: u32) -> io::Result<Vec<u32>> {
    let mut all = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let children = match std::fs::read_to_string(thread?.path().join("children")) {
            // The thread ended; its children have another parent.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            children => children?,
        };
        all.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(all)
}

/// The time of a clock in seconds.
pub(super) fn seconds(time: TimeSpec) -> f64 {
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}
