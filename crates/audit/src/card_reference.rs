//! The reference of a card in audit events: a keyed hash, so that an export answers "every access to this card", and a reader
//! of the export without the key cannot try out card numbers.

use std::{borrow::Cow, fmt};

use aws_lc_rs::hmac;
use base16ct::lower;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

use domain::card::CardKey;
use domain::request_id::RequestId;

/// The key of the card references of one store, 32 bytes. The store keeps the key; an export does not contain the key.
#[derive(Clone)]
pub struct CardReferenceKey {
    key: [u8; 32],
    mac: hmac::Key,
}

impl CardReferenceKey {
    /// A fresh key with 244 random bits: two UUIDs of version 4 (RFC 9562).
    pub fn random() -> Self {
        let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
        let mut key = [0; 32];
        key.iter_mut().zip(first.as_bytes().iter().chain(second.as_bytes())).for_each(|(byte, random)| *byte = *random);
        Self::from_bytes(key)
    }

    /// The key of these 32 bytes.
    pub fn from_bytes(key: [u8; 32]) -> Self {
        Self { mac: hmac::Key::new(hmac::HMAC_SHA256, &key), key }
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// The reference of a card: the first 16 bytes of HMAC-SHA-256 (RFC 2104) over the length of the tenant's name (1 byte),
    /// the name, and the digits of the plasticId.
    pub fn reference(&self, card: &CardKey) -> CardReference {
        let (tenant, plastic) = (card.tenant.as_str(), card.plastic.as_str());
        // A tenant's name has at most 31 bytes.
        let length = u8::try_from(tenant.len()).unwrap_or(u8::MAX);
        let mut context = hmac::Context::with_key(&self.mac);
        [&[length], tenant.as_bytes(), plastic.as_bytes()].into_iter().for_each(|part| context.update(part));
        let mut reference = [0; 16];
        reference.iter_mut().zip(context.sign().as_ref()).for_each(|(byte, mac)| *byte = *mac);
        CardReference(reference)
    }

    /// The salt of the items of a stream: HMAC-SHA-256 over a zero byte, the request id and the number of the first item
    /// (8 bytes). A reference begins with the length of a tenant's name, which is not 0.
    pub(super) fn items_salt(&self, request: &RequestId, first: u64) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.mac);
        [&[0][..], request.as_bytes(), &first.to_be_bytes()].into_iter().for_each(|part| context.update(part));
        let mut salt = [0; 32];
        salt.iter_mut().zip(context.sign().as_ref()).for_each(|(byte, mac)| *byte = *mac);
        salt
    }
}

/// The reference of a card in audit events. JSON and [`fmt::Display`] write 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CardReference([u8; 16]);

impl CardReference {
    /// The reference of these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the reference.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for CardReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lower::encode_string(&self.0))
    }
}

impl fmt::Debug for CardReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CardReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CardReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let bytes = lower::decode_vec(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| D::Error::custom("a card reference is 32 lower-case hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::card::{PlasticId, Tenant};

    fn card(tenant: &str, plastic: &str) -> CardKey {
        CardKey { tenant: Tenant::parse(tenant).unwrap(), plastic: PlasticId::parse(plastic).unwrap() }
    }

    #[test]
    fn a_reference_is_the_hmac_of_tenant_and_card() {
        // printf '\x04bank6001' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0101...01
        let reference = CardReferenceKey::from_bytes([1; 32]).reference(&card("bank", "6001"));
        assert_eq!(reference.to_string(), "fbb4c3fed7d502ec502f8ba8e3b7ab8a");
    }

    #[test]
    fn a_reference_depends_on_key_tenant_and_card() {
        let (key, other) = (CardReferenceKey::random(), CardReferenceKey::random());
        let reference = key.reference(&card("bank", "6001"));
        assert_eq!(key.reference(&card("bank", "6001")), reference);
        assert_eq!(CardReferenceKey::from_bytes(*key.as_bytes()).reference(&card("bank", "6001")), reference);
        for another in [key.reference(&card("bank", "60011")), key.reference(&card("bank6", "001"))] {
            assert_ne!(another, reference);
        }
        assert_ne!(other.reference(&card("bank", "6001")), reference);
    }
}
