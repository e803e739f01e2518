//! `pinseal card`: registers the cards of a file with a running engine.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use thiserror::Error;
use tokio::runtime::Builder;
use tonic::Request;
use zeroize::Zeroizing;

use domain::card::{PlasticId, Tenant};
use engine_client::{EngineTls, OperatorError, channel_to};
use hsm_protocol::AccountNumber;
use net::EngineChannel;
use proto::{RegisterCardRequest, card_service_client::CardServiceClient};

/// The longest line in bytes, with its end: a card is shorter.
const LINE_BYTES_MAX: u64 = 256;
/// The timeout of the registration of one card.
const REPLY_TIME_MAX: Duration = Duration::from_secs(10);

/// The arguments of `pinseal card`.
#[derive(Args)]
pub(crate) struct CardArguments {
    #[command(subcommand)]
    command: CardCommand,
}

const REGISTER_HELP: &str = "\
Each line is a card: plasticId, or plasticId,accountNumber. Empty lines, and lines that begin with #, are no cards. The whole \
input is checked before the first card is registered. A card that is registered already gets the account number of its line, \
so the same command can be repeated. Account numbers are not arguments, because every user of the machine can read those.\n  \
echo 1000200030,5413330089020011 | pinseal card register --engine 127.0.0.1:50051 --tenant bank --input -";

#[derive(Subcommand)]
enum CardCommand {
    /// Register cards, or change their account numbers
    #[command(after_help = REGISTER_HELP)]
    Register(RegisterArguments),
}

#[derive(Args)]
struct RegisterArguments {
    /// The engine, such as 127.0.0.1:50051 or https://engine.internal:50051
    #[arg(long, value_name = "ADDRESS")]
    engine: String,
    #[command(flatten)]
    tls: EngineTls,
    /// The tenant of the cards
    #[arg(long, value_parser = Tenant::parse)]
    tenant: Tenant,
    /// The user to name in the audit chain
    #[arg(long, default_value = "pinseal", value_name = "NAME")]
    audit_user: String,
    /// The cards, a line a card; `-` for standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
}

/// A line of the input.
struct CardLine {
    /// The number of the line, from 1.
    number: u64,
    plastic: PlasticId,
    /// The account number; empty without one.
    account: Zeroizing<String>,
}

/// Registers the cards of the input, in its order.
///
/// # Errors
/// [`CardError`]: the input is malformed, or the engine cannot be called or refuses a card.
pub(crate) fn run(arguments: CardArguments) -> Result<(), CardError> {
    let CardCommand::Register(arguments) = arguments.command;
    let cards = if arguments.input == Path::new("-") {
        read_cards(io::stdin().lock())
    } else {
        let unreadable = |error| CardError::Input { path: arguments.input.clone(), error };
        read_cards(BufReader::new(File::open(&arguments.input).map_err(unreadable)?))
    }?;
    Builder::new_current_thread().enable_all().build()?.block_on(register(&arguments, &cards))?;
    writeln!(io::stdout(), "{} cards registered", cards.len())?;
    Ok(())
}

async fn register(arguments: &RegisterArguments, cards: &[CardLine]) -> Result<(), CardError> {
    let channel = EngineChannel::from(channel_to(&arguments.engine, &arguments.tls)?);
    let mut client = CardServiceClient::new(channel);
    for card in cards {
        let mut request = Request::new(RegisterCardRequest {
            tenant: arguments.tenant.as_str().to_owned(),
            audit_user: arguments.audit_user.clone(),
            plastic_id: card.plastic.as_str().to_owned(),
            account_number: card.account.as_str().to_owned(),
        });
        request.set_timeout(REPLY_TIME_MAX);
        let refused = |status: tonic::Status| CardError::Card { line: card.number, error: status.into() };
        client.register_card(request).await.map_err(refused)?;
    }
    Ok(())
}

fn read_cards(mut input: impl BufRead) -> Result<Vec<CardLine>, CardError> {
    let mut cards = Vec::new();
    for number in 1.. {
        let mut line = Zeroizing::new(Vec::new());
        if input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = std::str::from_utf8(&line).map_err(|_| CardError::Line { line: number })?.trim();
        if !text.is_empty() && !text.starts_with('#') {
            cards.push(read_card(number, text).ok_or(CardError::Line { line: number })?);
        }
    }
    Ok(cards)
}

fn read_card(number: u64, text: &str) -> Option<CardLine> {
    let (plastic, account) = match text.split_once(',') {
        Some((plastic, account)) => {
            AccountNumber::parse(account).ok()?;
            (plastic, account)
        }
        None => (text, ""),
    };
    let plastic = PlasticId::parse(plastic).ok()?;
    Some(CardLine { number, plastic, account: Zeroizing::new(account.to_owned()) })
}

/// Cards are not registered.
#[derive(Debug, Error)]
pub(crate) enum CardError {
    /// The input cannot be opened.
    #[error("{}: {error}; name a file, or - for standard input", path.display())]
    Input {
        /// The value of `--input`.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// A line of the input is malformed; no card of the input was registered.
    #[error(
        "line {line} is not a card: write plasticId (1 to 19 digits) or plasticId,accountNumber (12 to 19 digits); no card \
         was registered"
    )]
    Line {
        /// The number of the line, from 1.
        line: u64,
    },
    /// The engine registered the cards of the lines before, and not this one.
    #[error("line {line} was not registered, and no later line: {error}; repeat the command")]
    Card {
        /// The number of the line, from 1.
        line: u64,
        /// The error of the call.
        error: OperatorError,
    },
    /// The engine cannot be called.
    #[error(transparent)]
    Engine(#[from] OperatorError),
    /// The runtime could not start, or standard input or output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_a_plastic_id_with_or_without_an_account_number() {
        let cards = read_cards("# cards\n4000\r\n\n4001,5413330089020011".as_bytes()).unwrap();
        let read: Vec<_> =
            cards.iter().map(|card| (card.number, card.plastic.as_str(), card.account.as_str())).collect();
        assert_eq!(read, [(2, "4000", ""), (4, "4001", "5413330089020011")]);
    }

    #[test]
    fn a_malformed_line_is_named_by_its_number_alone() {
        for wrong in ["x", "4000,", "4000,54133300890", "4000,5413330089020011,1", &"4".repeat(300), "4000\u{e9}"] {
            let Err(error) = read_cards(format!("4000\n{wrong}\n").as_bytes()) else { panic!("{wrong} was read") };
            assert!(matches!(error, CardError::Line { line: 2 }), "{error}");
            assert!(!error.to_string().contains(wrong) || wrong == "x", "{error}");
        }
    }
}
