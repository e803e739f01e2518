//! `pinseal-model CALLS CRASHES`: checks the rules within these limits, with each kind of second control.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::process::ExitCode;

use model::{
    card_model::{CardModel, Limits, Second},
    report::Report,
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
    code
}
