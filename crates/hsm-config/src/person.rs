//! The token with the key of a ceremony's participant. Its file has the keys of an engine's `[token]`.
//!
//! No error repeats the text of a file: the text may be a key or a PIN in the wrong place.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use config::{ConfigError, SecretSource, TomlError, parse_toml};

use super::{place, slot};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParticipantFile {
    token: ParticipantTokenFile,
}

/// The keys of `[token]` that name a token; the others concern an engine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParticipantTokenFile {
    module: PathBuf,
    module_parameters: Option<String>,
    label: Option<String>,
    serial: Option<String>,
    slot: Option<u64>,
    /// Without it the user PIN is typed on the terminal.
    user_pin: Option<SecretSource>,
}

/// Reads the token of a participant from the text of the file `path`.
///
/// # Errors
/// The text has no valid `[token]` section, or names a secret that cannot be read.
pub fn person_token(path: &Path, text: &str) -> Result<hsm::ParticipantToken, ConfigError> {
    let ParticipantFile { token } = parse_toml(text).map_err(|error| malformed(path, &error))?;
    Ok(hsm::ParticipantToken {
        place: place(token.module, token.module_parameters, slot(token.label, token.serial, token.slot)?)?,
        user_pin: token.user_pin.as_ref().map(SecretSource::read).transpose()?,
    })
}

/// Names the line and the expected content, not the content found.
fn malformed(path: &Path, error: &TomlError) -> ConfigError {
    let line = error.line;
    let message = format!(
        "the file is neither a participant's key (32 bytes) nor names a token (line {line}): write [token] with module, \
         one of label, serial and slot, and user_pin = {{ file = \"…\" }} unless the PIN is typed"
    );
    ConfigError::Malformed { path: path.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<hsm::ParticipantToken, String> {
        person_token(Path::new("lea.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_file_may_omit_the_user_pin() {
        let token = read("[token]\nmodule = \"m.so\"\nserial = \"0042\"").unwrap();
        assert_eq!(token.place.slot, hsm::SlotName::Serial("0042".into()));
        assert!(token.user_pin.is_none());
        let token = read("[token]\nmodule = \"m.so\"\nslot = 3\nuser_pin = { env = \"PATH\" }").unwrap();
        assert!(token.user_pin.is_some());
        assert!(read("[token]\nmodule = \"m.so\"").err().unwrap().contains("one of the token's label"));
    }

    #[test]
    fn a_malformed_token_file_is_named_by_line_without_content() {
        let secret = "9d61b19deffd5a60ba844af492ec2cc4";
        for (text, line) in [
            (secret.to_owned(), "line 1"),
            (format!("{secret} = 1"), "line 1"),
            (format!("[token]\nmodule = \"m.so\"\nlabel = \"lea\"\nuser_pin = \"{secret}\""), "line 4"),
            (format!("[token]\nmodule = \"m.so\"\nlabel = \"lea\"\n{secret} = 1"), "line 4"),
            (String::new(), "line 1"),
        ] {
            let refused = read(&text).err().unwrap();
            assert!(refused.contains(line) && refused.contains("lea.toml") && !refused.contains(secret), "{refused}");
        }
    }
}
