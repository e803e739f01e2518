//! PINs that a zone sets and gets, exports and translations, and PINs that go from a card to its successor.

use proto::{
    DeriveVerificationValueRequest, GeneratePinRequest, PinStatus, PvkPair, SealPanRequest, TransferPinRequest,
    TranslatePinBlockRequest, TranslationItem, ValueMethod, ZoneBlock, ZoneFormat, ZoneKey, value_method, zone_key,
};
use tonic::{Code, Status};

use support::{
    ceremony::pinseal,
    engine_process::{AUDIT_USER, Client, TENANT, device, reason},
    zone_party::{ZoneParty, zone},
};

const ACCOUNT: &str = "5413330089020011";
const OTHER_ACCOUNT: &str = "4111111111111111";

async fn transfer(client: &mut Client, source: &str, target: &str) -> Result<(), Status> {
    let request = TransferPinRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        source_plastic_id: source.into(),
        plastic_id: target.into(),
    };
    client.pins.transfer_pin(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_sets_and_gets_a_pin_by_its_name_or_index() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    let by_index = ZoneKey { zone: Some(zone_key::Zone::IndexNumber(7)), key_version: 1 };
    let block = ZoneBlock { zone_key: Some(by_index), format: ZoneFormat::Unspecified.into(), ..party.block("27182") };
    assert!(!client.set_by_zone("3101", &block).await.unwrap());
    assert_eq!(client.view(&device, "3101").await.unwrap(), "27182");
    assert_eq!(party.decrypted(&client.get_by_zone("3101").await.unwrap()), "27182");

    assert!(client.set_by_zone("3101", &block).await.unwrap(), "the block of the present PIN changes nothing");
    let newer = party.block("31415");
    assert!(!client.set_by_zone("3101", &newer).await.unwrap());
    let replaced = client.set_by_zone("3101", &block).await.unwrap_err();
    assert_eq!((replaced.code(), &*reason(&replaced)), (Code::FailedPrecondition, "PIN_BLOCK_REPLACED"));
    assert_eq!(client.view(&device, "3101").await.unwrap(), "31415");

    let malformed = party.encrypted(ZoneFormat::Iso1, &[0x2F; 8]);
    assert_eq!(reason(&client.set_by_zone("3101", &malformed).await.unwrap_err()), "PIN_BLOCK_MALFORMED");
    assert_eq!(reason(&client.set_by_zone("3101", &party.block("1111")).await.unwrap_err()), "PIN_REFUSED");
    assert_eq!(reason(&client.get_by_zone("3102").await.unwrap_err()), "PIN_NOT_SET");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pin_by_zone_closes_the_open_controls_of_its_card() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    let (control, block) = client.ready_to_set(&device, "3103", "16180").await.unwrap();
    client.set_by_zone("3103", &party.block("27182")).await.unwrap();
    assert_eq!(reason(&client.set_block(&control, &block).await.unwrap_err()), "CONTROL_NOT_USABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_serves_its_own_tenant_and_its_own_uses() {
    let party = ZoneParty::prepared();
    let narrow = "[[zones]]\nname = \"app\"\ntenant = \"other\"\nindex = 7\nuses = [\"set-pin\"]";
    let engine = support::engine_process::EngineProcess::start(party.directory(), narrow);
    let mut client = engine.client().await;
    assert_eq!(reason(&client.set_by_zone("3104", &party.block("27182")).await.unwrap_err()), "ZONE_UNKNOWN");
    let request = |zone_block| proto::SetPinByZoneRequest {
        tenant: "other".into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "3104".into(),
        zone_block: Some(zone_block),
    };
    client.pins.set_pin_by_zone(request(party.block("27182"))).await.unwrap();
    let get = proto::GetPinByZoneRequest {
        tenant: "other".into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "3104".into(),
        zone_key: Some(zone("app")),
    };
    assert_eq!(reason(&client.pins.get_pin_by_zone(get).await.err().unwrap()), "ZONE_USE");
    let iso_0 = ZoneBlock { format: ZoneFormat::Iso0.into(), ..party.block("27182") };
    assert_eq!(reason(&client.pins.set_pin_by_zone(request(iso_0)).await.err().unwrap()), "ZONE_FORMAT");
}

/// The zone is checked first, then the PIN, then the account number.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_with_an_account_number_needs_a_card_with_one() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let mut client = engine.client().await;
    let bound = |format: ZoneFormat| ZoneBlock { format: format.into(), ..party.block("27182") };
    let iso_4 = ZoneBlock { pin_block: vec![7; 16], ..bound(ZoneFormat::Iso4) };
    assert_eq!(reason(&client.set_by_zone("3104", &iso_4).await.unwrap_err()), "ZONE_FORMAT");
    assert_eq!(reason(&client.export("3104", ZoneFormat::Iso4).await.unwrap_err()), "ZONE_FORMAT");
    assert_eq!(reason(&client.export("3104", ZoneFormat::Iso0).await.unwrap_err()), "PIN_NOT_SET");
    client.set_by_zone("3104", &party.block("27182")).await.unwrap();
    for format in [ZoneFormat::Iso0, ZoneFormat::Iso3] {
        let set = client.set_by_zone("3104", &bound(format)).await.unwrap_err();
        assert_eq!((set.code(), &*reason(&set)), (Code::FailedPrecondition, "NO_ACCOUNT_NUMBER"));
        let exported = client.export("3104", format).await.unwrap_err();
        assert_eq!((exported.code(), &*reason(&exported)), (Code::FailedPrecondition, "NO_ACCOUNT_NUMBER"));
    }
    client.register("3104", ACCOUNT).await.unwrap();
    let block = client.export("3104", ZoneFormat::Iso0).await.unwrap();
    assert_eq!(party.decrypted_bound(&block, ACCOUNT), "27182");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_block_is_bound_to_the_account_number() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let mut client = engine.client().await;
    client.register("3105", ACCOUNT).await.unwrap();
    client.set_by_zone("3105", &party.block("271828")).await.unwrap();
    for format in [ZoneFormat::Iso0, ZoneFormat::Iso3, ZoneFormat::Unspecified] {
        let block = client.export("3105", format).await.unwrap();
        assert_eq!(party.decrypted_bound(&block, ACCOUNT), "271828", "{}", format.as_str_name());
    }
    for refused in [ZoneFormat::Iso1, ZoneFormat::Iso4] {
        assert_eq!(
            reason(&client.export("3105", refused).await.unwrap_err()),
            "ZONE_FORMAT",
            "{}",
            refused.as_str_name()
        );
    }
}

async fn seal(client: &mut Client, plastic_id: &str, account_number: &str) -> Result<Vec<u8>, Status> {
    let request = SealPanRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic_id.into(),
        account_number: account_number.into(),
    };
    Ok(client.pins.seal_pan(request).await?.into_inner().sealed_account)
}

async fn translate_to(
    client: &mut Client,
    plastic_id: &str,
    source: &ZoneBlock,
    sealed_account: Vec<u8>,
    target_format: ZoneFormat,
) -> Result<Vec<u8>, Status> {
    let item = TranslationItem {
        plastic_id: plastic_id.into(),
        source_block: Some(source.clone()),
        target_key: Some(zone("app")),
        target_format: target_format.into(),
        sealed_account,
    };
    let request = TranslatePinBlockRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), item: Some(item) };
    Ok(client.pins.translate_pin_block(request).await?.into_inner().pin_block)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_translations_use_the_quota_of_wrong_pins() {
    // They differ from ACCOUNT in a digit that format 0 combines with the PIN 271828: its third digit becomes 0, its fourth
    // is no digit.
    const ACCOUNT_OF_PIN_270828: &str = "5412330089020012";
    const ACCOUNT_OF_NO_PIN: &str = "5413130089020015";
    const QUOTA: usize = 5;
    let party = ZoneParty::prepared();
    let engine = party.start(&format!("[verification]\nwrong_pins_per_caller_per_minute = {QUOTA}"));
    let mut client = engine.client().await;
    client.register("3120", ACCOUNT).await.unwrap();
    client.set_by_zone("3120", &party.block("271828")).await.unwrap();
    let pin_block = client.export("3120", ZoneFormat::Iso0).await.unwrap();
    let source = ZoneBlock { zone_key: Some(zone("app")), format: ZoneFormat::Iso0.into(), pin_block };

    // A registered card has one number, also with a seal that is older than its registration.
    let mismatch = seal(&mut client, "3120", ACCOUNT_OF_NO_PIN).await.unwrap_err();
    assert_eq!((mismatch.code(), &*reason(&mismatch)), (Code::FailedPrecondition, "ACCOUNT_MISMATCH"));
    let own = seal(&mut client, "3120", ACCOUNT).await.unwrap();
    translate_to(&mut client, "3120", &source, own, ZoneFormat::Iso3).await.unwrap();
    let older = seal(&mut client, "3121", ACCOUNT_OF_NO_PIN).await.unwrap();
    client.register("3121", ACCOUNT).await.unwrap();
    let refused = translate_to(&mut client, "3121", &source, older, ZoneFormat::Iso3).await.unwrap_err();
    assert_eq!(reason(&refused), "SEALED_ACCOUNT_INVALID");

    // Format 0 does not keep the account number as format 4 does: the answer says something about a digit of the PIN.
    let sealed = seal(&mut client, "900000000003", ACCOUNT_OF_PIN_270828).await.unwrap();
    let block = translate_to(&mut client, "900000000003", &source, sealed, ZoneFormat::Iso3).await.unwrap();
    assert_eq!(party.decrypted_bound(&block, ACCOUNT_OF_PIN_270828), "270828");
    let mut malformed = 0;
    let barred = loop {
        let name = (900_000_000_100 + malformed).to_string();
        let sealed = seal(&mut client, &name, ACCOUNT_OF_NO_PIN).await.unwrap();
        let refused = translate_to(&mut client, &name, &source, sealed, ZoneFormat::Iso3).await.unwrap_err();
        match &*reason(&refused) {
            "PIN_BLOCK_MALFORMED" => malformed += 1,
            _ => break refused,
        }
        assert!(malformed < 1_000, "malformed translations have no limit");
    };
    assert_eq!((barred.code(), &*reason(&barred)), (Code::ResourceExhausted, "WRONG_PIN_RATE"));
    assert!(malformed >= QUOTA as u64);
    let verified = client.verify("3120", &party.block("271828")).await.unwrap_err();
    assert_eq!(reason(&verified), "WRONG_PIN_RATE", "the quota is that of wrong PINs");
    assert_eq!(engine.terminate(), 0);
    let exported = pinseal().args(["audit", "export", "--store"]).arg(party.directory().join("data/store")).output();
    let exported = String::from_utf8(exported.unwrap().stdout).unwrap();
    let seals: Vec<_> = exported.lines().filter(|line| line.contains("\"seal_account\"")).collect();
    assert!(seals.iter().any(|line| line.contains("541313******0015") && line.contains("\"done\"")), "{seals:?}");
    assert!(seals.iter().any(|line| line.contains("\"other_account\"")), "the refused seal");
    assert!(!exported.contains(ACCOUNT_OF_NO_PIN), "no entry has a whole number");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_translated_for_the_sealed_account_number() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let mut client = engine.client().await;
    client.register("3106", ACCOUNT).await.unwrap();
    client.set_by_zone("3106", &party.block("271828")).await.unwrap();
    let source = ZoneBlock {
        zone_key: Some(zone("app")),
        format: ZoneFormat::Iso0.into(),
        pin_block: client.export("3106", ZoneFormat::Iso0).await.unwrap(),
    };
    let translate = async |client: &mut Client, plastic_id: &str, sealed: Vec<u8>, format: ZoneFormat| {
        translate_to(client, plastic_id, &source, sealed, format).await
    };
    // The account of a card that is registered here, and the sealed one of a card that is not.
    let block = translate(&mut client, "3106", Vec::new(), ZoneFormat::Iso3).await.unwrap();
    assert_eq!(party.decrypted_bound(&block, ACCOUNT), "271828");
    let sealed = seal(&mut client, "900000000001", ACCOUNT).await.unwrap();
    let block = translate(&mut client, "900000000001", sealed.clone(), ZoneFormat::Iso3).await.unwrap();
    assert_eq!(party.decrypted_bound(&block, ACCOUNT), "271828");

    let other_name = translate(&mut client, "900000000002", sealed, ZoneFormat::Iso3).await.unwrap_err();
    assert_eq!(reason(&other_name), "SEALED_ACCOUNT_INVALID");
    let other = seal(&mut client, "900000000001", OTHER_ACCOUNT).await.unwrap();
    let unbound = translate(&mut client, "900000000001", other, ZoneFormat::Iso3).await.unwrap_err();
    assert_eq!(reason(&unbound), "PIN_BLOCK_MALFORMED");
    let unknown = translate(&mut client, "3199", Vec::new(), ZoneFormat::Iso3).await.unwrap_err();
    assert_eq!(reason(&unknown), "SEALED_ACCOUNT_INVALID", "the card has no registered account number");
    let iso_1 = translate(&mut client, "3106", Vec::new(), ZoneFormat::Iso1).await.unwrap_err();
    assert_eq!(iso_1.code(), Code::FailedPrecondition, "a bound block does not become format 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_account_number_keeps_the_pin() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    client.register("3107", ACCOUNT).await.unwrap();
    client.set_by_zone("3107", &party.block("271828")).await.unwrap();
    let control = client.ready_to_set(&device, "3107", "161803").await.unwrap();
    client.register("3107", OTHER_ACCOUNT).await.unwrap();
    assert_eq!(client.find("3107").await.unwrap().masked_account_number, "411111******1111");
    assert_eq!(client.view(&device, "3107").await.unwrap(), "271828");
    let block = client.export("3107", ZoneFormat::Iso0).await.unwrap();
    assert_eq!(party.decrypted_bound(&block, OTHER_ACCOUNT), "271828");
    // An open control follows the account number.
    client.set_block(&control.0, &control.1).await.unwrap();
    assert_eq!(client.view(&device, "3107").await.unwrap(), "161803");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reissued_card_takes_the_pin_of_its_account_alone() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    for (card, account) in [("3108", ACCOUNT), ("3109", ACCOUNT), ("3110", OTHER_ACCOUNT)] {
        client.register(card, account).await.unwrap();
    }
    assert_eq!(reason(&transfer(&mut client, "3108", "3109").await.unwrap_err()), "PIN_NOT_SET");
    client.set_by_zone("3108", &party.block("271828")).await.unwrap();
    transfer(&mut client, "3108", "3109").await.unwrap();
    transfer(&mut client, "3108", "3109").await.unwrap();
    for card in ["3108", "3109"] {
        assert_eq!(client.view(&device, card).await.unwrap(), "271828");
    }
    assert_eq!(reason(&transfer(&mut client, "3108", "3110").await.unwrap_err()), "ACCOUNT_MISMATCH");
    assert_eq!(reason(&transfer(&mut client, "3108", "3111").await.unwrap_err()), "CARD_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_pin_waits_for_the_personalisation() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    let generate = |digit_count| GeneratePinRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "3112".into(),
        digit_count,
    };
    assert_eq!(reason(&client.pins.generate_pin(generate(4)).await.err().unwrap()), "CARD_UNKNOWN");
    client.register("3112", ACCOUNT).await.unwrap();
    for refused in [0, 3, 13, u32::MAX] {
        assert_eq!(reason(&client.pins.generate_pin(generate(refused)).await.err().unwrap()), "DIGIT_COUNT_INVALID");
    }
    client.pins.generate_pin(generate(6)).await.unwrap();
    assert!(client.find("3112").await.unwrap().pin_status() == PinStatus::Generated);
    let pin = client.view(&device, "3112").await.unwrap();
    assert_eq!(pin.len(), 6);
    let exported = client.export("3112", ZoneFormat::Iso0).await.unwrap();
    assert_eq!(party.decrypted_bound(&exported, ACCOUNT), pin);
    client.set_by_zone("3112", &party.block("271828")).await.unwrap();
    assert!(client.find("3112").await.unwrap().pin_status() == PinStatus::Set);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_under_an_absent_key_is_refused_by_name() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let mut client = engine.client().await;
    client.register("3113", ACCOUNT).await.unwrap();
    client.set_by_zone("3113", &party.block("2718")).await.unwrap();
    let pvk = PvkPair { name: "bank".into(), pvki_number: 1 };
    let derive = DeriveVerificationValueRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "3113".into(),
        method: Some(ValueMethod { algorithm: Some(value_method::Algorithm::Pvv(pvk)) }),
    };
    let refused = client.pins.derive_verification_value(derive).await.err().unwrap();
    assert_eq!((refused.code(), &*reason(&refused)), (Code::NotFound, "VALUE_KEY_UNKNOWN"));
}
