//! What the boundary does, operation by operation, on whatever token it has. Blocking; nothing clear is returned.
//!
//! The two levels differ in who sees a block: at `host` this process does, and judges it; at `token` nobody does.

mod at_host;
mod at_token;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub(crate) use self::{at_host::AtHost, at_token::AtToken};
use crate::{
    account::{Account, AccountNumber},
    binding::{Binding, BoundaryLevel, CardBinding},
    block::AccountDigits,
    device_key::DeviceKey,
    error::{AcceptError, Error},
    form::StorageFormat,
    outcome::{Accepted, Issued, Revealed},
    sealed::{ACCOUNT_BYTES, EncryptedBlock, PinRecord, SealedAccount, SealedKey, account_bound_to, record_bound_to},
    token::Token,
};

/// A token at one level, and what is done with it.
pub(crate) enum Boundary {
    Host(AtHost),
    Token(AtToken),
}

impl Boundary {
    pub(crate) fn token(&self) -> &dyn Token {
        match self {
            Self::Host(at_host) => &*at_host.token,
            Self::Token(at_token) => &*at_token.token,
        }
    }

    pub(crate) fn level(&self) -> BoundaryLevel {
        match self {
            Self::Host(_) => BoundaryLevel::Host,
            Self::Token(_) => BoundaryLevel::Token,
        }
    }

    /// The form of new records.
    pub(crate) fn form(&self) -> StorageFormat {
        match self {
            Self::Host(at_host) => at_host.form.into(),
            Self::Token(at_token) => at_token.form.into(),
        }
    }

    /// Makes a fresh tzpk: sealed for ourselves with its binding, wrapped for the device.
    pub(crate) fn issue(&self, device: &DeviceKey, binding: &Binding<'_>) -> Result<Issued, Error> {
        match self {
            Self::Host(at_host) => at_host.issue(device, binding),
            Self::Token(at_token) => at_token.issue(device, binding),
        }
    }

    /// Makes a record of a block under its tzpk, bound to the account.
    pub(crate) fn accept(
        &self,
        tzpk: &SealedKey,
        binding: &Binding<'_>,
        block: &EncryptedBlock,
        account: Account<'_>,
    ) -> Result<Accepted, AcceptError> {
        match self {
            Self::Host(at_host) => at_host.accept(tzpk, binding, block, account),
            Self::Token(at_token) => at_token.accept(tzpk, binding, block, account),
        }
    }

    /// The tag that [`Boundary::accept`] gives this block under this control: a retry has the same.
    pub(crate) fn retry_tag(&self, binding: &Binding<'_>, block: &EncryptedBlock) -> Result<[u8; 16], Error> {
        self.token().retry_tag(binding.control, block.as_bytes())
    }

    /// Opens a record, and gives its PIN out as an ISO-1 block under a fresh tzpk for the device.
    pub(crate) fn reveal(
        &self,
        record: &PinRecord,
        binding: &Binding<'_>,
        account: Account<'_>,
        device: &DeviceKey,
    ) -> Result<Revealed, Error> {
        self.check_record(record, &binding.card)?;
        match self {
            Self::Host(at_host) => at_host.reveal(record, binding, account, device),
            Self::Token(at_token) => at_token.reveal(record, binding, account, device),
        }
    }

    /// Makes a record anew under the newest storage key.
    pub(crate) fn remake(
        &self,
        record: &PinRecord,
        card: &CardBinding<'_>,
        account: Account<'_>,
    ) -> Result<PinRecord, Error> {
        self.check_record(record, card)?;
        match self {
            Self::Host(at_host) => at_host.remake(record, card, account),
            Self::Token(at_token) => at_token.remake(record, card, account),
        }
    }

    /// Seals an account number for a card.
    pub(crate) fn seal_account(&self, number: &AccountNumber, card: CardBinding<'_>) -> Result<SealedAccount, Error> {
        let key = self.token().current().account;
        let mut packed = Zeroizing::new([0xFF; ACCOUNT_BYTES]);
        for (place, digit) in number.digits().as_slice().iter().enumerate() {
            if let Some(byte) = packed.get_mut(place / 2) {
                *byte = if place.is_multiple_of(2) { (*byte & 0x0F) | (digit << 4) } else { (*byte & 0xF0) | digit };
            }
        }
        let tag = self.token().seal_account(&mut packed, &account_bound_to(key, &card))?;
        Ok(SealedAccount::new(key, &packed, &tag))
    }

    /// A record is whole, of this card, and of this level: the other one's storage keys are not here.
    fn check_record(&self, record: &PinRecord, card: &CardBinding<'_>) -> Result<(), Error> {
        if !self.token().has_storage_key(record.form(), record.storage_key()) {
            return Err(Error::UnknownKey);
        }
        let tag = self.token().record_tag(record.tagged_bytes(), &record_bound_to(record.storage_key(), card))?;
        if !bool::from(tag.ct_eq(record.tag())) {
            return Err(Error::SealBroken { what: "PIN record".into() });
        }
        if record.made_at().level != self.level() {
            return Err(Error::OtherLevel { made_at: record.made_at().level });
        }
        Ok(())
    }
}

/// The digits a block is bound to.
fn account_digits(token: &dyn Token, account: Account<'_>, card: &CardBinding<'_>) -> Result<AccountDigits, Error> {
    let Account::Registered(sealed) = account else {
        return AccountDigits::parse(card.plastic_id).ok_or(Error::PlasticId);
    };
    let mut packed = Zeroizing::new([0; ACCOUNT_BYTES]);
    let bound = account_bound_to(sealed.key(), card);
    token.open_account(sealed.ciphertext_and_tag(), &bound, &mut packed)?;
    AccountDigits::unpack(&packed[..]).ok_or(Error::SealBroken { what: "account".into() })
}

/// A record with its tag.
fn tagged(token: &dyn Token, mut record: PinRecord, card: &CardBinding<'_>) -> Result<PinRecord, Error> {
    let tag = token.record_tag(record.tagged_bytes(), &record_bound_to(record.storage_key(), card))?;
    record.set_tag(&tag);
    Ok(record)
}
