//! Zone keys: they travel as key blocks to and from another party, an engine serves a zone only with its key, and a reload
//! brings a newer version.

use std::{fs, path::Path, process::Command};

use support::{
    ceremony::{Ceremony, ENOUGH, pinseal, said},
    engine_process::EngineProcess,
    wait::{signal, soon},
};

/// The vendor's example key, which has bytes of even parity, and its KCV.
const EXAMPLE_KEY: &str = "00112233445566778899AABBCCDDEEFF";
const EXAMPLE_KCV: &str = "FB0975";

fn zone(parity: &str) -> String {
    format!(
        "[[zones]]\nname = \"app-bank\"\ntenant = \"bank\"\nindex = 0\nuses = [\"set-pin\", \"get-pin\"]\nparity = \"{parity}\"\n"
    )
}

/// A ceremony over a vault with an engine's keys, and with a key-exchange key that the test knows, in hexadecimal.
fn with_exchange_key() -> (Ceremony, String) {
    let ceremony = Ceremony::prepared();
    let created = pinseal().args(["vault", "create", "--config"]).arg(ceremony.at("engine.toml")).output().unwrap();
    assert!(created.status.success(), "{}", said(&created));
    ceremony.begin();
    let made = ceremony.well("make-components", ENOUGH, &["--algorithm", "aes-256"]);
    let components: Vec<Vec<&str>> = made.lines().take(2).map(|line| line.split(' ').skip(1).collect()).collect();
    let [first, second] = &components[..] else { panic!("{made}") };
    let typed = [first[0], first[1], second[0], second[1], ""].join("\n");
    let loaded = ceremony.with_input("load", ENOUGH, &["exchange:app", "--algorithm", "aes-256"], &typed);
    assert!(loaded.status.success(), "{}", said(&loaded));
    ceremony.well("activate", ENOUGH, &["exchange:app/1"]);
    let (first, second) = (number(first[0]), number(second[0]));
    (ceremony, first.iter().zip(second).map(|(a, b)| format!("{:02X}", a ^ b)).collect())
}

fn number(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// Calls psec of PyPI as the other party.
fn psec(arguments: &[&str]) -> String {
    let python = std::env::var("PINSEAL_TEST_PYTHON").unwrap_or_else(|_| {
        panic!("PINSEAL_TEST_PYTHON is not set: run scripts/test, or point it to a Python with tests/clients/python/requirements.lock")
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python/psec_key_block.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Writes the zone in the configuration of the ceremony.
fn configure(ceremony: &Ceremony, parity: &str) {
    let data = ceremony.at("data");
    fs::write(ceremony.at("engine.toml"), format!("data_directory = {data:?}\n{}", zone(parity))).unwrap();
}

#[test]
fn a_zone_key_travels_as_a_key_block_of_psec_and_back() {
    let (ceremony, kek) = with_exchange_key();
    let block = psec(&["write", &kek, "D0000P0TB00E0000", EXAMPLE_KEY]);
    let import = |parity| {
        configure(&ceremony, parity);
        ceremony.step("import", ENOUGH, &["zone:app-bank", "--under", "exchange:app", &block])
    };
    let refused = import("reject");
    assert!(
        !refused.status.success() && said(&refused).contains("zone:app-bank has even parity"),
        "{}",
        said(&refused)
    );
    assert!(!ceremony.keys().contains("zone:app-bank"));
    let warned = import("warn");
    assert!(warned.status.success() && said(&warned).contains("warning: zone:app-bank has a byte of even parity"));
    let listed = ceremony.keys();
    assert!(listed.lines().any(|line| line.starts_with("zone:app-bank/1") && line.contains(EXAMPLE_KCV)), "{listed}");
    let exported = ceremony.well("export", ENOUGH, &["zone:app-bank/1", "--under", "exchange:app"]);
    assert_eq!(psec(&["open", &kek, exported.trim()]), format!("P0 T B E {EXAMPLE_KEY}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_serves_a_zone_with_each_active_version_of_its_key() {
    let (ceremony, kek) = with_exchange_key();
    let import = |header: &str, secret: &str| {
        let block = psec(&["write", &kek, header, secret]);
        ceremony.well("import", ENOUGH, &["zone:app-bank", "--under", "exchange:app", &block]);
    };
    import("D0000P0TB00E0000", EXAMPLE_KEY);
    configure(&ceremony, "ignore");
    let mut engine = pinseal();
    engine.args(["engine", "--config"]).arg(ceremony.at("engine.toml"));
    let refused = engine.output().unwrap();
    assert!(!refused.status.success() && said(&refused).contains("no active key zone:app-bank"), "{}", said(&refused));

    ceremony.well("activate", ENOUGH, &["zone:app-bank/1"]);
    let engine = EngineProcess::start(ceremony.directory(), &zone("ignore"));
    import("D0000P0TB00E0000", "F84C041583AE048925AD26A894FB9B86");
    ceremony.well("activate", ENOUGH, &["zone:app-bank/2"]);
    signal(engine.id(), "HUP");
    let (older, newer) = (format!("zone:app-bank/1:{EXAMPLE_KCV}"), "zone:app-bank/2:1B3C77");
    let reloaded = |retired: bool| {
        let log = engine.log();
        let named =
            |line: &&str| line.contains("zone_keys") && line.contains(newer) && line.contains(&older) != retired;
        log.lines().find(named).map(drop)
    };
    soon("the engine does not use the newer version", async || reloaded(false)).await;
    ceremony.well("retire", ENOUGH, &["zone:app-bank/1"]);
    signal(engine.id(), "HUP");
    soon("the engine still uses the retired version", async || reloaded(true)).await;
    assert_eq!(engine.terminate(), 0);
}
