//! The use cases of Pinseal: one file in `pin/` for each group.
//!
//! Each use case checks its control, sends a request to the boundary, and returns only a result that the store has made
//! durable. No clear PIN, PIN block or key is here; a PAN comes from the control, never with a block.

mod block_translation;
mod card_registration;
mod device_pin;
mod engine_events;
mod generation;
mod many_requests;
mod pin_error;
mod reencryption;
mod verification;
mod zone_pin;
mod zone_use;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::watch;

use crate::call_limits::CallAdmission;
use crate::verification_keys::TenantVerificationKeys;
use crate::zones::Zones;
use audit::card_reference::CardReferenceKey;
use audit::entry::{Action, BlockFormat, Body, CardEvent, Event, Isolation, KeyStamp, Level, Outcome, Stamp};
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId, RegisteredAccount, Tenant};
use domain::control::{Control, ControlId};
use domain::rules::Admission;
use domain::storage_key::{MaxKeyVersions, RecordKey, StorageKeyKind};
use hsm_client::Boundary;
use hsm_protocol::{Account, KeyVersion, PinRecord, Reply, Request, SealedAccount, StorageVersions, UnavailableReason};
use store::{ReadEpoch, Store, StoreError};

pub use self::{
    block_translation::{BlockToTranslate, Translated},
    device_pin::{IssuedTzpk, ShownPin},
    pin_error::PinError,
    reencryption::{KindsPage, RecordKind, ReencryptError, ReencryptedPage, TranslatedPage},
    verification::{PinChange, TryLimits, VerifiedPin},
    zone_pin::PinToSet,
};

use self::device_pin::control_binding;

/// The most attempts of a request. It starts over when another request changed the tzpk, the PIN record or the control. A set that
/// was tried with others of its stream has had one attempt before.
const ATTEMPTS_MAX: u32 = 4;

/// The use cases over one boundary and one store.
pub struct Pins {
    boundary: Arc<dyn Boundary>,
    /// Why the boundary did not answer the last check; `None` while it answers.
    boundary_loss: watch::Receiver<Option<UnavailableReason>>,
    store: Arc<dyn Store>,
    rules: Arc<Rules>,
    limits: Arc<CallAdmission>,
    references: CardReferenceKey,
    stamped: RwLock<Stamped>,
    max_keys: watch::Receiver<MaxKeyVersions>,
}

/// The stamp of audit events, and a watch on the status that it is made from.
struct Stamped {
    status: watch::Receiver<Arc<hsm_protocol::Status>>,
    stamp: Arc<Stamp>,
}

/// A card whose rate admits one call or item.
pub struct AdmittedCard(CardKey);

impl AdmittedCard {
    fn key(&self) -> &CardKey {
        &self.0
    }
}

/// The rules that an operator configures.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The time from the opening of a control to its expiry.
    pub control_lifetime: Duration,
    /// The controls that may be opened.
    pub admission: Admission,
    /// The tries of a card.
    pub tries: TryLimits,
    /// The zones of the tenants.
    pub zones: Zones,
    /// The keys of verification values that each tenant may name.
    pub verification_keys: TenantVerificationKeys,
}

impl Pins {
    /// The use cases over an open boundary and an open store. `references` is the key of the card references in audit events.
    pub(crate) fn new(
        boundary: Arc<dyn Boundary>,
        boundary_loss: watch::Receiver<Option<UnavailableReason>>,
        store: Arc<dyn Store>,
        rules: Arc<Rules>,
        limits: Arc<CallAdmission>,
        references: CardReferenceKey,
    ) -> Self {
        let mut status = boundary.watched();
        let stamp = Arc::new(stamp_of(&status.borrow_and_update()));
        let stamped = RwLock::new(Stamped { status, stamp });
        let max_keys = store.max_key_versions();
        Self { boundary, boundary_loss, store, rules, limits, references, stamped, max_keys }
    }

    /// Sends a request to the boundary. A new record is under the newest storage key that every engine on the store has.
    async fn execute(&self, request: Request) -> Result<Reply, hsm_protocol::Error> {
        let max = *self.max_keys.borrow();
        let request = match max == MaxKeyVersions::default() {
            true => request,
            false => Request::UpTo { versions: storage_versions(max), request: request.into() },
        };
        self.boundary.execute(request).await
    }

    /// The status of the boundary without the storage keys that another engine on the store lacks.
    pub(crate) fn usable_keys(&self, status: &hsm_protocol::Status) -> hsm_protocol::Status {
        status.up_to(storage_versions(*self.max_keys.borrow()))
    }

    /// Whether another engine on the store lacks the newest storage keys of the boundary, so that it uses older ones.
    pub(crate) fn waits_for_engine(&self, in_use: &hsm_protocol::Status) -> bool {
        self.boundary.status().storage != in_use.storage
    }

    /// Counts a call about a card, or an item of a stream.
    ///
    /// # Errors
    /// The card has reached its rate of calls.
    pub fn admit_card(&self, caller: &Caller, plastic: PlasticId) -> Result<AdmittedCard, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        Ok(AdmittedCard(card))
    }

    /// The present stamp of the boundary. An audit event is made after the boundary's reply, so that its stamp names the keys
    /// that were used, also when a reload replaced the boundary in between.
    fn stamp(&self) -> Arc<Stamp> {
        let stamped = self.stamped.read().unwrap_or_else(PoisonError::into_inner);
        // An error: the status of a boundary in this process never changes.
        if !stamped.status.has_changed().unwrap_or(false) {
            return Arc::clone(&stamped.stamp);
        }
        drop(stamped);
        let mut stamped = self.stamped.write().unwrap_or_else(PoisonError::into_inner);
        let Stamped { status, stamp } = &mut *stamped;
        *stamp = Arc::new(stamp_of(&status.borrow_and_update()));
        Arc::clone(stamp)
    }

    /// An event of the engine itself.
    fn engine_event(&self, body: Body) -> Event {
        Event {
            at: clock::now(),
            caller: "engine".into(),
            tenant: None,
            audit_user: "engine".into(),
            request: None,
            outcome: Outcome::Done,
            stamp: self.stamp(),
            body,
        }
    }

    /// Records the event of a request that was refused. The caller gets the answer after the event is durable, and with it what
    /// the request read since `reads` (R11). A store that is low on space records no refusal: only the log names the request
    /// then.
    async fn audit_refusal<T>(
        &self,
        caller: &Caller,
        reads: ReadEpoch,
        refused: impl FnOnce() -> Refused,
        result: Result<T, PinError>,
    ) -> Result<T, PinError> {
        let Some(outcome) = result.as_ref().err().and_then(PinError::outcome) else { return result };
        let event = match refused() {
            Refused::Card { tenant, event } => Event { tenant: Some(tenant), ..self.card_event(caller, event) },
            Refused::UnknownControl { action, control } => {
                let Some(unrecorded) = self.limits.unknown_controls.admit(&(caller.tenant, action)) else {
                    // One transaction confirms the reads of many callers, and writes no entry for them.
                    let event = self.caller_event(caller, Body::UnknownControl { action, control, unrecorded: 0 });
                    self.store.confirm_reads(reads, event).await?;
                    return result;
                };
                self.caller_event(caller, Body::UnknownControl { action, control, unrecorded })
            }
        };
        match self.store.record_access(Event { outcome, ..event }).await {
            Err(StoreError::LowOnSpace) => {
                if let Some(suppressed) = self.limits.lines.admit() {
                    let request = caller.request;
                    tracing::warn!(%request, ?outcome, suppressed, "the store is low on space: a refusal has no audit event");
                }
            }
            recorded => recorded?,
        }
        self.store.check_reads(reads)?;
        result
    }

    fn about_card(&self, action: Action, card: &CardKey, account: Option<&RegisteredAccount>) -> CardEvent {
        let masked = account.map_or_else(|| card.plastic.masked().into(), |account| account.masked.clone());
        CardEvent::new(action, masked, self.references.reference(card))
    }

    fn about_control(&self, action: Action, control: &Control) -> CardEvent {
        let event = self.about_card(action, &control.card, control.account.as_ref());
        CardEvent { control: Some(control.id), ..event }
    }

    fn about_refused(&self, action: Action, card: &CardKey) -> Refused {
        Refused::Card { tenant: card.tenant, event: self.about_card(action, card, None) }
    }

    /// What a refused request under a control is about: its card, where the store has the control.
    fn under_control(&self, action: Action, id: ControlId, found: Option<&Control>) -> Refused {
        match found {
            Some(control) => Refused::Card { tenant: control.card.tenant, event: self.about_control(action, control) },
            None => Refused::UnknownControl { action, control: id },
        }
    }

    fn control_event(&self, caller: &Caller, action: Action, control: &Control) -> Event {
        self.card_event(caller, self.about_control(action, control))
    }

    fn card_event(&self, caller: &Caller, card: CardEvent) -> Event {
        self.caller_event(caller, Body::Card(card))
    }

    fn caller_event(&self, caller: &Caller, body: Body) -> Event {
        Event {
            at: clock::now(),
            caller: caller.peer.clone(),
            tenant: Some(caller.tenant),
            audit_user: caller.audit_user.shared(),
            request: Some(caller.request),
            outcome: Outcome::Done,
            stamp: self.stamp(),
            body,
        }
    }
}

/// The boundary status as every audit event carries it.
fn stamp_of(status: &hsm_protocol::Status) -> Stamp {
    let key = |key: &hsm_protocol::KeyId| KeyStamp {
        usage: key.usage.to_string().into(),
        version: key.version.0,
        kcv: key.kcv.map(|kcv| *kcv.as_bytes()),
    };
    Stamp {
        level: match status.level() {
            hsm_protocol::BoundaryLevel::Token => Level::Token,
            hsm_protocol::BoundaryLevel::Host => Level::Host,
        },
        token: status.token().into(),
        isolation: match status.isolation() {
            hsm_protocol::Isolation::Process => Isolation::Process,
            hsm_protocol::Isolation::Inline => Isolation::Inline,
        },
        keys: status.keys().iter().map(key).collect(),
    }
}

fn block_format(form: hsm_protocol::StorageFormat) -> BlockFormat {
    match form {
        hsm_protocol::StorageFormat::Wrapped => BlockFormat::Wrapped,
        hsm_protocol::StorageFormat::Iso4 => BlockFormat::Iso4,
        hsm_protocol::StorageFormat::Iso3 => BlockFormat::Iso3,
        hsm_protocol::StorageFormat::Iso0 => BlockFormat::Iso0,
        hsm_protocol::StorageFormat::OneWay => BlockFormat::OneWay,
    }
}

/// What a refused request is about.
enum Refused {
    Card {
        /// The tenant of the card, which may be another than the caller's: the tenant whose auditor reads the event.
        tenant: Tenant,
        event: CardEvent,
    },
    UnknownControl {
        action: Action,
        control: ControlId,
    },
}

fn card_binding(card: &CardKey) -> Result<hsm_protocol::CardBinding, hsm_protocol::Error> {
    Ok(hsm_protocol::CardBinding::new(card.tenant.as_str(), card.plastic.as_str())?)
}

fn record_key(record: &PinRecord) -> RecordKey {
    let kind = match record.form() {
        hsm_protocol::StorageFormat::Wrapped => StorageKeyKind::Wrapped,
        hsm_protocol::StorageFormat::Iso4 => StorageKeyKind::Iso4,
        hsm_protocol::StorageFormat::Iso3 | hsm_protocol::StorageFormat::Iso0 => StorageKeyKind::Tdes,
        hsm_protocol::StorageFormat::OneWay => StorageKeyKind::OneWay,
    };
    RecordKey { kind, version: record.storage_key().0 }
}

fn storage_versions(max: MaxKeyVersions) -> StorageVersions {
    let MaxKeyVersions { wrapped, iso_4, tdes, one_way } = max;
    let [wrapped, iso_4, tdes, one_way] = [wrapped, iso_4, tdes, one_way].map(KeyVersion);
    StorageVersions { wrapped, iso_4, tdes, one_way }
}

fn account(account: Option<&RegisteredAccount>) -> Result<Account, hsm_protocol::Error> {
    match account {
        Some(account) => Ok(Account::Registered(SealedAccount::from_bytes(&account.sealed)?)),
        None => Ok(Account::PlasticId),
    }
}
