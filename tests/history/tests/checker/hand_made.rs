//! Short histories, written by hand, with the verdict that each must get.

use history::history::{
    Answer, BlockNumber, Call, Content, ControlName, DeviceBlock, DeviceChange, End, Fault, FaultKind, GiveUp, History,
    Operation, Purpose, Refusal, Setup, TestPin, TzpkNumber,
};
use history::order_search::{LateEffects, SearchOptions};
use history::report::Report;

const MILLISECOND: u64 = 1_000_000;
const GIVEN_UP: End = End::GivenUp(GiveUp::DeadlinePassed);

fn history(calls: Vec<Call>) -> History {
    let setup =
        Setup { tries_per_card: 2, control_lifetime_ms: 30_000, clock_tolerance_ms: 100, late_effects_ms: 10_000 };
    let calls = calls.into_iter().zip(1..).map(|(call, id)| Call { id, ..call }).collect();
    History { setup, calls, faults: Vec::new() }
}

/// A call from one millisecond to another.
fn call(from: u64, to: u64, operation: Operation, end: End) -> Call {
    let (engine, card) = ("a".into(), "1".into());
    let (invoked_at, ended_at) = (from * MILLISECOND, to * MILLISECOND);
    Call { id: 0, client: 1, engine, card, invoked_at, ended_at, operation, end }
}

fn answered(from: u64, to: u64, operation: Operation, answer: Answer) -> Call {
    call(from, to, operation, End::Answered(answer))
}

fn refused(from: u64, to: u64, operation: Operation, refusal: Refusal) -> Call {
    call(from, to, operation, End::Refused(refusal))
}

fn control() -> ControlName {
    String::from("c").into()
}

fn open(from: u64, to: u64) -> Call {
    let operation = Operation::OpenControl { purpose: Purpose::SetPin };
    answered(from, to, operation, Answer::Opened { control: control() })
}

fn issue() -> Operation {
    Operation::IssueTzpk { control: control() }
}

fn issued(from: u64, to: u64, tzpk: u64) -> Call {
    answered(from, to, issue(), Answer::Issued { tzpk: TzpkNumber(tzpk) })
}

fn set(block: u64, under: u64, pin: u32) -> Operation {
    let content = Content::Pin(TestPin(pin));
    let block = DeviceBlock { number: BlockNumber(block), under: TzpkNumber(under), content };
    Operation::SetPin { control: control(), block }
}

fn zone_set(pin: u32) -> Operation {
    Operation::SetPinByZone { block: BlockNumber(pin.into()), pin: TestPin(pin) }
}

fn verify(pin: u32) -> Operation {
    Operation::VerifyPin { entered: Content::Pin(TestPin(pin)) }
}

/// A change by a zone.
fn change(old: u32, new: u32) -> Operation {
    Operation::ChangePin { device: None, old: Content::Pin(TestPin(old)), new: Content::Pin(TestPin(new)) }
}

/// A change under the control and its first tzpk.
fn device_change(old: u32, new: u32) -> Operation {
    let device = Some(DeviceChange { control: control(), under: TzpkNumber(1) });
    Operation::ChangePin { device, old: Content::Pin(TestPin(old)), new: Content::Pin(TestPin(new)) }
}

fn changed(from: u64, to: u64, operation: Operation) -> Call {
    answered(from, to, operation, Answer::Right { tries_left: 2 })
}

fn shown(from: u64, to: u64, pin: u32) -> Call {
    answered(from, to, Operation::GetPinByZone, Answer::PinShown { pin: TestPin(pin) })
}

fn wrong(from: u64, to: u64, tries_left: u32) -> Call {
    answered(from, to, verify(9), Answer::Wrong { tries_left })
}

fn right(from: u64, to: u64) -> Call {
    answered(from, to, verify(1), Answer::Right { tries_left: 2 })
}

fn report(calls: Vec<Call>) -> Report {
    Report::new(&history(calls), SearchOptions::default())
}

fn assert_right(calls: Vec<Call>) {
    let report = report(calls);
    assert!(report.is_right(), "{report}");
}

/// No order explains the answer of the call of this number, from 1, and one explains the answers before.
fn assert_unexplained(calls: Vec<Call>, id: u64) {
    let before = calls[..id as usize - 1].to_vec();
    assert_right(before);
    let report = report(calls);
    assert_eq!(report.no_order.len(), 1, "{report}");
    assert_eq!(report.no_order[0].unexplained.id, id, "{report}");
}

#[test]
fn a_given_up_set_takes_effect_or_does_not() {
    let given_up = [answered(0, 10, zone_set(1), Answer::PinSet), call(20, 30, zone_set(2), GIVEN_UP)];
    for pin in [1, 2] {
        assert_right([&given_up[..], &[shown(40, 50, pin)]].concat());
    }
    assert_unexplained([&given_up[..], &[shown(40, 50, 3)]].concat(), 3);
}

#[test]
fn a_given_up_set_takes_effect_late_but_only_once() {
    let calls = vec![
        answered(0, 10, zone_set(1), Answer::PinSet),
        call(20, 30, zone_set(2), GIVEN_UP),
        shown(40, 50, 1),
        shown(60, 70, 2),
        shown(80, 90, 1),
    ];
    assert_unexplained(calls, 5);
}

#[test]
fn a_given_up_set_does_not_replace_a_later_acknowledged_pin() {
    let calls = |given_up_at| {
        vec![
            call(0, given_up_at, zone_set(1), GIVEN_UP),
            answered(20, 30, zone_set(2), Answer::PinSet),
            shown(40, 50, 1),
        ]
    };
    assert_unexplained(calls(10), 3);
    // The client had not given up when the other call began.
    assert_right(calls(25));
}

#[test]
fn a_given_up_tzpk_does_not_replace_a_later_one() {
    let malformed = answered(60, 70, set(1, 2, 1), Answer::Malformed);
    let issues = |given_up_at| vec![open(0, 10), call(11, given_up_at, issue(), GIVEN_UP), issued(30, 40, 2)];
    assert_unexplained([issues(20), vec![malformed.clone()]].concat(), 4);
    assert_right([issues(35), vec![malformed]].concat());
}

#[test]
fn the_stricter_rule_counts_calls_that_only_open_a_control() {
    let mut calls = vec![
        answered(0, 10, zone_set(1), Answer::PinSet),
        call(20, 30, zone_set(2), GIVEN_UP),
        open(40, 50),
        // The set came after the control was opened: it closed the control.
        refused(60, 70, issue(), Refusal::ControlNotUsable),
    ];
    assert_right(calls.clone());
    let late_effects = LateEffects::NotAfterAcknowledgedCall;
    let strict = SearchOptions { late_effects, ..SearchOptions::default() };
    assert_eq!(Report::new(&history(calls.clone()), strict).no_order.len(), 1);
    // Without the refusal, the set may have come before.
    calls.pop();
    assert!(Report::new(&history(calls), strict).is_right());
}

#[test]
fn a_control_is_usable_or_expired_within_the_tolerance_of_its_end() {
    let used = |from, end| vec![open(0, 10), issued(11, 20, 1), call(from, from + 5, set(1, 1, 1), end)];
    for (from, may_set, may_refuse) in [(29_000, true, false), (30_050, true, true), (30_200, false, true)] {
        let set = report(used(from, End::Answered(Answer::PinSet)));
        let refused = report(used(from, End::Refused(Refusal::ControlNotUsable)));
        assert_eq!((set.is_right(), refused.is_right()), (may_set, may_refuse), "{from}");
    }
}

#[test]
fn a_control_that_was_found_expired_stays_expired() {
    let refuse = |from| refused(from, from + 5, issue(), Refusal::ControlNotUsable);
    let calls =
        vec![open(0, 10), issued(11, 20, 1), refuse(29_960), answered(29_970, 29_980, set(1, 1, 1), Answer::PinSet)];
    assert_unexplained(calls, 4);
}

#[test]
fn a_retry_is_confirmed_until_another_pin_is_set() {
    let retry = |from, end| call(from, from + 5, set(1, 1, 1), end);
    let confirmed = End::Answered(Answer::PinSet);
    let calls = vec![
        open(0, 10),
        issued(11, 20, 1),
        retry(30, GIVEN_UP),
        retry(40, confirmed.clone()),
        retry(100_000, confirmed.clone()),
        answered(100_010, 100_020, zone_set(2), Answer::PinSet),
        retry(100_030, confirmed),
    ];
    assert_unexplained(calls, 7);
}

#[test]
fn tries_that_wait_for_their_settlement_count() {
    let locked = refused(30, 40, verify(1), Refusal::PinLocked);
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    // Both tries are reserved when the third call comes.
    let calls = vec![pin.clone(), right(20, 60), right(21, 60), locked.clone()];
    assert_right(calls);
    assert_unexplained(vec![pin, right(15, 25), right(20, 60), locked], 4);
}

#[test]
fn a_late_settlement_forgives_no_later_try() {
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    let calls = vec![pin, call(20, 30, verify(1), GIVEN_UP), wrong(40, 50, 0), wrong(60, 70, 0)];
    assert_right(calls.clone());
    assert_unexplained([calls, vec![right(80, 90)]].concat(), 5);
}

#[test]
fn a_given_up_try_is_charged_at_most_once() {
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    let given_up = call(20, 30, verify(9), GIVEN_UP);
    assert_right(vec![pin.clone(), given_up.clone(), wrong(40, 50, 0)]);
    assert_unexplained(vec![pin, given_up, refused(40, 50, verify(1), Refusal::PinLocked)], 3);
}

#[test]
fn try_later_is_possible_at_any_time() {
    let calls = vec![refused(0, 10, verify(1), Refusal::TryLater), answered(20, 30, zone_set(1), Answer::PinSet)];
    assert_right(calls);
}

#[test]
fn an_acknowledged_change_replaces_the_pin() {
    let calls = [answered(0, 10, zone_set(1), Answer::PinSet), changed(20, 30, change(1, 2))];
    assert_right([&calls[..], &[shown(40, 50, 2)]].concat());
    assert_unexplained([&calls[..], &[shown(40, 50, 1)]].concat(), 3);
    let lost = report([&calls[..], &[shown(40, 50, 1)]].concat()).totals.lost_pins;
    assert_eq!(lost.len(), 1);
}

#[test]
fn a_change_needs_the_old_pin() {
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    assert_unexplained(vec![pin.clone(), changed(20, 30, change(3, 2))], 2);
    let wrong = answered(20, 30, change(1, 2), Answer::Wrong { tries_left: 1 });
    assert_unexplained(vec![pin, wrong], 2);
}

#[test]
fn a_given_up_change_takes_effect_or_does_not() {
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    let given_up = [pin.clone(), call(20, 30, change(1, 2), GIVEN_UP)];
    for found in [1, 2] {
        assert_right([&given_up[..], &[shown(40, 50, found)]].concat());
    }
    assert_unexplained([&given_up[..], &[shown(40, 50, 3)]].concat(), 3);
    // The old PIN of the given-up change is wrong.
    assert_unexplained(vec![pin, call(20, 30, change(3, 2), GIVEN_UP), shown(40, 50, 2)], 3);
}

#[test]
fn a_wrong_change_uses_a_try() {
    let wrong = |from, tries_left| answered(from, from + 5, change(3, 2), Answer::Wrong { tries_left });
    let calls = [answered(0, 10, zone_set(1), Answer::PinSet), wrong(20, 1), wrong(30, 0)];
    assert_right([&calls[..], &[refused(40, 50, change(1, 2), Refusal::PinLocked)]].concat());
    assert_unexplained([&calls[..], &[changed(40, 50, change(1, 2))]].concat(), 4);
    let exceeded = report([&calls[..], &[wrong(40, 0)]].concat()).totals.exceeded_tries;
    assert_eq!(exceeded.len(), 1);
}

#[test]
fn a_change_that_is_refused_leaves_the_pin() {
    let weak = Operation::ChangePin { device: None, old: Content::Pin(TestPin(1)), new: Content::WeakPin };
    let ends = [
        (weak, End::Answered(Answer::PinRefused)),
        (change(1, 2), End::Refused(Refusal::CardChanged)),
        (change(3, 2), End::Answered(Answer::Wrong { tries_left: 1 })),
    ];
    for (operation, end) in ends {
        let calls = [answered(0, 10, zone_set(1), Answer::PinSet), call(20, 30, operation, end)];
        assert_right([&calls[..], &[shown(40, 50, 1)]].concat());
        assert_unexplained([&calls[..], &[shown(40, 50, 2)]].concat(), 3);
    }
}

#[test]
fn a_change_by_a_device_spends_its_control() {
    let calls = [
        answered(0, 10, zone_set(1), Answer::PinSet),
        open(11, 12),
        issued(13, 14, 1),
        changed(20, 30, device_change(1, 2)),
    ];
    let second = device_change(2, 3);
    assert_right([&calls[..], &[refused(40, 50, second.clone(), Refusal::ControlNotUsable)]].concat());
    for again in [changed(40, 50, second), answered(40, 50, set(1, 1, 3), Answer::PinSet)] {
        let calls = [&calls[..], &[again]].concat();
        assert_unexplained(calls.clone(), 5);
        assert_eq!(report(calls).totals.reused_controls.len(), 1);
    }
}

#[test]
fn too_many_calls_at_once_get_no_verdict() {
    let sets = (1..=12).map(|pin| answered(0, 100, zone_set(pin), Answer::PinSet));
    let history = history(sets.chain([shown(200, 210, 99)]).collect());
    let report = Report::new(&history, SearchOptions { states_max: 1_000, ..SearchOptions::default() });
    assert!(!report.is_right() && report.no_order.is_empty(), "{report}");
    assert_eq!(report.undecided.len(), 1);
}

#[test]
fn the_report_prints_the_calls_up_to_the_unexplained_answer() {
    let calls = vec![answered(0, 10, zone_set(1), Answer::PinSet), shown(20, 30, 2), shown(40, 50, 1)];
    let printed = report(calls).no_order[0].to_string();
    let expected = "\
No order of these calls about card 1 explains their answers:
  0.000000 s to 0.010000 s, client 1 at engine a: SetPinByZone with block 1, PIN 1: PIN set
> 0.020000 s to 0.030000 s, client 1 at engine a: GetPinByZone: shown PIN 2
The marked answer is not possible. Before it, the card had:
- PIN 1, 0 tries used of 0 reserved
";
    assert_eq!(printed, expected);
}

#[test]
fn an_acknowledged_pin_that_is_not_found_is_lost() {
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    let lost = |calls| report(calls).totals.lost_pins.len();
    let wrong_pin = answered(40, 50, verify(1), Answer::Wrong { tries_left: 1 });
    assert_eq!(lost(vec![pin.clone(), wrong_pin.clone()]), 1);
    assert_eq!(lost(vec![pin.clone(), shown(40, 50, 1)]), 0);
    // A call that its client gave up before does not excuse it, a later one does.
    let earlier = call(0, 5, zone_set(2), GIVEN_UP);
    let acknowledged = answered(6, 10, zone_set(1), Answer::PinSet);
    assert_eq!(lost(vec![earlier, acknowledged, shown(40, 50, 2)]), 1);
    assert_eq!(lost(vec![pin.clone(), call(20, 30, zone_set(2), GIVEN_UP), wrong_pin]), 0);
    assert_eq!(report(vec![pin]).totals.unverified_cards, 1);
}

#[test]
fn a_control_with_two_blocks_is_used_twice() {
    let first = answered(30, 40, set(1, 1, 1), Answer::PinSet);
    let calls = |block| {
        let second = answered(50, 60, set(block, 1, 1), Answer::PinSet);
        vec![open(0, 10), issued(11, 20, 1), first.clone(), second]
    };
    assert_eq!(report(calls(1)).totals.reused_controls.len(), 0);
    assert_eq!(report(calls(2)).totals.reused_controls.len(), 1);
}

#[test]
fn wrong_pins_between_forgivenesses_are_counted() {
    let pin = answered(0, 10, zone_set(1), Answer::PinSet);
    let exceeded = |middle: Call| {
        let calls = vec![pin.clone(), wrong(20, 30, 1), wrong(40, 50, 0), middle, wrong(80, 90, 0)];
        report(calls).totals.exceeded_tries.len()
    };
    assert_eq!(exceeded(shown(60, 70, 1)), 1);
    assert_eq!(exceeded(refused(60, 70, verify(1), Refusal::PinLocked)), 1);
    assert_eq!(exceeded(right(60, 70)), 0);
    // The given-up reset may have forgiven.
    assert_eq!(exceeded(call(60, 70, Operation::ResetTries { up_to: 2 }, GIVEN_UP)), 0);
}

#[test]
fn calls_are_counted_by_engine() {
    let mut history = history(vec![
        answered(0, 10, zone_set(1), Answer::PinSet),
        call(20, 120, verify(1), GIVEN_UP),
        Call { engine: "b".into(), ..right(500, 510) },
        refused(600, 610, verify(1), Refusal::TryLater),
    ]);
    history.faults = vec![Fault { at: 15 * MILLISECOND, kind: FaultKind::EngineKilled, node: "a".into() }];
    let totals = Report::new(&history, SearchOptions::default()).totals;
    let a = &totals.engines["a"];
    assert_eq!((a.answered, a.given_up, a.refused, a.writes), (1, 1, 1, 1));
    assert_eq!((a.longest_gap, totals.all.longest_gap), (600 * MILLISECOND, 500 * MILLISECOND));
    assert_eq!((totals.acknowledged_pins, totals.right_after_fault, totals.faults), (1, 1, 1));
}
