//! The key inventory of a token: a private data object (CKO_DATA) in the token that lists its keys without their values.
//!
//! ```text
//! CKA_VALUE: number(8, big-endian) keyring, in the layout of `keyring::layout`
//! ```
//! A step writes the new inventory, then destroys the older one; the highest number is valid. A process that dies in between
//! leaves both. Only private objects are searched: anybody can create a public object without the PIN.
//! What must never enter: the value of a key.

use cryptoki::{
    error::{Error as CallError, RvError},
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::failure::call_failed;
use crate::{keyring::Keyring, open_error::Pkcs11Error};

const LABEL: &[u8] = b"pinseal inventory";
const APPLICATION: &[u8] = b"pinseal";

/// The inventory as read from a token.
pub(super) struct Inventory {
    pub(super) revision: Revision,
    pub(super) keyring: Keyring,
}

/// One state of the inventory. The bytes are compared too: after a step withdrew its inventory, another step may write one
/// with the same number. The default stands for a token without an inventory.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Revision {
    number: u64,
    keyring: Vec<u8>,
}

impl Revision {
    pub(super) fn new(number: u64, keyring: &Keyring) -> Self {
        Self { number, keyring: keyring.bytes().bytes().to_vec() }
    }
}

impl Inventory {
    /// Reads the valid inventory; `None` before the first ceremony.
    pub(super) fn read(session: &Session) -> Result<Option<Self>, Pkcs11Error> {
        let Some(revision) = newest(all(session)?)? else { return Ok(None) };
        let keyring = Keyring::read(&revision.keyring).ok_or(Pkcs11Error::Inventory)?;
        Ok(Some(Self { revision, keyring }))
    }

    /// Fails where the token's inventory is not the one that this step read.
    pub(super) fn check_unchanged(session: &Session, read: &Revision) -> Result<(), Pkcs11Error> {
        let now = newest(all(session)?)?.unwrap_or_default();
        if now == *read { Ok(()) } else { Err(Pkcs11Error::ChangedByOther) }
    }

    /// Writes the revision after `read`, unless another step wrote one. A token has no lock, so two steps may write at once:
    /// each searches again after its own write and destroys its inventory where another new one exists. So at most one new
    /// inventory stays, and the older ones are destroyed only then.
    pub(super) fn write(session: &Session, read: &Revision, keyring: &Keyring) -> Result<Revision, Pkcs11Error> {
        Self::check_unchanged(session, read)?;
        let next = Revision::new(read.number.saturating_add(1), keyring);
        let written = session.create_object(&data_object(&next)).map_err(|error| match error {
            // NSS stores no data objects, nor any other object with a readable value.
            CallError::Pkcs11(RvError::AttributeValueInvalid, _) => Pkcs11Error::NoDataObjects,
            error => call_failed("C_CreateObject")(error),
        })?;
        let others = all(session)?.into_iter().filter(|(handle, _)| *handle != written);
        let (newer, older): (Vec<_>, Vec<_>) = others.partition(|(_, found)| found.number > read.number);
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

/// The revision with the highest number.
fn newest(found: Vec<(ObjectHandle, Revision)>) -> Result<Option<Revision>, Pkcs11Error> {
    let number = found.iter().map(|(_, revision)| revision.number).max().unwrap_or_default();
    let mut newest = found.into_iter().map(|(_, revision)| revision).filter(|revision| revision.number == number);
    match (newest.next(), newest.next()) {
        (Some(_), Some(_)) => Err(Pkcs11Error::TwoInventories { number }),
        (newest, _) => Ok(newest),
    }
}

fn search() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(LABEL.into()),
        Attribute::Application(APPLICATION.into()),
    ]
}

/// The template of the data object of a revision.
pub(super) fn data_object(Revision { number, keyring }: &Revision) -> Vec<Attribute> {
    let value = Attribute::Value([&number.to_be_bytes()[..], keyring].concat());
    [search(), vec![Attribute::Modifiable(false), value]].concat()
}

fn all(session: &Session) -> Result<Vec<(ObjectHandle, Revision)>, Pkcs11Error> {
    let found = session.find_objects(&search()).map_err(call_failed("C_FindObjects"))?;
    let read = |handle: ObjectHandle| {
        let attributes = session.get_attributes(handle, &[AttributeType::Value]);
        let Some(Attribute::Value(value)) = attributes.map_err(call_failed("C_GetAttributeValue"))?.pop() else {
            return Err(Pkcs11Error::Inventory);
        };
        let (number, keyring) = value.split_first_chunk().ok_or(Pkcs11Error::Inventory)?;
        Ok((handle, Revision { number: u64::from_be_bytes(*number), keyring: keyring.to_vec() }))
    };
    found.into_iter().map(read).collect()
}
