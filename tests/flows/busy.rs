//! A boundary that is busy: a try is compared later and used once, and a busy item of a stream is done again alone.
//!
//! The engine runs in the test, over the boundary's own process. A layer in between answers some requests as a full queue does.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use engine::{BoundaryPlace, Engine, EngineConfig};
use futures::stream;
use hsm_client::{AbsentKeys, Answer, Boundary, BoundaryError, OpenBoundary};
use hsm_protocol::{Error, Reply, Request, Status as BoundaryStatus};
use proto::{
    ChangePinRequest, ExportPinsRequest, NumberedExport, NumberedSet, NumberedTranslation, SetPinsRequest,
    TranslatePinBlocksRequest, TranslationItem, ZoneBlock, ZoneFormat, ZonePinChange, block_outcome,
    bulk_service_client::BulkServiceClient, change_pin_request::Change, set_outcome,
};
use tokio::sync::watch;
use tonic::{Code, transport::Channel};

use support::{
    ceremony::pinseal,
    engine_process::{AUDIT_USER, Client, TENANT, reason},
    pinseal_path,
    zone_party::{ZONES, ZoneParty, right, wrong, zone},
};

/// The size of the queue in a busy answer.
const QUEUE: usize = 4_096;
const ACCOUNT: &str = "5413330089020011";

/// What the layer does and saw, by plasticId.
#[derive(Default)]
struct Load {
    /// The busy answers that are left.
    busy: Mutex<HashMap<Vec<u8>, usize>>,
    /// The requests that came.
    requests: Mutex<HashMap<Vec<u8>, usize>>,
    /// Whether the check of the boundary finds it busy.
    busy_checks: AtomicBool,
}

impl Load {
    fn answers_busy(&self, plastic_id: &str, times: usize) {
        self.busy.lock().unwrap().insert(plastic_id.into(), times);
    }

    fn requests(&self, plastic_id: &str) -> usize {
        self.requests.lock().unwrap().get(plastic_id.as_bytes()).copied().unwrap_or_default()
    }

    fn is_busy(&self, request: &Request) -> bool {
        let card = match request {
            Request::Check => return self.busy_checks.load(Ordering::Relaxed),
            Request::Translate { card, .. } | Request::Verify { card, .. } | Request::Change { card, .. } => card,
            _ => return false,
        };
        *self.requests.lock().unwrap().entry(card.plastic_id().into()).or_default() += 1;
        let mut busy = self.busy.lock().unwrap();
        let Some(left) = busy.get_mut(card.plastic_id()).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }
}

struct BusyOpener(Box<dyn OpenBoundary>, Arc<Load>);

impl OpenBoundary for BusyOpener {
    fn open(
        self: Box<Self>,
        connections: usize,
        absent: AbsentKeys,
    ) -> Answer<'static, Result<Arc<dyn Boundary>, BoundaryError>> {
        let Self(opener, load) = *self;
        Box::pin(async move {
            let boundary = opener.open(connections, absent).await?;
            Ok(Arc::new(BusyBoundary(boundary, load)) as Arc<dyn Boundary>)
        })
    }
}

struct BusyBoundary(Arc<dyn Boundary>, Arc<Load>);

impl Boundary for BusyBoundary {
    fn for_thread(&self, number: usize) -> Arc<dyn Boundary> {
        Arc::new(Self(self.0.for_thread(number), Arc::clone(&self.1)))
    }

    fn watched(&self) -> watch::Receiver<Arc<BoundaryStatus>> {
        self.0.watched()
    }

    fn status(&self) -> Arc<BoundaryStatus> {
        self.0.status()
    }

    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>> {
        self.0.reload_keys()
    }

    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>> {
        if let Request::Together { requests } = request {
            return Box::pin(async move {
                let mut results = Vec::new();
                for request in requests {
                    results.push(self.execute(request).await);
                }
                Ok(Reply::Together(results))
            });
        }
        if self.1.is_busy(&request) {
            return Box::pin(async { Err(Error::Busy { limit: QUEUE }) });
        }
        self.0.execute(request)
    }

    fn close(&self) -> Answer<'_, ()> {
        self.0.close()
    }
}

/// An engine in the test's process.
struct BusyEngine {
    engine: Engine,
    load: Arc<Load>,
    store: PathBuf,
}

impl BusyEngine {
    async fn start(directory: &Path) -> Self {
        let (file, data) = (directory.join("busy.toml"), directory.join("data"));
        let program = pinseal_path();
        // A stall of the machine ends no call.
        let lines = format!(
            "listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\ncall_timeout_milliseconds = 60000\n\
             [boundary]\nprogram = {program:?}\n{ZONES}"
        );
        fs::write(&file, lines).unwrap();
        let mut config = EngineConfig::load(Some(&file)).unwrap();
        let BoundaryPlace::Process(process) = std::mem::replace(&mut config.boundary, BoundaryPlace::Inline) else {
            panic!("the boundary is a process by default")
        };
        let load = Arc::new(Load::default());
        let opener = Box::new(BusyOpener(Box::new(process), Arc::clone(&load)));
        let opened = engine_server::open_store(Some(&file)).await.unwrap();
        Self { engine: Engine::start(config, opened, opener).await.unwrap(), load, store: data.join("store") }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.engine.address())).unwrap().connect().await.unwrap()
    }

    /// Stops the engine and returns its audit chain, as lines.
    async fn stop(self) -> Vec<serde_json::Value> {
        self.engine.stop().await.unwrap();
        let exported = pinseal().args(["audit", "export", "--store"]).arg(self.store).output().unwrap();
        String::from_utf8(exported.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_of_a_busy_boundary_is_repeated_under_its_one_try() {
    const CARD: &str = "3061";
    const BUSY: usize = 5;
    let party = ZoneParty::prepared();
    let engine = BusyEngine::start(party.directory()).await;
    let mut client = Client::over(engine.channel().await);
    client.set_by_zone(CARD, &party.block("27182")).await.unwrap();
    for (pin, expected) in [("27182", right(3)), ("27183", wrong(2))] {
        engine.load.answers_busy(CARD, BUSY);
        assert_eq!(client.verify(CARD, &party.block(pin)).await.unwrap(), expected);
    }
    engine.load.answers_busy(CARD, BUSY);
    let change = ZonePinChange {
        plastic_id: CARD.into(),
        old_block: Some(party.block("27182")),
        new_block: Some(party.block("16180")),
    };
    let request = ChangePinRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        change: Some(Change::ZoneChange(change)),
    };
    let changed = client.pins.change_pin(request).await.unwrap().into_inner();
    assert_eq!((changed.result().as_str_name(), changed.remaining_try_count), right(3));
    assert_eq!(engine.load.requests(CARD), 1 + 3 * (BUSY + 1), "the set, and three tries");
    let found = client.find(CARD).await.unwrap();
    assert_eq!((found.reserved_try_count, found.used_try_count), (3, 0));

    // Busy before a try is reserved: the caller repeats the call.
    engine.load.busy_checks.store(true, Ordering::Relaxed);
    let busy = client.verify(CARD, &party.block("16180")).await.unwrap_err();
    assert_eq!((busy.code(), &*reason(&busy)), (Code::ResourceExhausted, "TOKEN_BUSY"));
    engine.load.busy_checks.store(false, Ordering::Relaxed);
    assert_eq!(client.find(CARD).await.unwrap().reserved_try_count, 3);

    // Busy for longer than the engine waits: neither right nor wrong, and the try stays used.
    engine.load.answers_busy(CARD, usize::MAX);
    let lost = client.verify(CARD, &party.block("16180")).await.unwrap_err();
    assert_eq!((lost.code(), &*reason(&lost)), (Code::Unavailable, "TOKEN_UNAVAILABLE"));
    engine.load.answers_busy(CARD, 0);
    let found = client.find(CARD).await.unwrap();
    assert_eq!((found.reserved_try_count, found.used_try_count), (4, 1));
    assert_eq!(client.verify(CARD, &party.block("16180")).await.unwrap(), right(3), "a right PIN forgives it");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_item_of_a_stream_is_done_again_alone() {
    const ITEMS: usize = 40;
    const BUSY: usize = 3;
    let party = ZoneParty::prepared();
    let engine = BusyEngine::start(party.directory()).await;
    let channel = engine.channel().await;
    let (mut client, mut bulk) = (Client::over(channel.clone()), BulkServiceClient::new(channel));
    let cards: Vec<_> = (0..ITEMS).map(|n| (560_000 + n).to_string()).collect();
    for card in &cards {
        client.register(card, ACCOUNT).await.unwrap();
    }
    // Every eighth item is busy.
    let is_busy = |at: usize| at.is_multiple_of(8);
    let expect_busy = || {
        engine.load.requests.lock().unwrap().clear();
        let busy = cards.iter().enumerate().filter(|(at, _)| is_busy(*at));
        busy.for_each(|(_, card)| engine.load.answers_busy(card, BUSY));
    };
    let assert_repeated_alone = |stream: &str| {
        for (at, card) in cards.iter().enumerate() {
            let expected = if is_busy(at) { 1 + BUSY } else { 1 };
            assert_eq!(engine.load.requests(card), expected, "item {at} of {stream}");
        }
    };
    let (tenant, audit_user) = (TENANT.to_owned(), AUDIT_USER.to_owned());

    expect_busy();
    let items = cards.iter().zip(0..).map(|(card, sequence)| NumberedSet {
        sequence,
        plastic_id: card.clone(),
        zone_block: Some(party.block(&format!("5{sequence:04}7"))),
    });
    let sets = SetPinsRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), items: items.collect() };
    let mut answers = bulk.set_pins(stream::iter([sets])).await.unwrap().into_inner();
    let mut next = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        for outcome in answer.outcomes {
            assert_eq!(outcome.sequence, next);
            assert!(matches!(outcome.result, Some(set_outcome::Result::Unchanged(false))), "item {next} is not set");
            next += 1;
        }
    }
    assert_eq!(next as usize, ITEMS);
    assert_repeated_alone("sets");

    expect_busy();
    let items = cards.iter().zip(0..).map(|(card, sequence)| NumberedExport {
        sequence,
        plastic_id: card.clone(),
        zone_key: Some(zone("app")),
        format: ZoneFormat::Iso0.into(),
    });
    let exports = ExportPinsRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), items: items.collect() };
    let mut answers = bulk.export_pins(stream::iter([exports])).await.unwrap().into_inner();
    let mut blocks = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        for outcome in answer.outcomes {
            assert_eq!(outcome.sequence as usize, blocks.len());
            let Some(block_outcome::Result::PinBlock(block)) = outcome.result else { panic!("not exported") };
            assert_eq!(party.decrypted_bound(&block, ACCOUNT), format!("5{:04}7", blocks.len()));
            blocks.push(block);
        }
    }
    assert_eq!(blocks.len(), ITEMS);
    assert_repeated_alone("exports");

    expect_busy();
    let items = cards.iter().zip(blocks).zip(0..).map(|((card, pin_block), sequence)| {
        let source_block = ZoneBlock { zone_key: Some(zone("app")), format: ZoneFormat::Iso0.into(), pin_block };
        let item = TranslationItem {
            plastic_id: card.clone(),
            source_block: Some(source_block),
            target_key: Some(zone("app")),
            target_format: ZoneFormat::Iso3.into(),
            sealed_account: Vec::new(),
        };
        NumberedTranslation { sequence, item: Some(item) }
    });
    let translations = TranslatePinBlocksRequest { tenant, audit_user, items: items.collect() };
    let mut answers = bulk.translate_pin_blocks(stream::iter([translations])).await.unwrap().into_inner();
    let mut next = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        for outcome in answer.outcomes {
            assert_eq!(outcome.sequence, next);
            let Some(block_outcome::Result::PinBlock(block)) = outcome.result else { panic!("not translated") };
            assert_eq!(party.decrypted_bound(&block, ACCOUNT), format!("5{next:04}7"));
            next += 1;
        }
    }
    assert_eq!(next as usize, ITEMS);
    assert_repeated_alone("translations");

    let entries = engine.stop().await;
    let of = |action: &str| entries.iter().filter(|entry| entry["event"]["action"] == action).count();
    assert_eq!((of("set_pin_by_zone"), of("export_pin")), (ITEMS, ITEMS), "a busy attempt has no event");
    let translated = entries.iter().filter(|entry| entry["event"]["type"] == "blocks_translated");
    let counts = translated.map(|entry| entry["event"]["count"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>() as usize, ITEMS);
}
