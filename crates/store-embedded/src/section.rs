//! The section `[store]` of an engine's configuration.

use std::path::{Path, PathBuf};

use config::{ConfigError, DATA_DIRECTORY, read_file, within};
use serde::Deserialize;

use crate::{Absent, EmbeddedConfig};

/// `[store]`, as written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// The store's directory; `{data_directory}/store` by default.
    directory: Option<PathBuf>,
    /// Changes that may wait for the disk at a time.
    waiting_changes_max: usize,
    /// Mebibytes of memory for the store's buffers, live controls not counted.
    memory_mebibytes_max: u64,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { directory: None, waiting_changes_max: 4_096, memory_mebibytes_max: 64 }
    }
}

impl StoreSection {
    /// Checks the ranges; `data` is the data directory.
    ///
    /// # Errors
    /// A number is out of its range.
    pub fn check(self, data: &Path) -> Result<EmbeddedConfig, ConfigError> {
        let mebibytes = within("store.memory_mebibytes_max", self.memory_mebibytes_max, 4..=65_536)?;
        Ok(EmbeddedConfig {
            directory: self.directory.unwrap_or_else(|| data.join("store")),
            waiting_changes_max: within("store.waiting_changes_max", self.waiting_changes_max, 16..=1_000_000)?,
            memory_bytes_max: mebibytes.saturating_mul(1 << 20),
            absent: Absent::Create,
        })
    }
}

/// What tells where the store of an engine is. An engine reads the rest of its file.
#[derive(Deserialize)]
#[serde(default)]
struct EngineFile {
    data_directory: PathBuf,
    store: StoreSection,
}

impl Default for EngineFile {
    fn default() -> Self {
        Self { data_directory: DATA_DIRECTORY.into(), store: StoreSection::default() }
    }
}

/// The directory of the store that an engine's configuration names, there or not. Reads no secret.
///
/// # Errors
/// The file is not a configuration.
pub fn configured_directory(path: &Path) -> Result<PathBuf, ConfigError> {
    let file = read_file::<EngineFile>(Some(path))?;
    Ok(file.store.check(&file.data_directory)?.directory)
}
