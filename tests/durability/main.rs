//! No acknowledged PIN is lost when the engine is killed, or the disk fails or fills.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod command;
mod database_upkeep;
mod disk_shim;
mod kill;
mod killed_copy;
mod low_space;
mod power_cut;
mod small_disk;
mod store_failure;
mod three_engines;
mod tries;
mod upkeep;
