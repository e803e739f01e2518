//! The keys a boundary needs in a token: what each is for, how it is made, and what it must not be able to do.
//!
//! Each boundary level has storage keys of its own: one that may decrypt has no place where nothing is ever decrypted.

use cryptoki::{
    error::Error as CallError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::failure::call_failed;
use crate::{binding::Level, check_value::CheckValue, open_error::Pkcs11Error};

/// What a key is for, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// Level `host`: stored blocks, AES-256.
    Storage,
    /// Level `host`: stored blocks of the 3DES forms.
    StorageTdes,
    /// Level `token`: gives each account its own key, which wraps a block.
    StorageWrapped,
    /// Level `token`: wraps format 3 blocks, 3DES.
    StorageIso3,
    /// Level `token`: wraps format 4 blocks, AES-256, and never opens one.
    StorageIso4,
    /// Wraps every tzpk.
    Seal,
    /// Encrypts every tzpk, in a token that has no authenticated key wrap.
    SealEncrypting,
    /// Account numbers at rest.
    Account,
    /// HMAC over what is sealed and kept.
    Mac,
}

/// Handles of the keys of one version and level; good in every session of a login.
#[derive(Clone, Copy)]
pub(super) struct KeyHandles<L> {
    /// Those that the level has of its own.
    pub(super) level: L,
    pub(super) account: ObjectHandle,
    pub(super) mac: ObjectHandle,
}

/// The keys that one level has of its own.
pub(super) trait LevelKeys: Copy + Send + Sync + 'static {
    /// Which level.
    const LEVEL: Level;

    /// From those a token showed.
    fn of(found: &FoundKeys) -> Result<Self, Pkcs11Error>;
}

/// Level `host`: storage keys that encrypt and decrypt.
#[derive(Clone, Copy)]
pub(super) struct HostKeys {
    pub(super) iso_4: ObjectHandle,
    pub(super) tdes: ObjectHandle,
    pub(super) seal: SealKey,
}

/// What a tzpk is sealed with.
#[derive(Clone, Copy)]
pub(super) enum SealKey {
    /// It comes back as an object of the token.
    Wrapping(ObjectHandle),
    /// It comes back into host memory for one operation.
    Encrypting(ObjectHandle),
}

/// How a token can seal a tzpk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SealWay {
    Wrap,
    Encrypt,
}

impl LevelKeys for HostKeys {
    const LEVEL: Level = Level::Host;

    fn of(found: &FoundKeys) -> Result<Self, Pkcs11Error> {
        let seal = match found.one(KeyUse::Seal) {
            Ok(key) => SealKey::Wrapping(key),
            Err(_) => SealKey::Encrypting(found.one(KeyUse::SealEncrypting)?),
        };
        Ok(Self { iso_4: found.one(KeyUse::Storage)?, tdes: found.one(KeyUse::StorageTdes)?, seal })
    }
}

/// Level `token`: storage keys that wrap, unwrap and derive, and none that decrypts.
#[derive(Clone, Copy)]
pub(super) struct TokenKeys {
    pub(super) wrapped: ObjectHandle,
    pub(super) iso_3: ObjectHandle,
    pub(super) iso_4: ObjectHandle,
    pub(super) seal: ObjectHandle,
}

impl LevelKeys for TokenKeys {
    const LEVEL: Level = Level::Token;

    fn of(found: &FoundKeys) -> Result<Self, Pkcs11Error> {
        Ok(Self {
            wrapped: found.one(KeyUse::StorageWrapped)?,
            iso_3: found.one(KeyUse::StorageIso3)?,
            iso_4: found.one(KeyUse::StorageIso4)?,
            seal: found.one(KeyUse::Seal)?,
        })
    }
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
    /// Every one of a level.
    fn of(level: Level, seal: SealWay) -> Vec<Self> {
        let storage: &[Self] = match level {
            Level::Host => &[Self::Storage, Self::StorageTdes],
            Level::Token => &[Self::StorageWrapped, Self::StorageIso3, Self::StorageIso4],
        };
        let seal = match seal {
            SealWay::Wrap => Self::Seal,
            SealWay::Encrypt => Self::SealEncrypting,
        };
        [storage, &[seal, Self::Account, Self::Mac]].concat()
    }

    /// Its CKA_LABEL.
    fn label(self) -> &'static str {
        match self {
            Self::Storage => "pinseal storage",
            Self::StorageTdes => "pinseal storage-3des",
            Self::StorageWrapped => "pinseal storage-wrapped",
            Self::StorageIso3 => "pinseal storage-iso-3",
            Self::StorageIso4 => "pinseal storage-iso-4",
            Self::Seal => "pinseal seal",
            Self::SealEncrypting => "pinseal seal-encrypting",
            Self::Account => "pinseal account",
            Self::Mac => "pinseal mac",
        }
    }

    /// The first byte of its CKA_ID. NSS keeps one secret key an id, whatever their labels: a second replaces the first.
    fn code(self) -> u8 {
        match self {
            Self::Storage => b's',
            Self::StorageTdes => b'd',
            Self::StorageWrapped => b'w',
            Self::StorageIso3 => b'3',
            Self::StorageIso4 => b'4',
            Self::Seal => b't',
            Self::SealEncrypting => b'e',
            Self::Account => b'a',
            Self::Mac => b'm',
        }
    }

    /// As audit lines name it.
    fn name(self) -> &'static str {
        self.label().trim_start_matches("pinseal ")
    }

    /// All it may do.
    fn rights(self) -> &'static [AttributeType] {
        match self {
            Self::Storage | Self::StorageTdes | Self::SealEncrypting => {
                &[AttributeType::Encrypt, AttributeType::Decrypt]
            }
            Self::StorageWrapped => &[AttributeType::Derive],
            Self::StorageIso3 | Self::Seal => &[AttributeType::Wrap, AttributeType::Unwrap],
            Self::StorageIso4 => &[AttributeType::Wrap, AttributeType::Encrypt],
            Self::Account => &[AttributeType::Encrypt],
            Self::Mac => &[AttributeType::Sign],
        }
    }

    fn key_type(self) -> KeyType {
        match self {
            // Of triple length: not every token makes keys of double length.
            Self::StorageTdes | Self::StorageIso3 => KeyType::DES3,
            Self::Mac => KeyType::GENERIC_SECRET,
            _ => KeyType::AES,
        }
    }

    /// Its CKA_ID: what it is for, and the version.
    fn id(self, version: u16) -> Vec<u8> {
        let [high, low] = version.to_be_bytes();
        vec![self.code(), high, low]
    }
}

fn named(r#use: KeyUse, version: u16) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::Label(r#use.label().into()),
        Attribute::Id(r#use.id(version)),
    ]
}

/// The keys of a version and level, as a token showed them.
pub(super) struct FoundKeys {
    keys: Vec<(KeyUse, ObjectHandle)>,
    version: u16,
}

impl FoundKeys {
    /// Finds exactly one of each use. A tzpk is sealed by wrapping, unless there is only the other key.
    pub(super) fn find(session: &Session, version: u16, level: Level) -> Result<Self, Pkcs11Error> {
        let count = |r#use| Ok(objects(session, r#use, version)?.len());
        let way = match (level, count(KeyUse::Seal)?, count(KeyUse::SealEncrypting)?) {
            (Level::Host, 0, 1..) => SealWay::Encrypt,
            _ => SealWay::Wrap,
        };
        let keys = KeyUse::of(level, way).into_iter().map(|r#use| match objects(session, r#use, version)?[..] {
            [key] => Ok((r#use, key)),
            ref found => Err(Pkcs11Error::Key { label: r#use.label(), version, found: found.len() }),
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, version })
    }

    /// Makes a key of every use that has none of that version yet. The keys that both levels use may be there.
    pub(super) fn make(session: &Session, version: u16, level: Level, seal: SealWay) -> Result<Self, Pkcs11Error> {
        let (mut missing, mut present) = (Vec::new(), None);
        for r#use in KeyUse::of(level, seal) {
            match (objects(session, r#use, version)?.is_empty(), r#use) {
                (true, _) => missing.push(r#use),
                (false, KeyUse::Seal | KeyUse::SealEncrypting | KeyUse::Account | KeyUse::Mac) => {}
                (false, _) => present = Some(r#use),
            }
        }
        if let Some(present) = present {
            return Err(Pkcs11Error::Present { label: present.label(), version });
        }
        for r#use in missing {
            generate(session, r#use, version).map_err(call_failed("C_GenerateKey"))?;
        }
        Self::find(session, version, level)
    }

    /// Refuses a key that can leave the token, be read, or do more than it is for.
    pub(super) fn audit(&self, session: &Session) -> Result<(), Pkcs11Error> {
        for (r#use, key) in &self.keys {
            let must = |holds: bool, attribute, found: &'static str| match holds {
                true => Ok(()),
                false => Err(Pkcs11Error::Unsafe { label: r#use.label(), attribute, found }),
            };
            let mut asked = vec![AttributeType::Sensitive, AttributeType::Extractable, AttributeType::KeyType];
            asked.extend(RIGHTS.map(|(right, _)| right));
            let told = session.get_attributes(*key, &asked).map_err(call_failed("C_GetAttributeValue"))?;
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

    /// By use and version, with check values: of AES-256 the first 3 bytes of CMAC over 16 zero bytes, of 3DES those of
    /// the encrypted zero block, of the MAC key those of its HMAC over 16 zero bytes. A key that may neither encrypt nor
    /// sign has none.
    pub(super) fn references(&self, session: &Session) -> Result<KeyReferences, CallError> {
        let tell = |(r#use, key): &(KeyUse, ObjectHandle)| {
            let check_value = match r#use {
                KeyUse::Storage | KeyUse::StorageIso4 | KeyUse::SealEncrypting | KeyUse::Account => {
                    Some(aes_check_value(session, *key)?)
                }
                KeyUse::StorageTdes => Some(session.encrypt(&Mechanism::Des3Ecb, *key, &[0; 8])?),
                KeyUse::Mac => Some(session.sign(&Mechanism::Sha256Hmac, *key, &[0; 16])?),
                KeyUse::StorageWrapped | KeyUse::StorageIso3 | KeyUse::Seal => None,
            };
            let (name, version) = (r#use.name(), self.version);
            Ok(match check_value {
                Some(bytes) => format!("{name}/{version}:{}", CheckValue::first_of(&bytes)),
                None => format!("{name}/{version}"),
            })
        };
        self.keys.iter().map(tell).collect()
    }

    /// Copies that live in this session. A token that keeps its keys in a database reads them from there at every use.
    pub(super) fn copied_to_session(&self, session: &Session) -> Result<Self, CallError> {
        let copy = |(r#use, key): &(KeyUse, ObjectHandle)| {
            Ok((*r#use, session.copy_object(*key, &[Attribute::Token(false)])?))
        };
        Ok(Self { keys: self.keys.iter().map(copy).collect::<Result<_, CallError>>()?, version: self.version })
    }

    /// As a level uses them.
    pub(super) fn handles<L: LevelKeys>(&self) -> Result<KeyHandles<L>, Pkcs11Error> {
        Ok(KeyHandles { level: L::of(self)?, account: self.one(KeyUse::Account)?, mac: self.one(KeyUse::Mac)? })
    }

    fn one(&self, r#use: KeyUse) -> Result<ObjectHandle, Pkcs11Error> {
        let found = self.keys.iter().find(|(found, _)| *found == r#use).map(|(_, key)| *key);
        found.ok_or(Pkcs11Error::Key { label: r#use.label(), version: self.version, found: 0 })
    }
}

fn objects(session: &Session, r#use: KeyUse, version: u16) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    session.find_objects(&named(r#use, version)).map_err(call_failed("C_FindObjects"))
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

fn generate(session: &Session, r#use: KeyUse, version: u16) -> Result<ObjectHandle, CallError> {
    let may = |right| r#use.rights().contains(&right);
    let mut template = named(r#use, version);
    template.extend([
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
        Attribute::Derive(may(AttributeType::Derive)),
    ]);
    let mechanism = match r#use.key_type() {
        KeyType::DES3 => Mechanism::Des3KeyGen,
        KeyType::GENERIC_SECRET => Mechanism::GenericSecretKeyGen,
        _ => Mechanism::AesKeyGen,
    };
    if !matches!(mechanism, Mechanism::Des3KeyGen) {
        template.push(Attribute::ValueLen(32.into()));
    }
    session.generate_key(&mechanism, &template)
}

/// CMAC of 16 zero bytes by encryption alone: `E(2·E(0))` (NIST SP 800-38B, 6).
fn aes_check_value(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, CallError> {
    let zero = session.encrypt(&Mechanism::AesEcb, key, &[0; 16])?;
    let zero = u128::from_be_bytes(zero.as_slice().try_into().map_err(CallError::TryFromSlice)?);
    let subkey = (zero << 1) ^ (0x87 & 0u128.wrapping_sub(zero >> 127));
    session.encrypt(&Mechanism::AesEcb, key, &subkey.to_be_bytes())
}
