use std::mem::discriminant;

use prost::Message;
use prost_types::FileDescriptorSet;

use super::*;

fn origin() -> StoreOrigin {
    StoreOrigin { source: "host:/backup".into(), sequence: 7, hash: [9; 32], ended_controls: 2 }
}

fn card(action: Action, control: bool, formats: Option<Formats>) -> Body {
    Body::Card(CardEvent {
        action,
        card: "411111******1111".into(),
        reference: CardReference::from_bytes([0xCD; 16]),
        control: control.then(ControlId::random),
        formats,
        key: control.then(|| "zone:app-bank".into()),
        tried: control.then_some(TryStamp { number: 1 << 40, tries_left: 2 }),
        predecessor: control.then_some(CardReference::from_bytes([0xEF; 16])),
    })
}

/// At least one body of each kind.
fn bodies() -> Vec<Body> {
    vec![
        Body::EngineStarted { engine: "host:/var/lib/pinseal".into() },
        Body::EngineStopped,
        Body::KeysReloaded,
        Body::RecordsReencrypted { count: 256 },
        Body::RotationEnded { checked: 300, failed: 1 },
        Body::StoreRestored(origin()),
        Body::StoreSalvaged(origin()),
        Body::AuditArchived(ArchivedSegment {
            first: 1,
            last: 9,
            hash: [4; 32],
            file: "1.jsonl".into(),
            file_sha256: [5; 32],
        }),
        Body::StorageKeysActivated(StorageKeyVersions { wrapped: 1, iso_4: 2, tdes: 3, one_way: 0 }),
        Body::StorageKeysRetired(RetiredStorageKeys {
            versions: StorageKeyVersions { wrapped: 0, iso_4: 1, tdes: 2, one_way: u16::MAX },
            abandoned_records: u64::MAX - 1,
        }),
        Body::EngineDeregistered { engine: "engine-2".into() },
        card(Action::SetPin, true, Some(Formats { from: BlockFormat::Iso1, to: BlockFormat::Iso4 })),
        card(Action::RegisterCard, false, None),
        Body::UnknownControl { action: Action::ViewPin, control: ControlId::random(), unrecorded: 2 },
        Body::CallDenied { method: Method::ExportAudit, reason: CallDenial::Tenant, unrecorded: 7 },
        Body::CredentialsRejected { network: [192, 0, 2, 7].into(), unrecorded: 8 },
        Body::BlocksTranslated(TranslatedBlocks {
            count: 1_000,
            source_key: "zone:app-bank".into(),
            target_key: "zone:switch".into(),
            formats: Formats { from: BlockFormat::Iso0, to: BlockFormat::Iso4 },
            root: [6; 32],
        }),
    ]
}

fn entry(sequence: u64, body: Body) -> Entry {
    let key = |usage: &str, kcv| KeyStamp { usage: usage.into(), version: 1, kcv };
    let is_even = sequence.is_multiple_of(2);
    let event = Event {
        at: UnixMillis(1_790_000_000_000 + sequence),
        caller: "edge-1".into(),
        tenant: is_even.then(|| Tenant::parse("bank").unwrap()),
        audit_user: "user \"ü\"".into(),
        request: is_even.then(RequestId::random),
        outcome: Outcome::Done,
        stamp: Arc::new(Stamp {
            level: Level::Host,
            token: "software".into(),
            isolation: Isolation::Process,
            keys: [key("storage", Some([0xA1, 0xB2, 0xC3])), key("seal", None)].into(),
        }),
        body,
    };
    Entry::chain(sequence, [3; 32], event)
}

fn entries() -> impl Iterator<Item = Entry> {
    (1..).zip(bodies()).map(|(sequence, body)| entry(sequence, body))
}

/// Over the wire and back.
fn decoded(message: &proto::AuditEntry) -> proto::AuditEntry {
    proto::AuditEntry::decode(&*message.encode_to_vec()).unwrap()
}

#[test]
fn every_kind_of_event_is_rebuilt_and_its_hash_verified() {
    for entry in entries() {
        assert_eq!(read_entry(decoded(&entry_message(&entry))), Ok(entry));
    }
    let mut kinds = Vec::new();
    for body in bodies() {
        let kind = discriminant(&body);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let described = FileDescriptorSet::decode(proto::DESCRIPTOR_SET).unwrap();
    let mut messages = described.file.iter().flat_map(|file| &file.message_type);
    let message = messages.find(|message| message.name() == "AuditEntry").unwrap();
    let in_contract = message.field.iter().filter(|field| field.oneof_index.is_some()).count();
    assert_eq!(kinds.len(), in_contract, "a kind of event is not in this test");
}

#[test]
fn every_value_of_an_enum_is_rebuilt() {
    let format = |at| proto::BlockFormat::try_from(at).ok().and_then(read_format);
    let formats: Vec<_> = (0..50).filter_map(format).collect();
    for format in formats {
        let body = card(Action::ViewPin, true, Some(Formats { from: format, to: format }));
        let entry = entry(2, body);
        assert_eq!(read_entry(entry_message(&entry)), Ok(entry));
    }
    let actions: Vec<_> = (0..50).filter_map(|at| read_action(proto::CardAction::try_from(at).ok()?)).collect();
    for action in actions {
        let entry = entry(2, card(action, true, None));
        assert_eq!(read_entry(entry_message(&entry)), Ok(entry));
    }
    let methods: Vec<_> = (0..50).filter_map(|at| read_method(proto::EngineMethod::try_from(at).ok()?)).collect();
    for method in methods {
        let entry = entry(2, Body::CallDenied { method, reason: CallDenial::Right, unrecorded: 0 });
        assert_eq!(read_entry(entry_message(&entry)), Ok(entry));
    }
    for (at, outcome) in (0..50).filter_map(|at| Some((at, read_outcome(proto::AuditOutcome::try_from(at).ok()?)?))) {
        let entry = entry(2, Body::EngineStopped);
        let entry = Entry::chain(2, [3; 32], Event { outcome, ..entry.event });
        assert_eq!(entry_message(&entry).outcome, at);
        assert_eq!(read_entry(entry_message(&entry)), Ok(entry));
    }
}

#[test]
fn a_change_of_any_field_is_reported() {
    type Change = fn(&mut proto::AuditEntry);
    let changes: [(&str, Change); 11] = [
        ("sequence", |message| message.sequence += 1),
        ("previous_hash", |message| message.previous_hash[0] ^= 1),
        ("hash", |message| message.hash[31] ^= 1),
        ("event_time", |message| message.event_time.as_mut().unwrap().seconds += 1),
        ("caller", |message| message.caller.push('x')),
        ("tenant", |message| message.tenant.push('x')),
        ("audit_user", |message| message.audit_user.clear()),
        ("request_id", |message| message.request_id.clear()),
        ("outcome", |message| message.outcome = proto::AuditOutcome::Denied.into()),
        ("boundary", |message| message.boundary.as_mut().unwrap().keys[0].version += 1),
        ("event", |message| message.event = Some(EventMessage::KeysReloaded(proto::KeysReloaded {}))),
    ];
    for (field, change) in changes {
        let entry = entry(2, Body::EngineStopped);
        let mut message = entry_message(&entry);
        change(&mut message);
        let sequence = message.sequence;
        assert_eq!(read_entry(message), Err(EntryMessageError::Changed { sequence }), "{field}");
    }
}

#[test]
fn a_message_of_another_release_is_refused_by_its_field() {
    type Change = fn(&mut proto::AuditEntry);
    let changes: [(&str, Change); 7] = [
        ("event_time", |message| message.event_time.as_mut().unwrap().nanos = 1),
        ("event_time", |message| message.event_time = None),
        ("outcome", |message| message.outcome = 99),
        ("tenant", |message| message.tenant = "NO TENANT".to_owned()),
        ("boundary", |message| message.boundary.as_mut().unwrap().level = 0),
        ("hash", |message| message.hash.truncate(31)),
        ("event", |message| {
            message.event = Some(EventMessage::UnknownControl(proto::UnknownControl {
                action: 1,
                control_id: "1".into(),
                unrecorded_count: 0,
            }));
        }),
    ];
    for (field, change) in changes {
        let mut message = entry_message(&entry(2, Body::EngineStopped));
        change(&mut message);
        assert_eq!(read_entry(message), Err(EntryMessageError::Malformed { sequence: 2, field }));
    }
    let mut message = entry_message(&entry(2, Body::EngineStopped));
    message.event = None;
    assert_eq!(read_entry(message), Err(EntryMessageError::UnknownEvent { sequence: 2 }));
}

#[test]
fn a_moment_is_a_timestamp_of_whole_milliseconds() {
    for at in [0, 999, 1_000, 1_790_000_000_001, u64::from(u32::MAX) * 1_000] {
        assert_eq!(moment(&timestamp(UnixMillis(at))), Some(UnixMillis(at)));
    }
    for (seconds, nanos) in [(-1, 0), (1, -1), (1, 999), (1, 1_000_000_000), (i64::MAX, 0)] {
        assert_eq!(moment(&Timestamp { seconds, nanos }), None, "{seconds} {nanos}");
    }
}
