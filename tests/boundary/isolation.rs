//! The boundary's process: failures and restarts, confinement, and an engine without clear values.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use device::Device;
use futures::future::join_all;
use proto::Scope;
use tonic::Code;

use support::{
    engine_process::{Client, EngineProcess, device, status_of},
    hsm_process::{HsmProcess, create_vault},
    known::Known,
    real_token::{Make, RealToken},
    wait::{signal, soon, stop},
};

const KILLS: u32 = 50;
const CLIENTS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_boundary_kills_under_load_lose_no_acknowledged_pin() {
    let directory = tempfile::tempdir().unwrap();
    let lines = "[control]\nlifetime_seconds = 3600\nper_card_per_hour_max = 1000000\n[limits]\ncalls_per_card_per_minute = 1000000";
    let engine = EngineProcess::start_quiet(directory.path(), lines);
    let (device, known) = (Arc::new(device()), Arc::new(Mutex::new(Known::default())));
    let done = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    for number in 0..CLIENTS {
        let client = engine.client().await;
        load.push(tokio::spawn(set_pins(client, Arc::clone(&device), Arc::clone(&known), number, Arc::clone(&done))));
    }
    let acknowledged = || known.lock().unwrap().acknowledged();
    let mut away = Vec::new();
    for kill in 0..KILLS {
        // Some PINs are acknowledged between two kills, so that each kill meets calls in flight.
        let enough = acknowledged() + 8;
        soon("no PIN is set again", async || (acknowledged() >= enough).then_some(())).await;
        // Some processes are killed as soon as they serve. Not all: a process that ends within 100 ms of its start
        // counts as one that cannot serve, and the pause before the next one doubles.
        let served = if kill % 5 == 0 { 0 } else { 100_000 };
        tokio::time::sleep(Duration::from_micros(served + u64::from(kill) * 7_919 % 5_000)).await;
        let killed = engine.hsm_id().unwrap();
        signal(killed, "KILL");
        let (began, before) = (Instant::now(), acknowledged());
        soon("it was not started again", async || engine.hsm_id().filter(|id| *id != killed)).await;
        soon("it does not serve", async || (acknowledged() > before + 1).then_some(())).await;
        away.push(began.elapsed());
    }
    done.store(true, Ordering::Relaxed);
    join_all(load).await.into_iter().for_each(|client| client.unwrap());

    let known = std::mem::take(&mut *known.lock().unwrap());
    let mut client = engine.client().await;
    known.assert_kept(&mut client, &device).await;
    away.sort();
    let printed = format!(
        "{KILLS} kills, {} PINs acknowledged; away for {:?} in the middle, {:?} at most\n",
        known.acknowledged(),
        away[away.len() / 2],
        away.last().unwrap(),
    );
    std::io::stdout().write_all(printed.as_bytes()).unwrap();
}

/// Sets one PIN after another; repeats a call while the boundary does not answer.
async fn set_pins(
    mut client: Client,
    device: Arc<Device>,
    known: Arc<Mutex<Known>>,
    number: u32,
    done: Arc<AtomicBool>,
) {
    let away = |status: &tonic::Status| assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for round in 0u32.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let card = format!("{}", 7_000 + number * 100 + round % 10);
        let pin = format!("{:05}9", (number * 5_003 + round * 13) % 100_000);
        let ready = client.ready_to_set(&device, &card, &pin).await;
        let (control, block) = match ready {
            Ok(ready) => ready,
            Err(status) => {
                away(&status);
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        let outcome = client.set_block(&control, &block).await;
        if let Err(status) = known.lock().unwrap().note((card, pin), (control, [7; 8]), outcome) {
            away(&status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_boundary_is_killed_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let hung = engine.hsm_id().unwrap();
    stop(hung);
    let control = client.open("7100", Scope::SetPin).await.unwrap().control_id;
    assert_eq!(client.tzpk(&control, &device).await.unwrap_err().code(), Code::Unavailable);
    soon("it is not back", async || client.tzpk(&control, &device).await.ok()).await;
    assert_ne!(engine.hsm_id().unwrap(), hung);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_the_process_group_lets_open_calls_finish() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client, hsm) = (device(), engine.client().await, engine.hsm_id().unwrap());
    for name in ["TERM", "INT", "HUP"] {
        signal(hsm, name);
        client.set(&device, "7200", "271828").await.unwrap();
    }
    assert_eq!(engine.hsm_id(), Some(hsm));
    assert_eq!(engine.terminate(), 0);
    soon("it lives on", async || (!Path::new(&format!("/proc/{hsm}")).exists()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_ends_with_its_engine_however_that_ends() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let hsm = engine.hsm_id().unwrap();
    engine.kill();
    soon("it lives on", async || (!std::path::Path::new(&format!("/proc/{hsm}")).exists()).then_some(())).await;
}

#[test]
fn the_confined_process_has_another_user_and_a_filter() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let hsm = engine.hsm_id().unwrap();
    assert_eq!(status_of(hsm, "NoNewPrivs:"), "1");
    assert_eq!(status_of(hsm, "Seccomp:"), "2");
    assert_ne!(status_of(hsm, "Uid:"), "0");
}

#[test]
fn engine_and_boundary_use_no_transparent_huge_pages() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    for process in [engine.id(), engine.hsm_id().unwrap()] {
        assert_eq!(status_of(process, "THP_enabled:"), "0");
    }
}

#[test]
fn the_audit_chain_names_the_isolation_beside_the_level() {
    for isolation in ["process", "inline"] {
        let expected = format!("\"level\":\"host\",\"token\":\"software\",\"isolation\":\"{isolation}\"");
        let directory = tempfile::tempdir().unwrap();
        let engine = EngineProcess::start(directory.path(), &format!("[boundary]\nisolation = \"{isolation}\""));
        assert_eq!(engine.terminate(), 0);
        let store = directory.path().join("data/store");
        let mut audit = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        let lines = audit.args(["audit", "export", "--store"]).arg(store).output().unwrap().stdout;
        let lines = String::from_utf8(lines).unwrap();
        assert!(!lines.is_empty() && lines.lines().all(|line| line.contains(&expected)), "{lines}");
    }
}

/// The report of `--try-escape`: which attempts failed, and which succeeded.
fn escape(mut pinseal: Command, config: &Path) -> (bool, Vec<String>, Vec<String>, String) {
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("a-users-file");
    std::fs::write(&file, "mine").unwrap();
    let tried = pinseal.args(["hsm", "--config"]).arg(config).arg("--try-escape").arg(file).output().unwrap();
    let printed = String::from_utf8([tried.stdout, tried.stderr].concat()).unwrap();
    let lines = |with: &str| {
        printed
            .lines()
            .filter_map(|line| line.strip_prefix(with))
            .map(|line| line.trim().to_owned())
            .collect::<Vec<_>>()
    };
    (tried.status.success(), lines("refused"), lines("LET THROUGH"), printed)
}

const ATTEMPTS: [&str; 16] = [
    "send by UDP",
    "connect by TCP",
    "connect by MPTCP",
    "send by TCP Fast Open",
    "open a Unix datagram socket",
    "change a user's file's mode",
    "limit its parent",
    "change its own limits",
    "read a user's file",
    "write a user's file",
    "make a file",
    "start a program",
    "trace its parent",
    "signal its parent",
    "become root",
    "become another program",
];

#[test]
fn a_vault_process_reaches_nothing_outside() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("hsm.toml");
    let data = directory.path().join("data");
    let write = |boundary: &str| {
        std::fs::write(&config, format!("data_directory = {data:?}\n[boundary]\n{boundary}\n")).unwrap();
    };
    let pinseal = || Command::new(env!("CARGO_BIN_EXE_pinseal"));
    write("");
    create_vault(&pinseal(), &config);
    let (well, refused, let_through, printed) = escape(pinseal(), &config);
    assert!(well && let_through.is_empty(), "{printed}");
    for attempt in ATTEMPTS.iter().chain(&["connect to a Unix socket", "start a thread"]) {
        assert!(refused.iter().any(|line| line.starts_with(attempt)), "{attempt}: {printed}");
    }
    // Either of the two holds the files by itself.
    for waived in ["waive = [\"landlock\"]", "waive = [\"seccomp\"]"] {
        write(waived);
        let (_, refused, _, printed) = escape(pinseal(), &config);
        assert!(refused.iter().any(|line| line.starts_with("read a user's file")), "{waived}: {printed}");
    }
    // The attempts are real: where every step is waived, each attempt succeeds.
    write("waive = [\"user\", \"landlock\", \"seccomp\"]");
    let (well, refused, let_through, printed) = escape(pinseal(), &config);
    assert!(!well && refused.is_empty() && let_through.len() == ATTEMPTS.len() + 1, "{printed}");
}

#[test]
fn each_token_process_reaches_no_network_foreign_file_or_program() {
    for make in [Make::SoftHsm, Make::Nss, Make::OpenCryptoki] {
        let token = RealToken::with_keys(make);
        let config = token.write_config(&token.lines());
        // Under a shell: in openCryptoki's namespaces the program would be the first process, which has no parent.
        let mut under_a_shell = token.beside("sh");
        under_a_shell.args(["-c", "\"$0\" \"$@\"; exit $?", env!("CARGO_BIN_EXE_pinseal")]);
        let (well, refused, let_through, printed) = escape(under_a_shell, &config);
        assert!(well && let_through.is_empty(), "{printed}");
        let no_daemon = (make != Make::OpenCryptoki).then_some("connect to a Unix socket");
        for attempt in ATTEMPTS.into_iter().chain(no_daemon) {
            assert!(refused.iter().any(|line| line.starts_with(attempt)), "{attempt}: {printed}");
        }
    }
}

#[test]
fn a_network_token_is_reached_by_its_port_alone() {
    let token = RealToken::with_keys(Make::SoftHsm);
    let with = |ports: &str| token.lines().replace("\npaths", &format!("\nports = {ports}\npaths"));
    // 9 is the port that the attempt tries; nobody listens there.
    let config = token.write_config(&with("[9]"));
    let (_, _, let_through, printed) = escape(token.beside(env!("CARGO_BIN_EXE_pinseal")), &config);
    assert!(let_through.iter().any(|line| line.starts_with("connect by TCP (Connection refused")), "{printed}");
    assert_eq!(let_through.len(), 1, "{printed}");
    let config = token.write_config(&with("[1792]"));
    let (_, refused, _, printed) = escape(token.beside(env!("CARGO_BIN_EXE_pinseal")), &config);
    assert!(refused.iter().any(|line| line.starts_with("connect by TCP")), "{printed}");
}

/// The attempts that the hostile module recorded. All must be refused, except these.
fn assert_held(token: &RealToken, stage: &str, but: &[&str]) {
    let printed = std::fs::read_to_string(token.escape_place().join(format!("tried-{stage}"))).unwrap();
    let let_through: Vec<_> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("LET THROUGH "))
        .filter(|line| !but.iter().any(|but| line.starts_with(but)))
        .collect();
    assert!(let_through.is_empty() && printed.lines().count() > 35, "{stage}: {printed}");
}

/// Starts an engine with a hostile module and an inherited descriptor, sets a PIN, and waits for the module's report.
async fn play_with_a_hostile_module(lines: &str, but: &[&str]) {
    let (token, directory) = (RealToken::behind_the_shim(Make::SoftHsm), tempfile::tempdir().unwrap());
    std::fs::create_dir(token.escape_place()).unwrap();
    let mut under_a_shell = token.beside("bash");
    under_a_shell.args(["-c", "exec 77</etc/hostname; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_pinseal")]);
    let lines = token.lines().replace("\npaths", &format!("\n{lines}\npaths"));
    let engine = EngineProcess::start_with(under_a_shell, "127.0.0.1:0", directory.path(), &lines);
    assert_held(&token, "loading", but);
    let (device, mut client) = (device(), engine.client().await);
    std::fs::write(token.escape_place().join("serving"), "").unwrap();
    client.set(&device, "7500", "271828").await.unwrap();
    // SECURITY.md states that this is not protected.
    assert_held(&token, "serving", &[but, &["map code that it wrote"]].concat());
    assert_eq!(client.view(&device, "7500").await.unwrap(), "271828");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_module_is_held_from_its_loading_on() {
    play_with_a_hostile_module("", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_module_reaches_only_its_listed_ports() {
    play_with_a_hostile_module("ports = [1792]", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_module_with_ipc_gets_no_more_than_listed() {
    // A connection to a network fails because the process cannot make a socket.
    let listed = ["open a Unix stream socket", "make shared memory", "connect to a port that is not listed"];
    play_with_a_hostile_module("ipc = [\"unix-socket\", \"shared-memory\"]", &listed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_module_that_was_lost_is_initialised_again() {
    for make in [Make::Nss, Make::OpenCryptoki] {
        let (token, directory) = (RealToken::behind_the_shim(make), tempfile::tempdir().unwrap());
        let engine = EngineProcess::start_on(directory.path(), &token);
        let (device, mut client) = (device(), engine.client().await);
        let before = engine.hsm_id();
        client.set(&device, "7510", "271828").await.unwrap();
        token.command(Some("5"));
        soon("it is not lost", async || (!engine.serves().await).then_some(())).await;
        token.command(None);
        soon("it is not found", async || engine.serves().await.then_some(())).await;
        assert_eq!(client.view(&device, "7510").await.unwrap(), "271828");
        assert_eq!(engine.hsm_id(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_module_with_a_refused_pin_is_not_restarted() {
    let (token, directory) = (RealToken::behind_the_shim(Make::SoftHsm), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &token);
    token.answer_logins(Some("a3"));
    token.forget_trace();
    // CKR_DEVICE_REMOVED.
    token.command(Some("32"));
    soon("it is not lost", async || (!engine.serves().await).then_some(())).await;
    token.command(None);
    soon("its supervisor is not aware", async || engine.log().contains("the token refused the user PIN").then_some(()))
        .await;
    signal(engine.hsm_id().unwrap(), "KILL");
    soon("its end is not seen", async || engine.log().contains("process is lost").then_some(())).await;
    // Enough time for six attempts of the supervisor.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(token.logins(), 1);
    assert!(!engine.serves().await);

    token.answer_logins(None);
    signal(engine.id(), "HUP");
    soon("it is not started", async || engine.serves().await.then_some(())).await;
}

#[test]
fn its_own_user_cannot_trace_or_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let as_its_user = |process: u32| {
        let mut cat = Command::new("setpriv");
        cat.args(["--reuid", "65500", "--regid", "65500", "--clear-groups", "cat"])
            .arg(format!("/proc/{process}/maps"));
        cat.output().unwrap()
    };
    let printed = as_its_user(engine.hsm_id().unwrap());
    let error = String::from_utf8_lossy(&printed.stderr);
    assert!(!printed.status.success() && error.contains("Permission denied"), "{error}");
    // The same user can read another process.
    let mut other = Command::new("setpriv");
    let mut other =
        other.args(["--reuid", "65500", "--regid", "65500", "--clear-groups", "sleep", "60"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let printed = as_its_user(other.id());
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
}

/// A program run as this user.
fn as_user(user: u32, groups: &str, program: &str) -> Command {
    let mut setpriv = Command::new("setpriv");
    setpriv
        .arg("--reuid")
        .arg(user.to_string())
        .arg("--regid")
        .arg(user.to_string())
        .args(["--groups", groups, program]);
    setpriv
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_and_boundary_each_verify_the_user_of_the_other() {
    let pinseal = env!("CARGO_BIN_EXE_pinseal");
    let (of_hsm, of_engine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owned = |directory: &tempfile::TempDir, user: u32, group: u32| {
        std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
    };
    owned(&of_hsm, 65_501, 65_501);
    owned(&of_engine, 65_502, 65_502);
    let hsm = HsmProcess::start_with(
        as_user(65_501, "65501", pinseal),
        of_hsm.path(),
        "lock_memory = \"try\"\nengine_user = 65502",
    );
    let lines = |user: u32| format!("[boundary]\nsocket = {:?}\nhsm_user = {user}", hsm.socket());

    let engine_as = |user: u32| as_user(user, "65501", pinseal);
    let engine = EngineProcess::start_with(engine_as(65_502), "127.0.0.1:0", of_engine.path(), &lines(65_501));
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "7400", "271828").await.unwrap();
    assert_eq!(client.view(&device, "7400").await.unwrap(), "271828");
    // The engine's user cannot read the vault's key file.
    let key = of_hsm.path().join("data/vault.key");
    let read = as_user(65_502, "65501", "cat").arg(key).output().unwrap();
    assert!(!read.status.success());
    drop(engine);

    let refused = |user: u32, expected: u32| {
        let config = std::env::temp_dir().join(format!("pinseal-refused-{user}-{expected}.toml"));
        let data = tempfile::tempdir().unwrap();
        owned(&data, user, user);
        let place = format!("listen = \"127.0.0.1:0\"\ndata_directory = {:?}", data.path());
        std::fs::write(&config, format!("{place}\n{}\n", lines(expected))).unwrap();
        std::os::unix::fs::chown(&config, Some(user), None).unwrap();
        let output = engine_as(user).args(["engine", "--config"]).arg(&config).output().unwrap();
        std::fs::remove_file(config).unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let printed = refused(65_502, 65_599);
    assert!(printed.contains("it is served by user 65501: boundary.hsm_user says 65599"), "{printed}");
    let printed = refused(65_503, 65_501);
    assert!(printed.contains("ended the connection before it served"), "{printed}");
    assert!(hsm.log().contains("a connection of another user was refused"), "{}", hsm.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_in_another_pid_namespace_serves_the_engine() {
    let (of_hsm, of_engine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut unshared = Command::new("unshare");
    unshared.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_pinseal")]);
    let user = rustix::process::getuid().as_raw();
    let lines = format!("engine_user = {user}\nwaive = [\"user\"]\nlock_memory = \"try\"");
    let hsm = HsmProcess::start_with(unshared, of_hsm.path(), &lines);
    let lines = format!("[boundary]\nsocket = {:?}\nhsm_user = {user}", hsm.socket());
    let engine = EngineProcess::start(of_engine.path(), &lines);
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "7410", "271828").await.unwrap();
    assert_eq!(client.view(&device, "7410").await.unwrap(), "271828");
}

#[test]
fn unlocked_memory_is_fatal_unless_waived() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65_501), None).unwrap();
    let config = directory.path().join("hsm.toml");
    let data = directory.path().join("data");
    std::fs::write(&config, format!("data_directory = {data:?}\n")).unwrap();
    create_vault(&as_user(65_501, "65501", env!("CARGO_BIN_EXE_pinseal")), &config);
    let tried = |boundary: &str| {
        std::fs::write(&config, format!("data_directory = {data:?}\n[boundary]\n{boundary}\n")).unwrap();
        let mut pinseal = Command::new("prlimit");
        pinseal.args(["--memlock=65536", "setpriv", "--reuid", "65501", "--clear-groups"]);
        pinseal.arg(env!("CARGO_BIN_EXE_pinseal"));
        escape(pinseal, &config)
    };
    let (well, _, _, printed) = tried("");
    assert!(!well && printed.contains("memory can't be locked (RLIMIT_MEMLOCK is 65536 bytes)"), "{printed}");
    let (well, _, _, printed) = tried("lock_memory = \"try\"");
    assert!(well, "{printed}");
}

#[test]
fn a_refused_confinement_step_is_fatal_unless_waived() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("engine.toml");
    let data = directory.path().join("data");
    let start = |lines: &str| {
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\n{lines}\n")).unwrap();
        let pinseal = env!("CARGO_BIN_EXE_pinseal");
        // Root without the capability to change its user.
        let mut timeout = Command::new("timeout");
        timeout.args(["5", "setpriv", "--bounding-set=-setuid", pinseal, "engine", "--config"]).arg(&config);
        let output = timeout.output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let refused = start("");
    assert!(refused.contains("can't become user"), "{refused}");
    let waived = start("[boundary]\nwaive = [\"user\"]");
    assert!(waived.contains("listens on"), "{waived}");
}
