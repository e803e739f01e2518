//! The keys a boundary needs in a token: what each is for, how it is made, and what it must not be able to do.

use cryptoki::{
    error::Error as CallError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::link::call_failed;
use crate::{check_value::CheckValue, error::Pkcs11Error};

/// What a key is for, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyUse {
    /// Stored blocks, AES-256.
    Storage,
    /// Stored blocks of the 3DES forms.
    StorageTdes,
    /// Wraps every tzpk.
    Seal,
    /// Account numbers at rest.
    Account,
    /// CMAC over what is sealed and kept.
    Mac,
}

/// Handles of the keys of one version; good in every session of a login.
#[derive(Clone, Copy)]
pub(super) struct KeyHandles {
    pub(super) storage: ObjectHandle,
    pub(super) storage_tdes: ObjectHandle,
    pub(super) seal: ObjectHandle,
    pub(super) account: ObjectHandle,
    pub(super) mac: ObjectHandle,
}

/// Each key by use and version, with its check value where its use allows to make one.
pub(crate) type KeyReferences = Vec<String>;

/// What a key may be allowed, each with its PKCS#11 name.
const RIGHTS: [(AttributeType, &str); 6] = [
    (AttributeType::Encrypt, "CKA_ENCRYPT"),
    (AttributeType::Decrypt, "CKA_DECRYPT"),
    (AttributeType::Sign, "CKA_SIGN"),
    (AttributeType::Wrap, "CKA_WRAP"),
    (AttributeType::Unwrap, "CKA_UNWRAP"),
    (AttributeType::Derive, "CKA_DERIVE"),
];

impl KeyUse {
    /// Every one.
    const ALL: [Self; 5] = [Self::Storage, Self::StorageTdes, Self::Seal, Self::Account, Self::Mac];

    /// Its CKA_LABEL.
    fn label(self) -> &'static str {
        match self {
            Self::Storage => "pinseal storage",
            Self::StorageTdes => "pinseal storage-3des",
            Self::Seal => "pinseal seal",
            Self::Account => "pinseal account",
            Self::Mac => "pinseal mac",
        }
    }

    /// As audit lines name it.
    fn name(self) -> &'static str {
        self.label().trim_start_matches("pinseal ")
    }

    /// All it may do.
    fn rights(self) -> &'static [AttributeType] {
        match self {
            Self::Storage | Self::StorageTdes => &[AttributeType::Encrypt, AttributeType::Decrypt],
            Self::Seal => &[AttributeType::Wrap, AttributeType::Unwrap],
            Self::Account => &[AttributeType::Encrypt],
            Self::Mac => &[AttributeType::Sign],
        }
    }

    fn key_type(self) -> KeyType {
        if self == Self::StorageTdes { KeyType::DES2 } else { KeyType::AES }
    }
}

fn named(r#use: KeyUse, version: u16) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Label(r#use.label().into()),
        Attribute::Id(version.to_be_bytes().to_vec()),
    ]
}

/// Finds the keys of a version: exactly one of each use.
pub(super) fn find(session: &Session, version: u16) -> Result<KeyHandles, Pkcs11Error> {
    let one = |r#use: KeyUse| {
        let found = session.find_objects(&named(r#use, version)).map_err(call_failed("C_FindObjects"))?;
        match found[..] {
            [key] => Ok(key),
            _ => Err(Pkcs11Error::Key { label: r#use.label(), version, found: found.len() }),
        }
    };
    Ok(KeyHandles {
        storage: one(KeyUse::Storage)?,
        storage_tdes: one(KeyUse::StorageTdes)?,
        seal: one(KeyUse::Seal)?,
        account: one(KeyUse::Account)?,
        mac: one(KeyUse::Mac)?,
    })
}

/// Refuses a key that can leave the token, be read, or do more than it is for.
pub(super) fn audit(session: &Session, keys: &KeyHandles) -> Result<(), Pkcs11Error> {
    for (r#use, key) in each(keys) {
        let must = |holds: bool, attribute, found: &'static str| match holds {
            true => Ok(()),
            false => Err(Pkcs11Error::Unsafe { label: r#use.label(), attribute, found }),
        };
        let mut asked = vec![AttributeType::Sensitive, AttributeType::Extractable, AttributeType::KeyType];
        asked.extend(RIGHTS.map(|(right, _)| right));
        let told = session.get_attributes(key, &asked).map_err(call_failed("C_GetAttributeValue"))?;
        must(told.contains(&Attribute::Sensitive(true)), "CKA_SENSITIVE", "not true")?;
        must(told.contains(&Attribute::Extractable(false)), "CKA_EXTRACTABLE", "not false")?;
        must(told.contains(&Attribute::KeyType(r#use.key_type())), "CKA_KEY_TYPE", "of another kind")?;
        for (right, name) in RIGHTS {
            let granted = told.iter().any(|attribute| attribute.attribute_type() == right && is_true(attribute));
            match r#use.rights().contains(&right) {
                true => must(granted, name, "not true")?,
                false => must(!granted, name, "not false")?,
            }
        }
    }
    Ok(())
}

fn is_true(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Encrypt(true)
            | Attribute::Decrypt(true)
            | Attribute::Sign(true)
            | Attribute::Wrap(true)
            | Attribute::Unwrap(true)
            | Attribute::Derive(true)
    )
}

/// Makes a key of every use, if there is none of that version yet.
pub(super) fn make(session: &Session, version: u16) -> Result<KeyHandles, Pkcs11Error> {
    for r#use in KeyUse::ALL {
        let found = session.find_objects(&named(r#use, version)).map_err(call_failed("C_FindObjects"))?;
        if !found.is_empty() {
            return Err(Pkcs11Error::Present { label: r#use.label(), version });
        }
    }
    for r#use in KeyUse::ALL {
        let may = |right| r#use.rights().contains(&right);
        let mut template = named(r#use, version);
        template.extend([
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Modifiable(false),
            Attribute::Encrypt(may(AttributeType::Encrypt)),
            Attribute::Decrypt(may(AttributeType::Decrypt)),
            Attribute::Sign(may(AttributeType::Sign)),
            Attribute::Verify(false),
            Attribute::Wrap(may(AttributeType::Wrap)),
            Attribute::Unwrap(may(AttributeType::Unwrap)),
            Attribute::Derive(false),
        ]);
        let mechanism = match r#use {
            KeyUse::StorageTdes => Mechanism::Des2KeyGen,
            KeyUse::Storage | KeyUse::Seal | KeyUse::Account | KeyUse::Mac => {
                template.push(Attribute::ValueLen(32.into()));
                Mechanism::AesKeyGen
            }
        };
        session.generate_key(&mechanism, &template).map_err(call_failed("C_GenerateKey"))?;
    }
    find(session, version)
}

/// By use and version, with check values: of AES-256 the first 3 bytes of CMAC over 16 zero bytes, of 3DES those of the
/// encrypted zero block. The seal key may neither encrypt nor sign, so it has none.
pub(super) fn references(session: &Session, keys: &KeyHandles, version: u16) -> Result<KeyReferences, CallError> {
    each(keys)
        .map(|(r#use, key)| {
            let check_value = match r#use {
                KeyUse::Storage | KeyUse::Account => Some(aes_check_value(session, key)?),
                KeyUse::StorageTdes => Some(session.encrypt(&Mechanism::Des3Ecb, key, &[0; 8])?),
                KeyUse::Mac => Some(session.sign(&Mechanism::AesCMac, key, &[0; 16])?),
                KeyUse::Seal => None,
            };
            let name = r#use.name();
            Ok(match check_value {
                Some(bytes) => format!("{name}/{version}:{}", CheckValue::first_of(&bytes)),
                None => format!("{name}/{version}"),
            })
        })
        .collect()
}

/// CMAC of 16 zero bytes by encryption alone: `E(2·E(0))` (NIST SP 800-38B, 6).
fn aes_check_value(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, CallError> {
    let zero = session.encrypt(&Mechanism::AesEcb, key, &[0; 16])?;
    let zero = u128::from_be_bytes(zero.as_slice().try_into().map_err(CallError::TryFromSlice)?);
    let subkey = (zero << 1) ^ (0x87 & 0u128.wrapping_sub(zero >> 127));
    session.encrypt(&Mechanism::AesEcb, key, &subkey.to_be_bytes())
}

fn each(keys: &KeyHandles) -> impl Iterator<Item = (KeyUse, ObjectHandle)> {
    KeyUse::ALL.into_iter().zip([keys.storage, keys.storage_tdes, keys.seal, keys.account, keys.mac])
}
