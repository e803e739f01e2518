//! `pinseal demo`: sets and views a PIN on this machine, prints each step, then keeps serving for experiments,
//! also in a browser through a sample site with the web view.

mod bank_app;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use clap::Args;
use device::{
    Device, DeviceError, Fill, KeyBits, Pin,
    client::{Backend, ClientError, Scope},
};
use serde_json::json;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};
use uuid::Uuid;

use self::bank_app::{BankAppListener, PAGE_KEY};
use crate::commands::device::{SimulateError, Simulator, StepReporter};
use crate::isolation::{Isolation, embedded_engine};
use config::ConfigError;
use edge::{Edge, EdgeError};
use engine::{Engine, StartError};
use engine_client::{EngineTls, OperatorError, RunningEngine};
use engine_server::StoreConfig;
use net::stop::Stop;
use net::{
    connect::channel,
    tls::{TlsError, may_listen_edge},
};
use proto::{ExportAuditRequest, RegisterCardRequest, card_service_client::CardServiceClient};
use store::{StoreError, StoreOpenError};

/// The plasticId of the demo's card.
const PLASTIC_ID: &str = "1000200030";
/// The account number of the card, from a published test range.
const ACCOUNT_NUMBER: &str = "5413330089020011";
/// The account number as the sample site shows it.
const MASKED_ACCOUNT_NUMBER: &str = "5413 33•• •••• 0011";
/// The auditUser of every request of the demo.
const AUDIT_USER: &str = "demo";

/// The arguments of `pinseal demo`.
#[derive(Args)]
pub(crate) struct DemoArguments {
    /// Exit after the steps; exit code 0 only when every step succeeded
    #[arg(long)]
    once: bool,
    /// The directory of store and vault; by default a temporary one, removed at the end
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Write {"edge_url", "bearer_token", "engine_addr", "bank_app_url", "docs_url"} to this file once it serves
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Where the edge listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8_080)))]
    edge_listen: SocketAddr,
    /// Where the engine listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)))]
    engine_listen: SocketAddr,
    /// Where the sample site listens, a site with the web view; by default the port after the edge's, or a free one
    #[arg(long, value_name = "ADDR")]
    bank_app_listen: Option<SocketAddr>,
    /// Where the edge serves /docs, apart from its web view; by default the second port after the edge's, or a free one
    #[arg(long, value_name = "ADDR")]
    docs_listen: Option<SocketAddr>,
    /// Where the key boundary is
    #[arg(long, value_enum, default_value_t)]
    isolation: Isolation,
}

/// Runs the steps, then serves until Ctrl-C; with `--once` returns after the steps.
pub(crate) fn run(arguments: DemoArguments) -> Result<(), DemoError> {
    let made = TemporaryDirectory::unless(arguments.directory.as_deref())?;
    Builder::new_multi_thread().enable_all().build()?.block_on(serve_and_run(&arguments, made.path()))
}

async fn serve_and_run(arguments: &DemoArguments, directory: &Path) -> Result<(), DemoError> {
    // SIGHUP does not end the demo: a terminal that closes leaves it serving.
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut engine_config, boundary) = embedded_engine(directory, arguments.isolation)?;
    engine_config.listen = arguments.engine_listen;
    let store = StoreConfig::embedded(directory).open().await?;
    let engine = Engine::start(engine_config, store, boundary).await?;
    // The configuration of the edge names both addresses, so both listeners are bound first.
    may_listen_edge(arguments.edge_listen, None).map_err(EdgeError::from)?;
    let edge_listener = Edge::bind(arguments.edge_listen).await?;
    let edge_address = edge_listener.local_addr()?;
    let edge_url = format!("http://{edge_address}");
    let bank_app = BankAppListener::bind(arguments.bank_app_listen, edge_address).await?;
    let bank_app_url = bank_app.origin()?;
    let docs_listener = bind_after(edge_address, 2, arguments.docs_listen).await?;
    let docs_url = format!("http://{}", docs_listener.local_addr()?);
    let edge_config = edge::EdgeConfig::embedded(edge_address, engine.address())?;
    let edge_config = edge_config.with_page(&edge_url, PAGE_KEY, &bank_app_url)?;
    let token = edge_config.made_token.clone().unwrap_or_default();
    let edge = Edge::start_on(edge_listener, Some(docs_listener), edge_config).await?;

    let served = Served {
        engine: &engine,
        edge_url: &edge_url,
        token: &token,
        bank_app_url: &bank_app_url,
        docs_url: &docs_url,
        directory,
    };
    let steps = served.run_steps().await;
    if steps.is_ok() && !arguments.once {
        let mut stop = Stop::listen()?;
        let backend = Backend::with_bearer(&edge_url, &token, AUDIT_USER);
        let _bank_app = bank_app.serve(backend, &edge_url, PLASTIC_ID, MASKED_ACCOUNT_NUMBER)?;
        if let Some(file) = &arguments.ready_file {
            let ready = json!({
                "edge_url": edge_url, "bearer_token": token.as_str(), "engine_addr": engine.address().to_string(),
                "bank_app_url": bank_app_url, "docs_url": docs_url,
            });
            write_whole(file, &ready.to_string())?;
        }
        served.invite()?;
        loop {
            tokio::select! {
                () = stop.requested() => break,
                _ = engine.store_failure() => break,
                _ = hangup.recv() => tracing::warn!("SIGHUP changes nothing here: the demo's keys and tokens are of this run"),
            }
        }
    }
    let (edge_stopped, engine_stopped) = (edge.stop().await, engine.stop().await);
    // A store failure also fails the steps; its error names the cause, so it is returned first.
    engine_stopped?;
    steps?;
    Ok(edge_stopped?)
}

/// The addresses of the running services, for the printed steps.
struct Served<'a> {
    engine: &'a Engine,
    edge_url: &'a str,
    token: &'a str,
    bank_app_url: &'a str,
    docs_url: &'a str,
    directory: &'a Path,
}

impl Served<'_> {
    async fn run_steps(&self) -> Result<(), DemoError> {
        say(
            "Pinseal: a cardholder sets a PIN from a phone. Each step shows who holds a key, what is sent and what is stored.\n",
        )?;
        say("1. The issuer's services run")?;
        say(&format!("  engine (gRPC): {}   edge (HTTP): {}", self.engine.address(), self.edge_url))?;
        for line in self.engine.boundary().lines() {
            say(&format!("  {line}"))?;
        }
        say(&format!("  store and vault: {}", self.directory.display()))?;

        say("\n2. The card system registers a card (gRPC)")?;
        let masked = self.register().await?;
        say(&format!(
            "  card {PLASTIC_ID}, account number {masked}: stored sealed, shown masked; the card has no PIN yet (state W)"
        ))?;

        let (edge_url, token) = (self.edge_url.to_owned(), self.token.to_owned());
        tokio::task::spawn_blocking(move || run_device_steps(&edge_url, &token)).await.map_err(io::Error::other)??;

        say("\n7. The audit chain: action, card, outcome and formats of each request; never a PIN or a block")?;
        let mut engine = RunningEngine::at(&self.engine.address().to_string(), &EngineTls::default())?;
        let mut entries = engine.audit(ExportAuditRequest { start_sequence: 1, ..Default::default() }).await?;
        while let Some(entry) = entries.next().await? {
            let entry: serde_json::Value = serde_json::from_str(&entry.to_json()).map_err(io::Error::other)?;
            let text = |pointer: &str| entry.pointer(pointer).and_then(|text| text.as_str()).unwrap_or_default();
            let action = if text("/event/action").is_empty() { text("/event/type") } else { text("/event/action") };
            let formats = [text("/event/formats/from"), text("/event/formats/to")].join(" > ");
            let sequence = entry.get("sequence").and_then(serde_json::Value::as_u64).unwrap_or_default();
            let hash = text("/hash").chars().take(12).collect::<String>();
            say(&format!(
                "  {sequence:>3} {:<13} {:<17} {:<12} {:<14} chained by {hash}…",
                action,
                text("/event/card"),
                text("/outcome"),
                formats.trim_matches([' ', '>']),
            ))?;
        }
        Ok(())
    }

    async fn register(&self) -> Result<String, DemoError> {
        let mut cards = CardServiceClient::new(channel(&self.engine.address().into(), None)?);
        let request = RegisterCardRequest {
            tenant: "default".into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: PLASTIC_ID.into(),
            account_number: ACCOUNT_NUMBER.into(),
        };
        Ok(cards.register_card(request).await.map_err(rpc)?.into_inner().masked_account_number)
    }

    fn invite(&self) -> io::Result<()> {
        let Self { edge_url, token, bank_app_url, docs_url, .. } = self;
        say("\nServing until Ctrl-C. Try it:")?;
        say(&format!("  in a browser, a sample bank that sets and views the PIN: {bank_app_url}/"))?;
        say(&format!(
            "  curl -s -X POST '{edge_url}/pincontrol/v2/plastic/{PLASTIC_ID}?auditUser=me' \\\n    \
             -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d '{{\"scope\":\"SET_PIN\"}}'"
        ))?;
        say(&format!("  pinseal device view-pin --edge {edge_url} --token {token} --plastic-id {PLASTIC_ID}"))?;
        say(&format!("  reference and guide, in a browser: {docs_url}/docs"))
    }
}

/// The cardholder sets and views a PIN; a replay and a weak PIN are rejected.
fn run_device_steps(edge_url: &str, token: &str) -> Result<(), DemoError> {
    let device = Arc::new(Device::generate(KeyBits::Rsa2048)?);
    let simulator = Simulator::with(Arc::clone(&device), Backend::with_bearer(edge_url, token, AUDIT_USER));
    let mut reporter = StepReporter::Text;
    let chosen = Pin::parse("2580").map_err(SimulateError::from)?;

    say("\n3. The cardholder chooses a PIN on the phone; the phone has an RSA key pair")?;
    let control = simulator.set_pin(PLASTIC_ID, &chosen, &mut reporter)?;
    say(
        "  key boundary: decrypted the block, checked the PIN, re-encrypted it as ISO 9564 format 4 with the account number",
    )?;
    say(
        "    under the AES-256 storage key. On disk, in one transaction: PIN record, spent control, audit entry (state W to S)",
    )?;

    say("\n4. The cardholder looks at the PIN; the boundary encrypts it for this phone under a fresh tzpk")?;
    let shown = simulator.view_pin(PLASTIC_ID, &mut reporter)?;
    if shown.reveal() != chosen.reveal() {
        return Err(DemoError::Step("the PIN shown is not the PIN set"));
    }

    say("\n5. A control is good for one PIN: another block under the spent one")?;
    let replay = simulator.backend().set(&control, &[7; 8]).err();
    refused(replay, 404, "CONTROL_NOT_USABLE")?;

    say("\n6. A PIN that is easy to guess is refused inside the boundary; the cardholder may choose another")?;
    let (control, _) = simulator.backend().open_control(PLASTIC_ID, Scope::SetPin).map_err(SimulateError::from)?;
    let (tzpk, _) = simulator.backend().set_tzpk(&control, device.public_key_der()).map_err(SimulateError::from)?;
    let weak = device.encrypt_pin(&tzpk, &Pin::parse("1234").map_err(SimulateError::from)?, Fill::Random)?;
    refused(simulator.backend().set(&control, &weak).err(), 422, "PIN_REFUSED")
}

fn refused(answer: Option<ClientError>, expected_status: u16, expected_code: &str) -> Result<(), DemoError> {
    match answer {
        Some(ClientError::Refused { status, code, message, .. })
            if status == expected_status && code == expected_code =>
        {
            Ok(say(&format!("  edge: {status} {code}: {message}"))?)
        }
        _ => Err(DemoError::Step("a request that must be refused was accepted, or refused with another error")),
    }
}

/// Binds the address; without one, the port that is `offset` after the edge's, or a free one.
async fn bind_after(edge: SocketAddr, offset: u16, address: Option<SocketAddr>) -> io::Result<TcpListener> {
    let next = SocketAddr::new(edge.ip(), edge.port().checked_add(offset).filter(|port| *port > offset).unwrap_or(0));
    match TcpListener::bind(address.unwrap_or(next)).await {
        Err(_) if address.is_none() => TcpListener::bind(SocketAddr::new(edge.ip(), 0)).await,
        bound => bound,
    }
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Writes a new file of mode 0600 and renames it: a reader sees the whole content or no file.
fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", Uuid::new_v4().simple()));
    let fresh = PathBuf::from(name);
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    written.write_all(text.as_bytes())?;
    std::fs::rename(fresh, file)
}

fn rpc(status: tonic::Status) -> DemoError {
    DemoError::Rpc(status.message().to_owned())
}

/// A directory that is removed on drop, unless the user named it.
pub(crate) struct TemporaryDirectory {
    path: PathBuf,
    ours: bool,
}

impl TemporaryDirectory {
    /// The named directory, or a fresh one in the system's temporary directory.
    pub(crate) fn unless(given: Option<&Path>) -> io::Result<Self> {
        let Some(given) = given else {
            let name = format!("pinseal-{}-{}", process::id(), uuid::Uuid::new_v4().simple());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path)?;
            return Ok(Self { path, ours: true });
        };
        Ok(Self { path: given.to_owned(), ours: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The demo failed.
#[derive(Debug, Error)]
pub(crate) enum DemoError {
    /// A step had another result than expected.
    #[error("the demo failed: {0}")]
    Step(&'static str),
    /// The configuration of the demo's services is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// The store failed when the engine stopped.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store did not open.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
    /// The edge did not start or stop.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The engine's address is malformed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The audit chain can't be read from the engine.
    #[error(transparent)]
    Audit(#[from] OperatorError),
    /// The engine rejected a request.
    #[error("the engine refused: {0}")]
    Rpc(String),
    /// The simulated device or its back-end failed.
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    /// The simulated device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The operating system returned an error.
    #[error("{0}")]
    Io(#[from] io::Error),
}
