//! The privileges that the boundary's process drops.

use std::path::PathBuf;

/// A step of confinement; `boundary.waive` skips it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The process takes a separate uid, if root started it.
    User,
    /// Landlock: the process can open no file, use no TCP and signal no other process, except what `TokenNeeds` lists.
    Landlock,
    /// Seccomp: the process can make only the listed system calls.
    Seccomp,
}

/// The steps of confinement of one process.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The uid to become, when root started the process.
    pub user: Option<u32>,
    /// The resources of a token's module; `None` with a vault.
    pub token: Option<TokenNeeds>,
    /// Steps that are skipped.
    pub waived: Vec<Step>,
}

/// The resources of a PKCS#11 module.
#[derive(Clone, Debug)]
pub struct TokenNeeds {
    /// The shared library.
    pub module: PathBuf,
    /// Files and directories that it opens or writes while it serves.
    pub paths: Vec<PathBuf>,
    /// TCP ports that it connects to.
    pub ports: Vec<u16>,
    /// How the module communicates with other processes of this machine.
    pub ipc: Vec<Ipc>,
}

/// A way to communicate with other processes of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipc {
    /// Stream sockets with a name in the file system. The kernel cannot restrict them by path: the process may connect to any socket that its user may.
    UnixSocket,
    /// System V shared memory and semaphores: the process may attach any that its user may.
    SharedMemory,
}
