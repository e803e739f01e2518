//! The supervisor of the boundary's process: it starts another process when the process ends or hangs, and for a reload.

use std::{sync::Arc, time::Duration};

use hsm_protocol::{KeyId, Request, Status, UnavailableReason};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    AbsentKeys, BoundaryError, ProcessConfig, connection::Connection, generation::Generation, succession::succeeds,
};

/// The period of the check that the process answers.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// The pause before the first restart. It doubles with each restart.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause before a restart.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that served for so long resets the pause to [`PAUSE_MIN`].
const STEADY: Duration = Duration::from_millis(100);
/// The longest time for a replaced process to answer its last requests: no caller waits longer for a reply.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(4);
/// The period of the check that a replaced process has answered them.
const HAND_OVER_CHECK_EVERY: Duration = Duration::from_millis(5);

/// The connections that the supervisor watches.
pub(super) struct Watched {
    pub(super) connections: Vec<Arc<Connection>>,
    /// The connection of the supervisor's checks.
    pub(super) watcher: Arc<Connection>,
    /// The newest generation that lost a connection.
    pub(super) lost: watch::Receiver<u64>,
}

/// The reply to a caller that waits for a reload.
pub(super) type ReloadReply = oneshot::Sender<Result<(), BoundaryError>>;

/// Keeps one process running until a stop is requested.
pub(super) struct Supervisor {
    pub(super) source: Arc<ProcessConfig>,
    /// Publishes the status of the process that serves.
    pub(super) status: watch::Sender<Arc<Status>>,
    pub(super) reload_requests: mpsc::Receiver<ReloadReply>,
    /// Whether the token refused the user PIN at the last login.
    pub(super) pin_refused: bool,
}

/// A process that opens the keys while its predecessor serves.
struct Successor {
    next: JoinHandle<Result<Generation, BoundaryError>>,
    reply: ReloadReply,
}

/// The cause of the end of serving.
enum ServingEnd {
    /// The process is lost; a caller that waits for a reload waits for the process that replaces it.
    Lost { why: &'static str, reload: Option<ReloadReply> },
    /// A stop was requested.
    Stopped,
}

impl Supervisor {
    /// Supervises until a stop is requested.
    pub(super) async fn run(
        mut self,
        mut watched: Watched,
        mut generation: Generation,
        mut stopped: watch::Receiver<bool>,
    ) {
        let connections = watched.connections.clone();
        let mut pause = PAUSE_MIN;
        loop {
            let end = self.serve(&mut watched, &mut generation, &mut stopped).await;
            connections.iter().for_each(|connection| connection.disconnect());
            let mut reload = match end {
                ServingEnd::Stopped => return generation.end().await,
                ServingEnd::Lost { why, reload } => {
                    tracing::error!(why, "the boundary's process is lost: starting it again");
                    reload
                }
            };
            generation.kill().await;
            if generation.served_for() >= STEADY {
                pause = PAUSE_MIN;
            }
            generation = loop {
                let attempt = async {
                    tokio::select! {
                        // Each start is a login. After a refused PIN, only a reload starts another.
                        () = sleep(pause), if !self.pin_refused || reload.is_some() => {}
                        // An operator requests a reload after a repair.
                        Some(reply) = self.reload_requests.recv(), if reload.is_none() => reload = Some(reply),
                        // No caller is left: the engine stops.
                        else => std::future::pending().await,
                    }
                    let keys = generation.status.keys().to_vec();
                    start_successor(Arc::clone(&self.source), generation.number, keys, connections.len()).await
                };
                let started = tokio::select! {
                    started = attempt => started,
                    () = stop_requested(&mut stopped) => return,
                };
                pause = (pause * 2).min(PAUSE_MAX);
                match started {
                    Ok(generation) => break generation,
                    Err(error) => {
                        self.pin_refused = error.refuses_user_pin();
                        if self.pin_refused {
                            tracing::error!(%error, "the boundary's process is not started again before a reload (SIGHUP)");
                        } else {
                            tracing::error!(%error, "the boundary's process did not start");
                        }
                        answer(reload.take(), Err(error));
                    }
                }
            };
            self.pin_refused = false;
            self.status.send_replace(Arc::new(generation.status.clone()));
            generation.connect(&connections);
            tracing::info!("the boundary's process serves again");
            answer(reload, Ok(()));
        }
    }

    /// Watches the process, and each process that replaces it for a reload, until one is lost or a stop is requested.
    async fn serve(
        &mut self,
        watched: &mut Watched,
        generation: &mut Generation,
        stopped: &mut watch::Receiver<bool>,
    ) -> ServingEnd {
        let mut successor: Option<Successor> = None;
        loop {
            let is_reloading = successor.is_some();
            let started = async {
                match &mut successor {
                    Some(successor) => (&mut successor.next).await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                why = wait_for_loss(generation, watched, &self.source, &mut self.pin_refused) => {
                    let reload = successor.map(|Successor { next, reply }| {
                        next.abort();
                        reply
                    });
                    return ServingEnd::Lost { why, reload };
                }
                () = stop_requested(stopped) => {
                    successor.iter().for_each(|successor| successor.next.abort());
                    return ServingEnd::Stopped;
                }
                next = started => next,
                Some(reply) = self.reload_requests.recv(), if !is_reloading => {
                    let (source, keys) = (Arc::clone(&self.source), generation.status.keys().to_vec());
                    let next = tokio::spawn(start_successor(source, generation.number, keys, watched.connections.len()));
                    successor = Some(Successor { next, reply });
                    continue;
                }
            };
            let Some(Successor { reply, .. }) = successor.take() else { continue };
            match next.unwrap_or(Err(BoundaryError::Stopping)) {
                Ok(next) => {
                    self.pin_refused = false;
                    let before = std::mem::replace(generation, next);
                    // Published before the first reply of the new process: an audit event is made after a reply, and
                    // names the keys in this status.
                    self.status.send_replace(Arc::new(generation.status.clone()));
                    generation.replace(&watched.connections);
                    let keys = KeyId::list_to_text(generation.status.keys());
                    tokio::spawn(end_predecessor(watched.connections.clone(), before, keys, reply));
                }
                Err(error) => {
                    self.pin_refused = error.refuses_user_pin();
                    answer(Some(reply), Err(error));
                }
            }
        }
    }
}

fn answer(reload: Option<ReloadReply>, outcome: Result<(), BoundaryError>) {
    if let Some(reply) = reload {
        // The caller may have stopped waiting.
        let _ = reply.send(outcome);
    }
}

/// Starts the process after generation `number`, and checks that its keys may follow the keys before.
async fn start_successor(
    source: Arc<ProcessConfig>,
    number: u64,
    keys_before: Vec<KeyId>,
    connections: usize,
) -> Result<Generation, BoundaryError> {
    let mut generation = Generation::start(&source, connections, number + 1, AbsentKeys::Refuse).await?;
    let Err(mismatch) = succeeds(&keys_before, generation.status.keys()) else { return Ok(generation) };
    generation.kill().await;
    Err(BoundaryError::OtherKeys(mismatch))
}

/// Ends a replaced process once it has answered the requests of every connection, then answers the reload.
async fn end_predecessor(connections: Vec<Arc<Connection>>, before: Generation, keys: String, reply: ReloadReply) {
    let answered = async {
        while connections.iter().any(|connection| connection.is_being_handed_over()) {
            sleep(HAND_OVER_CHECK_EVERY).await;
        }
    };
    // A request that takes longer has no caller any more.
    let _ = timeout(HAND_OVER_TIME_MAX, answered).await;
    tracing::info!(keys, "the boundary has reloaded its keys");
    answer(Some(reply), Ok(()));
    before.end().await;
}

async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// Waits until the process ends, loses a connection or stops answering; returns which of these, for the log. Sets
/// `pin_refused` when a process that the engine started replies that its token refused the user PIN: another start would
/// log in again.
async fn wait_for_loss(
    generation: &mut Generation,
    Watched { watcher, lost, .. }: &mut Watched,
    source: &ProcessConfig,
    pin_refused: &mut bool,
) -> &'static str {
    let number = generation.number;
    let connection_lost = async {
        drop(lost.wait_for(|lost| *lost >= number).await);
        "a connection to it ended"
    };
    let silent = async {
        loop {
            sleep(CHECK_EVERY).await;
            // A process that lost its token still answers; a process that hangs does not.
            match watcher.execute(&Request::Check).await {
                Err(hsm_protocol::Error::Unavailable { reason }) if reason.is_of_the_process() => {
                    return "it does not answer";
                }
                // A service manager starts a process that runs apart; a new connection to it is no login.
                Err(hsm_protocol::Error::Unavailable { reason: UnavailableReason::UserPinRefused })
                    if matches!(source, ProcessConfig::Started { .. }) && !*pin_refused =>
                {
                    *pin_refused = true;
                    tracing::error!("the token refused the user PIN: correct the PIN, then reload (SIGHUP)");
                }
                _ => {}
            }
        }
    };
    let ended = async {
        generation.wait_for_exit().await;
        "it ended"
    };
    tokio::select! {
        biased;
        why = ended => why,
        why = connection_lost => why,
        why = silent => why,
    }
}
