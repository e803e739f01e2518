//! `pinseal keyblock inspect`: what a key block says of its key, field by field. No key is needed, and none is seen.

use std::io::{self, Read, Write};

use clap::{Args, Subcommand};
use hsm::{Field, KeyBlock, KeyBlockError};
use serde_json::json;
use thiserror::Error;

/// `pinseal keyblock`.
#[derive(Args)]
pub(crate) struct KeyBlockArguments {
    #[command(subcommand)]
    command: KeyBlockCommand,
}

#[derive(Subcommand)]
enum KeyBlockCommand {
    /// Explain a key block (TR-31, X9.143, ISO 20038; versions A to E) field by field, without any key
    Inspect {
        /// The block; `-` or nothing for standard input
        #[arg(default_value = "-", value_name = "BLOCK")]
        block: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// More than the longest block, so that a line end and spaces do not count.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

/// Prints the fields of the key block.
pub(crate) fn run(arguments: KeyBlockArguments) -> Result<(), KeyBlockCommandError> {
    let KeyBlockCommand::Inspect { block, json } = arguments.command;
    let text = match &*block {
        "-" => {
            let mut text = String::new();
            io::stdin().lock().take(INPUT_BYTES_MAX).read_to_string(&mut text)?;
            text
        }
        _ => block,
    };
    let block = KeyBlock::parse(text.trim_end_matches(['\n', '\r']))?;
    let mut out = io::stdout().lock();
    if json {
        let field = |field: Field| json!({ "name": field.name, "value": field.value, "meaning": field.meaning });
        let fields: Vec<_> = block.fields().into_iter().map(field).collect();
        writeln!(out, "{:#}", json!({ "fields": fields }))?;
        return Ok(());
    }
    for Field { name, value, meaning } in block.fields() {
        writeln!(out, "{name:<15} {value:<10} {meaning}")?;
    }
    Ok(())
}

/// Why a block was not explained.
#[derive(Debug, Error)]
pub(crate) enum KeyBlockCommandError {
    /// The text is not a key block.
    #[error(transparent)]
    Block(#[from] KeyBlockError),
    /// Input or output.
    #[error("{0}")]
    Io(#[from] io::Error),
}
