//! A participant's signing key in a PKCS#11 token: Ed25519 (CKM_EDDSA, PKCS#11 3.0), generated in the token, sensitive, not
//! extractable, allowed to sign and nothing else.
//!
//! A token is accepted only after its signature of a fixed message verifies under its public key.
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
    objects::PROTECTION,
    session_pool::TokenSlot,
};
use crate::{
    open_error::Pkcs11Error,
    participant_public_key::{ParticipantPublicKey, SIGNATURE_BYTES},
};

const LABEL: &[u8] = b"pinseal person";

/// CKA_EC_PARAMS of Ed25519: the object identifier 1.3.101.112 (RFC 8410), in DER.
const CURVE_BY_IDENTIFIER: &[u8] = b"\x06\x03\x2b\x65\x70";
/// CKA_EC_PARAMS for tokens that expect the curve's name (PKCS#11 3.0): a PrintableString, in DER.
const CURVE_BY_NAME: &[u8] = b"\x13\x0cedwards25519";

/// PKCS#11 3.0 defines Ed25519 without mechanism parameters. Some tokens require them; an empty context gives the same
/// signature.
const SCHEMES: [EddsaSignatureScheme<'static>; 2] =
    [EddsaSignatureScheme::Ed25519, EddsaSignatureScheme::Ed25519ctx(b"")];

/// The message that a token signs before it is accepted. No line of a transcript begins with it.
const PROBE_MESSAGE: &[u8] = b"pinseal person trial 1\0";

/// The rights that the key must not have, each with its PKCS#11 name.
const FORBIDDEN_RIGHTS: [(Attribute, &str); 4] = [
    (Attribute::SignRecover(true), "CKA_SIGN_RECOVER"),
    (Attribute::Decrypt(true), "CKA_DECRYPT"),
    (Attribute::Unwrap(true), "CKA_UNWRAP"),
    (Attribute::Derive(true), "CKA_DERIVE"),
];

/// A signing key in a token, and the login of its owner.
pub(crate) struct SigningKey {
    session: Session,
    functions: Option<Arc<Functions>>,
    key: ObjectHandle,
    scheme: EddsaSignatureScheme<'static>,
    public: ParticipantPublicKey,
}

impl SigningKey {
    /// Generates the one key of a token.
    ///
    /// # Errors
    /// [`Pkcs11Error::ParticipantKeyPresent`] where the token has a key; [`Pkcs11Error::NoEd25519`] or
    /// [`Pkcs11Error::ParticipantSignature`] where it can't sign; the errors of a login.
    pub(crate) fn make(token: &TokenSlot, user_pin: &str) -> Result<Self, Pkcs11Error> {
        let (session, functions) = token.log_in_to_write(user_pin)?;
        if !objects(&session, ObjectClass::PRIVATE_KEY)?.is_empty() {
            return Err(Pkcs11Error::ParticipantKeyPresent);
        }
        let (public_key, key) = generate(&session).map_err(ed25519_failed("C_GenerateKeyPair"))?;
        let calls = Calls::new(&session, functions.as_deref());
        let probed = audit(&session, key).and_then(|()| probe_signature(calls, key, &[public_key]));
        let (scheme, public) = probed.inspect_err(|_| {
            // A key that stays makes the next attempt fail with `ParticipantKeyPresent`.
            let _ = (session.destroy_object(key), session.destroy_object(public_key));
        })?;
        Ok(Self { session, functions, key, scheme, public })
    }

    /// Finds the one key of a token.
    ///
    /// # Errors
    /// [`Pkcs11Error::NoParticipantKey`], [`Pkcs11Error::ParticipantKeys`] or [`Pkcs11Error::ParticipantKeyUnsafe`] by what
    /// the token holds; [`Pkcs11Error::ParticipantSignature`] where its signature does not verify; the errors of a login.
    pub(crate) fn find(token: &TokenSlot, user_pin: &str) -> Result<Self, Pkcs11Error> {
        let (session, functions) = token.log_in(user_pin)?;
        let key = match objects(&session, ObjectClass::PRIVATE_KEY)?[..] {
            [key] => key,
            [] => return Err(Pkcs11Error::NoParticipantKey),
            ref found => return Err(Pkcs11Error::ParticipantKeys { found: found.len() }),
        };
        audit(&session, key)?;
        let public_keys = objects(&session, ObjectClass::PUBLIC_KEY)?;
        let (scheme, public) = probe_signature(Calls::new(&session, functions.as_deref()), key, &public_keys)?;
        Ok(Self { session, functions, key, scheme, public })
    }

    /// The public key, which identifies the participant.
    pub(crate) fn public(&self) -> ParticipantPublicKey {
        self.public
    }

    /// Signs a message and verifies the signature before it is returned.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], Pkcs11Error> {
        let calls = Calls::new(&self.session, self.functions.as_deref());
        let signature = signature(calls, self.key, self.scheme, message).map_err(ed25519_failed("C_Sign"))?;
        if self.public.verifies(message, &signature) { Ok(signature) } else { Err(Pkcs11Error::ParticipantSignature) }
    }
}

/// The error of a call, or [`Pkcs11Error::NoEd25519`] where the token lacks the mechanism.
fn ed25519_failed(call: &'static str) -> impl Fn(CallError) -> Pkcs11Error {
    move |error| match error {
        CallError::Pkcs11(RvError::MechanismInvalid, _) => Pkcs11Error::NoEd25519,
        error => call_failed(call)(error),
    }
}

/// Objects with the participant's label. Private keys must be private objects: anybody can create a public object without
/// the PIN.
fn objects(session: &Session, class: ObjectClass) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
    let private = Attribute::Private(class == ObjectClass::PRIVATE_KEY);
    let named = [Attribute::Class(class), Attribute::Token(true), private, Attribute::Label(LABEL.into())];
    session.find_objects(&named).map_err(call_failed("C_FindObjects"))
}

/// Generates the key pair, with the encoding of the curve that the token accepts.
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
    // Where the token accepts neither encoding, the first error describes the token.
    on(CURVE_BY_IDENTIFIER).or_else(|error| on(CURVE_BY_NAME).map_err(|_| error))
}

/// Rejects a key that can be extracted, read or modified, or that has a right beside signing.
fn audit(session: &Session, key: ObjectHandle) -> Result<(), Pkcs11Error> {
    let protection = PROTECTION.iter().map(|(wanted, ..)| wanted.attribute_type());
    let asked: Vec<_> = protection.chain(FORBIDDEN_RIGHTS.iter().map(|(right, _)| right.attribute_type())).collect();
    let attributes = session.get_attributes(key, &asked).map_err(call_failed("C_GetAttributeValue"))?;
    let must = |holds: bool, attribute, found| match holds {
        true => Ok(()),
        false => Err(Pkcs11Error::ParticipantKeyUnsafe { attribute, found }),
    };
    for (wanted, attribute, found) in PROTECTION {
        must(attributes.contains(&wanted), attribute, found)?;
    }
    FORBIDDEN_RIGHTS.iter().try_for_each(|(right, attribute)| must(!attributes.contains(right), attribute, "not false"))
}

/// Finds the public key of the private key, and the mechanism parameters that give Ed25519, by a signature.
fn probe_signature(
    calls: Calls<'_>,
    key: ObjectHandle,
    public_keys: &[ObjectHandle],
) -> Result<(EddsaSignatureScheme<'static>, ParticipantPublicKey), Pkcs11Error> {
    let public_keys = public_keys.iter().map(|public| public_key(calls, *public)).collect::<Result<Vec<_>, _>>();
    let public_keys = public_keys.map_err(call_failed("C_GetAttributeValue"))?;
    let mut first_error = None;
    for scheme in SCHEMES {
        match signature(calls, key, scheme, PROBE_MESSAGE) {
            Ok(signature) => {
                let mut candidates = public_keys.iter().flatten();
                if let Some(public) = candidates.find(|public| public.verifies(PROBE_MESSAGE, &signature)) {
                    return Ok((scheme, *public));
                }
                first_error.get_or_insert(Pkcs11Error::ParticipantSignature);
            }
            Err(error) => {
                first_error.get_or_insert(ed25519_failed("C_Sign")(error));
            }
        }
    }
    Err(first_error.unwrap_or(Pkcs11Error::ParticipantSignature))
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

/// The 32 bytes of a CKA_EC_POINT: in a DER OCTET STRING (PKCS#11 2.40), or bare, as some tokens return them.
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
    use crate::fresh_token::{Make, USER_PIN, fresh_token};

    fn token() -> TokenSlot {
        TokenSlot::find(&Make::SoftHsm.config().place).unwrap()
    }

    /// Creates a public key with the participant's label and no private key.
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

    /// Changes the token's objects, then finds the key again.
    fn find_after(change: impl FnOnce(&Session)) -> Result<SigningKey, Pkcs11Error> {
        let (session, _) = token().log_in_to_write(USER_PIN).unwrap();
        change(&session);
        drop(session);
        SigningKey::find(&token(), USER_PIN)
    }

    #[test]
    fn a_token_is_accepted_by_its_signature_not_its_public_key() {
        fresh_token!([Make::SoftHsm]);
        let made = SigningKey::make(&token(), USER_PIN).unwrap();
        assert!(made.public().verifies(b"done", &made.sign(b"done").unwrap()));
        let public = made.public();
        drop(made);
        let beside_another = find_after(plant_another_public_key).unwrap();
        assert_eq!(beside_another.public(), public);
        drop(beside_another);
        let replaced = find_after(|session| {
            let public_keys = objects(session, ObjectClass::PUBLIC_KEY).unwrap();
            public_keys.into_iter().for_each(|key| session.destroy_object(key).unwrap());
            plant_another_public_key(session);
        });
        assert!(matches!(replaced, Err(Pkcs11Error::ParticipantSignature)));
    }

    #[test]
    fn an_extractable_key_or_one_with_other_rights_is_rejected() {
        fresh_token!([Make::SoftHsm]);
        let error_with = |rights: [Attribute; 5]| {
            let found = find_after(|session| {
                let left = objects(session, ObjectClass::PRIVATE_KEY).unwrap();
                left.into_iter().for_each(|key| session.destroy_object(key).unwrap());
                let named = [Attribute::Token(true), Attribute::Label(LABEL.into())];
                let public = [&named[..], &[Attribute::EcParams(CURVE_BY_NAME.into())]].concat();
                let private = [&named[..], &[Attribute::Sign(true)], &rights].concat();
                session.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private).unwrap();
            });
            found.err().unwrap().to_string()
        };
        let error_with_one_changed = |place: usize, value| {
            // Private, sensitive, extractable, modifiable, derive.
            let mut as_made = [true, true, false, false, false];
            as_made[place] = value;
            let [private, sensitive, extractable, modifiable, derive] = as_made;
            error_with([
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
            // SoftHSM also grants the rights that a template does not mention.
            (4, true, "CKA_SIGN_RECOVER"),
        ] {
            let refused = error_with_one_changed(place, value);
            assert!(refused.contains(&format!("is unsafe: {attribute}")), "{refused}");
        }
        // Anybody could have created this object without the PIN.
        assert_eq!(error_with_one_changed(0, false), Pkcs11Error::NoParticipantKey.to_string());
    }

    #[test]
    fn a_point_is_an_octet_string_or_32_bare_bytes() {
        // A bare point may begin with the bytes of an octet string of 32 bytes.
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
