//! Hardens the process before it holds a key: no core dumps, no ptrace by other processes, locked memory.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{CapabilitySet, capabilities},
};

use hsm_protocol::MemoryLock;

use crate::{config::LockMemory, open_error::OpenError};

/// Disables core dumps and ptrace, and locks memory.
///
/// # Errors
/// [`OpenError::Dumpable`] where the kernel refuses; [`OpenError::MemoryNotLocked`] where the lock is required and fails.
pub(crate) fn harden(lock: LockMemory) -> Result<MemoryLock, OpenError> {
    let refused = |error: rustix::io::Errno| OpenError::Dumpable { reason: error.to_string() };
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(refused)?;
    match (lock_memory(), lock) {
        (Ok(()), _) => Ok(MemoryLock::Locked),
        (Err(reason), LockMemory::Require) => Err(OpenError::MemoryNotLocked { reason }),
        (Err(reason), LockMemory::Try) => Ok(MemoryLock::NotLocked(reason)),
    }
}

fn lock_memory() -> Result<(), String> {
    // Under RLIMIT_MEMLOCK a later allocation could fail, so nothing is locked then. The limit does not apply to a process
    // with CAP_IPC_LOCK, root or not.
    let effective = capabilities(None).map_err(|error| error.to_string())?.effective;
    if let (false, Some(bytes)) = (effective.contains(CapabilitySet::IPC_LOCK), getrlimit(Resource::Memlock).current) {
        return Err(format!("RLIMIT_MEMLOCK is {bytes} bytes"));
    }
    // MCL_ONFAULT locks a page at its first use, so reserved but unused memory costs nothing.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;

    /// Set in the child process: the expected result.
    const EXPECTED_VARIABLE: &str = "PINSEAL_TEST_MEMORY_LOCK";
    const UNDER_THE_LIMIT: &str = "RLIMIT_MEMLOCK is 65536 bytes";

    #[test]
    fn memory_is_locked_under_a_limit_only_with_cap_ipc_lock() {
        if let Ok(expected) = env::var(EXPECTED_VARIABLE) {
            match harden(LockMemory::Try).unwrap() {
                // An allocation larger than the limit works after the lock.
                MemoryLock::Locked => assert_eq!((vec![1u8; 1 << 20].len(), &*expected), (1 << 20, "locked")),
                MemoryLock::NotLocked(reason) => assert_eq!(reason, expected),
            }
            return;
        }
        let user = ["--reuid=65501", "--clear-groups"];
        let right = ["--inh-caps=+ipc_lock", "--ambient-caps=+ipc_lock"];
        for (who, expected) in [
            (&[&user[..], &right].concat()[..], "locked"),
            (&user, UNDER_THE_LIMIT),
            (&["--bounding-set=-ipc_lock"], UNDER_THE_LIMIT),
        ] {
            let mut again = Command::new("prlimit");
            again.args(["--memlock=65536", "setpriv"]).args(who).arg(env::current_exe().unwrap());
            again.arg("memory_is_locked_under_a_limit").env(EXPECTED_VARIABLE, expected);
            let output = again.output().expect("apt-get install util-linux");
            let printed =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            assert!(output.status.success() && printed.contains("1 passed"), "{who:?}: {printed}");
        }
    }
}
