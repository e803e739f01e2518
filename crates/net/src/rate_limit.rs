//! Limits on the rate of calls, one for each key: a client, a tenant, a card.

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use governor::{DefaultKeyedRateLimiter, Quota, clock::Clock};
use thiserror::Error;

/// The number of calls after which the keys that have their whole quota again are removed. It bounds the memory: at most so
/// many keys, and those whose quota is not whole, which are at most the calls of one period.
const CALLS_PER_SWEEP: u32 = 65_536;

/// A limit on the rate of calls of each key. The quota of a key is the calls of one period: it may be used at once, and is
/// renewed evenly (GCRA, the algorithm of ATM traffic control, ITU-T I.371).
///
/// ```
/// let limit = net::RateLimit::per_minute(2);
/// assert!(limit.admit(&"card 1").is_ok() && limit.admit(&"card 1").is_ok());
/// assert!(limit.admit(&"card 1").is_err_and(|exceeded| exceeded.retry_after.as_secs() <= 30));
/// assert!(limit.admit(&"card 2").is_ok());
/// ```
pub struct RateLimit<K: Hash + Eq + Clone> {
    calls: DefaultKeyedRateLimiter<K>,
    calls_since_sweep: AtomicU32,
}

/// The quota of a key is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many calls: try again after {} ms", .retry_after.as_millis())]
pub struct RateExceeded {
    /// The time until the key may make one more call.
    pub retry_after: Duration,
}

impl<K: Hash + Eq + Clone> RateLimit<K> {
    /// At most `calls` calls a second, at least 1.
    pub fn per_second(calls: u32) -> Self {
        Self::new(Quota::per_second(at_least_one(calls)))
    }

    /// At most `calls` calls a minute, at least 1.
    pub fn per_minute(calls: u32) -> Self {
        Self::new(Quota::per_minute(at_least_one(calls)))
    }

    fn new(quota: Quota) -> Self {
        Self { calls: DefaultKeyedRateLimiter::keyed(quota), calls_since_sweep: AtomicU32::new(0) }
    }

    /// Counts a call of this key.
    ///
    /// # Errors
    /// [`RateExceeded`]: the quota of the key is used up. A refused call does not count.
    pub fn admit(&self, key: &K) -> Result<(), RateExceeded> {
        if self.calls_since_sweep.fetch_add(1, Ordering::Relaxed) >= CALLS_PER_SWEEP {
            self.calls_since_sweep.store(0, Ordering::Relaxed);
            self.calls.retain_recent();
            self.calls.shrink_to_fit();
        }
        let checked = self.calls.check_key(key);
        checked.map_err(|until| RateExceeded { retry_after: until.wait_time_from(self.calls.clock().now()) })
    }
}

fn at_least_one(calls: u32) -> NonZeroU32 {
    NonZeroU32::new(calls).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_quota() {
        let limit = RateLimit::per_minute(60);
        // The quota is renewed by one call a second while this test runs.
        let admitted = (0..10_000).filter(|_| limit.admit(&1).is_ok()).count();
        assert!((60..10_000).contains(&admitted), "{admitted}");
        assert!(limit.admit(&2).is_ok());
    }

    #[test]
    fn keys_with_a_whole_quota_are_removed() {
        let limit = RateLimit::per_second(1_000_000);
        for key in 0..4 * CALLS_PER_SWEEP {
            limit.admit(&key).unwrap();
        }
        let keys = limit.calls.len();
        assert!(keys <= 2 * CALLS_PER_SWEEP as usize, "{keys}");
    }
}
