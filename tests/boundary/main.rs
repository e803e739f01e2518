//! The boundary's process: isolation, frames, memory, vault.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod frames;
mod isolation;
mod memory;
mod no_trace;
mod vault;
mod verification;
mod zones;
