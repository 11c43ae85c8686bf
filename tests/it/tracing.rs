//! One trace over all hops, and no word about a patient or a secret in any line.

use std::collections::BTreeSet;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{DEMO_PASSWORD, Node, PASSWORD, Site, USER, eventually};
use crate::observability::collector::Collector;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn one_request_is_one_trace_over_all_hops() {
    let (_site, node) = Node::fresh().await;
    let token = node.login().await;
    let response = node
        .client()
        .post(format!("{}/api/patients", node.http_url()))
        .bearer_auth(&token)
        .header("traceparent", TRACEPARENT)
        .json(&crate::harness::patient("traced"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), StatusCode::CREATED);
    let returned = response.headers()["traceparent"].to_str().expect("text").to_owned();
    assert!(returned.contains(TRACE_ID), "{returned}");

    let wanted = ["directory", "region", "shard", "journal", "bridge", "analytics", "relay"];
    let lines = eventually("every hop has logged its line", || async {
        let log = node.log();
        let lines: Vec<Value> = log
            .lines()
            .filter(|line| line.contains(TRACE_ID))
            .map(|line| serde_json::from_str(line).expect("a log line is JSON"))
            .collect();
        let actors: BTreeSet<&str> = lines.iter().filter_map(|line| line["actor"].as_str()).collect();
        wanted.iter().all(|w| actors.iter().any(|a| a.contains(w))).then(|| lines.clone())
    })
    .await;

    let spans: BTreeSet<&str> = lines.iter().filter_map(|line| line["span"].as_str()).collect();
    for line in &lines {
        for key in ["ts", "level", "node", "span", "parent"] {
            assert!(line[key].is_string(), "{key} is missing in {line}");
        }
        let parent = line["parent"].as_str().expect("text");
        assert!(spans.contains(parent) || parent == "b7ad6b7169203331", "an orphan: {line}");
        if line["target"] == json!("hygeia::message") {
            assert!(
                line["queue_us"].is_u64() && line["handle_us"].is_u64() && line["outcome"].is_string(),
                "{line}"
            );
        }
    }
}

/// Canaries go through every path, good and bad; none may come up in a log line, a metric, a span or an error.
#[tokio::test]
async fn canaries_are_never_logged() {
    let (collector, endpoint) = Collector::start().await;
    let site = Site::fresh().with("HYGEIA__TELEMETRY__OTLP", &endpoint);
    let node = site.start().await;
    let token = node.login().await;
    let canary = json!({
        "name": "Canaryname Xyzzy",
        "email": "canary-mail@canary-host.example",
        "address": "77 Canarystreet",
        "dateOfBirth": "1931-07-29",
        "registeredDate": "2001-02-03",
    });
    let url = format!("{}/api/patients", node.http_url());
    let send = |method: reqwest::Method, url: String, body: Value| {
        node.client().request(method, url).bearer_auth(&token).json(&body).send()
    };
    let created = send(reqwest::Method::POST, url.clone(), canary.clone()).await.expect("an answer");
    assert_eq!(created.status(), StatusCode::CREATED);
    let created: Value = created.json().await.expect("JSON");
    let one = format!("{url}/{}", created["id"].as_str().expect("an id"));
    let mut answers = Vec::new();
    // Taken, invalid, malformed, of a wrong type, with an unknown field, and not there.
    answers.push(send(reqwest::Method::POST, url.clone(), canary.clone()).await);
    let mut invalid = canary.clone();
    invalid["email"] = json!("canary-mail at canary-host.example");
    invalid["dateOfBirth"] = json!("1931-07-99");
    answers.push(send(reqwest::Method::POST, url.clone(), invalid).await);
    answers.push(
        send(reqwest::Method::POST, url.clone(), json!({"name": ["Canaryname Xyzzy"], "Canarystreet": 1}))
            .await,
    );
    answers.push(
        node.client()
            .post(&url)
            .bearer_auth(&token)
            .header("content-type", "application/json")
            .body("{\"name\": \"Canaryname Xyzzy\", \"email\": canary-mail@canary-host.example}")
            .send()
            .await,
    );
    answers.push(send(reqwest::Method::PUT, one.clone(), canary.clone()).await);
    answers.push(
        node.client()
            .get(format!("{url}?cursor=Canaryname-Xyzzy&q=canary-mail"))
            .bearer_auth(&token)
            .send()
            .await,
    );
    answers.push(send(reqwest::Method::DELETE, one.clone(), json!({})).await);
    answers.push(send(reqwest::Method::PUT, one, canary).await);
    let login = json!({"email": "canary-mail@canary-host.example", "password": "canary-password-1"});
    answers.push(node.client().post(format!("{}/auth/login", node.http_url())).json(&login).send().await);
    answers.push(node.client().get(&url).bearer_auth("canary.token.value").send().await);
    let mut said = String::new();
    for answer in answers {
        let answer = answer.expect("an answer");
        if answer.status().is_client_error() || answer.status().is_server_error() {
            said += &answer.text().await.expect("text");
        }
    }
    node.counted(&token).await;
    said += &node
        .client()
        .get(format!("{}/metrics", node.http_url()))
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text");
    said += &node.log();
    // Its end waits for the last spans.
    let mut node = node;
    node.terminate();
    assert!(node.ended().await.success());
    let spans = collector.dump();
    assert!(spans.contains("patient-shard Register") && spans.contains("POST /api/patients"), "{spans}");
    said += &spans;
    let canaries = [
        "Canaryname",
        "canary-mail",
        "canary-host",
        "1931-07-29",
        "2001-02-03",
        "canary-password",
        "canary.token",
        PASSWORD,
        DEMO_PASSWORD,
        &token,
    ];
    for canary in canaries {
        if canary == DEMO_PASSWORD || canary == USER {
            continue; // The banner of the demo shows its login, as it should.
        }
        if let Some(line) = said.lines().find(|line| line.contains(canary)) {
            panic!("{canary} came up in: {line}");
        }
    }
    assert!(
        !said.lines().any(|line| line.starts_with('{') && line.contains(DEMO_PASSWORD)),
        "a password in a log line"
    );
}
