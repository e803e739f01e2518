//! `pinseal export`, `import`, `translate` and `events` through cut connections, killed engines and killed commands.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use support::{
    ceremony::{pinseal, said},
    certificates::{certificates, channel_as, peer},
    engine_process::{Client, EngineProcess, device},
    zone_party::ZoneParty,
};

const ITEMS: u64 = 10_000;
const ACCOUNT: &str = "4716258093174820";
/// The first cards have a registered account number.
const REGISTERED: u64 = 300;

/// A TCP proxy in front of an engine, whose address changes with each start. Cuts each connection after a random number of
/// bytes to the client.
struct Proxy {
    port: u16,
    engine: Arc<Mutex<String>>,
    cuts: Arc<AtomicU64>,
}

impl Proxy {
    fn start(bytes_between_cuts: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (engine, cuts) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicU64::new(0)));
        let proxy = Self { port, engine: Arc::clone(&engine), cuts: Arc::clone(&cuts) };
        thread::spawn(move || {
            let mut random = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
            for client in listener.incoming().flatten() {
                let address = engine.lock().unwrap().clone();
                let Ok(server) = TcpStream::connect(address) else { continue };
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // A handshake of mutual TLS has less than 8 KiB.
                let limit = bytes_between_cuts.map_or(u64::MAX, |most| 8_192 + u64::from(random >> 8) % most);
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || copy(from, to, u64::MAX));
                let cuts = Arc::clone(&cuts);
                thread::spawn(move || cuts.fetch_add(u64::from(copy(server, client, limit)), Ordering::Relaxed));
            }
        });
        proxy
    }

    fn forward_to(&self, engine: &EngineProcess) {
        engine.address().clone_into(&mut self.engine.lock().unwrap());
    }
}

/// Copies until an end closes, or for so many bytes: then closes both. Returns whether it closed them.
fn copy(mut from: TcpStream, mut to: TcpStream, mut limit: u64) -> bool {
    let mut bytes = [0; 1_024];
    while limit > 0 {
        let most = bytes.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        match from.read(&mut bytes[..most]) {
            Ok(0) | Err(_) => break,
            Ok(read) if to.write_all(&bytes[..read]).is_err() => break,
            Ok(read) => limit -= read as u64,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    limit == 0
}

/// Files of a run through a proxy with mutual TLS.
struct Run<'a> {
    party: &'a ZoneParty,
    proxy: Proxy,
    lines: String,
}

impl<'a> Run<'a> {
    fn new(party: &'a ZoneParty) -> Self {
        let (tls, _) = certificates(party.directory());
        let lines = format!("{tls}\n{}", peer("client", "\"zone-set\", \"card-system\", \"authorization-host\""));
        Self { party, proxy: Proxy::start(Some(40_000)), lines }
    }

    fn start_engine(&self) -> EngineProcess {
        let engine = self.party.start_quiet(&self.lines);
        self.proxy.forward_to(&engine);
        engine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.party.directory().join(name)
    }

    fn command(&self, command: &str, input: &str, output: &str, more: &[&str]) -> Command {
        let mut started = pinseal();
        let pki = self.at("pki");
        started.args([command, "--engine", &format!("https://localhost:{}", self.proxy.port), "--tenant", "bank"]);
        started.args(["--zone", "app"]).args(more);
        for (option, file) in [
            ("--engine-roots", pki.join("ca.pem")),
            ("--engine-certificates", pki.join("client.pem")),
            ("--engine-private-key", pki.join("client.key")),
            ("--input", self.at(input)),
            ("--output", self.at(output)),
        ] {
            started.arg(option).arg(file);
        }
        started
    }

    /// The lines of an output after its first line, without a line that is not whole.
    fn outcomes(&self, output: &str) -> Vec<String> {
        let text = fs::read_to_string(self.at(output)).unwrap_or_default();
        text.split_inclusive('\n').skip(1).filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// Runs a command to its end while the engine and the command are killed in turn. Returns the exit code.
    fn run_with_kills(
        &self,
        engine: EngineProcess,
        command: impl Fn() -> Command,
        output: &str,
    ) -> (EngineProcess, i32) {
        const KILLS: u64 = 4;
        let mut engine = engine;
        let mut running = Running::start(command());
        for kill in 1..=KILLS {
            let until = usize::try_from(ITEMS * kill / (KILLS + 1)).unwrap();
            while self.outcomes(output).len() < until && running.0.try_wait().unwrap().is_none() {
                thread::sleep(Duration::from_millis(2));
            }
            assert!(self.outcomes(output).len() < usize::try_from(ITEMS).unwrap(), "the run ended before kill {kill}");
            if kill % 2 == 0 {
                drop(running);
                running = Running::start(command());
            } else {
                engine.kill();
                engine = self.start_engine();
            }
        }
        let code = running.0.wait().unwrap().code().unwrap();
        (engine, code)
    }
}

/// A running command; killed when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn write_lines(path: &Path, lines: impl Iterator<Item = String>) {
    fs::write(path, lines.map(|line| line + "\n").collect::<String>()).unwrap();
}

fn card(number: u64) -> String {
    // As many digits as an account number: they bind the blocks.
    (4_716_000_000_560_000 + number).to_string()
}

fn pin(number: u64) -> String {
    format!("5{number:04}7")
}

/// The number of entries of the audit chain with this action that were done.
fn audited(party: &ZoneParty, action: &str) -> u64 {
    let exported = pinseal().args(["audit", "export", "--store"]).arg(party.directory().join("data/store")).output();
    let exported = String::from_utf8(exported.unwrap().stdout).unwrap();
    let entries = exported.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    entries.filter(|entry| entry["event"]["action"] == action && entry["outcome"] == "done").count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn files_survive_cuts_and_kills_without_an_item_lost_or_doubled() {
    let party = ZoneParty::prepared();
    let run = Run::new(&party);
    let engine = run.start_engine();
    let hex = |block: &[u8]| block.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let block = |number| hex(&party.block(&pin(number)).pin_block);
    write_lines(&run.at("blocks"), (0..ITEMS).map(|number| format!("{},{}", card(number), block(number))));

    let mut cards = Client::over(channel_as("client", party.directory(), &engine));
    for number in 0..REGISTERED {
        cards.register(&card(number), ACCOUNT).await.unwrap();
    }
    drop(cards);

    let import = || run.command("import", "blocks", "set", &["--format", "iso-1"]);
    let (engine, code) = run.run_with_kills(engine, import, "set");
    assert_eq!(code, 0);
    let set = run.outcomes("set");
    assert_eq!(set.len() as u64, ITEMS);
    for (number, line) in (0..).zip(&set) {
        // An item whose outcome was lost was sent again.
        let expected = [format!("{},set,", card(number)), format!("{},unchanged,", card(number))];
        assert!(expected.contains(line), "{line}");
    }

    // The last card has no PIN.
    write_lines(&run.at("cards"), (0..=ITEMS).map(card));
    let export = || run.command("export", "cards", "exported", &["--format", "iso-0"]);
    let (engine, code) = run.run_with_kills(engine, export, "exported");
    assert_eq!(code, 3, "an item failed");
    let mut exported = run.outcomes("exported");
    assert_eq!(exported.pop().unwrap(), format!("{},,PIN_NOT_SET", card(ITEMS)));
    assert_eq!(exported.len() as u64, ITEMS);
    let byte = |text: &str, at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    let opened = |line: &str, number: u64| {
        let (plastic, rest) = line.split_once(',').unwrap();
        assert_eq!(plastic, card(number));
        let block: Vec<u8> = (0..8).map(|at| byte(rest, at)).collect();
        // Without a registered account number the digits of the plasticId bind the block.
        party.decrypted_bound(&block, if number < REGISTERED { ACCOUNT } else { plastic })
    };
    (0..).zip(&exported).for_each(|(number, line)| assert_eq!(opened(line, number), pin(number)));

    // The lines of an export are the input of a translation.
    write_lines(&run.at("registered"), (0..REGISTERED).zip(&exported).map(|(_, line)| line.clone()));
    let zones = ["--format", "iso-0", "--to-zone", "app", "--to-format", "iso-3"];
    let translated = run.command("translate", "registered", "translated", &zones).output().unwrap();
    assert!(translated.status.success(), "{}", said(&translated));
    let translated = run.outcomes("translated");
    assert_eq!(translated.len() as u64, REGISTERED);
    (0..).zip(&translated).for_each(|(number, line)| assert_eq!(opened(line, number), pin(number)));
    assert!(run.proxy.cuts.load(Ordering::Relaxed) > 0, "the proxy cut no connection");

    // A run that is complete adds nothing, and reports the same.
    let again = export().output().unwrap();
    assert_eq!((again.status.code(), said(&again).contains("1 items failed")), (Some(3), true), "{}", said(&again));
    assert_eq!(run.outcomes("exported").len() as u64, ITEMS + 1);

    assert_eq!(engine.terminate(), 0);
    assert_eq!(audited(&party, "set_pin_by_zone"), ITEMS, "a PIN was set twice, or not at all");
    assert!(audited(&party, "export_pin") >= ITEMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_continue_names_the_reason_and_sends_nothing() {
    let party = ZoneParty::prepared();
    let run = Run::new(&party);
    let engine = run.start_engine();
    write_lines(&run.at("cards"), (0..3).map(card));
    let refused = |mut command: Command| {
        let output = command.args(["--retry-seconds", "1"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        said(&output)
    };
    fs::write(run.at("wrong"), "4000\nx\n").unwrap();
    assert!(refused(run.command("export", "wrong", "out", &[])).contains("line 2 is not an item"));
    assert!(!run.at("out").exists());
    fs::write(run.at("out"), "# pinseal export: other\n").unwrap();
    assert!(refused(run.command("export", "cards", "out", &[])).contains("give another --output"));
    fs::remove_file(run.at("out")).unwrap();
    let mut other = run.command("export", "cards", "out", &[]);
    other.args(["--audit-user", "\u{7}"]);
    assert_eq!(other.output().unwrap().status.code(), Some(2));
    engine.kill();
    let error = refused(run.command("export", "cards", "out", &[]));
    assert!(error.contains("the engine is not available"), "{error}");
    assert!(run.outcomes("out").is_empty());
}

/// The next lines of `pinseal events follow` as JSON.
fn next(lines: &mut impl Iterator<Item = io::Result<String>>, count: usize) -> Vec<serde_json::Value> {
    lines.take(count).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_through_a_restart_and_resumed() {
    let party = ZoneParty::prepared();
    let proxy = Proxy::start(None);
    let engine = party.start_quiet("");
    proxy.forward_to(&engine);
    let follow = |after: u64| {
        let mut command = pinseal();
        command.args(["events", "follow", "--engine", &format!("127.0.0.1:{}", proxy.port), "--tenant", "bank"]);
        let child = command.args(["--after", &after.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let mut running = Running(child);
        let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        (running, lines)
    };
    let mut client = engine.client().await;
    client.register("345678901234", ACCOUNT).await.unwrap();
    client.set_by_zone("345678901234", &party.block("31415")).await.unwrap();
    let (_first, mut lines) = follow(0);
    let mut events = next(&mut lines, 1);
    client.verify("345678901234", &party.block("31416")).await.unwrap();
    events.extend(next(&mut lines, 1));
    engine.kill();
    let engine = party.start_quiet("");
    proxy.forward_to(&engine);
    let mut client = engine.client().await;
    client.set(&device(), "345678901234", "27182").await.unwrap();
    events.extend(next(&mut lines, 1));
    let kinds: Vec<_> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["set_from_zone", "verified_wrong", "set"]);
    assert_eq!((&events[0]["key"], &events[0]["card"]), (&"zone:app".into(), &"471625******4820".into()));
    assert_eq!((&events[1]["remaining_tries"], &events[2]["remaining_tries"]), (&2.into(), &serde_json::Value::Null));
    for event in &events {
        let text = event.to_string();
        assert!(!text.contains(ACCOUNT) && !text.contains("345678901234"), "{text}");
    }
    let (_second, mut lines) = follow(events[0]["sequence"].as_u64().unwrap());
    assert_eq!(next(&mut lines, 2), events[1..]);
}
