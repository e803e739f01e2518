//! What a token is and what it can do, found out by calls on throw-away keys: mechanism lists and flags of real tokens
//! say things that are not so.

use std::time::{Duration, Instant};

use cryptoki::{
    error::Error as CallError,
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    SessionObject,
    keys::{self, KeyHandles},
    link::{self, call_failed},
};
use crate::{clear::Tzpk, config::Pkcs11, error::Pkcs11Error, vault::make_tdes_key};

/// How long each operation is measured.
const MEASURED_FOR: Duration = Duration::from_millis(200);
/// The modulus of the throw-away device key, in bytes.
const MODULUS_BYTES: usize = 256;

/// A token as it was found.
#[derive(Clone, Debug)]
pub struct TokenReport {
    /// The token's own words: label, manufacturer, model, serial number, firmware, library.
    pub token: Vec<(&'static str, String)>,
    /// What was tried on throw-away keys, and what the token answered.
    pub probes: Vec<Probe>,
    /// How each operation goes, and why so.
    pub routes: Vec<Route>,
    /// Each key that is missing or unsafe; none where all are as they should be.
    pub keys: Result<Vec<String>, String>,
    /// Calls a second in one session.
    pub speeds: Vec<(&'static str, f64)>,
}

/// One thing a token can do or can't.
#[derive(Clone, Debug)]
pub struct Probe {
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

/// Looks at a token: logs in, makes throw-away keys in a session, measures.
pub(crate) fn examine(config: &Pkcs11) -> Result<TokenReport, Pkcs11Error> {
    let (session, token) = link::look(config)?;
    let listed = token.mechanisms;
    let probes = PROBES.iter().map(|(what, mechanism, kind, probe)| Probe {
        what,
        mechanism,
        listed: listed.contains(kind),
        failed: probe(&session).err().map(|error| answer(&error)),
    });
    let probes: Vec<Probe> = probes.collect();
    let (keys, speeds) = match keys::find(&session, config.key_version) {
        Err(error) => (Err(error.to_string()), Vec::new()),
        Ok(found) => match keys::audit(&session, &found) {
            Err(error) => (Err(error.to_string()), Vec::new()),
            Ok(()) => {
                let told = keys::references(&session, &found, config.key_version);
                (Ok(told.map_err(call_failed("check values"))?), speeds(&session, &found)?)
            }
        },
    };
    Ok(TokenReport { token: token.words, probes, routes: ROUTES.to_vec(), keys, speeds })
}

/// The token's answer by its name, such as `MechanismInvalid`.
fn answer(error: &CallError) -> String {
    match error {
        CallError::Pkcs11(answer, call) => format!("{call:?} answers {answer:?}"),
        error => error.to_string(),
    }
}

/// A probe: what is tried, with which mechanism, and the trial.
type Trial = (&'static str, &'static str, MechanismType, fn(&Session) -> Result<(), CallError>);

const PROBES: [Trial; 6] = [
    ("bring a tzpk back as an object", "CKM_AES_KEY_WRAP", MechanismType::AES_KEY_WRAP, key_wrap),
    ("decrypt a block under a tzpk", "CKM_DES3_ECB", MechanismType::DES3_ECB, decrypt),
    ("make a format 4 block", "CKM_AES_CBC", MechanismType::AES_CBC, iso_4),
    ("tag a record", "CKM_AES_CMAC", MechanismType::AES_CMAC, cmac),
    ("wrap a tzpk for a device", "CKM_RSA_PKCS_OAEP, SHA-256", MechanismType::RSA_PKCS_OAEP, oaep),
    ("take a block in as a secret object", "CKM_DES3_ECB unwrap", MechanismType::DES3_ECB, unwrap_block),
];

const ROUTES: [Route; 5] = [
    Route {
        operation: "issue a tzpk",
        route: "host: random bytes of the token, RSA-OAEP here, then into the token under the seal key",
        why: "not every token has OAEP with SHA-256; this way is the same on all of them",
    },
    Route {
        operation: "open a block",
        route: "token: the tzpk is unwrapped as an object that can only decrypt, C_Decrypt gives the clear block",
        why: "the policy needs the digits; the key itself does not come out",
    },
    Route {
        operation: "keep a PIN",
        route: "token: one C_Encrypt with CKM_AES_CBC over PIN field and account field",
        why: "the second block of that chain is the format 4 block",
    },
    Route {
        operation: "show a PIN",
        route: "host: C_Decrypt twice, a fresh tzpk of the token's random bytes, 3DES here",
        why: "the fresh tzpk is used once and is known to the device alone afterwards",
    },
    Route {
        operation: "tags and account numbers",
        route: "token: C_Sign with CKM_AES_CMAC, C_Encrypt with CKM_AES_ECB",
        why: "no key of theirs leaves the token",
    },
];

fn speeds(session: &Session, keys: &KeyHandles) -> Result<Vec<(&'static str, f64)>, Pkcs11Error> {
    let object = throw_away_tzpk(session).map_err(call_failed("C_CreateObject"))?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, keys.seal, object.handle);
    let mut wrapped = wrapped.map_err(call_failed("C_WrapKey"))?;
    wrapped.truncate(super::WRAPPED_TZPK_BYTES);
    let measure = |name: &'static str, work: &dyn Fn() -> Result<(), CallError>| {
        let (start, mut done) = (Instant::now(), 0u32);
        while start.elapsed() < MEASURED_FOR {
            work().map_err(call_failed(name))?;
            done = done.saturating_add(1);
        }
        Ok((name, f64::from(done) / start.elapsed().as_secs_f64()))
    };
    Ok(vec![
        measure("random bytes", &|| session.generate_random_slice(&mut [0; 8]))?,
        measure("open a block", &|| {
            let object = SessionObject::unwrap(session, keys.seal, &wrapped)?;
            session.decrypt(&Mechanism::Des3Ecb, object.handle, &[0; 8]).map(drop)
        })?,
        measure("format 4 block", &|| session.encrypt(&Mechanism::AesCbc([0; 16]), keys.storage, &[0; 32]).map(drop))?,
        measure("tag", &|| session.sign(&Mechanism::AesCMac, keys.mac, &[0; 64]).map(drop))?,
    ])
}

fn throw_away_tzpk(session: &Session) -> Result<SessionObject<'_>, CallError> {
    let mut tzpk = Tzpk::zeroed();
    make_tdes_key(&mut tzpk, |bytes| session.generate_random_slice(bytes))?;
    SessionObject::import(session, &tzpk)
}

fn throw_away_key<'a>(
    session: &'a Session,
    mechanism: &Mechanism<'_>,
    rights: &[Attribute],
) -> Result<SessionObject<'a>, CallError> {
    let mut template = vec![Attribute::Token(false), Attribute::Private(true), Attribute::Sensitive(true)];
    if matches!(mechanism, Mechanism::AesKeyGen) {
        template.push(Attribute::ValueLen(32.into()));
    }
    template.extend_from_slice(rights);
    let handle = session.generate_key(mechanism, &template)?;
    Ok(SessionObject { session, handle })
}

fn key_wrap(session: &Session) -> Result<(), CallError> {
    bring_back(session, |_| Ok(()))
}

fn decrypt(session: &Session) -> Result<(), CallError> {
    bring_back(session, |tzpk| session.decrypt(&Mechanism::Des3Ecb, tzpk, &[0; 8]).map(drop))
}

/// Wraps a throw-away tzpk and unwraps it as a translation would.
fn bring_back(session: &Session, then: impl Fn(ObjectHandle) -> Result<(), CallError>) -> Result<(), CallError> {
    let seal = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Wrap(true), Attribute::Unwrap(true)])?;
    let tzpk = throw_away_tzpk(session)?;
    let mut wrapped = session.wrap_key(&Mechanism::AesKeyWrap, seal.handle, tzpk.handle)?;
    wrapped.truncate(super::WRAPPED_TZPK_BYTES);
    then(SessionObject::unwrap(session, seal.handle, &wrapped)?.handle)
}

fn iso_4(session: &Session) -> Result<(), CallError> {
    let storage = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Encrypt(true)])?;
    session.encrypt(&Mechanism::AesCbc([0; 16]), storage.handle, &[0; 32]).map(drop)
}

fn cmac(session: &Session) -> Result<(), CallError> {
    let mac = throw_away_key(session, &Mechanism::AesKeyGen, &[Attribute::Sign(true)])?;
    session.sign(&Mechanism::AesCMac, mac.handle, &[0; 16]).map(drop)
}

fn oaep(session: &Session) -> Result<(), CallError> {
    let mut modulus = session.generate_random_vec(u32::try_from(MODULUS_BYTES).unwrap_or_default())?;
    // Any odd number of the right length will do: nobody decrypts.
    if let [first, .., last] = &mut modulus[..] {
        (*first, *last) = (*first | 0x80, *last | 1);
    }
    let device = session.create_object(&[
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Modulus(modulus),
        Attribute::PublicExponent(vec![1, 0, 1]),
    ])?;
    let device = SessionObject { session, handle: device };
    let tzpk = throw_away_tzpk(session)?;
    let sha_256 = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, PkcsOaepSource::empty());
    session.wrap_key(&Mechanism::RsaPkcsOaep(sha_256), device.handle, tzpk.handle).map(drop)
}

/// What level `token` stands on.
fn unwrap_block(session: &Session) -> Result<(), CallError> {
    let tzpk = throw_away_key(session, &Mechanism::Des2KeyGen, &[Attribute::Unwrap(true)])?;
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
    ];
    let handle = session.unwrap_key(&Mechanism::Des3Ecb, tzpk.handle, &[0; 8], &template)?;
    drop(SessionObject { session, handle });
    Ok(())
}
