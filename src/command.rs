//! `pinseal engine` and `pinseal edge`: load the configuration, start, say where, serve until told to stop.

use std::{
    fmt,
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use thiserror::Error;
use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::config::{self, ConfigError};
#[cfg(feature = "engine")]
use crate::engine::TakeUpError;

/// `pinseal engine`.
#[derive(Args)]
pub struct EngineArguments {
    /// The configuration, in TOML; without it, embedded defaults under ./pinseal-data and 127.0.0.1:50051
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// `pinseal edge`.
#[derive(Args)]
pub struct EdgeArguments {
    /// The configuration, in TOML; without it, 127.0.0.1:8080, the engine at 127.0.0.1:50051, and a fresh bearer token
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves the engine until SIGTERM or Ctrl-C; takes up its keys on SIGHUP.
#[cfg(feature = "engine")]
pub fn engine(arguments: EngineArguments) -> Result<(), CommandError> {
    let config = config::Engine::load(arguments.config.as_deref())?;
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        // SIGHUP ends no service, from here on: not one that starts either.
        let mut take_up = signal(SignalKind::hangup())?;
        let engine = crate::engine::Engine::start(config).await?;
        let mut stop = Stop::listen()?;
        say(format_args!("pinseal engine listens on {}", engine.address()));
        for line in engine.boundary().lines() {
            say(format_args!("  {line}"));
        }
        if let Some(address) = engine.metrics_address() {
            say(format_args!("  metrics: http://{address}/metrics"));
        }
        loop {
            tokio::select! {
                () = stop.told() => break,
                _ = engine.store_failure() => break,
                _ = take_up.recv() => {}
            }
            // A slow token, or a boundary that does not start, keeps nobody from stopping the engine.
            tokio::select! {
                () = stop.told() => break,
                _ = engine.store_failure() => break,
                taken_up = engine.take_up_keys() => match taken_up {
                    Ok(()) => say(format_args!("pinseal engine has taken up {}", hsm::KeyId::list_to_text(engine.boundary().keys()))),
                    Err(TakeUpError::Boundary(error)) => {
                        warn(format_args!("pinseal engine goes on with the keys it has: {error}"));
                    }
                    Err(error @ TakeUpError::NotUsed) => warn(format_args!("pinseal engine: {error}")),
                },
            }
        }
        say(format_args!("pinseal engine stops: calls in flight finish first"));
        // Of a store that has failed this is the failure, and the exit code says so: a supervisor starts the engine again.
        Ok(engine.stop().await?)
    })
}

/// Serves the edge until SIGTERM or Ctrl-C; reads its certificates again on SIGHUP.
#[cfg(feature = "edge")]
pub fn edge(arguments: EdgeArguments) -> Result<(), CommandError> {
    let config = config::Edge::load(arguments.config.as_deref())?;
    Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let made_token = config.made_token.clone();
        let mut hangup = signal(SignalKind::hangup())?;
        let edge = crate::edge::Edge::start(config).await?;
        let mut stop = Stop::listen()?;
        say(format_args!("pinseal edge listens on {}", edge.address()));
        if let Some(token) = made_token {
            say(format_args!("  no clients are configured; bearer token for this run: {}", token.as_str()));
        }
        loop {
            tokio::select! {
                () = stop.told() => break,
                _ = hangup.recv() => {
                    edge.reload_certificates();
                    say(format_args!("pinseal edge reads its certificates again; for the rest of its configuration, restart it"));
                }
            }
        }
        say(format_args!("pinseal edge stops: requests in flight finish first"));
        Ok(edge.stop().await?)
    })
}

/// To whoever reads what a service prints; it serves on where nobody does any more.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(feature = "engine")]
fn warn(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// SIGTERM and SIGINT, listened for before it is told that anything serves: who knows of it may stop it in order.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From here on neither of them ends the process.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Until one of them has come, or had.
    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl CommandError {
    /// Whether a PKCS#11 token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        #[cfg(feature = "engine")]
        if let Self::Engine(crate::engine::StartError::Boundary(error)) = self {
            return error.refuses_user_pin();
        }
        false
    }
}

/// Why a service ended in disorder.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The configuration can't be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine did not start.
    #[cfg(feature = "engine")]
    #[error(transparent)]
    Engine(#[from] crate::engine::StartError),
    /// The engine did not stop in order.
    #[cfg(feature = "engine")]
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The edge did not start, or not stop in order.
    #[cfg(feature = "edge")]
    #[error(transparent)]
    Edge(#[from] crate::edge::EdgeError),
    /// The machine refused something.
    #[error("{0}")]
    Io(#[from] io::Error),
}
