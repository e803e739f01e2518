//! `pinseal edge` and `pinseal-edge`: load the configuration, serve until SIGTERM.

use std::{io, path::PathBuf};

use clap::Args;
use config::ConfigError;
use net::stop::{Stop, say};
use thiserror::Error;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use crate::{Edge, EdgeConfig, EdgeError};

/// The arguments of an edge.
#[derive(Args)]
pub struct EdgeArguments {
    /// The configuration, in TOML; without it, 127.0.0.1:8080, the engine at 127.0.0.1:50051, and a fresh bearer token
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves the edge until SIGTERM or Ctrl-C; reads its certificates again on SIGHUP.
///
/// # Errors
/// The configuration cannot be served, or the edge did not stop in order.
pub fn run(arguments: EdgeArguments) -> Result<(), EdgeCommandError> {
    let config = EdgeConfig::load(arguments.config.as_deref())?;
    Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let made_token = config.made_token.clone();
        let mut hangup = signal(SignalKind::hangup())?;
        let edge = Edge::start(config).await?;
        let mut stop = Stop::listen()?;
        say(format_args!("pinseal edge listens on {}", edge.address()));
        if let Some(token) = made_token {
            say(format_args!("  no clients are configured; bearer token for this run: {}", token.as_str()));
        }
        loop {
            tokio::select! {
                () = stop.requested() => break,
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

/// Why an edge ended in disorder.
#[derive(Debug, Error)]
pub enum EdgeCommandError {
    /// The configuration cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The edge did not start, or did not stop in order.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The operating system refused a runtime or a signal handler.
    #[error(transparent)]
    Io(#[from] io::Error),
}
