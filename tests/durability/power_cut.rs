//! A power cut leaves what was synced, and no more. Each sync that is left out loses something, so these tests see it.
//!
//! Names of directories survive: file systems write the creation of a directory no later than a later sync.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use domain::card::{CardKey, PlasticId, Tenant};
use domain::control::{ControlId, ControlState, Spent};
use engine_server::open_store_copy;

use support::{
    ceremony::{Ceremony, ENOUGH, said},
    engine_process::{EngineProcess, TENANT, device},
    wait::soon,
};

use crate::disk_shim;

const LONG_LIVED: &str = "[control]\nlifetime_seconds = 3600";
/// No sync is left out, unless the environment of the test says so.
pub(crate) const NONE: &str = "";

/// A directory tree, and what of it is on disk.
pub(crate) struct Disk {
    root: PathBuf,
    kept: PathBuf,
    /// The bytes of files that were on disk before the first sync, by inode.
    files: HashMap<u64, Vec<u8>>,
    /// The names of directories that were on disk before the first sync, by inode.
    names: HashMap<u64, Vec<(u64, String)>>,
    /// Those files: while a file is open, no later one gets its inode.
    open: Vec<fs::File>,
}

impl Disk {
    /// Everything in `root` is on disk.
    pub(crate) fn synced(root: &Path, kept: &Path) -> Self {
        fs::create_dir(kept).unwrap();
        let (files, names) = (HashMap::new(), HashMap::new());
        let mut disk = Self { root: root.into(), kept: kept.into(), files, names, open: Vec::new() };
        for directory in directories(root) {
            let mut names = Vec::new();
            for entry in directory.read_dir().unwrap().map(Result::unwrap) {
                names.push((entry.ino(), entry.file_name().into_string().unwrap()));
                if entry.file_type().unwrap().is_file() {
                    disk.open.push(fs::File::open(entry.path()).unwrap());
                    disk.files.insert(entry.ino(), fs::read(entry.path()).unwrap());
                }
            }
            disk.names.insert(fs::metadata(directory).unwrap().ino(), names);
        }
        disk
    }

    /// Runs a program whose syncs are recorded.
    pub(crate) fn record<'a>(&self, program: &'a mut Command, leave_out: &str) -> &'a mut Command {
        program.env("LD_PRELOAD", disk_shim::built()).env("PINSEAL_DISK_KEPT", &self.kept);
        if leave_out != NONE {
            program.env("PINSEAL_DISK_LEAVE_OUT", leave_out);
        }
        program
    }

    /// Leaves of every file the bytes, and of every directory the names, of its last sync.
    pub(crate) fn cut_power(&self) {
        let mut left = Vec::new();
        let directories = directories(&self.root);
        for directory in &directories {
            let inode = fs::metadata(directory).unwrap().ino();
            for (inode, name) in self.names_of(inode) {
                let path = directory.join(name);
                if !path.is_dir() {
                    let synced = fs::read(self.kept.join(inode.to_string())).ok();
                    let bytes = synced.or_else(|| self.files.get(&inode).cloned()).unwrap_or_default();
                    left.push((path, bytes));
                }
            }
        }
        for directory in &directories {
            for entry in directory.read_dir().unwrap().map(Result::unwrap) {
                if !entry.file_type().unwrap().is_dir() {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        }
        for (path, bytes) in left {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    fn names_of(&self, directory: u64) -> Vec<(u64, String)> {
        let Ok(synced) = fs::read_to_string(self.kept.join(format!("{directory}.names"))) else {
            return self.names.get(&directory).cloned().unwrap_or_default();
        };
        let line = |line: &str| {
            let (inode, name) = line.split_once(' ').unwrap();
            (inode.parse().unwrap(), name.to_owned())
        };
        synced.lines().map(line).collect()
    }
}

/// A directory and all directories below.
fn directories(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let entries = found[at].read_dir().unwrap().map(Result::unwrap);
        found.extend(entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()));
        at += 1;
    }
    found
}

/// An engine's directory, and the PINs that it acknowledged: the card and the spent control of each.
struct Engine {
    directory: tempfile::TempDir,
    disk: Disk,
    acknowledged: Vec<(String, String)>,
}

impl Engine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("data/store");
        fs::create_dir_all(&store).unwrap();
        let disk = Disk::synced(&store, &directory.path().join("kept"));
        Self { directory, disk, acknowledged: Vec::new() }
    }

    /// Starts, sets the PIN of a card, and is killed when the reply has arrived.
    async fn set(&mut self, card: &str, leave_out: &str) {
        let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        self.disk.record(&mut pinseal, leave_out);
        let engine = EngineProcess::start_with(pinseal, "127.0.0.1:0", self.directory.path(), LONG_LIVED);
        let mut client = engine.client().await;
        let (control, block) = client.ready_to_set(&device(), card, "271828").await.unwrap();
        client.set_block(&control, &block).await.unwrap();
        engine.kill();
        self.acknowledged.push((card.to_owned(), control));
    }

    /// Starts on a disk that refuses the first commit.
    fn fail_to_start(&self, leave_out: &str) {
        let fails = self.directory.path().join("fails");
        fs::write(&fails, "").unwrap();
        let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        let started = self.disk.record(&mut pinseal, leave_out).env("PINSEAL_DISK_FAIL", &fails);
        let started = started.args(["engine", "--config"]).arg(self.directory.path().join("engine.toml")).output();
        assert!(!started.unwrap().status.success());
    }

    /// Cuts the power. An error says what was lost.
    async fn cut_power(&self) -> Result<(), String> {
        self.disk.cut_power();
        let store = open_store_copy(&self.disk.root).map_err(|error| error.to_string())?;
        for (card, control) in &self.acknowledged {
            let card = CardKey { tenant: Tenant::parse(TENANT).unwrap(), plastic: PlasticId::parse(card).unwrap() };
            if store.pin(&card).await.map_err(|error| error.to_string())?.is_none() {
                return Err(format!("the PIN of {card:?} is lost"));
            }
            let control = store.control(ControlId::parse(control).unwrap()).await.map_err(|error| error.to_string())?;
            if !control.is_some_and(|control| matches!(control.state, ControlState::Spent(Spent::Set(_)))) {
                return Err(format!("the control that set the PIN of {card:?} is usable again"));
            }
        }
        Ok(())
    }
}

/// A power cut after the first PIN of a new store.
async fn after_first_start(leave_out: &str) -> Result<(), String> {
    let mut engine = Engine::new();
    engine.set("8400", leave_out).await;
    engine.cut_power().await
}

/// A power cut after a restart, which writes the journal to a fresh file, and one more PIN.
async fn after_restart(leave_out: &str) -> Result<(), String> {
    let mut engine = Engine::new();
    engine.set("8410", NONE).await;
    engine.set("8411", leave_out).await;
    engine.cut_power().await
}

/// A power cut after a restart that committed nothing.
async fn after_failed_restart(leave_out: &str) -> Result<(), String> {
    let mut engine = Engine::new();
    engine.set("8420", NONE).await;
    engine.fail_to_start(leave_out);
    engine.cut_power().await
}

/// A power cut after two steps of a ceremony: the next step finds the keys and the transcript in agreement.
fn after_ceremony_steps(leave_out: &str) -> Result<(), String> {
    let ceremony = Ceremony::begun();
    let kept = tempfile::tempdir().unwrap();
    let disk = Disk::synced(ceremony.directory(), &kept.path().join("kept"));
    let before = ceremony.transcript().lines().count();
    for key in ["seal", "account"] {
        let step = disk.record(&mut ceremony.command("make", ENOUGH, &[key]), leave_out).output().unwrap();
        assert!(step.status.success(), "{}", said(&step));
    }
    disk.cut_power();
    let next = ceremony.step("make", ENOUGH, &["storage"]);
    if !next.status.success() {
        return Err(said(&next));
    }
    let keys = ceremony.keys();
    match ["seal/1", "account/1", "storage/1"].into_iter().find(|key| !keys.contains(key)) {
        Some(key) => Err(format!("the key {key} is lost: {keys}")),
        None if ceremony.transcript().lines().count() != before + 3 => Err("a line is lost".into()),
        None => Ok(()),
    }
}

/// A power cut after audit entries were archived: file and store are still the whole chain.
async fn after_archive(leave_out: &str) -> Result<(), String> {
    const ARCHIVES: &str = "[audit]\nretention_days = 0";
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let engine = EngineProcess::start(directory.path(), "");
    engine.client().await.set(&device(), "8430", "271828").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    fs::create_dir(data.join("audit/archive")).unwrap();
    let disk = Disk::synced(&data, &directory.path().join("kept"));
    let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
    disk.record(&mut pinseal, leave_out);
    let engine = EngineProcess::start_with(pinseal, "127.0.0.1:0", directory.path(), ARCHIVES);
    let audit =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_pinseal")).arg("audit").args(arguments).output().unwrap();
    let newest = ["tail", "--engine", engine.address(), "--newest", "50"];
    let is_removed = async || {
        let entries = audit(&newest).stdout;
        String::from_utf8(entries).unwrap().contains("audit_archived").then_some(())
    };
    soon("the entries are archived", is_removed).await;
    // Its text may be lost with the power.
    let note = fs::read_to_string(data.join("audit/checkpoint")).unwrap();
    engine.kill();
    disk.cut_power();
    let chain = note.lines().next().unwrap().trim_start_matches("pinseal.audit/");
    let (store, file) = (data.join("store"), data.join(format!("audit/archive/{chain}-00000000000000000001.jsonl")));
    let verified = audit(&["verify", "--store", store.to_str().unwrap(), "--archive", file.to_str().unwrap()]);
    if verified.status.success() { Ok(()) } else { Err(said(&verified)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_audit_entries_outlive_a_power_cut() {
    after_archive(NONE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_pin_and_its_spent_control_outlive_a_power_cut() {
    after_first_start(NONE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_outlives_a_power_cut() {
    after_restart(NONE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_a_commit_outlives_a_power_cut() {
    after_failed_restart(NONE).await.unwrap();
}

#[test]
fn the_steps_of_a_ceremony_outlive_a_power_cut() {
    after_ceremony_steps(NONE).unwrap();
}

/// docs/durability.md lists these.
#[tokio::test(flavor = "multi_thread")]
async fn each_sync_that_is_left_out_loses_something() {
    for (step, outcome) in [
        ("journal", after_first_start("*.jnl").await),
        ("names of the database", after_first_start("*/db/").await),
        ("names of the store", after_first_start("*/store/").await),
        ("rename of the fresh journal", after_restart("*/db/").await),
        // fjall syncs the journal once more when it opens it.
        ("fresh journal", after_failed_restart(".jnl*").await),
        ("transcript", after_ceremony_steps("*/transcript.jsonl")),
        ("vault", after_ceremony_steps("/vault.*.new")),
        ("rename of the vault", after_ceremony_steps("*/data/")),
        ("archive file", after_archive("*.next").await),
        ("rename of the archive file", after_archive("*/archive/").await),
    ] {
        println!("{step}: {outcome:?}");
        assert!(outcome.is_err(), "the sync of the {step} can be left out, and no test sees it");
    }
}
