//! Roles: every method of every service, and the audit entries that an auditor may read.

use std::collections::BTreeSet;

use prost::Message;
use proto::{
    self, ExportAuditRequest, OpenControlRequest, Scope, StartPageRequest, audit_service_client::AuditServiceClient,
    control_service_client::ControlServiceClient,
};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use support::{
    certificates::{certificates, channel_as, peer},
    engine_process::{AUDIT_USER, EngineProcess, reason},
    wait::{signal, soon},
};

/// The part of google.protobuf.FileDescriptorSet that lists the services.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
}

/// The first field of every request about a card.
#[derive(Clone, PartialEq, Message)]
struct ForTenant {
    #[prost(string, tag = "1")]
    tenant: String,
}

/// The entry of a message, as the commands print it.
fn entry_json(response: proto::ExportAuditResponse) -> serde_json::Value {
    serde_json::from_str(&audit_wire::read_entry(response.entry.unwrap()).unwrap().to_json()).unwrap()
}

/// Every role, with the methods that it may call.
const ROLES: [(&str, &[&str]); 9] = [
    (
        "edge-set",
        &[
            "ControlService/OpenControl",
            "ControlService/StartPage",
            "PinService/IssueTzpk",
            "PinService/SetPin",
            "PinService/ChangePin",
            "AuditService/RecordRejectedCredentials",
            "AuditService/RecordClientDenial",
            "EdgeService/ExchangeCalls",
        ],
    ),
    (
        "edge-view",
        &[
            "ControlService/OpenControl",
            "ControlService/StartPage",
            "PinService/ViewPin",
            "AuditService/RecordRejectedCredentials",
            "AuditService/RecordClientDenial",
            "EdgeService/ExchangeCalls",
        ],
    ),
    (
        "card-system",
        &[
            "CardService/RegisterCard",
            "CardService/FindCard",
            "CardService/ResetTries",
            "PinService/GeneratePin",
            "PinService/TransferPin",
            "PinService/ExportPin",
            "PinService/DeriveVerificationValue",
            "BulkService/ExportPins",
            "EventService/FollowEvents",
        ],
    ),
    (
        "authorization-host",
        &[
            "PinService/VerifyPin",
            "PinService/ChangePin",
            "PinService/ExportPin",
            "PinService/DeriveVerificationValue",
            "PinService/TranslatePinBlock",
            "PinService/SealPan",
            "BulkService/ExportPins",
            "BulkService/TranslatePinBlocks",
        ],
    ),
    (
        "zone-set",
        &[
            "PinService/SetPinByZone",
            "BulkService/SetPins",
            "AuditService/RecordRejectedCredentials",
            "AuditService/RecordClientDenial",
            "EdgeService/ExchangeCalls",
        ],
    ),
    (
        "zone-get",
        &[
            "PinService/GetPinByZone",
            "AuditService/RecordRejectedCredentials",
            "AuditService/RecordClientDenial",
            "EdgeService/ExchangeCalls",
        ],
    ),
    ("custodian", &["KeyService/ListKeys", "KeyService/CountRecords"]),
    ("auditor", &["AuditService/ExportAudit", "AuditService/GetCheckpoint"]),
    ("operator", &["KeyService/ListKeys", "KeyService/CountRecords", "KeyService/WatchRotation"]),
];

/// Service and path of every method.
fn methods() -> Vec<(String, String)> {
    let described = Files::decode(proto::DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in &described.files {
        for service in &file.services {
            let name = format!("{}.{}", file.package, service.name);
            methods.extend(service.methods.iter().map(|method| (name.clone(), format!("/{name}/{}", method.name))));
        }
    }
    methods
}

/// The answer of a method to a request of this tenant.
async fn call(channel: &Channel, path: &str, tenant: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = Request::new(ForTenant { tenant: tenant.into() });
    let codec = ProstCodec::<ForTenant, ()>::default();
    grpc.server_streaming(request, path.parse().unwrap(), codec).await?.into_inner().message().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_may_call_its_methods_and_no_other() {
    let served: Vec<_> = methods().into_iter().map(|(_, path)| path).collect();
    let full = |method: &&str| format!("/pinseal.v1.{method}");
    let named: BTreeSet<_> = ROLES.iter().flat_map(|(_, methods)| methods.iter().map(full)).collect();
    assert_eq!(named, served.iter().cloned().collect(), "ROLES names every method");

    let holders = ["edge", "client", "operator"];
    for roles in ROLES.chunks(holders.len()) {
        let directory = tempfile::tempdir().unwrap();
        let (tls, _) = certificates(directory.path());
        let entry = |((role, _), holder): (&(&str, &[&str]), &str)| peer(holder, &format!("{role:?}"));
        let peers = roles.iter().zip(holders).map(entry).collect::<String>();
        let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{peers}"));
        for (at, holder) in holders.into_iter().enumerate() {
            let channel = channel_as(holder, directory.path(), &engine);
            for path in &served {
                let refused =
                    call(&channel, path, "").await.err().filter(|status| reason(status) == "CALLER_FORBIDDEN");
                let role = roles.get(at).map(|(role, _)| *role);
                let may = roles.get(at).is_some_and(|(_, methods)| methods.iter().any(|method| full(method) == *path));
                assert_eq!(refused.is_none(), may, "{path} by {role:?}");
                if let Some(refused) = refused {
                    let words = match role {
                        Some(_) => "has no role for this call: add `".to_owned(),
                        None => format!("add [[peers]] with certificate_name = \"{holder}.pinseal.test\""),
                    };
                    assert_eq!(refused.code(), Code::PermissionDenied, "{path} by {role:?}");
                    assert!(refused.message().contains(&words), "{path} by {role:?}: {}", refused.message());
                }
            }
        }
        assert_eq!(engine.terminate(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_method_serves_a_peer_for_another_tenant() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let roles = r#""edge-set", "edge-view", "card-system", "authorization-host", "zone-set", "zone-get""#;
    let peers = peer("edge", roles) + "tenants = [\"bank\"]\n";
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{peers}"));
    let edge = channel_as("edge", directory.path(), &engine);
    for (service, path) in methods() {
        let names_a_tenant = path == "/pinseal.v1.AuditService/RecordClientDenial"
            || ["Control", "Pin", "Card", "Bulk", "Event"]
                .iter()
                .any(|of| service == format!("pinseal.v1.{of}Service"));
        if names_a_tenant {
            let refused = call(&edge, &path, "other").await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{path}: {refused}");
            // For the peer's own tenant the empty request is refused.
            let refused = call(&edge, &path, "bank").await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{path}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_starts_the_page_of_its_own_operations_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let peers = peer("edge", "\"edge-set\"") + &peer("client", "\"edge-view\"");
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{peers}"));
    let [setter, viewer] =
        ["edge", "client"].map(|holder| ControlServiceClient::new(channel_as(holder, directory.path(), &engine)));
    for (opener, other, scope) in [(&setter, &viewer, Scope::SetPin), (&viewer, &setter, Scope::ViewPin)] {
        let open = OpenControlRequest {
            tenant: "bank".into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: "6210".into(),
            scope: scope.into(),
            device_key_sha256: Vec::new(),
            page_client: "wallet".into(),
        };
        let control_id = opener.clone().open_control(open).await.unwrap().into_inner().control_id;
        let start = || StartPageRequest {
            tenant: "bank".into(),
            audit_user: AUDIT_USER.into(),
            control_id: control_id.clone(),
            page_client: "wallet".into(),
            page_id: vec![7; 16],
        };
        let refused = other.clone().start_page(start()).await.err().unwrap();
        assert_eq!((refused.code(), reason(&refused)), (Code::PermissionDenied, "SCOPE_MISMATCH".into()));
        assert!(opener.clone().start_page(start()).await.is_ok(), "a refusal starts no page");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_of_one_tenant_reads_its_entries_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let peers = peer("edge", "\"edge-set\"")
        + &peer("operator", "\"auditor\"")
        + &peer("client", "\"auditor\"")
        + "tenants = [\"bank\"]\n";
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{peers}"));
    let mut controls = ControlServiceClient::new(channel_as("edge", directory.path(), &engine));
    for (number, tenant) in ["bank", "other", "bank", "other"].into_iter().enumerate() {
        let request = OpenControlRequest {
            tenant: tenant.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: format!("620{number}"),
            scope: Scope::SetPin.into(),
            device_key_sha256: Vec::new(),
            page_client: String::new(),
        };
        controls.open_control(request).await.unwrap();
    }
    let exported = async |holder| {
        let mut auditor = AuditServiceClient::new(channel_as(holder, directory.path(), &engine));
        let mut stream = auditor
            .export_audit(ExportAuditRequest { start_sequence: 1, ..Default::default() })
            .await
            .unwrap()
            .into_inner();
        let mut entries = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            entries.push(entry_json(response));
        }
        entries
    };
    let (all, own) = (exported("operator").await, exported("client").await);
    let of_bank: Vec<_> = all.iter().filter(|entry| entry["tenant"] == "bank").cloned().collect();
    assert_eq!((own.len(), all.len()), (2, 5));
    assert_eq!(own, of_bank);
    assert!(own.iter().all(|entry| entry["hash"].is_string() && entry["sequence"].is_u64()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_call_is_logged_and_audited() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let peers = peer("edge", r#""edge-set", "edge-view""#) + "tenants = [\"bank\"]\n" + &peer("client", r#""auditor""#);
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{peers}"));
    let [edge, client, operator] = ["edge", "client", "operator"].map(|by| channel_as(by, directory.path(), &engine));
    let denied = [
        (&edge, "/pinseal.v1.CardService/FindCard", "bank", "edge", "find_card", "right", None),
        (&edge, "/pinseal.v1.PinService/ViewPin", "other", "edge", "view_pin", "tenant", Some("other")),
        (&client, "/pinseal.v1.KeyService/CountRecords", "", "client", "count_records", "right", None),
        (&operator, "/pinseal.v1.AuditService/ExportAudit", "", "operator", "export_audit", "unknown_peer", None),
    ];
    let mut ids = Vec::new();
    for (channel, path, tenant, ..) in &denied {
        let refused = call(channel, path, tenant).await.unwrap_err();
        assert_eq!(reason(&refused), "CALLER_FORBIDDEN", "{path}");
        ids.push(refused.metadata().get(proto::REQUEST_ID_KEY).unwrap().to_str().unwrap().to_owned());
    }

    let mut auditor = AuditServiceClient::new(client.clone());
    let mut stream = auditor
        .export_audit(ExportAuditRequest { start_sequence: 2, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    for (id, (.., holder, method, reason, tenant)) in ids.iter().zip(denied) {
        let entry = entry_json(stream.message().await.unwrap().unwrap());
        let event = serde_json::json!({ "type": "call_denied", "method": method, "reason": reason, "unrecorded": 0 });
        assert_eq!((&entry["event"], &entry["outcome"]), (&event, &serde_json::json!("denied")));
        assert_eq!(entry["caller"], format!("{holder}.pinseal.test"));
        assert_eq!((&entry["request"], &entry["tenant"]), (&serde_json::json!(id), &serde_json::json!(tenant)));
        assert!(
            engine.log().lines().any(|line| line.contains(&**id) && line.contains("a call was denied")),
            "{method}"
        );
    }
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peer_is_denied_on_its_open_connection_after_sighup() {
    const EXPORT: &str = "/pinseal.v1.AuditService/ExportAudit";
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{}", peer("client", "\"auditor\"")));
    let [client, operator] = ["client", "operator"].map(|by| channel_as(by, directory.path(), &engine));
    call(&client, EXPORT, "").await.unwrap();
    let file = directory.path().join("engine.toml");
    let text = std::fs::read_to_string(&file).unwrap();

    // A file that is not valid changes nothing.
    std::fs::write(&file, text.replace("auditor", "reader")).unwrap();
    signal(engine.id(), "HUP");
    soon("the file is rejected", async || engine.log().contains("keeps its peers").then_some(())).await;
    call(&client, EXPORT, "").await.unwrap();

    let follow = ExportAuditRequest { start_sequence: 1, continuous: true, ..Default::default() };
    let mut followed = AuditServiceClient::new(client.clone()).export_audit(follow).await.unwrap().into_inner();
    followed.message().await.unwrap().unwrap();
    std::fs::write(&file, text.replace("client.pinseal.test", "operator.pinseal.test")).unwrap();
    signal(engine.id(), "HUP");
    let denied = soon("the client is denied", async || call(&client, EXPORT, "").await.err()).await;
    assert_eq!(reason(&denied), "CALLER_FORBIDDEN");
    call(&operator, EXPORT, "").await.unwrap();
    let ended = loop {
        match followed.message().await {
            Ok(entry) => assert!(entry.is_some(), "the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "CALLER_FORBIDDEN");
}
