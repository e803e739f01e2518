//! The tags of the newest blocks that set a card's PIN by a zone key.

use std::fmt;

use crate::control::RetryTag;

/// The number of tags that a card keeps: of the current block and the eight before it.
pub const ZONE_TAGS_MAX: usize = 9;

/// The tags of the newest blocks that set a card's PIN by a zone key, oldest first, at most [`ZONE_TAGS_MAX`]. Two sets of tags are
/// compared in constant time.
#[derive(Clone, Default)]
pub struct ZoneTags(Box<[RetryTag]>);

impl ZoneTags {
    /// The tags, oldest first; `None` for more than [`ZONE_TAGS_MAX`].
    pub fn new(tags: Box<[RetryTag]>) -> Option<Self> {
        (tags.len() <= ZONE_TAGS_MAX).then_some(Self(tags))
    }

    /// The tags, oldest first.
    pub fn as_slice(&self) -> &[RetryTag] {
        &self.0
    }

    /// Whether the newest block has this tag.
    pub(crate) fn is_newest(&self, tag: &RetryTag) -> bool {
        self.0.last().is_some_and(|newest| newest.matches(tag))
    }

    /// Whether one of the blocks has this tag.
    pub(crate) fn contain(&self, tag: &RetryTag) -> bool {
        // Every tag is compared, so the time does not depend on which one matches.
        self.0.iter().fold(false, |found, kept| kept.matches(tag) | found)
    }

    /// The tags with that of a newer block.
    pub(crate) fn with(&self, tag: RetryTag) -> Self {
        let over = self.0.len().saturating_add(1).saturating_sub(ZONE_TAGS_MAX);
        Self(self.0.iter().copied().skip(over).chain([tag]).collect())
    }
}

impl PartialEq for ZoneTags {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).fold(true, |same, (a, b)| a.matches(b) & same)
    }
}

impl Eq for ZoneTags {}

impl fmt::Debug for ZoneTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tags", self.0.len())
    }
}
