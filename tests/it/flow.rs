//! The whole path on one node: REST, actors, database, Kafka, analytics and billing.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Node, Site, eventually, patient};
use crate::postgres::Postgres;

/// How many patients the list has.
async fn listed(node: &Node, token: &str) -> usize {
    node.get_json(token, "/api/patients?limit=1000").await.as_array().expect("an array").len()
}

/// Creates, changes and deletes, then looks at every effect of it.
async fn everything_follows(node: &Node) {
    let token = node.login().await;
    let listed_before = listed(node, &token).await;
    let before = node.counted(&token).await;
    let total = |summary: &Value| summary["totalPatients"].as_i64().expect("a number");
    let of_type = |summary: &Value, name: &str| summary["byEventType"][name].as_i64().expect("a number");

    let mut ids = Vec::new();
    for n in 0..20 {
        let response = node.post_patient(&token, &patient(format!("flow-{n}"))).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::CREATED);
        let created: Value = response.json().await.expect("JSON");
        ids.push(created["id"].as_str().expect("an id").to_owned());
    }
    let url = |id: &str| format!("{}/api/patients/{id}", node.http_url());
    let changed =
        node.client().put(url(&ids[0])).bearer_auth(&token).json(&patient("flow-changed")).send().await;
    assert_eq!(changed.expect("an answer").status(), StatusCode::OK);
    let deleted = node.client().delete(url(&ids[1])).bearer_auth(&token).send().await;
    assert_eq!(deleted.expect("an answer").status(), StatusCode::NO_CONTENT);

    let after = node.counted(&token).await;
    assert_eq!(total(&after) - total(&before), 19);
    for (name, more) in [("PATIENT_CREATED", 20), ("PATIENT_UPDATED", 1), ("PATIENT_DELETED", 1)] {
        assert_eq!(of_type(&after, name) - of_type(&before, name), more, "{name}");
    }
    // A cluster that is there may have restricted records, which are counted and not listed.
    assert_eq!(listed(node, &token).await - listed_before, 19);

    for id in &ids {
        let account = eventually("the account is open", || async {
            let response = node.get(&token, &format!("/api/billing/accounts/{id}")).await;
            (response.status() == StatusCode::OK).then_some(response)
        })
        .await;
        let account: Value = account.json().await.expect("JSON");
        assert_eq!((&account["patientId"], &account["status"]), (&json!(id), &json!("ACTIVE")));
    }
}

#[tokio::test]
async fn on_the_defaults() {
    let (_site, node) = Node::fresh().await;
    everything_follows(&node).await;
}

#[tokio::test]
async fn on_postgres() {
    let database = Postgres::shared().create_database().await;
    let site = Site::on_postgres(database.url());
    let node = site.start().await;
    everything_follows(&node).await;
}

#[tokio::test]
async fn the_demo_is_there_once_and_only_on_the_embedded_defaults() {
    let (site, mut node) = Node::demo().await;
    let token = node.login().await;
    let john = node.get_json(&token, "/api/patients/123e4567-e89b-12d3-a456-426614174000").await;
    assert_eq!((&john["name"], &john["email"]), (&json!("John Doe"), &json!("john.doe@example.com")));
    assert_eq!(node.get_json(&token, "/api/patients").await.as_array().expect("an array").len(), 15);
    assert_eq!(node.counted(&token).await["totalPatients"], json!(15));

    node.terminate();
    assert!(node.ended().await.success());
    let node = site.start().await;
    let token = node.login().await;
    assert_eq!(node.get_json(&token, "/api/patients").await.as_array().expect("an array").len(), 15);

    let database = Postgres::shared().create_database().await;
    let other_site = Site::on_postgres(database.url());
    let elsewhere = other_site.start().await;
    let token = elsewhere.login().await;
    assert_eq!(elsewhere.get_json(&token, "/api/patients").await, json!([]));
}

/// The banner stands in one piece below what the parts say of their start, the last of which is analytics.
#[tokio::test]
async fn the_banner_is_the_last_word_of_a_start() {
    let (_site, node) = Node::demo().await;
    let log = eventually("the banner is whole", || async {
        let log = node.log();
        log.contains(r#""password":"password123"}'"#).then_some(log)
    })
    .await;
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.iter().position(|line| *line == "Hygeia is up.").expect("a banner");
    let http = node.http_url();
    let expected = [
        "Hygeia is up.".to_owned(),
        format!("  HTTP   {http}      try {http}/"),
        format!("  gRPC   {}", node.grpc_url().trim_start_matches("http://")),
        lines[first + 3].to_owned(),
        "  Login  testuser@test.com / password123 (ADMIN; a demo, made because nothing is set up)".to_owned(),
        String::new(),
        format!(r"  curl -s {http}/auth/login -H 'content-type: application/json' \"),
        r#"    -d '{"email":"testuser@test.com","password":"password123"}'"#.to_owned(),
    ];
    assert_eq!(lines[first..first + expected.len()], expected);
    assert!(lines[first + 3].starts_with("  Kafka  127.0.0.1:"), "{}", lines[first + 3]);
    let ready = |line: &&str| line.contains(r#""msg":"ready""#);
    let of_analytics = |line: &&str| ready(line) && line.contains(r#""part":"analytics""#);
    let (before, after) = lines.split_at(first);
    assert!(before.iter().any(of_analytics), "{log}");
    assert!(!after.iter().any(ready), "{after:?}");
}

/// A restart forgets what the embedded broker held; what analytics had not counted is published again.
#[tokio::test]
async fn a_broker_that_forgets_costs_no_event() {
    let site = Site::demo();
    let mut expected = 15;
    for round in 0..3 {
        let node = site.start().await;
        let token = node.login().await;
        for n in 0..30 {
            let response =
                node.post_patient(&token, &patient(format!("{round}-{n}"))).await.expect("an answer");
            assert_eq!(response.status(), StatusCode::CREATED);
        }
        expected += 30;
        // Killed while analytics still joins its group: the events are in a broker that dies with it.
        node.kill().await;
    }
    let node = site.start().await;
    let token = node.login().await;
    let summary = node.counted(&token).await;
    assert_eq!(summary["totalPatients"], json!(expected));
    assert_eq!(summary["byEventType"]["PATIENT_CREATED"], json!(expected));
}
