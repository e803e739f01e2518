//! Keys of one use in every version that is in use: the newest makes, each opens what it made.

use crate::sealed::KeyReference;

/// One key at least.
pub(crate) struct Versioned<T> {
    newest: (KeyReference, T),
    older: Vec<(KeyReference, T)>,
}

impl<T> Versioned<T> {
    /// Of all versions, in any order; none where there is no key.
    pub(crate) fn of(mut all: Vec<(KeyReference, T)>) -> Option<Self> {
        all.sort_by_key(|(KeyReference(version), _)| *version);
        let newest = all.pop()?;
        Some(Self { newest, older: all })
    }

    /// The version that makes.
    pub(crate) fn version(&self) -> KeyReference {
        self.newest.0
    }

    /// The key that makes.
    pub(crate) fn newest(&self) -> &T {
        &self.newest.1
    }

    /// The key of a version.
    pub(crate) fn get(&self, version: KeyReference) -> Option<&T> {
        if self.newest.0 == version {
            return Some(&self.newest.1);
        }
        self.older.iter().find(|(older, _)| *older == version).map(|(_, key)| key)
    }

    /// All of them, the newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (KeyReference, &T)> {
        let older = self.older.iter().rev().map(|(version, key)| (*version, key));
        std::iter::once((self.newest.0, &self.newest.1)).chain(older)
    }

    /// Each prepared for its use.
    pub(crate) fn prepared<U, E>(&self, prepare: impl Fn(&T) -> Result<U, E>) -> Result<Versioned<U>, E> {
        let older = self.older.iter().map(|(version, key)| Ok((*version, prepare(key)?)));
        Ok(Versioned { newest: (self.newest.0, prepare(&self.newest.1)?), older: older.collect::<Result<_, E>>()? })
    }
}
