//! `pinseal hsm --listen` as a process that the test starts.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

/// A boundary that listens on a socket; killed when dropped.
pub struct HsmProcess {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    /// Its standard output.
    printed: PathBuf,
}

impl HsmProcess {
    /// Starts a boundary with its vault in `directory`, as the test's user, with these lines in `[boundary]`.
    pub fn start(directory: &Path, boundary: &str) -> Self {
        Self::start_with(Command::new(crate::pinseal_path()), directory, boundary)
    }

    /// Starts a boundary by a prepared command that ends with the program; makes a vault if there is no vault.
    pub fn start_with(mut pinseal: Command, directory: &Path, boundary: &str) -> Self {
        let config = directory.join("hsm.toml");
        let text = format!("data_directory = {:?}\n[boundary]\n{boundary}\n", directory.join("data"));
        fs::write(&config, text).unwrap();
        if !directory.join("data/vault").exists() {
            create_vault(&pinseal, &config);
        }
        let (socket, log) = (directory.join("hsm.socket"), directory.join("hsm.log"));
        let printed = directory.join("hsm.out");
        let events = fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = pinseal
            .args(["hsm", "--config"])
            .arg(config)
            .arg("--listen")
            .arg(&socket)
            .stdout(fs::File::create(&printed).unwrap())
            .stderr(events)
            .spawn()
            .unwrap();
        let mut process = Self { child, socket, log, printed };
        // A connection waits in the socket's queue until the keys are open.
        for _ in 0..500 {
            if UnixStream::connect(&process.socket).is_ok() {
                return process;
            }
            assert!(process.child.try_wait().unwrap().is_none(), "it did not start: {}", process.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not listen: {}", process.log());
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its standard output.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.printed).unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// Makes the vault of a configuration, by a prepared command that ends with the program.
pub fn create_vault(pinseal: &Command, config: &Path) {
    let mut create = Command::new(pinseal.get_program());
    let created = create.args(pinseal.get_args()).args(["vault", "create", "--config"]).arg(config).output().unwrap();
    assert!(created.status.success(), "{created:?}");
}

impl Drop for HsmProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
