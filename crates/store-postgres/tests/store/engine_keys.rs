//! R10 with whole engines: a reload of the keys while another engine serves.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use engine::{Engine, EngineConfig, ReloadError, StartError};
use hsm::{AbsentVault, Config, Hsm, KeyAlgorithm, KeyStore, KeyUsage, Keys, Unlock, Vault, Wanted};
use hsm_client::{AbsentKeys, Answer, Boundary, BoundaryError, OpenBoundary};
use hsm_protocol::{Error, PinRecord, Reply, Request, Status};
use proto::{
    GeneratePinRequest, RegisterCardRequest, RotationState, SealPanRequest, WatchRotationRequest,
    card_service_client::CardServiceClient, key_service_client::KeyServiceClient, pin_service_client::PinServiceClient,
};
use store::Store;
use store_postgres::Postgres;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::{open, verified_chain};
use domain::card::{CardKey, PlasticId, Tenant};
use postgres_server::{Server, until};

/// A boundary in this process, which opens its vault again for a reload.
#[derive(Clone)]
struct Reloaded {
    directory: PathBuf,
    hsm: Arc<RwLock<Arc<Hsm>>>,
    status: watch::Sender<Arc<Status>>,
}

struct Opener(PathBuf);

fn vault(directory: &Path) -> Keys {
    let unlock = Unlock::KeyFile(directory.join("vault.key"));
    Keys::Vault(Vault::File { path: directory.join("vault"), unlock })
}

fn open_vault(directory: &Path) -> Arc<Hsm> {
    let config = Config { keys: vault(directory), absent_vault: AbsentVault::Create, ..Config::default() };
    Arc::new(Hsm::open(config).unwrap())
}

impl OpenBoundary for Opener {
    fn open(self: Box<Self>, _: usize, _: AbsentKeys) -> Answer<'static, Result<Arc<dyn Boundary>, BoundaryError>> {
        Box::pin(async move {
            let hsm = open_vault(&self.0);
            let status = watch::Sender::new(Arc::new(hsm.status().clone()));
            let hsm = Arc::new(RwLock::new(hsm));
            Ok(Arc::new(Reloaded { directory: self.0, hsm, status }) as Arc<dyn Boundary>)
        })
    }
}

impl Boundary for Reloaded {
    fn for_thread(&self, _: usize) -> Arc<dyn Boundary> {
        Arc::new(self.clone())
    }

    fn watched(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>> {
        Box::pin(async {
            let hsm = open_vault(&self.directory);
            self.status.send_replace(Arc::new(hsm.status().clone()));
            *self.hsm.write().unwrap() = hsm;
            Ok(())
        })
    }

    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>> {
        let hsm = Arc::clone(&self.hsm.read().unwrap());
        Box::pin(async move { hsm.execute(request).await })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {})
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }
}

/// An engine, its store and a connection to it.
struct Started {
    engine: Engine,
    channel: Channel,
}

async fn try_start(store: Arc<Postgres>, directory: &Path) -> Result<Engine, StartError> {
    let mut config = EngineConfig::embedded(&directory.join(&**store.engine_name())).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    Engine::start(config, store, Box::new(Opener(directory.to_owned()))).await
}

async fn start(server: &Server, directory: &Path, name: &str) -> Started {
    let engine = try_start(open(&server.config(name)).await, directory).await.unwrap();
    let channel = net::connect::channel(&engine.address().into(), None).unwrap();
    Started { engine, channel }
}

impl Started {
    /// Registers a card and generates its PIN.
    async fn set(&self, plastic_id: &str) {
        let (tenant, audit_user, plastic_id) = ("bank".to_owned(), "test".to_owned(), plastic_id.to_owned());
        let register = RegisterCardRequest {
            tenant: tenant.clone(),
            audit_user: audit_user.clone(),
            plastic_id: plastic_id.clone(),
            account_number: String::new(),
        };
        CardServiceClient::new(self.channel.clone()).register_card(register).await.unwrap();
        let generate = GeneratePinRequest { tenant, audit_user, plastic_id, digit_count: 6 };
        PinServiceClient::new(self.channel.clone()).generate_pin(generate).await.unwrap();
    }

    async fn rotation(&self) -> RotationState {
        let mut keys = KeyServiceClient::new(self.channel.clone());
        let progress = keys.watch_rotation(WatchRotationRequest {}).await.unwrap().into_inner().message().await;
        progress.unwrap().unwrap().state()
    }
}

/// The version of the storage key of a card's record.
async fn version_of(store: &dyn Store, plastic_id: &str) -> u16 {
    let card = CardKey { tenant: Tenant::parse("bank").unwrap(), plastic: PlasticId::parse(plastic_id).unwrap() };
    let pin = store.pin(&card).await.unwrap().unwrap();
    PinRecord::from_bytes(&pin.record).unwrap().storage_key().0
}

/// Adds version 2 of the storage key to a vault.
fn add_key(directory: &Path) {
    let mut keys = KeyStore::open(vault(directory), &Wanted::default(), 2).unwrap();
    keys.make(KeyUsage::Storage, KeyAlgorithm::Aes256, 2).unwrap();
    keys.activate(&KeyUsage::Storage, 2, 2).unwrap();
    keys.commit([0; 32]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_newer_key_serves_under_the_key_of_all() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let observer = open(&server.config("observer")).await;
    let (one, two) =
        (start(&server, directory.path(), "engine-1").await, start(&server, directory.path(), "engine-2").await);
    one.set("1001").await;

    // A ceremony adds a key. Engine 1 reloads it, and starts again with it.
    add_key(directory.path());
    one.engine.reload_keys().await.unwrap();
    one.set("1002").await;
    until("the rotation waits for engine 2", async || (one.rotation().await == RotationState::Waiting).then_some(()))
        .await;
    one.engine.stop().await.unwrap();
    let one = start(&server, directory.path(), "engine-1").await;
    one.set("1003").await;
    two.set("1004").await;
    for card in ["1001", "1002", "1003", "1004"] {
        assert_eq!(version_of(&*observer, card).await, 1, "{card}");
    }

    // Engine 2 reloads: both write under the key from here on, and the records follow.
    two.engine.reload_keys().await.unwrap();
    one.set("1005").await;
    two.set("1006").await;
    for card in ["1005", "1006"] {
        assert_eq!(version_of(&*observer, card).await, 2, "{card}");
    }
    for card in ["1001", "1002", "1003", "1004"] {
        until("the record is re-encrypted", async || (version_of(&*observer, card).await == 2).then_some(())).await;
    }
    until("the rotation ends", async || (one.rotation().await == RotationState::Done).then_some(())).await;
    one.engine.stop().await.unwrap();
    two.engine.stop().await.unwrap();
    verified_chain(&observer, "engine-1").await;
}

/// Neither at its first start nor at a later one, with or without cards.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_the_keys_of_another_vault_does_not_start() {
    let (server, [one_vault, two_vault]) = (Server::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let one = start(&server, one_vault.path(), "engine-1").await;
    for has_cards in [false, true] {
        let refused = try_start(open(&server.config("engine-2")).await, two_vault.path()).await.err().unwrap();
        assert!(matches!(refused, StartError::OtherKeys { .. }), "{has_cards}: {refused}");
        one.set("1001").await;
    }
    start(&server, one_vault.path(), "engine-3").await.engine.stop().await.unwrap();
    one.engine.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_vaults_that_start_at_once_one_serves() {
    let (server, vaults) = (Server::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let [one, two] = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    let admin = server.admin().await;
    admin.batch_execute("BEGIN; SELECT 1 FROM key_versions FOR UPDATE").await.unwrap();
    let release = async {
        let watcher = server.admin().await;
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%key_versions%'";
        until("both report their keys", async || {
            (watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 2).then_some(())
        })
        .await;
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (one, two, ()) = tokio::join!(try_start(one, vaults[0].path()), try_start(two, vaults[1].path()), release);
    let (served, refused): (Vec<_>, Vec<_>) = [one, two].into_iter().partition(Result::is_ok);
    assert!(matches!(refused[..], [Err(StartError::OtherKeys { .. })]));
    for engine in served {
        engine.unwrap().stop().await.unwrap();
    }
}

/// Two ceremonies at copies of one vault make two keys with one version.
#[tokio::test(flavor = "multi_thread")]
async fn a_reloaded_key_that_differs_from_that_of_another_engine_is_not_used() {
    let (server, [one_vault, two_vault]) = (Server::start(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let observer = open(&server.config("observer")).await;
    drop(open_vault(one_vault.path()));
    for file in ["vault", "vault.key"] {
        std::fs::copy(one_vault.path().join(file), two_vault.path().join(file)).unwrap();
    }
    let one = start(&server, one_vault.path(), "engine-1").await;
    let two = start(&server, two_vault.path(), "engine-2").await;
    add_key(one_vault.path());
    add_key(two_vault.path());
    one.engine.reload_keys().await.unwrap();
    let refused = two.engine.reload_keys().await;
    assert!(matches!(refused, Err(ReloadError::NotUsed)), "{refused:?}");
    one.set("1001").await;
    assert_eq!(version_of(&*observer, "1001").await, 1);
    one.engine.stop().await.unwrap();
    two.engine.stop().await.unwrap();
}

/// R11: the seal depends on a read of the card, which the server that commits the event may not have.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_whose_event_another_connection_commits_is_not_returned() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let one = start(&server, directory.path(), "engine-1").await;
    let admin = server.admin().await;
    admin.batch_execute("BEGIN; SELECT 1 FROM engines FOR UPDATE").await.unwrap();
    let mut pins = PinServiceClient::new(one.channel.clone());
    let request = SealPanRequest {
        tenant: "bank".to_owned(),
        audit_user: "test".to_owned(),
        plastic_id: "1001".to_owned(),
        account_number: "4000001234567899".to_owned(),
    };
    let sealing = tokio::spawn({
        let (mut pins, request) = (pins.clone(), request.clone());
        async move { pins.seal_pan(request).await }
    });
    let watcher = server.admin().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE wait_event_type = 'Lock' AND query LIKE '%FROM engines%'";
    until("the event waits for the row", async || (watcher.execute(end, &[]).await.unwrap() > 0).then_some(())).await;
    admin.batch_execute("COMMIT").await.unwrap();
    let status = sealing.await.unwrap().err().unwrap();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    until("the seal is returned", async || pins.seal_pan(request.clone()).await.ok()).await;
    one.engine.stop().await.unwrap();
}
