//! The keys in a PKCS#11 token: SoftHSM, at level `host`.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    clients,
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{EngineProcess, device, reason},
    softhsm::SoftHsm,
};

#[tokio::test(flavor = "multi_thread")]
async fn pins_and_a_half_finished_control_survive_a_restart_on_the_same_token() {
    let (softhsm, directory) = (SoftHsm::with_keys(), tempfile::tempdir().unwrap());
    let start = || EngineProcess::start_on_softhsm(directory.path(), &softhsm);
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
async fn a_malformed_block_and_a_weak_pin_are_told_apart_as_on_any_token() {
    let (softhsm, directory) = (SoftHsm::with_keys(), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on_softhsm(directory.path(), &softhsm);
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
async fn a_token_that_fails_is_told_is_found_again_and_loses_nothing() {
    let (softhsm, directory) = (SoftHsm::behind_the_shim(), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on_softhsm(directory.path(), &softhsm);
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "8120", "271828").await.unwrap();
    assert!(engine.serves().await);

    // Device removed, session handle invalid, user not logged in, general error.
    for failure in ["32", "b3", "101", "5"] {
        let (control, block) = client.ready_to_set(&device, "8121", "161803").await.unwrap();
        softhsm.command(Some(failure));
        let lost = client.set_block(&control, &block).await.unwrap_err();
        assert_eq!((lost.code(), &*reason(&lost)), (tonic::Code::Unavailable, "TOKEN_UNAVAILABLE"));
        within_seconds(5, async || !engine.serves().await).await;

        softhsm.command(None);
        within_seconds(5, async || engine.serves().await).await;
        client.set_block(&control, &block).await.unwrap();
        assert_eq!(client.view(&device, "8120").await.unwrap(), "271828");
        assert_eq!(client.view(&device, "8121").await.unwrap(), "161803");
    }
}

/// Asks again and again until it holds.
async fn within_seconds(seconds: u64, holds: impl AsyncFn() -> bool) {
    let asked = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(seconds), asked).await.expect("it did not come to hold in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_host_the_clear_block_comes_out_of_c_decrypt_and_nowhere_else_and_no_key_comes_out() {
    let (softhsm, directory) = (SoftHsm::behind_the_shim(), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on_softhsm(directory.path(), &softhsm);
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "8130", "927182813").await.unwrap();
    assert_eq!(client.view(&device, "8130").await.unwrap(), "927182813");

    let trace = softhsm.trace();
    let planted = |out: &str| out.contains("927182813");
    let found: Vec<&str> = trace.iter().filter(|(_, out)| planted(out)).map(|(call, _)| call.as_str()).collect();
    // Set: the device's block. View: the stored one's PIN field.
    assert_eq!(found, ["C_Decrypt", "C_Decrypt"]);
    assert!(trace.iter().any(|(call, _)| call == "C_UnwrapKey"));
    assert!(trace.iter().all(|(call, _)| call != "C_GetAttributeValue(CKA_VALUE)"));
}

#[test]
fn the_jdk_sets_and_views_a_pin_with_the_keys_in_softhsm() {
    let (softhsm, directory) = (SoftHsm::with_keys(), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on_softhsm(directory.path(), &softhsm);
    let edge = EdgeProcess::start(directory.path(), &format!("address = \"http://{}\"", engine.address()), "");
    for bits in ["2048", "4096"] {
        clients::java_sets_and_views(&edge.url, TOKEN, &format!("81{bits}"), bits);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_clients_play_whole_flows_on_softhsm_without_one_failure() {
    const FLOWS_EACH: usize = 12;
    let (softhsm, directory) = (SoftHsm::with_keys(), tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_on_softhsm(directory.path(), &softhsm);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let mut client = engine.client().await;
        clients.spawn(async move {
            let device = device();
            for flow in 0..FLOWS_EACH {
                let (card, pin) = (format!("82{number:02}{flow:02}"), format!("27{number:02}{flow:02}"));
                client.set(&device, &card, &pin).await.unwrap();
                assert_eq!(client.view(&device, &card).await.unwrap(), pin);
            }
        });
    }
    while let Some(played) = clients.join_next().await {
        played.unwrap();
    }
}

#[test]
fn a_wrong_token_configuration_is_one_clear_line_and_burns_no_try() {
    let softhsm = SoftHsm::without_keys();
    let lines = softhsm.lines();
    let refuses = |lines: &str, why: &str| {
        let (served, told) = softhsm.pinseal(&["engine"], lines);
        assert!(!served && told.contains(why), "{told}");
        assert_eq!(told.lines().filter(|line| line.starts_with("pinseal:")).count(), 1, "{told}");
    };
    refuses(&lines, "0 keys have the label \"pinseal storage\"");
    refuses(&lines.replace("libsofthsm2", "nothing-here"), "can't load the PKCS#11 module");
    refuses(&lines.replace("\"pinseal\"", "\"other\""), "0 tokens have the label \"other\": name one of \"pinseal\"");
    refuses(&lines.replace("label", "serial"), "0 tokens have the serial");
    refuses(&format!("{lines}\n[boundary]\nlevel = \"token\""), "0 keys");
    softhsm.write_pin("8642");
    refuses(&lines, "refused the user PIN");
    softhsm.write_pin("2468");
    let (made, told) = softhsm.token(&["make-keys"], &lines);
    assert!(made, "one wrong try must not lock the token: {told}");
    let (again, told) = softhsm.token(&["make-keys"], &lines);
    assert!(!again && told.contains("nothing was made"), "{told}");
    refuses(&format!("{lines}\n[boundary]\nlevel = \"token\""), "takes a clear block through host memory");
}

#[test]
fn the_script_makes_a_token_whose_keys_are_safe_and_overwrites_nothing() {
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
    let told = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.success() && told.matches(" safe\n").count() == 5, "{told}");
    assert!(!script().status.success());
}

#[test]
fn the_doctor_tells_what_softhsm_can_do_and_what_it_can_not() {
    let softhsm = SoftHsm::with_keys();
    let (well, told) = softhsm.token(&["doctor", "--json"], &softhsm.lines());
    assert!(well, "{told}");
    // SoftHSM may write to standard error what it does not know.
    let report: Value = serde_json::Deserializer::from_str(&told).into_iter().next().unwrap().unwrap();
    let works = |mechanism: &str| {
        let probes = report["probes"].as_array().unwrap();
        probes.iter().find(|probe| probe["mechanism"] == mechanism).unwrap()["works"].as_bool().unwrap()
    };
    assert!(works("CKM_AES_KEY_WRAP") && works("CKM_DES3_ECB") && works("CKM_AES_CBC") && works("CKM_AES_CMAC"));
    // As measured: OAEP with SHA-1 only, no unwrap by 3DES.
    assert!(!works("CKM_RSA_PKCS_OAEP, SHA-256") && !works("CKM_DES3_ECB unwrap"));
    assert_eq!(report["keys"].as_array().unwrap().len(), 5);
    assert_eq!(report["token"]["label"], "pinseal");
    let empty = SoftHsm::without_keys();
    let (well, told) = empty.token(&["doctor"], &empty.lines());
    assert!(!well && told.contains("pinseal token make-keys"), "{told}");
}
