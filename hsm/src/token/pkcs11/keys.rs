//! The keys of a boundary in a token: label, id, algorithm and the PKCS#11 rights of each usage.
//!
//! The two boundary levels use different storage keys: at level `token` no storage key may decrypt.

use cryptoki::{
    error::Error as CallError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    failure::call_failed,
    ffi::Calls,
    objects::{PROTECTION, create_with_value},
};
use hsm_protocol::{
    BoundaryLevel, Kcv, KeyId, KeyVersion, RECORD_MESSAGE_BYTES_MAX, StorageFormat, StorageVersions, TAG_BYTES,
    ZoneName,
};

use crate::{
    clear::{Clear, ClearBytes},
    config::Pkcs11,
    keyring::{
        EXCHANGE_ALGORITHMS, Exportability, KeyAlgorithm, KeyMode, KeyUsage, Keyring, NewKey, VerificationKeyInfo,
        Versions, ZONE_ALGORITHMS, ZoneKeyInfo,
    },
    open_error::Pkcs11Error,
    token::{VerificationKey, aes_chain::cmac_subkeys},
    versioned::Versioned,
    zones::ZoneKeyRef,
};

/// The way a token seals a tzpk: with CKM_AES_KEY_WRAP as an object, or with CKM_AES_ECB as bytes.
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

/// The usages of the keys that an engine needs at a level.
pub(super) fn engine_keys(level: BoundaryLevel, seal: SealWay) -> Vec<KeyUsage> {
    let storage: &[KeyUsage] = match level {
        BoundaryLevel::Host => &[KeyUsage::Storage, KeyUsage::StorageTdes],
        BoundaryLevel::Token => &[KeyUsage::StorageWrapped, KeyUsage::StorageIso3, KeyUsage::StorageIso4],
    };
    [storage, &[seal.key(), KeyUsage::Account, KeyUsage::Mac]].concat()
}

/// The usages of the keys that an engine may have at any level, each with the first level and seal way that needs it.
pub(super) fn engine_keys_of_all_levels() -> Vec<(KeyUsage, BoundaryLevel, SealWay)> {
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
    all.push((KeyUsage::StorageOneWay, BoundaryLevel::Host, SealWay::Wrap));
    all
}

/// The algorithms that a key of this usage may have in a token at a level, the default first; empty where a token has no
/// such key.
pub(super) fn algorithms(name: &KeyUsage, level: BoundaryLevel, seal: SealWay) -> &'static [KeyAlgorithm] {
    match name {
        KeyUsage::Zone(_) => ZONE_ALGORITHMS,
        KeyUsage::Exchange(_) => EXCHANGE_ALGORITHMS,
        KeyUsage::Pvk(_) | KeyUsage::Ibm3624(_) if level == BoundaryLevel::Host => &[KeyAlgorithm::TdesDouble],
        KeyUsage::StorageOneWay if level == BoundaryLevel::Host => &[KeyAlgorithm::Aes256],
        // Triple length, because not every token has CKM_DES2_KEY_GEN.
        KeyUsage::StorageTdes | KeyUsage::StorageIso3 if engine_keys(level, seal).contains(name) => {
            &[KeyAlgorithm::TdesTriple]
        }
        KeyUsage::Mac => &[KeyAlgorithm::HmacSha256],
        engine if engine_keys(level, seal).contains(engine) => &[KeyAlgorithm::Aes256],
        _ => &[],
    }
}

/// The algorithms that a key of this usage may have in some token at a level; empty where no token has such a key.
pub(crate) fn algorithms_in_token(usage: &KeyUsage, level: BoundaryLevel) -> &'static [KeyAlgorithm] {
    algorithms(usage, level, seal_way_of(usage))
}

/// The algorithm of an engine's key at a level.
pub(super) fn default_algorithm(name: &KeyUsage, level: BoundaryLevel, seal: SealWay) -> KeyAlgorithm {
    algorithms(name, level, seal).first().copied().unwrap_or(KeyAlgorithm::Aes256)
}

/// The configured versions of a usage, for a token without an inventory.
pub(super) fn configured_versions(config: &Pkcs11, name: &KeyUsage) -> Vec<u16> {
    match &config.storage_key_versions[..] {
        versions @ [_, ..] if name.keeps_records() => versions.to_vec(),
        _ => vec![config.key_version],
    }
}

/// The usages and versions of the keys that an engine uses.
#[derive(Clone)]
pub(super) struct InUse(pub(super) Vec<(KeyUsage, u16)>);

impl InUse {
    /// The configured versions, for a token without an inventory.
    pub(super) fn configured(config: &Pkcs11, level: BoundaryLevel, seal: SealWay) -> Self {
        let mut in_use = Self(Vec::new());
        engine_keys(level, seal).iter().for_each(|name| in_use.add(name, configured_versions(config, name)));
        in_use
    }

    /// Adds versions of a usage.
    pub(super) fn add(&mut self, name: &KeyUsage, versions: impl IntoIterator<Item = u16>) {
        self.0.extend(versions.into_iter().map(|version| (name.clone(), version)));
    }

    /// The newest version of a usage; 0 where no version is in use.
    pub(super) fn newest(&self, name: &KeyUsage) -> KeyVersion {
        let all = self.0.iter().filter(|(found, _)| found == name);
        KeyVersion(all.map(|(_, version)| *version).max().unwrap_or_default())
    }

    /// Whether this version of the storage key of a format is in use.
    pub(super) fn has_storage_key(&self, level: BoundaryLevel, form: StorageFormat, key: KeyVersion) -> bool {
        let name = KeyUsage::storage_of(level, form);
        self.0.iter().any(|(found, version)| *found == name && *version == key.0)
    }

    /// The versions that seal and store new values.
    pub(super) fn newest_of_all(&self, level: BoundaryLevel) -> Versions {
        let storage = |form| self.newest(&KeyUsage::storage_of(level, form));
        let seal = self.newest(&KeyUsage::Seal).max(self.newest(&KeyUsage::SealEncrypting));
        Versions {
            storage: StorageVersions {
                wrapped: storage(StorageFormat::Wrapped),
                iso_4: storage(StorageFormat::Iso4),
                tdes: storage(StorageFormat::Iso3),
                one_way: storage(StorageFormat::OneWay),
            },
            seal,
            account: self.newest(&KeyUsage::Account),
        }
    }
}

/// Handles of the keys of one level, valid in every session of a login.
pub(super) struct KeyHandles<L> {
    /// The keys that only this level uses.
    pub(super) level: L,
    pub(super) account: ObjectHandle,
    pub(super) mac: ObjectHandle,
    zones: Vec<(ZoneName, KeyVersion, ObjectHandle)>,
}

impl<L> KeyHandles<L> {
    /// The handle of a version of a zone key; `None` where the token lacks the key.
    pub(super) fn zone(&self, key: ZoneKeyRef<'_>) -> Option<ObjectHandle> {
        let found = self.zones.iter().find(|(zone, version, _)| zone == key.zone && *version == key.version);
        found.map(|(.., handle)| *handle)
    }
}

/// The keys that only one level uses.
pub(super) trait LevelKeys: Sized + Send + Sync + 'static {
    /// The boundary level.
    const LEVEL: BoundaryLevel;

    /// Picks the keys of the level from those found in a token.
    fn from_found(found: &FoundKeys) -> Result<Self, Pkcs11Error>;
}

/// Level `host`: storage keys that encrypt and decrypt.
pub(super) struct HostKeys {
    pub(super) iso_4: Versioned<ObjectHandle>,
    pub(super) tdes: Versioned<ObjectHandle>,
    pub(super) seal: Versioned<SealKey>,
    /// None in a token without such a key.
    pub(super) one_way: Option<Versioned<ObjectHandle>>,
    /// The PVKs and IBM 3624 keys.
    verification: Vec<(KeyUsage, ObjectHandle)>,
}

impl HostKeys {
    /// The handle of a PVK or IBM 3624 key.
    pub(super) fn verification(&self, key: VerificationKey<'_>) -> Option<ObjectHandle> {
        self.verification.iter().find(|(usage, _)| key.names(usage)).map(|(_, handle)| *handle)
    }
}

/// The key that seals a tzpk.
#[derive(Clone, Copy)]
pub(super) enum SealKey {
    /// Unwraps the tzpk as an object of the token.
    Wrapping(ObjectHandle),
    /// Decrypts the tzpk into host memory for one operation.
    Encrypting(ObjectHandle),
}

impl LevelKeys for HostKeys {
    const LEVEL: BoundaryLevel = BoundaryLevel::Host;

    fn from_found(found: &FoundKeys) -> Result<Self, Pkcs11Error> {
        let seal = match found.versions(&KeyUsage::Seal, SealKey::Wrapping) {
            Ok(keys) => keys,
            Err(_) => found.versions(&KeyUsage::SealEncrypting, SealKey::Encrypting)?,
        };
        let handles = |name| found.versions(name, |handle| handle);
        let verifies = |key: &&FoundKey| key.name.verifies();
        Ok(Self {
            iso_4: handles(&KeyUsage::Storage)?,
            tdes: handles(&KeyUsage::StorageTdes)?,
            seal,
            one_way: handles(&KeyUsage::StorageOneWay).ok(),
            verification: found.keys.iter().filter(verifies).map(|key| (key.name.clone(), key.handle)).collect(),
        })
    }
}

/// Level `token`: storage keys that wrap, unwrap and derive. None decrypts.
pub(super) struct TokenKeys {
    pub(super) wrapped: Versioned<ObjectHandle>,
    pub(super) iso_3: Versioned<ObjectHandle>,
    pub(super) iso_4: Versioned<ObjectHandle>,
    pub(super) seal: Versioned<ObjectHandle>,
}

impl LevelKeys for TokenKeys {
    const LEVEL: BoundaryLevel = BoundaryLevel::Token;

    fn from_found(found: &FoundKeys) -> Result<Self, Pkcs11Error> {
        let handles = |name| found.versions(name, |handle| handle);
        Ok(Self {
            wrapped: handles(&KeyUsage::StorageWrapped)?,
            iso_3: handles(&KeyUsage::StorageIso3)?,
            iso_4: handles(&KeyUsage::StorageIso4)?,
            seal: handles(&KeyUsage::Seal)?,
        })
    }
}

/// The id of each key, with its KCV where the usage allows one.
pub(crate) type KeyReferences = Vec<KeyId>;

/// The rights that are audited, each with its PKCS#11 name.
const RIGHTS: [(AttributeType, &str); 6] = [
    (AttributeType::Encrypt, "CKA_ENCRYPT"),
    (AttributeType::Decrypt, "CKA_DECRYPT"),
    (AttributeType::Sign, "CKA_SIGN"),
    (AttributeType::Wrap, "CKA_WRAP"),
    (AttributeType::Unwrap, "CKA_UNWRAP"),
    (AttributeType::Derive, "CKA_DERIVE"),
];

/// The CKA_LABEL of a usage.
pub(super) fn label(name: &KeyUsage) -> String {
    format!("pinseal {name}")
}

/// The first byte of the CKA_ID of a usage. NSS stores one secret key for each id and ignores the label: a second key with
/// the same id replaces the first.
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
        KeyUsage::StorageOneWay => b'o',
        KeyUsage::Pvk(_) => b'v',
        KeyUsage::Ibm3624(_) => b'i',
        // Only a vault has these keys.
        KeyUsage::Record | KeyUsage::Retry => b'-',
    }
}

/// The CKA_ID: code(1) version(2, big-endian), and the name of a zone, exchange, PVK or IBM 3624 key.
fn id(name: &KeyUsage, version: u16) -> Vec<u8> {
    let [high, low] = version.to_be_bytes();
    let mut id = vec![code(name), high, low];
    match name {
        KeyUsage::Zone(zone) | KeyUsage::Exchange(zone) => id.extend_from_slice(zone.as_str().as_bytes()),
        KeyUsage::Pvk(name) => id.extend_from_slice(name.to_string().as_bytes()),
        KeyUsage::Ibm3624(name) => id.extend_from_slice(name.to_string().as_bytes()),
        _ => {}
    }
    id
}

/// The version in a CKA_ID.
fn version_of(id: &[u8]) -> Option<u16> {
    id.get(1..3).and_then(|version| <[u8; 2]>::try_from(version).ok()).map(u16::from_be_bytes)
}

/// The rights of a zone key at a level: those of the directions that its mode of use allows.
fn zone_rights(level: BoundaryLevel, mode: KeyMode) -> &'static [AttributeType] {
    use AttributeType::{Decrypt, Encrypt, Unwrap, Wrap};
    match (level, mode) {
        (BoundaryLevel::Host, KeyMode::Both) => &[Encrypt, Decrypt],
        (BoundaryLevel::Host, KeyMode::Encrypts) => &[Encrypt],
        (BoundaryLevel::Host, KeyMode::Decrypts) => &[Decrypt],
        (BoundaryLevel::Token, KeyMode::Both) => &[Wrap, Unwrap],
        (BoundaryLevel::Token, KeyMode::Encrypts) => &[Wrap],
        (BoundaryLevel::Token, KeyMode::Decrypts) => &[Unwrap],
        (_, KeyMode::Generates | KeyMode::Verifies) => &[],
    }
}

/// The rights of a usage at a level: all others are false.
fn rights(name: &KeyUsage, (level, mode): (BoundaryLevel, KeyMode)) -> &'static [AttributeType] {
    match (name, level) {
        (KeyUsage::Zone(_), _) => zone_rights(level, mode),
        (KeyUsage::Storage | KeyUsage::StorageTdes | KeyUsage::SealEncrypting, _) => {
            &[AttributeType::Encrypt, AttributeType::Decrypt]
        }
        (KeyUsage::StorageIso3 | KeyUsage::Seal, _) => &[AttributeType::Wrap, AttributeType::Unwrap],
        (KeyUsage::StorageWrapped, _) => &[AttributeType::Derive],
        (KeyUsage::StorageIso4, _) => &[AttributeType::Wrap, AttributeType::Encrypt],
        // CMAC by encryption derives the keys of a key block.
        (KeyUsage::Account | KeyUsage::Exchange(_), _)
        // Compared values and CMACs are computed by encryption.
        | (KeyUsage::StorageOneWay | KeyUsage::Pvk(_) | KeyUsage::Ibm3624(_), BoundaryLevel::Host) => {
            &[AttributeType::Encrypt]
        }
        (KeyUsage::Mac, _) => &[AttributeType::Sign],
        (
            KeyUsage::Record
            | KeyUsage::Retry
            | KeyUsage::StorageOneWay
            | KeyUsage::Pvk(_)
            | KeyUsage::Ibm3624(_),
            _,
        ) => &[],
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

/// The search template for every version of a usage. Private objects only: anybody can create a public object with the same
/// label without the PIN.
fn search_template(name: &KeyUsage) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(label(name).into()),
    ]
}

fn named(name: &KeyUsage, version: u16) -> Vec<Attribute> {
    let mut named = search_template(name);
    named.push(Attribute::Id(id(name, version)));
    named
}

/// A key object of a token.
struct FoundKey {
    name: KeyUsage,
    version: u16,
    algorithm: KeyAlgorithm,
    handle: ObjectHandle,
    /// As the inventory lists the key; `Both` without an inventory.
    mode: KeyMode,
}

/// The key objects that an engine uses at a level.
pub(super) struct FoundKeys {
    keys: Vec<FoundKey>,
    level: BoundaryLevel,
}

impl FoundKeys {
    /// Finds one object for each usage and version.
    ///
    /// # Errors
    /// [`Pkcs11Error::Key`] where a key is missing, or where several have the same label and id.
    pub(super) fn find(
        session: &Session,
        in_use: &InUse,
        level: BoundaryLevel,
        inventory: Option<&Keyring>,
    ) -> Result<Self, Pkcs11Error> {
        let keys = in_use.0.iter().map(|(name, version)| match objects(session, name, *version)?[..] {
            [handle] => {
                let algorithm = algorithm_of(session, name, level, handle)?;
                let listed = inventory.and_then(|keyring| keyring.of(name).find(|ring| ring.info.version == *version));
                let mode = listed.map_or(KeyMode::Both, |ring| ring.info.mode);
                Ok(FoundKey { name: name.clone(), version: *version, algorithm, handle, mode })
            }
            ref found => Err(Pkcs11Error::Key { label: label(name), version: *version, found: found.len() }),
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, level })
    }

    /// Generates the missing keys of a level in their configured version. The account, MAC and seal keys may exist already:
    /// both levels use them.
    ///
    /// # Errors
    /// [`Pkcs11Error::Present`] where a storage key exists.
    pub(super) fn make(
        session: Calls<'_>,
        config: &Pkcs11,
        level: BoundaryLevel,
        seal: SealWay,
    ) -> Result<Self, Pkcs11Error> {
        let mut in_use = InUse::configured(config, level, seal);
        let mut names = engine_keys(level, seal);
        if level == BoundaryLevel::Host {
            in_use.add(&KeyUsage::StorageOneWay, configured_versions(config, &KeyUsage::StorageOneWay));
            names.push(KeyUsage::StorageOneWay);
        }
        let (mut missing, mut present) = (Vec::new(), None);
        for name in names {
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
            let algorithm = default_algorithm(&name, level, seal);
            let new = NewKey { name, version, algorithm, travels: Exportability::Never, mode: KeyMode::Both };
            generate(session, &new, level).map_err(call_failed("C_GenerateKey"))?;
        }
        Self::find(&session, &in_use, level, None)
    }

    /// Rejects unsafe keys; see [`audit`]. Only a zone key that the inventory lists as exportable may be extractable.
    pub(super) fn audit(&self, session: &Session, inventory: Option<&Keyring>) -> Result<(), Pkcs11Error> {
        self.keys.iter().try_for_each(|FoundKey { name, version, handle, mode, .. }| {
            let listed = inventory.and_then(|keyring| keyring.of(name).find(|ring| ring.info.version == *version));
            let travels = match listed {
                Some(ring) if ring.info.exportable && !name.is_an_engines() => Exportability::On,
                _ => Exportability::Never,
            };
            audit(session, name, self.level, *handle, (travels, *mode))
        })
    }

    /// The ids of the keys. A key that may neither encrypt nor sign has no KCV.
    pub(super) fn references(&self, session: Calls<'_>) -> Result<KeyReferences, CallError> {
        let key_id = |FoundKey { name, version, algorithm, handle, mode }: &FoundKey| {
            let kcv = kcv(session, name, (self.level, *mode), *algorithm, *handle)?;
            Ok(KeyId { usage: name.clone(), version: KeyVersion(*version), kcv })
        };
        self.keys.iter().map(key_id).collect()
    }

    /// The facts of the zone keys: mode and parity as the inventory has them, which a ceremony read from the clear key.
    pub(super) fn zone_keys(&self, references: &KeyReferences, inventory: Option<&Keyring>) -> Vec<ZoneKeyInfo> {
        let info = |key: &FoundKey| {
            let KeyUsage::Zone(zone) = &key.name else { return None };
            let listed =
                inventory.and_then(|keyring| keyring.of(&key.name).find(|ring| ring.info.version == key.version));
            let kcv = references.iter().find(|id| id.usage == key.name && id.version.0 == key.version)?.kcv;
            Some(ZoneKeyInfo {
                zone: zone.clone(),
                version: KeyVersion(key.version),
                is_tdes: key.algorithm.is_tdes(),
                mode: key.mode,
                odd_parity: listed.map(|ring| ring.info.odd_parity),
                kcv,
            })
        };
        self.keys.iter().filter_map(info).collect()
    }

    /// The PVKs and IBM 3624 keys, each with the mode of use in the inventory.
    pub(super) fn verification_keys(&self, inventory: Option<&Keyring>) -> Vec<VerificationKeyInfo> {
        let verifies = self.keys.iter().filter(|key| key.name.verifies());
        let listed = |key: &FoundKey| {
            let info = &inventory?.active(&key.name)?.info;
            let (version, kcv) = (KeyVersion(info.version), info.check_value);
            Some(VerificationKeyInfo { mode: info.mode, id: KeyId { usage: key.name.clone(), version, kcv } })
        };
        verifies.filter_map(listed).collect()
    }

    /// Copies the keys into this session (C_CopyObject): a token with a key database, such as NSS, reads a stored key from
    /// the database at every use.
    pub(super) fn copied_to_session(&self, session: &Session) -> Result<Self, CallError> {
        let copy = |FoundKey { name, version, algorithm, handle, mode }: &FoundKey| {
            let handle = session.copy_object(*handle, &[Attribute::Token(false)])?;
            Ok(FoundKey { name: name.clone(), version: *version, algorithm: *algorithm, handle, mode: *mode })
        };
        Ok(Self { keys: self.keys.iter().map(copy).collect::<Result<_, CallError>>()?, level: self.level })
    }

    /// The handles as a level uses them.
    pub(super) fn handles<L: LevelKeys>(&self) -> Result<KeyHandles<L>, Pkcs11Error> {
        let newest = |name| Ok::<_, Pkcs11Error>(*self.versions(name, |handle| handle)?.newest());
        let zone = |key: &FoundKey| match &key.name {
            KeyUsage::Zone(zone) => Some((zone.clone(), KeyVersion(key.version), key.handle)),
            _ => None,
        };
        Ok(KeyHandles {
            level: L::from_found(self)?,
            account: newest(&KeyUsage::Account)?,
            mac: newest(&KeyUsage::Mac)?,
            zones: self.keys.iter().filter_map(zone).collect(),
        })
    }

    fn versions<T>(&self, name: &KeyUsage, each: impl Fn(ObjectHandle) -> T) -> Result<Versioned<T>, Pkcs11Error> {
        let all = self.keys.iter().filter(|key| key.name == *name);
        let all = all.map(|key| (KeyVersion(key.version), each(key.handle))).collect();
        Versioned::new(all).ok_or_else(|| Pkcs11Error::Lacks { key: name.to_string() })
    }
}

/// Rejects a key that can be read or modified, or extracted where it does not travel, or whose rights are not exactly those of
/// its usage.
///
/// # Errors
/// [`Pkcs11Error::Unsafe`] with the first wrong attribute.
pub(super) fn audit(
    session: &Session,
    name: &KeyUsage,
    level: BoundaryLevel,
    handle: ObjectHandle,
    (travels, mode): (Exportability, KeyMode),
) -> Result<(), Pkcs11Error> {
    let must = |holds: bool, attribute, found: &'static str| match holds {
        true => Ok(()),
        false => Err(Pkcs11Error::Unsafe { label: label(name), attribute, found }),
    };
    let mut asked = vec![AttributeType::KeyType];
    asked.extend(PROTECTION.iter().map(|(wanted, ..)| wanted.attribute_type()));
    asked.extend(RIGHTS.map(|(right, _)| right));
    let attributes = session.get_attributes(handle, &asked).map_err(call_failed("C_GetAttributeValue"))?;
    for (wanted, attribute, found) in PROTECTION {
        let is_free = travels == Exportability::On && wanted.attribute_type() == AttributeType::Extractable;
        must(is_free || attributes.contains(&wanted), attribute, found)?;
    }
    let kinds = algorithms(name, level, seal_way_of(name));
    let right_type = kinds.iter().any(|kind| attributes.contains(&Attribute::KeyType(key_type(*kind))));
    must(right_type, "CKA_KEY_TYPE", "of another kind")?;
    for (right, attribute) in RIGHTS {
        let granted = attributes.iter().any(|attribute| attribute.attribute_type() == right && is_true(attribute));
        match rights(name, (level, mode)).contains(&right) {
            true => must(granted, attribute, "not true")?,
            false => must(!granted, attribute, "not false")?,
        }
    }
    Ok(())
}

/// The algorithm of a key: by its type for a zone key, which may have several, by its usage otherwise.
fn algorithm_of(
    session: &Session,
    name: &KeyUsage,
    level: BoundaryLevel,
    handle: ObjectHandle,
) -> Result<KeyAlgorithm, Pkcs11Error> {
    if !matches!(name, KeyUsage::Zone(_)) {
        return Ok(default_algorithm(name, level, seal_way_of(name)));
    }
    let asked = [AttributeType::KeyType];
    let attributes = session.get_attributes(handle, &asked).map_err(call_failed("C_GetAttributeValue"))?;
    // openCryptoki names no CKA_VALUE_LEN. No call needs the length of an AES key.
    let suits = |algorithm: &&KeyAlgorithm| attributes.contains(&Attribute::KeyType(key_type(**algorithm)));
    let unsuited = || Pkcs11Error::Unsafe { label: label(name), attribute: "CKA_KEY_TYPE", found: "of another kind" };
    ZONE_ALGORITHMS.iter().find(suits).copied().ok_or_else(unsuited)
}

/// The seal way that a seal key serves. For other usages the seal way makes no difference.
fn seal_way_of(name: &KeyUsage) -> SealWay {
    if *name == KeyUsage::SealEncrypting { SealWay::Encrypt } else { SealWay::Wrap }
}

/// The private key objects of a usage and version.
pub(super) fn objects(session: &Session, name: &KeyUsage, version: u16) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    session.find_objects(&named(name, version)).map_err(call_failed("C_FindObjects"))
}

/// The versions of a usage in a token, in ascending order.
pub(super) fn versions_of(session: &Session, name: &KeyUsage) -> Result<Vec<(u16, ObjectHandle)>, Pkcs11Error> {
    let found = session.find_objects(&search_template(name)).map_err(call_failed("C_FindObjects"))?;
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

fn template(NewKey { name, version, travels, mode, .. }: &NewKey, level: BoundaryLevel) -> Vec<Attribute> {
    let may = |right| rights(name, (level, *mode)).contains(&right);
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

/// Generates a key in the token.
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

/// Imports a clear key into the token.
pub(super) fn import(
    session: &Session,
    new: &NewKey,
    level: BoundaryLevel,
    key: &ClearBytes,
) -> Result<ObjectHandle, CallError> {
    let mut template = template(new, level);
    template.push(Attribute::KeyType(key_type(new.algorithm)));
    create_with_value(session, template, key.bytes())
}

/// The KCV (ANSI X9.24-1, annex A), computed by the token: the first 3 bytes of CMAC over 16 zero bytes for AES, of the
/// encrypted zero block for 3DES, of HMAC over 16 zero bytes for HMAC. `None` where the rights of the key allow neither.
pub(super) fn kcv(
    session: Calls<'_>,
    name: &KeyUsage,
    (level, mode): (BoundaryLevel, KeyMode),
    algorithm: KeyAlgorithm,
    key: ObjectHandle,
) -> Result<Option<Kcv>, CallError> {
    let may = |right| rights(name, (level, mode)).contains(&right);
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

/// CMAC of at most 16 bytes by CKM_AES_ECB (NIST SP 800-38B, 6.2): not every token has CKM_AES_CMAC.
pub(super) fn cmac(
    session: Calls<'_>,
    key: ObjectHandle,
    message: &[u8],
    tag: &mut Clear<16>,
) -> Result<(), CallError> {
    let mut zero = Clear::<16>::zeroed();
    session.encrypt(&Mechanism::AesEcb, key, &[0; 16], zero.bytes_mut())?;
    let (whole_subkey, padded_subkey) = cmac_subkeys(zero.nibbles());
    let mut last = Clear::<16>::zeroed();
    last.bytes_mut().iter_mut().zip(message.iter().chain(&[0x80])).for_each(|(place, byte)| *place = *byte);
    let subkey = if message.len() == 16 { whole_subkey } else { padded_subkey };
    last.set_nibbles(last.nibbles() ^ subkey);
    session.encrypt(&Mechanism::AesEcb, key, last.bytes(), tag.bytes_mut())
}

/// CMAC of at most [`RECORD_MESSAGE_BYTES_MAX`] bytes by CKM_AES_CBC (NIST SP 800-38B, 6.2), in one call.
pub(super) fn long_cmac(
    session: Calls<'_>,
    key: ObjectHandle,
    message: &[u8],
    tag: &mut [u8; TAG_BYTES],
) -> Result<(), CallError> {
    const BUFFER_BYTES: usize = RECORD_MESSAGE_BYTES_MAX.next_multiple_of(16);
    let mut zero = Clear::<16>::zeroed();
    session.encrypt(&Mechanism::AesEcb, key, &[0; 16], zero.bytes_mut())?;
    let (whole_subkey, padded_subkey) = cmac_subkeys(zero.nibbles());
    let is_whole = message.len().is_multiple_of(16) && !message.is_empty();
    let subkey = if is_whole { whole_subkey } else { padded_subkey };
    let (mut clear, mut cipher) = (Clear::<BUFFER_BYTES>::zeroed(), Clear::<BUFFER_BYTES>::zeroed());
    let length = message.len().next_multiple_of(16).clamp(16, BUFFER_BYTES);
    let padded = message.iter().chain((!is_whole).then_some(&0x80));
    clear.bytes_mut().iter_mut().zip(padded).for_each(|(place, byte)| *place = *byte);
    let last = clear.bytes_mut().iter_mut().skip(length - 16).zip(subkey.to_be_bytes());
    last.for_each(|(place, byte)| *place ^= byte);
    let (clear, cipher) = (clear.bytes().get(..length), cipher.bytes_mut().get_mut(..length));
    let (clear, cipher) = (clear.unwrap_or_default(), cipher.unwrap_or_default());
    session.encrypt(&Mechanism::AesCbc([0; 16]), key, clear, cipher)?;
    tag.iter_mut().zip(cipher.iter().skip(length - 16)).for_each(|(place, byte)| *place = *byte);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fresh_token::{Make, fresh_token},
        token::pkcs11::{
            inventory::{self, Inventory, Revision},
            make_keys,
            session_pool::{self, TokenSlot, UsableKeys},
        },
    };

    fn best_level(make: Make) -> BoundaryLevel {
        if make == Make::Nss { BoundaryLevel::Token } else { BoundaryLevel::Host }
    }

    /// The keys that an engine finds when it opens.
    fn found(make: Make) -> Result<KeyReferences, Pkcs11Error> {
        let config = make.config();
        let (session, functions, _) = session_pool::log_in_to_probe(&config)?;
        let session = Calls::new(&session, functions.as_deref());
        let UsableKeys { references, .. } = session_pool::find_keys(session, &config, best_level(make), None, &[])?;
        assert!(Inventory::read(&session)?.is_none());
        Ok(references)
    }

    /// The template with one attribute changed.
    fn with(template: Vec<Attribute>, changed: &Attribute) -> Vec<Attribute> {
        let change = |attribute: Attribute| match attribute.attribute_type() == changed.attribute_type() {
            true => changed.clone(),
            false => attribute,
        };
        template.into_iter().map(change).collect()
    }

    fn aes_256(name: KeyUsage, version: u16) -> NewKey {
        NewKey { name, version, algorithm: KeyAlgorithm::Aes256, travels: Exportability::Never, mode: KeyMode::Both }
    }

    #[test]
    fn objects_created_without_the_pin_are_not_found() {
        let make = fresh_token!(Make::ALL);
        let (config, level) = (make.config(), best_level(make));
        let made = make_keys(&config, level).unwrap();

        let stranger = TokenSlot::find(&config.place).unwrap().session_without_login();
        let storage = if level == BoundaryLevel::Token { KeyUsage::StorageWrapped } else { KeyUsage::Storage };
        let plant_key = |version, private| {
            let new = aes_256(storage.clone(), version);
            let mut planted = with(template(&new, level), &Attribute::Private(private));
            planted.push(Attribute::KeyType(KeyType::AES));
            create_with_value(&stranger, planted, &[0x42; 32]).is_ok()
        };
        let plant_inventory = |number, private| {
            let planted = inventory::data_object(&Revision::new(number, &Keyring::empty()));
            stranger.create_object(&with(planted, &Attribute::Private(private))).is_ok()
        };
        let planted = |private| [plant_key(1, private), plant_key(2, private), plant_inventory(7, private)];
        // NSS creates no object before a login.
        assert_eq!(planted(false), [make != Make::Nss; 3]);
        // The search relies on this: no token creates a private object without a login.
        assert_eq!(planted(true), [false; 3]);
        drop(stranger);

        assert_eq!(found(make).unwrap(), made);
        let (session, _) = session_pool::log_in_to_write(&config).unwrap();
        let versions = versions_of(&session, &storage).unwrap();
        assert_eq!(versions.iter().map(|(version, _)| *version).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_zone_key_has_the_rights_of_its_mode_alone() {
        let make = fresh_token!([Make::SoftHsm, Make::OpenCryptoki]);
        let (session, _) = session_pool::log_in_to_write(&make.config()).unwrap();
        let key = ClearBytes::copied(&[0x2F, 0x31, 0x34, 0x37, 0x38, 0x3B, 0x3D, 0x3E, 1, 2, 4, 7, 8, 11, 13, 14]);
        let level = BoundaryLevel::Host;
        for (version, mode) in [(1, KeyMode::Both), (2, KeyMode::Encrypts), (3, KeyMode::Decrypts)] {
            let name = KeyUsage::parse("zone:app-bank").unwrap();
            let (algorithm, travels) = (KeyAlgorithm::TdesDouble, Exportability::Never);
            let new = NewKey { name, version, algorithm, travels, mode };
            let handle = import(&session, &new, level, &key).unwrap();
            let [encrypts, decrypts] = [KeyMode::Encrypts, KeyMode::Decrypts].map(|wanted| mode.allows(wanted));
            let found = session.get_attributes(handle, &[AttributeType::Encrypt, AttributeType::Decrypt]).unwrap();
            assert_eq!(found, [Attribute::Encrypt(encrypts), Attribute::Decrypt(decrypts)], "{mode}");
            let calls = Calls::new(&session, None);
            let kcv = kcv(calls, &new.name, (level, mode), algorithm, handle).unwrap();
            assert_eq!(kcv.is_some(), encrypts, "{mode}");
            for audited in [KeyMode::Both, KeyMode::Encrypts, KeyMode::Decrypts] {
                let result = audit(&session, &new.name, level, handle, (travels, audited));
                assert_eq!(result.is_ok(), audited == mode, "{mode}, audited as {audited}");
            }
        }
    }

    #[test]
    fn a_modifiable_key_is_rejected() {
        let make = fresh_token!(Make::ALL);
        let (config, level) = (make.config(), best_level(make));
        make_keys(&config, level).unwrap();
        found(make).unwrap();

        let (session, _) = session_pool::log_in_to_write(&config).unwrap();
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
