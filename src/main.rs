//! The one binary: parse the arguments, call one function, map its error to an exit code.

#![forbid(unsafe_code)]

mod commands;
mod inline_boundary;
mod isolation;

use std::{
    error::Error,
    io::{self, Write},
    iter,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Issuer-side PIN translation: a cardholder sets, sees and uses a PIN, and the clear PIN never leaves the key boundary.
#[derive(Parser)]
#[command(version = env!("PINSEAL_VERSION"), max_term_width = 100, propagate_version = true)]
struct Arguments {
    /// How events are written to standard error; RUST_LOG chooses which
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play a PIN being set and viewed through the real services, tell what happens, and go on serving
    Demo(commands::demo::DemoArguments),
    /// Serve the engine: gRPC, the store and the key boundary
    Engine(engine::command::EngineArguments),
    /// Serve the edge: the Card PIN API over HTTP, in front of an engine
    Edge(edge::command::EdgeArguments),
    /// Simulate a cardholder's device, and the back-end it talks to
    Device(commands::device::DeviceArguments),
    /// Export and verify the audit chain
    Audit(commands::audit::AuditArguments),
    /// Be the key boundary, in a process of its own that an engine asks
    Hsm(hsm_server::HsmArguments),
    /// Look at a PKCS#11 token, and make the keys in it
    Token(commands::token::TokenArguments),
    /// Make a software vault and the keys in it
    Vault(commands::vault::VaultArguments),
    /// Make, load, exchange, retire and destroy keys under dual control, with a transcript
    Ceremony(Box<ceremony::CeremonyArguments>),
    /// Watch a running engine make PIN records anew under a new storage key
    Rotation(commands::rotation::RotationArguments),
    /// Explain a key block
    Keyblock(commands::keyblock::KeyBlockArguments),
    /// Make certificates for mutual TLS
    Pki(commands::pki::PkiArguments),
    /// Measure this build beside a bare gRPC echo
    Bench(commands::bench::BenchArguments),
}

impl Command {
    /// From which level on it tells of itself.
    fn events(&self) -> Level {
        match self {
            // What it provokes it tells as a story.
            Self::Demo(_) => Level::WARN,
            _ => Level::INFO,
        }
    }
}

/// What a shell says of a program that SIGPIPE ended: 128 and the signal's number.
const ENDED_BY_PIPE: u8 = 141;

/// The exit code of `pinseal engine` and `pinseal hsm` when a PKCS#11 token refused the user PIN: EX_NOPERM of sysexits.h.
/// Each start is a login, and a few wrong ones lock the PIN: nothing may start them again by itself.
const USER_PIN_REFUSED: u8 = 77;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(arguments.log_format, arguments.command.events());
    engine::command::take_memory_by_small_pages();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if let Some(code) = done_in_part(&*error) => {
            let _ = writeln!(io::stderr().lock(), "pinseal: {error}");
            ExitCode::from(code)
        }
        // Who reads our output has read enough, as `head` does; but nobody is told that all of it was done.
        Err(error) if is_broken_pipe(&*error) => ExitCode::from(ENDED_BY_PIPE),
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "pinseal: {error}");
            if refuses_user_pin(&*error) { ExitCode::from(USER_PIN_REFUSED) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Demo(arguments) => Ok(commands::demo::run(arguments)?),
        Command::Engine(arguments) => Ok(engine::command::run(arguments, inline_boundary::open_inline)?),
        Command::Edge(arguments) => Ok(edge::command::run(arguments)?),
        Command::Device(arguments) => Ok(commands::device::run(arguments)?),
        Command::Audit(arguments) => Ok(commands::audit::run(arguments)?),
        Command::Hsm(arguments) => Ok(hsm_server::run(arguments)?),
        Command::Token(arguments) => Ok(commands::token::run(arguments)?),
        Command::Vault(arguments) => Ok(commands::vault::run(arguments)?),
        Command::Ceremony(arguments) => Ok(ceremony::run(*arguments)?),
        Command::Rotation(arguments) => Ok(commands::rotation::run(arguments)?),
        Command::Keyblock(arguments) => Ok(commands::keyblock::run(arguments)?),
        Command::Pki(arguments) => Ok(commands::pki::run(arguments)?),
        Command::Bench(arguments) => Ok(commands::bench::run(arguments)?),
    }
}

fn refuses_user_pin(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<engine::command::EngineCommandError>() {
        return error.refuses_user_pin();
    }
    if let Some(error) = error.downcast_ref::<hsm_server::HsmProcessError>() {
        return error.refuses_user_pin();
    }
    false
}

/// The exit code of a command that did something lasting before it failed, a pipe that nobody reads included.
fn done_in_part(error: &(dyn Error + 'static)) -> Option<u8> {
    let code = error.downcast_ref::<ceremony::CeremonyError>()?.exit_code();
    (code != 1).then_some(code)
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
