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
//! use domain::rules::{self, Admission, FoundCard, UnknownCards};
//! use domain::time::UnixMillis;
//!
//! let card = CardKey { tenant: Tenant::parse("bank")?, plastic: PlasticId::parse("1000200030")? };
//! let lifetime = Duration::from_secs(30);
//! let (id, scope) = (ControlId::random(), Scope::SetPin);
//! let new = NewControl { id, card, scope, lifetime, device_key: None, page_client: None };
//! let admission = Admission {
//!     controls_per_card_per_hour: 1,
//!     unknown_cards: UnknownCards::Accept,
//!     unregistered_cards_per_tenant: 1,
//! };
//!
//! let now = UnixMillis(1_767_225_600_000);
//! let unregistered = FoundCard::Unregistered { state: None, of_tenant: 0 };
//! let (state, control) = rules::open(unregistered, new.clone(), admission, now).unwrap();
//! assert_eq!(control.expires_at, now.after(lifetime));
//!
//! let denied = rules::open(FoundCard::Known(state), new, admission, now).err();
//! assert_eq!(denied, Some(Denied::Cap { cap: 1, retry_after: Duration::from_secs(3_600) }));
//! # Ok::<(), domain::card::CardError>(())
//! ```

pub mod caller;
pub mod card;
pub mod control;
pub mod limits;
pub mod pin_rules;
pub mod request_id;
pub mod rules;
pub mod storage_key;
pub mod time;
pub mod tries;
pub mod zone_tags;
