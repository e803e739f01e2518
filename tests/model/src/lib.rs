//! Model checking of [`domain::rules`] with stateright: every order of the steps of three callers, the writer of the store and
//! crashes, within [`Limits`](card_model::Limits).
//!
//! The model calls the functions of `domain::rules` and [`domain::control`] themselves. It adds what surrounds them: the reads and
//! retries of `crates/engine/src/pin.rs`, and the group commit of `crates/store-embedded/src/writer.rs`.
//!
//! `cargo run -p pinseal-model -- CALLS CRASHES` checks larger limits than the tests do.

#![allow(clippy::indexing_slicing, missing_docs, reason = "a test that meets a surprise must fail")]

pub mod card_model;
pub mod report;
