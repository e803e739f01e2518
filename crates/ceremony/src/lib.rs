//! Key ceremonies: the participants who manage the keys of a vault or token under dual control, and the signed transcript.
//!
//! ```text
//! session ──▶ roster (are the participants present enough?) ──▶ hsm::KeyStore (the keys) ──▶ transcript (signed, chained)
//! ```
//! A clear component or key never enters this crate: custodians type and read components inside `hsm`. The crate prints
//! nothing and asks nothing; `pinseal ceremony` is its command line.
//!
//! A verifier needs the transcript alone:
//!
//! ```
//! use ceremony::{roster::Roster, transcript::{Transcript, TranscriptError}};
//!
//! let roster = Roster::parse(r#"
//!     quorum = 2
//!     person = [
//!         { name = "lea", role = "leader", key = "0000000000000000000000000000000000000000000000000000000000000001" },
//!         { name = "alice", role = "custodian", key = "0000000000000000000000000000000000000000000000000000000000000002" },
//!         { name = "bob", role = "custodian", key = "0000000000000000000000000000000000000000000000000000000000000003" },
//!     ]
//! "#)?;
//! assert_eq!(roster.person.len(), 3);
//!
//! // A transcript that was cut, changed or not signed by enough participants is rejected, with the number of its line.
//! assert!(matches!(Transcript::read("{"), Err(TranscriptError::Line { line: 1, .. })));
//! # Ok::<(), ceremony::roster::RosterError>(())
//! ```

#![forbid(unsafe_code)]

pub mod action;
pub mod participant_key;
pub mod records;
pub mod roster;
pub mod session;
pub mod transcript;
pub mod transcript_file;
