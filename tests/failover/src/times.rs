//! How long the harness waits, and the times of the services that it waits for.

use std::time::Duration;

/// How long a harness waits for a condition: far longer than any machine needs.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// The lifetime of a control, in seconds.
pub const LIFETIME_SECONDS: u64 = 30;
/// The lease of an engine's name, in seconds.
pub const LEASE_SECONDS: u64 = 3;
