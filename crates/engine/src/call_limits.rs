//! The limits on the rate of calls, by tenant and by card: a tenant's calls may come through several edges.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use audit::entry::Action;
use clock::minute_limit::{MinuteLimit, MinuteLimits};
use domain::caller::Caller;
use domain::card::{CardKey, Tenant};
use domain::control::Denied;
use net::RateLimit;
use thiserror::Error;

use super::refused_calls::RefusedCalls;

/// The most log lines of calls refused by a limit within a minute.
const LINES_PER_MINUTE_MAX: u64 = 60;

/// The most audit entries of one tenant's requests of one action under unknown controls within a minute: a client can invent
/// any number of controls. A stranger can do so at a page, so the entries of StartPage use up none of other actions.
const UNKNOWN_CONTROLS_PER_MINUTE_MAX: u64 = 60;

const MINUTE: Duration = Duration::from_secs(60);

/// The limits that an operator configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// The most calls that name one tenant within a second.
    pub per_tenant_per_second: u32,
    /// The most calls about one card within a minute.
    pub per_card_per_minute: u32,
    /// The most items in streams of one tenant within a second.
    pub stream_items_per_tenant_per_second: u32,
    /// The most tries of one caller and tenant within a minute whose PIN was not right.
    pub wrong_pins_per_caller_per_minute: u32,
}

/// Counts calls and refuses those beyond a limit. All threads of the engine share one.
pub(crate) struct CallAdmission {
    tenants: RateLimit<Tenant>,
    cards: RateLimit<CardKey>,
    items: RateLimit<Tenant>,
    wrong_pins: WrongPins,
    /// The number of refused calls, by limit; a metric.
    pub(crate) refused: RefusedCalls,
    /// Admits the log lines of refused calls.
    pub(crate) lines: MinuteLimit,
    /// Admits the audit entries of requests under unknown controls.
    pub(crate) unknown_controls: MinuteLimits<(Tenant, Action)>,
}

/// The tenant has no call left in this second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this tenant makes too many calls a second: send fewer")]
pub(crate) struct TenantRate {
    /// The time until the tenant may make one more call.
    pub(crate) retry_after: Duration,
}

impl CallAdmission {
    pub(crate) fn new(limits: &CallLimits, refused: RefusedCalls) -> Self {
        Self {
            tenants: RateLimit::per_second(limits.per_tenant_per_second),
            cards: RateLimit::per_minute(limits.per_card_per_minute),
            items: RateLimit::per_second(limits.stream_items_per_tenant_per_second),
            wrong_pins: WrongPins::new(limits.wrong_pins_per_caller_per_minute),
            refused,
            lines: MinuteLimit::new(LINES_PER_MINUTE_MAX),
            unknown_controls: MinuteLimits::new(UNKNOWN_CONTROLS_PER_MINUTE_MAX),
        }
    }

    /// Counts a call that names this tenant.
    pub(crate) fn admit_tenant(&self, tenant: &Tenant) -> Result<(), TenantRate> {
        self.tenants.admit(tenant).map_err(|exceeded| TenantRate { retry_after: exceeded.retry_after })
    }

    /// Counts a call about this card.
    pub(crate) fn admit_card(&self, card: &CardKey) -> Result<(), Denied> {
        self.cards.admit(card).map_err(|exceeded| Denied::CardRate { retry_after: exceeded.retry_after })
    }

    /// Counts an item in a stream of this tenant.
    ///
    /// # Errors
    /// The time until the tenant may have one more.
    pub(crate) fn admit_item(&self, tenant: &Tenant) -> Result<(), Duration> {
        self.items.admit(tenant).map_err(|exceeded| exceeded.retry_after)
    }

    /// Charges a caller for a try, before the try is reserved: concurrent calls have no more tries than the limit.
    ///
    /// # Errors
    /// The time until the caller may verify a PIN.
    pub(crate) fn charge_try(&self, caller: &Caller) -> Result<(), Duration> {
        self.wrong_pins.charge(caller, Instant::now())
    }

    /// Returns the charge for a try with a right PIN, or for a try that was not reserved.
    pub(crate) fn refund_try(&self, caller: &Caller) {
        self.wrong_pins.refund(caller, Instant::now());
    }
}

/// The limit on wrong PINs: a caller who guesses could lock the cards of strangers, each by a few tries. The quota of a caller
/// is renewed evenly (GCRA, as [`RateLimit`]), and each try is charged until its PIN is right.
struct WrongPins {
    /// The time by which a charge is renewed.
    cost: Duration,
    /// When the quota of a caller is whole again; absent for a whole quota.
    whole_at: Mutex<HashMap<(Arc<str>, Tenant), Instant>>,
}

impl WrongPins {
    fn new(per_minute: u32) -> Self {
        Self { cost: MINUTE / per_minute.max(1), whole_at: Mutex::default() }
    }

    fn charge(&self, caller: &Caller, now: Instant) -> Result<(), Duration> {
        let mut callers = self.callers();
        let whole_at = callers.entry((Arc::clone(&caller.peer), caller.tenant)).or_insert(now);
        let charged = (*whole_at).max(now) + self.cost;
        match charged.checked_duration_since(now + MINUTE) {
            Some(retry_after) if !retry_after.is_zero() => Err(retry_after),
            _ => {
                *whole_at = charged;
                Ok(())
            }
        }
    }

    fn refund(&self, caller: &Caller, now: Instant) {
        if let Entry::Occupied(mut whole_at) = self.callers().entry((Arc::clone(&caller.peer), caller.tenant)) {
            match whole_at.get().checked_sub(self.cost).filter(|whole_at| *whole_at > now) {
                Some(refunded) => drop(whole_at.insert(refunded)),
                None => drop(whole_at.remove()),
            }
        }
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<(Arc<str>, Tenant), Instant>> {
        self.whole_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use domain::{caller::AuditUser, request_id::RequestId};

    use super::*;

    fn caller(peer: &str, tenant: &str) -> Caller {
        Caller {
            peer: peer.into(),
            tenant: Tenant::parse(tenant).unwrap(),
            audit_user: AuditUser::parse("it").unwrap(),
            request: RequestId::random(),
        }
    }

    #[test]
    fn wrong_pins_bar_their_caller_and_no_other() {
        let (wrong, host, now) = (WrongPins::new(3), caller("host", "bank"), Instant::now());
        for _ in 0..3 {
            assert_eq!(wrong.charge(&host, now), Ok(()));
        }
        assert_eq!(wrong.charge(&host, now), Err(Duration::from_secs(20)));
        for other in [caller("host", "other"), caller("second", "bank")] {
            assert_eq!(wrong.charge(&other, now), Ok(()));
        }
        let later = now + Duration::from_secs(20);
        assert_eq!(wrong.charge(&host, later), Ok(()));
        assert!(wrong.charge(&host, later).is_err());
    }

    #[test]
    fn a_refunded_try_leaves_the_quota_as_it_was() {
        let (wrong, host, now) = (WrongPins::new(3), caller("host", "bank"), Instant::now());
        for _ in 0..1_000 {
            assert_eq!(wrong.charge(&host, now), Ok(()));
            wrong.refund(&host, now);
        }
        assert!(wrong.callers().is_empty(), "a whole quota needs no row");
        wrong.refund(&host, now);
        assert_eq!((0..10).filter(|_| wrong.charge(&host, now).is_ok()).count(), 3);
    }

    #[test]
    fn concurrent_tries_are_no_more_than_the_quota() {
        let (wrong, host) = (WrongPins::new(100), caller("host", "bank"));
        let now = Instant::now();
        let charge = || (0..100).filter(|_| wrong.charge(&host, now).is_ok()).count();
        let charged: usize = std::thread::scope(|scope| {
            let threads = [(); 10].map(|()| scope.spawn(charge));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(charged, 100);
    }
}
