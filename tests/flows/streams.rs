//! Streams of items: an outcome an item, in order; a cut stream resumes; a client that does not read stops its own work alone.

use std::{fs, time::Duration};

use futures::{StreamExt, stream};
use proto::{
    BlockOutcome, ExportPinsRequest, NumberedExport, NumberedSet, NumberedTranslation, PinStatus, SetOutcome,
    SetPinsRequest, TranslatePinBlocksRequest, TranslationItem, ZoneBlock, ZoneFormat, block_outcome,
    bulk_service_client::BulkServiceClient, set_outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, transport::Channel};

use support::{
    ceremony::pinseal,
    certificates::{certificates, channel_as, peer},
    engine_process::{AUDIT_USER, EngineProcess, TENANT, device, reason},
    wait::{signal, soon},
    zone_party::{ZoneParty, zone},
};

fn set_of(sequence: u64, plastic_id: u64, zone_block: &ZoneBlock) -> NumberedSet {
    NumberedSet { sequence, plastic_id: plastic_id.to_string(), zone_block: Some(zone_block.clone()) }
}

/// The messages of a stream of sets: the first names tenant and user.
fn messages(items: Vec<NumberedSet>, items_per_message: usize) -> Vec<SetPinsRequest> {
    let mut messages: Vec<_> = items
        .chunks(items_per_message)
        .map(|items| SetPinsRequest { tenant: String::new(), audit_user: String::new(), items: items.to_vec() })
        .collect();
    (messages[0].tenant, messages[0].audit_user) = (TENANT.into(), AUDIT_USER.into());
    messages
}

/// The outcomes until the stream ends, and the status of its end.
async fn outcomes_of(
    client: &mut BulkServiceClient<Channel>,
    requests: Vec<SetPinsRequest>,
) -> (Vec<SetOutcome>, Result<(), Status>) {
    let mut outcomes = Vec::new();
    let mut answers = match client.set_pins(stream::iter(requests)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (outcomes, Err(status)),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => outcomes.extend(answer.outcomes),
            Ok(None) => return (outcomes, Ok(())),
            Err(status) => return (outcomes, Err(status)),
        }
    }
}

/// The number of entries of the audit chain with this action or type.
fn audited(party: &ZoneParty, text: &str) -> Vec<serde_json::Value> {
    let exported = pinseal().args(["audit", "export", "--store"]).arg(party.directory().join("data/store")).output();
    let exported = String::from_utf8(exported.unwrap().stdout).unwrap();
    let entries = exported.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    entries.filter(|entry| entry["event"]["action"] == text || entry["event"]["type"] == text).collect()
}

async fn bulk(engine: &EngineProcess) -> BulkServiceClient<Channel> {
    BulkServiceClient::new(engine.channel().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_has_its_outcome_and_the_items_of_a_card_keep_their_order() {
    let party = ZoneParty::prepared();
    let engine = party.start_quiet("");
    let mut client = bulk(&engine).await;
    let mut items: Vec<_> =
        (0..300).map(|n| set_of(5 + n, 500_000 + n % 7, &party.block(&format!("5{n:04}7")))).collect();
    items[10].plastic_id = "not a card".into();
    items[11].zone_block = Some(party.encrypted(ZoneFormat::Iso1, &[0x2F; 8]));
    items[12].zone_block = None;
    let (outcomes, end) = outcomes_of(&mut client, messages(items, 9)).await;
    end.unwrap();
    assert_eq!(outcomes.iter().map(|outcome| outcome.sequence).collect::<Vec<_>>(), (5..305).collect::<Vec<_>>());
    for (at, outcome) in outcomes.iter().enumerate() {
        let refused = match outcome.result.as_ref().unwrap() {
            set_outcome::Result::Unchanged(unchanged) => {
                assert!(!unchanged);
                None
            }
            set_outcome::Result::Error(error) => Some(&*error.reason),
        };
        let expected = [(10, "PLASTIC_ID_INVALID"), (11, "PIN_BLOCK_MALFORMED"), (12, "ZONE_INVALID")];
        assert_eq!(refused, expected.iter().find(|(wrong, _)| *wrong == at).map(|(_, reason)| *reason), "item {at}");
    }
    let (device, mut client) = (device(), engine.client().await);
    for n in 293..300 {
        assert_eq!(client.view(&device, &(500_000 + n % 7).to_string()).await.unwrap(), format!("5{n:04}7"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_a_gap_or_a_second_tenant_is_ended() {
    let party = ZoneParty::prepared();
    let engine = party.start_quiet("");
    let mut client = bulk(&engine).await;
    let items = |numbers: &[u64]| numbers.iter().map(|n| set_of(*n, 510_000 + n, &party.block("27182"))).collect();
    let (outcomes, end) = outcomes_of(&mut client, messages(items(&[1, 2, 4]), 1)).await;
    assert_eq!((outcomes.len(), &*reason(&end.unwrap_err())), (2, "ITEM_NUMBER"));
    let mut twice = messages(items(&[1, 2]), 1);
    twice[1].tenant = TENANT.into();
    let (outcomes, end) = outcomes_of(&mut client, twice).await;
    assert_eq!((outcomes.len(), &*reason(&end.unwrap_err())), (1, "TENANT_INVALID"));
    let (_, end) = outcomes_of(&mut client, vec![SetPinsRequest::default()]).await;
    assert_eq!(reason(&end.unwrap_err()), "TENANT_INVALID");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_may_succeed_later_ends_a_stream_of_sets() {
    const CALLS_PER_CARD: usize = 3;
    let party = ZoneParty::prepared();
    let engine = party.start_quiet(&format!("[limits]\ncalls_per_card_per_minute = {CALLS_PER_CARD}"));
    let blocks: Vec<_> = (0..6).map(|n| party.block(&format!("5{n:04}7"))).collect();
    let items = blocks.iter().zip(1..).map(|(block, n)| set_of(n, 511_000, block)).collect();
    let (outcomes, end) = outcomes_of(&mut bulk(&engine).await, messages(items, 1)).await;
    let end = end.unwrap_err();
    assert_eq!((end.code(), &*reason(&end)), (Code::ResourceExhausted, "CARD_RATE"));
    assert_eq!(outcomes.len(), CALLS_PER_CARD, "the item of the status has no outcome");
    assert!(outcomes.iter().all(|outcome| matches!(outcome.result, Some(set_outcome::Result::Unchanged(false)))));
    assert_eq!(engine.terminate(), 0);
    assert_eq!(audited(&party, "set_pin_by_zone").len(), CALLS_PER_CARD, "a later item of the card was carried out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_loses_its_role_ends_its_stream_at_the_next_item() {
    let party = ZoneParty::prepared();
    let (tls, _) = certificates(party.directory());
    let engine = party.start(&format!("{tls}\n{}", peer("client", "\"zone-set\"")));
    let mut client = BulkServiceClient::new(channel_as("client", party.directory(), &engine));
    const ITEMS: u64 = 200;
    let (sender, requests) = mpsc::channel(1);
    let block = party.block("27182");
    let sets = (0..ITEMS).map(|n| set_of(n, 512_000 + n, &block)).collect();
    let mut sets = messages(sets, 100).into_iter();
    sender.send(sets.next().unwrap()).await.unwrap();
    let mut answers = client.set_pins(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut done = 0;
    while done < 100 {
        done += answers.message().await.unwrap().unwrap().outcomes.len();
    }
    let file = party.directory().join("engine.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("client.pinseal.test", "operator.pinseal.test")).unwrap();
    signal(engine.id(), "HUP");
    let channel = channel_as("client", party.directory(), &engine);
    let repeated = BulkServiceClient::new(channel);
    let first = || messages(vec![set_of(1, 512_000, &block)], 1);
    let denied = soon("the peer keeps its role", async || outcomes_of(&mut repeated.clone(), first()).await.1.err());
    assert_eq!(reason(&denied.await), "CALLER_FORBIDDEN");
    sender.send(sets.next().unwrap()).await.unwrap();
    let end = answers.message().await.err().unwrap();
    assert_eq!((end.code(), &*reason(&end)), (Code::PermissionDenied, "CALLER_FORBIDDEN"));
    assert_eq!(engine.terminate(), 0);
    assert_eq!(audited(&party, "set_pin_by_zone").len(), 100, "an item of the second message was carried out");
    // The gate has no tenant of a denied call; the stream has.
    let denials = audited(&party, "call_denied").into_iter().filter(|entry| entry["tenant"] == TENANT);
    assert_eq!(denials.count(), 1, "the denial within the stream is audited once");
}

/// Random numbers of a seed, by xorshift64.
struct Random(u64);

impl Random {
    /// By the seed in `PINSEAL_STREAM_SEED`, else by another one in each run. A failed test prints its seed.
    #[expect(clippy::print_stderr, reason = "a person who repeats a failed test needs the seed")]
    fn seeded() -> Self {
        let time = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        let seed = std::env::var("PINSEAL_STREAM_SEED").map_or(u64::from(time) | 1, |seed| seed.parse().unwrap());
        eprintln!("PINSEAL_STREAM_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_at_a_random_item_resumes_without_one_lost_or_doubled() {
    const ITEMS: u64 = 2_000;
    const CUTS: u64 = 6;
    let mut random = Random::seeded();
    let party = ZoneParty::prepared();
    let mut engine = party.start_quiet("");
    let blocks: Vec<_> = (0..ITEMS).map(|n| party.block(&format!("5{n:04}7"))).collect();
    let items_from = |first: u64| {
        (first..ITEMS).map(|n| set_of(n, 520_000 + n, &blocks[usize::try_from(n).unwrap()])).collect::<Vec<_>>()
    };
    // Counts the outcomes of a stream. Those of the items that were set before a cut come first, and change nothing.
    let count = |outcomes: Vec<SetOutcome>, next: &mut u64, was_cut: bool| {
        for outcome in outcomes {
            assert_eq!(outcome.sequence, *next, "an outcome is lost or doubled");
            match outcome.result.unwrap() {
                set_outcome::Result::Unchanged(unchanged) => assert!(was_cut || !unchanged, "{next} is set twice"),
                set_outcome::Result::Error(error) => panic!("{}: {}", error.reason, error.message),
            }
            *next += 1;
        }
    };
    let (mut next, mut was_cut) = (0, false);
    for cut in 0..CUTS {
        let mut answers =
            bulk(&engine).await.set_pins(stream::iter(messages(items_from(next), 5))).await.unwrap().into_inner();
        let until = next + random.below(ITEMS / CUTS);
        let first = next;
        while next < until || (was_cut && next == first) {
            let outcomes = answers.message().await.unwrap().unwrap().outcomes;
            // Its outcome was lost in the cut before.
            let is_unchanged = matches!(outcomes[0].result, Some(set_outcome::Result::Unchanged(true)));
            assert!(next > first || !was_cut || is_unchanged, "item {first} was set twice");
            count(outcomes, &mut next, was_cut);
        }
        if next == ITEMS {
            break;
        }
        // The cut falls between the set of an item and its outcome.
        let mut client = engine.client().await;
        let card = (520_000 + next).to_string();
        soon("the engine does not set the next PIN", async || {
            client.find(&card).await.is_ok_and(|card| card.pin_status() == PinStatus::Set).then_some(())
        })
        .await;
        was_cut = true;
        if cut % 2 == 0 {
            // The client goes away.
            drop(answers);
        } else {
            engine.kill();
            engine = party.start_quiet("");
        }
    }
    let (outcomes, end) = outcomes_of(&mut bulk(&engine).await, messages(items_from(next), 5)).await;
    end.unwrap();
    count(outcomes, &mut next, was_cut);
    assert_eq!(next, ITEMS);
    let (device, mut client) = (device(), engine.client().await);
    for n in (0..ITEMS).step_by(97) {
        assert_eq!(client.view(&device, &(520_000 + n).to_string()).await.unwrap(), format!("5{n:04}7"));
    }
    assert_eq!(engine.terminate(), 0);
    // Each PIN was set once, also where its outcome was lost in a cut and the item was sent again.
    assert_eq!(audited(&party, "set_pin_by_zone").len() as u64, ITEMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_or_the_age_of_its_connection_ends_a_stream_with_its_reason() {
    let party = ZoneParty::prepared();
    let (tls, _) = certificates(party.directory());
    let engine =
        party.start_quiet(&format!("connection_age_seconds_max = 1\n{tls}\n{}", peer("client", "\"zone-set\"")));
    for (timeout, code, expected) in [
        (Duration::from_millis(300), Code::DeadlineExceeded, "DEADLINE_PASSED"),
        (Duration::from_secs(3_600), Code::Unavailable, "CONNECTION_AGE"),
    ] {
        let (sender, requests) = mpsc::channel(1);
        let first = messages(vec![set_of(1, 551_001, &party.block("27182"))], 1).remove(0);
        sender.send(first).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(requests));
        // As text, so that the client itself has no timeout.
        request.metadata_mut().insert("grpc-timeout", format!("{}m", timeout.as_millis()).parse().unwrap());
        let mut client = BulkServiceClient::new(channel_as("client", party.directory(), &engine));
        let mut answers = client.set_pins(request).await.unwrap().into_inner();
        let end = loop {
            match answers.message().await {
                Ok(answer) => assert_eq!(answer.unwrap().outcomes.len(), 1),
                Err(status) => break status,
            }
        };
        assert_eq!((end.code(), &*reason(&end)), (code, expected));
        drop(sender);
    }
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_and_translations_are_answered_in_order_and_audited() {
    const CARDS: u64 = 200;
    let party = ZoneParty::prepared();
    let engine = party.start_quiet("");
    let mut client = bulk(&engine).await;
    const ACCOUNT: &str = "5413330089020011";
    let card = |n: u64| 530_000 + n;
    let mut cards = engine.client().await;
    for n in 0..CARDS {
        cards.register(&card(n).to_string(), ACCOUNT).await.unwrap();
    }
    let sets = (0..CARDS).map(|n| set_of(n, card(n), &party.block(&format!("5{n:04}7")))).collect();
    let (_, end) = outcomes_of(&mut client, messages(sets, 20)).await;
    end.unwrap();

    let exports = (0..=CARDS).map(|n| NumberedExport {
        sequence: n,
        plastic_id: card(n).to_string(),
        zone_key: Some(zone("app")),
        format: ZoneFormat::Iso0.into(),
    });
    let (tenant, audit_user) = (TENANT.to_owned(), AUDIT_USER.to_owned());
    let request =
        ExportPinsRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), items: exports.collect() };
    let answers = client.export_pins(stream::iter([request])).await.unwrap().into_inner();
    let exported: Vec<BlockOutcome> = answers.flat_map(|answer| stream::iter(answer.unwrap().outcomes)).collect().await;
    let mut blocks = Vec::new();
    for (n, outcome) in exported.into_iter().enumerate() {
        assert_eq!(outcome.sequence, n as u64);
        match outcome.result.unwrap() {
            block_outcome::Result::PinBlock(block) => {
                assert_eq!(party.decrypted_bound(&block, ACCOUNT), format!("5{n:04}7"));
                blocks.push(block);
            }
            block_outcome::Result::Error(error) => assert_eq!((n as u64, &*error.reason), (CARDS, "PIN_NOT_SET")),
        }
    }
    assert_eq!(blocks.len() as u64, CARDS);

    let translations = blocks.iter().enumerate().map(|(n, block)| NumberedTranslation {
        sequence: 1_000 + n as u64,
        item: Some(TranslationItem {
            plastic_id: card(n as u64).to_string(),
            source_block: Some(ZoneBlock {
                zone_key: Some(zone("app")),
                format: ZoneFormat::Iso0.into(),
                pin_block: block.clone(),
            }),
            target_key: Some(zone("app")),
            target_format: ZoneFormat::Iso3.into(),
            sealed_account: Vec::new(),
        }),
    });
    let mut requests: Vec<_> = translations
        .collect::<Vec<_>>()
        .chunks(50)
        .map(|items| TranslatePinBlocksRequest { items: items.to_vec(), ..Default::default() })
        .collect();
    (requests[0].tenant, requests[0].audit_user) = (tenant, audit_user);
    let answers = client.translate_pin_blocks(stream::iter(requests)).await.unwrap().into_inner();
    let translated: Vec<BlockOutcome> =
        answers.flat_map(|answer| stream::iter(answer.unwrap().outcomes)).collect().await;
    for (n, outcome) in translated.iter().enumerate() {
        let Some(block_outcome::Result::PinBlock(block)) = &outcome.result else { panic!("item {n} failed") };
        assert_eq!(outcome.sequence, 1_000 + n as u64);
        assert_eq!(party.decrypted_bound(block, ACCOUNT), format!("5{n:04}7"));
    }
    assert_eq!(translated.len() as u64, CARDS);
    assert_eq!(engine.terminate(), 0);

    let done = |entries: Vec<serde_json::Value>| entries.into_iter().filter(|entry| entry["outcome"] == "done");
    assert_eq!(done(audited(&party, "export_pin")).count() as u64, CARDS);
    let segments: Vec<_> = done(audited(&party, "blocks_translated")).collect();
    let counts = segments.iter().map(|entry| entry["event"]["count"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), CARDS);
    assert!(segments.len() <= 20, "{} events of {CARDS} items", segments.len());
    for segment in segments {
        let event = &segment["event"];
        assert_eq!((&event["source_key"], &event["target_key"]), (&"zone:app".into(), &"zone:app".into()));
        assert_eq!(event["formats"], serde_json::json!({ "from": "iso-0", "to": "iso-3" }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_its_own_work_and_no_other() {
    const ITEMS: u64 = 100_000;
    let party = ZoneParty::prepared();
    let engine = party.start_quiet("");
    let block = party.block("27182");
    let (sender, requests) = mpsc::channel(1);
    let sends = tokio::spawn(async move {
        let mut sent = 0;
        for message in messages((0..ITEMS).map(|n| set_of(n, 540_000 + n, &block)).collect(), 50) {
            if sender.send(message).await.is_err() {
                break;
            }
            sent += 50;
        }
        sent
    });
    // The client's HTTP/2 takes this many bytes of outcomes before anyone reads.
    let endpoint = Channel::from_shared(format!("http://{}", engine.address())).unwrap();
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let mut silent = BulkServiceClient::new(channel);
    let answers = silent.set_pins(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let memory = engine.resident_kibibytes();

    // The store has fewer and fewer cards to add, then none.
    let mut client = engine.client().await;
    let set = async |client: &mut support::engine_process::Client| {
        let mut cards = 0;
        while cards < ITEMS && client.find(&(540_000 + cards).to_string()).await.is_ok() {
            cards += 1_000;
        }
        cards
    };
    let mut before = None;
    soon("the stream does not stop", async || {
        let now = set(&mut client).await;
        let stands = before == Some(now);
        before = Some(now);
        tokio::time::sleep(Duration::from_millis(300)).await;
        stands.then_some(())
    })
    .await;
    assert!(before.unwrap() < ITEMS, "the engine worked on items whose outcomes nobody reads");
    assert!(!sends.is_finished(), "the engine read every item");
    assert!(engine.resident_kibibytes() < memory + 64 * 1_024, "the stream takes memory");

    // Another client is served.
    let (device, mut other) = (device(), engine.client().await);
    other.set(&device, "3201", "27182").await.unwrap();
    let (outcomes, end) =
        outcomes_of(&mut bulk(&engine).await, messages(vec![set_of(1, 3_202, &party.block("31415"))], 1)).await;
    assert!(end.is_ok() && outcomes.len() == 1);

    // The client reads on: no outcome is lost.
    let read = answers.map(|answer| answer.unwrap().outcomes.len() as u64).take_while({
        let mut seen = 0;
        move |outcomes| {
            seen += outcomes;
            std::future::ready(seen < ITEMS / 10)
        }
    });
    assert!(read.fold(0, async |sum, outcomes| sum + outcomes).await > ITEMS / 20);
    assert_eq!(engine.terminate(), 0);
    assert!(sends.await.unwrap() < ITEMS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_engine_ends_a_stream_with_its_reason() {
    let party = ZoneParty::prepared();
    let engine = party.start_quiet("");
    let (sender, requests) = mpsc::channel(1);
    let first = messages(vec![set_of(1, 550_001, &party.block("27182"))], 1).remove(0);
    sender.send(first).await.unwrap();
    let mut answers = bulk(&engine).await.set_pins(ReceiverStream::new(requests)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().outcomes.len(), 1);
    let stopped = tokio::task::spawn_blocking(move || engine.terminate());
    let end = answers.message().await.err().unwrap();
    assert_eq!((end.code(), &*reason(&end)), (Code::Unavailable, "ENGINE_STOPS"));
    assert_eq!(stopped.await.unwrap(), 0);
}
