//! `pinseal-failover three | twelve | known-loss | away | away-frozen`: README.md. Exit code 0: as it must be.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::{path::Path, process::ExitCode, time::Duration};

use failover::{
    cluster::Patroni,
    fault::{Fault, THREE, TWELVE},
    outage::{self, Away},
    run::Harness,
    traffic::DEADLINE,
};

/// The stalls of the blind check.
const STALLS_MAX: u32 = 5;
/// The stall at which Debian's Patroni was measured.
const STALL: Duration = Duration::from_secs(25);
/// How long the database is away.
const AWAY: Duration = Duration::from_secs(60);
/// After its return the service may need this long.
const BACK_MAX: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_as_it_must_be = match arguments.as_slice() {
        ["three"] => run(THREE),
        ["twelve"] => run(TWELVE),
        ["known-loss"] => shows_known_loss(),
        ["away"] => away(Away::Stopped),
        ["away-frozen"] => away(Away::Frozen),
        _ => return usage(),
    };
    if is_as_it_must_be { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("pinseal-failover three | twelve | known-loss | away | away-frozen");
    ExitCode::from(2)
}

fn run(faults: &[Fault]) -> bool {
    let harness = Harness::start(Patroni::Pinned);
    let report = harness.run(0, faults, Path::new("failover.jsonl"));
    print!("{report}");
    if !report.is_right() {
        print!("{}", harness.deployment.logs());
    }
    report.is_right()
}

/// Whether the harness finds what Debian's Patroni loses. Each stall has a new cluster: the one before may not recover.
fn shows_known_loss() -> bool {
    for stall in 1..=STALLS_MAX {
        let run = || {
            let harness = Harness::start(Patroni::Debian);
            harness.run(stall, &[Fault::PostgresStalled(STALL)], Path::new("known-loss.jsonl"))
        };
        // A service that does not come back is no finding.
        let Ok(report) = std::panic::catch_unwind(run) else { continue };
        println!("stall {stall}:\n{report}");
        if report.lost() > 0 {
            println!("{} cards do not have their acknowledged PIN: this is the known loss", report.lost());
            return true;
        }
    }
    println!("no loss after {STALLS_MAX} stalls: the harness is blind, or this Patroni is not Debian's 3.0.2");
    false
}

fn away(kind: Away) -> bool {
    let file = match kind {
        Away::Stopped => "away.jsonl",
        Away::Frozen => "away-frozen.jsonl",
    };
    let outage = outage::run(kind, AWAY, Path::new(file));
    print!("{outage}");
    // Edge and engine answer within their deadlines.
    let is_in_time = Duration::from_nanos(outage.run.longest_wait) < DEADLINE;
    outage.is_right() && is_in_time && outage.back.iter().all(|back| *back <= BACK_MAX)
}
