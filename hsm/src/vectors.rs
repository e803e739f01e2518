//! Tests with published vectors: one test for each section and source. `tests/vectors/README.md` lists the sources.

use ::cmac::{Cmac, Mac};
use aes::{
    Aes128, Aes192, Aes256,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use des::TdesEde3;
use serde_json::Value;

use hsm_protocol::{DecimalisationTable, DeviceKey, Pvki, ValidationData, VerificationValue};

use crate::{
    block::{
        AccountDigits, account_field, decode_iso_0, decode_iso_1, decode_iso_3, decode_iso_4, encode_iso_0,
        encode_iso_1, encode_iso_3, encode_iso_4,
    },
    clear::{Block, Clear, ClearBytes, Pin, Tzpk, WideBlock},
    keyblock::{KeyBlock, ProtectionKey, Version as KeyBlockVersion, known_answers::derive_both},
    token::{CmacKey, aes_kcv, encrypt_chain, tzpk_decrypt, tzpk_encrypt, tzpk_kcv},
    value::{natural_pin, offset, packed, pvv, security_parameter, to_value},
};

/// A module for each section, with a test for each source and a test that every source has a test.
macro_rules! section {
    ($section:ident, $check:ident, { $($name:ident = $source:literal),+ $(,)? }) => {
        mod $section {
            const FILE: &str = include_str!(concat!("../../tests/vectors/", stringify!($section), ".json"));

            $(#[test]
            fn $name() {
                let entries = super::of_source(FILE, $source);
                assert!(!entries.is_empty());
                entries.iter().for_each(super::$check);
            })+

            #[test]
            fn no_source_is_left_out() {
                for entry in super::entries(FILE) {
                    let source = entry["source"].as_str().unwrap();
                    assert!([$($source),+].contains(&source), "{source}");
                }
            }
        }
    };
}

section!(pin_blocks_clear, clear_block, {
    psec_pinblock = "psec-pinblock",
    psec_pinblock_doc = "psec-pinblock-doc",
    moov_pinblock = "moov-pinblock",
    openemv_pinblock_0 = "openemv-pinblock-0",
    openemv_pinblock_1 = "openemv-pinblock-1",
    openemv_pinblock_2 = "openemv-pinblock-2",
    pynblock = "pynblock",
    enfuce = "enfuce",
    paysec_pinblock = "paysec-pinblock",
    github_search_34100676615 = "github-search id 34100676615",
    github_search_71190828085 = "github-search id 71190828085",
});
section!(pin_blocks_iso4, format_4_block, {
    psec_pinblock = "psec-pinblock",
    psec_pinblock_doc = "psec-pinblock-doc",
    paysec_pinblock = "paysec-pinblock",
    openemv_dukpt_aes128 = "openemv-dukpt-aes128",
    openemv_pinblock_4 = "openemv-pinblock-4",
});
section!(pin_blocks_tdes_encrypted, encrypted_block, { jpos_jcesm = "jpos-jcesm", rkbalgi_pin = "rkbalgi-pin" });
section!(decode_must_reject, rejected_block, { psec_pinblock = "psec-pinblock", derived = "derived" });
section!(translations, translation, { derived = "derived" });
section!(kcv, key_check_value, {
    openemv_tr31 = "openemv-tr31",
    pynblock = "pynblock",
    jpos_keys = "jpos-keys",
    jpos_jcesm = "jpos-jcesm",
    derived = "derived",
});
section!(pin_verification, verification_value, { psec_pin = "psec-pin", derived = "derived" });
section!(tr31, key_block, { openemv_tr31 = "openemv-tr31", psec_tr31 = "psec-tr31", paysec_keyblock = "paysec-keyblock" });
section!(tr31_kdf, key_block_derivation, { openemv_tr31_kdf = "openemv-tr31-kdf" });
section!(tr31_must_reject, wrong_key_block, { openemv_tr31 = "openemv-tr31" });
section!(cmac, aes_cmac, { nist_sp_800_38b = "nist-cmac" });
section!(aes_ecb_nist, aes_ecb, { nist_aes = "nist-aes" });
section!(tdes_ecb_nist, tdes_ecb, { nist_tdes = "nist-tdes" });
section!(rsa_oaep, oaep, { wycheproof_oaep = "wycheproof-oaep" });

fn entries(file: &str) -> Vec<Value> {
    serde_json::from_str(file).unwrap()
}

fn of_source(file: &str, source: &str) -> Vec<Value> {
    entries(file).into_iter().filter(|entry| entry["source"] == source).collect()
}

fn text<'a>(entry: &'a Value, member: &str) -> &'a str {
    entry[member].as_str().unwrap_or_else(|| panic!("no {member} in {entry}"))
}

fn bytes(entry: &Value, member: &str) -> Vec<u8> {
    unhex(text(entry, member))
}

fn unhex(digits: &str) -> Vec<u8> {
    base16ct::mixed::decode_vec(digits).unwrap()
}

fn clear<const N: usize>(bytes: &[u8]) -> Clear<N> {
    let mut clear = Clear::zeroed();
    clear.bytes_mut().copy_from_slice(bytes);
    clear
}

fn pin_of(digits: &str) -> Pin {
    let mut pin = Pin::zeroed();
    let nibbles = u64::from_str_radix(&format!("{digits:0<16}"), 16).unwrap();
    assert!(bool::from(pin.fill(u8::try_from(digits.len()).unwrap(), nibbles)), "{digits} is no PIN");
    pin
}

fn digits_of(pin: &Pin) -> String {
    format!("{:016X}", pin.digits())[..usize::from(pin.length())].to_owned()
}

/// The account of an entry. An entry without one shows only the PIN field: zeros leave the field unchanged.
fn account_of(entry: &Value) -> AccountDigits {
    AccountDigits::parse(entry["pan"].as_str().unwrap_or("0000000000000")).unwrap()
}

/// Decodes a block of 8 bytes in a format; `None` where the block is malformed.
fn read(format: &str, block: &[u8], account: &AccountDigits) -> Option<String> {
    let block: Block = clear(block);
    let mut pin = Pin::zeroed();
    let good = match format {
        "0" => decode_iso_0(&block, &mut pin, account),
        "1" => decode_iso_1(&block, &mut pin),
        "3" => decode_iso_3(&block, &mut pin, account),
        other => panic!("format {other}"),
    };
    bool::from(good).then(|| digits_of(&pin))
}

/// A format 2 block goes only to a chip (ISO 9564-1, 9.3): no other decoder may accept it.
fn no_format_accepts(entry: &Value, block: &[u8]) {
    if let Ok(block) = <[u8; 8]>::try_from(block) {
        for format in ["0", "1", "3"] {
            let pin = read(format, &block, &account_of(entry));
            assert!(pin.is_none() || block[0] >> 4 != 2, "{entry}");
        }
    }
}

fn clear_block(entry: &Value) {
    let (format, expected) = (text(entry, "format"), bytes(entry, "block"));
    if format == "2" {
        return no_format_accepts(entry, &expected);
    }
    let (pin, account) = (pin_of(text(entry, "pin")), account_of(entry));
    let mut block = Block::zeroed();
    // The fill of the vector, after removing the account field.
    let fill = u64::from_be_bytes(expected[..].try_into().unwrap());
    match format {
        "0" => encode_iso_0(&mut block, &pin, &account),
        "1" => encode_iso_1(&mut block, &pin, fill << 8),
        "3" => encode_iso_3(&mut block, &pin, &account, (fill ^ account.rightmost_twelve()) << 8),
        other => panic!("format {other}"),
    }
    assert_eq!(block.bytes()[..], expected, "{entry}");
    assert_eq!(read(format, &expected, &account).as_deref(), Some(text(entry, "pin")), "{entry}");
}

fn aes_encrypt(key: &[u8], block: &mut WideBlock) {
    let block = block.bytes_mut().into();
    match key.len() {
        16 => Aes128::new(&Array(key.try_into().unwrap())).encrypt_block(block),
        24 => Aes192::new(&Array(key.try_into().unwrap())).encrypt_block(block),
        32 => Aes256::new(&Array(key.try_into().unwrap())).encrypt_block(block),
        other => panic!("{other} bytes of AES key"),
    }
}

fn aes_decrypt(key: &[u8], block: &mut WideBlock) {
    let block = block.bytes_mut().into();
    match key.len() {
        16 => Aes128::new(&Array(key.try_into().unwrap())).decrypt_block(block),
        24 => Aes192::new(&Array(key.try_into().unwrap())).decrypt_block(block),
        32 => Aes256::new(&Array(key.try_into().unwrap())).decrypt_block(block),
        other => panic!("{other} bytes of AES key"),
    }
}

fn encipher_iso_4(block: &mut WideBlock, account: &AccountDigits, key: &[u8]) {
    let account = account_field(account);
    match key.len() {
        16 => encrypt_chain(&Aes128::new(&Array(key.try_into().unwrap())), block, [account]),
        32 => encrypt_chain(&Aes256::new(&Array(key.try_into().unwrap())), block, [account]),
        other => panic!("{other} bytes of AES key"),
    }
}

/// Decrypts a format 4 block to its PIN field.
fn decipher_iso_4(block: &mut WideBlock, account: &AccountDigits, decrypt: impl Fn(&mut WideBlock)) {
    decrypt(block);
    block.set_nibbles(block.nibbles() ^ account_field(account));
    decrypt(block);
}

fn format_4_block(entry: &Value) {
    let account = account_of(entry);
    assert_eq!(account_field(&account).to_be_bytes()[..], bytes(entry, "pan_field"), "{entry}");
    if entry["kind"] == "pan_field" {
        return;
    }
    let (key, pin) = (bytes(entry, "key"), pin_of(text(entry, "pin")));
    let mut block = WideBlock::zeroed();
    encode_iso_4(&mut block, &pin, u64::from_be_bytes(bytes(entry, "random").try_into().unwrap()));
    assert_eq!(block.bytes()[..], bytes(entry, "pin_field"), "{entry}");
    encipher_iso_4(&mut block, &account, &key);
    assert_eq!(block.bytes()[..], bytes(entry, "block"), "{entry}");

    decipher_iso_4(&mut block, &account, |block| aes_decrypt(&key, block));
    let mut opened = Pin::zeroed();
    assert!(bool::from(decode_iso_4(&block, &mut opened)), "{entry}");
    assert_eq!(digits_of(&opened), text(entry, "pin"));
}

fn encrypted_block(entry: &Value) {
    let key: Tzpk = clear(&bytes(entry, "key"));
    assert_eq!(tzpk_kcv(&key).to_string(), text(entry, "kcv"), "{entry}");
    let mut block: Block = clear(&bytes(entry, "encrypted_block"));
    tzpk_decrypt(&key, &mut block);
    assert_eq!(block.bytes()[..], bytes(entry, "clear_block"), "{entry}");
    let read = read(text(entry, "format"), block.bytes(), &account_of(entry));
    assert_eq!(read.as_deref(), Some(text(entry, "pin")), "{entry}");
    tzpk_encrypt(&key, &mut block);
    assert_eq!(block.bytes()[..], bytes(entry, "encrypted_block"), "{entry}");
}

fn verification_value(entry: &Value) {
    let (key, account): (Tzpk, _) = (clear(&bytes(entry, "pvk")), account_of(entry));
    let pin = pin_of(text(entry, "pin"));
    let encrypted = |nibbles| {
        let mut block = Block::zeroed();
        block.set_nibbles(nibbles);
        tzpk_encrypt(&key, &mut block);
        block.nibbles()
    };
    let is_value = |digits, name| {
        let expected = VerificationValue::parse(text(entry, name)).unwrap();
        let found = to_value(digits, u8::try_from(expected.digits().len()).unwrap()).unwrap();
        assert_eq!(found.to_text(), expected.to_text(), "{entry}");
        assert_eq!(packed(&found), digits, "{entry}");
    };
    if entry["method"] == "VISA PVV" {
        let pvki = Pvki::new(text(entry, "pvki").parse().unwrap()).unwrap();
        return is_value(pvv(encrypted(security_parameter(&account, pvki, &pin))), "pvv");
    }
    let (first, length) = (entry["verify_offset"].as_u64().unwrap(), entry["verify_length"].as_u64().unwrap());
    let rule = format!("{}-{}-{}", first + 1, first + length, text(entry, "pad").to_lowercase());
    let validation_data = ValidationData::parse(&rule).unwrap().of(&account).unwrap();
    let digits = text(entry, "decimalization_table");
    let Some(table) = DecimalisationTable::parse(digits) else {
        // Of 7 different digits: no key has this table.
        return assert_eq!(digits, "2951350916513921");
    };
    let natural = natural_pin(encrypted(validation_data), &table);
    is_value(offset(&pin, natural), "offset");
    if let Some(expected) = entry["natural_pin"].as_str() {
        assert_eq!(format!("{natural:016x}")[..expected.len()], *expected, "{entry}");
    }
}

fn rejected_block(entry: &Value) {
    let (format, block) = (text(entry, "format"), bytes(entry, "block"));
    match format {
        "2" => no_format_accepts(entry, &block),
        "4" => {
            let Ok(block) = <[u8; 16]>::try_from(&block[..]) else { return };
            let mut block: WideBlock = clear(&block);
            let key = bytes(entry, "key");
            decipher_iso_4(&mut block, &account_of(entry), |block| aes_decrypt(&key, block));
            assert!(!bool::from(decode_iso_4(&block, &mut Pin::zeroed())), "{entry}");
        }
        // `EncryptedBlock` rejects another length than 8 bytes.
        _ if block.len() != 8 => assert!(crate::EncryptedBlock::from_bytes(&block).is_err(), "{entry}"),
        _ => assert_eq!(read(format, &block, &account_of(entry)), None, "{entry}"),
    }
}

fn translation(entry: &Value) {
    let (tzpk, account): (Tzpk, _) = (clear(&bytes(entry, "tzpk")), account_of(entry));
    assert_eq!(tzpk_kcv(&tzpk).to_string(), text(entry, "tzpk_kcv"), "{entry}");
    let mut clear_block: Block = clear(&bytes(entry, "encrypted_iso1"));
    tzpk_decrypt(&tzpk, &mut clear_block);
    assert_eq!(clear_block.bytes()[..], bytes(entry, "clear_iso1"), "{entry}");
    let mut pin = Pin::zeroed();
    assert!(bool::from(decode_iso_1(&clear_block, &mut pin)), "{entry}");
    assert_eq!(digits_of(&pin), text(entry, "pin"));

    let mut to_0 = Block::zeroed();
    encode_iso_0(&mut to_0, &pin, &account);
    under_3des(&entry["to_iso0"], to_0);
    let mut to_3 = Block::zeroed();
    let fill = u64::from_str_radix(text(&entry["to_iso3"], "fill"), 16).unwrap();
    // The fill is right-aligned in the 14 nibbles after control and length.
    encode_iso_3(&mut to_3, &pin, &account, fill << 8);
    under_3des(&entry["to_iso3"], to_3);
    for form in ["to_iso4_aes128", "to_iso4_aes256"] {
        let (to_4, mut block) = (&entry[form], WideBlock::zeroed());
        let key = bytes(to_4, "key");
        encode_iso_4(&mut block, &pin, u64::from_be_bytes(bytes(to_4, "random").try_into().unwrap()));
        encipher_iso_4(&mut block, &account, &key);
        assert_eq!(block.bytes()[..], bytes(to_4, "encrypted"), "{entry}");
    }
}

fn under_3des(target: &Value, mut block: Block) {
    assert_eq!(block.bytes()[..], bytes(target, "clear"), "{target}");
    tzpk_encrypt(&clear(&bytes(target, "key")), &mut block);
    assert_eq!(block.bytes()[..], bytes(target, "encrypted"), "{target}");
}

fn key_check_value(entry: &Value) {
    let key = bytes(entry, "key");
    let expected = text(entry, "kcv");
    if text(entry, "algorithm") == "AES" {
        let found = match key.len() {
            16 => Cmac::<Aes128>::new(&Array(key.try_into().unwrap())).chain_update([0; 16]).finalize().into_bytes(),
            _ => {
                assert_eq!(aes_kcv(&clear(&key)).to_string(), expected[..6], "{entry}");
                CmacKey::new(&clear(&key)).tag(&[0; 16]).into()
            }
        };
        return assert_eq!(found[..5], unhex(expected), "{entry}");
    }
    // A single-length key equals a double-length key with equal halves.
    let double = if key.len() == 8 { [&key[..], &key[..]].concat() } else { key };
    assert_eq!(tzpk_kcv(&clear(&double)).to_string(), expected, "{entry}");
}

fn aes_cmac(entry: &Value) {
    let (key, message) = (bytes(entry, "key"), bytes(entry, "message"));
    let found = match key.len() {
        16 => Cmac::<Aes128>::new(&Array(key.try_into().unwrap())).chain_update(&message).finalize().into_bytes(),
        24 => Cmac::<Aes192>::new(&Array(key.try_into().unwrap())).chain_update(&message).finalize().into_bytes(),
        _ => CmacKey::new(&clear(&key)).tag(&message).into(),
    };
    assert_eq!(found[..], bytes(entry, "mac"), "{entry}");
}

fn aes_ecb(entry: &Value) {
    let key = bytes(entry, "key");
    for (plain, cipher) in bytes(entry, "plaintext").chunks(16).zip(bytes(entry, "ciphertext").chunks(16)) {
        let mut block: WideBlock = clear(plain);
        aes_encrypt(&key, &mut block);
        assert_eq!(block.bytes()[..], *cipher, "{entry}");
        aes_decrypt(&key, &mut block);
        assert_eq!(block.bytes()[..], *plain, "{entry}");
    }
}

fn tdes_ecb(entry: &Value) {
    let key = bytes(entry, "key");
    for (plain, cipher) in bytes(entry, "plaintext").chunks(8).zip(bytes(entry, "ciphertext").chunks(8)) {
        let mut block: Block = clear(plain);
        TdesEde3::new(&Array(key[..].try_into().unwrap())).encrypt_block(block.bytes_mut().into());
        assert_eq!(block.bytes()[..], *cipher, "{entry}");
        if key[..8] == key[16..] {
            let double: Tzpk = clear(&key[..16]);
            tzpk_decrypt(&double, &mut block);
            assert_eq!(block.bytes()[..], *plain, "{entry}");
        }
    }
}

/// Wycheproof's ciphertexts decrypt as the vector says, and our ciphertexts for the same keys decrypt to the plaintext.
fn oaep(entry: &Value) {
    // The first entry of each file has the key.
    let all = entries(include_str!("../../tests/vectors/rsa_oaep.json"));
    let first = all.iter().find(|other| other["file"] == entry["file"]).unwrap();
    let key = PrivateDecryptingKey::from_pkcs8(&bytes(first, "private_key_pkcs8")).unwrap();
    let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
        aws_lc_rs::encoding::AsDer::as_der(&key.public_key()).unwrap();
    let opener = OaepPrivateDecryptingKey::new(key).unwrap();
    let open = |ciphertext: &[u8], label: &[u8]| {
        let mut buffer = vec![0; opener.key_size_bytes()];
        let label = Some(label).filter(|label| !label.is_empty());
        opener.decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut buffer, label).map(|opened| opened.to_vec()).ok()
    };
    let opened = open(&bytes(entry, "ct"), &bytes(entry, "label"));
    match text(entry, "result") {
        "valid" => assert_eq!(opened, Some(bytes(entry, "msg")), "{}", entry["tcId"]),
        _ => assert_eq!(opened, None, "{}", entry["tcId"]),
    }

    let device = DeviceKey::parse(public.as_ref()).unwrap();
    assert_eq!(device.bits() as u64, entry["modulus_bits"].as_u64().unwrap());
    let tzpk: Tzpk = clear(&[0x5A; 16]);
    assert_eq!(open(&crate::oaep::wrap(&device, &tzpk).unwrap(), &[]), Some(vec![0x5A; 16]));
}

/// The block opens to the vector's key. Versions D and E are also written again with the same characters.
fn key_block(entry: &Value) {
    let text = text(entry, "key_block");
    let block = KeyBlock::parse(text).unwrap_or_else(|error| panic!("{entry}: {error}"));
    let header = block.header();
    let found = [
        header.version().to_string(),
        header.usage(),
        header.algorithm().to_string(),
        header.mode().to_string(),
        header.key_version(),
        header.exportability().to_string(),
        header.optional().len().to_string(),
    ];
    let names = ["version", "key_usage", "algorithm", "mode_of_use", "key_version", "exportability", "opt_blocks"];
    for (found, name) in found.iter().zip(names) {
        assert_eq!(*found, entry[name].to_string().trim_matches('"'), "{name} of {entry}");
    }
    let under = ClearBytes::copied(&bytes(entry, "kbpk"));
    let under = match header.version() {
        KeyBlockVersion::A | KeyBlockVersion::B | KeyBlockVersion::C => ProtectionKey::tdes(under),
        KeyBlockVersion::D | KeyBlockVersion::E => ProtectionKey::aes(under),
    };
    let under = under.unwrap();
    assert!(block.open(&under).unwrap().bytes() == bytes(entry, "key"), "{entry}");
    if header.version().is_written() {
        assert_eq!(block.written_again(&under).unwrap(), text, "{entry}");
    }
}

fn key_block_derivation(entry: &Value) {
    let found = derive_both(&bytes(entry, "kbpk"), text(entry, "method"));
    assert_eq!(found, (bytes(entry, "kbek"), bytes(entry, "kbak")), "{entry}");
}

fn wrong_key_block(entry: &Value) {
    assert!(KeyBlock::parse(text(entry, "key_block")).is_err(), "{entry}");
}
