//! `pinseal-hsm`: only the key boundary, for a production image.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use hsm_server::HsmProcessError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let about = "Serve the key boundary as a separate process for an engine";
    let exit_code = |error: &HsmProcessError| if error.refuses_user_pin() { telemetry::USER_PIN_REFUSED } else { 1 };
    telemetry::run_program("pinseal-hsm", about, hsm_server::run, exit_code)
}
