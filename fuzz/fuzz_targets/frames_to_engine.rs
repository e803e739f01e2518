//! Bytes from a boundary: the engine decodes each frame or rejects it, and never panics.

#![no_main]

use hsm_protocol::frame::{self, Welcome};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some(frame)) = frame::take_frame(&mut rest) {
        if let Ok(Welcome::Serving(status)) = frame::read_welcome(&frame) {
            assert!(!status.lines().is_empty());
        }
        let _ = frame::read_reply(frame.body);
    }
});
