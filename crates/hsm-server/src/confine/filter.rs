//! Which system calls the boundary's process may make: with a token before its module is loaded, and once it serves. Any
//! other fails with EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction,
    SeccompCmpArgLen::{Dword, Qword},
    SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use hsm_config::Ipc;

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

/// Before a PKCS#11 module is loaded: what it may do while it serves, and what loading it and starting to serve take.
pub(super) fn of_loading_a_module(ipc: &[Ipc], ports: &[u16]) -> Result<Filters, String> {
    let filters = || -> Result<Filters, BackendError> {
        let mut rules = serving_with_a_module(ipc, ports)?;
        // The threads that serve, with their event loops; then the stricter filter.
        rules.insert(libc::SYS_epoll_create1, Vec::new());
        // Streams alone: a datagram socket of a pair may send to any named Unix socket.
        rules.insert(libc::SYS_socketpair, vec![stream_socket(libc::AF_UNIX, 0)?]);
        rules.insert(libc::SYS_seccomp, Vec::new());
        rules.entry(libc::SYS_prctl).or_default().push(is(0, libc::PR_SET_NO_NEW_PRIVS as u64)?);
        // Its flags are out of a filter's sight: the C library then falls back on clone.
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

/// With a PKCS#11 module, which opens its files, makes threads and talks to its daemon: that too, where Landlock lets it.
pub(super) fn of_serving_with_a_module(ipc: &[Ipc], ports: &[u16]) -> Result<Filters, String> {
    serving_with_a_module(ipc, ports).and_then(|rules| Ok(vec![only(rules)?])).map_err(|error| error.to_string())
}

fn serving_with_a_module(ipc: &[Ipc], ports: &[u16]) -> Result<Rules, BackendError> {
    let mut rules = serving()?;
    rules.extend(OF_A_MODULE.iter().map(|call| (*call, Vec::new())));
    // Code is mapped from files alone, and never writable: a private mapping of any file could be written with other code.
    // NSS softokn unloads libraries at its end and loads them when it is initialised again.
    let code = both(clear(2, libc::PROT_WRITE)?, clear(3, libc::MAP_ANONYMOUS)?)?;
    rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?, code]);
    // A thread, not a process.
    rules.insert(libc::SYS_clone, vec![has(0, libc::CLONE_THREAD)?]);
    // Answered ENOSYS by the filter before this one.
    rules.insert(libc::SYS_clone3, Vec::new());
    // The name of a thread.
    rules.insert(libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME as u64)?]);
    rules.insert(libc::SYS_fcntl, of_commands(OF_DESCRIPTORS.iter().chain(OF_LOCKS))?);
    // The limits of this very process are read, and changed by nobody.
    rules.insert(libc::SYS_prlimit64, vec![both(dword(0, 0)?, null(2)?)?]);
    let mut sockets = Vec::new();
    if ipc.contains(&Ipc::UnixSocket) {
        sockets.push(stream_socket(libc::AF_UNIX, 0)?);
    }
    if !ports.is_empty() {
        for family in [libc::AF_INET, libc::AF_INET6] {
            // Landlock holds the port of a TCP socket, but not of MPTCP.
            for protocol in [0, libc::IPPROTO_TCP] {
                sockets.push(stream_socket(family, protocol)?);
            }
        }
    }
    if !sockets.is_empty() {
        rules.insert(libc::SYS_socket, sockets);
        rules.extend(OF_A_SOCKET.iter().map(|call| (*call, Vec::new())));
        // A message's own address is out of a filter's sight; a connected stream takes none, without MSG_FASTOPEN.
        rules.insert(libc::SYS_sendmsg, vec![without(2, libc::MSG_FASTOPEN)?]);
        let options = SOCKET_OPTIONS.iter().map(|(level, option)| both(dword(1, *level)?, dword(2, *option)?));
        rules.insert(libc::SYS_setsockopt, options.collect::<Result<_, _>>()?);
    }
    if ipc.contains(&Ipc::SharedMemory) {
        rules.extend(OF_SHARED_MEMORY.iter().map(|call| (*call, Vec::new())));
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

fn serving() -> Result<Rules, BackendError> {
    let mut rules: Rules = OF_SERVING.iter().map(|call| (*call, Vec::new())).collect();
    // Non-blocking mode, as the standard library sets it.
    rules.insert(libc::SYS_ioctl, vec![is(1, libc::FIONBIO)?]);
    rules.insert(libc::SYS_fcntl, of_commands(OF_DESCRIPTORS.iter())?);
    // To the peer that a socket is connected to, and nowhere else.
    rules.insert(libc::SYS_sendto, vec![both(null(4)?, clear(3, libc::MSG_FASTOPEN)?)?]);
    // Memory is never made executable.
    rules.insert(libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]);
    // An abort, which is a signal to this very process.
    rules.insert(libc::SYS_tgkill, vec![is(0, std::process::id().into())?]);
    Ok(rules)
}

fn of_commands<'a>(commands: impl Iterator<Item = &'a i32>) -> Result<Vec<SeccompRule>, BackendError> {
    commands.map(|command| SeccompRule::new(vec![dword(1, *command)?])).collect()
}

/// `socket` or `socketpair` of this family: a stream, whether it closes on exec or blocks, of this protocol.
fn stream_socket(family: i32, protocol: i32) -> Result<SeccompRule, BackendError> {
    let kind = !u64::from((libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned()) & u64::from(u32::MAX);
    let stream = SeccompCondition::new(1, Dword, SeccompCmpOp::MaskedEq(kind), libc::SOCK_STREAM as u64)?;
    SeccompRule::new(vec![dword(0, family)?, stream, dword(2, protocol)?])
}

/// What `fcntl` may do: flags and copies of a descriptor. No owner, no signal, no lease, no notification.
const OF_DESCRIPTORS: &[i32] =
    &[libc::F_DUPFD, libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];

/// What `fcntl` may do besides for a module: locks of a file.
const OF_LOCKS: &[i32] =
    &[libc::F_GETLK, libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_GETLK, libc::F_OFD_SETLK, libc::F_OFD_SETLKW];

/// Level and name of the socket options that may be set: timeouts, sizes, keep-alive. No Fast Open, no source route.
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

/// What a module does with a socket that it may open.
const OF_A_SOCKET: &[i64] =
    &[libc::SYS_connect, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_shutdown, libc::SYS_recvmsg];

/// System V shared memory and semaphores; `shmat` besides.
const OF_SHARED_MEMORY: &[i64] = &[
    libc::SYS_shmget,
    libc::SYS_shmdt,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
];

/// What every boundary's process does.
const OF_SERVING: &[i64] = &[
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

/// What a PKCS#11 module does besides: measured on SoftHSM, NSS softokn (with its SQLite), openCryptoki (with its shared
/// memory and daemon) and p11-kit's client. Landlock holds no change of a file's mode by its path: there is no `chmod`.
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

/// An address that is not given.
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
