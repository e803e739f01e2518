//! The privileges that the boundary's process drops, and when. When the kernel refuses a step, the process ends, unless
//! `boundary.waive` lists the step.
//!
//! | step | vault | PKCS#11 token |
//! |---|---|---|
//! | `user` | after the vault is open: becomes `boundary.hsm_user` | the same, before the module is loaded |
//! | `landlock` | after the vault is open: no file can be opened | before the module is loaded: system files can be read, `token.paths` read and written, and `token.ports` connected to |
//! | `seccomp` | before serving: only the system calls that serving needs; no socket, file, process or thread | before the module is loaded: no socket kinds and no shared memory but those in `token.ipc`; no process, no access to another process, no change of limits, no code except from files. Before serving: also not the calls that only the start needs |
//!
//! Before these steps, `close_inherited` closes every descriptor but the standard streams, and `hsm` hardens the process:
//! memory locked, no core dump, no tracer.

mod filter;

use std::{fs, io, path::PathBuf};

use hsm_config::{Confinement, Step};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::{
    process::{self, DumpableBehavior},
    thread::{self, CapabilitySet, CapabilitySets},
};
use thiserror::Error;

/// Applies the steps that a configuration does not waive.
pub(super) struct Confiner(pub(super) Confinement);

/// A process that is confined, but may still open its keys or start threads.
pub(super) struct PartlyConfined(Confiner);

/// The least Landlock that a kernel must have: rights on files, since Linux 5.13.
const LANDLOCK_MIN: ABI = ABI::V1;
/// The Landlock that is used where the kernel supports it: all of Linux 6.12, with TCP ports and signals.
const LANDLOCK: ABI = ABI::V6;
/// Directories that a PKCS#11 module may read: libraries, their configuration, random and time-zone files.
const SYSTEM_PATHS: [&str; 5] = ["/usr", "/lib", "/lib64", "/etc", "/dev"];

impl Confiner {
    /// Confines a process that will load a PKCS#11 module, so that the module's threads are confined too.
    pub(super) fn before_opening(self) -> Result<PartlyConfined, ConfineError> {
        if let Some(token) = &self.0.token {
            self.become_user()?;
            self.no_new_privileges()?;
            let beside_module = token.module.parent().map(PathBuf::from);
            let read = SYSTEM_PATHS.iter().map(PathBuf::from).chain(beside_module);
            self.landlock(read, token.paths.iter().cloned(), &token.ports)?;
            self.filter(filter::loading_module(&token.ipc, &token.ports))?;
        }
        Ok(PartlyConfined(self))
    }

    fn waives(&self, step: Step) -> bool {
        self.0.waived.contains(&step)
    }

    fn become_user(&self) -> Result<(), ConfineError> {
        if self.waives(Step::User) || !nix::unistd::getuid().is_root() {
            return Ok(());
        }
        let user = self.0.user.ok_or(ConfineError::NoUser)?;
        let (uid, gid) = (nix::unistd::Uid::from_raw(user), nix::unistd::Gid::from_raw(user));
        let refused = |error: nix::Error| ConfineError::User { user, reason: error.to_string() };
        let unknown = |error: rustix::io::Errno| ConfineError::User { user, reason: error.to_string() };
        // All present and later memory of the process is locked. Without this right, the limit of an ordinary user
        // (RLIMIT_MEMLOCK) would make later allocations fail.
        let held = thread::capabilities(None).map_err(unknown)?.permitted & CapabilitySet::IPC_LOCK;
        thread::set_keep_capabilities(true).map_err(unknown)?;
        nix::unistd::setgroups(&[]).map_err(refused)?;
        nix::unistd::setresgid(gid, gid, gid).map_err(refused)?;
        nix::unistd::setresuid(uid, uid, uid).map_err(refused)?;
        let remaining = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
        thread::set_capabilities(None, remaining).map_err(unknown)?;
        // A change of user makes a process dumpable again (prctl(2)).
        process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(unknown)
    }

    fn no_new_privileges(&self) -> Result<(), ConfineError> {
        thread::set_no_new_privs(true).map_err(|error| ConfineError::Seccomp { reason: error.to_string() })
    }

    fn filter(&self, filters: Result<Vec<seccompiler::BpfProgram>, String>) -> Result<(), ConfineError> {
        if self.waives(Step::Seccomp) {
            return Ok(());
        }
        filters
            .and_then(|filters| filters.iter().try_for_each(filter::apply))
            .map_err(|reason| ConfineError::Seccomp { reason })
    }

    /// Allows only the listed files and TCP ports, and no signal to a process outside.
    fn landlock(
        &self,
        read: impl Iterator<Item = PathBuf>,
        written: impl Iterator<Item = PathBuf>,
        ports: &[u16],
    ) -> Result<(), ConfineError> {
        if self.waives(Step::Landlock) {
            return Ok(());
        }
        // Where ports are listed, seccomp allows TCP, so that the kernel's Landlock must restrict the ports.
        let network = if ports.is_empty() { CompatLevel::BestEffort } else { CompatLevel::HardRequirement };
        let restrict = || -> Result<RulesetStatus, RulesetError> {
            let mut rules = Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::from_all(LANDLOCK_MIN))?
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(AccessFs::from_all(LANDLOCK))?
                .set_compatibility(network)
                .handle_access(AccessNet::from_all(LANDLOCK))?
                .set_compatibility(CompatLevel::BestEffort)
                .scope(Scope::from_all(LANDLOCK))?
                .create()?;
            for (path, access) in read
                .map(|path| (path, AccessFs::from_read(LANDLOCK)))
                .chain(written.map(|path| (path, AccessFs::from_all(LANDLOCK) & !AccessFs::Execute)))
            {
                // A missing path cannot be opened, so that it needs no rule.
                let Ok(opened) = PathFd::new(&path) else { continue };
                rules = rules.add_rule(PathBeneath::new(opened, access))?;
            }
            for port in ports {
                rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
            }
            Ok(rules.restrict_self()?.ruleset)
        };
        match restrict() {
            Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
            Ok(RulesetStatus::NotEnforced) => {
                Err(ConfineError::Landlock { reason: "the kernel has no Landlock".into() })
            }
            Err(error) => Err(ConfineError::Landlock { reason: error.to_string() }),
        }
    }
}

impl PartlyConfined {
    /// Confines a process with a vault. Called when the keys are open and no other thread runs: `user` and `landlock` apply
    /// to the calling thread alone.
    pub(super) fn before_threads(self) -> Result<Self, ConfineError> {
        if self.0.0.token.is_none() {
            self.0.become_user()?;
            self.0.no_new_privileges()?;
            self.0.landlock(std::iter::empty(), std::iter::empty(), &[])?;
        }
        Ok(self)
    }

    /// Applies the last filter of system calls to all threads.
    pub(super) fn before_serving(self) -> Result<(), ConfineError> {
        self.0.filter(match &self.0.0.token {
            None => filter::serving_with_vault(),
            Some(token) => filter::serving_with_module(&token.ipc, &token.ports),
        })
    }
}

/// Closes every descriptor but the standard streams. Called before the process opens a descriptor that it keeps, so that
/// each of them was inherited.
pub(super) fn close_inherited() -> Result<(), ConfineError> {
    let listed = || -> io::Result<Vec<i32>> {
        let entries = fs::read_dir("/proc/self/fd")?;
        let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    };
    let descriptors = listed().map_err(|error| ConfineError::Descriptors { reason: error.to_string() })?;
    for descriptor in descriptors.into_iter().filter(|descriptor| *descriptor > libc::STDERR_FILENO) {
        // The descriptor of the listing itself is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// A privilege that could not be dropped.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// `/proc/self/fd` can't be listed.
    #[error("can't list the inherited descriptors to close them: {reason}; mount /proc")]
    Descriptors {
        /// The kernel's error.
        reason: String,
    },
    /// The process is root, and `boundary.hsm_user` names no other user.
    #[error(
        "started as root with a PKCS#11 token: set boundary.hsm_user to a user id that may use the token, or boundary.waive = [\"user\"]"
    )]
    NoUser,
    /// The kernel refused the change to another user.
    #[error(
        "can't become user {user}: {reason}; start the process as another user, or set boundary.waive = [\"user\"]"
    )]
    User {
        /// The user id of `boundary.hsm_user`.
        user: u32,
        /// The kernel's error.
        reason: String,
    },
    /// The kernel has no Landlock, too old a one, or refused the rules.
    #[error(
        "can't be confined by Landlock: {reason}; use Linux 5.13 or later (6.7 where token.ports are listed), or set boundary.waive = [\"landlock\"] or isolation = \"inline\""
    )]
    Landlock {
        /// The kernel's error.
        reason: String,
    },
    /// The kernel has no seccomp, or refused the filter.
    #[error(
        "can't be confined by seccomp: {reason}; use Linux with seccomp, or set boundary.waive = [\"seccomp\"] or isolation = \"inline\""
    )]
    Seccomp {
        /// The kernel's error.
        reason: String,
    },
}
