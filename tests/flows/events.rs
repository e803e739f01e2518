//! The events of a tenant: a card system follows them, and resumes by their numbers.

use std::{fs, time::Duration};

use futures::stream;
use proto::{
    FollowEventsRequest, FollowEventsResponse, NumberedSet, PinEventKind as Kind, ResetTriesRequest, SetPinsRequest,
    ZoneFormat, bulk_service_client::BulkServiceClient, event_service_client::EventServiceClient,
};
use tonic::{Code, Status, Streaming, transport::Channel};

use support::{
    engine_process::{AUDIT_USER, EngineProcess, TENANT, device, reason},
    wait::{soon, within},
    zone_party::ZoneParty,
};

async fn follow(
    engine: &EngineProcess,
    tenant: &str,
    start_sequence: u64,
) -> Result<Streaming<FollowEventsResponse>, Status> {
    let request = FollowEventsRequest { tenant: tenant.into(), audit_user: AUDIT_USER.into(), start_sequence };
    Ok(EventServiceClient::new(engine.channel().await).follow_events(request).await?.into_inner())
}

/// The next events.
async fn next(events: &mut Streaming<FollowEventsResponse>, count: usize) -> Vec<FollowEventsResponse> {
    let mut read = Vec::new();
    while read.len() < count {
        let message = events.message().await.unwrap().unwrap();
        if message.event.is_some() {
            read.push(message);
        }
    }
    read
}

fn kinds(events: &[FollowEventsResponse]) -> Vec<&'static str> {
    events.iter().map(|message| message.event.as_ref().unwrap().kind().as_str_name()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_were_archived_are_refused_by_their_number() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "3301", "27182").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    let engine = EngineProcess::start(directory.path(), "[audit]\nretention_days = 0");
    let refused = soon("nothing is archived", async || follow(&engine, TENANT, 1).await.err());
    let refused = refused.await;
    assert_eq!((refused.code(), &*reason(&refused)), (Code::OutOfRange, "EVENTS_ARCHIVED"));
    // The oldest event of the store, without a number.
    let mut events = follow(&engine, TENANT, 0).await.unwrap();
    engine.client().await.set(&device, "3301", "31415").await.unwrap();
    assert_eq!(kinds(&next(&mut events, 1).await), [Kind::Set.as_str_name()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_next_events_were_archived_gets_that_reason() {
    /// More events than the engine sends to a client that does not read.
    const EVENTS: u64 = 8_000;
    /// The engine archives again a minute after a failure.
    const ARCHIVED_WITHIN: Duration = Duration::from_secs(300);
    let party = ZoneParty::prepared();
    let engine = party.start_quiet("");
    let block = party.block("27182");
    let set = |sequence| NumberedSet {
        sequence,
        plastic_id: (570_000 + sequence).to_string(),
        zone_block: Some(block.clone()),
    };
    let messages = (0..EVENTS / 100).map(|message| SetPinsRequest {
        tenant: if message == 0 { TENANT.into() } else { String::new() },
        audit_user: if message == 0 { AUDIT_USER.into() } else { String::new() },
        items: (100 * message..100 * (message + 1)).map(set).collect(),
    });
    let messages: Vec<_> = messages.collect();
    let mut bulk = BulkServiceClient::new(engine.channel().await);
    let mut outcomes = bulk.set_pins(stream::iter(messages)).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(answer) = outcomes.message().await.unwrap() {
        count += answer.outcomes.len() as u64;
    }
    assert_eq!(count, EVENTS);
    assert_eq!(engine.terminate(), 0);

    // A file in the place of its directory keeps the archive from being written until the follower has begun.
    let archive = party.directory().join("archive");
    fs::write(&archive, "").unwrap();
    let engine = party.start_quiet(&format!("[audit]\nretention_days = 0\narchive_directory = {archive:?}"));
    let endpoint = Channel::from_shared(format!("http://{}", engine.address())).unwrap();
    let channel = endpoint.initial_stream_window_size(1_024).connect().await.unwrap();
    let request = FollowEventsRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), start_sequence: 1 };
    let mut events = EventServiceClient::new(channel).follow_events(request).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap().sequence;
    fs::remove_file(&archive).unwrap();
    let refused = within(ARCHIVED_WITHIN, "nothing is archived", async || follow(&engine, TENANT, 1).await.err());
    assert_eq!(reason(&refused.await), "EVENTS_ARCHIVED");
    // What was on its way arrives in order; then the stream ends with the reason, not with a gap.
    let mut last = first;
    let end = loop {
        match events.message().await {
            Ok(Some(message)) => {
                assert_eq!(message.sequence, last + 1, "an event is lost");
                last = message.sequence;
            }
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), &*reason(&end)), (Code::OutOfRange, "EVENTS_ARCHIVED"));
    assert!(last - first < EVENTS - 1, "every event was on its way");
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_system_follows_what_happens_to_its_pins_and_resumes() {
    let party = ZoneParty::prepared();
    let engine = party.start("");
    let (device, mut client) = (device(), engine.client().await);
    let account = "4716258093174820";
    let reference = client.register("345678901234", account).await.unwrap();
    let mut events = follow(&engine, TENANT, 0).await.unwrap();

    client.set(&device, "345678901234", "27182").await.unwrap();
    client.view(&device, "345678901234").await.unwrap();
    let set = party.block("31415");
    client.set_by_zone("345678901234", &set).await.unwrap();
    client.set_by_zone("345678901234", &set).await.unwrap();
    client.get_by_zone("345678901234").await.unwrap();
    client.export("345678901234", ZoneFormat::Iso0).await.unwrap();
    client.verify("345678901234", &party.block("31415")).await.unwrap();
    for _ in 0..3 {
        client.verify("345678901234", &party.block("31416")).await.unwrap();
    }
    let reset = ResetTriesRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "345678901234".into(),
        reserved_try_count: 4,
    };
    client.cards.reset_tries(reset).await.unwrap();
    client.register("345678901234", "5329071846302915").await.unwrap();

    let expected = [
        Kind::Set,
        Kind::Viewed,
        Kind::SetFromZone,
        Kind::GivenToZone,
        Kind::Exported,
        Kind::VerifiedWrong,
        Kind::VerifiedWrong,
        Kind::Locked,
        Kind::TriesReset,
        Kind::AccountChanged,
    ];
    let seen = next(&mut events, expected.len()).await;
    assert_eq!(kinds(&seen), expected.map(|kind| kind.as_str_name()));
    for message in &seen {
        let event = message.event.as_ref().unwrap();
        assert_eq!((&event.card_reference, &*event.audit_user), (&reference, AUDIT_USER));
        assert!(event.masked_card.contains('*') && !event.request_id.is_empty(), "{}", event.masked_card);
        let of_zone = !matches!(event.kind(), Kind::Set | Kind::Viewed | Kind::TriesReset | Kind::AccountChanged);
        assert_eq!(event.key, if of_zone { "zone:app" } else { "" });
    }
    let tries = seen.iter().map(|message| message.event.as_ref().unwrap().remaining_try_count);
    assert_eq!(tries.collect::<Vec<_>>(), [0, 0, 0, 0, 0, 2, 1, 0, 3, 0]);

    // A cut after any event loses none and doubles none, also over a restart.
    drop(events);
    assert_eq!(engine.terminate(), 0);
    let engine = party.start("");
    for (at, last) in seen.iter().enumerate().take(seen.len() - 1) {
        let mut resumed = follow(&engine, TENANT, last.sequence + 1).await.unwrap();
        assert!(next(&mut resumed, expected.len() - at - 1).await == seen[at + 1..], "resumed after {at}");
    }

    // Another tenant sees none of them.
    let mut client = engine.client().await;
    let mut other = follow(&engine, "other", 0).await.unwrap();
    let plastic_id = "345678901234";
    let open = proto::RegisterCardRequest {
        tenant: "other".into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic_id.into(),
        account_number: String::new(),
    };
    client.cards.register_card(open).await.unwrap();
    let generate = proto::GeneratePinRequest {
        tenant: "other".into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic_id.into(),
        digit_count: 4,
    };
    client.pins.generate_pin(generate).await.unwrap();
    assert_eq!(kinds(&next(&mut other, 1).await), [Kind::Generated.as_str_name()]);
    let stopped = tokio::task::spawn_blocking(move || engine.terminate());
    let end = loop {
        match other.message().await {
            Ok(Some(message)) => assert!(message.event.is_none(), "an event of another tenant"),
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&end), "ENGINE_STOPS");
    assert_eq!(stopped.await.unwrap(), 0);
}
