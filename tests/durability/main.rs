//! No acknowledged PIN is lost when the engine is killed or the disk fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod kill;
mod store_failure;
