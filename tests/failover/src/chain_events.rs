//! The events of the audit chains, compared with the answers that the clients have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use audit::entry::{Action, Body, Event, Outcome};
use history::history::{Answer, Call, End, History, Operation};

/// The events of all chains.
#[derive(Default)]
pub struct Events {
    /// The events of carried-out calls under a control, by the kind and the control.
    under_controls: BTreeMap<(UnderControl, String), u64>,
    /// The events of carried-out calls without a control. A chain names no call of a client, so they are counted.
    without_control: BTreeMap<WithoutControl, u64>,
}

/// The calls whose events are compared one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum UnderControl {
    OpenControl,
    SetPin,
    ViewPin,
    ChangePin,
}

/// The calls whose events are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum WithoutControl {
    SetPinByZone,
    VerifyPin,
    ChangePin,
    /// The old PIN was wrong, or one of the blocks was refused.
    ChangePinWithoutChange,
}

impl Events {
    /// Adds an event. Refused calls do not count.
    pub fn add(&mut self, event: &Event) {
        let Body::Card(card) = &event.body else { return };
        let control = card.control.as_ref().map(ToString::to_string);
        let is_compared = matches!(event.outcome, Outcome::WrongPin | Outcome::Malformed | Outcome::RefusedPin);
        let kind = match (card.action, event.outcome) {
            (Action::OpenControl, Outcome::Done) => UnderControl::OpenControl,
            (Action::SetPin, Outcome::Done) => UnderControl::SetPin,
            (Action::ViewPin, Outcome::Done) => UnderControl::ViewPin,
            (Action::ChangePin, Outcome::Done) if control.is_some() => UnderControl::ChangePin,
            (Action::ChangePin, Outcome::Done) => return self.count(WithoutControl::ChangePin),
            (Action::ChangePin, _) if is_compared => return self.count(WithoutControl::ChangePinWithoutChange),
            (Action::SetPinByZone, Outcome::Done) => return self.count(WithoutControl::SetPinByZone),
            (Action::VerifyPin, outcome) if is_compared || outcome == Outcome::Done => {
                return self.count(WithoutControl::VerifyPin);
            }
            _ => return,
        };
        *self.under_controls.entry((kind, control.unwrap_or_default())).or_default() += 1;
    }

    fn count(&mut self, kind: WithoutControl) {
        *self.without_control.entry(kind).or_default() += 1;
    }
}

/// What the event of an acknowledged call is looked up by.
enum Acknowledged {
    UnderControl(UnderControl, String),
    WithoutControl(WithoutControl),
}

fn acknowledged(call: &Call) -> Option<Acknowledged> {
    let End::Answered(answer) = &call.end else { return None };
    let under =
        |kind, control: &history::history::ControlName| Some(Acknowledged::UnderControl(kind, control.0.to_string()));
    let without = |kind| Some(Acknowledged::WithoutControl(kind));
    match (&call.operation, answer) {
        (_, Answer::Opened { control }) => under(UnderControl::OpenControl, control),
        // A repeated SetPin has one event.
        (Operation::SetPin { control, .. }, Answer::PinSet) => under(UnderControl::SetPin, control),
        (Operation::ViewPin { control }, Answer::PinShown { .. }) => under(UnderControl::ViewPin, control),
        (Operation::ChangePin { device: Some(device), .. }, Answer::Right { .. }) => {
            under(UnderControl::ChangePin, &device.control)
        }
        (Operation::ChangePin { .. }, Answer::Right { .. }) => without(WithoutControl::ChangePin),
        (Operation::ChangePin { .. }, _) => without(WithoutControl::ChangePinWithoutChange),
        (Operation::VerifyPin { .. }, _) => without(WithoutControl::VerifyPin),
        (Operation::SetPinByZone { .. }, Answer::PinSet) => without(WithoutControl::SetPinByZone),
        _ => None,
    }
}

/// The acknowledged calls without an event, and the controls with two.
pub fn missing_events(history: &History, events: &Events) -> Vec<String> {
    let mut under_controls = BTreeSet::new();
    let mut without_control = BTreeMap::<_, u64>::new();
    for acknowledged in history.calls.iter().filter_map(acknowledged) {
        match acknowledged {
            Acknowledged::UnderControl(kind, control) => drop(under_controls.insert((kind, control))),
            Acknowledged::WithoutControl(kind) => *without_control.entry(kind).or_default() += 1,
        }
    }
    let absent = under_controls.iter().filter(|key| !events.under_controls.contains_key(key));
    let absent = absent.map(|(kind, control)| format!("{kind:?} of {control} has no audit event"));
    let twice = events.under_controls.iter().filter(|(_, count)| **count > 1);
    let twice = twice.map(|((kind, control), count)| format!("{kind:?} of {control} has {count} audit events"));
    let found = |kind| events.without_control.get(kind).copied().unwrap_or_default();
    let fewer = without_control.iter().filter(|(kind, count)| found(kind) < **count);
    let fewer = fewer.map(|(kind, count)| format!("{count} acknowledged {kind} have {} audit events", found(kind)));
    absent.chain(twice).chain(fewer).collect()
}

impl fmt::Display for WithoutControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetPinByZone => "SetPinByZone",
            Self::VerifyPin => "VerifyPin",
            Self::ChangePin => "ChangePin",
            Self::ChangePinWithoutChange => "ChangePin without a change",
        })
    }
}
