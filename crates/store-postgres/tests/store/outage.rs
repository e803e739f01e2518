//! A database that is away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::proxy::Proxy;
use crate::{as_store, open, verified_chain};
use audit::entry::{Action, Body};
use clock::deadline::{Deadline, under};
use postgres_server::{PATIENCE, Server, free_port, until};
use store::conformance::pin_use::{reserve, set_by_zone, settle};
use store::conformance::{GENEROUS, card, card_event, control, engine_event};
use store::{ChangeError, Store, StoreError, StoreState};
use store_postgres::{DatabaseHost, PostgresConfig};

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_while_the_database_is_away_and_served_after() {
    let mut server = Server::start();
    let config = PostgresConfig {
        unreachable_after: Duration::from_millis(500),
        waits_for: Duration::from_secs(600),
        waiting_changes_max: 100,
        ..server.config("engine-1")
    };
    let store = open(&config).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    let reserved = reserve(&*store, card(1)).await.unwrap();
    server.stop();

    let mut calls = Vec::new();
    for number in 0..1_000 {
        let store = Arc::clone(&store);
        calls.push(tokio::spawn(async move {
            let opened = async {
                let store: &dyn Store = &*store;
                store.open_control(control(card(number)), GENEROUS, card_event(Action::OpenControl)).await
            };
            under(Some(Deadline::within(Duration::from_secs(60))), opened).await
        }));
    }
    for call in calls {
        let answer = call.await.unwrap();
        let is_refused = |error: &StoreError| {
            matches!(error, StoreError::Unavailable(_) | StoreError::Unresolved { .. } | StoreError::Busy { .. })
        };
        assert!(matches!(&answer, Err(ChangeError::Store(error)) if is_refused(error)), "{:?}", answer.err());
    }
    let mut state = as_store(&store).state();
    state.wait_for(|state| *state == StoreState::Unreachable).await.unwrap();
    assert!(matches!(store.pin(&card(1)).await, Err(StoreError::Unavailable(_))));
    // A settlement waits for the database: the PIN was right.
    let settling = tokio::spawn({
        let store = Arc::clone(&store);
        async move { settle(&*store, card(1), reserved.number, true).await }
    });
    // The queue is bounded in the outage too.
    let noted = (0..200).map(|_| as_store(&store).record_access(engine_event(Body::EngineStopped)));
    assert!(futures::future::join_all(noted).await.iter().all(Result::is_err));

    server.run();
    state.wait_for(|state| *state == StoreState::Open).await.unwrap();
    settling.await.unwrap().unwrap();
    assert_eq!(store.tries(&card(1)).await.unwrap().unwrap().used(), 0);
    set_by_zone(&*store, card(1), 2).await.unwrap();
    verified_chain(&store, "engine-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_the_database_is_away_is_kept() {
    let mut server = Server::start();
    let config = PostgresConfig { unreachable_after: Duration::from_secs(600), ..server.config("engine-1") };
    let store = open(&config).await;
    server.stop();
    let change = set_by_zone(&*store, card(1), 1);
    let late = under(Some(Deadline::within(Duration::from_millis(200))), change).await;
    let is_kept = |error: &StoreError| matches!(error, StoreError::DeadlinePassed | StoreError::Unavailable(_));
    assert!(matches!(&late, Err(ChangeError::Store(error)) if is_kept(error)), "{late:?}");
    server.run();
    // The late change is not made after the answer.
    set_by_zone(&*store, card(2), 1).await.unwrap();
    assert!(store.card(&card(1)).await.unwrap().is_none());
}

/// A host that is down, one that accepts no writes, and the one that does.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_that_accepts_writes_is_found() {
    let standby = Server::start_with("default_transaction_read_only = on");
    let primary = Server::start();
    let host = |port| DatabaseHost { name: "127.0.0.1".to_owned(), port };
    let hosts = vec![host(free_port()), host(standby.port), host(primary.port)];
    let store = open(&PostgresConfig { hosts, ..primary.config("engine-1") }).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    let admin = primary.admin().await;
    assert_eq!(admin.query_one("SELECT count(*) FROM cards", &[]).await.unwrap().get::<_, i64>(0), 1);
}

const WAITING: &str =
    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'pinseal%'";

/// The server ends the wait for a lock, and the connection stays: no attempt leaves a statement behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_another_is_waited_for_on_one_connection() {
    let server = Server::start();
    let store = open(&PostgresConfig { statement_timeout: Duration::from_secs(2), ..server.config("engine-1") }).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    let admin = server.admin().await;
    admin.batch_execute("BEGIN; SELECT 1 FROM cards FOR UPDATE").await.unwrap();
    let setting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { set_by_zone(&*store, card(1), 2).await }
    });
    let watcher = server.admin().await;
    let mut seen = BTreeSet::new();
    until("the store has tried three times", async || {
        let rows = watcher.query(WAITING, &[]).await.unwrap();
        seen.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
        (server.log().matches("due to lock timeout").count() >= 3).then_some(())
    })
    .await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    admin.batch_execute("COMMIT").await.unwrap();
    setting.await.unwrap().unwrap();
    verified_chain(&store, "engine-1").await;
}

/// The server looks for its client while a statement waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_a_closed_connection_ends() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    let config = PostgresConfig {
        // Longer than the test waits, for the lock too.
        statement_timeout: PATIENCE * 4,
        unreachable_after: PATIENCE,
        ..server.config_at(proxy.port, "engine-1")
    };
    let store = open(&config).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    let admin = server.admin().await;
    admin.batch_execute("BEGIN; SELECT 1 FROM cards FOR UPDATE").await.unwrap();
    let setting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { set_by_zone(&*store, card(1), 2).await }
    });
    let watcher = server.admin().await;
    let waits = async |expected: usize| (watcher.query(WAITING, &[]).await.unwrap().len() == expected).then_some(());
    until("the store waits for the lock", async || waits(1).await).await;
    proxy.down();
    until("the statement ends", async || waits(0).await).await;
    admin.batch_execute("COMMIT").await.unwrap();
    proxy.up();
    setting.await.unwrap().unwrap();
    verified_chain(&store, "engine-1").await;
}

/// A statement without an answer may be what a connection is lost by: it is not sent again for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_loses_its_connection_again_and_again_is_given_up() {
    let server = Server::start();
    let config =
        PostgresConfig { waits_for: Duration::from_secs(1), unreachable_after: PATIENCE, ..server.config("engine-1") };
    let store = open(&config).await;
    let admin = server.admin().await;
    admin
        .batch_execute(
            "CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$; \
             CREATE TRIGGER kill BEFORE INSERT ON cards FOR EACH ROW EXECUTE FUNCTION kill()",
        )
        .await
        .unwrap();
    let answer = tokio::time::timeout(PATIENCE, set_by_zone(&*store, card(1), 1)).await.expect("it is sent again");
    assert!(matches!(answer, Err(ChangeError::Store(StoreError::Unavailable(_)))), "{answer:?}");
    admin.batch_execute("DROP TRIGGER kill ON cards").await.unwrap();
    set_by_zone(&*store, card(1), 2).await.unwrap();
}

/// A frozen server accepts connections and answers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_without_an_answer_ends_its_connection() {
    let server = Server::start();
    let config = PostgresConfig {
        statement_timeout: Duration::from_secs(2),
        unreachable_after: Duration::from_millis(200),
        ..server.config("engine-1")
    };
    let store = open(&config).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    server.freeze();
    let answer = set_by_zone(&*store, card(1), 2).await;
    let is_refused = |error: &StoreError| matches!(error, StoreError::Unavailable(_) | StoreError::Unresolved { .. });
    assert!(matches!(&answer, Err(ChangeError::Store(error)) if is_refused(error)), "{answer:?}");
    server.thaw();
    as_store(&store).state().wait_for(|state| *state == StoreState::Open).await.unwrap();
    set_by_zone(&*store, card(1), 3).await.unwrap();
    assert!(!server.log().contains("canceling"), "a statement was cancelled");
    verified_chain(&store, "engine-1").await;
}
