//! Bytes from an engine: the boundary decodes and executes each frame, or rejects it, and never panics. The keys are in memory.

#![no_main]

use std::{
    pin::pin,
    sync::OnceLock,
    task::{Context, Poll, Waker},
};

use hsm::Hsm;
use hsm_protocol::frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static HSM: OnceLock<Hsm> = OnceLock::new();
    let hsm = HSM.get_or_init(|| Hsm::open(hsm::Config::default()).expect("the software token opens"));
    let mut rest = bytes;
    while let Ok(Some(frame)) = frame::take_frame(&mut rest) {
        let _ = frame::read_hello(&frame);
        let Ok((_, request)) = frame::read_request(frame.body) else { return };
        let Poll::Ready(result) = pin!(hsm.execute(request)).poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("the software token answers at once");
        };
        let mut reply = Vec::new();
        frame::write_reply(&result, &mut reply);
        assert!(!reply.is_empty() && reply.len() < frame::FRAME_BYTES_MAX, "every request has a reply that fits");
    }
});
