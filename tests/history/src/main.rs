//! `pinseal-history check FILE`: checks a recording. Exit code 0: right; 1: wrong; 2: no verdict.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use std::fs::File;
use std::io::BufReader;
use std::process::ExitCode;

use history::history::History;
use history::order_search::SearchOptions;
use history::recorder::ReadError;
use history::report::Report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, file] = arguments.as_slice() else { return usage() };
    if command != "check" {
        return usage();
    }
    match check(file) {
        Ok(report) => {
            print!("{report}");
            match (report.is_right(), report.is_wrong()) {
                (true, _) => ExitCode::SUCCESS,
                (false, true) => ExitCode::FAILURE,
                (false, false) => ExitCode::from(2),
            }
        }
        Err(error) => {
            eprintln!("{file}: {error}");
            ExitCode::from(2)
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("pinseal-history check FILE");
    ExitCode::from(2)
}

fn check(file: &str) -> Result<Report, ReadError> {
    let history = History::read(BufReader::new(File::open(file)?))?;
    Ok(Report::new(&history, SearchOptions::default()))
}
