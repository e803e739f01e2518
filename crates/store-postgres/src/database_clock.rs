//! The clock of the database, read on this machine between two transactions.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio_postgres::Row;

use super::connection::{QueryError, column};
use clock::{MachineTime, TimeSource};
use domain::time::UnixMillis;

/// A step back of the database's clock that is reported, and that this clock follows, in microseconds. It hides smaller ones.
const STEP_MICROSECONDS: i64 = 1_000_000;

/// The most that the database's clock may be behind the newest time of a transaction, in microseconds. A failover to a server whose
/// clock is behind by less stops the time of the store until the clock has caught up; one that was ahead by more is not followed.
const BEHIND_MICROSECONDS_MAX: i64 = 60_000_000;

/// The time of a transaction, from a row of [`super::sql::CLOCK`]: not before the newest one of any engine, so that a control that
/// was refused as expired stays expired.
pub(crate) fn transaction_time(row: Option<&Row>) -> Result<i64, QueryError> {
    let row = row.ok_or_else(|| QueryError::Row("the clock has no row".to_owned()))?;
    let (read, newest): (i64, Option<i64>) = (column(row, 0)?, column(row, 1)?);
    Ok(not_before(read, newest.unwrap_or_default()))
}

fn not_before(read: i64, newest: i64) -> i64 {
    let is_behind = (0..=BEHIND_MICROSECONDS_MAX).contains(&newest.saturating_sub(read));
    if is_behind { newest } else { read }
}

/// The uptime of the machine plus the distance to the database's clock, which each transaction bounds: the clock was read
/// between the moment before the statement was sent and the moment after the answer arrived.
///
/// The result is never later than the database's clock, as far as the two run equally fast. Guards in a transaction compare
/// with the database's own clock; this one informs, and finds calls that come too late.
pub(crate) struct DatabaseClock {
    /// Microseconds.
    distance: AtomicI64,
    /// The latest time that was returned, in microseconds.
    floor: AtomicI64,
}

impl DatabaseClock {
    pub(crate) fn new() -> Self {
        Self { distance: AtomicI64::new(i64::MIN / 2), floor: AtomicI64::new(0) }
    }

    /// The microseconds of the machine's uptime.
    pub(crate) fn uptime() -> i64 {
        MachineTime.uptime_nanoseconds() / 1_000
    }

    /// Notes that the database's clock read `read` microseconds between two uptimes.
    pub(crate) fn note(&self, read: i64, sent: i64, received: i64) {
        let (least, most) = (read.saturating_sub(received), read.saturating_sub(sent));
        let before = self.distance.load(Ordering::SeqCst);
        let distance = before.max(least).min(most);
        self.distance.store(distance, Ordering::SeqCst);
        if before.saturating_sub(distance) > STEP_MICROSECONDS {
            let seconds = before.saturating_sub(distance) / 1_000_000;
            tracing::warn!(seconds, "the database's clock went back: open controls expire later by as much");
            self.floor.store(0, Ordering::SeqCst);
        }
    }

    /// The time of the database. No earlier call has returned a later one, unless the database's clock went back by more than a
    /// second.
    pub(crate) fn now(&self) -> UnixMillis {
        let now = Self::uptime().saturating_add(self.distance.load(Ordering::SeqCst));
        millis(self.floor.fetch_max(now, Ordering::SeqCst).max(now))
    }
}

/// Microseconds as whole milliseconds.
pub(crate) fn millis(microseconds: i64) -> UnixMillis {
    UnixMillis(u64::try_from(microseconds / 1_000).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_lies_between_the_bounds_of_each_answer() {
        let clock = DatabaseClock::new();
        clock.note(1_000_000, 0, 400_000);
        assert_eq!(clock.distance.load(Ordering::SeqCst), 600_000);
        clock.note(2_000_000, 1_100_000, 1_200_000);
        assert_eq!(clock.distance.load(Ordering::SeqCst), 800_000, "a faster answer is more exact");
        clock.note(3_000_000, 2_100_000, 3_000_000);
        assert_eq!(clock.distance.load(Ordering::SeqCst), 800_000, "a slow answer changes nothing");
    }

    #[test]
    fn a_clock_that_is_behind_by_less_than_a_minute_is_not_followed() {
        assert_eq!(not_before(5, 3), 5);
        assert_eq!(not_before(0, 2_000_000), 2_000_000);
        assert_eq!(not_before(0, 60_000_001), 0, "the server before was ahead");
    }

    #[test]
    fn the_time_never_goes_back_by_less_than_a_second() {
        let clock = DatabaseClock::new();
        let uptime = DatabaseClock::uptime();
        clock.note(uptime + 10_000_000, uptime, uptime);
        let before = clock.now();
        clock.note(uptime + 9_500_000, uptime, uptime);
        assert!(clock.now() >= before);
        clock.note(uptime + 1_000_000, uptime, uptime);
        assert!(clock.now() < before, "a clock that was ahead is followed");
    }
}
