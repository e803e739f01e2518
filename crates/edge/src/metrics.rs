//! Metrics for Prometheus: the requests that each limit refused. No label may contain data of a client, a card or a request.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// The number of requests that each limit refused.
#[derive(Clone)]
pub(super) struct RefusedRequests(Family<[(&'static str, Limit); 1], Counter>);

impl RefusedRequests {
    /// Counts a request that this limit refused.
    pub(super) fn count(&self, limit: Limit) {
        self.0.get_or_create(&[("limit", limit)]).inc();
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
            drop(requests.0.get_or_create(&[("limit", limit)]));
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
}

impl Limit {
    const ALL: [Self; 5] = [Self::ClientRate, Self::Client, Self::Tenant, Self::All, Self::BodyTime];
}

impl EncodeLabelValue for Limit {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Self::ClientRate => "client_rate",
            Self::Client => "client",
            Self::Tenant => "tenant",
            Self::All => "all",
            Self::BodyTime => "body_time",
        };
        EncodeLabelValue::encode(&name, encoder)
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
            "pinseal_edge_requests_refused_total{limit=\"client\"} 1",
            "pinseal_edge_requests_refused_total{limit=\"body_time\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }
}
