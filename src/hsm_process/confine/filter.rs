//! Which system calls the boundary's process may make once it serves. Any other fails with EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Filters, in the order they are applied: a call passes if each lets it.
type Filters = Vec<BpfProgram>;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Of every thread there is.
pub(super) fn apply(filter: &BpfProgram) -> Result<(), String> {
    seccompiler::apply_filter_all_threads(filter).map_err(|error| error.to_string())
}

/// With a vault: reads and writes of what is open, memory, waiting, time, randomness.
pub(super) fn of_serving() -> Result<Filters, String> {
    serving().and_then(|rules| Ok(vec![only(rules)?])).map_err(|error| error.to_string())
}

/// With a PKCS#11 module, which opens its files, makes threads and talks to its daemon: that too, where Landlock lets it.
pub(super) fn of_serving_with_a_module(ports: &[u16]) -> Result<Filters, String> {
    let filters = || -> Result<Filters, BackendError> {
        let mut rules = serving()?;
        rules.extend(OF_A_MODULE.iter().map(|call| (*call, Vec::new())));
        // A thread, not a process.
        rules.insert(libc::SYS_clone, vec![has(0, libc::CLONE_THREAD)?]);
        // The name of a thread.
        rules.insert(libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME as u64)?]);
        // A Unix socket to a token's own daemon; TCP where ports are listed.
        let mut families = vec![is(0, libc::AF_UNIX as u64)?];
        if !ports.is_empty() {
            for family in [libc::AF_INET, libc::AF_INET6] {
                families.push(is(0, family as u64)?);
            }
        }
        rules.insert(libc::SYS_socket, families);
        // Code comes from files alone, which Landlock holds to the module's own and the system's.
        rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?, without(3, libc::MAP_ANONYMOUS)?]);
        // Its flags are out of a filter's sight: the C library then falls back on clone.
        let no_clone3 = SeccompFilter::new(
            [(libc::SYS_clone3, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
            arch()?,
        )?;
        rules.insert(libc::SYS_clone3, Vec::new());
        // The strict one last: behind it no filter can be applied.
        Ok(vec![no_clone3.try_into()?, only(rules)?])
    };
    filters().map_err(|error| error.to_string())
}

fn only(rules: Rules) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch()?)?.try_into()
}

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

fn serving() -> Result<Rules, BackendError> {
    let mut rules: Rules = OF_SERVING.iter().map(|call| (*call, Vec::new())).collect();
    // Non-blocking mode, as the standard library sets it.
    rules.insert(libc::SYS_ioctl, vec![is(1, libc::FIONBIO)?]);
    // Memory is never made executable.
    rules.insert(libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]);
    // An abort, which is a signal to this very process.
    rules.insert(libc::SYS_tgkill, vec![is(0, std::process::id().into())?]);
    Ok(rules)
}

/// What every boundary's process does.
const OF_SERVING: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
];

/// What a PKCS#11 module does besides: measured on SoftHSM, NSS softokn (with its SQLite), openCryptoki (with its shared
/// memory and daemon) and p11-kit's client.
const OF_A_MODULE: &[i64] = &[
    // Its files, within what Landlock lets it open.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_pwrite64,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    // Who and where it is.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getppid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_gettimeofday,
    libc::SYS_clock_getres,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sched_getaffinity,
    // Threads.
    libc::SYS_nanosleep,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    // Its daemon: over a socket, or shared memory and semaphores.
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmdt,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

fn is(argument: u8, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)?])
}

fn has(argument: u8, bit: i32) -> Result<SeccompRule, BackendError> {
    let bit = u64::try_from(bit).unwrap_or_default();
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bit), bit)?])
}

fn without(argument: u8, bit: i32) -> Result<SeccompRule, BackendError> {
    let bit = u64::try_from(bit).unwrap_or_default();
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bit), 0)?])
}
