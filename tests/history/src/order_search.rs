//! Searches an order of a card's calls that [`CardSpec`] allows.
//!
//! The search is that of Wing and Gong (1993) with Lowe's improvements (2017): it follows the calls in the order of time and keeps
//! every state that the card may be in, with the calls that have not taken effect. When a call ends for its client, each state
//! must be reached in which the call has taken effect. If no state is left, no order of the calls up to here explains the
//! answers.
//!
//! The rules are stricter than linearizability in one point, [`LateEffects`]: a call that its client gave up may take effect later,
//! but not after a later acknowledged call.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;

use crate::card_spec::{CardLimits, CardSpec, Effect, Moment, Outcome};
use crate::history::{Answer, Call, ControlName, End, Nanos, Operation, Refusal, Setup};

/// After which acknowledged calls a given-up call may not take effect any more. The acknowledged call was invoked after the
/// client gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateEffects {
    /// A given-up call sets no PIN after a call that set or confirmed a PIN, and changes no control after a call that changed this
    /// control. These are the properties a2, b2 and b3 of the protocol of many engines. Within [`Setup::late_effects_ms`] a
    /// try may be reserved or settled late, which forgives no later try, and the PIN that stands may be confirmed late, which
    /// closes newer controls.
    NotAfterAcknowledgedChange,
    /// A given-up call changes nothing after any acknowledged call about its card. The protocol allows such an effect after a
    /// call that only opened a control, or only read.
    NotAfterAcknowledgedCall,
}

/// How the search works.
#[derive(Clone, Copy, Debug)]
pub struct SearchOptions {
    /// When given-up calls may take effect.
    pub late_effects: LateEffects,
    /// The most states that one step of the search visits. Beyond, the search gives up.
    pub states_max: usize,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self { late_effects: LateEffects::NotAfterAcknowledgedChange, states_max: 200_000 }
    }
}

/// The result of a search.
#[derive(Debug)]
pub enum Verdict {
    /// An order of the calls explains every answer.
    Explained,
    /// No order of the calls explains every answer.
    NoOrder(NoOrder),
    /// The search gave up: the card may be right or wrong.
    TooMuchConcurrency {
        /// The call at whose end the search gave up.
        call: Box<Call>,
        /// The states that were visited.
        states: usize,
    },
}

/// A history that no order of its calls explains.
#[derive(Debug)]
pub struct NoOrder {
    /// The calls up to the end of the last one: the shortest prefix. Among them are calls that had not ended.
    pub prefix: Vec<Call>,
    /// The call that ended last.
    pub unexplained: Box<Call>,
    /// States in which the card may have been before, at most eight.
    pub states_before: Vec<String>,
}

impl fmt::Display for NoOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "No order of these calls about card {} explains their answers:", self.unexplained.card)?;
        for call in &self.prefix {
            let mark = if call.id == self.unexplained.id { '>' } else { ' ' };
            writeln!(f, "{mark} {call}")?;
        }
        writeln!(f, "The marked answer is not possible. Before it, the card had:")?;
        for state in &self.states_before {
            writeln!(f, "- {state}")?;
        }
        Ok(())
    }
}

/// A state of the card with the calls that have not taken effect.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Branch {
    card: CardSpec,
    /// By index, in the order of invocation.
    pending: Vec<Pending>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Pending {
    index: usize,
    /// A later acknowledged call: the call may still use a try, and change nothing else.
    only_tries: bool,
}

/// A branch on the way to the end of a call.
struct Node {
    branch: Branch,
    floor: Nanos,
    /// The branch before the last step, and the call that made it, if the step may come late.
    after: Option<(Branch, Pending)>,
}

/// Each branch with the latest invocation of the calls that have taken effect: the next call takes effect after it.
type Branches = HashMap<Branch, Nanos>;

struct Search<'a> {
    calls: &'a [&'a Call],
    limits: CardLimits,
    late_effects_max: Nanos,
    options: SearchOptions,
}

/// Searches an order of the calls of one card.
pub fn search(calls: &[&Call], setup: &Setup, options: SearchOptions) -> Verdict {
    let run = |late_effects, late_effects_max| {
        let options = SearchOptions { late_effects, ..options };
        Search { calls, limits: CardLimits::new(setup), late_effects_max, options }.run()
    };
    let strict = run(LateEffects::NotAfterAcknowledgedCall, 0);
    if options.late_effects == LateEffects::NotAfterAcknowledgedCall || matches!(strict, Verdict::Explained) {
        return strict;
    }
    // Most histories have an order with few late effects, and the search for it visits far fewer states.
    match run(options.late_effects, 0) {
        Verdict::Explained => Verdict::Explained,
        _ => run(options.late_effects, setup.late_effects_ms.saturating_mul(1_000_000)),
    }
}

impl Search<'_> {
    fn run(&self) -> Verdict {
        let last_named = self.last_named();
        let mut branches = Branches::from([(Branch { card: CardSpec::default(), pending: Vec::new() }, 0)]);
        for (at, is_end, index) in self.events() {
            let Some(call) = self.calls.get(index) else { continue };
            if !is_end {
                branches = with_pending(branches, index);
                continue;
            }
            if !matches!(call.end, End::GivenUp(_)) {
                match self.ended(&branches, index, at) {
                    Ok(next) if next.is_empty() => return Verdict::NoOrder(self.no_order(&branches, call)),
                    Ok(next) => branches = next,
                    Err(states) => return Verdict::TooMuchConcurrency { call: Box::new((*call).clone()), states },
                }
            }
            branches = self.simplified(branches, at, &last_named);
        }
        Verdict::Explained
    }

    /// The starts and ends in the order of time, a start before an end of the same time. Without calls that change nothing, or
    /// whose end is possible in every state.
    fn events(&self) -> Vec<(Nanos, bool, usize)> {
        let mut events = Vec::new();
        for (index, call) in self.calls.iter().enumerate().filter(|(_, call)| matters(call)) {
            events.push((call.invoked_at, false, index));
            // A call without an end is given up: its end needs no step.
            if call.ended_at < Nanos::MAX {
                events.push((call.ended_at, true, index));
            }
        }
        events.sort_unstable();
        events
    }

    /// The branches in which the call has taken effect, or the number of visited states, where these are too many.
    fn ended(&self, branches: &Branches, index: usize, now: Nanos) -> Result<Branches, usize> {
        let (mut done, mut visited) = (Branches::new(), HashMap::new());
        let start = |(branch, floor): (&Branch, &Nanos)| Node { branch: branch.clone(), floor: *floor, after: None };
        let mut left: Vec<Node> = branches.iter().map(start).collect();
        while let Some(node) = left.pop() {
            let Node { branch, floor, .. } = &node;
            if !branch.pending.iter().any(|pending| pending.index == index) {
                insert(&mut done, branch.clone(), *floor);
                continue;
            }
            for pending in branch.pending.iter().filter(|pending| !self.follows_alike(branch, **pending)) {
                let is_optional = self.is_optional_try(*pending);
                for (next, floor) in self.steps(branch, *floor, *pending, now) {
                    if self.may_go_before(&node, *pending, &next, now) {
                        continue;
                    }
                    let last = is_optional.then_some(pending.index);
                    if insert(&mut visited, (next.clone(), last), floor) {
                        let after = is_optional.then(|| (branch.clone(), *pending));
                        left.push(Node { branch: next, floor, after });
                    }
                }
            }
            if visited.len() > self.options.states_max {
                return Err(visited.len());
            }
        }
        Ok(done)
    }

    /// Whether the step is one of a given-up try or reset. It may come late, so it is taken only directly before a step that
    /// depends on it.
    fn is_optional_try(&self, pending: Pending) -> bool {
        self.calls.get(pending.index).is_some_and(|call| {
            matches!(call.end, End::GivenUp(_)) && uses_tries(&call.operation) && call.operation.control().is_none()
        })
    }

    /// Whether the step to `next` may as well go before the optional step that led to the node. Of two optional steps, the one
    /// of the earlier call goes first.
    fn may_go_before(&self, node: &Node, pending: Pending, next: &Branch, now: Nanos) -> bool {
        let Some((before, optional)) = &node.after else { return false };
        if optional.index == pending.index || (self.is_optional_try(pending) && optional.index < pending.index) {
            return false;
        }
        self.steps(before, node.floor, pending, now).iter().any(|(swapped, floor)| {
            let is_open = swapped.pending.contains(optional);
            is_open && self.steps(swapped, *floor, *optional, now).iter().any(|(both, _)| both == next)
        })
    }

    /// Whether another given-up call that does the same goes first. The two are interchangeable, so one order is enough.
    fn follows_alike(&self, branch: &Branch, pending: Pending) -> bool {
        let Some(call) = self.calls.get(pending.index) else { return false };
        let goes_first = |other: &Pending| {
            self.calls.get(other.index).is_some_and(|first| {
                matches!(first.end, End::GivenUp(_))
                    && (first.operation == call.operation && first.ended_at <= call.ended_at)
                    && !branch.card.has_reserved(first.id)
            })
        };
        matches!(call.end, End::GivenUp(_))
            && !branch.card.has_reserved(call.id)
            && branch.pending.iter().any(|other| other.index < pending.index && goes_first(other))
    }

    /// The branches after the next step of a pending call.
    fn steps(&self, branch: &Branch, floor: Nanos, pending: Pending, now: Nanos) -> Vec<(Branch, Nanos)> {
        let Some(call) = self.calls.get(pending.index) else { return Vec::new() };
        let floor = floor.max(call.invoked_at);
        let is_given_up = matches!(call.end, End::GivenUp(_));
        let at = match call.operation {
            // One time span in every order: branches that differ in the expiry of a control alone would never merge.
            Operation::OpenControl { .. } => Moment { earliest: call.invoked_at, latest: call.ended_at },
            _ if is_given_up => Moment { earliest: floor, latest: now },
            _ => Moment { earliest: floor, latest: now.min(call.ended_at) },
        };
        let effects = branch.card.effects(call.id, &call.operation, &call.end, at, &self.limits);
        let fitting = effects.into_iter().filter(|effect| fits(call, pending, &effect.outcome));
        let follow = |Effect { card, outcome }: Effect| {
            let mut next = Branch { card, pending: branch.pending.clone() };
            if outcome != Outcome::Reserved {
                next.pending.retain(|other| other.index != pending.index);
                self.close(&mut next, call);
            } else if is_given_up && !next.card.can_settle(call.id, &call.operation) {
                // The settlement of a wrong PIN changes nothing.
                next.pending.retain(|other| other.index != pending.index);
                next.card.forget_try(call.id);
            }
            (next, floor)
        };
        fitting.map(follow).collect()
    }

    /// Ends the given-up calls that may not take effect after this call.
    fn close(&self, branch: &mut Branch, acknowledged: &Call) {
        let End::Answered(answer) = &acknowledged.end else { return };
        let Branch { card, pending } = branch;
        pending.retain_mut(|pending| {
            let Some(call) = self.calls.get(pending.index) else { return false };
            if !matches!(call.end, End::GivenUp(_)) || acknowledged.invoked_at <= call.ended_at {
                return true;
            }
            let is_closed = self.closes(acknowledged, answer, call);
            let is_late = self.options.late_effects == LateEffects::NotAfterAcknowledgedCall
                || acknowledged.invoked_at > call.ended_at.saturating_add(self.late_effects_max);
            if !uses_tries(&call.operation) {
                // The confirmation of a retry sets no PIN.
                return !is_closed || (!is_late && card.would_confirm(&call.operation));
            }
            pending.only_tries |= is_closed;
            if is_late {
                card.forget_try(call.id);
            }
            !is_late
        });
    }

    /// Whether a given-up call may not take effect after this acknowledged call, which was invoked after the give-up.
    fn closes(&self, acknowledged: &Call, answer: &Answer, given_up: &Call) -> bool {
        if self.options.late_effects == LateEffects::NotAfterAcknowledgedCall {
            return true;
        }
        let is_new_pin = match answer {
            Answer::PinSet => true,
            Answer::Right { .. } => matches!(acknowledged.operation, Operation::ChangePin { .. }),
            _ => false,
        };
        // A refused PIN leaves the control and its tzpk as they are, and a malformed block of ChangePin may.
        let changes_control = match answer {
            Answer::Wrong { .. } | Answer::PinRefused => false,
            Answer::Malformed => !acknowledged.operation.uses_try(),
            _ => true,
        };
        let control = given_up.operation.control();
        (is_new_pin && given_up.operation.new_pin().is_some())
            || (changes_control && control.is_some() && control == acknowledged.operation.control())
    }

    /// Merges branches that no later call distinguishes.
    fn simplified(&self, branches: Branches, now: Nanos, last_named: &LastNamed<'_>) -> Branches {
        let mut simple = Branches::with_capacity(branches.len());
        for (Branch { mut card, mut pending }, floor) in branches {
            pending.retain(|pending| {
                let Some(call) = self.calls.get(pending.index) else { return false };
                if !matches!(call.end, End::GivenUp(_)) {
                    return true;
                }
                if call.operation.uses_try() {
                    let is_over = card.has_reserved(call.id) && !card.can_settle(call.id, &call.operation);
                    if is_over {
                        card.forget_try(call.id);
                    }
                    return !is_over;
                }
                card.can_still_change(&call.operation, floor)
            });
            let names = |wanted: &dyn Fn(&Operation) -> bool| {
                let mut calls = pending.iter().filter_map(|pending| self.calls.get(pending.index));
                calls.any(|call| wanted(&call.operation))
            };
            card.forget(
                |name| {
                    last_named.controls.get(name).is_some_and(|at| *at >= now)
                        || names(&|operation| operation.control() == Some(name))
                },
                |block| {
                    let is_sent =
                        |operation: &Operation| matches!(operation, Operation::SetPinByZone { block: b, .. } if *b == block);
                    last_named.blocks.get(&block.0).is_some_and(|at| *at >= now) || names(&is_sent)
                },
            );
            if last_named.reset < now && !names(&|operation| matches!(operation, Operation::ResetTries { .. })) {
                card.renumber_tries();
            }
            insert(&mut simple, Branch { card, pending }, floor);
        }
        simple
    }

    fn last_named(&self) -> LastNamed<'_> {
        let mut last = LastNamed { controls: BTreeMap::new(), blocks: BTreeMap::new(), reset: 0 };
        for call in self.calls {
            if let Some(control) = call.operation.control() {
                last.controls.insert(control, call.invoked_at);
            }
            if let Operation::SetPinByZone { block, .. } = call.operation {
                last.blocks.insert(block.0, call.invoked_at);
            }
            if matches!(call.operation, Operation::ResetTries { .. }) {
                last.reset = call.invoked_at;
            }
        }
        last
    }

    fn no_order(&self, before: &Branches, unexplained: &Call) -> NoOrder {
        let started = |call: &&&Call| call.invoked_at <= unexplained.ended_at;
        let prefix = self.calls.iter().filter(started).map(|call| (*call).clone()).collect();
        let mut states_before: Vec<String> = before.keys().map(|branch| branch.card.to_string()).collect();
        states_before.sort();
        states_before.dedup();
        states_before.truncate(8);
        NoOrder { prefix, unexplained: Box::new(unexplained.clone()), states_before }
    }
}

/// The last invocation that names a control, a block of a zone, or the number of a try.
struct LastNamed<'a> {
    controls: BTreeMap<&'a ControlName, Nanos>,
    blocks: BTreeMap<u64, Nanos>,
    reset: Nanos,
}

fn uses_tries(operation: &Operation) -> bool {
    operation.uses_try() || matches!(operation, Operation::ResetTries { .. })
}

/// Whether the end of the call says anything, or the call may change the card.
fn matters(call: &Call) -> bool {
    match call.end {
        End::GivenUp(_) => !matches!(call.operation, Operation::OpenControl { .. } | Operation::GetPinByZone),
        End::Refused(Refusal::TryLater) => false,
        // ChangePin has compared the old PIN before.
        End::Refused(Refusal::CardChanged) => call.operation.uses_try(),
        _ => true,
    }
}

/// Whether the outcome of a step is one of this call.
fn fits(call: &Call, pending: Pending, outcome: &Outcome) -> bool {
    match (&call.end, outcome) {
        (_, Outcome::Reserved) => {
            !matches!(call.end, End::Refused(_)) || matches!(call.operation, Operation::ChangePin { .. })
        }
        (End::Answered(answer), Outcome::Answered(possible)) => answer == possible,
        (End::Refused(refusal), Outcome::Refused(possible)) => refusal == possible,
        (End::GivenUp(_), Outcome::SettledAlone) => true,
        (End::GivenUp(_), Outcome::Answered(_)) => {
            !pending.only_tries || !matches!(call.operation, Operation::ChangePin { .. })
        }
        _ => false,
    }
}

fn with_pending(branches: Branches, index: usize) -> Branches {
    let add = |(mut branch, floor): (Branch, Nanos)| {
        branch.pending.push(Pending { index, only_tries: false });
        (branch, floor)
    };
    branches.into_iter().map(add).collect()
}

/// Adds a branch. Returns whether the branch is new, or may take its next step earlier than before.
fn insert<B: Eq + Hash>(branches: &mut HashMap<B, Nanos>, branch: B, floor: Nanos) -> bool {
    match branches.get_mut(&branch) {
        Some(known) if *known <= floor => false,
        Some(known) => {
            *known = floor;
            true
        }
        None => {
            branches.insert(branch, floor);
            true
        }
    }
}
