//! The audit chain as evidence: signed checkpoints, proofs, the chain of a serving engine.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use device::Device;
use proto::{ExportAuditRequest, START_SEQUENCE_KEY, Scope, audit_service_client::AuditServiceClient};
use serde_json::Value;

use support::{
    engine_process::{EngineProcess, device},
    wait::soon,
};

fn audit(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pinseal")).arg("audit").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a command prints that succeeds.
fn printed(arguments: &[&str]) -> String {
    let output = audit(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The error of a command that fails.
fn refused(arguments: &[&str]) -> String {
    let output = audit(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// Runs an engine that sets one PIN, and returns its newest checkpoint.
async fn run(directory: &Path, device: &Device, plastic: &str) -> String {
    let engine = EngineProcess::start(directory, "");
    engine.client().await.set(device, plastic, "2580").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    fs::read_to_string(directory.join("data/audit/checkpoint")).unwrap()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn checkpoints_prove_entries_and_that_nothing_was_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let device = device();
    let (old, new, proof, chain) = (at("old"), at("new"), at("proof.json"), at("chain"));
    fs::write(&old, run(directory.path(), &device, "4001").await).unwrap();
    fs::write(&new, run(directory.path(), &device, "4002").await).unwrap();
    let (store, key) = (at("data/store"), at("data/audit/signing-key"));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let verifier = fs::read_to_string(at("data/audit/verifier-key")).unwrap();
    let verifier = verifier.trim();
    fs::write(&chain, printed(&["export", "--store", &store])).unwrap();

    for (kind, source) in [("--store", &store), ("--file", &chain)] {
        let both = ["verify", "--verifier-key", verifier, kind, source, "--checkpoint", &old, &new];
        assert!(printed(&both).contains("the audit chain holds"));
    }
    let length = fs::read_to_string(&chain).unwrap().lines().count();
    for sequence in 1..=length {
        let sequence = sequence.to_string();
        let text = printed(&["prove", &sequence, "--store", &store, "--signing-key", &key, "--checkpoint", &new]);
        fs::write(&proof, &text).unwrap();
        let shown = printed(&["verify", "--proof", &proof, "--verifier-key", verifier]);
        assert!(shown.contains(&format!("entry {sequence} is in the chain")), "{shown}");
        let mut changed: Value = serde_json::from_str(&text).unwrap();
        changed["salt"] = "0".repeat(64).into();
        fs::write(&proof, changed.to_string()).unwrap();
        let changed = refused(&["verify", "--proof", &proof, "--verifier-key", verifier]);
        assert!(changed.contains("the proof does not show the entry"), "{changed}");
    }
    let swapped = ["--verifier-key", verifier, "--checkpoint", &new, &old];
    let swapped = refused(&[&["verify", "--store", &store], &swapped[..]].concat());
    assert!(swapped.contains("give the older one first"), "{swapped}");
    let swapped = refused(&["prove", "--since", &new, "--store", &store, "--signing-key", &key, "--checkpoint", &old]);
    assert!(swapped.contains("give the older one first"), "{swapped}");
    let key_file = at("data/audit/verifier-key");
    printed(&["verify", "--store", &store, "--verifier-key", &key_file, "--checkpoint", &old, &new]);
    let no_key = refused(&["verify", "--store", &store, "--verifier-key", &at("nothing"), "--checkpoint", &old, &new]);
    assert!(no_key.contains("takes the file `verifier-key`"), "{no_key}");
    let text = printed(&["prove", "--since", &old, "--store", &store, "--signing-key", &key, "--checkpoint", &new]);
    fs::write(&proof, text).unwrap();
    let shown = printed(&["verify", "--proof", &proof, "--verifier-key", verifier]);
    assert!(shown.contains("continues that of checkpoint"), "{shown}");

    let last = length.to_string();
    let not_covered = refused(&["prove", &last, "--store", &store, "--signing-key", &key, "--checkpoint", &old]);
    assert!(not_covered.contains("take a newer checkpoint"), "{not_covered}");
    // One changed digit of the note, and the checkpoint of another engine.
    fs::write(&old, fs::read_to_string(&old).unwrap().replacen('\n', "\n1", 1)).unwrap();
    let changed = refused(&["verify", "--store", &store, "--verifier-key", verifier, "--checkpoint", &old, &new]);
    assert!(changed.contains("the note was changed"), "{changed}");
    let other = tempfile::tempdir().unwrap();
    fs::write(&old, run(other.path(), &device, "4001").await).unwrap();
    let foreign = refused(&["verify", "--store", &store, "--verifier-key", verifier, "--checkpoint", &old, &new]);
    assert!(foreign.contains("the note is not signed by"), "{foreign}");
    let others = fs::read_to_string(other.path().join("data/audit/verifier-key")).unwrap();
    let foreign = refused(&["verify", "--store", &store, "--verifier-key", others.trim(), "--checkpoint", &old]);
    assert!(foreign.contains("audit entry") || foreign.contains("another chain"), "{foreign}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_export_of_a_request_holds_its_entries_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let engine = EngineProcess::start(directory.path(), "");
    engine.client().await.set(&device(), "4001", "2580").await.unwrap();
    let in_use = refused(&["export", "--store", &at("data/store")]);
    assert!(in_use.contains("stop its engine") && in_use.contains("pinseal audit tail"), "{in_use}");
    assert_eq!(engine.terminate(), 0);
    let all = printed(&["export", "--store", &at("data/store")]);
    let set = all.lines().find(|line| line.contains("\"set_pin\"")).unwrap();
    let request = serde_json::from_str::<Value>(set).unwrap()["request"].as_str().unwrap().to_owned();
    assert_eq!(printed(&["export", "--store", &at("data/store"), "--request", &request]).trim_end(), set);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_explains_why_a_newer_checkpoint_does_not_hold() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (old, newer) = (at("old"), at("newer"));
    fs::write(&old, run(directory.path(), &device(), "4001").await).unwrap();
    let upkeep = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_pinseal")).arg("store").args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
    };
    upkeep(&["backup", "--store", &at("data/store"), "--to", &at("backup")]);
    fs::write(&newer, run(directory.path(), &device(), "4002").await).unwrap();
    upkeep(&["restore", "--backup", &at("backup"), "--to", &at("restored")]);
    let key = at("data/audit/verifier-key");
    let verify = |checkpoint: &str, source: [&str; 2]| {
        audit(&["verify", source[0], source[1], "--verifier-key", &key, "--checkpoint", checkpoint])
    };
    let restored = at("restored");
    assert!(verify(&old, ["--store", &restored]).status.success());
    // The restored chain is shorter than the checkpoint, and then longer.
    let explained =
        |source: [&str; 2]| said(&verify(&newer, source)).contains("says that the store was restored or salvaged");
    assert!(explained(["--store", &restored]));
    fs::rename(at("data/store"), at("before")).unwrap();
    fs::rename(&restored, at("data/store")).unwrap();
    fs::remove_file(at("data/audit/checkpoint")).unwrap();
    for plastic in ["4003", "4004"] {
        run(directory.path(), &device(), plastic).await;
    }
    fs::write(at("chain"), printed(&["export", "--store", &at("data/store")])).unwrap();
    let (store, chain) = (at("data/store"), at("chain"));
    assert!(explained(["--store", &store]) && explained(["--file", &chain]));
    assert!(verify(&newer, ["--store", &at("before")]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_engine_returns_its_newest_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let before = run(directory.path(), &device(), "4001").await;
    let engine = EngineProcess::start(directory.path(), "[audit]\ncheckpoint_seconds = 1");
    engine.client().await.open("4002", Scope::SetPin).await.unwrap();
    let verifier = fs::read_to_string(directory.path().join("data/audit/verifier-key")).unwrap();
    let arguments = ["checkpoint", "--engine", engine.address(), "--verifier-key", verifier.trim()];
    let newer = soon("a checkpoint is signed", async || Some(printed(&arguments)).filter(|note| *note != before)).await;
    // What the auditor got, against the chain and an older checkpoint.
    let [old, new, chain] = ["old", "new", "chain"].map(|name| directory.path().join(name));
    fs::write(&old, before).unwrap();
    fs::write(&new, newer).unwrap();
    let tail = ["tail", "--engine", engine.address(), "--from", "1"];
    fs::write(&chain, printed(&tail)).unwrap();
    let [old, new, chain] = [&old, &new, &chain].map(|path| path.to_str().unwrap());
    let held = printed(&["verify", "--file", chain, "--verifier-key", verifier.trim(), "--checkpoint", old, new]);
    assert!(held.contains("the audit chain holds"), "{held}");
    let other = tempfile::tempdir().unwrap();
    run(other.path(), &device(), "4001").await;
    let foreign = fs::read_to_string(other.path().join("data/audit/verifier-key")).unwrap();
    let foreign = refused(&["checkpoint", "--engine", engine.address(), "--verifier-key", foreign.trim()]);
    assert!(foreign.contains("the note is not signed by"), "{foreign}");
}

/// The archive files of an engine, oldest first.
fn segments(directory: &Path) -> Vec<String> {
    let archive = directory.join("data/audit/archive");
    let files =
        archive.read_dir().map(|files| files.map(|file| file.unwrap().path()).collect()).unwrap_or_else(|_| vec![]);
    let mut files: Vec<_> =
        files.into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "jsonl")).collect();
    files.sort();
    files.into_iter().map(|file| file.to_str().unwrap().to_owned()).collect()
}

/// Runs an engine until it has archived as many files, and returns its newest checkpoint.
async fn run_and_archive(directory: &Path, device: &Device, plastic: &str, files: usize) -> String {
    let engine = EngineProcess::start(directory, "[audit]\nretention_days = 0");
    engine.client().await.set(device, plastic, "2580").await.unwrap();
    // The event of the removal names the file.
    let newest = ["tail", "--engine", engine.address(), "--newest", "50"];
    soon("entries are archived", async || {
        let file = segments(directory).into_iter().nth(files - 1)?;
        printed(&newest).contains(Path::new(&file).file_name()?.to_str()?).then_some(())
    })
    .await;
    assert_eq!(engine.terminate(), 0);
    fs::read_to_string(directory.join("data/audit/checkpoint")).unwrap()
}

#[tokio::test]
async fn archived_entries_leave_the_store_and_stay_provable() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let device = device();
    let (first, second, third, proof) = (at("first"), at("second"), at("third"), at("proof.json"));
    fs::write(&first, run(directory.path(), &device, "4001").await).unwrap();
    fs::write(&second, run_and_archive(directory.path(), &device, "4002", 1).await).unwrap();
    fs::write(&third, run_and_archive(directory.path(), &device, "4003", 2).await).unwrap();
    let (store, key) = (at("data/store"), at("data/audit/signing-key"));
    let verifier = fs::read_to_string(at("data/audit/verifier-key")).unwrap();
    let verifier = verifier.trim();
    let key_file = at("data/audit/verifier-key");
    let files = segments(directory.path());
    let files: Vec<_> = files.iter().map(String::as_str).collect();
    assert_eq!(fs::metadata(files[0]).unwrap().permissions().mode() & 0o777, 0o600);

    let kept = printed(&["export", "--store", &store]);
    let entry = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let begins = entry(kept.lines().next().unwrap())["sequence"].as_u64().unwrap();
    let last_archived = fs::read_to_string(files[1]).unwrap();
    let last_archived = entry(last_archived.lines().last().unwrap());
    assert_eq!(last_archived["sequence"], begins - 1);
    let removal = kept.lines().map(entry).find(|entry| entry["event"]["type"] == "audit_archived").unwrap();
    assert_eq!((&removal["event"]["last"], &removal["event"]["hash"]), (&(begins - 1).into(), &last_archived["hash"]));
    let sha256 = Command::new("sha256sum").arg(files[1]).output().unwrap();
    assert!(said(&sha256).starts_with(removal["event"]["file_sha256"].as_str().unwrap()));

    // The first card has entries in archive files alone.
    let of_card = ["export", "--store", &store, "--card", "4001", "--tenant", "bank"];
    let without = audit(&of_card);
    assert!(without.status.success() && without.stdout.is_empty(), "{}", said(&without));
    let skipped = format!("entries 1 to {} are in archive files alone", begins - 1);
    assert!(String::from_utf8(without.stderr).unwrap().contains(&skipped));
    let with = audit(&[&of_card[..], &["--archive"], &files].concat());
    let with = (String::from_utf8(with.stdout).unwrap(), String::from_utf8(with.stderr).unwrap());
    assert!(
        with.0.lines().count() >= 3 && with.0.lines().all(|line| entry(line)["event"]["type"] == "card"),
        "{with:?}"
    );
    assert!(!with.1.contains("archive files alone"), "{with:?}");

    // The rest alone, and the whole chain.
    let alone = printed(&["verify", "--store", &store, "--verifier-key", verifier, "--checkpoint", &third]);
    assert!(alone.contains(&format!("entries 1 to {} were archived", begins - 1)), "{alone}");
    let (archive, all) = ([&["--archive"], &files[..]].concat(), ["--checkpoint", &first, "--verifier-key", verifier]);
    let whole = printed(&[&["verify", "--store", &store], &archive[..], &all].concat());
    assert!(whole.contains("the audit chain holds") && !whole.contains("were archived"), "{whole}");
    fs::write(at("chain"), &kept).unwrap();
    printed(&[&["verify", "--file", &at("chain")], &archive[..], &all].concat());
    let after = format!("{}:{}", begins - 1, last_archived["hash"].as_str().unwrap());
    printed(&["verify", "--file", &at("chain"), "--after", &after, "--verifier-key", verifier, "--checkpoint", &third]);
    let sealed = files[1].replace(".jsonl", ".checkpoint");
    printed(
        &[&["verify", "--store", &store, "--checkpoint", &sealed, "--verifier-key", verifier], &archive[..]].concat(),
    );
    let older = refused(&[&["verify", "--store", &store], &all[..]].concat());
    assert!(older.contains("give its archive"), "{older}");
    let gap = refused(&["verify", "--store", &store, "--archive", files[0]]);
    assert!(gap.contains(&format!("data/store begins with entry {begins}, and entry ")), "{gap}");
    let later = refused(&["verify", "--file", &at("chain"), "--checkpoint", &third, "--verifier-key", &key_file]);
    assert!(later.contains(&format!("begins with entry {begins}, and entry 1 is due")), "{later}");
    let mut changed = fs::read_to_string(files[0]).unwrap();
    changed = changed.replacen("\"outcome\":\"done\"", "\"outcome\":\"denied\"", 1);
    fs::write(at("changed"), changed).unwrap();
    let changed = refused(&["verify", "--store", &store, "--archive", &at("changed"), files[1]]);
    assert!(changed.contains("its hash is not the hash of its content"), "{changed}");

    let prove = |arguments: &[&str], archive: &[&str]| {
        let common = ["--store", &store, "--signing-key", &key, "--checkpoint", &third];
        [&["prove"], arguments, &common, archive].concat().iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()
    };
    let proven = |arguments: &[&str], archive: &[&str]| {
        let arguments = prove(arguments, archive);
        fs::write(&proof, printed(&arguments.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
        printed(&["verify", "--proof", &proof, "--verifier-key", verifier]);
        fs::read_to_string(&proof).unwrap()
    };
    let kept_entry = begins.to_string();
    assert_eq!(proven(&[&kept_entry], &[]), proven(&[&kept_entry], &archive));
    proven(&["1"], &archive);
    proven(&["--since", &first], &archive);
    for (arguments, words) in [(["1"].as_slice(), "not entry 1"), (&["--since", &first], "give their archives")] {
        let arguments = prove(arguments, &[]);
        let error = refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_new_signing_key_is_refused_over_archived_entries() {
    let directory = tempfile::tempdir().unwrap();
    let device = device();
    run(directory.path(), &device, "4001").await;
    run_and_archive(directory.path(), &device, "4002", 1).await;
    for file in ["signing-key", "checkpoint"] {
        fs::rename(directory.path().join("data/audit").join(file), directory.path().join(file)).unwrap();
    }
    let started = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["engine", "--config"])
        .arg(directory.path().join("engine.toml"))
        .output()
        .unwrap();
    assert!(!started.status.success() && said(&started).contains("put that key back"), "{}", said(&started));
    fs::copy(directory.path().join("signing-key"), directory.path().join("data/audit/signing-key")).unwrap();
    run(directory.path(), &device, "4003").await;
}

#[tokio::test]
async fn a_file_that_was_archived_before_a_crash_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let (device, at) = (device(), |name: &str| directory.path().join(name));
    run(directory.path(), &device, "4001").await;
    copy(&at("data/store"), &at("kept"));
    run_and_archive(directory.path(), &device, "4002", 1).await;
    let file = segments(directory.path()).remove(0);
    let text = fs::read_to_string(&file).unwrap();
    // A crash behind the file and before the removal: the file is whole, and the store has its entries.
    fs::remove_dir_all(at("data/store")).unwrap();
    copy(&at("kept"), &at("data/store"));
    fs::remove_file(at("data/audit/checkpoint")).unwrap();
    run(directory.path(), &device, "4003").await;
    // The rest becomes another file.
    run_and_archive(directory.path(), &device, "4004", 2).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    let (store, files) = (at("data/store"), segments(directory.path()));
    printed(&["verify", "--store", store.to_str().unwrap(), "--archive", &file, &files[1]]);

    // A file of other entries under the name of this chain stays, and so do the entries.
    let other = tempfile::tempdir().unwrap();
    let note = run(other.path(), &device, "4001").await;
    let chain = note.lines().next().unwrap().trim_start_matches("pinseal.audit/");
    let name = format!("{chain}-00000000000000000001.jsonl");
    assert_ne!(Path::new(&file).file_name().unwrap(), &*name);
    fs::create_dir(other.path().join("data/audit/archive")).unwrap();
    fs::copy(&file, other.path().join("data/audit/archive").join(name)).unwrap();
    let engine = EngineProcess::start(other.path(), "[audit]\nretention_days = 0");
    soon("the file is refused", async || engine.log().contains("has other entries than the store").then_some(())).await;
    assert_eq!(engine.terminate(), 0);
    let kept = printed(&["export", "--store", other.path().join("data/store").to_str().unwrap()]);
    assert!(kept.starts_with("{\"sequence\":1,"), "{kept}");
}

#[tokio::test]
async fn an_engine_serves_no_store_that_lost_signed_entries() {
    let directory = tempfile::tempdir().unwrap();
    let device = device();
    let (store, kept) = (directory.path().join("data/store"), directory.path().join("kept"));
    run(directory.path(), &device, "4001").await;
    copy(&store, &kept);
    let newest = run(directory.path(), &device, "4002").await;
    let checkpoint = directory.path().join("data/audit/checkpoint");
    let config = directory.path().join("archives.toml");
    let archives = "[audit]\nretention_days = 0\ncheckpoint_seconds = 1";
    fs::write(&config, format!("data_directory = {:?}\n{archives}", directory.path().join("data"))).unwrap();
    // A store that is older, and one that is absent.
    for lost in [Some(&kept), None] {
        fs::remove_dir_all(&store).unwrap();
        if let Some(kept) = lost {
            copy(kept, &store);
        }
        let started =
            Command::new(env!("CARGO_BIN_EXE_pinseal")).args(["engine", "--config"]).arg(&config).output().unwrap();
        let error = said(&started);
        assert!(!started.status.success() && error.contains("are lost"), "{error}");
        assert!(error.contains(checkpoint.to_str().unwrap()) && error.contains("pinseal store restore"), "{error}");
        assert_eq!(fs::read_to_string(&checkpoint).unwrap(), newest, "the checkpoint was replaced");
        assert_eq!(segments(directory.path()), [""; 0]);
    }
    fs::rename(&checkpoint, directory.path().join("evidence")).unwrap();
    assert_ne!(run(directory.path(), &device, "4004").await, newest);
}

#[tokio::test]
async fn a_checkpoint_is_the_same_with_and_without_its_tree_file() {
    let directory = tempfile::tempdir().unwrap();
    let (device, tree) = (device(), directory.path().join("data/audit/tree"));
    run(directory.path(), &device, "4001").await;
    for damage in [None, Some("no hash\n"), Some("")] {
        let before = fs::read_to_string(&tree).unwrap();
        match damage {
            Some(text) => fs::write(&tree, text).unwrap(),
            None => fs::remove_file(&tree).unwrap(),
        }
        let checkpoint = run(directory.path(), &device, "4001").await;
        let store = directory.path().join("data/store");
        let (key, file) =
            (directory.path().join("data/audit/signing-key"), directory.path().join("data/audit/checkpoint"));
        assert_ne!(fs::read_to_string(&tree).unwrap(), before);
        // The command computes the root of the whole chain.
        let [store, key, file] = [&store, &key, &file].map(|path| path.to_str().unwrap());
        printed(&["prove", "1", "--store", store, "--signing-key", key, "--checkpoint", file]);
        assert!(checkpoint.starts_with("pinseal.audit/"));
    }
}

#[tokio::test]
async fn a_signing_key_that_others_may_read_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), &device(), "4001").await;
    let key = directory.path().join("data/audit/signing-key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let started = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["engine", "--config"])
        .arg(directory.path().join("engine.toml"))
        .output()
        .unwrap();
    assert!(!started.status.success() && said(&started).contains("audit.signing_key"), "{}", said(&started));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_ends_at_the_newest_entry_of_its_call() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let mut client = engine.client().await;
    // More than the buffers of a stream hold: the server waits for its reader in the midst of the chain.
    for plastic in 0..800 {
        client.open(&(10_000 + plastic).to_string(), Scope::SetPin).await.unwrap();
    }
    let mut auditor = AuditServiceClient::new(engine.channel().await);
    let request = |start_sequence| ExportAuditRequest { start_sequence, ..Default::default() };
    let mut all = auditor.export_audit(request(1)).await.unwrap().into_inner();
    for plastic in 0..10 {
        client.open(&(20_000 + plastic).to_string(), Scope::SetPin).await.unwrap();
    }
    let mut count = 0;
    while all.message().await.unwrap().is_some() {
        count += 1;
    }
    // The start of the engine is the first entry.
    assert_eq!(count, 801);
    let newest = ExportAuditRequest { newest_count: 3, start_sequence: 0, continuous: false };
    let newest = auditor.export_audit(newest).await.unwrap();
    assert_eq!(newest.metadata().get(START_SEQUENCE_KEY).unwrap(), "809");
    let mut newest = newest.into_inner();
    let first = newest.message().await.unwrap().unwrap().entry.unwrap();
    assert_eq!(first.sequence, 809);
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_follows_a_serving_engine_until_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut tail = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "tail", "--engine", engine.address(), "--newest", "1", "--follow", "--format", "ecs"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["event"]["action"], "engine_started");
    engine.client().await.set(&device(), "4001", "2580").await.unwrap();
    let actions: Vec<_> = (0..3).map(|_| next()["event"]["action"].clone()).collect();
    assert_eq!(actions, ["open_control", "issue_tzpk", "set_pin"]);
    assert_eq!(engine.terminate(), 0);
    let ended = tail.wait_with_output().unwrap();
    assert!(!ended.status.success() && said(&ended).contains("the engine stops"), "{}", said(&ended));
}
