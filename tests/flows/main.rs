//! Requests through the engine and the edge, rotation of keys, audit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod apart;
mod audit;
mod audit_evidence;
mod audited_refusal;
mod bulk_files;
mod busy;
mod client_certificate;
mod connection_age;
mod connections;
mod device_over_tls;
mod edge_streams;
mod events;
mod export_reconnects;
mod fairness;
mod floods;
mod hangup;
mod oaep;
mod operator_log;
mod pre_shared;
mod race;
mod register_cards;
mod reload;
mod rotation;
mod several_engines;
mod small_binaries;
mod streams;
mod verification;
mod web_view;
mod zones;
