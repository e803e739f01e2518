//! A PostgreSQL server of Debian's package, in a temporary directory, stopped when it is dropped.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use store_postgres::{DatabaseHost, PostgresConfig};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::process_tree;

const USER: &str = "pinseal";
const DATABASE: &str = "postgres";

/// How long a test waits for a condition: far longer than any machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A server; stopped when dropped.
pub struct Server {
    programs: PathBuf,
    directory: TempDir,
    /// The unprivileged user that runs the server, where the test runs as root.
    user: Option<(u32, u32)>,
    pub port: u16,
    /// Of the role that owns the database. Another user of the machine can connect to the port, and does not know it.
    password: String,
    process: Option<Child>,
}

impl Server {
    /// Makes a database and starts its server, with `fsync` as by default.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same, with lines of `postgresql.conf`.
    pub fn start_with(settings: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("pg25-").tempdir().unwrap();
        let user = geteuid().is_root().then(unprivileged_user);
        let password = Uuid::new_v4().simple().to_string();
        let mut server = Self { programs: programs(), directory, user, port: free_port(), password, process: None };
        fs::set_permissions(server.directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        server.give_to_user(server.directory.path());
        let password_file = server.write("password", &server.password);
        let made = server
            .command("initdb")
            .args(["--no-sync", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--username", USER])
            .arg("--pwfile")
            .arg(password_file)
            .arg("-D")
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

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file of the server's user.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
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
    pub fn run(&mut self) {
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

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Stops the server at once, as a crash would: it recovers at its next start.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A stopped process does not end.
            process_tree::resume(process.id());
            kill_process(Pid::from_child(&process), Signal::QUIT).unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops every process of the server, as a stalled machine would.
    pub fn freeze(&self) {
        process_tree::stop(self.id());
    }

    /// Continues every process of the server.
    pub fn thaw(&self) {
        process_tree::resume(self.id());
    }

    /// The process of the postmaster.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// The lines of `[store.postgres]` of an engine with this name.
    pub fn section(&self, engine: &str) -> String {
        let (port, password) = (self.port, self.directory.path().join("password"));
        format!(
            "[store.postgres]\nhosts = [\"127.0.0.1:{port}\"]\ndatabase = {DATABASE:?}\nuser = {USER:?}\n\
             password = {{ file = {password:?} }}\nengine_name = {engine:?}"
        )
    }

    /// The configuration of an engine on this server.
    pub fn config(&self, engine: &str) -> PostgresConfig {
        self.config_at(self.port, engine)
    }

    /// The same, through a proxy on this port.
    pub fn config_at(&self, port: u16, engine: &str) -> PostgresConfig {
        let host = DatabaseHost { name: "127.0.0.1".to_owned(), port };
        let password = Some(Zeroizing::new(self.password.clone()));
        PostgresConfig { password, ..PostgresConfig::new(host, DATABASE, USER, engine) }
    }

    /// A session of a database administrator.
    pub async fn admin(&self) -> Client {
        let mut settings = tokio_postgres::Config::new();
        settings.host("127.0.0.1").port(self.port).user(USER).dbname(DATABASE).password(&self.password);
        let (client, connection) = settings.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("SET search_path = pinseal").await.unwrap();
        client
    }

    /// Makes commits wait for a standby that does not exist. The administrator's own commits do not wait.
    pub async fn require_absent_standby(&self, admin: &Client) {
        set_standby(admin, "absent").await;
        // The server reads its settings some time later, in its checkpointer: from then on a commit waits.
        let probe = Arc::new(self.admin().await);
        let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = $1";
        until("a commit waits for the standby", async || {
            let committed = tokio::spawn({
                let probe = Arc::clone(&probe);
                async move { probe.batch_execute("SELECT pg_logical_emit_message(true, 'probe', '')").await }
            });
            let mut has_waited = false;
            while !committed.is_finished() {
                has_waited |= admin.query_opt(cancel, &[&pid]).await.unwrap().is_some();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            committed.await.unwrap().unwrap();
            has_waited.then_some(())
        })
        .await;
    }

    /// Makes commits wait for no standby.
    pub async fn require_no_standby(&self, admin: &Client) {
        set_standby(admin, "").await;
    }
}

async fn set_standby(admin: &Client, name: &str) {
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
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
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for a condition.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(since.elapsed() < PATIENCE, "it does not happen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
