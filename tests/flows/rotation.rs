//! Rotation of the storage key under load and kills: no PIN is lost, no record stays under the old key.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use audit::entry::{Body, Event, Isolation, Level, Outcome, Stamp};
use device::Device;
use domain::card::ReencryptedPin;
use futures::future::join_all;

use support::{
    ceremony::{ALL, Ceremony, ENOUGH, said},
    engine_process::{Client, EngineProcess, METRICS, device},
    rotation::{records_under, settings, watch, watched},
};

/// The number of PINs; `PINSEAL_ROTATION_RECORDS` sets another number for a measurement.
const RECORDS: u64 = 800;
const CLIENTS: u64 = 8;
const KILLS: u32 = 5;

fn records() -> u64 {
    std::env::var("PINSEAL_ROTATION_RECORDS").map_or(RECORDS, |number| number.parse().unwrap())
}

fn card(number: u64) -> String {
    (100_000 + number).to_string()
}

fn pin(number: u64) -> String {
    format!("{:05}9", (number * 7_919 + 13) % 100_000)
}

/// The operation on each card.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Set,
    View,
}

/// Sets or views the PINs of many cards, divided among the clients.
async fn each_card(engine: &EngineProcess, device: &Arc<Device>, cards: u64, operation: Operation) {
    let share = |first: u64, mut client: Client| {
        let device = Arc::clone(device);
        tokio::spawn(async move {
            for number in (first..cards).step_by(CLIENTS as usize) {
                if operation == Operation::Set {
                    if let Err(status) = client.set(&device, &card(number), &pin(number)).await {
                        // The policy refuses this PIN; the check below skips it too.
                        assert_eq!(support::engine_process::reason(&status), "PIN_REFUSED", "{status:?}");
                    }
                } else {
                    match client.view(&device, &card(number)).await {
                        Ok(shown) => assert_eq!(shown, pin(number), "card {number}"),
                        Err(status) => assert_eq!(support::engine_process::reason(&status), "PIN_NOT_SET", "{number}"),
                    }
                }
            }
        })
    };
    let mut shares = Vec::new();
    for first in 0..CLIENTS {
        shares.push(share(first, engine.client().await));
    }
    join_all(shares).await.into_iter().for_each(|share| share.unwrap());
}

/// Sets and views PINs of its cards until the engine dies; counts the calls.
async fn load(mut client: Client, device: Arc<Device>, seen: Arc<AtomicU64>, number: u64) {
    for round in 0.. {
        let (card, pin) =
            ((900_000 + number).to_string(), format!("{:05}7", (round * 6_007 + number * 31 + 5) % 100_000));
        match client.set(&device, &card, &pin).await {
            Ok(()) => match client.view(&device, &card).await {
                Ok(shown) => {
                    assert_eq!(shown, pin);
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => return,
            },
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {}
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_key_rotates_under_load_and_kills_without_loss() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let device = Arc::new(device());
    let engine = EngineProcess::start_quiet(directory, &settings(2_000));
    each_card(&engine, &device, records(), Operation::Set).await;
    assert_eq!(engine.terminate(), 0);
    let (before, none) = records_under(directory).await;
    assert!(before > records() * 9 / 10 && none == 0);

    // The second key is made while no engine runs: an engine reads its keys at its start.
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    for key in ["storage", "seal"] {
        ceremony.well("make", ENOUGH, &[key]);
        ceremony.well("activate", ENOUGH, &[&format!("{key}/2")]);
    }
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1"]);
    assert!(refused.contains(&format!("{before} PIN records are under storage/1")), "{refused}");

    // So slow that each engine re-encrypts one page and waits long before the next.
    let slow = settings(before / 40);
    let (mut last_old, mut in_the_middle) = (before, 0);
    for _ in 0..KILLS {
        let engine = EngineProcess::start_quiet(directory, &slow);
        let seen = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push(tokio::spawn(load(engine.client().await, device.clone(), seen.clone(), number)));
        }
        support::wait::soon("there is no load", async || (seen.load(Ordering::Relaxed) >= CLIENTS).then_some(())).await;
        engine.kill();
        join_all(clients).await.into_iter().for_each(|client| client.unwrap());
        let (old, _) = records_under(directory).await;
        assert!(old <= last_old, "a record went back under the old key");
        in_the_middle += u32::from(old > 0 && old < before);
        last_old = old;
    }
    assert!(in_the_middle > 0, "no kill fell into the middle of the rotation: {last_old} of {before} left");

    let engine = EngineProcess::start_quiet(directory, &settings(1_000_000));
    let began = std::time::Instant::now();
    let last = watched(&engine).pop().unwrap();
    println!("{last_old} records re-encrypted in {:?} after the last kill: {last}", began.elapsed());
    assert_eq!(engine.terminate(), 0);
    let (old, new) = records_under(directory).await;
    assert!(old == 0 && new >= before, "{old} left, {new} of {before}");

    ceremony.well("retire", ENOUGH, &["storage/1"]);
    let seal = ceremony.refused("retire", ENOUGH, &["seal/1"]);
    // A control whose PIN the policy refused stays usable.
    let why = ["may be needed for an hour", "live controls have a tzpk under seal/1"];
    assert!(why.iter().any(|why| seal.contains(why)), "{seal}");
    let engine = EngineProcess::start_quiet(directory, &settings(2_000));
    each_card(&engine, &device, records(), Operation::View).await;
    assert_eq!(engine.terminate(), 0);

    let store = directory.join("data/store");
    let pinseal = || Command::new(env!("CARGO_BIN_EXE_pinseal"));
    let verified = pinseal().args(["audit", "verify", "--store"]).arg(&store).output().unwrap();
    assert!(verified.status.success(), "{}", said(&verified));
    let lines = pinseal().args(["audit", "export", "--store"]).arg(&store).output().unwrap().stdout;
    let lines = String::from_utf8(lines).unwrap();
    let reencrypted = |line: &str| -> Option<u64> {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let event = &entry["event"];
        (event["type"] == "records_reencrypted").then(|| event["count"].as_u64().unwrap())
    };
    // The chain has each re-encrypted record once. PINs set again under load are not re-encrypted.
    let printed: u64 = lines.lines().filter_map(reencrypted).sum();
    assert!(printed <= before + CLIENTS && printed + CLIENTS >= before, "the chain has {printed} of {before}");
    assert!(lines.contains("\"type\":\"rotation_ended\""));
}

/// The number of PINs that the watched rotation re-encrypts: more than one page.
const WATCHED: u64 = 300;
/// The records of the first page.
const FIRST_PAGE: u64 = 256;

/// A running watch that has reported the first page.
fn watching(engine: &EngineProcess) -> (Child, serde_json::Value) {
    let mut child = watch(engine, &["--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
        let progress: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        if progress["checked_count"] == FIRST_PAGE {
            return (child, progress);
        }
    }
    panic!("the watch ended before the first page was re-encrypted: {:?}", child.wait_with_output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_rotation_ends_and_its_old_key_is_retired() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let device = Arc::new(device());
    let engine = EngineProcess::start(directory, &settings(2_000));
    each_card(&engine, &device, WATCHED, Operation::Set).await;
    let idle = watched(&engine);
    assert!(idle.len() == 1 && idle[0]["state"] == "idle", "{idle:?}");

    // The engine still encrypts under its old key: it must reload its keys first.
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);
    let retire = ["storage/1", "--engine", engine.address()];
    let refused = ceremony.refused("retire", ENOUGH, &retire);
    assert!(refused.contains("does not have storage/2 in use: send it SIGHUP"), "{refused}");
    assert_eq!(engine.terminate(), 0);
    let (before, _) = records_under(directory).await;
    assert!(before > FIRST_PAGE);

    // So slow that the rotation does the first page and waits for minutes.
    let engine = EngineProcess::start(directory, &(settings(1) + "\n" + METRICS));
    let (mut watching, progress) = watching(&engine);
    for (what, number) in
        [("pass_number", 1), ("total_count", before), ("reencrypted_count", FIRST_PAGE), ("failed_count", 0)]
    {
        assert_eq!(progress[what], number, "{progress}");
    }
    assert_eq!((&progress["state"], &progress["max_records_per_second"]), (&"running".into(), &1.into()));
    let metrics = engine.metrics();
    for line in [
        "pinseal_storage_key_versions{key=\"storage\"} 2",
        "pinseal_rotation_state{state=\"running\"} 1",
        &format!("pinseal_rotation_records {before}"),
        &format!("pinseal_rotation_records_reencrypted_total {FIRST_PAGE}"),
        "pinseal_rotation_records_failed 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in {metrics}");
    }
    let retire = ["storage/1", "--engine", engine.address()];
    let refused = ceremony.refused("retire", ENOUGH, &retire);
    assert!(refused.contains(&format!("{} PIN records are under storage/1", before - FIRST_PAGE)), "{refused}");
    assert_eq!(engine.terminate(), 0);
    let mut printed = String::new();
    watching.stderr.as_mut().unwrap().read_to_string(&mut printed).unwrap();
    assert!(
        !watching.wait().unwrap().success() && printed.contains("continues when the engine starts again"),
        "{printed}"
    );
    let log = std::fs::read_to_string(directory.join("engine.log")).unwrap();
    assert!(!log.contains("calls in flight were aborted"), "a watch holds up the end of the engine");

    let engine = EngineProcess::start(directory, &settings(50));
    let last = watched(&engine).pop().unwrap();
    assert_eq!((&last["state"], &last["checked_count"]), (&"done".into(), &before.into()), "{last}");
    assert_eq!(last["reencrypted_count"], before - FIRST_PAGE);
    let plain = String::from_utf8(watch(&engine, &[]).output().unwrap().stdout).unwrap();
    assert!(plain.contains("records are under the newest storage key") && plain.lines().count() == 1, "{plain}");
    ceremony.well("retire", ENOUGH, &["storage/1", "--engine", engine.address()]);
    // A restarted boundary serves without the retired key.
    let killed = engine.hsm_id().unwrap();
    support::wait::signal(killed, "KILL");
    let back = async || engine.serves().await.then(|| engine.hsm_id()).flatten().filter(|id| *id != killed);
    support::wait::soon("no boundary took over", back).await;
    let mut client = engine.client().await;
    support::wait::soon("it does not serve", async || client.view(&device, &card(0)).await.ok()).await;
    each_card(&engine, &device, WATCHED, Operation::View).await;
    assert_eq!(engine.terminate(), 0);

    let engine = EngineProcess::start(directory, &settings(2_000));
    each_card(&engine, &device, WATCHED, Operation::View).await;
    assert_eq!(watched(&engine)[0]["state"], "idle");
}

/// Changes one bit of the tag of one record, in the store of a stopped engine.
pub(crate) async fn spoil_one_record(directory: &Path) {
    let store = engine_server::StoreConfig::embedded(&directory.join("data")).open().await.unwrap();
    let (card, pin) = store.scan_pins(None, 1).await.unwrap().remove(0);
    let mut after = pin.record.clone();
    *after.last_mut().unwrap() ^= 1;
    let stamp = Stamp { level: Level::Host, token: "it".into(), isolation: Isolation::Process, keys: [].into() };
    let event = Event {
        at: clock::now(),
        caller: "it".into(),
        tenant: None,
        audit_user: "it".into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body: Body::RecordsReencrypted { count: 0 },
    };
    let reencrypted = ReencryptedPin { card, before: pin.record, after, key: pin.key };
    assert_eq!(store.reencrypt(vec![reencrypted], event).await.unwrap(), 1);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_fails_on_a_record_that_cannot_be_decrypted() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let engine = EngineProcess::start(directory, &settings(2_000));
    each_card(&engine, &Arc::new(device()), 9, Operation::Set).await;
    assert_eq!(engine.terminate(), 0);
    spoil_one_record(directory).await;
    let (before, _) = records_under(directory).await;
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);

    let engine = EngineProcess::start(directory, &settings(2_000));
    let output = watch(&engine, &["--json"]).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("1 PIN records do not decrypt"), "{}", said(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    for (what, number) in [("checked_count", before), ("reencrypted_count", before - 1), ("failed_count", 1)] {
        assert_eq!(last[what], number, "{last}");
    }
    assert_eq!(last["state"], "done_with_failures");
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--engine", engine.address()]);
    assert!(refused.contains("1 PIN records are under storage/1"), "{refused}");
}

/// Sets and views PINs of one card until it is stopped; every call must succeed.
async fn steady_load(mut client: Client, device: Arc<Device>, stop: Arc<AtomicBool>, number: u64) -> u64 {
    let card = (950_000 + number).to_string();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return round;
        }
        let pin = format!("3{:04}7", (round * 613 + number * 31 + 5) % 10_000);
        match client.set(&device, &card, &pin).await {
            Ok(()) => assert_eq!(client.view(&device, &card).await.unwrap(), pin),
            Err(status) => assert_eq!(support::engine_process::reason(&status), "PIN_REFUSED", "{status:?}"),
        }
    }
    0
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_reload_and_rotate_while_every_call_is_answered() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let device = Arc::new(device());
    let engine = EngineProcess::start(directory, &settings(2_000));
    each_card(&engine, &device, WATCHED, Operation::Set).await;
    let (half_done, block) = engine.client().await.ready_to_set(&device, "960000", "271828").await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(tokio::spawn(steady_load(engine.client().await, device.clone(), stop.clone(), number)));
    }
    let keys = async |wanted: &[&str], gone: &[&str]| {
        let printed = support::wait::soon("the keys were not reloaded", async || {
            let log = engine.log();
            let printed = log.lines().rfind(|line| line.contains("has reloaded its keys"))?;
            (wanted.iter().all(|key| printed.contains(key)) && !gone.iter().any(|key| printed.contains(key)))
                .then_some(())
        });
        printed.await
    };
    let first = engine.hsm_id().unwrap();
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    for key in ["storage", "seal"] {
        ceremony.well("make", ENOUGH, &[key]);
        ceremony.well("activate", ENOUGH, &[&format!("{key}/2")]);
    }
    support::wait::signal(engine.id(), "HUP");
    keys(&["storage/1:", "storage/2:", "seal/1:", "seal/2:"], &[]).await;
    let second = support::wait::soon("the first boundary did not end", async || {
        engine.hsm_id().filter(|id| *id != first && !Path::new(&format!("/proc/{first}")).exists())
    });
    second.await;
    // A control that was opened under the older seal key succeeds.
    engine.client().await.set_block(&half_done, &block).await.unwrap();

    assert_eq!(watched(&engine).pop().unwrap()["state"], "done");
    ceremony.well("retire", ENOUGH, &["storage/1", "--engine", engine.address()]);
    support::wait::signal(engine.id(), "HUP");
    keys(&["storage/2:", "seal/1:", "seal/2:"], &["storage/1:"]).await;

    stop.store(true, Ordering::Relaxed);
    let rounds: u64 = join_all(clients).await.into_iter().map(|client| client.unwrap()).sum();
    assert!(rounds > CLIENTS, "there was no load");
    each_card(&engine, &device, WATCHED, Operation::View).await;
    assert_eq!(engine.client().await.view(&device, "960000").await.unwrap(), "271828");

    // A boundary that cannot open its keys replaces no other.
    fs::write(directory.join("data/vault"), "no vault").unwrap();
    support::wait::signal(engine.id(), "HUP");
    let refused = async || engine.log().contains("keeps the keys in use").then_some(());
    support::wait::soon("no refusal was logged", refused).await;
    each_card(&engine, &device, WATCHED, Operation::View).await;
    assert_eq!(engine.terminate(), 0);
    let (old, new) = records_under(directory).await;
    assert!(old == 0 && new > FIRST_PAGE, "{old} left, {new}");
    let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
    let exported = pinseal.args(["audit", "export", "--store"]).arg(directory.join("data/store")).output().unwrap();
    let reloads = String::from_utf8(exported.stdout).unwrap();
    let reloads: Vec<_> = reloads.lines().filter(|line| line.contains("\"keys_reloaded\"")).collect();
    assert!(reloads.len() == 2 && !reloads[1].contains("storage/1:"), "{reloads:?}");
}
