//! The keys in use: those of the boundary, once no PIN under older ones can come any more. Rotation and those who retire
//! keys go by these: while a boundary hands over to the next, answers of the one before are still on their way.

use std::{sync::Arc, time::Duration};

use hsm_protocol::{PinRecord, SealedKey};
use tokio::{sync::watch, time::sleep};

use super::StartError;
use crate::pin::Pins;
use domain::{card::StoredPin, control::SealedTzpk};
use hsm_client::{KeyMismatch, succeeds};
use store::{Store, StoreError};

/// How many cards' records are read at a time.
const PAGE_CARDS: usize = 4_096;

/// How long a store that is busy is given.
const PAUSE: Duration = Duration::from_millis(100);

/// Checks that the keys of the boundary are those that the store was last used with, by the rule of a reload: fresh keys, or
/// those of another vault or token, open nothing that is in the store. A store without PINs and cards needs no keys.
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
            // A ceremony may retire it while the engine is stopped, with a newer version active and nothing under it.
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

/// The newest version of a key that rotates, where that is newer.
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
        // A record that can't be read needs its key, whichever that is.
        let is_under =
            |pin: &StoredPin| PinRecord::from_bytes(&pin.record).map_or(true, |record| key.encrypts(&record));
        if page.iter().any(|(_, pin)| is_under(pin)) {
            return Ok(true);
        }
    }
}

/// Follows the boundary for as long as there is one and the store takes changes.
pub(super) async fn follow(
    pins: Arc<Pins>,
    mut boundary: watch::Receiver<Arc<hsm_protocol::Status>>,
    in_use: watch::Sender<Arc<hsm_protocol::Status>>,
) {
    while boundary.changed().await.is_ok() {
        let status = Arc::clone(&boundary.borrow_and_update());
        // One that was started again with the keys it had changes nothing.
        while status.keys() != in_use.borrow().keys() {
            match pins.take_up(&status).await {
                Ok(()) => {
                    tracing::info!(
                        keys = hsm_protocol::KeyId::list_to_text(status.keys()),
                        "no PIN comes under an older storage key any more"
                    );
                    in_use.send_replace(Arc::clone(&status));
                }
                Err(StoreError::Busy { .. }) => sleep(PAUSE).await,
                Err(error) => return tracing::error!(%error, "the reloaded keys cannot be put into use"),
            }
        }
    }
}
