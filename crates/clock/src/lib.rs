//! The clocks. A control's lifetime is measured on the store's [`SteadyClock`]; audit events and answers to callers carry
//! the wall clock's time.
//!
//! ```
//! use std::sync::Arc;
//!
//! use clock::{SteadyClock, set_time::SetTime};
//! use domain::time::UnixMillis;
//!
//! let time = SetTime::at(10_000);
//! let clock = SteadyClock::starting_at(UnixMillis(0), Box::new(Arc::clone(&time)));
//! assert_eq!(clock.now(), UnixMillis(10_000_000));
//! time.step(-3_600);
//! time.pass(1);
//! assert_eq!(clock.now(), UnixMillis(10_001_000), "a step back of the wall clock does not turn it");
//! assert_eq!(clock.wall_time(clock.now()), UnixMillis(6_401_000));
//! ```

pub mod deadline;
pub mod minute_limit;
pub mod set_time;

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use domain::time::UnixMillis;

/// Milliseconds of CLOCK_MONOTONIC, which every process of a machine shares.
pub fn monotonic_milliseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000).saturating_add(u64::try_from(now.tv_nsec / 1_000_000).unwrap_or_default())
}

/// The wall clock (CLOCK_REALTIME); zero where it is before 1970.
pub fn now() -> UnixMillis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// The two clocks of the machine. A test gives its own: [`set_time::SetTime`].
pub trait TimeSource: Send + Sync + 'static {
    /// The wall clock, in nanoseconds since 1970-01-01T00:00:00Z. A step moves it either way.
    fn wall_nanoseconds(&self) -> i64;

    /// The time since the machine started, suspends included, in nanoseconds. It never runs backwards.
    fn uptime_nanoseconds(&self) -> i64;
}

/// CLOCK_REALTIME and CLOCK_BOOTTIME of this machine (clock_gettime(2)).
pub struct MachineTime;

impl TimeSource for MachineTime {
    fn wall_nanoseconds(&self) -> i64 {
        nanoseconds(rustix::time::ClockId::Realtime)
    }

    fn uptime_nanoseconds(&self) -> i64 {
        nanoseconds(rustix::time::ClockId::Boottime)
    }
}

fn nanoseconds(clock: rustix::time::ClockId) -> i64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// A clock that never runs backwards: the uptime plus the largest distance seen between the wall clock and the uptime.
///
/// A step of the wall clock forward moves it forward: the machine may have been paused. A step back leaves it where it
/// is; from there on it runs with the uptime. So a time span measured on it is never shorter than the real one.
pub struct SteadyClock {
    source: Box<dyn TimeSource>,
    /// The largest distance seen, in nanoseconds.
    distance: AtomicI64,
}

impl SteadyClock {
    /// A clock that reads `floor` or later.
    pub fn starting_at(floor: UnixMillis, source: Box<dyn TimeSource>) -> Self {
        let floor = i64::try_from(floor.0).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        let distance = floor.saturating_sub(source.uptime_nanoseconds());
        Self { source, distance: AtomicI64::new(distance) }
    }

    /// A moment of this clock as wall time: earlier by the whole seconds by which the wall clock is behind this one.
    pub fn wall_time(&self, moment: UnixMillis) -> UnixMillis {
        let wall = self.source.wall_nanoseconds();
        let seen = wall.saturating_sub(self.source.uptime_nanoseconds());
        let behind = self.distance.load(Ordering::SeqCst).saturating_sub(seen) / 1_000_000_000;
        UnixMillis(moment.0.saturating_sub(u64::try_from(behind).unwrap_or_default().saturating_mul(1_000)))
    }

    /// The time. No earlier call, on any thread, has read a later one.
    pub fn now(&self) -> UnixMillis {
        // The wall clock first: what passes between the readings makes the distance shorter, never longer.
        let wall = self.source.wall_nanoseconds();
        let uptime = self.source.uptime_nanoseconds();
        let seen = wall.saturating_sub(uptime);
        let distance = self.distance.fetch_max(seen, Ordering::SeqCst).max(seen);
        let milliseconds = uptime.saturating_add(distance) / 1_000_000;
        UnixMillis(u64::try_from(milliseconds).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::set_time::SetTime;

    const SECOND: u64 = 1_000;

    #[test]
    fn a_step_back_does_not_stop_or_turn_the_clock() {
        let time = SetTime::at(10_000);
        let clock = SteadyClock::starting_at(UnixMillis(0), Box::new(Arc::clone(&time)));
        let before = clock.now();
        time.step(-3_600);
        assert_eq!(clock.now(), before);
        time.pass(33);
        assert_eq!(clock.now().0, before.0 + 33 * SECOND);
    }

    #[test]
    fn a_step_forward_moves_the_clock_and_its_correction_does_not() {
        let time = SetTime::at(10_000);
        let clock = SteadyClock::starting_at(UnixMillis(0), Box::new(Arc::clone(&time)));
        time.step(3_600);
        assert_eq!(clock.now().0, 13_600 * SECOND);
        time.step(-3_600);
        time.pass(1);
        assert_eq!(clock.now().0, 13_601 * SECOND);
    }

    #[test]
    fn a_moment_is_reported_as_wall_time_after_a_step_back() {
        let time = SetTime::at(10_000);
        let clock = SteadyClock::starting_at(UnixMillis(0), Box::new(Arc::clone(&time)));
        let moment = clock.now();
        assert_eq!(clock.wall_time(moment), moment);
        time.step(-3_600);
        assert_eq!(clock.wall_time(moment).0, 6_400 * SECOND);
    }

    #[test]
    fn a_clock_starts_at_its_floor() {
        let time = SetTime::at(10_000);
        let clock = SteadyClock::starting_at(UnixMillis(20_000 * SECOND), Box::new(Arc::clone(&time)));
        time.pass(5);
        assert_eq!(clock.now().0, 20_005 * SECOND);
    }

    #[test]
    fn the_machine_has_both_clocks() {
        let clock = SteadyClock::starting_at(UnixMillis(0), Box::new(MachineTime));
        let (before, wall, after) = (clock.now(), now(), clock.now());
        assert!(before <= after && wall.since(before) < Duration::from_secs(60));
    }
}
