//! `pinseal engine` and `pinseal-engine`: loads the configuration and serves until SIGTERM.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use config::ConfigError;
use hsm_client::{BoundaryError, OpenBoundary};
use net::stop::{Stop, say};
use store::{Store, StoreError, StoreOpenError};
use thiserror::Error;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use crate::{BoundaryPlace, Engine, EngineConfig, ReloadError, StartError};

/// The arguments of an engine.
#[derive(Args)]
pub struct EngineArguments {
    /// Configuration file, in TOML; without it: data in ./pinseal-data, listen on 127.0.0.1:50051
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Opens a key boundary inside this process, from the configuration file.
pub type OpenInline = fn(Option<&Path>) -> Result<Box<dyn OpenBoundary>, ConfigError>;

/// Serves the engine until SIGTERM or Ctrl-C; reloads its keys, peers and certificates on SIGHUP. `open_store` opens the
/// store that the configuration file names.
///
/// # Errors
/// The configuration is not valid, or the engine did not start or stop cleanly.
pub fn run(
    arguments: EngineArguments,
    open_inline: OpenInline,
    open_store: impl AsyncFnOnce(Option<&Path>) -> Result<Arc<dyn Store>, StoreOpenError>,
) -> Result<(), EngineCommandError> {
    disable_huge_pages();
    let path = arguments.config.as_deref();
    let mut config = EngineConfig::load(path)?;
    let opener = match std::mem::replace(&mut config.boundary, BoundaryPlace::Inline) {
        BoundaryPlace::Process(process) => Box::new(process),
        BoundaryPlace::Inline => open_inline(path)?,
    };
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        // Installed before the start: from here on SIGHUP does not end the process.
        let mut hangup = signal(SignalKind::hangup())?;
        let engine = Engine::start(config, open_store(path).await?, opener).await?;
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
                () = stop.requested() => break,
                _ = engine.store_failure() => break,
                _ = hangup.recv() => {}
            }
            engine.reload_certificates();
            reload_peers(&engine, path);
            // A stop does not wait for a slow token, or for a boundary that does not start.
            tokio::select! {
                () = stop.requested() => break,
                _ = engine.store_failure() => break,
                reloaded = engine.reload_keys() => match reloaded {
                    Ok(()) => {
                        let keys = hsm_protocol::KeyId::list_to_text(engine.boundary().keys());
                        tracing::info!(keys, "the reloaded keys are in use");
                    }
                    Err(ReloadError::Boundary(error)) => tracing::error!(%error, "the engine keeps the keys in use"),
                    Err(error @ ReloadError::NotUsed) => tracing::error!(%error, "the reloaded keys are not in use"),
                },
            }
        }
        say(format_args!("pinseal engine stops after the calls in flight"));
        // If the store has failed, this returns its failure. The exit code then lets a supervisor restart the engine.
        Ok(engine.stop().await?)
    })
}

/// Reads `[[peers]]` of the configuration file again. If the file is not valid, the engine keeps the peers that it has.
fn reload_peers(engine: &Engine, path: Option<&Path>) {
    if path.is_none() {
        return;
    }
    let replaced = EngineConfig::load(path)
        .map_err(EngineCommandError::from)
        .and_then(|config| Ok(engine.replace_peers(config.peers)?));
    match replaced {
        Ok(()) => tracing::info!("the peers were reloaded"),
        Err(error) => tracing::error!(%error, "the engine keeps its peers"),
    }
}

/// Disables transparent huge pages for this process. The kernel clears a huge page (2 MiB) at the first access, which takes
/// up to 5 ms on a virtual machine. If that is the store's thread, every call waits. Kernels without huge pages return an
/// error, which is logged at debug level.
pub fn disable_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "transparent huge pages keep the setting of the system");
    }
}

/// The error of the engine command.
#[derive(Debug, Error)]
pub enum EngineCommandError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// The store did not open.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
    /// The store failed, or the engine could not record its stop.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused a runtime or a signal handler.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl EngineCommandError {
    /// Whether a PKCS#11 token rejected the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::Engine(StartError::Boundary(BoundaryError::PinRefused(_))))
    }
}
