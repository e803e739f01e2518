//! `pinseal events`: the events of a tenant's PINs, as lines of JSON.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tonic::transport::Channel;

use domain::card::Tenant;
use engine_client::{EngineTls, OperatorError, channel_to};
use proto::{FollowEventsRequest, PinEvent, PinEventKind, event_service_client::EventServiceClient};

/// The pause before another call after a cut; it doubles until a message arrives.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The arguments of `pinseal events`.
#[derive(Args)]
pub(crate) struct EventsArguments {
    #[command(subcommand)]
    command: EventsCommand,
}

const FOLLOW_HELP: &str = "\
Each line is a JSON object: sequence, kind, time, card_reference, card (masked), request_id, audit_user, key, remaining_tries. \
The command runs until it is stopped, through restarts of the engine. To continue later, give the last sequence as --after: no \
event is lost, and none comes twice.\n  \
pinseal events follow --engine 127.0.0.1:50051 --tenant bank --after 1207";

#[derive(Subcommand)]
enum EventsCommand {
    /// Print the events of a tenant's PINs, oldest first, and each later one as it comes; one JSON object a line
    #[command(after_help = FOLLOW_HELP)]
    Follow(FollowArguments),
}

#[derive(Args)]
struct FollowArguments {
    /// The engine, such as 127.0.0.1:50051 or https://engine.internal:50051
    #[arg(long, value_name = "ADDRESS")]
    engine: String,
    #[command(flatten)]
    tls: EngineTls,
    /// The tenant of the cards
    #[arg(long, value_parser = Tenant::parse)]
    tenant: Tenant,
    /// The user to name in the engine's log
    #[arg(long, default_value = "pinseal", value_name = "NAME")]
    audit_user: String,
    /// The sequence of the last event that was read; all events of the store by default
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE", hide_default_value = true)]
    after: u64,
}

/// Follows the events of a tenant.
///
/// # Errors
/// The engine cannot be called, or standard output failed.
pub(crate) fn run(arguments: EventsArguments) -> Result<(), OperatorError> {
    let EventsCommand::Follow(arguments) = arguments.command;
    Builder::new_current_thread().enable_all().build()?.block_on(follow(&arguments))
}

async fn follow(arguments: &FollowArguments) -> Result<(), OperatorError> {
    let mut client = EventServiceClient::new(channel_to(&arguments.engine, &arguments.tls)?);
    let (mut after, mut pause, mut was_read) = (arguments.after, PAUSE_MIN, false);
    loop {
        let reached = after;
        let Err(error) = print_events(&mut client, arguments, &mut after).await else { return Ok(()) };
        was_read |= after > reached;
        // An engine that was never reached is most likely another one than the user means.
        if !error.is_transient() || !was_read {
            return Err(error);
        }
        pause = if after > reached { PAUSE_MIN } else { PAUSE_MAX.min(pause * 2) };
        tracing::warn!(%error, after, "the events were cut: another call continues");
        tokio::time::sleep(pause).await;
    }
}

/// Prints the events after a sequence number until the call ends.
async fn print_events(
    client: &mut EventServiceClient<Channel>,
    arguments: &FollowArguments,
    after: &mut u64,
) -> Result<(), OperatorError> {
    let request = FollowEventsRequest {
        tenant: arguments.tenant.as_str().to_owned(),
        audit_user: arguments.audit_user.clone(),
        start_sequence: if *after == 0 { 0 } else { after.saturating_add(1) },
    };
    let mut events = client.follow_events(request).await?.into_inner();
    let mut out = io::stdout();
    while let Some(message) = events.message().await? {
        if let Some(event) = &message.event {
            writeln!(out, "{}", object(message.sequence, event))?;
            // A reader at the other end of a pipe sees each event at once.
            out.flush()?;
        }
        *after = message.sequence;
    }
    Err(OperatorError::CutOff)
}

fn object(sequence: u64, event: &PinEvent) -> Value {
    let time = event.event_time.as_ref().and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok());
    let mut object = json!({
        "sequence": sequence,
        "kind": kind(event.kind()),
        "time": time.map(|time| time.to_string()),
        "card_reference": base16ct::lower::encode_string(&event.card_reference),
        "card": event.masked_card,
        "request_id": event.request_id,
        "audit_user": event.audit_user,
    });
    if let Some(object) = object.as_object_mut() {
        if !event.key.is_empty() {
            object.insert("key".into(), json!(event.key));
        }
        if matches!(event.kind(), PinEventKind::VerifiedWrong | PinEventKind::Locked | PinEventKind::TriesReset) {
            object.insert("remaining_tries".into(), json!(event.remaining_try_count));
        }
    }
    object
}

fn kind(kind: PinEventKind) -> &'static str {
    match kind {
        PinEventKind::Unspecified => "unknown",
        PinEventKind::Set => "set",
        PinEventKind::SetFromZone => "set_from_zone",
        PinEventKind::Viewed => "viewed",
        PinEventKind::GivenToZone => "given_to_zone",
        PinEventKind::Changed => "changed",
        PinEventKind::VerifiedWrong => "verified_wrong",
        PinEventKind::Locked => "locked",
        PinEventKind::TriesReset => "tries_reset",
        PinEventKind::Generated => "generated",
        PinEventKind::Exported => "exported",
        PinEventKind::AccountChanged => "account_changed",
        PinEventKind::Transferred => "transferred",
    }
}
