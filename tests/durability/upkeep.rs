//! `pinseal store`: a damaged store is reported and rescued, a backup of a serving engine is whole, a restored store has an
//! event and no usable control.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use device::Device;
use tonic::Code;

use super::command::{done, pinseal, said, text};
use support::{
    engine_process::{Client, EngineProcess, device, reason},
    wait::soon,
};

const LONG_LIVED: &str = "call_timeout_milliseconds = 60000\n[control]\nlifetime_seconds = 3600";

/// The text behind this label, to the next comma or the end of the line.
fn value<'a>(output: &'a str, label: &str) -> &'a str {
    let (_, rest) = output.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {output}"));
    rest.split(['\n', ',', ')']).next().unwrap().trim()
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// The bytes of every file in a directory, by path.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// The last entry of a store's chain, as JSON.
fn last_entry(store: &Path) -> serde_json::Value {
    let chain = done(&["audit", "export", "--store", text(store)]);
    serde_json::from_str(chain.lines().last().unwrap()).unwrap()
}

/// Starts an engine of the same keys on another store: one of an older state, so its checkpoint is moved.
fn start_on(directory: &Path, store: &Path) -> EngineProcess {
    move_checkpoint(directory);
    EngineProcess::start(directory, &format!("{LONG_LIVED}\n[store]\ndirectory = {store:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_reported_and_all_before_it_rescued() {
    let directory = tempfile::tempdir().unwrap();
    let (device, pins) = (device(), 8);
    let engine = EngineProcess::start(directory.path(), LONG_LIVED);
    let mut client = engine.client().await;
    for number in 0..pins {
        client.set(&device, &format!("{}", 8_300 + number), &format!("48{number}7")).await.unwrap();
    }
    assert_eq!(engine.terminate(), 0);
    let store = directory.path().join("data/store");
    assert!(done(&["store", "check", "--store", text(&store)]).contains("is whole"));
    let journal = fs::read(store.join("db/0.jnl")).unwrap();
    let end = journal.iter().rposition(|byte| *byte != 0).unwrap();

    for (number, part) in [1, 3, 5, 7].into_iter().enumerate() {
        let damaged = directory.path().join(format!("damaged-{number}"));
        copy(&store, &damaged);
        let mut bytes = journal.clone();
        bytes[end * part / 8] ^= 0x10;
        fs::write(damaged.join("db/0.jnl"), bytes).unwrap();
        let before = files(&damaged);

        let config = directory.path().join("damaged.toml");
        fs::write(
            &config,
            format!("data_directory = {:?}\n[store]\ndirectory = {damaged:?}", directory.path().join("data")),
        )
        .unwrap();
        let started = pinseal(&["engine", "--config", text(&config)]);
        assert!(!started.status.success() && said(&started).contains("pinseal store salvage"), "{}", said(&started));
        let checked = pinseal(&["store", "check", "--store", text(&damaged)]);
        assert_eq!(checked.status.code(), Some(3), "{}", said(&checked));
        assert!(said(&checked).contains("damage: 0.jnl, byte "), "{}", said(&checked));
        let refused =
            pinseal(&["store", "backup", "--store", text(&damaged), "--to", text(&damaged.with_extension("b"))]);
        assert!(!refused.status.success() && !damaged.with_extension("b").exists(), "{}", said(&refused));

        let rescued = directory.path().join(format!("rescued-{number}"));
        let report = done(&["store", "salvage", "--store", text(&damaged), "--to", text(&rescued)]);
        assert!(files(&damaged) == before, "a byte of the damaged store changed");
        assert!(done(&["store", "check", "--store", text(&rescued)]).contains("is whole"));
        let (kept, lost) = report.split_once("lost: ").unwrap();
        let (kept, lost): (u32, u32) = (value(kept, "PINs: ").parse().unwrap(), value(lost, "PINs: ").parse().unwrap());
        // The damaged commit itself may have held one PIN.
        assert!(kept < pins && (pins - 1..=pins).contains(&(kept + lost)), "{report}");
        let event = last_entry(&rescued);
        assert_eq!(event["event"]["type"], "store_salvaged", "{event}");
        let checkpoint = format!("{}:{}", event["event"]["sequence"], event["event"]["hash"].as_str().unwrap());
        assert_eq!(value(&report, "checkpoint of the rescued chain: "), checkpoint);
        done(&["audit", "verify", "--store", text(&store), "--expect", &checkpoint]);

        let engine = start_on(directory.path(), &rescued);
        let mut client = engine.client().await;
        for number in 0..kept {
            let shown = client.view(&device, &format!("{}", 8_300 + number)).await.unwrap();
            assert_eq!(shown, format!("48{number}7"));
        }
        assert!(client.view(&device, &format!("{}", 8_300 + kept)).await.is_err(), "a PIN behind the damage");
        client.set(&device, "8399", "271828").await.unwrap();
    }
}

/// Moves the newest checkpoint of an engine elsewhere.
fn move_checkpoint(directory: &Path) {
    fs::rename(directory.join("data/audit/checkpoint"), directory.join("checkpoint.before")).unwrap();
}

/// The error of an engine that does not start on this store.
fn refused_start(directory: &Path, store: &Path) -> String {
    let config = directory.join("refused.toml");
    fs::write(&config, format!("data_directory = {:?}\n[store]\ndirectory = {store:?}", directory.join("data")))
        .unwrap();
    let started = pinseal(&["engine", "--config", text(&config)]);
    assert!(!started.status.success(), "{}", said(&started));
    said(&started)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_its_newest_entries_is_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let device = device();
    let engine = EngineProcess::start(directory.path(), LONG_LIVED);
    let mut client = engine.client().await;
    for number in 0..4 {
        client.set(&device, &format!("{}", 8_500 + number), "271828").await.unwrap();
    }
    assert_eq!(engine.terminate(), 0);
    let (store, checkpoint) = (directory.path().join("data/store"), directory.path().join("data/audit/checkpoint"));
    let checked =
        |store: &Path| pinseal(&["store", "check", "--store", text(store), "--checkpoint", text(&checkpoint)]);
    let whole = checked(&store);
    assert!(whole.status.success() && said(&whole).contains("of the checkpoint"), "{}", said(&whole));
    let journal = fs::read(store.join("db/0.jnl")).unwrap();
    let written = journal.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut cuts: Vec<_> = (0..8).map(|part| Some(written * part / 8)).collect();
    cuts.extend([Some(written - 1), None]);
    let mut last = PathBuf::new();
    for (number, cut) in cuts.into_iter().enumerate() {
        let damaged = directory.path().join(format!("damaged-{number}"));
        copy(&store, &damaged);
        match cut {
            Some(bytes) => fs::write(damaged.join("db/0.jnl"), &journal[..bytes]).unwrap(),
            None => fs::remove_file(damaged.join("db/0.jnl")).unwrap(),
        }
        let found = checked(&damaged);
        // The last commit may be the time alone, which an idle store writes: without it no entry is lost.
        if cut == Some(written - 1) && found.status.success() {
            assert!(said(&found).contains("holds audit entry"), "{}", said(&found));
            continue;
        }
        assert_eq!(found.status.code(), Some(3), "{cut:?}: {}", said(&found));
        for _ in 0..2 {
            let refused = refused_start(directory.path(), &damaged);
            let lost = if cut.is_some() { "are lost" } else { "there is no journal" };
            assert!(refused.contains(lost) && refused.contains("pinseal store restore"), "{cut:?}: {refused}");
        }
        if cut.is_some() {
            last = damaged;
        }
    }
    // An operator who moves the checkpoint accepts the loss.
    let engine = start_on(directory.path(), &last);
    assert_eq!(engine.client().await.view(&device, "8500").await.unwrap(), "271828");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cards_to_set_again_after_damage_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (device, store) = (device(), at("data/store"));
    let engine = EngineProcess::start(directory.path(), LONG_LIVED);
    let mut client = engine.client().await;
    client.set(&device, "8600", "271828").await.unwrap();
    let report = done(&["store", "backup", "--store", text(&store), "--to", text(&at("backup"))]);
    let backup: u64 = value(&report, "checkpoint: ").split_once(':').unwrap().0.parse().unwrap();
    client.set(&device, "8601", "271828").await.unwrap();
    client.set(&device, "8602", "271828").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    let lists = |from: &Path, name: &str| {
        let from = ["audit", "cards", "--store", text(from), "--from", &(backup + 1).to_string()].map(str::to_owned);
        let list = at(name);
        done(&from.iter().map(String::as_str).chain(["--to", text(&list)]).collect::<Vec<_>>());
        assert_eq!(fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o600);
        fs::read_to_string(list).unwrap()
    };
    assert_eq!(lists(&store, "whole"), "bank 8601\nbank 8602\n");
    // The damage is in the middle of what follows the second card.
    let journal = store.join("db/0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written * 5 / 6] ^= 0x10;
    fs::write(&journal, bytes).unwrap();
    let (rescued, lost) = (at("rescued"), at("lost"));
    done(&["store", "salvage", "--store", text(&store), "--to", text(&rescued), "--lost-pins", text(&lost)]);
    let both = lists(&rescued, "rescued.cards") + &fs::read_to_string(&lost).unwrap();
    assert_eq!(both, "bank 8601\nbank 8602\n");
}

/// Damages the end of each table of a backup in turn, and of a list of tables.
fn damaged_tables_are_reported_in_plain_words(directory: &Path, backup: &Path) {
    let damaged = directory.join("damaged");
    copy(backup, &damaged);
    let mut tables: Vec<_> =
        files(&damaged).into_iter().filter(|(path, _)| path.parent().unwrap().ends_with("tables")).collect();
    assert!(!tables.is_empty(), "the engine wrote no table");
    let current = damaged.join("db/keyspaces/1/current");
    let version = u64::from_le_bytes(fs::read(&current).unwrap()[..8].try_into().unwrap());
    let list = current.with_file_name(format!("v{version}"));
    let bytes = fs::read(&list).unwrap();
    tables.push((list, bytes));
    let count = tables.len();
    for (number, (path, bytes)) in tables.into_iter().enumerate() {
        let mut changed = bytes.clone();
        // The bytes at the end: position and length of the list of sections, its checksum, a mark.
        let from_end = if number + 1 == count { 18 } else { number % 6 * 7 };
        changed.iter_mut().rev().skip(from_end).take(7).for_each(|byte| *byte ^= 0x40);
        fs::write(&path, changed).unwrap();
        let checked = pinseal(&["store", "check", "--store", text(&damaged)]);
        assert_eq!(checked.status.code(), Some(3), "{}", said(&checked));
        let table = path.strip_prefix(damaged.join("db")).unwrap();
        assert!(said(&checked).contains(&format!("damage: {}: ", text(table))), "{}", said(&checked));
        let target = directory.join("of-damaged");
        let salvaged = pinseal(&["store", "salvage", "--store", text(&damaged), "--to", text(&target)]);
        let exported = pinseal(&["audit", "export", "--store", text(&damaged)]);
        for output in [&checked, &salvaged, &exported] {
            let errors = String::from_utf8_lossy(&output.stderr);
            let is_plain = |line: &str| line.starts_with("pinseal: ") && !line.contains("Error");
            assert!(errors.lines().all(is_plain), "{errors}");
        }
        assert!(salvaged.status.success() || said(&salvaged).contains("restore a backup"), "{}", said(&salvaged));
        if target.exists() {
            fs::remove_dir_all(target).unwrap();
        }
        fs::write(&path, bytes).unwrap();
    }
}

/// Sets PINs of cards that no other task uses, until the stop. Notes each acknowledged PIN.
async fn set_pins(mut client: Client, device: Arc<Device>, load: Arc<Load>) {
    while !load.stop.load(Ordering::Relaxed) {
        let number = load.next.fetch_add(1, Ordering::Relaxed);
        let (card, pin) = (format!("{}", 100_000 + number), format!("{:05}7", number * 7_919 % 100_000));
        client.set(&device, &card, &pin).await.unwrap();
        load.acknowledged.lock().unwrap().push((card, pin));
    }
}

#[derive(Default)]
struct Load {
    next: AtomicU64,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<(String, String)>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_writes_holds_every_acknowledged_pin() {
    let directory = tempfile::tempdir().unwrap();
    // With so little memory fjall writes tables all the time. A test of `store-embedded` rotates a journal, which takes 64 MB.
    let engine =
        EngineProcess::start_quiet(directory.path(), &format!("{LONG_LIVED}\n[store]\nmemory_mebibytes_max = 4"));
    let (device, load, store) = (Arc::new(device()), Arc::new(Load::default()), directory.path().join("data/store"));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(tokio::spawn(set_pins(engine.client().await, Arc::clone(&device), Arc::clone(&load))));
    }
    let mut checkpoints = Vec::new();
    let mut last = (PathBuf::new(), Vec::new());
    for number in 0..6 {
        let known = load.acknowledged.lock().unwrap().len() + 60;
        soon("the load stands still", async || (load.acknowledged.lock().unwrap().len() >= known).then_some(())).await;
        let (backup, acknowledged) =
            (directory.path().join(format!("backup-{number}")), load.acknowledged.lock().unwrap().clone());
        let (from, to) = (store.clone(), backup.clone());
        let report =
            tokio::task::spawn_blocking(move || done(&["store", "backup", "--store", text(&from), "--to", text(&to)]));
        let report = report.await.unwrap();
        assert!(value(&report, "PINs: ").parse::<usize>().unwrap() >= acknowledged.len(), "{report}");
        assert!(done(&["store", "check", "--store", text(&backup)]).contains("is whole"));
        checkpoints.push(value(&report, "checkpoint: ").to_owned());
        last = (backup, acknowledged);
    }
    load.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(engine.terminate(), 0);
    // Each backup is a beginning of the chain that the engine wrote on.
    let expected: Vec<_> = checkpoints.iter().flat_map(|checkpoint| ["--expect", checkpoint]).collect();
    done(&[&["audit", "verify", "--store", text(&store)], &expected[..]].concat());

    let (backup, acknowledged) = last;
    damaged_tables_are_reported_in_plain_words(directory.path(), &backup);
    let restored = directory.path().join("restored");
    done(&["store", "restore", "--backup", text(&backup), "--to", text(&restored)]);
    let engine = start_on(directory.path(), &restored);
    let mut client = engine.client().await;
    for (card, pin) in acknowledged {
        assert_eq!(client.view(&device, &card).await.unwrap(), pin, "card {card}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_leaves_an_event_and_keeps_single_use() {
    let directory = tempfile::tempdir().unwrap();
    let (device, store) = (device(), directory.path().join("data/store"));
    let (backup, restored) = (directory.path().join("backup"), directory.path().join("restored"));
    let engine = EngineProcess::start(directory.path(), LONG_LIVED);
    let mut client = engine.client().await;
    let (spent, first) = client.ready_to_set(&device, "8400", "314159").await.unwrap();
    client.set_block(&spent, &first).await.unwrap();
    let (open, second) = client.ready_to_set(&device, "8401", "271828").await.unwrap();
    let never = client.ready_to_set(&device, "8402", "161803").await.unwrap();
    let report = done(&["store", "backup", "--store", text(&store), "--to", text(&backup)]);
    let checkpoint = value(&report, "checkpoint: ").to_owned();
    // The control is spent, and the backup does not show it.
    client.set_block(&open, &second).await.unwrap();
    assert_eq!(engine.terminate(), 0);

    let in_use = pinseal(&["store", "restore", "--backup", text(&backup), "--to", text(&store)]);
    assert!(!in_use.status.success() && said(&in_use).contains("is not empty"), "{}", said(&in_use));
    let config = directory.path().join("backup.toml");
    fs::write(&config, format!("[store]\ndirectory = {backup:?}")).unwrap();
    let served = pinseal(&["engine", "--config", text(&config)]);
    assert!(!served.status.success() && said(&served).contains("is a backup of a store"), "{}", said(&served));

    let before = files(&backup);
    let report = done(&["store", "restore", "--backup", text(&backup), "--to", text(&restored)]);
    assert!(files(&backup) == before, "a byte of the backup changed");
    assert_eq!((value(&report, "ended controls: "), value(&report, "checkpoint of the backup: ")), ("2", &*checkpoint));
    let event = last_entry(&restored)["event"].clone();
    assert_eq!((&event["type"], &event["ended_controls"]), (&"store_restored".into(), &2.into()));
    assert_eq!(format!("{}:{}", event["sequence"], event["hash"].as_str().unwrap()), checkpoint);
    assert!(event["source"].as_str().unwrap().ends_with(text(&fs::canonicalize(&backup).unwrap())), "{event}");
    done(&["audit", "verify", "--store", text(&restored), "--expect", &checkpoint]);

    let engine = start_on(directory.path(), &restored);
    let mut client = engine.client().await;
    let tzpk_of_nothing = client.tzpk(&open, &device).await.unwrap_err();
    assert_eq!(reason(&tzpk_of_nothing), "CONTROL_NOT_USABLE");
    for (control, block) in [(&open, &second), (&never.0, &never.1), (&spent, &second)] {
        let refused = client.set_block(control, block).await.unwrap_err();
        assert_eq!((refused.code(), &*reason(&refused)), (Code::NotFound, "CONTROL_NOT_USABLE"));
    }
    assert!(client.view(&device, "8401").await.is_err(), "the PIN was set after the backup");
    // The retry of a PIN that stands is confirmed, as before the backup.
    client.set_block(&spent, &first).await.unwrap();
    assert_eq!(client.view(&device, "8400").await.unwrap(), "314159");
    client.set(&device, "8401", "161803").await.unwrap();
    assert_eq!(client.view(&device, "8401").await.unwrap(), "161803");
}
