//! One PostgreSQL server of Debian's package, for the test of a database that is away.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use store_postgres::{DatabaseHost, PostgresConfig};
use tempfile::TempDir;

use crate::{
    guard::Notes,
    program::free_port,
    times::{LEASE_SECONDS, PATIENCE},
};

/// A server; stopped when dropped.
pub struct SingleServer {
    directory: TempDir,
    port: u16,
    /// The user that runs the server, where the harness runs as root.
    user: Option<(u32, u32)>,
    process: Option<Child>,
    notes: Notes,
}

impl SingleServer {
    pub fn start(notes: Notes) -> Self {
        let directory = tempfile::Builder::new().prefix("pinseal-failover-pg-").tempdir_in("/var/tmp").unwrap();
        let mut server =
            Self { directory, port: free_port(), user: geteuid().is_root().then(user), process: None, notes };
        if let Some((user, group)) = server.user {
            std::os::unix::fs::chown(server.directory.path(), Some(user), Some(group)).unwrap();
        }
        let initdb = server
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--username=pinseal", "--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(server.data())
            .output()
            .unwrap();
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        server.run();
        server
    }

    /// Starts the server, and waits until it accepts connections.
    pub fn run(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        postgres.args(["-c", "log_parameter_max_length=0", "-c", "log_parameter_max_length_on_error=0"]);
        postgres.arg("-c").arg(format!("unix_socket_directories={}", self.directory.path().display()));
        let process = postgres.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.notes.started(process.id());
        self.process = Some(process);
        let since = Instant::now();
        loop {
            let mut is_ready = self.command("pg_isready");
            is_ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if is_ready.status().unwrap().success() {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "PostgreSQL does not start: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Stops the server at once, as a crash would.
    pub fn stop(&mut self) {
        if self.process.is_some() {
            self.thaw();
        }
        if let Some(mut process) = self.process.take() {
            kill_process(Pid::from_child(&process), Signal::QUIT).unwrap();
            process.wait().unwrap();
            self.notes.ended(process.id());
        }
    }

    /// Stops every process of the server, as a hanging machine would.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues the server.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal to the postmaster and its children.
    fn signal(&self, signal: Signal) {
        let postmaster = self.process.as_ref().expect("the server runs").id();
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let children = children.split_whitespace().map(|id| id.parse().unwrap());
        for id in [i32::try_from(postmaster).unwrap()].into_iter().chain(children) {
            // A child may have ended.
            let _ = kill_process(Pid::from_raw(id).unwrap(), signal);
        }
    }

    /// The lines of `[store.postgres]` of an engine with this name.
    pub fn lines(&self, engine: &str) -> String {
        let port = self.port;
        format!(
            "[store.postgres]\nhosts = [\"127.0.0.1:{port}\"]\ndatabase = \"postgres\"\nuser = \"pinseal\"\n\
             engine_name = {engine:?}\nlease_seconds = {LEASE_SECONDS}\n"
        )
    }

    /// The configuration of another engine, for a reader.
    pub fn config(&self, engine: &str) -> PostgresConfig {
        let host = DatabaseHost { name: "127.0.0.1".to_owned(), port: self.port };
        PostgresConfig::new(host, "postgres", "pinseal", engine)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(programs().join(program));
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for SingleServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The directory of the newest installed server.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
    found.expect("there is no initdb in /usr/lib/postgresql/*/bin: run `apt-get install postgresql`")
}

/// PostgreSQL does not run as root.
fn user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let line = line.expect("there is no user postgres: run `apt-get install postgresql`");
    let mut numbers = line.split(':').skip(2).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
