//! Pinseal in a container, for the tests of a client of the Card PIN API: edge, engine and a SoftHSM token.
//!
//! The container serves HTTP without TLS, with keys that it makes at its start. Use test cards alone.
//!
//! ```no_run
//! # async fn example() -> Result<(), pinseal_testcontainers::PinsealError> {
//! let pinseal = pinseal_testcontainers::Pinseal::start().await?;
//! pinseal.register_card("1000200030", Some("5413330089020011")).await?;
//! // The client under test gets the URL and the token.
//! println!("{} {}", pinseal.url(), pinseal.bearer_token());
//! pinseal.reset().await?;
//! # Ok(())
//! # }
//! ```

use std::{env, time::Duration};

use thiserror::Error;

pub use testcontainers;
use testcontainers::{
    ContainerAsync, Image, ImageExt, TestcontainersError,
    core::{ContainerPort, ExecCommand, Mount, WaitFor},
    runners::AsyncRunner,
};

/// The environment variable that names the image, such as `registry.bank.example/pinseal:1.4`.
pub const IMAGE_VARIABLE: &str = "PINSEAL_IMAGE";
/// The port of the edge in the container. On a network of containers it serves the clients in other containers.
pub const EDGE_PORT: ContainerPort = ContainerPort::Tcp(8080);

/// The image that `scripts/softhsm-image` builds without arguments.
const DEFAULT_IMAGE: &str = "pinseal-softhsm";
const DEFAULT_TAG: &str = "latest";
/// The time for the start of a container. A usual start takes one or two seconds.
const START_TIME_MAX: Duration = Duration::from_secs(120);
/// The pause between two requests for the exit code of a command whose output has ended.
const EXIT_PAUSE: Duration = Duration::from_millis(10);

/// The image, with the command that serves edge and engine.
///
/// [`testcontainers::ImageExt`] adds a network, a name of the container and more; [`Pinseal::over`] accepts the container.
#[derive(Clone, Debug)]
pub struct PinsealImage {
    name: String,
    tag: String,
    /// In memory, because a store on disk waits for its syncs.
    data: Mount,
}

impl PinsealImage {
    /// The image with this reference: a name, and a tag after the last colon. Without a tag it is `latest`.
    pub fn new(reference: &str) -> Self {
        // A colon before the last slash belongs to the port of a registry.
        let (name, tag) = match reference.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (reference, DEFAULT_TAG),
        };
        Self { name: name.to_owned(), tag: tag.to_owned(), data: Mount::tmpfs_mount("/trial") }
    }
}

impl Default for PinsealImage {
    /// The image that the variable `PINSEAL_IMAGE` names, otherwise `pinseal-softhsm:latest`.
    fn default() -> Self {
        Self::new(env::var(IMAGE_VARIABLE).as_deref().unwrap_or(DEFAULT_IMAGE))
    }
}

impl Image for PinsealImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> &str {
        &self.tag
    }

    fn ready_conditions(&self) -> Vec<WaitFor> {
        vec![WaitFor::message_on_stdout("pinseal trial serves")]
    }

    fn mounts(&self) -> impl IntoIterator<Item = &Mount> {
        [&self.data]
    }

    fn cmd(&self) -> impl IntoIterator<Item = impl Into<std::borrow::Cow<'_, str>>> {
        ["trial"]
    }

    fn expose_ports(&self) -> &[ContainerPort] {
        &[EDGE_PORT]
    }
}

/// A running container. It is removed when this value is dropped.
pub struct Pinseal {
    container: ContainerAsync<PinsealImage>,
    url: String,
    bearer_token: String,
}

impl Pinseal {
    /// Starts a container of the default image, and returns when the edge serves.
    ///
    /// # Errors
    /// [`PinsealError::Container`]: no Docker engine answers, the image does not exist, or the container does not serve within
    /// two minutes.
    pub async fn start() -> Result<Self, PinsealError> {
        Self::over(PinsealImage::default().with_startup_timeout(START_TIME_MAX).start().await?).await
    }

    /// Uses a container that was started with other settings.
    ///
    /// # Errors
    /// As [`Pinseal::start`].
    pub async fn over(container: ContainerAsync<PinsealImage>) -> Result<Self, PinsealError> {
        let (host, port) = (container.get_host().await?, container.get_host_port_ipv4(EDGE_PORT).await?);
        let bearer_token = run(&container, &["cat", "/trial/pinseal/bearer-token"]).await?;
        Ok(Self { container, url: format!("http://{host}:{port}"), bearer_token })
    }

    /// The base URL of the edge for a client outside Docker, such as `http://localhost:32768`. It stays after a reset.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The Bearer token of the client, 64 characters. It stays after a reset.
    pub fn bearer_token(&self) -> &str {
        &self.bearer_token
    }

    /// The container, for its logs and its network.
    pub fn container(&self) -> &ContainerAsync<PinsealImage> {
        &self.container
    }

    /// Registers a card: a plasticId of 1 to 19 digits and, if the card has one, an account number of 12 to 19 digits.
    ///
    /// # Errors
    /// [`PinsealError::Command`]: a number is malformed, or the engine refuses the card.
    pub async fn register_card(&self, plastic_id: &str, account_number: Option<&str>) -> Result<(), PinsealError> {
        let card = account_number.map_or_else(|| plastic_id.to_owned(), |account| format!("{plastic_id},{account}"));
        run(&self.container, &["start", "register", &card]).await.map(drop)
    }

    /// Starts the engine again with an empty store: no card, PIN, control, counter and audit entry is left.
    ///
    /// A request that the edge processes during the reset may fail with 503.
    ///
    /// # Errors
    /// [`PinsealError::Command`]: the engine did not start; its log is the container's.
    pub async fn reset(&self) -> Result<(), PinsealError> {
        run(&self.container, &["start", "reset"]).await.map(drop)
    }
}

/// Runs a command in the container, and returns its standard output.
async fn run(container: &ContainerAsync<PinsealImage>, command: &[&str]) -> Result<String, PinsealError> {
    let mut running = container.exec(ExecCommand::new(command.iter().copied())).await?;
    let output = running.stdout_to_vec().await?;
    let problem = running.stderr_to_vec().await?;
    let code = loop {
        // The exit code may be known a moment after the end of the output.
        match running.exit_code().await? {
            Some(code) => break code,
            None => tokio::time::sleep(EXIT_PAUSE).await,
        }
    };
    if code == 0 {
        return Ok(String::from_utf8_lossy(&output).into_owned());
    }
    let problem = String::from_utf8_lossy(&problem).trim().to_owned();
    Err(PinsealError::Command { command: command.join(" "), code, problem })
}

/// The container does not serve, or a command in it failed.
#[derive(Debug, Error)]
pub enum PinsealError {
    /// The container cannot be started or reached.
    #[error("{0}; check that Docker runs and that the image exists (scripts/softhsm-image builds it)")]
    Container(#[from] TestcontainersError),
    /// A command in the container failed.
    #[error("`{command}` ended with code {code} in the container: {problem}; the container's log says more")]
    Command {
        /// The command with its arguments.
        command: String,
        /// The exit code.
        code: i64,
        /// Its standard error.
        problem: String,
    },
}
