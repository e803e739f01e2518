//! Reads while the database changes its host.

use std::sync::Arc;
use std::time::Duration;

use crate::open;
use crate::proxy::Proxy;
use crate::server::{PATIENCE, Server, until};
use store::Store;
use store::conformance::pin_use::set_by_zone;
use store::conformance::{card, record};
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
