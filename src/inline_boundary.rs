//! The key boundary in the engine's process, for machines without Landlock or seccomp, and for comparisons of speed.

use std::{path::Path, sync::Arc};

use config::ConfigError;
use hsm::{Error, Hsm, Reply, Request, Status};
use hsm_client::{AbsentKeys, Answer, Boundary, BoundaryError, OpenBoundary};
use hsm_config::HsmProcess;
use tokio::sync::watch;

/// Opens the boundary of a configuration file in this process.
///
/// # Errors
/// [`ConfigError`]: the file is missing or wrong.
pub(crate) fn open_inline(path: Option<&Path>) -> Result<Box<dyn OpenBoundary>, ConfigError> {
    Ok(Box::new(InlineOpener(HsmProcess::load_inline(path)?)))
}

/// Opens the vault in `directory` in this process, with the default settings.
///
/// # Errors
/// [`ConfigError`]: this machine does not support the defaults.
pub(crate) fn open_inline_in(directory: &Path) -> Result<Box<dyn OpenBoundary>, ConfigError> {
    Ok(Box::new(InlineOpener(HsmProcess::embedded_inline(directory)?)))
}

struct InlineOpener(hsm::Config);

impl OpenBoundary for InlineOpener {
    fn open(
        self: Box<Self>,
        _connections: usize,
        absent: AbsentKeys,
    ) -> Answer<'static, Result<Arc<dyn Boundary>, BoundaryError>> {
        let mut config = self.0;
        config.absent_vault = match absent {
            AbsentKeys::Create => hsm::AbsentVault::Create,
            AbsentKeys::Refuse => hsm::AbsentVault::Refuse,
        };
        Box::pin(async move {
            let hsm = Hsm::open(config).map_err(|error| match error.refuses_user_pin() {
                true => BoundaryError::PinRefused(error.to_string()),
                false => BoundaryError::Closed(error.to_string()),
            })?;
            // Without a sender, because the status of this boundary never changes.
            let (_, status) = watch::channel(Arc::new(hsm.status().clone()));
            Ok(Arc::new(InlineBoundary { hsm: Arc::new(hsm), status }) as Arc<dyn Boundary>)
        })
    }
}

struct InlineBoundary {
    hsm: Arc<Hsm>,
    status: watch::Receiver<Arc<Status>>,
}

impl Boundary for InlineBoundary {
    fn for_thread(&self, _number: usize) -> Arc<dyn Boundary> {
        Arc::new(Self { hsm: Arc::clone(&self.hsm), status: self.status.clone() })
    }

    fn watched(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>> {
        Box::pin(async { Err(BoundaryError::ReloadInline) })
    }

    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>> {
        Box::pin(self.hsm.execute(request))
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {})
    }
}
