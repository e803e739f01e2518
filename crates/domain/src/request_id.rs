//! The id of one request: in the answer to the client, in the logs of edge and engine, and in the audit event.

use std::fmt;

use thiserror::Error;
use uuid::{Uuid, fmt::Hyphenated};

/// The id of one request: a UUID, in its 36-character form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// A fresh id: 122 random bits (RFC 9562, version 4).
    pub fn random() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }

    /// Reads the text form, 36 characters.
    ///
    /// # Errors
    /// The text is not a UUID in its hyphenated form (RFC 9562, section 4).
    pub fn parse(text: &str) -> Result<Self, RequestIdError> {
        let uuid = Uuid::try_parse(text).map_err(|_| RequestIdError)?;
        (text.len() == Hyphenated::LENGTH).then_some(Self(*uuid.as_bytes())).ok_or(RequestIdError)
    }

    /// The id of these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_bytes(self.0), f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the id of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a request id is one UUID of 36 characters: send such an id, or none")]
pub struct RequestIdError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_read_in_its_36_character_form_alone() {
        let id = RequestId::random();
        assert_eq!(RequestId::parse(&id.to_string()), Ok(id));
        let braced = format!("{{{id}}}");
        for refused in ["", "1", &id.to_string().replace('-', ""), &braced, &format!("{id}\n"), &format!("{id}{id}")] {
            assert_eq!(RequestId::parse(refused), Err(RequestIdError), "{refused:?}");
        }
    }
}
