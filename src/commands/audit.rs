//! `pinseal audit`: export, verify, prove and follow a chain.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand, ValueEnum};
use thiserror::Error;
use tokio::runtime::Builder;

use super::{
    card_list,
    signed_checkpoint::{self, SignedCheckpointError, verifier_key},
};
use audit::{
    chain::{ChainError, ChainProblem, ChainVerifier, Checkpoint, CheckpointError},
    ecs::to_ecs,
    entry::{Action, Body, Entry, Outcome},
    note::{NoteError, SigningKey, VerifierKey},
    tree_head::{Proof, Proven, TreeHead, TreeHeadError, leaf_of, origin_of},
};
use config::{SecretError, SecretSource};
use domain::{
    card::{CardKey, PlasticId, Tenant},
    request_id::RequestId,
};
use engine_client::{EngineTls, OperatorError, RunningEngine};
use engine_server::{PostgresConfig, StoreConfig, database, open_store_copy};
use proto::ExportAuditRequest;
use store::{Store, StoreError, StoreOpenError};

/// How many entries are read from a store at a time.
const PAGE_ENTRIES: usize = 4_096;

/// `pinseal audit`.
#[derive(Args)]
pub(crate) struct AuditArguments {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Check that no entry was changed, cut or moved; prints the checkpoint to keep elsewhere
    Verify(VerifyArguments),
    /// Print the chain, one JSON object a line
    Export {
        #[command(flatten)]
        chain: ChainSource,
        /// The first entry wanted
        #[arg(long, default_value_t = 1, value_name = "SEQUENCE")]
        from: u64,
        /// The names of the members
        #[arg(long, default_value = "json")]
        format: Format,
        /// Only the entries about this card of --tenant: every access to it, refused ones too. They do not form a chain
        #[arg(long, value_name = "PLASTIC_ID", value_parser = PlasticId::parse, requires = "tenant", group = "wanted")]
        card: Option<PlasticId>,
        /// Only the entries of the request with this id, which the edge's answer and both logs name. They do not form a chain
        #[arg(long, value_name = "ID", value_parser = RequestId::parse, group = "wanted")]
        request: Option<RequestId>,
        /// The tenant of --card
        #[arg(long, value_parser = Tenant::parse, requires = "card")]
        tenant: Option<Tenant>,
        /// Archive files of the engine, oldest first, in which to search for the card or the request too
        #[arg(long, value_name = "FILE", num_args = 1.., requires = "wanted")]
        archive: Vec<PathBuf>,
    },
    /// List the cards whose PIN was set in the entries of a store from a number on
    Cards(CardsArguments),
    /// Print the newest entries of a serving engine, one JSON object a line
    Tail(TailArguments),
    /// Print the newest signed checkpoint of a serving engine, to keep elsewhere
    Checkpoint(CheckpointArguments),
    /// Prove to a holder of a checkpoint that an entry, or an older checkpoint, is in its chain; prints the proof as JSON
    Prove(ProveArguments),
}

/// The names of the members of an entry.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Those that `pinseal audit verify` reads
    Json,
    /// Those of the Elastic Common Schema
    Ecs,
}

#[derive(Args)]
struct VerifyArguments {
    #[command(flatten)]
    source: Source,
    /// The one engine of the database whose chain is verified, as that of a store is
    #[arg(long, value_name = "NAME", requires = "config")]
    engine: Option<String>,
    /// A checkpoint kept elsewhere of an engine of the database; may be given more than once
    #[arg(long, value_name = "ENGINE=SEQUENCE:HASH", value_parser = engine_checkpoint, requires = "config")]
    expect_of: Vec<(String, Checkpoint)>,
    /// A checkpoint kept elsewhere, which the chain must still hold; may be given more than once. An empty chain
    /// holds only with 0 and 64 zeros
    #[arg(long, value_name = "SEQUENCE:HASH")]
    expect: Vec<Checkpoint>,
    /// Files of signed checkpoints, the older one first, which the chain must all hold: the newer one then continues the older
    #[arg(long, value_names = ["OLD", "NEW"], num_args = 1..=2, requires = "verifier_key")]
    checkpoint: Vec<PathBuf>,
    /// The public key of the engine: the file `verifier-key` beside its checkpoint, or the text in it
    #[arg(long, value_name = "FILE|KEY", value_parser = verifier_key)]
    verifier_key: Option<VerifierKey>,
    /// Archive files of the engine, oldest first: the entries before those of the store or the file. Without them, the
    /// chain of a store is verified from the end of its archived entries on
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "proof")]
    archive: Vec<PathBuf>,
    /// The checkpoint of the last entry before those of the file, which are not verified
    #[arg(long, value_name = "SEQUENCE:HASH", conflicts_with_all = ["archive", "store", "config", "proof"])]
    after: Option<Checkpoint>,
}

#[derive(Args)]
struct CardsArguments {
    #[command(flatten)]
    chain: ChainSource,
    /// The first entry, for example the one behind the checkpoint of a backup
    #[arg(long, value_name = "SEQUENCE")]
    from: u64,
    /// A new file, mode 0600, for the cards: TENANT PLASTIC_ID a line
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// The chain of one engine.
#[derive(Args)]
#[group(skip)]
struct ChainSource {
    /// The directory of a stopped engine's store or of a backup; it is copied to TMPDIR, and the copy is read
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    store: Option<PathBuf>,
    /// The configuration of an engine on a PostgreSQL database, whose engines may serve
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    config: Option<PathBuf>,
    /// Another engine of this database; by default the one of the configuration
    #[arg(long, value_name = "NAME", requires = "config")]
    engine: Option<String>,
}

impl ChainSource {
    async fn open(&self) -> Result<Arc<dyn Store>, AuditError> {
        match (&self.config, &self.store) {
            (Some(config), _) => {
                let database = database_of(config)?;
                let engine = self.engine.as_deref().unwrap_or(&database.engine_name);
                Ok(database::open_to_read(&database, engine).await?)
            }
            (None, store) => open_stopped(store.as_deref().unwrap_or(Path::new(""))),
        }
    }
}

/// The database that a configuration names.
fn database_of(path: &Path) -> Result<PostgresConfig, AuditError> {
    match StoreConfig::load(Some(path)).map_err(StoreOpenError::Config)? {
        StoreConfig::Postgres(config) => Ok(*config),
        StoreConfig::Embedded(_) => Err(AuditError::NoDatabase { path: path.to_owned() }),
    }
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The directory of a stopped engine's store, such as pinseal-data/store; it is copied to TMPDIR, and the copy is read
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The configuration of an engine on a PostgreSQL database: verifies the chain of each of its engines, which may serve, or
    /// of the one of --engine
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An exported chain; `-` for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A proof that `pinseal audit prove` printed; needs no chain
    #[arg(long, value_name = "FILE", requires = "verifier_key", conflicts_with_all = ["expect", "checkpoint"])]
    proof: Option<PathBuf>,
}

#[derive(Args)]
struct TailArguments {
    /// The engine, such as 127.0.0.1:50051 or https://engine.internal:50051
    #[arg(long, value_name = "ADDRESS")]
    engine: String,
    #[command(flatten)]
    tls: EngineTls,
    /// How many of the chain's newest entries to print first
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    newest: u32,
    /// The first entry wanted, instead of the newest ones
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "newest")]
    from: Option<u64>,
    /// Continue with each later entry, also on later connections, until the engine stops
    #[arg(long)]
    follow: bool,
    /// The names of the members
    #[arg(long, default_value = "json")]
    format: Format,
}

#[derive(Args)]
struct CheckpointArguments {
    /// The engine, such as 127.0.0.1:50051 or https://engine.internal:50051
    #[arg(long, value_name = "ADDRESS")]
    engine: String,
    #[command(flatten)]
    tls: EngineTls,
    /// The public key of the engine, as its operator gave it, or its file: a checkpoint that it does not verify is not printed
    #[arg(long, value_name = "FILE|KEY", value_parser = verifier_key)]
    verifier_key: Option<VerifierKey>,
}

#[derive(Args)]
struct ProveArguments {
    /// The entry to prove
    #[arg(value_name = "SEQUENCE", required_unless_present = "since", conflicts_with = "since")]
    sequence: Option<u64>,
    /// The file of an older signed checkpoint to prove
    #[arg(long, value_name = "OLD")]
    since: Option<PathBuf>,
    /// The file of the signed checkpoint to prove against, such as pinseal-data/audit/checkpoint
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    #[command(flatten)]
    chain: ChainSource,
    /// The engine's signing key, which makes the salts, such as pinseal-data/audit/signing-key
    #[arg(long, value_name = "FILE")]
    signing_key: PathBuf,
    /// Archive files of the engine, oldest first, for an entry or a checkpoint in them
    #[arg(long, value_name = "FILE", num_args = 1..)]
    archive: Vec<PathBuf>,
}

/// Runs a command on a chain.
pub(crate) fn run(arguments: AuditArguments) -> Result<(), AuditError> {
    Builder::new_current_thread().enable_all().build()?.block_on(run_command(arguments))
}

async fn run_command(arguments: AuditArguments) -> Result<(), AuditError> {
    match arguments.command {
        AuditCommand::Verify(arguments) => verify(arguments).await,
        AuditCommand::Export { chain, from, format, card, tenant, request, archive } => {
            let copy = chain.open().await?;
            let mut out = io::stdout().lock();
            let of_card = match card.zip(tenant) {
                Some((plastic, tenant)) => {
                    let key = copy.card_reference_key().await?.ok_or(AuditError::NoCardReferences)?;
                    Some(key.reference(&CardKey { tenant, plastic }))
                }
                None => None,
            };
            let is_wanted = |entry: &Entry| {
                of_card.is_none_or(|card| entry.event.body.is_about(card))
                    && request.is_none_or(|request| entry.event.request == Some(request))
            };
            let mut print = |entry: &Entry| match is_wanted(entry) {
                true => Ok(writeln!(out, "{}", format.write(entry))?),
                false => Ok(()),
            };
            let archived = copy.archived().await?.map_or(0, |archived| archived.end().sequence);
            if archive.is_empty() {
                note_not_read(from, archived)?;
            }
            for path in &archive {
                for line in open(path)?.split(b'\n') {
                    let entry = entry_of(&line?).map_err(|error| AuditError::File { path: path.clone(), error })?;
                    // A file may have entries that the store has too, after a crash of the engine.
                    if (from..=archived).contains(&entry.sequence) {
                        print(&entry)?;
                    }
                }
            }
            each_entry(&*copy, from, print).await
        }
        AuditCommand::Cards(arguments) => list_cards(arguments).await,
        AuditCommand::Tail(arguments) => tail(arguments).await,
        AuditCommand::Checkpoint(arguments) => print_checkpoint(arguments).await,
        AuditCommand::Prove(arguments) => prove(arguments).await,
    }
}

impl Format {
    fn write(self, entry: &Entry) -> String {
        match self {
            Self::Json => entry.to_json(),
            Self::Ecs => to_ecs(entry),
        }
    }
}

async fn verify(arguments: VerifyArguments) -> Result<(), AuditError> {
    let VerifyArguments { source, engine, expect_of, mut expect, checkpoint, verifier_key, archive, after } = arguments;
    let mut out = io::stdout();
    if let (Some(config), None) = (&source.config, &engine) {
        if !(expect.is_empty() && checkpoint.is_empty() && verifier_key.is_none() && archive.is_empty()) {
            return Err(AuditError::OneEngine);
        }
        return verify_all(config, expect_of).await;
    }
    for (name, checkpoint) in expect_of {
        if Some(&name) != engine.as_ref() {
            return Err(AuditError::NotVerified { engine: name });
        }
        expect.push(checkpoint);
    }
    if let (Some(path), Some(verifier)) = (&source.proof, &verifier_key) {
        let proof: Proof = serde_json::from_slice(&read(path)?).map_err(|_| TreeHeadError::NotProof)?;
        match proof.verify(verifier)? {
            Proven::Inclusion { entry, head } => {
                writeln!(out, "entry {} is in the chain of checkpoint {head}", entry.sequence)?;
                writeln!(out, "{}", entry.to_json())?;
            }
            Proven::Consistency { old, new } => {
                writeln!(out, "the chain of checkpoint {new} continues that of checkpoint {old}")?;
            }
        }
        return Ok(());
    }
    let mut origin = None;
    if let Some(verifier) = verifier_key {
        let mut older = 0;
        for path in checkpoint {
            let head = signed_checkpoint::read(&path, Some(&verifier))?.head;
            if head.sequence < older {
                return Err(TreeHeadError::Swapped { old: older, new: head.sequence }.into());
            }
            older = head.sequence;
            expect.push(head);
        }
        origin = Some(verifier);
    }
    let store = match (&source.config, &engine) {
        (Some(config), Some(engine)) => Some(database::open_to_read(&database_of(config)?, engine).await?),
        _ => source.store.as_deref().map(open_stopped).transpose()?,
    };
    let archived = match &store {
        Some(store) if archive.is_empty() => store.archived().await?,
        _ => None,
    };
    if let (Some(archived), Some(key)) = (&archived, origin.take_if(|_| archived.is_some())) {
        check_origin(&key, archived.tree.origin())?;
    }
    let start = archived.map(|archived| archived.end()).or(after).unwrap_or(Checkpoint::EMPTY);
    // The name of a chain is in its first entry.
    let mut walk = Walk {
        verifier: ChainVerifier::after(start, expect),
        origin: origin.filter(|_| after.is_none()),
        origins: Vec::new(),
    };
    for path in archive {
        walk.check_lines(&path, open(&path)?)?;
    }
    match (store, source.file) {
        (Some(store), _) => {
            let place = source.store.or(source.config).unwrap_or_default();
            walk = walk.through(&*store, &place, start).await?;
        }
        (None, Some(file)) if file.as_os_str() == "-" => walk.check_lines(Path::new("-"), io::stdin().lock())?,
        (None, Some(file)) => walk.check_lines(&file, open(&file)?)?,
        (None, None) => return Ok(()),
    }
    let end = walk.finish()?;
    if start != Checkpoint::EMPTY {
        writeln!(out, "entries 1 to {} were archived, and not read", start.sequence)?;
    }
    Ok(writeln!(out, "the audit chain holds; checkpoint {end}")?)
}

/// Verifies the chain of each engine of a database.
async fn verify_all(config: &Path, expect_of: Vec<(String, Checkpoint)>) -> Result<(), AuditError> {
    let stores = database::open_all_to_read(&database_of(config)?).await?;
    let mut out = io::stdout();
    if let Some((engine, _)) =
        expect_of.iter().find(|(name, _)| stores.iter().all(|(_, store)| **store.engine_name() != **name))
    {
        return Err(AuditError::NotVerified { engine: engine.clone() });
    }
    for (_, store) in stores {
        let engine = store.engine_name().to_string();
        let expected: Vec<_> = expect_of.iter().filter(|(name, _)| *name == engine).map(|(_, kept)| *kept).collect();
        if expected.is_empty() && store.checkpoint().await? == Checkpoint::EMPTY {
            writeln!(out, "{engine}: the audit chain has no entry")?;
            continue;
        }
        let verified = verify_one(&*store, config, expected).await;
        let (start, end) =
            verified.map_err(|error| AuditError::OfEngine { engine: engine.clone(), error: error.into() })?;
        match start.sequence {
            0 => writeln!(out, "{engine}: the audit chain holds; checkpoint {end}")?,
            last => writeln!(
                out,
                "{engine}: the audit chain holds; checkpoint {end}; entries 1 to {last} were archived, and not read"
            )?,
        }
    }
    Ok(())
}

async fn verify_one(
    store: &dyn Store,
    place: &Path,
    expected: Vec<Checkpoint>,
) -> Result<(Checkpoint, Checkpoint), AuditError> {
    let start = store.archived().await?.map_or(Checkpoint::EMPTY, |archived| archived.end());
    let verifier = ChainVerifier::after(start, expected);
    let walk = Walk { verifier, origin: None, origins: Vec::new() };
    Ok((start, walk.through(store, place, start).await?.finish()?))
}

/// Reads an engine's checkpoint, `ENGINE=SEQUENCE:HASH`.
fn engine_checkpoint(text: &str) -> Result<(String, Checkpoint), String> {
    let (engine, checkpoint) = text.split_once('=').ok_or("write ENGINE=SEQUENCE:HASH")?;
    let checkpoint = checkpoint.parse().map_err(|error: CheckpointError| error.to_string())?;
    Ok((engine.to_owned(), checkpoint))
}

/// Opens a copy of the store of a stopped engine.
fn open_stopped(directory: &Path) -> Result<Arc<dyn Store>, AuditError> {
    open_store_copy(directory).map_err(|error| match error {
        StoreOpenError::Locked { path } => AuditError::EngineServes { path },
        error => error.into(),
    })
}

/// Lists the cards whose PIN was set in the entries from a number on. A card without a PIN in the store has no name there.
async fn list_cards(arguments: CardsArguments) -> Result<(), AuditError> {
    let CardsArguments { chain, from, to } = arguments;
    let copy = chain.open().await?;
    let key = copy.card_reference_key().await?.ok_or(AuditError::NoCardReferences)?;
    note_not_read(from, copy.archived().await?.map_or(0, |archived| archived.end().sequence))?;
    let mut wanted = HashMap::new();
    each_entry(&*copy, from, |entry| {
        if let Body::Card(event) = &entry.event.body
            && (event.action, entry.event.outcome) == (Action::SetPin, Outcome::Done)
        {
            wanted.insert(*event.reference.as_bytes(), event.card.clone());
        }
        Ok(())
    })
    .await?;
    let (mut cards, mut after) = (Vec::new(), None);
    loop {
        let page = copy.scan_pins(after.as_ref(), PAGE_ENTRIES).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        cards.extend(
            page.iter().map(|(card, _)| *card).filter(|card| wanted.remove(key.reference(card).as_bytes()).is_some()),
        );
    }
    let count = cards.len();
    card_list::write(&to, cards).map_err(|error| AuditError::File { path: to.clone(), error })?;
    for card in wanted.values() {
        writeln!(io::stderr(), "card {card}: the store has no PIN of the card, so its plasticId is not known")?;
    }
    Ok(writeln!(io::stdout(), "cards whose PIN was set from entry {from} on: {count}, in {}", to.display())?)
}

/// Reports the entries from a number on that are in archive files alone.
fn note_not_read(from: u64, archived: u64) -> io::Result<()> {
    if from > archived {
        return Ok(());
    }
    let first = from.max(1);
    writeln!(io::stderr(), "entries {first} to {archived} are in archive files alone, and were not read")
}

/// Reads a line of an archive file.
fn entry_of(line: &[u8]) -> io::Result<Entry> {
    let line = str::from_utf8(line).map_err(io::Error::other)?;
    Entry::from_json(line).map_err(io::Error::other)
}

fn open(path: &Path) -> Result<BufReader<File>, AuditError> {
    let opened = File::open(path).map_err(|error| AuditError::File { path: path.to_owned(), error })?;
    Ok(BufReader::new(opened))
}

async fn tail(arguments: TailArguments) -> Result<(), AuditError> {
    let TailArguments { engine, tls, newest, from, follow, format } = arguments;
    let request = ExportAuditRequest {
        start_sequence: from.unwrap_or_default(),
        newest_count: if from.is_some() { 0 } else { newest },
        continuous: follow,
    };
    let mut running = RunningEngine::at(&engine, &tls)?;
    let mut entries = running.audit(request).await?;
    let mut out = io::stdout();
    while let Some(entry) = entries.next().await? {
        writeln!(out, "{}", format.write(&entry))?;
        // A reader at the other end of a pipe sees each entry at once.
        out.flush()?;
    }
    Ok(())
}

async fn print_checkpoint(arguments: CheckpointArguments) -> Result<(), AuditError> {
    let CheckpointArguments { engine, tls, verifier_key } = arguments;
    let note = RunningEngine::at(&engine, &tls)?.checkpoint().await?;
    if let Some(verifier) = verifier_key {
        TreeHead::open(&note, &verifier)?;
    }
    // A note ends with a line end.
    Ok(write!(io::stdout(), "{note}")?)
}

async fn prove(arguments: ProveArguments) -> Result<(), AuditError> {
    let key = SigningKey::from_text(&SecretSource::File(arguments.signing_key).read()?)?;
    let checkpoint = read_text(&arguments.checkpoint)?;
    let store = arguments.chain.open().await?;
    let archived = store.archived().await?.filter(|_| arguments.archive.is_empty());
    let mut leaves = archived.as_ref().map(|archived| archived.tree.leaves_after()).unwrap_or_default();
    let first = leaves.size().saturating_add(1);
    let mut wanted = None;
    let mut add = |entry: &Entry| {
        leaves.push(leaf_of(entry, &key));
        if Some(entry.sequence) == arguments.sequence {
            wanted = Some(entry.clone());
        }
    };
    let mut verifier = ChainVerifier::new(Vec::new());
    for path in &arguments.archive {
        for line in open(path)?.split(b'\n') {
            add(&verifier.check_json(&line?)?);
        }
    }
    let from = first.max(verifier.reached().sequence.saturating_add(1));
    each_entry(&*store, from, |entry| {
        add(entry);
        Ok(())
    })
    .await?;
    let proof = match (arguments.since, wanted) {
        (Some(old), _) => Proof::of_checkpoints(&read_text(&old)?, &checkpoint, &leaves, &key)?,
        (None, Some(entry)) => Proof::of_entry(&entry, &checkpoint, &leaves, &key)?,
        (None, None) => {
            let (sequence, end) = (arguments.sequence.unwrap_or_default(), leaves.size());
            return Err(AuditError::NoEntry { sequence, first, end });
        }
    };
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string(&proof).map_err(io::Error::from)?)?)
}

fn read(path: &Path) -> Result<Vec<u8>, AuditError> {
    fs::read(path).map_err(|error| AuditError::File { path: path.to_owned(), error })
}

fn read_text(path: &Path) -> Result<String, AuditError> {
    Ok(String::from_utf8(read(path)?).map_err(|_| NoteError::Malformed)?)
}

/// The verification of a chain, entry by entry.
struct Walk {
    verifier: ChainVerifier,
    /// The key whose name must be that of the chain.
    origin: Option<VerifierKey>,
    /// The events of a restore or a salvage: the number of the event, and of the last entry before it.
    origins: Vec<(u64, u64)>,
}

impl Walk {
    /// Checks the entries of a store behind those that were checked, which reach at least `start`, the end of the archived ones.
    async fn through(mut self, store: &dyn Store, place: &Path, start: Checkpoint) -> Result<Self, AuditError> {
        // What the store says of itself catches a cut tail; what is kept elsewhere catches a store rewritten as a whole.
        self.verifier = self.verifier.with_head(store.checkpoint().await?);
        let from = self.verifier.reached().sequence.saturating_add(1);
        let (mut removed, mut is_first) = (Checkpoint::EMPTY, true);
        each_entry(store, from, |entry| {
            if std::mem::take(&mut is_first) {
                self.check_begin(place, entry)?;
            }
            match &entry.event.body {
                Body::AuditArchived(part) => removed = Checkpoint { sequence: part.last, hash: part.hash },
                // A salvage may lose the event that names the start.
                Body::StoreSalvaged(_) => removed = start,
                _ => {}
            }
            self.check(entry)
        })
        .await?;
        if start != Checkpoint::EMPTY && removed != start {
            return Err(AuditError::NotArchived { sequence: start.sequence });
        }
        Ok(self)
    }

    /// Checks that a file or store begins with the entry that is due, or before it. What follows is for the verifier.
    fn check_begin(&self, source: &Path, entry: &Entry) -> Result<(), AuditError> {
        let due = self.verifier.reached().sequence.saturating_add(1);
        if entry.sequence <= due {
            return Ok(());
        }
        Err(AuditError::BeginsLater { path: source.to_owned(), found: entry.sequence, due })
    }

    fn check(&mut self, entry: &Entry) -> Result<(), AuditError> {
        if let Body::StoreRestored(origin) | Body::StoreSalvaged(origin) = &entry.event.body {
            self.origins.push((entry.sequence, origin.sequence));
        }
        let checked = self.verifier.check(entry);
        checked.map_err(|error| self.explained(error))?;
        self.check_first(entry)
    }

    fn check_lines(&mut self, source: &Path, text: impl BufRead) -> Result<(), AuditError> {
        // Not `lines`, which also takes a carriage return off.
        for (number, line) in text.split(b'\n').enumerate() {
            let entry = self.verifier.read_json(&line?)?;
            if number == 0 {
                self.check_begin(source, &entry)?;
            }
            self.check(&entry)?;
        }
        Ok(())
    }

    /// Checks that the chain is complete, and returns the checkpoint of its end.
    fn finish(self) -> Result<Checkpoint, AuditError> {
        let Self { verifier, origins, .. } = self;
        verifier.finish().map_err(|error| explained(&origins, error))
    }

    fn explained(&self, error: ChainError) -> AuditError {
        explained(&self.origins, error)
    }

    fn check_first(&mut self, first: &Entry) -> Result<(), AuditError> {
        self.origin.take().map_or(Ok(()), |key| check_origin(&key, &origin_of(first)))
    }
}

/// A checkpoint of an entry that a restore or a salvage left out does not hold, and its event says why.
fn explained(origins: &[(u64, u64)], error: ChainError) -> AuditError {
    let checkpoint = match error.problem {
        ChainProblem::OtherThanExpected => error.sequence,
        ChainProblem::Cut { expected } => expected,
        _ => return error.into(),
    };
    match origins.iter().find(|(event, _)| *event <= checkpoint) {
        Some(&(event, before)) if before < checkpoint => AuditError::OlderState { event, before, checkpoint },
        _ => error.into(),
    }
}

/// Checks that the key is that of the chain with this name.
fn check_origin(key: &VerifierKey, origin: &str) -> Result<(), AuditError> {
    if key.name() == origin { Ok(()) } else { Err(TreeHeadError::OtherOrigin.into()) }
}

async fn each_entry(
    store: &dyn Store,
    mut from: u64,
    mut each: impl FnMut(&Entry) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    loop {
        let page = store.audit(from, PAGE_ENTRIES).await?;
        let Some(last) = page.last() else { return Ok(()) };
        from = last.sequence.saturating_add(1);
        page.iter().try_for_each(&mut each)?;
    }
}

/// Why a chain was not read, or does not hold.
#[derive(Debug, Error)]
pub(crate) enum AuditError {
    /// The configuration names an embedded store.
    #[error("{} has no [store.postgres]: name the configuration of an engine on PostgreSQL, or --store", path.display())]
    NoDatabase {
        /// The configuration.
        path: PathBuf,
    },
    /// Options of one chain with all chains of a database.
    #[error("--expect, --checkpoint, --verifier-key and --archive are of one chain: name its engine by --engine")]
    OneEngine,
    /// A checkpoint of a chain that is not verified.
    #[error("no chain of the engine {engine} is verified: `pinseal store engines` lists the names")]
    NotVerified {
        /// The name of the engine.
        engine: String,
    },
    /// The chain of an engine does not hold.
    #[error("{engine}: {error}")]
    OfEngine {
        /// The name of the engine.
        engine: String,
        /// What was found.
        error: Box<AuditError>,
    },
    /// The chain does not hold.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A checkpoint can't be opened.
    #[error(transparent)]
    Checkpoint(#[from] SignedCheckpointError),
    /// A file or store begins behind the entry that is due: nothing shows that the entries before it were changed.
    #[error(
        "{} begins with entry {found}, and entry {due} is due: give the archive files with the entries before it, oldest first \
         (--archive), or the checkpoint of the entry before it (--after)", path.display()
    )]
    BeginsLater {
        /// The file or store.
        path: PathBuf,
        /// The number of its first entry.
        found: u64,
        /// The number of the entry that is due.
        due: u64,
    },
    /// The chain goes on from an older state than the checkpoint.
    #[error(
        "the checkpoint of entry {checkpoint} does not hold: entry {event} says that the store was restored or salvaged, and goes \
         on behind entry {before}. A checkpoint up to entry {before} must hold. Ask the operator for the older store, which \
         must hold this checkpoint"
    )]
    OlderState {
        /// The number of the event.
        event: u64,
        /// The number of the last entry that was kept.
        before: u64,
        /// The number of the checkpoint's entry.
        checkpoint: u64,
    },
    /// An engine serves on the store.
    #[error(
        "the store {} is in use: stop its engine, or read a backup (`pinseal store backup` needs no stop). A serving engine \
         prints its entries by `pinseal audit tail --engine ADDRESS --from 1`", path.display()
    )]
    EngineServes {
        /// The directory of the store.
        path: PathBuf,
    },
    /// The store can't be opened from a copy.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
    /// No engine has started on the store, so no entry is about a card.
    #[error("the store has no key of card references: no engine has started on it")]
    NoCardReferences,
    /// Entries are absent, and were not archived.
    #[error(
        "the store begins behind entry {sequence}, and its newest event audit_archived names another end: entries were removed. \
         Give all archive files with --archive"
    )]
    NotArchived {
        /// The last entry that is absent.
        sequence: u64,
    },
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file can't be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A checkpoint or a proof does not hold.
    #[error(transparent)]
    TreeHead(#[from] TreeHeadError),
    /// A signed note or a key can't be used.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The signing key can't be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The engine can't be called, or its stream ended.
    #[error(transparent)]
    Engine(#[from] OperatorError),
    /// The chain has no such entry.
    #[error(
        "the chain that was read has entries {first} to {end}, not entry {sequence}; --archive gives archived ones"
    )]
    NoEntry {
        /// The sequence number asked for.
        sequence: u64,
        /// The first sequence number.
        first: u64,
        /// The last sequence number.
        end: u64,
    },
    /// Input or output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}
