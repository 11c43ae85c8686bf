//! What those who run a cluster look at: that dashboard and alerts name what the program exports, that
//! Prometheus takes rules and configuration, that alerts fire when they should, and that spans tell what the
//! log tells.

pub(crate) mod collector;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use self::collector::{Collector, Made};
use self::promql::{Exported, exported, faults};
use crate::cluster::fleet::Fleet;
use crate::harness::{Node, USER, eventually, patient};

/// One node that callers ask, and one with everything else.
const NODES: [(&str, &str); 2] = [("front", "front"), ("rest", "patient,billing,bridge,analytics")];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn text_of(path: &str) -> String {
    let path = deploy(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Runs `promtool`, which `tests/setup.sh` installs.
fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(deploy("prometheus")).output();
    let output = output.expect("promtool is there: tests/setup.sh installs it");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

#[test]
fn prometheus_takes_the_configuration_and_the_rules() {
    let said = promtool(&["check", "config", "prometheus.yml"]);
    assert!(said.contains("SUCCESS"), "{said}");
    let said = promtool(&["check", "rules", "rules/hygeia.yml"]);
    let (expressions, _) = rules();
    assert!(said.contains(&format!("{} rules found", expressions.len())), "{said}");
}

#[test]
fn alerts_fire_when_they_should() {
    promtool(&["test", "rules", "tests/hygeia.yml"]);
}

/// Every alert has its section in the handbook, and every section its alert.
#[test]
fn every_alert_is_explained() {
    let handbook = std::fs::read_to_string(deploy("../docs/OPERATIONS.md")).expect("the handbook");
    let explained: BTreeSet<&str> =
        handbook.lines().filter_map(|line| line.strip_prefix("| `Hygeia")?.split('`').next()).collect();
    let rules = text_of("prometheus/rules/hygeia.yml");
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: Hygeia")).collect();
    assert!(!alerts.is_empty());
    assert_eq!(explained, alerts);
}

/// The expressions of the rules, and the names that they record.
fn rules() -> (Vec<String>, BTreeSet<String>) {
    let text = text_of("prometheus/rules/hygeia.yml");
    let (mut expressions, mut recorded) = (Vec::new(), BTreeSet::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.trim().strip_prefix("- record: ") {
            recorded.insert(name.to_owned());
        }
        let Some(expression) = line.trim().strip_prefix("expr: ") else { continue };
        let mut expression = expression.to_owned();
        if expression == ">" {
            expression.clear();
            let depth = line.len() - line.trim_start().len();
            while let Some(more) = lines.next_if(|next| next.len() - next.trim_start().len() > depth) {
                expression += more.trim();
                expression.push(' ');
            }
        }
        expressions.push(expression);
    }
    (expressions, recorded)
}

/// The expressions of a dashboard, wherever they stand in it.
fn expressions_of(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str().filter(|_| key == "expr") {
                    Some(expression) => found.push(expression.to_owned()),
                    None => expressions_of(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions_of(item, found)),
        _ => {}
    }
}

async fn metrics_of(node: &Node) -> String {
    let answer = node.client().get(format!("{}/metrics", node.http_url())).send().await.expect("an answer");
    answer.text().await.expect("text")
}

/// One of each request, good and bad.
async fn one_of_each(front: &Node) {
    let token = front.login().await;
    let url = format!("{}/api/patients", front.http_url());
    let send = |method: Method, url: String, body: Value| {
        front.client().request(method, url).bearer_auth(&token).json(&body).send()
    };
    let made = front.post_patient(&token, &patient("one")).await.expect("an answer");
    assert_eq!(made.status(), StatusCode::CREATED);
    let made: Value = made.json().await.expect("JSON");
    let one = format!("{url}/{}", made["id"].as_str().expect("an id"));
    assert!(send(Method::GET, one.clone(), json!({})).await.expect("an answer").status().is_success());
    assert!(send(Method::GET, url.clone(), json!({})).await.expect("an answer").status().is_success());
    assert!(send(Method::PUT, one.clone(), patient("two")).await.expect("an answer").status().is_success());
    let invalid = send(Method::POST, url.clone(), json!({"name": ""})).await.expect("an answer");
    assert_eq!(invalid.status(), StatusCode::BAD_REQUEST);
    let denied = front.client().get(&url).send().await.expect("an answer");
    assert_eq!(denied.status(), StatusCode::UNAUTHORIZED);
    let wrong = json!({"email": USER, "password": "not the password"});
    let wrong = front.client().post(format!("{}/auth/login", front.http_url())).json(&wrong).send().await;
    assert_eq!(wrong.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    front.counted(&token).await;
    assert!(send(Method::DELETE, one, json!({})).await.expect("an answer").status().is_success());
    front.counted(&token).await;
}

#[tokio::test]
async fn dashboard_and_alerts_name_what_is_exported() {
    let fleet = Fleet::of(&NODES).await;
    let [front, rest] = fleet.start_all(["front", "rest"]).await;
    one_of_each(&front).await;
    let call = tonic::transport::Endpoint::from_shared(rest.grpc_url().to_owned()).expect("an address");
    let mut billing = hygeia::proto::billing_service_client::BillingServiceClient::connect(call)
        .await
        .expect("a connection");
    let refused = billing.create_billing_account(hygeia::proto::BillingRequest::default()).await;
    assert!(refused.is_err(), "no token");

    let dashboard: Value = serde_json::from_str(&text_of("grafana/dashboards/hygeia.json")).expect("JSON");
    let (mut expressions, recorded) = rules();
    let of_rules = expressions.len();
    expressions_of(&dashboard, &mut expressions);
    assert!(of_rules > 20 && expressions.len() > of_rules + 40, "{} expressions", expressions.len());
    // Gauges of the background are measured every few seconds.
    eventually("everything that is named is exported", || async {
        let mut all = Exported::new();
        for node in [&front, &rest] {
            exported(&metrics_of(node).await, &mut all);
        }
        let found: Vec<String> =
            expressions.iter().flat_map(|expression| faults(expression, &all, &recorded)).collect();
        if !found.is_empty() {
            println!("{found:#?}");
        }
        found.is_empty().then_some(())
    })
    .await;

    for node in [&front, &rest] {
        let text = metrics_of(node).await;
        let told = |what: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(what)?.split(' ').nth(1));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(told("# HELP"), told("# TYPE"), "every metric says what it means");
    }
}

#[tokio::test]
async fn a_requests_spans_have_the_ids_of_its_lines() {
    let (collector, endpoint) = Collector::start().await;
    let fleet = Fleet::of(&NODES).await.set("HYGEIA__TELEMETRY__OTLP", endpoint.leak());
    let fleet = fleet.set("HYGEIA__TELEMETRY__OTLP_GATHER_MS", "50");
    let [mut front, mut rest] = fleet.start_all(["front", "rest"]).await;
    let token = front.login().await;
    let made = front.post_patient(&token, &patient("traced")).await.expect("an answer");
    assert_eq!(made.status(), StatusCode::CREATED);
    let trace =
        made.headers()["traceparent"].to_str().expect("text").split('-').nth(1).expect("an id").to_owned();
    front.counted(&token).await;
    // The end of a node waits for its last spans.
    for node in [&mut front, &mut rest] {
        node.terminate();
        assert!(node.ended().await.success());
    }

    let mut lines: BTreeMap<String, Value> = BTreeMap::new();
    for line in [front.log(), rest.log()].concat().lines().filter(|line| line.contains(&trace)) {
        let line: Value = serde_json::from_str(line).expect("a log line is JSON");
        lines.insert(line["span"].as_str().expect("a span").to_owned(), line);
    }
    let spans: BTreeMap<String, Made> = collector
        .spans()
        .into_iter()
        .filter(|made| Made::hex(&made.span.trace_id) == trace)
        .map(|made| (Made::hex(&made.span.span_id), made))
        .collect();
    let (of_lines, of_spans): (Vec<_>, Vec<_>) = (lines.keys().collect(), spans.keys().collect());
    assert_eq!(of_spans, of_lines, "one span for each line");
    assert!(lines.len() >= 10, "the whole way: {lines:#?}");
    for (id, line) in &lines {
        let made = &spans[id];
        let parent = line["parent"].as_str().expect("text").trim_matches('0');
        assert_eq!(Made::hex(&made.span.parent_span_id).trim_matches('0'), parent, "{line} {made:?}");
        assert_eq!(line["node"], json!(made.node));
        let took_us = line["handle_us"].as_u64().or(line["duration_us"].as_u64()).expect("a time");
        let span_us = (made.span.end_time_unix_nano - made.span.start_time_unix_nano) / 1_000;
        assert_eq!(span_us, took_us, "{line}");
        assert!(made.span.name.contains(line["msg"].as_str().or(line["route"].as_str()).expect("a name")));
    }
}

/// To start takes its time, and needs nobody's attention: a warning is for what stays wrong.
#[tokio::test]
async fn no_part_is_warned_of_while_the_node_starts() {
    let (_site, node) = Node::demo().await;
    let log = node.log();
    let of_health = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_health: Vec<_> = of_health.filter(|line| line["target"] == "hygeia::health").collect();
    assert!(of_health.iter().any(|line| line["msg"] == "starting"), "{of_health:?}");
    assert!(of_health.iter().all(|line| line["level"] == "INFO"), "{of_health:?}");
}
