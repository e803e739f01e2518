//! Transactions that the server undoes.

use std::sync::Arc;

use crate::{count, open, verified_chain};
use audit::entry::Action;
use postgres_server::{Server, until};
use store::Store;
use store::conformance::pin_use::set_by_zone;
use store::conformance::{card, card_event, record};

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_retried() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    for number in 1..=2 {
        set_by_zone(&*store, card(number), 1).await.unwrap();
    }
    let admin = server.admin().await;
    // The store's session looks for a deadlock first, so it is the one that the server undoes.
    admin
        .batch_execute("SET deadlock_timeout = '100s'; BEGIN; SELECT 1 FROM cards WHERE plastic_id = '2' FOR UPDATE")
        .await
        .unwrap();
    let transfer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let store: &dyn Store = &*store;
            let pin = record(2);
            store.transfer_pin(card(1), record(1).record, card(2), pin, card_event(Action::TransferPin)).await
        }
    });
    let watcher = server.admin().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("the store has card 1 and waits for card 2", async || {
        (watcher.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    admin.batch_execute("SELECT 1 FROM cards WHERE plastic_id = '1' FOR UPDATE; COMMIT").await.unwrap();
    // Neither card has an account number, so the rule denies it: what counts is that the rule was asked.
    let answer = transfer.await.unwrap();
    assert!(matches!(answer, Err(store::ChangeError::Denied(domain::control::Denied::OtherAccount))), "{answer:?}");
    assert!(server.log().contains("deadlock detected"));
    set_by_zone(&*store, card(1), 2).await.unwrap();
}

/// PostgreSQL has none under READ COMMITTED, CockroachDB and YugabyteDB do: a trigger makes them.
#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_is_retried() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    let admin = server.admin().await;
    admin
        .batch_execute(
            "CREATE SEQUENCE failures; \
             CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('pinseal.failures') <= 3 THEN RAISE EXCEPTION 'try again' USING ERRCODE = '40001'; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER fail BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION fail()",
        )
        .await
        .unwrap();
    set_by_zone(&*store, card(1), 1).await.unwrap();
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().record, record(1).record);
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPinByZone), 1);
    let tried: i64 = admin.query_one("SELECT last_value FROM failures", &[]).await.unwrap().get(0);
    assert_eq!(tried, 4);
}
