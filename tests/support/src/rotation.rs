//! Rotation of the storage key: its configuration, its progress and its result.

use std::{path::Path, process::Command};

use crate::{ceremony::said, engine_process::EngineProcess};

/// The engine's configuration lines for a rate at which the kills hit the rotation.
pub fn settings(records_per_second: u64) -> String {
    format!(
        "[control]\nlifetime_seconds = 3600\nper_card_per_hour_max = 1000000\n[limits]\ncalls_per_card_per_minute = 1000000\n\
         [rotation]\nrecords_per_second = {records_per_second}"
    )
}

/// The number of records under each storage key, from the store of a stopped engine.
pub async fn records_under(directory: &Path) -> (u64, u64) {
    let store = engine_server::open_store_copy(&directory.join("data/store")).unwrap();
    let all = store.scan_pins(None, usize::MAX).await.unwrap();
    let key = |record: &[u8]| hsm::PinRecord::from_bytes(record).unwrap().storage_key().0;
    let under = |version| all.iter().filter(|(_, pin)| key(&pin.record) == version).count() as u64;
    let (old, new) = (under(1), under(2));
    assert_eq!(old + new, all.len() as u64);
    (old, new)
}

pub fn watch(engine: &EngineProcess, arguments: &[&str]) -> Command {
    let mut command = Command::new(crate::pinseal_path());
    command.args(["rotation", "watch", "--engine", engine.address()]).args(arguments);
    command
}

/// The lines of a watch that succeeds.
pub fn watched(engine: &EngineProcess) -> Vec<serde_json::Value> {
    let output = watch(engine, &["--json"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
