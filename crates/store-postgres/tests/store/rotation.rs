//! R2 and R10: the storage keys of several engines.

use crate::{open, verified_chain};
use audit::card_reference::CardReferenceKey;
use audit::entry::{Body, RetiredStorageKeys, StorageKeyVersions};
use domain::card::StoredPin;
use domain::control::{Denied, RetryTag};
use domain::rules::UnknownCards;
use domain::storage_key::{RecordKey, StorageKeyKind};
use postgres_server::{Server, until};
use store::conformance::{card, card_event, engine_event, iso_4_keys, record, reencrypted, reported};
use store::{ChangeError, KeysAtStart, ReportedKeys, StorageKeyError, Store, StoreError};
use store_postgres::key_versions::{RecordsUnderKey, RetireError, deregister, retire};
use store_postgres::{OPERATOR, Postgres, PostgresConfig};

const KINDS: &[StorageKeyKind] = &[StorageKeyKind::Iso4];
const USER: &str = "uid 1000";

pub(crate) async fn retire_unused(config: &PostgresConfig, version: u16) -> Result<u64, RetireError> {
    retire(config, KINDS, version, RecordsUnderKey::Refuse, USER).await
}

/// Reports the versions up to this one.
pub(crate) async fn report(store: &dyn Store, iso_4: u16) -> Result<(), StoreError> {
    report_each(store, 1..=iso_4).await
}

async fn report_each(store: &dyn Store, iso_4: impl IntoIterator<Item = u16>) -> Result<(), StoreError> {
    let keys = ReportedKeys { compared: store.other_keys().await.unwrap(), ..reported(&[1], iso_4_keys(iso_4)) };
    store.set_keys_in_use(keys, engine_event(Body::KeysReloaded)).await
}

/// Starts an engine with the versions from `oldest` to 2.
async fn start(store: &dyn Store, oldest: u16) -> Result<(), StoreError> {
    let card_reference_key = store.card_reference_key().await.unwrap().unwrap_or_else(CardReferenceKey::random);
    let start = KeysAtStart { card_reference_key };
    let keys = ReportedKeys { compared: store.other_keys().await.unwrap(), ..reported(&[1], iso_4_keys(oldest..=2)) };
    store.set_keys_at_start(keys, start, engine_event(Body::KeysReloaded)).await
}

fn versions(iso_4: u16) -> StorageKeyVersions {
    StorageKeyVersions { wrapped: 0, iso_4, tdes: 0, one_way: 0 }
}

fn highest(store: &dyn Store) -> u16 {
    store.max_key_versions().borrow().iso_4
}

/// Sets the PIN of a card, under the storage key of this version.
async fn set(store: &dyn Store, number: u64, version: u8) -> Result<(), ChangeError> {
    let (pin, tag): (StoredPin, _) = (record(version), RetryTag([version; 16]));
    let event = card_event(audit::entry::Action::SetPinByZone);
    store.set_pin_by_zone(card(number), pin, tag, UnknownCards::Accept, event).await.map(drop)
}

fn is_superseded(answer: &Result<(), ChangeError>) -> bool {
    matches!(answer, Err(ChangeError::Denied(Denied::Superseded)))
}

/// A retry succeeds once the other engine has the key: the caller must not give up its control.
fn is_inactive(answer: &Result<(), ChangeError>) -> bool {
    matches!(answer, Err(ChangeError::Denied(Denied::StorageKeyInactive)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_used_once_every_engine_has_it_and_retired_once_nothing_needs_it() {
    let server = Server::start();
    let config = server.config("engine-1");
    let [one, two] = [open(&config).await, open(&server.config("engine-2")).await];
    for engine in [&one, &two, &one] {
        report(&**engine, 1).await.unwrap();
    }
    set(&*one, 1, 1).await.unwrap();

    // Engine 1 reloads: version 2 is not used, and version 1 still is.
    report(&*one, 2).await.unwrap();
    assert_eq!(highest(&*one), 1);
    assert!(is_inactive(&set(&*one, 2, 2).await), "engine 2 could not open the record");
    set(&*two, 2, 1).await.unwrap();
    let retired = retire_unused(&config, 1).await;
    assert_eq!(retired, Err(RetireError::InUse { version: 1, min: 1 }));

    // Engine 2 reloads: from its answer on nothing is written under version 1, by either engine.
    report(&*two, 2).await.unwrap();
    let last = verified_chain(&two, "engine-2").await.pop().unwrap();
    assert_eq!(last.event.body, Body::StorageKeysActivated(versions(2)));
    for engine in [&one, &two] {
        assert!(is_superseded(&set(&**engine, 3, 1).await));
        // The engine knows at the answer under which version it tries again.
        assert_eq!(highest(&**engine), 2);
    }
    set(&*one, 3, 2).await.unwrap();
    assert_eq!(retire_unused(&config, 1).await, Err(RetireError::Records { version: 1 }));
    let pins = (1..=2).map(|number| reencrypted(card(number), 1, 2)).collect();
    let event = engine_event(Body::RecordsReencrypted { count: 0 });
    assert_eq!((&*two as &dyn Store).reencrypt(pins, event).await.unwrap(), 2);
    retire_unused(&config, 1).await.unwrap();
    retire_unused(&config, 1).await.unwrap();
    assert!(matches!(retire_unused(&config, 2).await, Err(RetireError::InUse { version: 2, min: 2 })));
    let retired = verified_chain(&one, OPERATOR).await;
    let event = RetiredStorageKeys { versions: versions(1), abandoned_records: 0 };
    let events: Vec<_> = retired.iter().map(|entry| (&entry.event.body, &*entry.event.audit_user)).collect();
    assert_eq!(events, [(&Body::StorageKeysRetired(event), USER)]);

    // R2: an engine that still has the retired key does not start.
    let lacks = start(&*one, 1).await;
    let expected = StorageKeyError::Retired { version: 1 };
    assert!(matches!(&lacks, Err(StoreError::StorageKeys(error)) if *error == expected), "{lacks:?}");
    start(&*one, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_retirement_counts_the_records_that_it_gives_up() {
    let server = Server::start();
    let config = server.config("engine-1");
    let store = open(&config).await;
    for number in 1..=3 {
        set(&*store, number, 1).await.unwrap();
    }
    report(&*store, 2).await.unwrap();
    set(&*store, 4, 2).await.unwrap();
    report(&*store, 3).await.unwrap();
    let give_up =
        async |version, confirmed| retire(&config, KINDS, version, RecordsUnderKey::GiveUp { confirmed }, USER).await;
    assert_eq!(give_up(1, 2).await, Err(RetireError::MoreRecords { version: 1, found: 3, confirmed: 2 }));
    assert!(verified_chain_of_operator(&store).await.is_empty(), "nothing was retired");
    assert_eq!(give_up(1, 3).await, Ok(3));
    assert_eq!(give_up(1, 3).await, Ok(0), "they were given up before");
    assert_eq!(give_up(2, 1).await, Ok(1));
    let event = |version, abandoned_records| {
        Body::StorageKeysRetired(RetiredStorageKeys { versions: versions(version), abandoned_records })
    };
    assert_eq!(verified_chain_of_operator(&store).await, [event(1, 3), event(2, 1)]);
}

/// The bodies of the operator's events.
async fn verified_chain_of_operator(store: &Postgres) -> Vec<Body> {
    let chains = store.chains().await.unwrap();
    if !chains.iter().any(|chain| chain.engine == OPERATOR) {
        return Vec::new();
    }
    verified_chain(store, OPERATOR).await.into_iter().map(|entry| entry.event.body).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_kinds_all_are_retired_or_none() {
    let server = Server::start();
    let config = server.config("engine-1");
    let store = open(&config).await;
    let loaded = |iso_4: u16| {
        let key = |kind, version| RecordKey { kind, version };
        [key(StorageKeyKind::Wrapped, 1), key(StorageKeyKind::Wrapped, 2), key(StorageKeyKind::Iso4, iso_4)]
    };
    let report_of = async |iso_4| {
        let keys = loaded(iso_4).into_iter().chain([RecordKey { kind: StorageKeyKind::Iso4, version: 1 }]).collect();
        (&*store as &dyn Store).set_keys_in_use(reported(&[1], keys), engine_event(Body::KeysReloaded)).await.unwrap();
    };
    let retire_both = async || {
        let kinds = [StorageKeyKind::Wrapped, StorageKeyKind::Iso4];
        retire(&config, &kinds, 1, RecordsUnderKey::Refuse, USER).await
    };
    report_of(1).await;
    assert_eq!(retire_both().await, Err(RetireError::InUse { version: 1, min: 1 }));
    report_of(2).await;
    set(&*store, 1, 2).await.unwrap();
    let admin = server.admin().await;
    let retired = async || {
        let row = admin.query_one("SELECT retired_versions FROM key_versions", &[]).await.unwrap();
        row.get::<_, Vec<i32>>(0)
    };
    assert_eq!(retired().await, [0, 0, 0, 0]);
    assert_eq!(retire_both().await, Ok(0));
    assert_eq!(retired().await, [1, 1, 0, 0]);
    let event = RetiredStorageKeys { versions: StorageKeyVersions { wrapped: 1, ..versions(1) }, abandoned_records: 0 };
    assert_eq!(verified_chain_of_operator(&store).await, [Body::StorageKeysRetired(event)]);
}

/// The questions are asked while the row of every engine is locked.
#[tokio::test(flavor = "multi_thread")]
async fn questions_about_keys_read_no_whole_table() {
    let server = Server::start();
    let config = server.config("engine-1");
    let store = open(&config).await;
    report(&*store, 1).await.unwrap();
    set(&*store, 1, 1).await.unwrap();
    report(&*store, 2).await.unwrap();
    assert_eq!(retire_unused(&config, 1).await, Err(RetireError::Records { version: 1 }));
    store.close().await;
    drop(store);
    let admin = server.admin().await;
    let scans = "SELECT pg_stat_get_numscans('cards'::regclass), pg_stat_get_numscans('pins_by_storage_key'::regclass)";
    // The server notes the scans of a session at its end.
    let (tables, index) = until("the scans are noted", async || {
        let row = admin.query_one(scans, &[]).await.unwrap();
        let scans: (i64, i64) = (row.get(0), row.get(1));
        (scans.0 + scans.1 >= 12).then_some(scans)
    })
    .await;
    // The three indexes of the empty table were made by a scan each. Two reports ask for four kinds each, a retirement for one.
    assert_eq!((tables, index), (3, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_the_keys_in_use_is_refused() {
    let server = Server::start();
    let one = open(&server.config("engine-1")).await;
    report(&*one, 2).await.unwrap();
    // An engine alone may write under a key that it has not reported yet.
    set(&*one, 1, 3).await.unwrap();
    let unopened = StorageKeyError::RecordUnopened { version: 3 };
    let above = report(&*one, 2).await;
    assert!(matches!(&above, Err(StoreError::StorageKeys(error)) if *error == unopened), "{above:?}");
    let two = open(&server.config("engine-2")).await;
    assert!(is_inactive(&set(&*one, 1, 4).await), "it is not alone by now");
    let above = report(&*two, 2).await;
    assert!(matches!(&above, Err(StoreError::StorageKeys(error)) if *error == unopened), "{above:?}");
    report(&*one, 3).await.unwrap();
    report(&*two, 3).await.unwrap();
    // The record goes, so that the key in use alone stands against the report.
    server.admin().await.execute("DELETE FROM cards", &[]).await.unwrap();
    let lacks = report(&*two, 2).await;
    let expected = StorageKeyError::EngineLacks { active: 3 };
    assert!(matches!(&lacks, Err(StoreError::StorageKeys(error)) if *error == expected), "{lacks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_one_engine_lacks_is_not_used_though_its_newest_is_higher() {
    let server = Server::start();
    let [one, two] = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    for engine in [&one, &two] {
        report(&**engine, 1).await.unwrap();
    }
    report_each(&*one, [1, 3]).await.unwrap();
    report_each(&*two, [1, 2]).await.unwrap();
    assert_eq!([highest(&*one), highest(&*two)], [1, 1]);
    assert!(is_inactive(&set(&*two, 1, 2).await), "engine 1 could not open the record");
    set(&*two, 1, 1).await.unwrap();
    report_each(&*two, [1, 3]).await.unwrap();
    assert_eq!(highest(&*two), 3);
    set(&*two, 2, 3).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_the_key_of_any_record_is_refused() {
    let server = Server::start();
    let [one, two] = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    report(&*one, 2).await.unwrap();
    set(&*one, 1, 2).await.unwrap();
    report(&*one, 4).await.unwrap();
    let lacks = async |versions: &[u16]| {
        let refused = report_each(&*two, versions.iter().copied()).await;
        assert!(
            matches!(&refused, Err(StoreError::StorageKeys(StorageKeyError::RecordUnopened { version: 2 }))),
            "{refused:?}"
        );
    };
    lacks(&[4]).await;
    lacks(&[1, 3, 4]).await;
    report_each(&*two, [2, 4]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ended_stands_against_a_rotation_until_it_is_deregistered() {
    let server = Server::start();
    let config = server.config("engine-1");
    let one = open(&config).await;
    let two = open(&server.config("engine-2")).await;
    for engine in [&one, &two] {
        report(&**engine, 1).await.unwrap();
    }
    assert!(!deregister(&config, "engine-2", USER).await.unwrap(), "it runs");
    // Killed, not closed.
    let admin = server.admin().await;
    let gone =
        "UPDATE engines SET incarnation = gen_random_uuid(), lease_until = now() - interval '1 minute' WHERE name = $1";
    admin.execute(gone, &[&"engine-2"]).await.unwrap();
    report(&*one, 2).await.unwrap();
    assert_eq!(highest(&*one), 1);
    assert!(deregister(&config, "engine-2", USER).await.unwrap());
    let entries = verified_chain(&one, OPERATOR).await;
    let deregistered = Body::EngineDeregistered { engine: "engine-2".into() };
    assert!(entries.iter().all(|entry| &*entry.event.audit_user == USER));
    let bodies: Vec<_> = entries.into_iter().map(|entry| entry.event.body).collect();
    assert_eq!(bodies, [deregistered, Body::StorageKeysActivated(versions(2))]);
    set(&*one, 1, 2).await.unwrap();
}
