//! Admits each call by [`METHOD_TABLE`](super::method_table::METHOD_TABLE) before its service reads the message, and gives
//! the call its id. A denied call is logged and audited.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures::TryFutureExt;
use http::{HeaderMap, Request, Response};
use tonic::{
    Extensions, Status,
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};

use super::{
    call_rules::AskedDeadline,
    method_table::{CoveredTenants, MethodAccess, access_to},
    peer::{AdmittedPeer, Forbidden, Peers, Right},
    wire::{self, ToStatus},
};
use crate::call_limits::CallAdmission;
use crate::pin::Pins;
use audit::entry::{Body as EventBody, CallDenial, Method};
use clock::{
    deadline::{Deadline, under},
    minute_limit::MinuteLimits,
};
use domain::{
    caller::Caller,
    card::Tenant,
    request_id::{RequestId, RequestIdError},
};
use proto::REQUEST_ID_KEY;

/// The most log lines and audit entries of one peer's denied calls within a minute, so that a peer without rights cannot fill
/// the disk. The certificates that are not configured share one limit.
const DENIALS_PER_MINUTE_MAX: u64 = 60;
/// The most audit entries of rejected credentials within a minute, of one edge. An edge reports as many.
const REJECTED_CREDENTIALS_PER_MINUTE_MAX: u64 = 60;

/// An admitted call. The gate puts it into the extensions of the request.
#[derive(Clone)]
pub(super) struct Call {
    /// The id of the request, from the caller or from the gate.
    pub(super) id: RequestId,
    /// The caller, which has the right for the method.
    pub(super) peer: AdmittedPeer,
    access: &'static MethodAccess,
    deadline: Option<Deadline>,
    gate: Gate,
}

impl Call {
    /// The call of a request behind the gate, by the extensions of the request.
    ///
    /// # Errors
    /// The request did not pass a gate: its service is not guarded.
    pub(super) fn of(extensions: &Extensions) -> Result<&Self, Status> {
        extensions.get().ok_or_else(wire::not_admitted)
    }

    /// Runs the use case of the call under the deadline of its client; without a deadline, the timeout of the server applies.
    ///
    /// # Errors
    /// The status of the use case's error, which is logged.
    pub(super) fn run<T, E: ToStatus>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, Status>> {
        self.serve(work).map_err(|error| self.failed(&error))
    }

    /// Runs a part of the call under the deadline of its client.
    pub(super) fn serve<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        under(self.deadline, work)
    }

    /// The caller by the present configuration, which may name the tenant of the stream. A stream asks before each item or
    /// message, because a reload may remove the caller.
    ///
    /// # Errors
    /// The status for a caller that the method does not admit any more. The denial is logged and audited.
    pub(super) async fn peer_now(&self, tenant: Option<&Tenant>) -> Result<AdmittedPeer, Status> {
        match self.admitted_now(tenant) {
            Ok(peer) => Ok(peer),
            Err(forbidden) => {
                let denial = Denial { id: self.id, access: self.access, forbidden, tenant: tenant.copied() };
                Err(self.gate.deny(denial).await)
            }
        }
    }

    fn admitted_now(&self, tenant: Option<&Tenant>) -> Result<AdmittedPeer, Forbidden> {
        let peer = self.access.covers(self.gate.peers.admit_again(&self.peer, self.access.rights)?)?;
        tenant.map_or(Ok(()), |tenant| peer.for_tenant(tenant)).map(|()| peer)
    }

    /// Logs the error of an item in a stream, where the cause is in the engine. The outcome of the item has every error.
    pub(super) fn log_item(&self, error: &impl ToStatus) {
        if matches!(error.to_status().code(), tonic::Code::Internal | tonic::Code::Unavailable)
            && let Some(suppressed) = self.gate.limits.lines.admit()
        {
            let (method, request) = (self.access.path, self.id);
            tracing::error!(%request, method, peer = &*self.peer.name, %error, suppressed, "an item of a stream failed");
        }
    }

    /// Logs the error of the call with the id of the request. Returns its status with the id.
    pub(super) fn failed(&self, error: &impl ToStatus) -> Status {
        let (status, method, request) = (error.to_status(), self.access.path, self.id);
        if status.code() == tonic::Code::ResourceExhausted {
            return self.refused(status);
        }
        if matches!(status.code(), tonic::Code::Internal | tonic::Code::Unavailable) {
            tracing::error!(%request, method, peer = &*self.peer.name, %error, "a call failed");
        } else {
            tracing::info!(%request, method, peer = &*self.peer.name, %error, "a call was rejected");
        }
        wire::with_request_id(status, request)
    }

    /// Counts a call that a limit refused, and logs it within the limit on such lines. Returns its status with the id.
    pub(super) fn refused(&self, status: Status) -> Status {
        let (method, request) = (self.access.path, self.id);
        if let Some(reason) = wire::reason_of(&status) {
            self.gate.limits.refused.count(reason);
        }
        if let Some(suppressed) = self.gate.limits.lines.admit() {
            let (peer, error) = (&*self.peer.name, status.message());
            tracing::info!(%request, method, peer, error, suppressed, "a limit refused a call");
        }
        wire::with_request_id(status, request)
    }
}

/// Admits calls. The clones share the limit on entries.
#[derive(Clone)]
pub(super) struct Gate {
    peers: Peers,
    pins: Arc<Pins>,
    /// By the name of the peer; `None` for those that are not configured.
    denials: Arc<MinuteLimits<Option<Arc<str>>>>,
    rejected_credentials: Arc<MinuteLimits<Arc<str>>>,
    limits: Arc<CallAdmission>,
}

/// A denied call.
pub(super) struct Denial {
    id: RequestId,
    access: &'static MethodAccess,
    forbidden: Forbidden,
    tenant: Option<Tenant>,
}

/// A call that the gate does not pass to its service.
enum NotAdmitted {
    UnknownMethod,
    RequestId(RequestIdError),
    Denied(Denial),
}

impl MethodAccess {
    /// The peer, where the method may cover its tenants.
    fn covers(&self, peer: AdmittedPeer) -> Result<AdmittedPeer, Forbidden> {
        match self.tenants {
            CoveredTenants::All => peer.for_all_tenants().map(|()| peer),
            CoveredTenants::Named | CoveredTenants::OfCaller => Ok(peer),
        }
    }
}

impl Gate {
    /// A gate for these peers. The audit events of denied calls go through `pins`.
    pub(super) fn new(peers: Peers, pins: Arc<Pins>, limits: Arc<CallAdmission>) -> Self {
        let denials = Arc::new(MinuteLimits::new(DENIALS_PER_MINUTE_MAX));
        let rejected_credentials = Arc::new(MinuteLimits::new(REJECTED_CREDENTIALS_PER_MINUTE_MAX));
        Self { peers, pins, denials, rejected_credentials, limits }
    }

    /// The same gate, whose audit events go through the use cases of another thread.
    pub(super) fn through(&self, pins: Arc<Pins>) -> Self {
        Self { pins, ..self.clone() }
    }

    /// The limits on calls.
    pub(super) fn limits(&self) -> Arc<CallAdmission> {
        Arc::clone(&self.limits)
    }

    /// A service that gets admitted calls only.
    pub(super) fn guard<S>(&self, service: S) -> Guarded<S> {
        Guarded { service, gate: self.clone() }
    }

    /// Admits a call of the method with this path, by the extensions of its connection.
    fn admit(
        &self,
        path: &str,
        id: Result<RequestId, RequestIdError>,
        connection: &Extensions,
        deadline: Option<Deadline>,
    ) -> Result<Call, NotAdmitted> {
        let access = access_to(path).ok_or(NotAdmitted::UnknownMethod)?;
        let admitted = self.peers.admit(connection, access.rights).and_then(|peer| access.covers(peer));
        // The right comes first: a peer without the right learns nothing about the format of a request.
        match (admitted, id) {
            (Err(forbidden), id) => {
                let id = id.unwrap_or_else(|_| RequestId::random());
                Err(NotAdmitted::Denied(Denial { id, access, forbidden, tenant: None }))
            }
            (Ok(_), Err(error)) => Err(NotAdmitted::RequestId(error)),
            (Ok(peer), Ok(id)) => Ok(Call { id, peer, access, deadline, gate: self.clone() }),
        }
    }

    /// Admits a call of a stream that carries calls of several methods, by the extensions of the stream's connection.
    ///
    /// # Errors
    /// The status of a denied call, which is logged and audited.
    pub(super) async fn admit_in_stream(
        &self,
        path: &str,
        id: RequestId,
        connection: &Extensions,
        deadline: Option<Deadline>,
    ) -> Result<Call, Status> {
        match self.admit(path, Ok(id), connection, deadline) {
            Ok(call) => Ok(call),
            Err(refused) => Err(self.refuse(refused).await),
        }
    }

    /// The status of a call that is not admitted. A denial is logged and audited.
    async fn refuse(&self, refused: NotAdmitted) -> Status {
        match refused {
            NotAdmitted::UnknownMethod => wire::unknown_method(),
            NotAdmitted::RequestId(error) => wire::request_id(&error),
            NotAdmitted::Denied(denial) => self.deny(denial).await,
        }
    }

    /// Checks that the caller of an admitted call may name this tenant, and counts the call.
    ///
    /// # Errors
    /// The status of the denied call, which is logged and audited, or of a tenant beyond its rate.
    pub(super) async fn admit_tenant(&self, call: &Call, tenant: &Tenant) -> Result<(), Status> {
        self.admit_if(call, call.peer.for_tenant(tenant), tenant).await?;
        self.limits.admit_tenant(tenant).map_err(|rate| call.refused(wire::tenant_rate(&rate)))
    }

    /// Checks that the caller of an admitted call for this tenant has the right for what the request asks.
    ///
    /// # Errors
    /// The status of the denied call, which is logged and audited.
    pub(super) async fn admit_rights(
        &self,
        call: &Call,
        rights: &'static [Right],
        tenant: &Tenant,
    ) -> Result<(), Status> {
        self.admit_if(call, call.peer.for_rights(rights), tenant).await
    }

    async fn admit_if(&self, call: &Call, admitted: Result<(), Forbidden>, tenant: &Tenant) -> Result<(), Status> {
        match admitted {
            Ok(()) => Ok(()),
            Err(forbidden) => {
                let denial = Denial { id: call.id, access: call.access, forbidden, tenant: Some(*tenant) };
                Err(self.deny(denial).await)
            }
        }
    }

    /// Audits a request whose credentials the caller, an edge, rejected. `unrecorded` is the number of such requests that the
    /// edge did not report.
    ///
    /// # Errors
    /// The status of a failed store.
    pub(super) async fn note_rejected_credentials(
        &self,
        call: &Call,
        network: IpAddr,
        unrecorded: u64,
    ) -> Result<(), Status> {
        let edge = &call.peer.name;
        let Some(suppressed) = self.rejected_credentials.admit(edge) else {
            self.rejected_credentials.suppress(edge, unrecorded);
            return Ok(());
        };
        let unrecorded = unrecorded.saturating_add(suppressed);
        let body = EventBody::CredentialsRejected { network, unrecorded };
        let recorded = call.run(self.pins.note_denial(Arc::clone(edge), None, call.id, body)).await;
        // The edge counts the request that it reported.
        recorded.inspect_err(|_| self.rejected_credentials.suppress(edge, suppressed))
    }

    /// Audits a request that the caller, an edge, denied its client. `unrecorded` is the number of such requests that the edge
    /// did not report.
    ///
    /// # Errors
    /// The status of a failed store.
    pub(super) async fn note_client_denial(
        &self,
        call: &Call,
        caller: &Caller,
        method: Method,
        unrecorded: u64,
    ) -> Result<(), Status> {
        let edge = Some(Arc::clone(&caller.peer));
        let Some(suppressed) = self.denials.admit(&edge) else {
            self.denials.suppress(&edge, unrecorded);
            return Ok(());
        };
        let unrecorded = unrecorded.saturating_add(suppressed);
        let body = EventBody::CallDenied { method, reason: CallDenial::Client, unrecorded };
        let recorded = call.run(self.pins.note_client_denial(caller, body)).await;
        // The edge counts the request that it reported.
        recorded.inspect_err(|_| self.denials.suppress(&edge, suppressed))
    }

    /// Logs and audits a denied call. The answer does not depend on the store: the call is denied where the event cannot be
    /// recorded, too.
    async fn deny(&self, denial: Denial) -> Status {
        let Denial { id: request, access, forbidden, tenant } = denial;
        let limited = forbidden.configured_peer();
        if let Some(unrecorded) = self.denials.admit(&limited) {
            tracing::warn!(%request, method = access.path, reason = %forbidden, unrecorded, "a call was denied");
            let body = EventBody::CallDenied { method: access.method, reason: forbidden.reason(), unrecorded };
            if let Err(error) = self.pins.note_denial(forbidden.peer_name(), tenant, request, body).await {
                self.denials.suppress(&limited, unrecorded.saturating_add(1));
                tracing::error!(%request, %error, "the audit event of a denied call was not recorded");
            }
        }
        wire::with_request_id(wire::forbidden(&forbidden), request)
    }
}

/// The id in the metadata of a request; a fresh one without metadata.
fn request_id(headers: &HeaderMap) -> Result<RequestId, RequestIdError> {
    let mut values = headers.get_all(REQUEST_ID_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(RequestId::random()),
        (Some(value), None) => RequestId::parse(value.to_str().map_err(|_| RequestIdError)?),
        (Some(_), Some(_)) => Err(RequestIdError),
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    service: S,
    gate: Gate,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<
            Request<B>,
            Response = Response<Body>,
            Error = Infallible,
            Future = BoxFuture<Response<Body>, Infallible>,
        >,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = request_id(request.headers());
        let deadline = request.extensions().get().and_then(|AskedDeadline(deadline)| *deadline);
        match self.gate.admit(request.uri().path(), id, request.extensions(), deadline) {
            Ok(call) => {
                request.extensions_mut().insert(call);
                self.service.call(request)
            }
            Err(refused) => {
                let gate = self.gate.clone();
                Box::pin(async move { Ok(gate.refuse(refused).await.into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_id_of_its_metadata_or_a_fresh_one() {
        let id = RequestId::random();
        let with = |values: &[&str]| {
            let values = values.iter().map(|value| (REQUEST_ID_KEY.parse().unwrap(), value.parse().unwrap()));
            request_id(&values.collect::<HeaderMap>())
        };
        assert_eq!(with(&[&id.to_string()]), Ok(id));
        assert_ne!(with(&[]).unwrap(), with(&[]).unwrap());
        for refused in [&["1"][..], &[""], &["\u{e9}"], &[&id.to_string(), &id.to_string()]] {
            assert_eq!(with(refused), Err(RequestIdError), "{refused:?}");
        }
    }
}
