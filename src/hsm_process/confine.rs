//! What the boundary's process gives up, and when. Each step that the kernel refuses is fatal, unless it is waived.
//!
//! | step | vault | PKCS#11 token |
//! |---|---|---|
//! | `user` | after the vault is open, to a user of its own | before the token is opened |
//! | `landlock` | no file at all can be opened | system files are read; what the token's configuration lists is written |
//! | `seccomp` | only what serving takes: no socket, no file, no process, no thread | no network, no process, no ptrace |

use std::{collections::BTreeMap, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::{
    process::{self, DumpableBehavior},
    thread::{self, CapabilitySet, CapabilitySets},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use thiserror::Error;

/// A step that can be waived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A user of its own, where it was started as root.
    User,
    /// Landlock: no file, no TCP, no signal to others.
    Landlock,
    /// Seccomp: no system call but those it needs.
    Seccomp,
}

/// What is to be given up.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The user to become, where it was started as root.
    pub user: Option<u32>,
    /// What a token's module needs; none with a vault.
    pub token: Option<TokenNeeds>,
    /// Steps that are not taken.
    pub waived: Vec<Step>,
}

/// Files of a PKCS#11 module.
#[derive(Clone, Debug)]
pub struct TokenNeeds {
    /// The module.
    pub module: PathBuf,
    /// Files and directories that it opens or writes while it serves.
    pub paths: Vec<PathBuf>,
}

/// Confined as far as the keys may still be opened, or threads made.
pub(super) struct Halfway(Confinement);

/// The Landlock version whose rights are named: Linux 6.12 and later.
const LANDLOCK: ABI = ABI::V6;
/// What a PKCS#11 module may read: libraries, their configuration, random and time-zone files.
const SYSTEM_PATHS: [&str; 5] = ["/usr", "/lib", "/lib64", "/etc", "/dev"];

impl Confinement {
    /// What comes before a PKCS#11 module is loaded: whatever it starts is confined with it.
    pub(super) fn before_opening(self) -> Result<Halfway, ConfineError> {
        if let Some(token) = &self.token {
            self.become_user()?;
            self.no_new_privileges()?;
            let beside_module = token.module.parent().map(PathBuf::from);
            let read = SYSTEM_PATHS.iter().map(PathBuf::from).chain(beside_module);
            self.landlock(read, token.paths.iter().cloned())?;
        }
        Ok(Halfway(self))
    }

    fn waives(&self, step: Step) -> bool {
        self.waived.contains(&step)
    }

    fn become_user(&self) -> Result<(), ConfineError> {
        if self.waives(Step::User) || !nix::unistd::getuid().is_root() {
            return Ok(());
        }
        let user = self.user.ok_or(ConfineError::NoUser)?;
        let (uid, gid) = (nix::unistd::Uid::from_raw(user), nix::unistd::Gid::from_raw(user));
        let refused = |error: nix::Error| ConfineError::User { user, reason: error.to_string() };
        let unknown = |error: rustix::io::Errno| ConfineError::User { user, reason: error.to_string() };
        // What is locked stays so, and what is allocated later is locked too: without this right the limit of an
        // ordinary user would make allocations fail.
        let held = thread::capabilities(None).map_err(unknown)?.permitted & CapabilitySet::IPC_LOCK;
        thread::set_keep_capabilities(true).map_err(unknown)?;
        nix::unistd::setgroups(&[]).map_err(refused)?;
        nix::unistd::setresgid(gid, gid, gid).map_err(refused)?;
        nix::unistd::setresuid(uid, uid, uid).map_err(refused)?;
        let kept = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
        thread::set_capabilities(None, kept).map_err(unknown)?;
        // A change of user makes a process dumpable again (prctl(2)).
        process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(unknown)
    }

    fn no_new_privileges(&self) -> Result<(), ConfineError> {
        thread::set_no_new_privs(true).map_err(|error| ConfineError::Seccomp { reason: error.to_string() })
    }

    fn landlock(
        &self,
        read: impl Iterator<Item = PathBuf>,
        written: impl Iterator<Item = PathBuf>,
    ) -> Result<(), ConfineError> {
        if self.waives(Step::Landlock) {
            return Ok(());
        }
        let restrict = || -> Result<RulesetStatus, RulesetError> {
            let mut rules = Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::from_all(LANDLOCK))?
                .handle_access(AccessNet::from_all(LANDLOCK))?
                .scope(Scope::from_all(LANDLOCK))?
                .create()?
                .set_compatibility(CompatLevel::BestEffort);
            let of = |access, paths: &mut dyn Iterator<Item = PathBuf>| {
                let open = |path: PathBuf| PathFd::new(path).ok();
                paths.filter_map(open).map(|path| PathBeneath::new(path, access)).collect::<Vec<_>>()
            };
            let mut read = read;
            let mut written = written;
            for rule in of(AccessFs::from_read(LANDLOCK), &mut read) {
                rules = rules.add_rule(rule)?;
            }
            for rule in of(AccessFs::from_all(LANDLOCK) & !AccessFs::Execute, &mut written) {
                rules = rules.add_rule(rule)?;
            }
            Ok(rules.restrict_self()?.ruleset)
        };
        match restrict() {
            Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
            Ok(RulesetStatus::NotEnforced) => Err(ConfineError::Landlock { reason: "the kernel has none".into() }),
            Err(error) => Err(ConfineError::Landlock { reason: error.to_string() }),
        }
    }
}

impl Halfway {
    /// What comes once the keys are open, while there is one thread.
    pub(super) fn before_threads(self) -> Result<Self, ConfineError> {
        if self.0.token.is_none() {
            self.0.become_user()?;
            self.0.no_new_privileges()?;
            self.0.landlock(std::iter::empty(), std::iter::empty())?;
        }
        Ok(self)
    }

    /// What comes last, for all threads at once.
    pub(super) fn before_serving(self) -> Result<(), ConfineError> {
        if self.0.waives(Step::Seccomp) {
            return Ok(());
        }
        let filter = match &self.0.token {
            None => only_serving(),
            Some(_) => no_network_no_process(),
        };
        let refused = |reason: String| ConfineError::Seccomp { reason };
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| refused(error.to_string()))?;
        let program: BpfProgram = filter(arch)
            .and_then(TryInto::try_into)
            .map_err(|error: seccompiler::BackendError| refused(error.to_string()))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| refused(error.to_string()))
    }
}

type Filter = fn(TargetArch) -> Result<SeccompFilter, seccompiler::BackendError>;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// With a vault: reads and writes of what is open, memory, waiting, time, randomness. All else fails with EPERM.
fn only_serving() -> Filter {
    |arch| {
        let mut rules: Rules = [
            libc::SYS_read,
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
            libc::SYS_pwrite64,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_futex,
            libc::SYS_sched_yield,
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_madvise,
            libc::SYS_brk,
            libc::SYS_getrandom,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_gettid,
            libc::SYS_getpid,
            libc::SYS_tgkill,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sigaltstack,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_restart_syscall,
        ]
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
        // Non-blocking mode, as the standard library sets it.
        rules.insert(libc::SYS_ioctl, vec![is(1, libc::FIONBIO)?]);
        // Memory is never made executable.
        rules.insert(libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]);
        rules.insert(libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]);
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)
    }
}

/// With a PKCS#11 module, whose needs are its own: no network, no new program, no look at another process.
fn no_network_no_process() -> Filter {
    |arch| {
        let mut rules: Rules = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
        ]
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
        // A Unix socket to a token's own daemon; nothing that leaves the machine.
        let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?;
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![other])?]);
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch)
    }
}

fn is(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?])
}

fn without(argument: u8, bits: i32) -> Result<SeccompRule, seccompiler::BackendError> {
    let bits = u64::try_from(bits).unwrap_or_default();
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits), 0)?])
}

/// Why something could not be given up.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// Root, and nobody to become.
    #[error(
        "started as root with a PKCS#11 token: set boundary.hsm_user to a user id that may use it, or waive \"user\""
    )]
    NoUser,
    /// The user can't be changed.
    #[error("can't become user {user}: {reason}; run it as another user, or waive \"user\"")]
    User {
        /// To whom.
        user: u32,
        /// Why.
        reason: String,
    },
    /// No Landlock.
    #[error("can't be confined by Landlock: {reason}; use Linux 6.12 or later, or set boundary.waive = [\"landlock\"]")]
    Landlock {
        /// Why.
        reason: String,
    },
    /// No seccomp.
    #[error("can't be confined by seccomp: {reason}; use Linux with seccomp, or set boundary.waive = [\"seccomp\"]")]
    Seccomp {
        /// Why.
        reason: String,
    },
}
