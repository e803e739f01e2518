//! `pinseal ceremony`: one command for each step of a key ceremony, for people and for scripts.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use hsm::{
    ComponentError, ComponentTerminal, Components, KeyAlgorithm, KeyBlock, KeyBlockVersion, KeyInfo, KeyStore,
    KeyStoreError, KeyUsage, KeyUse, ParityPolicy, ParticipantKey, make_components,
};
use serde_json::json;
use thiserror::Error;

use ceremony::{
    action::{CeremonyAction, Component, Key, UseCount},
    participant_key::{self, ParticipantKeyError},
    records::{ConfiguredStore, EngineStore, OpeningDatabase, RecordSources, RecordsError},
    roster::{Roster, RosterError, Step},
    session::{Session, SessionError},
    transcript::{Transcript, TranscriptError},
    transcript_file::{TranscriptFile, TranscriptFileError},
};
use config::ConfigError;
use domain::storage_key::StorageKeyKind;
use engine_client::EngineTls;
use engine_server::{
    PostgresConfig, StoreConfig, audit_user,
    database::{self, RecordsUnderKey, RetireError},
    open_store_copy,
};
use store::StoreOpenError;

/// The most bytes read of a key block: more than the longest block and its line end.
const BLOCK_BYTES_MAX: u64 = 64 * 1024;

/// The notice before clear components are typed or shown. PCI PIN 6-2 and 13-9 require a dedicated machine.
const NOT_COMPLIANT: &str = "note: clear components on a general-purpose computer do not meet PCI PIN 6-2 and 13-9; \
                             use a dedicated machine, or treat this as a rehearsal";

/// The help on the file that names a participant's token.
const PERSON_TOKEN: &str = "A file that names a token, with the settings of an engine's configuration:\n  \
    [token]\n  \
    module = \"/usr/lib/opensc-pkcs11.so\"\n  \
    label = \"alice\"            # or serial, or slot\n  \
    user_pin = { file = \"…\" }  # or env, or descriptor; without it, the PIN is typed on the terminal";

/// The help on the engines whose records `retire` counts.
const RETIRE_EXAMPLES: &str = "Name every engine that uses the keys: by --engine while it runs, by --store while it is stopped.\n  \
    pinseal ceremony retire storage/1 --engine 127.0.0.1:50051 --config engine.toml \\\n      \
        --transcript transcript.jsonl --present lea.key --present alice.key --present bob.key\n  \
    pinseal ceremony retire storage/1 --store /var/lib/pinseal/store --store /mnt/second/store \\\n      \
        --config hsm.toml --transcript …";

/// The arguments of `pinseal ceremony`.
#[derive(Args)]
#[command(after_help = "A ceremony, in short:\n  \
    pinseal ceremony person --out alice.key           each participant; prints the public key for the roster\n  \
    pinseal ceremony person --token alice.toml        or each in their own token\n  \
    pinseal ceremony begin --roster roster.toml ...   all participants\n  \
    pinseal ceremony load storage ...                 each custodian types a component\n  \
    pinseal ceremony activate storage/1 ...\n  \
    pinseal ceremony end ...\n  \
    pinseal ceremony verify transcript.jsonl          anyone, on any machine, later\n\
    Every step takes --config, --transcript and a --present for each participant; docs/ceremony.md walks through.\n\n\
    Exit codes of a step:\n  \
    0  the step was done\n  \
    1  nothing was done\n  \
    2  the arguments are wrong, and nothing was done\n  \
    3  the keys changed, or may have, and the transcript's line or the output failed: run any step again on the\n     \
       same transcript, which recovers the line; `list` shows the keys")]
pub(crate) struct CeremonyArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a participant's key, which signs the steps they attend; print its public key
    #[command(after_help = PERSON_TOKEN)]
    Person(PersonArguments),
    /// Begin: put the vault or token in the custody of a roster, and open a transcript
    Begin {
        #[command(flatten)]
        at: At,
        /// The roster, in TOML
        #[arg(long, value_name = "FILE")]
        roster: PathBuf,
    },
    /// Make a fresh key of random bytes, pending
    Make {
        /// storage, storage-3des, storage-one-way, seal, account; of a vault record, retry; of a token mac; zone:NAME,
        /// exchange:NAME, pvk:NAME:PVKI or ibm-3624:NAME:TABLE:FIRST-LAST-PAD
        #[arg(value_parser = key_name)]
        key: KeyUsage,
        /// aes-256, aes-192, aes-128, 3des-double or 3des-triple; by default the first that the key allows
        #[arg(long, value_parser = algorithm)]
        algorithm: Option<KeyAlgorithm>,
        #[command(flatten)]
        at: At,
    },
    /// Make a fresh key in components, and show each custodian present their component; the key is not stored
    MakeComponents {
        /// aes-256, aes-192, aes-128, 3des-double or 3des-triple
        #[arg(long, value_parser = algorithm, default_value = "aes-256")]
        algorithm: KeyAlgorithm,
        #[command(flatten)]
        at: At,
    },
    /// Load a key from its components, pending: each custodian present types one, and its check value
    Load {
        /// storage, seal, zone:NAME, pvk:NAME:PVKI, ibm-3624:NAME:TABLE:FIRST-LAST-PAD and so on
        #[arg(value_parser = key_name)]
        key: KeyUsage,
        /// aes-256, aes-192, aes-128, 3des-double or 3des-triple; by default the first that the key allows
        #[arg(long, value_parser = algorithm)]
        algorithm: Option<KeyAlgorithm>,
        #[command(flatten)]
        at: At,
    },
    /// Import a key from a key block under a key-exchange key, pending
    Import {
        /// zone:NAME, exchange:NAME, pvk:NAME:PVKI or ibm-3624:NAME:TABLE:FIRST-LAST-PAD
        #[arg(value_parser = key_name)]
        key: KeyUsage,
        /// The key-exchange key of the block, exchange:NAME
        #[arg(long, value_parser = key_name, value_name = "KEY")]
        under: KeyUsage,
        /// The key block; `-` or nothing for standard input
        #[arg(default_value = "-", value_name = "BLOCK")]
        block: String,
        #[command(flatten)]
        at: At,
    },
    /// Export a zone key in a key block under a key-exchange key; prints the block
    Export {
        /// The key and its version, such as zone:NAME/1
        #[arg(value_parser = key_reference)]
        key: (KeyUsage, u16),
        /// The key-exchange key of the block, exchange:NAME
        #[arg(long, value_parser = key_name, value_name = "KEY")]
        under: KeyUsage,
        /// The version of the key block, D or E
        #[arg(long, value_parser = block_version, default_value = "D")]
        block_version: KeyBlockVersion,
        #[command(flatten)]
        at: At,
    },
    /// Activate a pending key
    Activate {
        /// The key and its version, such as storage/1
        #[arg(value_parser = key_reference)]
        key: (KeyUsage, u16),
        #[command(flatten)]
        at: At,
    },
    /// Retire a key; a storage or seal key only when no record in any engine's store is under it
    #[command(after_help = RETIRE_EXAMPLES)]
    Retire {
        /// The key and its version, such as storage/1 or zone:NAME/1
        #[arg(value_parser = key_reference)]
        key: (KeyUsage, u16),
        #[command(flatten)]
        records: RecordsArguments,
        #[command(flatten)]
        at: At,
    },
    /// Wipe a retired key, confirmed twice: by its reference, and by its check value
    Destroy {
        /// The key and its version, such as zone:NAME/1
        #[arg(value_parser = key_reference)]
        key: (KeyUsage, u16),
        /// The reference once more; without this option the command asks for it
        #[arg(long, value_name = "KEY")]
        confirm: Option<String>,
        /// Its check value; without this option the command asks for it
        #[arg(long, value_name = "CHECK VALUE")]
        confirm_check_value: Option<String>,
        #[command(flatten)]
        records: RecordsArguments,
        #[command(flatten)]
        at: At,
    },
    /// End the ceremony: no line follows in the transcript
    End {
        #[command(flatten)]
        at: At,
    },
    /// List the keys: usage, algorithm, check value, state and its date
    List {
        /// The engine's configuration: its [vault] or [token] says where the keys are
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a transcript, which needs no other file, and print it
    Verify {
        /// The transcript to check
        #[arg(value_name = "FILE")]
        transcript: PathBuf,
        /// A separate copy of the roster, which the transcript must begin with
        #[arg(long, value_name = "FILE")]
        roster: Option<PathBuf>,
        /// Accept a transcript that has not ended
        #[arg(long)]
        open: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// The place of a participant's key.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct PersonArguments {
    /// Make the key in this file; an existing file is not overwritten
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Make the key inside the token that this file names; a token holds one such key
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Make no key: print the public key of the key in this file, or in the token that it names
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
}

impl PersonArguments {
    fn key(&self) -> Result<Option<ParticipantKey>, ParticipantKeyError> {
        match self {
            Self { out: Some(path), .. } => Ok(Some(ParticipantKey::make(path)?)),
            Self { token: Some(path), .. } => participant_key::make_in_token(path).map(Some),
            Self { show: Some(path), .. } => participant_key::read(path).map(Some),
            Self { .. } => Ok(None),
        }
    }
}

/// The stores and engines whose records under a storage or seal key are counted, beside the store of the configuration.
#[derive(Args)]
struct RecordsArguments {
    /// The store directory of a stopped engine, in which records under the key are counted; once for each
    #[arg(long, value_name = "DIRECTORY")]
    store: Vec<PathBuf>,
    /// A running engine, which counts its records under the key, such as 127.0.0.1:50051 or https://engine.internal:50051;
    /// once for each
    #[arg(long, value_name = "ADDRESS", conflicts_with = "no_store")]
    engine: Vec<String>,
    #[command(flatten)]
    tls: EngineTls,
    /// Count nothing: no engine has ever used the key, or no such engine exists. If an engine uses it, every PIN under the
    /// key is lost. The command asks twice; the transcript records it
    #[arg(long, conflicts_with = "store")]
    no_store: bool,
    /// With --no-store: the key's name, to confirm that no store has a record under it; without this option the command asks
    #[arg(long, value_name = "KEY", requires = "no_store")]
    confirm_no_record: Option<String>,
    /// With --no-store: the key's name, to confirm that no engine uses it; without this option the command asks
    #[arg(long, value_name = "KEY", requires = "no_store")]
    confirm_no_engine: Option<String>,
    /// Give up the PINs of the one-way records under the key: each of their cards needs a new PIN. The records are counted,
    /// the command asks twice, and the transcript records it
    #[arg(long, conflicts_with = "no_store")]
    abandon: bool,
    /// With --abandon: the key's name; without this option the command asks
    #[arg(long, value_name = "KEY", requires = "abandon")]
    confirm_abandon: Option<String>,
    /// With --abandon: the number of PINs that are lost; without this option the command asks
    #[arg(long, value_name = "N", requires = "abandon")]
    confirm_abandoned_pins: Option<String>,
}

/// A storage key of a database that is retired.
struct DatabaseRetirement {
    config: Box<PostgresConfig>,
    kinds: &'static [StorageKeyKind],
    version: u16,
    records: RecordsUnderKey,
}

impl DatabaseRetirement {
    /// Without a storage key, `None`.
    fn new(config: Box<PostgresConfig>, name: &KeyUsage, version: u16, records: RecordsUnderKey) -> Option<Self> {
        let kinds: &[StorageKeyKind] = match name {
            KeyUsage::Storage => &[StorageKeyKind::Wrapped, StorageKeyKind::Iso4],
            KeyUsage::StorageWrapped => &[StorageKeyKind::Wrapped],
            KeyUsage::StorageIso4 => &[StorageKeyKind::Iso4],
            KeyUsage::StorageTdes | KeyUsage::StorageIso3 => &[StorageKeyKind::Tdes],
            KeyUsage::StorageOneWay => &[StorageKeyKind::OneWay],
            _ => return None,
        };
        Some(Self { config, kinds, version, records })
    }

    /// R10, step 6: no engine of the database writes or reads a record under the storage key from the acknowledgement on.
    fn run(&self) -> Result<(), CeremonyError> {
        let Self { config, kinds, version, records } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(database::retire(config, kinds, *version, *records, &audit_user()))?;
        Ok(())
    }
}

/// The records under a key.
struct CountedRecords {
    key_use: KeyUse,
    /// For the transcript; `None` for a key that needs no count.
    count: Option<UseCount>,
    database: Option<DatabaseRetirement>,
}

impl CountedRecords {
    /// Retires the key in the database, once the key store has accepted the step and before the step is stored: a refusal of either
    /// leaves nothing half done. A step that fails afterwards may be repeated.
    fn retire_in_database(&self) -> Result<(), CeremonyError> {
        self.database.as_ref().map_or(Ok(()), DatabaseRetirement::run)
    }
}

/// The engines of a database, without the operator's chain.
async fn engine_stores(config: &PostgresConfig) -> Result<Vec<EngineStore>, StoreOpenError> {
    let opened = database::open_all_to_read(config).await?.into_iter();
    let engines = opened.filter(|(engine, _)| engine.chain.engine != database::OPERATOR);
    Ok(engines.map(|(engine, store)| EngineStore { store, registered: engine.registered }).collect())
}

impl RecordsArguments {
    /// Counts the records under a key.
    fn count(
        &self,
        keys: &KeyStore,
        name: &KeyUsage,
        version: u16,
        config: &Path,
    ) -> Result<CountedRecords, CeremonyError> {
        if !keys.needs_count(name, version) {
            return Ok(CountedRecords { key_use: KeyUse::NotCounted, count: None, database: None });
        }
        if self.no_store {
            if name.keeps_records() && matches!(StoreConfig::load(Some(config))?, StoreConfig::Postgres(_)) {
                return Err(CeremonyError::DatabaseNotAsked { key: format!("{name}/{version}") });
            }
            self.confirm_no_store(&format!("{name}/{version}"))?;
            let count = Some(UseCount::NoStore);
            return Ok(CountedRecords { key_use: KeyUse::ConfirmedUnused, count, database: None });
        }
        let configured = StoreConfig::load(Some(config))?;
        let open_database;
        let configured_store = match &configured {
            StoreConfig::Embedded(store) => ConfiguredStore::Directory(&store.directory),
            StoreConfig::Postgres(store) => {
                open_database = move || -> OpeningDatabase<'_> { Box::pin(engine_stores(store)) };
                ConfiguredStore::Database(&open_database)
            }
        };
        let sources = RecordSources {
            stores: &self.store,
            engines: &self.engine,
            tls: &self.tls,
            config,
            configured_store,
            open_store_copy,
        };
        let (kept, count) = sources.count(keys, name, version)?;
        if let UseCount::Count { not_asked, .. } = &count
            && !not_asked.is_empty()
        {
            let listed = not_asked.join(", ");
            writeln!(
                io::stderr(),
                "note: not asked: {listed}; count there too if such an engine or store still exists"
            )?;
        }
        let records = kept.records_under(name, version);
        let (key_use, count, under) = match count {
            UseCount::Count { asked, not_asked } if self.abandon && records > 0 => {
                self.confirm_abandon(name, &format!("{name}/{version}"), records)?;
                let under = RecordsUnderKey::GiveUp { confirmed: records };
                (KeyUse::Abandoned(kept), UseCount::Abandon { records, asked, not_asked }, under)
            }
            count => (KeyUse::Counted(kept), count, RecordsUnderKey::Refuse),
        };
        let database = match configured {
            StoreConfig::Postgres(store) => DatabaseRetirement::new(store, name, version, under),
            StoreConfig::Embedded(_) => None,
        };
        Ok(CountedRecords { key_use, count: Some(count), database })
    }

    fn confirm_abandon(&self, name: &KeyUsage, key: &str, records: u64) -> Result<(), CeremonyError> {
        if *name != KeyUsage::StorageOneWay {
            return Err(CeremonyError::NotOneWay { key: key.to_owned() });
        }
        let lost = records.to_string();
        let questions = [
            (
                &self.confirm_abandon,
                key,
                format!("{lost} PINs are under {key} and will be lost. Type the key's name: "),
            ),
            (
                &self.confirm_abandoned_pins,
                &lost,
                "Each of their cards needs a new PIN. Type the number of PINs: ".to_owned(),
            ),
        ];
        for (given, wanted, question) in questions {
            let typed = given.clone().map_or_else(|| ask(&question), Ok)?;
            if typed != wanted {
                return Err(CeremonyError::AbandonNotConfirmed { wanted: wanted.to_owned() });
            }
        }
        Ok(())
    }

    fn confirm_no_store(&self, key: &str) -> Result<(), CeremonyError> {
        let questions = [
            (&self.confirm_no_record, format!("No store has a PIN or a control under {key}? Type its name: ")),
            (&self.confirm_no_engine, format!("And no engine uses {key}? Type its name once more: ")),
        ];
        for (given, question) in questions {
            let typed = given.clone().map_or_else(|| ask(&question), Ok)?;
            if typed != key {
                return Err(CeremonyError::NoStoreNotConfirmed { key: key.to_owned() });
            }
        }
        Ok(())
    }
}

/// The keys, the transcript and the participants of a step.
#[derive(Args)]
struct At {
    /// The engine's configuration: its [vault] or [token] says where the keys are
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The transcript of this ceremony
    #[arg(long, value_name = "FILE")]
    transcript: PathBuf,
    /// The key of a participant who is present, or a file that names their token; once for each
    #[arg(long, value_name = "FILE", required = true)]
    present: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl At {
    fn session(&self) -> Result<Session, CeremonyError> {
        self.session_for(Step::Keys)
    }

    fn session_for(&self, step: Step) -> Result<Session, CeremonyError> {
        // Locked before the keys are read, so that no other step changes them in between.
        let transcript = TranscriptFile::open(&self.transcript)?;
        Ok(Session::go_on(open_store(&self.config)?, transcript, &self.present, step)?)
    }

    /// Records the action in the transcript and prints it.
    fn done(&self, session: &mut Session, action: CeremonyAction) -> Result<(), CeremonyError> {
        session.record(action.clone())?;
        let text = if self.json { json!(action).to_string() } else { action.to_string() };
        print_done(session, &text)
    }
}

/// Prints the result of a step. The step stays done where this fails.
fn print_done(session: &Session, text: &str) -> Result<(), CeremonyError> {
    let unprinted = |error| CeremonyError::StepNotPrinted { transcript: session.transcript().to_owned(), error };
    writeln!(io::stdout(), "{text}").map_err(unprinted)
}

/// Runs one step, or lists keys, or checks a transcript.
pub(crate) fn run(arguments: CeremonyArguments) -> Result<(), CeremonyError> {
    let now = clock::now().0;
    match arguments.command {
        Command::Person(arguments) => {
            let key = arguments.key()?;
            let Some(key) = key else { return Ok(()) };
            let printed = writeln!(io::stdout(), "{}", key.public());
            printed.map_err(|error| match arguments.out.or(arguments.token) {
                Some(path) => CeremonyError::ParticipantKeyNotPrinted { path, error },
                None => CeremonyError::Io(error),
            })
        }
        Command::Begin { at, roster } => begin(&at, &roster),
        Command::Make { key, algorithm, at } => {
            let mut session = at.session()?;
            let algorithm = algorithm_of(&session.store, &key, algorithm)?;
            let made = session.store.make(key, algorithm, now)?;
            at.done(&mut session, CeremonyAction::MakeKey { key: Key::of(&made) })
        }
        Command::MakeComponents { algorithm, at } => make_in_components(&at, algorithm),
        Command::Load { key, algorithm, at } => load(&at, key, algorithm, now),
        Command::Import { key, under, block, at } => {
            let text = block_text(block)?;
            let header = KeyBlock::parse(&text).map_err(KeyStoreError::from)?.header_text();
            let mut session = at.session()?;
            let imported = session.store.import(key, &text, &under, now)?;
            check_parity(&at.config, &imported)?;
            at.done(
                &mut session,
                CeremonyAction::ImportKey { key: Key::of(&imported), under: under.to_string(), header },
            )
        }
        Command::Export { key: (name, version), under, block_version, at } => {
            let mut session = at.session()?;
            let block = session.store.export((&name, version), &under, block_version)?;
            let key = key_entry(&session.store, &name, version)?;
            let header = KeyBlock::parse(&block).map_err(KeyStoreError::from)?.header_text();
            session.record(CeremonyAction::ExportKey { key, under: under.to_string(), header })?;
            let text = if at.json { json!({ "key_block": block }).to_string() } else { block };
            print_done(&session, &text)
        }
        Command::Activate { key: (name, version), at } => {
            let mut session = at.session()?;
            let key = Key::of(&session.store.activate(&name, version, now)?);
            at.done(&mut session, CeremonyAction::Activate { key })
        }
        Command::Retire { key: (name, version), records, at } => {
            let mut session = at.session()?;
            let counted = records.count(&session.store, &name, version, &at.config)?;
            let key = Key::of(&session.store.retire(&name, version, &counted.key_use, now)?);
            counted.retire_in_database()?;
            at.done(&mut session, CeremonyAction::Retire { key, count: counted.count })
        }
        Command::Destroy { key: (name, version), confirm, confirm_check_value, records, at } => {
            let mut session = at.session()?;
            let reference = format!("{name}/{version}");
            let confirmed = confirm.map_or_else(|| ask(&format!("Destroy {reference}? Type its name: ")), Ok)?;
            if confirmed != reference {
                return Err(CeremonyError::NotConfirmed);
            }
            let check_value =
                confirm_check_value.map_or_else(|| ask("And its check value, read by another participant: "), Ok)?;
            let counted = records.count(&session.store, &name, version, &at.config)?;
            let key = Key::of(&session.store.destroy(&name, version, &check_value, &counted.key_use, now)?);
            counted.retire_in_database()?;
            at.done(&mut session, CeremonyAction::Destroy { key, count: counted.count })
        }
        Command::End { at } => {
            let mut session = at.session_for(Step::Frame)?;
            at.done(&mut session, CeremonyAction::End)
        }
        Command::List { config, json } => list(&config, json),
        Command::Verify { transcript, roster, open, json } => {
            let roster = roster.as_deref().map(read_roster).transpose()?;
            verify(&transcript, roster.as_ref(), if open { Closed::OrOpen } else { Closed::Only }, json)
        }
    }
}

fn begin(at: &At, roster: &Path) -> Result<(), CeremonyError> {
    let roster = read_roster(roster)?;
    let transcript = TranscriptFile::create(&at.transcript)?;
    let (mut session, action) = Session::begin(open_store(&at.config)?, transcript, roster, &at.present)?;
    at.done(&mut session, action)
}

fn make_in_components(at: &At, algorithm: KeyAlgorithm) -> Result<(), CeremonyError> {
    let mut session = at.session()?;
    let custodians = session.custodians();
    let custodians: Vec<&str> = custodians.iter().map(String::as_str).collect();
    let made = make_components(&mut component_terminal()?, algorithm, &custodians)?;
    let components = Component::of_each(&custodians, &made.components);
    let (algorithm, check_value) = (algorithm.to_string(), made.key.to_string());
    at.done(&mut session, CeremonyAction::MakeComponents { algorithm, check_value, components })
}

fn load(at: &At, name: KeyUsage, algorithm: Option<KeyAlgorithm>, now: u64) -> Result<(), CeremonyError> {
    let mut session = at.session()?;
    let mut components = Components::new(algorithm_of(&session.store, &name, algorithm)?);
    let custodians = session.custodians();
    let custodians: Vec<&str> = custodians.iter().map(String::as_str).collect();
    let mut terminal = component_terminal()?;
    for custodian in &custodians {
        let check_value = components.enter(&mut terminal, custodian)?;
        writeln!(io::stderr(), "{custodian}: accepted, check value {check_value}")?;
    }
    let entered = Component::of_each(&custodians, components.kcvs());
    let key = Key::of(&session.store.load(name, &components, now)?);
    at.done(&mut session, CeremonyAction::LoadKey { key, components: entered })
}

/// The terminal, or the pipes of a script where standard input is not a terminal.
fn component_terminal() -> Result<ComponentTerminal, CeremonyError> {
    writeln!(io::stderr(), "{NOT_COMPLIANT}")?;
    Ok(if io::stdin().is_terminal() { ComponentTerminal::terminal()? } else { ComponentTerminal::pipes()? })
}

fn list(config: &Path, json: bool) -> Result<(), CeremonyError> {
    let store = open_store(config)?;
    let mut out = io::stdout().lock();
    let date = |at: u64| {
        let at = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
        at.map(|at| at.to_string()).unwrap_or_default()
    };
    if json {
        let key = |info: &KeyInfo| {
            Ok::<_, CeremonyError>(json!({
                "key": info.name.to_string(), "version": info.version, "algorithm": info.algorithm.to_string(),
                "check_value": info.kcv_text(), "state": info.state().to_string(),
                "mode_of_use": info.mode.to_string(), "exportable": info.exportable, "odd_parity": info.odd_parity, "key_blocks": info.uses, "3des_blocks": store.tdes_blocks(info)?,
                "made_at": date(info.made_at), "activated_at": info.activated_at.map(date),
                "retired_at": info.retired_at.map(date), "destroyed_at": info.destroyed_at.map(date),
            }))
        };
        let keys = store.keys().map(key).collect::<Result<Vec<_>, _>>()?;
        return Ok(writeln!(out, "{:#}", json!({ "keys": keys }))?);
    }
    let columns = ["key", "algorithm", "check value", "state", "since", "counted"];
    let [key, algorithm, check_value, state, since, counted] = columns;
    writeln!(out, "{key:<24} {algorithm:<12} {check_value:<11} {state:<9} {since:<20} {counted}")?;
    for info in store.keys() {
        let (state, algorithm) = (info.state().to_string(), info.algorithm.to_string());
        let since = info.destroyed_at.or(info.retired_at).or(info.activated_at).unwrap_or(info.made_at);
        let counted = match (store.tdes_blocks(info)?, info.uses) {
            (Some(blocks), _) => format!("{blocks} blocks of 1048576 reserved"),
            (None, 0) => String::new(),
            (None, uses) => format!("{uses} key blocks"),
        };
        let (key, check_value) = (info.reference(), info.kcv_text());
        // To the second.
        let since = date(since).chars().take(19).collect::<String>() + "Z";
        let line = format!("{key:<24} {algorithm:<12} {check_value:<11} {state:<9} {since:<20} {counted}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Which transcripts `verify` accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closed {
    Only,
    OrOpen,
}

fn verify(path: &Path, roster: Option<&Roster>, closed: Closed, json: bool) -> Result<(), CeremonyError> {
    let read = Transcript::read(&read_text(path)?)?;
    if roster.is_some_and(|roster| *roster != read.roster) {
        return Err(CeremonyError::OtherRoster);
    }
    if closed == Closed::Only && !read.has_ended() {
        return Err(CeremonyError::NotEnded { last: read.entries.len() });
    }
    let mut out = io::stdout().lock();
    let head: String = read.head.iter().map(|byte| format!("{byte:02x}")).collect();
    if json {
        return Ok(writeln!(out, "{:#}", json!({ "entries": read.entries, "roster": read.roster, "head": head }))?);
    }
    writeln!(out, "KEY CEREMONY\n\nroster (a quorum of {} custodians)", read.roster.quorum)?;
    for person in &read.roster.person {
        writeln!(out, "  {:<16} {:<10} {}", person.name, person.role.to_string(), person.key)?;
    }
    for entry in &read.entries {
        writeln!(
            out,
            "\n{:>3}  {}  present: {}\n     {}",
            entry.number,
            entry.at,
            entry.present.join(", "),
            entry.action
        )?;
    }
    writeln!(
        out,
        "\nevery line is valid and signed by all participants present; the hash of the last line is\n{head}"
    )?;
    Ok(())
}

fn key_entry(store: &KeyStore, name: &KeyUsage, version: u16) -> Result<Key, CeremonyError> {
    let found = store.keys().find(|info| info.name == *name && info.version == version).map(Key::of);
    Ok(found.ok_or_else(|| KeyStoreError::Unknown { key: format!("{name}/{version}") })?)
}

fn ask(prompt: &str) -> Result<String, CeremonyError> {
    write!(io::stderr(), "{prompt}")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Applies the parity policy of the zone to its imported key. Nothing is committed yet.
fn check_parity(config: &Path, imported: &KeyInfo) -> Result<(), CeremonyError> {
    let zones = hsm_config::load_zones(config)?;
    let rules = zones.iter().find(|zone| KeyUsage::Zone(zone.name.clone()) == imported.name);
    match rules.map(|zone| zone.parity) {
        Some(ParityPolicy::Reject) if !imported.odd_parity => {
            Err(CeremonyError::EvenParity { key: imported.name.to_string() })
        }
        Some(ParityPolicy::Warn) if !imported.odd_parity => {
            Ok(writeln!(io::stderr(), "warning: {} has a byte of even parity", imported.name)?)
        }
        _ => Ok(()),
    }
}

fn block_text(block: String) -> Result<String, CeremonyError> {
    if block != "-" {
        return Ok(block);
    }
    let mut text = String::new();
    io::stdin().lock().take(BLOCK_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn read_roster(path: &Path) -> Result<Roster, CeremonyError> {
    Ok(Roster::parse(&read_text(path)?)?)
}

fn read_text(path: &Path) -> Result<String, CeremonyError> {
    fs::read_to_string(path).map_err(|error| CeremonyError::File { path: path.to_owned(), error })
}

fn open_store(config: &Path) -> Result<KeyStore, CeremonyError> {
    let (keys, wanted) = hsm_config::load_keys(config)?;
    Ok(KeyStore::open(keys, &wanted, clock::now().0)?)
}

/// The requested algorithm, or else the first one of this key usage.
fn algorithm_of(store: &KeyStore, name: &KeyUsage, asked: Option<KeyAlgorithm>) -> Result<KeyAlgorithm, KeyStoreError> {
    let usual = store.algorithms(name).first().copied();
    asked.or(usual).ok_or_else(|| KeyStoreError::NotHere { key: name.to_string() })
}

fn key_name(text: &str) -> Result<KeyUsage, String> {
    let names = "storage, storage-3des, storage-one-way, seal, account, record, retry (of a vault), mac and others (of a \
                 token), zone:NAME, exchange:NAME, pvk:NAME:PVKI or ibm-3624:NAME:TABLE:FIRST-LAST-PAD (a name is a-z, 0-9, -; \
                 docs/ceremony.md)";
    KeyUsage::parse(text).ok_or_else(|| format!("a key is {names}"))
}

fn key_reference(text: &str) -> Result<(KeyUsage, u16), String> {
    let (name, version) = text.rsplit_once('/').ok_or("a key and its version, such as storage/1")?;
    Ok((key_name(name)?, version.parse().map_err(|_| "a version is 1, 2, 3 and so on")?))
}

fn algorithm(text: &str) -> Result<KeyAlgorithm, String> {
    KeyAlgorithm::parse(text).ok_or_else(|| "aes-256, aes-192, aes-128, 3des-double or 3des-triple".to_owned())
}

fn block_version(text: &str) -> Result<KeyBlockVersion, String> {
    match text {
        "D" => Ok(KeyBlockVersion::D),
        "E" => Ok(KeyBlockVersion::E),
        _ => Err("key blocks are written in version D or E".to_owned()),
    }
}

/// The exit code of a step that changed the keys, or may have, and then failed.
const DONE_IN_PART: u8 = 3;

impl CeremonyError {
    /// 3 where the step was done, or may have been, and then failed; otherwise 1: nothing was done.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::StepNotPrinted { .. } | Self::ParticipantKeyNotPrinted { .. } => DONE_IN_PART,
            Self::Session(error) if error.is_done_in_part() => DONE_IN_PART,
            _ => 1,
        }
    }
}

/// A step of a ceremony failed. Nothing was done, except where [`CeremonyError::exit_code`] is 3.
#[derive(Debug, Error)]
pub(crate) enum CeremonyError {
    /// The configuration can't be read, or is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys, the transcript or the participants do not allow the step.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The vault or token can't be opened, or refuses the change.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    /// A component can't be typed or shown, or is rejected.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The imported 3DES key has a byte of even parity, and its zone rejects such a key.
    #[error(
        "{key} has even parity, its zone says parity = \"reject\", and nothing was imported: ask for a key with odd \
         parity, or set \"ignore\""
    )]
    EvenParity {
        /// For example `zone:acquirer`.
        key: String,
    },
    /// The roster is malformed.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// The transcript fails a check.
    #[error("refused: {0}")]
    Transcript(#[from] TranscriptError),
    /// The transcript does not begin with the given roster.
    #[error("refused: the transcript begins with another roster than the one of --roster")]
    OtherRoster,
    /// The transcript has no last line: the ceremony is open, or lines were cut.
    #[error(
        "refused: line {last} is the last and does not end the ceremony: lines are missing, or the ceremony is open (--open accepts it)"
    )]
    NotEnded {
        /// The number of the last line.
        last: usize,
    },
    /// The count of the records under a key failed.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The database did not retire the key: nothing was done.
    #[error(transparent)]
    Retire(#[from] RetireError),
    /// The text typed for --no-store is not the key's name.
    #[error("the typed text is not {key}: nothing was done")]
    NoStoreNotConfirmed {
        /// For example `storage/1`.
        key: String,
    },
    /// --no-store with a storage key, and the configuration names a database.
    #[error(
        "--no-store does not ask the database of --config, whose engines may use {key}: leave --no-store out, or give a \
         configuration without [store.postgres]"
    )]
    DatabaseNotAsked {
        /// For example `storage/1`.
        key: String,
    },
    /// --abandon with a key of reversible records, which an engine re-encrypts.
    #[error("--abandon is for one-way records: start the engine, which re-encrypts the records under {key}")]
    NotOneWay {
        /// For example `storage/1`.
        key: String,
    },
    /// The text typed for --abandon is not the key's name, or not the number of PINs.
    #[error("the typed text is not {wanted}: nothing was done")]
    AbandonNotConfirmed {
        /// The key's name, or the number of PINs.
        wanted: String,
    },
    /// The typed reference is not the key's.
    #[error("that is another key: nothing was destroyed")]
    NotConfirmed,
    /// A participant's key can't be opened or made.
    #[error(transparent)]
    Participant(#[from] ParticipantKeyError),
    /// A file can't be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// The transcript's file can't be locked or read.
    #[error(transparent)]
    TranscriptFile(#[from] TranscriptFileError),
    /// The step was done, and its result could not be printed.
    #[error(
        "the step was done, and its line is in {}, but its output failed: {error}; do not run it again before you have \
         looked: `pinseal ceremony list` shows the keys, `pinseal ceremony verify --open` the steps",
        transcript.display()
    )]
    StepNotPrinted {
        /// The path of the transcript.
        transcript: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// A participant's key was made, and its public key could not be printed.
    #[error(
        "the key was made, but its output failed: {error}; `pinseal ceremony person --show {}` prints its public key",
        path.display()
    )]
    ParticipantKeyNotPrinted {
        /// The file that holds the key, or names its token.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// The terminal, standard input or standard output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}
