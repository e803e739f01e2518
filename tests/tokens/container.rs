//! The container images: the engine with SoftHSM; a token that an engine uses over a socket; the production images.

mod compose;
mod trial;

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::Path, process::Command, sync::OnceLock, time::Duration};

use ceremony::transcript::Transcript;
use net::{
    connect::channel,
    tls::{ClientTls, ClientTlsConfig},
};
use testcontainers::{
    ContainerAsync, GenericImage, ImageExt,
    core::{ExecCommand, IntoContainerPort, Mount, WaitFor},
    runners::AsyncRunner,
};

use support::{
    engine_process::{Client, EngineProcess, device},
    small_binary,
    wait::soon,
};

const IMAGE: &str = "pinseal-softhsm-test";

/// Builds the image with the program under test, once. Without a Docker engine the failure names what is missing.
fn build_image() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/softhsm-image");
        let built = Command::new(script).args([env!("CARGO_BIN_EXE_pinseal"), IMAGE]).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    });
}

fn image() -> GenericImage {
    build_image();
    GenericImage::new(IMAGE, "latest")
}

/// A volume, removed when dropped.
struct Volume(String);

impl Volume {
    fn new(name: &str) -> Self {
        Self(format!("pinseal-test-{}-{name}", std::process::id()))
    }

    fn at(&self, path: &str) -> Mount {
        Mount::volume_mount(&self.0, path)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["volume", "rm", "--force", &self.0]).output();
    }
}

async fn engine_on(volume: &Volume) -> ContainerAsync<GenericImage> {
    image()
        .with_exposed_port(50_051.tcp())
        .with_wait_for(WaitFor::message_on_stdout("pinseal engine listens on"))
        .with_mount(volume.at("/var/lib/pinseal"))
        .with_startup_timeout(Duration::from_secs(120))
        .start()
        .await
        .unwrap()
}

/// A client with a certificate of the container's development CA.
async fn client_of(engine: &ContainerAsync<GenericImage>, directory: &Path) -> Client {
    for file in ["ca.pem", "client.pem", "client.key"] {
        let mut shown = engine.exec(ExecCommand::new(["cat", &format!("/var/lib/pinseal/pki/{file}")])).await.unwrap();
        let mut options = std::fs::File::options();
        let mut copy = options.write(true).create(true).truncate(true).mode(0o600).open(directory.join(file)).unwrap();
        copy.write_all(&shown.stdout_to_vec().await.unwrap()).unwrap();
    }
    let tls = ClientTls::load(&ClientTlsConfig {
        roots: directory.join("ca.pem"),
        certificates: directory.join("client.pem"),
        private_key: directory.join("client.key"),
    });
    let port = engine.get_host_port_ipv4(50_051.tcp()).await.unwrap();
    Client::over(channel(&format!("https://localhost:{port}").parse().unwrap(), Some(tls.unwrap())).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_pins_and_controls_survive_a_new_container() {
    let (directory, device) = (tempfile::tempdir().unwrap(), device());
    let volume = Volume::new("softhsm");

    let engine = engine_on(&volume).await;
    let mut client = client_of(&engine, directory.path()).await;
    client.set(&device, "8400", "271828").await.unwrap();
    assert_eq!(client.view(&device, "8400").await.unwrap(), "271828");
    let (control, block) = client.ready_to_set(&device, "8401", "161803").await.unwrap();
    let transcript = ExecCommand::new(["cat", "/var/lib/pinseal/keys/transcript.jsonl"]);
    let transcript = engine.exec(transcript).await.unwrap().stdout_to_vec().await.unwrap();
    let transcript = Transcript::read(std::str::from_utf8(&transcript).unwrap()).unwrap();
    assert!(transcript.has_ended(), "the keys of the container are of a ceremony");
    engine.stop().await.unwrap();
    engine.rm().await.unwrap();

    let engine = engine_on(&volume).await;
    let mut client = client_of(&engine, directory.path()).await;
    client.set_block(&control, &block).await.unwrap();
    assert_eq!(client.view(&device, "8400").await.unwrap(), "271828");
    assert_eq!(client.view(&device, "8401").await.unwrap(), "161803");
    engine.rm().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_uses_a_containers_token_over_a_socket() {
    let (shared, directory, device) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), device());
    let socket = shared.path().join("socket");
    let container = image()
        .with_wait_for(WaitFor::message_on_stdout("P11_KIT_SERVER_PID"))
        .with_mount(Mount::bind_mount(shared.path().display().to_string(), "/run/pinseal"))
        // The socket's peers must be of one user.
        .with_user(own("-u") + ":" + &own("-g"))
        .with_cmd(["token"])
        .start()
        .await
        .unwrap();

    let client_module = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so";
    assert!(Path::new(client_module).exists(), "p11-kit is missing: apt-get install p11-kit");
    let pin = shared.path().join("token/user-pin");
    let lines = format!(
        "[token]\nmodule = {client_module:?}\nlabel = \"pinseal\"\nuser_pin = {{ file = {pin:?} }}\n\
         paths = [{socket:?}]\nipc = [\"unix-socket\"]\n[boundary]\nwaive = [\"user\"]\n"
    );
    let pinseal = || {
        let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        pinseal.env("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", socket.display()));
        pinseal
    };
    let config = directory.path().join("token.toml");
    std::fs::write(&config, &lines).unwrap();
    let made = pinseal().args(["token", "make-keys", "--config"]).arg(&config).output().unwrap();
    assert!(made.status.success(), "{made:?}");

    let engine = EngineProcess::start_with(pinseal(), "127.0.0.1:0", directory.path(), &lines);
    let mut client = engine.client().await;
    client.set(&device, "8410", "271828").await.unwrap();
    assert_eq!(client.view(&device, "8410").await.unwrap(), "271828");
    drop(engine);
    container.rm().await.unwrap();
}

const PRODUCTION: &str = "-test";

/// Runs the all-in-one program in its production image, as a user, with a volume.
fn operator(user: &str, volume: &str, arguments: &[&str]) {
    let mut docker = Command::new("docker");
    docker.args(["run", "--rm", "--user", user, "--volume", volume, &format!("pinseal{PRODUCTION}")]);
    let done = docker.args(arguments).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_production_images_set_and_view_a_pin() {
    let programs = small_binary("pinseal-hsm");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/production-images");
    let built = Command::new(script).arg(programs.parent().unwrap()).arg(PRODUCTION).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let image = |name: &str| GenericImage::new(name.to_owned() + PRODUCTION, "latest".to_owned());

    let (directory, device) = (tempfile::tempdir().unwrap(), device());
    let (vault, socket, store) = (Volume::new("vault"), Volume::new("socket"), Volume::new("store"));
    let data = "/var/lib/pinseal-hsm";
    operator("10002", &format!("{}:{data}", vault.0), &["vault", "create", "--data-directory", data]);
    operator("10001", &format!("{}:/var/lib/pinseal", store.0), &["pki", "dev", "--out", "/var/lib/pinseal/pki"]);

    let hsm = format!("data_directory = {data:?}\n[boundary]\nengine_user = 10001\nlock_memory = \"try\"\n");
    let hsm = image("pinseal-hsm")
        .with_copy_to("/etc/pinseal/hsm.toml", hsm.into_bytes())
        .with_mount(vault.at(data))
        .with_mount(socket.at("/run/pinseal-hsm"))
        .with_network("none")
        .start()
        .await
        .unwrap();
    // An engine ends if the socket does not exist; a service manager would restart it.
    soon("the boundary does not listen", async || {
        let mut test = hsm.exec(ExecCommand::new(["test", "-S", "/run/pinseal-hsm/socket"])).await.unwrap();
        test.stdout_to_vec().await.unwrap();
        (test.exit_code().await.unwrap() == Some(0)).then_some(())
    })
    .await;

    let engine = "listen = \"0.0.0.0:50051\"\ndata_directory = \"/var/lib/pinseal\"\n\
                  [boundary]\nsocket = \"/run/pinseal-hsm/socket\"\nhsm_user = 10002\n\
                  [tls]\ncertificates = \"/var/lib/pinseal/pki/engine.pem\"\n\
                  private_key = \"/var/lib/pinseal/pki/engine.key\"\nclient_roots = \"/var/lib/pinseal/pki/ca.pem\"\n\
                  [[peers]]\ncertificate_name = \"client.pinseal.test\"\nroles = [\"edge-set\", \"edge-view\"]\n";
    let engine = image("pinseal-engine")
        .with_exposed_port(50_051.tcp())
        .with_wait_for(WaitFor::message_on_stdout("pinseal engine listens on"))
        .with_copy_to("/etc/pinseal/engine.toml", engine.as_bytes().to_vec())
        .with_mount(store.at("/var/lib/pinseal"))
        .with_mount(socket.at("/run/pinseal-hsm"))
        .with_host_config_modifier(|host| host.group_add = Some(vec!["10002".into()]))
        .with_startup_timeout(Duration::from_secs(120))
        .start()
        .await
        .unwrap();
    let mut client = client_of(&engine, directory.path()).await;
    client.set(&device, "8420", "271828").await.unwrap();
    assert_eq!(client.view(&device, "8420").await.unwrap(), "271828");

    let client = "[[clients]]\nname = \"wallet\"\ntenant = \"bank\"\nbearer = { env = \"WALLET_TOKEN\" }\n";
    let edge = image("pinseal-edge")
        .with_wait_for(WaitFor::message_on_stdout("pinseal edge listens on"))
        .with_env_var("WALLET_TOKEN", support::edge_process::TOKEN)
        .with_copy_to("/etc/pinseal/edge.toml", client.as_bytes().to_vec())
        .start()
        .await
        .unwrap();
    for container in [edge, engine, hsm] {
        container.rm().await.unwrap();
    }
}

/// The user or group this test runs as.
fn own(what: &str) -> String {
    let printed = Command::new("id").arg(what).output().unwrap();
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}
