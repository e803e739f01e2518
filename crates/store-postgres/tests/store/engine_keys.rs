//! R10 with whole engines: a reload of the keys while another engine serves.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use engine::{Engine, EngineConfig};
use hsm::{AbsentVault, Config, Hsm, KeyAlgorithm, KeyStore, KeyUsage, Keys, Unlock, Vault, Wanted};
use hsm_client::{AbsentKeys, Answer, Boundary, BoundaryError, OpenBoundary};
use hsm_protocol::{Error, PinRecord, Reply, Request, Status};
use proto::{
    GeneratePinRequest, RegisterCardRequest, RotationState, WatchRotationRequest,
    card_service_client::CardServiceClient, key_service_client::KeyServiceClient, pin_service_client::PinServiceClient,
};
use store::Store;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::server::{Server, until};
use crate::{open, verified_chain};
use domain::card::{CardKey, PlasticId, Tenant};

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

async fn start(server: &Server, directory: &Path, name: &str) -> Started {
    let mut config = EngineConfig::embedded(&directory.join(name)).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    let store = open(&server.config(name)).await;
    let engine = Engine::start(config, store, Box::new(Opener(directory.to_owned()))).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_newer_key_serves_under_the_key_of_all() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let observer = open(&server.config("observer")).await;
    let (one, two) =
        (start(&server, directory.path(), "engine-1").await, start(&server, directory.path(), "engine-2").await);
    one.set("1001").await;

    // A ceremony adds a key. Engine 1 reloads it, and starts again with it.
    let mut keys = KeyStore::open(vault(directory.path()), &Wanted::default(), 2).unwrap();
    keys.make(KeyUsage::Storage, KeyAlgorithm::Aes256, 2).unwrap();
    keys.activate(&KeyUsage::Storage, 2, 2).unwrap();
    keys.commit([0; 32]).unwrap();
    drop(keys);
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
