//! Model checking of [`domain::rules`] and [`domain::pin_rules`] with stateright: every order of the steps of callers, the writer
//! of the store and crashes, within [`Limits`](card_model::Limits) of controls and [`Limits`](try_model::Limits) of tries.
//!
//! The models call the functions of `domain` themselves. They add what surrounds them: the reads and
//! retries of `crates/engine/src/pin/device_pin.rs`, and the group commit of `crates/store-embedded/src/writer.rs`.
//!
//! `cargo run -p pinseal-model -- CALLS CRASHES` checks larger limits than the tests do.

#![allow(clippy::indexing_slicing, missing_docs, reason = "a test that meets a surprise must fail")]

pub mod card_model;
pub mod report;
pub mod try_model;
