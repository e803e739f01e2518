//! Whole-system stories against real parts: the built binary, real sockets, a real disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod apart;
mod audit;
mod bad_input;
mod ceremony;
mod ceremony_step;
mod clients;
mod connections;
mod container;
mod contract;
mod edge_process;
mod engine_process;
mod frames;
mod hangup;
mod health;
mod hsm_process;
mod isolation;
mod kill;
mod known;
mod memory;
mod no_trace;
mod person_token;
mod race;
mod real_token;
mod reflection;
mod rights;
mod rotation;
mod store_failure;
mod take_up;
mod token;
mod vault;
