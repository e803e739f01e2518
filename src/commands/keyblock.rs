//! `pinseal keyblock inspect`: explains the clear header of a key block, field by field, without any key.

use std::io::{self, Read, Write};

use clap::{Args, Subcommand};
use hsm::{Field, KeyBlock, KeyBlockError};
use serde_json::json;
use thiserror::Error;

/// The arguments of `pinseal keyblock`.
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
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The most bytes read from standard input: more than the longest block and its line end.
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
    let block = KeyBlock::parse_to_explain(text.trim_end_matches(['\n', '\r']))?;
    let mut out = io::stdout().lock();
    if json {
        let field = |Field { name, value, meaning, warning }: Field| {
            let mut field = json!({ "name": name, "value": value, "meaning": meaning });
            if let (Some(members), Some(warning)) = (field.as_object_mut(), warning) {
                members.insert("warning".to_owned(), warning.into());
            }
            field
        };
        let fields: Vec<_> = block.fields().into_iter().map(field).collect();
        writeln!(out, "{:#}", json!({ "fields": fields }))?;
        return Ok(());
    }
    for Field { name, value, meaning, warning } in block.fields() {
        writeln!(out, "{name:<15} {value:<10} {meaning}")?;
        if let Some(warning) = warning {
            writeln!(out, "{:<15} warning: {warning}", "")?;
        }
    }
    Ok(())
}

/// The block can't be explained.
#[derive(Debug, Error)]
pub(crate) enum KeyBlockCommandError {
    /// The text is not a key block.
    #[error(transparent)]
    Block(#[from] KeyBlockError),
    /// Standard input can't be read, or standard output can't be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}
