//! `pinseal vault`: make the software vault that an engine's keys are in.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use thiserror::Error;

use config::ConfigError;

/// `pinseal vault`.
#[derive(Args)]
pub(crate) struct VaultArguments {
    #[command(subcommand)]
    command: VaultCommand,
}

#[derive(Subcommand)]
enum VaultCommand {
    /// Make a vault with fresh keys, and its key file; nothing is made over what is there
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
    /// Seal the vault with the key file that is there; without this a key file must not be there
    #[arg(long)]
    use_key_file: bool,
}

/// Runs one of them.
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
    made.iter().try_for_each(|key| writeln!(out, "  {} {}", key.reference(), key.told_check_value()))?;
    Ok(())
}

/// Why a vault was not made.
#[derive(Debug, Error)]
pub(crate) enum VaultCommandError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys are not a vault's.
    #[error("the configuration names a PKCS#11 token: make its keys with `pinseal token make-keys`, or in a ceremony")]
    Token,
    /// The vault.
    #[error(transparent)]
    Hsm(#[from] hsm::OpenError),
    /// The output. The vault was made.
    #[error("the vault was made, and its keys can't be listed: {0}")]
    Io(#[from] io::Error),
}
