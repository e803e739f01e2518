//! Reads while the database changes its host.

use std::sync::Arc;
use std::time::Duration;

use crate::proxy::Proxy;
use crate::{as_store, open, verified_chain};
use audit::entry::{Action, Body};
use domain::control::ControlId;
use postgres_server::{PATIENCE, Server, until};
use store::conformance::pin_use::set_by_zone;
use store::conformance::{GENEROUS, card, card_event, control, engine_event, record};
use store::{ReadEpoch, Store, StoreError};
use store_postgres::{Postgres, PostgresConfig};

/// A store with two hosts, of which the first is behind a proxy. Its writer and its reader are connected to the first.
async fn on_two_hosts(server: &Server, statement_timeout: Duration) -> (Proxy, Arc<Postgres>) {
    let proxy = Proxy::start(server.port);
    let mut config = PostgresConfig {
        statement_timeout,
        // So long that an idle writer sends nothing.
        lease: Duration::from_secs(600),
        ..server.config_at(proxy.port, "engine-1")
    };
    config.hosts.extend(server.config("engine-1").hosts);
    let store = open(&config).await;
    set_by_zone(&*store, card(1), 1).await.unwrap();
    assert!(store.pin(&card(1)).await.unwrap().is_some());
    (proxy, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_leaves_a_silent_host_although_its_callers_give_up_early() {
    let server = Server::start();
    let (proxy, store) = on_two_hosts(&server, Duration::from_secs(2)).await;
    proxy.silence();
    let found = until("a read is answered", async || {
        tokio::time::timeout(Duration::from_millis(500), store.pin(&card(1))).await.ok()?.ok()
    })
    .await;
    assert_eq!(found.unwrap().record, record(1).record);
    // The writer waits for the silent host still.
    assert_eq!(store.read_epoch(), ReadEpoch::Apart);
    assert!(matches!(as_store(&store).check_reads(ReadEpoch::Apart), Err(StoreError::Unavailable(_))));
}

/// The writer found another host: the one before may be deposed, and answer reads on.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_the_writer_to_another_host() {
    let server = Server::start();
    let (proxy, store) = on_two_hosts(&server, PATIENCE * 4).await;
    proxy.refuse();
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE application_name LIKE 'pinseal%' AND query = 'COMMIT'";
    assert_eq!(server.admin().await.execute(ended, &[]).await.unwrap(), 1);
    set_by_zone(&*store, card(1), 2).await.unwrap();
    proxy.silence();
    let read = tokio::time::timeout(PATIENCE, store.pin(&card(1))).await.expect("the read waits for the host before");
    assert_eq!(read.unwrap().unwrap().record, record(2).record);
}

/// R11: a refusal that follows from a read is answered after a commit on the server of the read.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_before_a_reconnection_is_not_confirmed() {
    let server = Server::start();
    let (proxy, store) = on_two_hosts(&server, PATIENCE * 4).await;
    let confirm = async |epoch| as_store(&store).confirm_reads(epoch, engine_event(Body::EngineStopped)).await;
    let before = store.read_epoch();
    confirm(before).await.unwrap();
    proxy.refuse();
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE application_name LIKE 'pinseal%' AND query = 'COMMIT'";
    assert_eq!(server.admin().await.execute(ended, &[]).await.unwrap(), 1);
    let refused = confirm(before).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    confirm(store.read_epoch()).await.unwrap();
    assert_eq!(verified_chain(&store, "engine-1").await.len(), 1, "a confirmation has no entry");
}

/// More reads than one statement answers, twice each, and as many of unknown controls.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_reads_gets_its_own_control() {
    let server = Server::start();
    let store = open(&server.config("engine-1")).await;
    let open_one =
        |number| as_store(&store).open_control(control(card(number)), GENEROUS, card_event(Action::OpenControl));
    let opened = futures::future::try_join_all((1..=300).map(open_one)).await.unwrap();
    let unknown = |number: u64| ControlId::from_bytes([number as u8; 16]);
    let read = async |id: ControlId| store.control(id).await.unwrap().map(|control| (control.id, control.card));
    let reads =
        opened.iter().enumerate().flat_map(|(number, control)| [control.id, unknown(number as u64), control.id]);
    let found = futures::future::join_all(reads.map(read)).await;
    for (control, found) in opened.iter().zip(found.chunks(3)) {
        let expected = Some((control.id, control.card));
        assert!(found == [expected, None, expected]);
    }
}

/// A reading that fails answers its callers, and the next one begins.
#[tokio::test(flavor = "multi_thread")]
async fn reads_of_controls_end_with_a_lost_database_and_begin_again() {
    let server = Server::start();
    let proxy = Proxy::start(server.port);
    let store = open(&server.config_at(proxy.port, "engine-1")).await;
    let opened =
        as_store(&store).open_control(control(card(1)), GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    let reads = || futures::future::join_all((0..50).map(|_| store.control(opened.id)));
    assert!(reads().await.into_iter().all(|found| found.unwrap().is_some()));
    proxy.down();
    until("reads fail", async || reads().await.iter().all(Result::is_err).then_some(())).await;
    proxy.up();
    until("reads are answered", async || {
        reads().await.into_iter().all(|found| matches!(found, Ok(Some(_)))).then_some(())
    })
    .await;
}
