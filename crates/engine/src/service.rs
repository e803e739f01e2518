//! The gRPC services of controls, PINs, cards and audit: decode the message, run the use case, encode the reply. No logic.

use std::{sync::Arc, time::Duration};

use hsm_protocol::{DeviceKey, Mgf1Hash};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};
use zeroize::Zeroizing;

use super::{
    exports::{ExportPermit, Exports},
    gate::{Call, Gate},
    peer::Right,
    wire,
};
use crate::pin::Pins;
use domain::{caller::Caller, control::Scope};
use proto::{self, audit_service_server, card_service_server, control_service_server, pin_service_server};
use store::Store;

/// The number of audit entries that one read of the store returns.
const AUDIT_PAGE_ENTRIES: usize = 256;
/// The most entries that wait for a client that does not read. A client that loses its role still gets them.
const WAITING_ENTRIES_MAX: usize = 16;
/// The interval at which a call that follows the chain looks for entries.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);

/// The services over one set of use cases.
#[derive(Clone)]
pub(super) struct Services {
    pins: Arc<Pins>,
    store: Arc<dyn Store>,
    gate: Gate,
    exports: Exports,
    /// Its sender is dropped when the engine stops.
    follows: watch::Receiver<()>,
    /// The note of the newest checkpoint; `None` before the first one.
    checkpoint: watch::Receiver<Option<Arc<str>>>,
    /// The tzpks that were encrypted with MGF1-SHA-1.
    mgf1_sha1: Counter,
}

impl Services {
    pub(super) fn new(
        pins: Arc<Pins>,
        store: Arc<dyn Store>,
        gate: Gate,
        exports: Exports,
        follows: watch::Receiver<()>,
        checkpoint: watch::Receiver<Option<Arc<str>>>,
        mgf1_sha1: Counter,
    ) -> Self {
        Self { pins, store, gate, exports, follows, checkpoint, mgf1_sha1 }
    }

    /// Counts a tzpk that was encrypted for a device.
    fn count(&self, device: &DeviceKey) {
        if device.mgf1() == Mgf1Hash::Sha1 {
            self.mgf1_sha1.inc();
        }
    }

    async fn caller(&self, call: &Call, tenant: &str, audit_user: &str) -> Result<Caller, Status> {
        let tenant = wire::tenant(tenant)?;
        self.gate.admit_tenant(call, &tenant).await?;
        let audit_user = wire::audit_user(audit_user)?;
        Ok(Caller { peer: Arc::clone(&call.peer.name), tenant, audit_user, request: call.id })
    }
}

#[async_trait]
impl control_service_server::ControlService for Services {
    async fn open_control(
        &self,
        request: Request<proto::OpenControlRequest>,
    ) -> Result<Response<proto::OpenControlResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let scope = wire::scope(message.scope)?;
        let rights: &[Right] = match scope {
            Scope::SetPin => &[Right::SetPins],
            Scope::ViewPin => &[Right::ViewPins],
        };
        self.gate.admit_rights(call, rights, &caller.tenant).await?;
        let device_key = wire::thumbprint(&message.device_key_sha256)?;

        let control = call.run(self.pins.open_control(&caller, plastic, scope, device_key)).await?;
        Ok(Response::new(proto::OpenControlResponse {
            control_id: control.id.to_string(),
            expire_time: Some(audit_wire::timestamp(self.store.wall_time(control.expires_at))),
            remaining_duration: control.remaining(self.store.now()).try_into().ok(),
        }))
    }
}

#[async_trait]
impl pin_service_server::PinService for Services {
    async fn issue_tzpk(
        &self,
        request: Request<proto::IssueTzpkRequest>,
    ) -> Result<Response<proto::IssueTzpkResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let control = wire::control_id(&message.control_id)?;
        let device = wire::device_key(&message.device_public_key, message.oaep_mgf1)?;

        let issued = call.run(self.pins.issue_tzpk(&caller, control, &device)).await?;
        self.count(&device);
        Ok(Response::new(proto::IssueTzpkResponse {
            encrypted_tzpk: issued.encrypted_tzpk,
            kcv: issued.check_value,
            expire_time: Some(audit_wire::timestamp(issued.expires_at)),
        }))
    }

    async fn set_pin(&self, request: Request<proto::SetPinRequest>) -> Result<Response<proto::SetPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let control = wire::control_id(&message.control_id)?;
        let block = wire::pin_block(&message.pin_block)?;

        call.run(self.pins.set_pin(&caller, control, &block)).await?;
        Ok(Response::new(proto::SetPinResponse {}))
    }

    async fn view_pin(
        &self,
        request: Request<proto::ViewPinRequest>,
    ) -> Result<Response<proto::ViewPinResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let control = wire::control_id(&message.control_id)?;
        let device = wire::device_key(&message.device_public_key, message.oaep_mgf1)?;

        let viewed = call.run(self.pins.view_pin(&caller, control, &device)).await?;
        self.count(&device);
        Ok(Response::new(proto::ViewPinResponse {
            encrypted_tzpk: viewed.encrypted_tzpk,
            pin_block: viewed.pin_block.as_bytes().to_vec(),
            kcv: viewed.check_value,
        }))
    }
}

#[async_trait]
impl card_service_server::CardService for Services {
    async fn register_card(
        &self,
        request: Request<proto::RegisterCardRequest>,
    ) -> Result<Response<proto::RegisterCardResponse>, Status> {
        let (_, extensions, mut message) = request.into_parts();
        let call = Call::of(&extensions)?;
        // Zeroizing wipes the number on every return.
        let number = Zeroizing::new(std::mem::take(&mut message.account_number));
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;
        let number = wire::account_number(&number)?;

        let card = call.run(self.pins.register_card(&caller, plastic, number)).await?;
        Ok(Response::new(proto::RegisterCardResponse {
            pin_status: wire::pin_status(&card),
            masked_account_number: wire::masked(card.account.as_ref()),
        }))
    }

    async fn find_card(
        &self,
        request: Request<proto::FindCardRequest>,
    ) -> Result<Response<proto::FindCardResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;

        let card = call.run(self.pins.find_card(&caller, plastic)).await?;
        Ok(Response::new(proto::FindCardResponse {
            pin_status: wire::pin_status(&card),
            masked_account_number: wire::masked(card.account.as_ref()),
            pin_set_time: card.pin_set_at.map(audit_wire::timestamp),
        }))
    }
}

#[async_trait]
impl audit_service_server::AuditService for Services {
    type ExportAuditStream = ReceiverStream<Result<proto::ExportAuditResponse, Status>>;

    /// Streams the entries that the caller may read: see [`Role::Auditor`](super::peer::Role::Auditor).
    async fn export_audit(
        &self,
        request: Request<proto::ExportAuditRequest>,
    ) -> Result<Response<Self::ExportAuditStream>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?.clone();
        let permit = self.exports.admit(&call.peer.name).ok_or_else(|| call.refused(wire::exports_busy()))?;
        let end = self.store.checkpoint().await.map_err(|error| call.failed(&error))?.sequence;
        let from = match message.newest_count {
            0 => message.start_sequence.max(1),
            newest => end.saturating_sub(newest.into()).saturating_add(1),
        };
        let (entries, stream) = mpsc::channel(WAITING_ENTRIES_MAX);
        let export = Export { store: Arc::clone(&self.store), call, entries, _permit: permit };
        let follows = message.continuous.then(|| self.follows.clone());
        self.exports.runtime.spawn(export.run(from, end, follows));
        let mut response = Response::new(ReceiverStream::new(stream));
        response.metadata_mut().insert(proto::START_SEQUENCE_KEY, from.into());
        Ok(response)
    }

    async fn get_checkpoint(
        &self,
        request: Request<proto::GetCheckpointRequest>,
    ) -> Result<Response<proto::GetCheckpointResponse>, Status> {
        let call = Call::of(request.extensions())?;
        let note = self.checkpoint.borrow().clone();
        let note = note.ok_or_else(|| wire::with_request_id(wire::checkpoint_not_signed(), call.id))?;
        Ok(Response::new(proto::GetCheckpointResponse { signed_note: note.to_string() }))
    }

    async fn record_rejected_credentials(
        &self,
        request: Request<proto::RecordRejectedCredentialsRequest>,
    ) -> Result<Response<proto::RecordRejectedCredentialsResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let network = wire::client_network(&message.client_network)?;
        self.gate.note_rejected_credentials(call, network, message.unrecorded_count).await?;
        Ok(Response::new(proto::RecordRejectedCredentialsResponse {}))
    }
}

/// A running call of `ExportAudit`.
struct Export {
    store: Arc<dyn Store>,
    call: Call,
    entries: mpsc::Sender<Result<proto::ExportAuditResponse, Status>>,
    _permit: ExportPermit,
}

impl Export {
    /// Sends the entries `from` to `end`; with `follows`, also those after `end`, until the engine drops its sender.
    async fn run(self, mut from: u64, mut end: u64, mut follows: Option<watch::Receiver<()>>) {
        loop {
            match self.send(from, end).await {
                Some(next) => from = next,
                None => return,
            }
            let Some(follows) = &mut follows else { return };
            while end < from {
                tokio::select! {
                    _ = follows.changed() => {
                        let _ = self.entries.send(Err(wire::engine_stops())).await;
                        return;
                    }
                    () = self.entries.closed() => return,
                    () = tokio::time::sleep(FOLLOW_EVERY) => {}
                }
                end = match self.store.checkpoint().await {
                    Ok(checkpoint) => checkpoint.sequence,
                    Err(error) => {
                        let _ = self.entries.send(Err(self.call.failed(&error))).await;
                        return;
                    }
                };
            }
        }
    }

    /// Sends the entries `from` to `end`. Returns the number after the last one; `None` where the call has ended.
    async fn send(&self, mut from: u64, end: u64) -> Option<u64> {
        while from <= end {
            let page = match self.store.audit(from, AUDIT_PAGE_ENTRIES).await {
                Ok(page) => page,
                Err(error) => {
                    let _ = self.entries.send(Err(self.call.failed(&error))).await;
                    return None;
                }
            };
            // A page may have no entry for this reader; then no send would fail after the reader left.
            if self.entries.is_closed() {
                return None;
            }
            let last = page.last()?.sequence.min(end);
            // Reading the store does not yield: let the other tasks of this thread run between two pages.
            tokio::task::yield_now().await;
            for entry in page.iter().take_while(|entry| entry.sequence <= end) {
                let message = match self.call.peer_now() {
                    Ok(peer) if !peer.may_read(entry.event.tenant.as_ref()) => continue,
                    Ok(_) => Ok(proto::ExportAuditResponse { entry: Some(audit_wire::entry_message(entry)) }),
                    Err(status) => Err(status),
                };
                let is_last = message.is_err();
                if self.entries.send(message).await.is_err() || is_last {
                    return None;
                }
            }
            from = last.saturating_add(1);
        }
        Some(from)
    }
}
