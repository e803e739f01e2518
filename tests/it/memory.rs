//! The engine's memory holds no clear block and no tzpk once the calls are done; and the search that says so finds them
//! in a build that does not wipe.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use device::{Fill, Pin};
use pinseal::proto::{Scope, ViewPinRequest};

use crate::engine_process::{AUDIT_USER, EngineProcess, TENANT, device};

/// What is surely there.
const CONTROL: &str = "a controlId";
/// How many PINs are set, and how many viewed.
const CALLS: u32 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn no_clear_block_and_no_tzpk_stays_in_the_engines_memory() {
    let found = found_after_calls(Path::new(env!("CARGO_BIN_EXE_pinseal"))).await;
    assert!(found.is_empty(), "left in memory: {found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_search_finds_them_where_nothing_is_wiped() {
    let found = found_after_calls(&unwiped_build()).await;
    assert!(found.iter().any(|what| what.contains("block")), "no clear block was found: {found:?}");
    assert!(found.iter().any(|what| what.contains("tzpk")), "no tzpk was found: {found:?}");
}

/// Sets and views distinctive PINs, then searches the engine's memory for what was clear on the way.
async fn found_after_calls(binary: &Path) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_binary(binary, directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let mut planted: Vec<(String, Vec<u8>)> = Vec::new();
    let mut plant = |what: &str, bytes: &[u8]| {
        planted.push((what.to_owned(), bytes.to_vec()));
        planted.push((format!("{what}, reversed"), bytes.iter().rev().copied().collect()));
    };
    for number in 0..CALLS {
        let card = format!("{}", 5_000 + number);
        if number > 0 {
            // The last call of all is a set: what it left must not be hidden by what a view leaves.
            let before = format!("{}", 4_999 + number);
            let control_id = client.open(&before, Scope::ViewPin).await.unwrap().control_id;
            let request = ViewPinRequest {
                tenant: TENANT.into(),
                audit_user: AUDIT_USER.into(),
                control_id,
                device_public_key: device.public_key_der().to_vec(),
            };
            let shown = client.pins.view_pin(request).await.unwrap().into_inner();
            let tzpk = device.open_tzpk(&shown.encrypted_tzpk).unwrap();
            plant("a shown clear block", &tzpk.decrypt_block(&shown.pin_block.try_into().unwrap()));
            plant("a half of a shown tzpk", &tzpk.as_bytes()[..8]);
        }
        let control = client.open(&card, Scope::SetPin).await.unwrap().control_id;
        let tzpk = device.open_tzpk(&client.tzpk(&control, &device).await.unwrap()).unwrap();
        let clear = Pin::parse(&format!("97{:06}", number * 7_919)).unwrap().to_block(Fill::Random);
        client.set_block(&control, &tzpk.encrypt_block(&clear)).await.unwrap();
        plant("a clear block", &clear);
        plant(CONTROL, &uuid::Uuid::try_parse(&control).unwrap().as_bytes()[..8]);
        plant("the first half of a tzpk", &tzpk.as_bytes()[..8]);
        plant("the second half of a tzpk", &tzpk.as_bytes()[8..]);
    }
    let memory = memory_of(engine.id());
    assert!(memory.iter().map(Vec::len).sum::<usize>() > 1 << 20, "too little memory was read to tell");
    // One pass for all patterns: by their first two bytes.
    let mut by_start: Vec<Vec<usize>> = vec![Vec::new(); 1 << 16];
    for (number, (_, pattern)) in planted.iter().enumerate() {
        by_start[usize::from(u16::from_be_bytes([pattern[0], pattern[1]]))].push(number);
    }
    let mut found = Vec::new();
    for region in &memory {
        for window in region.windows(8) {
            for &number in &by_start[usize::from(u16::from_be_bytes([window[0], window[1]]))] {
                if planted[number].1 == window {
                    found.push(planted[number].0.clone());
                }
            }
        }
    }
    // A controlId is in memory for as long as its control lives: a search that misses it is blind.
    let sighted = found.iter().any(|what| what == CONTROL);
    assert!(sighted, "the search is blind");
    found.retain(|what| !what.starts_with(CONTROL));
    found.sort();
    found.dedup();
    found
}

/// Every writable region of a process.
fn memory_of(process: u32) -> Vec<Vec<u8>> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = File::open(format!("/proc/{process}/mem"))
        .expect("another process's memory is closed to this user: run the tests as root");
    let mut regions = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut at = from;
        while at < to {
            let mut piece = vec![0; usize::try_from((to - at).min(1 << 20)).unwrap()];
            // Pages that were reserved and never touched can't be read.
            if memory.read_exact_at(&mut piece, at).is_ok() && piece.iter().any(|byte| *byte != 0) {
                regions.push(piece);
            }
            at += 1 << 20;
        }
    }
    regions
}

/// The same program, built with wiping off, in a target directory of its own.
fn unwiped_build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/unwiped");
    let built = Command::new(env!("CARGO"))
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--bin",
            "pinseal",
            "--no-default-features",
            "--features",
            "engine,unwiped-for-test",
        ])
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    target.join("debug/pinseal")
}
