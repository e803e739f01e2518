//! The facts of PostgreSQL that the protocol rests on. A release of PostgreSQL that changes one of them fails its test.

use postgres_server::{Server, until};
use tokio_postgres::Client;

/// A server with a table, whose commits wait for a standby that is absent.
async fn without_its_standby() -> (Server, Client) {
    let server = Server::start();
    let admin = server.admin().await;
    // The administrator's own commits do not wait.
    admin
        .batch_execute("SET synchronous_commit = local; CREATE TABLE public.rows (id integer PRIMARY KEY)")
        .await
        .unwrap();
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until("the setting is loaded", async || {
        let row = server.admin().await.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
        (row.get::<_, &str>(0) == "absent").then_some(())
    })
    .await;
    (server, admin)
}

const INSERT: &str = "INSERT INTO public.rows VALUES (1)";
const IN_COMMIT: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.unwrap().get(0)
}

async fn waits_in_commit(admin: &Client) {
    until("a commit waits for the standby", async || (number(admin, IN_COMMIT).await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_timeout_and_a_lost_client_do_not_end_the_commit_wait() {
    let (server, admin) = without_its_standby().await;
    let client = server.admin().await;
    client.batch_execute("SET statement_timeout = '200ms'").await.unwrap();
    let inserting = tokio::spawn(async move { client.batch_execute(INSERT).await });
    let long = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
        AND clock_timestamp() - query_start > interval '2 s'";
    until("the commit waits for longer", async || (number(&admin, long).await == 1).then_some(())).await;
    inserting.abort();
    assert!(inserting.await.unwrap_err().is_cancelled());
    let longer = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
        AND clock_timestamp() - query_start > interval '4 s'";
    until("the commit waits without its client", async || (number(&admin, longer).await == 1).then_some(())).await;
    assert_eq!(number(&admin, "SELECT count(*) FROM public.rows").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_shows_a_commit_that_no_standby_has() {
    let (mut server, admin) = without_its_standby().await;
    let client = server.admin().await;
    let inserting = tokio::spawn(async move { client.batch_execute(INSERT).await });
    waits_in_commit(&admin).await;
    server.stop();
    assert!(inserting.await.unwrap().is_err());
    server.run();
    assert_eq!(number(&server.admin().await, "SELECT count(*) FROM public.rows").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_commit_reports_success() {
    let (server, admin) = without_its_standby().await;
    let client = server.admin().await;
    let inserting = tokio::spawn(async move { client.batch_execute(INSERT).await });
    waits_in_commit(&admin).await;
    admin
        .execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", &[])
        .await
        .unwrap();
    inserting.await.unwrap().unwrap();
    assert_eq!(number(&admin, "SELECT count(*) FROM public.rows").await, 1);
    assert!(server.log().contains("WARNING:  canceling wait for synchronous replication"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_waits_for_a_transaction_in_its_commit_wait() {
    let (server, admin) = without_its_standby().await;
    admin.batch_execute(INSERT).await.unwrap();
    let update = "UPDATE public.rows SET id = id + 1";
    for _ in 0..2 {
        let client = server.admin().await;
        tokio::spawn(async move { client.batch_execute(update).await });
    }
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'transactionid'";
    until("the second update waits", async || (number(&admin, waits).await == 1).then_some(())).await;
    assert_eq!(number(&admin, IN_COMMIT).await, 1);
}

/// The WHERE is evaluated before the wait, and again only where the row was changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_where_on_the_time_is_judged_before_the_wait_for_a_lock() {
    let server = Server::start();
    let admin = server.admin().await;
    admin
        .batch_execute(
            "CREATE TABLE public.controls (expires_at timestamptz, used boolean); \
             INSERT INTO public.controls VALUES (clock_timestamp() + interval '3 s', false)",
        )
        .await
        .unwrap();
    admin.batch_execute("BEGIN; SELECT 1 FROM public.controls FOR UPDATE").await.unwrap();
    let client = server.admin().await;
    let update = "UPDATE public.controls SET used = true WHERE expires_at > clock_timestamp()";
    let updating = tokio::spawn(async move { client.execute(update, &[]).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let expired = "SELECT count(*) FROM public.controls WHERE expires_at < clock_timestamp()";
    // The administrator's transaction would see one state of the activity.
    let watcher = server.admin().await;
    until("the update waits", async || (number(&watcher, waits).await == 1).then_some(())).await;
    assert_eq!(number(&admin, expired).await, 0, "this machine stalled for three seconds");
    until("the control expires", async || (number(&admin, expired).await == 1).then_some(())).await;
    admin.batch_execute("COMMIT").await.unwrap();
    assert_eq!(updating.await.unwrap().unwrap(), 1, "PostgreSQL compares the time behind the lock by now");
}
