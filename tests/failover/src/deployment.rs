//! Two engines on one database and one SoftHSM token, and an edge before each.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use audit::{chain::Checkpoint, tree_head::TreeHead};
use device::Tzpk;
use postgres_server::free_port;
use support::{
    ceremony::Ceremony,
    real_token::{Make, RealToken},
};
use tempfile::TempDir;

use crate::{
    guard::Notes,
    program::{Program, Service, Start, directory_in},
    times::LIFETIME_SECONDS,
};

/// The engines and edges, by side.
pub const SIDES: usize = 2;
/// The zone whose key an authorization host has. The host also sets PINs, as a client with a pre-shared key does.
const ZONE: &str = "[[zones]]\nname = \"app\"\ntenant = \"bank\"\nindex = 7\nformats = [\"iso-1\"]\nuses = [\"set-pin\", \"verify\", \"change\"]\n";
/// The tries of a card.
pub const TRIES: u32 = 3;

/// The running services. The fields end in this order.
pub struct Deployment {
    pub edges: Vec<Service>,
    pub engines: Vec<Service>,
    pub zone_key: Tzpk,
    addresses: Vec<Addresses>,
    directory: TempDir,
    _ceremony: Ceremony,
    _token: RealToken,
}

struct Addresses {
    engine: String,
    edge: String,
}

impl Deployment {
    /// Makes the token, and starts engines and edges. `store` returns the lines of `[store.postgres]` of an engine.
    pub fn start(store: impl Fn(&str) -> String, notes: &Notes) -> Self {
        let token = RealToken::with_keys(Make::SoftHsm);
        let ceremony = Ceremony::prepared_on(&token);
        ceremony.begin();
        let zone_key = ceremony.load_known("zone:app", 0x5B);
        let directory = tempfile::Builder::new().prefix("pinseal-failover-").tempdir().unwrap();
        let start = |name: &str, subcommand: &'static str, lines: &str, environment| {
            let place = directory_in(directory.path(), name);
            let config = place.join("config.toml");
            fs::write(&config, lines).unwrap();
            let (log, notes) = (place.join("log"), notes.clone());
            Service::start(Start { name: name.to_owned(), subcommand, config, log, environment, notes })
        };
        let (mut engines, mut edges, mut addresses) = (Vec::new(), Vec::new(), Vec::<Addresses>::new());
        for _ in 0..SIDES {
            let address = || format!("127.0.0.1:{}", free_port());
            addresses.push(Addresses { engine: address(), edge: address() });
        }
        for (side, Addresses { engine, edge }) in addresses.iter().enumerate() {
            let name = engine_name(side);
            let data = data_directory(directory.path(), side);
            let lines = engine_lines(engine, &data, &store(&name), &token);
            engines.push(start(&name, "engine", &lines, token.environment()));
            // The last edge has both engines, the others have their own.
            let reached = if side == SIDES - 1 { &addresses[..] } else { &addresses[side..=side] };
            let reached: Vec<_> = reached.iter().map(|addresses| format!("http://{}", addresses.engine)).collect();
            let client = support::edge_process::one_client(directory.path());
            let lines = format!("listen = {edge:?}\n[engine]\naddresses = {reached:?}\n{client}");
            edges.push(start(&edge_name(side), "edge", &lines, Vec::new()));
        }
        Self { edges, engines, zone_key, addresses, directory, _ceremony: ceremony, _token: token }
    }

    /// The base URL of an edge.
    pub fn edge_url(&self, side: usize) -> String {
        format!("http://{}", self.addresses[side].edge)
    }

    /// The URL of an engine's gRPC services.
    pub fn engine_url(&self, side: usize) -> String {
        format!("http://{}", self.addresses[side].engine)
    }

    /// Stops an engine, starts another process under its name while it is stopped, and continues it: the first one must end.
    /// Then the supervisor starts the engine at its address again.
    pub fn displace(&self, side: usize) {
        let engine = &self.engines[side];
        let exits = engine.exits().len();
        engine.freeze();
        let place = directory_in(self.directory.path(), &format!("twin-{side}-{exits}"));
        let (address, data) = (&self.addresses[side].engine, data_directory(self.directory.path(), side));
        let lines = fs::read_to_string(&engine.start.config).unwrap();
        let lines = lines.replace(address, &format!("127.0.0.1:{}", free_port()));
        let lines = lines.replace(data.to_str().unwrap(), place.join("data").to_str().unwrap());
        let config = place.join("config.toml");
        fs::write(&config, lines).unwrap();
        let twin = Program::start(&Start { config, log: place.join("log"), ..engine.start.clone() }, || true);
        let log = || fs::read_to_string(place.join("log")).unwrap();
        assert!(twin.is_some(), "the twin did not start: {}", log());
        engine.thaw();
        engine.wait_for_exit(exits);
    }

    /// The newest checkpoint of each engine, by the name of the engine, with a signature that was verified.
    pub fn checkpoints(&self) -> BTreeMap<String, Checkpoint> {
        let checkpoint = |side| {
            let audit = data_directory(self.directory.path(), side).join("audit");
            let read = |name: &str| fs::read_to_string(audit.join(name)).unwrap();
            let verifier = read("verifier-key").trim().parse().unwrap();
            (engine_name(side), TreeHead::open(&read("checkpoint"), &verifier).unwrap().head)
        };
        (0..SIDES).map(checkpoint).collect()
    }

    /// The last lines of each log, for a failure.
    pub fn logs(&self) -> String {
        let services = self.engines.iter().chain(&self.edges);
        let last = |service: &Service| {
            let text = fs::read_to_string(&service.start.log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            format!("{} (exits: {:?}):\n{tail}\n", service.start.name, service.exits())
        };
        services.map(last).collect()
    }
}

/// The name of an engine on the database.
pub fn engine_name(side: usize) -> String {
    format!("engine-{side}")
}

/// The name of an edge.
pub fn edge_name(side: usize) -> String {
    format!("edge-{side}")
}

fn data_directory(directory: &Path, side: usize) -> PathBuf {
    directory.join(engine_name(side)).join("data")
}

fn engine_lines(listen: &str, data: &Path, store: &str, token: &RealToken) -> String {
    format!(
        "listen = {listen:?}\ndata_directory = {data:?}\n\
         [control]\nlifetime_seconds = {LIFETIME_SECONDS}\nper_card_per_hour_max = 100000\n\
         [verification]\ntries_per_card = {TRIES}\n\
         {store}\n{}{ZONE}",
        token.lines()
    )
}
