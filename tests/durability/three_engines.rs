//! Three engines on one database and one token at once.

use std::path::Path;

use device::{Fill, Pin};
use postgres_server::{Server, until};
use proto::{RotationState, WatchRotationRequest, ZoneBlock, ZoneFormat, key_service_client::KeyServiceClient};
use support::{
    ceremony::{Ceremony, ENOUGH},
    engine_process::{Client, EngineProcess, device},
    pinseal_path,
    real_token::{Make, RealToken},
    wait::signal,
    zone_party::zone,
};
use tempfile::TempDir;

const ZONE: &str =
    "[[zones]]\nname = \"app\"\ntenant = \"bank\"\nindex = 7\nformats = [\"iso-1\"]\nuses = [\"verify\"]\n";

/// The directory of an engine, and its name on the database.
struct Place {
    directory: TempDir,
    name: String,
}

impl Place {
    fn start(&self, server: &Server, token: &RealToken) -> EngineProcess {
        let lines = format!("{}\nlease_seconds = 3\n{}{ZONE}", server.section(&self.name), token.lines());
        let mut pinseal = token.beside(pinseal_path());
        pinseal.envs(token.environment());
        EngineProcess::start_with(pinseal, "127.0.0.1:0", self.directory.path(), &lines)
    }
}

async fn rotation(engine: &EngineProcess) -> RotationState {
    let mut keys = KeyServiceClient::new(engine.channel().await);
    let progress = keys.watch_rotation(WatchRotationRequest {}).await.unwrap().into_inner().message().await;
    progress.unwrap().unwrap().state()
}

/// Reloads the keys of an engine, and waits until the engine has them.
async fn reload(engine: &EngineProcess) {
    let reloads = || engine.log().matches("has reloaded its keys").count();
    let before = reloads();
    signal(engine.id(), "HUP");
    until("the keys are reloaded", async || (reloads() > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_engines_share_pins_and_rotate_a_key_together() {
    let (server, token, device) = (Server::start(), RealToken::with_keys(Make::SoftHsm), device());
    let ceremony = Ceremony::prepared_on(&token);
    ceremony.begin();
    let zone_key = ceremony.load_known("zone:app", 0x5B);
    let block = |pin: &str| {
        let pin_block = zone_key.encrypt_block(&Pin::parse(pin).unwrap().to_block(Fill::Random)).to_vec();
        ZoneBlock { zone_key: Some(zone("app")), format: ZoneFormat::Iso1.into(), pin_block }
    };
    let place = |number| Place { directory: tempfile::tempdir().unwrap(), name: format!("engine-{number}") };
    let places = [1, 2, 3].map(place);
    let start = |place: &Place| place.start(&server, &token);
    let [one, two, three] = places.each_ref().map(start);
    let (mut on_one, mut on_two, mut on_three) = (one.client().await, two.client().await, three.client().await);

    // Each engine in each part.
    let mut cards = Vec::new();
    for turn in 0..3 {
        let mut clients: [&mut Client; 3] = [&mut on_one, &mut on_two, &mut on_three];
        clients.rotate_left(turn);
        let [sets, views, verifies] = clients;
        let (card, pin) = (format!("{}", 6_200 + turn), format!("48{turn}7"));
        sets.set(&device, &card, &pin).await.unwrap();
        assert_eq!(views.view(&device, &card).await.unwrap(), pin);
        assert_eq!(verifies.verify(&card, &block("9173")).await.unwrap().1, 2);
        // The try that one engine counted is known to the next, and the right PIN forgives it.
        assert_eq!(sets.verify(&card, &block("9173")).await.unwrap().1, 1);
        assert_eq!(views.verify(&card, &block(&pin)).await.unwrap().1, 3);
        cards.push((card, pin));
    }

    // One is killed in the middle: the others serve, also what it had written.
    let (card, pin) = ("6210".to_owned(), "5937".to_owned());
    on_two.set(&device, &card, &pin).await.unwrap();
    two.kill();
    assert_eq!(on_one.view(&device, &card).await.unwrap(), pin);
    assert_eq!(on_three.verify(&card, &block(&pin)).await.unwrap().1, 3);
    cards.push((card, pin));
    let two = start(&places[1]);
    assert_eq!(two.client().await.view(&device, &cards[0].0).await.unwrap(), cards[0].1);

    // A new storage key: no engine writes under it before all three have it.
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);
    let admin = server.admin().await;
    let version_of = async |card: &str| -> i16 {
        let row = admin.query_one("SELECT pin_version::int2 FROM cards WHERE plastic_id = $1", &[&card]).await;
        row.unwrap().get(0)
    };
    reload(&one).await;
    reload(&two).await;
    for (engine, card) in [(&one, "6221"), (&two, "6222"), (&three, "6223")] {
        engine.client().await.set(&device, card, "4826").await.unwrap();
        assert_eq!(version_of(card).await, 1, "{card}: engine-3 does not have the new key");
    }
    until("the rotation waits", async || (rotation(&one).await == RotationState::Waiting).then_some(())).await;
    reload(&three).await;
    for (engine, card) in [(&one, "6231"), (&two, "6232"), (&three, "6233")] {
        until("an engine writes under the new key", async || {
            engine.client().await.set(&device, card, "4826").await.unwrap();
            (version_of(card).await == 2).then_some(())
        })
        .await;
    }
    let left = "SELECT count(*) FROM cards WHERE pin_version <> 2";
    until("every record is re-encrypted", async || {
        (admin.query_one(left, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    for (card, pin) in &cards {
        assert_eq!(three.client().await.view(&device, card).await.unwrap(), *pin, "{card}");
    }
    for engine in [one, two, three] {
        assert_eq!(engine.terminate(), 0);
    }
    assert_chains(&server, ceremony.directory());
}

/// Each engine has a chain that verifies.
fn assert_chains(server: &Server, directory: &Path) {
    let config = directory.join("reader.toml");
    std::fs::write(&config, server.section("reader")).unwrap();
    let printed = super::command::done(&["audit", "verify", "--config", config.to_str().unwrap()]);
    for engine in ["engine-1", "engine-2", "engine-3"] {
        assert!(printed.contains(&format!("{engine}: the audit chain holds")), "{printed}");
    }
}
