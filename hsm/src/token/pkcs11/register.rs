//! The register of a token's keys: a private data object inside the token, with the number of its writing before it.
//!
//! ```text
//! number(8) keyring, as `keyring` lays it out
//! ```
//! A new one is written before the older is removed, and the highest number counts: a process that dies in between leaves
//! both, and loses neither. It is looked for among private objects alone: whoever has no PIN can put public ones into a token.
//! What must never enter: a key.

use cryptoki::{
    error::{Error as CallError, RvError},
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::failure::call_failed;
use crate::{keyring::Keyring, open_error::Pkcs11Error};

const LABEL: &[u8] = b"pinseal register";
const APPLICATION: &[u8] = b"pinseal";

/// The register as a token has it.
pub(super) struct Register {
    pub(super) number: u64,
    pub(super) keyring: Keyring,
}

impl Register {
    /// Reads it; none where no ceremony was held.
    pub(super) fn read(session: &Session) -> Result<Option<Self>, Pkcs11Error> {
        let mut newest: Option<Self> = None;
        for (number, bytes) in all(session)?.into_iter().map(|(_, number, bytes)| (number, bytes)) {
            if newest.as_ref().is_none_or(|newest| newest.number < number) {
                let keyring = Keyring::read(&bytes).ok_or(Pkcs11Error::Register)?;
                newest = Some(Self { number, keyring });
            }
        }
        Ok(newest)
    }

    /// Writes what follows on `number`, unless somebody else has.
    pub(super) fn write(session: &Session, number: u64, keyring: &Keyring) -> Result<u64, Pkcs11Error> {
        let before = all(session)?;
        if before.iter().map(|(_, found, _)| *found).max().unwrap_or_default() != number {
            return Err(Pkcs11Error::Meanwhile);
        }
        let next = number.saturating_add(1);
        let value = [&next.to_be_bytes()[..], keyring.bytes().bytes()].concat();
        session.create_object(&as_data(value)).map_err(|error| match error {
            // NSS keeps none, nor any other object whose value can be read again.
            CallError::Pkcs11(RvError::AttributeValueInvalid, _) => Pkcs11Error::NoDataObjects,
            error => call_failed("C_CreateObject")(error),
        })?;
        for (older, _, _) in before {
            session.destroy_object(older).map_err(call_failed("C_DestroyObject"))?;
        }
        Ok(next)
    }
}

pub(super) fn as_data(value: Vec<u8>) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Modifiable(false),
        Attribute::Label(LABEL.into()),
        Attribute::Application(APPLICATION.into()),
        Attribute::Value(value),
    ]
}

fn all(session: &Session) -> Result<Vec<(ObjectHandle, u64, Vec<u8>)>, Pkcs11Error> {
    let named = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(LABEL.into()),
        Attribute::Application(APPLICATION.into()),
    ];
    let found = session.find_objects(&named).map_err(call_failed("C_FindObjects"))?;
    let read = |handle: ObjectHandle| {
        let told = session.get_attributes(handle, &[AttributeType::Value]);
        let Some(Attribute::Value(value)) = told.map_err(call_failed("C_GetAttributeValue"))?.pop() else {
            return Err(Pkcs11Error::Register);
        };
        let (number, keyring) = value.split_first_chunk().ok_or(Pkcs11Error::Register)?;
        Ok((handle, u64::from_be_bytes(*number), keyring.to_vec()))
    };
    found.into_iter().map(read).collect()
}
