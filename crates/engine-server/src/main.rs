//! `pinseal-engine`: only the engine, for a production image. It holds no key: its boundary is a separate process.

#![forbid(unsafe_code)]

use std::{path::Path, process::ExitCode};

use config::ConfigError;
use engine::command::EngineCommandError;
use hsm_client::OpenBoundary;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let about = "Serve the engine: gRPC and the store, with the key boundary in a separate process";
    let serve = |arguments| engine::command::run(arguments, reject_inline, engine_server::open_store);
    let exit_code = |error: &EngineCommandError| if error.refuses_user_pin() { telemetry::USER_PIN_REFUSED } else { 1 };
    telemetry::run_program("pinseal-engine", about, serve, exit_code)
}

fn reject_inline(_: Option<&Path>) -> Result<Box<dyn OpenBoundary>, ConfigError> {
    Err(ConfigError::value("boundary.isolation", "pinseal-engine holds no key: set isolation = \"process\""))
}
