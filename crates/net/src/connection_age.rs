//! The maximum age of a connection, after which a revoked certificate or a removed address is of no more use.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use config::{ConfigError, within};

/// The maximum age of a connection of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionAge(Duration);

impl Default for ConnectionAge {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl ConnectionAge {
    /// The age without a configured value: ten minutes.
    pub const DEFAULT: Self = Self(Duration::from_secs(600));

    /// Checks the value of a configuration.
    ///
    /// # Errors
    /// The number is not 1 to 86400.
    pub fn from_seconds(seconds: u64) -> Result<Self, ConfigError> {
        Ok(Self(Duration::from_secs(within("connection_age_seconds_max", seconds, 1..=86_400)?)))
    }

    /// The value of a configuration.
    pub fn seconds(self) -> u64 {
        self.0.as_secs()
    }

    /// The age at which one connection closes: a random 90 to 100 % of the maximum, so that connections which began together
    /// do not all end together.
    pub fn of_one_connection(self) -> Duration {
        let thousandths = RandomState::new().hash_one(0_u8) % 100;
        self.0.saturating_sub(self.0 / 1_000 * u32::try_from(thousandths).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ages_differ_and_none_is_above_the_maximum() {
        let max = ConnectionAge::default();
        let ages: BTreeSet<_> = (0..1_000).map(|_| max.of_one_connection()).collect();
        assert!(ages.len() > 10, "{ages:?}");
        assert!(ages.iter().all(|age| (Duration::from_secs(540)..=max.0).contains(age)), "{ages:?}");
    }
}
