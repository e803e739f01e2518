//! The choice of the boundary level: from the configuration, and from the abilities of the token.

use hsm_protocol::{BoundaryLevel, NewRecordFormat, StorageFormat};

use crate::{
    config::{HostForm, Pkcs11, TokenForm, Wanted, WantedLevel},
    open_error::OpenError,
    token::token_level_support,
};

/// A level, and the format of new records at this level.
pub(crate) enum LevelAndFormat {
    Host(HostForm),
    Token(TokenForm),
}

impl LevelAndFormat {
    pub(crate) fn level(&self) -> BoundaryLevel {
        match self {
            Self::Host(_) => BoundaryLevel::Host,
            Self::Token(_) => BoundaryLevel::Token,
        }
    }
}

/// The format of new records of the software token, which works at level `host` only.
///
/// # Errors
/// [`OpenError::BoundaryLevel`] for level `token`; [`OpenError::StorageFormat`] for a format that level `host` does not make.
pub(crate) fn choose_for_software(wanted: &Wanted) -> Result<HostForm, OpenError> {
    match wanted.level {
        WantedLevel::Host | WantedLevel::Best => host_form(wanted),
        WantedLevel::Token => Err(OpenError::BoundaryLevel {
            token: "software",
            why: "its keys and ciphers are in this process's memory".to_owned(),
        }),
    }
}

/// The level and format of a PKCS#11 token, whose abilities are probed.
///
/// # Errors
/// [`OpenError::StorageFormat`] for a format that the level does not make; [`OpenError::BoundaryLevel`] for level `token`
/// where the token cannot make the format; and the errors of the probe.
pub(crate) fn choose_for_token(token: &Pkcs11, wanted: &Wanted) -> Result<LevelAndFormat, OpenError> {
    match wanted.level {
        WantedLevel::Host => host_form(wanted).map(LevelAndFormat::Host),
        WantedLevel::Token => {
            let format = format_or(wanted, StorageFormat::Wrapped);
            let form = TokenForm::from_format(format)
                .ok_or(OpenError::StorageFormat { form: format, level: BoundaryLevel::Token })?;
            match token_level_support(token)?.check(form) {
                Ok(()) => Ok(LevelAndFormat::Token(form)),
                Err(why) => Err(OpenError::BoundaryLevel { token: "PKCS#11", why }),
            }
        }
        WantedLevel::Best => best(token, wanted),
    }
}

/// The level at which a PIN can be set and shown. Level `token` cannot show format 4 and cannot make format 0.
fn best(token: &Pkcs11, wanted: &Wanted) -> Result<LevelAndFormat, OpenError> {
    let form = match format_or(wanted, StorageFormat::Wrapped) {
        StorageFormat::Wrapped => TokenForm::Wrapped,
        StorageFormat::Iso3 => TokenForm::Iso3,
        StorageFormat::Iso4 | StorageFormat::Iso0 | StorageFormat::OneWay => {
            return host_form(wanted).map(LevelAndFormat::Host);
        }
    };
    match token_level_support(token)?.check(form) {
        Ok(()) => Ok(LevelAndFormat::Token(form)),
        Err(_) => host_form(wanted).map(LevelAndFormat::Host),
    }
}

fn host_form(wanted: &Wanted) -> Result<HostForm, OpenError> {
    let format = format_or(wanted, StorageFormat::Iso4);
    HostForm::from_format(format).ok_or(OpenError::StorageFormat { form: format, level: BoundaryLevel::Host })
}

/// The configured format, or the default of the level.
fn format_or(wanted: &Wanted, default: StorageFormat) -> StorageFormat {
    wanted.form.as_ref().map_or(default, NewRecordFormat::form)
}
