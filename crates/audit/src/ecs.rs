//! An entry in the field names of the Elastic Common Schema (ECS 8.17), for a log collector. It does not verify: the chain's
//! own form is [`Entry::to_json`].

use serde_json::{Value, json};

use super::entry::{Action, Body, CardEvent, Entry, Outcome, time_text};

/// The version of the schema.
const ECS_VERSION: &str = "8.17.0";

/// One line of JSON. Members of `pinseal` have no field in the schema.
pub fn to_ecs(entry: &Entry) -> String {
    let event = &entry.event;
    let (category, kind) = category(&event.body);
    let body = serde_json::to_value(&event.body).unwrap_or_default();
    // A request about a card is named after its action, any other event after its type.
    let action = body.get("action").or_else(|| body.get("type")).cloned().unwrap_or_default();
    let mut json = json!({
        "@timestamp": time_text(event.at),
        "ecs": { "version": ECS_VERSION },
        "event": {
            "action": action,
            "category": [category],
            "dataset": "pinseal.audit",
            "hash": base16ct::lower::encode_string(&entry.hash),
            "kind": "event",
            "module": "pinseal",
            "outcome": if event.outcome == Outcome::Done { "success" } else { "failure" },
            "sequence": entry.sequence,
            "type": [kind],
        },
        "client": { "user": { "name": &*event.caller } },
        "user": { "name": &*event.audit_user },
        "pinseal": {
            "boundary": &*event.stamp,
            "event": body,
            "outcome": event.outcome,
            "previous": base16ct::lower::encode_string(&entry.previous),
        },
    });
    if let (Some(members), Some(tenant)) = (json.as_object_mut(), &event.tenant) {
        members.insert("organization".to_owned(), json!({ "id": tenant.as_str() }));
    }
    if let (Some(members), Some(request)) = (json.as_object_mut(), &event.request) {
        members.insert("http".to_owned(), json!({ "request": { "id": request.to_string() } }));
    }
    if let (Some(members), Some(engine)) = (json.as_object_mut(), event.body.started_engine()) {
        members.insert("service".to_owned(), json!({ "node": { "name": engine }, "type": "pinseal" }));
    }
    Value::to_string(&json)
}

/// `event.category` and `event.type`; the schema allows the type in the category.
fn category(body: &Body) -> (&'static str, &'static str) {
    match body {
        Body::EngineStarted { .. } => ("process", "start"),
        Body::EngineStopped => ("process", "end"),
        Body::KeysReloaded
        | Body::StorageKeysActivated(_)
        | Body::StorageKeysRetired(_)
        | Body::EngineDeregistered { .. } => ("configuration", "change"),
        Body::RecordsReencrypted { .. } => ("database", "change"),
        Body::RotationEnded { .. } => ("database", "info"),
        Body::StoreRestored(_) | Body::StoreSalvaged(_) => ("database", "creation"),
        Body::AuditArchived(_) => ("database", "deletion"),
        Body::CallDenied { .. } => ("api", "denied"),
        Body::BlocksTranslated(_) => ("api", "access"),
        Body::CredentialsRejected { .. } => ("authentication", "start"),
        Body::Card(CardEvent { action, .. }) | Body::UnknownControl { action, .. } => match action {
            Action::RegisterCard | Action::OpenControl | Action::IssueTzpk | Action::GeneratePin => ("iam", "creation"),
            Action::SetPin
            | Action::SetPinByZone
            | Action::ChangePin
            | Action::ResetTries
            | Action::ChangeAccount
            | Action::TransferPin => ("iam", "change"),
            Action::ViewPin
            | Action::ConfirmSetPin
            | Action::StartPage
            | Action::FindCard
            | Action::GetPinByZone
            | Action::ExportPin
            | Action::DeriveValue
            | Action::SealAccount => ("iam", "info"),
            Action::ReserveTry => ("authentication", "start"),
            Action::VerifyPin => ("authentication", "end"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card_reference::CardReference;
    use crate::chain::tests::event;
    use crate::entry::{Event, TryStamp};

    #[test]
    fn an_entry_has_the_names_of_ecs() {
        let entry = Entry::chain(6, [1; 32], event(6));
        let json: Value = serde_json::from_str(&to_ecs(&entry)).unwrap();
        let at = |path: &str| json.pointer(path).cloned().unwrap_or_default();
        for (path, value) in [
            ("/@timestamp", json!("2026-09-21T14:13:20.006Z")),
            ("/ecs/version", json!(ECS_VERSION)),
            ("/event/action", json!("set_pin")),
            ("/event/category/0", json!("iam")),
            ("/event/type/0", json!("change")),
            ("/event/outcome", json!("success")),
            ("/event/sequence", json!(6)),
            ("/event/hash", json!(base16ct::lower::encode_string(&entry.hash))),
            ("/client/user/name", json!("edge-1")),
            ("/user/name", json!("user \"6\" ü")),
            ("/organization/id", json!("bank")),
            ("/http/request/id", json!(entry.event.request.map(|request| request.to_string()))),
            ("/pinseal/event/card", json!("411111******1111")),
            ("/pinseal/boundary/level", json!("host")),
        ] {
            assert_eq!(at(path), value, "{path}");
        }
    }

    #[test]
    fn an_event_of_the_engine_has_no_organization_and_a_refusal_is_a_failure() {
        let started = Body::EngineStarted { engine: "host:/var/lib/pinseal".into() };
        let event = Event { body: started, tenant: None, outcome: Outcome::Denied, ..event(1) };
        let json: Value = serde_json::from_str(&to_ecs(&Entry::chain(1, [0; 32], event))).unwrap();
        assert_eq!(json.get("organization"), None);
        assert_eq!(json["service"]["node"]["name"], "host:/var/lib/pinseal");
        assert_eq!(json["event"]["action"], "engine_started");
        assert_eq!((&json["event"]["outcome"], &json["pinseal"]["outcome"]), (&json!("failure"), &json!("denied")));
    }

    #[test]
    fn a_wrong_pin_is_a_failed_authentication_with_its_try() {
        let card = CardEvent::new(Action::VerifyPin, "***1".into(), CardReference::from_bytes([7; 16]));
        let body = Body::Card(CardEvent { tried: Some(TryStamp { number: 3, tries_left: 0 }), ..card });
        let event = Event { body, outcome: Outcome::WrongPin, ..event(2) };
        let json: Value = serde_json::from_str(&to_ecs(&Entry::chain(1, [0; 32], event))).unwrap();
        assert_eq!(
            (&json["event"]["category"][0], &json["event"]["outcome"]),
            (&json!("authentication"), &json!("failure"))
        );
        assert_eq!(json["pinseal"]["outcome"], "wrong_pin");
        assert_eq!(json["pinseal"]["event"]["tried"], json!({ "number": 3, "tries_left": 0 }));
    }
}
