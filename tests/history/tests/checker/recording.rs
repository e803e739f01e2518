//! Recordings are written by many tasks, read after a crash, and checked by the program.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::thread;

use history::history::{Answer, BlockNumber, Content, End, FaultKind, GiveUp, History, Operation, TestPin};
use history::recorder::{ReadError, Recorder};
use tempfile::TempDir;

use crate::simulation::setup;

fn read(path: &Path) -> Result<History, ReadError> {
    History::read(BufReader::new(File::open(path).unwrap()))
}

fn verify() -> Operation {
    Operation::VerifyPin { entered: Content::Pin(TestPin(1)) }
}

/// The exit code of the program.
fn check(path: &Path) -> Option<i32> {
    let program = env!("CARGO_BIN_EXE_pinseal-history");
    let output = Command::new(program).arg("check").arg(path).output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output.status.code()
}

#[test]
fn many_tasks_record_into_one_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run");
    let recorder = Recorder::create(&path, setup()).unwrap();
    thread::scope(|scope| {
        for client in 0..8 {
            let recorder = recorder.clone();
            scope.spawn(move || {
                let card = client.to_string();
                for pin in 1..=20 {
                    let block = BlockNumber(recorder.next_number());
                    let set = Operation::SetPinByZone { block, pin: TestPin(pin) };
                    recorder.start(client, "a", &card, set).unwrap().end(End::Answered(Answer::PinSet)).unwrap();
                }
                let call = recorder.start(client, "a", &card, Operation::GetPinByZone).unwrap();
                call.end(End::Answered(Answer::PinShown { pin: TestPin(20) })).unwrap();
            });
        }
    });
    recorder.fault(FaultKind::LeaderKilled, "node-1").unwrap();
    let history = read(&path).unwrap();
    assert_eq!((history.calls.len(), history.faults.len(), history.setup), (168, 1, setup()));
    assert!(history.calls.iter().all(|call| call.invoked_at <= call.ended_at));
    assert_eq!(check(&path), Some(0));
}

#[test]
fn a_dropped_call_is_given_up() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run");
    let recorder = Recorder::create(&path, setup()).unwrap();
    drop(recorder.start(1, "a", "1", verify()).unwrap());
    assert_eq!(read(&path).unwrap().calls[0].end, End::GivenUp(GiveUp::Cancelled));
}

#[test]
fn a_recording_that_a_crash_cut_off_is_read() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run");
    let recorder = Recorder::create(&path, setup()).unwrap();
    let call = recorder.start(1, "a", "1", verify()).unwrap();
    let started = fs::read(&path).unwrap();
    call.end(End::Answered(Answer::Right { tries_left: 3 })).unwrap();
    // The card has no PIN.
    assert_eq!(check(&path), Some(1));
    let whole = fs::read(&path).unwrap();
    for length in started.len()..whole.len() - 1 {
        fs::write(&path, &whole[..length]).unwrap();
        let call = &read(&path).unwrap().calls[0];
        assert_eq!((&call.end, call.ended_at), (&End::GivenUp(GiveUp::NotRecorded), u64::MAX));
    }
    assert_eq!(check(&path), Some(0));
}

#[test]
fn what_is_no_recording_is_rejected() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run");
    fs::write(&path, "").unwrap();
    assert!(matches!(read(&path), Err(ReadError::NoSetup)));
    assert_eq!(check(&path), Some(2));

    let recorder = Recorder::create(&path, setup()).unwrap();
    recorder.start(1, "a", "1", verify()).unwrap().end(End::Answered(Answer::Wrong { tries_left: 1 })).unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap().replacen('\n', "\nnot a line\n", 1)).unwrap();
    assert!(matches!(read(&path), Err(ReadError::Malformed { line: 2, .. })));

    let recorder = Recorder::create(&path, setup()).unwrap();
    recorder.start(1, "a", "1", verify()).unwrap().end(End::Answered(Answer::PinSet)).unwrap();
    assert!(matches!(read(&path), Err(ReadError::OtherAnswer { .. })));

    let recorder = Recorder::create(&path, setup()).unwrap();
    recorder.start(1, "a", "1", verify()).unwrap().end(End::Answered(Answer::Wrong { tries_left: 1 })).unwrap();
    let twice = fs::read_to_string(&path).unwrap();
    let ended = twice.lines().last().unwrap();
    fs::write(&path, format!("{twice}{ended}\n{ended}\n")).unwrap();
    assert!(matches!(read(&path), Err(ReadError::NotOpen { line: 4, .. })));
}
