//! `pinseal engine` as a process, and its gRPC clients.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use device::{Device, Fill, KeyBits, Pin};
use proto::{
    IssueTzpkRequest, OpenControlRequest, OpenControlResponse, Scope, SetPinRequest, ViewPinRequest,
    card_service_client::CardServiceClient, control_service_client::ControlServiceClient,
    pin_service_client::PinServiceClient,
};
use tonic::{Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::real_token::RealToken;

/// A running engine; killed when dropped.
pub struct EngineProcess {
    child: Child,
    address: String,
    /// Its standard error.
    log: PathBuf,
}

impl EngineProcess {
    /// Starts an engine with its data in `directory` and these extra lines of configuration.
    pub fn start(directory: &Path, extra: &str) -> Self {
        Self::start_binary(Path::new(crate::pinseal_path()), directory, extra)
    }

    /// Starts a service without a log: writing events would take most of its time.
    pub fn start_quiet(directory: &Path, extra: &str) -> Self {
        let mut quiet = Command::new("env");
        quiet.args(["RUST_LOG=warn", crate::pinseal_path()]);
        Self::start_with(quiet, "127.0.0.1:0", directory, extra)
    }

    /// Starts another build of the program.
    pub fn start_binary(binary: &Path, directory: &Path, extra: &str) -> Self {
        Self::start_with(Command::new(binary), "127.0.0.1:0", directory, extra)
    }

    /// Starts an engine with its keys in this token.
    pub fn start_on(directory: &Path, token: &RealToken) -> Self {
        Self::start_on_with(directory, token, "")
    }

    /// The same, with more lines in `[boundary]`.
    pub fn start_on_with(directory: &Path, token: &RealToken, more: &str) -> Self {
        let (pinseal, lines) = (token.beside(crate::pinseal_path()), token.lines_with(more));
        Self::start_with(pinseal, "127.0.0.1:0", directory, &lines)
    }

    /// Starts an engine at a given address.
    pub fn start_at(directory: &Path, listen: &str, extra: &str) -> Self {
        Self::start_with(Command::new(crate::pinseal_path()), listen, directory, extra)
    }

    /// Starts an engine by a prepared command.
    pub fn start_with(mut pinseal: Command, listen: &str, directory: &Path, extra: &str) -> Self {
        let config = directory.join("engine.toml");
        let data = directory.join("data");
        // A disk that is busy with other work may keep a change waiting for longer than the 5 s of the default.
        let long_calls = match extra.contains("call_timeout_milliseconds") {
            true => "",
            false => "call_timeout_milliseconds = 60000",
        };
        let text = format!("listen = \"{listen}\"\ndata_directory = {data:?}\n{long_calls}\n{extra}\n");
        std::fs::write(&config, text).unwrap();
        let log = directory.join("engine.log");
        let events = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut child = pinseal
            .args(["engine", "--config"])
            .arg(&config)
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(events)
            .spawn()
            .unwrap();
        let first = BufReader::new(child.stdout.as_mut().unwrap()).lines().next();
        let Some(Ok(line)) = first else {
            let _ = child.kill();
            panic!("the engine did not start: {}", std::fs::read_to_string(&log).unwrap());
        };
        let address = line.rsplit(' ').next().unwrap().to_owned();
        Self { child, address, log }
    }

    /// Closes the reader of its standard output.
    pub fn stop_reading(&mut self) {
        drop(self.child.stdout.take());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The current process of its key boundary, if any.
    pub fn hsm_id(&self) -> Option<u32> {
        self.hsm_ids().first().copied()
    }

    /// The processes of its key boundary: the current one and its successor.
    pub fn hsm_ids(&self) -> Vec<u32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        let children =
            threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).ok());
        children.collect::<String>().split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Its metrics, if it was started with [`METRICS`]; the log has their address.
    pub fn metrics(&self) -> String {
        metrics(&self.log())
    }

    /// Its resident memory.
    pub fn resident_kibibytes(&self) -> u64 {
        status_of(self.id(), "VmRSS:").parse().unwrap()
    }

    /// Sends SIGKILL and waits for the end of the process.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn terminate(self) -> i32 {
        Command::new("kill").arg(self.id().to_string()).status().unwrap();
        self.wait()
    }

    /// Waits for the end of the process and returns the exit code.
    pub fn wait(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }

    /// Whether health reports that PINs are served.
    pub async fn serves(&self) -> bool {
        let request = HealthCheckRequest { service: "pinseal.v1.PinService".into() };
        let printed = self.health().await.check(request).await.unwrap().into_inner();
        printed.status() == ServingStatus::Serving
    }

    /// Its health, on a new connection.
    pub async fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel().await)
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// A client on a new connection.
    pub async fn client(&self) -> Client {
        Client::over(self.channel().await)
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of configuration with which an engine serves metrics.
pub const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";
/// The tenant of the tests' cards.
pub const TENANT: &str = "bank";
/// The auditUser of the tests.
pub const AUDIT_USER: &str = "it";

/// The gRPC clients of one connection.
#[derive(Clone)]
pub struct Client {
    pub controls: ControlServiceClient<Channel>,
    pub pins: PinServiceClient<Channel>,
    pub cards: CardServiceClient<Channel>,
}

impl Client {
    pub fn over(channel: Channel) -> Self {
        Self {
            controls: ControlServiceClient::new(channel.clone()),
            pins: PinServiceClient::new(channel.clone()),
            cards: CardServiceClient::new(channel),
        }
    }

    pub async fn open(&mut self, plastic_id: &str, scope: Scope) -> Result<OpenControlResponse, Status> {
        let request = OpenControlRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: plastic_id.into(),
            scope: scope.into(),
            device_key_sha256: Vec::new(),
            page_client: String::new(),
        };
        Ok(self.controls.open_control(request).await?.into_inner())
    }

    pub async fn tzpk(&mut self, control_id: &str, device: &Device) -> Result<Vec<u8>, Status> {
        let request = IssueTzpkRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            control_id: control_id.into(),
            device_public_key: device.public_key_der().to_vec(),
            oaep_mgf1: proto::OaepMgf1::Unspecified.into(),
        };
        Ok(self.pins.issue_tzpk(request).await?.into_inner().encrypted_tzpk)
    }

    pub async fn set_block(&mut self, control_id: &str, block: &[u8]) -> Result<(), Status> {
        let request = SetPinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            control_id: control_id.into(),
            pin_block: block.to_vec(),
        };
        self.pins.set_pin(request).await.map(drop)
    }

    /// Opens a control, gets a tzpk and sets the PIN.
    pub async fn set(&mut self, device: &Device, plastic_id: &str, pin: &str) -> Result<(), Status> {
        let (control, block) = self.ready_to_set(device, plastic_id, pin).await?;
        self.set_block(&control, &block).await
    }

    /// A control with a tzpk, and the encrypted block of this PIN.
    pub async fn ready_to_set(
        &mut self,
        device: &Device,
        plastic_id: &str,
        pin: &str,
    ) -> Result<(String, [u8; 8]), Status> {
        let control = self.open(plastic_id, Scope::SetPin).await?.control_id;
        let tzpk = self.tzpk(&control, device).await?;
        let block = device.encrypt_pin(&tzpk, &Pin::parse(pin).unwrap(), Fill::Random).unwrap();
        Ok((control, block))
    }

    /// The PIN of a card, decrypted by the device.
    pub async fn view(&mut self, device: &Device, plastic_id: &str) -> Result<String, Status> {
        let (block, tzpk) = self.view_encrypted(device, plastic_id).await?;
        Ok(device.decrypt_pin(&tzpk, &block).unwrap().reveal().to_owned())
    }

    /// The PIN of a card on the wire: the block, and its encrypted tzpk.
    pub async fn view_encrypted(&mut self, device: &Device, plastic_id: &str) -> Result<([u8; 8], Vec<u8>), Status> {
        let control_id = self.open(plastic_id, Scope::ViewPin).await?.control_id;
        let request = ViewPinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            control_id,
            device_public_key: device.public_key_der().to_vec(),
            oaep_mgf1: proto::OaepMgf1::Unspecified.into(),
        };
        let shown = self.pins.view_pin(request).await?.into_inner();
        Ok((shown.pin_block.try_into().unwrap(), shown.encrypted_tzpk))
    }
}

/// A device with a key of the smallest allowed size.
pub fn device() -> Device {
    Device::generate(KeyBits::Rsa2048).unwrap()
}

/// The metrics of a service; its log has their address.
pub(crate) fn metrics(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("metrics are served")).unwrap();
    // The line is written for people, and may have colours.
    let mut words = line.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
    let address = words.rfind(|word| word.starts_with("127.0.0.1:")).unwrap();
    ureq::get(format!("http://{address}/metrics")).call().unwrap().body_mut().read_to_string().unwrap()
}

/// The reason in a status's `google.rpc.ErrorInfo`.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "pinseal");
    info.reason
}

/// The first word of this field in `/proc/PID/status`.
pub fn status_of(process: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}
