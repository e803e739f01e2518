//! `pinseal-model CALLS CRASHES`: checks the rules within these limits: controls, with each kind of second control, and tries, with and without changes.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::process::ExitCode;

use model::{
    card_model::{CardModel, Limits, Second},
    report::Report,
    try_model::{self, TryModel},
};

fn main() -> ExitCode {
    let numbers: Vec<u8> = std::env::args().skip(1).filter_map(|number| number.parse().ok()).collect();
    let [calls, crashes] = numbers[..] else {
        eprintln!("pinseal-model CALLS CRASHES, such as 4 1");
        return ExitCode::from(2);
    };
    let mut code = ExitCode::SUCCESS;
    for second in [Second::SetPin, Second::SetPinLater, Second::ViewPin] {
        let limits = Limits { second, calls, crashes, lost_replies: 1, minutes: 1 };
        let report = Report::check(CardModel { limits, fault: None }, None);
        println!("{limits:?}: {report}");
        if !report.violated.is_empty() {
            code = ExitCode::FAILURE;
        }
    }
    for changes in [false, true] {
        let sets = u8::from(changes);
        let limits = try_model::Limits { tries: 2, calls, changes, sets, resets: 1 - sets, crashes, lost: 1 };
        let report = Report::check(TryModel::<3> { limits, fault: None }, None);
        println!("{limits:?}: {report}");
        if !report.violated.is_empty() {
            code = ExitCode::FAILURE;
        }
    }
    code
}
