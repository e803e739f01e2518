//! Probes a token with calls on throw-away session keys. The mechanism lists and flags of real tokens are not reliable.

use std::time::{Duration, Instant};

use cryptoki::{
    error::{Error as CallError, RvError},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType, KeyType, ObjectClass},
};
use thiserror::Error;

use super::{
    failure::call_failed,
    ffi::Calls,
    keys::{FoundKeys, HostKeys, SealKey, SealWay, TokenKeys},
    objects::{SessionObject, WRAPPED_BLOCK_BYTES, WRAPPED_TZPK_BYTES, create_with_value},
    session_pool::{self, UsableKeys},
    token_level::ends_with_a,
};
use hsm_protocol::{BoundaryLevel, KeyId, Mgf1Hash};

use crate::{
    block::{AccountDigits, account_field, iso_1_to_iso_3, iso_1_to_iso_4},
    clear::{Block, Tzpk},
    config::{Pkcs11, TokenForm},
    open_error::Pkcs11Error,
    tdes_key::fill_tdes_key,
    token::tzpk_encrypt,
};

/// The duration of one measurement.
const MEASURED_FOR: Duration = Duration::from_millis(200);
/// Bytes of the modulus of the throw-away device key.
const MODULUS_BYTES: usize = 256;
/// A format 1 block of PIN 1234 with a fill of A. Some bytes have even parity, so the probes detect a token that sets the
/// parity bits.
const SAMPLE: [u8; 8] = [0x14, 0x12, 0x34, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA];
/// A format 1 block of PIN 1234 with another fill.
const SAMPLE_OTHER_FILL: [u8; 8] = [0x14, 0x12, 0x34, 0xA7, 0x3C, 0x90, 0x5E, 0xF1];

/// The result of probing a token.
#[derive(Clone, Debug)]
pub struct TokenReport {
    /// Name and value of the token's description: label, manufacturer, model, serial number, firmware, library.
    pub token: Vec<(&'static str, String)>,
    /// The results on throw-away keys.
    pub probes: Vec<Probe>,
    /// The boundary level that the configuration selects for this token.
    pub level: BoundaryLevel,
    /// The place of each operation at this level, token or host.
    pub routes: Vec<Route>,
    /// The ids of the keys of this level, or the first error: a key is missing or unsafe.
    pub keys: Result<Vec<KeyId>, String>,
    /// Name and calls per second in one session.
    pub speeds: Vec<(&'static str, f64)>,
}

/// The result of one probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The level that needs the operation.
    pub level: BoundaryLevel,
    /// The operation in words, for example `tag a record`.
    pub what: &'static str,
    /// The PKCS#11 mechanism, such as `CKM_AES_KEY_WRAP`.
    pub mechanism: &'static str,
    /// Whether C_GetMechanismList lists the mechanism.
    pub listed: bool,
    /// The token's error; `None` where the operation works.
    pub failed: Option<String>,
}

/// The place of an operation: the token or the host.
#[derive(Clone, Debug)]
pub struct Route {
    /// For example `issue a tzpk`.
    pub operation: &'static str,
    /// `token` or `host`, and the steps.
    pub route: &'static str,
    /// The reason for this route.
    pub why: &'static str,
}

/// The operations that a token supports at level `token`.
pub(crate) struct TokenLevelSupport {
    probes: Vec<(Need, Probe)>,
}

impl TokenLevelSupport {
    /// Whether the token can store and return blocks of a format.
    ///
    /// # Errors
    /// The first operation that fails, in words.
    pub(crate) fn check(&self, form: TokenForm) -> Result<(), String> {
        let mut needed = self.probes.iter().filter(|(need, _)| match need {
            Need::HostLevel | Need::Mgf1Sha1 | Need::Zones => false,
            Need::TokenLevel => true,
            Need::Form(needed) => *needed == form,
        });
        match needed.find_map(|(_, probe)| Some((probe, probe.failed.as_ref()?))) {
            None => Ok(()),
            Some((probe, failed)) => Err(format!("it can't {} ({}): {failed}", probe.what, probe.mechanism)),
        }
    }
}

/// Probes the operations of level `token`.
pub(crate) fn token_level_support(config: &Pkcs11) -> Result<TokenLevelSupport, Pkcs11Error> {
    let (session, functions, token) = session_pool::log_in_to_probe(config)?;
    let session = Calls::new(&session, functions.as_deref());
    let trials = TRIALS.iter().filter(|trial| trial.need != Need::HostLevel);
    Ok(TokenLevelSupport { probes: trials.map(|trial| (trial.need, trial.run(session, &token.mechanisms))).collect() })
}

/// The way to seal a tzpk at level `host`: wrap the tzpk where CKM_AES_KEY_WRAP works, else encrypt it.
pub(super) fn seal_way(session: Calls<'_>) -> SealWay {
    match key_wrap(session) {
        Ok(()) => SealWay::Wrap,
        Err(_) => SealWay::Encrypt,
    }
}

/// Whether the token wraps a tzpk by RSA-OAEP with MGF1-SHA-1.
pub(super) fn has_mgf1_sha1(session: Calls<'_>) -> bool {
    wrap_for_device(session, Mgf1Hash::Sha1).is_ok()
}

/// Logs in, probes every operation on throw-away session keys, audits the keys of a level and measures the token's speed.
pub(crate) fn probe_token(config: &Pkcs11, level: BoundaryLevel) -> Result<TokenReport, Pkcs11Error> {
    let (session, functions, token) = session_pool::log_in_to_probe(config)?;
    let session = Calls::new(&session, functions.as_deref());
    let probes = TRIALS.iter().map(|trial| trial.run(session, &token.mechanisms)).collect();
    let (keys, speeds) = match session_pool::find_keys(session, config, level, None, &[]) {
        Err(error) => (Err(error.to_string()), Vec::new()),
        Ok(UsableKeys { found, references, .. }) => {
            let speeds = match level {
                BoundaryLevel::Host => host_speeds(session, &found)?,
                BoundaryLevel::Token => token_speeds(session, &found)?,
            };
            (Ok(references), speeds)
        }
    };
    let routes = match level {
        BoundaryLevel::Host => HOST_ROUTES.to_vec(),
        BoundaryLevel::Token => TOKEN_ROUTES.to_vec(),
    };
    Ok(TokenReport { token: token.fields, probes, level, routes, keys, speeds })
}

/// A trial failed.
#[derive(Debug, Error)]
enum TrialError {
    #[error("{}", answer(.0))]
    Call(#[from] CallError),
    #[error("{0}")]
    Wrong(&'static str),
}

/// The function and the return value by name, such as `WrapKey answers MechanismInvalid`.
fn answer(error: &CallError) -> String {
    match error {
        CallError::Pkcs11(answer, call) => format!("{call:?} answers {answer:?}"),
        error => error.to_string(),
    }
}

/// The level or storage format that needs an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    HostLevel,
    /// Level `token`, with any storage format.
    TokenLevel,
    /// One storage format of level `token`.
    Form(TokenForm),
    /// The devices whose OAEP has MGF1-SHA-1, at level `token`.
    Mgf1Sha1,
    /// Zones, at level `token`.
    Zones,
}

/// An operation to probe.
struct Trial {
    need: Need,
    what: &'static str,
    mechanism: &'static str,
    kind: MechanismType,
    attempt: fn(Calls<'_>) -> Result<(), TrialError>,
}

impl Trial {
    fn run(&self, session: Calls<'_>, listed: &[MechanismType]) -> Probe {
        Probe {
            level: if self.need == Need::HostLevel { BoundaryLevel::Host } else { BoundaryLevel::Token },
            what: self.what,
            mechanism: self.mechanism,
            listed: listed.contains(&self.kind),
            failed: (self.attempt)(session).err().map(|error| error.to_string()),
        }
    }
}

const fn trial(
    need: Need,
    what: &'static str,
    (mechanism, kind): (&'static str, MechanismType),
    attempt: fn(Calls<'_>) -> Result<(), TrialError>,
) -> Trial {
    Trial { need, what, mechanism, kind, attempt }
}

const TRIALS: [Trial; 14] = [
    trial(Need::HostLevel, "unwrap a tzpk as an object", ("CKM_AES_KEY_WRAP", MechanismType::AES_KEY_WRAP), key_wrap),
    trial(Need::HostLevel, "decrypt a block under that object", ("CKM_DES3_ECB", MechanismType::DES3_ECB), decrypt),
    trial(Need::HostLevel, "encrypt and decrypt a format 4 block", ("CKM_AES_ECB", MechanismType::AES_ECB), iso_4),
    trial(
        Need::HostLevel,
        "encrypt and decrypt a block under a double-length zone key",
        ("CKM_DES3_ECB", MechanismType::DES3_ECB),
        under_zone_key,
    ),
    trial(Need::HostLevel, "tag a record", ("CKM_SHA256_HMAC", MechanismType::SHA256_HMAC), hmac),
    trial(Need::TokenLevel, "generate a tzpk", ("CKM_DES2_KEY_GEN", MechanismType::DES2_KEY_GEN), make_tzpk),
    trial(
        Need::TokenLevel,
        "wrap a tzpk for a device",
        ("CKM_RSA_PKCS_OAEP, SHA-256", MechanismType::RSA_PKCS_OAEP),
        |session| wrap_for_device(session, Mgf1Hash::Sha256),
    ),
    trial(
        Need::Mgf1Sha1,
        "wrap a tzpk for a device with MGF1-SHA-1",
        ("CKM_RSA_PKCS_OAEP, MGF1-SHA-1", MechanismType::RSA_PKCS_OAEP),
        |session| wrap_for_device(session, Mgf1Hash::Sha1),
    ),
    trial(
        Need::TokenLevel,
        "keep an unwrapped block unreadable",
        ("CKM_DES3_ECB unwrap", MechanismType::DES3_ECB),
        keep_unreadable,
    ),
    trial(
        Need::TokenLevel,
        "refuse to decrypt under a tzpk",
        ("CKM_DES3_ECB", MechanismType::DES3_ECB),
        refuse_to_decrypt,
    ),
    trial(
        Need::Form(TokenForm::Wrapped),
        "wrap a block for its account and back",
        ("CKM_AES_KEY_WRAP_PAD", MechanismType::AES_KEY_WRAP_PAD),
        wrap_for_account,
    ),
    trial(
        Need::Form(TokenForm::Iso3),
        "make a format 3 block and back",
        ("CKM_DES3_CBC wrap", MechanismType::DES3_CBC),
        wrapped_iso_3,
    ),
    trial(
        Need::Form(TokenForm::Iso4),
        "make a format 4 block unread",
        ("CKM_AES_CBC wrap", MechanismType::AES_CBC),
        wrapped_iso_4,
    ),
    trial(
        Need::Zones,
        "unwrap and wrap a block under a double-length zone key",
        ("CKM_DES3_ECB, CKM_DES3_CBC", MechanismType::DES3_CBC),
        moved_under_zone_key,
    ),
];

const HOST_ROUTES: [Route; 6] = [
    Route {
        operation: "issue a tzpk",
        route: "host: random bytes of the token, RSA-OAEP on the host, then sealed by the token",
        why: "not every token has RSA-OAEP with SHA-256",
    },
    Route {
        operation: "decrypt a block",
        route: "token: unwraps the tzpk as an object that can only decrypt; without CKM_AES_KEY_WRAP decrypts the tzpk",
        why: "the PIN policy needs the digits",
    },
    Route {
        operation: "store a PIN",
        route: "token: C_Encrypt with CKM_AES_ECB of the PIN field, then of the result XOR the account field",
        why: "this is ISO 9564-1 format 4, and every token and socket has the mechanism",
    },
    Route {
        operation: "view a PIN",
        route: "host: C_Decrypt twice, a fresh tzpk from the token's random bytes, 3DES on the host",
        why: "the fresh tzpk is used once, and afterwards only the device knows its value",
    },
    Route {
        operation: "a zone's block",
        route: "token: C_Decrypt and C_Encrypt under the zone key, with CKM_DES3_ECB, or CKM_AES_ECB for format 4",
        why: "the PIN policy and the change of the format need the digits",
    },
    TAGS_ROUTE,
];

const TOKEN_ROUTES: [Route; 6] = [
    Route {
        operation: "issue a tzpk",
        route: "token: generated, wrapped for the device by RSA-OAEP and under the seal key by CKM_AES_KEY_WRAP",
        why: "the clear tzpk is never in this process's memory",
    },
    Route {
        operation: "unwrap a block",
        route: "token: under the tzpk, as an object that can only be wrapped",
        why: "a block that can't be decrypted can't be read, so no PIN policy applies",
    },
    Route {
        operation: "store a PIN",
        route: "token: wrapped under a key derived for the account, or as format 3 or 4 by CBC with the account in the vector",
        why: "a CBC vector is an XOR inside the token",
    },
    Route {
        operation: "view a PIN",
        route: "token: unwrapped under the storage key, wrapped under a fresh tzpk; not possible from format 4",
        why: "format 4 needs a decryption, and a key that decrypts could read the PIN",
    },
    Route {
        operation: "a zone's block",
        route: "token: unwrapped under one of zone key and storage key and wrapped under the other, as format 1 or 3",
        why: "a zone key that may not decrypt can't read the PIN",
    },
    TAGS_ROUTE,
];

const TAGS_ROUTE: Route = Route {
    operation: "tags and account numbers",
    route: "token: C_Sign with CKM_SHA256_HMAC, C_Encrypt with CKM_AES_ECB",
    why: "the MAC and account keys never leave the token",
};

/// Calls `work` repeatedly for [`MEASURED_FOR`], and returns the calls per second.
fn measure(
    name: &'static str,
    mut work: impl FnMut() -> Result<(), CallError>,
) -> Result<(&'static str, f64), Pkcs11Error> {
    let (start, mut done) = (Instant::now(), 0u32);
    while start.elapsed() < MEASURED_FOR {
        work().map_err(call_failed(name))?;
        done = done.saturating_add(1);
    }
    Ok((name, f64::from(done) / start.elapsed().as_secs_f64()))
}

fn host_speeds(session: Calls<'_>, found: &FoundKeys) -> Result<Vec<(&'static str, f64)>, Pkcs11Error> {
    let keys = found.handles::<HostKeys>()?;
    let open = match *keys.level.seal.newest() {
        SealKey::Wrapping(seal) => {
            let object = throw_away_tzpk(session).map_err(call_failed("C_CreateObject"))?;
            let wrapped: [u8; WRAPPED_TZPK_BYTES] =
                object.wrapped_under(&Mechanism::AesKeyWrap, seal).map_err(call_failed("C_WrapKey"))?;
            measure("decrypt a block", || {
                let object = SessionObject::unwrap_tzpk_to_decrypt(session, seal, &wrapped)?;
                session.decrypt(&Mechanism::Des3Ecb, object.handle, &[0; 8], &mut [0; 8])
            })?
        }
        SealKey::Encrypting(seal) => {
            measure("decrypt a tzpk", || session.decrypt(&Mechanism::AesEcb, seal, &[0; 16], &mut [0; 16]))?
        }
    };
    Ok(vec![
        measure("random bytes", || session.generate_random_slice(&mut [0; 8]))?,
        open,
        measure("half a format 4 block", || {
            session.encrypt(&Mechanism::AesEcb, *keys.level.iso_4.newest(), &[0; 16], &mut [0; 16])
        })?,
        measure("tag", || session.sign(&Mechanism::Sha256Hmac, keys.mac, &[0; 64], &mut [0; 32]))?,
    ])
}

fn token_speeds(session: Calls<'_>, found: &FoundKeys) -> Result<Vec<(&'static str, f64)>, Pkcs11Error> {
    let keys = found.handles::<TokenKeys>()?;
    let (seal, storage) = (*keys.level.seal.newest(), *keys.level.wrapped.newest());
    let object = SessionObject::generate_tzpk(session).map_err(call_failed("C_GenerateKey"))?;
    let wrapped: [u8; WRAPPED_TZPK_BYTES] =
        object.wrapped_under(&Mechanism::AesKeyWrap, seal).map_err(call_failed("C_WrapKey"))?;
    Ok(vec![
        measure("random bytes", || session.generate_random_slice(&mut [0; 8]))?,
        measure("generate a tzpk", || {
            let object = SessionObject::generate_tzpk(session)?;
            object.wrapped_under::<WRAPPED_TZPK_BYTES>(&Mechanism::AesKeyWrap, seal).map(drop)
        })?,
        measure("unwrap and store wrapped", || {
            let tzpk = SessionObject::unwrap_tzpk_to_unwrap(session, seal, &wrapped)?;
            let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, tzpk.handle, &[0; 8])?;
            let key = SessionObject::block_key_to_wrap(session, storage, &[0; 32])?;
            block.wrapped_under::<WRAPPED_BLOCK_BYTES>(&Mechanism::AesKeyWrapPad, key.handle).map(drop)
        })?,
        measure("tag", || session.sign(&Mechanism::Sha256Hmac, keys.mac, &[0; 64], &mut [0; 32]))?,
    ])
}

fn throw_away_tzpk(session: Calls<'_>) -> Result<SessionObject<'_>, CallError> {
    let mut tzpk = Tzpk::zeroed();
    fill_tdes_key(&mut tzpk, |bytes| session.generate_random_slice(bytes))?;
    SessionObject::import_tzpk(session, &tzpk)
}

fn throw_away_key<'a>(
    session: Calls<'a>,
    mechanism: &Mechanism<'_>,
    rights: &[Attribute],
) -> Result<SessionObject<'a>, CallError> {
    let mut template = vec![Attribute::Token(false), Attribute::Private(true), Attribute::Sensitive(true)];
    if matches!(mechanism, Mechanism::AesKeyGen | Mechanism::GenericSecretKeyGen) {
        template.push(Attribute::ValueLen(32.into()));
    }
    template.extend_from_slice(rights);
    let handle = session.generate_key(mechanism, &template)?;
    Ok(SessionObject { session, handle })
}

fn key_wrap(session: Calls<'_>) -> Result<(), TrialError> {
    wrap_and_unwrap(session).map(drop)
}

fn decrypt(session: Calls<'_>) -> Result<(), TrialError> {
    let tzpk = wrap_and_unwrap(session)?;
    Ok(session.decrypt(&Mechanism::Des3Ecb, tzpk.handle, &[0; 8], &mut [0; 8])?)
}

/// Wraps a throw-away tzpk and unwraps it with the rights of a translation.
fn wrap_and_unwrap(session: Calls<'_>) -> Result<SessionObject<'_>, TrialError> {
    let seal = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Wrap(true), Attribute::Unwrap(true)])?;
    let wrapped: [u8; WRAPPED_TZPK_BYTES] =
        throw_away_tzpk(session)?.wrapped_under(&Mechanism::AesKeyWrap, seal.handle)?;
    Ok(SessionObject::unwrap_tzpk_to_decrypt(session, seal.handle, &wrapped)?)
}

fn iso_4(session: Calls<'_>) -> Result<(), TrialError> {
    let rights = [Attribute::Encrypt(true), Attribute::Decrypt(true)];
    let storage = throw_away_key(session, &Mechanism::AesKeyGen, &rights)?;
    let (mut cipher, mut clear) = ([0; 16], [0; 16]);
    session.encrypt(&Mechanism::AesEcb, storage.handle, &[7; 16], &mut cipher)?;
    session.decrypt(&Mechanism::AesEcb, storage.handle, &cipher, &mut clear)?;
    same(&clear, &[7; 16])
}

/// Imports a throw-away double-length key, as a ceremony imports a zone key: not every token generates one.
fn throw_away_zone_key<'a>(
    session: Calls<'a>,
    key: &mut Tzpk,
    rights: [Attribute; 4],
) -> Result<SessionObject<'a>, TrialError> {
    fill_tdes_key(key, |bytes| session.generate_random_slice(bytes))?;
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::DES2),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ];
    template.extend(rights);
    let handle = create_with_value(&session, template, key.bytes())?;
    Ok(SessionObject { session, handle })
}

/// The sample XOR a mask, encrypted in software.
fn sample_under(key: &Tzpk, mask: u64) -> Block {
    let mut block = Block::zeroed();
    block.set_nibbles(u64::from_be_bytes(SAMPLE) ^ mask);
    tzpk_encrypt(key, &mut block);
    block
}

fn under_zone_key(session: Calls<'_>) -> Result<(), TrialError> {
    use Attribute::{Decrypt, Encrypt, Unwrap, Wrap};
    let mut key = Tzpk::zeroed();
    let zone = throw_away_zone_key(session, &mut key, [Encrypt(true), Decrypt(true), Wrap(false), Unwrap(false)])?;
    let cipher: [u8; 8] = encrypt(session, &Mechanism::Des3Ecb, &zone, &SAMPLE)?;
    same(&cipher, sample_under(&key, 0).bytes())?;
    let mut clear = [0; 8];
    session.decrypt(&Mechanism::Des3Ecb, zone.handle, &cipher, &mut clear)?;
    same(&clear, &SAMPLE)
}

fn moved_under_zone_key(session: Calls<'_>) -> Result<(), TrialError> {
    use Attribute::{Decrypt, Encrypt, Unwrap, Wrap};
    let mut key = Tzpk::zeroed();
    let zone = throw_away_zone_key(session, &mut key, [Encrypt(false), Decrypt(false), Wrap(true), Unwrap(true)])?;
    let sent = sample_under(&key, 0);
    let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, zone.handle, sent.bytes())?;
    let given: [u8; 8] = block.wrapped_under(&Mechanism::Des3Ecb, zone.handle)?;
    same(&given, sent.bytes())?;
    let mask = iso_1_to_iso_3(&sample_account()?);
    let exported: [u8; 8] = block.wrapped_under(&Mechanism::Des3Cbc(mask.to_be_bytes()), zone.handle)?;
    same(&exported, sample_under(&key, mask).bytes())
}

fn hmac(session: Calls<'_>) -> Result<(), TrialError> {
    let mac = throw_away_key(session, &Mechanism::GenericSecretKeyGen, &[Attribute::Sign(true)])?;
    Ok(session.sign(&Mechanism::Sha256Hmac, mac.handle, &[0; 16], &mut [0; 32])?)
}

fn make_tzpk(session: Calls<'_>) -> Result<(), TrialError> {
    let seal = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Wrap(true), Attribute::Unwrap(true)])?;
    let tzpk = SessionObject::generate_tzpk(session)?;
    let wrapped: [u8; WRAPPED_TZPK_BYTES] = tzpk.wrapped_under(&Mechanism::AesKeyWrap, seal.handle)?;
    Ok(SessionObject::unwrap_tzpk_to_unwrap(session, seal.handle, &wrapped).map(drop)?)
}

fn wrap_for_device(session: Calls<'_>, mgf1: Mgf1Hash) -> Result<(), TrialError> {
    let mut modulus = session.generate_random_vec(u32::try_from(MODULUS_BYTES).unwrap_or_default())?;
    // Any odd number of this length is good enough: nothing is decrypted.
    if let [first, .., last] = &mut modulus[..] {
        (*first, *last) = (*first | 0x80, *last | 1);
    }
    let device = SessionObject::device_key(session, &modulus, &[1, 0, 1])?;
    let wrapped = throw_away_tzpk(session)?.wrapped_for(&device, MODULUS_BYTES, mgf1)?;
    if wrapped.len() == MODULUS_BYTES { Ok(()) } else { Err(TrialError::Wrong("the wrapped key is too short")) }
}

/// A throw-away tzpk, and the sample encrypted under it as a device would send it.
fn sent_sample(session: Calls<'_>, sample: [u8; 8]) -> Result<(SessionObject<'_>, [u8; 8]), TrialError> {
    let rights = [Attribute::Encrypt(true), Attribute::Decrypt(false), Attribute::Wrap(true), Attribute::Unwrap(true)];
    let tzpk = throw_away_key(session, &Mechanism::Des2KeyGen, &rights)?;
    let sent = encrypt(session, &Mechanism::Des3Ecb, &tzpk, &sample)?;
    Ok((tzpk, sent))
}

fn keep_unreadable(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let attributes = session.get_attributes(block.handle, &[AttributeType::Sensitive])?;
    if attributes != [Attribute::Sensitive(true)] {
        return Err(TrialError::Wrong("CKA_SENSITIVE is not kept"));
    }
    // A correct token returns no value, or an error.
    match session.get_attributes(block.handle, &[AttributeType::Value, AttributeType::CheckValue]) {
        Ok(attributes) if attributes.iter().any(has_bytes) => {
            Err(TrialError::Wrong("CKA_VALUE or CKA_CHECK_VALUE can be read"))
        }
        _ => Ok(()),
    }
}

fn has_bytes(attribute: &Attribute) -> bool {
    match attribute {
        Attribute::Value(bytes) | Attribute::CheckValue(bytes) => !bytes.is_empty(),
        _ => false,
    }
}

fn refuse_to_decrypt(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    match session.decrypt(&Mechanism::Des3Ecb, tzpk.handle, &sent, &mut [0; 8]) {
        Err(CallError::Pkcs11(RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent, _)) => Ok(()),
        Ok(()) => Err(TrialError::Wrong("it decrypts under a key with CKA_DECRYPT false")),
        Err(error) => Err(error.into()),
    }
}

/// Stores a block and wraps it under its tzpk again: the ciphertext is the same, so the token changed no bit of the block.
fn wrap_for_account(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE_OTHER_FILL)?;
    let storage = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Derive(true)])?;
    let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let key = SessionObject::block_key_to_wrap(session, storage.handle, &[7; 32])?;
    let stored: [u8; WRAPPED_BLOCK_BYTES] = block.wrapped_under(&Mechanism::AesKeyWrapPad, key.handle)?;
    let key = SessionObject::block_key_to_unwrap(session, storage.handle, &[7; 32])?;
    let block = SessionObject::unwrap_block(session, &Mechanism::AesKeyWrapPad, key.handle, &stored)?;
    same(&block.wrapped_under::<8>(&Mechanism::Des3Ecb, tzpk.handle)?, &sent)?;

    let mut changed = stored;
    let [first, ..] = &mut changed;
    *first ^= 1;
    match SessionObject::unwrap_block(session, &Mechanism::AesKeyWrapPad, key.handle, &changed) {
        Ok(_) => Err(TrialError::Wrong("a changed block unwraps")),
        Err(_) => Ok(()),
    }
}

fn wrapped_iso_3(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    let rights = [Attribute::Wrap(true), Attribute::Unwrap(true), Attribute::Encrypt(true)];
    let storage = throw_away_key(session, &Mechanism::Des2KeyGen, &rights)?;
    let mask = iso_1_to_iso_3(&sample_account()?);
    let masked = Mechanism::Des3Cbc(mask.to_be_bytes());
    let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let stored: [u8; 8] = block.wrapped_under(&masked, storage.handle)?;
    let iso_3 = (u64::from_be_bytes(SAMPLE) ^ mask).to_be_bytes();
    same(&stored, &encrypt(session, &Mechanism::Des3Ecb, &storage, &iso_3)?)?;
    let block = SessionObject::unwrap_block(session, &masked, storage.handle, &stored)?;
    same(&block.wrapped_under::<8>(&Mechanism::Des3Ecb, tzpk.handle)?, &sent)
}

fn wrapped_iso_4(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    let storage = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Wrap(true), Attribute::Encrypt(true)])?;
    let mask = iso_1_to_iso_4(0x0123_4567_89AB_CDEF);
    let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let first: [u8; 16] = block.wrapped_under(&Mechanism::AesCbc(mask.to_be_bytes()), storage.handle)?;
    let field = (u128::from(u64::from_be_bytes(SAMPLE)) << 64) ^ mask;
    same(&first, &encrypt(session, &Mechanism::AesEcb, &storage, &field.to_be_bytes())?)?;
    let second = u128::from_be_bytes(first) ^ account_field(&sample_account()?);
    encrypt(session, &Mechanism::AesEcb, &storage, &second.to_be_bytes())?;

    let other_fill = encrypt(session, &Mechanism::Des3Ecb, &tzpk, &SAMPLE_OTHER_FILL)?;
    let is_a = |sent: &[u8]| ends_with_a(session, tzpk.handle, sent);
    match (is_a(&sent)?, is_a(&other_fill)?) {
        (true, false) => Ok(()),
        _ => Err(TrialError::Wrong("it does not distinguish a fill of A from another")),
    }
}

/// Encrypts a sample under a throw-away key.
fn encrypt<const LENGTH: usize>(
    session: Calls<'_>,
    mechanism: &Mechanism<'_>,
    key: &SessionObject<'_>,
    clear: &[u8; LENGTH],
) -> Result<[u8; LENGTH], CallError> {
    let mut cipher = [0; LENGTH];
    session.encrypt(mechanism, key.handle, clear, &mut cipher)?;
    Ok(cipher)
}

fn sample_account() -> Result<AccountDigits, TrialError> {
    AccountDigits::parse("5413330089020011").ok_or(TrialError::Wrong("no account"))
}

fn same(found: &[u8], expected: &[u8]) -> Result<(), TrialError> {
    if found == expected { Ok(()) } else { Err(TrialError::Wrong("the block comes out changed")) }
}
