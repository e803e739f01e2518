//! Passes connections to a process that the engine starts: as descriptors, over the socket that is its standard input.
//! No socket has a name, so no other process can connect or listen in its place.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
};

use hsm_protocol::frame::DESCRIPTORS_PER_MESSAGE;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Sends connections to a process over its standard input (`SCM_RIGHTS`, unix(7)).
pub(super) fn send_connections(parent_end: &UnixStream, connections: &[UnixStream]) -> io::Result<()> {
    for chunk in connections.chunks(DESCRIPTORS_PER_MESSAGE) {
        let descriptors: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(parent_end, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    }
    Ok(())
}
