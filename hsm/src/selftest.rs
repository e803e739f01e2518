//! Known-answer tests with published values, run at every start before a key is used: a build or machine that computes wrongly
//! must not serve.

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey},
    digest,
};

use hsm_protocol::{DecimalisationTable, Pvki, ValidationData};

use crate::{
    block::{AccountDigits, account_field, decode_iso_1, decode_iso_4, encode_iso_0},
    clear::{Block, Clear, Pin, WideBlock},
    open_error::OpenError,
    token::{aes_kcv, tzpk_decrypt, tzpk_encrypt, tzpk_kcv},
    value::{natural_pin, offset, pvv, security_parameter},
};

/// Runs every known-answer test.
///
/// # Errors
/// [`OpenError::SelfTest`] with the first test that fails.
pub(crate) fn run() -> Result<(), OpenError> {
    let answers = [
        ("3DES (Card PIN API example)", tdes()),
        ("ISO 9564 formats 1 and 0", formats_1_and_0()),
        ("ISO 9564 format 4", format_4()),
        ("AES-256-CMAC KCV", cmac()),
        ("SHA-256", sha_256()),
        ("AES-256-GCM-SIV", gcm_siv()),
        ("Visa PVV and IBM 3624", verification_values()),
    ];
    match answers.into_iter().find(|(_, right)| !right) {
        Some((step, _)) => Err(OpenError::SelfTest { step }),
        None => Ok(()),
    }
}

/// `141234AAAAAAAAAA` under `0011…EEFF` is `81739710556E1518`; the KCV of the key is `FB0975` (Card PIN API example).
fn tdes() -> bool {
    let key = clear(&[0x0011_2233_4455_6677_8899_AABB_CCDD_EEFFu128.to_be_bytes()]);
    let mut block: Block = clear(&[0x1412_34AA_AAAA_AAAAu64.to_be_bytes()]);
    tzpk_encrypt(&key, &mut block);
    let encrypted = *block.bytes() == 0x8173_9710_556E_1518u64.to_be_bytes();
    tzpk_decrypt(&key, &mut block);
    encrypted
        && *block.bytes() == 0x1412_34AA_AAAA_AAAAu64.to_be_bytes()
        && tzpk_kcv(&key).as_bytes() == &[0xFB, 0x09, 0x75]
}

/// PIN 7580 of account 5141576351968605 is `04759589CAE6979F` in format 0 (Mastercard sandbox).
fn formats_1_and_0() -> bool {
    let iso_1: Block = clear(&[0x1475_80AA_AAAA_AAAAu64.to_be_bytes()]);
    let (mut pin, mut block) = (Pin::zeroed(), Block::zeroed());
    let good = decode_iso_1(&iso_1, &mut pin);
    let Some(account) = AccountDigits::parse("5141576351968605") else { return false };
    encode_iso_0(&mut block, &pin, &account);
    bool::from(good) && *block.bytes() == 0x0475_9589_CAE6_979Fu64.to_be_bytes()
}

/// The account field of 432198765432109870 and the PIN field of 1234 (ep2 eft/pos 2000, 8.4).
fn format_4() -> bool {
    let Some(account) = AccountDigits::parse("432198765432109870") else { return false };
    let pin_field: WideBlock = clear(&[0x4412_34AA_AAAA_AAAA_146C_6601_F4A8_035Cu128.to_be_bytes()]);
    let mut pin = Pin::zeroed();
    bool::from(decode_iso_4(&pin_field, &mut pin))
        && pin.length() == 4
        && account_field(&account) == 0x6432_1987_6543_2109_8700_0000_0000_0000
}

/// X9.143:2021, 8.6: the KCV of the example's key block protection key begins with `233155`.
fn cmac() -> bool {
    let key: Clear<32> = clear(&[
        0x88E1_AB2A_2E3D_D38C_1FA0_39A5_3650_0CC8u128.to_be_bytes(),
        0xA87A_B9D6_2DC9_2C01_058F_A79F_4465_7DE6u128.to_be_bytes(),
    ]);
    aes_kcv(&key).as_bytes() == &[0x23, 0x31, 0x55]
}

/// Account 1122334455667788 under `0123…3210`: the PVV of PIN 4524 with PVKI 1 is 8523, and the natural PIN with the table
/// 1234567890123456 is 4524 (psec, `tests/test_pin.py`).
fn verification_values() -> bool {
    let key = clear(&[0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210u128.to_be_bytes()]);
    let account = AccountDigits::parse("1122334455667788");
    let table = DecimalisationTable::parse("1234567890123456");
    let (Some(account), Some(table), Some(pvki)) = (account, table, Pvki::new(1)) else { return false };
    let Some(validation_data) = ValidationData::parse("1-16-f").and_then(|rule| rule.of(&account)) else {
        return false;
    };
    let (mut pin, mut block) = (Pin::zeroed(), Block::zeroed());
    let good = pin.fill(4, 0x4524 << 48);
    block.set_nibbles(security_parameter(&account, pvki, &pin));
    tzpk_encrypt(&key, &mut block);
    let is_pvv = pvv(block.nibbles()) == 0x8523 << 48;
    block.set_nibbles(validation_data);
    tzpk_encrypt(&key, &mut block);
    bool::from(good) && is_pvv && offset(&pin, natural_pin(block.nibbles(), &table)) == 0
}

/// FIPS 180-4: the hash of `abc`.
fn sha_256() -> bool {
    digest::digest(&digest::SHA256, b"abc").as_ref().starts_with(&[0xBA, 0x78, 0x16, 0xBF, 0x8F, 0x01, 0xCF, 0xEA])
}

/// RFC 8452, appendix C.2: empty plaintext, empty additional data.
fn gcm_siv() -> bool {
    let mut key = [0; 32];
    key[0] = 1;
    let mut nonce = [0; 12];
    nonce[0] = 3;
    let Ok(key) = UnboundKey::new(&AES_256_GCM_SIV, &key).map(LessSafeKey::new) else { return false };
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut []);
    tag.is_ok_and(|tag| tag.as_ref() == 0x07F5_F416_9BBF_55A8_400C_D47E_A6FD_400Fu128.to_be_bytes())
}

fn clear<const N: usize, const M: usize>(parts: &[[u8; M]]) -> Clear<N> {
    let mut clear = Clear::zeroed();
    clear.bytes_mut().iter_mut().zip(parts.iter().flatten()).for_each(|(place, byte)| *place = *byte);
    clear
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_known_answer_test_passes() {
        super::run().unwrap();
    }
}
