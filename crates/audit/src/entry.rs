//! The typed audit event, and the chained entry that records it: its stored form and its JSON form.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr, sync::Arc};

use base16ct::lower;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::card_reference::CardReference;
use domain::card::Tenant;
use domain::control::ControlId;
use domain::request_id::RequestId;
use domain::time::UnixMillis;

/// One audited event. The store gives the event its place in the chain, in the transaction of the change it records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Wall-clock time of the event, Unix milliseconds.
    pub at: UnixMillis,
    /// The name on the peer's certificate; `loopback` for an engine without TLS, `engine` for an event of the engine itself,
    /// `store` for an event of a command that makes a store.
    pub caller: Arc<str>,
    /// The tenant of the card; `None` for an event of the engine itself.
    pub tenant: Option<Tenant>,
    /// The user that the client names, up to 128 characters; not authenticated.
    pub audit_user: Arc<str>,
    /// The id of the request; `None` for an event of the engine itself.
    pub request: Option<RequestId>,
    /// The result of the request.
    pub outcome: Outcome,
    /// The key boundary at the time of the event; shared by all events of one boundary status.
    pub stamp: Arc<Stamp>,
    /// The kind of event, with its data.
    pub body: Body,
}

/// The key boundary that an event is recorded under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The level at which the boundary opens PIN blocks.
    pub level: Level,
    /// The kind of token, for example `software`.
    pub token: Box<str>,
    /// The isolation of the boundary from the engine.
    pub isolation: Isolation,
    /// Every key in use; empty for an event recorded without a boundary.
    pub keys: Box<[KeyStamp]>,
}

/// A key by usage, version and KCV. JSON and [`fmt::Display`] write `USAGE/VERSION[:KCV]`, for example `storage/1:A1B2C3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStamp {
    /// For example `storage`; contains no `/`.
    pub usage: Box<str>,
    /// 1 to 65535.
    pub version: u16,
    /// The key check value (ANSI X9.24-1, annex A), 3 bytes; `None` for a token key that may not encrypt.
    pub kcv: Option<[u8; 3]>,
}

/// The kind of event. The names are members of the exported JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// The engine started to serve.
    EngineStarted {
        /// The name of the engine, `HOST:STORE DIRECTORY`.
        engine: Box<str>,
    },
    /// The engine stopped after its last call ended.
    EngineStopped,
    /// The boundary reloaded its keys, and they differ from the keys before.
    KeysReloaded,
    /// PIN records were re-encrypted under the newest storage key.
    RecordsReencrypted {
        /// The number of records that the transaction changed.
        count: u64,
    },
    /// A rotation of the storage key ended: its last pass found no record left to re-encrypt.
    RotationEnded {
        /// The number of records in the last pass.
        checked: u64,
        /// The number of these that do not decrypt.
        failed: u64,
    },
    /// A request about one card.
    Card(CardEvent),
    /// The store was restored from a backup.
    StoreRestored(StoreOrigin),
    /// The store was rescued from a damaged store.
    StoreSalvaged(StoreOrigin),
    /// Entries were written to an archive, and removed from the store.
    AuditArchived(ArchivedSegment),
    /// A request under a control that the store does not have: never opened, or removed after its expiry. The card is not
    /// known.
    UnknownControl {
        /// The kind of request.
        action: Action,
        /// The control that the request names.
        #[serde(serialize_with = "text_to_json", deserialize_with = "control_from_json")]
        control: ControlId,
        /// The number of such requests of the tenant and action before this one that have no entry: the engine limits the
        /// entries within a minute.
        unrecorded: u64,
    },
    /// A call was denied because of the caller's certificate, or an edge denied the request of its client. The outcome is
    /// [`Outcome::Denied`].
    CallDenied {
        /// The method that was called, or that the edge would have called.
        method: Method,
        /// The reason of the denial.
        reason: CallDenial,
        /// The number of denied calls before this one that have no entry: the engine limits the entries a minute.
        unrecorded: u64,
    },
    /// Blocks were translated from a zone to another.
    BlocksTranslated(TranslatedBlocks),
    /// Every engine on the database has these storage keys: no engine writes a record under an older one any more.
    StorageKeysActivated(StorageKeyVersions),
    /// No engine reads or writes a record under these storage keys or older ones any more: their keys may be destroyed.
    StorageKeysRetired(RetiredStorageKeys),
    /// An operator deregistered an engine that had ended.
    EngineDeregistered {
        /// The name of the engine on the database.
        engine: Box<str>,
    },
    /// An edge rejected the credentials of a request. The outcome is [`Outcome::Denied`], the caller is the edge.
    CredentialsRejected {
        /// The network of the client: an address of IPv4, or the first 64 bits of an address of IPv6.
        network: IpAddr,
        /// The number of such requests before this one that have no entry: edge and engine limit the entries a minute.
        unrecorded: u64,
    },
}

/// The origin of a store that was not written by its engine from the first entry on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreOrigin {
    /// The name of the store or backup that was read, `HOST:DIRECTORY`.
    pub source: Box<str>,
    /// The sequence number of the last entry that was read; 0 for none.
    pub sequence: u64,
    /// The hash of this entry; 32 zero bytes for none.
    #[serde(serialize_with = "hash_to_json", deserialize_with = "hash_from_json")]
    pub hash: [u8; 32],
    /// The number of controls that were open, and are over.
    pub ended_controls: u64,
}

/// A version of each kind of storage key; 0 where a kind has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageKeyVersions {
    /// The key that wraps a device's block.
    pub wrapped: u16,
    /// The key for ISO 9564 format 4.
    pub iso_4: u16,
    /// The key for ISO 9564 formats 3 and 0.
    pub tdes: u16,
    /// The key for one-way records.
    pub one_way: u16,
}

/// The retired storage keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredStorageKeys {
    /// The versions up to which they are retired.
    pub versions: StorageKeyVersions,
    /// The PIN records that were under the key at this retirement, and are given up: 0 unless the operator asked for that.
    pub abandoned_records: u64,
}

/// Entries of the chain in an archive file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedSegment {
    /// The sequence number of the first entry.
    pub first: u64,
    /// The sequence number of the last entry.
    pub last: u64,
    /// The hash of the last entry.
    #[serde(serialize_with = "hash_to_json", deserialize_with = "hash_from_json")]
    pub hash: [u8; 32],
    /// The name of the file, without its directory.
    pub file: Box<str>,
    /// The SHA-256 of the file.
    #[serde(serialize_with = "hash_to_json", deserialize_with = "hash_from_json")]
    pub file_sha256: [u8; 32],
}

/// A request about one card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardEvent {
    /// The kind of request.
    pub action: Action,
    /// The masked account number; of a card without one the masked plastic id ([`domain::card::PlasticId::masked`]).
    pub card: Box<str>,
    /// The keyed reference of the card: the same in every event of the card in this store.
    pub reference: CardReference,
    /// The control that authorizes the request; `None` for a request without one.
    #[serde(serialize_with = "option_to_json", deserialize_with = "optional_control_from_json")]
    pub control: Option<ControlId>,
    /// The translation of the PIN block; `None` where no block was translated.
    pub formats: Option<Formats>,
    /// The zone key or verification key that the request names, as in the key inventory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Box<str>>,
    /// The try that was reserved or settled; for reset tries, the last one that is forgiven. The store writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<TryStamp>,
    /// The reference of the card that had the PIN before a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<CardReference>,
}

impl CardEvent {
    /// The event of a request without control, block, key, try and predecessor.
    pub fn new(action: Action, card: Box<str>, reference: CardReference) -> Self {
        let (control, formats, key) = (None, None, None);
        Self { action, card, reference, control, formats, key, tried: None, predecessor: None }
    }
}

/// A try to verify or change a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TryStamp {
    /// The number of the try, among those of its card.
    pub number: u64,
    /// The tries that are left after the event. A wrong PIN with 0 locks the PIN.
    pub tries_left: u32,
}

/// Blocks of one stream that were translated from a zone to another, between two events of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranslatedBlocks {
    /// The number of blocks.
    pub count: u64,
    /// The key of the zone that the blocks came from, as in the key inventory.
    pub source_key: Box<str>,
    /// The key of the zone that the blocks went to.
    pub target_key: Box<str>,
    /// The translation of each block.
    pub formats: Formats,
    /// The root of the items, by [`ItemsRoot`](super::items_root::ItemsRoot).
    #[serde(serialize_with = "hash_to_json", deserialize_with = "hash_from_json")]
    pub root: [u8; 32],
}

/// The translation of a PIN block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Formats {
    /// The format of the block that the boundary decrypted.
    pub from: BlockFormat,
    /// The format of the block that the boundary returned.
    pub to: BlockFormat,
}

impl Formats {
    fn from_codes([from, to]: [u8; 2]) -> Result<Self, EntryError> {
        Ok(Self { from: BlockFormat::from_code(from)?, to: BlockFormat::from_code(to)? })
    }
}

impl TryStamp {
    fn to_bytes(self) -> [u8; 12] {
        let [a, b, c, d, e, f, g, h] = self.number.to_be_bytes();
        let [i, j, k, l] = self.tries_left.to_be_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    fn from_bytes([a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12]) -> Self {
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Self { number, tries_left: u32::from_be_bytes([i, j, k, l]) }
    }
}

/// An enum with a fixed byte for each variant in the stored form.
macro_rules! coded {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $code:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            fn from_code(code: u8) -> Result<Self, EntryError> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    _ => Err(EntryError::Unreadable),
                }
            }
        }
    };
}

coded! {
    /// A request about a card.
    Action {
        /// Register a card, or change its account number.
        RegisterCard = 1,
        /// Open a control.
        OpenControl = 2,
        /// Issue a tzpk to the control's device.
        IssueTzpk = 3,
        /// Set the PIN.
        SetPin = 4,
        /// View the PIN on the control's device.
        ViewPin = 5,
        /// Confirm a retry: the block that set the PIN was received again, and the PIN is unchanged.
        ConfirmSetPin = 6,
        /// Read the status of a card and its masked account number.
        FindCard = 7,
        /// Set the PIN by a block under a zone key.
        SetPinByZone = 8,
        /// Give the PIN to a zone, as a format 1 block under the zone's key.
        GetPinByZone = 9,
        /// Reserve a try, before the boundary compares.
        ReserveTry = 10,
        /// Verify a PIN: the settlement of a reserved try.
        VerifyPin = 11,
        /// Change the PIN: the settlement of a reserved try.
        ChangePin = 12,
        /// Forgive the tries of a card up to a number.
        ResetTries = 13,
        /// Generate the PIN inside the boundary.
        GeneratePin = 14,
        /// Export the PIN, as a block bound to the account number under a zone key.
        ExportPin = 15,
        /// Re-encrypt the PIN record for a new account number.
        ChangeAccount = 16,
        /// Give a card the PIN of its predecessor.
        TransferPin = 17,
        /// Derive a verification value from the PIN.
        DeriveValue = 18,
        /// Seal an account number for translations of the card's blocks.
        SealAccount = 19,
        /// Start the page of a web view under a control.
        StartPage = 20,
    }
}

coded! {
    /// A gRPC method of an engine.
    Method {
        /// The method `pinseal.v1.ControlService/OpenControl`.
        OpenControl = 1,
        /// The method `pinseal.v1.PinService/IssueTzpk`.
        IssueTzpk = 2,
        /// The method `pinseal.v1.PinService/SetPin`.
        SetPin = 3,
        /// The method `pinseal.v1.PinService/ViewPin`.
        ViewPin = 4,
        /// The method `pinseal.v1.CardService/RegisterCard`.
        RegisterCard = 5,
        /// The method `pinseal.v1.CardService/FindCard`.
        FindCard = 6,
        /// The method `pinseal.v1.AuditService/ExportAudit`.
        ExportAudit = 7,
        /// The method `pinseal.v1.KeyService/ListKeys`.
        ListKeys = 8,
        /// The method `pinseal.v1.KeyService/WatchRotation`.
        WatchRotation = 9,
        /// The method `pinseal.v1.KeyService/CountRecords`.
        CountRecords = 10,
        /// The method `pinseal.v1.AuditService/GetCheckpoint`.
        GetCheckpoint = 11,
        /// The method `pinseal.v1.AuditService/RecordRejectedCredentials`.
        RecordRejectedCredentials = 12,
        /// The method `pinseal.v1.PinService/SetPinByZone`.
        SetPinByZone = 13,
        /// The method `pinseal.v1.PinService/GetPinByZone`.
        GetPinByZone = 14,
        /// The method `pinseal.v1.PinService/VerifyPin`.
        VerifyPin = 15,
        /// The method `pinseal.v1.PinService/ChangePin`.
        ChangePin = 16,
        /// The method `pinseal.v1.PinService/GeneratePin`.
        GeneratePin = 17,
        /// The method `pinseal.v1.PinService/ExportPin`.
        ExportPin = 18,
        /// The method `pinseal.v1.PinService/DeriveVerificationValue`.
        DeriveVerificationValue = 19,
        /// The method `pinseal.v1.PinService/TransferPin`.
        TransferPin = 20,
        /// The method `pinseal.v1.PinService/TranslatePinBlock`.
        TranslatePinBlock = 21,
        /// The method `pinseal.v1.PinService/SealPan`.
        SealPan = 22,
        /// The method `pinseal.v1.CardService/ResetTries`.
        ResetTries = 23,
        /// The method `pinseal.v1.BulkService/TranslatePinBlocks`.
        TranslatePinBlocks = 24,
        /// The method `pinseal.v1.BulkService/ExportPins`.
        ExportPins = 25,
        /// The method `pinseal.v1.BulkService/SetPins`.
        SetPins = 26,
        /// The method `pinseal.v1.EventService/FollowEvents`.
        FollowEvents = 27,
        /// The method `pinseal.v1.AuditService/RecordClientDenial`.
        RecordClientDenial = 28,
        /// The method `pinseal.v1.ControlService/StartPage`.
        StartPage = 29,
        /// The method `pinseal.v1.EdgeService/ExchangeCalls`.
        ExchangeCalls = 30,
    }
}

coded! {
    /// The reason of a denied call.
    CallDenial {
        /// The connection has no client certificate.
        NoCertificate = 1,
        /// The certificate is not among the configured peers.
        UnknownPeer = 2,
        /// The peer does not have the right for the method.
        Right = 3,
        /// The peer is limited to other tenants than the event's.
        Tenant = 4,
        /// The peer is limited to tenants, and the method covers all tenants.
        AllTenants = 5,
        /// The edge's configuration does not allow the request to its client. The caller is the edge.
        Client = 6,
    }
}

coded! {
    /// The result of a request.
    Outcome {
        /// The request was carried out.
        Done = 1,
        /// The block is malformed: not in its ISO 9564-1 format under the tzpk or the zone key.
        Malformed = 2,
        /// The PIN breaks the PIN policy.
        RefusedPin = 3,
        /// The control belongs to another tenant, another purpose or another device key.
        Denied = 4,
        /// The control is unknown, expired, spent, or closed by a newer PIN of its card: a replay, for example.
        ControlNotUsable = 5,
        /// The card has reached the limit of controls within the hour.
        ControlCap = 6,
        /// The card is not registered.
        CardUnknown = 7,
        /// A stored PIN is bound to the account number, so the number did not change.
        AccountBound = 8,
        /// No tzpk was issued under the control.
        TzpkMissing = 9,
        /// The card has no PIN to view.
        PinNotSet = 10,
        /// The storage format or the boundary level of the PIN record does not allow a view.
        PinNotShown = 11,
        /// The device key parses, but cannot encrypt.
        DeviceKeyInvalid = 12,
        /// The key boundary failed, for example because the PIN record does not decrypt. The engine's log has the cause,
        /// with the id of the request.
        BoundaryFailed = 13,
        /// The tenant has reached the limit of cards without registration and PIN.
        UnregisteredCards = 14,
        /// The PIN is wrong. With no try left, the PIN is locked from this event on.
        WrongPin = 15,
        /// The card has no try left.
        PinLocked = 16,
        /// A newer PIN replaced the one that the block set.
        ReplacedBlock = 17,
        /// The cards of a transfer do not have the same tenant and account number.
        OtherAccount = 18,
        /// The zone is not configured, or its rules do not allow the use or the format.
        ZoneRefused = 19,
        /// The card has a stored PIN, and the request asked for a comparison with a verification value.
        PinStored = 20,
        /// The operation needs an account number, and the card has neither a registered one nor a plasticId of 12 digits.
        NoAccountNumber = 21,
        /// No active PVK or IBM 3624 key with this name may do the operation for the tenant.
        ValueKeyRefused = 22,
    }
}

coded! {
    /// The level at which the boundary opens PIN blocks.
    Level {
        /// In host memory, for one operation.
        Host = 1,
        /// In the token: no clear block crosses the token's interface.
        Token = 2,
    }
}

coded! {
    /// The isolation of the boundary from the engine.
    Isolation {
        /// The boundary is a separate process.
        Process = 1,
        /// The boundary runs in the engine's process.
        Inline = 2,
    }
}

coded! {
    /// The format of a PIN block.
    BlockFormat {
        /// ISO 9564-1 format 0.
        #[serde(rename = "iso-0")]
        Iso0 = 1,
        /// ISO 9564-1 format 1.
        #[serde(rename = "iso-1")]
        Iso1 = 2,
        /// ISO 9564-1 format 3.
        #[serde(rename = "iso-3")]
        Iso3 = 3,
        /// ISO 9564-1 format 4.
        #[serde(rename = "iso-4")]
        Iso4 = 4,
        /// The device's format 1 block, wrapped by AES key wrap with padding (RFC 5649, `CKM_AES_KEY_WRAP_PAD`).
        Wrapped = 5,
        /// A salted CMAC of the PIN, which nothing decrypts.
        OneWay = 6,
    }
}

impl Body {
    /// Whether the event is about this card, or gave its PIN to another card.
    pub fn is_about(&self, card: CardReference) -> bool {
        matches!(self, Self::Card(event) if event.reference == card || event.predecessor == Some(card))
    }

    /// The name of the engine that started, `HOST:STORE DIRECTORY`; `None` for any other event.
    pub fn started_engine(&self) -> Option<&str> {
        match self {
            Self::EngineStarted { engine } => Some(engine),
            _ => None,
        }
    }
}

impl fmt::Display for KeyStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.usage, self.version)?;
        self.kcv.map_or(Ok(()), |[a, b, c]| write!(f, ":{a:02X}{b:02X}{c:02X}"))
    }
}

impl FromStr for KeyStamp {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let (usage, rest) = text.split_once('/').ok_or(EntryError::Unreadable)?;
        let (version, kcv) = rest.split_once(':').map_or((rest, None), |(version, kcv)| (version, Some(kcv)));
        let version = version.parse().map_err(|_| EntryError::Unreadable)?;
        let kcv = kcv.map(|kcv| u32::from_str_radix(kcv, 16)).transpose().map_err(|_| EntryError::Unreadable)?;
        let kcv = kcv.map(|kcv| {
            let [_, a, b, c] = kcv.to_be_bytes();
            [a, b, c]
        });
        let key = Self { usage: usage.into(), version, kcv };
        // A key has one text: no sign, no leading zero, no lower-case digit.
        if key.to_string() == text { Ok(key) } else { Err(EntryError::Unreadable) }
    }
}

impl Serialize for KeyStamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyStamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn text_to_json<T: fmt::Display, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn option_to_json<T: fmt::Display, S: Serializer>(id: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    id.as_ref().map(T::to_string).serialize(serializer)
}

fn control_from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ControlId, D::Error> {
    ControlId::parse(&Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn optional_control_from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ControlId>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| ControlId::parse(&text)).transpose().map_err(D::Error::custom)
}

fn hash_to_json<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    lower::encode_string(hash).serialize(serializer)
}

fn hash_from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    decode_hash(&Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// An event with its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The position in the chain, from 1 without gaps.
    pub sequence: u64,
    /// The hash of the entry before; 32 zero bytes for the first.
    pub previous: [u8; 32],
    /// The recorded event.
    pub event: Event,
    /// SHA-256 over the stored form of sequence, previous hash and event.
    pub hash: [u8; 32],
}

/// The first byte of the stored form.
const VERSION: u8 = 4;

impl Entry {
    /// The entry of an event that follows the entry with the hash `previous`.
    pub fn chain(sequence: u64, previous: [u8; 32], event: Event) -> Self {
        let hash = hash_of(sequence, &previous, &event);
        Self { sequence, previous, event, hash }
    }

    /// Whether the hash is the hash of the entry's content.
    pub fn has_valid_hash(&self) -> bool {
        self.hash == hash_of(self.sequence, &self.previous, &self.event)
    }

    /// The stored form: the hashed bytes, then the hash.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENCODED_BYTES_USUAL);
        append_hashed(&mut bytes, self.sequence, &self.previous, &self.event);
        bytes.extend_from_slice(&self.hash);
        bytes
    }

    /// Reads the stored form. The hash is not checked: see [`Entry::has_valid_hash`].
    ///
    /// # Errors
    /// [`EntryError::Unreadable`] for bytes that [`Entry::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let mut read = Reader(bytes);
        if read.byte()? != VERSION {
            return Err(EntryError::Unreadable);
        }
        let sequence = u64::from_be_bytes(read.array()?);
        let previous = read.array()?;
        let event = Event {
            at: UnixMillis(u64::from_be_bytes(read.array()?)),
            outcome: Outcome::from_code(read.byte()?)?,
            caller: read.text()?.into(),
            tenant: match read.text()? {
                "" => None,
                text => Some(Tenant::parse(text).map_err(|_| EntryError::Unreadable)?),
            },
            audit_user: read.text()?.into(),
            request: read.option()?.map(RequestId::from_bytes),
            stamp: Arc::new(read.stamp()?),
            body: read.body()?,
        };
        let hash = read.array()?;
        if read.0.is_empty() { Ok(Self { sequence, previous, event, hash }) } else { Err(EntryError::Unreadable) }
    }

    /// One line of JSON, as exported; [`Entry::from_json`] reads it back.
    pub fn to_json(&self) -> String {
        let event = &self.event;
        let json = JsonEntry {
            sequence: self.sequence,
            at: time_text(event.at).into(),
            caller: (&*event.caller).into(),
            tenant: event.tenant.map(|tenant| tenant.as_str().to_owned()),
            audit_user: (&*event.audit_user).into(),
            request: event.request.map(|request| request.to_string()),
            outcome: event.outcome,
            event: Cow::Borrowed(&event.body),
            boundary: Cow::Borrowed(&event.stamp),
            previous: lower::encode_string(&self.previous),
            hash: lower::encode_string(&self.hash),
        };
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// Reads one line of JSON back. Accepts only the exact bytes of [`Entry::to_json`], so that the hash covers what a
    /// reader sees. Another text with the same meaning (spaces, order, escapes, digits of a time) is rejected.
    ///
    /// # Errors
    /// [`EntryError::Unreadable`], or [`EntryError::Rewritten`] for another text with the same meaning.
    pub fn from_json(text: &str) -> Result<Self, EntryError> {
        let entry = Self::from_any_json(text)?;
        if entry.to_json() == text { Ok(entry) } else { Err(EntryError::Rewritten) }
    }

    fn from_any_json(text: &str) -> Result<Self, EntryError> {
        let json: JsonEntry = serde_json::from_str(text).map_err(|_| EntryError::Unreadable)?;
        let at = json.at.parse::<Timestamp>().map_err(|_| EntryError::Unreadable)?;
        let at = u64::try_from(at.as_millisecond()).map_err(|_| EntryError::Unreadable)?;
        let tenant = json.tenant.map(|tenant| Tenant::parse(&tenant)).transpose();
        let request = json.request.map(|request| RequestId::parse(&request)).transpose();
        let event = Event {
            at: UnixMillis(at),
            caller: (&*json.caller).into(),
            tenant: tenant.map_err(|_| EntryError::Unreadable)?,
            audit_user: (&*json.audit_user).into(),
            request: request.map_err(|_| EntryError::Unreadable)?,
            outcome: json.outcome,
            stamp: Arc::new(json.boundary.into_owned()),
            body: json.event.into_owned(),
        };
        let (previous, hash) = (decode_hash(&json.previous)?, decode_hash(&json.hash)?);
        Ok(Self { sequence: json.sequence, previous, event, hash })
    }
}

/// A time by RFC 3339 in UTC, with three digits of the second.
pub(super) fn time_text(at: UnixMillis) -> String {
    let at = i64::try_from(at.0).ok().and_then(|at| Timestamp::from_millisecond(at).ok());
    format!("{:.3}", at.unwrap_or(Timestamp::MAX))
}

/// The error of bytes or a text that is not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// The bytes or the text are not an entry of this release.
    #[error("not an audit entry that this release can read")]
    Unreadable,
    /// The text means an entry, but [`Entry::to_json`] writes it differently.
    #[error("the text of the audit entry differs from the engine's export")]
    Rewritten,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonEntry<'a> {
    sequence: u64,
    at: Cow<'a, str>,
    caller: Cow<'a, str>,
    tenant: Option<String>,
    audit_user: Cow<'a, str>,
    request: Option<String>,
    outcome: Outcome,
    event: Cow<'a, Body>,
    boundary: Cow<'a, Stamp>,
    previous: String,
    hash: String,
}

/// The usual size of the stored form.
const ENCODED_BYTES_USUAL: usize = 384;

fn hash_of(sequence: u64, previous: &[u8; 32], event: &Event) -> [u8; 32] {
    append(&mut Vec::with_capacity(ENCODED_BYTES_USUAL), sequence, previous, event)
}

/// Appends the stored form of the entry of `event`, which follows the entry with the hash `previous`. Returns the hash of the
/// new entry.
pub fn append(bytes: &mut Vec<u8>, sequence: u64, previous: &[u8; 32], event: &Event) -> [u8; 32] {
    let at = bytes.len();
    append_hashed(bytes, sequence, previous, event);
    let hash: [u8; 32] = Sha256::digest(bytes.get(at..).unwrap_or_default()).into();
    bytes.extend_from_slice(&hash);
    hash
}

/// Appends everything but the hash. A length precedes each text and list, so two events never have the same bytes.
fn append_hashed(bytes: &mut Vec<u8>, sequence: u64, previous: &[u8; 32], event: &Event) {
    bytes.push(VERSION);
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(previous);
    bytes.extend_from_slice(&event.at.0.to_be_bytes());
    bytes.push(event.outcome.code());
    append_text(bytes, &event.caller);
    append_text(bytes, event.tenant.as_ref().map_or("", Tenant::as_str));
    append_text(bytes, &event.audit_user);
    append_option(bytes, event.request.as_ref().map(|request| request.as_bytes().as_slice()));
    append_stamp(bytes, &event.stamp);
    append_body(bytes, &event.body);
}

fn append_text(bytes: &mut Vec<u8>, text: &str) {
    let written = text.as_bytes().get(..usize::from(u16::MAX)).unwrap_or(text.as_bytes());
    bytes.extend_from_slice(&u16::try_from(written.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(written);
}

fn append_stamp(bytes: &mut Vec<u8>, stamp: &Stamp) {
    bytes.extend_from_slice(&[stamp.level.code(), stamp.isolation.code()]);
    append_text(bytes, &stamp.token);
    let count = u16::try_from(stamp.keys.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&count.to_be_bytes());
    for key in stamp.keys.iter().take(count.into()) {
        append_text(bytes, &key.usage);
        bytes.extend_from_slice(&key.version.to_be_bytes());
        append_option(bytes, key.kcv.as_ref().map(<[u8; 3]>::as_slice));
    }
}

fn append_body(bytes: &mut Vec<u8>, body: &Body) {
    match body {
        Body::EngineStarted { engine } => {
            bytes.push(1);
            append_text(bytes, engine);
        }
        Body::EngineStopped => bytes.push(2),
        Body::KeysReloaded => bytes.push(3),
        Body::RecordsReencrypted { count } => {
            bytes.push(4);
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        Body::RotationEnded { checked, failed } => {
            bytes.push(5);
            bytes.extend_from_slice(&checked.to_be_bytes());
            bytes.extend_from_slice(&failed.to_be_bytes());
        }
        Body::Card(event) => {
            bytes.extend_from_slice(&[6, event.action.code()]);
            append_text(bytes, &event.card);
            bytes.extend_from_slice(event.reference.as_bytes());
            append_option(bytes, event.control.as_ref().map(|control| control.as_bytes().as_slice()));
            let formats = event.formats.map(|formats| [formats.from.code(), formats.to.code()]);
            append_option(bytes, formats.as_ref().map(<[u8; 2]>::as_slice));
            append_text(bytes, event.key.as_deref().unwrap_or_default());
            append_option(bytes, event.tried.map(TryStamp::to_bytes).as_ref().map(<[u8; 12]>::as_slice));
            append_option(bytes, event.predecessor.as_ref().map(|card| card.as_bytes().as_slice()));
        }
        Body::BlocksTranslated(blocks) => {
            bytes.push(10);
            bytes.extend_from_slice(&blocks.count.to_be_bytes());
            append_text(bytes, &blocks.source_key);
            append_text(bytes, &blocks.target_key);
            bytes.extend_from_slice(&[blocks.formats.from.code(), blocks.formats.to.code()]);
            bytes.extend_from_slice(&blocks.root);
        }
        Body::StoreRestored(origin) => append_origin(bytes, 32, origin),
        Body::StoreSalvaged(origin) => append_origin(bytes, 33, origin),
        Body::AuditArchived(segment) => {
            bytes.push(34);
            bytes.extend_from_slice(&segment.first.to_be_bytes());
            bytes.extend_from_slice(&segment.last.to_be_bytes());
            bytes.extend_from_slice(&segment.hash);
            append_text(bytes, &segment.file);
            bytes.extend_from_slice(&segment.file_sha256);
        }
        Body::UnknownControl { action, control, unrecorded } => {
            bytes.extend_from_slice(&[7, action.code()]);
            bytes.extend_from_slice(control.as_bytes());
            bytes.extend_from_slice(&unrecorded.to_be_bytes());
        }
        Body::CallDenied { method, reason, unrecorded } => {
            bytes.extend_from_slice(&[8, method.code(), reason.code()]);
            bytes.extend_from_slice(&unrecorded.to_be_bytes());
        }
        Body::StorageKeysActivated(versions) => append_versions(bytes, 35, *versions),
        Body::StorageKeysRetired(RetiredStorageKeys { versions, abandoned_records }) => {
            append_versions(bytes, 36, *versions);
            bytes.extend_from_slice(&abandoned_records.to_be_bytes());
        }
        Body::EngineDeregistered { engine } => {
            bytes.push(37);
            append_text(bytes, engine);
        }
        Body::CredentialsRejected { network, unrecorded } => {
            bytes.push(9);
            append_text(bytes, &network.to_string());
            bytes.extend_from_slice(&unrecorded.to_be_bytes());
        }
    }
}

fn append_origin(bytes: &mut Vec<u8>, code: u8, origin: &StoreOrigin) {
    bytes.push(code);
    append_text(bytes, &origin.source);
    bytes.extend_from_slice(&origin.sequence.to_be_bytes());
    bytes.extend_from_slice(&origin.hash);
    bytes.extend_from_slice(&origin.ended_controls.to_be_bytes());
}

fn append_versions(bytes: &mut Vec<u8>, code: u8, versions: StorageKeyVersions) {
    let StorageKeyVersions { wrapped, iso_4, tdes, one_way } = versions;
    bytes.push(code);
    [wrapped, iso_4, tdes, one_way].iter().for_each(|version| bytes.extend_from_slice(&version.to_be_bytes()));
}

/// Appends the byte 1 and the bytes, or the byte 0.
fn append_option(bytes: &mut Vec<u8>, some: Option<&[u8]>) {
    bytes.push(u8::from(some.is_some()));
    bytes.extend_from_slice(some.unwrap_or_default());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], EntryError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(EntryError::Unreadable)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, EntryError> {
        self.take(1)?.first().copied().ok_or(EntryError::Unreadable)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        self.take(N)?.try_into().map_err(|_| EntryError::Unreadable)
    }

    fn text(&mut self) -> Result<&'a str, EntryError> {
        let length = u16::from_be_bytes(self.array()?);
        std::str::from_utf8(self.take(length.into())?).map_err(|_| EntryError::Unreadable)
    }

    fn option<const N: usize>(&mut self) -> Result<Option<[u8; N]>, EntryError> {
        match self.byte()? {
            0 => Ok(None),
            1 => self.array().map(Some),
            _ => Err(EntryError::Unreadable),
        }
    }

    fn number(&mut self) -> Result<u64, EntryError> {
        self.array().map(u64::from_be_bytes)
    }

    fn stamp(&mut self) -> Result<Stamp, EntryError> {
        let (level, isolation) = (Level::from_code(self.byte()?)?, Isolation::from_code(self.byte()?)?);
        let token = self.text()?.into();
        let count = u16::from_be_bytes(self.array()?);
        let keys = (0..count).map(|_| self.key()).collect::<Result<_, _>>()?;
        Ok(Stamp { level, token, isolation, keys })
    }

    fn key(&mut self) -> Result<KeyStamp, EntryError> {
        let usage = self.text()?.into();
        Ok(KeyStamp { usage, version: u16::from_be_bytes(self.array()?), kcv: self.option()? })
    }

    fn body(&mut self) -> Result<Body, EntryError> {
        Ok(match self.byte()? {
            1 => Body::EngineStarted { engine: self.text()?.into() },
            2 => Body::EngineStopped,
            3 => Body::KeysReloaded,
            4 => Body::RecordsReencrypted { count: self.number()? },
            5 => Body::RotationEnded { checked: self.number()?, failed: self.number()? },
            6 => Body::Card(CardEvent {
                action: Action::from_code(self.byte()?)?,
                card: self.text()?.into(),
                reference: CardReference::from_bytes(self.array()?),
                control: self.option()?.map(ControlId::from_bytes),
                formats: match self.option()? {
                    Some(codes) => Some(Formats::from_codes(codes)?),
                    None => None,
                },
                key: match self.text()? {
                    "" => None,
                    key => Some(key.into()),
                },
                tried: self.option()?.map(TryStamp::from_bytes),
                predecessor: self.option()?.map(CardReference::from_bytes),
            }),
            10 => Body::BlocksTranslated(TranslatedBlocks {
                count: self.number()?,
                source_key: self.text()?.into(),
                target_key: self.text()?.into(),
                formats: Formats::from_codes(self.array()?)?,
                root: self.array()?,
            }),
            32 => Body::StoreRestored(self.origin()?),
            33 => Body::StoreSalvaged(self.origin()?),
            35 => Body::StorageKeysActivated(self.versions()?),
            36 => {
                let (versions, abandoned_records) = (self.versions()?, self.number()?);
                Body::StorageKeysRetired(RetiredStorageKeys { versions, abandoned_records })
            }
            37 => Body::EngineDeregistered { engine: self.text()?.into() },
            34 => Body::AuditArchived(ArchivedSegment {
                first: self.number()?,
                last: self.number()?,
                hash: self.array()?,
                file: self.text()?.into(),
                file_sha256: self.array()?,
            }),
            7 => Body::UnknownControl {
                action: Action::from_code(self.byte()?)?,
                control: ControlId::from_bytes(self.array()?),
                unrecorded: self.number()?,
            },
            8 => Body::CallDenied {
                method: Method::from_code(self.byte()?)?,
                reason: CallDenial::from_code(self.byte()?)?,
                unrecorded: self.number()?,
            },
            9 => Body::CredentialsRejected {
                network: self.text()?.parse().map_err(|_| EntryError::Unreadable)?,
                unrecorded: self.number()?,
            },
            _ => return Err(EntryError::Unreadable),
        })
    }

    fn versions(&mut self) -> Result<StorageKeyVersions, EntryError> {
        let mut version = || Ok::<_, EntryError>(u16::from_be_bytes(self.array()?));
        Ok(StorageKeyVersions { wrapped: version()?, iso_4: version()?, tdes: version()?, one_way: version()? })
    }

    fn origin(&mut self) -> Result<StoreOrigin, EntryError> {
        let (source, sequence) = (self.text()?.into(), self.number()?);
        Ok(StoreOrigin { source, sequence, hash: self.array()?, ended_controls: self.number()? })
    }
}

/// Decodes 64 lower-case hexadecimal digits.
pub(super) fn decode_hash(text: &str) -> Result<[u8; 32], EntryError> {
    let bytes = lower::decode_vec(text).map_err(|_| EntryError::Unreadable)?;
    bytes.try_into().map_err(|_| EntryError::Unreadable)
}
