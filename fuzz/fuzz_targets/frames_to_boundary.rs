//! What an engine may send: read to its end or refused, and done with keys that live in memory alone; never a panic.

#![no_main]

use std::{
    pin::pin,
    sync::OnceLock,
    task::{Context, Poll, Waker},
};

use hsm::Hsm;
use hsm_protocol::frame::{self, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static HSM: OnceLock<Hsm> = OnceLock::new();
    let hsm = HSM.get_or_init(|| Hsm::open(hsm::Config::default()).expect("the software token opens"));
    let mut rest = bytes;
    while let Ok(Some(frame)) = frame::take_frame(&mut rest) {
        let _ = frame::read_hello(&frame);
        let Ok(request) = Request::read(frame.body) else { return };
        let mut reply = Vec::new();
        let answered = pin!(hsm.answer(request, &mut reply)).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answered, Poll::Ready(())), "the software token answers at once");
        assert!(!reply.is_empty() && reply.len() < frame::FRAME_BYTES_MAX, "every request has a reply that fits");
    }
});
