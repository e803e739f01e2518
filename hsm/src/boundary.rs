//! The operations of the boundary on its token. They block the thread, and return no clear value.
//!
//! At level `host` this process decrypts a block and checks it. At level `token` the clear block stays inside the token.

mod at_host;
mod at_token;
mod host_zones;
#[cfg(test)]
mod rebind_tests;
mod together;
mod token_zones;
mod verify;
mod zone_translation;

#[cfg(test)]
pub(crate) use self::together::BATCHED;
use self::together::Decrypted;
pub(crate) use self::{at_host::AtHost, at_token::AtToken};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use hsm_protocol::{
    ACCOUNT_BYTES, Account, AccountNumber, Binding, BoundaryLevel, CardBinding, Error, HostOperation, PinDigits,
    PinRecord, Reply, Request, SealedAccount, Source, StorageFormat, StorageVersions, Target, account_bound_to,
    record_bound_to,
};

use crate::{
    block::AccountDigits,
    token::Token,
    translation::{Place, check_translation},
};

/// The boundary at one level.
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

    /// The digits of a PIN by the policy; at level `token`, which sees no PIN, by ISO 9564-1.
    pub(crate) fn pin_digits(&self) -> PinDigits {
        match self {
            Self::Host(at_host) => at_host.policy.digits(),
            Self::Token(_) => PinDigits::ISO_9564,
        }
    }

    /// The format of new records.
    pub(crate) fn form(&self) -> StorageFormat {
        match self {
            Self::Host(at_host) => at_host.form.into(),
            Self::Token(at_token) => at_token.form.into(),
        }
    }

    /// Executes one request.
    ///
    /// # Errors
    /// [`Error::Refused`] for a malformed block or a PIN against the policy; the other variants say what failed.
    pub(crate) fn execute(&self, request: &Request) -> Result<Reply, Error> {
        self.execute_under(self.token().current().storage, request, None)
    }

    /// Executes one request. New records are encrypted under `storage`. A batch has decrypted the block that the request
    /// translates already where `decrypted` is set.
    fn execute_under(
        &self,
        storage: StorageVersions,
        request: &Request,
        decrypted: Option<Decrypted<'_>>,
    ) -> Result<Reply, Error> {
        match request {
            Request::UpTo { versions, request } => {
                self.execute_under(self.token().storage_up_to(*versions), request, decrypted)
            }
            Request::Check => self.token().check().map(|()| Reply::Available),
            Request::IssueTzpk { public_key, binding } => match self {
                Self::Host(at_host) => at_host.issue_tzpk(public_key, binding),
                Self::Token(at_token) => at_token.issue_tzpk(public_key, binding),
            }
            .map(Reply::Tzpk),
            Request::Translate { source, target, card, account } => {
                self.translate(storage, (source, decrypted), target, card, account)
            }
            Request::Together { requests } => Ok(Reply::Together(self.execute_all(storage, requests))),
            Request::RetryTag { control, block } => {
                self.token().retry_tag(control, block.as_bytes()).map(Reply::RetryTag)
            }
            Request::SealPan { number, card } => self.seal_pan(number, card).map(Reply::SealedPan),
            Request::Verify { source, record, card, account } => {
                let at_host = self.at_host(HostOperation::Verify)?;
                check_account_number(binds_account(source), card, account)?;
                self.check_record(record, card)?;
                at_host.verify(storage, source, record, card, account)
            }
            Request::VerifyValue { source, expected, card, account } => {
                let at_host = self.at_host(HostOperation::VerifyValue)?;
                check_account_number(true, card, account)?;
                at_host.verify_value(source, expected, card, account)
            }
            Request::Change { old, new, record, card, account } => {
                let at_host = self.at_host(HostOperation::Change)?;
                check_account_number(binds_account(old) || binds_account(new), card, account)?;
                self.check_record(record, card)?;
                at_host.change(storage, (old, new), record, card, account).map(Reply::Changed)
            }
            Request::Generate { digits, card, account } => {
                let record = self.at_host(HostOperation::Generate)?.generate(storage, *digits, card, account)?;
                Ok(Reply::Record { record, retry_tag: None })
            }
            Request::DeriveValue { record, method, card, account } => {
                let at_host = self.at_host(HostOperation::DeriveValue)?;
                self.check_is_reversible()?;
                check_account_number(true, card, account)?;
                self.check_record(record, card)?;
                at_host.derive_value(record, method, card, account).map(Reply::Value)
            }
            Request::Rebind { record, from, to } => {
                let at_host = self.at_host(HostOperation::Rebind)?;
                self.check_record(record, &from.0)?;
                Ok(Reply::Record { record: at_host.rebind(storage, record, from, to)?, retry_tag: None })
            }
        }
    }

    /// The boundary of level `host`, which alone compares PINs.
    fn at_host(&self, operation: HostOperation) -> Result<&AtHost, Error> {
        match self {
            Self::Host(at_host) => Ok(at_host),
            Self::Token(_) => Err(Error::HostLevelOnly { operation }),
        }
    }

    /// Checks that a PIN, or a value of it, may leave a record. Where new records are one-way, a reversible record that is left
    /// from before is not shown, exported or derived from either.
    ///
    /// # Errors
    /// [`Error::OneWay`] where new records are one-way.
    fn check_is_reversible(&self) -> Result<(), Error> {
        if self.form() == StorageFormat::OneWay { Err(Error::OneWay) } else { Ok(()) }
    }

    fn translate(
        &self,
        storage: StorageVersions,
        (source, decrypted): (&Source, Option<Decrypted<'_>>),
        target: &Target,
        card: &CardBinding,
        account: &Account,
    ) -> Result<Reply, Error> {
        if let Source::Record(record) = source {
            self.check_record(record, card)?;
        }
        let source_place = match source {
            Source::Device { .. } => Place::Device,
            Source::Record(record) => Place::Record(record.form()),
            Source::Zone { block, .. } => Place::Zone(block.format()),
        };
        let target_place = match (self, target) {
            (_, Target::Device { .. }) => Place::Device,
            (_, Target::Zone { format, .. }) => Place::Zone(*format),
            (Self::Token(_), Target::Record) if let Place::Record(form) = source_place => Place::Record(form),
            (_, Target::Record) => Place::Record(self.form()),
        };
        if matches!((source, target), (Source::Record(_), Target::Device { .. } | Target::Zone { .. })) {
            self.check_is_reversible()?;
        }
        check_translation(self.level(), source_place, target_place)?;
        let target_binds = matches!(target, Target::Zone { format, .. } if format.binds_account());
        check_account_number(binds_account(source) || target_binds, card, account)?;
        match (source, target) {
            (Source::Device { sealed_tzpk, control, block }, Target::Record) => {
                let binding = Binding { card: *card, control: *control };
                // Computed before the check of the block, so that accepted and refused blocks cost the same work.
                let retry_tag = self.token().retry_tag(&control.id, block.as_bytes())?;
                let record = match self {
                    Self::Host(at_host) => {
                        at_host.device_to_record(storage, sealed_tzpk, &binding, (block, decrypted), account)?
                    }
                    Self::Token(at_token) => {
                        at_token.device_to_record(storage, sealed_tzpk, &binding, block, account)?
                    }
                };
                Ok(Reply::Record { record, retry_tag: Some(retry_tag) })
            }
            (Source::Record(record), Target::Device { public_key }) => match self {
                Self::Host(at_host) => at_host.record_to_device((record, decrypted), card, account, public_key),
                Self::Token(at_token) => at_token.record_to_device(record, card, account, public_key),
            }
            .map(Reply::Block),
            (Source::Record(record), Target::Record) => {
                let record = match self {
                    Self::Host(at_host) => at_host.reencrypt(storage, (record, decrypted), card, account)?,
                    Self::Token(at_token) => at_token.reencrypt(storage, record, card, account)?,
                };
                Ok(Reply::Record { record, retry_tag: None })
            }
            (Source::Zone { key, block }, Target::Record) => {
                self.zone_to_record(storage, (key, block, decrypted), card, account)
            }
            (Source::Record(record), Target::Zone { key, format }) => {
                self.record_to_zone((record, decrypted), (key, *format), card, account)
            }
            (Source::Zone { key: source, block }, Target::Zone { key: target, format }) => {
                self.zone_to_zone((source, block, decrypted), (target, *format), card, account)
            }
            (Source::Device { .. }, Target::Device { .. } | Target::Zone { .. })
            | (Source::Zone { .. }, Target::Device { .. }) => Err(Error::TranslationNotAllowed),
        }
    }

    fn seal_pan(&self, number: &AccountNumber, card: &CardBinding) -> Result<SealedAccount, Error> {
        let key = self.token().current().account;
        let mut packed = Zeroizing::new([0xFF; ACCOUNT_BYTES]);
        for (place, digit) in number.digits().as_slice().iter().enumerate() {
            if let Some(byte) = packed.get_mut(place / 2) {
                *byte = if place.is_multiple_of(2) { (*byte & 0x0F) | (digit << 4) } else { (*byte & 0xF0) | digit };
            }
        }
        let tag = self.token().seal_account(&mut packed, &account_bound_to(key, card))?;
        Ok(SealedAccount::new(key, &packed, &tag))
    }

    /// Checks that a record is unchanged, belongs to this card, and was made at this level: the storage keys of the other level
    /// are not loaded.
    ///
    /// # Errors
    /// [`Error::UnknownKey`], [`Error::SealBroken`] or [`Error::OtherLevel`].
    fn check_record(&self, record: &PinRecord, card: &CardBinding) -> Result<(), Error> {
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

/// Whether the account number is inside the block of a source.
fn binds_account(source: &Source) -> bool {
    matches!(source, Source::Zone { block, .. } if block.format().binds_account())
}

/// Checks that a card has an account number where a block or value of the request has one inside: another party computes with
/// the account number, and the digits of a short plasticId are none. A stored block may be bound to any plasticId. What the
/// level or the storage format cannot do at all is refused before, by its name: an account number would not help.
///
/// # Errors
/// [`Error::NoAccountNumber`] without a registered number, for a plasticId of fewer than 12 digits.
fn check_account_number(is_needed: bool, card: &CardBinding, account: &Account) -> Result<(), Error> {
    let has_number = || {
        AccountDigits::parse(card.plastic_id())
            .is_some_and(|digits| AccountNumber::from_digits(digits.as_slice()).is_some())
    };
    match account {
        Account::PlasticId if is_needed && !has_number() => Err(Error::NoAccountNumber),
        Account::PlasticId | Account::Registered(_) => Ok(()),
    }
}

/// The digits that a block is bound to: of the account number where one is registered, else of the plasticId.
///
/// # Errors
/// [`Error::PlasticId`] for a plasticId that is no account number; [`Error::SealBroken`] for a changed sealed account.
fn account_digits(token: &dyn Token, account: &Account, card: &CardBinding) -> Result<AccountDigits, Error> {
    let Account::Registered(sealed) = account else {
        return AccountDigits::parse(card.plastic_id()).ok_or(Error::PlasticId);
    };
    let mut packed = Zeroizing::new([0; ACCOUNT_BYTES]);
    let bound = account_bound_to(sealed.key(), card);
    token.open_account(sealed.ciphertext_and_tag(), &bound, &mut packed)?;
    AccountDigits::unpack(&packed[..]).ok_or(Error::SealBroken { what: "account".into() })
}

/// Computes and writes the tag of a record.
fn tagged(token: &dyn Token, mut record: PinRecord, card: &CardBinding) -> Result<PinRecord, Error> {
    let tag = token.record_tag(record.tagged_bytes(), &record_bound_to(record.storage_key(), card))?;
    record.set_tag(&tag);
    Ok(record)
}
