//! A process that outlives the harness, and then stops what the harness started.

use std::{
    ffi::OsString,
    io::Write,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

/// The script of the cluster, which is the guard too.
pub(crate) fn script() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "patroni-cluster.sh"].iter().collect()
}

/// Stops the cluster and every noted process when it is dropped, or when this process ends for any reason.
pub struct Guard {
    child: Child,
    notes: Notes,
}

/// The connection to the guard.
#[derive(Clone)]
pub struct Notes(Arc<Mutex<Option<ChildStdin>>>);

impl Guard {
    /// Starts the guard of the cluster with this environment, in a process group that no signal to the harness reaches.
    pub fn start(environment: &[(&'static str, OsString)]) -> Self {
        let mut command = Command::new(script());
        command.arg("guard").envs(environment.iter().cloned()).stdin(Stdio::piped()).process_group(0);
        // A reader of the harness's output must not wait for the guard.
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let notes = Notes(Arc::new(Mutex::new(child.stdin.take())));
        Self { child, notes }
    }

    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.notes.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.child.wait();
    }
}

impl Notes {
    /// Notes a process that must not outlive the harness.
    pub fn started(&self, process: u32) {
        self.write(&format!("+{process}\n"));
    }

    /// Notes that this process has ended.
    pub fn ended(&self, process: u32) {
        self.write(&format!("-{process}\n"));
    }

    fn write(&self, line: &str) {
        if let Some(input) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = input.write_all(line.as_bytes());
        }
    }
}
