//! A limit on log lines and audit entries within a minute.

use std::sync::{Mutex, PoisonError};

use super::monotonic_milliseconds;

const MINUTE_MILLISECONDS: u64 = 60_000;

/// Admits a number of events within each minute and counts the others. The minutes are those of CLOCK_MONOTONIC.
///
/// ```
/// let limit = clock::minute_limit::MinuteLimit::new(1);
/// let admitted = (0..1_000).filter(|_| limit.admit().is_some()).count();
/// assert!((1..=2).contains(&admitted), "2 if the minute turned in between");
/// ```
pub struct MinuteLimit {
    max: u64,
    state: Mutex<State>,
}

struct State {
    minute: u64,
    admitted: u64,
    suppressed: u64,
}

impl MinuteLimit {
    /// A limit of `max` events within a minute.
    pub const fn new(max: u64) -> Self {
        Self { max, state: Mutex::new(State { minute: 0, admitted: 0, suppressed: 0 }) }
    }

    /// Admits an event: returns the number of events that were suppressed since the last admitted one. `None` suppresses
    /// the event.
    pub fn admit(&self) -> Option<u64> {
        self.admit_within(monotonic_milliseconds() / MINUTE_MILLISECONDS)
    }

    fn admit_within(&self, minute: u64) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if minute != state.minute {
            (state.minute, state.admitted) = (minute, 0);
        }
        if state.admitted >= self.max {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.admitted = state.admitted.saturating_add(1);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_limit_are_counted_by_the_next_one() {
        let limit = MinuteLimit::new(60);
        let admitted: Vec<_> = (0..65).filter_map(|_| limit.admit_within(7)).collect();
        assert_eq!(admitted, vec![0; 60]);
        assert_eq!((limit.admit_within(8), limit.admit_within(8)), (Some(5), Some(0)));
    }
}
