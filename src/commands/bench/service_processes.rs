//! An edge and an engine as two processes with their default limits.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    BenchError, Transport,
    process_memory::ProcessMemory,
    processor_time::{children_of, processor_seconds_of},
    services::{address_by_name, certificates},
};
use net::{
    EngineAddress,
    tls::{ClientTls, ClientTlsConfig},
};

/// The environment variable of the edge with the token of its client.
const TOKEN_VARIABLE: &str = "PINSEAL_BENCH_TOKEN";
/// The longest time for a service to listen.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// A service that listens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Edge,
    Engine,
}

impl Target {
    pub(super) const ALL: [Self; 2] = [Self::Edge, Self::Engine];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Engine => "engine",
        }
    }
}

/// Where and how to connect to a service.
#[derive(Clone)]
pub(super) struct Aim {
    pub(super) target: Target,
    pub(super) address: EngineAddress,
    pub(super) tls: Option<ClientTls>,
}

/// The running services.
pub(super) struct ServiceProcesses {
    engine: ServiceProcess,
    edge: ServiceProcess,
    tls: Option<ClientTls>,
    /// The token of the edge's client.
    pub(super) token: String,
}

impl ServiceProcesses {
    /// Starts the services on free ports of loopback.
    pub(super) fn start(transport: Transport, directory: &Path) -> Result<Self, BenchError> {
        fs::create_dir(directory)?;
        let (engine_port, edge_port) = (free_port()?, free_port()?);
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut engine = format!(
            "listen = \"127.0.0.1:{engine_port}\"\ndata_directory = {:?}\n[control]\nper_card_per_hour_max = 1000000\n",
            directory.join("data")
        );
        let mut edge = format!("listen = \"127.0.0.1:{edge_port}\"\n[engine]\n");
        let tls = match transport {
            Transport::Plain => {
                _ = writeln!(edge, "addresses = [\"http://127.0.0.1:{engine_port}\"]");
                None
            }
            Transport::Mtls => {
                let pki = directory.join("pki");
                let (server, client) = certificates(&pki)?;
                let files =
                    format!("certificates = {:?}\nprivate_key = {:?}\n", server.certificates, server.private_key);
                _ = write!(engine, "[tls]\n{files}client_roots = {:?}\n", client.roots);
                for peer in ["edge", "client"] {
                    _ = write!(
                        engine,
                        "[[peers]]\ncertificate_name = \"{peer}.pinseal.test\"\nroles = [\"edge-set\", \"edge-view\"]\n"
                    );
                }
                let ClientTlsConfig { roots, .. } = &client;
                _ = write!(
                    edge,
                    "addresses = [\"https://localhost:{engine_port}\"]\ntls = {{ roots = {roots:?}, certificates = {:?}, \
                     private_key = {:?} }}\n[tls]\n{files}",
                    pki.join("edge.pem"),
                    pki.join("edge.key")
                );
                Some(ClientTls::load(&client)?)
            }
        };
        _ = write!(
            edge,
            "[[clients]]\nname = \"bench\"\ntenant = \"http\"\nbearer = {{ env = \"{TOKEN_VARIABLE}\" }}\n"
        );
        let engine = ServiceProcess::start(Target::Engine, &engine, engine_port, directory, &token)?;
        let edge = ServiceProcess::start(Target::Edge, &edge, edge_port, directory, &token)?;
        Ok(Self { engine, edge, tls, token })
    }

    pub(super) fn service(&self, target: Target) -> &ServiceProcess {
        match target {
            Target::Edge => &self.edge,
            Target::Engine => &self.engine,
        }
    }

    /// The process of the key boundary, which the engine started.
    pub(super) fn boundary_id(&self) -> Result<u32, BenchError> {
        let boundary = children_of(self.engine.id())?.first().copied();
        boundary.ok_or_else(|| BenchError::Load("the engine has no boundary process".into()))
    }

    pub(super) fn aim(&self, target: Target) -> Result<Aim, BenchError> {
        let address = address_by_name(self.service(target).port, self.tls.is_some())?;
        Ok(Aim { target, address, tls: self.tls.clone() })
    }
}

/// An engine without an edge.
pub(super) struct EngineAlone {
    engine: ServiceProcess,
    pub(super) address: EngineAddress,
    pub(super) tls: ClientTls,
}

impl EngineAlone {
    /// Starts an engine with mutual TLS on a free port of loopback. `config` has its other keys and sections.
    pub(super) fn start(config: &str, directory: &Path) -> Result<Self, BenchError> {
        let port = free_port()?;
        let (server, client) = certificates(&directory.join("pki"))?;
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\n{config}[tls]\ncertificates = {:?}\nprivate_key = {:?}\nclient_roots = {:?}\n\
             [[peers]]\ncertificate_name = \"client.pinseal.test\"\nroles = [\"zone-set\", \"authorization-host\"]\n",
            server.certificates, server.private_key, client.roots
        );
        let engine = ServiceProcess::start(Target::Engine, &config, port, directory, "")?;
        Ok(Self { engine, address: address_by_name(port, true)?, tls: ClientTls::load(&client)? })
    }

    /// What the engine has used.
    pub(super) fn usage(&self) -> Result<Usage, BenchError> {
        self.engine.usage()
    }
}

/// A running service; killed when dropped.
pub(super) struct ServiceProcess {
    child: Child,
    pub(super) port: u16,
    log: PathBuf,
}

impl ServiceProcess {
    fn start(target: Target, config: &str, port: u16, directory: &Path, token: &str) -> Result<Self, BenchError> {
        let file = directory.join(target.name()).with_extension("toml");
        let log = file.with_extension("log");
        fs::write(&file, config)?;
        let child = Command::new(env::current_exe()?)
            .args([target.name(), "--config"])
            .arg(&file)
            .env(TOKEN_VARIABLE, token)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut service = Self { child, port, log };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if service.child.try_wait()?.is_some() || began.elapsed() > START_TIME_MAX {
                let log = fs::read_to_string(&service.log).unwrap_or_default();
                return Err(BenchError::Load(format!("the {} did not start: {log}", target.name())));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(service)
    }

    /// The number of the process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the service has used.
    pub(super) fn usage(&self) -> Result<Usage, BenchError> {
        Ok(Usage {
            resident_bytes: ProcessMemory::read(self.id())?.resident_bytes,
            processor_seconds: processor_seconds_of(self.id())?,
            log_bytes: fs::metadata(&self.log)?.len(),
        })
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The use of the machine by a service.
#[derive(Clone, Copy)]
pub(super) struct Usage {
    /// Without the process of the key boundary.
    pub(super) resident_bytes: u64,
    /// With the process of the key boundary, since the start.
    pub(super) processor_seconds: f64,
    pub(super) log_bytes: u64,
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
