//! The memory of engine and edge never holds a clear block, a tzpk or a storage key. After the calls the boundary's process
//! holds only the storage key. In a build that does not wipe, the same search finds the clear values.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use device::{
    Device, Fill, Pin,
    client::{Backend, Scope as EdgeScope},
};
use futures::future::join_all;
use memory_search::{Planted, storage_key_of};
use proto::Scope;

use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{Client, EngineProcess, device},
};

/// A controlId, which is in the engine's memory while the control is live: a search that misses it does not work.
const CONTROL: &str = "a controlId";
/// A key that is in the memory of the vault's process: a search that misses it does not work.
const STORAGE_KEY: &str = "the storage key";
/// PINs set, and as many viewed, before the one search.
const FEW: u32 = 60;
/// PINs set, and as many viewed, while the memory is searched. `PINSEAL_MEMORY_PINS` sets another number:
/// `scripts/test-memory` runs 50,000.
const MANY: u32 = 4_000;
/// The load runs until the memory was searched this often. `PINSEAL_MEMORY_SEARCHES` sets another number.
const SEARCHES_MIN: u32 = 4;
/// A pause between two searches, in which the load has the processors.
const BETWEEN_SEARCHES: Duration = Duration::from_secs(2);
/// Concurrent clients: by gRPC, and through the edge.
const ENGINE_CLIENTS: u32 = 12;
const EDGE_CLIENTS: u32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn no_clear_value_stays_in_memory_after_the_calls() {
    let binary = Path::new(env!("CARGO_BIN_EXE_pinseal"));
    for isolation in ["process", "inline"] {
        let found = found_after_calls(binary, isolation).await;
        let may_be_there = if isolation == "inline" { vec![STORAGE_KEY] } else { vec![] };
        assert_eq!(found.engine.iter().copied().collect::<Vec<_>>(), may_be_there, "left in the engine, {isolation}");
        assert!(found.hsm.iter().all(|name| *name == STORAGE_KEY), "left in the boundary: {:?}", found.hsm);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_finds_clear_values_where_nothing_is_wiped() {
    let binary = unwiped_build();
    let all = |found: &BTreeSet<&str>| ["a clear block", "a tzpk", STORAGE_KEY].iter().all(|what| found.contains(what));
    let apart = found_after_calls(&binary, "process").await;
    assert!(all(&apart.hsm), "not found: {:?}", apart.hsm);
    assert!(apart.engine.is_empty(), "in the engine's memory: {:?}", apart.engine);
    let inline = found_after_calls(&binary, "inline").await;
    assert!(all(&inline.engine), "not found: {:?}", inline.engine);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_clear_value_is_in_engine_or_edge_under_load() {
    let directory = tempfile::tempdir().unwrap();
    // A stall of the machine ends no call.
    let generous = "call_timeout_milliseconds = 60000\n[control]\nper_card_per_hour_max = 1000000\n[limits]\ncalls_per_card_per_minute = 1000000";
    let engine = EngineProcess::start_quiet(directory.path(), generous);
    let edge = EdgeProcess::start_quiet_with(
        directory.path(),
        &format!("addresses = [\"http://{}\"]", engine.address()),
        "request_timeout_milliseconds = 60000",
    );
    let hsm = engine.hsm_id().unwrap();
    let planted = Arc::new(Story::new(directory.path(), pins()));

    let (device, mut load) = (Arc::new(device()), Vec::new());
    for number in 0..ENGINE_CLIENTS {
        let (planted, device, mut client) = (Arc::clone(&planted), Arc::clone(&device), engine.client().await);
        load.push(tokio::spawn(async move {
            while let Some(turn) = planted.take_turn() {
                planted.play(&mut client, &device, number, turn).await;
            }
        }));
    }
    for number in 0..EDGE_CLIENTS {
        let (planted, device, url) = (Arc::clone(&planted), Arc::clone(&device), edge.url.clone());
        load.push(tokio::task::spawn_blocking(move || {
            let backend = Backend::with_bearer(&url, TOKEN, "it");
            while let Some(turn) = planted.take_turn() {
                planted.play_through_the_edge(&backend, &device, ENGINE_CLIENTS + number, turn);
            }
        }));
    }
    let mut bytes = 0;
    while load.iter().any(|client| !client.is_finished()) {
        let searches = planted.searches.load(Ordering::Relaxed);
        for (name, process) in [("engine", engine.id()), ("edge", edge.id())] {
            let planted = Arc::clone(&planted);
            let found = tokio::task::spawn_blocking(move || planted.find_in(process)).await.unwrap();
            let clear: Vec<_> = found.names.iter().filter(|found| **found != CONTROL).collect();
            assert!(clear.is_empty(), "in the {name}'s memory: {clear:?}");
            assert!(name == "edge" || found.names.contains(CONTROL) || searches == 0, "the search is blind");
            bytes += found.bytes;
        }
        planted.searches.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BETWEEN_SEARCHES).await;
    }
    join_all(load).await.into_iter().for_each(|client| client.unwrap());
    assert_eq!(engine.hsm_id(), Some(hsm), "the boundary's process ended under load");

    let left: Vec<_> = planted.find_in(hsm).names.into_iter().filter(|name| *name != CONTROL).collect();
    assert_eq!(left, [STORAGE_KEY], "left in the boundary's memory once it is idle");
    let searches = planted.searches.load(Ordering::Relaxed);
    assert!(searches >= searches_min(), "the load ended after {searches} searches");
    let summary =
        format!("{} PINs set and viewed, {searches} searches of engine and edge, {} MiB\n", pins(), bytes >> 20);
    std::io::stdout().write_all(summary.as_bytes()).unwrap();
}

fn pins() -> u32 {
    std::env::var("PINSEAL_MEMORY_PINS").map_or(MANY, |number| number.parse().unwrap())
}

fn searches_min() -> u32 {
    std::env::var("PINSEAL_MEMORY_SEARCHES").map_or(SEARCHES_MIN, |number| number.parse().unwrap())
}

/// The values of the calls so far, and the progress.
struct Story {
    planted: RwLock<Planted>,
    /// The newest controlId, which the store removes last.
    control: Mutex<Option<uuid::Uuid>>,
    played: AtomicU32,
    pins: u32,
    searches: AtomicU32,
}

impl Story {
    fn new(directory: &Path, pins: u32) -> Self {
        let data = directory.join("data");
        let mut planted = Planted::default();
        planted.plant(STORAGE_KEY, &storage_key_of(&data.join("vault"), &data.join("vault.key")).unwrap());
        Self {
            planted: RwLock::new(planted),
            control: Mutex::default(),
            played: AtomicU32::new(0),
            pins,
            searches: AtomicU32::new(0),
        }
    }

    fn take_turn(&self) -> Option<u32> {
        Some(self.played.fetch_add(1, Ordering::Relaxed))
            .filter(|turn| *turn < self.pins || self.searches.load(Ordering::Relaxed) < searches_min())
    }

    fn plant(&self, what: &'static str, bytes: &[u8]) {
        self.planted.write().unwrap().plant(what, bytes);
    }

    /// A unique PIN of eight digits, and its blocks.
    fn pin(&self, turn: u32) -> Pin {
        let pin = Pin::parse(&format!("97{:06}", (turn * 7_919 + 13) % 1_000_000)).unwrap();
        let [_, second, third, fourth, fifth, ..] = pin.to_block(Fill::Random);
        // The first half of a format 4 block holds only the PIN.
        self.plant("a PIN in block form", &[0x48, second, third, fourth, fifth, 0xAA, 0xAA, 0xAA]);
        pin
    }

    async fn play(&self, client: &mut Client, device: &Device, number: u32, turn: u32) {
        let (card, pin) = (format!("{}", 60_000 + number), self.pin(turn));
        let control = client.open(&card, Scope::SetPin).await.unwrap().control_id;
        let tzpk = device.decrypt_tzpk(&client.tzpk(&control, device).await.unwrap()).unwrap();
        let clear = pin.to_block(Fill::Random);
        self.plant("a tzpk", tzpk.as_bytes());
        self.plant("a clear block", &clear);
        self.note(&control);
        client.set_block(&control, &tzpk.encrypt_block(&clear)).await.unwrap();

        let (block, encrypted) = client.view_encrypted(device, &card).await.unwrap();
        let tzpk = device.decrypt_tzpk(&encrypted).unwrap();
        let shown = tzpk.decrypt_block(&block);
        self.plant("a tzpk", tzpk.as_bytes());
        self.plant("a clear block", &shown);
        assert_eq!(Pin::from_block(&shown).unwrap().reveal(), pin.reveal());
    }

    fn play_through_the_edge(&self, backend: &Backend, device: &Device, number: u32, turn: u32) {
        let (card, pin) = (format!("{}", 60_000 + number), self.pin(turn));
        let (control, _) = backend.open_control(&card, EdgeScope::SetPin).unwrap();
        let (encrypted, _) = backend.set_tzpk(&control, device.public_key_der()).unwrap();
        let tzpk = device.decrypt_tzpk(&encrypted).unwrap();
        let clear = pin.to_block(Fill::Random);
        self.plant("a tzpk", tzpk.as_bytes());
        self.plant("a clear block", &clear);
        backend.set(&control, &tzpk.encrypt_block(&clear)).unwrap();

        let (control, _) = backend.open_control(&card, EdgeScope::ViewPin).unwrap();
        let (shown, _) = backend.view(&control, device.public_key_der()).unwrap();
        let tzpk = device.decrypt_tzpk(&shown.encrypted_tzpk).unwrap();
        let clear = tzpk.decrypt_block(&shown.block);
        self.plant("a tzpk", tzpk.as_bytes());
        self.plant("a clear block", &clear);
        assert_eq!(Pin::from_block(&clear).unwrap().reveal(), pin.reveal());
    }

    fn note(&self, control: &str) {
        *self.control.lock().unwrap() = uuid::Uuid::try_parse(control).ok();
    }

    fn find_in(&self, process: u32) -> memory_search::Found {
        if let Some(control) = *self.control.lock().unwrap() {
            self.plant(CONTROL, control.as_bytes());
        }
        // A copy: the clients must not wait for the search.
        let planted = self.planted.read().unwrap().clone();
        let found = planted.find_in(process).expect("run the tests as root");
        assert!(found.bytes > 1 << 20, "too little memory was read");
        found
    }
}

/// The values that were found, and the place of each.
struct Found {
    engine: BTreeSet<&'static str>,
    hsm: BTreeSet<&'static str>,
}

/// Sets and views distinctive PINs, then searches for their clear values.
async fn found_after_calls(binary: &Path, isolation: &str) -> Found {
    let directory = tempfile::tempdir().unwrap();
    let engine =
        EngineProcess::start_binary(binary, directory.path(), &format!("[boundary]\nisolation = \"{isolation}\""));
    let (device, mut client) = (device(), engine.client().await);
    let story = Story::new(directory.path(), FEW);
    for turn in 0..FEW {
        story.play(&mut client, &device, turn, turn).await;
    }
    // The last call is a set: a view must not overwrite what a set leaves.
    let control = client.open("60100", Scope::SetPin).await.unwrap().control_id;
    let tzpk = device.decrypt_tzpk(&client.tzpk(&control, &device).await.unwrap()).unwrap();
    let clear = story.pin(FEW).to_block(Fill::Random);
    client.set_block(&control, &tzpk.encrypt_block(&clear)).await.unwrap();
    story.plant("a tzpk", tzpk.as_bytes());
    story.plant("a clear block", &clear);
    story.note(&control);

    let hsm = engine.hsm_id();
    assert_eq!(hsm.is_some(), isolation == "process");
    let mut in_engine = story.find_in(engine.id()).names;
    assert!(in_engine.remove(CONTROL), "the search is blind");
    let mut in_hsm = hsm.map(|hsm| story.find_in(hsm).names).unwrap_or_default();
    in_hsm.remove(CONTROL);
    assert!(hsm.is_none() || in_hsm.contains(STORAGE_KEY), "the search is blind");
    Found { engine: in_engine, hsm: in_hsm }
}

/// The program built without wiping: `PINSEAL_UNWIPED`, which `scripts/test` builds in the common
/// target directory, or one that this test builds in a second directory.
pub(crate) fn unwiped_build() -> PathBuf {
    if let Some(built) = std::env::var_os("PINSEAL_UNWIPED") {
        return built.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/unwiped");
    let built = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "--bin", "pinseal", "--features", "unwiped-for-test"])
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    target.join("debug/pinseal")
}
