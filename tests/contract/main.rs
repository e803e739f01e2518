//! The public interfaces: HTTP, gRPC, clients by other authors.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod bad_input;
mod clients;
mod configuration;
mod contract;
mod device_clients;
mod docs_viewer;
mod grpc_calls;
mod health;
mod http;
mod reflection;
mod rights;
mod web_page;
