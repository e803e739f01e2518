//! `pinseal pki dev`: generates a CA and certificates to try mutual TLS. For development only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use thiserror::Error;

/// `pinseal pki`.
#[derive(Args)]
pub(crate) struct PkiArguments {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Subcommand)]
enum PkiCommand {
    /// Generate a development CA, and certificates for an engine, an edge, a gRPC client and an operator
    Dev(DevArguments),
}

/// `pinseal pki dev`.
#[derive(Args)]
pub(crate) struct DevArguments {
    /// Output directory, created if absent; existing files are not overwritten
    #[arg(long, value_name = "DIR", default_value = "pinseal-pki")]
    pub(crate) out: PathBuf,
    /// Another host name or address in every certificate, besides localhost, 127.0.0.1 and ::1
    #[arg(long, value_name = "HOST")]
    pub(crate) name: Vec<String>,
}

/// The holder of a certificate. The name in the certificate is `{name}.pinseal.test`.
struct Holder {
    name: &'static str,
    /// The roles in the engine's `[[peers]]`, as TOML array items; empty for the engine, which makes no calls.
    roles: &'static str,
}

const HOLDERS: [Holder; 4] = [
    Holder { name: "engine", roles: "" },
    Holder { name: "edge", roles: r#""edge-set", "edge-view""# },
    Holder { name: "client", roles: r#""edge-set", "edge-view", "card-system""# },
    Holder { name: "operator", roles: r#""operator", "auditor""# },
];

/// Generates the files, and prints the configuration lines that use them.
///
/// # Errors
/// A certificate cannot be generated, a file exists or cannot be written, or the output fails.
pub(crate) fn run(arguments: PkiArguments) -> Result<(), PkiError> {
    let PkiCommand::Dev(dev) = arguments.command;
    make(&dev)?;
    let at = |file: &str| dev.out.join(file).display().to_string();
    writeln!(
        io::stdout(),
        "generated a DEVELOPMENT CA and certificates in {out}\n\n\
         # engine.toml\n[tls]\ncertificates = \"{engine}\"\nprivate_key = \"{engine_key}\"\nclient_roots = \"{ca}\"\n\n\
         {peers}\
         # edge.toml\n[engine]\naddresses = [\"https://localhost:50051\"]\n\
         tls = {{ roots = \"{ca}\", certificates = \"{edge}\", private_key = \"{edge_key}\" }}",
        out = dev.out.display(),
        peers = peers(),
        ca = at("ca.pem"),
        engine = at("engine.pem"),
        engine_key = at("engine.key"),
        edge = at("edge.pem"),
        edge_key = at("edge.key"),
    )?;
    Ok(())
}

/// The entries of engine.toml that give each certificate its roles.
fn peers() -> String {
    let with_roles = HOLDERS.iter().filter(|holder| !holder.roles.is_empty());
    let entry = |Holder { name, roles }: &Holder| {
        format!("[[peers]]\ncertificate_name = \"{name}.pinseal.test\"\nroles = [{roles}]\n\n")
    };
    with_roles.map(entry).collect()
}

/// Generates `ca.pem`, and `NAME.pem` and `NAME.key` for engine, edge, client and operator. Does not store the key of the CA.
///
/// # Errors
/// A certificate cannot be generated, or a file exists or cannot be written.
pub(crate) fn make(arguments: &DevArguments) -> Result<(), PkiError> {
    fs::create_dir_all(&arguments.out).map_err(|error| PkiError::io(&arguments.out, error))?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Pinseal DEVELOPMENT CA, not for production");
    set_validity(&mut params);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    write(&arguments.out.join("ca.pem"), &ca.pem(), 0o644)?;

    for Holder { name: holder, .. } in HOLDERS {
        // The engine identifies a peer by the first name of its certificate.
        let mut names = vec![format!("{holder}.pinseal.test"), "localhost".into(), "127.0.0.1".into(), "::1".into()];
        names.extend(arguments.name.iter().cloned());
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, format!("{holder}.pinseal.test"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?;
        write(&arguments.out.join(format!("{holder}.pem")), &certificate.pem(), 0o644)?;
        write(&arguments.out.join(format!("{holder}.key")), &key.serialize_pem(), 0o600)?;
    }
    Ok(())
}

fn set_validity(params: &mut CertificateParams) {
    let year = i32::from(jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).year());
    params.not_before = date_time_ymd(year.saturating_sub(1), 1, 1);
    params.not_after = date_time_ymd(year.saturating_add(2), 1, 1);
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| PkiError::io(path, error))?;
    file.write_all(text.as_bytes()).map_err(|error| PkiError::io(path, error))
}

/// The error of `pinseal pki`.
#[derive(Debug, Error)]
pub(crate) enum PkiError {
    /// A file exists or cannot be written.
    #[error("{}: {error}; existing files are not overwritten: choose another --out, or remove the file", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// rcgen rejects the parameters of a certificate.
    #[error("cannot generate a certificate: {0}; check the names of --name")]
    Certificate(#[from] rcgen::Error),
    /// Standard output cannot be written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl PkiError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }
}
