//! Which boundary level a token is used at: what was wanted, and what the token can do.

use crate::{
    binding::BoundaryLevel,
    config::{HostForm, Pkcs11, TokenForm, Wanted, WantedLevel},
    form::{NewRecordFormat, StorageFormat},
    open_error::OpenError,
    token::token_level_support,
};

/// A level, and a form that it makes.
pub(crate) enum LevelAndForm {
    Host(HostForm),
    Token(TokenForm),
}

impl LevelAndForm {
    pub(crate) fn level(&self) -> BoundaryLevel {
        match self {
            Self::Host(_) => BoundaryLevel::Host,
            Self::Token(_) => BoundaryLevel::Token,
        }
    }
}

/// The software token has one level: its ciphers are this process's own.
pub(crate) fn of_software(wanted: &Wanted) -> Result<HostForm, OpenError> {
    match wanted.level {
        WantedLevel::Host | WantedLevel::Best => host_form(wanted),
        WantedLevel::Token => Err(OpenError::BoundaryLevel {
            token: "software",
            why: "its keys and ciphers are in this process's memory".to_owned(),
        }),
    }
}

/// Of a PKCS#11 token: what it can do is tried.
pub(crate) fn of_token(token: &Pkcs11, wanted: &Wanted) -> Result<LevelAndForm, OpenError> {
    match wanted.level {
        WantedLevel::Host => host_form(wanted).map(LevelAndForm::Host),
        WantedLevel::Token => {
            let form = form_of(wanted, StorageFormat::Wrapped);
            let form =
                TokenForm::from_format(form).ok_or(OpenError::StorageFormat { form, level: BoundaryLevel::Token })?;
            match token_level_support(token)?.check(form) {
                Ok(()) => Ok(LevelAndForm::Token(form)),
                Err(why) => Err(OpenError::BoundaryLevel { token: "PKCS#11", why }),
            }
        }
        WantedLevel::Best => best(token, wanted),
    }
}

/// The level at which a PIN is both set and shown: format 4 is not shown at level `token`, format 0 is not made there.
fn best(token: &Pkcs11, wanted: &Wanted) -> Result<LevelAndForm, OpenError> {
    let form = match form_of(wanted, StorageFormat::Wrapped) {
        StorageFormat::Wrapped => TokenForm::Wrapped,
        StorageFormat::Iso3 => TokenForm::Iso3,
        StorageFormat::Iso4 | StorageFormat::Iso0 => return host_form(wanted).map(LevelAndForm::Host),
    };
    match token_level_support(token)?.check(form) {
        Ok(()) => Ok(LevelAndForm::Token(form)),
        Err(_) => host_form(wanted).map(LevelAndForm::Host),
    }
}

fn host_form(wanted: &Wanted) -> Result<HostForm, OpenError> {
    let form = form_of(wanted, StorageFormat::Iso4);
    HostForm::from_format(form).ok_or(OpenError::StorageFormat { form, level: BoundaryLevel::Host })
}

fn form_of(wanted: &Wanted, levels_own: StorageFormat) -> StorageFormat {
    wanted.form.as_ref().map_or(levels_own, NewRecordFormat::form)
}
