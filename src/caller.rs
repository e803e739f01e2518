//! Who calls, for whom, and in whose name: what every use case is told before anything else.

use std::sync::Arc;

use thiserror::Error;

use crate::card::Tenant;

/// The longest auditUser, in characters.
pub const AUDIT_USER_CHARACTERS_MAX: usize = 128;

/// The caller of one use case.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The authenticated peer: the name on its certificate, or `loopback`.
    pub peer: Arc<str>,
    /// For which tenant it asks; whether it may has been judged.
    pub tenant: Tenant,
    /// Whom the client names. Audited, never trusted.
    pub audit_user: AuditUser,
}

/// Who asked, as the client says: 1 to 128 characters, none of them a control character.
#[derive(Clone, Debug)]
pub struct AuditUser(Arc<str>);

impl AuditUser {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, AuditUserError> {
        let length = text.chars().take(AUDIT_USER_CHARACTERS_MAX + 1).count();
        let taken = (1..=AUDIT_USER_CHARACTERS_MAX).contains(&length) && !text.chars().any(char::is_control);
        taken.then(|| Self(text.into())).ok_or(AuditUserError)
    }

    /// As text, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

/// The text is no auditUser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("auditUser is 1 to {AUDIT_USER_CHARACTERS_MAX} characters without control characters")]
pub struct AuditUserError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_user_is_short_and_printable() {
        assert_eq!(&*AuditUser::parse("jane@bank").unwrap().shared(), "jane@bank");
        for refused in ["", "a\nb", "\u{7}", &"x".repeat(129)] {
            assert!(AuditUser::parse(refused).is_err(), "{refused:?}");
        }
    }
}
