//! Key ceremonies by the built program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod ceremony;
mod ceremony_step;
mod one_way;
mod person_token;
mod zone_keys;
