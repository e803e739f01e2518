//! `pinseal bench`: this build beside a bare gRPC echo of the same message size, served with the same settings in the
//! same process and the same run, so that the cost of our work stands as a ratio.
//!
//! Rounds of the echo and of the measured flow take turns, so that a machine that slows down slows both.

mod echo;
mod grpc;
mod http;
mod memory;
mod prepare;
mod report;
mod run;

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use thiserror::Error;

use crate::{config::ConfigError, engine::StartError, store::embedded::StoreOpenError};

/// `pinseal bench`.
#[derive(Args)]
pub struct BenchArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// SetPin alone, by gRPC, durable, beside the bare echo
    SetPin(FlowArguments),
    /// The whole flow of one PIN: open a control, issue a tzpk, set
    Flow(FlowArguments),
    /// What one live control costs in memory
    Controls(MemoryArguments),
}

/// How to load the services.
#[derive(Args)]
struct FlowArguments {
    /// Through which door
    #[arg(long, value_enum, default_value_t)]
    via: Door,
    /// Requests in flight, one run for each
    #[arg(long, value_delimiter = ',', default_value = "64,256", value_name = "N,N…")]
    concurrency: Vec<usize>,
    /// Seconds of each round; a round of SetPin ends sooner when its prepared blocks are used up
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    duration_seconds: f64,
    /// Rounds of each; the median is told
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Blocks to prepare for each round of SetPin: each needs a tzpk of its own and one RSA decryption by the device
    #[arg(long, default_value_t = 60_000, value_name = "N")]
    prepared: usize,
    /// Open loop: requests a second to offer, whatever the answers; latency is counted from when each was due
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Connections of each of the two client threads
    #[arg(long, default_value_t = 2, value_name = "N")]
    connections: usize,
    /// Mutual TLS, as in production, or plain TCP
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Where to keep the store during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Through which door the load comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Door {
    /// The engine's gRPC.
    #[default]
    Grpc,
    /// The edge's HTTP, with the engine behind it.
    Http,
}

/// What the connections are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// Mutual TLS 1.3.
    #[default]
    Mtls,
    /// Plain TCP.
    Plain,
}

/// How many controls to hold.
#[derive(Args)]
struct MemoryArguments {
    /// Live controls
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    count: usize,
    /// Where to keep the store during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl FlowArguments {
    fn round(&self) -> Duration {
        Duration::from_secs_f64(self.duration_seconds.clamp(0.1, 3_600.0))
    }
}

/// Measures, and prints a table.
pub fn run(arguments: BenchArguments) -> Result<(), BenchError> {
    match arguments.what {
        What::SetPin(flow) => run::set_pin(&flow),
        What::Flow(flow) => run::whole_flow(&flow),
        What::Controls(memory) => {
            let cost = memory::live_controls(&memory)?;
            Ok(writeln!(io::stdout(), "{cost}")?)
        }
    }
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The configuration of the run can't be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine under load did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The store under load did not open.
    #[error(transparent)]
    Store(#[from] StoreOpenError),
    /// A request failed that should not.
    #[error("the load failed: {0}")]
    Load(String),
    /// The machine refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}
