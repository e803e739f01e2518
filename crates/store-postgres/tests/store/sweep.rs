//! The removal of rows that nothing reads any more.

use std::time::Duration;

use crate::{open, verified_chain};
use audit::entry::Action;
use postgres_server::{Server, until};
use store::Store;
use store::conformance::{GENEROUS, card, card_event, control};
use store_postgres::PostgresConfig;

/// A sweep passes over the rows that others have locked, but not over those of its own transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_spares_the_cards_of_its_own_transaction() {
    let server = Server::start();
    // So long that no idle writer sweeps.
    let store = open(&PostgresConfig { lease: Duration::from_secs(600), ..server.config("engine-1") }).await;
    let opened = async |number: u64| {
        let store: &dyn Store = &*store;
        store.open_control(control(card(number)), GENEROUS, card_event(Action::OpenControl)).await.unwrap()
    };
    for number in 1..=2 {
        opened(number).await;
    }
    let admin = server.admin().await;
    assert_eq!(admin.execute("UPDATE cards SET opened_hour = 0 WHERE NOT registered", &[]).await.unwrap(), 2);
    until("a sweep removes card 2", async || {
        let control = opened(1).await;
        assert!(store.control(control.id).await.unwrap().is_some());
        let left = admin.query_one("SELECT count(*) FROM cards", &[]).await.unwrap().get::<_, i64>(0);
        admin.execute("UPDATE cards SET opened_hour = 0 WHERE NOT registered", &[]).await.unwrap();
        (left == 1).then_some(())
    })
    .await;
    let counted = admin.query_one("SELECT sum(cards)::bigint FROM unregistered_cards", &[]).await.unwrap();
    assert_eq!(counted.get::<_, i64>(0), 1);
    verified_chain(&store, "engine-1").await;
}
