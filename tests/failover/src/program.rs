//! A service that a supervisor starts again when it ends, as a service manager would.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use postgres_server::process_tree;

use crate::{guard::Notes, times::PATIENCE};

/// How often the supervisor looks.
const PERIOD: Duration = Duration::from_millis(100);
/// The pause before a service that has ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// How a service is started.
#[derive(Clone)]
pub struct Start {
    pub name: String,
    pub subcommand: &'static str,
    pub config: PathBuf,
    pub log: PathBuf,
    pub environment: Vec<(&'static str, PathBuf)>,
    pub notes: Notes,
}

/// A process of a service that listens.
pub struct Program {
    child: Child,
    notes: Notes,
}

impl Program {
    /// Starts a service, and waits until it listens. `None` if it ends before, or if `is_wanted` says that nobody waits.
    pub fn start(start: &Start, is_wanted: impl Fn() -> bool) -> Option<Self> {
        let log = File::options().create(true).append(true).open(&start.log).unwrap();
        let mut child = Command::new(support::pinseal_path())
            .args([start.subcommand, "--config"])
            .arg(&start.config)
            .envs(start.environment.iter().cloned())
            .env("RUST_LOG", "info,cryptoki=off")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        start.notes.started(child.id());
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let program = Self { child, notes: start.notes.clone() };
        let (sender, first) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let listens = output.read_line(&mut line).is_ok_and(|bytes| bytes > 0);
            // Nobody waits any more where the start lasted too long.
            let _ = sender.send(listens);
            // A service that writes into a closed pipe would end.
            let _ = std::io::copy(&mut output, &mut std::io::sink());
        });
        let since = Instant::now();
        while is_wanted() && since.elapsed() < PATIENCE {
            match first.recv_timeout(PERIOD) {
                Ok(listens) => return listens.then_some(program),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        self.notes.ended(self.id());
        status
    }

    /// Ends the process, if it runs, and waits for its end.
    fn end(&mut self) {
        let _ = self.child.kill();
        self.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a process of a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Signal(i32),
    Code(i32),
    /// Before it listened.
    AtStart,
}

/// A supervised service.
pub struct Service {
    pub start: Start,
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
    stop: Option<mpsc::Sender<()>>,
}

struct Shared {
    program: Mutex<Option<Program>>,
    /// How the process ended, each time.
    exits: Mutex<Vec<Exit>>,
    is_stopped: AtomicBool,
}

impl Service {
    /// Starts a service and its supervisor.
    pub fn start(start: Start) -> Self {
        let program = Program::start(&start, || true);
        let log = || fs::read_to_string(&start.log).unwrap_or_default();
        assert!(program.is_some(), "{} did not start: {}", start.name, log());
        let shared = Arc::new(Shared {
            program: Mutex::new(program),
            exits: Mutex::new(Vec::new()),
            is_stopped: AtomicBool::new(false),
        });
        let (stop, stopped) = mpsc::channel();
        let (looks, how) = (Arc::clone(&shared), start.clone());
        let supervisor = thread::spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
                looks.restart_if_ended(&how);
            }
        });
        Self { start, shared, supervisor: Some(supervisor), stop: Some(stop) }
    }

    /// The process, if one runs.
    pub fn id(&self) -> Option<u32> {
        locked(&self.shared.program).as_ref().map(Program::id)
    }

    /// Resident memory of the service, in KiB.
    pub fn resident_kibibytes(&self) -> u64 {
        let id = self.id().expect("the service runs");
        support::engine_process::status_of(id, "VmRSS:").parse().unwrap()
    }

    /// Sends SIGKILL to the service, and waits for its end. Its supervisor starts it again.
    pub fn kill_and_wait(&self) {
        let exits = self.exits().len();
        if let Some(program) = locked(&self.shared.program).as_mut() {
            program.child.kill().unwrap();
        }
        self.wait_for_exit(exits);
    }

    /// Stops the service and its key boundary.
    pub fn freeze(&self) {
        if let Some(program) = locked(&self.shared.program).as_ref() {
            process_tree::stop(program.id());
        }
    }

    /// Continues the service and its key boundary.
    pub fn thaw(&self) {
        if let Some(program) = locked(&self.shared.program).as_ref() {
            process_tree::resume(program.id());
        }
    }

    /// Waits until the present process has ended, by itself.
    pub fn wait_for_exit(&self, before: usize) {
        let since = Instant::now();
        while self.exits().len() <= before {
            assert!(since.elapsed() < PATIENCE, "{} does not end", self.start.name);
            thread::sleep(PERIOD);
        }
    }

    /// How the processes of the service ended.
    pub fn exits(&self) -> Vec<Exit> {
        locked(&self.shared.exits).clone()
    }
}

impl Shared {
    fn restart_if_ended(&self, start: &Start) {
        let mut place = locked(&self.program);
        if let Some(program) = place.as_mut() {
            let Some(status) = program.child.try_wait().unwrap() else { return };
            let code = || Exit::Code(status.code().unwrap_or_default());
            locked(&self.exits).push(status.signal().map_or_else(code, Exit::Signal));
            *place = None;
            drop(place);
            thread::sleep(PAUSE);
        } else {
            drop(place);
        }
        // A start may take two leases; the service can be asked for its process all the time.
        let program = Program::start(start, || !self.is_stopped.load(Ordering::Relaxed));
        if program.is_none() {
            locked(&self.exits).push(Exit::AtStart);
            thread::sleep(PAUSE);
        }
        *locked(&self.program) = program;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        drop(self.stop.take());
        // A process that was stopped does not end its start.
        self.thaw();
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

fn locked<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Creates a directory in another, and returns its path.
pub fn directory_in(parent: &Path, name: &str) -> PathBuf {
    let directory = parent.join(name);
    fs::create_dir(&directory).unwrap();
    directory
}
