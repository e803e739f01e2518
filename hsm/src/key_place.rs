//! The algorithms that a key may have, by the place of the keys.

use hsm_protocol::{BoundaryLevel, KeyUsage};

use crate::{
    keyring::{KeyAlgorithm, algorithms_in_vault},
    token::algorithms_in_token,
};

/// The kind of place that holds the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// A software vault.
    Vault,
    /// A PKCS#11 token.
    Token,
}

impl KeyPlace {
    /// The algorithms that a key of this usage may have, the default first; empty where the place has no such key at the level.
    pub fn algorithms(self, usage: &KeyUsage, level: BoundaryLevel) -> &'static [KeyAlgorithm] {
        match self {
            Self::Vault => algorithms_in_vault(usage),
            Self::Token => algorithms_in_token(usage, level),
        }
    }
}
