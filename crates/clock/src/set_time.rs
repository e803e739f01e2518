//! Clocks for tests.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use crate::TimeSource;

/// Clocks that a test moves.
pub struct SetTime {
    wall: AtomicI64,
    uptime: AtomicI64,
}

impl SetTime {
    /// Sets both clocks to this second.
    pub fn at(seconds: i64) -> Arc<Self> {
        let nanoseconds = || AtomicI64::new(seconds * 1_000_000_000);
        Arc::new(Self { wall: nanoseconds(), uptime: nanoseconds() })
    }

    /// Lets time pass on both clocks.
    pub fn pass(&self, seconds: i64) {
        self.step(seconds);
        self.uptime.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }

    /// Steps the wall clock alone, either way.
    pub fn step(&self, seconds: i64) {
        self.wall.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }
}

impl TimeSource for Arc<SetTime> {
    fn wall_nanoseconds(&self) -> i64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn uptime_nanoseconds(&self) -> i64 {
        self.uptime.load(Ordering::SeqCst)
    }
}
