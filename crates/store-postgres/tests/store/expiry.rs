//! R6: the expiry of a control is compared behind the locks.

use std::sync::Arc;
use std::time::Duration;

use crate::{count, open, set, verified_chain};
use audit::entry::Action;
use domain::control::{Denied, NewControl, Transition};
use postgres_server::{Server, until};
use store::conformance::{GENEROUS, card, card_event, control, tzpk};
use store::{ChangeError, Store};

/// A statement that waits for a lock may have judged its WHERE before: the control would be used after its expiry.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_waits_past_the_expiry_is_denied() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    let admin = server.admin().await;
    for table in ["cards", "controls"] {
        let new = NewControl { lifetime: Duration::from_secs(3), ..control(card(1)) };
        let opened =
            (&*store as &dyn Store).open_control(new, GENEROUS, card_event(Action::OpenControl)).await.unwrap();
        let key = Transition::Key { tzpk: tzpk(1), replaces: None };
        (&*store as &dyn Store).advance(opened.id, key, card_event(Action::IssueTzpk)).await.unwrap();
        // Locked, not changed: then PostgreSQL does not compare a WHERE again.
        admin.batch_execute(&format!("BEGIN; SELECT 1 FROM {table} FOR UPDATE")).await.unwrap();
        let setting = tokio::spawn({
            let store = Arc::clone(&store);
            async move { set(&*store, opened.id, 1).await }
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        // The administrator's transaction would see one state of the activity.
        until("the set waits for the lock", async || {
            (server.admin().await.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
        })
        .await;
        let expired = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint > $1";
        let expires_at = i64::try_from(opened.expires_at.0).unwrap();
        until("the control expires", async || {
            admin.query_one(expired, &[&expires_at]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
        admin.batch_execute("COMMIT").await.unwrap();
        let answer = setting.await.unwrap();
        assert!(matches!(answer, Err(ChangeError::Denied(Denied::NotUsable))), "{table}: {answer:?}");
        assert!(store.pin(&card(1)).await.unwrap().is_none());
    }
    assert_eq!(count(&verified_chain(&store, "engine-1").await, Action::SetPin), 0);
}

/// As after a failover to a server whose clock is behind: the time of the transactions does not go back.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_behind_revives_no_control() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    open(&server.config("engine-2")).await.close().await;
    let admin = server.admin().await;
    // What another engine has used on the server before.
    let used = async |ahead: i32| {
        let set = "UPDATE engines SET newest_time = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
            + $1::integer::bigint * 1000000 WHERE name = 'engine-2'";
        assert_eq!(admin.execute(set, &[&ahead]).await.unwrap(), 1);
    };
    let keyed = async |number: u64| {
        let new = NewControl { lifetime: Duration::from_secs(40), ..control(card(number)) };
        let store: &dyn Store = &*store;
        let opened = store.open_control(new, GENEROUS, card_event(Action::OpenControl)).await.unwrap();
        let key = Transition::Key { tzpk: tzpk(1), replaces: None };
        store.advance(opened.id, key, card_event(Action::IssueTzpk)).await.unwrap();
        opened.id
    };
    let expired = keyed(1).await;
    used(3_600).await;
    let other = keyed(2).await;
    set(&*store, other, 1).await.expect("a clock that was an hour ahead is not followed");
    used(55).await;
    let answer = set(&*store, expired, 1).await;
    assert!(matches!(answer, Err(ChangeError::Denied(Denied::NotUsable))), "{answer:?}");
    // The engine's own row has the time by now.
    used(0).await;
    let answer = set(&*store, expired, 1).await;
    assert!(matches!(answer, Err(ChangeError::Denied(Denied::NotUsable))), "{answer:?}");
}
