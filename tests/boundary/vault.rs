//! Which commands make keys, and how an engine handles a missing or foreign vault.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use support::{
    ceremony::{ALL, Ceremony, ENOUGH},
    engine_process::{EngineProcess, device},
    hsm_process::HsmProcess,
    wait::{signal, soon},
};

fn pinseal(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pinseal")).args(arguments).output().unwrap()
}

/// The standard error of a command that must fail.
fn refused(arguments: &[&str]) -> String {
    let output = pinseal(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The standard error of an engine that must not start, with these lines of configuration.
fn refused_engine(directory: &Path, extra: &str) -> String {
    let (config, data) = (directory.join("engine.toml"), directory.join("data"));
    fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\n{extra}\n")).unwrap();
    let printed = refused(&["engine", "--config", config.to_str().unwrap()]);
    printed.lines().find(|line| line.starts_with("pinseal:")).unwrap_or_else(|| panic!("{printed}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_vault_is_refused_over_a_used_store() {
    for isolation in ["", "[boundary]\nisolation = \"inline\""] {
        let directory = tempfile::tempdir().unwrap();
        let (data, device) = (directory.path().join("data"), device());
        let (vault, key_file) = (data.join("vault"), data.join("vault.key"));
        let engine = EngineProcess::start(directory.path(), isolation);
        engine.client().await.set(&device, "7500", "271828").await.unwrap();
        assert_eq!(engine.terminate(), 0);

        let away = |file: &Path| fs::rename(file, file.with_extension("away")).unwrap();
        let back = |file: &Path| fs::rename(file.with_extension("away"), file).unwrap();
        away(&vault);
        let printed = refused_engine(directory.path(), isolation);
        assert!(printed.contains(&format!("the vault {} is missing", vault.display())), "{printed}");
        fs::rename(&key_file, data.join("key.away")).unwrap();
        let printed = refused_engine(directory.path(), isolation);
        assert!(printed.contains(&format!("there is no vault at {}", vault.display())), "{printed}");
        back(&vault);
        let printed = refused_engine(directory.path(), isolation);
        assert!(printed.contains(&format!("the key file {}", key_file.display())), "{printed}");
        assert!(!key_file.exists());

        fs::rename(data.join("key.away"), &key_file).unwrap();
        let engine = EngineProcess::start(directory.path(), isolation);
        assert_eq!(engine.client().await.view(&device, "7500").await.unwrap(), "271828");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_vault_are_refused_by_name() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (device, engine) = (device(), EngineProcess::start(directory.path(), ""));
    engine.client().await.set(&device, "7510", "271828").await.unwrap();
    assert_eq!(engine.terminate(), 0);

    let hsm = HsmProcess::start(other.path(), "");
    let at = |file: &str| other.path().join("data").join(file);
    let in_other = format!("[vault]\nfile = {:?}\nkey_file = {:?}", at("vault"), at("vault.key"));
    let apart = format!("[boundary]\nsocket = {:?}\nhsm_user = 65500", hsm.socket());
    for lines in [format!("{in_other}\n[boundary]\nisolation = \"inline\""), in_other, apart] {
        let printed = refused_engine(directory.path(), &lines);
        assert!(printed.contains("the key storage/1 was used last with KCV"), "{printed}");
        assert!(printed.contains("start the engine with the vault or token of this store"), "{printed}");
    }
    let engine = EngineProcess::start(directory.path(), "");
    assert_eq!(engine.client().await.view(&device, "7510").await.unwrap(), "271828");
}

#[test]
fn a_boundary_apart_makes_no_keys() {
    let directory = tempfile::tempdir().unwrap();
    let (config, data) = (directory.path().join("hsm.toml"), directory.path().join("data"));
    fs::write(&config, format!("data_directory = {data:?}\n")).unwrap();
    let (config, socket) = (config.to_str().unwrap(), directory.path().join("socket"));
    let printed = refused(&["hsm", "--config", config, "--listen", socket.to_str().unwrap()]);
    assert!(printed.contains("there is no vault at") && printed.contains("pinseal vault create"), "{printed}");
    assert!(!data.join("vault").exists() && !data.join("vault.key").exists());

    let created = pinseal(&["vault", "create", "--config", config]);
    let listed = String::from_utf8(created.stdout).unwrap();
    assert!(created.status.success() && listed.contains("  storage/1 "), "{listed}");
    let printed = refused(&["vault", "create", "--config", config]);
    assert!(printed.contains("is there already: nothing was made"), "{printed}");
    HsmProcess::start(directory.path(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_started_again_makes_no_keys() {
    let directory = tempfile::tempdir().unwrap();
    let (data, device) = (directory.path().join("data"), device());
    let engine = EngineProcess::start(directory.path(), "");
    engine.client().await.set(&device, "7520", "271828").await.unwrap();
    let away = directory.path().join("away");
    fs::create_dir(&away).unwrap();
    for file in ["vault", "vault.key"] {
        fs::rename(data.join(file), away.join(file)).unwrap();
    }
    signal(engine.hsm_id().unwrap(), "KILL");
    soon("it did not say so", async || engine.log().contains("there is no vault at").then_some(())).await;
    assert!(!data.join("vault").exists() && !data.join("vault.key").exists());
    for file in ["vault", "vault.key"] {
        fs::rename(away.join(file), data.join(file)).unwrap();
    }
    let shown = soon("it does not serve", async || engine.client().await.view(&device, "7520").await.ok()).await;
    assert_eq!(shown, "271828");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_from_before_a_reload_is_refused() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let engine = EngineProcess::start(directory, "");
    engine.client().await.set(&device(), "7530", "271828").await.unwrap();
    let vault = directory.join("data/vault");
    fs::copy(&vault, directory.join("before")).unwrap();
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);
    signal(engine.id(), "HUP");
    soon("it was not reloaded", async || engine.log().contains("no PIN comes under an older").then_some(())).await;
    engine.kill();

    fs::rename(&vault, directory.join("after")).unwrap();
    fs::copy(directory.join("before"), &vault).unwrap();
    let printed = refused_engine(directory, "");
    assert!(printed.contains("the key storage/2:") && printed.contains("was used last and is not there"), "{printed}");
    fs::rename(directory.join("after"), &vault).unwrap();
    EngineProcess::start(directory, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_key_may_retire_while_the_engine_is_stopped() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let engine = EngineProcess::start(directory, "");
    engine.client().await.set(&device(), "7540", "271828").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    ceremony.begin();
    ceremony.well("make", ENOUGH, &["storage-3des"]);
    ceremony.well("activate", ENOUGH, &["storage-3des/2"]);
    ceremony.well("retire", ENOUGH, &["storage-3des/1"]);
    let engine = EngineProcess::start(directory, "");
    assert_eq!(engine.client().await.view(&device(), "7540").await.unwrap(), "271828");
}
