//! `pinseal policy`: what the key boundary allows.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use hsm::{Place, TRANSLATIONS, Translation};
use thiserror::Error;

#[derive(Args)]
pub(crate) struct PolicyArguments {
    #[command(subcommand)]
    action: PolicyAction,
}

#[derive(Subcommand)]
enum PolicyAction {
    /// List every allowed translation of a PIN block, the boundary level where it works, and the forms of RSA-OAEP
    Explain,
}

/// The table was not printed.
#[derive(Debug, Error)]
#[error("the table could not be written: {0}")]
pub(crate) struct PolicyError(#[from] io::Error);

pub(crate) fn run(arguments: &PolicyArguments) -> Result<(), PolicyError> {
    match arguments.action {
        PolicyAction::Explain => Ok(explain(&mut io::stdout().lock())?),
    }
}

/// The hash in MGF1 of each form of RSA-OAEP, and whose requests may ask for the form.
const OAEP_FORMS: [(&str, &str); 2] = [
    ("sha-256", "every client"),
    ("sha-1", "clients of an edge with oaep_mgf1 = \"sha-1\", until their oaep_mgf1_until"),
];

fn explain(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<8} {:<8} {:<8} {:<8} LEVEL", "SOURCE", "FORMAT", "TARGET", "FORMAT")?;
    TRANSLATIONS.iter().try_for_each(|Translation { source, target, level }| {
        let ((source, from), (target, to)) = (holder_and_format(*source), holder_and_format(*target));
        writeln!(out, "{source:<8} {from:<8} {target:<8} {to:<8} {level}")
    })?;
    writeln!(out, "\n{:<8} {:<8} {:<8} {:<8} ALLOWED", "TZPK FOR", "BY", "HASH", "MGF1")?;
    OAEP_FORMS.iter().try_for_each(|(mgf1, allowed)| {
        writeln!(out, "{:<8} {:<8} {:<8} {mgf1:<8} {allowed}", "device", "rsa-oaep", "sha-256")
    })
}

fn holder_and_format(place: Place) -> (&'static str, &'static str) {
    match place {
        Place::Device => ("device", "iso-1"),
        Place::Record(format) => ("record", format.name()),
        Place::Zone(format) => ("zone", format.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_translation() {
        let mut text = Vec::new();
        explain(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), TRANSLATIONS.len() + 1 + 2 + OAEP_FORMS.len());
        assert!(text.lines().any(|line| line.split_whitespace().eq(["device", "iso-1", "record", "iso-4", "host"])));
    }
}
