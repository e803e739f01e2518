//! Verification, change and generation of PINs, one-way records and verification values, at level `host`.
//!
//! Every block costs the same work, and PINs and values are compared in constant time: only the outcome is a branch, at the
//! end of an operation.

use subtle::{Choice, ConstantTimeEq};

use hsm_protocol::{
    Account, Binding, CardBinding, Changed, Error, ExpectedValue, KeyVersion, PinRecord, PvkName,
    RECORD_MESSAGE_BYTES_MAX, Refusal, Reply, SALT_BYTES, Source, StorageFormat, StorageVersions, TAG_BYTES,
    ValueMethod, VerificationValue, ZoneName, ZoneUse, bound_to_control, record_bound_to,
};

use super::{account_digits, at_host::AtHost};
use crate::{
    block::{AccountDigits, decode_iso_1},
    clear::{Block, Clear, PIN_DIGITS_MAX, PIN_DIGITS_MIN, Pin, WideBlock, Workspace, in_workspace},
    config::HostForm,
    keyring::KeyMode,
    token::{VerificationKey, joined},
    value::{natural_pin, offset, packed, pvv, security_parameter, to_value},
};

/// The random PINs that are judged before a generation fails. A list of 1,000 refused PINs refuses one in ten of four digits.
const GENERATED_PINS_MAX: usize = 128;
/// The draws of 16 random bytes for one PIN. A draw has 12 usable bytes but once in more than 10,000 draws.
const DRAWS_MAX: usize = 16;

impl AtHost {
    /// Compares the PIN of a block with a record.
    pub(super) fn verify(
        &self,
        storage: StorageVersions,
        source: &Source,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
    ) -> Result<Reply, Error> {
        in_workspace(|workspace| {
            let account = account_digits(&*self.token, account, card)?;
            let well_formed = self.open_source((source, ZoneUse::Verify), card, &account, workspace)?;
            let right = self.is_of_record(record, card, &account, workspace)?;
            let moved = match self.moves(storage.one_way, record) {
                true => Some(self.one_way_record(storage.one_way, &workspace.pin, card)?),
                false => None,
            };
            verified(well_formed, right, moved)
        })
    }

    /// Compares the PIN of a block with a verification value.
    pub(super) fn verify_value(
        &self,
        source: &Source,
        expected: &ExpectedValue,
        card: &CardBinding,
        account: &Account,
    ) -> Result<Reply, Error> {
        in_workspace(|workspace| {
            let account = account_digits(&*self.token, account, card)?;
            let well_formed = self.open_source((source, ZoneUse::Verify), card, &account, workspace)?;
            let Workspace { pin, block, .. } = workspace;
            let right = match expected {
                ExpectedValue::Pvv { key, value } => {
                    let found = self.pvv(key, KeyMode::Verifies, &account, pin, block)?;
                    found.ct_eq(&packed(value)) & Choice::from(u8::from(value.digits().len() == PIN_DIGITS_MIN))
                }
                ExpectedValue::Ibm3624Offset { key, value } => {
                    let found = self.offset(key, KeyMode::Verifies, &account, pin, block)?;
                    let length = u8::try_from(value.digits().len()).unwrap_or_default();
                    found.ct_eq(&packed(value)) & length.ct_eq(&pin.length())
                }
                ExpectedValue::Ibm3624Natural { key, digits } => {
                    let found = self.offset(key, KeyMode::Verifies, &account, pin, block)?;
                    found.ct_eq(&0) & digits.ct_eq(&pin.length())
                }
            };
            verified(well_formed, right, None)
        })
    }

    /// Compares the PIN of the first block with a record and re-encrypts the PIN of the second.
    ///
    /// # Errors
    /// [`Error::TranslationNotAllowed`] where the blocks come from two parties: the party that proves the old PIN chooses the
    /// new one.
    pub(super) fn change(
        &self,
        storage: StorageVersions,
        (old, new): (&Source, &Source),
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
    ) -> Result<Changed, Error> {
        if !is_one_party(old, new) {
            return Err(Error::TranslationNotAllowed);
        }
        in_workspace(|workspace| {
            let account = account_digits(&*self.token, account, card)?;
            let old_well_formed = self.open_source((old, ZoneUse::Change), card, &account, workspace)?;
            let right = self.is_of_record(record, card, &account, workspace)?;
            let new_well_formed = self.open_source((new, ZoneUse::Change), card, &account, workspace)?;
            let Workspace { pin, block, wide, .. } = workspace;
            let is_allowed = self.policy.judge(pin);
            let record = self.encrypt_record(storage, pin, (block, wide), &account, card)?;

            if !bool::from(old_well_formed & new_well_formed) {
                return Err(Refusal::MalformedBlock.into());
            }
            Ok(match (bool::from(right), bool::from(right & is_allowed)) {
                (_, true) => Changed::Right { record },
                (true, false) => Changed::RefusedPin,
                (false, false) => Changed::Wrong,
            })
        })
    }

    /// Makes a record of a random PIN: uniformly distributed over the PINs of `digits` digits that the policy allows.
    ///
    /// # Errors
    /// [`Refusal::PinPolicy`] where the policy allows no PIN of this length, or refused every one that was drawn.
    pub(super) fn generate(
        &self,
        storage: StorageVersions,
        digits: u8,
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        if !(PIN_DIGITS_MIN..=PIN_DIGITS_MAX).contains(&digits.into()) {
            return Err(Refusal::PinPolicy.into());
        }
        in_workspace(|Workspace { pin, block, wide, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            for _ in 0..GENERATED_PINS_MAX {
                self.draw(digits, pin, wide)?;
                if bool::from(self.policy.judge(pin)) {
                    return self.encrypt_record(storage, pin, (block, wide), &account, card);
                }
            }
            Err(Refusal::PinPolicy.into())
        })
    }

    /// Derives a value of a stored PIN.
    pub(super) fn derive_value(
        &self,
        record: &PinRecord,
        method: &ValueMethod,
        card: &CardBinding,
        account: &Account,
    ) -> Result<VerificationValue, Error> {
        in_workspace(|Workspace { pin, block, wide, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            self.open_record((record, None), &account, (block, wide), pin)?;
            let (digits, length) = match method {
                ValueMethod::Pvv(key) => {
                    (self.pvv(key, KeyMode::Generates, &account, pin, block)?, PIN_DIGITS_MIN as u8)
                }
                ValueMethod::Ibm3624Offset(key) => {
                    (self.offset(key, KeyMode::Generates, &account, pin, block)?, pin.length())
                }
            };
            to_value(digits, length).ok_or(Error::SealBroken { what: "PIN record".into() })
        })
    }

    /// Decrypts the block of a source into the PIN of the workspace. Returns whether the block is well-formed. A zone needs the
    /// use.
    ///
    /// # Errors
    /// [`Error::TranslationNotAllowed`] for a record: it proves no knowledge of the PIN.
    fn open_source(
        &self,
        (source, needed): (&Source, ZoneUse),
        card: &CardBinding,
        account: &AccountDigits,
        Workspace { tzpk, block: clear, wide, pin }: &mut Workspace,
    ) -> Result<Choice, Error> {
        match source {
            Source::Device { sealed_tzpk, control, block } => {
                let binding = Binding { card: *card, control: *control };
                let bound = bound_to_control(sealed_tzpk.key(), &binding);
                clear.bytes_mut().copy_from_slice(block.as_bytes());
                self.token.open_block((sealed_tzpk.key(), sealed_tzpk.body()), &bound, tzpk, clear)?;
                Ok(decode_iso_1(clear, pin))
            }
            Source::Zone { key, block } => {
                let key = self.zones.key(key, block.format(), needed, KeyMode::Decrypts, card)?;
                self.open_zone_block(key, (block, None), account, (clear, wide), pin)
            }
            Source::Record(_) => Err(Error::TranslationNotAllowed),
        }
    }

    /// Whether the PIN of the workspace is that of a record.
    fn is_of_record(
        &self,
        record: &PinRecord,
        card: &CardBinding,
        account: &AccountDigits,
        Workspace { block, wide, pin, .. }: &mut Workspace,
    ) -> Result<Choice, Error> {
        if record.form() == StorageFormat::OneWay {
            let (salt, tag) = record.block().split_at_checked(SALT_BYTES).unwrap_or_default();
            let bound = record_bound_to(record.storage_key(), card);
            let found = self
                .token
                .one_way_tag(record.storage_key(), message(&mut Clear::zeroed(), salt, bound.as_ref(), pin)?)?;
            return Ok(found.ct_eq(tag));
        }
        let mut stored = Pin::zeroed();
        self.open_record((record, None), account, (block, wide), &mut stored)?;
        Ok(pin.same_as(&stored))
    }

    /// Whether a right PIN replaces its record: a one-way record under another key moves to the key of new ones, and a
    /// reversible record becomes one-way where new records are one-way.
    fn moves(&self, one_way: KeyVersion, record: &PinRecord) -> bool {
        match record.form() {
            StorageFormat::OneWay => record.storage_key() != one_way,
            _ => self.form == HostForm::OneWay,
        }
    }

    /// A one-way record of a PIN, with a fresh salt.
    pub(super) fn one_way_record(&self, key: KeyVersion, pin: &Pin, card: &CardBinding) -> Result<PinRecord, Error> {
        let mut block = [0; SALT_BYTES + TAG_BYTES];
        let (salt, tag) = block.split_at_mut(SALT_BYTES);
        self.token.random(salt)?;
        let bound = record_bound_to(key, card);
        tag.copy_from_slice(&self.token.one_way_tag(key, message(&mut Clear::zeroed(), salt, bound.as_ref(), pin)?)?);
        self.record(key, HostForm::OneWay, &block, card)
    }

    /// The PVV of a PIN, in the 4 highest nibbles.
    fn pvv(
        &self,
        key: &PvkName,
        wanted: KeyMode,
        account: &AccountDigits,
        pin: &Pin,
        block: &mut Block,
    ) -> Result<u64, Error> {
        block.set_nibbles(security_parameter(account, key.pvki, pin));
        self.token.verification_encrypt(VerificationKey::Pvk(key), wanted, block)?;
        Ok(pvv(block.nibbles()))
    }

    /// The IBM 3624 offset of a PIN, from the highest nibble down.
    fn offset(
        &self,
        key: &ZoneName,
        wanted: KeyMode,
        account: &AccountDigits,
        pin: &Pin,
        block: &mut Block,
    ) -> Result<u64, Error> {
        let name = self.token.ibm_3624(key)?;
        block.set_nibbles(name.validation.of(account).ok_or(Error::ValidationData)?);
        self.token.verification_encrypt(VerificationKey::Ibm3624(key), wanted, block)?;
        Ok(offset(pin, natural_pin(block.nibbles(), &name.table)))
    }

    /// Draws a PIN, uniformly distributed: bytes from 250, the largest multiple of 10, are discarded.
    fn draw(&self, digits: u8, pin: &mut Pin, random: &mut WideBlock) -> Result<(), Error> {
        let (mut drawn, mut missing) = (0u64, usize::from(digits));
        for _ in 0..DRAWS_MAX {
            self.token.random_for_secrets(random.bytes_mut())?;
            for byte in random.bytes().iter().filter(|byte| **byte < 250).take(missing) {
                drawn = (drawn << 4) | u64::from(byte % 10);
                missing -= 1;
            }
            if missing == 0 {
                // Each digit is below 10, so the fill succeeds.
                let _ = pin.fill(digits, drawn << (64 - 4 * u32::from(digits)));
                return Ok(());
            }
        }
        Err(Error::Unavailable { reason: "the random generator failed".into() })
    }
}

/// Whether both blocks of a change come from one zone, or under one control of one device.
fn is_one_party(old: &Source, new: &Source) -> bool {
    match (old, new) {
        (Source::Zone { key: old, .. }, Source::Zone { key: new, .. }) => old.zone == new.zone,
        (Source::Device { control: old, .. }, Source::Device { control: new, .. }) => old == new,
        _ => false,
    }
}

/// The bytes under the CMAC of a one-way record: salt, card, length and digits of the PIN.
fn message<'a>(
    buffer: &'a mut Clear<RECORD_MESSAGE_BYTES_MAX>,
    salt: &[u8],
    card: &[u8],
    pin: &Pin,
) -> Result<&'a [u8], Error> {
    let mut field = Block::zeroed();
    field.set_nibbles((u64::from(pin.length()) << 56) | (pin.digits() >> 8));
    joined(buffer.bytes_mut(), &[salt, card, field.bytes()])
}

/// The reply of a comparison. The work before was the same for every block.
fn verified(well_formed: Choice, right: Choice, moved: Option<PinRecord>) -> Result<Reply, Error> {
    if !bool::from(well_formed) {
        return Err(Refusal::MalformedBlock.into());
    }
    let right = bool::from(right);
    Ok(Reply::Verified { right, moved: moved.filter(|_| right) })
}
