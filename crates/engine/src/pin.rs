//! The use cases of Pinseal.
//!
//! Each use case checks its control, sends a request to the boundary, and returns only a result that the store has made
//! durable. No clear PIN, PIN block or key is here; a PAN comes from the control, never with a block.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, stream};
use hsm_protocol::{
    Account, AccountNumber, DeviceKey, EncryptedBlock, PinRecord, Refusal, Reply, Request, SealedAccount, SealedKey,
    Source, Target,
};
use thiserror::Error;
use tokio::sync::watch;

use crate::call_limits::CallAdmission;
use audit::archive::ArchivedPart;
use audit::card_reference::CardReferenceKey;
use audit::entry::{
    Action, ArchivedSegment, BlockFormat, Body, CardEvent, Event, Formats, Isolation, KeyStamp, Level, Outcome, Stamp,
};
use clock;
use domain::caller::Caller;
use domain::card::{Card, CardKey, PlasticId, ReencryptedPin, RegisteredAccount, StoredPin, Tenant};
use domain::control::{Control, ControlId, Denied, NewControl, RetryTag, Scope, SealedTzpk, Thumbprint, Transition};
use domain::request_id::RequestId;
use domain::rules::Admission;
use domain::storage_key::{MinKeyVersions, RecordKey, StorageKeyKind};
use domain::time::UnixMillis;
use hsm_client::Boundary;
use store::{ChangeError, Store, StoreError};

/// The most attempts of a request. It starts over when another request changed the tzpk, the PIN record or the control.
const ATTEMPTS_MAX: u32 = 4;
/// The most records that are re-encrypted at a time. Fewer than the requests that may wait for a token, so that calls still
/// fit in its queue.
const REENCRYPTED_AT_ONCE: usize = 32;

/// The use cases over one boundary and one store.
pub struct Pins {
    boundary: Arc<dyn Boundary>,
    store: Arc<dyn Store>,
    rules: Rules,
    limits: Arc<CallAdmission>,
    references: CardReferenceKey,
    stamped: RwLock<Stamped>,
}

/// The stamp of audit events, and a watch on the status that it is made from.
struct Stamped {
    status: watch::Receiver<Arc<hsm_protocol::Status>>,
    stamp: Arc<Stamp>,
}

/// The rules that an operator configures.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The time from the opening of a control to its expiry.
    pub control_lifetime: Duration,
    /// The controls that may be opened.
    pub admission: Admission,
}

impl Pins {
    /// The use cases over an open boundary and an open store. `references` is the key of the card references in audit events.
    pub(crate) fn new(
        boundary: Arc<dyn Boundary>,
        store: Arc<dyn Store>,
        rules: Rules,
        limits: Arc<CallAdmission>,
        references: CardReferenceKey,
    ) -> Self {
        let mut status = boundary.watched();
        let stamp = Arc::new(stamp_of(&status.borrow_and_update()));
        Self { boundary, store, rules, limits, references, stamped: RwLock::new(Stamped { status, stamp }) }
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

    /// The newest state of a control, which is left in `found`. The first read of a call counts as a call about the card; calls
    /// of another tenant do not use up the quota of the card.
    async fn read_control<'f>(
        &self,
        caller: &Caller,
        id: ControlId,
        found: &'f mut Option<Control>,
    ) -> Result<&'f Control, ChangeError> {
        let is_first = found.is_none();
        let control = &*found.insert(self.store.control(id).await?.ok_or(Denied::NotUsable)?);
        if is_first && control.card.tenant == caller.tenant {
            self.limits.admit_card(&control.card)?;
        }
        Ok(control)
    }

    /// Registers a card. Its account number is sealed before it is stored.
    ///
    /// # Errors
    /// [`RegisterCardError`]: the store or the boundary failed, or the store refused the change.
    pub async fn register_card(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        number: Option<AccountNumber>,
    ) -> Result<Card, RegisterCardError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let registered = self.register(caller, card, number).await;
        self.audit_refusal(caller, || self.about_refused(Action::RegisterCard, &card), registered).await
    }

    async fn register(
        &self,
        caller: &Caller,
        card: CardKey,
        number: Option<AccountNumber>,
    ) -> Result<Card, RegisterCardError> {
        self.limits.admit_card(&card)?;
        let account = match number {
            Some(number) => {
                let masked = number.masked().into();
                let seal = Request::SealPan { number, card: card_binding(&card)? };
                let Reply::SealedPan(sealed) = self.boundary.execute(seal).await? else {
                    return Err(hsm_protocol::Error::UnexpectedReply.into());
                };
                Some(RegisteredAccount { sealed: sealed.as_bytes().into(), masked })
            }
            None => None,
        };
        let event = self.card_event(caller, self.about_card(Action::RegisterCard, &card, account.as_ref()));
        Ok(self.store.register_card(card, account, event).await?)
    }

    /// Reads a card. The read is audited.
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], or the store failed.
    pub async fn find_card(&self, caller: &Caller, plastic: PlasticId) -> Result<Card, ChangeError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        let found = self.store.card(&card).await?;
        let event = self.about_card(Action::FindCard, &card, found.as_ref().and_then(|card| card.account.as_ref()));
        let outcome = if found.is_some() { Outcome::Done } else { Outcome::CardUnknown };
        self.store.record_access(Event { outcome, ..self.card_event(caller, event) }).await?;
        Ok(found.ok_or(Denied::CardUnknown)?)
    }

    /// Opens a control for a card and a purpose.
    ///
    /// # Errors
    /// The store failed, or the rules allow no such control.
    pub async fn open_control(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        scope: Scope,
        device_key: Option<Thumbprint>,
    ) -> Result<Control, ChangeError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        let id = ControlId::random();
        let control = NewControl { id, card, scope, lifetime: self.rules.control_lifetime, device_key };
        let opened = CardEvent { control: Some(id), ..self.about_card(Action::OpenControl, &card, None) };
        let event = self.card_event(caller, opened);
        let opened = self.store.open_control(control, self.rules.admission, event).await;
        self.audit_refusal(caller, || self.about_refused(Action::OpenControl, &card), opened).await
    }

    /// Makes a fresh tzpk for the control's device. Only the newest tzpk of a control is valid.
    ///
    /// # Errors
    /// [`IssueTzpkError`]: the control does not allow the request, or the store or the boundary failed.
    pub async fn issue_tzpk(
        &self,
        caller: &Caller,
        id: ControlId,
        device: &DeviceKey,
    ) -> Result<IssuedTzpk, IssueTzpkError> {
        let mut found = None;
        let issued = self.issue(caller, id, device, &mut found).await;
        self.audit_refusal(caller, || self.under_control(Action::IssueTzpk, id, found.as_ref()), issued).await
    }

    async fn issue(
        &self,
        caller: &Caller,
        id: ControlId,
        device: &DeviceKey,
        found: &mut Option<Control>,
    ) -> Result<IssuedTzpk, IssueTzpkError> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.store.now();
            let control = self.read_control(caller, id, found).await?;
            control.admit(&caller.tenant, Scope::SetPin, now)?;
            control.admit_device_key(&Thumbprint(device.thumbprint()))?;

            let binding =
                hsm_protocol::Binding { card: card_binding(&control.card)?, control: control_binding(control) };
            let issue = Request::IssueTzpk { public_key: device.clone(), binding };
            let Reply::Tzpk(issued) = self.boundary.execute(issue).await? else {
                return Err(hsm_protocol::Error::UnexpectedReply.into());
            };
            let tzpk = SealedTzpk(issued.sealed.as_bytes().into());
            let key = Transition::Key { tzpk, replaces: control.tzpk().ok().cloned() };
            match self.store.advance(id, key, self.control_event(caller, Action::IssueTzpk, control)).await {
                Ok(()) => {}
                // Another request changed the control first: this request starts over.
                Err(ChangeError::Denied(Denied::Superseded)) => continue,
                Err(error) => return Err(error.into()),
            }
            return Ok(IssuedTzpk {
                encrypted_tzpk: issued.wrapped,
                check_value: issued.kcv.as_bytes().to_vec(),
                expires_at: self.store.wall_time(control.expires_at),
            });
        }
        Err(Denied::NotUsable.into())
    }

    /// Translates the block to a record and stores it. Every outcome is durable before this returns.
    ///
    /// # Errors
    /// [`SetPinError`]: the control does not allow the request, the block or the PIN was refused, or the store or the boundary
    /// failed.
    pub async fn set_pin(&self, caller: &Caller, id: ControlId, block: &EncryptedBlock) -> Result<(), SetPinError> {
        let mut found = None;
        let set = self.set(caller, id, block, &mut found).await;
        self.audit_refusal(caller, || self.under_control(Action::SetPin, id, found.as_ref()), set).await
    }

    async fn set(
        &self,
        caller: &Caller,
        id: ControlId,
        block: &EncryptedBlock,
        found: &mut Option<Control>,
    ) -> Result<(), SetPinError> {
        let mut is_first_denial = true;
        for _ in 0..ATTEMPTS_MAX {
            let now = self.store.now();
            let control = self.read_control(caller, id, found).await?;
            if let Some(retry) = self.retry(caller, control, block, now).await? {
                let event = self.control_event(caller, Action::ConfirmSetPin, control);
                return Ok(self.store.confirm_retry(id, retry, event).await?);
            }
            control.admit(&caller.tenant, Scope::SetPin, now)?;
            match self.translate_and_store(caller, control, block).await {
                // Another request issued a newer tzpk: start over with the present control.
                Err(SetPinError::Denied(Denied::Superseded)) => {}
                // The same block on another connection may have spent the control: start over once, as its retry.
                Err(SetPinError::Denied(Denied::NotUsable)) if is_first_denial => is_first_denial = false,
                outcome => return outcome,
            }
        }
        Err(Denied::NotUsable.into())
    }

    /// Encrypts the PIN for the control's device. A control allows this once.
    ///
    /// # Errors
    /// [`ViewPinError`]: the control does not allow the request, the card has no PIN, or the store or the boundary failed.
    pub async fn view_pin(&self, caller: &Caller, id: ControlId, device: &DeviceKey) -> Result<ShownPin, ViewPinError> {
        let mut found = None;
        let viewed = self.view(caller, id, device, &mut found).await;
        self.audit_refusal(caller, || self.under_control(Action::ViewPin, id, found.as_ref()), viewed).await
    }

    async fn view(
        &self,
        caller: &Caller,
        id: ControlId,
        device: &DeviceKey,
        found: &mut Option<Control>,
    ) -> Result<ShownPin, ViewPinError> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.store.now();
            let control = self.read_control(caller, id, found).await?;
            control.admit(&caller.tenant, Scope::ViewPin, now)?;
            control.admit_device_key(&Thumbprint(device.thumbprint()))?;

            let pin = self.store.pin(&control.card).await?.ok_or(ViewPinError::PinNotSet)?;
            let record = PinRecord::from_bytes(&pin.record).map_err(hsm_protocol::Error::from)?;
            let formats = Some(Formats { from: block_format(record.form()), to: BlockFormat::Iso1 });
            let translate = Request::Translate {
                source: Source::Record(record),
                target: Target::Device { public_key: device.clone() },
                card: card_binding(&control.card)?,
                account: account(pin.account.as_ref())?,
            };
            let Reply::Block(shown) = self.boundary.execute(translate).await? else {
                return Err(hsm_protocol::Error::UnexpectedReply.into());
            };

            let event = self.card_event(caller, CardEvent { formats, ..self.about_control(Action::ViewPin, control) });
            match self.store.advance(id, Transition::View { shown: pin.record }, event).await {
                Ok(()) => {}
                // Another request replaced the PIN record: start over with the newest record.
                Err(ChangeError::Denied(Denied::Superseded)) => continue,
                Err(error) => return Err(error.into()),
            }
            return Ok(ShownPin {
                encrypted_tzpk: shown.wrapped,
                pin_block: shown.block,
                check_value: shown.kcv.as_bytes().to_vec(),
            });
        }
        Err(Denied::NotUsable.into())
    }

    /// Reads the kinds of the PIN records of the next cards after `after`.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn kinds_page(&self, after: Option<&CardKey>, cards: usize) -> Result<KindsPage, StoreError> {
        let pins = self.store.scan_pins(after, cards).await?;
        let kind = |pin: &StoredPin| PinRecord::from_bytes(&pin.record).ok().map(|record| RecordKind::of(&record));
        Ok(KindsPage {
            last: pins.last().map(|(card, _)| *card),
            kinds: pins.iter().map(|(_, pin)| kind(pin)).collect(),
        })
    }

    /// Re-encrypts the PIN records of the next cards that are under an older storage key. A PIN that is set at the same time is
    /// not overwritten.
    ///
    /// # Errors
    /// [`ReencryptError`]: the boundary was not available or busy, or the store failed. No record of the page is changed.
    pub async fn reencrypt_page(
        &self,
        after: Option<&CardKey>,
        cards: usize,
    ) -> Result<ReencryptedPage, ReencryptError> {
        let pins = self.store.scan_pins(after, cards).await?;
        let checked = u64::try_from(pins.len()).unwrap_or(u64::MAX);
        let mut page = ReencryptedPage { last: pins.last().map(|(card, _)| *card), checked, reencrypted: 0, failed: 0 };
        let mut records = Vec::new();
        // Many at a time: a boundary in a separate process executes all arrived requests at one wake-up.
        let each = |(card, pin): (CardKey, StoredPin)| async move { (self.reencrypted(&card, &pin).await, card, pin) };
        let mut all = stream::iter(pins.into_iter().map(each)).buffered(REENCRYPTED_AT_ONCE);
        while let Some((outcome, card, pin)) = all.next().await {
            match outcome {
                Ok(None) => {}
                Ok(Some(after)) => records.push(ReencryptedPin {
                    card,
                    before: pin.record,
                    key: record_key(&after),
                    after: after.as_bytes().into(),
                }),
                Err(error @ (hsm_protocol::Error::Unavailable { .. } | hsm_protocol::Error::Busy { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    page.failed += 1;
                    tracing::warn!(%error, "a PIN record can't be re-encrypted under the newest storage key");
                }
            }
        }
        if !records.is_empty() {
            page.reencrypted =
                self.store.reencrypt(records, self.engine_event(Body::RecordsReencrypted { count: 0 })).await?;
        }
        Ok(page)
    }

    /// The record under the newest storage key; `None` for a record that already is, and for a one-way record.
    async fn reencrypted(&self, card: &CardKey, pin: &StoredPin) -> Result<Option<PinRecord>, hsm_protocol::Error> {
        let record = PinRecord::from_bytes(&pin.record)?;
        // A one-way record moves when its PIN is set or verified right; the rotation reports those that wait.
        if self.boundary.status().is_current(&record) || record.form() == hsm_protocol::StorageFormat::OneWay {
            return Ok(None);
        }
        let translate = Request::Translate {
            source: Source::Record(record),
            target: Target::Record,
            card: card_binding(card)?,
            account: account(pin.account.as_ref())?,
        };
        match self.boundary.execute(translate).await? {
            Reply::Record { record, .. } => Ok(Some(record)),
            _ => Err(hsm_protocol::Error::UnexpectedReply),
        }
    }

    /// Records the end of a rotation: the number of checked PIN records, and of those that did not open.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_rotated(&self, checked: u64, failed: u64) -> Result<(), StoreError> {
        self.store.record_event(self.engine_event(Body::RotationEnded { checked, failed })).await
    }

    /// Rejects PIN records under a storage key older than those of `status`; the caller retries under the newest key. When
    /// this returns, the store holds every earlier record, for a rotation to find.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn reject_older_keys(&self, status: &hsm_protocol::Status) -> Result<(), StoreError> {
        let keys = hsm_protocol::frame::write_key_list(status.keys());
        self.store.set_keys_in_use(keys.into(), min_key_versions(status), self.engine_event(Body::KeysReloaded)).await
    }

    /// Records that the engine of this name starts to serve, with the keys of `status`.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_start(&self, engine: &str, status: &hsm_protocol::Status) -> Result<(), StoreError> {
        let keys = hsm_protocol::frame::write_key_list(status.keys());
        self.store
            .set_keys_at_start(
                keys.into(),
                min_key_versions(status),
                self.references.clone(),
                self.engine_event(Body::EngineStarted { engine: engine.into() }),
            )
            .await
    }

    /// Records an event of the engine itself.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_engine(&self, body: Body) -> Result<(), StoreError> {
        self.store.record_event(self.engine_event(body)).await
    }

    /// Removes archived entries of the audit chain from the store.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub(crate) async fn remove_archived(&self, part: ArchivedPart, segment: ArchivedSegment) -> Result<(), StoreError> {
        self.store.remove_archived(part, self.engine_event(Body::AuditArchived(segment))).await
    }

    /// The version of the seal key of each usable control's tzpk; `None` for a tzpk in an unknown layout.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn live_seal_versions(&self) -> Result<Vec<Option<u16>>, StoreError> {
        let tzpks = self.store.live_tzpks().await?;
        Ok(tzpks.iter().map(|tzpk| SealedKey::from_bytes(&tzpk.0).ok().map(|tzpk| tzpk.key().0)).collect())
    }

    /// Reads at most `limit` audit entries from number `from`. Returns the names of the engines that started, at the end also
    /// those in archived entries, and the number of the next entry; `None` at the end of the chain.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn started_engines(&self, from: u64, limit: usize) -> Result<(Vec<String>, Option<u64>), StoreError> {
        let entries = self.store.audit(from, limit).await?;
        // Read last: entries may be archived between two pages.
        let archived = if entries.is_empty() { self.store.archived().await? } else { None };
        let archived = archived.into_iter().flat_map(|archived| archived.engines);
        let names = entries
            .iter()
            .filter_map(|entry| entry.event.body.started_engine().map(str::to_owned))
            .chain(archived)
            .collect();
        Ok((names, entries.last().map(|last| last.sequence.saturating_add(1))))
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

    /// The retry tag of the block, if the same block set the PIN under this control.
    async fn retry(
        &self,
        caller: &Caller,
        control: &Control,
        block: &EncryptedBlock,
        now: UnixMillis,
    ) -> Result<Option<RetryTag>, SetPinError> {
        let Some(set_by) = control.set_by(&caller.tenant, now) else { return Ok(None) };
        let request = Request::RetryTag { control: *control.id.as_bytes(), block: *block };
        let Reply::RetryTag(tag) = self.boundary.execute(request).await? else {
            return Err(hsm_protocol::Error::UnexpectedReply.into());
        };
        let tag = RetryTag(tag);
        Ok(set_by.matches(&tag).then_some(tag))
    }

    async fn translate_and_store(
        &self,
        caller: &Caller,
        control: &Control,
        block: &EncryptedBlock,
    ) -> Result<(), SetPinError> {
        let under = control.tzpk()?.clone();
        let tzpk = SealedKey::from_bytes(&under.0).map_err(hsm_protocol::Error::from)?;
        let translate = Request::Translate {
            source: Source::Device { sealed_tzpk: tzpk, control: control_binding(control), block: *block },
            target: Target::Record,
            card: card_binding(&control.card)?,
            account: account(control.account.as_ref())?,
        };
        let translated = self.boundary.execute(translate).await;
        let card = self.about_control(Action::SetPin, control);
        match translated {
            Ok(Reply::Record { record, retry_tag: Some(retry_tag) }) => {
                let formats = Some(Formats { from: BlockFormat::Iso1, to: block_format(record.form()) });
                let event = self.card_event(caller, CardEvent { formats, ..card });
                let pin = StoredPin {
                    key: record_key(&record),
                    record: record.as_bytes().into(),
                    account: control.account.clone(),
                };
                let set = Transition::Set { under, retry: RetryTag(retry_tag), pin };
                Ok(self.store.advance(control.id, set, event).await?)
            }
            Ok(_) => Err(hsm_protocol::Error::UnexpectedReply.into()),
            Err(hsm_protocol::Error::Refused(Refusal::MalformedBlock)) => {
                let event = Event { outcome: Outcome::Malformed, ..self.card_event(caller, card) };
                self.store.advance(control.id, Transition::Malformed { under }, event).await?;
                Err(SetPinError::Malformed)
            }
            Err(hsm_protocol::Error::Refused(Refusal::PinPolicy)) => {
                let event = Event { outcome: Outcome::RefusedPin, ..self.card_event(caller, card) };
                self.store.advance(control.id, Transition::RefusedPin { under }, event).await?;
                Err(SetPinError::RefusedPin)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Records the event of a request that was refused. The caller gets the answer after the event is durable. A store that is
    /// low on space records no refusal: only the log names the request then.
    async fn audit_refusal<T, E: AuditedError>(
        &self,
        caller: &Caller,
        refused: impl FnOnce() -> Refused,
        result: Result<T, E>,
    ) -> Result<T, E> {
        let Some(outcome) = result.as_ref().err().and_then(E::outcome) else { return result };
        let event = match refused() {
            Refused::Card { tenant, event } => Event { tenant: Some(tenant), ..self.card_event(caller, event) },
            Refused::UnknownControl { action, control } => {
                let Some(unrecorded) = self.limits.unknown_controls.admit(&caller.tenant) else { return result };
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
        result
    }

    /// Records a call that was denied because of the caller's certificate, or a request whose credentials an edge rejected;
    /// `peer` is the name on the certificate. `tenant` is the tenant that the request names, where the denial depends on it.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_denial(
        &self,
        peer: Arc<str>,
        tenant: Option<Tenant>,
        request: RequestId,
        body: Body,
    ) -> Result<(), StoreError> {
        let event = Event {
            caller: peer,
            tenant,
            audit_user: "-".into(),
            request: Some(request),
            outcome: Outcome::Denied,
            ..self.engine_event(body)
        };
        self.store.record_access(event).await
    }

    fn about_card(&self, action: Action, card: &CardKey, account: Option<&RegisteredAccount>) -> CardEvent {
        let masked = account.map_or_else(|| card.plastic.masked().into(), |account| account.masked.clone());
        CardEvent { action, card: masked, reference: self.references.reference(card), control: None, formats: None }
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

/// The facts about a PIN record in its clear header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKind {
    /// The storage format of the block.
    pub form: hsm_protocol::StorageFormat,
    /// The boundary level that made the record.
    pub level: hsm_protocol::BoundaryLevel,
    /// The version of the storage key that encrypts the record.
    pub storage_key_version: u16,
}

impl RecordKind {
    fn of(record: &PinRecord) -> Self {
        let (form, level) = (record.form(), record.made_at().level);
        Self { form, level, storage_key_version: record.storage_key().0 }
    }
}

/// The kinds of the PIN records of a page of cards.
pub struct KindsPage {
    /// The last card of the page; `None` after the last card of the store.
    pub last: Option<CardKey>,
    /// The kind of each record; `None` for a record in an unknown layout.
    pub kinds: Vec<Option<RecordKind>>,
}

/// The result of the re-encryption of a page of cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReencryptedPage {
    /// The last card of the page; `None` after the last card of the store.
    pub last: Option<CardKey>,
    /// The number of checked records.
    pub checked: u64,
    /// The number of re-encrypted records.
    pub reencrypted: u64,
    /// The number of records that did not open.
    pub failed: u64,
}

/// An error that ended the re-encryption of a page. No record of the page is changed.
#[derive(Debug, Error)]
pub enum ReencryptError {
    /// The boundary is not available or busy.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// A tzpk for a device.
pub struct IssuedTzpk {
    /// RSA-OAEP of the 16 raw bytes.
    pub encrypted_tzpk: Vec<u8>,
    /// The KCV of the tzpk, 3 bytes.
    pub check_value: Vec<u8>,
    /// The expiry of the tzpk and its control.
    pub expires_at: UnixMillis,
}

/// A PIN, encrypted for the device that shows it.
pub struct ShownPin {
    /// RSA-OAEP of the 16 raw bytes.
    pub encrypted_tzpk: Vec<u8>,
    /// The PIN as an ISO 9564 format 1 block under that tzpk.
    pub pin_block: EncryptedBlock,
    /// The KCV of that tzpk, 3 bytes.
    pub check_value: Vec<u8>,
}

/// An error of the registration of a card.
#[derive(Debug, Error)]
pub enum RegisterCardError {
    /// The card's PIN is bound to its account number.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The boundary failed.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
}

/// An error of the issue of a tzpk.
#[derive(Debug, Error)]
pub enum IssueTzpkError {
    /// The control does not allow the request.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The boundary failed.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
}

/// An error of setting a PIN.
#[derive(Debug, Error)]
pub enum SetPinError {
    /// The control does not allow the request.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The block is malformed. All malformed blocks have this one error, so that a caller learns nothing about the digits.
    #[error("the block is not an ISO 9564 format 1 block under this control's tzpk: open another control")]
    Malformed,
    /// The PIN breaks the policy.
    #[error("the PIN breaks the PIN policy: choose another")]
    RefusedPin,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The boundary failed.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
}

/// An error of viewing a PIN.
#[derive(Debug, Error)]
pub enum ViewPinError {
    /// The control does not allow the request.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The card has no PIN.
    #[error("no PIN is set for this card")]
    PinNotSet,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The boundary failed.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
}

macro_rules! from_change_error {
    ($($outer:ident),+) => {$(
        impl From<ChangeError> for $outer {
            fn from(error: ChangeError) -> Self {
                match error {
                    ChangeError::Denied(denied) => Self::Denied(denied),
                    ChangeError::Store(store) => Self::Store(store),
                }
            }
        }
    )+};
}

from_change_error!(RegisterCardError, IssueTzpkError, SetPinError, ViewPinError);

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

/// An error whose refusals are audited.
trait AuditedError: From<StoreError> {
    /// The outcome in the audit event of the refusal; `None` where the use case has recorded it, the store failed, or the
    /// boundary executed nothing because of the load.
    fn outcome(&self) -> Option<Outcome>;
}

impl AuditedError for ChangeError {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Denied(denied) => denied_outcome(*denied),
            Self::Store(_) => None,
        }
    }
}

impl AuditedError for RegisterCardError {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Denied(denied) => denied_outcome(*denied),
            Self::Store(_) => None,
            Self::Hsm(error) => boundary_outcome(error),
        }
    }
}

impl AuditedError for IssueTzpkError {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Denied(denied) => denied_outcome(*denied),
            Self::Store(_) => None,
            Self::Hsm(error) => boundary_outcome(error),
        }
    }
}

impl AuditedError for SetPinError {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Denied(denied) => denied_outcome(*denied),
            // The event is in the transaction that changed the control.
            Self::Malformed | Self::RefusedPin => None,
            Self::Store(_) => None,
            Self::Hsm(error) => boundary_outcome(error),
        }
    }
}

impl AuditedError for ViewPinError {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Denied(denied) => denied_outcome(*denied),
            Self::PinNotSet => Some(Outcome::PinNotSet),
            Self::Store(_) => None,
            Self::Hsm(error) => boundary_outcome(error),
        }
    }
}

/// `None` for a call that a rate refused: it would fill the audit chain.
fn denied_outcome(denied: Denied) -> Option<Outcome> {
    Some(match denied {
        Denied::AccountBound => Outcome::AccountBound,
        Denied::CardUnknown => Outcome::CardUnknown,
        Denied::Cap { .. } => Outcome::ControlCap,
        Denied::UnregisteredCards { .. } => Outcome::UnregisteredCards,
        Denied::NotUsable | Denied::Superseded => Outcome::ControlNotUsable,
        Denied::OtherTenant | Denied::OtherScope | Denied::OtherDeviceKey => Outcome::Denied,
        Denied::NoTzpk => Outcome::TzpkMissing,
        Denied::CardRate { .. } => return None,
    })
}

fn boundary_outcome(error: &hsm_protocol::Error) -> Option<Outcome> {
    match error {
        hsm_protocol::Error::DeadlinePassed | hsm_protocol::Error::Busy { .. } => None,
        hsm_protocol::Error::WriteOnly | hsm_protocol::Error::OtherLevel { .. } => Some(Outcome::PinNotShown),
        hsm_protocol::Error::DeviceKey(_) => Some(Outcome::DeviceKeyInvalid),
        _ => Some(Outcome::BoundaryFailed),
    }
}

fn card_binding(card: &CardKey) -> Result<hsm_protocol::CardBinding, hsm_protocol::Error> {
    Ok(hsm_protocol::CardBinding::new(card.tenant.as_str(), card.plastic.as_str())?)
}

fn control_binding(control: &Control) -> hsm_protocol::ControlBinding {
    hsm_protocol::ControlBinding {
        id: *control.id.as_bytes(),
        purpose: match control.scope {
            Scope::SetPin => hsm_protocol::Purpose::SetPin,
            Scope::ViewPin => hsm_protocol::Purpose::ViewPin,
        },
        expires_at_unix_milliseconds: control.expires_at.0,
    }
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

/// The newest storage key versions of the boundary.
fn min_key_versions(status: &hsm_protocol::Status) -> MinKeyVersions {
    let newest = &status.storage;
    MinKeyVersions { wrapped: newest.wrapped.0, iso_4: newest.iso_4.0, tdes: newest.tdes.0, one_way: newest.one_way.0 }
}

fn account(account: Option<&RegisteredAccount>) -> Result<Account, hsm_protocol::Error> {
    match account {
        Some(account) => Ok(Account::Registered(SealedAccount::from_bytes(&account.sealed)?)),
        None => Ok(Account::PlasticId),
    }
}
