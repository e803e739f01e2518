//! What a process that an engine started inherits: connections over standard input, and the signals of the engine's
//! process group.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, atomic::AtomicBool},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use hsm_protocol::frame::DESCRIPTORS_PER_MESSAGE;

/// Receives `count` connections as descriptors over standard input (`SCM_RIGHTS`, unix(7)).
pub(super) fn connections_from_parent(count: usize) -> io::Result<Vec<UnixStream>> {
    let parent = io::stdin();
    let mut connections = Vec::new();
    while connections.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received =
            recvmsg(parent.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                connections.extend(descriptors.map(UnixStream::from));
            }
        }
    }
    Ok(connections)
}

/// Ignores SIGTERM, SIGINT and SIGHUP. A terminal, or systemd, sends them to the engine's whole process group, while calls
/// that the engine finishes still need the boundary. The process ends when the engine has ended, or by SIGKILL.
pub(super) fn survive_signals() -> io::Result<()> {
    [SIGTERM, SIGINT, SIGHUP].into_iter().try_for_each(survive)
}

/// Keeps SIGHUP from ending the process.
pub(super) fn survive_hangup() -> io::Result<()> {
    survive(SIGHUP)
}

fn survive(signal: i32) -> io::Result<()> {
    signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map(drop)
}

/// Returns when the engine has ended, which closes its end of standard input.
pub(super) fn wait_for_parent_exit() {
    let mut byte = [0];
    loop {
        match rustix::io::read(io::stdin().as_fd(), &mut byte) {
            Ok(0) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
