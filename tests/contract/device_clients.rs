//! The device clients of `clients/`: each passes the shared vectors, and sets and views a PIN.

use std::{path::Path, process::Command};

use serde_json::Value;
use support::{
    edge_process::{EdgeProcess, token_of, zone_client},
    engine_process::{EngineProcess, TENANT},
    java::{NO_JDK, ran_well},
    small_binary,
};

use super::clients::{Demo, python, root};

const VECTORS: &str = "clients/vectors.json";
/// The kinds of vectors, each with the member that [`planted`] changes.
const KINDS: [(&str, &str); 7] = [
    ("iso1", "block"),
    ("iso1_refused", "block"),
    ("tdes_ecb", "encrypted"),
    ("kcv", "kcv"),
    ("oaep", "key"),
    ("oaep_refused", "tzpk"),
    ("set", "pinBlock"),
];

/// A device client: a program with the options `--edge`, `--token`, `--plastic-id` and `--vectors`.
struct DeviceClient {
    program: Vec<String>,
    /// The last line of its output after it set and viewed a PIN.
    viewed: &'static str,
}

impl DeviceClient {
    fn new(program: &[&str]) -> Self {
        Self { program: program.iter().map(|part| (*part).to_owned()).collect(), viewed: "ok" }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        command
    }

    fn passes_the_vectors(&self) {
        let (file, text) = (root(VECTORS), std::fs::read_to_string(root(VECTORS)).unwrap());
        let vectors: Value = serde_json::from_str(&text).unwrap();
        let count: usize = KINDS.iter().map(|(kind, _)| vectors[kind].as_array().unwrap().len()).sum();
        let run = |file: &Path| self.command().arg("--vectors").arg(file).output().unwrap();
        assert_eq!(ran_well(&run(&file)).trim(), format!("{count} vectors: ok"));

        for_each_wrong_vector(&text, &vectors, |kind, changed| {
            let output = run(changed);
            assert!(!output.status.success() && output.stdout.is_empty(), "a wrong vector of {kind} passes");
        });
    }

    /// Sets and views a PIN of the demo, fails there with another token, and names MGF1 where an edge encrypts tzpks with
    /// MGF1-SHA-1.
    fn sets_and_views(&self) {
        let run = |edge: &str, token: &str| {
            self.command().args(["--edge", edge, "--token", token, "--plastic-id", "7501"]).output().unwrap()
        };
        let refuses = |edge: &str, token: &str, named: &str| {
            let output = run(edge, token);
            assert!(!output.status.success() && output.stdout.is_empty(), "{named}");
            let printed = String::from_utf8_lossy(&output.stderr);
            assert!(printed.contains(named), "{named} is not in: {printed}");
        };
        let demo = Demo::start();
        let url = demo.member("edge_url");
        assert_eq!(ran_well(&run(url, demo.member("bearer_token"))).trim().lines().last(), Some(self.viewed));
        refuses(url, "another-token-0123456789abcdef", "401");

        let directory = tempfile::tempdir().unwrap();
        let engine = EngineProcess::start_quiet(directory.path(), "");
        let old = zone_client(directory.path(), "old", TENANT, "[]");
        let clients = format!("{old}oaep_mgf1 = \"sha-1\"\noaep_mgf1_until = \"2999-12-31\"\n");
        let address = format!("addresses = [\"http://{}\"]", engine.address());
        let edge = EdgeProcess::start_quiet_with(directory.path(), &address, &clients);
        refuses(&edge.url, &token_of("old"), "MGF1");
    }
}

/// Calls `check` for each kind of vectors, with the path of a file in which one vector of the kind is wrong.
fn for_each_wrong_vector(text: &str, vectors: &Value, check: impl Fn(&str, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    let changed = directory.path().join("vectors.json");
    for (kind, member) in KINDS {
        std::fs::write(&changed, planted(text, vectors, kind, member)).unwrap();
        check(kind, &changed);
    }
}

/// The vectors with one wrong value: of this kind's first vector, or a valid one in place of one that must be refused.
fn planted(text: &str, vectors: &Value, kind: &str, member: &str) -> String {
    let value = |kind: &str, at: usize| vectors[kind][at][member].as_str().unwrap().to_owned();
    let wrong = match kind {
        "iso1_refused" => value("iso1", 0),
        "oaep_refused" => value("oaep", 0),
        _ => value(kind, 1),
    };
    let (head, list) = text.split_once(&format!("\"{kind}\": [")).unwrap();
    let member = |value: &str| format!("\"{member}\": \"{value}\"");
    let list = list.replacen(&member(&value(kind, 0)), &member(&wrong), 1);
    let planted = format!("{head}\"{kind}\": [{list}");
    assert_ne!(planted, text);
    planted
}

/// The Java device, compiled for Java 8 as an app for older Androids would.
struct JavaDevice {
    client: DeviceClient,
    _classes: tempfile::TempDir,
}

impl JavaDevice {
    fn compile() -> Self {
        let classes = tempfile::tempdir().unwrap();
        let mut javac = Command::new("javac");
        javac.args(["--release", "8", "-d"]).arg(classes.path()).arg(root("clients/java/CardPin.java"));
        ran_well(&javac.output().expect(NO_JDK));
        let client = DeviceClient::new(&["java", "-cp", classes.path().to_str().unwrap(), "CardPin"]);
        Self { client, _classes: classes }
    }
}

fn python_device() -> DeviceClient {
    DeviceClient::new(&[&python(), root("clients/python/card_pin.py").to_str().unwrap()])
}

fn rust_device() -> DeviceClient {
    DeviceClient::new(&[small_binary("set-and-view-pin").to_str().unwrap()])
}

/// Runs a script of `clients/typescript/package.json`.
fn npm_run(script: &str) -> String {
    let directory = root("clients/typescript");
    assert!(
        directory.join("node_modules").exists(),
        "clients/typescript/node_modules is missing: run npm ci --ignore-scripts in clients/typescript"
    );
    let mut npm = Command::new("npm");
    npm.args(["run", "--silent", script]).current_dir(directory);
    ran_well(&npm.output().expect("npm is missing: install Node 20 or later with npm (Debian: nodejs, npm)"))
}

#[test]
fn the_java_device_passes_the_vectors() {
    JavaDevice::compile().client.passes_the_vectors();
}

#[test]
fn the_java_device_sets_and_views_a_pin() {
    JavaDevice::compile().client.sets_and_views();
}

#[test]
fn the_python_device_passes_the_vectors() {
    python_device().passes_the_vectors();
}

#[test]
fn the_python_device_sets_and_views_a_pin() {
    python_device().sets_and_views();
}

#[test]
fn the_rust_device_passes_the_vectors() {
    rust_device().passes_the_vectors();
}

#[test]
fn the_rust_device_sets_and_views_a_pin() {
    rust_device().sets_and_views();
}

/// One test: the script `test` builds both programs.
#[test]
fn the_typescript_device_passes_the_vectors_and_sets_a_pin() {
    let printed = npm_run("test");
    assert!(printed.contains("# fail 0") && printed.contains("# skipped 0"), "{printed}");

    let text = std::fs::read_to_string(root(VECTORS)).unwrap();
    for_each_wrong_vector(&text, &serde_json::from_str(&text).unwrap(), |kind, changed| {
        let mut tests = Command::new("node");
        tests.args(["--test", "--test-reporter=tap", "build/test.js"]).current_dir(root("clients/typescript"));
        let output = tests.env("CARD_PIN_VECTORS", changed).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let ran = printed.contains("# tests ") && !printed.contains("# pass 0");
        assert!(!output.status.success() && ran, "a wrong vector of {kind} passes: {printed}");
    });
    let program = root("clients/typescript/build/run.js");
    let viewed = "card 7501: the viewed PIN is the PIN that was set";
    DeviceClient { viewed, ..DeviceClient::new(&["node", program.to_str().unwrap()]) }.sets_and_views();
}
