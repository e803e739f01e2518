//! The checker accepts a right store and finds each broken rule.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that meets a surprise must fail"
)]

mod hand_made;
mod recording;
mod simulated_store;
mod simulation;

use std::collections::BTreeSet;
use std::fmt::Debug;

use history::history::{Call, End};
use history::order_search::SearchOptions;
use history::report::Report;
use simulated_store::Broken;
use simulation::{play, play_calls};

const SEEDS: u64 = 2_000;

/// `PINSEAL_HISTORY_SEEDS=50000` plays more runs of the right store.
#[test]
fn a_right_store_passes_every_seed() {
    let seeds = std::env::var("PINSEAL_HISTORY_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let mut undecided = 0;
    for seed in 0..seeds {
        let report = Report::new(&play(seed, None), SearchOptions::default());
        assert!(!report.is_wrong(), "seed {seed}:\n{report}");
        undecided += report.undecided.len();
    }
    // One call in ten is given up here. A run without a verdict is rare even so.
    assert!(undecided as u64 <= seeds / 2_000, "{undecided} runs have no verdict");
}

/// The name of a variant, without its fields.
fn variant(value: &impl Debug) -> String {
    format!("{value:?}").chars().take_while(|character| character.is_alphanumeric()).collect()
}

#[test]
fn the_simulation_reaches_every_answer() {
    let mut reached = BTreeSet::new();
    for call in (0..SEEDS).flat_map(|seed| play(seed, None).calls) {
        let end = match call.end {
            End::Answered(answer) => variant(&answer),
            End::Refused(refusal) => variant(&refusal),
            End::GivenUp(reason) => variant(&reason),
        };
        reached.insert(format!("{} {end}", variant(&call.operation)));
    }
    let always = ["DeadlinePassed", "Unavailable", "ConnectionLost"];
    let control = ["ControlNotUsable", "ScopeMismatch"];
    let tries = ["Right", "Wrong", "Malformed", "PinLocked", "PinNotSet"];
    for (operation, ends) in [
        ("OpenControl", &["Opened"][..]),
        ("IssueTzpk", &["Issued"]),
        ("SetPin", &["ControlNotUsable", "PinSet", "Malformed", "PinRefused", "TzpkMissing"]),
        ("ViewPin", &["PinShown", "PinNotSet"]),
        ("SetPinByZone", &["PinSet", "PinUnchanged", "BlockReplaced"]),
        ("GetPinByZone", &["PinShown", "PinNotSet"]),
        ("VerifyPin", &[]),
        ("ChangePin", &["ControlNotUsable", "PinRefused", "CardChanged", "TzpkMissing"]),
        ("ResetTries", &["TriesReset", "TryCountInvalid", "CardUnknown"]),
    ] {
        let uses_control = matches!(operation, "IssueTzpk" | "ViewPin");
        let uses_try = matches!(operation, "VerifyPin" | "ChangePin");
        let of_controls = control.iter().filter(|_| uses_control);
        let of_tries = tries.iter().filter(|_| uses_try);
        for end in ends.iter().chain(&always).chain(of_controls).chain(of_tries) {
            let pair = format!("{operation} {end}");
            assert!(reached.contains(&pair), "{pair} is not reached, only {reached:#?}");
        }
    }
}

#[test]
fn a_long_run_of_many_cards_is_checked() {
    let mut run = play_calls(0, None, 130, 1);
    for card in 1..100 {
        let of_card = |call| Call { card: format!("card {card}"), ..call };
        run.calls.extend(play_calls(card, None, 130, 1).calls.into_iter().map(of_card));
    }
    let report = Report::new(&run, SearchOptions::default());
    assert!(report.is_right(), "{report}");
    assert!(report.totals.cards == 100 && run.calls.len() > 39_000, "{report}");
}

/// The first finding of the checker in the histories of a store that breaks one rule.
fn finding(broken: Broken) -> Report {
    let check = |seed| Report::new(&play(seed, Some(broken)), SearchOptions::default());
    let found = (0..SEEDS).map(|seed| (seed, check(seed))).find(|(_, report)| report.is_wrong());
    let (seed, report) = found.unwrap_or_else(|| panic!("{broken:?} is not found within {SEEDS} seeds"));
    println!("{broken:?}, seed {seed}: {report}");
    report
}

#[test]
fn finds_a_tzpk_that_replaces_a_newer_one_late() {
    finding(Broken::LateTzpk);
}

#[test]
fn finds_a_zone_set_that_comes_after_a_newer_pin() {
    finding(Broken::LateZoneSet);
}

#[test]
fn finds_a_call_that_runs_after_its_client_gave_up() {
    finding(Broken::DeadlineIgnored);
}

#[test]
fn finds_a_refused_call_that_takes_effect() {
    finding(Broken::RefusedThenSet);
}

#[test]
fn finds_an_acknowledged_change_that_a_failover_loses() {
    finding(Broken::AnsweredBeforeReplication);
}

#[test]
fn finds_an_acknowledged_pin_that_was_not_written() {
    finding(Broken::AcknowledgedUnwritten);
}

#[test]
fn finds_a_reencryption_that_replaces_a_newer_pin() {
    finding(Broken::ReencryptedOverNewer);
}

#[test]
fn finds_a_view_of_a_replaced_pin() {
    finding(Broken::StaleRead);
}

#[test]
fn finds_a_control_that_sets_two_pins() {
    finding(Broken::ControlUsedTwice);
}

#[test]
fn finds_a_control_that_shows_the_pin_twice() {
    finding(Broken::ControlViewedTwice);
}

#[test]
fn finds_a_set_under_a_control_that_a_newer_pin_closed() {
    finding(Broken::AnyGeneration);
}

#[test]
fn finds_a_block_under_a_replaced_tzpk() {
    finding(Broken::AnyTzpk);
}

#[test]
fn finds_a_set_after_the_expiry() {
    finding(Broken::SetAfterExpiry);
}

#[test]
fn finds_a_control_that_outlives_a_malformed_block() {
    finding(Broken::MalformedLeavesControl);
}

#[test]
fn finds_a_control_with_unlimited_refused_pins() {
    finding(Broken::RefusedPinsUnlimited);
}

#[test]
fn finds_a_retry_confirmed_after_replacement() {
    finding(Broken::RetryAfterReplacement);
}

#[test]
fn finds_a_retry_that_leaves_other_controls_open() {
    finding(Broken::RetryKeepsGeneration);
}

#[test]
fn finds_a_replaced_zone_block_that_sets_again() {
    finding(Broken::ReplacedBlockSetsAgain);
}

#[test]
fn finds_a_change_that_replaces_a_newer_pin() {
    finding(Broken::ChangeOverNewer);
}

#[test]
fn finds_a_try_above_the_limit() {
    finding(Broken::OneTryMore);
}

#[test]
fn finds_a_card_locked_too_early() {
    finding(Broken::OneTryLess);
}

#[test]
fn finds_a_wrong_pin_that_uses_no_try() {
    finding(Broken::WrongNotCounted);
}

#[test]
fn finds_a_new_pin_that_forgives_tries() {
    finding(Broken::NewPinForgives);
}

#[test]
fn finds_a_right_pin_that_forgives_later_tries() {
    finding(Broken::RightForgivesAll);
}

#[test]
fn finds_a_reset_that_forgives_unseen_tries() {
    finding(Broken::ResetForgivesAll);
}

#[test]
fn finds_a_right_pin_answered_wrong() {
    finding(Broken::RightAnsweredWrong);
}

#[test]
fn finds_a_call_that_costs_two_tries() {
    finding(Broken::ChargedTwice);
}
