//! The tests that every store passes.

use std::sync::Arc;

use postgres_server::Server;
use store::Store;
use store_postgres::{Postgres, PostgresConfig};

#[tokio::test(flavor = "multi_thread")]
async fn it_passes_the_conformance_suite() {
    let server = Server::start();
    let open = async |name: &str| {
        let config = PostgresConfig { schema: name.to_owned(), ..server.config("suite") };
        Arc::new(Postgres::open(&config).await.unwrap()) as Arc<dyn Store>
    };
    store::conformance::run(open).await;
}
