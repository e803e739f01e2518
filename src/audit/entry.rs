//! What one audit entry says.

use std::sync::Arc;

use crate::{card::Tenant, clock::UnixMillis, control::ControlId};

/// What happened, before it has its place in the chain. The store gives it one, in the transaction of the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub at: UnixMillis,
    /// Who called: the name on the peer's certificate, or `loopback`.
    pub caller: Arc<str>,
    /// Whose card; none for the engine's own doings.
    pub tenant: Option<Tenant>,
    /// Who asked, as the client says: up to 128 characters, never trusted.
    pub audit_user: Box<str>,
    /// What was asked for.
    pub action: Action,
    /// The card, masked: [`crate::card::PlasticId::masked`], or the masked account number where it has one.
    pub card: Box<str>,
    /// Under which control.
    pub control: Option<ControlId>,
    /// The keys used, by reference and check value, such as `storage/1:A1B2C3`; empty where none was.
    pub keys: Arc<str>,
    /// From and to which formats, such as `iso-1>iso-4`; empty where none.
    pub formats: &'static str,
    /// The boundary level and token, such as `host/software`.
    pub boundary: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
}

/// What was asked for. The names are part of the stored format: add, never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// How it ended. The names are part of the stored format: add, never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub line: Line,
    /// SHA-256 over the encoding of all of the above.
    pub hash: [u8; 32],
}
