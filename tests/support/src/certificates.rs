//! Development certificates for the engine and its peers, and a channel with them.

use std::{path::Path, process::Command};

use net::{
    connect::channel,
    tls::{ClientTls, ClientTlsConfig},
};
use tonic::transport::Channel;

use crate::engine_process::EngineProcess;

/// Runs the program: whether it succeeded, and its standard error.
pub fn pinseal(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(crate::pinseal_path()).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A development CA and its certificates; engine and edge configuration for them.
pub fn certificates(directory: &Path) -> (String, String) {
    let out = directory.join("pki");
    let (made, printed) = pinseal(&["pki", "dev", "--out", out.to_str().unwrap()]);
    assert!(made, "{printed}");
    let at = |file: &str| format!("{:?}", out.join(file));
    let engine = format!(
        "[tls]\ncertificates = {}\nprivate_key = {}\nclient_roots = {}",
        at("engine.pem"),
        at("engine.key"),
        at("ca.pem")
    );
    let edge = format!(
        "tls = {{ roots = {}, certificates = {}, private_key = {} }}",
        at("ca.pem"),
        at("edge.pem"),
        at("edge.key")
    );
    (engine, edge)
}

/// The `[[peers]]` entry that gives a certificate of `certificates` these roles.
pub fn peer(holder: &str, roles: &str) -> String {
    format!("[[peers]]\ncertificate_name = \"{holder}.pinseal.test\"\nroles = [{roles}]\n")
}

pub fn port_of(engine: &EngineProcess) -> &str {
    engine.address().rsplit(':').next().unwrap()
}

/// A channel by mutual TLS, as the holder of a certificate of `certificates`.
pub fn channel_as(holder: &str, directory: &Path, engine: &EngineProcess) -> Channel {
    let at = |file: String| directory.join("pki").join(file);
    let tls = ClientTls::load(&ClientTlsConfig {
        roots: at("ca.pem".into()),
        certificates: at(format!("{holder}.pem")),
        private_key: at(format!("{holder}.key")),
    });
    channel(&format!("https://localhost:{}", port_of(engine)).parse().unwrap(), Some(tls.unwrap())).unwrap()
}
