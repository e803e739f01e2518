//! `pinseal pki dev`: certificates to try mutual TLS with. For development: a production CA is not made on a whim.

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
    /// Make a development CA, and certificates for an engine, an edge, a gRPC client and an operator
    Dev(DevArguments),
}

/// `pinseal pki dev`.
#[derive(Args)]
pub(crate) struct DevArguments {
    /// Where to write them; made if absent, nothing in it is overwritten
    #[arg(long, value_name = "DIR", default_value = "pinseal-pki")]
    pub(crate) out: PathBuf,
    /// A further host name or address for every certificate, beside localhost, 127.0.0.1 and ::1
    #[arg(long, value_name = "HOST")]
    pub(crate) name: Vec<String>,
}

/// A certificate to make: its holder is known as `{name}.pinseal.test`.
struct Holder {
    name: &'static str,
    /// What the engine's `[[peers]]` let it do, as written there; empty for the engine itself, which calls nobody.
    rights: &'static str,
}

const HOLDERS: [Holder; 4] = [
    Holder { name: "engine", rights: "" },
    Holder { name: "edge", rights: r#""controls", "pins""# },
    Holder { name: "client", rights: r#""controls", "pins", "cards""# },
    Holder { name: "operator", rights: r#""keys", "audit""# },
];

/// Makes them, and prints what to put where.
pub(crate) fn run(arguments: PkiArguments) -> Result<(), PkiError> {
    let PkiCommand::Dev(dev) = arguments.command;
    make(&dev)?;
    let at = |file: &str| dev.out.join(file).display().to_string();
    writeln!(
        io::stdout(),
        "made a DEVELOPMENT CA and certificates in {out}\n\n\
         # engine.toml\n[tls]\ncertificates = \"{engine}\"\nprivate_key = \"{engine_key}\"\nclient_roots = \"{ca}\"\n\n\
         {peers}\
         # edge.toml\n[engine]\naddress = \"https://localhost:50051\"\n\
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

/// The entries of engine.toml that give each certificate its rights: a certificate without one has no right.
fn peers() -> String {
    let with_rights = HOLDERS.iter().filter(|holder| !holder.rights.is_empty());
    let entry = |Holder { name, rights }: &Holder| {
        format!("[[peers]]\ncertificate_name = \"{name}.pinseal.test\"\nrights = [{rights}]\n\n")
    };
    with_rights.map(entry).collect()
}

/// Makes `ca.pem`, and `NAME.pem` and `NAME.key` for engine, edge, client and operator. The CA's own key is not kept.
pub(crate) fn make(arguments: &DevArguments) -> Result<(), PkiError> {
    fs::create_dir_all(&arguments.out).map_err(|error| PkiError::io(&arguments.out, error))?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Pinseal DEVELOPMENT CA, not for production");
    within_years(&mut params);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    write(&arguments.out.join("ca.pem"), &ca.pem(), 0o644)?;

    for Holder { name: holder, .. } in HOLDERS {
        // Its own name comes first: that is the one it is known by.
        let mut names = vec![format!("{holder}.pinseal.test"), "localhost".into(), "127.0.0.1".into(), "::1".into()];
        names.extend(arguments.name.iter().cloned());
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, format!("{holder}.pinseal.test"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        within_years(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?;
        write(&arguments.out.join(format!("{holder}.pem")), &certificate.pem(), 0o644)?;
        write(&arguments.out.join(format!("{holder}.key")), &key.serialize_pem(), 0o600)?;
    }
    Ok(())
}

fn within_years(params: &mut CertificateParams) {
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

/// Why no certificates were made.
#[derive(Debug, Error)]
pub(crate) enum PkiError {
    /// A file can't be written.
    #[error("{}: {error}; nothing is overwritten, choose another --out or remove it", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A certificate can't be made.
    #[error("can't make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl PkiError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::File { path: path.to_owned(), error }
    }
}
