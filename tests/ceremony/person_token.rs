//! Participants with a key in a PKCS#11 token: they sign like the others, and if they cannot, the step does nothing.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use ceremony::transcript::Transcript;

use support::{
    ceremony::{ALL, Ceremony, ENOUGH, Terminal, said},
    real_token::{Make, RealToken},
};

/// The managed keys in a vault, or in a token of the same module as the leader's.
const HOMES: [fn(&RealToken) -> String; 2] = [|_| String::new(), RealToken::lines];

/// The files that a refused step must not change.
fn state(ceremony: &Ceremony) -> (String, String, bool) {
    let left = ceremony.at("transcript.jsonl.next").exists();
    (ceremony.transcript(), ceremony.keys(), left)
}

/// Asserts that the step was refused with one line that contains this text, and recorded nothing.
fn refused_with(ceremony: &Ceremony, present: &[&str], why: &str) {
    let before = state(ceremony);
    let refused = ceremony.refused("make", present, &["seal"]);
    assert!(refused.contains(why) && refused.lines().count() == 1, "{refused}");
    assert_eq!(state(ceremony), before);
}

#[test]
fn a_ceremony_mixes_a_leaders_token_with_key_files() {
    for lines in HOMES {
        let token = RealToken::without_keys(Make::SoftHsm);
        let ceremony = Ceremony::prepared_with_leader_beside(&token, &lines(&token));
        ceremony.begin();
        ceremony.well("make", ENOUGH, &["seal"]);
        ceremony.well("activate", ENOUGH, &["seal/1"]);
        ceremony.well("end", ALL, &[]);
        assert!(ceremony.verify(&["--roster", ceremony.at("roster.toml").to_str().unwrap()]).status.success());
        let read = Transcript::read(&ceremony.transcript()).unwrap();
        assert_eq!(read.entries.len(), 4);
        assert!(read.entries.iter().all(|entry| entry.present.contains(&"lea".to_owned())));
    }
}

#[test]
fn two_token_holders_sign_in_one_process() {
    let token = RealToken::without_keys(Make::SoftHsm);
    let ceremony = Ceremony::prepared_with_leader_beside(&token, &token.lines());
    fs::copy(token.of_a_person("alice"), ceremony.at("alice.toml")).unwrap();
    let made = ceremony.person_command("--token", &ceremony.at("alice.toml")).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let public = |name: &str| {
        let shown = ceremony.person_command("--show", Path::new(name)).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().trim().to_owned()
    };
    let of_alices_file = public(ceremony.at("alice.key").to_str().unwrap());
    let of_her_token = public(ceremony.at("alice.toml").to_str().unwrap());
    assert_eq!(format!("{of_her_token}\n").into_bytes(), made.stdout);
    let roster = fs::read_to_string(ceremony.at("roster.toml")).unwrap();
    assert!(roster.contains(&of_alices_file));
    fs::write(ceremony.at("roster.toml"), roster.replace(&of_alices_file, &of_her_token)).unwrap();
    ceremony.begin();
    ceremony.well("end", ALL, &[]);
    assert!(ceremony.verify(&[]).status.success());
}

#[test]
fn an_unusable_person_token_records_nothing() {
    for lines in HOMES {
        let token = RealToken::without_keys(Make::SoftHsm);
        let ceremony = Ceremony::prepared_with_leader_beside(&token, &lines(&token));
        ceremony.begin();
        token.write_pin_of("lea", "7531");
        refused_with(&ceremony, ENOUGH, "with the label \"lea\": the token refused the user PIN");
        token.write_pin_of("lea", "1357");
        fs::copy(token.of_a_person("mallory"), ceremony.at("mallory.toml")).unwrap();
        refused_with(&ceremony, &["mallory", "alice", "bob"], "the token has no participant's key: make one with");
        refused_with(&ceremony, &["lea", "lea", "alice", "bob"], "logged in to it already");
        fs::write(ceremony.at("eve.toml"), "[token]\nmodule = \"m.so\"\nlabel = \"eve\"\nuser_pin = \"2468\"").unwrap();
        refused_with(&ceremony, &["eve", "alice", "bob"], "names a token (line 4)");
        ceremony.well("make", ENOUGH, &["seal"]);
    }
}

#[test]
fn a_person_key_in_the_engines_token_is_rejected() {
    let token = RealToken::without_keys(Make::SoftHsm);
    let ceremony = Ceremony::prepared_with_leader_beside(&token, &token.lines());
    ceremony.begin();
    let named = fs::read_to_string(ceremony.at("lea.toml")).unwrap().replace("\"lea\"", "\"pinseal\"");
    fs::write(ceremony.at("mallory.toml"), named).unwrap();
    refused_with(&ceremony, &["mallory", "alice", "bob"], "this process is logged in to it already");
}

#[test]
fn a_user_pin_with_one_try_left_is_not_tried() {
    let token = RealToken::behind_the_shim(Make::SoftHsm);
    let ceremony = Ceremony::prepared_with_leader_beside(&token, "");
    ceremony.begin();
    token.add_token_flags("20000");
    token.forget_trace();
    refused_with(&ceremony, ENOUGH, "the user PIN has one try left");
    assert!(token.trace().iter().all(|(call, _)| call != "C_Login"));
}

#[test]
fn a_step_whose_token_fails_changes_nothing() {
    let token = RealToken::behind_the_shim(Make::SoftHsm);
    let ceremony = Ceremony::prepared_with_leader_beside(&token, "");
    ceremony.begin();
    ceremony.well("make", ENOUGH, &["zone:acquirer"]);
    ceremony.well("retire", ENOUGH, &["zone:acquirer/1"]);
    let listed = ceremony.keys();
    let check_value = listed.lines().find(|line| line.contains("zone:acquirer/1")).unwrap().split_whitespace().nth(2);
    let before = state(&ceremony);

    // The input is read after the trial of the leader's token, and before its signature.
    let mut destroy = ceremony.command("destroy", ENOUGH, &["zone:acquirer/1", "--confirm", "zone:acquirer/1"]);
    let mut destroy = destroy.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stderr = destroy.stderr.take().unwrap();
    while !said.contains("read by another participant: ") {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
    // CKR_DEVICE_ERROR.
    token.command(Some("30"));
    writeln!(destroy.stdin.take().unwrap(), "{}", check_value.unwrap()).unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(!destroy.wait().unwrap().success() && said.contains("lea did not sign, so nothing was done"), "{said}");
    assert_eq!(state(&ceremony), before);
}

#[test]
fn a_token_holds_one_person_key_and_shows_it() {
    let token = RealToken::without_keys(Make::SoftHsm);
    let named = token.of_a_person("lea");
    let person = |argument: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        command.envs(token.environment()).args(["ceremony", "person", argument]).arg(&named).output().unwrap()
    };
    assert!(said(&person("--show")).contains("the token has no participant's key"));
    let made = person("--token");
    assert!(made.status.success() && made.stdout.len() == 65, "{}", said(&made));
    let again = person("--token");
    assert!(!again.status.success() && again.stdout.is_empty());
    assert!(
        said(&again).contains("the token has a participant's key already, and nothing was made"),
        "{}",
        said(&again)
    );
    assert_eq!(person("--show").stdout, made.stdout);
}

#[test]
fn a_token_without_ed25519_says_so() {
    let token = RealToken::without_keys(Make::Nss);
    let lines = token.lines();
    let of_any_token = ["[token]", "module", "label", "user_pin"];
    let named = lines.lines().filter(|line| of_any_token.iter().any(|word| line.starts_with(word)));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lea.toml");
    fs::write(&file, named.collect::<Vec<_>>().join("\n")).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_pinseal")).args(["ceremony", "person", "--token"]).arg(&file).output();
    let made = made.unwrap();
    assert!(!made.status.success() && said(&made).contains("the token has no Ed25519"), "{}", said(&made));
}

#[test]
fn a_user_pin_is_typed_without_echo_on_a_terminal() {
    let token = RealToken::without_keys(Make::SoftHsm);
    let ceremony = Ceremony::prepared_with_leader_beside(&token, "");
    let named = fs::read_to_string(ceremony.at("lea.toml")).unwrap();
    let (unnamed, _) = named.split_once("user_pin").unwrap();
    fs::write(ceremony.at("lea.toml"), unnamed).unwrap();
    let show = ceremony.person_command("--show", &ceremony.at("lea.toml"));

    let mut apart = Command::new("setsid");
    apart.arg("--wait").arg(show.get_program()).args(show.get_args()).envs(token.environment());
    let refused = apart.stdin(Stdio::null()).output().expect("setsid is missing: install it (Debian: util-linux)");
    assert!(!refused.status.success() && said(&refused).contains("there is no terminal to ask"), "{}", said(&refused));

    let words = std::iter::once(show.get_program()).chain(show.get_args()).map(|word| word.to_str().unwrap());
    let around = token.environment().into_iter().map(|(name, value)| format!("{name}='{}'", value.display()));
    let line = around.chain(words.map(str::to_owned)).collect::<Vec<_>>().join(" ");
    let roster = fs::read_to_string(ceremony.at("roster.toml")).unwrap();
    let (_, of_the_leader) = roster.split_once("role = \"leader\"").unwrap();
    let public = of_the_leader.split('"').nth(1).unwrap();
    for (typed, answer) in [("", "no user PIN was typed, and none was tried"), ("1357", public)] {
        let directory = tempfile::tempdir().unwrap();
        let terminal = Terminal::open(directory.path());
        terminal.types(&line);
        terminal.until("user PIN of the token with the label \"lea\" (it is not shown):");
        terminal.types(typed);
        let shown = terminal.until(answer);
        assert!(!shown.replace(public, "").contains("1357"), "{shown}");
    }
}
