//! A PostgreSQL server of Debian's package, in a temporary directory, stopped when it is dropped.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use store_postgres::{DatabaseHost, PostgresConfig};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// How long a test waits for a condition: far longer than any machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    programs: PathBuf,
    directory: TempDir,
    /// The unprivileged user that runs the server, where the test runs as root.
    user: Option<(u32, u32)>,
    pub(crate) port: u16,
    process: Option<Child>,
}

impl Server {
    /// Makes a database and starts its server, with `fsync` as by default.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same, with lines of `postgresql.conf`.
    pub(crate) fn start_with(settings: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("pg25-").tempdir().unwrap();
        let user = geteuid().is_root().then(unprivileged_user);
        let mut server = Self { programs: programs(), directory, user, port: free_port(), process: None };
        fs::set_permissions(server.directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        server.give_to_user(server.directory.path());
        let made = server
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--username=pinseal", "--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let socket = server.directory.path().display();
        let own = format!("listen_addresses = '127.0.0.1'\nunix_socket_directories = '{socket}'\n{settings}\n");
        let file = server.data().join("postgresql.auto.conf");
        fs::write(&file, own).unwrap();
        server.give_to_user(&file);
        server.run();
        server
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file of the server's user.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.give_to_user(&path);
        path
    }

    fn give_to_user(&self, path: &Path) {
        if let Some((user, group)) = self.user {
            std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn run(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let mut command = self.command("postgres");
        let command = command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        self.process = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let since = Instant::now();
        loop {
            let ready = self.command("pg_isready").args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).output();
            if ready.unwrap().status.success() {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "the server does not start: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Stops the server at once, as a crash would: it recovers at its next start.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            self.signal_to(&process, Signal::QUIT);
            process.wait().unwrap();
        }
    }

    /// Stops every process of the server, as a stalled machine would.
    pub(crate) fn freeze(&self) {
        self.processes().into_iter().for_each(|process| kill_process(process, Signal::STOP).unwrap());
    }

    pub(crate) fn thaw(&self) {
        self.processes().into_iter().for_each(|process| kill_process(process, Signal::CONT).unwrap());
    }

    /// The postmaster and its children.
    fn processes(&self) -> Vec<Pid> {
        let postmaster = self.process.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let ids = children.split_whitespace().map(|id| id.parse().unwrap()).chain([postmaster as i32]);
        ids.filter_map(Pid::from_raw).collect()
    }

    fn signal_to(&self, process: &Child, signal: Signal) {
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    /// The configuration of an engine on this server.
    pub(crate) fn config(&self, engine: &str) -> PostgresConfig {
        self.config_at(self.port, engine)
    }

    /// The same, through a proxy on this port.
    pub(crate) fn config_at(&self, port: u16, engine: &str) -> PostgresConfig {
        let host = DatabaseHost { name: "127.0.0.1".to_owned(), port };
        PostgresConfig::new(host, "postgres", "pinseal", engine)
    }

    /// A session of a database administrator.
    pub(crate) async fn admin(&self) -> Client {
        let settings = format!("host=127.0.0.1 port={} user=pinseal dbname=postgres", self.port);
        let (client, connection) = tokio_postgres::connect(&settings, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("SET search_path = pinseal").await.unwrap();
        client
    }
}

impl Drop for Server {
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
fn unprivileged_user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(|number| number.parse().unwrap());
        Some((numbers.next()?, numbers.next()?))
    };
    of("postgres").or_else(|| of("nobody")).expect("there is no user postgres: run `apt-get install postgresql`")
}

/// A port that no process listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Makes commits wait for a standby, or for none where the name is empty. The administrator's own commits do not wait.
pub(crate) async fn set_standby(admin: &Client, name: &str) {
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

/// Waits for a condition.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(since.elapsed() < PATIENCE, "it does not happen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
