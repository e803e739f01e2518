//! The versions of one key that are in use. The newest encrypts; each version decrypts its own data.
//!
//! Clear keys are stored in a `Box`: a move of the bytes would leave a copy that no drop wipes, while a move of the box
//! copies only a pointer.

use hsm_protocol::KeyVersion;

/// At least one version of a key.
pub(crate) struct Versioned<T> {
    newest: (KeyVersion, T),
    older: Vec<(KeyVersion, T)>,
}

impl<T> Versioned<T> {
    /// Takes all versions, in any order. `None` without a version.
    pub(crate) fn new(mut all: Vec<(KeyVersion, T)>) -> Option<Self> {
        all.sort_by_key(|(KeyVersion(version), _)| *version);
        let newest = all.pop()?;
        Some(Self { newest, older: all })
    }

    /// The newest version, which encrypts.
    pub(crate) fn version(&self) -> KeyVersion {
        self.newest.0
    }

    /// The newest key, which encrypts.
    pub(crate) fn newest(&self) -> &T {
        &self.newest.1
    }

    /// The key of a version, if this version is in use.
    pub(crate) fn get(&self, version: KeyVersion) -> Option<&T> {
        if self.newest.0 == version {
            return Some(&self.newest.1);
        }
        self.older.iter().find(|(older, _)| *older == version).map(|(_, key)| key)
    }

    /// All versions, the newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (KeyVersion, &T)> {
        let older = self.older.iter().rev().map(|(version, key)| (*version, key));
        std::iter::once((self.newest.0, &self.newest.1)).chain(older)
    }

    /// Converts each key, for example into its key schedule.
    ///
    /// # Errors
    /// The first error of `prepare`.
    pub(crate) fn prepared<U, E>(&self, prepare: impl Fn(&T) -> Result<U, E>) -> Result<Versioned<U>, E> {
        // Allocated once: a vector that grows would leave key schedules in freed memory.
        let mut older = Vec::with_capacity(self.older.len());
        for (version, key) in &self.older {
            older.push((*version, prepare(key)?));
        }
        Ok(Versioned { newest: (self.newest.0, prepare(&self.newest.1)?), older })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clear::Clear;

    #[test]
    fn a_clear_key_is_never_moved_and_the_newest_comes_first() {
        let address = |key: &Clear<32>| std::ptr::from_ref(key.bytes()).addr();
        let keys: Vec<_> = [2, 3, 1].map(|version| (KeyVersion(version), Box::new(Clear::<32>::zeroed()))).into();
        let filled: Vec<_> = keys.iter().map(|(version, key)| (*version, address(key))).collect();
        let versioned = Versioned::new(keys).unwrap();
        for (version, address_before) in filled {
            assert_eq!(versioned.get(version).map(|key| address(key)), Some(address_before));
        }
        assert_eq!(versioned.version(), KeyVersion(3));
        let all: Vec<_> = versioned.iter().map(|(KeyVersion(version), _)| version).collect();
        assert_eq!(all, [3, 2, 1]);
    }
}
