//! The choice of the engine's store: the one place that names the stores of this release. Only programs link it.
//!
//! ```
//! use engine_server::StoreConfig;
//!
//! let StoreConfig::Embedded(config) = StoreConfig::load(None)? else { panic!("the default is an embedded store") };
//! assert_eq!(config.directory, std::path::Path::new("pinseal-data/store"));
//! # Ok::<(), config::ConfigError>(())
//! ```

pub mod database;
mod postgres_section;
mod store_config;
mod store_upkeep;

pub use self::{
    store_config::{StoreConfig, open_store, open_store_copy},
    store_upkeep::{StorePlace, audit_user, back_up_store, check_store, copy_store, restore_store, salvage_store},
};
pub use store_embedded::EmbeddedConfig;
pub use store_postgres::PostgresConfig;
