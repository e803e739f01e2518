//! The parts of a control that its row on disk and its packed form in memory write alike.

use domain::card::RegisteredAccount;
use domain::control::{Control, ControlState, PageClient, PageGrant, PageId, RetryTag, SealedTzpk, Spent, Thumbprint};

use crate::row_bytes::{RowReader, RowWriter};

/// The kind of the state of a control that has set a PIN.
pub const SET: u8 = 2;
const OPEN: u8 = 0;
const KEYED: u8 = 1;
const VIEWED: u8 = 3;
const MALFORMED: u8 = 4;
const REFUSED: u8 = 5;
const CHANGED: u8 = 6;

/// The flag of a control that pages of a client may start: its client is written.
const HAS_PAGE: u8 = 0x40;
/// The flag of a control that a page started: the page is written.
const PAGE_STARTED: u8 = 0x80;
/// The flags of a control's page.
pub const PAGE_FLAGS: u8 = HAS_PAGE | PAGE_STARTED;

/// The parts of a control that a store keeps until the control is spent. A spent control has none of them.
pub struct KeptParts<'a> {
    /// The only device key to serve.
    pub device_key: Option<&'a Thumbprint>,
    /// The account number of the card.
    pub account: Option<&'a RegisteredAccount>,
    /// The right of a client's pages to start the control.
    pub page: Option<PageGrant>,
}

impl<'a> KeptParts<'a> {
    /// The parts that a store keeps of this control.
    pub fn of_control(control: &'a Control) -> Self {
        match control.state {
            ControlState::Spent(_) => Self { device_key: None, account: None, page: None },
            ControlState::Open | ControlState::Keyed { .. } => {
                let Control { device_key, account, page, .. } = control;
                Self { device_key: device_key.as_ref(), account: account.as_ref(), page: *page }
            }
        }
    }
}

/// The kind of a state, 0 to 6.
pub fn kind_of(state: &ControlState) -> u8 {
    match state {
        ControlState::Open => OPEN,
        ControlState::Keyed { .. } => KEYED,
        ControlState::Spent(Spent::Set(_)) => SET,
        ControlState::Spent(Spent::Changed) => CHANGED,
        ControlState::Spent(Spent::Viewed) => VIEWED,
        ControlState::Spent(Spent::Malformed) => MALFORMED,
        ControlState::Spent(Spent::Refused) => REFUSED,
    }
}

/// Writes what a state has beside its kind: refused PINs (1 byte) and tzpk (blob), a retry tag (16 bytes), or nothing.
pub fn write_state(bytes: &mut RowWriter, state: &ControlState) {
    match state {
        ControlState::Keyed { tzpk, refused_pins } => {
            bytes.array(&[*refused_pins]);
            bytes.blob(&tzpk.0);
        }
        ControlState::Spent(Spent::Set(tag)) => bytes.array(&tag.0),
        ControlState::Open | ControlState::Spent(_) => {}
    }
}

/// Reads the state of this kind; `None` for bytes that [`write_state`] does not write.
pub fn read_state(kind: u8, read: &mut RowReader<'_>) -> Option<ControlState> {
    Some(match kind {
        OPEN => ControlState::Open,
        KEYED => {
            let [refused_pins] = read.array()?;
            ControlState::Keyed { tzpk: SealedTzpk(read.blob()?.into()), refused_pins }
        }
        SET => ControlState::Spent(Spent::Set(RetryTag(read.array()?))),
        CHANGED => ControlState::Spent(Spent::Changed),
        VIEWED => ControlState::Spent(Spent::Viewed),
        MALFORMED => ControlState::Spent(Spent::Malformed),
        REFUSED => ControlState::Spent(Spent::Refused),
        _ => return None,
    })
}

/// The flags of a control's page, among [`PAGE_FLAGS`].
pub fn page_flags(page: Option<&PageGrant>) -> u8 {
    match page {
        None => 0,
        Some(PageGrant { started_by: None, .. }) => HAS_PAGE,
        Some(PageGrant { started_by: Some(_), .. }) => PAGE_FLAGS,
    }
}

/// Writes the client of a control's page and the page that started it, 16 bytes each.
pub fn write_page(bytes: &mut RowWriter, page: Option<&PageGrant>) {
    if let Some(PageGrant { client, started_by }) = page {
        bytes.array(client.as_bytes());
        if let Some(started_by) = started_by {
            bytes.array(started_by.as_bytes());
        }
    }
}

/// Reads the page of these flags, of which only [`PAGE_FLAGS`] count; the outer `None` is for bytes that [`write_page`] does not
/// write.
#[allow(clippy::option_option, reason = "outer: readable; inner: there is one")]
pub fn read_page(flags: u8, read: &mut RowReader<'_>) -> Option<Option<PageGrant>> {
    let is_started = flags & PAGE_STARTED != 0;
    if flags & HAS_PAGE == 0 {
        return (!is_started).then_some(None);
    }
    let client = PageClient::from_bytes(read.array()?);
    let started_by = if is_started { Some(PageId::from_bytes(read.array()?)) } else { None };
    Some(Some(PageGrant { client, started_by }))
}
