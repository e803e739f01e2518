//! The system calls that the boundary's process may make: with a token from the load of its module, with a vault from the
//! start of serving. Every other call fails with EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction,
    SeccompCmpArgLen::{Dword, Qword},
    SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use hsm_config::Ipc;

/// Filters, in the order they are applied. A call passes when every filter allows it.
type Filters = Vec<BpfProgram>;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Applies a filter to every thread of the process.
pub(super) fn apply(filter: &BpfProgram) -> Result<(), String> {
    seccompiler::apply_filter_all_threads(filter).map_err(|error| error.to_string())
}

/// The filter of a process that serves with a vault: reads and writes of open descriptors, memory, waiting, time,
/// randomness.
pub(super) fn serving_with_vault() -> Result<Filters, String> {
    rules_with_vault().and_then(|rules| Ok(vec![only(rules)?])).map_err(|error| error.to_string())
}

/// The filters of a process that loads a PKCS#11 module: the calls of [`serving_with_module`], and those that only the load
/// and the start need.
pub(super) fn loading_module(ipc: &[Ipc], ports: &[u16]) -> Result<Filters, String> {
    let filters = || -> Result<Filters, BackendError> {
        let mut rules = rules_with_module(ipc, ports)?;
        // The event loops of the threads that serve, and the stricter filter.
        rules.insert(libc::SYS_epoll_create1, Vec::new());
        // Only streams: a datagram socket of a pair may send to any named Unix socket.
        rules.insert(libc::SYS_socketpair, vec![stream_socket(libc::AF_UNIX, 0)?]);
        rules.insert(libc::SYS_seccomp, Vec::new());
        rules.entry(libc::SYS_prctl).or_default().push(is(0, libc::PR_SET_NO_NEW_PRIVS as u64)?);
        // A filter cannot read the flags of clone3, which are in memory. After ENOSYS the C library calls clone.
        let no_clone3 = SeccompFilter::new(
            [(libc::SYS_clone3, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
            arch()?,
        )?;
        Ok(vec![no_clone3.try_into()?, only(rules)?])
    };
    filters().map_err(|error| error.to_string())
}

/// The filter of a process that serves with a PKCS#11 module. A module also opens its files, starts threads and connects to
/// its daemon or HSM; Landlock restricts which files and ports.
pub(super) fn serving_with_module(ipc: &[Ipc], ports: &[u16]) -> Result<Filters, String> {
    rules_with_module(ipc, ports).and_then(|rules| Ok(vec![only(rules)?])).map_err(|error| error.to_string())
}

fn rules_with_module(ipc: &[Ipc], ports: &[u16]) -> Result<Rules, BackendError> {
    let mut rules = rules_with_vault()?;
    rules.extend(MODULE_CALLS.iter().map(|call| (*call, Vec::new())));
    // Code is mapped only from files and never writable, because a writable private mapping could receive other code.
    // NSS softokn unloads libraries when it ends and loads them when it is initialised again.
    let code = both(clear(2, libc::PROT_WRITE)?, clear(3, libc::MAP_ANONYMOUS)?)?;
    rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?, code]);
    // Threads, no processes.
    rules.insert(libc::SYS_clone, vec![has(0, libc::CLONE_THREAD)?]);
    // The first filter of `loading_module` answers ENOSYS.
    rules.insert(libc::SYS_clone3, Vec::new());
    // The name of a thread.
    rules.insert(libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME as u64)?]);
    rules.insert(libc::SYS_fcntl, commands(DESCRIPTOR_COMMANDS.iter().chain(LOCK_COMMANDS))?);
    // The process may read its own limits, and change none.
    rules.insert(libc::SYS_prlimit64, vec![both(dword(0, 0)?, null(2)?)?]);
    let mut sockets = Vec::new();
    if ipc.contains(&Ipc::UnixSocket) {
        sockets.push(stream_socket(libc::AF_UNIX, 0)?);
    }
    if !ports.is_empty() {
        for family in [libc::AF_INET, libc::AF_INET6] {
            // No MPTCP: Landlock restricts the ports of TCP only.
            for protocol in [0, libc::IPPROTO_TCP] {
                sockets.push(stream_socket(family, protocol)?);
            }
        }
    }
    if !sockets.is_empty() {
        rules.insert(libc::SYS_socket, sockets);
        rules.extend(SOCKET_CALLS.iter().map(|call| (*call, Vec::new())));
        // A filter cannot read the address in a message, which is in memory. Without MSG_FASTOPEN a stream ignores it.
        rules.insert(libc::SYS_sendmsg, vec![without(2, libc::MSG_FASTOPEN)?]);
        let options = SOCKET_OPTIONS.iter().map(|(level, option)| both(dword(1, *level)?, dword(2, *option)?));
        rules.insert(libc::SYS_setsockopt, options.collect::<Result<_, _>>()?);
    }
    if ipc.contains(&Ipc::SharedMemory) {
        rules.extend(SHARED_MEMORY_CALLS.iter().map(|call| (*call, Vec::new())));
        rules.insert(libc::SYS_shmat, vec![without(2, libc::SHM_EXEC)?]);
    }
    Ok(rules)
}

fn only(rules: Rules) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch()?)?.try_into()
}

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

fn rules_with_vault() -> Result<Rules, BackendError> {
    let mut rules: Rules = SERVING_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    // The standard library sets non-blocking mode this way.
    rules.insert(libc::SYS_ioctl, vec![is(1, libc::FIONBIO)?]);
    rules.insert(libc::SYS_fcntl, commands(DESCRIPTOR_COMMANDS.iter())?);
    // Only to the peer that a socket is connected to.
    rules.insert(libc::SYS_sendto, vec![both(null(4)?, clear(3, libc::MSG_FASTOPEN)?)?]);
    // Memory is never made executable.
    rules.insert(libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]);
    // An abort is a signal to the process itself.
    rules.insert(libc::SYS_tgkill, vec![is(0, std::process::id().into())?]);
    Ok(rules)
}

fn commands<'a>(commands: impl Iterator<Item = &'a i32>) -> Result<Vec<SeccompRule>, BackendError> {
    commands.map(|command| SeccompRule::new(vec![dword(1, *command)?])).collect()
}

/// Allows `socket` or `socketpair` for a stream of this family and protocol, with or without SOCK_CLOEXEC and SOCK_NONBLOCK.
fn stream_socket(family: i32, protocol: i32) -> Result<SeccompRule, BackendError> {
    let kind = !u64::from((libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned()) & u64::from(u32::MAX);
    let stream = SeccompCondition::new(1, Dword, SeccompCmpOp::MaskedEq(kind), libc::SOCK_STREAM as u64)?;
    SeccompRule::new(vec![dword(0, family)?, stream, dword(2, protocol)?])
}

/// Allowed commands of `fcntl`: flags and copies of a descriptor. No owner, signal, lease or notification.
const DESCRIPTOR_COMMANDS: &[i32] =
    &[libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

/// More commands of `fcntl` for a module: file locks.
const LOCK_COMMANDS: &[i32] =
    &[libc::F_GETLK, libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_GETLK, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];

/// Allowed socket options, as level and name: timeouts, sizes, keep-alive. No Fast Open, no source route.
const SOCKET_OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
];

/// Calls on the sockets that a module may open.
const SOCKET_CALLS: &[i64] =
    &[libc::SYS_connect, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_shutdown, libc::SYS_recvmsg];

/// System V shared memory and semaphores; `shmat` has its own rule.
const SHARED_MEMORY_CALLS: &[i64] = &[
    libc::SYS_shmget,
    libc::SYS_shmdt,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
];

/// Calls of every process that serves.
const SERVING_CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_close,
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

/// More calls of a PKCS#11 module, measured on SoftHSM, NSS softokn (with its SQLite), openCryptoki (with its shared memory
/// and daemon) and p11-kit's client. No `chmod`: Landlock does not restrict a change of a file's mode.
const MODULE_CALLS: &[i64] = &[
    // Files; Landlock restricts which.
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
    libc::SYS_msync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    // Its user, process and machine.
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

fn dword(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value.cast_unsigned().into())
}

/// The argument is a null pointer.
fn null(argument: u8) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Qword, SeccompCmpOp::Eq, 0)
}

fn clear(argument: u8, bit: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bit.cast_unsigned().into()), 0)
}

fn both(one: SeccompCondition, other: SeccompCondition) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![one, other])
}

fn is(argument: u8, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)?])
}

fn has(argument: u8, bit: i32) -> Result<SeccompRule, BackendError> {
    let bit = u64::try_from(bit).unwrap_or_default();
    SeccompRule::new(vec![SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(bit), bit)?])
}

fn without(argument: u8, bit: i32) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![clear(argument, bit)?])
}
