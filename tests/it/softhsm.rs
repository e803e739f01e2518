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
    module: PathBuf,
}

impl SoftHsm {
    /// An initialised token without keys.
    pub(crate) fn without_keys() -> Self {
        assert!(Path::new(MODULE).exists(), "SoftHSM is missing: apt-get install softhsm2");
        let softhsm = Self { directory: tempfile::tempdir().unwrap(), module: MODULE.into() };
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

    /// The same, reached through the shim that fails on command and tells what comes out.
    pub(crate) fn behind_the_shim() -> Self {
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "pinseal-pkcs11-shim"]).status().unwrap();
        assert!(built.success());
        let module = Path::new(env!("CARGO_BIN_EXE_pinseal")).with_file_name("libpkcs11_shim.so");
        Self { module, ..Self::with_keys() }
    }

    /// Lets every call that holds a session fail with this CK_RV from now on; none to let them go on.
    pub(crate) fn command(&self, failure: Option<&str>) {
        match failure {
            // Written aside first: a call must not read half of it.
            Some(code) => {
                std::fs::write(self.path("command.new"), code).unwrap();
                std::fs::rename(self.path("command.new"), self.path("command")).unwrap();
            }
            None => std::fs::remove_file(self.path("command")).unwrap(),
        }
    }

    /// What came out of the module so far: a call a line, with its bytes in hexadecimal.
    pub(crate) fn trace(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.path("trace")).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap()).map(|(call, out)| (call.into(), out.into())).collect()
    }

    /// What a process needs around it to find the token.
    pub(crate) fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("SOFTHSM2_CONF", self.configuration()),
            ("PINSEAL_SHIM_MODULE", MODULE.into()),
            ("PINSEAL_SHIM_COMMAND", self.path("command")),
            ("PINSEAL_SHIM_TRACE", self.path("trace")),
        ]
    }

    /// The engine's lines of configuration for it.
    pub(crate) fn lines(&self) -> String {
        let module = &self.module;
        format!("[token]\nmodule = {module:?}\nlabel = \"pinseal\"\nuser_pin = {{ file = {:?} }}", self.path("pin"))
    }

    /// What `SOFTHSM2_CONF` is to say.
    fn configuration(&self) -> PathBuf {
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
            .envs(self.environment())
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(told).unwrap())
    }

    /// A file beside it.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
