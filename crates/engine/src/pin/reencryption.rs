//! Re-encryption of PIN records under the newest storage key, and their kinds.

use thiserror::Error;

use super::{Pins, account, card_binding, record_key};
use audit::entry::Body;
use domain::card::{CardKey, ReencryptedPin, StoredPin};
use hsm_protocol::{PinRecord, Reply, Request, Source, StorageFormat, Target};
use store::StoreError;

/// The most records that wait for a PKCS#11 token: fewer than may wait for it, so that calls still fit in its queue.
const ALONE_AT_ONCE: usize = 32;

impl Pins {
    /// Reads the kinds of the PIN records of the next cards after `after`.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn kinds_page(&self, after: Option<&CardKey>, cards: usize) -> Result<KindsPage, StoreError> {
        let pins = self.store.scan_pins(after, cards).await?;
        let kind = |pin: &StoredPin| PinRecord::from_bytes(&pin.record).ok().map(|record| RecordKind::of(&record));
        Ok(KindsPage {
            last: pins.last().map(|(card, _)| *card),
            kinds: pins.iter().map(|(_, pin)| kind(pin)).collect(),
        })
    }

    /// Reads the PIN records of the next cards, and re-encrypts those that are under an older storage key, or reversible where new
    /// records are one-way. The store does not change.
    ///
    /// # Errors
    /// [`ReencryptError`]: the boundary was not available or busy, or the store failed.
    pub async fn translate_page(
        &self,
        after: Option<&CardKey>,
        cards: usize,
    ) -> Result<TranslatedPage, ReencryptError> {
        let pins = self.store.scan_pins(after, cards).await?;
        let status = self.boundary.status();
        let keys = self.usable_keys(&status);
        let checked = u64::try_from(pins.len()).unwrap_or(u64::MAX);
        let last = pins.last().map(|(card, _)| *card);
        let mut page = TranslatedPage { last, checked, failed: 0, older_one_way: 0, records: Vec::new() };
        let (mut before, mut requests) = (Vec::new(), Vec::new());
        for (card, pin) in pins {
            match classify(&keys, &pin) {
                Ok(Found::Current) => {}
                Ok(Found::OlderOneWay) => page.older_one_way += 1,
                Ok(Found::Outdated(record)) => match reencrypt(&card, &pin, record) {
                    Ok(request) => {
                        before.push((card, pin.record));
                        requests.push(request);
                    }
                    Err(error) => page.fail(&error),
                },
                Err(error) => page.fail(&error),
            }
        }
        let results = self.execute_all(requests, ALONE_AT_ONCE).await;
        for (result, (card, before)) in results.into_iter().zip(before) {
            match result {
                Ok(Reply::Record { record: after, .. }) => page.records.push(ReencryptedPin {
                    card,
                    before,
                    key: record_key(&after),
                    after: after.as_bytes().into(),
                }),
                Ok(_) => page.fail(&hsm_protocol::Error::UnexpectedReply),
                Err(error @ (hsm_protocol::Error::Unavailable { .. } | hsm_protocol::Error::Busy { .. })) => {
                    return Err(error.into());
                }
                Err(error) => page.fail(&error),
            }
        }
        Ok(page)
    }

    /// Replaces the records of a page by the re-encrypted ones, in one transaction. A PIN that was set since the page was read is not
    /// overwritten.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed. No record of the page is changed.
    pub async fn write_page(&self, page: TranslatedPage) -> Result<ReencryptedPage, StoreError> {
        let TranslatedPage { last, checked, failed, older_one_way, records } = page;
        let reencrypted = match records.is_empty() {
            true => 0,
            false => self.store.reencrypt(records, self.engine_event(Body::RecordsReencrypted { count: 0 })).await?,
        };
        Ok(ReencryptedPage { last, checked, reencrypted, failed, older_one_way })
    }
}

/// A record as a rotation finds it.
enum Found {
    /// The record is under the newest storage key, in the format of new records: it stays.
    Current,
    /// A one-way record under another key: it stays until its PIN is verified right or set.
    OlderOneWay,
    /// The rotation re-encrypts this record.
    Outdated(PinRecord),
}

fn classify(keys: &hsm_protocol::Status, pin: &StoredPin) -> Result<Found, hsm_protocol::Error> {
    let record = PinRecord::from_bytes(&pin.record)?;
    Ok(match record.form() {
        StorageFormat::OneWay if record.storage_key() == keys.storage.one_way => Found::Current,
        StorageFormat::OneWay => Found::OlderOneWay,
        _ if keys.is_current(&record) => Found::Current,
        _ => Found::Outdated(record),
    })
}

/// The request that re-encrypts the record of a card.
fn reencrypt(card: &CardKey, pin: &StoredPin, record: PinRecord) -> Result<Request, hsm_protocol::Error> {
    let (card, account) = (card_binding(card)?, account(pin.account.as_ref())?);
    Ok(Request::Translate { source: Source::Record(record), target: Target::Record, card, account })
}

/// The facts about a PIN record in its clear header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKind {
    /// The storage format of the block.
    pub form: hsm_protocol::StorageFormat,
    /// The boundary level that made the record.
    pub level: hsm_protocol::BoundaryLevel,
    /// The version of the storage key that encrypts the record.
    pub storage_key_version: u16,
}

impl RecordKind {
    fn of(record: &PinRecord) -> Self {
        let (form, level) = (record.form(), record.made_at().level);
        Self { form, level, storage_key_version: record.storage_key().0 }
    }
}

/// The kinds of the PIN records of a page of cards.
pub struct KindsPage {
    /// The last card of the page; `None` after the last card of the store.
    pub last: Option<CardKey>,
    /// The kind of each record; `None` for a record in an unknown layout.
    pub kinds: Vec<Option<RecordKind>>,
}

/// A page of cards whose re-encrypted records are not in the store.
pub struct TranslatedPage {
    /// The last card of the page; `None` after the last card of the store.
    pub last: Option<CardKey>,
    checked: u64,
    failed: u64,
    older_one_way: u64,
    records: Vec<ReencryptedPin>,
}

impl TranslatedPage {
    /// The number of re-encrypted records.
    pub fn reencrypted(&self) -> u64 {
        u64::try_from(self.records.len()).unwrap_or(u64::MAX)
    }

    fn fail(&mut self, error: &hsm_protocol::Error) {
        self.failed += 1;
        tracing::warn!(%error, "a PIN record can't be re-encrypted under the newest storage key");
    }
}

/// The result of the re-encryption of a page of cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReencryptedPage {
    /// The last card of the page; `None` after the last card of the store.
    pub last: Option<CardKey>,
    /// The number of checked records.
    pub checked: u64,
    /// The number of re-encrypted records.
    pub reencrypted: u64,
    /// The number of records that did not open.
    pub failed: u64,
    /// The number of one-way records under another key than the newest. No rotation moves them.
    pub older_one_way: u64,
}

/// An error that ended the re-encryption of a page. No record of the page is changed.
#[derive(Debug, Error)]
pub enum ReencryptError {
    /// The boundary is not available or busy.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::storage_key::{RecordKey, StorageKeyKind};
    use hsm_protocol::{BoundaryLevel, Isolation, KeyVersion, MadeAt};

    fn status() -> hsm_protocol::Status {
        let [wrapped, iso_4, tdes, one_way] = [2; 4].map(KeyVersion);
        hsm_protocol::Status {
            token: "software".into(),
            level: BoundaryLevel::Host,
            isolation: Isolation::Process,
            form: StorageFormat::Iso4,
            until: None,
            keys: Vec::new(),
            zone_keys: Vec::new(),
            verification_keys: Vec::new(),
            even_parity: Vec::new(),
            reusable_answers: Vec::new(),
            storage: hsm_protocol::StorageVersions { wrapped, iso_4, tdes, one_way },
            memory: hsm_protocol::MemoryLock::Locked,
            persistence: hsm_protocol::Persistence::Vault,
            pin_digits: hsm_protocol::PinDigits::new(4, 12).unwrap(),
        }
    }

    fn stored(form: StorageFormat, version: u16) -> StoredPin {
        let made_at = MadeAt { level: BoundaryLevel::Host, isolation: Isolation::Process };
        let record = PinRecord::untagged(KeyVersion(version), form, made_at, &[7; 32]);
        let key = RecordKey { kind: StorageKeyKind::Iso4, version };
        StoredPin { record: record.as_bytes().into(), key, account: None }
    }

    #[test]
    fn a_rotation_finds_the_records_that_it_moves() {
        let keys = status();
        let to_one_way = hsm_protocol::Status { form: StorageFormat::OneWay, ..keys.clone() };
        let found = |keys, form, version| classify(keys, &stored(form, version)).unwrap();
        assert!(matches!(found(&keys, StorageFormat::Iso4, 2), Found::Current));
        assert!(matches!(found(&keys, StorageFormat::OneWay, 2), Found::Current));
        assert!(matches!(found(&keys, StorageFormat::OneWay, 1), Found::OlderOneWay));
        for (keys, form, version) in
            [(&keys, StorageFormat::Iso4, 1), (&keys, StorageFormat::Iso3, 1), (&to_one_way, StorageFormat::Iso4, 2)]
        {
            let Found::Outdated(record) = found(keys, form, version) else { panic!("{form:?} under {version} stays") };
            assert_eq!(record.as_bytes(), &*stored(form, version).record);
        }
        let cut = StoredPin { record: [1, b'P'].into(), ..stored(StorageFormat::Iso4, 1) };
        assert!(classify(&keys, &cut).is_err());
    }
}
