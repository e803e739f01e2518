//! `pinseal audit`: it finds changes and makes none.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use device::Device;

use support::engine_process::{EngineProcess, device};

/// `pinseal audit` with these arguments; its temporary files are in `scratch`.
fn audit(scratch: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pinseal")).arg("audit").args(arguments).env("TMPDIR", scratch).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Bytes, mode, size and change time of every file in a directory, by path.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, u64, i64, i64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.metadata().unwrap();
        let bytes = if metadata.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
        if metadata.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, (bytes, metadata.mode(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()));
    }
    found
}

async fn set_pins(engine: &EngineProcess, device: &Device) {
    let mut client = engine.client().await;
    for plastic in ["4001", "4002", "4003"] {
        client.set(device, plastic, "2580").await.unwrap();
    }
}

/// The whole chain of an engine that stopped.
async fn exported(directory: &Path, scratch: &Path) -> String {
    let engine = EngineProcess::start(directory, "");
    set_pins(&engine, &device()).await;
    assert_eq!(engine.terminate(), 0);
    let store = directory.join("data/store");
    let output = audit(scratch, &["export", "--store", store.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn reading_a_store_changes_no_byte_of_it() {
    let (directory, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (data, store) = (directory.path().join("data"), directory.path().join("data/store"));
    let named = store.to_str().unwrap();
    // A closed store, and the store of a killed engine: opening for writing would change both.
    for killed in [false, true] {
        let engine = EngineProcess::start(directory.path(), "");
        set_pins(&engine, &device()).await;
        let locked = audit(scratch.path(), &["verify", "--store", named]);
        assert!(!locked.status.success() && said(&locked).contains("is in use: stop its engine"), "{}", said(&locked));
        if killed {
            engine.kill();
        } else {
            assert_eq!(engine.terminate(), 0);
        }

        let before = snapshot(&data);
        let verified = audit(scratch.path(), &["verify", "--store", named]);
        assert!(verified.status.success(), "{}", said(&verified));
        let exported = audit(scratch.path(), &["export", "--store", named, "--from", "2"]);
        assert!(exported.status.success() && exported.stdout.len() > 1_000, "{}", said(&exported));
        let other = format!("1:{}", "7".repeat(64));
        let refused = audit(scratch.path(), &["verify", "--store", named, "--expect", &other]);
        assert!(!refused.status.success() && said(&refused).contains("audit entry 1"), "{}", said(&refused));
        let after = snapshot(&data);
        let changed: Vec<_> =
            before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
        assert!(changed.is_empty(), "killed: {killed}; changed: {changed:?}");
        assert!(before.len() > 10, "there are too few files for a comparison");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "a copy is left");
    }
}

#[tokio::test]
async fn a_directory_without_a_store_is_not_copied() {
    let scratch = tempfile::tempdir().unwrap();
    for (make, words) in [(false, "there is no store in"), (true, "not a Pinseal store")] {
        let directory = tempfile::tempdir().unwrap();
        if make {
            fs::write(directory.path().join("letter"), "no store").unwrap();
        }
        let output = audit(scratch.path(), &["verify", "--store", directory.path().to_str().unwrap()]);
        assert!(!output.status.success() && said(&output).contains(words), "{}", said(&output));
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn an_exported_chain_holds_only_in_its_own_bytes() {
    let (directory, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = exported(directory.path(), scratch.path()).await;
    let file = scratch.path().join("chain.jsonl");
    let verify = |text: &str, more: &[&str]| {
        fs::write(&file, text).unwrap();
        audit(scratch.path(), &[&["verify", "--file", file.to_str().unwrap()], more].concat())
    };
    let held = verify(&chain, &[]);
    assert!(held.status.success(), "{}", said(&held));
    let checkpoint = said(&held).trim().rsplit(' ').next().unwrap().to_owned();
    let (number, hash) = checkpoint.split_once(':').unwrap();
    assert_eq!(number, chain.lines().count().to_string());

    let time = chain.split_once("\"at\":\"").unwrap().1.split_once("Z\"").unwrap().0;
    let digits = if time.contains('.') { "000" } else { ".000" };
    for (what, changed) in [
        ("more digits of a time", chain.replacen(time, &format!("{time}{digits}"), 1)),
        ("microseconds", chain.replacen(time, &format!("{time}{}9", digits.trim_end_matches('0')), 1)),
        ("spaces", chain.replacen(',', ", ", 1)),
        ("capitals", chain.replacen(hash, &hash.to_uppercase(), 1)),
        ("other line ends", chain.replace('\n', "\r\n")),
        ("an empty line", chain.replacen('\n', "\n\n", 1)),
        ("an escape", chain.replacen("engine_started", "\\u0065ngine_started", 1)),
    ] {
        assert_ne!(changed, chain, "{what}: nothing was changed");
        let output = verify(&changed, &[]);
        assert!(!output.status.success() && said(&output).contains("audit entry "), "{what}: {}", said(&output));
    }

    let other = format!("{number}:{}", "7".repeat(64));
    for expected in [[&*checkpoint, &other], [&other, &*checkpoint]] {
        let output = verify(&chain, &["--expect", expected[0], "--expect", expected[1]]);
        let words = said(&output);
        assert!(!output.status.success() && words.contains("not the expected one"), "{expected:?}: {words}");
    }
    assert!(verify(&chain, &["--expect", &checkpoint, "--expect", &checkpoint]).status.success());
}

#[test]
fn an_empty_chain_is_an_error_unless_it_is_expected() {
    let scratch = tempfile::tempdir().unwrap();
    let empty = audit(scratch.path(), &["verify", "--file", "/dev/null"]);
    assert!(!empty.status.success() && said(&empty).contains("nothing was verified"), "{}", said(&empty));
    let expected = format!("0:{}", "0".repeat(64));
    let output = audit(scratch.path(), &["verify", "--file", "/dev/null", "--expect", &expected]);
    assert!(output.status.success(), "{}", said(&output));

    let mut piped = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "verify", "--file", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().flush().unwrap();
    assert!(!piped.wait().unwrap().success(), "an empty input holds");
}
