//! A file of cards, a line each: the tenant, a space, the plasticId. The mode is 0600, because a plasticId may be an account
//! number.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use domain::card::CardKey;

/// Writes a new file.
///
/// # Errors
/// The file exists, or the operating system refuses.
pub(crate) fn write(path: &Path, cards: impl IntoIterator<Item = CardKey>) -> io::Result<()> {
    let mut file = BufWriter::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
    for CardKey { tenant, plastic } in cards {
        writeln!(file, "{} {}", tenant.as_str(), plastic.as_str())?;
    }
    file.into_inner()?.sync_all()
}
