//! The tables, and who may make them.

use crate::open;
use crate::rotation::report;
use postgres_server::{Server, until};
use store::conformance::card;
use store::conformance::pin_use::{reserve, set_by_zone};
use store::{ChangeError, FailureCause, Store, StoreError, StoreState};
use store_postgres::{DatabaseHost, Postgres, PostgresConfig, PostgresOpenError};

#[tokio::test(flavor = "multi_thread")]
async fn racing_engines_make_the_tables_once() {
    let server = Server::start();
    let configs: Vec<_> = (0..6).map(|number| server.config(&format!("engine-{number}"))).collect();
    let opened = futures::future::join_all(configs.iter().map(open)).await;
    assert_eq!(opened[0].chains().await.unwrap().len(), 6);
    let version = server.admin().await.query_one("SELECT version FROM schema_version", &[]).await.unwrap();
    assert_eq!(version.get::<_, i32>(0), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_release_are_refused() {
    let server = Server::start();
    let config = server.config("engine-1");
    let refuses = async |config: &PostgresConfig, found: i32| {
        let error = Postgres::open(config).await.err().unwrap();
        assert!(matches!(error, PostgresOpenError::Version { version, .. } if version == found), "{error}");
    };
    let strict = PostgresConfig { migrates: false, ..config.clone() };
    refuses(&strict, 0).await;
    open(&config).await.close().await;
    open(&strict).await.close().await;
    server.admin().await.execute("UPDATE schema_version SET version = 3", &[]).await.unwrap();
    refuses(&config, 3).await;
    refuses(&strict, 3).await;
}

/// An engine of the first release, which did not close its store, is fenced and stands against no rotation: it has reported no
/// keys that this release reads.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_the_first_release_are_migrated() {
    let server = Server::start();
    let config = server.config("engine-1");
    let admin = server.admin().await;
    admin.batch_execute("CREATE SCHEMA pinseal").await.unwrap();
    admin.batch_execute(include_str!("../../migrations/0001_tables.sql")).await.unwrap();
    admin
        .batch_execute(
            "CREATE TABLE schema_version (id integer PRIMARY KEY CHECK (id = 1), version integer NOT NULL);
             INSERT INTO schema_version VALUES (1, 1);
             UPDATE key_versions SET keys = '\\x00', min_versions = '{0,2,0,0}', active_versions = '{0,2,0,0}';
             INSERT INTO engines (name, incarnation, session, registered, schema_version, lease_until, sequence, head,
                 newest_versions, min_versions, max_versions, newest_time)
             VALUES ('engine-9', gen_random_uuid(), gen_random_uuid(), true, 1, now(), 0,
                 decode(repeat('00', 32), 'hex'), '{0,2,0,0}', '{0,2,0,0}', '{0,65535,0,0}', 0)",
        )
        .await
        .unwrap();
    let store = open(&config).await;
    let row = admin.query_one("SELECT schema_version FROM engines WHERE name = 'engine-9'", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 2);
    report(&*store, 3).await.unwrap();
    assert_eq!(store.max_key_versions().borrow().iso_4, 3);
}

/// What a migration of a newer release does first.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_fences_an_engine_of_the_release_before() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    let admin = server.admin().await;
    admin.execute("UPDATE engines SET schema_version = schema_version + 1", &[]).await.unwrap();
    let refused = set_by_zone(&*store, card(1), 2).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Failed(_)))), "{refused:?}");
    let state = store.state().borrow().clone();
    assert!(matches!(state, StoreState::Failed(failure) if failure.cause == FailureCause::Migrated));
    let sets: i64 = admin.query_one("SELECT count(*) FROM audit", &[]).await.unwrap().get(0);
    assert_eq!(sets, 1);
}

/// A migration that runs holds the row: no engine registers and none is deregistered before it ends, and then only by its tables.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_waits_for_a_migration_that_runs() {
    let server = Server::start();
    let config = server.config("engine-1");
    open(&config).await.close().await;
    let migrating = server.admin().await;
    for (end, version) in [("ROLLBACK", None), ("UPDATE schema_version SET version = 3; COMMIT", Some(3))] {
        migrating.batch_execute("BEGIN; SELECT version FROM schema_version FOR UPDATE").await.unwrap();
        let opening = tokio::spawn({
            let config = config.clone();
            async move { Postgres::open(&config).await }
        });
        waits_for_lock(&server).await;
        migrating.batch_execute(end).await.unwrap();
        match (opening.await.unwrap(), version) {
            (Ok(store), None) => store.close().await,
            (Err(PostgresOpenError::Version { version: found, .. }), Some(version)) => assert_eq!(found, version),
            (Ok(_), Some(_)) => panic!("an engine registered with tables of another release"),
            (Err(error), _) => panic!("{error}"),
        }
    }
    let refused = store_postgres::key_versions::deregister(&config, "engine-1", "uid 0").await.unwrap_err();
    assert!(refused.to_string().contains("have version 3"), "{refused}");
}

/// Waits until a session waits for a lock.
async fn waits_for_lock(server: &Server) {
    let admin = server.admin().await;
    until("a session waits for a lock", async || {
        let waiting =
            admin.query_one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", &[]).await;
        (waiting.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_are_not_synchronous_are_refused() {
    let server = Server::start();
    server.admin().await.batch_execute("ALTER ROLE pinseal SET synchronous_commit = off").await.unwrap();
    let error = Postgres::open(&server.config("engine-1")).await.err().unwrap();
    assert!(error.to_string().contains("synchronous_commit"), "{error}");
}

/// The configuration changes while the store is open: its commits wait for the standby on.
#[tokio::test(flavor = "multi_thread")]
async fn commits_stay_synchronous_when_the_configuration_changes() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    let admin = server.admin().await;
    let change = async |text: &str| {
        admin.batch_execute(text).await.unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    };
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    change("ALTER SYSTEM SET synchronous_commit = off").await;
    until("the setting is loaded", async || {
        let row = server.admin().await.query_one("SHOW synchronous_commit", &[]).await.unwrap();
        (row.get::<_, &str>(0) == "off").then_some(())
    })
    .await;
    change("ALTER SYSTEM SET synchronous_standby_names = 'absent'").await;
    let setting = tokio::spawn(async move {
        // The first may be made before the server has loaded the name of the standby.
        for number in 1..=u8::MAX {
            set_by_zone(&*store, card(1), number).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    until("a commit waits for the standby", async || {
        (admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    setting.abort();
    change("ALTER SYSTEM SET synchronous_standby_names = ''").await;
}

#[tokio::test]
async fn a_host_beyond_this_machine_needs_tls() {
    let host = DatabaseHost { name: "db.example".into(), port: 5432 };
    let error = Postgres::open(&PostgresConfig::new(host, "postgres", "pinseal", "engine-1")).await.err().unwrap();
    assert!(matches!(error, PostgresOpenError::WithoutTls { .. }), "{error}");
}

/// A row that an administrator changed contradicts its bytes: no rule runs on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_column_makes_its_card_damaged() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    for number in 1..=2 {
        set_by_zone(&*store, card(number), 1).await.unwrap();
    }
    reserve(&*store, card(1)).await.unwrap();
    let admin = server.admin().await;
    admin.execute("UPDATE cards SET tries_forgiven = 1 WHERE plastic_id = '1'", &[]).await.unwrap();
    let refused = reserve(&*store, card(1)).await;
    assert!(matches!(refused, Err(store::ChangeError::Store(store::StoreError::Damaged { .. }))), "{refused:?}");
    reserve(&*store, card(2)).await.unwrap();
}
