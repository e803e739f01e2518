//! Where the key boundary of the demo and of the bench is.

use std::path::Path;

use config::ConfigError;
use engine::{BoundaryPlace, EngineConfig};
use hsm_client::OpenBoundary;

use crate::inline_boundary::open_inline_in;

/// Where the key boundary of an engine on embedded defaults is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Isolation {
    /// In a process of its own, confined.
    #[cfg_attr(target_os = "linux", default)]
    Process,
    /// In the engine's.
    #[cfg_attr(not(target_os = "linux"), default)]
    Inline,
}

/// The embedded defaults of an engine, with everything kept in `directory`, and its boundary.
///
/// # Errors
/// The embedded defaults do not fit this machine.
pub(crate) fn embedded_engine(
    directory: &Path,
    isolation: Isolation,
) -> Result<(EngineConfig, Box<dyn OpenBoundary>), ConfigError> {
    let mut config = EngineConfig::embedded(directory)?;
    let opener = match (isolation, std::mem::replace(&mut config.boundary, BoundaryPlace::Inline)) {
        (Isolation::Process, BoundaryPlace::Process(process)) => Box::new(process) as Box<dyn OpenBoundary>,
        _ => open_inline_in(directory)?,
    };
    Ok((config, opener))
}
