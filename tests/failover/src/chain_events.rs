//! The events of the audit chains, compared with the answers that the clients have.

use std::collections::{BTreeMap, BTreeSet};

use audit::entry::{Action, Body, Event, Outcome};
use history::history::{Answer, End, History, Operation};

/// The events of all chains.
#[derive(Default)]
pub struct Events {
    /// The events that a control opened, set a PIN or showed a PIN, by the action and the control.
    under_controls: BTreeMap<(u8, String), u64>,
    /// The settlements of tries.
    verifications: u64,
}

/// The calls whose events are compared one by one.
const OPENED: u8 = 0;
const SET: u8 = 1;
const VIEWED: u8 = 2;

impl Events {
    /// Adds an event. Refused calls do not count.
    pub fn add(&mut self, event: &Event) {
        let Body::Card(card) = &event.body else { return };
        let kind = match (card.action, event.outcome) {
            (Action::VerifyPin, _) => return self.verifications += 1,
            (Action::OpenControl, Outcome::Done) => OPENED,
            (Action::SetPin, Outcome::Done) => SET,
            (Action::ViewPin, Outcome::Done) => VIEWED,
            _ => return,
        };
        let control = card.control.as_ref().map(ToString::to_string).unwrap_or_default();
        *self.under_controls.entry((kind, control)).or_default() += 1;
    }
}

/// The acknowledged calls that do not have exactly one event, and the controls with two.
pub fn missing_events(history: &History, events: &Events) -> Vec<String> {
    let mut acknowledged = BTreeSet::new();
    let mut verifications = 0;
    for call in &history.calls {
        match (&call.operation, &call.end) {
            (_, End::Answered(Answer::Opened { control })) => {
                acknowledged.insert((OPENED, control.0.to_string()));
            }
            // A repeated SetPin has one event.
            (Operation::SetPin { control, .. }, End::Answered(Answer::PinSet)) => {
                acknowledged.insert((SET, control.0.to_string()));
            }
            (Operation::ViewPin { control }, End::Answered(Answer::PinShown { .. })) => {
                acknowledged.insert((VIEWED, control.0.to_string()));
            }
            (Operation::VerifyPin { .. }, End::Answered(_)) => verifications += 1,
            _ => {}
        }
    }
    let name = |kind| ["OpenControl", "SetPin", "ViewPin"][usize::from(kind)];
    let absent = acknowledged.iter().filter(|key| !events.under_controls.contains_key(key));
    let absent = absent.map(|(kind, control)| format!("{} of {control} has no audit event", name(*kind)));
    let twice = events.under_controls.iter().filter(|(_, count)| **count > 1);
    let twice = twice.map(|((kind, control), count)| format!("{} of {control} has {count} audit events", name(*kind)));
    let mut missing: Vec<_> = absent.chain(twice).collect();
    if events.verifications < verifications {
        missing.push(format!("{verifications} acknowledged VerifyPin have {} audit events", events.verifications));
    }
    missing
}
