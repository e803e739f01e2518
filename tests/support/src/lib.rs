//! What the integration tests share: processes of the built program, tokens, ceremonies and certificates.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that meets a surprise must fail"
)]

pub mod ceremony;
pub mod certificates;
pub mod edge_process;
pub mod engine_process;
pub mod hsm_process;
pub mod java;
pub mod known;
pub mod real_token;
pub mod rotation;
pub mod wait;

use std::sync::LazyLock;

/// The built program: `target/<profile>/pinseal`, beside the directory of the test binary.
pub fn pinseal_path() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| {
        let test = std::env::current_exe().unwrap();
        test.parent().unwrap().with_file_name("pinseal").to_str().unwrap().to_owned()
    });
    &PATH
}
