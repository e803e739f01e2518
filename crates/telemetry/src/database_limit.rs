//! Keeps the values of SQL statements out of the log: they have PIN records and sealed keys.

use tracing::{Metadata, Subscriber};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::Context,
};

/// The crate that logs each statement with its values, below the level `INFO`.
const DATABASE_CLIENT: &str = "tokio_postgres";

/// Suppresses the events of the database client below `INFO`, whatever `RUST_LOG` selects.
pub(super) struct DatabaseLimit {
    written: Targets,
}

impl DatabaseLimit {
    pub(super) fn new() -> Self {
        let written = Targets::new().with_default(LevelFilter::TRACE);
        Self { written: written.with_target(DATABASE_CLIENT, LevelFilter::INFO) }
    }
}

impl<S: Subscriber> Layer<S> for DatabaseLimit {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.written.would_enable(metadata.target(), metadata.level())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_log::{LogTracer, log};
    use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt};

    use super::*;

    #[test]
    fn the_values_of_statements_are_not_logged() {
        let (read, written) = std::io::pipe().unwrap();
        let events = fmt::layer().without_time().with_writer(Mutex::new(written));
        let filter = EnvFilter::new("trace,tokio_postgres::query=trace");
        let registry = tracing_subscriber::registry().with(filter).with(DatabaseLimit::new()).with(events);
        let reader = std::thread::spawn(|| std::io::read_to_string(read).unwrap());
        LogTracer::init().unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        tracing::subscriber::with_default(registry, || {
            // As tokio-postgres logs, by the crate `log`.
            log::debug!(target: "tokio_postgres::query", "executing statement s0 with parameters: [secret]");
            log::trace!(target: "tokio_postgres", "secret");
            tracing::debug!(target: "tokio_postgres::query", "secret");
            log::info!(target: "tokio_postgres::connection", "a notice");
            log::debug!(target: "another", "a line of another crate");
        });
        let lines = reader.join().unwrap();
        assert!(!lines.contains("secret"), "{lines}");
        assert!(lines.contains("a notice") && lines.contains("a line of another crate"), "{lines}");
    }
}
