//! The result of a run, for people and for the test.

use std::{collections::BTreeMap, fmt};

use history::{
    history::{Answer, Call, End, Fault, History, Nanos, Operation, Purpose, Refusal},
    report::Report,
};

use crate::program::Exit;

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
    /// The uses of a control that another use had spent, by the kind of call, as far as they were refused.
    pub refused_uses: BTreeMap<&'static str, u64>,
    /// The verifications that found the PIN locked.
    pub locked: u64,
    /// Each fault with the longest time without an acknowledged write from it to the next one, of each side.
    pub gaps: Vec<(Fault, BTreeMap<String, Nanos>)>,
    /// The longest time that a client waited for a call that it gave up.
    pub longest_wait: Nanos,
    /// The chain of each engine, with the number of its verified entries.
    pub chains: Vec<(String, Result<u64, String>)>,
    /// Answers that no run may have.
    pub unexpected: Vec<String>,
    /// The acknowledged calls without their audit event, and the controls with two.
    pub missing_events: Vec<String>,
    /// How the processes of each service ended.
    pub exits: Vec<(String, Vec<Exit>)>,
    /// The ends that no fault causes.
    pub unexpected_exits: Vec<String>,
}

impl RunReport {
    /// Whether nothing is wrong, and the clients did what a run must show.
    pub fn is_right(&self) -> bool {
        let are_chains_right = self.chains.iter().all(|(_, verified)| verified.is_ok());
        let found = [&self.unexpected, &self.missing_events, &self.unexpected_exits, &self.too_few()];
        self.report.is_right() && are_chains_right && found.iter().all(|found| found.is_empty())
    }

    /// The calls of which the run has fewer than a verdict needs: far fewer than a busy machine makes.
    pub fn too_few(&self) -> Vec<String> {
        let acknowledged = |kind| self.calls.get(kind).map_or(0, |calls| calls.acknowledged);
        let refused = |kind| self.refused_uses.get(kind).copied().unwrap_or_default();
        let counts = [
            ("acknowledged SetPin", acknowledged("SetPin"), 50),
            ("acknowledged ViewPin", acknowledged("ViewPin"), 20),
            ("acknowledged VerifyPin", acknowledged("VerifyPin"), 10),
            ("acknowledged ResetTries", acknowledged("ResetTries"), 1),
            ("acknowledged SetPinByZone", acknowledged("SetPinByZone"), 1),
            ("acknowledged ChangePin by a zone", acknowledged("ChangePin (zone)"), 1),
            ("acknowledged ChangePin by a device", acknowledged("ChangePin (device)"), 1),
            ("VerifyPin of a locked PIN", self.locked, 1),
            ("SetPin under a spent control", refused("SetPin"), 1),
            ("ViewPin under a spent control", refused("ViewPin"), 1),
            ("ChangePin under a spent control", refused("ChangePin"), 1),
        ];
        let too_few = counts.iter().filter(|(_, count, least)| count < least);
        let mut found: Vec<_> =
            too_few.map(|(what, count, least)| format!("{count} {what}, at least {least} are needed")).collect();
        if self.report.totals.unverified_cards > 0 {
            found.push("no later call compared the last PIN of a card".to_owned());
        }
        found
    }

    /// The acknowledged PINs that are lost.
    pub fn lost(&self) -> usize {
        self.report.totals.lost_pins.len()
    }
}

/// The refused uses of controls that another use had spent.
pub fn refused_uses(history: &History) -> BTreeMap<&'static str, u64> {
    let use_of = |call: &Call| match &call.operation {
        Operation::SetPin { control, block } => Some(("SetPin", control.clone(), block.number.0)),
        Operation::ViewPin { control } => Some(("ViewPin", control.clone(), call.id)),
        Operation::ChangePin { device: Some(device), .. } => Some(("ChangePin", device.control.clone(), call.id)),
        _ => None,
    };
    let is_use = |call: &&Call| {
        matches!(call.end, End::Answered(Answer::PinSet | Answer::PinShown { .. } | Answer::Right { .. }))
    };
    let mut spent = BTreeMap::new();
    for call in history.calls.iter().filter(is_use) {
        let Some((_, control, number)) = use_of(call) else { continue };
        spent.insert(control, number);
    }
    let mut refused = BTreeMap::new();
    for call in history.calls.iter().filter(|call| call.end == End::Refused(Refusal::ControlNotUsable)) {
        let Some((kind, control, number)) = use_of(call) else { continue };
        if spent.get(&control).is_some_and(|spent_by| *spent_by != number) {
            *refused.entry(kind).or_default() += 1;
        }
    }
    refused
}

/// The verifications that found the PIN locked.
pub fn locked(history: &History) -> u64 {
    history.calls.iter().map(|call| u64::from(call.end == End::Refused(Refusal::PinLocked))).sum()
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
            Operation::SetPinByZone { .. } => "SetPinByZone",
            Operation::ChangePin { device: None, .. } => "ChangePin (zone)",
            Operation::ChangePin { device: Some(_), .. } => "ChangePin (device)",
            Operation::GetPinByZone => "other",
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

/// Each fault with the longest time without an acknowledged write between it and the next fault, of each side.
pub fn gaps(history: &History) -> Vec<(Fault, BTreeMap<String, Nanos>)> {
    let mut sides = BTreeMap::<_, Vec<Nanos>>::new();
    for call in history.calls.iter().filter(|call| matches!(call.end, End::Answered(_))) {
        sides.entry(&call.engine).or_default().push(call.ended_at);
    }
    let mut end = Nanos::default();
    for writes in sides.values_mut() {
        writes.sort_unstable();
        end = end.max(writes.last().copied().unwrap_or_default());
    }
    let starts = history.faults.iter().map(|fault| fault.at);
    let ends = starts.skip(1).chain([end]);
    let gap = |(fault, until): (&Fault, Nanos)| {
        let longest = |writes: &Vec<Nanos>| {
            let within = writes.windows(2).map(|pair| pair[1].min(until).saturating_sub(pair[0].max(fault.at)));
            within.max().unwrap_or_default()
        };
        let sides = sides.iter().map(|(side, writes)| ((*side).clone(), longest(writes)));
        (fault.clone(), sides.collect())
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
        for (Fault { at, kind, node }, sides) in &self.gaps {
            let kind = format!("{kind:?}");
            let gaps: Vec<_> = sides.iter().map(|(side, gap)| format!("side {side} {:.1} s", seconds(*gap))).collect();
            let (at, gaps) = (seconds(*at), gaps.join(", "));
            writeln!(f, "{at:>6.1} s {kind:<15} {node:<9} longest time without an acknowledged write: {gaps}")?;
        }
        for (engine, verified) in &self.chains {
            match verified {
                Ok(entries) => writeln!(f, "chain of {engine}: {entries} entries verified")?,
                Err(error) => writeln!(f, "chain of {engine}: {error}")?,
            }
        }
        for (service, exits) in self.exits.iter().filter(|(_, exits)| !exits.is_empty()) {
            writeln!(f, "{service} ended: {exits:?}")?;
        }
        for (kind, refused) in &self.refused_uses {
            writeln!(f, "{refused} uses by {kind} of a spent control refused")?;
        }
        writeln!(f, "{} verifications of a locked PIN", self.locked)?;
        for too_few in self.too_few() {
            writeln!(f, "too few: {too_few}")?;
        }
        for unexpected in self.unexpected.iter().chain(&self.unexpected_exits).chain(&self.missing_events) {
            writeln!(f, "unexpected: {unexpected}")?;
        }
        write!(f, "{}", self.report)
    }
}

#[allow(clippy::cast_precision_loss, reason = "a time for people")]
fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}
