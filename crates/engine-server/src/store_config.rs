//! The section `[store]` of an engine's configuration, and the store that it names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use config::{ConfigError, DATA_DIRECTORY, KnownKey, read_file, within};
use serde::Deserialize;
use store::{Store, StoreOpenError};
use store_embedded::{Embedded, EmbeddedConfig};

/// The checked section `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The directory of the store; made, with mode 0700, where it is absent.
    pub directory: PathBuf,
    /// The most changes that may wait for the disk; one more is refused as [`store::StoreError::Busy`].
    pub waiting_changes_max: usize,
    /// The memory of the store's buffers and caches, in bytes; live controls not counted.
    pub memory_bytes_max: u64,
    /// The free bytes on the store's disk below which no control is opened; 0 for never.
    pub reserve_bytes: u64,
}

impl StoreConfig {
    /// Reads `[store]` of an engine's configuration; without a path, the defaults. Reads no secret.
    ///
    /// # Errors
    /// The file can't be read, is not TOML, or `[store]` has an unknown key or a number out of its range.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = read_file::<EngineFile>(path)?;
        let StoreSection { directory, waiting_changes_max, memory_mebibytes_max, reserve_mebibytes } = file.store;
        let mebibytes = within("store.memory_mebibytes_max", memory_mebibytes_max, 4..=65_536)?;
        let reserve = within("store.reserve_mebibytes", reserve_mebibytes, 0..=1_048_576)?;
        Ok(Self {
            directory: directory.unwrap_or_else(|| file.data_directory.join("store")),
            waiting_changes_max: within("store.waiting_changes_max", waiting_changes_max, 16..=1_000_000)?,
            memory_bytes_max: mebibytes.saturating_mul(1 << 20),
            reserve_bytes: reserve.saturating_mul(1 << 20),
        })
    }

    /// The keys of a configuration file that the store reads.
    pub fn known_keys() -> Vec<KnownKey> {
        config::known_keys::<EngineFile>()
    }

    /// The defaults, with the store in `data_directory`.
    pub fn embedded(data_directory: &Path) -> Self {
        let StoreSection { waiting_changes_max, memory_mebibytes_max, reserve_mebibytes, .. } = StoreSection::default();
        Self {
            directory: data_directory.join("store"),
            waiting_changes_max,
            memory_bytes_max: memory_mebibytes_max.saturating_mul(1 << 20),
            reserve_bytes: reserve_mebibytes.saturating_mul(1 << 20),
        }
    }

    /// Opens the store, or makes one.
    ///
    /// # Errors
    /// Another process has the store open, other files are in its directory, it can't be read, or the disk is full.
    pub async fn open(self) -> Result<Arc<dyn Store>, StoreOpenError> {
        let Self { directory, waiting_changes_max, memory_bytes_max, reserve_bytes } = self;
        let defaults = EmbeddedConfig::new(directory);
        let config = EmbeddedConfig { waiting_changes_max, memory_bytes_max, reserve_bytes, ..defaults };
        Ok(Arc::new(Embedded::open(&config)?))
    }
}

/// Opens the store that an engine's configuration names; without a path, the store of the defaults.
///
/// # Errors
/// Those of [`StoreConfig::load`] and [`StoreConfig::open`].
pub async fn open_store(config: Option<&Path>) -> Result<Arc<dyn Store>, StoreOpenError> {
    StoreConfig::load(config)?.open().await
}

/// Opens the store of a stopped engine to read it, from a copy in `TMPDIR` that is removed when the store is dropped: no
/// byte of the store changes, and what is written to the copy is lost.
///
/// # Errors
/// There is no store in the directory, another process has the store open, or the store can't be copied or read.
pub fn open_store_copy(directory: &Path) -> Result<Arc<dyn Store>, StoreOpenError> {
    Ok(Arc::new(Embedded::open_copy(directory)?))
}

/// What says where the store of an engine is. The engine reads the rest of its file.
#[derive(Deserialize)]
#[serde(default)]
struct EngineFile {
    data_directory: PathBuf,
    store: StoreSection,
}

/// `[store]`, as written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StoreSection {
    /// The store's directory; `{data_directory}/store` by default.
    directory: Option<PathBuf>,
    /// Changes that may wait for the disk at a time.
    waiting_changes_max: usize,
    /// Mebibytes of memory for the store's buffers, live controls not counted.
    memory_mebibytes_max: u64,
    /// Mebibytes of free space below which no control is opened.
    reserve_mebibytes: u64,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { directory: None, waiting_changes_max: 4_096, memory_mebibytes_max: 64, reserve_mebibytes: 256 }
    }
}

impl Default for EngineFile {
    fn default() -> Self {
        Self { data_directory: DATA_DIRECTORY.into(), store: StoreSection::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Result<StoreConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        std::fs::write(&path, text).unwrap();
        StoreConfig::load(Some(&path)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_and_the_example_are_the_defaults() {
        let defaults = StoreConfig::embedded(Path::new(DATA_DIRECTORY));
        assert_eq!(loaded("").unwrap(), defaults);
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/engine.toml");
        let example = StoreConfig::load(Some(&example)).unwrap();
        assert_eq!(StoreConfig { directory: defaults.directory.clone(), ..example }, defaults);
    }

    #[test]
    fn an_unknown_key_and_a_number_out_of_its_range_are_named() {
        assert!(loaded("[store]\ndirectori = \"x\"").unwrap_err().contains("unknown field `directori`"));
        let refused = loaded("[store]\nwaiting_changes_max = 1").unwrap_err();
        assert_eq!(refused, "store.waiting_changes_max: 1 is not within 16 to 1000000");
        let refused = loaded("[store]\nreserve_mebibytes = 1048577").unwrap_err();
        assert_eq!(refused, "store.reserve_mebibytes: 1048577 is not within 0 to 1048576");
    }
}
