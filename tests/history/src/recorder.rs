//! Records calls as lines of JSON, and reads them.
//!
//! A line is written when a call starts and when it ends, so the recording of a run that crashed can be checked: a call without
//! an end counts as given up. The first line has the [`Setup`]. A last line that is cut off is left out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::history::{Answer, Call, End, Fault, FaultKind, GiveUp, History, Nanos, Operation, Setup};

const FORMAT: &str = "pinseal-history/1; PINs are numbers of test PINs, times are monotonic nanoseconds";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Run { format: String, setup: Setup },
    Started { id: u64, at: Nanos, client: u32, engine: String, card: String, operation: Operation },
    Ended { id: u64, at: Nanos, end: End },
    Fault(Fault),
}

/// Records the calls of one run. Clones record into the same file, from any number of tasks.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    start: Instant,
    next: AtomicU64,
    file: Mutex<File>,
}

impl Recorder {
    /// Creates the file of a run.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn create(path: &Path, setup: Setup) -> io::Result<Self> {
        let (start, next) = (Instant::now(), AtomicU64::new(1));
        let shared = Shared { start, next, file: Mutex::new(File::create(path)?) };
        shared.write(&Line::Run { format: FORMAT.into(), setup })?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A number that this run has not used: for a call, a tzpk or a block.
    pub fn next_number(&self) -> u64 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Records that a client sends a call. The caller sends it after this returns.
    ///
    /// # Errors
    /// The file cannot be written: do not send the call.
    pub fn start(&self, client: u32, engine: &str, card: &str, operation: Operation) -> io::Result<OpenCall> {
        let (id, at) = (self.next_number(), self.shared.now());
        let (engine, card) = (engine.into(), card.into());
        self.shared.write(&Line::Started { id, at, client, engine, card, operation })?;
        Ok(OpenCall { shared: Arc::clone(&self.shared), id, is_open: true })
    }

    /// Records a fault that the harness causes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn fault(&self, kind: FaultKind, node: &str) -> io::Result<()> {
        self.shared.write(&Line::Fault(Fault { at: self.shared.now(), kind, node: node.into() }))
    }
}

impl Shared {
    fn now(&self) -> Nanos {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn write(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text)
    }
}

/// A call that was sent. Dropped without [`OpenCall::end`], it is recorded as given up.
pub struct OpenCall {
    shared: Arc<Shared>,
    id: u64,
    is_open: bool,
}

impl OpenCall {
    /// Records the end of the call. The caller has the answer, or has stopped waiting for it.
    ///
    /// # Errors
    /// The file cannot be written. The recording then has no end of the call.
    pub fn end(mut self, end: End) -> io::Result<()> {
        self.is_open = false;
        self.shared.write(&Line::Ended { id: self.id, at: self.shared.now(), end })
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.is_open {
            let end = End::GivenUp(GiveUp::Cancelled);
            // A call without an end counts as given up too.
            let _ = self.shared.write(&Line::Ended { id: self.id, at: self.shared.now(), end });
        }
    }
}

/// Why a recording cannot be checked.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("the recording cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The first line is not the setup of a run.
    #[error("the first line is not the setup of a run: check that the file is a recording of this version")]
    NoSetup,
    /// A line is malformed, or is not the first and has a setup.
    #[error("line {line} is malformed: {error}")]
    Malformed {
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong.
        error: String,
    },
    /// A line ends a call that was not started, or ended before.
    #[error("line {line} ends call {id}, which is not open")]
    NotOpen {
        /// The number of the line, from 1.
        line: usize,
        /// The number of the call.
        id: u64,
    },
    /// A call ends before it was invoked.
    #[error("call {id} ends before it starts: record with one monotonic clock")]
    Times {
        /// The number of the call.
        id: u64,
    },
    /// A call has an answer of another operation.
    #[error("call {id} has an answer that its operation cannot have: {call}")]
    OtherAnswer {
        /// The number of the call.
        id: u64,
        /// The call in words.
        call: String,
    },
}

impl History {
    /// Reads a recording.
    ///
    /// # Errors
    /// [`ReadError`]: the recording is not what a [`Recorder`] writes.
    pub fn read(lines: impl BufRead) -> Result<Self, ReadError> {
        let mut lines = lines.split(b'\n').enumerate().peekable();
        let setup = match lines.next() {
            Some((_, line)) => match serde_json::from_slice(&line?) {
                Ok(Line::Run { format, setup }) if format == FORMAT => setup,
                _ => return Err(ReadError::NoSetup),
            },
            None => return Err(ReadError::NoSetup),
        };
        let (mut history, mut open) = (Self { setup, calls: Vec::new(), faults: Vec::new() }, HashMap::new());
        while let Some((at, line)) = lines.next() {
            let (number, line) = (at.saturating_add(1), line?);
            match serde_json::from_slice(&line) {
                Ok(Line::Started { id, at, client, engine, card, operation }) => {
                    open.insert(id, history.calls.len());
                    let (end, ended_at) = (End::GivenUp(GiveUp::NotRecorded), Nanos::MAX);
                    history.calls.push(Call { id, client, engine, card, invoked_at: at, ended_at, operation, end });
                }
                Ok(Line::Ended { id, at, end }) => {
                    let call = open.remove(&id).and_then(|index| history.calls.get_mut(index));
                    let call = call.ok_or(ReadError::NotOpen { line: number, id })?;
                    (call.ended_at, call.end) = (at, end);
                }
                Ok(Line::Fault(fault)) => history.faults.push(fault),
                Ok(Line::Run { .. }) => {
                    return Err(ReadError::Malformed { line: number, error: "a second setup".into() });
                }
                // The process ended while it wrote the last line.
                Err(_) if lines.peek().is_none() => {}
                Err(error) => return Err(ReadError::Malformed { line: number, error: error.to_string() }),
            }
        }
        history.calls.sort_by_key(|call| (call.invoked_at, call.id));
        history.faults.sort_by_key(|fault| fault.at);
        history.validate()?;
        Ok(history)
    }

    fn validate(&self) -> Result<(), ReadError> {
        for call in &self.calls {
            let id = call.id;
            if call.ended_at < call.invoked_at {
                return Err(ReadError::Times { id });
            }
            if let End::Answered(answer) = &call.end
                && !is_answer_of(&call.operation, answer)
            {
                return Err(ReadError::OtherAnswer { id, call: call.to_string() });
            }
        }
        Ok(())
    }
}

fn is_answer_of(operation: &Operation, answer: &Answer) -> bool {
    match answer {
        Answer::Opened { .. } => matches!(operation, Operation::OpenControl { .. }),
        Answer::Issued { .. } => matches!(operation, Operation::IssueTzpk { .. }),
        Answer::PinSet => matches!(operation, Operation::SetPin { .. } | Operation::SetPinByZone { .. }),
        Answer::PinUnchanged => matches!(operation, Operation::SetPinByZone { .. }),
        Answer::PinShown { .. } => matches!(operation, Operation::ViewPin { .. } | Operation::GetPinByZone),
        Answer::Right { .. } | Answer::Wrong { .. } => operation.uses_try(),
        Answer::TriesReset { .. } => matches!(operation, Operation::ResetTries { .. }),
        Answer::Malformed => operation.uses_try() || matches!(operation, Operation::SetPin { .. }),
        Answer::PinRefused => matches!(operation, Operation::ChangePin { .. } | Operation::SetPin { .. }),
    }
}
