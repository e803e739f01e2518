//! Storage keys, by name only: which of them new PIN records may be encrypted under.

/// A kind of storage key. Each kind has versions of its own, and the highest one encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKeyKind {
    /// AES-256, wraps the device's own block.
    Wrapped,
    /// AES-256, for ISO 9564 format 4.
    Iso4,
    /// 3DES, for ISO 9564 formats 3 and 0.
    Tdes,
    /// AES-256-CMAC, for one-way records.
    OneWay,
}

/// A storage key, for example that of a PIN record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKey {
    /// The kind of the key.
    pub kind: StorageKeyKind,
    /// The version of the key, 1 to 65535.
    pub version: u16,
}

/// The storage keys that an engine has loaded. Versions may be absent between two others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedKeys(Vec<RecordKey>);

impl LoadedKeys {
    /// The keys, in the order in which they were collected.
    pub fn keys(&self) -> &[RecordKey] {
        &self.0
    }

    /// The versions of a kind, ascending, each once.
    pub fn versions(&self, kind: StorageKeyKind) -> Vec<u16> {
        let mut versions: Vec<_> = self.0.iter().filter(|key| key.kind == kind).map(|key| key.version).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    /// The newest version of each kind, which encrypts; 0 for a kind without a key.
    pub fn newest(&self) -> MinKeyVersions {
        let newest = |kind| self.versions(kind).last().copied().unwrap_or_default();
        MinKeyVersions {
            wrapped: newest(StorageKeyKind::Wrapped),
            iso_4: newest(StorageKeyKind::Iso4),
            tdes: newest(StorageKeyKind::Tdes),
            one_way: newest(StorageKeyKind::OneWay),
        }
    }
}

impl FromIterator<RecordKey> for LoadedKeys {
    fn from_iter<T: IntoIterator<Item = RecordKey>>(keys: T) -> Self {
        Self(keys.into_iter().collect())
    }
}

/// The lowest version of each kind of storage key that a record to be written may be under; 0 admits every version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MinKeyVersions {
    /// The lowest version of [`StorageKeyKind::Wrapped`].
    pub wrapped: u16,
    /// The lowest version of [`StorageKeyKind::Iso4`].
    pub iso_4: u16,
    /// The lowest version of [`StorageKeyKind::Tdes`].
    pub tdes: u16,
    /// The lowest version of [`StorageKeyKind::OneWay`].
    pub one_way: u16,
}

impl MinKeyVersions {
    /// The lowest version of a kind.
    pub fn of(&self, kind: StorageKeyKind) -> u16 {
        match kind {
            StorageKeyKind::Wrapped => self.wrapped,
            StorageKeyKind::Iso4 => self.iso_4,
            StorageKeyKind::Tdes => self.tdes,
            StorageKeyKind::OneWay => self.one_way,
        }
    }
}

/// The highest version of each kind of storage key that a record to be written may be under: every engine on the store opens
/// a record under this version. 65535 where one engine alone uses the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxKeyVersions {
    /// The highest version of [`StorageKeyKind::Wrapped`].
    pub wrapped: u16,
    /// The highest version of [`StorageKeyKind::Iso4`].
    pub iso_4: u16,
    /// The highest version of [`StorageKeyKind::Tdes`].
    pub tdes: u16,
    /// The highest version of [`StorageKeyKind::OneWay`].
    pub one_way: u16,
}

impl Default for MaxKeyVersions {
    fn default() -> Self {
        Self { wrapped: u16::MAX, iso_4: u16::MAX, tdes: u16::MAX, one_way: u16::MAX }
    }
}

impl MaxKeyVersions {
    /// The highest version of a kind.
    pub fn of(&self, kind: StorageKeyKind) -> u16 {
        match kind {
            StorageKeyKind::Wrapped => self.wrapped,
            StorageKeyKind::Iso4 => self.iso_4,
            StorageKeyKind::Tdes => self.tdes,
            StorageKeyKind::OneWay => self.one_way,
        }
    }
}

/// The storage keys that a record to be written may be under (rules R6 and R10 of the stores that several engines use).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyWindow {
    /// The lowest versions.
    pub min: MinKeyVersions,
    /// The highest versions.
    pub max: MaxKeyVersions,
}

impl KeyWindow {
    /// Whether a record under this key may be written.
    pub fn admit(&self, key: RecordKey) -> bool {
        self.check(key).is_ok()
    }

    /// The same, with the side of the window that the key is on.
    ///
    /// # Errors
    /// [`OutsideWindow`]: the version is below the lowest or above the highest of its kind.
    pub fn check(&self, key: RecordKey) -> Result<(), OutsideWindow> {
        if key.version < self.min.of(key.kind) {
            return Err(OutsideWindow::Below);
        }
        if key.version > self.max.of(key.kind) { Err(OutsideWindow::Above) } else { Ok(()) }
    }
}

/// Why a record under a storage key is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutsideWindow {
    /// A newer key replaced the key.
    Below,
    /// Another engine on the store lacks the key.
    Above,
}

impl From<MinKeyVersions> for KeyWindow {
    /// The window without a highest version.
    fn from(min: MinKeyVersions) -> Self {
        Self { min, max: MaxKeyVersions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [StorageKeyKind; 4] =
        [StorageKeyKind::Wrapped, StorageKeyKind::Iso4, StorageKeyKind::Tdes, StorageKeyKind::OneWay];

    #[test]
    fn the_least_version_of_a_kind_and_newer_ones_are_admitted() {
        let min = KeyWindow::from(MinKeyVersions { wrapped: 2, iso_4: 300, tdes: u16::MAX, one_way: 7 });
        for (kind, least) in KINDS.into_iter().zip([2, 300, u16::MAX, 7]) {
            assert!(!min.admit(RecordKey { kind, version: least - 1 }), "{kind:?}");
            assert!(min.admit(RecordKey { kind, version: least }), "{kind:?}");
            assert!(min.admit(RecordKey { kind, version: u16::MAX }), "{kind:?}");
        }
    }

    #[test]
    fn the_newest_loaded_version_of_each_kind_encrypts() {
        let key = |kind, version| RecordKey { kind, version };
        let keys = [key(StorageKeyKind::Iso4, 3), key(StorageKeyKind::OneWay, 2), key(StorageKeyKind::Iso4, 1)];
        let loaded: LoadedKeys = keys.into_iter().collect();
        assert_eq!(loaded.versions(StorageKeyKind::Iso4), [1, 3]);
        let newest = MinKeyVersions { wrapped: 0, iso_4: 3, tdes: 0, one_way: 2 };
        assert_eq!(loaded.newest(), newest);
    }

    #[test]
    fn no_minimum_admits_every_version() {
        for kind in KINDS {
            assert!(KeyWindow::default().admit(RecordKey { kind, version: 1 }));
        }
    }

    #[test]
    fn a_version_above_the_highest_of_its_kind_is_not_admitted() {
        let max = MaxKeyVersions { wrapped: 2, iso_4: 300, tdes: 0, one_way: 7 };
        let window = KeyWindow { max, ..KeyWindow::default() };
        for (kind, highest) in KINDS.into_iter().zip([2, 300, 0, 7]) {
            assert!(window.admit(RecordKey { kind, version: highest }), "{kind:?}");
            let above = window.check(RecordKey { kind, version: highest + 1 });
            assert_eq!(above, Err(OutsideWindow::Above), "{kind:?}");
        }
    }
}
