//! The result of a run, for people and for the test.

use std::{collections::BTreeMap, fmt};

use history::{
    history::{End, Fault, History, Nanos, Operation, Purpose},
    report::Report,
};

/// The calls of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
}

/// The result of a run.
pub struct RunReport {
    pub report: Report,
    pub calls: BTreeMap<&'static str, Calls>,
    /// Each fault with the longest time without an acknowledged write from it to the next one.
    pub gaps: Vec<(Fault, Nanos)>,
    /// The longest time that a client waited for a call that it gave up.
    pub longest_wait: Nanos,
    /// The chain of each engine, with the number of its verified entries.
    pub chains: Vec<(String, Result<u64, String>)>,
    /// Answers that no run may have.
    pub unexpected: Vec<String>,
    /// How the processes of each service ended.
    pub exits: Vec<(String, Vec<String>)>,
}

impl RunReport {
    /// Whether nothing is wrong.
    pub fn is_right(&self) -> bool {
        let are_chains_right = self.chains.iter().all(|(_, verified)| verified.is_ok());
        self.report.is_right() && are_chains_right && self.unexpected.is_empty()
    }

    /// The acknowledged PINs that are lost.
    pub fn lost(&self) -> usize {
        self.report.totals.lost_pins.len()
    }
}

/// The calls by kind.
pub fn calls_by_kind(history: &History) -> BTreeMap<&'static str, Calls> {
    let mut kinds = BTreeMap::<_, Calls>::new();
    for call in &history.calls {
        let kind = match call.operation {
            Operation::OpenControl { purpose: Purpose::SetPin } => "OpenControl (set)",
            Operation::OpenControl { purpose: Purpose::ViewPin } => "OpenControl (view)",
            Operation::IssueTzpk { .. } => "IssueTzpk",
            Operation::SetPin { .. } => "SetPin",
            Operation::ViewPin { .. } => "ViewPin",
            Operation::VerifyPin { .. } => "VerifyPin",
            Operation::ResetTries { .. } => "ResetTries",
            Operation::SetPinByZone { .. } | Operation::GetPinByZone | Operation::ChangePin { .. } => "other",
        };
        let calls = kinds.entry(kind).or_default();
        let count = match call.end {
            End::Answered(_) => &mut calls.acknowledged,
            End::Refused(_) => &mut calls.refused,
            End::GivenUp(_) => &mut calls.unknown,
        };
        *count += 1;
    }
    kinds
}

/// The longest time that a client waited for a call that it gave up.
pub fn longest_wait(history: &History) -> Nanos {
    let given_up =
        history.calls.iter().filter(|call| matches!(call.end, End::GivenUp(_)) && call.ended_at < Nanos::MAX);
    given_up.map(|call| call.ended_at - call.invoked_at).max().unwrap_or_default()
}

/// Each fault with the longest time without an acknowledged write between it and the next fault.
pub fn gaps(history: &History) -> Vec<(Fault, Nanos)> {
    let answered = history.calls.iter().filter(|call| matches!(call.end, End::Answered(_)));
    let mut writes: Vec<_> = answered.map(|call| call.ended_at).collect();
    writes.sort_unstable();
    let end = writes.last().copied().unwrap_or_default();
    let starts = history.faults.iter().map(|fault| fault.at);
    let ends = starts.skip(1).chain([end]);
    let gap = |(fault, until): (&Fault, Nanos)| {
        let within = writes.windows(2).map(|pair| pair[1].min(until).saturating_sub(pair[0].max(fault.at)));
        (fault.clone(), within.max().unwrap_or_default())
    };
    history.faults.iter().zip(ends).map(gap).collect()
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kind of call         acknowledged  refused  unknown")?;
        for (kind, Calls { acknowledged, refused, unknown }) in &self.calls {
            writeln!(f, "{kind:<20} {acknowledged:>12} {refused:>8} {unknown:>8}")?;
        }
        writeln!(f, "the client of an unknown call waited {:.1} s at most", seconds(self.longest_wait))?;
        for (Fault { at, kind, node }, gap) in &self.gaps {
            let kind = format!("{kind:?}");
            let (at, gap) = (seconds(*at), seconds(*gap));
            writeln!(f, "{at:>6.1} s {kind:<15} {node:<9} longest time without an acknowledged write {gap:.1} s")?;
        }
        for (engine, verified) in &self.chains {
            match verified {
                Ok(entries) => writeln!(f, "chain of {engine}: {entries} entries verified")?,
                Err(error) => writeln!(f, "chain of {engine}: {error}")?,
            }
        }
        for (service, exits) in self.exits.iter().filter(|(_, exits)| !exits.is_empty()) {
            writeln!(f, "{service} ended: {}", exits.join(", "))?;
        }
        for unexpected in &self.unexpected {
            writeln!(f, "unexpected: {unexpected}")?;
        }
        write!(f, "{}", self.report)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a time for people")]
fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}
