//! The metric of calls that a limit refused.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
};

use proto::reason::Reason;

/// The number of calls that each limit refused.
#[derive(Clone)]
pub(super) struct RefusedCalls(Family<[(&'static str, LimitLabel); 1], Counter>);

impl RefusedCalls {
    /// The metric, for a registry.
    pub(super) fn family(&self) -> Family<[(&'static str, LimitLabel); 1], Counter> {
        self.0.clone()
    }

    /// Counts a call that was refused for this reason.
    pub(super) fn count(&self, reason: Reason) {
        self.0.get_or_create(&[("reason", LimitLabel(reason))]).inc();
    }
}

impl Default for RefusedCalls {
    fn default() -> Self {
        let calls = Self(Family::default());
        // Each limit is shown from the start, with 0.
        for reason in LimitLabel::SHOWN {
            drop(calls.0.get_or_create(&[("reason", LimitLabel(reason))]));
        }
        calls
    }
}

/// The reason of a call that was refused with RESOURCE_EXHAUSTED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LimitLabel(Reason);

impl LimitLabel {
    const SHOWN: [Reason; 11] = [
        Reason::TenantRate,
        Reason::CardRate,
        Reason::ControlCap,
        Reason::UnregisteredCards,
        Reason::Busy,
        Reason::TokenBusy,
        Reason::StoreLowOnSpace,
        Reason::Counting,
        Reason::ExportsBusy,
        Reason::StreamsBusy,
        Reason::WrongPinRate,
    ];
}

impl EncodeLabelValue for LimitLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_names_the_labels_of_the_metric() {
        let documentation = include_str!("../../../docs/limits.md");
        let line = documentation.lines().find(|line| line.contains("`pinseal_calls_refused_total")).unwrap();
        let is_code = |word: &&str| word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let mut codes: Vec<_> = line.split('`').skip(1).step_by(2).filter(is_code).collect();
        let mut labels = LimitLabel::SHOWN.map(|reason| reason.as_str());
        codes.sort_unstable();
        labels.sort_unstable();
        assert_eq!(codes, labels);
    }
}
