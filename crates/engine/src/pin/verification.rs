//! Verification and change of a PIN: a try is reserved on disk, compared once, and settled on disk (rule R9 of the protocol of
//! many engines).
//!
//! A task of the engine does the three steps, so a caller that hangs up ends none of them. A try that a failure ends between
//! reservation and settlement stays used, and its caller gets no answer: neither right nor wrong.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::zone_use::zone_block_format;
use super::{PinError, Pins, account, block_format, card_binding, control_binding, record_key};
use crate::verification_keys::check_is_active;
use crate::zones::NamedZoneBlock;
use audit::entry::{Action, BlockFormat, CardEvent, Event, Formats, Outcome};
use clock::deadline::{Deadline, under};
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId, ReencryptedPin, StoredPin, Tenant};
use domain::control::{Control, ControlId, Denied, Scope, SealedTzpk};
use domain::tries::{ChangeVerdict, Compared, ReservedTry, Verdict};
use hsm_protocol::{
    BoundaryLevel, Changed, EncryptedBlock, Error, ExpectedValue, HostOperation, PinRecord, Refusal, Reply, Request,
    SealedKey, Source, UnavailableReason, ZoneUse,
};
use store::{ChangeError, ControlUse, StoreError};

/// How long a comparison is repeated while the boundary is busy.
const BUSY_TIME_MAX: Duration = Duration::from_secs(10);
/// The pause before a comparison is repeated.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The tries of a card, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryLimits {
    /// The tries of a card of any other tenant.
    pub per_card: u32,
    /// The tries of a card of these tenants.
    pub of_tenants: HashMap<Tenant, u32>,
}

impl TryLimits {
    /// The tries of a card of this tenant.
    pub fn of(&self, tenant: &Tenant) -> u32 {
        self.of_tenants.get(tenant).copied().unwrap_or(self.per_card)
    }
}

/// The durable result of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedPin {
    /// Whether the PIN is right.
    pub is_right: bool,
    /// The tries that the card has left.
    pub tries_left: u32,
}

/// The two PINs of a change.
pub enum PinChange {
    /// Under zone keys.
    Zone {
        /// The card.
        plastic: PlasticId,
        /// The present PIN.
        old: NamedZoneBlock,
        /// The PIN that replaces it.
        new: NamedZoneBlock,
    },
    /// Under the tzpk of a control, which names the card.
    Device {
        /// The control, to set a PIN.
        control: ControlId,
        /// The present PIN.
        old: EncryptedBlock,
        /// The PIN that replaces it.
        new: EncryptedBlock,
    },
}

/// A try that is not reserved yet.
struct NewTry {
    caller: Caller,
    card: CardKey,
    compared: Compared,
    about: CardEvent,
    /// The deadline of the caller, for what is dropped when it passes.
    deadline: Option<Deadline>,
}

/// A reserved try, and what its events are about.
struct Try {
    caller: Caller,
    card: CardKey,
    limit: u32,
    reserved: ReservedTry,
    about: CardEvent,
    deadline: Option<Deadline>,
}

/// What a PIN is compared with.
enum Reference {
    Record(PinRecord),
    Value(ExpectedValue),
}

/// The blocks of a change.
struct ChangeBlocks {
    old: Source,
    new: Source,
    /// The format of the new one.
    from: BlockFormat,
    control: Option<ControlUse>,
}

impl Pins {
    /// Compares the PIN of a block with the record of the card, or with an expected value.
    ///
    /// # Errors
    /// [`PinError`]: the zone or the block is refused, the card has no try left or no PIN, the caller sent too many wrong
    /// PINs, or the store or the boundary failed. The result is then not known, and the try is used.
    pub async fn verify_pin(
        self: &Arc<Self>,
        caller: &Caller,
        plastic: PlasticId,
        block: &NamedZoneBlock,
        expected: Option<ExpectedValue>,
    ) -> Result<VerifiedPin, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let reads = self.store.read_epoch();
        let verified = self.verify(caller, card, block, expected).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::VerifyPin, &card), verified).await
    }

    async fn verify(
        self: &Arc<Self>,
        caller: &Caller,
        card: CardKey,
        named: &NamedZoneBlock,
        expected: Option<ExpectedValue>,
    ) -> Result<VerifiedPin, PinError> {
        self.limits.admit_card(&card)?;
        let zone = self.zone(&caller.tenant, &named.key)?;
        let (source, format) = zone.source(named, ZoneUse::Verify)?;
        zone.check_key(&self.boundary.status())?;
        if let Some(expected) = &expected {
            self.rules.verification_keys.check_expected(&caller.tenant, expected)?;
        }
        let (compared, operation) = match &expected {
            None => (Compared::Record, HostOperation::Verify),
            Some(_) => (Compared::Value, HostOperation::VerifyValue),
        };
        self.admit_try(operation).await?;
        if let Some(expected) = &expected {
            check_is_active(&self.boundary.status(), expected)?;
        }
        let about = CardEvent { key: Some(zone.key_text()), ..self.about_card(Action::ReserveTry, &card, None) };
        let attempt = NewTry::of_call(caller, card, compared, about);
        let pins = Arc::clone(self);
        finish(|_| async move { pins.compare_and_settle(attempt, source, zone_block_format(format), expected).await })
            .await
    }

    /// Reserves, compares and settles a try to verify the PIN.
    async fn compare_and_settle(
        &self,
        attempt: NewTry,
        source: Source,
        from: BlockFormat,
        expected: Option<ExpectedValue>,
    ) -> Result<VerifiedPin, PinError> {
        let attempt = self.reserve(attempt).await?;
        let card = card_binding(&attempt.card)?;
        let (reference, bound_to) = match expected {
            None => {
                let pin = attempt.pin()?;
                (Reference::Record(PinRecord::from_bytes(&pin.record)?), pin.account.as_ref())
            }
            Some(expected) => (Reference::Value(expected), attempt.reserved.account.as_ref()),
        };
        let account = account(bound_to)?;
        let request = || {
            let (source, account) = (source.clone(), account.clone());
            match &reference {
                Reference::Record(record) => Request::Verify { source, record: record.clone(), card, account },
                Reference::Value(expected) => {
                    Request::VerifyValue { source, expected: expected.clone(), card, account }
                }
            }
        };
        let formats = match &reference {
            Reference::Record(record) => Some(Formats { from, to: block_format(record.form()) }),
            Reference::Value(_) => None,
        };
        let (verdict, outcome) = match self.compare(request).await {
            Ok(Reply::Verified { right: true, moved }) => {
                (Verdict::Right { moved: moved.map(|moved| attempt.moved(&moved)).transpose()? }, Outcome::Done)
            }
            Ok(Reply::Verified { right: false, .. }) => (Verdict::Wrong, Outcome::WrongPin),
            Err(Error::Refused(Refusal::MalformedBlock)) => (Verdict::Malformed, Outcome::Malformed),
            Ok(_) => return Err(Error::UnexpectedReply.into()),
            Err(error) => return Err(error.into()),
        };
        self.refund_right(&attempt.caller, outcome);
        let event = self.settlement(&attempt, Action::VerifyPin, outcome, formats);
        let tries_left =
            self.store.settle_try(attempt.card, attempt.reserved.number, verdict, attempt.limit, event).await?;
        answer(outcome, tries_left)
    }

    /// Compares the old PIN with the record of the card and stores the new one if the old one is right.
    ///
    /// # Errors
    /// As [`Pins::verify_pin`]; the control does not allow the request, the new PIN breaks the policy, or another PIN was set
    /// at the same time.
    pub async fn change_pin(self: &Arc<Self>, caller: &Caller, change: &PinChange) -> Result<VerifiedPin, PinError> {
        match change {
            PinChange::Zone { plastic, old, new } => {
                let card = CardKey { tenant: caller.tenant, plastic: *plastic };
                let reads = self.store.read_epoch();
                let changed = self.change_by_zone(caller, card, old, new).await;
                self.audit_refusal(caller, reads, || self.about_refused(Action::ChangePin, &card), changed).await
            }
            PinChange::Device { control, old, new } => {
                let mut found = None;
                let reads = self.store.read_epoch();
                let changed = self.change_by_device(caller, *control, (old, new), &mut found).await;
                let refused = || self.under_control(Action::ChangePin, *control, found.as_ref());
                self.audit_refusal(caller, reads, refused, changed).await
            }
        }
    }

    async fn change_by_zone(
        self: &Arc<Self>,
        caller: &Caller,
        card: CardKey,
        old: &NamedZoneBlock,
        new: &NamedZoneBlock,
    ) -> Result<VerifiedPin, PinError> {
        self.limits.admit_card(&card)?;
        let (zone, new_zone) = (self.zone(&caller.tenant, &old.key)?, self.zone(&caller.tenant, &new.key)?);
        // The boundary refuses two zones too; the engine refuses before the request uses a try of the card.
        if zone.key().zone != new_zone.key().zone {
            return Err(Error::TranslationNotAllowed.into());
        }
        let (old, _) = zone.source(old, ZoneUse::Change)?;
        let (new, format) = new_zone.source(new, ZoneUse::Change)?;
        let status = self.boundary.status();
        zone.check_key(&status)?;
        new_zone.check_key(&status)?;
        self.admit_try(HostOperation::Change).await?;
        let about = CardEvent { key: Some(zone.key_text()), ..self.about_card(Action::ReserveTry, &card, None) };
        let attempt = NewTry::of_call(caller, card, Compared::Record, about);
        let (pins, from) = (Arc::clone(self), zone_block_format(format));
        let blocks = ChangeBlocks { old, new, from, control: None };
        finish(|gone| async move { pins.change(attempt, blocks, gone).await }).await
    }

    async fn change_by_device(
        self: &Arc<Self>,
        caller: &Caller,
        id: ControlId,
        (old, new): (&EncryptedBlock, &EncryptedBlock),
        found: &mut Option<Control>,
    ) -> Result<VerifiedPin, PinError> {
        let now = self.store.now();
        let control = self.read_control(caller, id, now, found).await?;
        control.admit(&caller.tenant, Scope::SetPin, now)?;
        let under = control.tzpk()?.clone();
        let source = |block: &EncryptedBlock| device_source(control, &under, block);
        let (old, new) = (source(old)?, source(new)?);
        self.admit_try(HostOperation::Change).await?;
        let about = self.about_control(Action::ReserveTry, control);
        let attempt = NewTry::of_call(caller, control.card, Compared::Record, about);
        let pins = Arc::clone(self);
        let blocks = ChangeBlocks { old, new, from: BlockFormat::Iso1, control: Some(ControlUse { id, under }) };
        finish(|gone| async move { pins.change(attempt, blocks, gone).await }).await
    }

    /// Reserves, compares and settles a try to change the PIN. A caller that has `gone` changes no PIN any more.
    async fn change(
        &self,
        attempt: NewTry,
        blocks: ChangeBlocks,
        gone: oneshot::Receiver<()>,
    ) -> Result<VerifiedPin, PinError> {
        let attempt = self.reserve(attempt).await?;
        let ChangeBlocks { old, new, from, control } = blocks;
        let pin = attempt.pin()?;
        let (record, card) = (PinRecord::from_bytes(&pin.record)?, card_binding(&attempt.card)?);
        let account = account(pin.account.as_ref())?;
        let request = || {
            let (old, new, record, account) = (old.clone(), new.clone(), record.clone(), account.clone());
            Request::Change { old, new, record, card, account }
        };
        let mut formats = None;
        let (verdict, outcome) = match self.compare(request).await {
            Ok(Reply::Changed(Changed::Right { record })) => {
                formats = Some(Formats { from, to: block_format(record.form()) });
                let (key, generation) = (record_key(&record), attempt.reserved.generation);
                let pin = StoredPin { key, record: record.as_bytes().into(), account: pin.account.clone() };
                (ChangeVerdict::Right { generation, pin }, Outcome::Done)
            }
            Ok(Reply::Changed(Changed::Wrong)) => (ChangeVerdict::Wrong, Outcome::WrongPin),
            Ok(Reply::Changed(Changed::RefusedPin)) => (ChangeVerdict::RefusedPin, Outcome::RefusedPin),
            Err(Error::Refused(Refusal::MalformedBlock)) => (ChangeVerdict::Malformed, Outcome::Malformed),
            Ok(_) => return Err(Error::UnexpectedReply.into()),
            Err(error) => return Err(error.into()),
        };
        self.refund_right(&attempt.caller, outcome);
        let event = self.settlement(&attempt, Action::ChangePin, outcome, formats);
        let (card, number, limit) = (attempt.card, attempt.reserved.number, attempt.limit);
        let settle = under(attempt.deadline, self.store.settle_change(card, number, verdict, limit, control, event));
        let is_right = outcome == Outcome::Done;
        let settled = if is_right {
            tokio::select! {
                biased;
                _ = gone => Err(StoreError::DeadlinePassed.into()),
                settled = settle => settled,
            }
        } else {
            settle.await
        };
        let error = match settled {
            Ok(tries_left) => return answer(outcome, tries_left),
            Err(error) => error,
        };
        let is_open = match &error {
            ChangeError::Denied(denied) => *denied != Denied::TrySettled,
            ChangeError::Store(error) => matches!(error, StoreError::DeadlinePassed),
        };
        // The old PIN is right, and the new one is not stored: the try is settled as a verification.
        if is_right && is_open {
            let event = self.settlement(&attempt, Action::VerifyPin, outcome, None);
            self.store.settle_try(card, number, Verdict::Right { moved: None }, limit, event).await?;
        }
        Err(match error {
            ChangeError::Denied(Denied::Superseded) => PinError::CardChanged,
            error => error.into(),
        })
    }

    /// Charges a caller for a block that is compared, or translated for an account number.
    pub(super) fn charge_try(&self, caller: &Caller) -> Result<(), PinError> {
        self.limits.charge_try(caller).map_err(|retry_after| PinError::WrongPinRate { retry_after })
    }

    /// Checks that the boundary can compare now: a host that repeats its calls while the boundary starts again would use up
    /// the tries of a card.
    async fn admit_try(&self, operation: HostOperation) -> Result<(), PinError> {
        if self.boundary.status().level() != BoundaryLevel::Host {
            return Err(Error::HostLevelOnly { operation }.into());
        }
        Ok(self.boundary.check().await?)
    }

    /// Charges the caller, then reserves a try on disk. What the engine can refuse without a comparison was refused before,
    /// and uses no try. What the boundary refuses is charged like a wrong PIN.
    async fn reserve(&self, attempt: NewTry) -> Result<Try, PinError> {
        let NewTry { caller, card, compared, about, deadline } = attempt;
        self.charge_try(&caller)?;
        let limit = self.rules.tries.of(&card.tenant);
        let event = self.card_event(&caller, about.clone());
        let reserved = under(deadline, self.store.reserve_try(card, limit, compared, event)).await;
        // A try in doubt may be reserved, so it stays charged.
        let is_in_doubt = |error: &ChangeError| {
            matches!(error, ChangeError::Store(StoreError::InDoubt(_) | StoreError::Unresolved { .. }))
        };
        if reserved.as_ref().is_err_and(|error| !is_in_doubt(error)) {
            self.limits.refund_try(&caller);
        }
        Ok(Try { caller, card, limit, reserved: reserved?, about, deadline })
    }

    /// Compares once. A busy boundary has compared nothing, so the request is repeated under the same try.
    async fn compare(&self, request: impl Fn() -> Request) -> Result<Reply, Error> {
        let until = Deadline::within(BUSY_TIME_MAX);
        loop {
            match self.execute(request()).await {
                Err(Error::Busy { .. }) if until.has_passed() => {
                    let reason = UnavailableReason::from("it is busy, and the try is used");
                    return Err(Error::Unavailable { reason });
                }
                Err(Error::Busy { .. }) => tokio::time::sleep(BUSY_PAUSE).await,
                reply => return reply,
            }
        }
    }

    fn refund_right(&self, caller: &Caller, outcome: Outcome) {
        if matches!(outcome, Outcome::Done | Outcome::RefusedPin) {
            self.limits.refund_try(caller);
        }
    }

    fn settlement(&self, attempt: &Try, action: Action, outcome: Outcome, formats: Option<Formats>) -> Event {
        let of_card = self.about_card(action, &attempt.card, attempt.reserved.account.as_ref());
        let about = CardEvent { formats, control: attempt.about.control, key: attempt.about.key.clone(), ..of_card };
        Event { outcome, ..self.card_event(&attempt.caller, about) }
    }
}

impl NewTry {
    fn of_call(caller: &Caller, card: CardKey, compared: Compared, about: CardEvent) -> Self {
        Self { caller: caller.clone(), card, compared, about, deadline: Deadline::of_this_call() }
    }
}

impl Try {
    /// The record to compare with.
    fn pin(&self) -> Result<&StoredPin, PinError> {
        self.reserved.pin.as_ref().ok_or(PinError::PinNotSet)
    }

    /// The record that replaces the one compared, under the newest key.
    fn moved(&self, record: &PinRecord) -> Result<ReencryptedPin, PinError> {
        Ok(ReencryptedPin {
            card: self.card,
            before: self.pin()?.record.clone(),
            after: record.as_bytes().into(),
            key: record_key(record),
        })
    }
}

/// Runs a try in a task of the engine. A caller that hangs up ends the wait for the answer, and not the try; the receiver that
/// `work` gets is closed then.
async fn finish<F>(work: impl FnOnce(oneshot::Receiver<()>) -> F) -> Result<VerifiedPin, PinError>
where
    F: Future<Output = Result<VerifiedPin, PinError>> + Send + 'static,
{
    let (_waits, gone) = oneshot::channel();
    let ended = tokio::spawn(work(gone)).await;
    ended.unwrap_or_else(|_| Err(StoreError::Unavailable("the engine ended the try".into()).into()))
}

fn device_source(control: &Control, under: &SealedTzpk, block: &EncryptedBlock) -> Result<Source, PinError> {
    Ok(Source::Device {
        sealed_tzpk: SealedKey::from_bytes(&under.0)?,
        control: control_binding(control),
        block: *block,
    })
}

/// The answer of a settled try.
fn answer(outcome: Outcome, tries_left: u32) -> Result<VerifiedPin, PinError> {
    match outcome {
        Outcome::Malformed => Err(PinError::Malformed),
        Outcome::RefusedPin => Err(PinError::RefusedPin),
        _ => Ok(VerifiedPin { is_right: outcome == Outcome::Done, tries_left }),
    }
}
