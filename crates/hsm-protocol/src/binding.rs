//! The card, control, purpose and expiry that a sealed key is bound to, and the boundary level that made a record.

use std::fmt;

use crate::layout_error::LayoutError;

/// The most bytes of a tenant.
pub(crate) const TENANT_BYTES_MAX: usize = 64;
/// Digits of the longest plasticId.
pub(crate) const PLASTIC_ID_BYTES_MAX: usize = 19;

/// The card that a seal is bound to. Held without an allocation, so that a request can move to another thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CardBinding {
    tenant: InlineText<TENANT_BYTES_MAX>,
    plastic_id: InlineText<PLASTIC_ID_BYTES_MAX>,
}

impl CardBinding {
    /// A tenant of at most 64 bytes and a plasticId of at most 19 bytes.
    ///
    /// # Errors
    /// One of the texts is longer.
    pub fn new(tenant: &str, plastic_id: &str) -> Result<Self, LayoutError> {
        Ok(Self {
            tenant: InlineText::new(tenant).ok_or(LayoutError::Length { what: "tenant" })?,
            plastic_id: InlineText::new(plastic_id).ok_or(LayoutError::Length { what: "plasticId" })?,
        })
    }

    /// The card issuer, in UTF-8.
    pub fn tenant(&self) -> &[u8] {
        self.tenant.as_bytes()
    }

    /// The issuer's number of the card, in UTF-8.
    pub fn plastic_id(&self) -> &[u8] {
        self.plastic_id.as_bytes()
    }
}

/// UTF-8 text of at most `N` bytes; `N` is below 256.
#[derive(Clone, Copy, PartialEq, Eq)]
struct InlineText<const N: usize> {
    bytes: [u8; N],
    length: u8,
}

impl<const N: usize> InlineText<N> {
    fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; N];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes, length: u8::try_from(text.len()).ok()? })
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }
}

/// The one use of a tzpk: its card, control, purpose and expiry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The card of the PIN.
    pub card: CardBinding,
    /// The control that allows the use.
    pub control: ControlBinding,
}

/// The control that a tzpk is issued under.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ControlBinding {
    /// The 16 bytes of its controlId.
    pub id: [u8; 16],
    /// The direction of the PIN.
    pub purpose: Purpose,
    /// The end of the control, in milliseconds since 1970-01-01 UTC.
    pub expires_at_unix_milliseconds: u64,
}

/// The direction of a PIN under a tzpk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// From the device to storage.
    SetPin,
    /// From storage to the device.
    ViewPin,
}

/// Where a PIN block is decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundaryLevel {
    /// Inside the token: no clear block crosses its PKCS#11 interface. A token that is a library in this process may hold a
    /// clear block in the process's memory.
    Token,
    /// In locked memory of the boundary, for one operation.
    Host,
}

/// The process that the boundary runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// A confined process that holds nothing else.
    Process,
    /// The engine's process.
    #[default]
    Inline,
}

/// The boundary level and the process that made a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeAt {
    /// The boundary level.
    pub level: BoundaryLevel,
    /// The process of the boundary.
    pub isolation: Isolation,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Inline => "inline",
        })
    }
}

impl fmt::Display for BoundaryLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Host => "host",
        })
    }
}
