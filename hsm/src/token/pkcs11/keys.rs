//! The keys a boundary needs in a token: what each is for, how it is made, and what it must not be able to do.
//!
//! Each boundary level has storage keys of its own: one that may decrypt has no place where nothing is ever decrypted.

use cryptoki::{
    error::Error as CallError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{failure::call_failed, ffi::Calls, objects::create_of};
use crate::{
    binding::BoundaryLevel,
    check_value::Kcv,
    clear::{Clear, ClearBytes},
    config::Pkcs11,
    form::StorageFormat,
    key_id::KeyId,
    keyring::{EXCHANGE_ALGORITHMS, Exportability, KeyAlgorithm, KeyUsage, NewKey, Versions, ZONE_ALGORITHMS},
    open_error::Pkcs11Error,
    sealed::KeyVersion,
    status::StorageVersions,
    versioned::Versioned,
};

/// How a token can seal a tzpk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SealWay {
    Wrap,
    Encrypt,
}

impl SealWay {
    pub(super) fn key(self) -> KeyUsage {
        match self {
            Self::Wrap => KeyUsage::Seal,
            Self::Encrypt => KeyUsage::SealEncrypting,
        }
    }
}

/// Every key that an engine needs at a level.
pub(super) fn engine_keys(level: BoundaryLevel, seal: SealWay) -> Vec<KeyUsage> {
    let storage: &[KeyUsage] = match level {
        BoundaryLevel::Host => &[KeyUsage::Storage, KeyUsage::StorageTdes],
        BoundaryLevel::Token => &[KeyUsage::StorageWrapped, KeyUsage::StorageIso3, KeyUsage::StorageIso4],
    };
    [storage, &[seal.key(), KeyUsage::Account, KeyUsage::Mac]].concat()
}

/// Every key that an engine may have in a token at any level, with the level and the way to seal that it is found at.
pub(super) fn keys_of_any_engine() -> Vec<(KeyUsage, BoundaryLevel, SealWay)> {
    let mut all: Vec<(KeyUsage, BoundaryLevel, SealWay)> = Vec::new();
    for (level, seal) in [
        (BoundaryLevel::Host, SealWay::Wrap),
        (BoundaryLevel::Host, SealWay::Encrypt),
        (BoundaryLevel::Token, SealWay::Wrap),
    ] {
        for name in engine_keys(level, seal) {
            if all.iter().all(|(found, ..)| *found != name) {
                all.push((name, level, seal));
            }
        }
    }
    all
}

/// What a key may be used with in a token at a level, the first where nothing is said; none where it has no such key.
pub(super) fn algorithms(name: &KeyUsage, level: BoundaryLevel, seal: SealWay) -> &'static [KeyAlgorithm] {
    match name {
        KeyUsage::Zone(_) => ZONE_ALGORITHMS,
        KeyUsage::Exchange(_) => EXCHANGE_ALGORITHMS,
        // Of triple length: not every token makes keys of double length.
        KeyUsage::StorageTdes | KeyUsage::StorageIso3 if engine_keys(level, seal).contains(name) => {
            &[KeyAlgorithm::TdesTriple]
        }
        KeyUsage::Mac => &[KeyAlgorithm::HmacSha256],
        engine if engine_keys(level, seal).contains(engine) => &[KeyAlgorithm::Aes256],
        _ => &[],
    }
}

/// Which versions of which keys an engine uses.
#[derive(Clone)]
pub(super) struct InUse(pub(super) Vec<(KeyUsage, u16)>);

impl InUse {
    /// Where no register says it: as configured.
    pub(super) fn of_config(config: &Pkcs11, level: BoundaryLevel, seal: SealWay) -> Self {
        let versions = |name: &KeyUsage| match &config.storage_key_versions[..] {
            versions @ [_, ..] if name.keeps_records() => versions.to_vec(),
            _ => vec![config.key_version],
        };
        let each = |name: KeyUsage| versions(&name).into_iter().map(move |version| (name.clone(), version));
        Self(engine_keys(level, seal).into_iter().flat_map(each).collect())
    }

    /// The newest of a name.
    pub(super) fn newest(&self, name: &KeyUsage) -> KeyVersion {
        let all = self.0.iter().filter(|(found, _)| found == name);
        KeyVersion(all.map(|(_, version)| *version).max().unwrap_or_default())
    }

    /// Whether a version of the storage key of a form is among them.
    pub(super) fn has_storage_key(&self, level: BoundaryLevel, form: StorageFormat, key: KeyVersion) -> bool {
        let name = KeyUsage::storage_of(level, form);
        self.0.iter().any(|(found, version)| *found == name && *version == key.0)
    }

    /// What new blobs are made under.
    pub(super) fn newest_of_all(&self, level: BoundaryLevel) -> Versions {
        let storage = |form| self.newest(&KeyUsage::storage_of(level, form));
        let seal = self.newest(&KeyUsage::Seal).max(self.newest(&KeyUsage::SealEncrypting));
        Versions {
            storage: StorageVersions {
                wrapped: storage(StorageFormat::Wrapped),
                iso_4: storage(StorageFormat::Iso4),
                tdes: storage(StorageFormat::Iso3),
            },
            seal,
            account: self.newest(&KeyUsage::Account),
        }
    }
}

/// Handles of the keys of one level; good in every session of a login.
pub(super) struct KeyHandles<L> {
    /// Those that the level has of its own.
    pub(super) level: L,
    pub(super) account: ObjectHandle,
    pub(super) mac: ObjectHandle,
}

/// The keys that one level has of its own.
pub(super) trait LevelKeys: Sized + Send + Sync + 'static {
    /// Which level.
    const LEVEL: BoundaryLevel;

    /// From those a token showed.
    fn of(found: &FoundKeys) -> Result<Self, Pkcs11Error>;
}

/// BoundaryLevel `host`: storage keys that encrypt and decrypt.
pub(super) struct HostKeys {
    pub(super) iso_4: Versioned<ObjectHandle>,
    pub(super) tdes: Versioned<ObjectHandle>,
    pub(super) seal: Versioned<SealKey>,
}

/// What a tzpk is sealed with.
#[derive(Clone, Copy)]
pub(super) enum SealKey {
    /// It comes back as an object of the token.
    Wrapping(ObjectHandle),
    /// It comes back into host memory for one operation.
    Encrypting(ObjectHandle),
}

impl LevelKeys for HostKeys {
    const LEVEL: BoundaryLevel = BoundaryLevel::Host;

    fn of(found: &FoundKeys) -> Result<Self, Pkcs11Error> {
        let seal = match found.versions(&KeyUsage::Seal, SealKey::Wrapping) {
            Ok(keys) => keys,
            Err(_) => found.versions(&KeyUsage::SealEncrypting, SealKey::Encrypting)?,
        };
        let handles = |name| found.versions(name, |handle| handle);
        Ok(Self { iso_4: handles(&KeyUsage::Storage)?, tdes: handles(&KeyUsage::StorageTdes)?, seal })
    }
}

/// BoundaryLevel `token`: storage keys that wrap, unwrap and derive, and none that decrypts.
pub(super) struct TokenKeys {
    pub(super) wrapped: Versioned<ObjectHandle>,
    pub(super) iso_3: Versioned<ObjectHandle>,
    pub(super) iso_4: Versioned<ObjectHandle>,
    pub(super) seal: Versioned<ObjectHandle>,
}

impl LevelKeys for TokenKeys {
    const LEVEL: BoundaryLevel = BoundaryLevel::Token;

    fn of(found: &FoundKeys) -> Result<Self, Pkcs11Error> {
        let handles = |name| found.versions(name, |handle| handle);
        Ok(Self {
            wrapped: handles(&KeyUsage::StorageWrapped)?,
            iso_3: handles(&KeyUsage::StorageIso3)?,
            iso_4: handles(&KeyUsage::StorageIso4)?,
            seal: handles(&KeyUsage::Seal)?,
        })
    }
}

/// Each key by use and version, with its check value where its use allows to make one.
pub(crate) type KeyReferences = Vec<KeyId>;

/// What a key may be allowed, each with its PKCS#11 name.
const RIGHTS: [(AttributeType, &str); 6] = [
    (AttributeType::Encrypt, "CKA_ENCRYPT"),
    (AttributeType::Decrypt, "CKA_DECRYPT"),
    (AttributeType::Sign, "CKA_SIGN"),
    (AttributeType::Wrap, "CKA_WRAP"),
    (AttributeType::Unwrap, "CKA_UNWRAP"),
    (AttributeType::Derive, "CKA_DERIVE"),
];

/// Its CKA_LABEL.
pub(super) fn label(name: &KeyUsage) -> String {
    format!("pinseal {name}")
}

/// The first byte of its CKA_ID. NSS keeps one secret key an id, whatever their labels: a second replaces the first.
fn code(name: &KeyUsage) -> u8 {
    match name {
        KeyUsage::Storage => b's',
        KeyUsage::StorageTdes => b'd',
        KeyUsage::StorageWrapped => b'w',
        KeyUsage::StorageIso3 => b'3',
        KeyUsage::StorageIso4 => b'4',
        KeyUsage::Seal => b't',
        KeyUsage::SealEncrypting => b'e',
        KeyUsage::Account => b'a',
        KeyUsage::Mac => b'm',
        KeyUsage::Zone(_) => b'z',
        KeyUsage::Exchange(_) => b'x',
        // A vault's own.
        KeyUsage::Record | KeyUsage::Retry => b'-',
    }
}

/// Its CKA_ID: what it is for, the version, and of another party's key whose.
fn id(name: &KeyUsage, version: u16) -> Vec<u8> {
    let [high, low] = version.to_be_bytes();
    let mut id = vec![code(name), high, low];
    if let KeyUsage::Zone(zone) | KeyUsage::Exchange(zone) = name {
        id.extend_from_slice(zone.as_str().as_bytes());
    }
    id
}

/// The version that a CKA_ID says.
fn version_of(id: &[u8]) -> Option<u16> {
    id.get(1..3).and_then(|version| <[u8; 2]>::try_from(version).ok()).map(u16::from_be_bytes)
}

/// All it may do.
fn rights(name: &KeyUsage, level: BoundaryLevel) -> &'static [AttributeType] {
    match (name, level) {
        (KeyUsage::Storage | KeyUsage::StorageTdes | KeyUsage::SealEncrypting, _)
        | (KeyUsage::Zone(_), BoundaryLevel::Host) => &[AttributeType::Encrypt, AttributeType::Decrypt],
        (KeyUsage::StorageIso3 | KeyUsage::Seal, _) | (KeyUsage::Zone(_), BoundaryLevel::Token) => {
            &[AttributeType::Wrap, AttributeType::Unwrap]
        }
        (KeyUsage::StorageWrapped, _) => &[AttributeType::Derive],
        (KeyUsage::StorageIso4, _) => &[AttributeType::Wrap, AttributeType::Encrypt],
        // CMAC by encryption alone: that is how the keys of a key block are derived.
        (KeyUsage::Account | KeyUsage::Exchange(_), _) => &[AttributeType::Encrypt],
        (KeyUsage::Mac, _) => &[AttributeType::Sign],
        (KeyUsage::Record | KeyUsage::Retry, _) => &[],
    }
}

fn key_type(algorithm: KeyAlgorithm) -> KeyType {
    match algorithm {
        KeyAlgorithm::Aes128 | KeyAlgorithm::Aes192 | KeyAlgorithm::Aes256 => KeyType::AES,
        KeyAlgorithm::TdesDouble => KeyType::DES2,
        KeyAlgorithm::TdesTriple => KeyType::DES3,
        KeyAlgorithm::HmacSha256 => KeyType::GENERIC_SECRET,
    }
}

/// Any version of a name. Private objects only: a public object of that name can be created without a PIN.
fn of_name(name: &KeyUsage) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(label(name).into()),
    ]
}

fn named(name: &KeyUsage, version: u16) -> Vec<Attribute> {
    let mut named = of_name(name);
    named.push(Attribute::Id(id(name, version)));
    named
}

/// A key as a token showed it.
struct FoundKey {
    name: KeyUsage,
    version: u16,
    handle: ObjectHandle,
}

/// The keys an engine uses at a level, as a token showed them.
pub(super) struct FoundKeys {
    keys: Vec<FoundKey>,
    level: BoundaryLevel,
}

impl FoundKeys {
    /// Finds exactly one of each.
    pub(super) fn find(session: &Session, in_use: &InUse, level: BoundaryLevel) -> Result<Self, Pkcs11Error> {
        let keys = in_use.0.iter().map(|(name, version)| match objects(session, name, *version)?[..] {
            [handle] => Ok(FoundKey { name: name.clone(), version: *version, handle }),
            ref found => Err(Pkcs11Error::Key { label: label(name), version: *version, found: found.len() }),
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, level })
    }

    /// Makes a key of every use that has none of the newest version yet. The keys that both levels use may be there.
    pub(super) fn make(
        session: Calls<'_>,
        config: &Pkcs11,
        level: BoundaryLevel,
        seal: SealWay,
    ) -> Result<Self, Pkcs11Error> {
        let in_use = InUse::of_config(config, level, seal);
        let (mut missing, mut present) = (Vec::new(), None);
        for name in engine_keys(level, seal) {
            let KeyVersion(version) = in_use.newest(&name);
            match objects(&session, &name, version)?.is_empty() {
                true => missing.push((name, version)),
                false if name.keeps_records() => present = Some((name, version)),
                false => {}
            }
        }
        if let Some((name, version)) = present {
            return Err(Pkcs11Error::Present { label: label(&name), version });
        }
        for (name, version) in missing {
            let algorithm = algorithms(&name, level, seal).first().copied().unwrap_or(KeyAlgorithm::Aes256);
            let new = NewKey { name, version, algorithm, travels: Exportability::Never };
            generate(session, &new, level).map_err(call_failed("C_GenerateKey"))?;
        }
        Self::find(&session, &in_use, level)
    }

    /// Refuses a key that can leave the token, be read, do more than it is for, or be made to.
    pub(super) fn audit(&self, session: &Session) -> Result<(), Pkcs11Error> {
        self.keys.iter().try_for_each(|FoundKey { name, handle, .. }| audit(session, name, self.level, *handle))
    }

    /// By use and version, with check values. A key that may neither encrypt nor sign has none.
    pub(super) fn references(&self, session: Calls<'_>) -> Result<KeyReferences, CallError> {
        let tell = |FoundKey { name, version, handle }: &FoundKey| {
            let algorithm = algorithms(name, self.level, seal_way_of(name)).first().copied();
            let kcv = check_value(session, name, self.level, algorithm.unwrap_or(KeyAlgorithm::Aes256), *handle)?;
            Ok(KeyId { usage: name.clone(), version: KeyVersion(*version), kcv })
        };
        self.keys.iter().map(tell).collect()
    }

    /// Copies that live in this session. A token that keeps its keys in a database reads them from there at every use.
    pub(super) fn copied_to_session(&self, session: &Session) -> Result<Self, CallError> {
        let copy = |FoundKey { name, version, handle }: &FoundKey| {
            let handle = session.copy_object(*handle, &[Attribute::Token(false)])?;
            Ok(FoundKey { name: name.clone(), version: *version, handle })
        };
        Ok(Self { keys: self.keys.iter().map(copy).collect::<Result<_, CallError>>()?, level: self.level })
    }

    /// As a level uses them.
    pub(super) fn handles<L: LevelKeys>(&self) -> Result<KeyHandles<L>, Pkcs11Error> {
        let newest = |name| Ok::<_, Pkcs11Error>(*self.versions(name, |handle| handle)?.newest());
        Ok(KeyHandles { level: L::of(self)?, account: newest(&KeyUsage::Account)?, mac: newest(&KeyUsage::Mac)? })
    }

    fn versions<T>(&self, name: &KeyUsage, each: impl Fn(ObjectHandle) -> T) -> Result<Versioned<T>, Pkcs11Error> {
        let all = self.keys.iter().filter(|key| key.name == *name);
        let all = all.map(|key| (KeyVersion(key.version), each(key.handle))).collect();
        Versioned::of(all).ok_or_else(|| Pkcs11Error::Lacks { key: name.to_string() })
    }
}

/// Refuses an engine's key that can leave the token, be read, do more than it is for, or be made to.
pub(super) fn audit(
    session: &Session,
    name: &KeyUsage,
    level: BoundaryLevel,
    handle: ObjectHandle,
) -> Result<(), Pkcs11Error> {
    let must = |holds: bool, attribute, found: &'static str| match holds {
        true => Ok(()),
        false => Err(Pkcs11Error::Unsafe { label: label(name), attribute, found }),
    };
    let mut asked = vec![
        AttributeType::Private,
        AttributeType::Modifiable,
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::KeyType,
    ];
    asked.extend(RIGHTS.map(|(right, _)| right));
    let attributes = session.get_attributes(handle, &asked).map_err(call_failed("C_GetAttributeValue"))?;
    must(attributes.contains(&Attribute::Private(true)), "CKA_PRIVATE", "not true")?;
    must(attributes.contains(&Attribute::Modifiable(false)), "CKA_MODIFIABLE", "not false")?;
    must(attributes.contains(&Attribute::Sensitive(true)), "CKA_SENSITIVE", "not true")?;
    must(attributes.contains(&Attribute::Extractable(false)), "CKA_EXTRACTABLE", "not false")?;
    let kinds = algorithms(name, level, seal_way_of(name));
    let of_its_kind = kinds.iter().any(|kind| attributes.contains(&Attribute::KeyType(key_type(*kind))));
    must(of_its_kind, "CKA_KEY_TYPE", "of another kind")?;
    for (right, attribute) in RIGHTS {
        let granted = attributes.iter().any(|attribute| attribute.attribute_type() == right && is_true(attribute));
        match rights(name, level).contains(&right) {
            true => must(granted, attribute, "not true")?,
            false => must(!granted, attribute, "not false")?,
        }
    }
    Ok(())
}

/// Which of the two ways a seal key is for; of other keys either.
fn seal_way_of(name: &KeyUsage) -> SealWay {
    if *name == KeyUsage::SealEncrypting { SealWay::Encrypt } else { SealWay::Wrap }
}

/// The objects of a name and version.
pub(super) fn objects(session: &Session, name: &KeyUsage, version: u16) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    session.find_objects(&named(name, version)).map_err(call_failed("C_FindObjects"))
}

/// The versions of a name that a token has.
pub(super) fn versions_of(session: &Session, name: &KeyUsage) -> Result<Vec<(u16, ObjectHandle)>, Pkcs11Error> {
    let found = session.find_objects(&of_name(name)).map_err(call_failed("C_FindObjects"))?;
    let mut versions = Vec::with_capacity(found.len());
    for handle in found {
        let attributes =
            session.get_attributes(handle, &[AttributeType::Id]).map_err(call_failed("C_GetAttributeValue"))?;
        if let [Attribute::Id(id)] = &attributes[..] {
            versions.extend(version_of(id).map(|version| (version, handle)));
        }
    }
    versions.sort_by_key(|(version, _)| *version);
    Ok(versions)
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

fn template(NewKey { name, version, travels, .. }: &NewKey, level: BoundaryLevel) -> Vec<Attribute> {
    let may = |right| rights(name, level).contains(&right);
    let mut template = named(name, *version);
    template.extend([
        Attribute::Sensitive(true),
        Attribute::Extractable(*travels == Exportability::On),
        Attribute::Modifiable(false),
        Attribute::Encrypt(may(AttributeType::Encrypt)),
        Attribute::Decrypt(may(AttributeType::Decrypt)),
        Attribute::Sign(may(AttributeType::Sign)),
        Attribute::Verify(false),
        Attribute::Wrap(may(AttributeType::Wrap)),
        Attribute::Unwrap(may(AttributeType::Unwrap)),
        Attribute::Derive(may(AttributeType::Derive)),
    ]);
    template
}

/// Makes a key inside.
pub(super) fn generate(session: Calls<'_>, new: &NewKey, level: BoundaryLevel) -> Result<ObjectHandle, CallError> {
    let mut template = template(new, level);
    let mechanism = match new.algorithm {
        KeyAlgorithm::TdesDouble => Mechanism::Des2KeyGen,
        KeyAlgorithm::TdesTriple => Mechanism::Des3KeyGen,
        KeyAlgorithm::HmacSha256 => Mechanism::GenericSecretKeyGen,
        KeyAlgorithm::Aes128 | KeyAlgorithm::Aes192 | KeyAlgorithm::Aes256 => Mechanism::AesKeyGen,
    };
    if !new.algorithm.is_tdes() {
        template.push(Attribute::ValueLen(u64::try_from(new.algorithm.bytes())?.into()));
    }
    session.generate_key(&mechanism, &template)
}

/// Brings a key in that was made outside.
pub(super) fn bring_in(
    session: &Session,
    new: &NewKey,
    level: BoundaryLevel,
    key: &ClearBytes,
) -> Result<ObjectHandle, CallError> {
    let mut template = template(new, level);
    template.push(Attribute::KeyType(key_type(new.algorithm)));
    create_of(session, template, key.bytes())
}

/// Of AES the first 3 bytes of CMAC over 16 zero bytes, of 3DES those of the encrypted zero block, of HMAC those of it over
/// 16 zero bytes; none where the key may do none of it.
pub(super) fn check_value(
    session: Calls<'_>,
    name: &KeyUsage,
    level: BoundaryLevel,
    algorithm: KeyAlgorithm,
    key: ObjectHandle,
) -> Result<Option<Kcv>, CallError> {
    let may = |right| rights(name, level).contains(&right);
    Ok(match algorithm {
        KeyAlgorithm::HmacSha256 if may(AttributeType::Sign) => {
            let mut tag = [0; 32];
            session.sign(&Mechanism::Sha256Hmac, key, &[0; 16], &mut tag)?;
            Some(Kcv::first_of(&tag))
        }
        _ if !may(AttributeType::Encrypt) => None,
        KeyAlgorithm::TdesDouble | KeyAlgorithm::TdesTriple => {
            let mut zero = [0; 8];
            session.encrypt(&Mechanism::Des3Ecb, key, &[0; 8], &mut zero)?;
            Some(Kcv::first_of(&zero))
        }
        _ => {
            let mut tag = Clear::zeroed();
            cmac(session, key, &[0; 16], &mut tag)?;
            Some(Kcv::first_of(tag.bytes()))
        }
    })
}

/// CMAC of at most one block by encryption alone (NIST SP 800-38B, 6): not every token has CMAC.
pub(super) fn cmac(
    session: Calls<'_>,
    key: ObjectHandle,
    message: &[u8],
    tag: &mut Clear<16>,
) -> Result<(), CallError> {
    let doubled = |block: u128| (block << 1) ^ (0x87 & 0u128.wrapping_sub(block >> 127));
    let mut zero = Clear::<16>::zeroed();
    session.encrypt(&Mechanism::AesEcb, key, &[0; 16], zero.bytes_mut())?;
    let first = doubled(zero.nibbles());
    let mut last = Clear::<16>::zeroed();
    last.bytes_mut().iter_mut().zip(message.iter().chain(&[0x80])).for_each(|(place, byte)| *place = *byte);
    let subkey = if message.len() == 16 { first } else { doubled(first) };
    last.set_nibbles(last.nibbles() ^ subkey);
    session.encrypt(&Mechanism::AesEcb, key, last.bytes(), tag.bytes_mut())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fresh_token::Make,
        keyring::Keyring,
        token::pkcs11::{
            inventory::{self, Inventory, Seen},
            make_keys,
            session_pool::{self, TokenSlot, UsableKeys},
        },
    };

    fn best_level(make: Make) -> BoundaryLevel {
        if make == Make::Nss { BoundaryLevel::Token } else { BoundaryLevel::Host }
    }

    /// As an engine finds them when it opens.
    fn found(make: Make) -> Result<KeyReferences, Pkcs11Error> {
        let config = make.config();
        let (session, functions, _) = session_pool::look(&config)?;
        let session = Calls::new(&session, functions.as_deref());
        let UsableKeys { references, .. } = session_pool::find_keys(session, &config, best_level(make), None)?;
        assert!(Inventory::read(&session)?.is_none());
        Ok(references)
    }

    /// With one attribute otherwise.
    fn with(template: Vec<Attribute>, changed: &Attribute) -> Vec<Attribute> {
        let change = |attribute: Attribute| match attribute.attribute_type() == changed.attribute_type() {
            true => changed.clone(),
            false => attribute,
        };
        template.into_iter().map(change).collect()
    }

    fn aes_256(name: KeyUsage, version: u16) -> NewKey {
        NewKey { name, version, algorithm: KeyAlgorithm::Aes256, travels: Exportability::Never }
    }

    #[test]
    fn keys_and_a_register_that_somebody_without_the_pin_put_there_are_not_found() {
        let Some(make) = Make::here() else {
            let runs = |make: Make| {
                make.runs("keys_and_a_register_that_somebody_without_the_pin_put_there_are_not_found");
            };
            return Make::ALL.into_iter().for_each(runs);
        };
        let (config, level) = (make.config(), best_level(make));
        let made = make_keys(&config, level).unwrap();

        let stranger = TokenSlot::find(&config.place).unwrap().of_a_stranger();
        let storage = if level == BoundaryLevel::Token { KeyUsage::StorageWrapped } else { KeyUsage::Storage };
        let plant_key = |version, private| {
            let new = aes_256(storage.clone(), version);
            let mut planted = with(template(&new, level), &Attribute::Private(private));
            planted.push(Attribute::KeyType(KeyType::AES));
            create_of(&stranger, planted, &[0x42; 32]).is_ok()
        };
        let plant_register = |number, private| {
            let planted = inventory::as_data(&Seen::with(number, &Keyring::empty()));
            stranger.create_object(&with(planted, &Attribute::Private(private))).is_ok()
        };
        let planted = |private| [plant_key(1, private), plant_key(2, private), plant_register(7, private)];
        // NSS creates nothing before a login.
        assert_eq!(planted(false), [make != Make::Nss; 3]);
        // What the search relies on.
        assert_eq!(planted(true), [false; 3]);
        drop(stranger);

        assert_eq!(found(make).unwrap(), made);
        let (session, _) = session_pool::look_to_write(&config).unwrap();
        let versions = versions_of(&session, &storage).unwrap();
        assert_eq!(versions.iter().map(|(version, _)| *version).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_key_that_can_still_be_changed_is_refused() {
        let Some(make) = Make::here() else {
            return Make::ALL.into_iter().for_each(|make| make.runs("a_key_that_can_still_be_changed_is_refused"));
        };
        let (config, level) = (make.config(), best_level(make));
        make_keys(&config, level).unwrap();
        found(make).unwrap();

        let (session, _) = session_pool::look_to_write(&config).unwrap();
        for left in objects(&session, &KeyUsage::Account, 1).unwrap() {
            session.destroy_object(left).unwrap();
        }
        let mut template = with(template(&aes_256(KeyUsage::Account, 1), level), &Attribute::Modifiable(true));
        template.push(Attribute::ValueLen(32.into()));
        session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
        drop(session);
        let refused = found(make).unwrap_err().to_string();
        assert!(refused.contains("\"pinseal account\" is unsafe: CKA_MODIFIABLE is not false"), "{refused}");
    }
}
