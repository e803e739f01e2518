//! R3: a commit whose answer is lost.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::{Cut, Proxy};
use crate::{as_store, count, open, set, verified_chain};
use audit::entry::Action;
use domain::tries::Tries;
use postgres_server::{PATIENCE, Server, until};
use store::conformance::pin_use::{reserve, set_by_zone};
use store::conformance::{card, confirm, keyed, record};
use store::{ChangeError, Store, StoreError, StoreState};
use store_postgres::{Postgres, PostgresConfig};

/// So long that the store sends no COMMIT but those of the changes.
const LEASE: Duration = Duration::from_secs(600);

/// A store behind a proxy.
async fn proxied(server: &Server) -> (Proxy, Arc<Postgres>) {
    let proxy = Proxy::start(server.port);
    // The server must not end the transaction whose COMMIT is held.
    let statement_timeout = Duration::from_secs(90);
    let store =
        open(&PostgresConfig { statement_timeout, lease: LEASE, ..server.config_at(proxy.port, "engine-1") }).await;
    (proxy, store)
}

/// Sets a PIN while the connection is cut; it is set once, and the chain holds.
async fn set_during(cut: Cut) {
    let server = Server::start();
    let (proxy, store) = proxied(&server).await;
    let control = keyed(&*store, card(1)).await;
    proxy.cut(cut);
    set(&*store, control.id, 7).await.unwrap();
    assert!(proxy.has_cut(), "the connection was not cut");
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().record, record(7).record);
    confirm(&*store, control.id, 7).await.unwrap();
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPin), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_found_and_answered() {
    set_during(Cut::AfterCommit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_did_not_arrive_is_made_again() {
    set_during(Cut::BeforeCommit).await;
}

/// Whether a session waits for a lock.
async fn is_waiting(server: &Server) -> bool {
    let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    server.admin().await.query_one(text, &[]).await.unwrap().get::<_, i64>(0) > 0
}

/// A look-up without the fence would find nothing here, answer, and be contradicted by the server a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_arrives_late_is_waited_for() {
    let server = Server::start();
    let (proxy, store) = proxied(&server).await;
    let control = keyed(&*store, card(1)).await;
    proxy.cut(Cut::HoldCommit);
    let setting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { set(&*store, control.id, 7).await }
    });
    until("the fence waits for the transaction", async || is_waiting(&server).await.then_some(())).await;
    assert!(!setting.is_finished());
    proxy.release();
    setting.await.unwrap().unwrap();
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPin), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_in_doubt_is_unresolved_while_the_database_is_away() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    let unreachable_after = Duration::from_millis(300);
    let store =
        open(&PostgresConfig { unreachable_after, lease: LEASE, ..server.config_at(proxy.port, "engine-1") }).await;
    let control = keyed(&*store, card(1)).await;
    proxy.cut(Cut::AfterCommitForGood);
    let answer = set(&*store, control.id, 7).await;
    assert!(matches!(answer, Err(ChangeError::Store(StoreError::Unresolved { .. }))), "{answer:?}");
    let mut state = as_store(&store).state();
    state.wait_for(|state| *state == StoreState::Unreachable).await.unwrap();
    let answer = set(&*store, control.id, 8).await;
    assert!(matches!(answer, Err(ChangeError::Store(StoreError::Unavailable(_)))), "{answer:?}");
    proxy.up();
    state.wait_for(|state| *state == StoreState::Open).await.unwrap();
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().record, record(7).record);
    confirm(&*store, control.id, 7).await.unwrap();
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPin), 1);
}

/// The database accepts the connection of the recovery, which then waits: the callers are answered all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_in_doubt_is_unresolved_while_the_fence_waits() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    let config = PostgresConfig {
        unreachable_after: Duration::from_millis(300),
        // The fence waits for its lock for half as long.
        statement_timeout: Duration::from_secs(600),
        lease: LEASE,
        ..server.config_at(proxy.port, "engine-1")
    };
    let store = open(&config).await;
    let control = keyed(&*store, card(1)).await;
    proxy.cut(Cut::HoldCommit);
    let answer =
        tokio::time::timeout(PATIENCE, set(&*store, control.id, 7)).await.expect("no answer while the fence waits");
    assert!(matches!(answer, Err(ChangeError::Store(StoreError::Unresolved { .. }))), "{answer:?}");
    assert!(is_waiting(&server).await);
    let mut state = as_store(&store).state();
    assert_eq!(*state.borrow(), StoreState::Unreachable);
    proxy.release();
    state.wait_for(|state| *state == StoreState::Open).await.unwrap();
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().record, record(7).record);
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPin), 1);
}

/// R9: a reservation in doubt is found, not made twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_in_doubt_uses_one_try() {
    let server = Server::start();
    let (proxy, store) = proxied(&server).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    for (number, cut) in [(1, Cut::AfterCommit), (2, Cut::BeforeCommit), (3, Cut::AfterCommit)] {
        proxy.cut(cut);
        assert_eq!(reserve(&*store, card(1)).await.unwrap().number, number);
        assert!(proxy.has_cut());
    }
    assert_eq!(store.tries(&card(1)).await.unwrap().unwrap(), Tries { reserved: 3, forgiven: 0 });
    verified_chain(&store, "engine-1").await;
}

/// A commit that is cancelled while it waits for the standby reports success, with a warning. So the store does not answer it,
/// and its fence waits for the standby too.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_with_a_warning_is_not_acknowledged() {
    let server = Server::start();
    let store = open(&PostgresConfig { lease: LEASE, ..server.config("engine-1") }).await;
    let control = keyed(&*store, card(1)).await;
    let admin = server.admin().await;
    server.require_absent_standby(&admin).await;
    let setting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { set(&*store, control.id, 7).await }
    });
    let cancel = "SELECT pid, pg_cancel_backend(pid) FROM pg_stat_activity \
        WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    let cancelled = until("a commit waits for the standby, and is cancelled", async || {
        admin.query_opt(cancel, &[]).await.unwrap().map(|row| row.get::<_, i32>(0))
    })
    .await;
    // The fence of the recovery, on a connection of its own, waits in its turn.
    let fenced = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> $1";
    until("the fence waits for the standby", async || {
        (admin.query_one(fenced, &[&cancelled]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    assert!(!setting.is_finished(), "a commit that no standby has was acknowledged");
    server.require_no_standby(&admin).await;
    setting.await.unwrap().unwrap();
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPin), 1);
}

/// A trigger or an extension may warn within the transaction: a warning of COMMIT alone means doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_warning_before_commit_leaves_no_doubt() {
    let server = Server::start();
    let store = open(&PostgresConfig { lease: LEASE, ..server.config("engine-1") }).await;
    let admin = server.admin().await;
    admin
        .batch_execute(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE WARNING 'a trigger warns'; RETURN NEW; END $$; \
             CREATE TRIGGER warn BEFORE UPDATE ON engines FOR EACH ROW EXECUTE FUNCTION warn()",
        )
        .await
        .unwrap();
    let session = async || -> uuid::Uuid { admin.query_one("SELECT session FROM engines", &[]).await.unwrap().get(0) };
    let before = session().await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    assert!(server.log().contains("a trigger warns"));
    assert_eq!(session().await, before, "the commit was taken for one in doubt");
    open(&server.config("engine-2")).await;
}
