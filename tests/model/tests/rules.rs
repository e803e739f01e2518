//! The rules hold in every interleaving within small limits, and a broken rule does not.

#![allow(clippy::panic, clippy::print_stdout, reason = "a test that meets a surprise must fail")]

use model::{
    card_model::{
        CardModel, EXPIRY, Fault, Limits, NEWEST_PIN, NEWEST_REQUEST, NEWEST_TZPK, OLDER_CONTROL, ON_DISK, RETRY,
        SINGLE_USE, SPENT_BEFORE_REPLY, Second,
    },
    report::Report,
};

const LIMITS: Limits = Limits { second: Second::SetPin, calls: 3, crashes: 1, lost_replies: 1, minutes: 0 };

fn holds(limits: Limits) {
    let report = Report::check(CardModel { limits, fault: None }, None);
    println!("{limits:?}: {report}");
    assert!(report.violated.is_empty(), "{limits:?}: {report}");
}

#[test]
fn two_controls_to_set_a_pin_keep_the_rules() {
    holds(LIMITS);
}

#[test]
fn a_control_opened_between_calls_keeps_the_rules() {
    holds(Limits { second: Second::SetPinLater, calls: 4, lost_replies: 0, ..LIMITS });
}

#[test]
fn a_control_to_view_keeps_the_rules() {
    holds(Limits { second: Second::ViewPin, calls: 4, lost_replies: 0, ..LIMITS });
}

#[test]
fn controls_that_expire_keep_the_rules() {
    holds(Limits { minutes: 1, lost_replies: 0, ..LIMITS });
}

/// The shortest path to the violation of the property by the broken rule.
fn violates(fault: Fault, property: &'static str, limits: Limits) {
    let report = Report::check(CardModel { limits, fault: Some(fault) }, Some(property));
    let found = report.violated.iter().find(|(name, _)| *name == property);
    let Some((_, steps)) = found else { panic!("{fault:?} does not violate: {property}") };
    assert!(!steps.is_empty());
}

#[test]
fn each_broken_rule_violates_its_property() {
    let later = Limits { second: Second::SetPinLater, calls: 4, crashes: 0, lost_replies: 0, ..LIMITS };
    let view = Limits { second: Second::ViewPin, calls: 4, crashes: 0, lost_replies: 0, ..LIMITS };
    violates(Fault::SpentStaysUsable, SINGLE_USE, LIMITS);
    violates(Fault::SpentStaysUsable, SINGLE_USE, view);
    violates(Fault::AnyTzpk, NEWEST_REQUEST, LIMITS);
    violates(Fault::AnyTzpk, NEWEST_TZPK, LIMITS);
    violates(Fault::AnyGeneration, OLDER_CONTROL, LIMITS);
    violates(Fault::RetryOfAnyPin, RETRY, later);
    violates(Fault::RetryKeepsGeneration, OLDER_CONTROL, later);
    violates(Fault::AnyRecord, NEWEST_PIN, view);
    violates(Fault::NoExpiry, EXPIRY, Limits { minutes: 1, ..LIMITS });
    violates(Fault::ReplyBeforeSync, SPENT_BEFORE_REPLY, LIMITS);
    violates(Fault::ReplyBeforeSync, ON_DISK, LIMITS);
}
