//! What the boundary's process gives up, and when. Each step that the kernel refuses is fatal, unless it is waived.
//!
//! | step | vault | PKCS#11 token |
//! |---|---|---|
//! | `user` | after the vault is open, to a user of its own | before the module is loaded |
//! | `landlock` | no file at all can be opened | before the module is loaded: system files are read; what the configuration lists is written, and what ports it lists are connected to |
//! | `seccomp` | before serving: only what serving takes: no socket, no file, no process, no thread | before the module is loaded: no socket but of the kinds that the configuration lists, no shared memory unless it lists that, no process, no look at another, no change of limits, no code but from files; before serving: what starting to serve took |
//!
//! Before either, every descriptor is closed that was inherited and is neither a standard stream nor handed over; then come
//! those steps that `hsm` itself takes: memory locked, no core dump, no tracer.

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

/// The steps that a configuration asks for.
pub(super) struct Confiner(pub(super) Confinement);

/// Confined as far as the keys may still be opened, or threads made.
pub(super) struct Halfway(Confiner);

/// What a kernel must have: rights on files, since Linux 5.13.
const LANDLOCK_LEAST: ABI = ABI::V1;
/// What is asked for where a kernel has it: to Linux 6.12, TCP ports and signals among it.
const LANDLOCK: ABI = ABI::V6;
/// What a PKCS#11 module may read: libraries, their configuration, random and time-zone files.
const SYSTEM_PATHS: [&str; 5] = ["/usr", "/lib", "/lib64", "/etc", "/dev"];

impl Confiner {
    /// What comes before a PKCS#11 module is loaded: whatever it starts is confined with it.
    pub(super) fn before_opening(self) -> Result<Halfway, ConfineError> {
        if let Some(token) = &self.0.token {
            self.become_user()?;
            self.no_new_privileges()?;
            let beside_module = token.module.parent().map(PathBuf::from);
            let read = SYSTEM_PATHS.iter().map(PathBuf::from).chain(beside_module);
            self.landlock(read, token.paths.iter().cloned(), &token.ports)?;
            self.filter(filter::of_loading_a_module(&token.ipc, &token.ports))?;
        }
        Ok(Halfway(self))
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

    fn filter(&self, filters: Result<Vec<seccompiler::BpfProgram>, String>) -> Result<(), ConfineError> {
        if self.waives(Step::Seccomp) {
            return Ok(());
        }
        filters
            .and_then(|filters| filters.iter().try_for_each(filter::apply))
            .map_err(|reason| ConfineError::Seccomp { reason })
    }

    /// Opens nothing but what is listed, connects to no TCP port but what is listed, signals nobody outside.
    fn landlock(
        &self,
        read: impl Iterator<Item = PathBuf>,
        written: impl Iterator<Item = PathBuf>,
        ports: &[u16],
    ) -> Result<(), ConfineError> {
        if self.waives(Step::Landlock) {
            return Ok(());
        }
        // Where ports are listed, seccomp lets TCP through: then it is the kernel's Landlock that must hold it.
        let network = if ports.is_empty() { CompatLevel::BestEffort } else { CompatLevel::HardRequirement };
        let restrict = || -> Result<RulesetStatus, RulesetError> {
            let mut rules = Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::from_all(LANDLOCK_LEAST))?
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
                // What is not there can't be opened either.
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
            Ok(RulesetStatus::NotEnforced) => Err(ConfineError::Landlock { reason: "the kernel has none".into() }),
            Err(error) => Err(ConfineError::Landlock { reason: error.to_string() }),
        }
    }
}

impl Halfway {
    /// What comes once the keys are open, while there is one thread.
    pub(super) fn before_threads(self) -> Result<Self, ConfineError> {
        if self.0.0.token.is_none() {
            self.0.become_user()?;
            self.0.no_new_privileges()?;
            self.0.landlock(std::iter::empty(), std::iter::empty(), &[])?;
        }
        Ok(self)
    }

    /// What comes last, for all threads at once.
    pub(super) fn before_serving(self) -> Result<(), ConfineError> {
        self.0.filter(match &self.0.0.token {
            None => filter::of_serving(),
            Some(token) => filter::of_serving_with_a_module(&token.ipc, &token.ports),
        })
    }
}

/// Closes every descriptor but the standard streams, as far as this process has any: each was inherited while this is called
/// before it opens one.
pub(super) fn close_inherited() -> Result<(), ConfineError> {
    let listed = || -> io::Result<Vec<i32>> {
        let entries = fs::read_dir("/proc/self/fd")?;
        let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    };
    let descriptors = listed().map_err(|error| ConfineError::Descriptors { reason: error.to_string() })?;
    for descriptor in descriptors.into_iter().filter(|descriptor| *descriptor > libc::STDERR_FILENO) {
        // The one that listed them is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Why something could not be given up.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The descriptors can't be listed.
    #[error("can't list the descriptors that were inherited, to close them: {reason}; mount /proc")]
    Descriptors {
        /// Why.
        reason: String,
    },
    /// Root, and nobody to become.
    #[error(
        "started as root with a PKCS#11 token: set boundary.hsm_user to a user id that may use it, or boundary.waive = [\"user\"]"
    )]
    NoUser,
    /// The user can't be changed.
    #[error("can't become user {user}: {reason}; run it as another user, or set boundary.waive = [\"user\"]")]
    User {
        /// To whom.
        user: u32,
        /// Why.
        reason: String,
    },
    /// No Landlock.
    #[error(
        "can't be confined by Landlock: {reason}; use Linux 5.13 or later (6.7 where token.ports are listed), or set boundary.waive = [\"landlock\"] or isolation = \"inline\""
    )]
    Landlock {
        /// Why.
        reason: String,
    },
    /// No seccomp.
    #[error(
        "can't be confined by seccomp: {reason}; use Linux with seccomp, or set boundary.waive = [\"seccomp\"] or isolation = \"inline\""
    )]
    Seccomp {
        /// Why.
        reason: String,
    },
}
