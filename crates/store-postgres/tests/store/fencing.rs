//! R1 and R2: a twin of an engine.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::{Cut, Proxy};
use crate::rotation::report;
use crate::{as_store, count, open, set, verified_chain};
use audit::entry::Action;
use postgres_server::{Server, until};
use store::conformance::pin_use::set_by_zone;
use store::conformance::{card, keyed, record};
use store::{ChangeError, FailureCause, Store, StoreError, StoreState};
use store_postgres::key_versions::deregister;
use store_postgres::{Postgres, PostgresConfig, PostgresOpenError};
use tokio_postgres::Client;

const LEASE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_running_engine_keeps_its_name() {
    let server = Server::start();
    let config = PostgresConfig { lease: LEASE, ..server.config("engine-1") };
    let store = open(&config).await;
    let twin = Postgres::open(&config).await.err().unwrap();
    assert!(matches!(twin, PostgresOpenError::InUse { .. }), "{twin}");
    let _ = keyed(&*store, card(1)).await;
    store.close().await;
    open(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_twin_has_registered_writes_nothing_more() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    let config = PostgresConfig { lease: LEASE, ..server.config_at(proxy.port, "engine-1") };
    let old = open(&config).await;
    let control = keyed(&*old, card(1)).await;
    proxy.down();
    let late = tokio::spawn({
        let old = Arc::clone(&old);
        async move { set(&*old, control.id, 1).await }
    });
    let twin = open(&PostgresConfig { lease: LEASE, ..server.config("engine-1") }).await;
    proxy.up();
    let mut state = as_store(&old).state();
    let failed = state.wait_for(|state| matches!(state, StoreState::Failed(_))).await.unwrap().clone();
    assert!(matches!(failed, StoreState::Failed(failure) if failure.cause == FailureCause::Displaced));
    assert!(matches!(late.await.unwrap(), Err(ChangeError::Store(_))));
    let refused = set(&*old, control.id, 2).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Failed(_)))), "{refused:?}");
    assert!(twin.pin(&card(1)).await.unwrap().is_none());
    set(&*twin, control.id, 3).await.unwrap();
    assert_eq!(twin.pin(&card(1)).await.unwrap().unwrap().record, record(3).record);
    assert_eq!(count(&verified_chain(&twin, "engine-1").await, Action::SetPin), 1);
}

/// A process that slept past its lease has its connection still: the first statement of its transaction finds the twin.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_slept_past_its_lease_writes_nothing_more() {
    let server = Server::start();
    let config = PostgresConfig { lease: Duration::from_secs(600), ..server.config("engine-1") };
    let old = open(&config).await;
    let control = keyed(&*old, card(1)).await;
    let admin = server.admin().await;
    admin.batch_execute("UPDATE engines SET lease_until = clock_timestamp() - interval '1 second'").await.unwrap();
    let twin = open(&config).await;
    let refused = set(&*old, control.id, 1).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Failed(_)))), "{refused:?}");
    assert!(twin.pin(&card(1)).await.unwrap().is_none());
    assert_eq!(count(&verified_chain(&twin, "engine-1").await, Action::SetPin), 0);
}

/// The registration waits for the transaction that holds the engine's row, and continues the chain behind its entries.
#[tokio::test(flavor = "multi_thread")]
async fn a_twin_registers_behind_a_commit_that_arrives_late() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    // The server must not end the transaction whose COMMIT is held.
    let statement_timeout = Duration::from_secs(90);
    let lease = Duration::from_secs(600);
    let config = PostgresConfig { lease, statement_timeout, ..server.config_at(proxy.port, "engine-1") };
    let old = open(&config).await;
    let control = keyed(&*old, card(1)).await;
    proxy.cut(Cut::HoldCommitForGood);
    let setting = tokio::spawn({
        let old = Arc::clone(&old);
        async move { set(&*old, control.id, 1).await }
    });
    until("the commit is held", async || proxy.has_cut().then_some(())).await;
    let config = PostgresConfig { lease: Duration::from_secs(60), ..server.config("engine-1") };
    let twin = tokio::spawn(async move { open(&config).await });
    let admin = server.admin().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FROM engines%'";
    until("the registration waits for the engine's row", async || {
        (admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    proxy.release();
    // The commit renewed the lease, which is made to expire here.
    admin.batch_execute("UPDATE engines SET lease_until = clock_timestamp() - interval '1 second'").await.unwrap();
    let twin = twin.await.unwrap();
    assert_eq!(twin.pin(&card(1)).await.unwrap().unwrap().record, record(1).record);
    let again = keyed(&*twin, card(1)).await;
    set(&*twin, again.id, 2).await.unwrap();
    assert_eq!(count(&verified_chain(&twin, "engine-1").await, Action::SetPin), 2);
    proxy.up();
    // The old process finds out that its commit was made, or that it is displaced: it answers no refusal.
    let answer = setting.await.unwrap();
    assert!(!matches!(answer, Err(ChangeError::Denied(_))), "{answer:?}");
}

/// A failover may take away a registration that no standby has: an engine does not end because it saw one.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_displaced_by_an_acknowledged_commit_alone() {
    let server = Server::start();
    let store = open(&PostgresConfig { lease: Duration::from_secs(600), ..server.config("engine-1") }).await;
    let admin = server.admin().await;
    server.require_absent_standby(&admin).await;
    admin.execute("UPDATE engines SET incarnation = gen_random_uuid()", &[]).await.unwrap();
    let setting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { set_by_zone(&*store, card(1), 1).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the recovery waits for the standby", async || {
        (admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    let mut state = as_store(&store).state();
    assert!(!matches!(*state.borrow(), StoreState::Failed(_)));
    server.require_no_standby(&admin).await;
    let failed = state.wait_for(|state| matches!(state, StoreState::Failed(_))).await.unwrap().clone();
    assert!(matches!(&failed, StoreState::Failed(failure) if matches!(failure.cause, FailureCause::Displaced)));
    setting.await.unwrap().unwrap_err();
}

async fn is_registered(admin: &Client) -> Option<bool> {
    let row = admin.query_opt("SELECT registered FROM engines WHERE name = 'engine-1'", &[]).await.unwrap();
    row.map(|row| row.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_opened_is_not_registered() {
    let server = Server::start();
    let config = server.config("engine-1");
    open(&config).await.close().await;
    let admin = server.admin().await;
    admin.batch_execute("ALTER TABLE audit RENAME TO hidden").await.unwrap();
    let refused = Postgres::open(&config).await.err().unwrap();
    assert!(matches!(refused, PostgresOpenError::Database { .. }), "{refused}");
    assert_eq!(is_registered(&admin).await, Some(false));
    admin.batch_execute("ALTER TABLE hidden RENAME TO audit").await.unwrap();

    // An open that is given up while it waits for the table.
    admin.batch_execute("BEGIN; LOCK TABLE audit").await.unwrap();
    let opening = tokio::spawn(async move { Postgres::open(&config).await.is_ok() });
    let watcher = server.admin().await;
    until("the engine is registered", async || is_registered(&watcher).await.filter(|registered| *registered)).await;
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());
    admin.batch_execute("COMMIT").await.unwrap();
    until("the engine is deregistered", async || is_registered(&watcher).await.filter(|registered| !registered)).await;
}

/// An engine that stalled past its lease is deregistered while it runs: it writes nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_deregistered_engine_that_runs_is_displaced() {
    let server = Server::start();
    let config = PostgresConfig { lease: Duration::from_secs(600), ..server.config("engine-1") };
    let store = open(&config).await;
    let admin = server.admin().await;
    admin.batch_execute("UPDATE engines SET lease_until = clock_timestamp() - interval '1 second'").await.unwrap();
    assert!(deregister(&server.config("engine-2"), "engine-1", "uid 1000").await.unwrap());
    let refused = set_by_zone(&*store, card(1), 1).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Failed(_)))), "{refused:?}");
    assert_eq!(is_registered(&admin).await, Some(false));
}

/// The displaced process raises no key version that its successor lacks.
#[tokio::test(flavor = "multi_thread")]
async fn the_close_of_a_displaced_engine_leaves_its_successor_in_the_rotation() {
    let server = Server::start();
    let config = PostgresConfig { lease: Duration::from_secs(600), ..server.config("engine-1") };
    let old = open(&config).await;
    let other = open(&server.config("engine-2")).await;
    let admin = server.admin().await;
    let expire = "UPDATE engines SET lease_until = clock_timestamp() - interval '1 second' WHERE name = 'engine-1'";
    admin.batch_execute(expire).await.unwrap();
    let twin = open(&config).await;
    report(&*twin, 1).await.unwrap();
    report(&*other, 2).await.unwrap();
    old.close().await;
    let row = admin.query_one("SELECT active_versions FROM key_versions", &[]).await.unwrap();
    assert_eq!(row.get::<_, Vec<i32>>(0), [0, 1, 0, 0]);
    assert_eq!(is_registered(&admin).await, Some(true));
    set_by_zone(&*twin, card(1), 1).await.unwrap();
}
