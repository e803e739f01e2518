//! Key ceremonies by the built program: a whole ceremony, and every refusal.

use std::{fs, path::Path, process::Command};

use ceremony::transcript::{Transcript, TranscriptError};
use tempfile::TempDir;

use support::{
    ceremony::{ALL, Ceremony, ENOUGH, Terminal, pinseal, said},
    engine_process::{EngineProcess, device},
};

/// The files of a rehearsal.
struct Rehearsed {
    directory: TempDir,
}

impl Rehearsed {
    fn with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ceremony/rehearse");
        let mut rehearse = Command::new(script);
        let rehearsed = rehearse.arg(directory.path()).args(arguments).env("PINSEAL", env!("CARGO_BIN_EXE_pinseal"));
        let rehearsed = rehearsed.output().unwrap();
        assert!(rehearsed.status.success(), "{}", said(&rehearsed));
        Self { directory }
    }

    pub(crate) fn transcript(&self) -> String {
        fs::read_to_string(self.directory.path().join("transcript.jsonl")).unwrap()
    }

    /// The KCV of a key in the transcript.
    fn check_value(&self, key: &str) -> String {
        let named = format!("\"key\":\"{key}\"");
        let transcript = self.transcript();
        let printed = transcript.lines().find(|line| line.contains(&named) && !line.contains("\"begin\"")).unwrap();
        let printed: serde_json::Value = serde_json::from_str(printed).unwrap();
        printed["entry"]["key"]["check_value"].as_str().unwrap().to_owned()
    }

    /// Sets and views a PIN with the ceremony's keys; the audit chain names its storage key.
    async fn serves(&self, mut pinseal: Command, lines: &str) {
        let directory = self.directory.path();
        pinseal.env("SOFTHSM2_CONF", directory.join("token/softhsm2.conf"));
        let engine = EngineProcess::start_with(pinseal, "127.0.0.1:0", directory, lines);
        let (device, mut client) = (device(), engine.client().await);
        client.set(&device, "9100", "271828").await.unwrap();
        assert_eq!(client.view(&device, "9100").await.unwrap(), "271828");
        assert_eq!(engine.terminate(), 0);
        let store = directory.join("data/store");
        let exported = support::ceremony::pinseal().args(["audit", "export", "--store"]).arg(store).output().unwrap();
        let lines = String::from_utf8(exported.stdout).unwrap();
        assert!(lines.contains(&format!("storage/1:{}", self.check_value("storage/1"))), "{lines}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_serves_the_vault_of_a_rehearsed_ceremony() {
    let rehearsed = Rehearsed::with(&[]);
    assert!(Transcript::read(&rehearsed.transcript()).unwrap().has_ended());
    rehearsed.serves(pinseal(), "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_serves_a_softhsm_ceremonys_token() {
    let rehearsed = Rehearsed::with(&["softhsm"]);
    let transcript = rehearsed.transcript();
    let read = Transcript::read(&transcript).unwrap();
    assert!(read.has_ended());
    let loaded = transcript.lines().find(|line| line.contains("load-key")).unwrap();
    assert!(["alice", "bob", "carol"].iter().all(|name| loaded.contains(&format!("\"custodian\":\"{name}\""))));
    let came = transcript.lines().find(|line| line.contains("import-key")).unwrap();
    assert!(came.contains("\"key\":\"zone:acquirer/1\"") && came.contains("\"header\":\"D0144P0AB00E0000\""), "{came}");

    // At least one byte of each line; `a_changed_transcript_byte_is_reported_with_its_line` changes every byte of a
    // shorter one.
    for at in (0..transcript.len()).step_by(97) {
        let mut changed = transcript.clone().into_bytes();
        changed[at] ^= 1;
        Transcript::read(std::str::from_utf8(&changed).unwrap()).expect_err("a changed byte");
    }
    let configured = fs::read_to_string(rehearsed.directory.path().join("engine.toml")).unwrap();
    let lines = &configured[configured.find("[token]").unwrap()..];
    rehearsed.serves(pinseal(), lines).await;
}

#[test]
fn a_step_needs_its_quorum_and_leader_and_no_stranger() {
    let ceremony = Ceremony::begun();
    let before = ceremony.transcript();
    ceremony.person("mallory");
    for (present, why) in [
        (&["alice"][..], "1 custodians are present, and it takes 2"),
        (&["lea"], "0 custodians are present, and it takes 2"),
        (&["lea", "alice"], "1 custodians are present, and it takes 2"),
        (&["alice", "bob", "carol"], "no leader is present"),
        (&["lea", "alice", "alice"], "alice appears twice"),
        (&["lea", "alice", "mallory"], "nobody on the roster has the key"),
    ] {
        for (step, arguments) in
            [("make", &["seal"][..]), ("make-components", &[]), ("load", &["storage"]), ("end", &[])]
        {
            let refused = ceremony.refused(step, present, arguments);
            assert!(refused.contains(why), "{step} {present:?}: {refused}");
        }
    }
    assert!(ceremony.refused("end", ENOUGH, &[]).contains("no auditor is present"));
    assert_eq!(ceremony.transcript(), before);
    assert_eq!(ceremony.keys().lines().count(), 1);
}

#[test]
fn a_vault_in_custody_accepts_no_other_roster() {
    let (ceremony, other) = (Ceremony::begun(), Ceremony::prepared());
    ceremony.well("end", ALL, &[]);
    fs::rename(ceremony.at("transcript.jsonl"), ceremony.at("first.jsonl")).unwrap();
    for name in ["roster.toml", "lea.key", "alice.key", "bob.key", "otto.key"] {
        fs::copy(other.at(name), ceremony.at(name)).unwrap();
    }
    let roster = ceremony.at("roster.toml");
    let refused = ceremony.refused("begin", ALL, &["--roster", roster.to_str().unwrap()]);
    assert!(refused.contains("in the custody of another roster"), "{refused}");
}

#[test]
fn a_second_ceremony_follows_on_the_first() {
    let ceremony = Ceremony::begun();
    ceremony.well("end", ALL, &[]);
    let first = Transcript::read(&ceremony.transcript()).unwrap();
    fs::rename(ceremony.at("transcript.jsonl"), ceremony.at("first.jsonl")).unwrap();
    let roster = ceremony.at("roster.toml");
    ceremony.well("begin", ALL, &["--roster", roster.to_str().unwrap()]);
    let second = Transcript::read(&ceremony.transcript()).unwrap();
    let head: String = first.head.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(second.entries[0].previous, head);
}

#[test]
fn a_changed_transcript_byte_is_reported_with_its_line() {
    let ceremony = Ceremony::begun();
    ceremony.well("make", ENOUGH, &["seal"]);
    ceremony.well("end", ALL, &[]);
    let whole = ceremony.transcript();
    assert!(Transcript::read(&whole).unwrap().has_ended());
    let mut line = 1;
    for at in 0..whole.len() {
        let mut changed = whole.clone().into_bytes();
        let was = changed[at];
        changed[at] ^= 1;
        // Without its line end, a line continues with the next line.
        let printed = Transcript::read(std::str::from_utf8(&changed).unwrap()).expect_err("byte {at}");
        assert!(matches!(printed, TranscriptError::Line { line: found, .. } if found == line), "byte {at}: {printed}");
        line += u64::from(was == b'\n');
    }
}

#[test]
fn a_transcript_that_is_cut_moved_or_spliced_is_refused() {
    let ceremony = Ceremony::begun();
    for key in ["seal", "account"] {
        ceremony.well("make", ENOUGH, &[key]);
    }
    ceremony.well("end", ALL, &[]);
    let whole = ceremony.transcript();
    let lines: Vec<_> = whole.lines().collect();
    let verify_of = |lines: &[&str]| {
        fs::write(ceremony.at("transcript.jsonl"), lines.join("\n") + "\n").unwrap();
        ceremony.verify(&[])
    };
    assert!(verify_of(&lines).status.success());
    for (what, lines, why) in [
        ("its end is cut", vec![lines[0], lines[1], lines[2]], "line 3 is the last and does not end the ceremony"),
        ("a line is cut", vec![lines[0], lines[2], lines[3]], "line 2 does not follow"),
        ("lines are moved", vec![lines[0], lines[2], lines[1], lines[3]], "line 2 does not follow"),
        ("the beginning is cut", vec![lines[1], lines[2], lines[3]], "line 1 does not follow"),
        ("a line is twice", vec![lines[0], lines[1], lines[1], lines[2]], "line 3 does not follow"),
        ("it goes on after its end", vec![lines[0], lines[1], lines[2], lines[3], lines[1]], "line 5 does not follow"),
    ] {
        let output = verify_of(&lines);
        assert!(!output.status.success() && said(&output).contains(why), "{what}: {}", said(&output));
    }
}

#[test]
fn a_ceremony_rejects_a_transcript_cut_while_it_runs() {
    let ceremony = Ceremony::begun();
    let before = ceremony.transcript();
    ceremony.well("make", ENOUGH, &["seal"]);
    fs::write(ceremony.at("transcript.jsonl"), before).unwrap();
    let refused = ceremony.refused("make", ENOUGH, &["account"]);
    assert!(refused.contains("does not record the keys' last change"), "{refused}");
}

#[test]
fn the_next_step_records_a_step_that_ended_unrecorded() {
    let ceremony = Ceremony::begun();
    let before = ceremony.transcript();
    let vault_before = fs::read(ceremony.at("data/vault")).unwrap();
    ceremony.well("make", ENOUGH, &["seal"]);
    let after = ceremony.transcript();
    let line = &after[before.len()..];

    // The step ended after the vault was written, in the middle of the transcript's line.
    fs::write(ceremony.at("transcript.jsonl"), before.clone() + &line[..20]).unwrap();
    fs::write(ceremony.at("transcript.jsonl.next"), line).unwrap();
    ceremony.well("make", ENOUGH, &["account"]);
    assert!(ceremony.transcript().starts_with(&after));

    // The step ended before the vault was written.
    fs::write(ceremony.at("transcript.jsonl"), &before).unwrap();
    fs::write(ceremony.at("data/vault"), vault_before).unwrap();
    fs::write(ceremony.at("transcript.jsonl.next"), line).unwrap();
    ceremony.well("make", ENOUGH, &["account"]);
    assert!(!ceremony.transcript().contains("seal/1") && !ceremony.keys().contains("seal/1"));
    assert_eq!(Transcript::read(&ceremony.transcript()).unwrap().entries.len(), 2);
}

#[test]
fn a_zone_key_is_destroyed_only_after_two_confirmations() {
    let ceremony = Ceremony::begun();
    let made = ceremony.well("make", ENOUGH, &["zone:acquirer", "--algorithm", "3des-double", "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let check_value = made["key"]["check_value"].as_str().unwrap();
    let reference = "zone:acquirer/1";
    ceremony.well("activate", ENOUGH, &[reference]);
    let destroy = |confirm: &str, value: &str| {
        ceremony.step("destroy", ENOUGH, &[reference, "--confirm", confirm, "--confirm-check-value", value])
    };
    assert!(said(&destroy(reference, check_value)).contains("is active: it would have to be retired"));
    ceremony.well("retire", ENOUGH, &[reference]);
    assert!(said(&destroy("zone:acquirer/2", check_value)).contains("nothing was destroyed"));
    assert!(said(&destroy(reference, "000000")).contains("nothing was destroyed"));
    assert!(ceremony.keys().contains("retired"));
    let one_typed = ceremony.with_input("destroy", ENOUGH, &[reference], &format!("{reference}\n"));
    assert!(!one_typed.status.success());
    let both_typed = ceremony.with_input("destroy", ENOUGH, &[reference], &format!("{reference}\n{check_value}\n"));
    assert!(both_typed.status.success(), "{}", said(&both_typed));
    assert!(ceremony.keys().contains("destroyed"));
    ceremony.well("end", ALL, &[]);
    assert!(ceremony.verify(&[]).status.success());
}

#[test]
fn a_component_that_is_mistyped_or_entered_twice_loads_nothing() {
    let ceremony = Ceremony::begun();
    let made = ceremony.well("make-components", ENOUGH, &[]);
    let components: Vec<Vec<&str>> = made.lines().take(2).map(|line| line.split(' ').skip(1).collect()).collect();
    let [first, second] = &components[..] else { panic!("{made}") };
    let typed = |lines: &[&str]| ceremony.with_input("load", ENOUGH, &["storage"], &(lines.join("\n") + "\n"));
    let mistyped = if first[0].starts_with('0') { "1" } else { "0" }.to_owned() + &first[0][1..];
    for (lines, why) in [
        (&[&*mistyped, first[1], second[0], second[1]][..], "the check value is another"),
        (&[first[0], first[1], first[0], first[1]], "the same component was entered already"),
        (&[&first[0][1..], first[1]], "as many hexadecimal digits as the key has: 64"),
        (&[first[0], first[1]], "the input ended"),
    ] {
        let output = typed(lines);
        assert!(!output.status.success() && said(&output).contains(why), "{}", said(&output));
    }
    assert_eq!(ceremony.keys().lines().count(), 1);
    assert!(typed(&[first[0], first[1], second[0], second[1]]).status.success());
    assert!(ceremony.keys().contains("storage/1"));
    assert!(!ceremony.transcript().contains(first[0]) && !ceremony.transcript().contains(second[0]));
}

/// An engine in another directory, with its keys in the vault of a ceremony.
fn engine_beside(ceremony: &Ceremony, directory: &Path) -> EngineProcess {
    fs::create_dir_all(ceremony.at("data")).unwrap();
    let (vault, key) = (ceremony.at("data/vault"), ceremony.at("data/vault.key"));
    let lines = format!("[vault]\nfile = {vault:?}\nkey_file = {key:?}\n[control]\nlifetime_seconds = 3600");
    EngineProcess::start(directory, &lines)
}

/// The count in the transcript's last line.
fn last_count(ceremony: &Ceremony) -> serde_json::Value {
    let line: serde_json::Value = serde_json::from_str(ceremony.transcript().lines().last().unwrap()).unwrap();
    line["entry"]["count"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_pins_in_any_store_is_not_retired() {
    let (ceremony, serving, other) = (Ceremony::prepared(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let device = device();
    let engine = engine_beside(&ceremony, serving.path());
    engine.client().await.set(&device, "9100", "271828").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    assert_eq!(engine_beside(&ceremony, other.path()).terminate(), 0);
    ceremony.begin();
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);

    let refused = ceremony.refused("retire", ENOUGH, &["storage/1"]);
    assert!(refused.contains("is no store, so nothing was counted for storage/1"), "{refused}");
    let (store, empty) = (serving.path().join("data/store"), other.path().join("data/store"));
    let (store, empty) = (store.to_str().unwrap(), empty.to_str().unwrap());
    let mistyped = format!("{store}-of-nobody");
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--store", empty, "--store", &mistyped]);
    assert!(refused.contains("-of-nobody is no store"), "{refused}");
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--store", empty, "--store", store]);
    assert!(refused.contains("1 PIN records are under storage/1"), "{refused}");
    // Beside a named store, the store of an engine's configuration must exist. That of a boundary's configuration is
    // listed.
    let noted = ceremony.at("data/store");
    assert!(refused.contains(&format!("{}; count there too", noted.display())), "{refused}");
    let config = fs::read_to_string(ceremony.at("engine.toml")).unwrap();
    fs::write(ceremony.at("engine.toml"), format!("{config}[store]\nwaiting_changes_max = 4096\n")).unwrap();
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--store", empty]);
    assert!(refused.contains(&format!("{} is no store, and --config names it", noted.display())), "{refused}");
    fs::write(ceremony.at("engine.toml"), config).unwrap();
    // A copy was counted, and the engine that may still run on the original is listed.
    let copy = other.path().join("copy");
    assert!(Command::new("cp").arg("-r").args([store.as_ref(), copy.as_path()]).status().unwrap().success());
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--store", copy.to_str().unwrap()]);
    assert!(refused.contains("note: not asked: ") && refused.contains(store), "{refused}");

    let engine = engine_beside(&ceremony, serving.path());
    assert_eq!(support::rotation::watched(&engine).pop().unwrap()["state"], "done");
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--store", store]);
    assert!(refused.contains("in use by a running engine: name that engine by --engine ADDRESS"), "{refused}");
    ceremony.well("retire", ENOUGH, &["storage/1", "--engine", engine.address(), "--store", empty]);
    let count = last_count(&ceremony);
    assert_eq!((&count["by"], &count["asked"][1]["source"]["engine"]), (&"count".into(), &engine.address().into()));
    assert!(count["asked"].as_array().unwrap().iter().all(|asked| asked["records"] == 0), "{count}");

    let listed = ceremony.keys();
    let check_value = listed.lines().find(|line| line.starts_with("storage/1")).unwrap().split_whitespace().nth(2);
    let destroy = ["storage/1", "--confirm", "storage/1", "--confirm-check-value", check_value.unwrap()];
    let refused = ceremony.refused("destroy", ENOUGH, &destroy);
    assert!(refused.contains("is no store, so nothing was counted for storage/1"), "{refused}");
    // The copy is older: its PIN needs the key.
    let refused = ceremony.refused("destroy", ENOUGH, &[&destroy[..], &["--store", copy.to_str().unwrap()]].concat());
    assert!(refused.contains("1 PIN records are under storage/1: they would be lost"), "{refused}");
    ceremony.well("destroy", ENOUGH, &[&destroy[..], &["--engine", engine.address()]].concat());
    assert_eq!(engine.client().await.view(&device, "9100").await.unwrap(), "271828");
    assert_eq!(engine.terminate(), 0);
    let engine = engine_beside(&ceremony, serving.path());
    assert_eq!(engine.client().await.view(&device, "9100").await.unwrap(), "271828");
    ceremony.well("end", ALL, &[]);
    assert!(ceremony.verify(&[]).status.success());
}

#[test]
fn no_store_is_confirmed_twice_and_stands_in_the_transcript() {
    let ceremony = Ceremony::begun();
    for version in ["storage/1", "storage/2"] {
        ceremony.well("make", ENOUGH, &["storage"]);
        ceremony.well("activate", ENOUGH, &[version]);
    }
    let refused = ceremony.refused("retire", ENOUGH, &["storage/1"]);
    assert!(refused.contains("say --no-store"), "{refused}");
    let no_store = ["storage/1", "--no-store"];
    let both = ceremony.refused("retire", ENOUGH, &[&no_store[..], &["--store", "anywhere"]].concat());
    assert!(both.contains("cannot be used with"), "{both}");
    for typed in ["storage/1\n", "storage/1\nyes\n", "storage/2\nstorage/1\n"] {
        let output = ceremony.with_input("retire", ENOUGH, &no_store, typed);
        assert!(
            !output.status.success() && said(&output).contains("the typed text is not storage/1"),
            "{}",
            said(&output)
        );
    }
    let flags = ["--confirm-no-record", "storage/1", "--confirm-no-engine", "storage/1"];
    ceremony.well("retire", ENOUGH, &[&no_store[..], &flags].concat());
    assert_eq!(last_count(&ceremony)["by"], "no-store");
    ceremony.well("end", ALL, &[]);
    let verified = ceremony.verify(&[]);
    assert!(String::from_utf8_lossy(&verified.stdout).contains("no store and no engine, confirmed twice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_key_in_use_is_not_retired() {
    let (ceremony, serving) = (Ceremony::prepared(), tempfile::tempdir().unwrap());
    let engine = engine_beside(&ceremony, serving.path());
    ceremony.begin();
    ceremony.well("make", ENOUGH, &["seal"]);
    ceremony.well("activate", ENOUGH, &["seal/2"]);
    let refused = ceremony.refused("retire", ENOUGH, &["seal/1"]);
    assert!(refused.contains("is no store, so nothing was counted for seal/1"), "{refused}");
    let retire = ["seal/1", "--engine", engine.address()];
    let refused = ceremony.refused("retire", ENOUGH, &retire);
    assert!(refused.contains("does not have seal/2 in use"), "{refused}");
    engine.client().await.ready_to_set(&device(), "9100", "271828").await.unwrap();
    support::wait::signal(engine.id(), "HUP");
    let why = "1 live controls have a tzpk under seal/1";
    let counted = async || ceremony.refused("retire", ENOUGH, &retire).contains(why).then_some(());
    support::wait::soon("the control is not counted", counted).await;
    assert_eq!(engine.terminate(), 0);
    let store = serving.path().join("data/store");
    let refused = ceremony.refused("retire", ENOUGH, &["seal/1", "--store", store.to_str().unwrap()]);
    assert!(refused.contains(why), "{refused}");
}

/// The arguments and environment of a process.
fn open_to_all(name_in_arguments: &str) -> String {
    let of = |process: &Path, file: &str| fs::read(process.join(file)).unwrap_or_default();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let all = processes.map(|process| (of(&process, "cmdline"), of(&process, "environ")));
    let ours = all.filter(|(arguments, _)| String::from_utf8_lossy(arguments).contains(name_in_arguments));
    ours.map(|(arguments, around)| String::from_utf8_lossy(&[arguments, around].concat()).into_owned()).collect()
}

fn files_hold(directory: &Path, component: &str) -> bool {
    let bytes: Vec<u8> =
        (0..component.len()).step_by(2).map(|at| u8::from_str_radix(&component[at..at + 2], 16).unwrap()).collect();
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return files_hold(&path, component);
        }
        let file = fs::read(&path).unwrap_or_default();
        [&bytes[..], component.as_bytes()].iter().any(|part| file.windows(part.len()).any(|window| window == *part))
    })
}

#[test]
fn a_component_leaves_no_trace_on_terminal_process_or_disk() {
    let ceremony = Ceremony::begun();
    let terminal = Terminal::open(ceremony.directory());
    let line = |step: &str, arguments: &[&str]| {
        let command = ceremony.command(step, ENOUGH, arguments);
        let all = std::iter::once(command.get_program()).chain(command.get_args());
        all.map(|part| part.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };

    terminal.types(&line("make-components", &[]));
    let mut components = Vec::new();
    for name in ["alice", "bob"] {
        terminal.until(&format!("{name}, press Enter:"));
        terminal.types("");
        // The component is visible now, so the search is known to find it.
        let shown = terminal.until("Press Enter when it is written down:");
        let groups = shown.lines().map(str::trim).find(|line| line.split(' ').count() == 16).unwrap().to_owned();
        let check_value =
            shown.lines().find_map(|line| line.trim().strip_prefix("check value")).unwrap().trim().to_owned();
        terminal.types("");
        components.push((groups, check_value));
    }
    terminal.until("made an aes-256 key");

    terminal.types(&line("load", &["storage"]));
    let mut around = String::new();
    for ((groups, check_value), (name, number)) in components.iter().zip([("alice", 1), ("bob", 2)]) {
        terminal.until(&format!("{name}, component {number} (it is not shown):"));
        terminal.types(groups);
        terminal.until(&format!("{name}, check value of component {number}:"));
        around += &open_to_all("ceremony\0load");
        terminal.types(check_value);
    }
    terminal.until("loaded storage/1");
    assert!(around.contains("transcript.jsonl"), "the search of arguments is blind");

    // The command was interrupted: screen and echo are restored.
    terminal.types(&line("make-components", &[]));
    terminal.until("alice, press Enter:");
    terminal.types("");
    let shown = terminal.until("Press Enter when it is written down:");
    let groups = shown.lines().map(str::trim).find(|line| line.split(' ').count() == 16).unwrap().to_owned();
    components.push((groups, String::new()));
    assert!(terminal.tmux(&["send-keys", "C-c"]).status.success());
    terminal.until("the input ended before the component did");
    terminal.types("echo typed and $((40 + 2)) seen");
    assert!(terminal.until("typed and 42 seen").contains("$((40 + 2))"), "what is typed is not seen any more");

    let left = terminal.shows();
    for (groups, _) in &components {
        let digits = groups.replace(' ', "");
        let anywhere = groups.split(' ').any(|group| left.split_whitespace().any(|word| word == group));
        assert!(!anywhere && !left.contains(&digits), "{left}");
        assert!(!around.contains(&digits) && !around.contains(groups));
        assert!(!files_hold(ceremony.directory(), &digits));
    }
}
