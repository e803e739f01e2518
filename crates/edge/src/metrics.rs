//! Metrics for Prometheus: the requests that each limit refused. No label may contain data of a client, a card or a request.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::api_error::ApiError;

/// The number of requests that each limit refused.
#[derive(Clone)]
pub(super) struct RefusedRequests(Family<[(&'static str, Limit); 1], Counter>);

impl RefusedRequests {
    /// Counts a request that this limit refused.
    pub(super) fn count(&self, limit: Limit) {
        self.0.get_or_create(&[("reason", limit)]).inc();
    }

    /// The registry with this metric.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("pinseal_edge");
        registry.register("requests_refused", "Requests refused by a limit of the edge", self.0.clone());
        registry
    }
}

impl Default for RefusedRequests {
    fn default() -> Self {
        let requests = Self(Family::default());
        // Each limit is shown from the start, with 0.
        for limit in Limit::ALL {
            drop(requests.0.get_or_create(&[("reason", limit)]));
        }
        requests
    }
}

/// A limit of the edge that refuses requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Limit {
    /// The limit by the configuration key `requests_per_client_per_second_max`.
    ClientRate,
    /// The limit by the configuration key `requests_per_client_max`.
    Client,
    /// The limit by the configuration key `requests_per_tenant_max`.
    Tenant,
    /// The limit by the configuration key `requests_max`.
    All,
    /// The time for a body to arrive.
    BodyTime,
    /// The failed exchanges of controls of one network or page within a minute.
    Exchanges,
    /// The requests of one session of a page.
    PageSession,
}

impl Limit {
    const ALL: [Self; 7] =
        [Self::ClientRate, Self::Client, Self::Tenant, Self::All, Self::BodyTime, Self::Exchanges, Self::PageSession];
}

impl Limit {
    /// The error that a refused request is answered with.
    pub(super) fn error(self) -> ApiError {
        match self {
            Self::ClientRate => ApiError::CLIENT_RATE,
            Self::Client => ApiError::CLIENT_BUSY,
            Self::Tenant => ApiError::TENANT_BUSY,
            Self::All => ApiError::BUSY,
            Self::BodyTime => ApiError::BODY_TIMEOUT,
            Self::Exchanges => ApiError::EXCHANGE_RATE,
            Self::PageSession => ApiError::PAGE_SESSION_RATE,
        }
    }
}

/// The errorCode of the answer.
impl EncodeLabelValue for Limit {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        EncodeLabelValue::encode(&self.error().code(), encoder)
    }
}

#[cfg(test)]
mod tests {
    use net::metrics_server::exposition;

    use super::*;

    #[test]
    fn each_limit_counts_its_refused_requests() {
        let refused = RefusedRequests::default();
        refused.count(Limit::Client);
        let text = exposition(&refused.registry()).unwrap();
        for line in [
            "pinseal_edge_requests_refused_total{reason=\"CLIENT_BUSY\"} 1",
            "pinseal_edge_requests_refused_total{reason=\"BODY_TIMEOUT\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }

    #[test]
    fn the_documentation_names_the_labels_of_the_metric() {
        let documentation = include_str!("../../../docs/limits.md");
        let line = documentation.lines().find(|line| line.contains("`pinseal_edge_requests_refused_total")).unwrap();
        let is_code = |word: &&str| word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let mut codes: Vec<_> = line.split('`').skip(1).step_by(2).filter(is_code).collect();
        let mut labels = Limit::ALL.map(|limit| limit.error().code());
        codes.sort_unstable();
        labels.sort_unstable();
        assert_eq!(codes, labels);
    }
}
