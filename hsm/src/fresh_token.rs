//! A fresh token for a test: SoftHSM, NSS softokn or openCryptoki of Debian's packages, each in a new directory. The test
//! runs again in a child process, because a module reads its configuration once a process.

use std::{env, ffi::CString, fs, path::Path, process::Command};

use crate::config::{Callers, KeyHandling, Pkcs11, SlotName, TokenPlace};

/// The product that the token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    /// Supports boundary level `host`.
    SoftHsm,
    /// Supports boundary level `token`, and stores no inventory.
    Nss,
    /// Supports boundary level `host`.
    OpenCryptoki,
}

/// Set in the child process: the product, and the token's directory.
const TOKEN_VARIABLE: &str = "PINSEAL_TEST_FRESH_TOKEN";
const DIRECTORY_VARIABLE: &str = "PINSEAL_TEST_FRESH_DIRECTORY";

const LABEL: &str = "fresh";
pub(crate) const USER_PIN: &str = "2468";

impl Make {
    pub(crate) const ALL: [Self; 3] = [Self::SoftHsm, Self::Nss, Self::OpenCryptoki];

    /// The product that this process was started for; none in the parent process.
    pub(crate) fn here() -> Option<Self> {
        let name = env::var(TOKEN_VARIABLE).ok()?;
        Self::ALL.into_iter().find(|make| format!("{make:?}") == name)
    }

    /// Runs one test of this binary in a child process that finds a fresh token without keys.
    pub(crate) fn run(self, test: &str) {
        let directory = tempfile::tempdir().unwrap();
        let (configuration, tokens) = (directory.path().join("softhsm2.conf"), directory.path().join("tokens"));
        fs::create_dir(&tokens).unwrap();
        fs::write(&configuration, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        let binary = env::current_exe().unwrap();
        let mut again = Command::new(&binary);
        match self {
            Self::SoftHsm => {
                let mut initialise = Command::new("softhsm2-util");
                initialise.args(["--init-token", "--free", "--label", LABEL, "--pin", USER_PIN, "--so-pin", "97531"]);
                succeeds(initialise.env("SOFTHSM2_CONF", &configuration));
            }
            Self::Nss => {
                let pin = directory.path().join("pin");
                fs::write(&pin, USER_PIN).unwrap();
                let database = format!("sql:{}", tokens.display());
                succeeds(Command::new("certutil").args(["-N", "-d", &database, "-f"]).arg(pin));
            }
            Self::OpenCryptoki => {
                again = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tokens/opencryptoki"));
                again.arg(&tokens).arg(&binary);
            }
        }
        again.arg(test).env("SOFTHSM2_CONF", &configuration);
        again.env(TOKEN_VARIABLE, format!("{self:?}")).env(DIRECTORY_VARIABLE, &tokens);
        let printed = succeeds(&mut again);
        assert!(!printed.contains(" 0 passed"), "{printed}");
    }

    /// The configuration with which an engine and a ceremony use the token.
    pub(crate) fn config(self) -> Pkcs11 {
        let (module, slot) = match self {
            Self::SoftHsm => ("/usr/lib/softhsm/libsofthsm2.so", SlotName::Label(LABEL.into())),
            Self::Nss => ("/usr/lib/x86_64-linux-gnu/libsoftokn3.so", SlotName::Label(LABEL.into())),
            Self::OpenCryptoki => ("/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0", SlotName::Number(0)),
        };
        let parameters = (self == Self::Nss).then(|| {
            let directory = env::var(DIRECTORY_VARIABLE).unwrap();
            CString::new(format!("configdir='sql:{directory}' dbTokenDescription='{LABEL}'")).unwrap()
        });
        Pkcs11 {
            place: TokenPlace { module: Path::new(module).to_owned(), module_parameters: parameters, slot },
            user_pin: USER_PIN.to_owned().into(),
            key_version: 1,
            storage_key_versions: Vec::new(),
            key_handling: if self == Self::Nss { KeyHandling::CopiedToSession } else { KeyHandling::InToken },
            callers: if self == Self::Nss { Callers::Inline } else { Callers::Workers },
            sessions: 4,
            waiting_operations_max: 64,
            tdes_count: None,
        }
    }
}

/// Evaluates to the product in the child process. In the parent process, runs the enclosing test in a child for each
/// product and returns from the test.
macro_rules! fresh_token {
    ($makes:expr) => {{
        fn marker() {}
        match $crate::fresh_token::Make::here() {
            Some(make) => make,
            None => {
                let path = std::any::type_name_of_val(&marker);
                let test = path.strip_prefix("hsm::").and_then(|path| path.strip_suffix("::marker")).unwrap();
                return $makes.into_iter().for_each(|make: $crate::fresh_token::Make| make.run(test));
            }
        }
    }};
}
pub(crate) use fresh_token;

fn succeeds(command: &mut Command) -> String {
    let missing = "apt-get install softhsm2 libnss3-tools opencryptoki";
    let output = command.output().unwrap_or_else(|error| panic!("{:?}: {error}: {missing}", command.get_program()));
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{printed}");
    printed
}
