//! `pinseal-edge`: only the edge, for a production image.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let about = "Serve the edge: the Card PIN API over HTTP, in front of an engine";
    telemetry::run_program("pinseal-edge", about, edge::command::run, |_| 1)
}
