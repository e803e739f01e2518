//! Re-encryption of PIN records under the newest storage key, and their kinds.

use futures::{StreamExt, stream};
use thiserror::Error;

use super::{Pins, account, card_binding, record_key};
use audit::entry::Body;
use domain::card::{CardKey, ReencryptedPin, StoredPin};
use hsm_protocol::{PinRecord, Reply, Request, Source, StorageFormat, Target};
use store::StoreError;

/// The most records that are re-encrypted at a time. Fewer than the requests that may wait for a token, so that calls still
/// fit in its queue.
const REENCRYPTED_AT_ONCE: usize = 32;

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

    /// Re-encrypts the PIN records of the next cards that are under an older storage key, or reversible where
    /// new records are one-way. A PIN that is set at the same time is
    /// not overwritten.
    ///
    /// # Errors
    /// [`ReencryptError`]: the boundary was not available or busy, or the store failed. No record of the page is changed.
    pub async fn reencrypt_page(
        &self,
        after: Option<&CardKey>,
        cards: usize,
    ) -> Result<ReencryptedPage, ReencryptError> {
        let pins = self.store.scan_pins(after, cards).await?;
        let checked = u64::try_from(pins.len()).unwrap_or(u64::MAX);
        let mut page = ReencryptedPage { last: pins.last().map(|(card, _)| *card), checked, reencrypted: 0, failed: 0 };
        let mut records = Vec::new();
        // Many at a time: a boundary in a separate process executes all arrived requests at one wake-up.
        let keys = &self.usable_keys(&self.boundary.status());
        let each =
            |(card, pin): (CardKey, StoredPin)| async move { (self.reencrypted(keys, &card, &pin).await, card, pin) };
        let mut all = stream::iter(pins.into_iter().map(each)).buffered(REENCRYPTED_AT_ONCE);
        while let Some((outcome, card, pin)) = all.next().await {
            match outcome {
                Ok(None) => {}
                Ok(Some(after)) => records.push(ReencryptedPin {
                    card,
                    before: pin.record,
                    key: record_key(&after),
                    after: after.as_bytes().into(),
                }),
                Err(error @ (hsm_protocol::Error::Unavailable { .. } | hsm_protocol::Error::Busy { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    page.failed += 1;
                    tracing::warn!(%error, "a PIN record can't be re-encrypted under the newest storage key");
                }
            }
        }
        if !records.is_empty() {
            page.reencrypted =
                self.store.reencrypt(records, self.engine_event(Body::RecordsReencrypted { count: 0 })).await?;
        }
        Ok(page)
    }

    /// The record under the newest storage key; `None` for a record that already is, and for a one-way record: it moves when its
    /// PIN is verified right or set.
    async fn reencrypted(
        &self,
        keys: &hsm_protocol::Status,
        card: &CardKey,
        pin: &StoredPin,
    ) -> Result<Option<PinRecord>, hsm_protocol::Error> {
        let record = PinRecord::from_bytes(&pin.record)?;
        if record.form() == StorageFormat::OneWay || keys.is_current(&record) {
            return Ok(None);
        }
        let translate = Request::Translate {
            source: Source::Record(record),
            target: Target::Record,
            card: card_binding(card)?,
            account: account(pin.account.as_ref())?,
        };
        match self.execute(translate).await? {
            Reply::Record { record, .. } => Ok(Some(record)),
            _ => Err(hsm_protocol::Error::UnexpectedReply),
        }
    }
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
