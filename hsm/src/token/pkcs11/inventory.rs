//! The register of a token's keys: a private data object inside the token, with the number of its writing before it.
//!
//! ```text
//! number(8) keyring, as `keyring` lays it out
//! ```
//! A new one is written before the older is removed, and the highest number counts: a process that dies in between leaves
//! both, and loses neither. Only private objects are searched: a public object can be created without a PIN.
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

/// The register as read from a token.
pub(super) struct Inventory {
    pub(super) seen: Seen,
    pub(super) keyring: Keyring,
}

/// Which register it was, and what it said: one that was taken back has a number that another has afterwards. The default is
/// that there was none.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    number: u64,
    said: Vec<u8>,
}

#[cfg(test)]
impl Seen {
    pub(super) fn with(number: u64, keyring: &Keyring) -> Self {
        Self { number, said: keyring.bytes().bytes().to_vec() }
    }
}

impl Inventory {
    /// Reads it; none where no ceremony was held.
    pub(super) fn read(session: &Session) -> Result<Option<Self>, Pkcs11Error> {
        let Some(seen) = newest(all(session)?)? else { return Ok(None) };
        let keyring = Keyring::read(&seen.said).ok_or(Pkcs11Error::Inventory)?;
        Ok(Some(Self { seen, keyring }))
    }

    /// Refuses to go on where it is not the one that was seen.
    pub(super) fn has_not_moved(session: &Session, seen: &Seen) -> Result<(), Pkcs11Error> {
        let now = newest(all(session)?)?.unwrap_or_default();
        if now == *seen { Ok(()) } else { Err(Pkcs11Error::ChangedByOther) }
    }

    /// Writes what follows on the one that was seen, unless somebody else has. A token has no lock, and two may come this far at
    /// once: each looks again once its own is there, and takes it back where it is not the only one. So at most one stays, and
    /// the older goes only then.
    pub(super) fn write(session: &Session, seen: &Seen, keyring: &Keyring) -> Result<Seen, Pkcs11Error> {
        Self::has_not_moved(session, seen)?;
        let next = Seen { number: seen.number.saturating_add(1), said: keyring.bytes().bytes().to_vec() };
        let written = session.create_object(&as_data(&next)).map_err(|error| match error {
            // NSS keeps none, nor any other object whose value can be read again.
            CallError::Pkcs11(RvError::AttributeValueInvalid, _) => Pkcs11Error::NoDataObjects,
            error => call_failed("C_CreateObject")(error),
        })?;
        let others = all(session)?.into_iter().filter(|(handle, _)| *handle != written);
        let (newer, older): (Vec<_>, Vec<_>) = others.partition(|(_, found)| found.number > seen.number);
        if !newer.is_empty() {
            session.destroy_object(written).map_err(call_failed("C_DestroyObject"))?;
            return Err(Pkcs11Error::ChangedByOther);
        }
        for (older, _) in older {
            session.destroy_object(older).map_err(call_failed("C_DestroyObject"))?;
        }
        Ok(next)
    }
}

/// The one with the highest number.
fn newest(found: Vec<(ObjectHandle, Seen)>) -> Result<Option<Seen>, Pkcs11Error> {
    let number = found.iter().map(|(_, seen)| seen.number).max().unwrap_or_default();
    let mut newest = found.into_iter().map(|(_, seen)| seen).filter(|seen| seen.number == number);
    match (newest.next(), newest.next()) {
        (Some(_), Some(_)) => Err(Pkcs11Error::TwoInventories { number }),
        (newest, _) => Ok(newest),
    }
}

pub(super) fn as_data(Seen { number, said }: &Seen) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Modifiable(false),
        Attribute::Label(LABEL.into()),
        Attribute::Application(APPLICATION.into()),
        Attribute::Value([&number.to_be_bytes()[..], said].concat()),
    ]
}

fn all(session: &Session) -> Result<Vec<(ObjectHandle, Seen)>, Pkcs11Error> {
    let named = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(LABEL.into()),
        Attribute::Application(APPLICATION.into()),
    ];
    let found = session.find_objects(&named).map_err(call_failed("C_FindObjects"))?;
    let read = |handle: ObjectHandle| {
        let attributes = session.get_attributes(handle, &[AttributeType::Value]);
        let Some(Attribute::Value(value)) = attributes.map_err(call_failed("C_GetAttributeValue"))?.pop() else {
            return Err(Pkcs11Error::Inventory);
        };
        let (number, said) = value.split_first_chunk().ok_or(Pkcs11Error::Inventory)?;
        Ok((handle, Seen { number: u64::from_be_bytes(*number), said: said.to_vec() }))
    };
    found.into_iter().map(read).collect()
}
