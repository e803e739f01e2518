//! The keys in a PKCS#11 token: SoftHSM at level `host`, NSS softokn at level `token`.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use device::{Fill, Pin};
use proto::{
    ChangePinRequest, DeriveVerificationValueRequest, ExportPinRequest, GeneratePinRequest, Ibm3624Key, PvkPair, Scope,
    TranslatePinBlockRequest, TranslationItem, ValueMethod, ZoneBlock, ZoneFormat, ZonePinChange, change_pin_request,
    value_method::Algorithm,
};
use serde_json::Value;

use support::{
    ceremony::{ALL, Ceremony, ENOUGH},
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{AUDIT_USER, EngineProcess, TENANT, device, reason},
    java,
    real_token::{Make, RealToken},
    zone_party::zone,
};

#[tokio::test(flavor = "multi_thread")]
async fn pins_and_controls_survive_a_restart_on_a_token() {
    let (softhsm, directory) = (RealToken::with_keys(Make::SoftHsm), tempfile::tempdir().unwrap());
    let start = || EngineProcess::start_on(directory.path(), &softhsm);
    let device = device();

    let engine = start();
    let mut client = engine.client().await;
    client.set(&device, "8100", "271828").await.unwrap();
    assert_eq!(client.view(&device, "8100").await.unwrap(), "271828");
    let (control, block) = client.ready_to_set(&device, "8101", "161803").await.unwrap();
    engine.kill();

    let engine = start();
    let mut client = engine.client().await;
    client.set_block(&control, &block).await.unwrap();
    assert_eq!(client.view(&device, "8100").await.unwrap(), "271828");
    assert_eq!(client.view(&device, "8101").await.unwrap(), "161803");
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_distinguishes_a_malformed_block_from_a_weak_pin() {
    let (softhsm, directory) = (RealToken::with_keys(Make::SoftHsm), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &softhsm);
    let (device, mut client) = (device(), engine.client().await);
    let weak = client.set(&device, "8110", "1111").await.unwrap_err();
    assert_eq!(reason(&weak), "PIN_REFUSED");
    let mut malformed = 0;
    // One changed block in two hundred decrypts to another PIN: of three, one at least does not.
    for change in [0x55, 0x33, 0x0F] {
        let (control, mut block) = client.ready_to_set(&device, "8111", "271828").await.unwrap();
        block[7] ^= change;
        let answer = client.set_block(&control, &block).await;
        malformed += usize::from(answer.is_err_and(|status| reason(&status) == "PIN_BLOCK_MALFORMED"));
    }
    assert!(malformed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_token_reports_unavailable_then_reconnects_without_loss() {
    let (softhsm, directory) = (RealToken::behind_the_shim(Make::SoftHsm), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &softhsm);
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "8120", "271828").await.unwrap();
    assert!(engine.serves().await);

    // Device removed, session handle invalid, user not logged in, general error.
    for failure in ["32", "b3", "101", "5"] {
        let (control, block) = client.ready_to_set(&device, "8121", "161803").await.unwrap();
        softhsm.command(Some(failure));
        let lost = client.set_block(&control, &block).await.unwrap_err();
        assert_eq!((lost.code(), &*reason(&lost)), (tonic::Code::Unavailable, "TOKEN_UNAVAILABLE"));
        comes_to_hold(async || !engine.serves().await).await;

        softhsm.command(None);
        comes_to_hold(async || engine.serves().await).await;
        client.set_block(&control, &block).await.unwrap();
        assert_eq!(client.view(&device, "8120").await.unwrap(), "271828");
        assert_eq!(client.view(&device, "8121").await.unwrap(), "161803");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_process_killed_under_load_reconnects_without_loss() {
    let (token, directory) = (RealToken::over_a_socket(), tempfile::tempdir().unwrap());
    let process = token.serve();
    let (made, printed) = token.token(&["make-keys"], &token.lines());
    assert!(made && printed.contains("seal-encrypting"), "{printed}");
    let engine = EngineProcess::start_on(directory.path(), &token);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (mut client, stop) = (engine.client().await, Arc::clone(&stop));
        clients.spawn(async move {
            let (device, mut acknowledged, mut refused) = (device(), Vec::new(), 0);
            for flow in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (card, pin) = (format!("83{number}{flow:05}"), format!("27{:04}", flow * 7 % 10_000));
                match client.set(&device, &card, &pin).await {
                    Ok(()) => acknowledged.push((card, pin)),
                    Err(status) => {
                        assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
            (acknowledged, refused)
        });
    }
    let mut process = Some(process);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        drop(process.take());
        comes_to_hold(async || !engine.serves().await).await;
        process = Some(token.serve());
        comes_to_hold(async || engine.serves().await).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut client, device) = (engine.client().await, device());
    while let Some(played) = clients.join_next().await {
        let (acknowledged, refused) = played.unwrap();
        assert!(!acknowledged.is_empty() && refused > 0, "{} set, {refused} refused", acknowledged.len());
        for (card, pin) in acknowledged {
            assert_eq!(client.view(&device, &card).await.unwrap(), pin);
        }
    }
}

/// Sets some PINs, adds a newer version of the storage key, reloads the engine's keys, and waits until
/// every PIN is re-encrypted under it and can be viewed.
async fn rotates(token: &RealToken, directory: &Path, newer: impl FnOnce(&str), keys: [&str; 2]) {
    let device = device();
    let cards: Vec<_> =
        (0..24).map(|number| (format!("84{number:04}"), format!("27{:04}", number * 613 + 7))).collect();
    let engine = EngineProcess::start_on(directory, token);
    let mut client = engine.client().await;
    for (card, pin) in &cards {
        client.set(&device, card, pin).await.unwrap();
    }
    newer(engine.address());
    support::wait::signal(engine.id(), "HUP");
    let done = "rotation: every PIN record is under the newest storage key";
    support::wait::soon("the rotation did not end", async || engine.log().contains(done).then_some(())).await;
    let mut client = engine.client().await;
    for (card, pin) in &cards {
        assert_eq!(client.view(&device, card).await.unwrap(), *pin);
    }
    client.set(&device, "849999", "271828").await.unwrap();
    assert_eq!(client.view(&device, "849999").await.unwrap(), "271828");
    assert_eq!(engine.terminate(), 0);

    let mut pinseal = std::process::Command::new(env!("CARGO_BIN_EXE_pinseal"));
    let exported = pinseal.args(["audit", "export", "--store"]).arg(directory.join("data/store")).output().unwrap();
    let lines = String::from_utf8(exported.stdout).unwrap();
    let last = lines.lines().last().unwrap();
    assert!(keys.iter().all(|key| last.contains(key)), "{last}");
    assert!(lines.contains("\"checked\":24,\"failed\":0"), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_key_rotates_in_softhsm_by_a_ceremony() {
    let token = RealToken::with_keys(Make::SoftHsm);
    let ceremony = Ceremony::prepared_on(&token);
    let newer = |engine: &str| {
        ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
        // A step that is killed before the inventory lists the key leaves such a key: only a person can know that it is
        // unused.
        token.import_aes_key("pinseal storage", "730002");
        let refused = ceremony.refused("make", ENOUGH, &["storage"]);
        assert!(refused.contains("\"pinseal storage\" and the id 0002 that its inventory does not list"), "{refused}");
        token.destroy("pinseal storage", "730002");
        ceremony.well("make", ENOUGH, &["storage"]);
        ceremony.well("activate", ENOUGH, &["storage/2"]);
        let refused = ceremony.refused("retire", ENOUGH, &["storage/1", "--engine", engine]);
        assert!(refused.contains("does not have storage/2 in use"), "{refused}");
        let (made, printed) = token.token(&["make-keys"], &token.lines());
        assert!(!made && printed.contains("in the custody of a roster"), "{printed}");
    };
    rotates(&token, ceremony.directory(), newer, ["storage/1:", "storage/2:"]).await;
    ceremony.well("retire", ENOUGH, &["storage/1"]);
    let listed = ceremony.keys();
    let printed = listed.lines().find(|line| line.starts_with("storage/1")).unwrap();
    ceremony.refused("destroy", ENOUGH, &["storage/1", "--confirm", "storage/1", "--confirm-check-value", "none"]);
    let check_value = printed.split_whitespace().nth(2).unwrap();
    ceremony.well("destroy", ENOUGH, &["storage/1", "--confirm", "storage/1", "--confirm-check-value", check_value]);
    let engine = EngineProcess::start_on(ceremony.directory(), &token);
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_key_rotates_in_nss_without_a_clear_block() {
    let (token, directory) = (RealToken::with_keys(Make::Nss), tempfile::tempdir().unwrap());
    let both = |lines: &str| lines.replace("[token]\n", "[token]\nstorage_key_versions = [1, 2]\n");
    let newer = |_: &str| {
        let (made, printed) = token.token(&["make-keys"], &both(&token.lines()));
        assert!(made && printed.contains("storage-wrapped/2"), "{printed}");
        let config = directory.path().join("engine.toml");
        std::fs::write(&config, both(&std::fs::read_to_string(&config).unwrap())).unwrap();
    };
    rotates(&token, directory.path(), newer, ["storage-wrapped/1", "storage-wrapped/2"]).await;
}

#[test]
fn a_key_with_unsafe_attributes_does_not_enter_custody() {
    let token = RealToken::with_keys(Make::SoftHsm);
    token.import_aes_key("pinseal storage", "730002");
    let ceremony = Ceremony::prepared_on(&token);
    let roster = ceremony.at("roster.toml");
    let refused = ceremony.refused("begin", ALL, &["--roster", roster.to_str().unwrap()]);
    assert!(refused.contains("the key \"pinseal storage\" is unsafe"), "{refused}");
}

#[test]
fn a_token_without_data_objects_cannot_hold_a_ceremony() {
    let token = RealToken::without_keys(Make::Nss);
    let ceremony = Ceremony::prepared_on(&token);
    let roster = ceremony.at("roster.toml");
    let refused = ceremony.refused("begin", ALL, &["--roster", roster.to_str().unwrap()]);
    assert!(refused.contains("can't hold the inventory of a ceremony"), "{refused}");
}

/// Repeats the check until it holds: usually within five seconds; the limit is longer for a busy machine.
async fn comes_to_hold(holds: impl AsyncFn() -> bool) {
    let asked = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it did not come to hold");
}

/// Sets and views a PIN; returns the module's outputs during that, and the calls that returned a clear value.
async fn traced_flow(make: Make) -> (Vec<(String, String)>, Vec<String>) {
    const PIN: &str = "927182813";
    let at_level_host = !matches!(make, Make::Nss);
    let (token, directory) = (RealToken::behind_the_shim(make), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &token);
    let (device, mut client) = (device(), engine.client().await);
    token.forget_trace();

    let control = client.open("8130", Scope::SetPin).await.unwrap().control_id;
    let sent = client.tzpk(&control, &device).await.unwrap();
    let block = device.encrypt_pin(&sent, &Pin::parse(PIN).unwrap(), Fill::Random).unwrap();
    client.set_block(&control, &block).await.unwrap();
    let set_tzpk = device.decrypt_tzpk(&sent).unwrap();
    let (shown, sent) = client.view_encrypted(&device, "8130").await.unwrap();
    let view_tzpk = device.decrypt_tzpk(&sent).unwrap();
    assert_eq!(device.decrypt_pin(&sent, &shown).unwrap().reveal(), PIN);

    let mut clear = vec![PIN.to_owned()];
    for (tzpk, block) in [(set_tzpk, block), (view_tzpk, shown)] {
        clear.push(hexadecimal(&tzpk.decrypt_block(&block)));
        clear.extend(tzpk.as_bytes().chunks(8).map(hexadecimal));
    }
    let trace = token.trace();
    // At level host the boundary makes a tzpk from the token's random bytes and sets the parity. One half in 256 has the
    // right parity already, and leaves the token as a half of the key.
    let makes_tzpk = |call: &str| at_level_host && call == "C_GenerateRandom";
    let found =
        trace.iter().filter(|(call, out)| !makes_tzpk(call) && clear.iter().any(|clear| out.contains(clear.as_str())));
    let found = found.map(|(call, _)| call.clone()).collect();
    (trace, found)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_host_the_search_finds_clear_blocks() {
    let (trace, found) = traced_flow(Make::SoftHsm).await;
    // Set: the device's block. View: the stored one's PIN field.
    assert_eq!(found, ["C_Decrypt", "C_Decrypt"]);
    assert!(trace.iter().any(|(call, _)| call == "C_UnwrapKey"));
    assert!(trace.iter().all(|(call, _)| call != "C_GetAttributeValue(CKA_VALUE)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_token_no_clear_value_leaves_the_token() {
    let (trace, found) = traced_flow(Make::Nss).await;
    assert!(found.is_empty(), "{found:?}");
    let never = ["C_Decrypt", "C_DecryptInit", "C_GetAttributeValue", "C_GetAttributeValue(CKA_VALUE)"];
    assert!(trace.iter().all(|(call, _)| !never.contains(&call.as_str())));
    let count = |name: &str| trace.iter().filter(|(call, _)| call == name).count();
    // Set: the tzpk and the block. View: the stored block.
    assert_eq!(count("C_UnwrapKey"), 3);
    assert!(count("C_WrapKey") >= 5, "for the device twice, for ourselves, for the store, for the view");
}

/// Runs every operation of zones, verification and values at level `host`. Returns each with the calls during it that gave out
/// something clear.
async fn traced_operations() -> Vec<(&'static str, Vec<String>)> {
    /// 12 digits: no output has them by chance.
    const PINS: [&str; 2] = ["907856341290", "369258147036"];
    const ACCOUNT: &str = "4716258093174820";
    const OTHER_ACCOUNT: &str = "5329071846302915";
    const CARD: &str = "8131";
    const ZONES: &str = "[[zones]]\nname = \"app\"\ntenant = \"bank\"\nindex = 0\n\
                         formats = [\"iso-1\", \"iso-0\", \"iso-3\"]\n\
                         uses = [\"set-pin\", \"get-pin\", \"verify\", \"change\", \"export\", \"translate\"]\n\
                         [[zones]]\nname = \"host\"\ntenant = \"bank\"\nindex = 1\nformats = [\"iso-4\"]\n\
                         uses = [\"set-pin\", \"verify\", \"change\", \"export\", \"translate\"]\n\
                         [[verification.keys]]\nname = \"pvk:bank\"\ntenants = [\"bank\"]\n\
                         [[verification.keys]]\nname = \"ibm-3624:bank\"\ntenants = [\"bank\"]\n";
    let token = RealToken::behind_the_shim(Make::SoftHsm);
    let ceremony = Ceremony::prepared_on(&token);
    ceremony.begin();
    let key = ceremony.load_known("zone:app", 0x5B);
    ceremony.load_aes("zone:host");
    ceremony.load_known("pvk:bank:1", 0x6D);
    let ibm_3624 = ceremony.load_known("ibm-3624:bank:0123456789012345:5-15-f", 0x4E);
    let engine = EngineProcess::start_on_with(ceremony.directory(), &token, ZONES);
    let mut client = engine.client().await;
    let format_1 = |pin: &str| ZoneBlock {
        zone_key: Some(zone("app")),
        format: ZoneFormat::Iso1.into(),
        pin_block: key.encrypt_block(&Pin::parse(pin).unwrap().to_block(Fill::Random)).to_vec(),
    };
    // A block with the account number inside has other digits than the PIN, by the XOR with this field.
    let field = |account: &str| u64::from_str_radix(&account[3..15], 16).unwrap();
    let mut clear: Vec<String> = PINS.map(str::to_owned).into();
    for (pin, account) in [(PINS[0], ACCOUNT), (PINS[1], ACCOUNT), (PINS[0], OTHER_ACCOUNT)] {
        for control in [0, 3] {
            let digits = (control << 60) | (0xC << 56) | (u64::from_str_radix(pin, 16).unwrap() << 8);
            // Without the fill, the last byte.
            clear.push(hexadecimal(&(digits ^ field(account)).to_be_bytes()[..7]));
        }
    }
    // The decimalisation table makes the natural PIN of it.
    let validation = u64::from_str_radix(&format!("{}fffff", &ACCOUNT[4..15]), 16).unwrap();
    clear.push(hexadecimal(&ibm_3624.encrypt_block(&validation.to_be_bytes())));

    let mut seen = Vec::new();
    macro_rules! traced {
        ($what:literal, $answer:expr) => {{
            token.forget_trace();
            let answer = $answer.await.unwrap();
            let trace = token.trace();
            assert!(trace.iter().all(|(call, _)| call != "C_GetAttributeValue(CKA_VALUE)"), $what);
            let gives = trace.iter().filter(|(_, out)| clear.iter().any(|clear| out.contains(clear.as_str())));
            seen.push(($what, gives.map(|(call, _)| call.clone()).collect()));
            answer
        }};
    }
    let (tenant, audit_user) = (TENANT.to_owned(), AUDIT_USER.to_owned());
    let export = |format: ZoneFormat, zone_name: &str| ExportPinRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        plastic_id: CARD.into(),
        zone_key: Some(zone(zone_name)),
        format: format.into(),
    };
    traced!("register", client.register(CARD, ACCOUNT));
    let set = format_1(PINS[0]);
    traced!("set by zone", client.set_by_zone(CARD, &set));
    traced!("get by zone", client.get_by_zone(CARD));
    traced!("export in format 0", client.export(CARD, ZoneFormat::Iso0));
    let exported = traced!("export in format 4", client.pins.export_pin(export(ZoneFormat::Iso4, "host"))).into_inner();
    let format_4 =
        ZoneBlock { zone_key: Some(zone("host")), format: ZoneFormat::Iso4.into(), pin_block: exported.pin_block };
    traced!("verify in format 1", client.verify(CARD, &set));
    traced!("verify in format 4", client.verify(CARD, &format_4));
    traced!("set in format 4", client.set_by_zone(CARD, &format_4));
    let item = TranslationItem {
        plastic_id: CARD.into(),
        source_block: Some(format_4),
        target_key: Some(zone("app")),
        target_format: ZoneFormat::Iso3.into(),
        sealed_account: Vec::new(),
    };
    let translate =
        TranslatePinBlockRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), item: Some(item) };
    traced!("translate", client.pins.translate_pin_block(translate));
    let derive = |algorithm| DeriveVerificationValueRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        plastic_id: CARD.into(),
        method: Some(ValueMethod { algorithm: Some(algorithm) }),
    };
    let pair = PvkPair { name: "bank".into(), pvki_number: 1 };
    traced!("derive a PVV", client.pins.derive_verification_value(derive(Algorithm::Pvv(pair))));
    let offset = Algorithm::Ibm3624Offset(Ibm3624Key { name: "bank".into() });
    traced!("derive an offset", client.pins.derive_verification_value(derive(offset)));
    traced!("another account number", client.register(CARD, OTHER_ACCOUNT));
    let change = ZonePinChange { plastic_id: CARD.into(), old_block: Some(set), new_block: Some(format_1(PINS[1])) };
    let change = ChangePinRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        change: Some(change_pin_request::Change::ZoneChange(change)),
    };
    traced!("change", client.pins.change_pin(change));
    let generate = GeneratePinRequest { tenant, audit_user, plastic_id: CARD.into(), digit_count: 12 };
    token.forget_trace();
    client.pins.generate_pin(generate).await.unwrap();
    let trace = token.trace();
    let given: [u8; 8] = client.get_by_zone(CARD).await.unwrap().try_into().unwrap();
    let pin = Pin::from_block(&key.decrypt_block(&given)).unwrap();
    let gives = trace.iter().filter(|(_, out)| out.contains(pin.reveal())).map(|(call, _)| call.clone());
    seen.push(("generate", gives.collect()));
    assert_eq!(engine.terminate(), 0);
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_host_a_token_gives_out_clear_values_by_decryption_alone() {
    let decrypted = |times: usize| vec!["C_Decrypt"; times];
    let natural = || vec!["C_Decrypt", "C_Encrypt"];
    let expected = [
        ("register", decrypted(0)),
        ("set by zone", decrypted(1)),
        ("get by zone", decrypted(1)),
        ("export in format 0", decrypted(1)),
        ("export in format 4", decrypted(1)),
        // The block, and the record.
        ("verify in format 1", decrypted(2)),
        ("verify in format 4", decrypted(2)),
        ("set in format 4", decrypted(1)),
        ("translate", decrypted(1)),
        ("derive a PVV", decrypted(1)),
        // The 3DES of the validation data is the natural PIN before its decimalisation.
        ("derive an offset", natural()),
        ("another account number", decrypted(1)),
        // Both blocks, and the record.
        ("change", decrypted(3)),
        ("generate", decrypted(0)),
    ];
    let traced = traced_operations().await;
    let traced: Vec<_> =
        traced.iter().map(|(what, calls)| (*what, calls.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    assert_eq!(traced, expected);
}

/// The matrix in docs/tokens.md, from the answers of this machine's tokens. To write it:
/// `PINSEAL_WRITE_MATRIX=1 cargo test --test tokens matrix`.
#[tokio::test(flavor = "multi_thread")]
async fn the_matrix_in_the_documentation_is_what_the_tokens_show() {
    let makes = [("SoftHSM", Make::SoftHsm), ("NSS softokn", Make::Nss), ("openCryptoki", Make::OpenCryptoki)];
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (column, (name, make)) in makes.into_iter().enumerate() {
        let token = RealToken::with_keys(make);
        let (well, printed) = token.token(&["doctor", "--json"], &token.lines());
        assert!(well, "{printed}");
        let report: Value = serde_json::Deserializer::from_str(&printed).into_iter().next().unwrap().unwrap();
        let mut cells = vec![("".to_owned(), name.to_owned())];
        for probe in report["probes"].as_array().unwrap() {
            let printed = |member: &str| probe[member].as_str().unwrap().to_owned();
            let what = format!("{}: {} ({})", printed("level"), printed("what"), printed("mechanism"));
            let answer = probe["error"].as_str().map_or("yes".to_owned(), |error| format!("no: {error}"));
            cells.push((what, answer));
        }
        cells.push(("**best level**".to_owned(), format!("**{}**", report["level"].as_str().unwrap())));
        let (trace, found) = traced_flow(make).await;
        let called = |name: &str| trace.iter().filter(|(call, _)| call == name).count().to_string();
        let clear = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        cells.push(("calls that gave out something clear, in one set and one view".to_owned(), clear));
        for call in ["C_Decrypt", "C_UnwrapKey", "C_WrapKey", "C_GetAttributeValue(CKA_VALUE)"] {
            cells.push((format!("{call}, in the same"), called(call)));
        }
        for (row, (what, cell)) in cells.into_iter().enumerate() {
            if column == 0 {
                rows.push(vec![what]);
            }
            rows[row].push(cell);
        }
    }
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut matrix = line(&rows[0]) + "|---|---|---|---|\n";
    rows[1..].iter().for_each(|cells| matrix += &line(cells));

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tokens.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once("<!-- matrix -->\n").unwrap();
    let (documented, after) = rest.split_once("<!-- end of matrix -->").unwrap();
    if std::env::var_os("PINSEAL_WRITE_MATRIX").is_some() {
        let written = format!("{before}<!-- matrix -->\n{matrix}<!-- end of matrix -->{after}");
        std::fs::write(&file, written).unwrap();
    } else {
        assert_eq!(documented, matrix, "write it again: PINSEAL_WRITE_MATRIX=1 cargo test --test tokens matrix");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_boundary_level_is_refused() {
    let (token, directory) = (RealToken::with_keys(Make::Nss), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &token);
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "8140", "1111").await.unwrap();
    assert_eq!(client.view(&device, "8140").await.unwrap(), "1111");
    assert_eq!(engine.terminate(), 0);

    let host = token.lines_with("level = \"host\"");
    let (made, printed) = token.token(&["make-keys"], &host);
    assert!(made, "{printed}");
    let (config, data) = (directory.path().join("host.toml"), directory.path().join("data"));
    std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\n{host}\n")).unwrap();
    let mut pinseal = token.beside(env!("CARGO_BIN_EXE_pinseal"));
    let refused = pinseal.args(["engine", "--config"]).arg(&config).output().unwrap();
    let printed = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{printed}");
    assert!(printed.contains("the key storage-wrapped/1 was used last and is not there"), "{printed}");

    let other = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_on_with(other.path(), &token, "level = \"host\"");
    let mut client = engine.client().await;
    client.set(&device, "8140", "271828").await.unwrap();
    assert_eq!(client.view(&device, "8140").await.unwrap(), "271828");
    assert_eq!(engine.terminate(), 0);
    for (directory, level, formats) in [(&directory, "token", "wrapped"), (&other, "host", "iso-4")] {
        let level = format!("\"level\":\"{level}\",\"token\":\"pkcs11\"");
        let formats = format!("\"from\":\"iso-1\",\"to\":\"{formats}\"");
        let store = directory.path().join("data/store");
        let mut export = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        let audit = export.args(["audit", "export", "--store"]).arg(store).output().unwrap();
        let lines = String::from_utf8(audit.stdout).unwrap();
        assert!(lines.lines().any(|line| line.contains(&level) && line.contains(&formats)), "{lines}");
    }
}

#[test]
fn the_jdk_sets_and_views_a_pin_on_softhsm() {
    the_jdk_sets_and_views_with(Make::SoftHsm);
}

#[test]
fn the_jdk_sets_and_views_a_pin_on_nss() {
    the_jdk_sets_and_views_with(Make::Nss);
}

#[test]
fn the_jdk_sets_and_views_a_pin_on_opencryptoki() {
    the_jdk_sets_and_views_with(Make::OpenCryptoki);
}

fn the_jdk_sets_and_views_with(make: Make) {
    let (token, directory) = (RealToken::with_keys(make), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &token);
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), "");
    for bits in ["2048", "4096"] {
        java::java_sets_and_views(&edge.url, TOKEN, &format!("81{bits}"), bits);
    }
}

/// The flows of the run with sixteen clients; `PINSEAL_TOKEN_FLOWS` sets another number, 10,000 for the whole run.
const FLOWS: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_clients_run_thousands_of_softhsm_flows_in_flat_memory() {
    const CLIENTS: usize = 16;
    let flows: usize = std::env::var("PINSEAL_TOKEN_FLOWS").map_or(FLOWS, |number| number.parse().unwrap());
    // The store's memory reaches its limit within the first half; so do the cards, which repeat.
    const STORE: &str = "[store]\nmemory_mebibytes_max = 4";
    let (softhsm, directory) = (RealToken::with_keys(Make::SoftHsm), tempfile::tempdir().unwrap());
    let mut pinseal = softhsm.beside(env!("CARGO_BIN_EXE_pinseal"));
    // Memory that an allocator keeps for later is not in use.
    pinseal.env("MIMALLOC_PURGE_DELAY", "0").env("MALLOC_ARENA_MAX", "1");
    // Thousands of flows on a machine that may stall: one slow call must not end them.
    let lines = format!("call_timeout_milliseconds = 60000\n{}\n{STORE}", softhsm.lines());
    let engine = EngineProcess::start_with(pinseal, "127.0.0.1:0", directory.path(), &lines);
    let (played, mut clients) = (Arc::new(AtomicUsize::new(0)), tokio::task::JoinSet::new());
    for number in 0..CLIENTS {
        let (mut client, played) = (engine.client().await, Arc::clone(&played));
        clients.spawn(async move {
            let device = device();
            for flow in 0..flows / CLIENTS {
                let (card, pin) = (format!("82{number:02}{:02}", flow % 25), format!("27{number:02}{flow:04}"));
                client.set(&device, &card, &pin).await.unwrap();
                assert_eq!(client.view(&device, &card).await.unwrap(), pin);
                played.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut second_half = Vec::new();
    while !clients.is_empty() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let played = played.load(Ordering::Relaxed);
        if played >= flows / 2 {
            second_half.push(engine.resident_kibibytes());
        }
        while let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
    }
    let (least, most) = (second_half.iter().min().unwrap(), second_half.iter().max().unwrap());
    // Within 5 % of the middle. SoftHSM leaks about 450 bytes a flow, 2 MiB in this half of 10,000.
    println!("{flows} flows, in the second half {least} to {most} KiB");
    assert!(most - least <= (most + least) / 20, "memory is not flat: {least} to {most} KiB");
}

#[test]
fn a_wrong_token_configuration_is_one_line_and_no_login() {
    let softhsm = RealToken::without_keys(Make::SoftHsm);
    let lines = softhsm.lines();
    let refuses = |lines: &str, why: &str| {
        let (served, printed) = softhsm.pinseal(&["engine"], lines);
        assert!(!served && printed.contains(why), "{printed}");
        assert_eq!(printed.lines().filter(|line| line.starts_with("pinseal:")).count(), 1, "{printed}");
    };
    refuses(&lines, "0 keys have the label \"pinseal storage\"");
    refuses(&lines.replace("libsofthsm2", "nothing-here"), "can't load the PKCS#11 module");
    refuses(&lines.replace("\"pinseal\"", "\"other\""), "0 tokens have the label \"other\": name one of \"pinseal\"");
    refuses(&lines.replace("label", "serial"), "0 tokens have the serial");
    refuses(&softhsm.lines_with("level = \"token\""), "it can't wrap a tzpk for a device");
    refuses(&softhsm.lines_with("form = \"wrapped\""), "is not made at level host");
    softhsm.write_pin("8642");
    refuses(&lines, "refused the user PIN");
    softhsm.write_pin("2468");
    let (made, printed) = softhsm.token(&["make-keys"], &lines);
    assert!(made, "one wrong try must not lock the token: {printed}");
    let (again, printed) = softhsm.token(&["make-keys"], &lines);
    assert!(!again && printed.contains("nothing was made"), "{printed}");
}

#[test]
fn a_key_with_excess_rights_is_rejected_by_name() {
    let softhsm = RealToken::without_keys(Make::SoftHsm);
    // softhsm2-util gives a key every right.
    softhsm.import_aes_key("pinseal mac", "6d0001");
    let (made, printed) = softhsm.token(&["make-keys"], &softhsm.lines());
    assert!(!made && printed.contains("the key \"pinseal mac\" is unsafe: CKA_"), "{printed}");
    for arguments in [&["engine"][..], &["token", "doctor"]] {
        let (served, printed) = softhsm.pinseal(arguments, &softhsm.lines());
        assert!(!served && printed.contains("the key \"pinseal mac\" is unsafe: CKA_"), "{printed}");
    }
}

#[test]
fn a_user_pin_with_at_most_one_try_is_untried() {
    // CKF_USER_PIN_LOCKED, CKF_USER_PIN_FINAL_TRY.
    for (flags, why) in [("40000", "the user PIN is locked"), ("20000", "the user PIN has one try left")] {
        let token = RealToken::behind_the_shim(Make::SoftHsm);
        token.add_token_flags(flags);
        let (served, printed) = token.pinseal(&["engine"], &token.lines());
        assert!(!served && printed.contains(why), "{printed}");
        assert!(token.trace().iter().all(|(call, _)| call != "C_Login"));
    }
}

/// The documented exit code of a service whose token refused the user PIN.
const USER_PIN_REFUSED: i32 = 77;

#[test]
fn a_refused_user_pin_ends_with_its_exit_code() {
    let token = RealToken::behind_the_shim(Make::SoftHsm);
    let config = token.write_config(&token.lines());
    let socket = config.with_file_name("hsm.socket");
    let listen = ["--listen", socket.to_str().unwrap()];
    let (engine, hsm) = (["engine"].as_slice(), [&["hsm"][..], &listen].concat());
    // CKR_PIN_INCORRECT, CKR_PIN_EXPIRED, CKR_PIN_LOCKED, CKR_USER_PIN_NOT_INITIALIZED.
    for (answer, why) in [
        ("a0", "refused the user PIN"),
        ("a3", "the user PIN has expired"),
        ("a4", "the user PIN is locked"),
        ("102", "the token has no user PIN"),
    ] {
        token.answer_logins(Some(answer));
        for service in [engine, &hsm] {
            token.forget_trace();
            let mut pinseal = token.beside(env!("CARGO_BIN_EXE_pinseal"));
            let ended = pinseal.args(service).arg("--config").arg(&config).output().unwrap();
            let printed = String::from_utf8_lossy(&ended.stderr);
            assert!(printed.contains(why), "{printed}");
            assert_eq!((ended.status.code(), token.logins()), (Some(USER_PIN_REFUSED), 1), "{service:?}: {printed}");
        }
        for command in ["make-keys", "doctor"] {
            token.forget_trace();
            let (done, printed) = token.token(&[command], &token.lines());
            assert!(!done && printed.contains(why), "{printed}");
            assert_eq!(token.logins(), 1, "{command}: {printed}");
        }
    }
}

/// Enough time for six attempts of the supervisor, and five attempts to reach a lost token.
const LONG_ENOUGH: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_user_pin_is_untried_until_a_reload() {
    let (token, directory) = (RealToken::behind_the_shim(Make::SoftHsm), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &token);
    let logged = async |what: &str, times: usize| {
        comes_to_hold(async || engine.log().matches(what).count() >= times).await;
    };
    token.write_pin("8642");
    token.forget_trace();
    support::wait::signal(engine.hsm_id().unwrap(), "KILL");
    logged("is not started again before a reload", 1).await;
    tokio::time::sleep(LONG_ENOUGH).await;
    assert_eq!(token.logins(), 1);
    assert!(!engine.serves().await);

    support::wait::signal(engine.id(), "HUP");
    logged("is not started again before a reload", 2).await;
    tokio::time::sleep(LONG_ENOUGH).await;
    assert_eq!(token.logins(), 2);

    token.write_pin("2468");
    support::wait::signal(engine.id(), "HUP");
    comes_to_hold(async || engine.serves().await).await;

    // A serving process continues; after it is lost, the refused PIN is not tried.
    token.write_pin("8642");
    token.forget_trace();
    support::wait::signal(engine.id(), "HUP");
    logged("keeps the keys in use", 2).await;
    assert!(engine.serves().await);
    support::wait::signal(engine.hsm_id().unwrap(), "KILL");
    comes_to_hold(async || !engine.serves().await).await;
    tokio::time::sleep(LONG_ENOUGH).await;
    assert_eq!(token.logins(), 1);
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_that_refuses_the_pin_is_tried_once() {
    let (token, directory) = (RealToken::behind_the_shim(Make::SoftHsm), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on(directory.path(), &token);
    token.answer_logins(Some("a3"));
    token.forget_trace();
    // CKR_DEVICE_REMOVED.
    token.command(Some("32"));
    comes_to_hold(async || !engine.serves().await).await;
    token.command(None);
    comes_to_hold(async || token.logins() > 0).await;
    tokio::time::sleep(LONG_ENOUGH).await;
    assert_eq!(token.logins(), 1);
    assert!(!engine.serves().await);

    token.answer_logins(None);
    support::wait::signal(engine.id(), "HUP");
    comes_to_hold(async || engine.serves().await).await;
}

#[test]
fn the_script_makes_a_token_with_safe_keys_and_overwrites_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("token");
    let script = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/softhsm-token");
        Command::new(script).arg(&made).env("PINSEAL", env!("CARGO_BIN_EXE_pinseal")).output().unwrap()
    };
    let output = script();
    assert!(output.status.success(), "{output:?}");
    let doctor = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["token", "doctor", "--config"])
        .arg(made.join("engine.toml"))
        .env("SOFTHSM2_CONF", made.join("softhsm2.conf"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.success() && printed.matches(" safe\n").count() == 6, "{printed}");
    assert!(!script().status.success());
}

#[test]
fn the_doctor_reports_what_a_token_can_do() {
    let softhsm = RealToken::with_keys(Make::SoftHsm);
    let (well, printed) = softhsm.token(&["doctor", "--json"], &softhsm.lines());
    assert!(well, "{printed}");
    // SoftHSM may write warnings to standard error.
    let report: Value = serde_json::Deserializer::from_str(&printed).into_iter().next().unwrap().unwrap();
    let works = |mechanism: &str| {
        let probes = report["probes"].as_array().unwrap();
        probes.iter().find(|probe| probe["mechanism"] == mechanism).unwrap()["works"].as_bool().unwrap()
    };
    assert!(works("CKM_AES_KEY_WRAP") && works("CKM_DES3_ECB") && works("CKM_AES_ECB") && works("CKM_SHA256_HMAC"));
    // As measured: OAEP with SHA-1 only, no unwrap by 3DES.
    assert!(!works("CKM_RSA_PKCS_OAEP, SHA-256") && !works("CKM_DES3_ECB unwrap"));
    assert_eq!((&report["level"], &report["isolation"]), (&Value::from("host"), &Value::from("process")));
    assert_eq!(report["keys"].as_array().unwrap().len(), 6);
    assert_eq!(report["token"]["label"], "pinseal");
    let nss = RealToken::with_keys(Make::Nss);
    let (well, printed) = nss.token(&["doctor", "--json"], &nss.lines());
    assert!(well && printed.contains("\"level\": \"token\"") && !printed.contains("\"works\": false"), "{printed}");
    let empty = RealToken::without_keys(Make::SoftHsm);
    let (well, printed) = empty.token(&["doctor"], &empty.lines());
    assert!(!well && printed.contains("pinseal token make-keys"), "{printed}");
}
