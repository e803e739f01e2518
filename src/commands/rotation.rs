//! `pinseal rotation`: shows the progress of a rotation on a terminal, as lines of text or as JSON.

use std::io::{self, IsTerminal, Write};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::runtime::Builder;

use engine_client::{EngineTls, OperatorError, RunningEngine};
use proto::{RotationState, WatchRotationResponse};

/// `pinseal rotation`.
#[derive(Args)]
pub(crate) struct RotationArguments {
    #[command(subcommand)]
    command: RotationCommand,
}

const WATCH_EXAMPLES: &str = "\
The exit code is 0 when every PIN record is under the newest storage key; it is 1 when some records do not decrypt, or the \
engine stops before the end. Examples:\n  \
    pinseal rotation watch --engine 127.0.0.1:50051\n  \
    pinseal rotation watch --engine https://engine.internal:50051 --engine-roots ca.pem \\\n      \
        --engine-certificates operator.pem --engine-private-key operator.key --json";

#[derive(Subcommand)]
enum RotationCommand {
    /// Watch the engine re-encrypt PIN records under the newest storage key, until all are done
    #[command(after_help = WATCH_EXAMPLES)]
    Watch(WatchArguments),
}

#[derive(Args)]
struct WatchArguments {
    /// The engine, such as 127.0.0.1:50051 or https://engine.internal:50051
    #[arg(long, value_name = "ADDRESS")]
    engine: String,
    #[command(flatten)]
    tls: EngineTls,
    /// Print one JSON object on each line
    #[arg(long)]
    json: bool,
}

/// Watches a rotation until it ends.
///
/// # Errors
/// The engine cannot be called, the rotation does not end, or records do not decrypt.
pub(crate) fn run(arguments: RotationArguments) -> Result<(), OperatorError> {
    let RotationCommand::Watch(arguments) = arguments.command;
    Builder::new_current_thread().enable_all().build()?.block_on(watch(&arguments))
}

async fn watch(arguments: &WatchArguments) -> Result<(), OperatorError> {
    let mut running = RunningEngine::at(&arguments.engine, &arguments.tls)?;
    let mut messages = running.rotation().await?;
    let output = match arguments.json {
        true => Output::Json,
        false if io::stdout().is_terminal() => Output::Bar(bar()),
        false => Output::Lines,
    };
    let mut last = None;
    loop {
        match messages.message().await.map_err(OperatorError::from) {
            Ok(Some(progress)) => {
                output.write(&progress)?;
                last = Some(progress);
            }
            Ok(None) => return outcome(last.as_ref()),
            Err(OperatorError::ConnectionAge) => messages = running.rotation().await?,
            Err(error) => return Err(error),
        }
    }
}

/// Maps the last message of the engine to the result of the command.
fn outcome(last: Option<&WatchRotationResponse>) -> Result<(), OperatorError> {
    let Some(last) = last else { return Err(OperatorError::CutOff) };
    match last.state() {
        RotationState::Idle | RotationState::Done => Ok(()),
        RotationState::DoneWithFailures => Err(OperatorError::RecordsFailed { failed: last.failed_count }),
        RotationState::Stopped => Err(OperatorError::Stopped),
        RotationState::Running | RotationState::Waiting | RotationState::Unspecified => Err(OperatorError::CutOff),
    }
}

/// The format of the output.
enum Output {
    /// A progress bar on a terminal.
    Bar(ProgressBar),
    /// Lines of text.
    Lines,
    /// One JSON object on each line.
    Json,
}

impl Output {
    fn write(&self, progress: &WatchRotationResponse) -> io::Result<()> {
        match self {
            Self::Bar(bar) if progress.state() == RotationState::Running => {
                bar.set_message(rate(progress));
                bar.set_length(progress.total_count);
                bar.set_position(progress.checked_count);
                Ok(())
            }
            Self::Bar(bar) => {
                bar.finish_and_clear();
                writeln!(io::stdout(), "{}", line(progress))
            }
            Self::Lines => writeln!(io::stdout(), "{}", line(progress)),
            Self::Json => writeln!(io::stdout(), "{}", object(progress)),
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len}, {msg}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn rate(progress: &WatchRotationResponse) -> String {
    let (reencrypted, failed, pass) = (progress.reencrypted_count, progress.failed_count, progress.pass_number);
    let failures = if failed == 0 { String::new() } else { format!(", {failed} do not decrypt") };
    let (rate, rate_max) = (progress.records_per_second, progress.max_records_per_second);
    format!("{reencrypted} re-encrypted{failures}; {rate} a second of at most {rate_max}; pass {pass}")
}

fn line(progress: &WatchRotationResponse) -> String {
    let WatchRotationResponse {
        total_count: total,
        checked_count: checked,
        reencrypted_count: reencrypted,
        failed_count: failed,
        ..
    } = progress;
    match progress.state() {
        RotationState::Idle => "idle: one storage key is in use, and every PIN record is under it".into(),
        RotationState::Running => format!("running: {checked} of {total} records checked, {}", rate(progress)),
        RotationState::Done => format!(
            "done: all {checked} records are under the newest storage key; {reencrypted} re-encrypted since the engine started"
        ),
        RotationState::DoneWithFailures => {
            format!(
                "done: of {checked} records {failed} do not decrypt; {reencrypted} re-encrypted since the engine started"
            )
        }
        RotationState::Stopped => {
            format!("stopped: {checked} of {total} records checked, {reencrypted} re-encrypted")
        }
        RotationState::Waiting => {
            "waiting: another engine on the store lacks the newest storage key; reload its keys, or deregister it"
                .into()
        }
        RotationState::Unspecified => "unknown: the engine is of another release".into(),
    }
}

fn object(progress: &WatchRotationResponse) -> serde_json::Value {
    let state = match progress.state() {
        RotationState::Idle => "idle",
        RotationState::Running => "running",
        RotationState::Done => "done",
        RotationState::DoneWithFailures => "done_with_failures",
        RotationState::Stopped => "stopped",
        RotationState::Waiting => "waiting",
        RotationState::Unspecified => "unknown",
    };
    json!({
        "state": state, "pass_number": progress.pass_number, "total_count": progress.total_count,
        "checked_count": progress.checked_count, "reencrypted_count": progress.reencrypted_count,
        "failed_count": progress.failed_count, "records_per_second": progress.records_per_second,
        "max_records_per_second": progress.max_records_per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(state: RotationState, failed_count: u64) -> WatchRotationResponse {
        let state = state.into();
        WatchRotationResponse {
            state,
            failed_count,
            checked_count: 7,
            total_count: 7,
            ..WatchRotationResponse::default()
        }
    }

    #[test]
    fn the_result_is_ok_only_if_all_records_use_the_newest_key() {
        assert!(outcome(Some(&last(RotationState::Idle, 0))).is_ok());
        assert!(outcome(Some(&last(RotationState::Done, 0))).is_ok());
        let failed = outcome(Some(&last(RotationState::DoneWithFailures, 3)));
        assert!(matches!(failed, Err(OperatorError::RecordsFailed { failed: 3 })));
        assert!(matches!(outcome(Some(&last(RotationState::Stopped, 0))), Err(OperatorError::Stopped)));
        for ended in [None, Some(last(RotationState::Running, 0))] {
            assert!(matches!(outcome(ended.as_ref()), Err(OperatorError::CutOff)));
        }
    }

    #[test]
    fn every_output_reports_failures() {
        for state in [RotationState::Running, RotationState::DoneWithFailures] {
            assert!(line(&last(state, 3)).contains("3 do not decrypt"));
            assert_eq!(object(&last(state, 3))["failed_count"], 3);
        }
        assert!(!line(&last(RotationState::Running, 0)).contains("do not decrypt"));
    }
}
