//! The deadline of a call: from this moment on the caller does not wait. Every step of the call checks it first.

use std::time::Duration;

use crate::monotonic_milliseconds;

tokio::task_local! {
    static DEADLINE: Option<Deadline>;
}

/// The deadline of a call, in milliseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// The deadline `time` from now.
    pub fn within(time: Duration) -> Self {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self(monotonic_milliseconds().saturating_add(time))
    }

    /// The deadline in milliseconds of CLOCK_MONOTONIC.
    pub fn monotonic_milliseconds(self) -> u64 {
        self.0
    }

    /// Whether the deadline has passed.
    pub fn has_passed(self) -> bool {
        monotonic_milliseconds() >= self.0
    }

    /// The deadline of the call that this task serves; `None` for a call without a deadline and a task of the engine itself.
    pub fn of_this_call() -> Option<Self> {
        DEADLINE.try_with(|deadline| *deadline).ok().flatten()
    }
}

/// Runs a call under its deadline, which [`Deadline::of_this_call`] returns inside it.
///
/// No `async fn`: that would keep the future of the call twice. The same is true of every function that gets such a future.
pub fn under<F: Future>(deadline: Option<Deadline>, call: F) -> impl Future<Output = F::Output> {
    DEADLINE.scope(deadline, call)
}

/// Reads the time of a `grpc-timeout` header; `None` for malformed text. The header is up to 8 digits and a unit of H, M, S, m, u or n (gRPC over HTTP/2, "Requests").
pub fn parse_grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let well_formed = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count = digits.parse().ok().filter(|_| well_formed)?;
    match unit {
        "H" => Some(Duration::from_secs(u64::saturating_mul(count, 3_600))),
        "M" => Some(Duration::from_secs(u64::saturating_mul(count, 60))),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_in_every_unit() {
        for (text, time) in [
            ("2H", Some(7_200_000)),
            ("3M", Some(180_000)),
            ("4S", Some(4_000)),
            ("99999999m", Some(99_999_999)),
            ("7000u", Some(7)),
            ("8000000n", Some(8)),
            ("", None),
            ("S", None),
            ("5", None),
            ("123456789m", None),
            ("+1S", None),
            ("1é", None),
        ] {
            assert_eq!(parse_grpc_timeout(text), time.map(Duration::from_millis), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_call_knows_its_deadline_and_no_other_task_does() {
        let deadline = Deadline::within(Duration::from_secs(3_600));
        assert_eq!(under(Some(deadline), async { Deadline::of_this_call() }).await, Some(deadline));
        assert_eq!(Deadline::of_this_call(), None);
        assert!(!deadline.has_passed() && Deadline::within(Duration::ZERO).has_passed());
    }
}
