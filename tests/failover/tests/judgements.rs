//! Each judgement of a run finds the recording that breaks its rule, and finds nothing in a right one.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test that meets a surprise must fail")]

use std::{sync::Arc, time::Duration};

use audit::{
    card_reference::CardReference,
    entry::{Action, Body, CardEvent, Event, Isolation, Level, Outcome, Stamp},
};
use domain::{control::ControlId, time::UnixMillis};
use failover::{
    chain_events::{Events, missing_events},
    fault::{Fault, unexpected_exits},
    program::Exit,
    run_report::{Calls, RunReport, calls_by_kind, gaps, locked, longest_wait, refused_uses},
};
use history::{
    history::{
        Answer, BlockNumber, Call, Content, ControlName, DeviceBlock, DeviceChange, End, Fault as NotedFault,
        FaultKind, GiveUp, History, Nanos, Operation, Purpose, Refusal, Setup, TestPin, TzpkNumber,
    },
    order_search::SearchOptions,
    report::Report,
};

const FIRST: &str = "00000000-0000-4000-8000-000000000001";
const SECOND: &str = "00000000-0000-4000-8000-000000000002";
const PIN: Content = Content::Pin(TestPin(1));
const RIGHT: Answer = Answer::Right { tries_left: 3 };
const WRONG: Answer = Answer::Wrong { tries_left: 2 };
/// SIGKILL.
const KILLED: Exit = Exit::Signal(9);

fn name(control: &str) -> ControlName {
    control.to_owned().into()
}

/// A history of these calls, each a second after the one before.
fn recorded(calls: Vec<(Operation, End)>) -> History {
    let setup =
        Setup { tries_per_card: 3, control_lifetime_ms: 30_000, clock_tolerance_ms: 2_000, late_effects_ms: 90_000 };
    let call = |((operation, end), id): ((Operation, End), u64)| {
        let (engine, card, invoked_at) = ("0".to_owned(), "1".to_owned(), id * 1_000_000_000);
        Call { id, client: 1, engine, card, invoked_at, ended_at: invoked_at + 1_000, operation, end }
    };
    History { setup, calls: calls.into_iter().zip(1..).map(call).collect(), faults: Vec::new() }
}

fn set(control: &str, block: u64) -> Operation {
    let block = DeviceBlock { number: BlockNumber(block), under: TzpkNumber(1), content: PIN };
    Operation::SetPin { control: name(control), block }
}

fn view(control: &str) -> Operation {
    Operation::ViewPin { control: name(control) }
}

fn change_by_device(control: &str) -> Operation {
    let device = Some(DeviceChange { control: name(control), under: TzpkNumber(1) });
    Operation::ChangePin { device, old: PIN, new: Content::Pin(TestPin(2)) }
}

fn change_by_zone() -> Operation {
    Operation::ChangePin { device: None, old: PIN, new: Content::Pin(TestPin(2)) }
}

fn set_by_zone() -> Operation {
    Operation::SetPinByZone { block: BlockNumber(1), pin: TestPin(1) }
}

fn shown() -> Answer {
    Answer::PinShown { pin: TestPin(1) }
}

fn event(action: Action, control: Option<&str>, outcome: Outcome) -> Event {
    let control = control.map(|control| ControlId::parse(control).unwrap());
    let card = CardEvent::new(action, "***1".into(), CardReference::from_bytes([7; 16]));
    let stamp = Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: [].into() };
    Event {
        at: UnixMillis(0),
        caller: "peer".into(),
        tenant: None,
        audit_user: "user".into(),
        request: None,
        outcome,
        stamp: Arc::new(stamp),
        body: Body::Card(CardEvent { control, ..card }),
    }
}

fn events(list: &[Event]) -> Events {
    let mut events = Events::default();
    list.iter().for_each(|event| events.add(event));
    events
}

/// An acknowledged call of each kind that has an event, with its event.
fn each_kind() -> Vec<((Operation, End), Event)> {
    let opened = Answer::Opened { control: name(FIRST) };
    let open = Operation::OpenControl { purpose: Purpose::SetPin };
    let verify = || Operation::VerifyPin { entered: PIN };
    let kinds = [
        (open, opened, Action::OpenControl, Some(FIRST), Outcome::Done),
        (set(FIRST, 1), Answer::PinSet, Action::SetPin, Some(FIRST), Outcome::Done),
        (view(FIRST), shown(), Action::ViewPin, Some(FIRST), Outcome::Done),
        (change_by_device(FIRST), RIGHT, Action::ChangePin, Some(FIRST), Outcome::Done),
        (change_by_device(FIRST), WRONG, Action::ChangePin, Some(FIRST), Outcome::WrongPin),
        (change_by_zone(), RIGHT, Action::ChangePin, None, Outcome::Done),
        (change_by_zone(), WRONG, Action::ChangePin, None, Outcome::WrongPin),
        (change_by_zone(), Answer::Malformed, Action::ChangePin, None, Outcome::Malformed),
        (change_by_zone(), Answer::PinRefused, Action::ChangePin, None, Outcome::RefusedPin),
        (verify(), RIGHT, Action::VerifyPin, None, Outcome::Done),
        (verify(), WRONG, Action::VerifyPin, None, Outcome::WrongPin),
        (set_by_zone(), Answer::PinSet, Action::SetPinByZone, None, Outcome::Done),
    ];
    let pair = |(operation, answer, action, control, outcome)| {
        ((operation, End::Answered(answer)), event(action, control, outcome))
    };
    kinds.into_iter().map(pair).collect()
}

#[test]
fn an_acknowledged_call_without_its_event_is_missing() {
    for (call, its_event) in each_kind() {
        let history = recorded(vec![call.clone()]);
        assert_eq!(missing_events(&history, &events(&[its_event])), Vec::<String>::new(), "{call:?}");
        let missing = missing_events(&history, &Events::default());
        assert_eq!(missing.len(), 1, "{call:?}: {missing:?}");
    }
}

#[test]
fn the_event_of_another_call_is_no_event_of_this_one() {
    let all = each_kind();
    for (at, (call, _)) in all.iter().enumerate() {
        // The events of the same count are interchangeable, and so are the settlements of wrong PINs.
        let kind = |event: &Event| match &event.body {
            Body::Card(card) if card.action == Action::VerifyPin => (card.action, None, true),
            Body::Card(card) if event.outcome == Outcome::Done => {
                (card.action, card.control.map(|id| id.to_string()), true)
            }
            Body::Card(card) => (card.action, None, false),
            body => panic!("{body:?}"),
        };
        let own = kind(&all[at].1);
        let others: Vec<_> = all.iter().map(|(_, event)| event.clone()).filter(|event| kind(event) != own).collect();
        assert_eq!(missing_events(&recorded(vec![call.clone()]), &events(&others)).len(), 1, "{call:?}");
    }
    let other_control = event(Action::SetPin, Some(SECOND), Outcome::Done);
    let history = recorded(vec![(set(FIRST, 1), End::Answered(Answer::PinSet))]);
    assert_eq!(missing_events(&history, &events(&[other_control])).len(), 1);
}

#[test]
fn events_of_refused_calls_do_not_count() {
    let refused = [Outcome::PinLocked, Outcome::PinNotSet, Outcome::CardUnknown];
    let refused = refused.map(|outcome| event(Action::VerifyPin, None, outcome));
    let history = recorded(vec![(Operation::VerifyPin { entered: PIN }, End::Answered(WRONG))]);
    assert_eq!(missing_events(&history, &events(&refused)).len(), 1);
    // A refused or given-up call needs no event.
    let calls = [End::Refused(Refusal::PinLocked), End::GivenUp(GiveUp::Unavailable)];
    let calls = calls.map(|end| (Operation::VerifyPin { entered: PIN }, end));
    assert_eq!(missing_events(&recorded(calls.into()), &Events::default()), Vec::<String>::new());
}

#[test]
fn a_control_with_two_events_is_found() {
    for action in [Action::OpenControl, Action::SetPin, Action::ViewPin, Action::ChangePin] {
        let one = event(action, Some(FIRST), Outcome::Done);
        let other = event(action, Some(SECOND), Outcome::Done);
        let none = recorded(Vec::new());
        assert_eq!(missing_events(&none, &events(&[one.clone(), other])), Vec::<String>::new());
        assert_eq!(missing_events(&none, &events(&[one.clone(), one])).len(), 1, "{action:?}");
    }
}

fn exits(service: &str, exits: &[Exit]) -> Vec<(String, Vec<Exit>)> {
    vec![(service.to_owned(), exits.to_vec())]
}

#[test]
fn an_end_that_no_fault_causes_is_found() {
    let stall = Fault::LeaderStalled(Duration::from_secs(8));
    for faults in [&[][..], &[Fault::LeaderKilled, Fault::EnginePaused(0), stall], &[Fault::EngineKilled(1)]] {
        assert_eq!(unexpected_exits(faults, &exits("engine-0", &[])), Vec::<String>::new());
        for exit in [KILLED, Exit::Code(0), Exit::Code(1), Exit::AtStart] {
            assert_eq!(unexpected_exits(faults, &exits("engine-0", &[exit])).len(), 1, "{faults:?} {exit:?}");
        }
    }
}

#[test]
fn an_end_other_than_the_one_of_the_fault_is_found() {
    let cases = [
        (Fault::EngineKilled(0), "engine-0", KILLED),
        (Fault::EdgeKilled(0), "edge-0", KILLED),
        (Fault::EngineDisplaced(0), "engine-0", Exit::Code(1)),
    ];
    for (fault, service, expected) in cases {
        assert_eq!(unexpected_exits(&[fault], &exits(service, &[expected])), Vec::<String>::new(), "{fault:?}");
        let wrong: [&[Exit]; 4] = [&[], &[Exit::Code(101)], &[expected, expected], &[expected, Exit::AtStart]];
        for found in wrong {
            assert_eq!(unexpected_exits(&[fault], &exits(service, found)).len(), 1, "{fault:?} {found:?}");
        }
    }
}

#[test]
fn only_an_engine_without_a_leader_may_end_at_its_start() {
    let fault = [Fault::EngineAndLeaderKilled(0)];
    for found in [&[KILLED][..], &[KILLED, Exit::AtStart, Exit::AtStart]] {
        assert_eq!(unexpected_exits(&fault, &exits("engine-0", found)), Vec::<String>::new());
    }
    assert_eq!(unexpected_exits(&fault, &exits("engine-1", &[Exit::AtStart])).len(), 1);
    assert_eq!(unexpected_exits(&fault, &exits("engine-0", &[KILLED, KILLED])).len(), 1);
    assert_eq!(unexpected_exits(&fault, &exits("engine-0", &[Exit::AtStart])).len(), 1, "the kill is absent");
}

/// Two uses of a control, the second one refused.
fn refused_again(first: (Operation, End), second: Operation) -> History {
    recorded(vec![first, (second, End::Refused(Refusal::ControlNotUsable))])
}

#[test]
fn refused_uses_of_spent_controls_alone_are_counted() {
    let answered = |operation, answer| (operation, End::Answered(answer));
    let cases = [
        ("SetPin", answered(set(FIRST, 1), Answer::PinSet), set(FIRST, 2)),
        ("ViewPin", answered(view(FIRST), shown()), view(FIRST)),
        ("ChangePin", answered(change_by_device(FIRST), RIGHT), change_by_device(FIRST)),
    ];
    for (kind, first, second) in cases {
        let (operation, _) = &first;
        let counted = refused_uses(&refused_again(first.clone(), second.clone()));
        assert_eq!(counted.into_iter().collect::<Vec<_>>(), [(kind, 1)]);
        // The first use did not certainly spend the control.
        for end in [End::GivenUp(GiveUp::Unavailable), End::Refused(Refusal::ControlNotUsable)] {
            assert!(refused_uses(&refused_again((operation.clone(), end), second.clone())).is_empty(), "{kind}");
        }
    }
    let other_control = refused_again(answered(set(FIRST, 1), Answer::PinSet), set(SECOND, 2));
    assert!(refused_uses(&other_control).is_empty());
    let retry = refused_again(answered(set(FIRST, 1), Answer::PinSet), set(FIRST, 1));
    assert!(refused_uses(&retry).is_empty(), "a retry is no second use");
    let wrong = refused_again(answered(change_by_device(FIRST), WRONG), change_by_device(FIRST));
    assert!(refused_uses(&wrong).is_empty(), "a wrong PIN spends no control");
}

#[test]
fn locked_pins_and_kinds_of_calls_are_counted() {
    let verify = || Operation::VerifyPin { entered: PIN };
    let history = recorded(vec![
        (verify(), End::Answered(WRONG)),
        (verify(), End::Refused(Refusal::PinLocked)),
        (verify(), End::Refused(Refusal::PinNotSet)),
        (verify(), End::GivenUp(GiveUp::ConnectionLost)),
        (change_by_zone(), End::Answered(RIGHT)),
        (change_by_device(FIRST), End::Answered(WRONG)),
    ]);
    assert_eq!(locked(&history), 1);
    let kinds = calls_by_kind(&history);
    let counts = |kind| {
        let Calls { acknowledged, refused, unknown } = kinds[kind];
        (acknowledged, refused, unknown)
    };
    assert_eq!(counts("VerifyPin"), (1, 2, 1));
    assert_eq!((counts("ChangePin (zone)"), counts("ChangePin (device)")), ((1, 0, 0), (1, 0, 0)));
    assert_eq!(longest_wait(&history), 1_000, "of the call that was given up");
}

#[test]
fn the_gap_of_a_fault_is_the_longest_wait_for_a_write() {
    const SECOND: Nanos = 1_000_000_000;
    let mut history = recorded(vec![(set_by_zone(), End::Answered(Answer::PinSet)); 9]);
    // Nothing is acknowledged between the seconds 3 and 7.
    for call in history.calls.iter_mut().filter(|call| (4..7).contains(&call.id)) {
        call.end = End::GivenUp(GiveUp::Unavailable);
    }
    let fault = |at| NotedFault { at: at * SECOND, kind: FaultKind::LeaderKilled, node: "n1".into() };
    history.faults = vec![fault(4), fault(8)];
    let found: Vec<_> = gaps(&history).into_iter().map(|(_, sides)| sides["0"] / SECOND).collect();
    assert_eq!(found, [3, 1]);
}

/// The report of a run in which nothing is wrong.
fn right_report() -> RunReport {
    let history = recorded(vec![
        (set_by_zone(), End::Answered(Answer::PinSet)),
        (Operation::GetPinByZone, End::Answered(shown())),
    ]);
    let many = Calls { acknowledged: 1_000, refused: 0, unknown: 0 };
    let kinds =
        ["SetPin", "ViewPin", "VerifyPin", "ResetTries", "SetPinByZone", "ChangePin (zone)", "ChangePin (device)"];
    RunReport {
        report: Report::new(&history, SearchOptions::default()),
        calls: kinds.map(|kind| (kind, many)).into(),
        refused_uses: ["SetPin", "ViewPin", "ChangePin"].map(|kind| (kind, 1_000)).into(),
        locked: 1_000,
        gaps: Vec::new(),
        longest_wait: 0,
        chains: vec![("engine-0".to_owned(), Ok(10))],
        unexpected: Vec::new(),
        missing_events: Vec::new(),
        exits: Vec::new(),
        unexpected_exits: Vec::new(),
    }
}

#[test]
fn one_finding_of_any_judgement_makes_a_run_wrong() {
    assert!(right_report().is_right(), "{}", right_report());
    let found = || vec!["found".to_owned()];
    let lost = recorded(vec![
        (set_by_zone(), End::Answered(Answer::PinSet)),
        (Operation::GetPinByZone, End::Answered(Answer::PinShown { pin: TestPin(9) })),
    ]);
    let unverified = recorded(vec![(set_by_zone(), End::Answered(Answer::PinSet))]);
    let wrong = [
        RunReport { report: Report::new(&lost, SearchOptions::default()), ..right_report() },
        RunReport { report: Report::new(&unverified, SearchOptions::default()), ..right_report() },
        RunReport { chains: vec![("engine-0".to_owned(), Err("broken".to_owned()))], ..right_report() },
        RunReport { unexpected: found(), ..right_report() },
        RunReport { missing_events: found(), ..right_report() },
        RunReport { unexpected_exits: found(), ..right_report() },
        RunReport { locked: 0, ..right_report() },
    ];
    for (number, report) in wrong.iter().enumerate() {
        assert!(!report.is_right(), "{number}: {report}");
    }
}

#[test]
fn a_run_without_enough_calls_of_a_kind_is_wrong() {
    for kind in right_report().calls.into_keys() {
        let mut report = right_report();
        report.calls.remove(kind);
        assert_eq!(report.too_few().len(), 1, "{kind}");
        assert!(!report.is_right(), "{kind}");
    }
    for kind in right_report().refused_uses.into_keys() {
        let mut report = right_report();
        report.refused_uses.remove(kind);
        assert_eq!(report.too_few().len(), 1, "{kind}");
        assert!(!report.is_right(), "{kind}");
    }
}
