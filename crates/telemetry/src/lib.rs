//! What a process reports to its operator: log events on standard error, and exit codes. Also the frame of the programs
//! that serve one service.
//!
//! A PIN block, a key, a credential or a full account number must never be a field of an event.
//!
//! ```
//! telemetry::start(telemetry::LogFormat::Json, tracing::Level::INFO);
//! tracing::info!(port = 50_051, "listening");
//! ```

mod database_limit;
mod line_limit;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::{Args, Command, FromArgMatches};
use tracing::Level;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use self::{database_limit::DatabaseLimit, line_limit::LineLimit};

/// The exit code of the engine and of the boundary process when a PKCS#11 token refused the user PIN: `EX_NOPERM` of
/// sysexits.h. Each start is a login attempt, and a few wrong attempts lock the user PIN, so a supervisor must not restart
/// the process.
pub const USER_PIN_REFUSED: u8 = 77;

/// The crates of this workspace that log. A log target is the name of a crate, and its prefix selects it: `pinseal` selects
/// the programs.
const CRATES: [&str; 8] =
    ["pinseal", "edge", "engine", "hsm_client", "hsm_server", "net", "store_embedded", "store_postgres"];

/// The format of log events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text for each event.
    #[default]
    Text,
    /// One JSON object on each line.
    Json,
}

/// Starts to write log events to standard error. `RUST_LOG` selects them. Without `RUST_LOG`: warnings of all crates, and
/// the events of this workspace from `level` on. `RUST_LOG` does not select the values of SQL statements. A log statement of another crate writes at most 60 warnings within a minute.
/// A second call in the same process changes nothing. Text has colours on a terminal alone.
pub fn start(format: LogFormat, level: Level) {
    start_with(format, &default_filter(level));
}

/// The same for a command that reads a store: the command reports the damage that the store's library logs too.
pub fn start_store_command(format: LogFormat, level: Level) {
    start_with(format, &format!("{},fjall=off,lsm_tree=off,sfa=off", default_filter(level)));
}

fn start_with(format: LogFormat, default_filter: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter));
    let registry = tracing_subscriber::registry().with(filter).with(DatabaseLimit::new()).with(LineLimit::new());
    let events = fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let _ = match format {
        LogFormat::Text => registry.with(events).try_init(),
        LogFormat::Json => registry.with(events.json()).try_init(),
    };
}

// Without a doc comment: clap would print it instead of the description of the program.
#[derive(Args)]
struct ProgramArguments<A: Args> {
    /// Format of the log on standard error; RUST_LOG selects the events
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(flatten)]
    service: A,
}

/// Runs a program that serves one service: parses the arguments, starts the log, runs `serve`, and prints an error to
/// standard error. `exit_code` gives the exit code of an error; wrong arguments exit with 2.
pub fn run_program<A: Args, E: Display>(
    name: &'static str,
    about: &'static str,
    serve: impl FnOnce(A) -> Result<(), E>,
    exit_code: impl FnOnce(&E) -> u8,
) -> ExitCode {
    let command = Command::new(name).version(env!("CARGO_PKG_VERSION")).max_term_width(100);
    let matches = ProgramArguments::<A>::augment_args(command).about(about).get_matches();
    let arguments = ProgramArguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    start(arguments.log_format, Level::INFO);
    match serve(arguments.service) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "{name}: {error}");
            exit_code(&error).into()
        }
    }
}

fn default_filter(level: Level) -> String {
    let ours: String = CRATES.iter().map(|name| format!("{name}={level},")).collect();
    // cryptoki logs an error for each mechanism of a token that it has no name for.
    format!("warn,{ours}cryptoki=off")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// The name of the library in a directory, or of the package if it has no library, if a dependency on tracing exists.
    fn logging_crate(directory: &Path) -> Option<String> {
        let manifest: toml::Table = fs::read_to_string(directory.join("Cargo.toml")).ok()?.parse().unwrap();
        manifest.get("dependencies")?.get("tracing")?;
        let name = manifest.get("lib").and_then(|lib| lib.get("name")).or_else(|| manifest["package"].get("name"));
        Some(name.unwrap().as_str().unwrap().to_owned())
    }

    #[test]
    fn the_default_filter_names_every_crate_that_logs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut directories = vec![root.clone(), root.join("proto"), root.join("hsm"), root.join("device")];
        directories.extend(fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path()));
        let mut logging: BTreeSet<String> = directories.iter().filter_map(|path| logging_crate(path)).collect();
        assert!(logging.remove("telemetry"));
        assert_eq!(logging, CRATES.map(str::to_owned).into());
    }

    #[test]
    fn the_default_filter_is_well_formed() {
        assert!(EnvFilter::try_new(default_filter(Level::INFO)).is_ok());
    }
}
