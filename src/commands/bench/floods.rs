//! `pinseal bench floods`: the latency of good clients while an attacker floods the edge or the engine.
//!
//! One attacking thread has a bounded rate, and shares the cores with the services and the clients. So the figures show what a
//! frame of an attacker costs, not who wins a race for the processor.

mod attack;
mod frames;
mod good_client;

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
};
use super::{
    Api, BenchError, Transport,
    service_processes::{Aim, ServiceProcesses, Target, Usage},
};
use crate::commands::demo::TemporaryDirectory;

/// The arguments of `pinseal bench floods`.
#[derive(Args)]
pub(crate) struct FloodArguments {
    /// Seconds of each measurement: in each round one is quiet, one under the attack
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// Rounds of each attack; the one with the median p99 is printed
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
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
                let aim = services.aim(target)?;
                let round = || Round::measure(&services, attack, &aim, arguments.rates(), &measure);
                let rounds = (0..arguments.rounds.max(1)).map(|_| round()).collect::<Result<Vec<_>, _>>()?;
                let row = Row { transport, target, attack, rounds };
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

/// One measurement without and one under an attack.
struct Round {
    quiet: [ClientFigures; 2],
    attacked: [ClientFigures; 2],
    /// Of the edge and of the engine.
    before: [Usage; 2],
    after: [Usage; 2],
    counts: AttackCounts,
}

impl Round {
    fn measure(
        services: &ServiceProcesses,
        attack: Attack,
        aim: &Aim,
        rates: AttackRates,
        measure: &(impl Fn() -> Result<[ClientFigures; 2], BenchError> + Sync),
    ) -> Result<Self, BenchError> {
        let usage = || {
            let [edge, engine] = Target::ALL.map(|target| services.service(target).usage());
            Ok::<_, BenchError>([edge?, engine?])
        };
        let (quiet, before) = (measure()?, usage()?);
        let (stop, stopped) = watch::channel(false);
        thread::scope(|scope| {
            let attacker = scope.spawn(move || attack::run(attack, aim.clone(), rates, stopped));
            let attacked = measure();
            let after = usage();
            stop.send_replace(true);
            let panicked = |_| Err(BenchError::Load("the attacker panicked".into()));
            let counts = attacker.join().unwrap_or_else(panicked)?;
            Ok(Self { quiet, attacked: attacked?, before, after: after?, counts })
        })
    }
}

/// One attack.
struct Row {
    transport: Transport,
    target: Target,
    attack: Attack,
    rounds: Vec<Round>,
}

impl Row {
    /// The client of this number, quiet and attacked: each the round with the median p99.
    fn median(&self, client: usize) -> Option<[&ClientFigures; 2]> {
        let median = |figures: fn(&Round) -> &[ClientFigures; 2]| {
            let mut rounds: Vec<_> = self.rounds.iter().filter_map(|round| figures(round).get(client)).collect();
            rounds.sort_by_key(|figures| figures.p99);
            rounds.get(rounds.len() / 2).copied()
        };
        Some([median(|round| &round.quiet)?, median(|round| &round.attacked)?])
    }

    fn clients(&self) -> impl Iterator<Item = [&ClientFigures; 2]> {
        (0..2).filter_map(|client| self.median(client))
    }

    fn errors(&self, client: usize) -> u64 {
        let of = |round: &Round| round.quiet.iter().zip(&round.attacked).nth(client).map(|(a, b)| a.errors + b.errors);
        self.rounds.iter().filter_map(of).sum()
    }

    fn sum(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        self.rounds.iter().map(figure).sum()
    }

    /// Of the service of this number, before the first round and after the last.
    fn memory(&self, service: usize) -> (u64, u64) {
        let bytes = |usage: Option<&[Usage; 2]>| {
            usage.and_then(|usage| usage.get(service)).map_or(0, |usage| usage.resident_bytes)
        };
        (bytes(self.rounds.first().map(|round| &round.before)), bytes(self.rounds.last().map(|round| &round.after)))
    }

    fn used(&self, service: usize, figure: fn(&Usage) -> f64) -> f64 {
        let of = |usage: &[Usage; 2]| usage.get(service).map_or(0.0, figure);
        self.sum(|round| of(&round.after) - of(&round.before))
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let seconds =
            self.sum(|round| round.attacked.first().map_or(0.0, |client| client.seconds)).max(f64::MIN_POSITIVE);
        for (number, [quiet, attacked]) in self.clients().enumerate() {
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
                self.errors(number),
            )?;
            if quiet.api == Api::Http {
                let memory = |service| {
                    let (before, after) = self.memory(service);
                    format!("{:>4}→{:<4}", before >> 20, after >> 20)
                };
                write!(
                    out,
                    "  {}   {}  {:>15.2}  {:>4.2}  {:>6.2}  {:>8.0}  {:>6}  {:>6}  {:>6}",
                    memory(0),
                    memory(1),
                    self.sum(|round| round.counts.processor_seconds.get()) / seconds,
                    self.used(0, |usage| usage.processor_seconds) / seconds,
                    self.used(1, |usage| usage.processor_seconds) / seconds,
                    self.sum(|round| round.counts.frames.get() as f64) / seconds,
                    self.sum(|round| round.counts.connections.get() as f64),
                    self.sum(|round| round.counts.closed.get() as f64),
                    self.sum(|round| round.counts.calmed.get() as f64),
                )?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let clients: Vec<Value> = self
            .clients()
            .enumerate()
            .map(|(number, [quiet, attacked])| {
                json!({
                    "api": api_name(quiet.api),
                    "quiet": quiet.json(),
                    "attacked": attacked.json(),
                    "errors": self.errors(number),
                })
            })
            .collect();
        let service = |(number, target): (usize, &Target)| {
            let (before, after) = self.memory(number);
            json!({
                "service": target.name(),
                "resident_bytes_before": before,
                "resident_bytes_after": after,
                "processor_seconds": self.used(number, |usage| usage.processor_seconds),
                "log_bytes": self.used(number, |usage| usage.log_bytes as f64),
            })
        };
        let sum = |count: fn(&AttackCounts) -> u64| self.rounds.iter().map(|round| count(&round.counts)).sum::<u64>();
        json!({
            "transport": name(self.transport),
            "target": self.target.name(),
            "attack": self.attack.name(),
            "clients": clients,
            "services": Target::ALL.iter().enumerate().map(service).collect::<Vec<_>>(),
            "attacker": {
                "connections": sum(|counts| counts.connections.get()),
                "frames": sum(|counts| counts.frames.get()),
                "closed": sum(|counts| counts.closed.get()),
                "calmed": sum(|counts| counts.calmed.get()),
                "processor_seconds": self.sum(|round| round.counts.processor_seconds.get()),
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
