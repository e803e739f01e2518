//! The rules of cards and controls: pure, no I/O, no clock, no cipher.
//!
//! [`rules`] says what each change does. The other modules hold what the rules are about, and the limits of the fields that
//! callers send.
//!
//! What must never enter: a clear PIN, block or key, an account number that is not sealed.
//!
//! ```
//! use std::time::Duration;
//!
//! use domain::card::{CardKey, PlasticId, Tenant};
//! use domain::control::{ControlId, Denied, NewControl, Scope};
//! use domain::rules::{self, Admission, UnknownCards};
//! use domain::time::UnixMillis;
//!
//! let card = CardKey { tenant: Tenant::parse("bank")?, plastic: PlasticId::parse("1000200030")? };
//! let lifetime = Duration::from_secs(30);
//! let new = NewControl { id: ControlId::random(), card, scope: Scope::SetPin, lifetime, device_key: None };
//! let admission = Admission { controls_per_card_per_hour: 1, unknown_cards: UnknownCards::Accept };
//!
//! let now = UnixMillis(1_767_225_600_000);
//! let (state, control) = rules::open(None, new.clone(), admission, now).unwrap();
//! assert_eq!(control.expires_at, now.after(lifetime));
//!
//! let denied = rules::open(Some(state), new, admission, now).err();
//! assert_eq!(denied, Some(Denied::Cap { cap: 1 }));
//! # Ok::<(), domain::card::CardError>(())
//! ```

pub mod caller;
pub mod card;
pub mod control;
pub mod limits;
pub mod request_id;
pub mod rules;
pub mod storage_key;
pub mod time;
