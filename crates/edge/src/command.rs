//! `pinseal edge` and `pinseal-edge`: loads the configuration and serves until SIGTERM.

use std::{
    io,
    path::{Path, PathBuf},
};

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
    /// Configuration file, in TOML, with at least one client; examples/edge.toml explains every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Serves the edge until SIGTERM or Ctrl-C; reloads its certificates and clients on SIGHUP.
///
/// # Errors
/// The configuration is not valid, or the edge did not start or stop cleanly.
pub fn run(arguments: EdgeArguments) -> Result<(), EdgeCommandError> {
    let config = EdgeConfig::load(&arguments.config)?;
    // The edge serves on threads of its own. A reload of slow files on this thread does not delay the health checks.
    Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        let mut hangup = signal(SignalKind::hangup())?;
        let edge = Edge::start(config).await?;
        let mut stop = Stop::listen()?;
        say(format_args!("pinseal edge listens on {}", edge.address()));
        if let Some(address) = edge.docs_address() {
            say(format_args!("pinseal edge serves /docs on {address}"));
        }
        loop {
            tokio::select! {
                () = stop.requested() => break,
                _ = hangup.recv() => reload(&edge, &arguments.config),
            }
        }
        say(format_args!("pinseal edge stops after the requests in flight"));
        Ok(edge.stop().await?)
    })
}

/// Reads the certificates, and `[[clients]]` of the configuration file with their secrets. If the file or a secret is not
/// valid, or a client needs a restart of the edge, the edge keeps the clients that it has.
fn reload(edge: &Edge, path: &Path) {
    edge.reload_certificates();
    let reloaded = EdgeConfig::load(path).and_then(|config| {
        let number = config.settings.clients.len();
        edge.replace_clients(config.settings.clients).map(|()| number)
    });
    match reloaded {
        Ok(clients) => {
            tracing::info!(
                clients,
                "the clients were reloaded; restart the edge to reload the rest of its configuration"
            );
        }
        Err(error) => tracing::error!(%error, "the edge keeps its clients"),
    }
}

/// The error of the edge command.
#[derive(Debug, Error)]
pub enum EdgeCommandError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The edge did not start or did not stop cleanly.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The operating system refused a runtime or a signal handler.
    #[error(transparent)]
    Io(#[from] io::Error),
}
