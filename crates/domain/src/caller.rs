//! The caller of a use case: the authenticated peer, its tenant, and the user that the client names.

use std::{ops::RangeInclusive, sync::Arc};

use thiserror::Error;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use crate::card::Tenant;
use crate::limits::AUDIT_USER_CHARACTERS_MAX;
use crate::request_id::RequestId;

/// The caller of one use case.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The authenticated peer: the name on its certificate, or `loopback`.
    pub peer: Arc<str>,
    /// The tenant of the cards. The peer's right to ask for this tenant was checked.
    pub tenant: Tenant,
    /// The user that the client names; audited, not authenticated.
    pub audit_user: AuditUser,
    /// The id of the request.
    pub request: RequestId,
}

/// The user that the client names: 1 to 128 visible characters or spaces.
///
/// The audit chain, its exports and the logs show the text. So no character may hide, break the line, or reorder the text
/// around it (Unicode Technical Report 36, section 2.5).
#[derive(Clone, Debug)]
pub struct AuditUser(Arc<str>);

impl AuditUser {
    /// Reads an auditUser.
    ///
    /// # Errors
    /// The text is empty, longer than 128 characters, or has a character that is not visible.
    pub fn parse(text: &str) -> Result<Self, AuditUserError> {
        is_visible_text(text, AUDIT_USER_CHARACTERS_MAX).then(|| Self(text.into())).ok_or(AuditUserError)
    }

    /// The text; the clone shares it.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

/// The text is not an auditUser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "auditUser is 1 to {AUDIT_USER_CHARACTERS_MAX} visible characters or spaces: no control, format, invisible, private-use \
     or unassigned characters"
)]
pub struct AuditUserError;

/// Whether the text is 1 to `max` visible characters or spaces.
pub(crate) fn is_visible_text(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.chars().take(max + 1).count()) && text.chars().all(is_visible)
}

/// Whether the character is visible or a space: not of the general categories Cc, Cf (bidi controls, zero-width
/// characters), Zl, Zp, Co, Cs and Cn (unassigned, noncharacters), and without Default_Ignorable_Code_Point.
fn is_visible(character: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, Surrogate, Unassigned};
    match character.general_category() {
        Control | Format | LineSeparator | ParagraphSeparator | PrivateUse | Surrogate | Unassigned => false,
        _ => !IGNORABLE.iter().any(|range| range.contains(&character)),
    }
}

/// The characters that have Default_Ignorable_Code_Point in another category than Cf and Cn (Unicode 16,
/// DerivedCoreProperties.txt): joiners, fillers and variation selectors.
const IGNORABLE: [RangeInclusive<char>; 8] = [
    '\u{34F}'..='\u{34F}',
    '\u{115F}'..='\u{1160}',
    '\u{17B4}'..='\u{17B5}',
    '\u{180B}'..='\u{180F}',
    '\u{3164}'..='\u{3164}',
    '\u{FE00}'..='\u{FE0F}',
    '\u{FFA0}'..='\u{FFA0}',
    '\u{E0100}'..='\u{E01EF}',
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_user_is_short_and_printable() {
        for accepted in
            ["jane@bank", "Åsa Bäck", "O\u{2019}Brien", "नेहा", "李 小龙", "\u{1F511}", &"\u{1F511}".repeat(128)]
        {
            assert_eq!(&*AuditUser::parse(accepted).unwrap().shared(), accepted);
        }
        for refused in ["", "a\nb", "\u{7}", &"x".repeat(129)] {
            assert!(AuditUser::parse(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn an_audit_user_has_no_character_that_hides_or_reorders() {
        let ranges = [
            ("controls", '\0'..='\u{1F}'),
            ("controls", '\u{7F}'..='\u{9F}'),
            ("soft hyphen", '\u{AD}'..='\u{AD}'),
            ("line and paragraph separators", '\u{2028}'..='\u{2029}'),
            ("Arabic letter mark", '\u{61C}'..='\u{61C}'),
            ("zero-width characters and bidi marks", '\u{200B}'..='\u{200F}'),
            ("bidi embeddings and overrides", '\u{202A}'..='\u{202E}'),
            ("joiners, invisible operators and bidi isolates", '\u{2060}'..='\u{206F}'),
            ("zero-width no-break space", '\u{FEFF}'..='\u{FEFF}'),
            ("interlinear annotations", '\u{FFF9}'..='\u{FFFB}'),
            ("tags", '\u{E0000}'..='\u{E007F}'),
            ("variation selectors", '\u{FE00}'..='\u{FE0F}'),
            ("fillers", '\u{3164}'..='\u{3164}'),
            ("private use", '\u{E000}'..='\u{F8FF}'),
            ("private use", '\u{10FFF0}'..='\u{10FFFD}'),
            ("unassigned", '\u{378}'..='\u{379}'),
            ("noncharacters", '\u{FDD0}'..='\u{FDEF}'),
            ("noncharacters", '\u{10FFFE}'..='\u{10FFFF}'),
        ];
        for (what, range) in ranges {
            for character in range {
                assert!(AuditUser::parse(&format!("a{character}b")).is_err(), "{what}: {character:?}");
            }
        }
    }
}
