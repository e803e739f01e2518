//! Certificates, keys and roots from files, and again when the files change.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::ClientConfig;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::ClientTlsConfig;
use super::{ServerTlsConfig, TlsError, provider};

/// How often the files are looked at, at most: when a connection comes, and this long after the last look.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A server's TLS, always of the newest files that fit together.
#[derive(Clone)]
pub struct ServerTls(Arc<Watched<ServerTlsConfig, ServerConfig>>);

impl ServerTls {
    /// Reads the files.
    pub fn load(config: &ServerTlsConfig) -> Result<Self, TlsError> {
        Watched::new(config.clone(), server_paths, server_config).map(Arc::new).map(Self)
    }

    /// Reads the files again where they changed.
    pub fn reload(&self) {
        self.0.look(Duration::ZERO);
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.look(LOOK_EVERY)
    }
}

/// A client's TLS, always of the newest files that fit together.
#[derive(Clone)]
pub struct ClientTls(Arc<Watched<ClientTlsConfig, ClientConfig>>);

impl ClientTls {
    /// Reads the files.
    pub fn load(config: &ClientTlsConfig) -> Result<Self, TlsError> {
        Watched::new(config.clone(), client_paths, client_config).map(Arc::new).map(Self)
    }

    /// Reads the files again where they changed.
    pub fn reload(&self) {
        self.0.look(Duration::ZERO);
    }

    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        self.0.look(LOOK_EVERY)
    }
}

/// Something made from files, made again when they change.
struct Watched<C, T> {
    config: C,
    paths: fn(&C) -> Vec<&Path>,
    make: fn(&C) -> Result<T, TlsError>,
    made: Mutex<Made<T>>,
}

struct Made<T> {
    value: Arc<T>,
    /// Of each file: modification time, size, inode.
    stamps: Vec<Option<(i64, i64, u64, u64)>>,
    looked: Instant,
}

impl<C, T> Watched<C, T> {
    fn new(config: C, paths: fn(&C) -> Vec<&Path>, make: fn(&C) -> Result<T, TlsError>) -> Result<Self, TlsError> {
        // Stamped before they are read: a change in between is seen at the next look.
        let stamps = stamps(&paths(&config));
        let value = Arc::new(make(&config)?);
        Ok(Self { config, paths, make, made: Mutex::new(Made { value, stamps, looked: Instant::now() }) })
    }

    /// The newest value that could be made. The files are looked at where the last look is at least this long ago.
    fn look(&self, every: Duration) -> Arc<T> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.looked.elapsed() >= every {
            made.looked = Instant::now();
            let stamps = stamps(&(self.paths)(&self.config));
            if stamps != made.stamps {
                made.stamps = stamps;
                match (self.make)(&self.config) {
                    Ok(value) => {
                        made.value = Arc::new(value);
                        tracing::info!("certificates were read again");
                    }
                    Err(error) => tracing::error!(%error, "new certificates are not used, the old ones go on serving"),
                }
            }
        }
        Arc::clone(&made.value)
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

fn server_config(config: &ServerTlsConfig) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unfit)?;
    let builder = match &config.client_roots {
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(unfit)?)
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = (certificates(&config.certificates)?, private_key(&config.private_key)?);
    let mut server = builder.with_single_cert(chain, key).map_err(unfit)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(server)
}

fn client_config(config: &ClientTlsConfig) -> Result<ClientConfig, TlsError> {
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unfit)?
        .with_root_certificates(roots(&config.roots)?)
        .with_client_auth_cert(certificates(&config.certificates)?, private_key(&config.private_key)?)
        .map_err(unfit)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(client)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::File { path: path.clone(), problem };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| problem(error.to_string()))?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| problem(error.to_string()))?;
    if chain.is_empty() { Err(problem("holds no certificate".into())) } else { Ok(chain) }
}

fn roots(path: &PathBuf) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let problem = |error: rustls::Error| TlsError::File { path: path.clone(), problem: error.to_string() };
        roots.add(certificate).map_err(problem)?;
    }
    Ok(roots)
}

fn private_key(path: &PathBuf) -> Result<PrivateKeyDer<'static>, TlsError> {
    let problem = |problem: String| TlsError::File { path: path.clone(), problem };
    let mode = fs::metadata(path).map_err(|error| problem(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(TlsError::OpenToOthers { path: path.clone() });
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| problem(error.to_string()))
}

fn unfit(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unfit(error.to_string())
}
