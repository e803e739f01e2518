//! The check of a database, its migration, the list of its engines, and a store that is opened to read.

use std::sync::Arc;

use crate::rotation::{report, retire_unused};
use crate::{open, set, verified_chain};
use audit::chain::Checkpoint;
use audit::entry::Body;
use audit::tree_head::{TreeHead, origin_of};
use postgres_server::Server;
use store::conformance::pin_use::{reserve, set_by_zone};
use store::conformance::{archived_event, card, engine_event, iso_4_keys, keyed, part_to};
use store::upkeep::UpkeepError;
use store::{ChangeError, Store, StoreError};
use store_postgres::copy::PostgresTarget;
use store_postgres::key_versions::deregister;
use store_postgres::upkeep::{DatabaseCheck, check, engines, migrate};
use store_postgres::{EngineChain, Migrated, OPERATOR, Postgres, PostgresConfig, PostgresOpenError};

/// Two engines, four cards with a PIN and one without, an open control, one kept for a retry, an archived part.
async fn filled(server: &Server) -> [Arc<Postgres>; 2] {
    let engines = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    let [one, two] = &engines;
    for engine in &engines {
        report(&**engine, 9).await.unwrap();
    }
    for number in 1..=3 {
        set_by_zone(&**one, card(number), 9).await.unwrap();
    }
    reserve(&**two, card(1)).await.unwrap();
    let control = keyed(&**one, card(4)).await;
    set(&**two, control.id, 9).await.unwrap();
    keyed(&**one, card(5)).await;
    let part = part_to(&**one, 2).await;
    (&**one as &dyn Store).remove_archived(part.clone(), archived_event(&part)).await.unwrap();
    engines
}

async fn checked(config: &PostgresConfig) -> DatabaseCheck {
    check(config, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_counts_every_row_while_engines_serve() {
    let server = Server::start();
    let engines = filled(&server).await;
    let found = checked(&server.config("engine-1")).await;
    assert_eq!(found.damage, []);
    let mut entries = 0;
    for (engine, chain) in engines.iter().zip(&found.chains) {
        assert_eq!(
            *chain,
            EngineChain { engine: engine.engine_name().to_string(), head: engine.checkpoint().await.unwrap() }
        );
        entries += engine.audit(1, 1_000).await.unwrap().len() as u64;
    }
    let counts = found.counts;
    assert_eq!((counts.cards, counts.pins, counts.audit_entries), (4, 4, entries));
    assert_eq!((counts.open_controls, counts.retry_controls, found.older_records), (1, 1, 0));
}

/// Each change of an administrator alone is damage; undone, the database is whole again.
#[tokio::test(flavor = "multi_thread")]
async fn each_changed_column_is_found() {
    const CHANGES: &[(&str, &str)] = &[
        ("cards", "UPDATE cards SET generation = generation + 1 WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET tries_reserved = tries_reserved + 1 WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET tries_forgiven = 1 WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET opened_hour = opened_hour + 1 WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET registered = false WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET state = state || '\\x00'::bytea WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET pin = NULL, pin_kind = NULL, pin_version = NULL WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET pin = NULL WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET pin = pin || '\\x00'::bytea WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET pin_version = pin_version + 1 WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET pin_kind = 1 WHERE plastic_id = '1'"),
        ("cards", "UPDATE cards SET tenant = '' WHERE plastic_id = '5'"),
        ("cards", "DELETE FROM cards WHERE plastic_id = '5'"),
        ("unregistered_cards", "UPDATE unregistered_cards SET cards = cards + 1"),
        ("controls", "UPDATE controls SET phase = 0 WHERE phase = 1"),
        ("controls", "UPDATE controls SET expires_at = expires_at + 1 WHERE phase = 1"),
        ("controls", "UPDATE controls SET opened_generation = 9 WHERE phase = 1"),
        ("controls", "UPDATE controls SET tenant = 'other' WHERE phase = 1"),
        ("controls", "UPDATE controls SET state = state || '\\x00'::bytea WHERE phase = 1"),
        ("controls", "UPDATE controls SET id = '00000000-0000-0000-0000-000000000001' WHERE phase = 1"),
        ("audit", "UPDATE audit SET hash = '\\x00' WHERE engine = 'engine-1' AND sequence = 4"),
        ("audit", "UPDATE audit SET entry = '\\x00' WHERE engine = 'engine-1' AND sequence = 4"),
        ("audit", "DELETE FROM audit WHERE engine = 'engine-1' AND sequence = 4"),
        ("audit", "DELETE FROM audit WHERE engine = 'engine-1' AND sequence = (SELECT max(sequence) FROM audit)"),
        ("audit", "UPDATE audit SET engine = 'ghost' WHERE engine = 'engine-2'"),
        (
            "audit",
            "INSERT INTO audit SELECT 'ghost', sequence, attempt, entry, hash FROM audit WHERE engine = 'engine-2'",
        ),
        ("engines", "UPDATE engines SET sequence = sequence + 1 WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET head = '\\x00' WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET archived = '\\x00' WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET archived = NULL WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET min_versions = '{0,0,0,0}' WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET max_versions = '{0,8,0,0}', loaded_kinds = NULL, loaded_versions = NULL"),
        ("engines", "UPDATE engines SET loaded_kinds = '{2}', loaded_versions = '{-1}' WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET loaded_kinds = '{9}', loaded_versions = '{1}' WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET loaded_kinds = '{2,2}', loaded_versions = '{9}' WHERE name = 'engine-1'"),
        ("engines", "UPDATE engines SET loaded_kinds = '{2}' WHERE name = 'engine-1'"),
        (
            "engines",
            "UPDATE engines SET registered = true, loaded_kinds = '{2}', loaded_versions = '{8}' WHERE name = 'engine-1'",
        ),
        ("engines", "DELETE FROM engines WHERE name = 'engine-2'"),
        ("key_versions", "UPDATE key_versions SET card_reference_key = '\\x00'"),
        ("key_versions", "UPDATE key_versions SET min_versions = '{0,10,0,0}'"),
        ("key_versions", "UPDATE key_versions SET active_versions = '{0,9}'"),
        ("key_versions", "UPDATE key_versions SET retired_versions = '{0,9,0,0}'"),
        ("key_versions", "DELETE FROM key_versions"),
    ];
    let server = Server::start();
    for engine in filled(&server).await {
        engine.close().await;
    }
    let config = server.config("engine-1");
    let admin = server.admin().await;
    assert_eq!(checked(&config).await.damage, []);
    for (table, change) in CHANGES {
        admin.batch_execute(&format!("CREATE TABLE saved AS SELECT * FROM {table}")).await.unwrap();
        assert!(admin.execute(*change, &[]).await.unwrap() > 0, "{change} changes nothing");
        let found = checked(&config).await.damage;
        assert!(!found.is_empty(), "not found: {change}");
        let undo = format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved; DROP TABLE saved");
        admin.batch_execute(&undo).await.unwrap();
        assert_eq!(checked(&config).await.damage, [], "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_compares_the_chain_of_a_checkpoint() {
    let server = Server::start();
    let [_, two] = filled(&server).await;
    let config = server.config("engine-1");
    let entries = verified_chain(&two, "engine-2").await;
    let origin = origin_of(&entries[0]);
    let at = |origin: &str, sequence: u64, hash: [u8; 32]| TreeHead {
        origin: origin.to_owned(),
        root: [0; 32],
        head: Checkpoint { sequence, hash },
    };
    let (last, end) = (entries.last().unwrap(), entries.len() as u64);
    for entry in [&entries[0], last] {
        let found = check(&config, Some(&at(&origin, entry.sequence, entry.hash))).await.unwrap();
        assert_eq!(found.damage, []);
    }
    for wrong in [at(&origin, end, [1; 32]), at(&origin, end + 1, last.hash), at("another chain", end, last.hash)] {
        let found = check(&config, Some(&wrong)).await.unwrap();
        assert_eq!(found.damage.len(), 1, "{wrong:?}: {:?}", found.damage);
    }
    let part = part_to(&*two, 3).await;
    let before = part.clone();
    (&*two as &dyn Store).remove_archived(part.clone(), archived_event(&part)).await.unwrap();
    let end = before.end();
    assert_eq!(check(&config, Some(&at(&origin, end.sequence, end.hash))).await.unwrap().damage, []);
    let older = check(&config, Some(&at(&origin, 1, entries[0].hash))).await;
    assert!(matches!(older, Err(UpkeepError::CheckpointArchived { checkpoint: 1, archived: 3 })), "{older:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_a_chain_and_registers_no_engine() {
    let server = Server::start();
    let [one, _two] = filled(&server).await;
    let rows = "SELECT name, incarnation::text, registered FROM engines ORDER BY name";
    let admin = server.admin().await;
    let read_engines = async || {
        let rows = admin.query(rows, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect::<Vec<(String, String, bool)>>()
    };
    let before = read_engines().await;
    let reader = Postgres::open_to_read(&server.config("engine-1")).await.unwrap();
    let entries = one.audit(1, 1_000).await.unwrap();
    // Entries behind the moment of the opening are not read.
    reserve(&*one, card(2)).await.unwrap();
    assert_eq!(reader.audit(1, 1_000).await.unwrap(), entries);
    assert_eq!(reader.checkpoint().await.unwrap().hash, entries.last().unwrap().hash);
    assert_eq!(reader.archived().await.unwrap(), one.archived().await.unwrap());
    assert_eq!(reader.scan_pins(None, 100).await.unwrap().len(), 4);
    assert_eq!(reader.live_tzpks().await.unwrap().len(), 1);
    let refused = reserve(&reader, card(1)).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Unavailable(_)))), "{refused:?}");
    reader.close().await;
    drop(reader);
    assert_eq!(read_engines().await, before);
    let unknown = Postgres::open_to_read(&server.config("engine-3")).await.err().unwrap();
    assert!(matches!(unknown, PostgresOpenError::NoEngine { .. }), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_the_operator_is_whole_and_is_read() {
    let server = Server::start();
    let config = server.config("engine-1");
    for retires_first in [true, false] {
        let engines = [open(&config).await, open(&server.config("engine-2")).await];
        let [one, two] = engines;
        for (engine, version) in [(&one, 1), (&two, 1), (&one, 2)] {
            report(&**engine, version).await.unwrap();
        }
        if retires_first {
            report(&*two, 2).await.unwrap();
            retire_unused(&config, 1).await.unwrap();
        }
        // Otherwise the end of engine-2 activates version 2.
        two.close().await;
        let found = checked(&config).await;
        assert_eq!(found.damage, [], "retires first: {retires_first}");
        let reader = Postgres::open_to_read(&server.config(OPERATOR)).await.unwrap();
        assert_eq!(reader.audit(1, 10).await.unwrap().len(), 1);
        one.close().await;
        server.admin().await.batch_execute("DROP SCHEMA pinseal CASCADE").await.unwrap();
    }
    let refused = Postgres::open(&server.config(OPERATOR)).await.err().unwrap();
    assert!(matches!(refused, PostgresOpenError::EngineName), "{refused}");
    let refused = PostgresTarget::open(&server.config(OPERATOR)).await.err().unwrap();
    assert!(refused.to_string().contains("engine_name"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_for_an_engine_that_may_not() {
    let server = Server::start();
    let strict = PostgresConfig { migrates: false, ..server.config("engine-1") };
    let absent = check(&strict, None).await;
    assert!(matches!(absent, Err(UpkeepError::Open(_))), "{absent:?}");
    assert_eq!(migrate(&strict).await.unwrap(), Migrated { from: 0, to: 2 });
    assert_eq!(migrate(&strict).await.unwrap(), Migrated { from: 2, to: 2 });
    assert_eq!(engines(&strict).await.unwrap(), []);
    open(&strict).await.close().await;
    assert_eq!(engines(&strict).await.unwrap().len(), 1);
    server.admin().await.execute("UPDATE schema_version SET version = 3", &[]).await.unwrap();
    let newer = migrate(&strict).await;
    assert!(matches!(newer, Err(PostgresOpenError::Version { version: 3, .. })), "{newer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engines_are_listed_with_their_keys_and_leases() {
    let server = Server::start();
    let config = server.config("engine-1");
    let [one, two] = [open(&config).await, open(&server.config("engine-2")).await];
    report(&*one, 4).await.unwrap();
    (&*two as &dyn Store).record_event(engine_event(Body::EngineStarted { engine: "engine-2".into() })).await.unwrap();
    two.close().await;
    let listed = engines(&config).await.unwrap();
    let names: Vec<_> =
        listed.iter().map(|engine| (&*engine.chain.engine, engine.registered, engine.has_lease)).collect();
    assert_eq!(names, [("engine-1", true, true), ("engine-2", false, false)]);
    assert_eq!([&listed[0].loaded_keys, &listed[1].loaded_keys], [&Some(iso_4_keys(1..=4)), &None]);
    assert_eq!(listed[1].chain.head, two.checkpoint().await.unwrap());
    assert!(listed[1].last_transaction.0 > 0);
    assert!(!deregister(&config, "engine-2", "uid 1000").await.unwrap(), "it was closed");
}
