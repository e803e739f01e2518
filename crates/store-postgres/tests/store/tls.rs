//! TLS to the database.

use std::fs;

use crate::open;
use postgres_server::Server;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use store::Store;
use store_postgres::{DatabaseHost, DatabaseTls, Postgres, PostgresConfig};

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_certificate_is_verified_for_its_name() {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();

    let server = Server::start();
    server.write("server.crt", &certificate.pem());
    server.write("server.key", &key.serialize_pem());
    let (crt, pem) = (server.directory().join("server.crt"), server.directory().join("server.key"));
    let admin = server.admin().await;
    for (name, value) in [("ssl_cert_file", crt.display()), ("ssl_key_file", pem.display())] {
        admin.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await.unwrap();
    }
    admin.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    postgres_server::until("the server has loaded its certificate", async || {
        let row = server.admin().await.query_one("SHOW ssl", &[]).await.unwrap();
        (row.get::<_, &str>(0) == "on").then_some(())
    })
    .await;

    let roots = server.directory().join("roots.pem");
    fs::write(&roots, issuer.pem()).unwrap();
    let tls = Some(DatabaseTls { roots, client: None });
    let host = |name: &str| vec![DatabaseHost { name: name.to_owned(), port: server.port }];
    let config = PostgresConfig { tls: tls.clone(), hosts: host("localhost"), ..server.config("engine-1") };
    let store = open(&config).await;
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
        WHERE application_name = 'pinseal engine-1'";
    assert!(admin.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0));
    store.close().await;

    let other_name = PostgresConfig { hosts: host("127.0.0.1"), ..config.clone() };
    let error = Postgres::open(&other_name).await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");
    let other_root = server.directory().join("other.pem");
    let other = CertifiedIssuer::self_signed(CertificateParams::new(Vec::new()).unwrap(), KeyPair::generate().unwrap());
    fs::write(&other_root, other.unwrap().pem()).unwrap();
    let other_root = PostgresConfig { tls: Some(DatabaseTls { roots: other_root, client: None }), ..config };
    let error = Postgres::open(&other_root).await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");
}
