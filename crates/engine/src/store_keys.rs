//! Whether the keys of the boundary are those that the store was last used with, and those of the other engines on the store.

use hsm_protocol::{PinRecord, SealedKey};

use super::StartError;
use domain::{card::StoredPin, control::SealedTzpk};
use hsm_client::{KeyMismatch, agrees, succeeds};
use store::{Store, StoreError};

/// The number of cards whose records are read at a time.
const PAGE_CARDS: usize = 4_096;

/// Checks by the rule of a reload that the boundary's keys open the data in the store: new keys, or the keys of another vault
/// or token, do not. A store without PINs and cards needs no keys.
///
/// # Errors
/// [`StartError::NoKeyList`] where the store has data but no readable key list; [`StartError::OtherKeys`] for keys that do not
/// open the data; the errors of the store.
pub(super) async fn check(store: &dyn Store, status: &hsm_protocol::Status) -> Result<(), StartError> {
    if !store.needs_keys().await? {
        return Ok(());
    }
    let damaged = || StartError::NoKeyList { store: store.place().to_owned() };
    let noted = store.keys_in_use().await?.ok_or_else(damaged)?;
    let mut noted = hsm_protocol::frame::read_key_list(&noted).map_err(|_| damaged())?;
    loop {
        match succeeds(&noted, status.keys()) {
            Ok(()) => return Ok(()),
            // A ceremony may have retired the key while the engine was stopped: a newer version is active, and no data is under
            // the retired key.
            Err(KeyMismatch::Missing { key })
                if let Some(newer) = newest(status.keys(), &key)
                    && !is_needed(store, &key).await? =>
            {
                noted.retain(|used| used.usage != key.usage || used.version != key.version);
                noted.push(newer.clone());
            }
            Err(mismatch) => return Err(StartError::OtherKeys { store: store.place().to_owned(), mismatch }),
        }
    }
}

/// Compares the boundary's keys with those of the other engines on the store, also where the store has no data yet. Returns
/// their lists, for the report of the keys.
///
/// # Errors
/// [`StartError::OtherKeys`] where a key has another KCV there; [`StartError::NoKeyList`] for a list that can't be read; the
/// errors of the store.
pub(super) async fn compare(store: &dyn Store, status: &hsm_protocol::Status) -> Result<Vec<Box<[u8]>>, StartError> {
    let lists = store.other_keys().await?;
    for list in &lists {
        let damaged = |_| StartError::NoKeyList { store: store.place().to_owned() };
        let other = hsm_protocol::frame::read_key_list(list).map_err(damaged)?;
        agrees(&other, status.keys())
            .map_err(|mismatch| StartError::OtherKeys { store: store.place().to_owned(), mismatch })?;
    }
    Ok(lists)
}

/// The newest version of a usage that rotates, if it is newer than `than`.
fn newest<'a>(keys: &'a [hsm_protocol::KeyId], than: &hsm_protocol::KeyId) -> Option<&'a hsm_protocol::KeyId> {
    let newer =
        |key: &&hsm_protocol::KeyId| key.usage.rotates() && key.usage == than.usage && key.version > than.version;
    keys.iter().filter(newer).max_by_key(|key| key.version)
}

/// Whether a PIN record or the tzpk of a usable control is under the key. Reads every PIN record.
async fn is_needed(store: &dyn Store, key: &hsm_protocol::KeyId) -> Result<bool, StoreError> {
    let seals = |tzpk: &SealedTzpk| SealedKey::from_bytes(&tzpk.0).map_or(true, |tzpk| tzpk.key() == key.version);
    if store.live_tzpks().await?.iter().any(seals) {
        return Ok(true);
    }
    let mut after = None;
    loop {
        let page = store.scan_pins(after.as_ref(), PAGE_CARDS).await?;
        let Some((last, _)) = page.last() else { return Ok(false) };
        after = Some(*last);
        // A record in an unknown layout may be under this key.
        let is_under =
            |pin: &StoredPin| PinRecord::from_bytes(&pin.record).map_or(true, |record| key.encrypts(&record));
        if page.iter().any(|(_, pin)| is_under(pin)) {
            return Ok(true);
        }
    }
}
