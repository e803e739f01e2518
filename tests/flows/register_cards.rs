//! `pinseal card register`.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use proto::{FindCardRequest, PinStatus};
use support::{
    ceremony::{pinseal, said},
    engine_process::{AUDIT_USER, EngineProcess, TENANT},
};

fn register(engine: &EngineProcess, cards: &str) -> Output {
    let mut command = pinseal();
    command.args(["card", "register", "--engine", engine.address(), "--tenant", TENANT, "--input", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(cards.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The masked account number of a card; `None` for an unknown card.
async fn masked(engine: &EngineProcess, plastic_id: &str) -> Option<String> {
    let request =
        FindCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id: plastic_id.into() };
    let card = engine.client().await.cards.find_card(request).await.ok()?.into_inner();
    assert!(card.pin_status() == PinStatus::Waiting);
    Some(card.masked_account_number)
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_of_standard_input_are_registered_and_changed() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");

    let done = register(&engine, "# cards\n8500,5413330089020011\n8501\n");
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(String::from_utf8(done.stdout).unwrap(), "2 cards registered\n");
    assert_eq!(masked(&engine, "8500").await.unwrap(), "541333******0011");
    assert_eq!(masked(&engine, "8501").await.unwrap(), "");

    assert!(register(&engine, "8501,4716258093174820\n").status.success());
    assert_eq!(masked(&engine, "8501").await.unwrap(), "471625******4820");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_line_registers_no_card() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let refused = register(&engine, "8510\n8511,54133300890x0011\n");
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("line 2 is not a card") && !said(&refused).contains("54133300890x"));
    assert_eq!(masked(&engine, "8510").await, None);
}
