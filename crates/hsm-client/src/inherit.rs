//! How connections reach a process that the engine starts: as descriptors, over the socket it has for standard input.
//! Nothing has a name that another process could take.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
};

use hsm_protocol::frame::DESCRIPTORS_PER_MESSAGE;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Hands connections to a process over its standard input.
pub(super) fn hand_over(parent_end: &UnixStream, connections: &[UnixStream]) -> io::Result<()> {
    for some in connections.chunks(DESCRIPTORS_PER_MESSAGE) {
        let descriptors: Vec<_> = some.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_MESSAGE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(parent_end, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    }
    Ok(())
}
