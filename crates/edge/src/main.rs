//! `pinseal-edge`: only the edge, for a production image.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serve the edge: the Card PIN API over HTTP, in front of an engine
#[derive(Parser)]
#[command(name = "pinseal-edge", version, max_term_width = 100)]
struct Arguments {
    /// Format of the log on standard error; RUST_LOG selects the events
    #[arg(long, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
    #[command(flatten)]
    edge: edge::command::EdgeArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(arguments.log_format, Level::INFO);
    match edge::command::run(arguments.edge) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "pinseal-edge: {error}");
            ExitCode::FAILURE
        }
    }
}
