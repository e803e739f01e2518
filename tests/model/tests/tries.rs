//! The rules of tries hold in every interleaving within small limits, and a broken rule does not.

#![allow(clippy::panic, clippy::print_stdout, reason = "a test that meets a surprise must fail")]

use model::{
    report::Report,
    try_model::{COMPARED_PIN, Fault, LATER, LIMIT, Limits, ON_DISK, ONCE, SETTLED_ONCE, TryModel},
};

const LIMITS: Limits = Limits { tries: 2, calls: 4, changes: false, sets: 0, resets: 0, crashes: 1, lost: 1 };

fn holds<const CALLERS: usize>(limits: Limits) {
    let report = Report::check(TryModel::<CALLERS> { limits, fault: None }, None);
    println!("{CALLERS} callers, {limits:?}: {report}");
    assert!(report.violated.is_empty(), "{limits:?}: {report}");
}

#[test]
fn three_callers_with_a_crash_and_a_lost_reply_keep_the_limit() {
    holds::<3>(LIMITS);
}

#[test]
fn two_crashes_allow_no_more_tries() {
    holds::<2>(Limits { crashes: 2, ..LIMITS });
}

#[test]
fn a_reset_that_waits_forgives_no_later_try() {
    holds::<3>(Limits { resets: 1, lost: 0, ..LIMITS });
}

#[test]
fn changes_and_new_pins_keep_the_rules() {
    holds::<3>(Limits { calls: 3, changes: true, sets: 1, lost: 0, ..LIMITS });
}

/// The shortest path to the violation of the property by the broken rule.
fn violates(fault: Fault, property: &'static str, limits: Limits) {
    let report = Report::check(TryModel::<3> { limits, fault: Some(fault) }, Some(property));
    let found = report.violated.iter().find(|(name, _)| *name == property);
    let Some((_, steps)) = found else { panic!("{fault:?} does not violate: {property}") };
    assert!(!steps.is_empty());
}

#[test]
fn each_broken_rule_of_tries_violates_its_property() {
    let calm = Limits { crashes: 0, lost: 0, ..LIMITS };
    violates(Fault::ComparesBeforeSync, ONCE, LIMITS);
    violates(Fault::ComparesBeforeSync, LIMIT, LIMITS);
    violates(Fault::OneMore, LIMIT, calm);
    violates(Fault::RightForgivesAll, LATER, calm);
    violates(Fault::RightForgivesAll, LIMIT, Limits { calls: 5, ..calm });
    violates(Fault::ResetForgivesAll, LIMIT, Limits { resets: 1, ..calm });
    violates(Fault::NewPinForgives, LIMIT, Limits { sets: 1, ..calm });
    violates(Fault::SettlesAgain, SETTLED_ONCE, Limits { calls: 1, ..LIMITS });
    violates(Fault::AnyGeneration, COMPARED_PIN, Limits { calls: 2, changes: true, sets: 1, ..calm });
    violates(Fault::ReplyBeforeSync, ON_DISK, LIMITS);
}
