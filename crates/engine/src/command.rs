//! `pinseal engine` and `pinseal-engine`: load the configuration, serve until SIGTERM.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use config::ConfigError;
use hsm_client::{BoundaryError, OpenBoundary};
use net::stop::{Stop, say, warn};
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
    /// The configuration, in TOML; without it, embedded defaults under ./pinseal-data and 127.0.0.1:50051
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Opens a boundary in this process, from the configuration file.
pub type OpenInline = fn(Option<&Path>) -> Result<Box<dyn OpenBoundary>, ConfigError>;

/// Serves the engine until SIGTERM or Ctrl-C; reloads its keys on SIGHUP. `open_store` opens the store that the
/// configuration file names.
///
/// # Errors
/// The configuration cannot be served, or the engine did not start or not stop in order.
pub fn run(
    arguments: EngineArguments,
    open_inline: OpenInline,
    open_store: impl AsyncFnOnce(Option<&Path>) -> Result<Arc<dyn Store>, StoreOpenError>,
) -> Result<(), EngineCommandError> {
    take_memory_by_small_pages();
    let path = arguments.config.as_deref();
    let mut config = EngineConfig::load(path)?;
    let opener = match std::mem::replace(&mut config.boundary, BoundaryPlace::Inline) {
        BoundaryPlace::Process(process) => Box::new(process),
        BoundaryPlace::Inline => open_inline(path)?,
    };
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        // SIGHUP ends no service, from here on: not one that starts either.
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
            // A slow token, or a boundary that does not start, keeps nobody from stopping the engine.
            tokio::select! {
                () = stop.requested() => break,
                _ = engine.store_failure() => break,
                taken_up = engine.reload_keys() => match taken_up {
                    Ok(()) => say(format_args!("pinseal engine has reloaded {}", hsm_protocol::KeyId::list_to_text(engine.boundary().keys()))),
                    Err(ReloadError::Boundary(error)) => {
                        warn(format_args!("pinseal engine goes on with the keys it has: {error}"));
                    }
                    Err(error @ ReloadError::NotUsed) => warn(format_args!("pinseal engine: {error}")),
                },
            }
        }
        say(format_args!("pinseal engine stops: calls in flight finish first"));
        // Of a store that has failed this is the failure, and the exit code says so: a supervisor starts the engine again.
        Ok(engine.stop().await?)
    })
}

/// A huge page comes cleared, all 2 MiB of it, and the thread that touches it first waits: 5 ms on a virtual machine whose
/// host has to find the memory. Where that is the store's thread, every call waits with it. Kernels without huge pages
/// refuse.
pub fn take_memory_by_small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "transparent huge pages are left as the system has them");
    }
}

/// Why an engine ended in disorder.
#[derive(Debug, Error)]
pub enum EngineCommandError {
    /// The configuration cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine did not start.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// The store did not open.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
    /// The engine did not stop in order.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused a runtime or a signal handler.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl EngineCommandError {
    /// Whether a PKCS#11 token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::Engine(StartError::Boundary(BoundaryError::PinRefused(_))))
    }
}
