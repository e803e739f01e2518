//! The keys in use: the keys of the boundary, from the moment when the store rejects PINs under older keys. During a reload,
//! replies of the former boundary process may still arrive, so rotation and the retirement of keys use this list.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::StartError;
use crate::pin::Pins;
use domain::storage_key::MaxKeyVersions;
use store::{StorageKeyError, StoreError};

/// The pause before a retry when the store is busy.
const PAUSE: Duration = Duration::from_millis(100);

/// What [`follow`] publishes.
pub(super) struct Followed {
    /// The keys of the boundary that the store knows.
    pub(super) reported: watch::Sender<Arc<hsm_protocol::Status>>,
    /// Of these the keys that every engine on the store has.
    pub(super) in_use: watch::Sender<Arc<hsm_protocol::Status>>,
}

/// Updates the keys in use after each change of the boundary's keys, or of the keys that every engine has. Returns when neither
/// can change, or when the store fails.
pub(super) async fn follow(
    pins: Arc<Pins>,
    mut boundary: watch::Receiver<Arc<hsm_protocol::Status>>,
    mut max_keys: watch::Receiver<MaxKeyVersions>,
    Followed { reported, in_use }: Followed,
) {
    loop {
        let status = Arc::clone(&boundary.borrow_and_update());
        // A boundary that was restarted with the same keys changes nothing.
        while !status.has_same_keys(&reported.borrow()) {
            match pins.reject_older_keys(&status).await {
                Ok(()) => {
                    put_into_use(&pins, &status, &in_use);
                    reported.send_replace(Arc::clone(&status));
                }
                // A database comes back, or another engine has reported its keys.
                Err(StartError::Store(
                    StoreError::Busy { .. }
                    | StoreError::Unavailable(_)
                    | StoreError::Unresolved { .. }
                    | StoreError::StorageKeys(StorageKeyError::NotCompared),
                )) => sleep(PAUSE).await,
                Err(error) => return tracing::error!(%error, "the reloaded keys cannot be put into use"),
            }
        }
        // The status of a boundary in this process never changes, nor do the keys of a store of one engine.
        tokio::select! {
            Ok(()) = boundary.changed() => {}
            Ok(()) = max_keys.changed() => put_into_use(&pins, &status, &in_use),
            else => return,
        }
    }
}

/// Publishes those keys of the boundary that every engine has.
fn put_into_use(pins: &Pins, status: &hsm_protocol::Status, in_use: &watch::Sender<Arc<hsm_protocol::Status>>) {
    let usable = pins.usable_keys(status);
    if usable.storage == status.storage {
        tracing::info!(
            keys = hsm_protocol::KeyId::list_to_text(usable.keys()),
            zone_keys = hsm_protocol::KeyId::list_to_text(usable.zone_keys()),
            verification_keys = hsm_protocol::KeyId::list_to_text(usable.verification_keys()),
            "no PIN comes under an older storage key any more"
        );
    } else {
        tracing::warn!(
            in_use = hsm_protocol::KeyId::list_to_text(usable.keys()),
            "another engine on the store lacks the newest storage keys: reload its keys, or deregister it; until then PINs are \
             stored under the keys in use, and no record is re-encrypted under the newest"
        );
    }
    in_use.send_replace(Arc::new(usable));
}
