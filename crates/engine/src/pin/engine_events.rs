//! Events of the engine itself, and what the operator's services read and change.

use std::sync::Arc;

use super::Pins;
use crate::{StartError, store_keys};
use audit::archive::ArchivedPart;
use audit::entry::{ArchivedSegment, Body, Event, Outcome};
use domain::caller::Caller;
use domain::card::Tenant;
use domain::request_id::RequestId;
use domain::storage_key::{LoadedKeys, RecordKey, StorageKeyKind};
use hsm_protocol::{SealedKey, StorageFormat};
use store::{KeysAtStart, ReportedKeys, StoreError};

impl Pins {
    /// Records the end of a rotation: the number of checked PIN records, and of those that did not open.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_rotated(&self, checked: u64, failed: u64) -> Result<(), StoreError> {
        self.store.record_event(self.engine_event(Body::RotationEnded { checked, failed })).await
    }

    /// Rejects PIN records under a storage key older than those of `status`; the caller retries under the newest key. When
    /// this returns, the store holds every earlier record, for a rotation to find.
    ///
    /// # Errors
    /// [`StartError::OtherKeys`]: another engine on the store has other keys. [`StoreError`]: the store failed.
    pub(crate) async fn reject_older_keys(&self, status: &hsm_protocol::Status) -> Result<(), StartError> {
        let keys = self.compared(status).await?;
        Ok(self.store.set_keys_in_use(keys, self.engine_event(Body::KeysReloaded)).await?)
    }

    /// The report of the keys of `status`, which agree with those of the other engines on the store.
    async fn compared(&self, status: &hsm_protocol::Status) -> Result<ReportedKeys, StartError> {
        let list = hsm_protocol::frame::write_key_list(status.keys()).into();
        let compared = store_keys::compare(&*self.store, status).await?;
        Ok(ReportedKeys { list, loaded: loaded_keys(status), compared })
    }

    /// Records that the engine of this name starts to serve, with the keys of `status`.
    ///
    /// # Errors
    /// [`StartError::OtherKeys`]: another engine on the store has other keys. [`StoreError`]: the store failed.
    pub(crate) async fn note_start(&self, engine: &str, status: &hsm_protocol::Status) -> Result<(), StartError> {
        let keys = self.compared(status).await?;
        let start = KeysAtStart { card_reference_key: self.references.clone() };
        let event = self.engine_event(Body::EngineStarted { engine: engine.into() });
        Ok(self.store.set_keys_at_start(keys, start, event).await?)
    }

    /// Records an event of the engine itself.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_engine(&self, body: Body) -> Result<(), StoreError> {
        self.store.record_event(self.engine_event(body)).await
    }

    /// Removes archived entries of the audit chain from the store.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub(crate) async fn remove_archived(&self, part: ArchivedPart, segment: ArchivedSegment) -> Result<(), StoreError> {
        self.store.remove_archived(part, self.engine_event(Body::AuditArchived(segment))).await
    }

    /// The version of the seal key of each usable control's tzpk; `None` for a tzpk in an unknown layout.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn live_seal_versions(&self) -> Result<Vec<Option<u16>>, StoreError> {
        let tzpks = self.store.live_tzpks().await?;
        Ok(tzpks.iter().map(|tzpk| SealedKey::from_bytes(&tzpk.0).ok().map(|tzpk| tzpk.key().0)).collect())
    }

    /// Reads at most `limit` audit entries from number `from`. Returns the names of the engines that started, at the end also
    /// those in archived entries, and the number of the next entry; `None` at the end of the chain.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn started_engines(&self, from: u64, limit: usize) -> Result<(Vec<String>, Option<u64>), StoreError> {
        let entries = self.store.audit(from, limit).await?;
        // Read last: entries may be archived between two pages.
        let archived = if entries.is_empty() { self.store.archived().await? } else { None };
        let archived = archived.into_iter().flat_map(|archived| archived.engines);
        let names = entries
            .iter()
            .filter_map(|entry| entry.event.body.started_engine().map(str::to_owned))
            .chain(archived)
            .collect();
        Ok((names, entries.last().map(|last| last.sequence.saturating_add(1))))
    }

    /// Records a call that was denied because of the caller's certificate, or a request whose credentials an edge rejected;
    /// `peer` is the name on the certificate. `tenant` is the tenant that the request names, where the denial depends on it.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_denial(
        &self,
        peer: Arc<str>,
        tenant: Option<Tenant>,
        request: RequestId,
        body: Body,
    ) -> Result<(), StoreError> {
        let event = Event {
            caller: peer,
            tenant,
            audit_user: "-".into(),
            request: Some(request),
            outcome: Outcome::Denied,
            ..self.engine_event(body)
        };
        self.store.record_access(event).await
    }

    /// Records a request of a client that the caller, an edge, denied.
    ///
    /// # Errors
    /// [`StoreError`]: the store failed.
    pub async fn note_client_denial(&self, caller: &Caller, body: Body) -> Result<(), StoreError> {
        let event = Event { outcome: Outcome::Denied, ..self.caller_event(caller, body) };
        self.store.record_access(event).await
    }
}

/// Every version of every kind of storage key. One key may be of two kinds.
fn loaded_keys(status: &hsm_protocol::Status) -> LoadedKeys {
    let kinds = [
        (StorageKeyKind::Wrapped, StorageFormat::Wrapped),
        (StorageKeyKind::Iso4, StorageFormat::Iso4),
        (StorageKeyKind::Tdes, StorageFormat::Iso3),
        (StorageKeyKind::OneWay, StorageFormat::OneWay),
    ];
    let keys = |(kind, form)| status.storage_versions(form).map(move |version| RecordKey { kind, version: version.0 });
    kinds.into_iter().flat_map(keys).collect()
}
