//! A limit on log lines and audit entries within a minute.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

use super::monotonic_milliseconds;

const MINUTE_MILLISECONDS: u64 = 60_000;
/// The most keys of a [`MinuteLimits`] with separate limits.
const KEYS_MAX: usize = 1_024;

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

impl MinuteLimit {
    /// A limit of `max` events within a minute.
    pub const fn new(max: u64) -> Self {
        Self { max, state: Mutex::new(State::NEW) }
    }

    /// Admits an event: returns the number of events that were suppressed since the last admitted one. `None` suppresses
    /// the event.
    pub fn admit(&self) -> Option<u64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).admit(this_minute(), self.max)
    }

    /// Counts events as suppressed, such as an admitted one that could not be recorded, with the number that it had.
    pub fn suppress(&self, events: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).suppress(events);
    }
}

/// A [`MinuteLimit`] for each key: one key does not use up the limit of another. The keys beyond the first 1,024 of a minute
/// share one limit.
pub struct MinuteLimits<K> {
    max: u64,
    states: Mutex<States<K>>,
}

struct States<K> {
    of_keys: HashMap<K, State>,
    of_others: State,
}

impl<K: Hash + Eq + Clone> MinuteLimits<K> {
    /// Limits of `max` events of one key within a minute.
    pub fn new(max: u64) -> Self {
        Self { max, states: Mutex::new(States { of_keys: HashMap::new(), of_others: State::NEW }) }
    }

    /// Admits an event of a key, as [`MinuteLimit::admit`].
    pub fn admit(&self, key: &K) -> Option<u64> {
        self.admit_in(this_minute(), key)
    }

    fn admit_in(&self, minute: u64, key: &K) -> Option<u64> {
        self.of(minute, key, |state| state.admit(minute, self.max))
    }

    /// Counts events of a key as suppressed, as [`MinuteLimit::suppress`].
    pub fn suppress(&self, key: &K, events: u64) {
        self.of(this_minute(), key, |state| state.suppress(events));
    }

    fn of<T>(&self, minute: u64, key: &K, change: impl FnOnce(&mut State) -> T) -> T {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let States { of_keys, of_others } = &mut *states;
        if of_keys.len() >= KEYS_MAX && !of_keys.contains_key(key) {
            // The keys of earlier minutes leave their places, and their suppressed events to the shared limit.
            of_keys.retain(|_, state| {
                let is_of_minute = state.minute == minute;
                if !is_of_minute {
                    of_others.suppress(state.suppressed);
                }
                is_of_minute
            });
            if of_keys.len() >= KEYS_MAX {
                return change(of_others);
            }
        }
        change(of_keys.entry(key.clone()).or_insert(State::NEW))
    }
}

fn this_minute() -> u64 {
    monotonic_milliseconds() / MINUTE_MILLISECONDS
}

struct State {
    minute: u64,
    admitted: u64,
    suppressed: u64,
}

impl State {
    const NEW: Self = Self { minute: 0, admitted: 0, suppressed: 0 };

    fn admit(&mut self, minute: u64, max: u64) -> Option<u64> {
        if minute != self.minute {
            (self.minute, self.admitted) = (minute, 0);
        }
        if self.admitted >= max {
            self.suppress(1);
            return None;
        }
        self.admitted = self.admitted.saturating_add(1);
        Some(std::mem::take(&mut self.suppressed))
    }

    fn suppress(&mut self, events: u64) {
        self.suppressed = self.suppressed.saturating_add(events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_limit_are_counted_by_the_next_one() {
        let mut state = State::NEW;
        let admitted: Vec<_> = (0..65).filter_map(|_| state.admit(7, 60)).collect();
        assert_eq!(admitted, vec![0; 60]);
        state.suppress(3);
        assert_eq!((state.admit(8, 60), state.admit(8, 60)), (Some(8), Some(0)));
    }

    #[test]
    fn a_key_does_not_use_up_the_limit_of_another() {
        let limits = MinuteLimits::new(1);
        for _ in 0..1_000 {
            limits.admit_in(7, &0);
        }
        assert_eq!(limits.admit_in(7, &1), Some(0));
        // The keys beyond the first ones share one limit.
        assert_eq!((2..10_000).filter(|key| limits.admit_in(7, key).is_some()).count(), KEYS_MAX - 1);
    }

    #[test]
    fn a_key_leaves_its_place_when_its_minute_ends() {
        let limits = MinuteLimits::new(1);
        (0..1_024).for_each(|key| assert_eq!(limits.admit_in(7, &key), Some(0)));
        assert_eq!(
            (limits.admit_in(7, &0), limits.admit_in(7, &9_998), limits.admit_in(7, &9_999)),
            (None, Some(0), None)
        );
        assert!((1_024..2_048).all(|key| limits.admit_in(8, &key) == Some(0)));
        assert_eq!(limits.admit_in(8, &9_998), Some(2), "no suppressed event is lost");
    }
}
