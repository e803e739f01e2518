//! Blocks of zones at level `host`: this process decrypts a block under one key, checks it and encrypts it under another.

use subtle::Choice;

use hsm_protocol::{Account, CardBinding, Error, PinRecord, Refusal, StorageVersions, ZoneBlock, ZoneFormat};

use super::{
    account_digits,
    at_host::{AtHost, CheckResult, check_result},
    together::Decrypted,
};
use crate::{
    block::{
        AccountDigits, account_field, decode_iso_0, decode_iso_1, decode_iso_3, decode_iso_4, encode_iso_0,
        encode_iso_1, encode_iso_3, encode_iso_4,
    },
    clear::{Block, Pin, WideBlock, Workspace, in_workspace},
    zones::ZoneKeyRef,
};

impl AtHost {
    /// Re-encrypts a zone's block as a record, with the same work for every block of a format, as
    /// [`AtHost::device_to_record`].
    pub(super) fn zone_to_record(
        &self,
        storage: StorageVersions,
        key: ZoneKeyRef<'_>,
        (block, decrypted): (&ZoneBlock, Option<Decrypted<'_>>),
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        in_workspace(|Workspace { block: clear, wide, pin, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            let well_formed = self.open_zone_block(key, (block, decrypted), &account, (clear, wide), pin)?;
            let is_allowed = self.policy.judge(pin);

            let record = self.encrypt_record(storage, pin, (clear, wide), &account, card)?;
            match check_result(well_formed, is_allowed) {
                CheckResult::Accepted => Ok(record),
                CheckResult::Malformed => Err(Refusal::MalformedBlock.into()),
                CheckResult::AgainstPolicy => Err(Refusal::PinPolicy.into()),
            }
        })
    }

    /// Re-encrypts a record's PIN under a zone key. The PIN policy is not applied again.
    pub(super) fn record_to_zone(
        &self,
        (record, decrypted): (&PinRecord, Option<Decrypted<'_>>),
        card: &CardBinding,
        account: &Account,
        key: ZoneKeyRef<'_>,
        format: ZoneFormat,
    ) -> Result<ZoneBlock, Error> {
        in_workspace(|Workspace { block, wide, pin, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            self.open_record((record, decrypted), &account, (block, wide), pin)?;
            self.make_zone_block(key, format, pin, &account, (block, wide))
        })
    }

    /// Re-encrypts a zone's block under the key of another zone, with the same account number. The PIN policy does not apply:
    /// the PIN is another issuer's, or is in use already. The work is the same for every block of a format.
    pub(super) fn zone_to_zone(
        &self,
        (source, block, decrypted): (ZoneKeyRef<'_>, &ZoneBlock, Option<Decrypted<'_>>),
        (target, format): (ZoneKeyRef<'_>, ZoneFormat),
        card: &CardBinding,
        account: &Account,
    ) -> Result<ZoneBlock, Error> {
        in_workspace(|Workspace { block: clear, wide, pin, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            let well_formed = self.open_zone_block(source, (block, decrypted), &account, (clear, wide), pin)?;
            let made = self.make_zone_block(target, format, pin, &account, (clear, wide))?;
            if bool::from(well_formed) { Ok(made) } else { Err(Refusal::MalformedBlock.into()) }
        })
    }

    /// Decrypts a zone's block into `pin`, unless a batch has, and returns whether the block is well-formed. The work does not
    /// depend on the digits, and `pin` can be encoded in either case.
    pub(super) fn open_zone_block(
        &self,
        key: ZoneKeyRef<'_>,
        (block, decrypted): (&ZoneBlock, Option<Decrypted<'_>>),
        account: &AccountDigits,
        (clear, wide): (&mut Block, &mut WideBlock),
        pin: &mut Pin,
    ) -> Result<Choice, Error> {
        let fill = |place: &mut [u8]| place.iter_mut().zip(block.as_bytes()).for_each(|(place, byte)| *place = *byte);
        let format = block.format();
        if format == ZoneFormat::Iso4 {
            fill(wide.bytes_mut());
            self.token.zone_decrypt_iso_4(key, wide, account_field(account))?;
            return Ok(decode_iso_4(wide, pin));
        }
        if let Some(decrypted) = decrypted {
            decrypted.copy(clear);
        } else {
            fill(clear.bytes_mut());
            self.token.zone_decrypt(key, clear)?;
        }
        Ok(match format {
            ZoneFormat::Iso0 => decode_iso_0(clear, pin, account),
            ZoneFormat::Iso1 => decode_iso_1(clear, pin),
            ZoneFormat::Iso3 | ZoneFormat::Iso4 => decode_iso_3(clear, pin, account),
        })
    }

    /// Encrypts a PIN under a zone key, with random fill where the format has fill.
    fn make_zone_block(
        &self,
        key: ZoneKeyRef<'_>,
        format: ZoneFormat,
        pin: &Pin,
        account: &AccountDigits,
        (block, wide): (&mut Block, &mut WideBlock),
    ) -> Result<ZoneBlock, Error> {
        match format {
            ZoneFormat::Iso4 => {
                encode_iso_4(wide, pin, self.random_u64()?);
                self.token.zone_encrypt_iso_4(key, wide, account_field(account))?;
                return Ok(ZoneBlock::from_bytes(format, wide.bytes())?);
            }
            ZoneFormat::Iso0 => encode_iso_0(block, pin, account),
            ZoneFormat::Iso1 => encode_iso_1(block, pin, self.random_u64()?),
            ZoneFormat::Iso3 => encode_iso_3(block, pin, account, self.iso_3_fill()?),
        }
        self.token.zone_encrypt(key, block)?;
        Ok(ZoneBlock::from_bytes(format, block.bytes())?)
    }

    fn random_u64(&self) -> Result<u64, Error> {
        let mut random = [0; 8];
        self.token.random(&mut random)?;
        Ok(u64::from_be_bytes(random))
    }
}
