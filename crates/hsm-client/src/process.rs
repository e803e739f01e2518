//! The boundary's process as its connections see it: started, reloaded and closed. A supervisor task keeps it running.

use std::{path::PathBuf, sync::Arc};

use hsm_protocol::Status;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    AbsentKeys, BoundaryError, ProcessConfig,
    connection::Connection,
    generation::Generation,
    supervisor::{ReloadReply, Supervisor, Watched},
};

/// The supervised process of the boundary.
pub(super) struct Process {
    connections: Vec<Arc<Connection>>,
    /// The socket of a process that runs apart.
    apart: Option<PathBuf>,
    reloads: mpsc::Sender<ReloadReply>,
    stop: watch::Sender<bool>,
    supervisor: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Process {
    /// Starts the process, or connects to it, and waits for its welcome.
    pub(super) async fn start(
        source: ProcessConfig,
        connections: usize,
        absent: AbsentKeys,
    ) -> Result<(Arc<Self>, watch::Receiver<Arc<Status>>), BoundaryError> {
        let (lose, lost) = watch::channel(0);
        let lose = Arc::new(lose);
        let connection = || Connection::new(Arc::clone(&lose));
        let connections: Vec<_> = (0..connections.max(1)).map(|_| connection()).collect();
        // One more than the threads have, for the supervisor's checks.
        let watcher = connection();
        let all: Vec<_> = connections.iter().cloned().chain([Arc::clone(&watcher)]).collect();
        let mut generation = Generation::start(&source, all.len(), 1, absent).await?;
        generation.connect(&all);
        let (stop, stopped) = watch::channel(false);
        let (publish, status) = watch::channel(Arc::new(generation.status.clone()));
        let (reloads, reload_requests) = mpsc::channel(1);
        let apart = match &source {
            ProcessConfig::Started { .. } => None,
            ProcessConfig::Apart { socket, .. } => Some(socket.clone()),
        };
        let watched = Watched { connections: all, watcher, lost };
        let supervisor = Supervisor { source: Arc::new(source), status: publish, reload_requests, pin_refused: false };
        let supervisor = tokio::spawn(supervisor.run(watched, generation, stopped));
        let process = Self { connections, apart, reloads, stop, supervisor: tokio::sync::Mutex::new(Some(supervisor)) };
        Ok((Arc::new(process), status))
    }

    pub(super) fn connection(&self, number: usize) -> Option<Arc<Connection>> {
        self.connections.get(number % self.connections.len().max(1)).cloned()
    }

    /// Replaces the process by another, which opens the present keys.
    pub(super) async fn reload(&self) -> Result<(), BoundaryError> {
        if let Some(path) = &self.apart {
            return Err(BoundaryError::ReloadApart { path: path.clone() });
        }
        let (reply, reloaded) = oneshot::channel();
        self.reloads.send(reply).await.map_err(|_| BoundaryError::Stopping)?;
        reloaded.await.unwrap_or(Err(BoundaryError::Stopping))
    }

    /// Ends the process, and waits for its end.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            let _ = supervisor.await;
        }
    }
}
