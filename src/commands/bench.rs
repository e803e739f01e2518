//! `pinseal bench`: measures this build and a bare echo of the same message size, over gRPC or over HTTP as the measured API,
//! with the same settings in the same process. Prints the ratio, and the processor time of each stage.
//!
//! Rounds of the echo and of the measured flow alternate, so that a slower machine slows both.

mod controls;
mod database;
mod edge_client;
mod floods;
mod flow;
mod http_echo;
mod load;
mod memory;
mod process_memory;
mod processor_time;
mod progress_bar;
mod report;
mod rotation_speed;
mod service_processes;
mod services;
mod stages;
mod streams;
mod timing;

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use thiserror::Error;

use crate::commands::pki::PkiError;
use crate::isolation::Isolation;
use config::ConfigError;
use edge::EdgeError;
use engine::{StartError, serving::ServingError};
use net::tls::TlsError;
use store::{StoreError, StoreOpenError};

/// The arguments of `pinseal bench`.
#[derive(Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// SetPin alone, durable, beside the bare echo; controls and blocks are prepared before the clock runs
    SetPin(FlowArguments),
    /// SetPin by engines on one PostgreSQL database, beside one engine on an embedded store
    Database(database::DatabaseArguments),
    /// Each part of the flow of one PIN, and the whole: open a control, issue a tzpk, decrypt it on the device, set
    Flow(FlowArguments),
    /// What one live control costs in memory
    Controls(ControlsArguments),
    /// The resident memory of an edge, an engine and its boundary process under hours of whole flows by HTTP
    Memory(memory::MemoryArguments),
    /// Whether the time of a verification or a change reveals the outcome: Welch's t of right against wrong, and of each
    /// malformed class against each other, in process
    Timing(timing::TimingArguments),
    /// The latency of good clients while an attacker floods the edge or the engine, or holds slow connections
    Floods(floods::FloodArguments),
    /// Streams beside calls of one item over mutual TLS, the engine's memory, and a client that stops reading
    Streams(streams::StreamArguments),
    /// Re-encryption of PIN records: the key boundary alone on one core, and a durable rotation of the storage key by an engine
    /// with its separate boundary process
    Rotation(rotation_speed::RotationBenchArguments),
}

/// The load, and the API that it uses.
#[derive(Args)]
pub(crate) struct FlowArguments {
    /// The API to send requests to
    #[arg(long, value_enum, default_value_t)]
    via: Api,
    #[command(flatten)]
    load: LoadArguments,
}

/// The shape of the load and the services under load.
#[derive(Args)]
pub(crate) struct LoadArguments {
    /// Requests in flight, one run for each
    #[arg(long, value_delimiter = ',', default_value = "64,256", value_name = "N,N…")]
    concurrency: Vec<usize>,
    /// Seconds of each round; a round of SetPin ends sooner when its prepared blocks are used up
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    duration_seconds: f64,
    /// Rounds of each; the median is printed
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Blocks to prepare for each round of SetPin: each needs its own tzpk and one RSA decryption by the device
    #[arg(long, default_value_t = 60_000, value_name = "N")]
    prepared: usize,
    /// Open loop: requests a second to offer, whatever the answers; latency counts from when each was due
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Connections of each of the two client threads
    #[arg(long, default_value_t = 2, value_name = "N")]
    connections: usize,
    /// Mutual TLS, as in production, or plain TCP
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Where the key boundary is
    #[arg(long, value_enum, default_value_t)]
    isolation: Isolation,
    /// Where to keep the store during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The API that the load uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    /// gRPC, to the engine.
    #[default]
    Grpc,
    /// HTTP, to an edge in front of the engine.
    Http,
}

/// The transport of the connections to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// TLS 1.3 with client certificates.
    #[default]
    Mtls,
    /// TCP without TLS.
    Plain,
}

/// The arguments of `pinseal bench controls`.
#[derive(Args)]
pub(crate) struct ControlsArguments {
    /// Live controls to open
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    count: usize,
    /// Where to keep the store during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl LoadArguments {
    fn round(&self) -> Duration {
        Duration::from_secs_f64(self.duration_seconds.clamp(0.1, 3_600.0))
    }

    fn connection_count(&self) -> usize {
        self.connections.max(1)
    }

    fn shape(&self, concurrency: usize) -> load::LoadShape {
        load::LoadShape { concurrency, connections: self.connection_count(), duration: self.round(), rate: self.rate }
    }
}

/// Measures one flow and prints the figures.
pub(crate) fn run(arguments: BenchArguments) -> Result<(), BenchError> {
    match arguments.what {
        What::SetPin(arguments) => flow::set_pin(&arguments),
        What::Database(arguments) => database::run(&arguments),
        What::Flow(arguments) => flow::whole(&arguments),
        What::Floods(arguments) => floods::run(&arguments),
        What::Streams(arguments) => streams::run(&arguments),
        What::Rotation(arguments) => rotation_speed::run(&arguments),
        What::Timing(arguments) => timing::run(&arguments),
        What::Controls(arguments) => Ok(writeln!(io::stdout(), "{}", controls::live_controls(&arguments)?)?),
        What::Memory(arguments) => memory::run(&arguments),
    }
}

/// The measurement failed.
#[derive(Debug, Error)]
pub(crate) enum BenchError {
    /// The configuration of the measured services is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The store failed when the engine stopped.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store did not open.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
    /// The echo did not start.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The edge did not start.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The test certificates can't be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The test certificates can't be loaded.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A request failed.
    #[error("the load failed: {0}")]
    Load(String),
    /// Flows of a long load failed.
    #[error(
        "{failed} flows failed and {done} were done, so the memory is not that of the whole load: repeat after the cause of the first is gone: {first}"
    )]
    FlowsFailed {
        /// The flows that failed.
        failed: u64,
        /// The flows that succeeded.
        done: u64,
        /// The first failure.
        first: String,
    },
    /// The time of an answer may reveal the outcome.
    #[error(
        "the largest |t| is {largest:.2}, not below {limit}: repeat on an idle machine with 1000000 calls; if it stays, the time reveals an outcome"
    )]
    Timing {
        /// The largest |t| of all comparisons.
        largest: f64,
        /// The limit.
        limit: f64,
    },
    /// The operating system returned an error.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<tonic::Status> for BenchError {
    fn from(status: tonic::Status) -> Self {
        Self::Load(format!("{:?}: {}", status.code(), status.message()))
    }
}
