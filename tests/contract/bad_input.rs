//! Invalid input over gRPC: each kind has its answer, and no data is lost.

use std::time::Duration;

use device::{Fill, Pin};
use proto::{OpenControlRequest, RegisterCardRequest, Scope};
use tonic::Code;

use support::engine_process::{AUDIT_USER, EngineProcess, TENANT, device, reason};

#[tokio::test]
async fn every_malformed_block_has_one_answer_and_spends_the_control() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let malformed: [(&str, [u8; 8]); 7] = [
        ("control nibble 0", [0x04, 0x12, 0x34, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("control nibble 2", [0x24, 0x12, 0x34, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("length 3", [0x13, 0x12, 0x3F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("length 0", [0x10, 0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34]),
        ("length 13", [0x1D, 0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34]),
        ("first digit A", [0x14, 0xA2, 0x34, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        ("last digit F", [0x14, 0x12, 0x3F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
    ];
    let mut answers = Vec::new();
    for (class, clear) in malformed {
        let control = client.open("2001", Scope::SetPin).await.unwrap().control_id;
        let encrypted_tzpk = client.tzpk(&control, &device).await.unwrap();
        let tzpk = device.decrypt_tzpk(&encrypted_tzpk).unwrap();
        let status = client.set_block(&control, &tzpk.encrypt_block(&clear)).await.unwrap_err();
        assert_eq!(reason(&status), "PIN_BLOCK_MALFORMED", "{class}");
        answers.push((status.code(), status.message().to_owned(), status.details().to_vec()));

        let good = device.encrypt_pin(&encrypted_tzpk, &Pin::parse("83927").unwrap(), Fill::Random).unwrap();
        let spent = client.set_block(&control, &good).await.unwrap_err();
        assert_eq!(reason(&spent), "CONTROL_NOT_USABLE", "{class}");
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "malformed blocks differ: {answers:?}");
}

#[tokio::test]
async fn a_pin_against_the_policy_may_be_retried_three_times() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let block = |tzpk: &[u8], pin: &str| device.encrypt_pin(tzpk, &Pin::parse(pin).unwrap(), Fill::Random).unwrap();

    let control = client.open("2002", Scope::SetPin).await.unwrap().control_id;
    let tzpk = client.tzpk(&control, &device).await.unwrap();
    for weak in ["1234", "4321", "7777"] {
        let status = client.set_block(&control, &block(&tzpk, weak)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "PIN_REFUSED"), "{weak}");
    }
    client.set_block(&control, &block(&tzpk, "2580")).await.unwrap();
    assert_eq!(client.view(&device, "2002").await.unwrap(), "2580");

    let control = client.open("2002", Scope::SetPin).await.unwrap().control_id;
    let tzpk = client.tzpk(&control, &device).await.unwrap();
    for _ in 0..4 {
        client.set_block(&control, &block(&tzpk, "1111")).await.unwrap_err();
    }
    let status = client.set_block(&control, &block(&tzpk, "9517")).await.unwrap_err();
    assert_eq!(reason(&status), "CONTROL_NOT_USABLE");
    assert_eq!(client.view(&device, "2002").await.unwrap(), "2580", "a refused PIN replaced a good one");
}

#[tokio::test]
async fn a_block_before_any_tzpk_leaves_the_control_usable() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let control = client.open("2003", Scope::SetPin).await.unwrap().control_id;
    let status = client.set_block(&control, &[7; 8]).await.unwrap_err();
    assert_eq!(reason(&status), "TZPK_MISSING");

    let tzpk = client.tzpk(&control, &device).await.unwrap();
    let block = device.encrypt_pin(&tzpk, &Pin::parse("2580").unwrap(), Fill::Random).unwrap();
    client.set_block(&control, &block).await.unwrap();
}

#[tokio::test]
async fn a_block_under_an_older_tzpk_is_malformed() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let control = client.open("2004", Scope::SetPin).await.unwrap().control_id;
    let older = client.tzpk(&control, &device).await.unwrap();
    let newer = client.tzpk(&control, &device).await.unwrap();
    // A block that is malformed under the newer key; one block in 638 is well-formed by chance.
    let newer_key = device.decrypt_tzpk(&newer).unwrap();
    let stale = loop {
        let block = device.encrypt_pin(&older, &Pin::parse("2580").unwrap(), Fill::Random).unwrap();
        if newer_key.decrypt_block(&block)[0] >> 4 != 1 {
            break block;
        }
    };
    let status = client.set_block(&control, &stale).await.unwrap_err();
    assert_eq!(reason(&status), "PIN_BLOCK_MALFORMED");
}

#[tokio::test]
async fn unknown_expired_and_spent_controls_have_the_same_answer() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "[control]\nlifetime_seconds = 1");
    let (device, mut client) = (device(), engine.client().await);

    let unknown = client.set_block("0b2f6dc5-53c5-4f2b-8a6b-3a1c1e0a9f11", &[7; 8]).await.unwrap_err();
    let (control, block) = client.ready_to_set(&device, "2005", "2580").await.unwrap();
    client.set_block(&control, &block).await.unwrap();
    let spent = client.set_block(&control, &[7; 8]).await.unwrap_err();
    let (control, block) = client.ready_to_set(&device, "2005", "9517").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let expired = client.set_block(&control, &block).await.unwrap_err();

    let answer = |status: &tonic::Status| (status.code(), status.message().to_owned(), status.details().to_vec());
    assert_eq!(reason(&unknown), "CONTROL_NOT_USABLE");
    assert_eq!(answer(&unknown), answer(&spent));
    assert_eq!(answer(&unknown), answer(&expired));
}

#[tokio::test]
async fn a_control_is_bound_to_scope_tenant_and_device_key() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, other_device, mut client) = (device(), support::engine_process::device(), engine.client().await);

    let view = client.open("2006", Scope::ViewPin).await.unwrap().control_id;
    assert_eq!(reason(&client.tzpk(&view, &device).await.unwrap_err()), "SCOPE_MISMATCH");
    assert_eq!(reason(&client.view(&device, "2006").await.unwrap_err()), "PIN_NOT_SET");

    let open = |tenant: &str, thumbprint: Vec<u8>| OpenControlRequest {
        tenant: tenant.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "2006".into(),
        scope: Scope::SetPin.into(),
        device_key_sha256: thumbprint,
        page_client: String::new(),
    };
    let theirs = client.controls.open_control(open("other", Vec::new())).await.unwrap().into_inner().control_id;
    assert_eq!(reason(&client.tzpk(&theirs, &device).await.unwrap_err()), "TENANT_MISMATCH");

    let pinned = open(TENANT, device.thumbprint().to_vec());
    let pinned = client.controls.open_control(pinned).await.unwrap().into_inner().control_id;
    assert_eq!(reason(&client.tzpk(&pinned, &other_device).await.unwrap_err()), "DEVICE_KEY_MISMATCH");
    client.tzpk(&pinned, &device).await.unwrap();
}

#[tokio::test]
async fn a_malformed_field_is_rejected_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let control = client.open("2007", Scope::SetPin).await.unwrap().control_id;
    client.tzpk(&control, &device).await.unwrap();

    for length in [0, 7, 9, 16] {
        let status = client.set_block(&control, &vec![1; length]).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "PIN_BLOCK_LENGTH"));
    }
    assert_eq!(reason(&client.set_block("no-uuid", &[7; 8]).await.unwrap_err()), "CONTROL_ID_INVALID");
    assert_eq!(reason(&client.open("12a", Scope::SetPin).await.err().unwrap()), "PLASTIC_ID_INVALID");
    assert_eq!(reason(&client.open("1", Scope::Unspecified).await.err().unwrap()), "SCOPE_INVALID");

    let named = |audit_user: &str| OpenControlRequest {
        tenant: TENANT.into(),
        audit_user: audit_user.into(),
        plastic_id: "2007".into(),
        scope: Scope::SetPin.into(),
        device_key_sha256: Vec::new(),
        page_client: String::new(),
    };
    for hidden in ["a\u{2028}b", "a\u{202E}b", "a\u{200B}b", "\u{FEFF}", "a\u{E000}"] {
        let status = client.controls.open_control(named(hidden)).await.err().unwrap();
        assert_eq!(reason(&status), "AUDIT_USER_INVALID", "{hidden:?}");
    }

    let register = |plastic: &str, number: &str| RegisterCardRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic.into(),
        account_number: number.into(),
    };
    let status = client.cards.register_card(register("2008", "4111")).await.err().unwrap();
    assert_eq!(reason(&status), "ACCOUNT_NUMBER_INVALID");
}

#[tokio::test]
async fn a_malformed_request_id_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut client = engine.client().await;
    for malformed in
        [&["1"][..], &["2b0f4f4e-8f0c-4f6a-9d0e-4c1f5a3b7c9d"; 2], &["{2b0f4f4e-8f0c-4f6a-9d0e-4c1f5a3b7c9d}"]]
    {
        let mut request = tonic::Request::new(OpenControlRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: "2010".into(),
            scope: Scope::SetPin.into(),
            device_key_sha256: Vec::new(),
            page_client: String::new(),
        });
        for id in malformed {
            request.metadata_mut().append(proto::REQUEST_ID_KEY, id.parse().unwrap());
        }
        let status = client.controls.open_control(request).await.err().unwrap();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "REQUEST_ID_INVALID"));
    }
}

#[tokio::test]
async fn an_account_number_changes_before_and_after_the_pin_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let register = |number: &str| RegisterCardRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "2009".into(),
        account_number: number.into(),
    };
    client.cards.register_card(register("4111111111111111")).await.unwrap();
    let changed = client.cards.register_card(register("5413330089020011")).await.unwrap().into_inner();
    assert_eq!(changed.masked_account_number, "541333******0011");

    client.set(&device, "2009", "2580").await.unwrap();
    let again = client.cards.register_card(register("5413330089020011")).await.unwrap().into_inner();
    assert_eq!(again.pin_status, i32::from(proto::PinStatus::Set), "W becomes S when a PIN is set");
    let changed = client.cards.register_card(register("4111111111111111")).await.unwrap().into_inner();
    assert_eq!(changed.masked_account_number, "411111******1111");
    assert_eq!(client.view(&device, "2009").await.unwrap(), "2580");
}

#[tokio::test]
async fn a_card_has_a_limited_number_of_controls_per_hour() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "[control]\nper_card_per_hour_max = 3");
    let mut client = engine.client().await;
    // The hour may end between two of these calls, so the limit is reached a little later.
    let mut refused = None;
    for _ in 0..8 {
        if let Err(status) = client.open("2010", Scope::SetPin).await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("eight controls were opened under a cap of three");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "CONTROL_CAP"));
    client.open("2011", Scope::SetPin).await.unwrap();
}
