//! What the process of the boundary gives up.

use std::path::PathBuf;

/// A step that can be waived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// TCP ports that it connects to.
    pub ports: Vec<u16>,
    /// What it talks to other processes of the machine by.
    pub ipc: Vec<Ipc>,
}

/// What a module may talk to other processes of the machine by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipc {
    /// Stream sockets with a name in the file system. The kernel holds none of them to a path: any that the user may connect to.
    UnixSocket,
    /// System V shared memory and semaphores: any that the user may attach.
    SharedMemory,
}
