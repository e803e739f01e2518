//! What a token is and what it can do, found out by calls on throw-away keys: mechanism lists and flags of real tokens
//! say things that are not so.

use std::time::{Duration, Instant};

use cryptoki::{
    error::{Error as CallError, RvError},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType},
};
use thiserror::Error;

use super::{
    failure::call_failed,
    ffi::Calls,
    keys::{FoundKeys, HostKeys, SealKey, SealWay, TokenKeys},
    objects::{SessionObject, WRAPPED_BLOCK_BYTES, WRAPPED_TZPK_BYTES},
    session_pool::{self, UsableKeys},
    token_level::ends_with_a,
};
use crate::{
    binding::BoundaryLevel,
    block::{AccountDigits, account_field, iso_1_to_iso_3, iso_1_to_iso_4},
    clear::Tzpk,
    config::{Pkcs11, TokenForm},
    key_id::KeyId,
    open_error::Pkcs11Error,
    tdes_key::fill_tdes_key,
};

/// How long each operation is measured.
const MEASURED_FOR: Duration = Duration::from_millis(200);
/// The modulus of the throw-away device key, in bytes.
const MODULUS_BYTES: usize = 256;
/// A block of nobody, filled with A. Bytes of even parity are among its own: what sets a parity is found out.
const SAMPLE: [u8; 8] = [0x14, 0x12, 0x34, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA];
/// The same, filled otherwise.
const SAMPLE_FILLED_OTHERWISE: [u8; 8] = [0x14, 0x12, 0x34, 0xA7, 0x3C, 0x90, 0x5E, 0xF1];

/// A token as it was found.
#[derive(Clone, Debug)]
pub struct TokenReport {
    /// The token's own words: label, manufacturer, model, serial number, firmware, library.
    pub token: Vec<(&'static str, String)>,
    /// What was tried on throw-away keys, and what the token answered.
    pub probes: Vec<Probe>,
    /// The level it would be used at.
    pub level: BoundaryLevel,
    /// How each operation goes there, and why so.
    pub routes: Vec<Route>,
    /// Each key of that level, or the first that is missing or unsafe.
    pub keys: Result<Vec<KeyId>, String>,
    /// Calls a second in one session.
    pub speeds: Vec<(&'static str, f64)>,
}

/// One thing a token can do or can't.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The level that needs it.
    pub level: BoundaryLevel,
    /// What was tried.
    pub what: &'static str,
    /// The mechanism.
    pub mechanism: &'static str,
    /// Whether the token lists it.
    pub listed: bool,
    /// What the token answered where it failed.
    pub failed: Option<String>,
}

/// How an operation goes.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which operation.
    pub operation: &'static str,
    /// How.
    pub route: &'static str,
    /// Why so.
    pub why: &'static str,
}

/// What a token can do at level `token`.
pub(crate) struct Ability {
    probes: Vec<Probe>,
}

impl Ability {
    /// Whether a form can be made there; else the first thing that can't be done.
    pub(crate) fn to_make(&self, form: TokenForm) -> Result<(), String> {
        let of_form = match form {
            TokenForm::Wrapped => WRAP_FOR_ACCOUNT,
            TokenForm::Iso3 => MAKE_ISO_3,
            TokenForm::Iso4 => MAKE_ISO_4,
        };
        let needed = |probe: &&Probe| NEEDED_AT_TOKEN_LEVEL.contains(&probe.what) || probe.what == of_form;
        match self.probes.iter().filter(needed).find_map(|probe| Some((probe, probe.failed.as_ref()?))) {
            None => Ok(()),
            Some((probe, failed)) => Err(format!("it can't {} ({}): {failed}", probe.what, probe.mechanism)),
        }
    }
}

/// Finds out what a token can do at level `token`.
pub(crate) fn ability(config: &Pkcs11) -> Result<Ability, Pkcs11Error> {
    let (session, functions, token) = session_pool::look(config)?;
    let session = Calls::new(&session, functions.as_deref());
    let probes = TRIALS.iter().filter(|trial| trial.level == BoundaryLevel::Token);
    Ok(Ability { probes: probes.map(|trial| trial.run(session, &token.mechanisms)).collect() })
}

/// How a token can seal a tzpk at level `host`: best as an object.
pub(super) fn seal_way(session: Calls<'_>) -> SealWay {
    match key_wrap(session) {
        Ok(()) => SealWay::Wrap,
        Err(_) => SealWay::Encrypt,
    }
}

/// Looks at a token that is used at a level: logs in, makes throw-away keys in a session, measures.
pub(crate) fn examine(config: &Pkcs11, level: BoundaryLevel) -> Result<TokenReport, Pkcs11Error> {
    let (session, functions, token) = session_pool::look(config)?;
    let session = Calls::new(&session, functions.as_deref());
    let probes = TRIALS.iter().map(|trial| trial.run(session, &token.mechanisms)).collect();
    let (keys, speeds) = match session_pool::find_keys(session, config, level, None) {
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
    Ok(TokenReport { token: token.words, probes, level, routes, keys, speeds })
}

/// Why a trial failed.
#[derive(Debug, Error)]
enum TrialError {
    #[error("{}", answer(.0))]
    Call(#[from] CallError),
    #[error("{0}")]
    Wrong(&'static str),
}

/// The token's answer by its name, such as `MechanismInvalid`.
fn answer(error: &CallError) -> String {
    match error {
        CallError::Pkcs11(answer, call) => format!("{call:?} answers {answer:?}"),
        error => error.to_string(),
    }
}

/// What is tried, with which mechanism.
struct Trial {
    level: BoundaryLevel,
    what: &'static str,
    mechanism: &'static str,
    kind: MechanismType,
    attempt: fn(Calls<'_>) -> Result<(), TrialError>,
}

impl Trial {
    fn run(&self, session: Calls<'_>, listed: &[MechanismType]) -> Probe {
        Probe {
            level: self.level,
            what: self.what,
            mechanism: self.mechanism,
            listed: listed.contains(&self.kind),
            failed: (self.attempt)(session).err().map(|error| error.to_string()),
        }
    }
}

const MAKE_TZPK: &str = "make a tzpk inside";
const WRAP_FOR_DEVICE: &str = "wrap a tzpk for a device";
const KEEP_UNREADABLE: &str = "keep an unwrapped block unreadable";
const REFUSE_TO_DECRYPT: &str = "refuse to decrypt under a tzpk";
const WRAP_FOR_ACCOUNT: &str = "wrap a block for its account and back";
const MAKE_ISO_3: &str = "make a format 3 block and back";
const MAKE_ISO_4: &str = "make a format 4 block unread";

/// Whatever the form.
const NEEDED_AT_TOKEN_LEVEL: [&str; 4] = [MAKE_TZPK, WRAP_FOR_DEVICE, KEEP_UNREADABLE, REFUSE_TO_DECRYPT];

const fn trial(
    level: BoundaryLevel,
    what: &'static str,
    (mechanism, kind): (&'static str, MechanismType),
    attempt: fn(Calls<'_>) -> Result<(), TrialError>,
) -> Trial {
    Trial { level, what, mechanism, kind, attempt }
}

const TRIALS: [Trial; 11] = [
    trial(
        BoundaryLevel::Host,
        "bring a tzpk back as an object",
        ("CKM_AES_KEY_WRAP", MechanismType::AES_KEY_WRAP),
        key_wrap,
    ),
    trial(BoundaryLevel::Host, "decrypt a block under that object", ("CKM_DES3_ECB", MechanismType::DES3_ECB), decrypt),
    trial(BoundaryLevel::Host, "make a format 4 block and back", ("CKM_AES_ECB", MechanismType::AES_ECB), iso_4),
    trial(BoundaryLevel::Host, "tag a record", ("CKM_SHA256_HMAC", MechanismType::SHA256_HMAC), hmac),
    trial(BoundaryLevel::Token, MAKE_TZPK, ("CKM_DES2_KEY_GEN", MechanismType::DES2_KEY_GEN), make_tzpk),
    trial(
        BoundaryLevel::Token,
        WRAP_FOR_DEVICE,
        ("CKM_RSA_PKCS_OAEP, SHA-256", MechanismType::RSA_PKCS_OAEP),
        wrap_for_device,
    ),
    trial(BoundaryLevel::Token, KEEP_UNREADABLE, ("CKM_DES3_ECB unwrap", MechanismType::DES3_ECB), keep_unreadable),
    trial(BoundaryLevel::Token, REFUSE_TO_DECRYPT, ("CKM_DES3_ECB", MechanismType::DES3_ECB), refuse_to_decrypt),
    trial(
        BoundaryLevel::Token,
        WRAP_FOR_ACCOUNT,
        ("CKM_AES_KEY_WRAP_PAD", MechanismType::AES_KEY_WRAP_PAD),
        wrap_for_account,
    ),
    trial(BoundaryLevel::Token, MAKE_ISO_3, ("CKM_DES3_CBC wrap", MechanismType::DES3_CBC), wrapped_iso_3),
    trial(BoundaryLevel::Token, MAKE_ISO_4, ("CKM_AES_CBC wrap", MechanismType::AES_CBC), wrapped_iso_4),
];

const HOST_ROUTES: [Route; 5] = [
    Route {
        operation: "issue a tzpk",
        route: "host: random bytes of the token, RSA-OAEP here, then into the token under the seal key",
        why: "not every token has OAEP with SHA-256; this way is the same on all of them",
    },
    Route {
        operation: "open a block",
        route: "token: the tzpk is unwrapped as an object that can only decrypt; without CKM_AES_KEY_WRAP it is decrypted",
        why: "the policy needs the digits",
    },
    Route {
        operation: "keep a PIN",
        route: "token: C_Encrypt with CKM_AES_ECB of the PIN field, and again with the account field on it",
        why: "that is format 4, and every token and socket has this mechanism",
    },
    Route {
        operation: "show a PIN",
        route: "host: C_Decrypt twice, a fresh tzpk of the token's random bytes, 3DES here",
        why: "the fresh tzpk is used once and is known to the device alone afterwards",
    },
    TAGS_ROUTE,
];

const TOKEN_ROUTES: [Route; 5] = [
    Route {
        operation: "issue a tzpk",
        route: "token: made, wrapped for the device by RSA-OAEP and for ourselves by CKM_AES_KEY_WRAP inside",
        why: "its clear bytes are in no memory of this process",
    },
    Route {
        operation: "take a block in",
        route: "token: unwrapped under the tzpk as a secret that can only be wrapped",
        why: "what can't be decrypted can't be read, nor judged",
    },
    Route {
        operation: "keep a PIN",
        route: "token: wrapped under a key of its account, or by CBC with the account in the vector as format 3 or 4",
        why: "a vector of CBC is an XOR inside the token",
    },
    Route {
        operation: "show a PIN",
        route: "token: unwrapped under its storage key, wrapped under a fresh tzpk; never from format 4",
        why: "to open format 4 takes a decryption, and the same right applied twice reads the PIN",
    },
    TAGS_ROUTE,
];

const TAGS_ROUTE: Route = Route {
    operation: "tags and account numbers",
    route: "token: C_Sign with CKM_SHA256_HMAC, C_Encrypt with CKM_AES_ECB",
    why: "no key of theirs leaves the token",
};

/// Work as often as it goes in a while.
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
            measure("open a block", || {
                let object = SessionObject::unwrap_tzpk_to_decrypt(session, seal, &wrapped)?;
                session.decrypt(&Mechanism::Des3Ecb, object.handle, &[0; 8], &mut [0; 8])
            })?
        }
        SealKey::Encrypting(seal) => {
            measure("open a tzpk", || session.decrypt(&Mechanism::AesEcb, seal, &[0; 16], &mut [0; 16]))?
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
        measure("make a tzpk", || {
            let object = SessionObject::generate_tzpk(session)?;
            object.wrapped_under::<WRAPPED_TZPK_BYTES>(&Mechanism::AesKeyWrap, seal).map(drop)
        })?,
        measure("take in and keep wrapped", || {
            let tzpk = SessionObject::unwrap_tzpk_to_unwrap(session, seal, &wrapped)?;
            let block = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, &[0; 8])?;
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
    bring_back(session).map(drop)
}

fn decrypt(session: Calls<'_>) -> Result<(), TrialError> {
    let tzpk = bring_back(session)?;
    Ok(session.decrypt(&Mechanism::Des3Ecb, tzpk.handle, &[0; 8], &mut [0; 8])?)
}

/// Wraps a throw-away tzpk and unwraps it as a translation would.
fn bring_back(session: Calls<'_>) -> Result<SessionObject<'_>, TrialError> {
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

fn wrap_for_device(session: Calls<'_>) -> Result<(), TrialError> {
    let mut modulus = session.generate_random_vec(u32::try_from(MODULUS_BYTES).unwrap_or_default())?;
    // Any odd number of the right length will do: nobody decrypts.
    if let [first, .., last] = &mut modulus[..] {
        (*first, *last) = (*first | 0x80, *last | 1);
    }
    let device = SessionObject::device_key(session, &modulus, &[1, 0, 1])?;
    let wrapped = throw_away_tzpk(session)?.wrapped_for(&device, MODULUS_BYTES)?;
    if wrapped.len() == MODULUS_BYTES { Ok(()) } else { Err(TrialError::Wrong("the wrapped key is too short")) }
}

/// A tzpk as a device would use it, and under it the sample.
fn sent_sample(session: Calls<'_>, sample: [u8; 8]) -> Result<(SessionObject<'_>, [u8; 8]), TrialError> {
    let rights = [Attribute::Encrypt(true), Attribute::Decrypt(false), Attribute::Wrap(true), Attribute::Unwrap(true)];
    let tzpk = throw_away_key(session, &Mechanism::Des2KeyGen, &rights)?;
    let sent = encrypted(session, &Mechanism::Des3Ecb, &tzpk, &sample)?;
    Ok((tzpk, sent))
}

fn keep_unreadable(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    let block = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let attributes = session.get_attributes(block.handle, &[AttributeType::Sensitive])?;
    if attributes != [Attribute::Sensitive(true)] {
        return Err(TrialError::Wrong("CKA_SENSITIVE is not kept"));
    }
    // A token answers with no value, or with an error.
    match session.get_attributes(block.handle, &[AttributeType::Value, AttributeType::CheckValue]) {
        Ok(attributes) if attributes.iter().any(tells_something) => {
            Err(TrialError::Wrong("its value, or a part of it, can be read"))
        }
        _ => Ok(()),
    }
}

fn tells_something(attribute: &Attribute) -> bool {
    match attribute {
        Attribute::Value(bytes) | Attribute::CheckValue(bytes) => !bytes.is_empty(),
        _ => false,
    }
}

fn refuse_to_decrypt(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    match session.decrypt(&Mechanism::Des3Ecb, tzpk.handle, &sent, &mut [0; 8]) {
        Err(CallError::Pkcs11(RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent, _)) => Ok(()),
        Ok(()) => Err(TrialError::Wrong("it decrypts with a key that may not")),
        Err(error) => Err(error.into()),
    }
}

/// There and back: under the tzpk it comes out as it went in, so not a bit of it has changed inside.
fn wrap_for_account(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE_FILLED_OTHERWISE)?;
    let storage = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Derive(true)])?;
    let block = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let key = SessionObject::block_key_to_wrap(session, storage.handle, &[7; 32])?;
    let kept: [u8; WRAPPED_BLOCK_BYTES] = block.wrapped_under(&Mechanism::AesKeyWrapPad, key.handle)?;
    let key = SessionObject::block_key_to_unwrap(session, storage.handle, &[7; 32])?;
    let block = SessionObject::take_in(session, &Mechanism::AesKeyWrapPad, key.handle, &kept)?;
    same(&block.wrapped_under::<8>(&Mechanism::Des3Ecb, tzpk.handle)?, &sent)?;

    let mut changed = kept;
    let [first, ..] = &mut changed;
    *first ^= 1;
    match SessionObject::take_in(session, &Mechanism::AesKeyWrapPad, key.handle, &changed) {
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
    let block = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let kept: [u8; 8] = block.wrapped_under(&masked, storage.handle)?;
    let iso_3 = (u64::from_be_bytes(SAMPLE) ^ mask).to_be_bytes();
    same(&kept, &encrypted(session, &Mechanism::Des3Ecb, &storage, &iso_3)?)?;
    let block = SessionObject::take_in(session, &masked, storage.handle, &kept)?;
    same(&block.wrapped_under::<8>(&Mechanism::Des3Ecb, tzpk.handle)?, &sent)
}

fn wrapped_iso_4(session: Calls<'_>) -> Result<(), TrialError> {
    let (tzpk, sent) = sent_sample(session, SAMPLE)?;
    let storage = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Wrap(true), Attribute::Encrypt(true)])?;
    let mask = iso_1_to_iso_4(0x0123_4567_89AB_CDEF);
    let block = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, &sent)?;
    let first: [u8; 16] = block.wrapped_under(&Mechanism::AesCbc(mask.to_be_bytes()), storage.handle)?;
    let field = (u128::from(u64::from_be_bytes(SAMPLE)) << 64) ^ mask;
    same(&first, &encrypted(session, &Mechanism::AesEcb, &storage, &field.to_be_bytes())?)?;
    let second = u128::from_be_bytes(first) ^ account_field(&sample_account()?);
    encrypted(session, &Mechanism::AesEcb, &storage, &second.to_be_bytes())?;

    let otherwise = encrypted(session, &Mechanism::Des3Ecb, &tzpk, &SAMPLE_FILLED_OTHERWISE)?;
    let is_a = |sent: &[u8]| ends_with_a(session, &tzpk, sent);
    match (is_a(&sent)?, is_a(&otherwise)?) {
        (true, false) => Ok(()),
        _ => Err(TrialError::Wrong("a fill of A is not distinguished from another")),
    }
}

/// Blocks that are nobody's, under a throw-away key.
fn encrypted<const LENGTH: usize>(
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
