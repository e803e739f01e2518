//! `pinseal-engine`: only the engine, for a production image. It holds no key: its boundary is a separate process.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use config::ConfigError;
use hsm_client::OpenBoundary;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serve the engine: gRPC and the store, with the key boundary in a separate process
#[derive(Parser)]
#[command(name = "pinseal-engine", version, max_term_width = 100)]
struct Arguments {
    /// Format of the log on standard error; RUST_LOG selects the events
    #[arg(long, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
    #[command(flatten)]
    engine: engine::command::EngineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(arguments.log_format, Level::INFO);
    match engine::command::run(arguments.engine, refuse_inline, engine_server::open_store) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "pinseal-engine: {error}");
            if error.refuses_user_pin() { ExitCode::from(telemetry::USER_PIN_REFUSED) } else { ExitCode::FAILURE }
        }
    }
}

fn refuse_inline(_: Option<&Path>) -> Result<Box<dyn OpenBoundary>, ConfigError> {
    Err(ConfigError::value("boundary.isolation", "pinseal-engine holds no key: set isolation = \"process\""))
}
