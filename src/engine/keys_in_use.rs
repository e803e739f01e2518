//! The keys in use: those of the boundary, once no PIN under older ones can come any more. Rotation and those who retire
//! keys go by these: while a boundary hands over to the next, answers of the one before are still on their way.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::StartError;
use crate::{
    boundary::succeeds,
    pin::Pins,
    store::{StoreError, embedded::Embedded},
};

/// How long a store that is busy is given.
const PAUSE: Duration = Duration::from_millis(100);

/// Checks that the keys of the boundary are those that the store was last used with, by the rule of a reload: fresh keys, or
/// those of another vault or token, open nothing that is in the store. A store without PINs and cards needs no keys.
pub(super) fn check(store: &Embedded, directory: &Path, status: &hsm::Status) -> Result<(), StartError> {
    if !store.needs_keys()? {
        return Ok(());
    }
    let damaged = || StartError::NoKeyList { store: directory.to_owned() };
    let noted = store.noted_keys()?.ok_or_else(damaged)?;
    let noted = hsm::KeyId::list_from_bytes(&noted).ok_or_else(damaged)?;
    succeeds(&noted, status.keys()).map_err(|mismatch| StartError::OtherKeys { store: directory.to_owned(), mismatch })
}

/// Follows the boundary for as long as there is one and the store takes changes.
pub(super) async fn follow(
    pins: Arc<Pins>,
    mut boundary: watch::Receiver<Arc<hsm::Status>>,
    in_use: watch::Sender<Arc<hsm::Status>>,
) {
    while boundary.changed().await.is_ok() {
        let status = Arc::clone(&boundary.borrow_and_update());
        // One that was started again with the keys it had changes nothing.
        while status.keys() != in_use.borrow().keys() {
            match pins.take_up(&status).await {
                Ok(()) => {
                    tracing::info!(
                        keys = hsm::KeyId::list_to_text(status.keys()),
                        "no PIN comes under an older storage key any more"
                    );
                    in_use.send_replace(Arc::clone(&status));
                }
                Err(StoreError::Busy { .. }) => sleep(PAUSE).await,
                Err(error) => return tracing::error!(%error, "the keys taken up can't be put into use"),
            }
        }
    }
}
