//! A real token in a temporary directory, made as an operator makes one: SoftHSM, NSS softokn or openCryptoki, from
//! Debian's packages.

use std::{
    ffi::OsStr,
    os::unix::fs::OpenOptionsExt,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The PKCS#11 modules that the tests use, each from its Debian package.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// It reaches level `host`.
    SoftHsm,
    /// It reaches level `token`.
    Nss,
    /// It reaches level `host`: it makes no double-length key.
    OpenCryptoki,
}

impl Make {
    fn module(self) -> &'static str {
        match self {
            Self::SoftHsm => "/usr/lib/softhsm/libsofthsm2.so",
            Self::Nss => "/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
            Self::OpenCryptoki => "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::SoftHsm => "softhsm2",
            Self::Nss => "libnss3-tools",
            Self::OpenCryptoki => "opencryptoki",
        }
    }
}

/// A process that serves a token, and its children; killed when dropped.
pub struct TokenProcess(Child);

impl Drop for TokenProcess {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

/// A token with the label `pinseal`; removed when dropped.
pub struct RealToken {
    make: Make,
    directory: tempfile::TempDir,
    module: PathBuf,
}

impl RealToken {
    /// An initialised token without keys.
    pub fn without_keys(make: Make) -> Self {
        assert!(Path::new(make.module()).exists(), "a token is missing: apt-get install {}", make.package());
        let token = Self { make, directory: tempfile::tempdir().unwrap(), module: make.module().into() };
        let tokens = token.path("tokens");
        std::fs::create_dir(&tokens).unwrap();
        token.write_pin("2468");
        let mut initialise = match make {
            Make::SoftHsm => {
                let place = format!("directories.tokendir = {}\n", tokens.display());
                std::fs::write(token.path("softhsm2.conf"), place).unwrap();
                let mut initialise = Command::new("softhsm2-util");
                initialise.args(["--init-token", "--free", "--label", "pinseal", "--pin", "2468", "--so-pin", "13579"]);
                initialise
            }
            Make::Nss => {
                let mut initialise = Command::new("certutil");
                let database = format!("sql:{}", tokens.display());
                initialise.args(["-N", "-d", &database, "-f"]).arg(token.path("pin"));
                initialise
            }
            Make::OpenCryptoki => token.beside("true"),
        };
        let missing = format!("apt-get install {}", make.package());
        let initialised = initialise.envs(token.environment()).output().expect(&missing);
        assert!(initialised.status.success(), "{initialised:?}");
        token
    }

    /// A program that can reach the token: openCryptoki is visible only in its daemon's namespaces.
    pub fn beside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.make {
            Make::SoftHsm | Make::Nss => Command::new(program),
            Make::OpenCryptoki => {
                let mut beside = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tokens/opencryptoki"));
                beside.arg(self.path("tokens")).arg(program);
                beside
            }
        };
        command.envs(self.environment());
        command
    }

    /// A token whose keys `pinseal token make-keys` made.
    pub fn with_keys(make: Make) -> Self {
        let token = Self::without_keys(make);
        let (made, printed) = token.token(&["make-keys"], &token.lines());
        assert!(made, "{printed}");
        token
    }

    /// The same, behind the shim, which fails on command and records what the token returns.
    pub fn behind_the_shim(make: Make) -> Self {
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "pinseal-pkcs11-shim"]).status().unwrap();
        assert!(built.success());
        let module = Path::new(crate::pinseal_path()).with_file_name("libpkcs11_shim.so");
        Self { module, ..Self::with_keys(make) }
    }

    /// SoftHSM in a separate process, over p11-kit's socket. `serve` starts the process.
    pub fn over_a_socket() -> Self {
        let client = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so";
        assert!(Path::new(client).exists(), "p11-kit is missing: apt-get install p11-kit p11-kit-modules");
        Self { module: client.into(), ..Self::without_keys(Make::SoftHsm) }
    }

    /// Starts the process that holds the token.
    pub fn serve(&self) -> TokenProcess {
        let socket = self.path("socket");
        let _ = std::fs::remove_file(&socket);
        let mut server = Command::new("p11-kit");
        server.args(["server", "--foreground", "--provider", self.make.module(), "--name"]).arg(&socket).arg("pkcs11:");
        let server = server.env("SOFTHSM2_CONF", self.path("softhsm2.conf")).stdout(Stdio::null()).process_group(0);
        let process = TokenProcess(server.spawn().expect("apt-get install p11-kit"));
        for _ in 0..500 {
            if socket.exists() {
                return process;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("p11-kit does not serve");
    }

    /// From now on every call with a session fails with this CK_RV; `None` ends this.
    pub fn command(&self, failure: Option<&str>) {
        match failure {
            // Written to another file and renamed: a call must not read half of it.
            Some(code) => {
                std::fs::write(self.path("command.new"), code).unwrap();
                std::fs::rename(self.path("command.new"), self.path("command")).unwrap();
            }
            None => std::fs::remove_file(self.path("command")).unwrap(),
        }
    }

    /// From now on every login answers this CK_RV; `None` ends this.
    pub fn answer_logins(&self, answer: Option<&str>) {
        match answer {
            Some(code) => std::fs::write(self.path("login"), code).unwrap(),
            None => std::fs::remove_file(self.path("login")).unwrap(),
        }
    }

    /// The number of logins since the trace was cleared.
    pub fn logins(&self) -> usize {
        self.trace().iter().filter(|(call, _)| call == "C_Login").count()
    }

    /// From now on the token reports these flags (CKF_…, hexadecimal) as set.
    pub fn add_token_flags(&self, flags: &str) {
        std::fs::write(self.path("token-flags"), flags).unwrap();
    }

    /// Makes a key as an operator's other tool would.
    pub fn import_aes_key(&self, label: &str, id: &str) {
        std::fs::write(self.path("key"), [7; 32]).unwrap();
        let imported = Command::new("softhsm2-util")
            .args(["--import", self.path("key").to_str().unwrap(), "--aes", "--token", "pinseal", "--pin", "2468"])
            .args(["--label", label, "--id", id])
            .envs(self.environment())
            .output()
            .unwrap();
        assert!(imported.status.success(), "{imported:?}");
    }

    /// Destroys a key of SoftHSM, as an operator's other tool would.
    pub fn destroy(&self, label: &str, id: &str) {
        let id: String = id.as_bytes().chunks(2).map(|pair| format!("%{}", str::from_utf8(pair).unwrap())).collect();
        let destroyed = Command::new("p11tool")
            .args(["--provider", "/usr/lib/softhsm/libsofthsm2.so", "--batch", "--login", "--set-pin=2468", "--delete"])
            .arg(format!("pkcs11:token=pinseal;object={};id={id}", label.replace(' ', "%20")))
            .envs(self.environment())
            .output()
            .expect("apt-get install gnutls-bin");
        assert!(destroyed.status.success(), "{destroyed:?}");
    }

    /// Clears the trace, for example of the engine's probes at its start.
    pub fn forget_trace(&self) {
        std::fs::write(self.path("trace"), "").unwrap();
    }

    /// A directory: while it exists, the shim tries to escape and writes its attempts there.
    pub fn escape_place(&self) -> PathBuf {
        self.path("escape")
    }

    /// The module's outputs since the last clear: a call a line, with its bytes in hexadecimal.
    pub fn trace(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.path("trace")).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').unwrap()).map(|(call, out)| (call.into(), out.into())).collect()
    }

    /// The environment variables that a process needs to find the token.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("SOFTHSM2_CONF", self.path("softhsm2.conf")),
            ("PINSEAL_SHIM_MODULE", self.make.module().into()),
            ("PINSEAL_SHIM_COMMAND", self.path("command")),
            ("PINSEAL_SHIM_LOGIN", self.path("login")),
            ("PINSEAL_SHIM_TRACE", self.path("trace")),
            ("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", self.path("socket").display()).into()),
            ("PINSEAL_SHIM_TOKEN_FLAGS", self.path("token-flags")),
            ("PINSEAL_SHIM_ESCAPE", self.escape_place()),
        ]
    }

    /// The lines of an engine's configuration for the token.
    pub fn lines(&self) -> String {
        self.lines_with("")
    }

    /// The same, with these lines in `[boundary]`.
    pub fn lines_with(&self, boundary: &str) -> String {
        let (module, pin) = (&self.module, self.path("pin"));
        let of_nss = match self.make {
            Make::SoftHsm | Make::OpenCryptoki => String::new(),
            Make::Nss => {
                let parameters =
                    format!("configdir='sql:{}' dbTokenDescription='pinseal'", self.path("tokens").display());
                format!(
                    "module_parameters = {parameters:?}\nkey_handling = \"copied-to-session\"\ncallers = \"inline\"\n"
                )
            }
        };
        let slot = if self.make == Make::OpenCryptoki { "slot = 0" } else { "label = \"pinseal\"" };
        // The paths that openCryptoki's daemon shares with its clients, beside the token's directory.
        let shared: &[&str] = match self.make {
            Make::OpenCryptoki => &["/var/lib/opencryptoki", "/dev/shm", "/run", "/var/lock", "/var/log"],
            Make::SoftHsm | Make::Nss => &[],
        };
        let ipc = match self.make {
            Make::OpenCryptoki => "ipc = [\"unix-socket\", \"shared-memory\"]\n",
            Make::SoftHsm if self.module.ends_with("p11-kit-client.so") => "ipc = [\"unix-socket\"]\n",
            Make::SoftHsm | Make::Nss => "",
        };
        // It runs as root of a separate user namespace, which may lock little memory.
        let waived = if self.make == Make::OpenCryptoki { "lock_memory = \"try\"\n" } else { "" };
        let paths: Vec<_> = shared.iter().map(PathBuf::from).chain([self.directory.path().to_owned()]).collect();
        format!(
            "[token]\nmodule = {module:?}\n{of_nss}{slot}\nuser_pin = {{ file = {pin:?} }}\npaths = {paths:?}\n{ipc}\
             [boundary]\nwaive = [\"user\"]\n{waived}{boundary}"
        )
    }

    /// Writes another user PIN to the file.
    pub fn write_pin(&self, pin: &str) {
        write_private(&self.path("pin"), pin);
    }

    /// `pinseal token …` with these lines of configuration: whether it succeeded, and its output.
    pub fn token(&self, arguments: &[&str], lines: &str) -> (bool, String) {
        self.pinseal(&[&["token"], arguments].concat(), lines)
    }

    /// `pinseal … --config FILE` with these lines in the file.
    pub fn pinseal(&self, arguments: &[&str], lines: &str) -> (bool, String) {
        let config = self.write_config(lines);
        let output = self.beside(crate::pinseal_path()).args(arguments).arg("--config").arg(config).output().unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(printed).unwrap())
    }

    /// An engine's configuration with these lines.
    pub fn write_config(&self, lines: &str) -> PathBuf {
        let (config, data) = (self.path("config.toml"), self.path("data"));
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\n{lines}\n")).unwrap();
        config
    }

    /// A participant's token of the same module, with another user PIN; and the file that names it.
    pub fn of_a_person(&self, name: &str) -> PathBuf {
        let mut initialise = Command::new("softhsm2-util");
        initialise.args(["--init-token", "--free", "--label", name, "--pin", "1357", "--so-pin", "97531"]);
        let initialised = initialise.envs(self.environment()).output().unwrap();
        assert!(initialised.status.success(), "{initialised:?}");
        let (file, pin) = (self.path(&format!("{name}.toml")), self.path(&format!("{name}.pin")));
        write_private(&pin, "1357");
        let module = &self.module;
        let named = format!("[token]\nmodule = {module:?}\nlabel = {name:?}\nuser_pin = {{ file = {pin:?} }}\n");
        std::fs::write(&file, named).unwrap();
        file
    }

    /// Writes another user PIN to the file of a participant's token.
    pub fn write_pin_of(&self, name: &str, pin: &str) {
        write_private(&self.path(&format!("{name}.pin")), pin);
    }

    /// A file in the token's directory.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn write_private(path: &Path, text: &str) {
    let mut file = std::fs::File::options();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
}
