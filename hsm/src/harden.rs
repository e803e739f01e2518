//! What the process asks of the kernel before it holds a key: no core dump, no ptrace by others, no swap.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, getuid, set_dumpable_behavior, setrlimit},
};

use crate::{config::LockMemory, open_error::OpenError, status::MemoryLock};

/// Hardens the process as far as the kernel lets it.
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
    // Under a limit every later allocation could fail: then it is better not to lock at all.
    if let (false, Some(bytes)) = (getuid().is_root(), getrlimit(Resource::Memlock).current) {
        return Err(format!("RLIMIT_MEMLOCK is {bytes} bytes"));
    }
    // Pages are locked as they are touched, so that reserved but unused memory costs nothing.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|error| error.to_string())
}
