//! `pinseal export`, `pinseal import` and `pinseal translate`: a file of items through a stream of the engine, to a file of
//! outcomes.

mod bulk_call;
mod item_file;
mod item_stream;
mod outcome_file;

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use thiserror::Error;
use tokio::runtime::Builder;

use self::{
    bulk_call::{BulkCall, Export, Import, Translate},
    item_file::{Columns, ItemFile},
    item_stream::ItemStream,
    outcome_file::OutcomeFile,
};
use domain::{caller::AuditUser, card::Tenant};
use engine_client::{EngineTls, OperatorError, channel_to};
use proto::{ZoneFormat, ZoneKey, bulk_service_client::BulkServiceClient, zone_key};

const AFTER_HELP: &str = "\
The output has a first line that names the run, and then for each item of the input, in its order, the line \
plasticId,result,reason: a result, or the reason of its error. Run the same command again after a cut, a crash or a kill: it \
continues with the first item that has no line. Lines of the input that begin with # are no items.\n\n\
Exit codes:\n  \
0  every item succeeded\n  \
1  the command stopped: run it again to continue\n  \
2  the arguments are wrong\n  \
3  every item has its line, and some items failed";

/// The arguments of `pinseal export`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    zone: ZoneArguments,
}

/// The arguments of `pinseal import`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    zone: ZoneArguments,
}

/// The arguments of `pinseal translate`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TranslateArguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    zone: ZoneArguments,
    /// The zone of the new blocks, by its name in the engine's configuration
    #[arg(long, value_name = "NAME")]
    to_zone: String,
    /// The version of the key of the new blocks; the newest by default
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    to_key_version: u32,
    /// The format of the new blocks; the first one of the zone by default
    #[arg(long, value_enum)]
    to_format: Option<Format>,
}

#[derive(Args)]
struct RunArguments {
    /// The engine, such as 127.0.0.1:50051 or https://engine.internal:50051
    #[arg(long, value_name = "ADDRESS")]
    engine: String,
    #[command(flatten)]
    tls: EngineTls,
    /// The tenant of the cards and zones
    #[arg(long, value_parser = Tenant::parse)]
    tenant: Tenant,
    /// The user to name in the audit chain
    #[arg(long, default_value = "pinseal", value_name = "NAME", value_parser = audit_user)]
    audit_user: String,
    /// The items, a line an item: plasticId of an export, plasticId,block of an import, plasticId,block or
    /// plasticId,block,sealedAccount of a translation; bytes in hexadecimal digits
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The outcomes; an existing file of the same run is continued
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Stop where streams are cut for this long without an outcome
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    retry_seconds: u64,
}

#[derive(Args)]
struct ZoneArguments {
    /// The zone of the blocks, by its name in the engine's configuration
    #[arg(long, value_name = "NAME")]
    zone: String,
    /// The version of the zone's key; the newest by default
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    key_version: u32,
    /// The format of the blocks; the first one of the zone that suits by default
    #[arg(long, value_enum)]
    format: Option<Format>,
}

/// A format of ISO 9564-1.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    #[value(name = "iso-0")]
    Iso0,
    #[value(name = "iso-1")]
    Iso1,
    #[value(name = "iso-3")]
    Iso3,
    #[value(name = "iso-4")]
    Iso4,
}

impl Format {
    fn of(format: Option<Self>) -> ZoneFormat {
        match format {
            None => ZoneFormat::Unspecified,
            Some(Self::Iso0) => ZoneFormat::Iso0,
            Some(Self::Iso1) => ZoneFormat::Iso1,
            Some(Self::Iso3) => ZoneFormat::Iso3,
            Some(Self::Iso4) => ZoneFormat::Iso4,
        }
    }
}

impl ZoneArguments {
    fn key_and_format(&self) -> (ZoneKey, ZoneFormat) {
        (key(&self.zone, self.key_version), Format::of(self.format))
    }
}

fn key(zone: &str, key_version: u32) -> ZoneKey {
    ZoneKey { zone: Some(zone_key::Zone::Name(zone.to_owned())), key_version }
}

fn audit_user(text: &str) -> Result<String, domain::caller::AuditUserError> {
    AuditUser::parse(text).map(|_| text.to_owned())
}

/// The words of a zone, key version and format in the first line of an output.
fn described((key, format): &(ZoneKey, ZoneFormat)) -> String {
    let Some(zone_key::Zone::Name(name)) = &key.zone else { return String::new() };
    format!("zone:{name}/{} {}", key.key_version, format.as_str_name())
}

/// Exports the PINs of a file of cards.
///
/// # Errors
/// [`BulkError`]: the run did not end, or items failed.
pub(crate) fn export(arguments: &ExportArguments) -> Result<(), BulkError> {
    let zone = arguments.zone.key_and_format();
    let run = format!("to {}", described(&zone));
    let (key, format) = zone;
    run_call("export", &run, &arguments.run, Columns::Card, Export { key, format })
}

/// Sets the PINs of a file of blocks.
///
/// # Errors
/// [`BulkError`]: the run did not end, or items failed.
pub(crate) fn import(arguments: &ImportArguments) -> Result<(), BulkError> {
    let zone = arguments.zone.key_and_format();
    let run = format!("from {}", described(&zone));
    let (key, format) = zone;
    run_call("import", &run, &arguments.run, Columns::Block, Import { key, format })
}

/// Translates a file of blocks from zone to zone.
///
/// # Errors
/// [`BulkError`]: the run did not end, or items failed.
pub(crate) fn translate(arguments: &TranslateArguments) -> Result<(), BulkError> {
    let source = arguments.zone.key_and_format();
    let target = (key(&arguments.to_zone, arguments.to_key_version), Format::of(arguments.to_format));
    let run = format!("from {} to {}", described(&source), described(&target));
    run_call("translate", &run, &arguments.run, Columns::SealedBlock, Translate { source, target })
}

fn run_call<C: BulkCall>(
    command: &str,
    zones: &str,
    arguments: &RunArguments,
    columns: Columns,
    call: C,
) -> Result<(), BulkError> {
    let RunArguments { engine, tls, tenant, audit_user, input, output, retry_seconds } = arguments;
    // The whole input is checked before the first item is sent.
    let total = ItemFile::count(input, columns)?;
    let mut items = ItemFile::open(input, columns)?;
    let outcomes = OutcomeFile::open(output, &format!("# pinseal {command}: {} {zones}", tenant.as_str()), &mut items)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let bar = bar(total, outcomes.counts().done);
    let counts = runtime.block_on(async {
        let stream = ItemStream {
            call,
            client: BulkServiceClient::new(channel_to(engine, tls)?),
            tenant: tenant.as_str().to_owned(),
            audit_user: audit_user.clone(),
            items,
            outcomes,
            bar: bar.clone(),
            retry_time_max: Duration::from_secs(*retry_seconds),
            waiting: VecDeque::new(),
            is_read: false,
        };
        stream.run().await
    })?;
    bar.finish_and_clear();
    writeln!(io::stdout(), "{} items, {} failed: {}", counts.done, counts.failed, output.display())?;
    if counts.failed > 0 {
        Err(BulkError::ItemsFailed { failed: counts.failed, output: output.clone() })
    } else {
        Ok(())
    }
}

/// A bar on standard error; none where standard error is not a terminal.
fn bar(total: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len}, {per_sec}, {eta} left");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(done);
    bar.reset_eta();
    bar
}

/// A run of items ended early, or items failed.
#[derive(Debug, Error)]
pub(crate) enum BulkError {
    /// A file cannot be opened, read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// A line of a file is malformed.
    #[error("{} line {line} {problem}", path.display())]
    Line {
        /// The path of the file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: u64,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// Another process writes the output.
    #[error("{}: another process writes this file: wait for its end", path.display())]
    Locked {
        /// The path of the output.
        path: PathBuf,
    },
    /// The output is that of a run with other arguments.
    #[error("{} begins with {run:?}, and is not an output of this command: give another --output", path.display())]
    OtherRun {
        /// The path of the output.
        path: PathBuf,
        /// The first line of the file.
        run: String,
    },
    /// The engine cannot be called, or refuses the stream.
    #[error(transparent)]
    Engine(#[from] OperatorError),
    /// An item fails for a reason that may pass.
    #[error("an item fails ({reason}: {message}): run the command again to continue")]
    Item {
        /// The reason of the engine.
        reason: String,
        /// The message of the engine.
        message: String,
    },
    /// The engine sent an outcome of another item.
    #[error("the engine sent an outcome {number} that no item has: run the command again, and report this defect")]
    Response {
        /// The number of the outcome.
        number: u64,
    },
    /// The run ended, and items have an error.
    #[error("{failed} items failed: the lines of {} have their reasons", output.display())]
    ItemsFailed {
        /// The number of the items that failed, in earlier runs too.
        failed: u64,
        /// The path of the output.
        output: PathBuf,
    },
    /// The runtime could not start, or standard output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The exit code of a run whose items have all an outcome, some of them an error.
const ITEMS_FAILED: u8 = 3;

impl BulkError {
    /// 3 where every item has its outcome and items failed; otherwise 1.
    pub(crate) fn exit_code(&self) -> u8 {
        if matches!(self, Self::ItemsFailed { .. }) { ITEMS_FAILED } else { 1 }
    }
}
