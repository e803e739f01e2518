//! The one binary: parse the arguments, call one function, map its error to an exit code.

#![forbid(unsafe_code)]

use std::{
    error::Error,
    io::{self, Write},
    iter,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
#[cfg(any(feature = "engine", feature = "edge"))]
use pinseal::command;
use pinseal::telemetry;
use tracing::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Issuer-side PIN translation: a cardholder sets, sees and uses a PIN, and the clear PIN never leaves the key boundary.
#[derive(Parser)]
#[command(version, max_term_width = 100, propagate_version = true)]
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
    #[cfg(feature = "simulator")]
    Demo(pinseal::demo::DemoArguments),
    /// Serve the engine: gRPC, the store and the key boundary
    #[cfg(feature = "engine")]
    Engine(command::EngineArguments),
    /// Serve the edge: the Card PIN API over HTTP, in front of an engine
    #[cfg(feature = "edge")]
    Edge(command::EdgeArguments),
    /// Simulate a cardholder's device, and the back-end it talks to
    #[cfg(feature = "simulator")]
    Device(pinseal::simulate::DeviceArguments),
    /// Export and verify the audit chain
    #[cfg(feature = "engine")]
    Audit(pinseal::audit::command::AuditArguments),
    /// Be the key boundary, in a process of its own that an engine asks
    #[cfg(feature = "keys")]
    Hsm(pinseal::hsm_process::HsmArguments),
    /// Look at a PKCS#11 token, and make the keys in it
    #[cfg(feature = "keys")]
    Token(pinseal::token::TokenArguments),
    /// Make a software vault and the keys in it
    #[cfg(feature = "keys")]
    Vault(pinseal::vault::VaultArguments),
    /// Make, load, exchange, retire and destroy keys under dual control, with a transcript
    #[cfg(feature = "keys")]
    Ceremony(Box<pinseal::ceremony::CeremonyArguments>),
    /// Watch a running engine make PIN records anew under a new storage key
    #[cfg(feature = "operator")]
    Rotation(pinseal::operator::RotationArguments),
    /// Explain a key block
    #[cfg(feature = "keys")]
    Keyblock(pinseal::keyblock::KeyBlockArguments),
    /// Make certificates for mutual TLS
    Pki(pinseal::pki::PkiArguments),
    /// Measure this build beside a bare gRPC echo
    #[cfg(feature = "simulator")]
    Bench(pinseal::bench::BenchArguments),
}

impl Command {
    /// From which level on it tells of itself.
    fn events(&self) -> Level {
        match self {
            // What it provokes it tells as a story.
            #[cfg(feature = "simulator")]
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
    #[cfg(feature = "engine")]
    take_memory_by_small_pages();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        #[cfg(feature = "keys")]
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

/// A huge page comes cleared, all 2 MiB of it, and whoever touches it first waits: 5 ms on a virtual machine whose host has
/// yet to find the memory. Where that is the store's thread, every call waits with it. Kernels that know no huge pages
/// refuse, and have none.
#[cfg(feature = "engine")]
fn take_memory_by_small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "transparent huge pages are left as the system has them");
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        #[cfg(feature = "simulator")]
        Command::Demo(arguments) => Ok(pinseal::demo::run(arguments)?),
        #[cfg(feature = "engine")]
        Command::Engine(arguments) => Ok(command::engine(arguments)?),
        #[cfg(feature = "edge")]
        Command::Edge(arguments) => Ok(command::edge(arguments)?),
        #[cfg(feature = "simulator")]
        Command::Device(arguments) => Ok(pinseal::simulate::run(arguments)?),
        #[cfg(feature = "engine")]
        Command::Audit(arguments) => Ok(pinseal::audit::command::run(arguments)?),
        #[cfg(feature = "keys")]
        Command::Hsm(arguments) => Ok(pinseal::hsm_process::run(arguments)?),
        #[cfg(feature = "keys")]
        Command::Token(arguments) => Ok(pinseal::token::run(arguments)?),
        #[cfg(feature = "keys")]
        Command::Vault(arguments) => Ok(pinseal::vault::run(arguments)?),
        #[cfg(feature = "keys")]
        Command::Ceremony(arguments) => Ok(pinseal::ceremony::run(*arguments)?),
        #[cfg(feature = "operator")]
        Command::Rotation(arguments) => Ok(pinseal::operator::rotation(arguments)?),
        #[cfg(feature = "keys")]
        Command::Keyblock(arguments) => Ok(pinseal::keyblock::run(arguments)?),
        Command::Pki(arguments) => Ok(pinseal::pki::run(arguments)?),
        #[cfg(feature = "simulator")]
        Command::Bench(arguments) => Ok(pinseal::bench::run(arguments)?),
    }
}

#[cfg_attr(not(any(feature = "engine", feature = "edge")), allow(unused_variables, reason = "nothing here logs in"))]
fn refuses_user_pin(error: &(dyn Error + 'static)) -> bool {
    #[cfg(any(feature = "engine", feature = "edge"))]
    if let Some(error) = error.downcast_ref::<command::CommandError>() {
        return error.refuses_user_pin();
    }
    #[cfg(feature = "keys")]
    if let Some(error) = error.downcast_ref::<pinseal::hsm_process::HsmProcessError>() {
        return error.refuses_user_pin();
    }
    false
}

/// The exit code of a command that did something lasting before it failed, a pipe that nobody reads included.
#[cfg(feature = "keys")]
fn done_in_part(error: &(dyn Error + 'static)) -> Option<u8> {
    let code = error.downcast_ref::<pinseal::ceremony::CeremonyError>()?.exit_code();
    (code != 1).then_some(code)
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
