//! SIGHUP, which a closed terminal sends to every process: it ends no service.

use std::{
    fs,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use proto::Scope;
use support::{
    certificates::{certificates, channel_as, peer},
    edge_process::EdgeProcess,
    engine_process::{Client, EngineProcess},
    hsm_process::HsmProcess,
    wait::{signal, soon},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_reads_its_certificates_again_on_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let (_, tls) = certificates(directory.path());
    let mut edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"https://localhost:1\"]\n{tls}"), "");
    let certificate = directory.path().join("pki/edge.pem");
    let text = fs::read(&certificate).unwrap();
    fs::remove_file(&certificate).unwrap();
    fs::write(&certificate, text).unwrap();
    signal(edge.id(), "HUP");
    let logged = async || edge.log().contains("certificates were reloaded").then_some(());
    soon("certificates were not reloaded", logged).await;
    assert_eq!(edge.status_of("/healthz"), 204);
    assert!(edge.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_reads_its_certificates_again_on_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{}", peer("client", "\"edge-set\"")));
    let certificate = directory.path().join("pki/engine.pem");
    let text = fs::read(&certificate).unwrap();
    fs::write(&certificate, "no certificate").unwrap();
    signal(engine.id(), "HUP");
    let kept = async || engine.log().contains("the old ones stay in use").then_some(());
    soon("the certificate is not rejected", kept).await;
    let mut client = Client::over(channel_as("client", directory.path(), &engine));
    client.open("6501", Scope::SetPin).await.unwrap();
    fs::write(&certificate, text).unwrap();
    signal(engine.id(), "HUP");
    let logged = async || engine.log().contains("certificates were reloaded").then_some(());
    soon("certificates were not reloaded", logged).await;
    let mut client = Client::over(channel_as("client", directory.path(), &engine));
    client.open("6501", Scope::SetPin).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_apart_goes_on_after_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let user = rustix::process::getuid().as_raw();
    let lines = format!("engine_user = {user}\nwaive = [\"user\"]\nlock_memory = \"try\"");
    let mut hsm = HsmProcess::start(directory.path(), &lines);
    signal(hsm.id(), "HUP");
    soon("SIGHUP is not logged", async || hsm.log().contains("SIGHUP changes nothing here").then_some(())).await;
    assert!(hsm.is_alive() && UnixStream::connect(hsm.socket()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_apart_prints_that_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    let user = rustix::process::getuid().as_raw();
    let lines = format!("engine_user = {user}\nwaive = [\"user\"]\nlock_memory = \"try\"");
    let hsm = HsmProcess::start(directory.path(), &lines);
    let line = format!("pinseal hsm listens on {}\n", hsm.socket().display());
    soon("it prints nothing", async || (hsm.printed() == line).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_apart_closes_a_connection_without_hello() {
    let directory = tempfile::tempdir().unwrap();
    let user = rustix::process::getuid().as_raw();
    let lines = format!("engine_user = {user}\nwaive = [\"user\"]\nlock_memory = \"try\"");
    let hsm = HsmProcess::start(directory.path(), &lines);
    let _silent = UnixStream::connect(hsm.socket()).unwrap();
    soon("the connection stays open", async || hsm.log().contains("no hello came in time").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_goes_on_after_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let (ready, log) = (directory.path().join("ready"), directory.path().join("log"));
    let mut demo = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["demo", "--edge-listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--ready-file"])
        .arg(&ready)
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    soon("the demo does not serve", async || ready.exists().then_some(())).await;
    signal(demo.id(), "HUP");
    let logged = async || fs::read_to_string(&log).unwrap().contains("SIGHUP changes nothing here").then_some(());
    soon("SIGHUP is not logged", logged).await;
    assert!(demo.try_wait().unwrap().is_none());
    signal(demo.id(), "TERM");
    assert!(demo.wait().unwrap().success());
}
