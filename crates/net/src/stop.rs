//! The signals that stop a service, and the lines that it prints for its operator.

use std::{
    fmt,
    io::{self, Write},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Prints a line to standard output. A closed pipe is ignored: the service keeps serving.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Listens for SIGTERM and SIGINT. Create this before the service reports that it serves, so that an early signal stops the
/// service cleanly.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Installs the handlers: from now on neither signal ends the process.
    ///
    /// # Errors
    /// The operating system rejects a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns when one of the signals arrives, or at once if one has arrived before.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
