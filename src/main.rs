//! The all-in-one program `pinseal`: parses the arguments, runs one command, maps its error to an exit code.

#![forbid(unsafe_code)]

mod commands;
mod inline_boundary;
mod isolation;

use std::{
    error::Error as StdError,
    io::{self, Write},
    iter,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use thiserror::Error;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Issuer-side PIN translation: a cardholder sets and views a PIN; the clear PIN never leaves the key boundary
#[derive(Parser)]
#[command(version = env!("PINSEAL_VERSION"), max_term_width = 100, propagate_version = true)]
struct Arguments {
    /// Format of the log on standard error; RUST_LOG selects the events
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set and view a PIN through the real services, print each step, and keep serving
    Demo(commands::demo::DemoArguments),
    /// Serve the engine: gRPC, the store and the key boundary
    Engine(engine::command::EngineArguments),
    /// Serve the edge: the Card PIN API over HTTP, in front of an engine
    Edge(edge::command::EdgeArguments),
    /// Simulate a cardholder's device, and the back-end it talks to
    Device(commands::device::DeviceArguments),
    /// Check, salvage, back up and restore the store of an engine
    Store(commands::store::StoreArguments),
    /// Export and verify the audit chain
    Audit(commands::audit::AuditArguments),
    /// Register cards with a running engine
    Card(commands::card::CardArguments),
    /// Export the PINs of a file of cards under a zone key, to a file of blocks
    Export(commands::bulk::ExportArguments),
    /// Set the PINs of a file of blocks under a zone key
    Import(commands::bulk::ImportArguments),
    /// Translate a file of blocks from zone to zone
    Translate(commands::bulk::TranslateArguments),
    /// Follow the events of a tenant's PINs
    Events(commands::events::EventsArguments),
    /// Serve the key boundary as a separate process for an engine
    Hsm(hsm_server::HsmArguments),
    /// Inspect a PKCS#11 token and generate its keys
    Token(commands::token::TokenArguments),
    /// Create a software vault and generate its keys
    Vault(commands::vault::VaultArguments),
    /// Generate, load, exchange, retire and destroy keys under dual control, with a transcript
    Ceremony(Box<commands::ceremony::CeremonyArguments>),
    /// Watch a running engine re-encrypt its PIN records under a new storage key
    Rotation(commands::rotation::RotationArguments),
    /// Explain a key block
    Keyblock(commands::keyblock::KeyBlockArguments),
    /// Explain what a configuration allows, each with its rule: formats, translations, keys, capabilities
    Policy(commands::policy::PolicyArguments),
    /// Generate development certificates for mutual TLS
    Pki(commands::pki::PkiArguments),
    /// Measure this build against a bare gRPC echo
    Bench(commands::bench::BenchArguments),
}

impl Command {
    /// The lowest level of the events that are logged without `RUST_LOG`.
    fn log_level(&self) -> Level {
        match self {
            // The demo prints its steps itself.
            Self::Demo(_) => Level::WARN,
            // A line for each request would be measured too.
            Self::Bench(_) => Level::WARN,
            _ => Level::INFO,
        }
    }

    #[expect(clippy::result_large_err, reason = "returned once in a process")]
    fn run(self) -> Result<(), CommandError> {
        match self {
            Self::Demo(arguments) => Ok(commands::demo::run(arguments)?),
            Self::Engine(arguments) => {
                Ok(engine::command::run(arguments, inline_boundary::open_inline, engine_server::open_store)?)
            }
            Self::Edge(arguments) => Ok(edge::command::run(arguments)?),
            Self::Device(arguments) => Ok(commands::device::run(arguments)?),
            Self::Store(arguments) => Ok(commands::store::run(arguments)?),
            Self::Audit(arguments) => Ok(commands::audit::run(arguments)?),
            Self::Card(arguments) => Ok(commands::card::run(arguments)?),
            Self::Export(arguments) => Ok(commands::bulk::export(&arguments)?),
            Self::Import(arguments) => Ok(commands::bulk::import(&arguments)?),
            Self::Translate(arguments) => Ok(commands::bulk::translate(&arguments)?),
            Self::Events(arguments) => Ok(commands::events::run(arguments)?),
            Self::Hsm(arguments) => Ok(hsm_server::run(arguments)?),
            Self::Token(arguments) => Ok(commands::token::run(arguments)?),
            Self::Vault(arguments) => Ok(commands::vault::run(arguments)?),
            Self::Ceremony(arguments) => Ok(commands::ceremony::run(*arguments)?),
            Self::Rotation(arguments) => Ok(commands::rotation::run(arguments)?),
            Self::Keyblock(arguments) => Ok(commands::keyblock::run(arguments)?),
            Self::Policy(arguments) => Ok(commands::policy::run(&arguments)?),
            Self::Pki(arguments) => Ok(commands::pki::run(arguments)?),
            Self::Bench(arguments) => Ok(commands::bench::run(arguments)?),
        }
    }
}

/// The exit code that a shell reports for a program that SIGPIPE ended: 128 plus the number of the signal.
const ENDED_BY_PIPE: u8 = 141;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = match arguments.command {
        Command::Store(_) | Command::Audit(_) => telemetry::start_store_command,
        _ => telemetry::start,
    };
    start(arguments.log_format, arguments.command.log_level());
    engine::command::disable_huge_pages();
    let Err(error) = arguments.command.run() else { return ExitCode::SUCCESS };
    let code = error.exit_code();
    // A reader such as `head` that closes the pipe needs no message.
    if code != ENDED_BY_PIPE {
        let _ = writeln!(io::stderr().lock(), "pinseal: {error}");
    }
    ExitCode::from(code)
}

/// The error of one command.
#[derive(Debug, Error)]
#[error(transparent)]
enum CommandError {
    Demo(#[from] commands::demo::DemoError),
    Engine(#[from] engine::command::EngineCommandError),
    Edge(#[from] edge::command::EdgeCommandError),
    Device(#[from] commands::device::SimulateError),
    Store(#[from] commands::store::StoreCommandError),
    Audit(#[from] commands::audit::AuditError),
    Card(#[from] commands::card::CardError),
    Bulk(#[from] commands::bulk::BulkError),
    Hsm(#[from] hsm_server::HsmProcessError),
    Token(#[from] commands::token::TokenError),
    Vault(#[from] commands::vault::VaultCommandError),
    Ceremony(#[from] commands::ceremony::CeremonyError),
    Operator(#[from] engine_client::OperatorError),
    Keyblock(#[from] commands::keyblock::KeyBlockCommandError),
    Policy(#[from] commands::policy::PolicyError),
    Pki(#[from] commands::pki::PkiError),
    Bench(#[from] commands::bench::BenchError),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            // The step was done but not printed: this has its own code, even if the pipe was closed.
            Self::Ceremony(error) if error.exit_code() != 1 => error.exit_code(),
            Self::Store(error) if error.exit_code() != 1 => error.exit_code(),
            Self::Bulk(error) if error.exit_code() != 1 => error.exit_code(),
            Self::Engine(error) if error.refuses_user_pin() => telemetry::USER_PIN_REFUSED,
            Self::Hsm(error) if error.refuses_user_pin() => telemetry::USER_PIN_REFUSED,
            _ if self.is_broken_pipe() => ENDED_BY_PIPE,
            _ => 1,
        }
    }

    /// Whether the reader of the output closed the pipe, at any depth of the error.
    fn is_broken_pipe(&self) -> bool {
        let causes = iter::successors(Some(self as &(dyn StdError + 'static)), |&error| error.source());
        causes
            .filter_map(|error| error.downcast_ref::<io::Error>())
            .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}
