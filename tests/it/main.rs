//! Whole-system stories against real parts: the built binary, real sockets, a real disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod bad_input;
mod engine_process;
mod house;
mod kill;
mod race;
