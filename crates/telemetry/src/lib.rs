//! What the process says of itself: events on standard error. No block, no secret and no full account number is ever a
//! field of one.

use tracing::Level;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The crates of this workspace that write events: the targets of their events begin with these names.
const OUR_CRATES: [&str; 9] =
    ["ceremony", "edge", "engine", "hsm", "hsm_client", "hsm_server", "net", "pinseal", "store_embedded"];

/// Begins to write events. `RUST_LOG` chooses them; without it, warnings of all and ours from a level on. The PKCS#11
/// binding is silent then: it calls every mechanism it has no name for an error.
pub fn start(format: LogFormat, ours: Level) {
    let usual = || {
        EnvFilter::new(
            OUR_CRATES.iter().fold("warn,cryptoki=off".to_owned(), |filter, name| format!("{filter},{name}={ours}")),
        )
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| usual());
    let registry = tracing_subscriber::registry().with(filter);
    let events = fmt::layer().with_writer(std::io::stderr);
    // A second start, as in tests, changes nothing.
    let _ = match format {
        LogFormat::Text => registry.with(events).try_init(),
        LogFormat::Json => registry.with(events.json()).try_init(),
    };
}
