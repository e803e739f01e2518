//! The error of a value whose bytes cannot be read.

use thiserror::Error;

/// The bytes are not the layout of this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The number of bytes is wrong.
    #[error("a {what} does not have this length")]
    Length {
        /// The expected kind of value.
        what: &'static str,
    },
    /// The bytes are of another kind of value, or of another release.
    #[error("not a {what} this release can read")]
    Kind {
        /// The expected kind of value.
        what: &'static str,
    },
}
