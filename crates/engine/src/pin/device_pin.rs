//! Controls, and PINs that a device sets or views under a control.

use super::{ATTEMPTS_MAX, PinError, Pins, account, block_format, card_binding, record_key};
use audit::entry::{Action, BlockFormat, CardEvent, Event, Formats, Outcome};
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId, StoredPin};
use domain::control::{
    Control, ControlId, Denied, NewControl, PageClient, PageId, RetryTag, Scope, SealedTzpk, Thumbprint, Transition,
};
use domain::time::UnixMillis;
use hsm_protocol::{
    DeviceKey, EncryptedBlock, PinDigits, PinRecord, Refusal, Reply, Request, SealedKey, Source, Target,
};
use store::ChangeError;

impl Pins {
    /// The newest state of a control, which is left in `found`. The first read of a call counts as a call about the card. Calls
    /// of another tenant do not use up the quota of the card. Calls under a control that is not usable do not count: their
    /// answer must not depend on the quota.
    pub(super) async fn read_control<'f>(
        &self,
        caller: &Caller,
        id: ControlId,
        now: UnixMillis,
        found: &'f mut Option<Control>,
    ) -> Result<&'f Control, PinError> {
        let is_first = found.is_none();
        let control = &*found.insert(self.store.control(id).await?.ok_or(Denied::NotUsable)?);
        if is_first && control.card.tenant == caller.tenant && control.is_usable(now) {
            self.limits.admit_card(&control.card)?;
        }
        Ok(control)
    }

    /// Opens a control for a card and a purpose. Refuses it while the boundary does not answer: no call under the control
    /// could succeed.
    ///
    /// # Errors
    /// [`PinError`]: the rules allow no such control, or the boundary or the store failed.
    pub async fn open_control(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        scope: Scope,
        device_key: Option<Thumbprint>,
        page_client: Option<PageClient>,
    ) -> Result<Control, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        let id = ControlId::random();
        let lifetime = self.rules.control_lifetime;
        let control = NewControl { id, card, scope, lifetime, device_key, page_client };
        let opened = CardEvent { control: Some(id), ..self.about_card(Action::OpenControl, &card, None) };
        let event = self.card_event(caller, opened);
        let reads = self.store.read_epoch();
        let loss = self.boundary_loss.borrow().clone();
        let opened = match loss {
            Some(reason) => Err(hsm_protocol::Error::Unavailable { reason }.into()),
            None => self.store.open_control(control, self.rules.admission, event).await.map_err(PinError::from),
        };
        self.audit_refusal(caller, reads, || self.about_refused(Action::OpenControl, &card), opened).await
    }

    /// Starts a page of a client under a control of one of these scopes, or confirms that this page started it. Returns the
    /// control.
    ///
    /// # Errors
    /// [`PinError`]: the control is not usable, or is for the pages of another client or none, another page started it, or it
    /// is of another tenant or scope; or the store failed.
    pub async fn start_page(
        &self,
        caller: &Caller,
        id: ControlId,
        client: PageClient,
        page: PageId,
        scopes: &[Scope],
    ) -> Result<Control, PinError> {
        let mut found = None;
        let reads = self.store.read_epoch();
        let started = self.start(caller, id, client, page, scopes, &mut found).await;
        self.audit_refusal(caller, reads, || self.under_control(Action::StartPage, id, found.as_ref()), started).await
    }

    async fn start(
        &self,
        caller: &Caller,
        id: ControlId,
        client: PageClient,
        page: PageId,
        scopes: &[Scope],
        found: &mut Option<Control>,
    ) -> Result<Control, PinError> {
        let now = self.store.now();
        let control = self.read_control(caller, id, now, found).await?;
        control.admit_page(&caller.tenant, client, page, now)?;
        if !scopes.contains(&control.scope) {
            return Err(Denied::OtherScope.into());
        }
        // A repeat too: only the store knows whether the control is usable yet.
        let event = self.control_event(caller, Action::StartPage, control);
        self.store.start_page(id, client, page, event).await?;
        Ok(control.clone())
    }

    /// The number of digits that a PIN may have.
    pub(crate) fn pin_digits(&self) -> PinDigits {
        self.boundary.status().pin_digits
    }

    /// Makes a fresh tzpk for the control's device. Only the newest tzpk of a control is valid.
    ///
    /// # Errors
    /// [`PinError`]: the control does not allow the request, or the store or the boundary failed.
    pub async fn issue_tzpk(&self, caller: &Caller, id: ControlId, device: &DeviceKey) -> Result<IssuedTzpk, PinError> {
        let mut found = None;
        let reads = self.store.read_epoch();
        let issued = self.issue(caller, id, device, &mut found).await;
        self.audit_refusal(caller, reads, || self.under_control(Action::IssueTzpk, id, found.as_ref()), issued).await
    }

    async fn issue(
        &self,
        caller: &Caller,
        id: ControlId,
        device: &DeviceKey,
        found: &mut Option<Control>,
    ) -> Result<IssuedTzpk, PinError> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.store.now();
            let control = self.read_control(caller, id, now, found).await?;
            control.admit(&caller.tenant, Scope::SetPin, now)?;
            control.admit_device_key(&Thumbprint(device.thumbprint()))?;

            let binding =
                hsm_protocol::Binding { card: card_binding(&control.card)?, control: control_binding(control) };
            let issue = Request::IssueTzpk { public_key: device.clone(), binding };
            let Reply::Tzpk(issued) = self.execute(issue).await? else {
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
    /// [`PinError`]: the control does not allow the request, the block or the PIN was refused, or the store or the boundary
    /// failed.
    pub async fn set_pin(&self, caller: &Caller, id: ControlId, block: &EncryptedBlock) -> Result<(), PinError> {
        let mut found = None;
        let reads = self.store.read_epoch();
        let set = self.set(caller, id, block, &mut found).await;
        self.audit_refusal(caller, reads, || self.under_control(Action::SetPin, id, found.as_ref()), set).await
    }

    async fn set(
        &self,
        caller: &Caller,
        id: ControlId,
        block: &EncryptedBlock,
        found: &mut Option<Control>,
    ) -> Result<(), PinError> {
        let mut is_first_denial = true;
        for attempt in 0..ATTEMPTS_MAX {
            let now = self.store.now();
            let control = self.read_control(caller, id, now, found).await?;
            if let Some(retry) = self.retry(caller, control, block, now).await? {
                let event = self.control_event(caller, Action::ConfirmSetPin, control);
                return Ok(self.store.confirm_retry(id, retry, event).await?);
            }
            control.admit(&caller.tenant, Scope::SetPin, now)?;
            match self.translate_and_store(caller, control, block).await {
                // Another request issued a newer tzpk: start over with the present control.
                Err(PinError::Denied(Denied::Superseded)) => {}
                // Another engine that lacks the storage key registered: once more, under the key that it has.
                Err(PinError::Denied(Denied::StorageKeyInactive)) if attempt == 0 => {}
                // The same block on another connection may have spent the control: start over once, as its retry.
                Err(PinError::Denied(Denied::NotUsable)) if is_first_denial => is_first_denial = false,
                outcome => return outcome,
            }
        }
        Err(Denied::NotUsable.into())
    }

    /// Encrypts the PIN for the control's device. A control allows this once.
    ///
    /// # Errors
    /// [`PinError`]: the control does not allow the request, the card has no PIN, or the store or the boundary failed.
    pub async fn view_pin(&self, caller: &Caller, id: ControlId, device: &DeviceKey) -> Result<ShownPin, PinError> {
        let mut found = None;
        let reads = self.store.read_epoch();
        let viewed = self.view(caller, id, device, &mut found).await;
        self.audit_refusal(caller, reads, || self.under_control(Action::ViewPin, id, found.as_ref()), viewed).await
    }

    async fn view(
        &self,
        caller: &Caller,
        id: ControlId,
        device: &DeviceKey,
        found: &mut Option<Control>,
    ) -> Result<ShownPin, PinError> {
        for _ in 0..ATTEMPTS_MAX {
            let now = self.store.now();
            let control = self.read_control(caller, id, now, found).await?;
            control.admit(&caller.tenant, Scope::ViewPin, now)?;
            control.admit_device_key(&Thumbprint(device.thumbprint()))?;

            let pin = self.store.pin(&control.card).await?.ok_or(PinError::PinNotSet)?;
            let record = PinRecord::from_bytes(&pin.record).map_err(hsm_protocol::Error::from)?;
            let formats = Some(Formats { from: block_format(record.form()), to: BlockFormat::Iso1 });
            let translate = Request::Translate {
                source: Source::Record(record),
                target: Target::Device { public_key: device.clone() },
                card: card_binding(&control.card)?,
                account: account(pin.account.as_ref())?,
            };
            let Reply::Block(shown) = self.execute(translate).await? else {
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

    /// The retry tag of the block, if the same block set the PIN under this control.
    async fn retry(
        &self,
        caller: &Caller,
        control: &Control,
        block: &EncryptedBlock,
        now: UnixMillis,
    ) -> Result<Option<RetryTag>, PinError> {
        let Some(set_by) = control.set_by(&caller.tenant, now) else { return Ok(None) };
        let request = Request::RetryTag { control: *control.id.as_bytes(), block: *block };
        let Reply::RetryTag(tag) = self.execute(request).await? else {
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
    ) -> Result<(), PinError> {
        let under = control.tzpk()?.clone();
        let tzpk = SealedKey::from_bytes(&under.0).map_err(hsm_protocol::Error::from)?;
        let translate = Request::Translate {
            source: Source::Device { sealed_tzpk: tzpk, control: control_binding(control), block: *block },
            target: Target::Record,
            card: card_binding(&control.card)?,
            account: account(control.account.as_ref())?,
        };
        let translated = self.execute(translate).await;
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
                Err(PinError::Malformed)
            }
            Err(hsm_protocol::Error::Refused(Refusal::PinPolicy)) => {
                let event = Event { outcome: Outcome::RefusedPin, ..self.card_event(caller, card) };
                self.store.advance(control.id, Transition::RefusedPin { under }, event).await?;
                Err(PinError::RefusedPin)
            }
            Err(error) => Err(error.into()),
        }
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

pub(super) fn control_binding(control: &Control) -> hsm_protocol::ControlBinding {
    hsm_protocol::ControlBinding {
        id: *control.id.as_bytes(),
        purpose: match control.scope {
            Scope::SetPin => hsm_protocol::Purpose::SetPin,
            Scope::ViewPin => hsm_protocol::Purpose::ViewPin,
        },
        expires_at_unix_milliseconds: control.expires_at.0,
    }
}
