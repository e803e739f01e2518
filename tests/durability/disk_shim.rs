//! The library of `tests/disk`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Builds the library: its path.
pub(crate) fn built() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "pinseal-disk-shim"]).status().unwrap();
    assert!(built.success());
    Path::new(env!("CARGO_BIN_EXE_pinseal")).with_file_name("libdisk_shim.so")
}
