//! `pinseal bench floods`: the latency of good clients while an attacker floods the edge or the engine.
//!
//! One attacking thread has a bounded rate, and shares the cores with the services and the clients. So the figures show what a
//! frame of an attacker costs, not who wins a race for the processor.

mod attack;
mod frames;
mod good_client;
mod service_processes;

use std::{
    io::{self, Write},
    path::PathBuf,
    thread,
    time::Duration,
};

use clap::Args;
use device::{Device, KeyBits};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::{
    attack::{Attack, AttackCounts, AttackRates},
    good_client::ClientFigures,
    service_processes::{ServiceProcesses, Target, Usage},
};
use super::{Api, BenchError, Transport};
use crate::commands::demo::TemporaryDirectory;

/// The arguments of `pinseal bench floods`.
#[derive(Args)]
pub(crate) struct FloodArguments {
    /// Seconds of each measurement: one is quiet, one under each attack
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// PINs a second that each of the two good clients sets, one by HTTP and one by gRPC
    #[arg(long, default_value_t = 20.0, value_name = "N")]
    rate: f64,
    /// Frames a second of a flood
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    frames: u32,
    /// Connections of a slow attack
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    slow_connections: u32,
    /// Connections a second that an attacker opens
    #[arg(long, default_value_t = 500, value_name = "N")]
    opens: u32,
    /// The transports of all connections, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "plain,mtls")]
    transport: Vec<Transport>,
    /// The attacks; all by default
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME…", value_parser = Attack::parse)]
    attack: Vec<Attack>,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl FloodArguments {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.1, 3_600.0))
    }

    fn rates(&self) -> AttackRates {
        AttackRates { frames: self.frames, slow_connections: self.slow_connections, opens: self.opens }
    }

    fn has(&self, attack: Attack) -> bool {
        self.attack.is_empty() || self.attack.contains(&attack)
    }
}

/// Measures the good clients without and under each attack, and prints a table.
pub(super) fn run(arguments: &FloodArguments) -> Result<(), BenchError> {
    raise_open_files()?;
    let directory = TemporaryDirectory::unless(None)?;
    let device = Device::generate(KeyBits::Rsa2048).map_err(|error| BenchError::Load(error.to_string()))?;
    let device = device.into();
    let mut rows = Vec::new();
    writeln!(io::stdout(), "{HEAD}")?;
    for &transport in &arguments.transport {
        let services = ServiceProcesses::start(transport, &directory.path().join(name(transport)))?;
        let measure = || good_client::measure(&services, &device, arguments.duration(), arguments.rate);
        for target in Target::ALL {
            for attack in Attack::ALL.into_iter().filter(|attack| arguments.has(*attack)) {
                if !attack.applies_to(target, transport == Transport::Mtls) {
                    continue;
                }
                let quiet = measure()?;
                let usage = |target| services.service(target).usage();
                let before = [usage(Target::Edge)?, usage(Target::Engine)?];
                let (aim, rates) = (services.aim(target)?, arguments.rates());
                let (stop, stopped) = watch::channel(false);
                let (attacked, after, counts) = thread::scope(|scope| {
                    let attacker = scope.spawn(move || attack::run(attack, aim, rates, stopped));
                    let attacked = measure();
                    let after = [usage(Target::Edge), usage(Target::Engine)];
                    stop.send_replace(true);
                    let panicked = |_| Err(BenchError::Load("the attacker panicked".into()));
                    let counts = attacker.join().unwrap_or_else(panicked)?;
                    let [edge, engine] = after;
                    Ok::<_, BenchError>((attacked?, [edge?, engine?], counts))
                })?;
                let row = Row { transport, target, attack, quiet, attacked, before, after, counts };
                row.print()?;
                rows.push(row.json());
            }
        }
    }
    let Some(file) = &arguments.json else { return Ok(()) };
    Ok(std::fs::write(file, format!("{:#}\n", json!({ "attacks": rows })))?)
}

const HEAD: &str = "transport  target  attack              client    quiet p50    p99 µs  attacked p50    p99 µs  ratio  errors  \
                    edge MiB   engine MiB  cores: attacker  edge  engine  frames/s  opened  closed  calmed";

/// One attack.
struct Row {
    transport: Transport,
    target: Target,
    attack: Attack,
    quiet: [ClientFigures; 2],
    attacked: [ClientFigures; 2],
    before: [Usage; 2],
    after: [Usage; 2],
    counts: AttackCounts,
}

impl Row {
    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mebibytes = |bytes: u64| bytes >> 20;
        let memory = |before: &Usage, after: &Usage| {
            format!("{:>4}→{:<4}", mebibytes(before.resident_bytes), mebibytes(after.resident_bytes))
        };
        let ([edge_before, engine_before], [edge, engine]) = (&self.before, &self.after);
        for (quiet, attacked) in self.quiet.iter().zip(&self.attacked) {
            write!(
                out,
                "{:<9}  {:<6}  {:<18}  {:<6}  {:>11} {:>9}  {:>12} {:>9}  {:>5.1}  {:>6}",
                name(self.transport),
                self.target.name(),
                self.attack.name(),
                api_name(quiet.api),
                quiet.p50,
                quiet.p99,
                attacked.p50,
                attacked.p99,
                attacked.p99 as f64 / quiet.p99.max(1) as f64,
                quiet.errors + attacked.errors,
            )?;
            if quiet.api == Api::Http {
                let cores = |used: f64| used / attacked.seconds.max(f64::MIN_POSITIVE);
                write!(
                    out,
                    "  {}   {}  {:>15.2}  {:>4.2}  {:>6.2}  {:>8.0}  {:>6}  {:>6}  {:>6}",
                    memory(edge_before, edge),
                    memory(engine_before, engine),
                    cores(self.counts.processor_seconds.get()),
                    cores(edge.processor_seconds - edge_before.processor_seconds),
                    cores(engine.processor_seconds - engine_before.processor_seconds),
                    cores(self.counts.frames.get() as f64),
                    self.counts.connections.get(),
                    self.counts.closed.get(),
                    self.counts.calmed.get(),
                )?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let clients: Vec<Value> = self
            .quiet
            .iter()
            .zip(&self.attacked)
            .map(|(quiet, attacked)| json!({ "api": api_name(quiet.api), "quiet": quiet.json(), "attacked": attacked.json() }))
            .collect();
        let services: Vec<Value> = Target::ALL
            .iter()
            .zip(self.before.iter().zip(&self.after))
            .map(|(target, (before, after))| {
                json!({
                    "service": target.name(),
                    "resident_bytes_before": before.resident_bytes,
                    "resident_bytes_after": after.resident_bytes,
                    "processor_seconds": after.processor_seconds - before.processor_seconds,
                    "log_bytes": after.log_bytes - before.log_bytes,
                })
            })
            .collect();
        json!({
            "transport": name(self.transport),
            "target": self.target.name(),
            "attack": self.attack.name(),
            "clients": clients,
            "services": services,
            "attacker": {
                "connections": self.counts.connections.get(),
                "frames": self.counts.frames.get(),
                "closed": self.counts.closed.get(),
                "calmed": self.counts.calmed.get(),
                "processor_seconds": self.counts.processor_seconds.get(),
            },
        })
    }
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Plain => "plain",
        Transport::Mtls => "mtls",
    }
}

fn api_name(api: Api) -> &'static str {
    match api {
        Api::Http => "http",
        Api::Grpc => "grpc",
    }
}

/// Raises the limit of open files to what the system allows, for the connections of a slow attack.
fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
