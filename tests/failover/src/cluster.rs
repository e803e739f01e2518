//! Three nodes of PostgreSQL under Patroni, by `patroni-cluster.sh`.

use std::{
    ffi::OsString,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use store_postgres::{DatabaseHost, DatabaseTls, PostgresConfig};
use zeroize::Zeroizing;

use crate::{
    guard::{Guard, Notes, script},
    times::LEASE_SECONDS,
};

const NODES: u16 = 3;
const DATABASE: &str = "pinseal";
const USER: &str = "pinseal";

/// Which Patroni manages the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patroni {
    /// The one of `requirements.lock`, from PyPI.
    Pinned,
    /// Debian's package. The one of Debian 12, 3.0.2, loses acknowledged commits.
    Debian,
}

impl Patroni {
    /// The seconds after which the nodes do without a silent leader. Under Debian's Patroni another node leads for some seconds
    /// before a stall of 25 s ends: the commits of these seconds are lost.
    fn ttl(self) -> &'static str {
        match self {
            Self::Pinned => "20",
            Self::Debian => "12",
        }
    }

    fn program(self) -> OsString {
        match self {
            Self::Debian => "/usr/bin/patroni".into(),
            Self::Pinned => {
                let installer: PathBuf = [env!("CARGO_MANIFEST_DIR"), "install-patroni"].iter().collect();
                let output = Command::new(installer).stderr(Stdio::inherit()).output().unwrap();
                assert!(output.status.success(), "install-patroni failed: run it by hand");
                String::from_utf8(output.stdout).unwrap().trim().into()
            }
        }
    }
}

/// A running cluster; stopped when dropped.
pub struct Cluster {
    pub patroni: Patroni,
    directory: PathBuf,
    base_port: u16,
    environment: Vec<(&'static str, OsString)>,
    guard: Guard,
}

impl Cluster {
    /// Starts etcd, Patroni and PostgreSQL, and waits for a leader and a synchronous standby.
    pub fn start(patroni: Patroni) -> Self {
        let directory = PathBuf::from(format!("/var/tmp/pinseal-failover-{}", std::process::id()));
        let base_port = free_ports();
        let environment: Vec<(&'static str, OsString)> = vec![
            ("PATRONI_HOME", directory.clone().into()),
            ("PATRONI_BASE_PORT", base_port.to_string().into()),
            ("PATRONI_TTL", patroni.ttl().into()),
            ("PATRONI_BIN", patroni.program()),
        ];
        let guard = Guard::start(&environment);
        let cluster = Self { patroni, directory, base_port, environment, guard };
        print!("{}", cluster.run(&["start"]));
        cluster
    }

    pub fn notes(&self) -> Notes {
        self.guard.notes()
    }

    /// The lines of `[store.postgres]` of an engine with this name.
    pub fn lines(&self, engine: &str) -> String {
        let hosts: Vec<_> = self.ports().map(|port| format!("127.0.0.1:{port}")).collect();
        // A configuration never holds a secret.
        let password = self.password_file();
        format!(
            "[store.postgres]\nhosts = {hosts:?}\ndatabase = {DATABASE:?}\nuser = {USER:?}\n\
             password = {{ file = {password:?} }}\nengine_name = {engine:?}\n\
             lease_seconds = {LEASE_SECONDS}\n[store.postgres.tls]\nroots = {:?}\n",
            self.roots()
        )
    }

    /// The configuration of another engine, for a reader.
    pub fn config(&self, engine: &str) -> PostgresConfig {
        let host = |port| DatabaseHost { name: "127.0.0.1".to_owned(), port };
        PostgresConfig {
            hosts: self.ports().map(host).collect(),
            password: Some(Zeroizing::new(self.password())),
            tls: Some(DatabaseTls { roots: self.roots(), client: None }),
            ..PostgresConfig::new(host(0), DATABASE, USER, engine)
        }
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        let base = self.base_port;
        (1..=NODES).map(move |node| base + node * 10 + 2)
    }

    fn roots(&self) -> PathBuf {
        self.directory.join("tls/ca.pem")
    }

    /// The file with the password of [`USER`], which the script makes.
    fn password_file(&self) -> PathBuf {
        self.directory.join("passwords").join(USER)
    }

    fn password(&self) -> String {
        std::fs::read_to_string(self.password_file()).unwrap().trim().to_owned()
    }

    /// Waits until a leader has a synchronous standby: a fault before that loses the service, as it should.
    pub fn wait_sync(&self) {
        self.run(&["wait-sync"]);
    }

    /// Waits until another node leads. Returns its name.
    pub fn wait_leader_other_than(&self, node: &str) -> String {
        self.run(&["wait-leader", node])
    }

    /// The name of the node that leads.
    pub fn leader(&self) -> String {
        self.run(&["leader"]).trim().to_owned()
    }

    /// Kills every process of a node, as the end of its machine would.
    pub fn kill_node(&self, node: &str) {
        self.run(&["kill-node", node]);
    }

    /// Kills the PostgreSQL of a node.
    pub fn kill_postgres(&self, node: &str) {
        self.run(&["kill-postgres", node]);
    }

    /// Stops every process of a node, as a hanging machine would.
    pub fn freeze_node(&self, node: &str) {
        self.run(&["freeze-node", node]);
    }

    /// Stops the PostgreSQL of a node alone, as a hanging disk would.
    pub fn freeze_postgres(&self, node: &str) {
        self.run(&["freeze-postgres", node]);
    }

    /// Continues what was stopped on a node.
    pub fn thaw(&self, node: &str) {
        self.run(&["thaw-node", node]);
    }

    /// Starts a killed node again.
    pub fn revive(&self, node: &str) {
        self.run(&["revive", node]);
    }

    /// The nodes, their roles and timelines, for people.
    pub fn status(&self) -> String {
        self.run(&["status"])
    }

    fn run(&self, arguments: &[&str]) -> String {
        // The processes that the script starts keep its standard error, so it is a file.
        let errors = tempfile::NamedTempFile::new().unwrap();
        let printed = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(script());
        command.args(arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        let status = command.stdout(printed.reopen().unwrap()).stderr(errors.reopen().unwrap()).status().unwrap();
        let text = |file: &tempfile::NamedTempFile| std::fs::read_to_string(file.path()).unwrap();
        assert!(status.success(), "patroni-cluster.sh {arguments:?}: {}{}", text(&printed), text(&errors));
        text(&printed)
    }

    /// Where the logs of the nodes are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The first of ports that the cluster may use: below those that the machine gives to outgoing connections.
fn free_ports() -> u16 {
    let are_free = |base: &u16| {
        let mut ports = (1..=NODES).flat_map(|node| (0..4).map(move |kind| base + node * 10 + kind));
        ports.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    let first = u16::try_from(std::process::id() % 200).unwrap();
    (0..200).map(|step| 21_000 + (first + step) % 200 * 50).find(are_free).expect("no free ports from 21000 to 31000")
}
