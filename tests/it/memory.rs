//! No clear block and no tzpk is in any process's memory once the calls are done; and the search that says so finds them,
//! in the boundary's process alone, in a build that does not wipe.

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
async fn no_clear_block_and_no_tzpk_stays_in_memory_with_the_boundary_in_a_process_of_its_own_or_without() {
    let binary = Path::new(env!("CARGO_BIN_EXE_pinseal"));
    for isolation in ["process", "inline"] {
        let found = found_after_calls(binary, isolation).await;
        assert!(found.engine.is_empty(), "left in the engine's memory, {isolation}: {:?}", found.engine);
        assert!(found.hsm.is_empty(), "left in the boundary's memory: {:?}", found.hsm);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_search_finds_them_where_nothing_is_wiped_and_in_the_boundary_alone() {
    let binary = unwiped_build();
    let names = |found: &[String], what| found.iter().any(|name| name.contains(what));
    let apart = found_after_calls(&binary, "process").await;
    assert!(names(&apart.hsm, "block") && names(&apart.hsm, "tzpk"), "not found: {:?}", apart.hsm);
    assert!(apart.engine.is_empty(), "in the engine's memory: {:?}", apart.engine);
    let inline = found_after_calls(&binary, "inline").await;
    assert!(names(&inline.engine, "block") && names(&inline.engine, "tzpk"), "not found: {:?}", inline.engine);
}

/// What was found, and where.
struct Found {
    engine: Vec<String>,
    hsm: Vec<String>,
}

/// Sets and views distinctive PINs, then searches the engine's memory for what was clear on the way.
async fn found_after_calls(binary: &Path, isolation: &str) -> Found {
    let directory = tempfile::tempdir().unwrap();
    let engine =
        EngineProcess::start_binary(binary, directory.path(), &format!("[boundary]\nisolation = \"{isolation}\""));
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
    let hsm = engine.hsm_id();
    assert_eq!(hsm.is_some(), isolation == "process");
    let engine = search(&planted, engine.id());
    // A controlId is in memory for as long as its control lives: a search that misses it is blind.
    assert!(engine.iter().any(|what| what == CONTROL), "the search is blind");
    let clear = |found: Vec<String>| found.into_iter().filter(|what| !what.starts_with(CONTROL)).collect();
    Found { engine: clear(engine), hsm: clear(hsm.map(|hsm| search(&planted, hsm)).unwrap_or_default()) }
}

/// The names of the patterns that a process has in its memory.
fn search(planted: &[(String, Vec<u8>)], process: u32) -> Vec<String> {
    let memory = memory_of(process);
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
        .args(["build", "--quiet", "--bin", "pinseal", "--no-default-features", "--features", "keys,unwiped-for-test"])
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    target.join("debug/pinseal")
}
