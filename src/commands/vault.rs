//! `pinseal vault`: makes the software vault that holds the engine's keys.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use thiserror::Error;

use config::ConfigError;

/// The arguments of `pinseal vault`.
#[derive(Args)]
pub(crate) struct VaultArguments {
    #[command(subcommand)]
    command: VaultCommand,
}

#[derive(Subcommand)]
enum VaultCommand {
    /// Make a vault with fresh keys, and its key file; an existing file is not overwritten
    Create(CreateArguments),
}

#[derive(Args)]
struct CreateArguments {
    /// The configuration of the engine or the boundary: its [vault] names the file and what opens it
    #[arg(long, value_name = "FILE", required_unless_present = "data_directory")]
    config: Option<PathBuf>,
    /// Without a configuration: the directory of the vault and its key file
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_directory: Option<PathBuf>,
    /// Seal the vault with the existing key file; without this option the key file must not exist
    #[arg(long)]
    use_key_file: bool,
}

/// Makes the vault and prints the KCV of each key.
pub(crate) fn run(arguments: VaultArguments) -> Result<(), VaultCommandError> {
    let VaultCommand::Create(arguments) = arguments.command;
    let config = match &arguments.data_directory {
        Some(directory) => hsm_config::HsmProcess::embedded(directory),
        None => hsm_config::HsmProcess::load(arguments.config.as_deref()),
    };
    let hsm::Keys::Vault(vault) = config?.hsm.keys else { return Err(VaultCommandError::Token) };
    let key_file = if arguments.use_key_file { hsm::KeyFileUse::Existing } else { hsm::KeyFileUse::Refuse };
    let made = hsm::Hsm::create_vault(&vault, key_file)?;
    let mut out = io::stdout().lock();
    writeln!(out, "made, with check values:")?;
    made.iter().try_for_each(|key| writeln!(out, "  {} {}", key.reference(), key.kcv_text()))?;
    Ok(())
}

/// The vault was not made, or its keys were not listed.
#[derive(Debug, Error)]
pub(crate) enum VaultCommandError {
    /// The configuration can't be read, or is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration names a PKCS#11 token.
    #[error("the configuration names a PKCS#11 token: make its keys with `pinseal token make-keys`, or in a ceremony")]
    Token,
    /// The vault or its key file can't be made.
    #[error(transparent)]
    Hsm(#[from] hsm::OpenError),
    /// Standard output can't be written. The vault was made.
    #[error("the vault was made, and its keys can't be listed: {0}")]
    Io(#[from] io::Error),
}
