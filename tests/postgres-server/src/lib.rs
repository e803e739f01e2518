//! A PostgreSQL server of Debian's package for one test, and the stop of every process of a server or service.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that meets a surprise must fail"
)]

pub mod process_tree;
mod server;

pub use server::{PATIENCE, Server, free_port, until};
