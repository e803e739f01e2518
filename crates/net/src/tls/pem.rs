//! Explains why a file has no usable PEM section. rustls reports each case as "no items found", or skips the section.

use std::{fs, io, path::Path};

use super::{PemProblem, TlsError};

/// The labels of certificates that rustls reads (RFC 7468, 5).
pub(super) const CERTIFICATE: &[&str] = &["CERTIFICATE"];
/// The labels of private keys that rustls reads: PKCS #8 (RFC 7468, 10), PKCS #1 and SEC 1.
pub(super) const PRIVATE_KEY: &[&str] = &["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
/// The label of an encrypted private key (RFC 7468, 11).
const ENCRYPTED_PRIVATE_KEY: &str = "ENCRYPTED PRIVATE KEY";
/// The header of an encrypted private key in the older form (RFC 1421, 4.6.1.1).
const ENCRYPTED_HEADER: &[u8] = b"Proc-Type: 4,ENCRYPTED";
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xEF\xBB\xBF", b"\xFF\xFE", b"\xFE\xFF"];

/// Reads a PEM file that has a section with one of the labels `expected`.
pub(super) fn read(path: &Path, expected: &'static [&'static str]) -> Result<Vec<u8>, TlsError> {
    let file = |error: io::Error| TlsError::File { path: path.to_owned(), problem: error.to_string() };
    let content = fs::read(path).map_err(file)?;
    match problem_in(&content, expected) {
        None => Ok(content),
        Some(problem) => Err(TlsError::Pem { path: path.to_owned(), problem }),
    }
}

fn problem_in(content: &[u8], expected: &'static [&'static str]) -> Option<PemProblem> {
    if BYTE_ORDER_MARKS.iter().any(|mark| content.starts_with(mark)) {
        return Some(PemProblem::ByteOrderMark);
    }
    if content.trim_ascii().is_empty() {
        return Some(PemProblem::Empty);
    }
    let lines = || content.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    let labels: Vec<String> = lines().filter_map(label).collect();
    let is_key = expected == PRIVATE_KEY;
    if is_key && lines().any(|line| line == ENCRYPTED_HEADER) {
        return Some(PemProblem::EncryptedKey);
    }
    if labels.iter().any(|label| expected.contains(&label.as_str())) {
        return None;
    }
    if is_key && labels.iter().any(|label| label == ENCRYPTED_PRIVATE_KEY) {
        return Some(PemProblem::EncryptedKey);
    }
    let expected = expected.first().copied().unwrap_or_default();
    if labels.is_empty() {
        return Some(PemProblem::NoSection { expected });
    }
    Some(PemProblem::OtherSections { expected, found: labels })
}

/// The label of the line that begins a section.
fn label(line: &[u8]) -> Option<String> {
    let label = line.strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----")?;
    Some(String::from_utf8_lossy(label).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unusable_file_is_explained() {
        let section = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n").into_bytes();
        let other = |expected, found: &str| PemProblem::OtherSections { expected, found: vec![found.to_owned()] };
        let marked = [b"\xEF\xBB\xBF".to_vec(), section("CERTIFICATE")].concat();
        let old =
            b"-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\nDEK-Info: AES-256-CBC,00\r\n\r\nAAAA\r\n"
                .to_vec();
        for (content, expected, problem) in [
            (section("ENCRYPTED PRIVATE KEY"), PRIVATE_KEY, Some(PemProblem::EncryptedKey)),
            (old, PRIVATE_KEY, Some(PemProblem::EncryptedKey)),
            (marked, CERTIFICATE, Some(PemProblem::ByteOrderMark)),
            (b" \r\n".to_vec(), PRIVATE_KEY, Some(PemProblem::Empty)),
            (vec![0x30, 0x82], CERTIFICATE, Some(PemProblem::NoSection { expected: "CERTIFICATE" })),
            (section("CERTIFICATE"), PRIVATE_KEY, Some(other("PRIVATE KEY", "CERTIFICATE"))),
            (section("OPENSSH PRIVATE KEY"), PRIVATE_KEY, Some(other("PRIVATE KEY", "OPENSSH PRIVATE KEY"))),
            (section("PRIVATE KEY"), CERTIFICATE, Some(other("CERTIFICATE", "PRIVATE KEY"))),
            (section("TRUSTED CERTIFICATE"), CERTIFICATE, Some(other("CERTIFICATE", "TRUSTED CERTIFICATE"))),
            (section("EC PRIVATE KEY"), PRIVATE_KEY, None),
            ([section("EC PARAMETERS"), section("EC PRIVATE KEY")].concat(), PRIVATE_KEY, None),
            (section("CERTIFICATE"), CERTIFICATE, None),
        ] {
            assert_eq!(problem_in(&content, expected), problem, "{}", String::from_utf8_lossy(&content));
        }
    }
}
