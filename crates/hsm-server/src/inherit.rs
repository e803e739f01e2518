//! The other end of what an engine hands over, by our standard input.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, atomic::AtomicBool},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use hsm_protocol::frame::DESCRIPTORS_PER_MESSAGE;

/// The connections that the engine passes over standard input.
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

/// Lets SIGTERM, SIGINT and SIGHUP pass: a terminal, or systemd, sends them to the engine's whole group, and calls that the
/// engine lets finish still need the boundary. It ends with the engine; SIGKILL ends it at once.
pub(super) fn outlive_signals() -> io::Result<()> {
    [SIGTERM, SIGINT, SIGHUP].into_iter().try_for_each(outlive)
}

/// From here on SIGHUP does not end the process.
pub(super) fn outlive_hangup() -> io::Result<()> {
    outlive(SIGHUP)
}

fn outlive(signal: i32) -> io::Result<()> {
    signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map(drop)
}

/// Returns once the parent has closed its end: its engine is gone.
pub(super) fn parent_is_gone() {
    let mut byte = [0];
    loop {
        match rustix::io::read(io::stdin().as_fd(), &mut byte) {
            Ok(0) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
