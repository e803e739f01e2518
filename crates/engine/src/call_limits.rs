//! The limits on the rate of calls, by tenant and by card: a tenant's calls may come through several edges.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clock::minute_limit::{MinuteLimit, MinuteLimits};
use domain::caller::Caller;
use domain::card::{CardKey, Tenant};
use domain::control::Denied;
use net::RateLimit;
use thiserror::Error;

use super::refused_calls::RefusedCalls;

/// The most log lines of calls refused by a limit within a minute.
const LINES_PER_MINUTE_MAX: u64 = 60;

/// The most audit entries of one tenant's requests under unknown controls within a minute: a client can invent any number of
/// controls.
const UNKNOWN_CONTROLS_PER_MINUTE_MAX: u64 = 60;

/// The limits that an operator configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// The most calls that name one tenant within a second.
    pub per_tenant_per_second: u32,
    /// The most calls about one card within a minute.
    pub per_card_per_minute: u32,
    /// The most items in streams of one tenant within a second.
    pub stream_items_per_tenant_per_second: u32,
    /// The most wrong PINs of one caller and tenant within a minute.
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
    pub(crate) unknown_controls: MinuteLimits<Tenant>,
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

    /// Admits a caller that verifies a PIN: one whose wrong PINs are within the limit.
    ///
    /// # Errors
    /// The time until the caller may verify a PIN.
    pub(crate) fn admit_verification(&self, caller: &Caller) -> Result<(), Duration> {
        self.wrong_pins.admit(caller)
    }

    /// Counts a wrong PIN, or a malformed block in its place.
    pub(crate) fn count_wrong_pin(&self, caller: &Caller) {
        self.wrong_pins.count(caller);
    }
}

/// The limit on wrong PINs: a caller who guesses could lock the cards of strangers, each by a few tries. A caller that has
/// reached the limit verifies nothing, so that no try of a card is used.
struct WrongPins {
    counted: RateLimit<(Arc<str>, Tenant)>,
    /// The callers that have reached the limit, and until when.
    barred: Mutex<HashMap<(Arc<str>, Tenant), Instant>>,
}

impl WrongPins {
    fn new(per_minute: u32) -> Self {
        Self { counted: RateLimit::per_minute(per_minute), barred: Mutex::default() }
    }

    fn admit(&self, caller: &Caller) -> Result<(), Duration> {
        let mut barred = self.barred();
        if barred.is_empty() {
            return Ok(());
        }
        let key = (Arc::clone(&caller.peer), caller.tenant);
        let left = barred.get(&key).and_then(|until| until.checked_duration_since(Instant::now()));
        match left {
            Some(retry_after) if !retry_after.is_zero() => Err(retry_after),
            _ => {
                barred.remove(&key);
                Ok(())
            }
        }
    }

    fn count(&self, caller: &Caller) {
        let key = (Arc::clone(&caller.peer), caller.tenant);
        if let Err(exceeded) = self.counted.admit(&key) {
            self.barred().insert(key, Instant::now() + exceeded.retry_after);
        }
    }

    fn barred(&self) -> MutexGuard<'_, HashMap<(Arc<str>, Tenant), Instant>> {
        self.barred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use domain::{caller::AuditUser, request_id::RequestId};

    use super::*;

    #[test]
    fn wrong_pins_bar_their_caller_and_no_other() {
        let caller = |peer: &str, tenant: &str| Caller {
            peer: peer.into(),
            tenant: Tenant::parse(tenant).unwrap(),
            audit_user: AuditUser::parse("it").unwrap(),
            request: RequestId::random(),
        };
        let wrong = WrongPins::new(3);
        let host = caller("host", "bank");
        for _ in 0..3 {
            wrong.count(&host);
            assert_eq!(wrong.admit(&host), Ok(()));
        }
        wrong.count(&host);
        assert!(wrong.admit(&host).is_err_and(|retry_after| retry_after <= Duration::from_secs(20)));
        for other in [caller("host", "other"), caller("second", "bank")] {
            assert_eq!(wrong.admit(&other), Ok(()));
        }
    }
}
