//! Nodes that run some of the roles: each serves what its roles say and nothing else.

use std::time::{Duration, Instant};

use hygeia::proto::BillingRequest;
use hygeia::proto::billing_service_client::BillingServiceClient;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tonic::Request;

use crate::harness::{Node, Site, eventually};
use crate::postgres::{Database, Postgres};

/// A node alone in its cluster, whose database has the tables and a user.
async fn site(name: &str, roles: &str) -> (Site, Database) {
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    // Making the user runs the program, which has a runtime of its own.
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.unwrap();
    (member(site, name, roles), database)
}

fn member(site: Site, name: &str, roles: &str) -> Site {
    site.with("HYGEIA__NODE__NAME", name)
        .with("HYGEIA__NODE__ROLES", roles)
        .with("HYGEIA__CLUSTER__LISTEN", "127.0.0.1:0")
        .with("HYGEIA__CLUSTER__SECRET", "a secret of the cluster, 32 bytes or longer")
        .with("HYGEIA__AUDIT__SECRET", "a secret of the audit, 32 bytes or longer")
        // Nobody is there: only bridge and analytics would mind.
        .with("HYGEIA__KAFKA__BROKERS", "127.0.0.1:9")
}

async fn get(node: &Node, path: &str) -> (StatusCode, Value) {
    let answer = node.client().get(format!("{}{path}", node.http_url())).send().await.expect("an answer");
    (answer.status(), answer.json().await.unwrap_or_default())
}

/// SIGTERM, and the node is gone in time, with nothing that went wrong on the way.
async fn stops_well(mut node: Node) {
    let asked = Instant::now();
    node.terminate();
    let status = node.ended().await;
    assert!(status.success(), "{status:?}:\n{}", node.log());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(!node.log().contains("not drained"), "{}", node.log());
}

#[tokio::test]
async fn a_patient_node_serves_health_and_holds_the_shards_once_a_front_is_in_sight() {
    let (front, database) = site("front", "front").await;
    let front = Node::listening(front.spawn()).await;
    let site = member(Site::bare().with("HYGEIA__STORE__URL", database.url()), "patient-1", "patient");
    // It gives out no tokens and asks for none.
    let site = site.with("HYGEIA__CLUSTER__JOIN", front.cluster_address());
    let node = site.start().await;
    assert_eq!(get(&node, "/health/live").await.0, StatusCode::OK);
    let (_, ready) = get(&node, "/health/ready").await;
    let parts: Vec<&str> = ready["parts"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(parts, ["actors", "clock", "http", "patient", "store"]);
    assert_eq!(get(&node, "/metrics").await.0, StatusCode::OK);
    for path in ["/api/patients", "/auth/validate", "/cluster", "/swagger-ui/"] {
        let (status, problem) = get(&node, path).await;
        assert_eq!((status, problem["code"].as_str()), (StatusCode::NOT_FOUND, Some("NOT_FOUND")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains("has not the role front"), "{problem}");
    }
    assert_eq!(node.grpc_url(), "http://", "gRPC belongs to billing");
    // Without a front that could be asked, the database tells who holds what.
    let told = site.run(&["cluster", "status", "--json"], "");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let leases = told["leases"].as_array().unwrap();
    assert_eq!(leases.len(), 64);
    for lease in leases {
        assert!(lease["owner"].as_str().unwrap().starts_with("patient-1#"), "{lease}");
        assert_eq!((&lease["kind"], &lease["expired"]), (&json!("patient"), &json!(false)));
    }
    stops_well(node).await;
    stops_well(front).await;
    let after: Value = serde_json::from_str(&site.run(&["cluster", "status", "--json"], "")).expect("JSON");
    let held = after["leases"].as_array().unwrap().iter().filter(|lease| lease["expired"] == json!(false));
    assert_eq!(held.count(), 0, "a node that stops gives up its shards");
}

#[tokio::test]
async fn a_front_without_others_says_what_is_missing() {
    let (site, _database) = site("front", "front").await;
    let node = Node::listening(site.spawn()).await;
    let token = eventually("one can log in", || async {
        let body = json!({"email": crate::harness::USER, "password": crate::harness::PASSWORD});
        let answer = node.client().post(format!("{}/auth/login", node.http_url())).json(&body).send().await;
        let answer = answer.ok().filter(|answer| answer.status() == StatusCode::OK)?;
        let body: Value = answer.json().await.ok()?;
        Some(body["token"].as_str()?.to_owned())
    })
    .await;
    eventually("the store is ready", || async {
        (get(&node, "/health/ready").await.1["parts"]["store"]["status"] == json!("ready")).then_some(())
    })
    .await;
    let (status, ready) = get(&node, "/health/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let reason = "no live node has the role patient, billing, bridge, analytics";
    assert_eq!(ready["parts"]["cluster"], json!({"status": "not ready", "reason": reason}));
    let id = "123e4567-e89b-12d3-a456-426614174000";
    for path in [
        format!("/api/patients/{id}"),
        format!("/api/billing/accounts/{id}"),
        "/api/analytics/summary".into(),
    ] {
        let answer = node.get(&token, &path).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    assert_eq!(get(&node, "/cluster").await.0, StatusCode::UNAUTHORIZED);
    let status = node.get_json(&token, "/cluster").await;
    assert_eq!((&status["seenFrom"], &status["leases"]), (&json!("front"), &json!([])));
    assert_eq!(status["nodes"][0]["roles"], json!(["front"]));
    assert_eq!((&status["nodes"][0]["answers"], &status["nodes"][0]["inFlight"]), (&json!(true), &json!(1)));
    assert_eq!(
        status["outbox"],
        json!({
            "unpublishedRows": 0, "unbilledRows": 0, "parkedEvents": 0, "parkedRegistrations": 0
        })
    );
    stops_well(node).await;
}

#[tokio::test]
async fn a_billing_node_opens_accounts_over_grpc() {
    let (site, _database) = site("billing", "billing").await;
    // Nobody registers patients here.
    let site = site.with("HYGEIA__GRPC__UNKNOWN_PATIENTS_ALLOWED", "true");
    let node = site.with("HYGEIA__GRPC__REQUIRE_TOKEN", "false").start().await;
    let mut client = BillingServiceClient::connect(node.grpc_url().to_owned()).await.expect("it listens");
    let request = BillingRequest {
        patient_id: uuid::Uuid::now_v7().to_string(),
        name: "Grace Hopper".into(),
        email: "grace@example.com".into(),
    };
    let opened = client.create_billing_account(Request::new(request)).await.expect("opened").into_inner();
    assert_eq!(opened.status, "ACTIVE");
    assert_eq!(get(&node, "/api/patients").await.0, StatusCode::NOT_FOUND);
    stops_well(node).await;
}
