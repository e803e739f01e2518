//! The states of a key, and the rules of export and import.

use std::path::Path;

use super::*;
use crate::{
    config::{Unlock, Vault},
    keyring::ZoneName,
};

const NOW: u64 = 1_700_000_000_000;

fn vault(directory: &Path) -> Keys {
    let unlock = Unlock::KeyFile(directory.join("vault.key"));
    Keys::Vault(Vault::File { path: directory.join("vault"), unlock })
}

fn name(text: &str) -> KeyUsage {
    KeyUsage::parse(text).unwrap()
}

fn store(directory: &Path) -> KeyStore {
    KeyStore::open(vault(directory), &Wanted::default(), NOW).unwrap()
}

/// A store with an active exchange key and a pending zone key.
fn with_zone(directory: &Path) -> KeyStore {
    let mut store = store(directory);
    store.make(name("exchange:acquirer"), KeyAlgorithm::Aes256, NOW).unwrap();
    store.activate(&name("exchange:acquirer"), 1, NOW).unwrap();
    store.make(name("zone:acquirer"), KeyAlgorithm::Aes256, NOW).unwrap();
    store
}

#[test]
fn changes_are_on_disk_only_after_the_commit() {
    let directory = tempfile::tempdir().unwrap();
    drop(with_zone(directory.path()));
    assert_eq!(store(directory.path()).keys().count(), 0);

    let mut first = with_zone(directory.path());
    first.set_roster([7; 32]);
    first.commit([8; 32]).unwrap();
    let listed: Vec<_> = first.keys().cloned().collect();
    drop(first);
    let again = store(directory.path());
    assert_eq!(again.keys().cloned().collect::<Vec<_>>(), listed);
    assert_eq!((again.roster_hash(), again.last_entry()), (Some([7; 32]), [8; 32]));
}

#[test]
fn one_process_at_a_time_changes_a_vault() {
    let directory = tempfile::tempdir().unwrap();
    let _first = store(directory.path());
    assert!(matches!(
        KeyStore::open(vault(directory.path()), &Wanted::default(), NOW),
        Err(KeyStoreError::Locked { .. })
    ));
}

#[test]
fn a_key_passes_every_state_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = with_zone(directory.path());
    let zone = name("zone:acquirer");
    let check_value = store.keys().last().unwrap().kcv_text();
    assert!(matches!(
        store.destroy(&zone, 1, &check_value, &KeyUse::NotCounted, NOW),
        Err(KeyStoreError::State { .. })
    ));
    assert_eq!(store.activate(&zone, 1, NOW).unwrap().state(), KeyState::Active);
    assert!(matches!(store.activate(&zone, 1, NOW), Err(KeyStoreError::State { .. })));
    assert_eq!(store.retire(&zone, 1, &KeyUse::NotCounted, NOW).unwrap().state(), KeyState::Retired);
    assert!(matches!(
        store.destroy(&zone, 1, "000000", &KeyUse::NotCounted, NOW),
        Err(KeyStoreError::NotConfirmed { .. })
    ));
    assert_eq!(store.destroy(&zone, 1, &check_value, &KeyUse::NotCounted, NOW).unwrap().state(), KeyState::Destroyed);
    assert!(store.keyring.of(&zone).all(|key| key.key.is_none()));
    assert!(matches!(store.activate(&zone, 2, NOW), Err(KeyStoreError::Unknown { .. })));
}

#[test]
fn a_storage_key_retires_when_older_and_without_records() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = store(directory.path());
    let storage = name("storage");
    for version in [1, 2] {
        store.make(storage.clone(), KeyAlgorithm::Aes256, NOW).unwrap();
        if version == 1 {
            store.activate(&storage, 1, NOW).unwrap();
        }
    }
    let none = KeyUse::Counted(RecordsKept::default());
    assert!(matches!(store.retire(&storage, 1, &none, NOW), Err(KeyStoreError::Newest { .. })));
    store.activate(&storage, 2, NOW).unwrap();
    let mut kept = RecordsKept::default();
    let record = |key: u8| PinRecord::from_bytes(&[&[1, b'P', 0, key, 4, b'h'][..], &[0; 32]].concat()).unwrap();
    [1, 1, 2].iter().for_each(|key| kept.count(&record(*key)));
    let kept = KeyUse::Counted(kept);
    assert!(matches!(store.retire(&storage, 1, &kept, NOW), Err(KeyStoreError::InUse { records: 2, .. })));
    assert!(matches!(store.retire(&storage, 1, &KeyUse::NotCounted, NOW), Err(KeyStoreError::NotCounted { .. })));
    assert!(matches!(store.retire(&storage, 2, &none, NOW), Err(KeyStoreError::Newest { .. })));
    assert_eq!(store.retire(&storage, 1, &none, NOW).unwrap().state(), KeyState::Retired);

    // An operator may have restored a store from a backup since.
    let check_value = store.keys().next().unwrap().kcv_text();
    let mut destroy = |key_use: &KeyUse| store.destroy(&storage, 1, &check_value, key_use, NOW);
    assert!(matches!(destroy(&kept), Err(KeyStoreError::StillNeeded { records: 2, .. })));
    assert!(matches!(destroy(&KeyUse::NotCounted), Err(KeyStoreError::NotCounted { .. })));
    assert_eq!(destroy(&none).unwrap().state(), KeyState::Destroyed);
}

#[test]
fn a_storage_key_that_was_never_active_needs_no_count() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = store(directory.path());
    let storage = name("storage");
    for _ in 0..2 {
        store.make(storage.clone(), KeyAlgorithm::Aes256, NOW).unwrap();
    }
    store.activate(&storage, 1, NOW).unwrap();
    assert!(store.needs_count(&storage, 1) && !store.needs_count(&storage, 2));
    assert_eq!(store.retire(&storage, 2, &KeyUse::NotCounted, NOW).unwrap().state(), KeyState::Retired);
}

#[test]
fn counts_of_several_stores_are_added() {
    let mut sum = RecordsKept::default();
    for records in [3, 0, 4] {
        let mut one = RecordsKept::default();
        one.count_many(StorageFormat::Iso4, BoundaryLevel::Host, 1, records);
        one.count_many_sealed(2, records);
        sum.add(&one);
    }
    assert_eq!((sum.records_under(&name("storage"), 1), sum.controls_under(&name("seal"), 2)), (7, 7));
    assert_eq!((sum.records_under(&name("storage"), 2), sum.controls_under(&name("storage"), 2)), (0, 0));
}

#[test]
fn a_seal_key_retires_an_hour_after_the_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = store(directory.path());
    let seal = name("seal");
    for version in [1, 2] {
        store.make(seal.clone(), KeyAlgorithm::Aes256, NOW).unwrap();
        store.activate(&seal, version, NOW).unwrap();
    }
    let (none, hour) = (KeyUse::Counted(RecordsKept::default()), 3_600_000);
    let mut live = RecordsKept::default();
    live.count_many_sealed(1, 5);
    let live = KeyUse::Counted(live);
    let later = NOW + hour;
    assert!(matches!(store.retire(&seal, 1, &live, later), Err(KeyStoreError::Sealed { controls: 5, .. })));
    assert!(matches!(store.retire(&seal, 1, &KeyUse::NotCounted, later), Err(KeyStoreError::NotCounted { .. })));
    assert!(matches!(store.retire(&seal, 1, &none, NOW + hour - 1), Err(KeyStoreError::TooSoon { .. })));
    assert_eq!(store.retire(&seal, 1, &none, NOW + hour).unwrap().state(), KeyState::Retired);
}

#[test]
fn an_active_account_record_or_retry_key_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = store(directory.path());
    for key in ["account", "record", "retry"] {
        store.make(name(key), KeyAlgorithm::Aes256, NOW).unwrap();
        store.make(name(key), KeyAlgorithm::Aes256, NOW).unwrap();
        store.activate(&name(key), 1, NOW).unwrap();
        assert!(matches!(store.activate(&name(key), 2, NOW), Err(KeyStoreError::NoRotation { .. })), "{key}");
    }
}

#[test]
fn an_exported_zone_key_is_the_same_in_another_vault() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ((mut ours, _), (mut theirs, _)) = (with_known_exchange(ours.path()), with_known_exchange(theirs.path()));
    for (algorithm, block_version) in [(KeyAlgorithm::Aes256, Version::D), (KeyAlgorithm::TdesDouble, Version::E)] {
        let made = ours.make(name("zone:acquirer"), algorithm, NOW).unwrap();
        let block = ours.export((&made.name, made.version), &name("exchange:acquirer"), block_version).unwrap();
        let came = theirs.import(name("zone:issuer"), &block, &name("exchange:acquirer"), NOW).unwrap();
        assert_eq!((came.check_value, came.algorithm), (made.check_value, algorithm));
        assert_eq!(came.state(), KeyState::Pending);
        let again = theirs.import(name("zone:issuer"), &block, &name("exchange:acquirer"), NOW);
        assert!(matches!(again, Err(KeyStoreError::Known { .. })));
    }
    assert_eq!(ours.keys().next().unwrap().uses, 2);
}

/// A store with an active exchange key, and that key.
fn with_known_exchange(directory: &Path) -> (KeyStore, ProtectionKey<'static>) {
    let mut store = store(directory);
    let mut components = Components::new(KeyAlgorithm::Aes256);
    [[1; 32], [2; 32]].iter().for_each(|component| components.add_known(component));
    store.load(name("exchange:acquirer"), &components, NOW).unwrap();
    store.activate(&name("exchange:acquirer"), 1, NOW).unwrap();
    (store, ProtectionKey::aes(ClearBytes::copied(&[3; 32])).unwrap())
}

fn block(header: &Header, under: &ProtectionKey<'_>, key: &[u8]) -> String {
    KeyBlock::write(header, under, &ClearBytes::copied(key), |_| Ok(())).unwrap()
}

#[test]
fn a_3des_key_with_equal_parts_is_not_imported() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, under) = with_known_exchange(directory.path());
    let header = Header::new(Version::D, ['P', '0'], 'T', 'B', 'E');
    let half = [0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF1];
    let other_parity = half.map(|byte| byte ^ 1);
    for key in [[half, other_parity].concat(), [half, [0; 8]].concat(), [half, other_parity, [0x5D; 8]].concat()] {
        let block = block(&header, &under, &key);
        let refused = store.import(name("zone:acquirer"), &block, &name("exchange:acquirer"), NOW);
        assert!(matches!(refused, Err(KeyStoreError::Weak)));
    }
}

#[test]
fn a_component_in_a_key_block_is_not_imported() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, under) = with_known_exchange(directory.path());
    let whole = block(&Header::new(Version::D, ['P', '0'], 'A', 'B', 'E'), &under, &[7; 32]);
    let component = whole.replacen("P0AB00", "P0ABc1", 1);
    let refused = store.import(name("zone:acquirer"), &component, &name("exchange:acquirer"), NOW);
    assert!(matches!(refused, Err(KeyStoreError::KeyBlock(KeyBlockError::Purpose { field: "key version", .. }))));
    assert_eq!(store.keys().count(), 1);
}

#[test]
fn a_block_that_names_another_kcv_is_not_imported() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, under) = with_known_exchange(directory.path());
    let right =
        base16ct::upper::encode_string(check_value(KeyAlgorithm::Aes256, &ClearBytes::copied(&[7; 32])).as_bytes());
    let right = format!("01{right}");
    let header = Header::new(Version::D, ['P', '0'], 'A', 'B', 'E');
    let with = |kcvs: &[&str]| {
        let header = kcvs.iter().fold(header.clone(), |header, kcv| header.with_optional(['K', 'C'], kcv));
        let padding = "0".repeat((16 - (kcvs.len() * 12 + 4) % 16) % 16);
        block(&header.with_optional(['P', 'B'], &padding), &under, &[7; 32])
    };
    for (kcvs, number) in [(vec!["01000000"], 1), (vec![&*right, "01000000"], 2), (vec!["01000000", &*right], 1)] {
        let refused = store.import(name("zone:acquirer"), &with(&kcvs), &name("exchange:acquirer"), NOW);
        let Err(KeyStoreError::KeyBlock(KeyBlockError::Optional { number: found, id, .. })) = refused else {
            panic!("{kcvs:?}")
        };
        assert_eq!((found, &*id), (number, "KC"));
    }
    // The KCV of another method says nothing about this one.
    let sound = with(&[&*right, "00000000"]);
    store.import(name("zone:acquirer"), &sound, &name("exchange:acquirer"), NOW).unwrap();
}

#[test]
fn an_exported_key_keeps_its_rights_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, under) = with_known_exchange(directory.path());
    let exchange = name("exchange:acquirer");
    for (mode, exportability, key) in
        [('B', 'E', [7; 32]), ('D', 'E', [8; 32]), ('E', 'S', [9; 32]), ('D', 'N', [10; 32])]
    {
        let header = Header::new(Version::D, ['P', '0'], 'A', mode, exportability);
        let came = store.import(name("zone:acquirer"), &block(&header, &under, &key), &exchange, NOW).unwrap();
        assert_eq!(came.mode.letter(), mode);
    }
    store.commit([0; 32]).unwrap();
    drop(store);
    let mut store = self::store(directory.path());
    let mut left = |version| {
        let text = store.export((&name("zone:acquirer"), version), &exchange, Version::D)?;
        let header = KeyBlock::parse(&text)?.header().clone();
        Ok::<_, KeyStoreError>((header.mode(), header.exportability()))
    };
    assert_eq!([left(1).unwrap(), left(2).unwrap(), left(3).unwrap()], [('B', 'E'), ('D', 'E'), ('E', 'E')]);
    assert!(matches!(left(4), Err(KeyStoreError::StaysHere { .. })));
}

#[test]
fn an_exchange_key_obeys_its_mode_of_use() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, under) = with_known_exchange(directory.path());
    store.make(name("zone:acquirer"), KeyAlgorithm::Aes128, NOW).unwrap();
    let header = |usage, mode| Header::new(Version::D, usage, 'A', mode, 'E');
    for (party, mode, key) in [("exchange:out", 'E', [8; 32]), ("exchange:in", 'D', [9; 32])] {
        let block = block(&header(['K', '1'], mode), &under, &key);
        store.import(name(party), &block, &name("exchange:acquirer"), NOW).unwrap();
        store.activate(&name(party), 1, NOW).unwrap();
    }
    let mut export = |party| store.export((&name("zone:acquirer"), 1), &name(party), Version::D).map(drop);
    assert!(export("exchange:out").is_ok());
    assert!(matches!(export("exchange:in"), Err(KeyStoreError::Mode { mode: KeyMode::Decrypts, .. })));
    let mut import = |party, key: [u8; 32]| {
        let under = ProtectionKey::aes(ClearBytes::copied(&key)).unwrap();
        let block = block(&header(['P', '0'], 'B'), &under, &[5; 32]);
        store.import(name("zone:issuer"), &block, &name(party), NOW).map(drop)
    };
    assert!(matches!(import("exchange:out", [8; 32]), Err(KeyStoreError::Mode { mode: KeyMode::Encrypts, .. })));
    assert!(import("exchange:in", [9; 32]).is_ok());
}

#[test]
fn engine_keys_and_weak_exchange_keys_export_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = with_zone(directory.path());
    store.make(name("storage"), KeyAlgorithm::Aes256, NOW).unwrap();
    let exchange = name("exchange:acquirer");
    assert!(matches!(store.export((&name("storage"), 1), &exchange, Version::D), Err(KeyStoreError::StaysHere { .. })));
    assert!(matches!(store.export((&exchange, 1), &exchange, Version::D), Err(KeyStoreError::StaysHere { .. })));
    store.make(name("exchange:weak"), KeyAlgorithm::Aes128, NOW).unwrap();
    store.activate(&name("exchange:weak"), 1, NOW).unwrap();
    let weak = store.export((&name("zone:acquirer"), 1), &name("exchange:weak"), Version::D);
    assert!(matches!(weak, Err(KeyStoreError::Strength { .. })));
    let old = store.export((&name("zone:acquirer"), 1), &exchange, Version::B);
    assert!(matches!(old, Err(KeyStoreError::KeyBlock(KeyBlockError::Version))));
}

#[test]
fn usages_parse_from_their_display_form() {
    let values = ["pvk:bank:0", "ibm-3624:bank:0123456789012345:5-15-f", "storage-one-way"];
    for text in ["storage", "storage-3des", "seal", "account", "record", "retry", "zone:a-1", "exchange:b"]
        .into_iter()
        .chain(values)
    {
        assert_eq!(name(text).to_string(), text);
    }
    for text in ["", "zone", "zone:", "zone:A", "tzpk", "storage:a", "pvk:bank", "ibm-3624:bank"] {
        assert_eq!(KeyUsage::parse(text), None, "{text}");
    }
    assert!(ZoneName::parse(&"a".repeat(32)).is_none());
}

/// The published key blocks of a zone key under a 3DES key.
#[test]
fn a_3des_exchange_key_imports_old_blocks_but_exports_none() {
    let published: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors/tr31.json")).unwrap();
    let unhex =
        |value: &serde_json::Value| -> Vec<u8> { base16ct::mixed::decode_vec(value.as_str().unwrap()).unwrap() };
    let mut imported = Vec::new();
    for entry in published.as_array().unwrap() {
        let (block, under) = (entry["key_block"].as_str().unwrap(), unhex(&entry["kbpk"]));
        let is_zone_key = block.get(5..7) == Some("P0");
        if !is_zone_key || !block.starts_with(['A', 'B', 'C']) {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path());
        let exchange = name("exchange:acquirer");
        let algorithm = if under.len() == 16 { KeyAlgorithm::TdesDouble } else { KeyAlgorithm::TdesTriple };
        let mut components = Components::new(algorithm);
        let mask = vec![0x10; under.len()];
        let last: Vec<u8> = under.iter().zip(&mask).map(|(a, b)| a ^ b).collect();
        [mask, last].iter().for_each(|component| components.add_known(component));
        store.load(exchange.clone(), &components, NOW).unwrap();
        store.activate(&exchange, 1, NOW).unwrap();
        let came = store.import(name("zone:acquirer"), block, &exchange, NOW).unwrap();
        let expected = check_value(KeyAlgorithm::TdesDouble, &ClearBytes::taken(unhex(&entry["key"])));
        assert_eq!(came.check_value, Some(expected), "{block}");
        imported.push(block.chars().next().unwrap());
        let refused = store.export((&name("zone:acquirer"), 1), &exchange, Version::D).unwrap_err();
        assert!(matches!(
            refused,
            KeyStoreError::KeyBlock(KeyBlockError::ProtectionKey { .. }) | KeyStoreError::StaysHere { .. }
        ));
    }
    assert_eq!(imported, ['B', 'A', 'A', 'A']);
}
