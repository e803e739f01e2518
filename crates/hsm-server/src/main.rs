//! `pinseal-hsm`: only the key boundary, for a production image.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serve the key boundary as a separate process for an engine
#[derive(Parser)]
#[command(name = "pinseal-hsm", version, max_term_width = 100)]
struct Arguments {
    /// Format of the log on standard error; RUST_LOG selects the events
    #[arg(long, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
    #[command(flatten)]
    hsm: hsm_server::HsmArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(arguments.log_format, Level::INFO);
    match hsm_server::run(arguments.hsm) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "pinseal-hsm: {error}");
            if error.refuses_user_pin() { ExitCode::from(telemetry::USER_PIN_REFUSED) } else { ExitCode::FAILURE }
        }
    }
}
