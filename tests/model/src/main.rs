//! `pinseal-model CALLS CRASHES` checks the rules for one engine, `pinseal-model all|rejected|PART` the designs for several.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use model::{
    card_model::{CardModel, Limits, Second},
    rejected_design::RejectedDesign,
    report::Report,
    scenario::Scenario,
    try_model::{self, TryModel},
};

const USAGE: &str = "\
pinseal-model CALLS CRASHES   one engine, such as 4 1
pinseal-model all             several engines: every recommended design, then every rejected one
pinseal-model rejected        several engines: every rejected design, with the steps to its violation
pinseal-model PART            several engines: the recommended designs whose name contains PART, such as set_pin";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let holds = match arguments[..] {
        ["all"] => {
            let recommended = recommended("");
            rejected(false) && recommended
        }
        ["rejected"] => rejected(true),
        [part] if Scenario::all().iter().any(|scenario| scenario.name.contains(part)) => recommended(part),
        [calls, crashes] => match (calls.parse(), crashes.parse()) {
            (Ok(calls), Ok(crashes)) => one_engine(calls, crashes),
            _ => return usage(),
        },
        _ => return usage(),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// Whether the rules hold for one engine and its embedded store.
fn one_engine(calls: u8, crashes: u8) -> bool {
    let mut holds = true;
    for second in [Second::SetPin, Second::SetPinLater, Second::ViewPin] {
        let limits = Limits { second, calls, crashes, lost_replies: 1, minutes: 1 };
        let report = Report::check(CardModel { limits, fault: None }, None);
        println!("{limits:?}: {report}");
        holds &= report.violated.is_empty();
    }
    for changes in [false, true] {
        let sets = u8::from(changes);
        let limits = try_model::Limits { tries: 2, calls, changes, sets, resets: 1 - sets, crashes, lost: 1 };
        let report = Report::check(TryModel::<3> { limits, fault: None }, None);
        println!("{limits:?}: {report}");
        holds &= report.violated.is_empty();
    }
    holds
}

/// Whether the recommended designs hold whose name contains `part`. Prints a row for each.
fn recommended(part: &str) -> bool {
    let mut holds = true;
    println!("| recommended design | states | depth | s | path to service, s |\n|---|---|---|---|---|");
    for scenario in Scenario::all().into_iter().filter(|scenario| scenario.name.contains(part)) {
        let (report, time) = timed(&scenario.check);
        let recovery = scenario.check_recovery.as_ref().map(timed);
        let service = recovery.as_ref().map_or("not run".to_owned(), |(_, time)| format!("{:.1}", time.as_secs_f64()));
        let (states, depth) = (report.states, report.depth);
        println!("| {} | {states} | {depth} | {:.1} | {service} |", scenario.name, time.as_secs_f64());
        for report in [Some(report), recovery.map(|(report, _)| report)].into_iter().flatten() {
            if !report.violated.is_empty() {
                println!("{report}");
                holds = false;
            }
        }
    }
    holds
}

/// Whether each rejected design violates its property. Prints a row for each, and on request the steps.
fn rejected(with_steps: bool) -> bool {
    let mut holds = true;
    println!("| rejected design | breaks | violates | steps | states |\n|---|---|---|---|---|");
    for RejectedDesign { name, rules, property, check } in RejectedDesign::all() {
        let report = check();
        let path = report.path_to(property);
        holds &= path.is_some();
        let steps = path.map_or("none".to_owned(), |path| path.len().to_string());
        let letter = property.split(':').next().unwrap_or_default();
        println!("| {name} | {rules} | {letter} | {steps} | {} |", report.states);
        for step in path.filter(|_| with_steps).unwrap_or_default() {
            println!("    {step}");
        }
    }
    holds
}

fn timed(check: impl Fn() -> Report) -> (Report, Duration) {
    let start = Instant::now();
    (check(), start.elapsed())
}
