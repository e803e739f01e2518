//! One PostgreSQL server, for the test of a database that is away.

use postgres_server::Server;
use store_postgres::PostgresConfig;

use crate::{guard::Notes, times::LEASE_SECONDS};

/// A server; stopped when dropped, or by the guard.
pub struct SingleServer {
    server: Server,
    notes: Notes,
}

impl SingleServer {
    /// Makes a database and starts its server.
    pub fn start(notes: Notes) -> Self {
        let server = Server::start_with("log_parameter_max_length = 0\nlog_parameter_max_length_on_error = 0");
        notes.started(server.id());
        Self { server, notes }
    }

    /// Starts the server, and waits until it accepts connections.
    pub fn run(&mut self) {
        self.server.run();
        self.notes.started(self.server.id());
    }

    /// Stops the server at once, as a crash would.
    pub fn stop(&mut self) {
        let process = self.server.id();
        self.server.stop();
        self.notes.ended(process);
    }

    /// Stops every process of the server, as a hanging machine would.
    pub fn freeze(&self) {
        self.server.freeze();
    }

    /// Continues the server.
    pub fn thaw(&self) {
        self.server.thaw();
    }

    /// The lines of `[store.postgres]` of an engine with this name.
    pub fn lines(&self, engine: &str) -> String {
        format!("{}\nlease_seconds = {LEASE_SECONDS}\n", self.server.section(engine))
    }

    /// The configuration of another engine, for a reader.
    pub fn config(&self, engine: &str) -> PostgresConfig {
        self.server.config(engine)
    }
}
