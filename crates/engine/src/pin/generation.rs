//! PINs that the boundary generates, and verification values that the boundary derives of a PIN.

use super::{ATTEMPTS_MAX, PinError, Pins, account, card_binding, record_key};
use audit::entry::{Action, CardEvent};
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId, StoredPin};
use domain::control::Denied;
use hsm_protocol::{Error, KeyUsage, PinRecord, Reply, Request, ValueMethod, VerificationValue};
use store::ChangeError;

impl Pins {
    /// Generates a PIN of this many digits inside the boundary and stores its record.
    ///
    /// # Errors
    /// [`PinError`]: the card is unknown, the policy allows no such PIN, or the store or the boundary failed.
    pub async fn generate_pin(&self, caller: &Caller, plastic: PlasticId, digits: u8) -> Result<(), PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let reads = self.store.read_epoch();
        let generated = self.generate(caller, card, digits).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::GeneratePin, &card), generated).await
    }

    async fn generate(&self, caller: &Caller, card: CardKey, digits: u8) -> Result<(), PinError> {
        self.limits.admit_card(&card)?;
        for attempt in 0..ATTEMPTS_MAX {
            let registered = self.store.card(&card).await?.ok_or(Denied::CardUnknown)?.account;
            let generate =
                Request::Generate { digits, card: card_binding(&card)?, account: account(registered.as_ref())? };
            let Reply::Record { record, .. } = self.execute(generate).await? else {
                return Err(Error::UnexpectedReply.into());
            };
            let event = self.card_event(caller, self.about_card(Action::GeneratePin, &card, registered.as_ref()));
            let (key, record) = (record_key(&record), record.as_bytes().into());
            match self.store.generate_pin(card, StoredPin { key, record, account: registered }, event).await {
                // The account number or the storage key changed: start over with the present ones.
                Err(ChangeError::Denied(Denied::Superseded)) => {}
                // Another engine that lacks the key registered: once more, under the key that it has.
                Err(ChangeError::Denied(Denied::StorageKeyInactive)) if attempt == 0 => {}
                stored => return Ok(stored?),
            }
        }
        Err(PinError::CardChanged)
    }

    /// Derives a verification value of the stored PIN.
    ///
    /// # Errors
    /// [`PinError`]: the card has no PIN, there is no such key, the record is one-way, or the store or the boundary failed.
    pub async fn derive_value(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        method: &ValueMethod,
    ) -> Result<VerificationValue, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let reads = self.store.read_epoch();
        let derived = self.derive(caller, card, method).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::DeriveValue, &card), derived).await
    }

    async fn derive(
        &self,
        caller: &Caller,
        card: CardKey,
        method: &ValueMethod,
    ) -> Result<VerificationValue, PinError> {
        self.limits.admit_card(&card)?;
        self.rules.verification_keys.check_method(&caller.tenant, method)?;
        for _ in 0..ATTEMPTS_MAX {
            let pin = self.store.pin(&card).await?.ok_or(PinError::PinNotSet)?;
            let derive = Request::DeriveValue {
                record: PinRecord::from_bytes(&pin.record)?,
                method: method.clone(),
                card: card_binding(&card)?,
                account: account(pin.account.as_ref())?,
            };
            let Reply::Value(value) = self.execute(derive).await? else {
                return Err(Error::UnexpectedReply.into());
            };
            let about = self.about_card(Action::DeriveValue, &card, pin.account.as_ref());
            let derived = CardEvent { key: Some(key_text(method)), ..about };
            match self.store.give_pin(card, pin.record, self.card_event(caller, derived)).await {
                Ok(()) => return Ok(value),
                // Another request replaced the record: start over with the newest one.
                Err(ChangeError::Denied(Denied::Superseded)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PinError::CardChanged)
    }
}

/// The key that a request names, for an audit event. The name of an IBM 3624 key in the inventory also has its table.
fn key_text(method: &ValueMethod) -> Box<str> {
    match method {
        ValueMethod::Pvv(key) => KeyUsage::Pvk(key.clone()).to_string().into(),
        ValueMethod::Ibm3624Offset(name) => format!("ibm-3624:{name}").into(),
    }
}
