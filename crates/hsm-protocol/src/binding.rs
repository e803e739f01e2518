//! What everything at the boundary is bound to: a card, a control, a purpose, a time; and the level it was made at.

use std::fmt;

/// A card, as every seal names it.
#[derive(Clone, Copy)]
pub struct CardBinding<'a> {
    /// Whose card: up to 64 bytes.
    pub tenant: &'a str,
    /// Which card: 1 to 19 decimal digits.
    pub plastic_id: &'a str,
}

/// What one tzpk is good for.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// The one card.
    pub card: CardBinding<'a>,
    /// The one control.
    pub control: &'a [u8; 16],
    /// The one purpose.
    pub purpose: Purpose,
    /// When it ends.
    pub expires_at_unix_milliseconds: u64,
}

/// A binding that a worker can take along.
pub struct OwnedBinding {
    pub tenant: String,
    pub plastic_id: String,
    pub control: [u8; 16],
    pub purpose: Purpose,
    pub expires_at_unix_milliseconds: u64,
}

impl OwnedBinding {
    pub fn of(binding: &Binding<'_>) -> Self {
        Self {
            tenant: binding.card.tenant.to_owned(),
            plastic_id: binding.card.plastic_id.to_owned(),
            control: *binding.control,
            purpose: binding.purpose,
            expires_at_unix_milliseconds: binding.expires_at_unix_milliseconds,
        }
    }

    pub fn borrow(&self) -> Binding<'_> {
        Binding {
            card: CardBinding { tenant: &self.tenant, plastic_id: &self.plastic_id },
            control: &self.control,
            purpose: self.purpose,
            expires_at_unix_milliseconds: self.expires_at_unix_milliseconds,
        }
    }
}

/// What a tzpk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A PIN comes in.
    SetPin,
    /// A PIN goes out.
    ViewPin,
}

/// How near a clear block comes to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundaryLevel {
    /// It never crosses the token's interface in the clear: the token takes and returns it encrypted. A module that computes
    /// in this process may hold it in the process's memory.
    Token,
    /// It is in host memory for the length of one operation.
    Host,
}

/// Whether the boundary has a process of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// It has.
    Process,
    /// It shares the engine's.
    #[default]
    Inline,
}

/// Where a record was made: how near its clear block came to the host, and to whose process there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeAt {
    /// The boundary level.
    pub level: BoundaryLevel,
    /// Whose process it was.
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
