//! Verification and change of a PIN: a try is reserved on disk, compared once, and settled on disk (rule R9 of the protocol of
//! many engines).
//!
//! A call that ends between reservation and settlement keeps its try used and gets no answer: neither right nor wrong.

use std::collections::HashMap;

use super::zone_use::zone_block_format;
use super::{PinError, Pins, account, block_format, card_binding, control_binding, record_key};
use crate::zones::NamedZoneBlock;
use audit::entry::{Action, BlockFormat, CardEvent, Event, Formats, Outcome};
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId, ReencryptedPin, StoredPin, Tenant};
use domain::control::{Control, ControlId, Denied, Scope, SealedTzpk};
use domain::tries::{ChangeVerdict, Compared, ReservedTry, Verdict};
use hsm_protocol::{
    BoundaryLevel, Changed, EncryptedBlock, Error, ExpectedValue, HostOperation, PinRecord, Refusal, Reply, Request,
    SealedKey, Source, ZoneUse,
};
use store::{ChangeError, ControlUse};

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

/// A reserved try, and what its events are about.
struct Try<'c> {
    caller: &'c Caller,
    card: CardKey,
    limit: u32,
    reserved: ReservedTry,
    about: CardEvent,
}

impl Pins {
    /// Compares the PIN of a block with the record of the card, or with an expected value.
    ///
    /// # Errors
    /// [`PinError`]: the zone or the block is refused, the card has no try left or no PIN, the caller sent too many wrong
    /// PINs, or the store or the boundary failed. The result is then not known, and the try is used.
    pub async fn verify_pin(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        block: &NamedZoneBlock,
        expected: Option<ExpectedValue>,
    ) -> Result<VerifiedPin, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let verified = self.verify(caller, card, block, expected).await;
        self.audit_refusal(caller, || self.about_refused(Action::VerifyPin, &card), verified).await
    }

    async fn verify(
        &self,
        caller: &Caller,
        card: CardKey,
        named: &NamedZoneBlock,
        expected: Option<ExpectedValue>,
    ) -> Result<VerifiedPin, PinError> {
        self.admit_verification(caller)?;
        self.limits.admit_card(&card)?;
        let zone = self.zone(&caller.tenant, &named.key)?;
        let (source, format) = zone.source(named, ZoneUse::Verify)?;
        if let Some(expected) = &expected {
            self.rules.verification_keys.check_expected(&caller.tenant, expected)?;
        }
        let compared = match &expected {
            None => (Compared::Record, HostOperation::Verify),
            Some(_) => (Compared::Value, HostOperation::VerifyValue),
        };
        let about = CardEvent { key: Some(zone.key_text()), ..self.about_card(Action::ReserveTry, &card, None) };
        let attempt = self.reserve(caller, card, compared, about).await?;
        let binding = card_binding(&card)?;
        let (request, to) = match expected {
            None => {
                let pin = attempt.pin()?;
                let record = PinRecord::from_bytes(&pin.record)?;
                let to = block_format(record.form());
                (Request::Verify { source, record, card: binding, account: account(pin.account.as_ref())? }, Some(to))
            }
            Some(expected) => {
                let account = account(attempt.reserved.account.as_ref())?;
                (Request::VerifyValue { source, expected, card: binding, account }, None)
            }
        };
        let formats = to.map(|to| Formats { from: zone_block_format(format), to });
        let (verdict, outcome) = match self.boundary.execute(request).await {
            Ok(Reply::Verified { right: true, moved }) => {
                (Verdict::Right { moved: moved.map(|moved| attempt.moved(&moved)).transpose()? }, Outcome::Done)
            }
            Ok(Reply::Verified { right: false, .. }) => (Verdict::Wrong, Outcome::WrongPin),
            Err(Error::Refused(Refusal::MalformedBlock)) => (Verdict::Malformed, Outcome::Malformed),
            Ok(_) => return Err(Error::UnexpectedReply.into()),
            Err(error) => return Err(error.into()),
        };
        self.count_wrong(caller, outcome);
        let event = self.settlement(&attempt, Action::VerifyPin, outcome, formats);
        let tries_left = self.store.settle_try(card, attempt.reserved.number, verdict, attempt.limit, event).await?;
        answer(outcome, tries_left)
    }

    /// Compares the old PIN with the record of the card and stores the new one if the old one is right.
    ///
    /// # Errors
    /// As [`Pins::verify_pin`]; the control does not allow the request, the new PIN breaks the policy, or another PIN was set
    /// at the same time.
    pub async fn change_pin(&self, caller: &Caller, change: &PinChange) -> Result<VerifiedPin, PinError> {
        match change {
            PinChange::Zone { plastic, old, new } => {
                let card = CardKey { tenant: caller.tenant, plastic: *plastic };
                let changed = self.change_by_zone(caller, card, old, new).await;
                self.audit_refusal(caller, || self.about_refused(Action::ChangePin, &card), changed).await
            }
            PinChange::Device { control, old, new } => {
                let mut found = None;
                let changed = self.change_by_device(caller, *control, (old, new), &mut found).await;
                let refused = || self.under_control(Action::ChangePin, *control, found.as_ref());
                self.audit_refusal(caller, refused, changed).await
            }
        }
    }

    async fn change_by_zone(
        &self,
        caller: &Caller,
        card: CardKey,
        old: &NamedZoneBlock,
        new: &NamedZoneBlock,
    ) -> Result<VerifiedPin, PinError> {
        self.admit_verification(caller)?;
        self.limits.admit_card(&card)?;
        let zone = self.zone(&caller.tenant, &old.key)?;
        let (old, _) = zone.source(old, ZoneUse::Verify)?;
        let (new, format) = self.zone(&caller.tenant, &new.key)?.source(new, ZoneUse::Verify)?;
        let about = CardEvent { key: Some(zone.key_text()), ..self.about_card(Action::ReserveTry, &card, None) };
        let attempt = self.reserve(caller, card, (Compared::Record, HostOperation::Change), about).await?;
        self.change(attempt, old, new, zone_block_format(format), None).await
    }

    async fn change_by_device(
        &self,
        caller: &Caller,
        id: ControlId,
        (old, new): (&EncryptedBlock, &EncryptedBlock),
        found: &mut Option<Control>,
    ) -> Result<VerifiedPin, PinError> {
        self.admit_verification(caller)?;
        let now = self.store.now();
        let control = self.read_control(caller, id, now, found).await?;
        control.admit(&caller.tenant, Scope::SetPin, now)?;
        let under = control.tzpk()?.clone();
        let source = |block: &EncryptedBlock| device_source(control, &under, block);
        let (old, new) = (source(old)?, source(new)?);
        let about = CardEvent { action: Action::ReserveTry, ..self.about_control(Action::ReserveTry, control) };
        let attempt = self.reserve(caller, control.card, (Compared::Record, HostOperation::Change), about).await?;
        self.change(attempt, old, new, BlockFormat::Iso1, Some(ControlUse { id, under })).await
    }

    /// Compares and settles a reserved try to change the PIN.
    async fn change(
        &self,
        attempt: Try<'_>,
        old: Source,
        new: Source,
        from: BlockFormat,
        control: Option<ControlUse>,
    ) -> Result<VerifiedPin, PinError> {
        let pin = attempt.pin()?;
        let request = Request::Change {
            old,
            new,
            record: PinRecord::from_bytes(&pin.record)?,
            card: card_binding(&attempt.card)?,
            account: account(pin.account.as_ref())?,
        };
        let mut formats = None;
        let (verdict, outcome) = match self.boundary.execute(request).await {
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
        self.count_wrong(attempt.caller, outcome);
        let event = self.settlement(&attempt, Action::ChangePin, outcome, formats);
        let (card, number, limit) = (attempt.card, attempt.reserved.number, attempt.limit);
        match self.store.settle_change(card, number, verdict, limit, control, event).await {
            Ok(tries_left) => answer(outcome, tries_left),
            // The old PIN is right, and the new one is not stored: the try is settled as a verification.
            Err(ChangeError::Denied(denied)) if outcome == Outcome::Done && denied != Denied::TrySettled => {
                let event = self.settlement(&attempt, Action::VerifyPin, outcome, None);
                self.store.settle_try(card, number, Verdict::Right { moved: None }, limit, event).await?;
                Err(if denied == Denied::Superseded { PinError::CardChanged } else { denied.into() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Admits a caller whose wrong PINs are within the limit.
    fn admit_verification(&self, caller: &Caller) -> Result<(), PinError> {
        self.limits.admit_verification(caller).map_err(|retry_after| PinError::WrongPinRate { retry_after })
    }

    /// Reserves a try on disk. What can be refused without a comparison was refused before: it uses no try.
    async fn reserve<'c>(
        &self,
        caller: &'c Caller,
        card: CardKey,
        (compared, operation): (Compared, HostOperation),
        about: CardEvent,
    ) -> Result<Try<'c>, PinError> {
        if self.boundary.status().level() != BoundaryLevel::Host {
            return Err(Error::HostLevelOnly { operation }.into());
        }
        // A host that repeats its calls while the boundary starts again would use up the tries of a card.
        self.boundary.check().await?;
        let limit = self.rules.tries.of(&card.tenant);
        let event = self.card_event(caller, about.clone());
        let reserved = self.store.reserve_try(card, limit, compared, event).await?;
        Ok(Try { caller, card, limit, reserved, about })
    }

    fn count_wrong(&self, caller: &Caller, outcome: Outcome) {
        if matches!(outcome, Outcome::WrongPin | Outcome::Malformed) {
            self.limits.count_wrong_pin(caller);
        }
    }

    fn settlement(&self, attempt: &Try<'_>, action: Action, outcome: Outcome, formats: Option<Formats>) -> Event {
        let of_card = self.about_card(action, &attempt.card, attempt.reserved.account.as_ref());
        let about = CardEvent { formats, control: attempt.about.control, key: attempt.about.key.clone(), ..of_card };
        Event { outcome, ..self.card_event(attempt.caller, about) }
    }
}

impl Try<'_> {
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
