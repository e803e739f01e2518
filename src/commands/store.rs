//! `pinseal store`: check, salvage, back up and restore the store of an engine.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use thiserror::Error;

use super::{
    card_list,
    signed_checkpoint::{self, SignedCheckpointError, verifier_key},
};
use audit::{note::VerifierKey, tree_head::TreeHead};
use engine_server::{back_up_store, check_store, restore_store, salvage_store};
use store::upkeep::{ReadRows, UpkeepError};

/// `pinseal store`.
#[derive(Args)]
pub(crate) struct StoreArguments {
    #[command(subcommand)]
    command: StoreCommand,
}

/// What an operator does before an engine starts on a store of an older state.
const BEFORE_THE_START: &str =
    "before an engine starts on it: move {data_directory}/audit/checkpoint elsewhere, and keep it";

const CHECK_CODES: &str = "\
The exit code is 0 when the store is whole, 3 when it is damaged, and 1 when it can't be checked. The check reads a copy of the \
store in TMPDIR; an engine may serve.";

#[derive(Subcommand)]
enum StoreCommand {
    /// Read every row of a store or backup and report the damage; changes nothing
    #[command(after_help = CHECK_CODES)]
    Check {
        /// The directory of the store or backup, such as pinseal-data/store
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// The newest signed checkpoint of the store's engine, such as pinseal-data/audit/checkpoint: the store must hold its
        /// entry. Without it, a store that lost its newest commits may be whole
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// The public key of the engine, or its file; by default the file `verifier-key` beside the checkpoint
        #[arg(long, value_name = "FILE|KEY", value_parser = verifier_key, requires = "checkpoint")]
        verifier_key: Option<VerifierKey>,
    },
    /// Write the rows of a damaged store up to the damage into a new store; changes nothing in the damaged one
    Salvage {
        /// The directory of the damaged store
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// The directory of the new store, absent or empty
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// A new file, mode 0600, for the cards whose PIN is lost or older than in the damaged store: TENANT PLASTIC_ID a line
        #[arg(long, value_name = "FILE")]
        lost_pins: Option<PathBuf>,
    },
    /// Write a backup of a store and verify it; an engine may serve
    Backup {
        /// The directory of the store
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// The directory of the backup, absent or empty
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Write a store from a backup; controls that were open are over, and the audit chain records the restore
    Restore {
        /// The directory of the backup
        #[arg(long, value_name = "DIR")]
        backup: PathBuf,
        /// The directory of the store, absent or empty
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

/// Runs one command on a store.
///
/// # Errors
/// The command fails, or a check finds damage.
pub(crate) fn run(arguments: StoreArguments) -> Result<(), StoreCommandError> {
    let mut out = io::stdout().lock();
    match arguments.command {
        StoreCommand::Check { store, checkpoint, verifier_key } => {
            // The engine signs what is on disk: a checkpoint that is read before the store is of an entry in the store.
            let checkpoint =
                checkpoint.map(|path| signed_checkpoint::read(&path, verifier_key.as_ref())).transpose()?;
            let report = check_store(&store, checkpoint.as_ref().map(|checkpoint| checkpoint.head))?;
            for damage in &report.damage {
                writeln!(out, "damage: {damage}")?;
            }
            if let Some(unfinished) = &report.unfinished {
                writeln!(out, "note: {unfinished}: the next start of an engine removes it")?;
            }
            if let Some(ReadRows { counts, end }) = report.rows {
                writeln!(out, "{counts}\ncheckpoint: {end}")?;
            }
            if !report.damage.is_empty() {
                return Err(StoreCommandError::Damaged { path: store, places: report.damage.len() });
            }
            writeln!(out, "the store {} is whole", store.display())?;
            if let Some(TreeHead { head, .. }) = checkpoint {
                writeln!(out, "the store holds audit entry {} of the checkpoint", head.sequence)?;
            }
        }
        StoreCommand::Salvage { store, to, lost_pins } => {
            let report = salvage_store(&store, &to)?;
            for damage in &report.damage {
                writeln!(out, "damage: {damage}")?;
            }
            writeln!(out, "rescued: {}", report.kept)?;
            writeln!(out, "ended controls: {}", report.ended_controls)?;
            if report.locked_cards > 0 {
                let next = "newer tries may be lost, so their PINs are locked for VerifyPin until ResetTries";
                writeln!(out, "cards without a try left: {} ({next})", report.locked_cards)?;
            }
            writeln!(out, "lost: {}", report.lost)?;
            if !report.has_key_list {
                writeln!(out, "lost: the list of keys: no engine serves the rescued PINs")?;
            }
            if !report.has_card_reference_key {
                let problem = "an engine makes another, so `audit export --card` finds no earlier entry";
                writeln!(out, "lost: the key of card references: {problem}")?;
            }
            writeln!(out, "checkpoint of the rescued chain: {}", report.end)?;
            writeln!(out, "the store {} ends with the event of the salvage: {}", to.display(), report.event)?;
            let cards = report.lost_pins.len();
            match lost_pins {
                Some(path) => {
                    card_list::write(&path, report.lost_pins)
                        .map_err(|error| StoreCommandError::LostPins { path: path.clone(), error })?;
                    writeln!(out, "cards whose PIN is lost or older: {cards}, in {}", path.display())?;
                }
                None => writeln!(out, "cards whose PIN is lost or older: {cards}; --lost-pins FILE lists them")?,
            }
            writeln!(out, "{BEFORE_THE_START}")?;
        }
        StoreCommand::Backup { store, to } => {
            let report = back_up_store(&store, &to)?;
            writeln!(out, "{}\ncheckpoint: {}", report.counts, report.end)?;
            if report.archived > 0 {
                let archived = report.archived;
                writeln!(out, "note: audit entries 1 to {archived} are in archive files: back up their directory too")?;
            }
            writeln!(out, "the backup {} is verified", to.display())?;
        }
        StoreCommand::Restore { backup, to } => {
            let report = restore_store(&backup, &to)?;
            writeln!(out, "{}\nended controls: {}", report.counts, report.ended_controls)?;
            writeln!(out, "checkpoint of the backup: {}", report.end)?;
            writeln!(out, "the store {} ends with the event of the restore: {}", to.display(), report.event)?;
            writeln!(out, "{BEFORE_THE_START}")?;
        }
    }
    Ok(())
}

/// The error of a command on a store.
#[derive(Debug, Error)]
pub(crate) enum StoreCommandError {
    /// The store was not checked, salvaged, backed up or restored.
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    /// The checkpoint can't be compared.
    #[error(transparent)]
    Checkpoint(#[from] SignedCheckpointError),
    /// The store was salvaged, and the list of cards was not written.
    #[error("the salvaged store is written, but not {}: {error}; name a new file, and salvage into another directory", path.display())]
    LostPins {
        /// The file of the list.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The check found damage.
    #[error(
        "the store {} is damaged (places: {places}): restore a backup (`pinseal store restore`), or rescue what can be read \
         (`pinseal store salvage`)",
        path.display()
    )]
    Damaged {
        /// The directory that was checked.
        path: PathBuf,
        /// The number of places that were printed.
        places: usize,
    },
    /// The output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StoreCommandError {
    /// The exit code of the process: 3 for damage.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Damaged { .. } => 3,
            Self::Upkeep(_) | Self::Checkpoint(_) | Self::LostPins { .. } | Self::Io(_) => 1,
        }
    }
}
