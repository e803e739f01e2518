//! What one audit entry says.

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use domain::card::Tenant;
use domain::control::ControlId;
use domain::time::UnixMillis;

/// What happened, before it has its place in the chain. The store gives it one, in the transaction of the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: UnixMillis,
    /// Who called: the name on the peer's certificate, or `loopback`.
    pub caller: Arc<str>,
    /// Whose card; none for the engine's own doings.
    pub tenant: Option<Tenant>,
    /// Who asked, as the client says: up to 128 characters, never trusted.
    pub audit_user: Arc<str>,
    /// What was asked for.
    pub action: Action,
    /// The card, masked: [`domain::card::PlasticId::masked`], or the masked account number where it has one. In an engine's
    /// own lines what it is about: how many records, or which engine started.
    pub card: Box<str>,
    /// Under which control.
    pub control: Option<ControlId>,
    /// The keys used, by reference and check value, such as `storage/1:A1B2C3`; empty where none was.
    pub keys: Arc<str>,
    /// From and to which formats, such as `iso-1>iso-4`; empty where none.
    pub formats: Cow<'static, str>,
    /// The boundary level and token, such as `host/software`.
    pub boundary: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Event {
    /// The name of the engine that started, `HOST:STORE DIRECTORY`; none in any other line.
    pub fn started_engine(&self) -> Option<&str> {
        (self.action == Action::StartEngine).then_some(&*self.card).filter(|name| !name.is_empty())
    }
}

/// What was asked for. The names are part of the stored format: add, never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The engine began to serve.
    StartEngine,
    /// The engine stopped in order.
    StopEngine,
    /// A card was registered or changed.
    RegisterCard,
    /// A control was opened.
    OpenControl,
    /// A tzpk was issued.
    IssueTzpk,
    /// A PIN was to be set.
    SetPin,
    /// A PIN was to be shown.
    ViewPin,
    /// PIN records were made anew under the newest storage key.
    RemakeRecords,
    /// Every PIN record was looked at and found under the newest storage key, but those that would not open.
    EndRotation,
    /// The boundary took up its keys as a ceremony had left them.
    TakeUpKeys,
    /// The block that set the PIN came again, and the PIN stands.
    ConfirmSetPin,
}

/// How it ended. The names are part of the stored format: add, never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Done,
    /// The block was not ISO-1 under the tzpk.
    Malformed,
    /// The PIN breaks the policy.
    RefusedPin,
    /// The control is another tenant's, for another purpose or another device key.
    Denied,
}

/// A line with its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 1, 2, 3 …
    pub sequence: u64,
    /// The hash of the entry before; zeros for the first.
    pub previous: [u8; 32],
    /// What happened.
    pub line: Event,
    /// SHA-256 over the encoding of all of the above.
    pub hash: [u8; 32],
}

/// The layout this release writes.
const VERSION: u8 = 1;

impl Entry {
    /// Gives a line its place behind the entry whose hash is `previous`.
    pub fn chain(sequence: u64, previous: [u8; 32], line: Event) -> Self {
        let hash = hash_of(sequence, &previous, &line);
        Self { sequence, previous, line, hash }
    }

    /// Whether its hash is the hash of what it says.
    pub fn is_whole(&self) -> bool {
        self.hash == hash_of(self.sequence, &self.previous, &self.line)
    }

    /// The stored form: what is hashed, then the hash.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENCODED_BYTES_USUAL);
        append_hashed(&mut bytes, self.sequence, &self.previous, &self.line);
        bytes.extend_from_slice(&self.hash);
        bytes
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let mut read = Reader(bytes);
        if read.byte()? != VERSION {
            return Err(EntryError::Unreadable);
        }
        let sequence = u64::from_be_bytes(read.array()?);
        let previous = read.array()?;
        let at = UnixMillis(u64::from_be_bytes(read.array()?));
        let action = action_of(read.byte()?)?;
        let outcome = outcome_of(read.byte()?)?;
        let control = match read.byte()? {
            0 => None,
            1 => Some(ControlId::from_bytes(read.array()?)),
            _ => return Err(EntryError::Unreadable),
        };
        let caller = read.text()?.into();
        let tenant = match read.text()? {
            "" => None,
            text => Some(Tenant::parse(text).map_err(|_| EntryError::Unreadable)?),
        };
        let line = Event {
            at,
            caller,
            tenant,
            audit_user: read.text()?.into(),
            action,
            card: read.text()?.into(),
            control,
            keys: read.text()?.into(),
            formats: Cow::Owned(read.text()?.to_owned()),
            boundary: read.text()?.into(),
            outcome,
        };
        let hash = read.array()?;
        if read.0.is_empty() { Ok(Self { sequence, previous, line, hash }) } else { Err(EntryError::Unreadable) }
    }

    /// As one line of JSON, for people and for [`Entry::from_json`].
    pub fn to_json(&self) -> String {
        let line = &self.line;
        let at = i64::try_from(line.at.0).ok().and_then(|at| Timestamp::from_millisecond(at).ok());
        let json = JsonEntry {
            sequence: self.sequence,
            at: at.unwrap_or(Timestamp::MAX),
            caller: (&*line.caller).into(),
            tenant: line.tenant.map(|tenant| tenant.as_str().to_owned()),
            audit_user: (&*line.audit_user).into(),
            action: line.action,
            card: (&*line.card).into(),
            control: line.control.map(|control| control.to_string()),
            keys: (&*line.keys).into(),
            formats: line.formats.clone(),
            boundary: (&*line.boundary).into(),
            outcome: line.outcome,
            previous: hex(&self.previous),
            hash: hex(&self.hash),
        };
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// Reads one line of JSON back: the very bytes of [`Entry::to_json`], so that the hash covers what a reader sees. Another
    /// text with the same meaning (spaces, order, escapes, digits of a time) is refused.
    ///
    /// # Errors
    /// [`EntryError::Unreadable`], or [`EntryError::Rewritten`] for another text with the same meaning.
    pub fn from_json(text: &str) -> Result<Self, EntryError> {
        let entry = Self::from_any_json(text)?;
        if entry.to_json() == text { Ok(entry) } else { Err(EntryError::Rewritten) }
    }

    fn from_any_json(text: &str) -> Result<Self, EntryError> {
        let json: JsonEntry = serde_json::from_str(text).map_err(|_| EntryError::Unreadable)?;
        let at = u64::try_from(json.at.as_millisecond()).map_err(|_| EntryError::Unreadable)?;
        let tenant = json.tenant.map(|tenant| Tenant::parse(&tenant)).transpose();
        let control = json.control.map(|control| ControlId::parse(&control)).transpose();
        let line = Event {
            at: UnixMillis(at),
            caller: (&*json.caller).into(),
            tenant: tenant.map_err(|_| EntryError::Unreadable)?,
            audit_user: (&*json.audit_user).into(),
            action: json.action,
            card: (&*json.card).into(),
            control: control.map_err(|_| EntryError::Unreadable)?,
            keys: (&*json.keys).into(),
            formats: Cow::Owned(json.formats.into_owned()),
            boundary: (&*json.boundary).into(),
            outcome: json.outcome,
        };
        let (previous, hash) = (unhex(&json.previous)?, unhex(&json.hash)?);
        Ok(Self { sequence: json.sequence, previous, line, hash })
    }
}

/// Why bytes or a text are not read as an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// Not an entry of this release.
    #[error("not an audit entry this release can read")]
    Unreadable,
    /// An entry in another text than [`Entry::to_json`] writes.
    #[error("an audit entry whose text is not as the engine exports it")]
    Rewritten,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonEntry<'a> {
    sequence: u64,
    at: Timestamp,
    caller: Cow<'a, str>,
    tenant: Option<String>,
    audit_user: Cow<'a, str>,
    action: Action,
    card: Cow<'a, str>,
    control: Option<String>,
    keys: Cow<'a, str>,
    formats: Cow<'a, str>,
    boundary: Cow<'a, str>,
    outcome: Outcome,
    previous: String,
    hash: String,
}

/// About what an entry takes in its stored form.
const ENCODED_BYTES_USUAL: usize = 384;

fn hash_of(sequence: u64, previous: &[u8; 32], line: &Event) -> [u8; 32] {
    append(&mut Vec::with_capacity(ENCODED_BYTES_USUAL), sequence, previous, line)
}

/// Appends the stored form of the entry that `line` becomes behind the one whose hash is `previous`; gives its hash.
pub fn append(bytes: &mut Vec<u8>, sequence: u64, previous: &[u8; 32], line: &Event) -> [u8; 32] {
    let at = bytes.len();
    append_hashed(bytes, sequence, previous, line);
    let hash: [u8; 32] = Sha256::digest(bytes.get(at..).unwrap_or_default()).into();
    bytes.extend_from_slice(&hash);
    hash
}

/// Everything but the hash; texts have their length before them, so no two lines look alike.
fn append_hashed(bytes: &mut Vec<u8>, sequence: u64, previous: &[u8; 32], line: &Event) {
    bytes.push(VERSION);
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(previous);
    bytes.extend_from_slice(&line.at.0.to_be_bytes());
    bytes.extend_from_slice(&[action_code(line.action), outcome_code(line.outcome)]);
    match line.control {
        Some(control) => {
            bytes.push(1);
            bytes.extend_from_slice(control.as_bytes());
        }
        None => bytes.push(0),
    }
    let tenant = line.tenant.as_ref().map_or("", Tenant::as_str);
    for text in [&*line.caller, tenant, &line.audit_user, &line.card, &line.keys, &line.formats, &line.boundary] {
        let kept = text.as_bytes().get(..usize::from(u16::MAX)).unwrap_or(text.as_bytes());
        bytes.extend_from_slice(&u16::try_from(kept.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(kept);
    }
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
}

fn action_code(action: Action) -> u8 {
    match action {
        Action::StartEngine => 1,
        Action::StopEngine => 2,
        Action::RegisterCard => 3,
        Action::OpenControl => 4,
        Action::IssueTzpk => 5,
        Action::SetPin => 6,
        Action::ViewPin => 7,
        Action::RemakeRecords => 8,
        Action::EndRotation => 9,
        Action::TakeUpKeys => 10,
        Action::ConfirmSetPin => 11,
    }
}

fn action_of(code: u8) -> Result<Action, EntryError> {
    use Action::{
        ConfirmSetPin, EndRotation, IssueTzpk, OpenControl, RegisterCard, RemakeRecords, SetPin, StartEngine,
        StopEngine, TakeUpKeys, ViewPin,
    };
    let all = [
        StartEngine,
        StopEngine,
        RegisterCard,
        OpenControl,
        IssueTzpk,
        SetPin,
        ViewPin,
        RemakeRecords,
        EndRotation,
        TakeUpKeys,
        ConfirmSetPin,
    ];
    all.into_iter().find(|action| action_code(*action) == code).ok_or(EntryError::Unreadable)
}

fn outcome_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Done => 1,
        Outcome::Malformed => 2,
        Outcome::RefusedPin => 3,
        Outcome::Denied => 4,
    }
}

fn outcome_of(code: u8) -> Result<Outcome, EntryError> {
    let all = [Outcome::Done, Outcome::Malformed, Outcome::RefusedPin, Outcome::Denied];
    all.into_iter().find(|outcome| outcome_code(*outcome) == code).ok_or(EntryError::Unreadable)
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 64 lower-case hexadecimal digits.
pub(super) fn unhex(text: &str) -> Result<[u8; 32], EntryError> {
    let mut bytes = [0; 32];
    // The one form that `hex` writes: no capital, and no sign, which from_str_radix would take.
    if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(EntryError::Unreadable);
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        let digits = text.get(at..at + 2).ok_or(EntryError::Unreadable)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| EntryError::Unreadable)?;
    }
    Ok(bytes)
}
