//! The gRPC services of controls, cards and audit: decode the message, run the use case, encode the reply. No logic.

use std::sync::Arc;

use hsm_protocol::{DeviceKey, Mgf1Hash};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};
use zeroize::Zeroizing;

use super::{
    audit_stream::{AuditStream, Projection},
    gate::{Call, Gate},
    peer::{AdmittedPeer, Right},
    stream_places::Streaming,
    wire,
};
use crate::pin::Pins;
use audit::entry::Entry;
use domain::{caller::Caller, card::Tenant, control::Scope};
use proto::{self, audit_service_server, card_service_server, control_service_server};
use store::Store;

/// The services over one set of use cases.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) pins: Arc<Pins>,
    pub(super) store: Arc<dyn Store>,
    pub(super) gate: Gate,
    pub(super) streaming: Streaming,
    /// Its sender is dropped when the engine stops.
    pub(super) follows: watch::Receiver<()>,
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
        streaming: Streaming,
        follows: watch::Receiver<()>,
        checkpoint: watch::Receiver<Option<Arc<str>>>,
        mgf1_sha1: Counter,
    ) -> Self {
        Self { pins, store, gate, streaming, follows, checkpoint, mgf1_sha1 }
    }

    /// Counts a tzpk that was encrypted for a device.
    pub(super) fn count(&self, device: &DeviceKey) {
        if device.mgf1() == Mgf1Hash::Sha1 {
            self.mgf1_sha1.inc();
        }
    }

    pub(super) async fn caller(&self, call: &Call, tenant: &str, audit_user: &str) -> Result<Caller, Status> {
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
        self.gate.admit_rights(call, rights_for(scope), &caller.tenant).await?;
        let device_key = wire::thumbprint(&message.device_key_sha256)?;
        let page_client = Some(&*message.page_client).filter(|name| !name.is_empty());
        let page_client = page_client.map(wire::page_client).transpose()?;

        let control = call.run(self.pins.open_control(&caller, plastic, scope, device_key, page_client)).await?;
        Ok(Response::new(proto::OpenControlResponse {
            control_id: control.id.to_string(),
            expire_time: Some(audit_wire::timestamp(self.store.wall_time(control.expires_at))),
            remaining_duration: control.remaining(self.store.now()).try_into().ok(),
        }))
    }

    async fn start_page(
        &self,
        request: Request<proto::StartPageRequest>,
    ) -> Result<Response<proto::StartPageResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let id = wire::control_id(&message.control_id)?;
        let (client, page) = (wire::page_client(&message.page_client)?, wire::page_id(&message.page_id)?);
        let mut scopes = vec![Scope::SetPin, Scope::ViewPin];
        scopes.retain(|scope| call.peer.for_rights(rights_for(*scope)).is_ok());

        let control = call.run(self.pins.start_page(&caller, id, client, page, &scopes)).await?;
        let digits = self.pins.pin_digits();
        Ok(Response::new(proto::StartPageResponse {
            scope: wire::scope_message(control.scope).into(),
            expire_time: Some(audit_wire::timestamp(self.store.wall_time(control.expires_at))),
            remaining_duration: control.remaining(self.store.now()).try_into().ok(),
            min_digit_count: digits.min().into(),
            max_digit_count: digits.max().into(),
        }))
    }
}

/// The rights of which a caller needs one for a control of this scope.
fn rights_for(scope: Scope) -> &'static [Right] {
    match scope {
        Scope::SetPin => &[Right::SetPins],
        Scope::ViewPin => &[Right::ViewPins],
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
            card_reference: self.pins.card_reference(&caller, plastic).as_bytes().to_vec(),
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

        let (card, tries) = call.run(self.pins.find_card(&caller, plastic)).await?;
        Ok(Response::new(proto::FindCardResponse {
            pin_status: wire::pin_status(&card),
            masked_account_number: wire::masked(card.account.as_ref()),
            pin_set_time: card.pin_set_at.map(audit_wire::timestamp),
            card_reference: self.pins.card_reference(&caller, plastic).as_bytes().to_vec(),
            reserved_try_count: tries.reserved,
            used_try_count: tries.used(),
        }))
    }

    async fn reset_tries(
        &self,
        request: Request<proto::ResetTriesRequest>,
    ) -> Result<Response<proto::ResetTriesResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let plastic = wire::plastic_id(&message.plastic_id)?;

        let tries = call.run(self.pins.reset_tries(&caller, plastic, message.reserved_try_count)).await?;
        Ok(Response::new(proto::ResetTriesResponse { used_try_count: tries.used() }))
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
        let permit = self.streaming.exports.admit(&call.peer.name).ok_or_else(|| call.refused(wire::exports_busy()))?;
        let end = self.store.checkpoint().await.map_err(|error| call.failed(&error))?.sequence;
        let archived = self.store.archived().await.map_err(|error| call.failed(&error))?;
        let oldest = archived.map_or(1, |archived| archived.end().sequence.saturating_add(1));
        let from = match message.newest_count {
            0 => message.start_sequence,
            newest => end.saturating_sub(newest.into()).saturating_add(1),
        };
        let from = from.max(oldest);
        let (export, stream) = AuditStream::new(Arc::clone(&self.store), call, ReadableEntries, permit);
        let follows = message.continuous.then(|| self.follows.clone());
        self.streaming.runtime.spawn(export.run(from, end, follows));
        let mut response = Response::new(stream);
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

    async fn record_client_denial(
        &self,
        request: Request<proto::RecordClientDenialRequest>,
    ) -> Result<Response<proto::RecordClientDenialResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?;
        let caller = self.caller(call, &message.tenant, &message.audit_user).await?;
        let method = wire::method(message.method)?;
        self.gate.note_client_denial(call, &caller, method, message.unrecorded_count).await?;
        Ok(Response::new(proto::RecordClientDenialResponse {}))
    }
}

/// The entries that a reader may read: see [`Role::Auditor`](super::peer::Role::Auditor).
struct ReadableEntries;

impl Projection for ReadableEntries {
    type Message = proto::ExportAuditResponse;

    fn tenant(&self) -> Option<&Tenant> {
        None
    }

    fn message(&self, entry: &Entry, caller: &AdmittedPeer) -> Option<Self::Message> {
        let is_readable = caller.may_read(entry.event.tenant.as_ref());
        is_readable.then(|| proto::ExportAuditResponse { entry: Some(audit_wire::entry_message(entry)) })
    }

    fn progress(&self, _sequence: u64) -> Option<Self::Message> {
        None
    }
}
