//! The limits on the rate of calls, by tenant and by card: a tenant's calls may come through several edges.

use std::time::Duration;

use clock::minute_limit::{MinuteLimit, MinuteLimits};
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
}

/// Counts calls and refuses those beyond a limit. All threads of the engine share one.
pub(crate) struct CallAdmission {
    tenants: RateLimit<Tenant>,
    cards: RateLimit<CardKey>,
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
}
