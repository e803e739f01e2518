//! The processor's cores that this process may use, and threads that stay on one of them.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores this process may use, by number.
pub fn allowed() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect())
}

/// Keeps the thread that calls this on one core, and the threads it starts from then on.
pub fn stay_on(core: usize) -> io::Result<()> {
    let mut own = CpuSet::new();
    own.set(core);
    Ok(sched_setaffinity(None, &own)?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_stays_on_a_core_may_use_no_other_and_the_rest_of_the_process_may() {
        let before = allowed().unwrap();
        let last = *before.last().unwrap();
        let stayed = thread::spawn(move || {
            stay_on(last).unwrap();
            allowed().unwrap()
        });
        assert_eq!(stayed.join().unwrap(), [last]);
        assert_eq!(allowed().unwrap(), before);
    }
}
