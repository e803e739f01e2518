//! Clients by other authors: the JDK, Python's grpcio, schemathesis; and the demo.

use std::{
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use support::{
    edge_process::{EdgeProcess, token_of, zone_client},
    engine_process::{EngineProcess, TENANT},
    java::{java_sets_and_gets_by_zone, java_sets_and_views, ran_well},
    zone_party::ZoneParty,
};

/// The key of the zone with index 0: the vendor's example.
const ZONE_KEY: u128 = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF;

/// An engine with a zone, and an edge with the client `app`, which has both uses of the zone.
struct ZoneServices {
    edge: EdgeProcess,
    _engine: EngineProcess,
    _party: ZoneParty,
}

impl ZoneServices {
    fn start() -> Self {
        let party = ZoneParty::with_key(ZONE_KEY);
        let zone = "[[zones]]\nname = \"app\"\ntenant = \"bank\"\nindex = 0\nuses = [\"set-pin\", \"get-pin\"]";
        let engine = EngineProcess::start_quiet(party.directory(), zone);
        let uses = "[{ index = 0, uses = [\"set-pin\", \"get-pin\"] }]";
        let client = zone_client(party.directory(), "app", TENANT, uses);
        let address = format!("addresses = [\"http://{}\"]", engine.address());
        let edge = EdgeProcess::start_quiet_with(party.directory(), &address, &client);
        Self { edge, _engine: engine, _party: party }
    }
}

/// `pinseal demo`, serving.
pub(super) struct Demo {
    child: Child,
    ready: Value,
    /// Held open: a demo that cannot print ends.
    _printed: Lines<BufReader<ChildStdout>>,
    _directory: tempfile::TempDir,
}

impl Demo {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ready.json");
        let mut child = Command::new(env!("CARGO_BIN_EXE_pinseal"))
            .args(["demo", "--edge-listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--ready-file"])
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
        let serves = printed.by_ref().map_while(Result::ok).any(|line| line.contains("Serving until Ctrl-C"));
        assert!(serves, "the demo ended before it served");
        let ready = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        Self { child, ready, _printed: printed, _directory: directory }
    }

    pub(super) fn member(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The Python that scripts/test prepares.
pub(crate) fn python() -> String {
    std::env::var("PINSEAL_TEST_PYTHON").unwrap_or_else(|_| {
        panic!("PINSEAL_TEST_PYTHON is not set: run scripts/test, or point it to a Python with tests/clients/python/requirements.lock")
    })
}

#[test]
fn the_jdk_sets_and_views_a_pin_with_every_key_size() {
    let demo = Demo::start();
    for bits in ["2048", "3072", "4096"] {
        java_sets_and_views(demo.member("edge_url"), demo.member("bearer_token"), &format!("70{bits}"), bits);
    }
}

#[test]
fn the_jdk_sets_and_gets_a_pin_under_a_zone_key() {
    let services = ZoneServices::start();
    java_sets_and_gets_by_zone(&services.edge.url, &token_of("app"), "7400", &format!("{ZONE_KEY:032x}"));
}

#[test]
fn pythons_grpcio_drives_the_engine_by_reflection() {
    let demo = Demo::start();
    let output = Command::new(python())
        .arg(root("tests/clients/python/engine_by_reflection.py"))
        .args([demo.member("engine_addr"), "7100", "271828"])
        .output()
        .unwrap();
    assert!(ran_well(&output).contains("set and viewed by reflection"));
}

/// Every check of schemathesis for a minute, or as long as `PINSEAL_SCHEMATHESIS_SECONDS` says.
#[test]
fn schemathesis_finds_no_answer_outside_the_contract() {
    let services = ZoneServices::start();
    let (edge, token) = (&services.edge.url, token_of("app"));
    let python = python();
    let schemathesis = std::path::absolute(Path::new(&python).with_file_name("schemathesis")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let seconds = std::env::var("PINSEAL_SCHEMATHESIS_SECONDS").unwrap_or_else(|_| "60".into());
    let output = Command::new(schemathesis)
        .current_dir(scratch.path())
        .env("SCHEMATHESIS_HOOKS", root("tests/clients/python/contract_hooks.py"))
        .env("PINSEAL_EDGE", edge)
        .env("PINSEAL_TOKEN", &token)
        .env("PINSEAL_ZONE_KEY", format!("{ZONE_KEY:032x}"))
        .arg("--config-file")
        .arg(root("tests/clients/python/schemathesis.toml"))
        .arg("run")
        .arg(format!("{edge}/openapi.json"))
        .args(["--header", &format!("Authorization: Bearer {token}")])
        // This check is off without a limit. The limit is far above the timeout of a request.
        .args(["--checks", "all", "--max-response-time", "60"])
        .args(["--max-time", &seconds, "--no-color"])
        .output()
        .unwrap();
    let printed = ran_well(&output);
    assert!(printed.contains("Tested: 6"), "{printed}");
    // The hooks make blocks under the zone key for 16 cards.
    let get =
        |card| services.edge.get_as(&format!("Bearer {token}"), &format!("/pin/v2/{card}?zpkIndex=0&auditUser=it"));
    assert!((0..16).any(|card| get(card).status == 200), "no block of schemathesis set a PIN");
}

#[test]
fn the_demo_runs_once_and_prints_no_clear_block() {
    let output = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["demo", "--once", "--edge-listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let printed = ran_well(&output);
    assert!(printed.contains("on the phone's screen: 2580") && printed.contains("541333******0011"), "{printed}");
    assert!(!printed.contains("5413330089020011"), "an account number is printed in full");
}

#[test]
fn the_device_of_the_command_line_sets_and_views() {
    let demo = Demo::start();
    let device = |verb: &str, extra: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pinseal"))
            .args(["device", verb, "--edge", demo.member("edge_url"), "--token", demo.member("bearer_token")])
            .args(["--plastic-id", "7200", "--json"])
            .args(extra)
            .output()
            .unwrap();
        ran_well(&output)
    };
    device("set-pin", &["--pin", "314159"]);
    assert!(device("view-pin", &[]).contains("\"outcome\":{\"pin\":\"314159\"}"));
}
