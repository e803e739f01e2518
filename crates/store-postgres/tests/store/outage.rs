//! A database that is away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::server::{PATIENCE, Server, free_port, until};
use crate::{as_store, open, verified_chain};
use audit::entry::{Action, Body};
use clock::deadline::Deadline;
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
            Deadline::within(Duration::from_secs(60)).serve(opened).await
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
    let late = Deadline::within(Duration::from_millis(200)).serve(change).await;
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

/// Each attempt closes its connection at its deadline. The server ends it too, although its lock is held by another.
#[tokio::test(flavor = "multi_thread")]
async fn statements_of_closed_connections_do_not_pile_up() {
    let server = Server::start();
    let config = PostgresConfig {
        statement_timeout: Duration::from_secs(1),
        unreachable_after: PATIENCE,
        ..server.config("engine-1")
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
    let waiting =
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'pinseal%'";
    let mut seen = BTreeSet::new();
    let now = until("the store has tried eight times", async || {
        let rows = watcher.query(waiting, &[]).await.unwrap();
        seen.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
        (seen.len() >= 8).then_some(rows.len())
    })
    .await;
    assert!(now <= 5, "{now} of 8 statements wait still");
    admin.batch_execute("COMMIT").await.unwrap();
    setting.await.unwrap().unwrap();
    verified_chain(&store, "engine-1").await;
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
