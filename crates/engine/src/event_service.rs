//! The gRPC service of events: a projection of the audit chain by tenant.

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{
    audit_stream::{AuditStream, Projection},
    gate::Call,
    peer::AdmittedPeer,
    service::Services,
    wire,
};
use audit::entry::{Action, Body, CardEvent, Entry, Outcome};
use domain::card::Tenant;
use proto::{FollowEventsRequest, FollowEventsResponse, PinEvent, PinEventKind, event_service_server};

#[async_trait]
impl event_service_server::EventService for Services {
    type FollowEventsStream = ReceiverStream<Result<FollowEventsResponse, Status>>;

    async fn follow_events(
        &self,
        request: Request<FollowEventsRequest>,
    ) -> Result<Response<Self::FollowEventsStream>, Status> {
        let (_, extensions, message) = request.into_parts();
        let call = Call::of(&extensions)?.clone();
        let tenant = self.caller(&call, &message.tenant, &message.audit_user).await?.tenant;
        let permit = self.streaming.events.admit(&call.peer.name).ok_or_else(|| call.refused(wire::streams_busy()))?;
        let archived = self.store.archived().await.map_err(|error| call.failed(&error))?;
        let oldest = archived.map_or(1, |archived| archived.end().sequence.saturating_add(1));
        let from = match message.start_sequence {
            0 => oldest,
            start if start < oldest => return Err(wire::with_request_id(wire::events_archived(oldest), call.id)),
            start => start,
        };
        let end = self.store.checkpoint().await.map_err(|error| call.failed(&error))?.sequence;
        let (follow, stream) = AuditStream::new(Arc::clone(&self.store), call, TenantEvents(tenant), permit);
        self.streaming.runtime.spawn(follow.run(from, end, Some(self.follows.clone())));
        Ok(Response::new(stream))
    }
}

/// The events of a tenant.
struct TenantEvents(Tenant);

impl Projection for TenantEvents {
    type Message = FollowEventsResponse;

    fn tenant(&self) -> Option<&Tenant> {
        Some(&self.0)
    }

    fn message(&self, entry: &Entry, _caller: &AdmittedPeer) -> Option<Self::Message> {
        let is_of_tenant = entry.event.tenant == Some(self.0);
        let event = if is_of_tenant { pin_event(entry) } else { None };
        event.map(|event| FollowEventsResponse { sequence: entry.sequence, event: Some(event) })
    }

    fn progress(&self, sequence: u64) -> Option<Self::Message> {
        Some(FollowEventsResponse { sequence, event: None })
    }
}

/// The event of an entry; `None` for an entry that changes nothing about a PIN.
fn pin_event(entry: &Entry) -> Option<PinEvent> {
    let event = &entry.event;
    let Body::Card(card) = &event.body else { return None };
    Some(PinEvent {
        kind: kind(card, event.outcome)?.into(),
        event_time: Some(audit_wire::timestamp(event.at)),
        card_reference: card.reference.as_bytes().to_vec(),
        masked_card: card.card.to_string(),
        request_id: event.request.map(|request| request.to_string()).unwrap_or_default(),
        audit_user: event.audit_user.to_string(),
        key: card.key.as_deref().unwrap_or_default().to_owned(),
        remaining_try_count: card.tried.map(|tried| tried.tries_left).unwrap_or_default(),
    })
}

fn kind(card: &CardEvent, outcome: Outcome) -> Option<PinEventKind> {
    let has_no_try_left = card.tried.is_some_and(|tried| tried.tries_left == 0);
    match (outcome, card.action) {
        (Outcome::WrongPin | Outcome::Malformed, _) if has_no_try_left => Some(PinEventKind::Locked),
        // No event names the lock of a card whose last try had no outcome, or of a salvaged store, before this refusal.
        (Outcome::PinLocked, _) => Some(PinEventKind::Locked),
        (Outcome::WrongPin, _) => Some(PinEventKind::VerifiedWrong),
        (Outcome::Done, action) => match action {
            Action::SetPin => Some(PinEventKind::Set),
            Action::SetPinByZone => Some(PinEventKind::SetFromZone),
            Action::ViewPin => Some(PinEventKind::Viewed),
            Action::GetPinByZone => Some(PinEventKind::GivenToZone),
            Action::ChangePin => Some(PinEventKind::Changed),
            Action::ResetTries => Some(PinEventKind::TriesReset),
            Action::GeneratePin => Some(PinEventKind::Generated),
            Action::ExportPin => Some(PinEventKind::Exported),
            Action::ChangeAccount => Some(PinEventKind::AccountChanged),
            Action::TransferPin => Some(PinEventKind::Transferred),
            Action::RegisterCard
            | Action::OpenControl
            | Action::IssueTzpk
            | Action::StartPage
            | Action::ConfirmSetPin
            | Action::FindCard
            | Action::ReserveTry
            | Action::VerifyPin
            | Action::DeriveValue
            | Action::SealAccount => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use audit::{card_reference::CardReference, entry::TryStamp};

    use super::*;

    fn kind_of(action: Action, outcome: Outcome, tries_left: Option<u32>) -> Option<&'static str> {
        let card = CardEvent::new(action, "**01".into(), CardReference::from_bytes([0; 16]));
        let tried = tries_left.map(|tries_left| TryStamp { number: 3, tries_left });
        kind(&CardEvent { tried, ..card }, outcome).map(|kind| kind.as_str_name())
    }

    #[test]
    fn the_last_try_locks_by_a_wrong_pin_or_a_malformed_block() {
        let locked = Some(PinEventKind::Locked.as_str_name());
        for outcome in [Outcome::WrongPin, Outcome::Malformed] {
            assert_eq!(kind_of(Action::VerifyPin, outcome, Some(0)), locked);
            assert_eq!(kind_of(Action::ChangePin, outcome, Some(0)), locked);
        }
        assert_eq!(kind_of(Action::VerifyPin, Outcome::PinLocked, None), locked, "a refusal");
        assert_eq!(kind_of(Action::ChangePin, Outcome::PinLocked, None), locked, "a refusal");
        let wrong = Some(PinEventKind::VerifiedWrong.as_str_name());
        assert_eq!(kind_of(Action::VerifyPin, Outcome::WrongPin, Some(1)), wrong);
        assert_eq!(kind_of(Action::VerifyPin, Outcome::Malformed, Some(1)), None);
        assert_eq!(kind_of(Action::SetPin, Outcome::Malformed, None), None, "a block under a control uses no try");
        // The right PIN on the last try, and the reservation before it.
        assert_eq!(kind_of(Action::ReserveTry, Outcome::Done, Some(0)), None);
        assert_eq!(kind_of(Action::VerifyPin, Outcome::Done, Some(3)), None);
    }
}
