//! Cards: their registration, account numbers and tries, and PINs that go from a card to its successor.

use super::{ATTEMPTS_MAX, PinError, Pins, account, card_binding, record_key};
use audit::card_reference::CardReference;
use audit::entry::{Action, CardEvent, Event, Outcome};
use domain::caller::Caller;
use domain::card::{Card, CardKey, PlasticId, ReencryptedPin, RegisteredAccount, StoredPin};
use domain::control::Denied;
use domain::tries::Tries;
use hsm_protocol::{AccountNumber, Error, PinRecord, Reply, Request};
use store::ChangeError;

impl Pins {
    /// Registers a card. Its account number is sealed before it is stored.
    ///
    /// # Errors
    /// [`PinError`]: the store or the boundary failed, or the store refused the change.
    pub async fn register_card(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        number: Option<AccountNumber>,
    ) -> Result<Card, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let reads = self.store.read_epoch();
        let registered = self.register(caller, card, number).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::RegisterCard, &card), registered).await
    }

    async fn register(&self, caller: &Caller, card: CardKey, number: Option<AccountNumber>) -> Result<Card, PinError> {
        self.limits.admit_card(&card)?;
        let account = match number {
            Some(number) => {
                let masked = number.masked().into();
                Some(RegisteredAccount { sealed: self.seal(&card, number).await?.as_bytes().into(), masked })
            }
            None => None,
        };
        for _ in 0..ATTEMPTS_MAX {
            let event = self.card_event(caller, self.about_card(Action::RegisterCard, &card, account.as_ref()));
            match (self.store.register_card(card, account.clone(), event).await, &account) {
                (Err(ChangeError::Denied(Denied::AccountBound)), Some(account)) => {
                    match self.replace_account(caller, card, account).await {
                        // Another request set or replaced the PIN: start over with the newest record.
                        Err(PinError::Denied(Denied::Superseded)) => {}
                        replaced => return replaced,
                    }
                }
                (registered, _) => return Ok(registered?),
            }
        }
        Err(PinError::CardChanged)
    }

    /// Replaces the account number of a card with a PIN, which the boundary re-encrypts for the number.
    async fn replace_account(
        &self,
        caller: &Caller,
        card: CardKey,
        account: &RegisteredAccount,
    ) -> Result<Card, PinError> {
        let pin = self.store.pin(&card).await?.ok_or(Denied::Superseded)?;
        let to = (&card, Some(account));
        let pin = match self.rebound(&pin, &card, to).await {
            Ok(record) => {
                ReencryptedPin { card, before: pin.record, key: record_key(&record), after: record.as_bytes().into() }
            }
            Err(PinError::Hsm(Error::HostLevelOnly { .. } | Error::WriteOnly | Error::OtherLevel { .. })) => {
                return Err(Denied::AccountBound.into());
            }
            Err(error) => return Err(error),
        };
        let event = self.card_event(caller, self.about_card(Action::ChangeAccount, &card, Some(account)));
        Ok(self.store.replace_account(card, account.clone(), Some(pin), event).await?)
    }

    /// The record of a PIN for another account number or card.
    async fn rebound(
        &self,
        pin: &StoredPin,
        card: &CardKey,
        (to_card, to_account): (&CardKey, Option<&RegisteredAccount>),
    ) -> Result<PinRecord, PinError> {
        let rebind = Request::Rebind {
            record: PinRecord::from_bytes(&pin.record)?,
            from: (card_binding(card)?, account(pin.account.as_ref())?),
            to: (card_binding(to_card)?, account(to_account)?),
        };
        match self.execute(rebind).await? {
            Reply::Record { record, .. } => Ok(record),
            _ => Err(Error::UnexpectedReply.into()),
        }
    }

    /// Gives a card the PIN of its predecessor, which has the same account number and keeps the PIN.
    ///
    /// # Errors
    /// [`PinError`]: a card is unknown, the predecessor has no PIN, the account numbers differ, or the store or the boundary
    /// failed.
    pub async fn transfer_pin(&self, caller: &Caller, source: PlasticId, target: PlasticId) -> Result<(), PinError> {
        let [from, to] = [source, target].map(|plastic| CardKey { tenant: caller.tenant, plastic });
        let reads = self.store.read_epoch();
        let transferred = self.transfer(caller, from, to).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::TransferPin, &to), transferred).await
    }

    async fn transfer(&self, caller: &Caller, from: CardKey, to: CardKey) -> Result<(), PinError> {
        self.limits.admit_card(&from)?;
        self.limits.admit_card(&to)?;
        for attempt in 0..ATTEMPTS_MAX {
            let account = self.store.card(&to).await?.ok_or(Denied::CardUnknown)?.account;
            if self.store.card(&from).await?.is_none() {
                return Err(Denied::CardUnknown.into());
            }
            let pin = self.store.pin(&from).await?.ok_or(PinError::PinNotSet)?;
            let record = self.rebound(&pin, &from, (&to, account.as_ref())).await?;
            let transferred = CardEvent {
                predecessor: Some(self.references.reference(&from)),
                ..self.about_card(Action::TransferPin, &to, account.as_ref())
            };
            let event = self.card_event(caller, transferred);
            let copy = StoredPin { key: record_key(&record), record: record.as_bytes().into(), account };
            match self.store.transfer_pin(from, pin.record, to, copy, event).await {
                // A PIN, an account number or the storage key changed: start over with the present ones.
                Err(ChangeError::Denied(Denied::Superseded)) => {}
                // Another engine that lacks the key registered: once more, under the key that it has.
                Err(ChangeError::Denied(Denied::StorageKeyInactive)) if attempt == 0 => {}
                stored => return Ok(stored?),
            }
        }
        Err(PinError::CardChanged)
    }

    /// Reads a card. The read is audited.
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], or the store failed.
    pub async fn find_card(&self, caller: &Caller, plastic: PlasticId) -> Result<(Card, Tries), PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        let (found, tries) = (self.store.card(&card).await?, self.store.tries(&card).await?);
        let event = self.about_card(Action::FindCard, &card, found.as_ref().and_then(|card| card.account.as_ref()));
        let outcome = if found.is_some() { Outcome::Done } else { Outcome::CardUnknown };
        self.store.record_access(Event { outcome, ..self.card_event(caller, event) }).await?;
        Ok((found.ok_or(Denied::CardUnknown)?, tries.unwrap_or_default()))
    }

    /// Forgives the tries of a card up to the number that the caller saw.
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], or the store failed.
    pub async fn reset_tries(&self, caller: &Caller, plastic: PlasticId, up_to: u64) -> Result<Tries, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        let event = self.card_event(caller, self.about_card(Action::ResetTries, &card, None));
        let reads = self.store.read_epoch();
        let reset = self.store.reset_tries(card, up_to, self.rules.tries.of(&card.tenant), event).await;
        self.audit_refusal(
            caller,
            reads,
            || self.about_refused(Action::ResetTries, &card),
            reset.map_err(PinError::from),
        )
        .await
    }

    /// The reference of a card in audit events.
    pub(crate) fn card_reference(&self, caller: &Caller, plastic: PlasticId) -> CardReference {
        self.references.reference(&CardKey { tenant: caller.tenant, plastic })
    }
}
