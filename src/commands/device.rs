//! `pinseal device`: simulates a cardholder's device and its back-end, and prints each step.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
    sync::Arc,
};

use clap::{Args, Subcommand, ValueEnum};
use device::{
    Device, DeviceError, Fill, KeyBits, Pin, PinError,
    client::{Backend, BackendTls, BackendTlsError, ClientError, Exchange, Scope},
};
use http::{Uri, uri::Scheme};
use serde_json::{Value, json};
use thiserror::Error;

/// The characters shown of a long text.
const SHOWN_CHARACTERS: usize = 24;

/// The arguments of `pinseal device`.
#[derive(Args)]
pub(crate) struct DeviceArguments {
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Subcommand)]
enum DeviceCommand {
    /// Set a PIN: the device encrypts it; the edge never sees the clear PIN
    SetPin {
        #[command(flatten)]
        target: Target,
        /// The PIN, 4 to 12 digits; `-` to read it from standard input
        #[arg(long, value_name = "DIGITS")]
        pin: String,
    },
    /// View a PIN: the device decrypts it
    ViewPin {
        #[command(flatten)]
        target: Target,
    },
}

/// The card and the edge. In production the back-end authenticates the cardholder and opens the control; here
/// one process is both.
#[derive(Args)]
struct Target {
    /// The edge, such as http://127.0.0.1:8080
    #[arg(long, value_name = "URL")]
    edge: String,
    /// The roots of the edge's certificate, in PEM; for an https URL
    #[arg(long, value_name = "FILE")]
    edge_roots: Option<PathBuf>,
    /// The back-end's certificate chain, in PEM; for an edge that asks for a client certificate
    #[arg(long, value_name = "FILE", requires_all = ["edge_roots", "edge_private_key"])]
    edge_certificates: Option<PathBuf>,
    /// The private key of --edge-certificates, in PEM
    #[arg(long, value_name = "FILE", requires = "edge_certificates")]
    edge_private_key: Option<PathBuf>,
    /// The back-end's bearer token; not needed if its certificate is its only credential
    #[arg(
        long,
        value_name = "TOKEN",
        env = "PINSEAL_TOKEN",
        hide_env_values = true,
        required_unless_present = "edge_certificates"
    )]
    token: Option<String>,
    /// The plasticId of the card
    #[arg(long, value_name = "N")]
    plastic_id: String,
    /// The size of the device's RSA key
    #[arg(long, value_enum, default_value = "2048")]
    key_bits: KeySize,
    /// The auditUser the back-end sends
    #[arg(long, value_name = "NAME", default_value = "pinseal-device")]
    audit_user: String,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// The size of a device's key.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeySize {
    #[value(name = "2048")]
    Rsa2048,
    #[value(name = "3072")]
    Rsa3072,
    #[value(name = "4096")]
    Rsa4096,
}

/// Sets or views a PIN and reports each step on standard output.
pub(crate) fn run(arguments: DeviceArguments) -> Result<(), SimulateError> {
    match arguments.command {
        DeviceCommand::SetPin { target, pin } => {
            let mut reporter = target.reporter();
            Simulator::new(&target)?.set_pin(&target.plastic_id, &typed(&pin)?, &mut reporter)?;
            reporter.end(json!({ "pinSet": true }))
        }
        DeviceCommand::ViewPin { target } => {
            let mut reporter = target.reporter();
            let pin = Simulator::new(&target)?.view_pin(&target.plastic_id, &mut reporter)?;
            reporter.end(json!({ "pin": pin.reveal() }))
        }
    }
}

/// A device and its back-end.
pub(crate) struct Simulator {
    device: Arc<Device>,
    backend: Backend,
}

impl Simulator {
    /// A back-end and a device with a fresh key pair.
    fn new(target: &Target) -> Result<Self, SimulateError> {
        let bits = match target.key_bits {
            KeySize::Rsa2048 => KeyBits::Rsa2048,
            KeySize::Rsa3072 => KeyBits::Rsa3072,
            KeySize::Rsa4096 => KeyBits::Rsa4096,
        };
        let backend = target.backend()?;
        Ok(Self { device: Arc::new(Device::generate(bits)?), backend })
    }

    /// A simulator with an existing device and back-end.
    pub(crate) fn with(device: Arc<Device>, backend: Backend) -> Self {
        Self { device, backend }
    }

    /// Sets a PIN. Returns the controlId of the spent control.
    pub(crate) fn set_pin(
        &self,
        plastic_id: &str,
        pin: &Pin,
        reporter: &mut StepReporter,
    ) -> Result<String, SimulateError> {
        let (control, opened) = self.backend.open_control(plastic_id, Scope::SetPin)?;
        reporter.exchange("back-end → edge", "opens a control: for this card, to set its PIN, for seconds", &opened)?;
        let (encrypted_tzpk, issued) = self.backend.set_tzpk(&control, self.device.public_key_der())?;
        reporter.exchange("device → back-end → edge", "asks for a tzpk for the device's public key", &issued)?;
        reporter.note(
            "device",
            "decrypts the tzpk with its private key, and encrypts the PIN under it as an ISO-1 block",
        )?;
        let block = self.device.encrypt_pin(&encrypted_tzpk, pin, Fill::Random)?;
        let set = self.backend.set(&control, &block)?;
        reporter.exchange("device → back-end → edge", "sends the block", &set)?;
        Ok(control)
    }

    /// Views a PIN. Returns the PIN that the device decrypted.
    pub(crate) fn view_pin(&self, plastic_id: &str, reporter: &mut StepReporter) -> Result<Pin, SimulateError> {
        let (control, opened) = self.backend.open_control(plastic_id, Scope::ViewPin)?;
        reporter.exchange("back-end → edge", "opens a control to view", &opened)?;
        let (shown, exchange) = self.backend.view(&control, self.device.public_key_der())?;
        reporter.exchange("device → back-end → edge", "asks for the PIN, for the device's public key", &exchange)?;
        let pin = self.device.decrypt_pin(&shown.encrypted_tzpk, &shown.block)?;
        reporter
            .note("device", &format!("decrypts the tzpk and the PIN block; on the phone's screen: {}", pin.reveal()))?;
        Ok(pin)
    }

    /// The back-end, for requests outside the usual steps.
    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// Reports the steps: one paragraph per step, or one JSON object at the end.
pub(crate) enum StepReporter {
    /// Prints each step when it happens.
    Text,
    /// Collects the steps and prints one JSON object at the end.
    Json(Vec<Value>),
}

impl StepReporter {
    /// A request and its response.
    pub(crate) fn exchange(&mut self, who: &str, what: &str, exchange: &Exchange) -> io::Result<()> {
        match self {
            Self::Json(steps) => steps.push(json!({
                "who": who, "request": exchange.request_line, "status": exchange.status,
                "sent": shortened(&exchange.request), "answered": shortened(&exchange.response),
            })),
            Self::Text => {
                let mut out = io::stdout().lock();
                writeln!(out, "  {who}: {what}")?;
                writeln!(out, "      {} {}", exchange.request_line, shortened(&exchange.request))?;
                writeln!(out, "      {} {}", exchange.status, shortened(&exchange.response))?;
            }
        }
        Ok(())
    }

    /// A step without a request.
    pub(crate) fn note(&mut self, who: &str, what: &str) -> io::Result<()> {
        match self {
            Self::Json(_) => Ok(()),
            Self::Text => writeln!(io::stdout(), "  {who}: {what}"),
        }
    }

    fn end(self, outcome: Value) -> Result<(), SimulateError> {
        match self {
            Self::Json(steps) => writeln!(io::stdout(), "{}", json!({ "steps": steps, "outcome": outcome }))?,
            Self::Text => writeln!(io::stdout(), "done")?,
        }
        Ok(())
    }
}

impl Target {
    fn backend(&self) -> Result<Backend, SimulateError> {
        let url: Option<Uri> = self.edge.parse().ok();
        let scheme = url.as_ref().and_then(Uri::scheme);
        let backend = match &self.token {
            Some(token) => Backend::with_bearer(&self.edge, token, &self.audit_user),
            None => Backend::with_certificate(&self.edge, &self.audit_user),
        };
        if scheme == Some(&Scheme::HTTPS) {
            let roots = self.edge_roots.as_ref().ok_or(SimulateError::NoRoots)?;
            let certificate = self.edge_certificates.as_deref().zip(self.edge_private_key.as_deref());
            Ok(backend.over_tls(BackendTls::load(roots, certificate)?))
        } else if scheme == Some(&Scheme::HTTP) && self.edge_roots.is_none() {
            Ok(backend)
        } else {
            Err(SimulateError::Url { edge: self.edge.clone() })
        }
    }

    fn reporter(&self) -> StepReporter {
        if self.json { StepReporter::Json(Vec::new()) } else { StepReporter::Text }
    }
}

/// A PIN from the argument, or from the first line of standard input.
fn typed(argument: &str) -> Result<Pin, SimulateError> {
    if argument != "-" {
        return Ok(Pin::parse(argument)?);
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(Pin::parse(line.trim())?)
}

/// Cuts long texts in a value: a controlId is valid for seconds, and 344 characters of base64 hide the rest.
fn shortened(value: &Value) -> Value {
    match value {
        Value::String(text) if text.chars().count() > SHOWN_CHARACTERS => {
            let kept: String = text.chars().take(SHOWN_CHARACTERS).collect();
            Value::String(format!("{kept}… ({} characters)", text.chars().count()))
        }
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), shortened(value))).collect(),
        other => other.clone(),
    }
}

/// Why setting or viewing the PIN failed.
#[derive(Debug, Error)]
pub(crate) enum SimulateError {
    /// The edge does not answer, or refuses.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The text is not the URL of an edge, or has `http` beside roots.
    #[error("--edge {edge}: write a URL with https for an edge with TLS, or with http and without --edge-roots")]
    Url {
        /// The value of `--edge`.
        edge: String,
    },
    /// The edge has TLS, and no roots are named.
    #[error("an edge with https needs --edge-roots: name the PEM file with the roots of the edge's certificate")]
    NoRoots,
    /// A file of the TLS can't be used.
    #[error(transparent)]
    Tls(#[from] BackendTlsError),
    /// The device can't use the tzpk or the block.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The PIN is not 4 to 12 digits.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Input or output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}
