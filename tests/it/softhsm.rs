//! A SoftHSM token in a directory of its own, as an operator would make one.

use std::{
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Debian's.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token with the label `pinseal`, gone when dropped.
pub(crate) struct SoftHsm {
    directory: tempfile::TempDir,
}

impl SoftHsm {
    /// An initialised token without keys.
    pub(crate) fn without_keys() -> Self {
        assert!(Path::new(MODULE).exists(), "SoftHSM is missing: apt-get install softhsm2");
        let softhsm = Self { directory: tempfile::tempdir().unwrap() };
        let tokens = softhsm.path("tokens");
        std::fs::create_dir(&tokens).unwrap();
        std::fs::write(softhsm.configuration(), format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        softhsm.write_pin("2468");
        let initialised = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "pinseal", "--pin", "2468", "--so-pin", "13579"])
            .env("SOFTHSM2_CONF", softhsm.configuration())
            .output()
            .expect("softhsm2-util is missing: apt-get install softhsm2");
        assert!(initialised.status.success(), "{initialised:?}");
        softhsm
    }

    /// A token whose keys `pinseal token make-keys` made.
    pub(crate) fn with_keys() -> Self {
        let softhsm = Self::without_keys();
        let (made, told) = softhsm.token(&["make-keys"], &softhsm.lines());
        assert!(made, "{told}");
        softhsm
    }

    /// The engine's lines of configuration for it.
    pub(crate) fn lines(&self) -> String {
        format!("[token]\nmodule = {MODULE:?}\nlabel = \"pinseal\"\nuser_pin = {{ file = {:?} }}", self.path("pin"))
    }

    /// What `SOFTHSM2_CONF` is to say.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.path("softhsm2.conf")
    }

    /// Another user PIN in the file.
    pub(crate) fn write_pin(&self, pin: &str) {
        let mut file = std::fs::File::options();
        let file = file.write(true).create(true).truncate(true).mode(0o600).open(self.path("pin"));
        std::io::Write::write_all(&mut file.unwrap(), pin.as_bytes()).unwrap();
    }

    /// `pinseal token …` with these lines of configuration: whether it went well, and all it said.
    pub(crate) fn token(&self, arguments: &[&str], lines: &str) -> (bool, String) {
        self.pinseal(&[&["token"], arguments].concat(), lines)
    }

    /// `pinseal … --config FILE` with these lines in the file.
    pub(crate) fn pinseal(&self, arguments: &[&str], lines: &str) -> (bool, String) {
        let config = self.path("config.toml");
        let data = self.path("data");
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\n{lines}\n")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pinseal"))
            .args(arguments)
            .arg("--config")
            .arg(config)
            .env("SOFTHSM2_CONF", self.configuration())
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(told).unwrap())
    }

    /// A file beside it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
