//! The token of one person, which holds the key they sign with: made inside, not able to leave or to do anything else.
//!
//! A token is taken at its signature, not at its word: one that does not verify under its public key is refused.
//! What must never enter: a key that an engine uses.

use std::sync::Arc;

use cryptoki::{
    error::{Error as CallError, RvError},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    failure::call_failed,
    ffi::{Calls, Functions},
    session_pool::TokenSlot,
};
use crate::{
    open_error::Pkcs11Error,
    participant_public_key::{ParticipantPublicKey, SIGNATURE_BYTES},
};

const LABEL: &[u8] = b"pinseal person";

/// Ed25519 as a CKA_EC_PARAMS: the object identifier 1.3.101.112 (RFC 8410), in DER.
const CURVE_BY_IDENTIFIER: &[u8] = b"\x06\x03\x2b\x65\x70";
/// The same for tokens that know it by its curve's name (PKCS#11 3.0): a PrintableString, in DER.
const CURVE_BY_NAME: &[u8] = b"\x13\x0cedwards25519";

/// PKCS#11 3.0 has Ed25519 without parameters. Some tokens want them, and sign the same where they say nothing.
const SCHEMES: [EddsaSignatureScheme<'static>; 2] =
    [EddsaSignatureScheme::Ed25519, EddsaSignatureScheme::Ed25519ctx(b"")];

/// What a token signs before it is taken: no line of a transcript begins so.
const TRIAL: &[u8] = b"pinseal person trial 1\0";

/// What the key may not be allowed, each with its PKCS#11 name.
const NO_RIGHTS: [(Attribute, &str); 4] = [
    (Attribute::SignRecover(true), "CKA_SIGN_RECOVER"),
    (Attribute::Decrypt(true), "CKA_DECRYPT"),
    (Attribute::Unwrap(true), "CKA_UNWRAP"),
    (Attribute::Derive(true), "CKA_DERIVE"),
];

/// A key inside a token that its owner has logged in to.
pub(crate) struct SigningKey {
    session: Session,
    functions: Option<Arc<Functions>>,
    key: ObjectHandle,
    scheme: EddsaSignatureScheme<'static>,
    public: ParticipantPublicKey,
}

impl SigningKey {
    /// Makes the one key of a token.
    pub(crate) fn make(token: &TokenSlot, user_pin: &str) -> Result<Self, Pkcs11Error> {
        let (session, functions) = token.log_in_to_write(user_pin)?;
        if !objects(&session, ObjectClass::PRIVATE_KEY)?.is_empty() {
            return Err(Pkcs11Error::ParticipantKeyPresent);
        }
        let (public_key, key) = generate(&session).map_err(ed25519_failed("C_GenerateKeyPair"))?;
        let calls = Calls::new(&session, functions.as_deref());
        let tried = audit(&session, key).and_then(|()| tried(calls, key, &[public_key]));
        let (scheme, public) = tried.inspect_err(|_| {
            // It would be in the way of the next; where it stays, the next is refused and says so.
            let _ = (session.destroy_object(key), session.destroy_object(public_key));
        })?;
        Ok(Self { session, functions, key, scheme, public })
    }

    /// Finds the one key of a token.
    pub(crate) fn find(token: &TokenSlot, user_pin: &str) -> Result<Self, Pkcs11Error> {
        let (session, functions) = token.log_in(user_pin)?;
        let key = match objects(&session, ObjectClass::PRIVATE_KEY)?[..] {
            [key] => key,
            [] => return Err(Pkcs11Error::NoParticipantKey),
            ref found => return Err(Pkcs11Error::ParticipantKeys { found: found.len() }),
        };
        audit(&session, key)?;
        let public_keys = objects(&session, ObjectClass::PUBLIC_KEY)?;
        let (scheme, public) = tried(Calls::new(&session, functions.as_deref()), key, &public_keys)?;
        Ok(Self { session, functions, key, scheme, public })
    }

    /// Whose it is.
    pub(crate) fn public(&self) -> ParticipantPublicKey {
        self.public
    }

    /// Signs; what does not verify does not come out.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], Pkcs11Error> {
        let calls = Calls::new(&self.session, self.functions.as_deref());
        let signature = signature(calls, self.key, self.scheme, message).map_err(ed25519_failed("C_Sign"))?;
        if self.public.verifies(message, &signature) { Ok(signature) } else { Err(Pkcs11Error::ParticipantSignature) }
    }
}

/// What a call failed with, where it is not that the token has no Ed25519.
fn ed25519_failed(call: &'static str) -> impl Fn(CallError) -> Pkcs11Error {
    move |error| match error {
        CallError::Pkcs11(RvError::MechanismInvalid, _) => Pkcs11Error::NoEd25519,
        error => call_failed(call)(error),
    }
}

/// Searches private objects only: a public object can be created without a PIN.
fn objects(session: &Session, class: ObjectClass) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let private = Attribute::Private(class == ObjectClass::PRIVATE_KEY);
    let named = [Attribute::Class(class), Attribute::Token(true), private, Attribute::Label(LABEL.into())];
    session.find_objects(&named).map_err(call_failed("C_FindObjects"))
}

/// Makes the pair, with the curve said as the token takes it.
fn generate(session: &Session) -> Result<(ObjectHandle, ObjectHandle), CallError> {
    let named = [Attribute::Token(true), Attribute::Label(LABEL.into()), Attribute::Id(LABEL.into())];
    let private = [
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    let private = [&named[..], &private].concat();
    let on = |curve: &[u8]| {
        let public = [Attribute::Private(false), Attribute::Verify(true), Attribute::EcParams(curve.into())];
        session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &[&named[..], &public].concat(), &private)
    };
    // Where neither is taken, the first answer is the one about the token.
    on(CURVE_BY_IDENTIFIER).or_else(|error| on(CURVE_BY_NAME).map_err(|_| error))
}

/// Refuses a key that can leave the token, be read, do more than sign, or be made to.
fn audit(session: &Session, key: ObjectHandle) -> Result<(), Pkcs11Error> {
    let mut asked =
        vec![AttributeType::Private, AttributeType::Modifiable, AttributeType::Sensitive, AttributeType::Extractable];
    asked.extend(NO_RIGHTS.iter().map(|(right, _)| right.attribute_type()));
    let attributes = session.get_attributes(key, &asked).map_err(call_failed("C_GetAttributeValue"))?;
    let must = |holds: bool, attribute, found| match holds {
        true => Ok(()),
        false => Err(Pkcs11Error::ParticipantKeyUnsafe { attribute, found }),
    };
    must(attributes.contains(&Attribute::Private(true)), "CKA_PRIVATE", "not true")?;
    must(attributes.contains(&Attribute::Modifiable(false)), "CKA_MODIFIABLE", "not false")?;
    must(attributes.contains(&Attribute::Sensitive(true)), "CKA_SENSITIVE", "not true")?;
    must(attributes.contains(&Attribute::Extractable(false)), "CKA_EXTRACTABLE", "not false")?;
    NO_RIGHTS.iter().try_for_each(|(right, attribute)| must(!attributes.contains(right), attribute, "not false"))
}

/// Which public key is the private one's, and which way of signing is Ed25519: found out by a signature.
fn tried(
    calls: Calls<'_>,
    key: ObjectHandle,
    public_keys: &[ObjectHandle],
) -> Result<(EddsaSignatureScheme<'static>, ParticipantPublicKey), Pkcs11Error> {
    let public_keys = public_keys.iter().map(|public| public_key(calls, *public)).collect::<Result<Vec<_>, _>>();
    let public_keys = public_keys.map_err(call_failed("C_GetAttributeValue"))?;
    let mut refused = None;
    for scheme in SCHEMES {
        match signature(calls, key, scheme, TRIAL) {
            Ok(signature) => {
                let mut candidates = public_keys.iter().flatten();
                if let Some(public) = candidates.find(|public| public.verifies(TRIAL, &signature)) {
                    return Ok((scheme, *public));
                }
                refused.get_or_insert(Pkcs11Error::ParticipantSignature);
            }
            Err(error) => {
                refused.get_or_insert(ed25519_failed("C_Sign")(error));
            }
        }
    }
    Err(refused.unwrap_or(Pkcs11Error::ParticipantSignature))
}

fn signature(
    calls: Calls<'_>,
    key: ObjectHandle,
    scheme: EddsaSignatureScheme<'static>,
    message: &[u8],
) -> Result<[u8; SIGNATURE_BYTES], CallError> {
    let mut signature = [0; SIGNATURE_BYTES];
    calls.sign(&Mechanism::Eddsa(EddsaParams::new(scheme)), key, message, &mut signature)?;
    Ok(signature)
}

fn public_key(session: Calls<'_>, key: ObjectHandle) -> Result<Option<ParticipantPublicKey>, CallError> {
    let attributes = session.get_attributes(key, &[AttributeType::EcPoint])?;
    Ok(match &attributes[..] {
        [Attribute::EcPoint(encoded)] => point(encoded).map(ParticipantPublicKey::from_bytes),
        _ => None,
    })
}

/// The 32 bytes of a public key: in a DER OCTET STRING, as PKCS#11 2.40 has points, or bare, as some tokens tell them.
fn point(encoded: &[u8]) -> Option<[u8; 32]> {
    match encoded {
        [0x04, 32, point @ ..] if point.len() == 32 => point.try_into().ok(),
        bare => bare.try_into().ok(),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::object::KeyType;

    use super::*;
    use crate::fresh_token::{Make, USER_PIN};

    fn token() -> TokenSlot {
        TokenSlot::find(&Make::SoftHsm.config().place).unwrap()
    }

    /// A public key with the person's label, whose private half is elsewhere.
    fn plant_another_public_key(session: &Session) {
        let mut attributes = [0x04; 34];
        (attributes[1], attributes[2]) = (32, 7);
        let template = [
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::EC_EDWARDS),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Label(LABEL.into()),
            Attribute::EcParams(CURVE_BY_NAME.into()),
            Attribute::EcPoint(attributes.to_vec()),
        ];
        session.create_object(&template).unwrap();
    }

    /// Changes what the token holds, once its key was made and let go.
    fn changed(change: impl FnOnce(&Session)) -> Result<SigningKey, Pkcs11Error> {
        let (session, _) = token().log_in_to_write(USER_PIN).unwrap();
        change(&session);
        drop(session);
        SigningKey::find(&token(), USER_PIN)
    }

    #[test]
    fn a_token_is_taken_at_its_signature_and_not_at_the_public_key_it_shows() {
        if Make::here().is_none() {
            return Make::SoftHsm.runs("a_token_is_taken_at_its_signature_and_not_at_the_public_key_it_shows");
        }
        let made = SigningKey::make(&token(), USER_PIN).unwrap();
        assert!(made.public().verifies(b"done", &made.sign(b"done").unwrap()));
        let public = made.public();
        drop(made);
        let beside_another = changed(plant_another_public_key).unwrap();
        assert_eq!(beside_another.public(), public);
        drop(beside_another);
        let replaced = changed(|session| {
            let public_keys = objects(session, ObjectClass::PUBLIC_KEY).unwrap();
            public_keys.into_iter().for_each(|key| session.destroy_object(key).unwrap());
            plant_another_public_key(session);
        });
        assert!(matches!(replaced, Err(Pkcs11Error::ParticipantSignature)));
    }

    #[test]
    fn a_key_that_can_leave_its_token_or_do_more_than_sign_is_refused() {
        if Make::here().is_none() {
            return Make::SoftHsm.runs("a_key_that_can_leave_its_token_or_do_more_than_sign_is_refused");
        }
        let made_otherwise = |rights: [Attribute; 5]| {
            let found = changed(|session| {
                let left = objects(session, ObjectClass::PRIVATE_KEY).unwrap();
                left.into_iter().for_each(|key| session.destroy_object(key).unwrap());
                let named = [Attribute::Token(true), Attribute::Label(LABEL.into())];
                let public = [&named[..], &[Attribute::EcParams(CURVE_BY_NAME.into())]].concat();
                let private = [&named[..], &[Attribute::Sign(true)], &rights].concat();
                session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private).unwrap();
            });
            found.err().unwrap().to_string()
        };
        let otherwise = |place: usize, value| {
            // Private, sensitive, extractable, modifiable, derive.
            let mut as_made = [true, true, false, false, false];
            as_made[place] = value;
            let [private, sensitive, extractable, modifiable, derive] = as_made;
            made_otherwise([
                Attribute::Private(private),
                Attribute::Sensitive(sensitive),
                Attribute::Extractable(extractable),
                Attribute::Modifiable(modifiable),
                Attribute::Derive(derive),
            ])
        };
        for (place, value, attribute) in [
            (1, false, "CKA_SENSITIVE"),
            (2, true, "CKA_EXTRACTABLE"),
            (3, true, "CKA_MODIFIABLE"),
            // SoftHSM gives the other rights too where none is said.
            (4, true, "CKA_SIGN_RECOVER"),
        ] {
            let refused = otherwise(place, value);
            assert!(refused.contains(&format!("is unsafe: {attribute}")), "{refused}");
        }
        // Somebody without the PIN could have put it there.
        assert_eq!(otherwise(0, false), Pkcs11Error::NoParticipantKey.to_string());
    }

    #[test]
    fn a_point_is_taken_in_an_octet_string_and_bare_and_in_no_other_length() {
        // A bare point may begin as an octet string of 30 bytes would.
        let mut bare = [7; 32];
        (bare[0], bare[1]) = (0x04, 32);
        assert_eq!(point(&bare), Some(bare));
        let wrapped = [&[0x04, 32][..], &bare].concat();
        assert_eq!(point(&wrapped), Some(bare));
        for other in [&wrapped[..33], &bare[..31], &[], &[&wrapped[..], &[0]].concat()] {
            assert_eq!(point(other), None);
        }
        let of_another_tag = [&[0x03, 32][..], &bare].concat();
        assert_eq!(point(&of_another_tag), None);
    }
}
