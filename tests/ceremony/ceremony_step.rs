//! One step of a ceremony: kills, full disks, concurrent steps, linked vaults.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        process::ExitStatusExt,
    },
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use ceremony::transcript::Transcript;

use support::{
    ceremony::{ALL, Ceremony, ENOUGH, Terminal, said},
    real_token::{Make, RealToken},
};

/// The exit code of a step that changed the keys and failed afterwards.
const DONE_IN_PART: i32 = 3;

/// The same command in a shell, after this preparation.
fn in_shell(first: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{first}; exec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// The same command with a limit on file length: a write across the limit is cut, the next write fails.
fn with_files_of(bytes: usize, before: &str, command: &Command) -> Output {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--fsize={bytes}")).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    in_shell(before, &limited).output().expect("prlimit is missing: install it (Debian: util-linux)")
}

/// The kernel kills the command (SIGXFSZ) when the transcript would exceed this length.
fn killed_at(bytes: usize, command: &Command) {
    let killed = with_files_of(bytes, "ulimit -c 0", command);
    assert!(killed.status.signal().is_some(), "{:?} {}", killed.status, said(&killed));
}

/// The write fails, as on a full disk.
fn with_full_disk(bytes: usize, command: &Command) -> Output {
    with_files_of(bytes, "trap '' XFSZ", command)
}

fn begun() -> Ceremony {
    let ceremony = Ceremony::prepared();
    ceremony.begin();
    ceremony
}

/// `begin` with a transcript of this name.
fn begin_in(ceremony: &Ceremony, transcript: &str) -> Output {
    let begin = ceremony.command("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    let [before, after] = ["transcript.jsonl", transcript].map(|name| ceremony.at(name).into_os_string());
    let arguments = begin.get_args().map(|argument| if argument == before { after.as_os_str() } else { argument });
    Command::new(begin.get_program()).args(arguments).output().unwrap()
}

#[test]
fn a_killed_step_is_recovered_by_the_next_step() {
    let ceremony = begun();
    let before = ceremony.transcript();
    let torn_at = before.len() + 20;
    killed_at(torn_at, &ceremony.command("make", ENOUGH, &["seal"]));
    let (torn, next) = (ceremony.transcript(), ceremony.at("transcript.jsonl.next"));
    let pending = fs::read_to_string(&next).unwrap();
    assert!(torn == before.clone() + &pending[..20] && ceremony.keys().contains("seal/1"));
    let is_unchanged = |what: &str| {
        assert_eq!(ceremony.transcript(), torn, "{what}");
        assert_eq!(fs::read_to_string(&next).unwrap(), pending, "{what}");
    };

    assert!(ceremony.refused("make", &["alice"], &["account"]).contains("1 custodians are present"));
    is_unchanged("no quorum was present");
    let refused = begin_in(&ceremony, "other.jsonl");
    assert!(said(&refused).contains("is unfinished") && refused.status.code() == Some(1), "{}", said(&refused));
    assert!(!ceremony.at("other.jsonl").exists());
    is_unchanged("another transcript was to begin");
    let engine = fs::read_to_string(ceremony.at("engine.toml")).unwrap();
    fs::write(ceremony.at("engine.toml"), engine.replace("/data", "/other")).unwrap();
    assert!(ceremony.refused("make", ENOUGH, &["account"]).contains("transcript"));
    fs::write(ceremony.at("engine.toml"), engine).unwrap();
    is_unchanged("the configuration named other keys");
    let full = with_full_disk(torn_at, &ceremony.command("make", ENOUGH, &["account"]));
    assert_eq!(full.status.code(), Some(1));
    is_unchanged("the disk was full");

    ceremony.well("make", ENOUGH, &["account"]);
    assert!(ceremony.transcript().starts_with(&(before + &pending)) && !next.exists());
    assert_eq!(Transcript::read(&ceremony.transcript()).unwrap().entries.len(), 3);
    ceremony.well("end", ALL, &[]);
    assert!(begin_in(&ceremony, "other.jsonl").status.success());
}

#[test]
fn a_killed_begin_is_recovered_by_the_next_step() {
    let ceremony = begun();
    let line = ceremony.transcript();
    // The state of a process that is killed before it writes the transcript: the vault has the mark of an unfinished step.
    killed_at(line.len(), &ceremony.command("make", ENOUGH, &["seal"]));
    let (transcript, next) = (ceremony.at("transcript.jsonl"), ceremony.at("transcript.jsonl.next"));
    let whole = line + &fs::read_to_string(&next).unwrap();
    fs::write(&next, &whole).unwrap();
    fs::write(&transcript, "").unwrap();
    assert!(said(&begin_in(&ceremony, "transcript.jsonl")).contains("is unfinished"));
    ceremony.well("make", ENOUGH, &["account"]);
    assert!(ceremony.transcript().starts_with(&whole) && !next.exists());
}

#[test]
fn a_begin_whose_vault_is_not_written_can_be_repeated() {
    let ceremony = Ceremony::prepared();
    let (config, key_file) = (ceremony.at("engine.toml"), ceremony.at("data/vault.key"));
    let lines = fs::read_to_string(&config).unwrap();
    let with_vault = |name: &str| {
        let vault = ceremony.at("data").join(name);
        fs::write(&config, format!("{lines}[vault]\nfile = {vault:?}\nkey_file = {key_file:?}\n")).unwrap();
    };
    // A vault is first written under a longer name, and a file name has at most 255 bytes.
    with_vault(&"v".repeat(240));
    for _ in 0..2 {
        let refused = begin_in(&ceremony, "transcript.jsonl");
        assert!(refused.status.code() == Some(1) && said(&refused).contains("name too long"), "{}", said(&refused));
        for name in ["transcript.jsonl", "transcript.jsonl.next", "data/vault.key"] {
            assert!(!ceremony.at(name).exists(), "{name}");
        }
    }
    with_vault("vault");
    ceremony.begin();
}

#[test]
fn a_second_step_on_a_transcript_in_use_is_refused() {
    let token = RealToken::without_keys(Make::SoftHsm);
    for ceremony in [Ceremony::prepared(), Ceremony::prepared_on(&token)] {
        ceremony.begin();
        let next = ceremony.at("transcript.jsonl.next");
        fs::write(&next, "of the step under way").unwrap();
        let before = (ceremony.transcript(), ceremony.keys());
        let first = File::open(ceremony.at("transcript.jsonl")).unwrap();
        first.lock().unwrap();
        let refused = ceremony.refused("make", ENOUGH, &["seal"]);
        assert!(refused.contains("another step is under way on") && refused.lines().count() == 1, "{refused}");
        assert_eq!((ceremony.transcript(), ceremony.keys()), before);
        assert_eq!(fs::read_to_string(&next).unwrap(), "of the step under way");
        drop(first);
        ceremony.well("make", ENOUGH, &["seal"]);
        assert_eq!(Transcript::read(&ceremony.transcript()).unwrap().entries.len(), 2);
    }
}

#[test]
fn two_concurrent_token_steps_write_each_line_once() {
    let token = RealToken::without_keys(Make::SoftHsm);
    let ceremony = Ceremony::prepared_on(&token);
    ceremony.begin();
    let torn_at = ceremony.transcript().len() + 20;
    killed_at(torn_at, &ceremony.command("make", ENOUGH, &["seal"]));
    let start = |key: &str| {
        let mut step = ceremony.command("make", ENOUGH, &[key]);
        step.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let steps = [start("account"), start("mac")].map(|step| step.wait_with_output().unwrap());
    let done = steps.iter().filter(|step| step.status.success()).count();
    assert!(done >= 1, "{}", steps.each_ref().map(said).concat());
    let read = Transcript::read(&ceremony.transcript()).unwrap();
    assert_eq!(read.entries.len(), 2 + done);
}

#[test]
fn a_failure_after_the_change_has_its_exit_code() {
    let ceremony = begun();
    let roster = ceremony.at("roster.toml");
    let again = ceremony.command("begin", ALL, &["--roster", roster.to_str().unwrap()]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    let full = with_full_disk(ceremony.transcript().len(), &ceremony.command("make", ENOUGH, &["seal"]));
    assert_eq!(full.status.code(), Some(DONE_IN_PART), "{}", said(&full));
    ceremony.well("make", ENOUGH, &["account"]);
    assert!(ceremony.transcript().contains("seal/1"));

    let failed = in_shell("exec >/dev/full", &ceremony.command("make", ENOUGH, &["zone:a"])).output().unwrap();
    assert_eq!(failed.status.code(), Some(DONE_IN_PART));
    assert!(said(&failed).contains("the step was done") && said(&failed).contains("ceremony list"));
    assert!(ceremony.transcript().contains("zone:a/1"));
    let mut step = ceremony.command("make", ENOUGH, &["zone:c"]);
    let mut step = step.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(step.stdout.take());
    assert_eq!(step.wait().unwrap().code(), Some(DONE_IN_PART));
    assert!(ceremony.transcript().contains("zone:c/1"));

    let mut person = ceremony.person_command("--out", &ceremony.at("dora.key"));
    let person = person.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert_eq!(person.status.code(), Some(DONE_IN_PART));
    assert!(said(&person).contains("--show") && ceremony.at("dora.key").exists());
}

#[test]
fn a_step_by_root_leaves_the_vault_to_its_owner() {
    let ceremony = begun();
    let (vault, lock) = (ceremony.at("data/vault"), ceremony.at("data/vault.lock"));
    fs::remove_file(&lock).unwrap();
    fs::set_permissions(&vault, fs::Permissions::from_mode(0o400)).unwrap();
    chown(&vault, Some(4711), Some(4712)).expect("run the tests as root");
    ceremony.well("make", ENOUGH, &["seal"]);
    let owned = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid(), file.mode() & 0o777)).unwrap();
    assert_eq!(owned(&vault), (4711, 4712, 0o400));
    assert_eq!(owned(&lock), (4711, 4712, 0o600));
}

#[test]
fn a_linked_vault_stays_one_file() {
    let ceremony = begun();
    let (vault, elsewhere) = (ceremony.at("data/vault"), ceremony.at("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(&vault, elsewhere.join("vault")).unwrap();
    symlink(elsewhere.join("vault"), &vault).unwrap();
    ceremony.well("make", ENOUGH, &["seal"]);
    assert!(fs::symlink_metadata(&vault).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 2, "the vault and its lock");
    assert!(ceremony.keys().contains("seal/1"));

    fs::hard_link(elsewhere.join("vault"), ceremony.at("second")).unwrap();
    let before = fs::read(&vault).unwrap();
    let refused = ceremony.refused("make", ENOUGH, &["account"]);
    assert!(refused.contains("has 2 names (hard links)") && refused.contains("remove all but one"), "{refused}");
    assert_eq!(fs::read(&vault).unwrap(), before);
    fs::remove_file(ceremony.at("second")).unwrap();
    // The state of a vault whose creation is killed between the link and the removal.
    let leftover = elsewhere.join("vault.0123456789abcdef.new");
    fs::hard_link(elsewhere.join("vault"), &leftover).unwrap();
    ceremony.well("make", ENOUGH, &["account"]);
    assert!(!leftover.exists());
}

#[test]
fn components_typed_ahead_of_a_mistake_reach_no_shell() {
    let ceremony = begun();
    let terminal = Terminal::open(ceremony.directory());
    let load = ceremony.command("load", ENOUGH, &["storage"]);
    let words = std::iter::once(load.get_program()).chain(load.get_args()).map(|word| word.to_str().unwrap());
    terminal.types(&words.collect::<Vec<_>>().join(" "));
    terminal.until("alice, component 1 (it is not shown):");
    terminal.types("0123\recho a component of $((40 + 2))\recho and $((41 + 2))");
    terminal.until("as many hexadecimal digits as the key has");
    terminal.types("echo typed $((43 + 1)) afterwards");
    let shown = terminal.until("typed 44 afterwards");
    assert!(!shown.contains("a component of") && !shown.contains("and 43"), "{shown}");
}

#[test]
fn a_passphrase_by_descriptor_is_in_memory_once() {
    let ceremony = Ceremony::prepared();
    let engine = fs::read_to_string(ceremony.at("engine.toml")).unwrap();
    fs::write(ceremony.at("engine.toml"), engine + "[vault]\npassphrase = { descriptor = 3 }\n").unwrap();
    let lines: Vec<String> = (0..30).map(|line| format!("<{:0100}>", line * 7919 + 1)).collect();
    let start = |command: &Command| -> Child {
        let mut shell = in_shell("exec 3<&0 0</dev/null", command);
        let mut child = shell.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
        child
    };
    let roster = ceremony.at("roster.toml");
    let begun = start(&ceremony.command("begin", ALL, &["--roster", roster.to_str().unwrap()]));
    let begun = begun.wait_with_output().unwrap();
    assert!(begun.status.success(), "{}", said(&begun));

    // The command has opened the vault when it reads the participants' keys, and then waits.
    let pipe = ceremony.at("mallory.key");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut waiting = start(&ceremony.command("make", &["mallory"], &["seal"]));
    let person = OpenOptions::new().write(true).open(&pipe).unwrap();
    let patterns: Vec<Vec<u8>> = lines.iter().map(|line| line.clone().into_bytes()).collect();
    let copies = memory_search::copies_in(waiting.id(), &patterns).expect("run the tests as root");
    drop(person);
    let mut why = String::new();
    waiting.stderr.take().unwrap().read_to_string(&mut why).unwrap();
    assert!(!waiting.wait().unwrap().success(), "{why}");
    assert_eq!(copies, vec![1; lines.len()], "the vault is sealed with the passphrase again: one copy is in use");
}
