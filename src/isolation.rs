//! The isolation of the key boundary in the demo and the bench.

use std::path::Path;

use config::ConfigError;
use engine::{BoundaryPlace, EngineConfig};
use hsm_client::OpenBoundary;

use crate::inline_boundary::open_inline_in;

/// The process that runs the key boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Isolation {
    /// A separate, confined process.
    #[cfg_attr(target_os = "linux", default)]
    Process,
    /// The process of the engine.
    #[cfg_attr(not(target_os = "linux"), default)]
    Inline,
}

/// The embedded defaults of an engine with all files in `directory`, and the opener of its boundary.
///
/// # Errors
/// The path of this program is not known, or the configuration of the boundary is not valid.
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
