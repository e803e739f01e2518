//! The key ceremony: the custodians of the keys of a vault or a token, what each may do with whom, and the transcript of what was done.
//!
//! ```text
//! command ──▶ roster (who is there, is that enough) ──▶ hsm::KeyStore (the keys) ──▶ transcript (signed, chained)
//! ```
//! What must never enter: a clear component or key. They are typed and shown inside `hsm`.

pub mod action;
pub mod participant_key;
pub mod records;
pub mod roster;
pub mod session;
pub mod transcript;
pub mod transcript_file;
