//! Checks and counts that need no search for an order. A check finds only what is certain, so each finding is an error.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, Call, Content, End, History, Nanos, Operation, Refusal, TestPin};

/// The calls to one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineTotals {
    /// The calls that were carried out.
    pub answered: u64,
    /// The calls that were refused.
    pub refused: u64,
    /// The calls that their clients gave up.
    pub given_up: u64,
    /// The acknowledged changes of PINs, controls and tries.
    pub writes: u64,
    /// The longest time without the acknowledgement of a change, from the first call to the last recorded end.
    pub longest_gap: Nanos,
}

/// An acknowledged PIN that the card does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPin {
    /// The last call that set the card's PIN and was acknowledged.
    pub acknowledged: Call,
    /// A later call that found another PIN.
    pub found: Call,
}

/// A control under which two calls were acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReusedControl {
    /// The call that spent the control.
    pub first: Call,
    /// Another use of the control, with another block.
    pub second: Call,
}

/// More wrong PINs than the limit, with no right PIN and no reset in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExceededTries {
    /// The calls with wrong PINs or malformed blocks.
    pub wrong: Vec<Call>,
}

/// The counts and findings of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The number of cards.
    pub cards: usize,
    /// The number of faults.
    pub faults: usize,
    /// All engines together.
    pub all: EngineTotals,
    /// By the name of the engine.
    pub engines: BTreeMap<String, EngineTotals>,
    /// The acknowledged calls that set a PIN.
    pub acknowledged_pins: u64,
    /// The right PINs that were answered after the first fault.
    pub right_after_fault: u64,
    /// The cards whose last acknowledged PIN no later call compared or showed.
    pub unverified_cards: u64,
    /// The cards that do not have their last acknowledged PIN: property a2.
    pub lost_pins: Vec<LostPin>,
    /// The controls that were used twice: property a1.
    pub reused_controls: Vec<ReusedControl>,
    /// The cards whose tries exceed the limit: properties c1 to c4.
    pub exceeded_tries: Vec<ExceededTries>,
}

impl Totals {
    /// Counts the calls of a history.
    pub fn new(history: &History) -> Self {
        let cards = calls_by_card(history);
        let first_fault = history.faults.first().map_or(Nanos::MAX, |fault| fault.at);
        let is_right = |call: &&Call| matches!(call.end, End::Answered(Answer::Right { .. }));
        let right = history.calls.iter().filter(|call| call.invoked_at > first_fault).filter(is_right);
        let mut totals = Self {
            cards: cards.len(),
            faults: history.faults.len(),
            all: engine_totals(history, |_| true),
            acknowledged_pins: count(history.calls.iter().filter(|call| has_set_pin(call))),
            right_after_fault: count(right),
            ..Self::default()
        };
        for name in history.calls.iter().map(|call| &call.engine).collect::<BTreeSet<_>>() {
            totals.engines.insert(name.clone(), engine_totals(history, |call| call.engine == *name));
        }
        for calls in cards.values() {
            totals.reused_controls.extend(reused_controls(calls));
            totals.exceeded_tries.extend(exceeded_tries(calls, history));
            match last_pin(calls) {
                LastPin::NoneAcknowledged | LastPin::Found => {}
                LastPin::Unverified => totals.unverified_cards = totals.unverified_cards.saturating_add(1),
                LastPin::Lost(lost) => totals.lost_pins.push(*lost),
            }
        }
        totals
    }
}

/// The calls of each card, in the order of invocation.
pub fn calls_by_card(history: &History) -> BTreeMap<&str, Vec<&Call>> {
    let mut cards = BTreeMap::<&str, Vec<&Call>>::new();
    for call in &history.calls {
        cards.entry(&call.card).or_default().push(call);
    }
    cards
}

fn count<'a>(calls: impl Iterator<Item = &'a Call>) -> u64 {
    u64::try_from(calls.count()).unwrap_or(u64::MAX)
}

fn engine_totals(history: &History, is_counted: impl Fn(&Call) -> bool) -> EngineTotals {
    let calls = || history.calls.iter().filter(|call| is_counted(call));
    let is_write = |call: &&Call| {
        matches!(&call.end, End::Answered(answer) if !matches!(answer, Answer::PinUnchanged))
            && !matches!(call.operation, Operation::GetPinByZone)
    };
    let ends = || history.calls.iter().map(|call| call.ended_at).filter(|at| *at < Nanos::MAX);
    let start = history.calls.iter().map(|call| call.invoked_at).min().unwrap_or_default();
    let mut moments: Vec<Nanos> = calls().filter(is_write).map(|call| call.ended_at).collect();
    moments.extend([start, ends().max().unwrap_or(start)]);
    moments.sort_unstable();
    let gaps = moments.iter().zip(moments.iter().skip(1)).map(|(before, after)| after.saturating_sub(*before));
    EngineTotals {
        answered: count(calls().filter(|call| matches!(call.end, End::Answered(_)))),
        refused: count(calls().filter(|call| matches!(call.end, End::Refused(_)))),
        given_up: count(calls().filter(|call| matches!(call.end, End::GivenUp(_)))),
        writes: count(calls().filter(is_write)),
        longest_gap: gaps.max().unwrap_or_default(),
    }
}

/// Whether the call has set a PIN, and was acknowledged.
fn has_set_pin(call: &Call) -> bool {
    match call.end {
        End::Answered(Answer::PinSet) => true,
        End::Answered(Answer::Right { .. }) => matches!(call.operation, Operation::ChangePin { .. }),
        _ => false,
    }
}

/// Each control under which two calls were acknowledged that each spend it. A repeated SetPin with the same block is one use.
fn reused_controls(calls: &[&Call]) -> Vec<ReusedControl> {
    let mut uses = BTreeMap::new();
    let mut reused = Vec::new();
    for call in calls {
        let is_use = has_set_pin(call) || matches!(call.end, End::Answered(Answer::PinShown { .. }));
        let Some(control) = call.operation.control().filter(|_| is_use) else { continue };
        match uses.get(control) {
            None => {
                uses.insert(control, *call);
            }
            Some(first) if first.operation == call.operation && has_set_pin(call) && !call.operation.uses_try() => {}
            Some(first) => reused.push(ReusedControl { first: (*first).clone(), second: (*call).clone() }),
        }
    }
    reused
}

/// The wrong PINs of a card that certainly lie between two forgivenesses, where they are more than the limit.
fn exceeded_tries(calls: &[&Call], history: &History) -> Option<ExceededTries> {
    let limit = usize::try_from(history.setup.tries_per_card).unwrap_or(usize::MAX);
    let late_tries = history.setup.late_effects_ms.saturating_mul(1_000_000);
    // Each forgiveness with the time at which it may happen.
    let mut forgiven: Vec<(Nanos, Nanos)> = calls
        .iter()
        .filter_map(|call| {
            let is_try = call.operation.uses_try();
            let may_forgive = match &call.end {
                End::Answered(Answer::Right { .. } | Answer::TriesReset { .. }) => true,
                End::Answered(Answer::PinRefused) => is_try,
                // ChangePin may have found the old PIN right before.
                End::Refused(Refusal::CardChanged | Refusal::ControlNotUsable | Refusal::TzpkMissing) => is_try,
                End::Refused(_) => false,
                End::GivenUp(_) => is_try || matches!(call.operation, Operation::ResetTries { .. }),
                End::Answered(_) => false,
            };
            let is_given_up = matches!(call.end, End::GivenUp(_));
            let until = if is_given_up { call.ended_at.saturating_add(late_tries) } else { call.ended_at };
            may_forgive.then_some((call.invoked_at, until))
        })
        .collect();
    forgiven.sort_unstable();
    let is_wrong = |call: &&&Call| {
        call.operation.uses_try() && matches!(call.end, End::Answered(Answer::Wrong { .. } | Answer::Malformed))
    };
    let wrong: Vec<&Call> = calls.iter().filter(is_wrong).copied().collect();
    let mut from = 0;
    for (start, end) in forgiven.into_iter().chain([(Nanos::MAX, Nanos::MAX)]) {
        let lies_between = |call: &&&Call| call.invoked_at > from && call.ended_at < start;
        let between: Vec<Call> = wrong.iter().filter(lies_between).map(|call| (*call).clone()).collect();
        if between.len() > limit {
            return Some(ExceededTries { wrong: between });
        }
        from = from.max(end);
    }
    None
}

enum LastPin {
    NoneAcknowledged,
    Unverified,
    Found,
    Lost(Box<LostPin>),
}

/// Whether the card has its last acknowledged PIN, or one of a call that was not over by then.
fn last_pin(calls: &[&Call]) -> LastPin {
    let Some(last) = calls.iter().filter(|call| has_set_pin(call)).max_by_key(|call| call.ended_at) else {
        return LastPin::NoneAcknowledged;
    };
    let may_have_set =
        |call: &&&Call| has_set_pin(call) || (matches!(call.end, End::GivenUp(_)) && call.ended_at >= last.invoked_at);
    let overlaps = |call: &&&Call| call.ended_at >= last.invoked_at;
    let setting = calls.iter().filter(overlaps).filter(may_have_set);
    let possible: BTreeSet<TestPin> = setting.filter_map(|call| call.operation.new_pin()).collect();
    let mut result = LastPin::Unverified;
    for call in calls.iter().filter(|call| call.invoked_at > last.ended_at) {
        let is_possible = match (&call.operation, &call.end) {
            (_, End::Answered(Answer::PinShown { pin })) => possible.contains(pin),
            (Operation::VerifyPin { entered: Content::Pin(pin) }, End::Answered(Answer::Right { .. })) => {
                possible.contains(pin)
            }
            (Operation::VerifyPin { entered: Content::Pin(pin) }, End::Answered(Answer::Wrong { .. })) => {
                if possible.len() > 1 || !possible.contains(pin) {
                    continue;
                }
                false
            }
            _ => continue,
        };
        if !is_possible {
            return LastPin::Lost(Box::new(LostPin { acknowledged: (*last).clone(), found: (*call).clone() }));
        }
        result = LastPin::Found;
    }
    result
}
