//! A key ceremony in a directory, and a terminal to run it in.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use device::Tzpk;
use tempfile::TempDir;

use crate::real_token::RealToken;

/// The participants that `begin` and `end` need.
pub const ALL: &[&str] = &["lea", "alice", "bob", "otto"];
/// The participants that every other step needs.
pub const ENOUGH: &[&str] = &["lea", "alice", "bob"];

/// A directory with an engine's configuration, a roster and the participants' keys.
pub struct Ceremony {
    directory: TempDir,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Ceremony {
    /// A ceremony that has not begun.
    pub fn prepared() -> Self {
        Self::prepared_with(Vec::new(), "")
    }

    /// The same, with the keys in a token.
    pub fn prepared_on(token: &RealToken) -> Self {
        Self::prepared_with(token.environment(), &token.lines())
    }

    /// The same, with the leader's key in a second token, and these lines in `engine.toml`.
    pub fn prepared_with_leader_beside(token: &RealToken, lines: &str) -> Self {
        let ceremony = Self::without_people(token.environment(), lines);
        fs::copy(token.of_a_person("lea"), ceremony.at("lea.toml")).unwrap();
        ceremony.with_people()
    }

    fn prepared_with(environment: Vec<(&'static str, PathBuf)>, lines: &str) -> Self {
        Self::without_people(environment, lines).with_people()
    }

    fn without_people(environment: Vec<(&'static str, PathBuf)>, lines: &str) -> Self {
        let ceremony = Self { directory: tempfile::tempdir().unwrap(), environment };
        let data = ceremony.at("data");
        fs::write(ceremony.at("engine.toml"), format!("data_directory = {data:?}\n{lines}\n")).unwrap();
        ceremony
    }

    fn with_people(self) -> Self {
        let people = [
            ("alice", "custodian"),
            ("bob", "custodian"),
            ("carol", "custodian"),
            ("lea", "leader"),
            ("otto", "auditor"),
        ];
        let mut roster = "quorum = 2\n".to_owned();
        for (name, role) in people {
            let key = self.person(name);
            roster += &format!("[[person]]\nname = {name:?}\nrole = {role:?}\nkey = {key:?}\n");
        }
        fs::write(self.at("roster.toml"), roster).unwrap();
        self
    }

    /// A ceremony that has begun.
    pub fn begun() -> Self {
        let ceremony = Self::prepared();
        ceremony.begin();
        ceremony
    }

    pub fn begin(&self) {
        self.well("begin", ALL, &["--roster", self.at("roster.toml").to_str().unwrap()]);
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn person(&self, name: &str) -> String {
        let key = self.key_of(name);
        let option = if key.exists() { "--token" } else { "--out" };
        let made = self.person_command(option, &key).output().unwrap();
        assert!(made.status.success(), "{}", said(&made));
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// The file with a participant's key, or the file that names their token.
    pub fn key_of(&self, name: &str) -> PathBuf {
        let token = self.at(&format!("{name}.toml"));
        if token.exists() { token } else { self.at(&format!("{name}.key")) }
    }

    pub fn person_command(&self, argument: &str, file: &Path) -> Command {
        let mut command = pinseal();
        command.envs(self.environment.clone()).args(["ceremony", "person", argument]).arg(file);
        command
    }

    pub fn command(&self, step: &str, present: &[&str], arguments: &[&str]) -> Command {
        let mut command = pinseal();
        command.envs(self.environment.clone());
        command.args(["ceremony", step, "--config"]).arg(self.at("engine.toml"));
        command.arg("--transcript").arg(self.at("transcript.jsonl"));
        for name in present {
            command.arg("--present").arg(self.key_of(name));
        }
        command.args(arguments);
        command
    }

    pub fn step(&self, step: &str, present: &[&str], arguments: &[&str]) -> Output {
        self.command(step, present, arguments).output().unwrap()
    }

    pub fn well(&self, step: &str, present: &[&str], arguments: &[&str]) -> String {
        let output = self.step(step, present, arguments);
        assert!(output.status.success(), "{step}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line of the refusal.
    pub fn refused(&self, step: &str, present: &[&str], arguments: &[&str]) -> String {
        let output = self.step(step, present, arguments);
        assert!(!output.status.success(), "{step} {arguments:?} passed with {present:?}");
        said(&output)
    }

    pub fn with_input(&self, step: &str, present: &[&str], arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(step, present, arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that refuses before it has read all input closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Loads a 3DES key of double length from two known components, activates it, and returns it.
    pub fn load_known(&self, name: &str, byte: u8) -> Tzpk {
        let components = [[byte; 16], *b"\x10\x32\x54\x76\x98\xBA\xDC\xFE\x01\x23\x45\x67\x89\xAB\xCD\xEF"];
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let typed = components.map(|component| {
            let kcv = Tzpk::from_bytes(&component).unwrap().encrypt_block(&[0; 8]);
            format!("{}\n{}\n", hexadecimal(&component), hexadecimal(&kcv[..3]))
        });
        self.load_typed(name, "3des-double", &typed.concat());
        let [first, second] = components;
        // Odd parity, which a ceremony sets.
        let key: Vec<_> = first.iter().zip(second).map(|(a, b)| with_odd_parity(a ^ b)).collect();
        Tzpk::from_bytes(&key).unwrap()
    }

    /// Loads an AES-256 key from two components that a ceremony made, activates it, and returns it.
    pub fn load_aes(&self, name: &str) -> Vec<u8> {
        let made = self.well("make-components", ENOUGH, &["--algorithm", "aes-256"]);
        let components: Vec<Vec<&str>> = made.lines().take(2).map(|line| line.split(' ').skip(1).collect()).collect();
        let [first, second] = &components[..] else { panic!("{made}") };
        self.load_typed(name, "aes-256", &[first[0], first[1], second[0], second[1], ""].join("\n"));
        let byte = |text: &str, at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
        (0..32).map(|at| byte(first[0], at) ^ byte(second[0], at)).collect()
    }

    fn load_typed(&self, name: &str, algorithm: &str, typed: &str) {
        let loaded = self.with_input("load", ENOUGH, &[name, "--algorithm", algorithm], typed);
        assert!(loaded.status.success(), "{}", said(&loaded));
        self.well("activate", ENOUGH, &[&format!("{name}/1")]);
    }

    pub fn transcript(&self) -> String {
        fs::read_to_string(self.at("transcript.jsonl")).unwrap()
    }

    pub fn verify(&self, arguments: &[&str]) -> Output {
        pinseal().args(["ceremony", "verify"]).arg(self.at("transcript.jsonl")).args(arguments).output().unwrap()
    }

    pub fn keys(&self) -> String {
        let mut list = pinseal();
        list.envs(self.environment.clone()).args(["ceremony", "list", "--config"]).arg(self.at("engine.toml"));
        let listed = list.output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    }
}

fn with_odd_parity(byte: u8) -> u8 {
    (byte & 0xFE) | u8::from((byte & 0xFE).count_ones().is_multiple_of(2))
}

/// The built program.
pub fn pinseal() -> Command {
    Command::new(crate::pinseal_path())
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A terminal with a scrollback, with a shell in it.
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    pub fn open(directory: &Path) -> Self {
        let terminal = Self { socket: directory.join("tmux.socket") };
        let opened = terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "160", "-y", "30", "sh"]);
        assert!(opened.status.success(), "{}", said(&opened));
        terminal
    }

    pub fn tmux(&self, arguments: &[&str]) -> Output {
        let tmux = Command::new("tmux").arg("-S").arg(&self.socket).args(arguments).output();
        tmux.expect("tmux is missing: install it (Debian: tmux)")
    }

    pub fn types(&self, text: &str) {
        assert!(self.tmux(&["send-keys", "-l", text]).status.success());
        assert!(self.tmux(&["send-keys", "Enter"]).status.success());
    }

    /// The text on the screen and in the scrollback.
    pub fn shows(&self) -> String {
        String::from_utf8(self.tmux(&["capture-pane", "-p", "-J", "-S", "-"]).stdout).unwrap()
    }

    pub fn until(&self, text: &str) -> String {
        for _ in 0..2_000 {
            let shown = self.shows();
            if shown.contains(text) {
                return shown;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("no {text:?}: {}", self.shows());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}
