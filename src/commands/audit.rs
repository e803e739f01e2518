//! `pinseal audit`: export and verify a chain, from a stopped engine's store or from an exported file.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use thiserror::Error;
use tokio::runtime::Builder;

use audit::{
    chain::{ChainError, ChainVerifier, Checkpoint},
    entry::Entry,
};
use engine_server::open_store_copy;
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
    Verify {
        #[command(flatten)]
        source: Source,
        /// A checkpoint kept elsewhere, which the chain must still hold; may be given more than once. An empty chain
        /// holds only with 0 and 64 zeros
        #[arg(long, value_name = "SEQUENCE:HASH")]
        expect: Vec<Checkpoint>,
    },
    /// Print the chain, one JSON object a line
    Export {
        /// The directory of a stopped engine's store; it is copied to TMPDIR, and the copy is read
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// The first entry wanted
        #[arg(long, default_value_t = 1, value_name = "SEQUENCE")]
        from: u64,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The directory of a stopped engine's store, such as pinseal-data/store; it is copied to TMPDIR, and the copy is read
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// An exported chain; `-` for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Exports or verifies.
pub(crate) fn run(arguments: AuditArguments) -> Result<(), AuditError> {
    Builder::new_current_thread().build()?.block_on(export_or_verify(arguments))
}

async fn export_or_verify(arguments: AuditArguments) -> Result<(), AuditError> {
    match arguments.command {
        AuditCommand::Verify { source, expect } => {
            let end = match (source.store, source.file) {
                (Some(store), _) => verify_store(&store, expect).await?,
                (None, Some(file)) if file.as_os_str() == "-" => verify_lines(io::stdin().lock(), expect)?,
                (None, Some(file)) => {
                    let opened = File::open(&file).map_err(|error| AuditError::File { path: file, error })?;
                    verify_lines(BufReader::new(opened), expect)?
                }
                (None, None) => return Ok(()),
            };
            writeln!(io::stdout(), "the audit chain holds; checkpoint {end}")?;
        }
        AuditCommand::Export { store, from } => {
            let mut out = io::stdout().lock();
            let copy = open_store_copy(&store)?;
            each_entry(&*copy, from, |entry| Ok(writeln!(out, "{}", entry.to_json())?)).await?;
        }
    }
    Ok(())
}

async fn verify_store(directory: &Path, expected: Vec<Checkpoint>) -> Result<Checkpoint, AuditError> {
    let store = open_store_copy(directory)?;
    // What the store says of itself catches a cut tail; what is kept elsewhere catches a store rewritten as a whole.
    let mut walk = ChainVerifier::new(expected).with_head(store.checkpoint().await?);
    each_entry(&*store, 1, |entry| Ok(walk.check(entry)?)).await?;
    Ok(walk.finish()?)
}

fn verify_lines(text: impl BufRead, expected: Vec<Checkpoint>) -> Result<Checkpoint, AuditError> {
    let mut walk = ChainVerifier::new(expected);
    // Not `lines`, which also takes a carriage return off.
    for line in text.split(b'\n') {
        walk.check_json(&line?)?;
    }
    Ok(walk.finish()?)
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

/// Why a chain was not exported, or does not hold.
#[derive(Debug, Error)]
pub(crate) enum AuditError {
    /// The chain does not hold.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The store can't be opened from a copy.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
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
    /// Input or output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}
