//! Limits the warnings of other crates: a peer makes h2 write one for each malformed frame.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use clock::minute_limit::MinuteLimit;
use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::Context,
};

use super::CRATES;

/// The most lines of one log statement of another crate within a minute.
pub(super) const LINES_PER_MINUTE_MAX: u64 = 60;

/// Suppresses warnings and errors of other crates beyond [`LINES_PER_MINUTE_MAX`] of one log statement, and logs the number
/// of suppressed lines before the next one. Events below a warning are written only where `RUST_LOG` selects them, and are not limited.
pub(super) struct LineLimit {
    ours: Targets,
    /// One for each log statement of the program that was executed.
    statements: Mutex<HashMap<Identifier, Arc<MinuteLimit>>>,
}

impl LineLimit {
    pub(super) fn new() -> Self {
        let ours = CRATES.into_iter().chain([env!("CARGO_CRATE_NAME")]).map(|name| (name, LevelFilter::TRACE));
        Self { ours: ours.collect(), statements: Mutex::default() }
    }
}

impl<S: Subscriber> Layer<S> for LineLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let (level, target) = (metadata.level(), metadata.target());
        if *level > Level::WARN || self.ours.would_enable(target, level) {
            return true;
        }
        let statement = {
            let mut statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
            let limit = || Arc::new(MinuteLimit::new(LINES_PER_MINUTE_MAX));
            Arc::clone(statements.entry(metadata.callsite()).or_insert_with(limit))
        };
        let Some(suppressed) = statement.admit() else { return false };
        if suppressed > 0 {
            tracing::warn!(suppressed, of = target, "lines of one log statement were suppressed");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{fmt, layer::SubscriberExt};

    use super::*;

    /// The lines that `log` writes.
    fn lines_of(log: impl FnOnce()) -> Vec<String> {
        let (read, written) = std::io::pipe().unwrap();
        let events = fmt::layer().without_time().with_writer(Mutex::new(written));
        let reader = std::thread::spawn(|| std::io::read_to_string(read).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(LineLimit::new()).with(events), log);
        reader.join().unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn warnings_of_another_crate_are_limited_and_ours_are_not() {
        let lines = lines_of(|| {
            for number in 0..500 {
                tracing::warn!(target: "h2::proto", number, "theirs");
                tracing::debug!(target: "h2::proto", number, "selected");
                tracing::warn!(target: "edge::serve", number, "ours");
            }
        });
        let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        // The minute may turn in between.
        assert!((60..=120).contains(&count("theirs")), "{}", count("theirs"));
        assert_eq!((count("selected"), count("ours")), (500, 500));
    }
}
