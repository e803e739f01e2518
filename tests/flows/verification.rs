//! Verification and change of a PIN: tries are reserved before the comparison, and never more than the limit.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use proto::{
    ChangePinRequest, DevicePinChange, ExpectedNatural, ExpectedOffset, ExpectedPvv, Ibm3624Key, PvkPair,
    ResetTriesRequest, Scope, VerificationReference, VerifyPinRequest, ZoneBlock, ZonePinChange,
    change_pin_request::Change, verification_reference::Expected,
};
use tonic::{Code, Status};

use support::{
    ceremony::pinseal,
    engine_process::{AUDIT_USER, Client, EngineProcess, TENANT, device, reason},
    wait::{soon, stop},
    zone_party::{ZoneParty, right, wrong, zone},
};

/// The racing callers of one card.
const RACERS: u32 = 64;
/// The tries of a card.
const LIMIT: u32 = 3;
/// The rounds of the race with a kill; `PINSEAL_VERIFICATION_KILLS` sets another number.
const KILLS: u32 = 2;

async fn reset(client: &mut Client, plastic_id: &str, reserved_try_count: u64) -> Result<u64, Status> {
    let request = ResetTriesRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic_id.into(),
        reserved_try_count,
    };
    Ok(client.cards.reset_tries(request).await?.into_inner().used_try_count)
}

async fn change(client: &mut Client, change: Change) -> Result<(&'static str, u32), Status> {
    let request = ChangePinRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), change: Some(change) };
    let answer = client.pins.change_pin(request).await?.into_inner();
    Ok((answer.result().as_str_name(), answer.remaining_try_count))
}

fn by_zone(plastic_id: &str, old_block: ZoneBlock, new_block: ZoneBlock) -> Change {
    let (old_block, new_block) = (Some(old_block), Some(new_block));
    Change::ZoneChange(ZonePinChange { plastic_id: plastic_id.into(), old_block, new_block })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_pin_forgives_and_wrong_ones_lock_until_a_reset() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let mut client = engine.client().await;
    client.set_by_zone("3001", &party.block("27182")).await.unwrap();
    let verify = async |client: &mut Client, pin: &str| client.verify("3001", &party.block(pin)).await;
    assert_eq!(verify(&mut client, "27182").await.unwrap(), right(LIMIT));
    for left in [2, 1] {
        assert_eq!(verify(&mut client, "27183").await.unwrap(), wrong(left));
    }
    assert_eq!(verify(&mut client, "27182").await.unwrap(), right(LIMIT), "a right PIN forgives the wrong ones");

    let malformed = party.encrypted(proto::ZoneFormat::Iso1, &[0x2F; 8]);
    assert_eq!(reason(&client.verify("3001", &malformed).await.unwrap_err()), "PIN_BLOCK_MALFORMED");
    assert_eq!(verify(&mut client, "27183").await.unwrap(), wrong(1), "a malformed block has used a try");
    assert_eq!(verify(&mut client, "2718").await.unwrap(), wrong(0));
    let locked = verify(&mut client, "27182").await.unwrap_err();
    assert_eq!((locked.code(), &*reason(&locked)), (Code::FailedPrecondition, "PIN_LOCKED"));

    // A new PIN leaves the tries as they are.
    client.set_by_zone("3001", &party.block("31415")).await.unwrap();
    assert_eq!(reason(&verify(&mut client, "31415").await.unwrap_err()), "PIN_LOCKED");
    let found = client.find("3001").await.unwrap();
    assert_eq!((found.reserved_try_count, found.used_try_count), (7, 3));
    assert_eq!(reset(&mut client, "3001", found.reserved_try_count - 1).await.unwrap(), 1);
    assert_eq!(verify(&mut client, "31416").await.unwrap(), wrong(1));
    assert_eq!(reset(&mut client, "3001", found.reserved_try_count).await.unwrap(), 1, "the last try is a later one");
    assert_eq!(verify(&mut client, "31415").await.unwrap(), right(LIMIT));

    assert_eq!(reason(&client.verify("3002", &party.block("1357")).await.unwrap_err()), "CARD_UNKNOWN");
    client.register("3002", "").await.unwrap();
    assert_eq!(reason(&client.verify("3002", &party.block("1357")).await.unwrap_err()), "PIN_NOT_SET");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_pin_replaces_the_old_one_only_where_that_is_right() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    client.set_by_zone("3003", &party.block("27182")).await.unwrap();

    let wrong_old = by_zone("3003", party.block("27183"), party.block("16180"));
    assert_eq!(change(&mut client, wrong_old).await.unwrap(), wrong(2));
    let weak = by_zone("3003", party.block("27182"), party.block("11111"));
    assert_eq!(reason(&change(&mut client, weak).await.unwrap_err()), "PIN_REFUSED");
    assert_eq!(client.verify("3003", &party.block("27182")).await.unwrap(), right(LIMIT));
    let well = by_zone("3003", party.block("27182"), party.block("16180"));
    assert_eq!(change(&mut client, well).await.unwrap(), right(LIMIT));
    assert_eq!(client.view(&device, "3003").await.unwrap(), "16180");

    // Under a control, from the cardholder's device. The change spends the control.
    let control_id = client.open("3003", Scope::SetPin).await.unwrap().control_id;
    let tzpk = client.tzpk(&control_id, &device).await.unwrap();
    let block = |pin: &str| {
        let pin = device::Pin::parse(pin).unwrap();
        device.encrypt_pin(&tzpk, &pin, device::Fill::Random).unwrap().to_vec()
    };
    let by_device = |old: &str, new: &str| {
        let (old_pin_block, new_pin_block) = (block(old), block(new));
        Change::DeviceChange(DevicePinChange { control_id: control_id.clone(), old_pin_block, new_pin_block })
    };
    assert_eq!(change(&mut client, by_device("16181", "42424242")).await.unwrap(), wrong(2));
    assert_eq!(change(&mut client, by_device("16180", "4239")).await.unwrap(), right(LIMIT));
    assert_eq!(client.view(&device, "3003").await.unwrap(), "4239");
    let again = change(&mut client, by_device("4239", "16180")).await.unwrap_err();
    assert_eq!(reason(&again), "CONTROL_NOT_USABLE");
    assert_eq!(client.find("3003").await.unwrap().used_try_count, 0, "a refused control uses no try");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_too_many_wrong_pins_locks_no_further_card() {
    let party = ZoneParty::prepared();
    let engine = party.start("[verification]\nwrong_pins_per_caller_per_minute = 4");
    let mut client = engine.client().await;
    let cards = ["3011", "3012", "3013", "3014"];
    for card in cards {
        client.set_by_zone(card, &party.block("27182")).await.unwrap();
    }
    let mut barred = None;
    'cards: for card in cards {
        for _ in 0..LIMIT {
            if let Err(status) = client.verify(card, &party.block("27183")).await {
                barred = Some(status);
                break 'cards;
            }
        }
    }
    let barred = barred.expect("the caller locked four cards");
    assert_eq!((barred.code(), &*reason(&barred)), (Code::ResourceExhausted, "WRONG_PIN_RATE"));
    assert_eq!(client.find("3014").await.unwrap().reserved_try_count, 0, "a barred caller uses no try");
}

/// The concurrent wrong PINs of one caller.
const CONCURRENT: u32 = 200;
/// The quota of the caller.
const QUOTA: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_wrong_pins_use_no_more_tries_than_the_quota() {
    let party = Arc::new(ZoneParty::prepared());
    let engine = party.start(&format!("[verification]\nwrong_pins_per_caller_per_minute = {QUOTA}"));
    let mut client = engine.client().await;
    let cards = ["3041", "3042", "3043", "3044"];
    for card in cards {
        client.set_by_zone(card, &party.block("27182")).await.unwrap();
    }
    let before = std::time::Instant::now();
    let mut calls = Vec::new();
    for number in 0..CONCURRENT {
        let (mut client, party) = (engine.client().await, Arc::clone(&party));
        let card = cards[number as usize % cards.len()];
        calls.push(tokio::spawn(async move { client.verify(card, &party.block("27183")).await.map(drop) }));
    }
    for call in calls {
        if let Err(status) = call.await.unwrap() {
            assert!(["WRONG_PIN_RATE", "PIN_LOCKED"].contains(&&*reason(&status)), "{status:?}");
        }
    }
    let mut used = 0;
    for card in cards {
        used += client.find(card).await.unwrap().reserved_try_count;
    }
    // The quota is renewed while the calls run.
    let renewed = before.elapsed().as_secs() * QUOTA / 60 + 1;
    assert!((1..=QUOTA + renewed).contains(&used), "{used} tries");
}

/// `Some` once these tries are reserved, and each is settled as right.
async fn every_try_is_settled(client: &mut Client, plastic_id: &str, tries: u64) -> Option<()> {
    let found = client.find(plastic_id).await.unwrap();
    (found.reserved_try_count == tries && found.used_try_count == 0).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_leaves_no_try_without_outcome() {
    const CALLS: u64 = 20;
    let party = ZoneParty::prepared();
    // The card is read until a try has its outcome.
    let engine = party.start("[limits]\ncalls_per_card_per_minute = 1000000");
    let mut client = engine.client().await;
    client.set_by_zone("3051", &party.block("27182")).await.unwrap();
    let mut tries = 0;
    for call in 0..CALLS {
        let (mut caller, block) = (engine.client().await, party.block("27182"));
        let verify = tokio::spawn(async move { caller.verify("3051", &block).await });
        // The engine has reserved the try, or the call has ended.
        let reserved = soon("the try is not reserved", async || {
            let found = client.find("3051").await.unwrap();
            (found.reserved_try_count > tries || verify.is_finished()).then_some(found.reserved_try_count)
        });
        reserved.await;
        verify.abort();
        tries = call + 1;
        soon("the try has no outcome", async || every_try_is_settled(&mut client, "3051", tries).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_before_a_comparison_uses_no_try() {
    let party = ZoneParty::prepared();
    // The vault has no verification key. A refusal that were charged would bar the caller at once.
    let keys = ["pvk:visa", "ibm-3624:visa"]
        .map(|name| format!("[[verification.keys]]\nname = {name:?}\ntenants = [{TENANT:?}]\n"))
        .concat();
    let engine = party.start(&format!("[verification]\nwrong_pins_per_caller_per_minute = 1\n{keys}"));
    let mut client = engine.client().await;
    client.set_by_zone("3021", &party.block("27182")).await.unwrap();
    let block = |name: &str| ZoneBlock { zone_key: Some(support::zone_party::zone(name)), ..party.block("27182") };
    assert_eq!(reason(&client.verify("3021", &block("other")).await.unwrap_err()), "ZONE_UNKNOWN");
    let iso_4 = ZoneBlock { format: proto::ZoneFormat::Iso4.into(), pin_block: vec![7; 16], ..party.block("27182") };
    assert_eq!(reason(&client.verify("3021", &iso_4).await.unwrap_err()), "ZONE_FORMAT");
    let long = ZoneBlock { pin_block: vec![7; 16], ..party.block("27182") };
    assert_eq!(reason(&client.verify("3021", &long).await.unwrap_err()), "PIN_BLOCK_LENGTH");
    let inactive = ZoneBlock {
        zone_key: Some(proto::ZoneKey { key_version: 9, ..support::zone_party::zone("app") }),
        ..party.block("27182")
    };
    assert_eq!(reason(&client.verify("3021", &inactive).await.unwrap_err()), "ZONE_UNKNOWN");
    let change_to_inactive = by_zone("3021", party.block("27182"), inactive);
    assert_eq!(reason(&change(&mut client, change_to_inactive).await.unwrap_err()), "ZONE_UNKNOWN");
    assert_eq!(client.find("3021").await.unwrap().reserved_try_count, 0);
    for unseen in [1, u64::MAX] {
        assert_eq!(reason(&reset(&mut client, "3021", unseen).await.unwrap_err()), "TRY_COUNT_INVALID");
    }

    client.register("3024", "5413330089020011").await.unwrap();
    let ibm_3624 = || Some(Ibm3624Key { name: "visa".into() });
    let pair = PvkPair { name: "visa".into(), pvki_number: 1 };
    for expected in [
        Expected::Pvv(ExpectedPvv { key_pair: Some(pair), digits: "8523".into() }),
        Expected::Ibm3624Offset(ExpectedOffset { key: ibm_3624(), digits: "12345".into() }),
        Expected::Ibm3624Natural(ExpectedNatural { key: ibm_3624(), digit_count: 5 }),
    ] {
        let request = VerifyPinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: "3024".into(),
            zone_block: Some(party.block("27182")),
            reference: Some(VerificationReference { expected: Some(expected) }),
        };
        let unknown = client.pins.verify_pin(request).await.err().unwrap();
        assert_eq!((unknown.code(), &*reason(&unknown)), (Code::NotFound, "VALUE_KEY_UNKNOWN"));
    }
    assert_eq!(client.find("3024").await.unwrap().reserved_try_count, 0);
    assert_eq!(client.verify("3021", &party.block("27183")).await.unwrap(), wrong(2), "nothing was charged");
    assert_eq!(engine.terminate(), 0);
    let exported = pinseal().args(["audit", "export", "--store"]).arg(party.directory().join("data/store")).output();
    let exported = String::from_utf8(exported.unwrap().stdout).unwrap();
    let refused = exported.lines().filter(|line| line.contains("\"outcome\":\"value_key_refused\""));
    assert_eq!(refused.count(), 3, "{exported}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_of_another_tenant_is_neither_verified_nor_changed() {
    const CARD: &str = "3025";
    const OTHER: &str = "other";
    let party = ZoneParty::prepared();
    party.ceremony().load_known("zone:abroad", 0x3D);
    let abroad = "[[zones]]\nname = \"abroad\"\ntenant = \"other\"\nindex = 7\nuses = [\"verify\", \"change\"]\n";
    let engine = party.start(abroad);
    let (device, mut client) = (device(), engine.client().await);
    client.set_by_zone(CARD, &party.block("27182")).await.unwrap();

    let verify = |zone_block: ZoneBlock| VerifyPinRequest {
        tenant: OTHER.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: CARD.into(),
        zone_block: Some(zone_block),
        reference: None,
    };
    let change =
        |change| ChangePinRequest { tenant: OTHER.into(), audit_user: AUDIT_USER.into(), change: Some(change) };
    // By the zone of the card's tenant, and by a zone of the caller's tenant.
    let abroad = || ZoneBlock { zone_key: Some(zone("abroad")), ..party.block("27182") };
    for (block, expected) in [(party.block("27182"), "ZONE_UNKNOWN"), (abroad(), "CARD_UNKNOWN")] {
        let refused = client.pins.verify_pin(verify(block.clone())).await.err().unwrap();
        assert_eq!((refused.code(), &*reason(&refused)), (Code::NotFound, expected));
        let changed = client.pins.change_pin(change(by_zone(CARD, block.clone(), block))).await.err().unwrap();
        assert_eq!((changed.code(), &*reason(&changed)), (Code::NotFound, expected));
    }
    // Under a control of the card's tenant.
    let control_id = client.open(CARD, Scope::SetPin).await.unwrap().control_id;
    let tzpk = client.tzpk(&control_id, &device).await.unwrap();
    let block = device.encrypt_pin(&tzpk, &device::Pin::parse("27182").unwrap(), device::Fill::Random).unwrap();
    let by_device = DevicePinChange { control_id, old_pin_block: block.into(), new_pin_block: block.into() };
    let refused = client.pins.change_pin(change(Change::DeviceChange(by_device))).await.err().unwrap();
    assert_eq!((refused.code(), &*reason(&refused)), (Code::PermissionDenied, "TENANT_MISMATCH"));
    let found = client.find(CARD).await.unwrap();
    assert_eq!((found.reserved_try_count, found.used_try_count), (0, 0));

    // A card of the other tenant with the same plasticId has its own PIN and tries.
    let register = proto::RegisterCardRequest {
        tenant: OTHER.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: CARD.into(),
        account_number: String::new(),
    };
    client.cards.register_card(register).await.unwrap();
    let no_pin = client.pins.verify_pin(verify(abroad())).await.err().unwrap();
    assert_eq!((no_pin.code(), &*reason(&no_pin)), (Code::NotFound, "PIN_NOT_SET"));
    assert_eq!(client.verify(CARD, &party.block("27182")).await.unwrap(), right(LIMIT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_that_does_not_answer_uses_no_try() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let mut client = engine.client().await;
    client.set_by_zone("3022", &party.block("27182")).await.unwrap();
    // The engine kills the process when it has not answered for a while.
    stop(engine.hsm_id().unwrap());
    let lost = client.verify("3022", &party.block("27182")).await.unwrap_err();
    assert!(matches!(lost.code(), Code::Unavailable | Code::DeadlineExceeded), "{lost:?}");
    let found = client.find("3022").await.unwrap();
    assert_eq!(found.reserved_try_count, 0);
    let verified =
        soon("the boundary does not serve", async || client.verify("3022", &party.block("27182")).await.ok());
    assert_eq!(verified.await, right(LIMIT));
}

/// Sends wrong PINs from many callers at once. Counts those that were answered.
async fn race(
    engine: &EngineProcess,
    party: &Arc<ZoneParty>,
    answered: &Arc<AtomicU32>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut racers = Vec::new();
    for number in 0..RACERS {
        let (mut client, party, answered) = (engine.client().await, Arc::clone(party), Arc::clone(answered));
        racers.push(tokio::spawn(async move {
            match client.verify("3031", &party.block(&format!("4{number:04}"))).await {
                Ok(answer) => {
                    assert_eq!(answer.0, wrong(0).0);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(status) if status.code() == Code::FailedPrecondition => assert_eq!(reason(&status), "PIN_LOCKED"),
                // The engine was killed: the connection ended (tonic: Unavailable or Unknown, without a reason), or its
                // client was not connected yet.
                Err(status) => {
                    assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{status:?}")
                }
            }
        }));
    }
    racers
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_wrong_pins_and_kills_never_allow_more_tries_than_the_limit() {
    let party = Arc::new(ZoneParty::prepared());
    let kills = std::env::var("PINSEAL_VERIFICATION_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let mut used_in_all = 0;
    for kill in 0..kills {
        let engine = party.start_quiet("");
        let mut client = engine.client().await;
        client.set_by_zone("3031", &party.block(&format!("27{kill:03}9"))).await.unwrap();
        let seen = client.find("3031").await.unwrap().reserved_try_count;
        assert_eq!(reset(&mut client, "3031", seen).await.unwrap(), 0);
        let answered = Arc::new(AtomicU32::new(0));
        let racers = race(&engine, &party, &answered).await;
        // Kills after 0 to 3 answers, in turn.
        soon("there are no answers", async || (answered.load(Ordering::Relaxed) >= kill % (LIMIT + 1)).then_some(()))
            .await;
        engine.kill();
        for racer in racers {
            racer.await.unwrap();
        }

        let engine = party.start_quiet("");
        let mut client = engine.client().await;
        let after_kill = client.find("3031").await.unwrap();
        assert!(after_kill.used_try_count >= answered.load(Ordering::Relaxed).into(), "an answered try is lost");
        for racer in race(&engine, &party, &answered).await {
            racer.await.unwrap();
        }
        let found = client.find("3031").await.unwrap();
        assert!(
            answered.load(Ordering::Relaxed) <= LIMIT,
            "{} wrong PINs were answered",
            answered.load(Ordering::Relaxed)
        );
        assert_eq!((found.used_try_count, found.reserved_try_count - seen), (LIMIT.into(), LIMIT.into()));
        used_in_all += found.used_try_count;
        assert_eq!(engine.terminate(), 0);
    }
    assert_eq!(used_in_all, u64::from(kills * LIMIT));
}
