//! The audit chain: typed events, the entries that chain them by SHA-256, the Merkle tree over the entries with its signed
//! checkpoints, and the verification of all three. No I/O, no clock.
//!
//! An event must never contain a PIN block (not even encrypted), a hash of a PIN block, or a full account number. The only
//! hash of a card number is the keyed [`card_reference`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use audit::chain::ChainVerifier;
//! use audit::entry::{Body, Entry, Event, Isolation, Level, Outcome, Stamp};
//!
//! let stamp =
//!     Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: Box::default() };
//! let event = Event {
//!     at: domain::time::UnixMillis(1_790_000_000_000),
//!     caller: "engine".into(),
//!     tenant: None,
//!     audit_user: "engine".into(),
//!     request: None,
//!     outcome: Outcome::Done,
//!     stamp: Arc::new(stamp),
//!     body: Body::EngineStopped,
//! };
//! let first = Entry::chain(1, [0; 32], event);
//!
//! let mut verifier = ChainVerifier::new(Vec::new());
//! verifier.check(&first)?;
//! assert_eq!(verifier.finish()?.hash, first.hash);
//! # Ok::<(), audit::chain::ChainError>(())
//! ```

pub mod archive;
pub mod card_reference;
pub mod chain;
pub mod ecs;
pub mod entry;
pub mod items_root;
pub mod note;
pub mod tree;
pub mod tree_head;
