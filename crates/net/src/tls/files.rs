//! Loads certificates, keys and roots from files, and reloads them when the files change.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    ClientCertificate, ClientTlsConfig, ServerTlsConfig, TlsError,
    expiry::{CertificateExpiry, CertificateUse, first_expiry},
    pem, provider,
};

/// A new connection checks the files if the last check is at least this long ago.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// The TLS configuration of a server, from the newest valid files.
#[derive(Clone)]
pub struct ServerTls(Arc<Watched<ServerTlsConfig, ServerConfig>>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or parsed, other users may read the private key, or rustls rejects the files together.
    pub fn load(config: &ServerTlsConfig) -> Result<Self, TlsError> {
        let watched = Watched::new(config.clone(), CertificateUse::Listener, server_paths, server_config)?;
        Ok(Self(Arc::new(watched)))
    }

    /// The end of validity of the newest certificate chain.
    pub fn expiry(&self) -> CertificateExpiry {
        self.0.expiry.clone()
    }

    /// Reloads the files if one of them changed. The result goes to the log.
    pub fn reload(&self) {
        self.0.latest(Duration::ZERO);
    }

    /// Whether a handshake asks for a client certificate. A reload does not change this.
    pub fn asks_for_certificates(&self) -> bool {
        self.0.config.client_roots.is_some()
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.latest(CHECK_EVERY)
    }
}

/// The TLS configuration of a client, from the newest valid files.
#[derive(Clone)]
pub struct ClientTls(Arc<Watched<ClientTlsConfig, ClientConfig>>);

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or parsed, other users may read the private key, or rustls rejects the files together.
    pub fn load(config: &ClientTlsConfig) -> Result<Self, TlsError> {
        let watched = Watched::new(config.clone(), CertificateUse::EngineClient, client_paths, client_config)?;
        Ok(Self(Arc::new(watched)))
    }

    /// The end of validity of the newest certificate chain.
    pub fn expiry(&self) -> CertificateExpiry {
        self.0.expiry.clone()
    }

    /// Reloads the files if one of them changed. The result goes to the log.
    pub fn reload(&self) {
        self.0.latest(Duration::ZERO);
    }

    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        self.0.latest(CHECK_EVERY)
    }
}

/// A value that is built from files, and built again when a file changes.
struct Watched<C, T> {
    config: C,
    /// The files; the first one has the certificate chain.
    paths: fn(&C) -> Vec<&Path>,
    build: fn(&C) -> Result<Loaded<T>, TlsError>,
    built: Mutex<Built<T>>,
    expiry: CertificateExpiry,
}

/// The configuration from the files, and the end of validity of its certificate chain.
struct Loaded<T> {
    value: T,
    expires_at: Option<i64>,
}

struct Built<T> {
    value: Arc<T>,
    /// The modification time, size and inode of each file.
    stamps: Vec<Option<(i64, i64, u64, u64)>>,
    checked: Instant,
}

impl<C, T> Watched<C, T> {
    fn new(
        config: C,
        usage: CertificateUse,
        paths: fn(&C) -> Vec<&Path>,
        build: fn(&C) -> Result<Loaded<T>, TlsError>,
    ) -> Result<Self, TlsError> {
        // The stamps come first: the next check then finds a change during the build.
        let stamps = stamps(&paths(&config));
        let Loaded { value, expires_at } = build(&config)?;
        let built = Mutex::new(Built { value: Arc::new(value), stamps, checked: Instant::now() });
        let chain = paths(&config).first().map(|path| path.to_path_buf()).unwrap_or_default();
        Ok(Self { config, paths, build, built, expiry: CertificateExpiry::new(usage, chain, expires_at) })
    }

    /// The newest value. Checks the files first if the last check is at least `interval` ago.
    fn latest(&self, interval: Duration) -> Arc<T> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if built.checked.elapsed() >= interval {
            built.checked = Instant::now();
            let stamps = stamps(&(self.paths)(&self.config));
            if stamps != built.stamps {
                built.stamps = stamps;
                match (self.build)(&self.config) {
                    Ok(Loaded { value, expires_at }) => {
                        built.value = Arc::new(value);
                        tracing::info!("certificates were reloaded");
                        self.expiry.set(expires_at);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the changed certificates are not valid; the old ones stay in use")
                    }
                }
            }
        }
        Arc::clone(&built.value)
    }
}

fn stamps(paths: &[&Path]) -> Vec<Option<(i64, i64, u64, u64)>> {
    let stamp = |meta: fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino());
    paths.iter().map(|path| fs::metadata(path).ok().map(stamp)).collect()
}

fn server_paths(config: &ServerTlsConfig) -> Vec<&Path> {
    let fixed = [&*config.certificates, &*config.private_key];
    fixed.into_iter().chain(config.client_roots.as_deref()).collect()
}

fn client_paths(config: &ClientTlsConfig) -> Vec<&Path> {
    vec![&config.certificates, &config.private_key, &config.roots]
}

fn server_config(config: &ServerTlsConfig) -> Result<Loaded<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(rejected)?;
    let builder = match &config.client_roots {
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider());
            let verifier = match config.client_certificate {
                ClientCertificate::Required => verifier,
                ClientCertificate::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build().map_err(rejected)?)
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = (certificates(&config.certificates)?, private_key(&config.private_key)?);
    let expires_at = first_expiry(&chain);
    let mut server = builder.with_single_cert(chain, key).map_err(rejected)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if config.client_roots.is_some() {
        // A resumed session has the certificate of the first handshake without another check, so an expired certificate
        // would be accepted for the lifetime of a ticket.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    Ok(Loaded { value: server, expires_at })
}

fn client_config(config: &ClientTlsConfig) -> Result<Loaded<ClientConfig>, TlsError> {
    let chain = certificates(&config.certificates)?;
    let expires_at = first_expiry(&chain);
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(rejected)?
        .with_root_certificates(roots(&config.roots)?)
        .with_client_auth_cert(chain, private_key(&config.private_key)?)
        .map_err(rejected)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Loaded { value: client, expires_at })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let content = pem::read(path, pem::CERTIFICATE)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    chain.map_err(|error| problem(error.to_string()))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let problem = |error: rustls::Error| TlsError::File { path: path.to_owned(), problem: error.to_string() };
        roots.add(certificate).map_err(problem)?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let problem = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let mode = fs::metadata(path).map_err(|error| problem(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(TlsError::OpenToOthers { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&pem::read(path, pem::PRIVATE_KEY)?).map_err(|error| problem(error.to_string()))
}

fn rejected(error: impl std::fmt::Display) -> TlsError {
    TlsError::Rejected(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{HandshakeKind, NamedGroup};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::tls::ServerStream;

    /// A CA, and a certificate for localhost with its key, as files.
    fn files(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        (write("ca.pem", authority.pem()), write("leaf.pem", leaf.pem()), write("leaf.key", key.serialize_pem()))
    }

    #[tokio::test]
    async fn our_ends_negotiate_a_post_quantum_key_exchange() {
        let directory = tempfile::tempdir().unwrap();
        let (roots, certificates, private_key) = files(directory.path());
        let server = ServerTlsConfig {
            certificates: certificates.clone(),
            private_key: private_key.clone(),
            client_roots: Some(roots.clone()),
            client_certificate: ClientCertificate::Required,
        };
        let server = ServerTls::load(&server).unwrap();
        let client = ClientTls::load(&ClientTlsConfig { roots, certificates, private_key }).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let connector = TlsConnector::from(client.current());
        let connected = connector.connect("localhost".try_into().unwrap(), stream);
        let accepted = async { server.accept(listener.accept().await.unwrap().0).await };
        let (connected, accepted) = tokio::join!(connected, accepted);
        let ServerStream::Tls(accepted, _) = accepted.unwrap() else { panic!("the connection has no TLS") };
        let connected = connected.unwrap();
        let groups = [
            connected.get_ref().1.negotiated_key_exchange_group(),
            accepted.get_ref().1.negotiated_key_exchange_group(),
        ];
        assert_eq!(groups.map(|group| group.unwrap().name()), [NamedGroup::X25519MLKEM768; 2]);
    }

    /// The kind of the second handshake between these two.
    async fn second_handshake(server: ServerTlsConfig, client: ClientTlsConfig) -> HandshakeKind {
        let (server, client) = (ServerTls::load(&server).unwrap(), ClientTls::load(&client).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut kind = HandshakeKind::Full;
        for _ in 0..2 {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let connector = TlsConnector::from(client.current());
            let connected = connector.connect("localhost".try_into().unwrap(), stream);
            let accepted = async { server.accept(listener.accept().await.unwrap().0).await };
            let (connected, accepted) = tokio::join!(connected, accepted);
            let (mut connected, mut accepted) = (connected.unwrap(), accepted.unwrap());
            kind = connected.get_ref().1.handshake_kind().unwrap();
            // A ticket comes before the first byte of the server.
            accepted.write_all(b"x").await.unwrap();
            connected.read_exact(&mut [0]).await.unwrap();
        }
        kind
    }

    #[tokio::test]
    async fn each_connection_checks_the_client_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let (roots, certificates, private_key) = files(directory.path());
        let client = ClientTlsConfig {
            roots: roots.clone(),
            certificates: certificates.clone(),
            private_key: private_key.clone(),
        };
        for (client_roots, kind) in [(Some(roots), HandshakeKind::Full), (None, HandshakeKind::Resumed)] {
            let server = ServerTlsConfig {
                certificates: certificates.clone(),
                private_key: private_key.clone(),
                client_roots,
                client_certificate: ClientCertificate::Optional,
            };
            assert_eq!(second_handshake(server, client.clone()).await, kind);
        }
    }

    #[test]
    fn an_encrypted_private_key_is_rejected_in_plain_words() {
        let directory = tempfile::tempdir().unwrap();
        let (_, certificates, private_key) = files(directory.path());
        let encrypted = directory.path().join("encrypted.key");
        let made = std::process::Command::new("openssl")
            .args(["pkey", "-aes256", "-passout", "pass:test"])
            .arg("-in")
            .arg(&private_key)
            .arg("-out")
            .arg(&encrypted)
            .status()
            .expect("openssl is missing: install it");
        assert!(made.success());
        let config = ServerTlsConfig {
            certificates,
            private_key: encrypted,
            client_roots: None,
            client_certificate: ClientCertificate::default(),
        };
        let error = ServerTls::load(&config).err().unwrap();
        assert!(error.to_string().contains("the private key is encrypted"), "{error}");
    }
}
