//! The cores that this process may use, and the affinity of a thread to one core.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The numbers of the cores that this process may use.
///
/// # Errors
/// `sched_getaffinity` fails.
pub fn allowed() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect())
}

/// Pins the calling thread, and every thread that it starts later, to one core.
///
/// # Errors
/// `sched_setaffinity` fails, for example because the process may not use the core.
pub fn pin_thread_to(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn only_the_pinned_thread_is_limited_to_the_core() {
        let before = allowed().unwrap();
        let last = *before.last().unwrap();
        let pinned = thread::spawn(move || {
            pin_thread_to(last).unwrap();
            allowed().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert_eq!(allowed().unwrap(), before);
    }
}
