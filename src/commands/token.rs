//! `pinseal token`: reports on a PKCS#11 token, and makes the engine's keys in it.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use hsm::{Hsm, Isolation, TokenReport};
use serde_json::{Value, json};
use thiserror::Error;

use config::ConfigError;

/// The arguments of `pinseal token`.
#[derive(Args)]
pub(crate) struct TokenArguments {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Report the token's type, its mechanisms, the route and the speed of each operation; audit its keys
    Doctor(DoctorArguments),
    /// Make every key the engine needs in the token, each for one use, none exportable
    MakeKeys(MakeKeysArguments),
}

#[derive(Args)]
struct DoctorArguments {
    /// The engine's configuration: its [token] names module, slot and user PIN
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct MakeKeysArguments {
    /// The engine's configuration: its [token] names module, slot, user PIN and the version of the keys
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs one subcommand and prints its result.
pub(crate) fn run(arguments: TokenArguments) -> Result<(), TokenError> {
    let mut out = io::stdout().lock();
    match arguments.command {
        TokenCommand::MakeKeys(arguments) => {
            let hsm_config::Token { token, wanted, .. } = hsm_config::load_token(&arguments.config)?;
            let made = Hsm::make_token_keys(&token, &wanted)?;
            writeln!(out, "made, with check values:")?;
            made.iter().try_for_each(|key| writeln!(out, "  {key}"))?;
            Ok(())
        }
        TokenCommand::Doctor(arguments) => {
            let hsm_config::Token { token, wanted, isolation } = hsm_config::load_token(&arguments.config)?;
            let report = Hsm::examine_token(&token, &wanted)?;
            if arguments.json {
                writeln!(out, "{:#}", as_json(&report, isolation))?;
            } else {
                as_text(&report, isolation, &mut out)?;
            }
            report.keys.map(drop).map_err(TokenError::Keys)
        }
    }
}

fn as_text(report: &TokenReport, isolation: Isolation, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "token")?;
    report.token.iter().try_for_each(|(name, value)| writeln!(out, "  {name:<13} {value}"))?;
    writeln!(out, "\ntried on throw-away keys")?;
    for probe in &report.probes {
        let listed = if probe.listed { "listed" } else { "not listed" };
        let found = probe.failed.as_ref().map_or("works".to_owned(), |error| format!("FAILS: {error}"));
        let (level, what) = (probe.level.to_string(), probe.what);
        writeln!(out, "  {level:<6} {what:<40} {:<27} {listed:<11} {found}", probe.mechanism)?;
    }
    writeln!(out, "\nlevel {}, isolation {isolation}, as configured", report.level)?;
    for route in &report.routes {
        writeln!(out, "  {:<25} {}\n  {:<25} because {}", route.operation, route.route, "", route.why)?;
    }
    writeln!(out, "\nkeys")?;
    match &report.keys {
        Ok(keys) => keys.iter().try_for_each(|key| writeln!(out, "  {key:<30} safe"))?,
        Err(problem) => writeln!(out, "  {problem}")?,
    }
    writeln!(out, "\ncalls a second, in one session")?;
    report.speeds.iter().try_for_each(|(name, rate)| writeln!(out, "  {name:<25} {rate:>9.0}"))
}

fn as_json(report: &TokenReport, isolation: Isolation) -> Value {
    let probe = |probe: &hsm::Probe| {
        json!({
            "level": probe.level.to_string(), "what": probe.what, "mechanism": probe.mechanism, "listed": probe.listed,
            "works": probe.failed.is_none(), "error": probe.failed,
        })
    };
    let route = |route: &hsm::Route| json!({ "operation": route.operation, "route": route.route, "why": route.why });
    let named = |pairs: Vec<(String, Value)>| Value::Object(pairs.into_iter().collect());
    json!({
        "token": named(report.token.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()),
        "probes": report.probes.iter().map(probe).collect::<Vec<_>>(),
        "level": report.level.to_string(),
        "isolation": isolation.to_string(),
        "routes": report.routes.iter().map(route).collect::<Vec<_>>(),
        "keys": report.keys.as_ref().ok().map(|keys| keys.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "problem": report.keys.as_ref().err(),
        "calls_per_second": named(report.speeds.iter().map(|(name, rate)| ((*name).to_owned(), json!(rate))).collect()),
    })
}

/// A token command failed.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    /// The configuration can't be read, or is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The token can't be opened, or refuses an operation.
    #[error(transparent)]
    Hsm(#[from] hsm::OpenError),
    /// The keys in the token are missing or unsafe: an engine rejects them.
    #[error("{0}")]
    Keys(String),
    /// Standard output can't be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}
