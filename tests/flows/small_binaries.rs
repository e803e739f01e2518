//! `pinseal-hsm`, `pinseal-engine` and `pinseal-edge`: the programs of production images.

use std::{fs, path::Path, process::Command};

use device::{
    Fill, Pin,
    client::{Backend, Scope},
};
use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{EngineProcess, device},
    hsm_process::{HsmProcess, create_vault},
    small_binary, without_subcommand,
};

#[test]
fn each_small_binary_prints_its_help() {
    for name in ["pinseal-hsm", "pinseal-engine", "pinseal-edge"] {
        let help = Command::new(small_binary(name)).arg("--help").output().unwrap();
        assert!(help.status.success(), "{help:?}");
        assert!(String::from_utf8(help.stdout).unwrap().contains(&format!("Usage: {name}")), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_small_binaries_set_and_view_a_pin_together() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("vault.toml");
    fs::write(&config, format!("data_directory = {:?}\n", directory.path().join("data"))).unwrap();
    create_vault(&Command::new(env!("CARGO_BIN_EXE_pinseal")), &config);

    let hsm = HsmProcess::start_with(without_subcommand("pinseal-hsm"), directory.path(), "");
    let lines = format!("[boundary]\nsocket = {:?}", hsm.socket());
    let engine =
        EngineProcess::start_with(without_subcommand("pinseal-engine"), "127.0.0.1:0", directory.path(), &lines);
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_alone(&small_binary("pinseal-edge"), directory.path(), &address);
    for (process, name) in [(hsm.id(), "pinseal-hsm"), (engine.id(), "pinseal-engine"), (edge.id(), "pinseal-edge")] {
        let program = fs::read_link(format!("/proc/{process}/exe")).unwrap();
        assert_eq!(program.file_name(), Path::new(name).file_name());
    }

    tokio::task::spawn_blocking(move || {
        let (backend, device) = (Backend::with_bearer(&edge.url, TOKEN, "it"), device());
        let (control, _) = backend.open_control("6201", Scope::SetPin).unwrap();
        let (encrypted, _) = backend.set_tzpk(&control, device.public_key_der()).unwrap();
        let tzpk = device.decrypt_tzpk(&encrypted).unwrap();
        let block = tzpk.encrypt_block(&Pin::parse("271828").unwrap().to_block(Fill::Random));
        backend.set(&control, &block).unwrap();

        let (control, _) = backend.open_control("6201", Scope::ViewPin).unwrap();
        let (shown, _) = backend.view(&control, device.public_key_der()).unwrap();
        assert_eq!(device.decrypt_pin(&shown.encrypted_tzpk, &shown.block).unwrap().reveal(), "271828");
    })
    .await
    .unwrap();
}
