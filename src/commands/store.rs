//! `pinseal store`: check, salvage, back up and restore the store of an engine; make, check and copy a database of engines.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use thiserror::Error;

use super::{
    card_list,
    signed_checkpoint::{self, SignedCheckpointError, verifier_key},
};
use audit::{note::VerifierKey, tree_head::TreeHead};
use config::ConfigError;
use domain::{storage_key::StorageKeyKind, time::UnixMillis};
use engine_server::{
    PostgresConfig, StoreConfig, StorePlace, audit_user, back_up_store, check_store, copy_store,
    database::{self, EngineReport, Migrated, PostgresOpenError},
    restore_store, salvage_store,
};
use store::{
    copy::{Copied, CopyError, CopyReport},
    upkeep::{ReadRows, UpkeepError},
};

/// `pinseal store`.
#[derive(Args)]
pub(crate) struct StoreArguments {
    #[command(subcommand)]
    command: StoreCommand,
}

/// What an operator does before an engine starts on a store of an older state.
const BEFORE_THE_START: &str =
    "before an engine starts on it: move {data_directory}/audit/checkpoint elsewhere, and keep it";

/// What an operator does before an engine starts on a copy.
const AFTER_A_COPY: &str = "start the engine with the keys and the {data_directory} of the source's engine, whose signing key continues its checkpoints";

const CHECK_CODES: &str = "\
The exit code is 0 when the store is whole, 3 when it is damaged, and 1 when it can't be checked. Engines may serve. The check \
reads a copy of an embedded store in TMPDIR, and a database in one transaction that only reads.";

const COPY_HELP: &str = "\
A copy that ended early is continued by the same command; no engine starts on a part of a copy. Controls that were open are over, and \
the audit chain records the copy as a restore.";

/// The source of a copy.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct CopyFrom {
    /// The directory of the store of a stopped engine, or of a backup
    #[arg(long, value_name = "DIR")]
    from_store: Option<PathBuf>,
    /// The configuration of an engine on a database without a registered engine; its engine_name names the chain that is copied
    #[arg(long, value_name = "FILE")]
    from_config: Option<PathBuf>,
}

/// The target of a copy.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct CopyTo {
    /// The directory of the new store, absent or empty
    #[arg(long, value_name = "DIR")]
    to_store: Option<PathBuf>,
    /// The configuration of an engine on an empty database; its engine_name gets the audit chain
    #[arg(long, value_name = "FILE")]
    to_config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Make the tables of a database, or migrate them to this release; needed where engines may not (`migrate = false`)
    Migrate {
        /// The configuration of an engine on the database, with the role that owns the tables
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Read every row of a store, backup or database and report the damage; changes nothing
    #[command(after_help = CHECK_CODES)]
    Check {
        /// The directory of the store or backup, such as pinseal-data/store
        #[arg(long, value_name = "DIR", required_unless_present = "config")]
        store: Option<PathBuf>,
        /// The configuration of an engine on a PostgreSQL database
        #[arg(long, value_name = "FILE", conflicts_with = "store")]
        config: Option<PathBuf>,
        /// The newest signed checkpoint of an engine of the store, such as pinseal-data/audit/checkpoint: the store must hold
        /// its entry. Without it, a store that lost its newest commits may be whole
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// The public key of the engine, or its file; by default the file `verifier-key` beside the checkpoint
        #[arg(long, value_name = "FILE|KEY", value_parser = verifier_key, requires = "checkpoint")]
        verifier_key: Option<VerifierKey>,
    },
    /// List the engines of a database: their registration, last entry and storage keys
    Engines {
        /// The configuration of an engine on the database
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// End the registration of an engine that ended without closing its store, so that it does not hold up a rotation
    Deregister {
        /// The configuration of an engine on the database
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The name of the engine that has ended
        #[arg(long, value_name = "NAME")]
        engine: String,
    },
    /// Copy a store whose engines have stopped into another, and compare each row; changes nothing in the source
    #[command(after_help = COPY_HELP)]
    Copy {
        #[command(flatten)]
        from: CopyFrom,
        #[command(flatten)]
        to: CopyTo,
        /// Leave the audit chains of the other engines of the source database; export and keep them before
        #[arg(long, requires = "from_config")]
        leave_chains: bool,
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
        StoreCommand::Migrate { config } => {
            let Migrated { from, to } = wait(database::migrate(&database_of(&config)?))??;
            match from {
                0 => writeln!(out, "the tables are made, version {to}")?,
                _ if from == to => writeln!(out, "the tables have version {to} already")?,
                _ => writeln!(out, "the tables are migrated from version {from} to version {to}")?,
            }
        }
        StoreCommand::Engines { config } => {
            let engines = wait(database::engines(&database_of(&config)?))??;
            engines.iter().try_for_each(|engine| print_engine(&mut out, engine))?;
        }
        StoreCommand::Deregister { config, engine } => {
            let database = database_of(&config)?;
            if wait(database::deregister(&database, &engine, &audit_user()))?? {
                writeln!(out, "the engine {engine} is deregistered")?;
            } else {
                let engines = wait(database::engines(&database))??;
                let known = engines.into_iter().find(|known| known.chain.engine == engine);
                match known {
                    None => return Err(StoreCommandError::NoEngine { engine }),
                    Some(EngineReport { registered: true, .. }) => return Err(StoreCommandError::Runs { engine }),
                    Some(_) => writeln!(out, "the engine {engine} is not registered: it closed its store")?,
                }
            }
        }
        StoreCommand::Check { config: Some(config), checkpoint, verifier_key, .. } => {
            let checkpoint =
                checkpoint.map(|path| signed_checkpoint::read(&path, verifier_key.as_ref())).transpose()?;
            let report = wait(database::check(&database_of(&config)?, checkpoint.as_ref()))??;
            for damage in &report.damage {
                writeln!(out, "damage: {damage}")?;
            }
            writeln!(out, "{}", report.counts)?;
            if report.older_records > 0 {
                let older = report.older_records;
                writeln!(out, "note: {older} PIN records are under an older storage key: an engine re-encrypts them")?;
            }
            for chain in &report.chains {
                writeln!(out, "checkpoint of {}: {}", chain.engine, chain.head)?;
            }
            if !report.damage.is_empty() {
                return Err(StoreCommandError::DatabaseDamaged { path: config, places: report.damage.len() });
            }
            writeln!(out, "the database of {} is whole", config.display())?;
            if let Some(TreeHead { head, .. }) = checkpoint {
                writeln!(out, "the database holds audit entry {} of the checkpoint", head.sequence)?;
            }
        }
        StoreCommand::Check { store, checkpoint, verifier_key, .. } => {
            let store = store.unwrap_or_default();
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
        StoreCommand::Copy { from, to, leave_chains } => {
            let configs = [&from.from_config, &to.to_config].map(|path| path.as_deref().map(database_of).transpose());
            let [from_config, to_config] = configs;
            let (from_config, to_config) = (from_config?, to_config?);
            let from = place(from.from_store.as_deref(), from_config.as_ref());
            let to = place(to.to_store.as_deref(), to_config.as_ref());
            match wait(copy_with_bar(from, to, leave_chains))?? {
                Copied::Before(event) => {
                    writeln!(out, "the copy was complete before, with the event {event}; nothing was compared now")?;
                }
                Copied::Now(report) => {
                    if report.continued {
                        writeln!(out, "an earlier copy was continued")?;
                    }
                    let CopyReport { cards, pins, retry_controls, audit_entries, ended_controls, end, event, .. } =
                        report;
                    let ended = format!("ended controls: {ended_controls}");
                    let kept = format!("controls kept for retries: {retry_controls}, audit entries: {audit_entries}");
                    writeln!(out, "compared: cards: {cards}, PINs: {pins}, {kept}\n{ended}")?;
                    writeln!(out, "checkpoint of the source: {end}\nthe copy ends with its event: {event}")?;
                    writeln!(out, "{AFTER_A_COPY}")?;
                }
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

fn wait<T>(task: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(task))
}

fn place<'a>(directory: Option<&'a Path>, config: Option<&'a PostgresConfig>) -> StorePlace<'a> {
    // clap requires one of them.
    config.map_or(StorePlace::Directory(directory.unwrap_or(Path::new(""))), StorePlace::Database)
}

/// Copies behind a progress bar, which a standard error that is no terminal does not get.
async fn copy_with_bar(from: StorePlace<'_>, to: StorePlace<'_>, leaves_chains: bool) -> Result<Copied, CopyError> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let text = "{bar:30} {pos}/{len} rows written and compared, {per_sec}, {eta}";
    bar.set_style(ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let copied = copy_store(from, to, leaves_chains, &mut |rows| bar.set_length(rows), &mut |rows| bar.inc(rows)).await;
    bar.finish_and_clear();
    copied
}

/// The database that a configuration names.
fn database_of(path: &Path) -> Result<PostgresConfig, StoreCommandError> {
    match StoreConfig::load(Some(path))? {
        StoreConfig::Postgres(config) => Ok(*config),
        StoreConfig::Embedded(_) => Err(StoreCommandError::NoDatabase { path: path.to_owned() }),
    }
}

fn print_engine(out: &mut impl Write, engine: &EngineReport) -> io::Result<()> {
    let state = match (engine.registered, engine.has_lease) {
        (false, _) => "not registered",
        (true, true) => "registered",
        (true, false) => "registered, its lease has expired",
    };
    let EngineReport { chain, loaded_keys, last_transaction, .. } = engine;
    write!(out, "{}: {state}; last entry {}", chain.engine, chain.head)?;
    if let Some(loaded) = loaded_keys {
        let versions_of = |kind| {
            let versions: Vec<_> = loaded.versions(kind).iter().map(u16::to_string).collect();
            (!versions.is_empty()).then(|| format!("{} {}", kind_name(kind), versions.join("+")))
        };
        let each: Vec<_> = database::KINDS.into_iter().filter_map(versions_of).collect();
        write!(out, "; storage keys: {}", each.join(", "))?;
    }
    if *last_transaction > UnixMillis::default()
        && let Some(time) =
            i64::try_from(last_transaction.0).ok().and_then(|time| Timestamp::from_millisecond(time).ok())
    {
        write!(out, "; last transaction {time}")?;
    }
    writeln!(out)
}

fn kind_name(kind: StorageKeyKind) -> &'static str {
    match kind {
        StorageKeyKind::Wrapped => "wrapped",
        StorageKeyKind::Iso4 => "ISO-4",
        StorageKeyKind::Tdes => "TDES",
        StorageKeyKind::OneWay => "one-way",
    }
}

/// The error of a command on a store.
#[derive(Debug, Error)]
pub(crate) enum StoreCommandError {
    /// The store was not checked, salvaged, backed up or restored.
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    /// The configuration can't be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database can't be opened, or refuses.
    #[error(transparent)]
    Database(#[from] PostgresOpenError),
    /// The configuration names an embedded store.
    #[error("{} has no [store.postgres]: name the configuration of an engine on PostgreSQL", path.display())]
    NoDatabase {
        /// The configuration.
        path: PathBuf,
    },
    /// No engine of the name has ever registered.
    #[error("the database has no engine {engine}: `pinseal store engines` lists the names")]
    NoEngine {
        /// The name.
        engine: String,
    },
    /// The engine renews its lease.
    #[error("the engine {engine} runs, or ended less than its lease ago: stop it, or try again after the lease")]
    Runs {
        /// The name of the engine.
        engine: String,
    },
    /// The check found damage.
    #[error(
        "the database of {} is damaged (places: {places}): restore it to a moment before the damage, and keep this one as \
         evidence",
        path.display()
    )]
    DatabaseDamaged {
        /// The configuration.
        path: PathBuf,
        /// The number of places that were printed.
        places: usize,
    },
    /// The store was not copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
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
            Self::Damaged { .. } | Self::DatabaseDamaged { .. } => 3,
            _ => 1,
        }
    }
}
