//! The signals that stop a service, and the lines that it prints for its operator.

use std::{
    fmt,
    io::{self, Write},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// To whoever reads what a service prints; it serves on where nobody does any more.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line to standard error.
pub fn warn(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// SIGTERM and SIGINT, listened for before it is told that anything serves: who knows of it may stop it in order.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From here on neither of them ends the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Until one of them has come, or had.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
