//! The entries of the audit chain as gRPC messages, in both directions.
//!
//! A message has everything that the hash of its entry covers. [`read_entry`] rebuilds the entry from the fields of a message
//! and compares the hash, so a receiver verifies a chain without any bytes or text of the sender.
//!
//! What must never enter: the verification of a chain, which `audit` has, and a connection.
//!
//! ```
//! use std::sync::Arc;
//!
//! use audit::entry::{Body, Entry, Event, Isolation, Level, Outcome, Stamp};
//!
//! # let stamp = Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: Box::default() };
//! # let event = Event {
//! #     at: domain::time::UnixMillis(1_790_000_000_000),
//! #     caller: "engine".into(),
//! #     tenant: None,
//! #     audit_user: "engine".into(),
//! #     request: None,
//! #     outcome: Outcome::Done,
//! #     stamp: Arc::new(stamp),
//! #     body: Body::EngineStopped,
//! # };
//! let entry = Entry::chain(1, [0; 32], event);
//! let mut message = audit_wire::entry_message(&entry);
//! assert_eq!(audit_wire::read_entry(message.clone())?, entry);
//!
//! message.caller = "another".to_owned();
//! assert_eq!(audit_wire::read_entry(message), Err(audit_wire::EntryMessageError::Changed { sequence: 1 }));
//! # Ok::<(), audit_wire::EntryMessageError>(())
//! ```

use std::sync::Arc;

use prost_types::Timestamp;
use thiserror::Error;

use audit::{
    card_reference::CardReference,
    entry::{
        Action, ArchivedSegment, BlockFormat, Body, CallDenial, CardEvent, Entry, Event, Formats, Isolation, KeyStamp,
        Level, Method, Outcome, RetiredStorageKeys, Stamp, StorageKeyVersions, StoreOrigin, TranslatedBlocks, TryStamp,
    },
};
use domain::{card::Tenant, control::ControlId, request_id::RequestId, time::UnixMillis};
use proto::audit_entry::Event as EventMessage;

const MILLISECOND_NANOS: i32 = 1_000_000;
const SECOND_MILLISECONDS: u64 = 1_000;

/// The message of a moment.
pub fn timestamp(at: UnixMillis) -> Timestamp {
    let milliseconds = i32::try_from(at.0 % SECOND_MILLISECONDS).unwrap_or_default();
    let seconds = i64::try_from(at.0 / SECOND_MILLISECONDS).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: milliseconds.saturating_mul(MILLISECOND_NANOS) }
}

/// The moment of a message; `None` for a moment before 1970, or one that is not a whole millisecond.
pub fn moment(time: &Timestamp) -> Option<UnixMillis> {
    let whole =
        (0..MILLISECOND_NANOS.saturating_mul(1_000)).contains(&time.nanos) && time.nanos % MILLISECOND_NANOS == 0;
    let milliseconds = u64::try_from(time.nanos / MILLISECOND_NANOS).ok().filter(|_| whole)?;
    let seconds = u64::try_from(time.seconds).ok()?.checked_mul(SECOND_MILLISECONDS)?;
    seconds.checked_add(milliseconds).map(UnixMillis)
}

/// The message of an entry.
pub fn entry_message(entry: &Entry) -> proto::AuditEntry {
    let event = &entry.event;
    proto::AuditEntry {
        sequence: entry.sequence,
        previous_hash: entry.previous.to_vec(),
        hash: entry.hash.to_vec(),
        event_time: Some(timestamp(event.at)),
        caller: event.caller.to_string(),
        tenant: event.tenant.map(|tenant| tenant.as_str().to_owned()).unwrap_or_default(),
        audit_user: event.audit_user.to_string(),
        request_id: event.request.map(|request| request.to_string()).unwrap_or_default(),
        outcome: outcome_message(event.outcome).into(),
        boundary: Some(stamp_message(&event.stamp)),
        event: Some(body_message(&event.body)),
    }
}

/// The entry of a message, with a hash that is the hash of its content.
///
/// # Errors
/// [`EntryMessageError`] for a message that [`entry_message`] does not make.
pub fn read_entry(message: proto::AuditEntry) -> Result<Entry, EntryMessageError> {
    let sequence = message.sequence;
    let malformed = |field| EntryMessageError::Malformed { sequence, field };
    let tenant = optional(&message.tenant).map(Tenant::parse).transpose().map_err(|_| malformed("tenant"))?;
    let request = optional(&message.request_id).map(RequestId::parse).transpose();
    let event = Event {
        at: message.event_time.as_ref().and_then(moment).ok_or_else(|| malformed("event_time"))?,
        outcome: read_outcome(message.outcome()).ok_or_else(|| malformed("outcome"))?,
        caller: message.caller.into(),
        tenant,
        audit_user: message.audit_user.into(),
        request: request.map_err(|_| malformed("request_id"))?,
        stamp: message.boundary.and_then(read_stamp).map(Arc::new).ok_or_else(|| malformed("boundary"))?,
        body: match message.event {
            Some(event) => read_body(event).ok_or_else(|| malformed("event"))?,
            None => return Err(EntryMessageError::UnknownEvent { sequence }),
        },
    };
    let hash = |bytes: Vec<u8>, field| <[u8; 32]>::try_from(bytes).map_err(|_| malformed(field));
    let (previous, hash) = (hash(message.previous_hash, "previous_hash")?, hash(message.hash, "hash")?);
    let entry = Entry { sequence, previous, event, hash };
    if entry.has_valid_hash() { Ok(entry) } else { Err(EntryMessageError::Changed { sequence }) }
}

/// The method of a message; `None` for a value without a variant.
pub fn engine_method(method: proto::EngineMethod) -> Option<Method> {
    read_method(method)
}

/// A message is not an entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryMessageError {
    /// A field is absent, or has a value that no engine of this release sends.
    #[error("audit entry {sequence}: this release cannot read the field {field}: use the release of the engine")]
    Malformed {
        /// The sequence number that the message names.
        sequence: u64,
        /// The name of the field of `AuditEntry`.
        field: &'static str,
    },
    /// The kind of event is not one of this release.
    #[error("audit entry {sequence}: this release does not know the kind of event: use the release of the engine")]
    UnknownEvent {
        /// The sequence number that the message names.
        sequence: u64,
    },
    /// The hash is not the hash of the content.
    #[error(
        "audit entry {sequence} was changed, or the engine is of another release: its hash is not the hash of its content"
    )]
    Changed {
        /// The sequence number that the message names.
        sequence: u64,
    },
}

/// The message of an enum and back. A value without a variant is `None`.
macro_rules! enums {
    ($($write:ident, $read:ident: $ours:ident as $theirs:ident { $($variant:ident,)+ })+) => {
        $(
            fn $write(value: $ours) -> proto::$theirs {
                match value {
                    $($ours::$variant => proto::$theirs::$variant,)+
                }
            }

            fn $read(value: proto::$theirs) -> Option<$ours> {
                match value {
                    proto::$theirs::Unspecified => None,
                    $(proto::$theirs::$variant => Some($ours::$variant),)+
                }
            }
        )+
    };
}

enums! {
    outcome_message, read_outcome: Outcome as AuditOutcome {
        Done,
        Malformed,
        RefusedPin,
        Denied,
        ControlNotUsable,
        ControlCap,
        CardUnknown,
        AccountBound,
        TzpkMissing,
        PinNotSet,
        PinNotShown,
        DeviceKeyInvalid,
        BoundaryFailed,
        UnregisteredCards,
        WrongPin,
        PinLocked,
        ReplacedBlock,
        OtherAccount,
        ZoneRefused,
        PinStored,
        NoAccountNumber,
        ValueKeyRefused,
    }
    action_message, read_action: Action as CardAction {
        RegisterCard,
        OpenControl,
        IssueTzpk,
        SetPin,
        ViewPin,
        ConfirmSetPin,
        FindCard,
        SetPinByZone,
        GetPinByZone,
        ReserveTry,
        VerifyPin,
        ChangePin,
        ResetTries,
        GeneratePin,
        ExportPin,
        ChangeAccount,
        TransferPin,
        DeriveValue,
        SealAccount,
        StartPage,
    }
    format_message, read_format: BlockFormat as BlockFormat {
        Iso0,
        Iso1,
        Iso3,
        Iso4,
        Wrapped,
        OneWay,
    }
    method_message, read_method: Method as EngineMethod {
        OpenControl,
        IssueTzpk,
        SetPin,
        ViewPin,
        RegisterCard,
        FindCard,
        ExportAudit,
        ListKeys,
        WatchRotation,
        CountRecords,
        GetCheckpoint,
        RecordRejectedCredentials,
        SetPinByZone,
        GetPinByZone,
        VerifyPin,
        ChangePin,
        GeneratePin,
        ExportPin,
        DeriveVerificationValue,
        TransferPin,
        TranslatePinBlock,
        SealPan,
        ResetTries,
        TranslatePinBlocks,
        ExportPins,
        SetPins,
        FollowEvents,
        RecordClientDenial,
        StartPage,
        ExchangeCalls,
    }
    denial_message, read_denial: CallDenial as CallDenial {
        NoCertificate,
        UnknownPeer,
        Right,
        Tenant,
        AllTenants,
        Client,
    }
    level_message, read_level: Level as BoundaryLevel {
        Host,
        Token,
    }
    isolation_message, read_isolation: Isolation as BoundaryIsolation {
        Process,
        Inline,
    }
}

fn stamp_message(stamp: &Stamp) -> proto::BoundaryStamp {
    let keys = stamp.keys.iter().map(|key| proto::Key {
        usage: key.usage.to_string(),
        version: key.version.into(),
        kcv: key.kcv.map(Vec::from).unwrap_or_default(),
    });
    proto::BoundaryStamp {
        level: level_message(stamp.level).into(),
        token: stamp.token.to_string(),
        isolation: isolation_message(stamp.isolation).into(),
        keys: keys.collect(),
    }
}

fn read_stamp(stamp: proto::BoundaryStamp) -> Option<Stamp> {
    let (level, isolation) = (read_level(stamp.level())?, read_isolation(stamp.isolation())?);
    let keys = stamp.keys.into_iter().map(|key| {
        let kcv = match &*key.kcv {
            [] => None,
            kcv => Some(kcv.try_into().ok()?),
        };
        Some(KeyStamp { usage: key.usage.into(), version: key.version.try_into().ok()?, kcv })
    });
    Some(Stamp { level, token: stamp.token.into(), isolation, keys: keys.collect::<Option<_>>()? })
}

fn body_message(body: &Body) -> EventMessage {
    match body {
        Body::EngineStarted { engine } => {
            EventMessage::EngineStarted(proto::EngineStarted { engine: engine.to_string() })
        }
        Body::EngineStopped => EventMessage::EngineStopped(proto::EngineStopped {}),
        Body::KeysReloaded => EventMessage::KeysReloaded(proto::KeysReloaded {}),
        Body::RecordsReencrypted { count } => {
            EventMessage::RecordsReencrypted(proto::RecordsReencrypted { record_count: *count })
        }
        Body::RotationEnded { checked, failed } => {
            EventMessage::RotationEnded(proto::RotationEnded { checked_count: *checked, failed_count: *failed })
        }
        Body::StoreRestored(origin) => EventMessage::StoreRestored(origin_message(origin)),
        Body::StoreSalvaged(origin) => EventMessage::StoreSalvaged(origin_message(origin)),
        Body::Card(event) => EventMessage::Card(proto::CardEvent {
            action: action_message(event.action).into(),
            masked_card: event.card.to_string(),
            card_reference: event.reference.as_bytes().to_vec(),
            control_id: event.control.map(|control| control.to_string()).unwrap_or_default(),
            translation: event.formats.map(formats_message),
            key_usage: event.key.as_deref().unwrap_or_default().to_owned(),
            pin_try: event.tried.map(|TryStamp { number, tries_left }| proto::PinTry {
                try_number: number,
                remaining_try_count: tries_left,
            }),
            predecessor_reference: event.predecessor.map(|card| card.as_bytes().to_vec()).unwrap_or_default(),
        }),
        Body::BlocksTranslated(blocks) => EventMessage::BlocksTranslated(proto::BlocksTranslated {
            block_count: blocks.count,
            source_key_usage: blocks.source_key.to_string(),
            target_key_usage: blocks.target_key.to_string(),
            translation: Some(formats_message(blocks.formats)),
            items_root: blocks.root.to_vec(),
        }),
        Body::UnknownControl { action, control, unrecorded } => EventMessage::UnknownControl(proto::UnknownControl {
            action: action_message(*action).into(),
            control_id: control.to_string(),
            unrecorded_count: *unrecorded,
        }),
        Body::AuditArchived(segment) => EventMessage::AuditArchived(proto::AuditArchived {
            first_sequence: segment.first,
            last_sequence: segment.last,
            last_hash: segment.hash.to_vec(),
            file_name: segment.file.to_string(),
            file_sha256: segment.file_sha256.to_vec(),
        }),
        Body::StorageKeysActivated(versions) => EventMessage::StorageKeysActivated(versions_message(*versions)),
        Body::StorageKeysRetired(RetiredStorageKeys { versions, abandoned_records }) => {
            EventMessage::StorageKeysRetired(proto::StorageKeysRetired {
                versions: Some(versions_message(*versions)),
                abandoned_record_count: *abandoned_records,
            })
        }
        Body::EngineDeregistered { engine } => {
            EventMessage::EngineDeregistered(proto::EngineDeregistered { engine: engine.to_string() })
        }
        Body::CallDenied { method, reason, unrecorded } => EventMessage::CallDenied(proto::CallDenied {
            method: method_message(*method).into(),
            reason: denial_message(*reason).into(),
            unrecorded_count: *unrecorded,
        }),
        Body::CredentialsRejected { network, unrecorded } => {
            EventMessage::CredentialsRejected(proto::CredentialsRejected {
                client_network: network.to_string(),
                unrecorded_count: *unrecorded,
            })
        }
    }
}

fn versions_message(versions: StorageKeyVersions) -> proto::StorageKeyVersions {
    let StorageKeyVersions { wrapped, iso_4, tdes, one_way } = versions;
    let [wrapped_version, iso4_version, tdes_version, one_way_version] = [wrapped, iso_4, tdes, one_way].map(u32::from);
    proto::StorageKeyVersions { wrapped_version, iso4_version, tdes_version, one_way_version }
}

fn read_versions(versions: proto::StorageKeyVersions) -> Option<StorageKeyVersions> {
    let proto::StorageKeyVersions {
        wrapped_version: wrapped,
        iso4_version: iso_4,
        tdes_version: tdes,
        one_way_version: one_way,
    } = versions;
    let version = |version: u32| u16::try_from(version).ok();
    Some(StorageKeyVersions {
        wrapped: version(wrapped)?,
        iso_4: version(iso_4)?,
        tdes: version(tdes)?,
        one_way: version(one_way)?,
    })
}

fn read_body(event: EventMessage) -> Option<Body> {
    Some(match event {
        EventMessage::EngineStarted(started) => Body::EngineStarted { engine: started.engine.into() },
        EventMessage::EngineStopped(proto::EngineStopped {}) => Body::EngineStopped,
        EventMessage::KeysReloaded(proto::KeysReloaded {}) => Body::KeysReloaded,
        EventMessage::RecordsReencrypted(records) => Body::RecordsReencrypted { count: records.record_count },
        EventMessage::RotationEnded(ended) => {
            Body::RotationEnded { checked: ended.checked_count, failed: ended.failed_count }
        }
        EventMessage::StorageKeysActivated(versions) => Body::StorageKeysActivated(read_versions(versions)?),
        EventMessage::StorageKeysRetired(retired) => Body::StorageKeysRetired(RetiredStorageKeys {
            versions: read_versions(retired.versions?)?,
            abandoned_records: retired.abandoned_record_count,
        }),
        EventMessage::EngineDeregistered(engine) => Body::EngineDeregistered { engine: engine.engine.into() },
        EventMessage::StoreRestored(origin) => Body::StoreRestored(read_origin(origin)?),
        EventMessage::StoreSalvaged(origin) => Body::StoreSalvaged(read_origin(origin)?),
        EventMessage::Card(card) => Body::Card(CardEvent {
            action: read_action(card.action())?,
            reference: CardReference::from_bytes(card.card_reference.as_slice().try_into().ok()?),
            control: optional(&card.control_id).map(ControlId::parse).transpose().ok()?,
            formats: match &card.translation {
                Some(formats) => Some(read_formats(formats)?),
                None => None,
            },
            key: optional(&card.key_usage).map(Into::into),
            tried: card
                .pin_try
                .map(|tried| TryStamp { number: tried.try_number, tries_left: tried.remaining_try_count }),
            predecessor: match &*card.predecessor_reference {
                [] => None,
                reference => Some(CardReference::from_bytes(reference.try_into().ok()?)),
            },
            card: card.masked_card.into(),
        }),
        EventMessage::BlocksTranslated(blocks) => Body::BlocksTranslated(TranslatedBlocks {
            count: blocks.block_count,
            source_key: blocks.source_key_usage.into(),
            target_key: blocks.target_key_usage.into(),
            formats: read_formats(&blocks.translation?)?,
            root: blocks.items_root.try_into().ok()?,
        }),
        EventMessage::UnknownControl(unknown) => Body::UnknownControl {
            action: read_action(unknown.action())?,
            control: ControlId::parse(&unknown.control_id).ok()?,
            unrecorded: unknown.unrecorded_count,
        },
        EventMessage::AuditArchived(segment) => Body::AuditArchived(ArchivedSegment {
            first: segment.first_sequence,
            last: segment.last_sequence,
            hash: segment.last_hash.try_into().ok()?,
            file: segment.file_name.into(),
            file_sha256: segment.file_sha256.try_into().ok()?,
        }),
        EventMessage::CallDenied(denied) => Body::CallDenied {
            method: read_method(denied.method())?,
            reason: read_denial(denied.reason())?,
            unrecorded: denied.unrecorded_count,
        },
        EventMessage::CredentialsRejected(rejected) => Body::CredentialsRejected {
            network: rejected.client_network.parse().ok()?,
            unrecorded: rejected.unrecorded_count,
        },
    })
}

fn formats_message(formats: Formats) -> proto::BlockTranslation {
    proto::BlockTranslation {
        source_format: format_message(formats.from).into(),
        target_format: format_message(formats.to).into(),
    }
}

fn read_formats(formats: &proto::BlockTranslation) -> Option<Formats> {
    Some(Formats { from: read_format(formats.source_format())?, to: read_format(formats.target_format())? })
}

fn origin_message(origin: &StoreOrigin) -> proto::StoreOrigin {
    proto::StoreOrigin {
        source: origin.source.to_string(),
        sequence: origin.sequence,
        hash: origin.hash.to_vec(),
        ended_control_count: origin.ended_controls,
    }
}

fn read_origin(origin: proto::StoreOrigin) -> Option<StoreOrigin> {
    Some(StoreOrigin {
        source: origin.source.into(),
        sequence: origin.sequence,
        hash: origin.hash.try_into().ok()?,
        ended_controls: origin.ended_control_count,
    })
}

/// A text that is empty where there is no value.
fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;
