//! `pinseal bench database`: SetPin by several engines on one PostgreSQL database, beside one engine on an embedded store.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use device::{Device, KeyBits};
use tokio::runtime::Builder;
use tonic::transport::Channel;

use super::{
    BenchError, LoadArguments, flow,
    processor_time::processor_seconds_of,
    report::{self, ConcurrencyResult},
    services::{self, WAITING_CHANGES_MAX, address_by_name},
};
use crate::commands::demo::TemporaryDirectory;
use config::ConfigError;
use engine::Engine;
use engine_server::{PostgresConfig, StoreConfig};
use net::{connect::channel, tls::ClientTls};

/// The arguments of `pinseal bench database`.
#[derive(Args)]
pub(crate) struct DatabaseArguments {
    /// A configuration of an engine: its [store.postgres] names the database, in which no other engine runs
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Engines on the database
    #[arg(long, default_value_t = 2, value_name = "N")]
    engines: usize,
    /// The process of a PostgreSQL server on this machine, to print its processor time: the first line of postmaster.pid
    #[arg(long, value_name = "PID")]
    postmaster: Option<u32>,
    #[command(flatten)]
    load: LoadArguments,
}

/// Engines under load, with one set of keys.
struct Group {
    engines: Vec<Engine>,
    client_tls: Option<ClientTls>,
}

impl Group {
    /// A channel to one of the engines in turn.
    fn channel(&self, number: usize) -> Result<Channel, BenchError> {
        let engine = self.engines.get(number % self.engines.len().max(1));
        let engine = engine.ok_or_else(|| BenchError::Load("no engine".to_owned()))?;
        Ok(channel(&address_by_name(engine.address().port(), self.client_tls.is_some())?, self.client_tls.clone())?)
    }

    async fn stop(self) -> Result<(), BenchError> {
        for engine in self.engines {
            engine.stop().await?;
        }
        Ok(())
    }
}

/// Measures both, in turn, and prints the figures.
pub(super) fn run(arguments: &DatabaseArguments) -> Result<(), BenchError> {
    let StoreConfig::Postgres(database) = StoreConfig::load(Some(&arguments.config))? else {
        return Err(ConfigError::value("store.postgres", "is missing: name a database").into());
    };
    let load = &arguments.load;
    let directory = TemporaryDirectory::unless(load.directory.as_deref())?;
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let (embedded, shared) = runtime.block_on(start(arguments, *database, directory.path()))?;
    let device = Device::generate(KeyBits::Rsa2048).map_err(|error| BenchError::Load(error.to_string()))?;
    let device = Arc::new(device);
    let database_seconds = || arguments.postmaster.map(processor_seconds_of).transpose();
    // The measurement, and the database's processor time a SetPin in microseconds.
    let measure = |group: &Group, concurrency| {
        let channel = |number| group.channel(number);
        let ready = flow::prepare(&runtime, &device, load.prepared, channel)?;
        let before = database_seconds()?;
        let measured = flow::set_by_grpc(load.shape(concurrency), &ready, channel)?;
        let used = before.zip(database_seconds()?).map(|(before, after)| after - before);
        let cost = used.map(|seconds| seconds * 1e6 / (measured.requests as f64).max(1.0));
        Ok::<_, BenchError>((measured, cost))
    };
    let (mut levels, mut costs) = (Vec::new(), Vec::new());
    for &concurrency in &load.concurrency {
        let (mut one, mut several) = (Vec::new(), Vec::new());
        for _ in 0..load.rounds.max(1) {
            one.push(measure(&embedded, concurrency)?.0);
            let (measured, cost) = measure(&shared, concurrency)?;
            several.push(measured);
            costs.extend(cost.map(|cost| (concurrency, cost)));
        }
        levels.extend(ConcurrencyResult::from_runs(concurrency, one, several));
    }
    report::print(["embedded", "database"], &levels, load.json.as_deref())?;
    let mut out = io::stdout().lock();
    for (concurrency, microseconds) in costs {
        writeln!(out, "database, {concurrency} in flight: {microseconds:.1} \u{b5}s of processor time a SetPin")?;
    }
    drop(out);
    runtime.block_on(async {
        shared.stop().await?;
        embedded.stop().await
    })
}

/// Starts one engine on an embedded store, and the engines on the database.
async fn start(
    arguments: &DatabaseArguments,
    database: PostgresConfig,
    directory: &Path,
) -> Result<(Group, Group), BenchError> {
    let load = &arguments.load;
    let (server_tls, client_tls) = services::transport(load, directory)?;
    let client_tls = client_tls.as_ref().map(ClientTls::load).transpose()?;
    let data = directory.join("data");
    let (engine, boundary) = services::engine(load, &data, server_tls.as_ref())?;
    let embedded = Engine::start(engine, services::embedded_store(&data).open().await?, boundary).await?;
    let mut engines = Vec::new();
    for number in 1..=arguments.engines.max(1) {
        let (mut engine, boundary) = services::engine(load, &data, server_tls.as_ref())?;
        let audit = directory.join(format!("audit-{number}"));
        engine.checkpoints.signing_key = audit.join("signing-key");
        engine.checkpoints.directory = audit;
        let store = PostgresConfig {
            engine_name: format!("{}-{number}", database.engine_name).into(),
            waiting_changes_max: WAITING_CHANGES_MAX,
            ..database.clone()
        };
        let store = StoreConfig::Postgres(Box::new(store)).open().await?;
        engines.push(Engine::start(engine, store, boundary).await?);
    }
    Ok((Group { engines: vec![embedded], client_tls: client_tls.clone() }, Group { engines, client_tls }))
}
