//! Roles apart: nodes that are away, come back, join and leave, while the others go on.

use hygeia::proto::BillingRequest;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::fleet::{Fleet, holders};
use super::load::Load;
use crate::harness::{Node, eventually, patient};

/// SIGTERM, and a good end.
async fn leave(mut node: Node) {
    node.terminate();
    let status = node.ended().await;
    assert!(status.success(), "{status:?}:\n{}", node.log());
}

async fn answer(node: &Node, token: &str, path: &str) -> (StatusCode, Value) {
    let answer = node.get(token, path).await;
    (answer.status(), answer.json().await.expect("JSON"))
}

/// Awaits that `path` is answered with this status.
async fn becomes(node: &Node, token: &str, path: &str, wanted: StatusCode) -> Value {
    eventually(&format!("{path} is {wanted}"), || async {
        let (status, body) = answer(node, token, path).await;
        (status == wanted).then_some(body)
    })
    .await
}

async fn register(node: &Node, token: &str, name: &str) -> String {
    let made = node.post_patient(token, &patient(name)).await.expect("an answer");
    assert_eq!(made.status(), StatusCode::CREATED);
    let made: Value = made.json().await.expect("JSON");
    made["id"].as_str().expect("an id").to_owned()
}

/// Ends `node`, whose absence leaves nobody with `roles`: `path` is refused with the first of them as the reason, the
/// paths of `rest` are answered, and readiness says so; then starts it again as `name`, and all is well.
async fn misses(
    fleet: &Fleet,
    front: &Node,
    token: &str,
    node: Node,
    name: &str,
    roles: &str,
    paths: (&str, &[&str]),
) -> Node {
    let (path, rest) = paths;
    leave(node).await;
    let role = roles.rsplit(", ").next().expect("a role");
    let problem = becomes(front, token, path, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(problem["code"], json!("UNAVAILABLE"), "{problem}");
    assert_eq!(problem["detail"], json!(format!("No node with the role {role} is live")), "{problem}");
    for path in rest {
        assert_eq!(answer(front, token, path).await.0, StatusCode::OK, "{path}");
    }
    // Without patients a front is of no use to anybody.
    let (code, word) = match role {
        "patient" => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        _ => (StatusCode::OK, "explained"),
    };
    let (status, ready) = answer(front, token, "/health/ready").await;
    let reason = format!("no live node has the role {roles}");
    assert_eq!(status, code, "{ready}");
    assert_eq!(ready["parts"]["cluster"], json!({"status": word, "reason": reason}));
    let status = front.get_json(token, "/cluster").await;
    let told = json!(format!("{name}: a node of cluster.nodes, and not in sight"));
    assert!(status["unknown"].as_array().expect("a list").contains(&told), "{}", status["unknown"]);
    let again = fleet.start(name).await;
    becomes(front, token, path, StatusCode::OK).await;
    eventually("the front is ready", || async {
        let (status, ready) = answer(front, token, "/health/ready").await;
        (status == StatusCode::OK && ready["parts"]["cluster"] == json!({"status": "ready"})).then_some(())
    })
    .await;
    again
}

#[tokio::test]
async fn a_role_without_a_node_is_missed_by_its_own_routes_alone_until_one_is_back() {
    let nodes =
        [("front", "front"), ("patient-1", "patient"), ("billing", "billing"), ("rest", "bridge,analytics")];
    let fleet = Fleet::of(&nodes).await;
    let [front, patients, billing, rest] = fleet.start_all(nodes.map(|(name, _)| name)).await;
    let token = front.login().await;
    let id = register(&front, &token, "first").await;
    let (one, account) = (format!("/api/patients/{id}"), format!("/api/billing/accounts/{id}"));
    let (list, summary) = ("/api/patients", "/api/analytics/summary");
    becomes(&front, &token, &account, StatusCode::OK).await;
    becomes(&front, &token, summary, StatusCode::OK).await;

    let billing =
        misses(&fleet, &front, &token, billing, "billing", "billing", (&account, &[&one, list, summary]))
            .await;
    let roles = "bridge, analytics";
    let rest = misses(&fleet, &front, &token, rest, "rest", roles, (summary, &[&one, list, &account])).await;
    let others: &[&str] = &[&account, summary];
    let patients = misses(&fleet, &front, &token, patients, "patient-1", "patient", (&one, others)).await;

    // A second node of a live name must leave, and says why in one line; nobody else notices.
    let before = front.log().matches("out of sight").count();
    let mut second = fleet.spawn_second("patient-1");
    assert_eq!(second.ended().await.code(), Some(1), "{}", second.log());
    let log = second.log();
    let told: Vec<&str> = log.lines().filter(|line| line.starts_with("hygeia: ")).collect();
    assert_eq!(told, ["hygeia: another live node of the cluster has the same name"], "{log}");
    assert_eq!(log.matches("\"level\":\"ERROR\"").count(), 1, "{log}");
    assert_eq!(front.log().matches("out of sight").count(), before, "{}", front.log());
    assert_eq!(answer(&front, &token, &one).await.0, StatusCode::OK);

    // What was registered while others were away has been followed up.
    assert_eq!(front.counted(&token).await["totalPatients"], json!(1));
    for node in [front, patients, billing, rest] {
        leave(node).await;
    }
}

#[tokio::test]
async fn a_node_joins_and_leaves_and_no_request_fails() {
    let nodes = [("front", "front"), ("patient-1", "patient"), ("rest", "billing,bridge,analytics")];
    let fleet = Fleet::of(&nodes).await;
    let [front, _patients, _rest] = fleet.start_all(nodes.map(|(name, _)| name)).await;
    let token = front.login().await;
    let load = Load::begin(&[&front], &token, 3);
    register(&front, &token, "alone").await;
    let joined = fleet.join("patient-9", "patient").await;
    eventually("it has its part of the shards", || async {
        let held = holders(&front, &token).await;
        let (old, new) = (held.get("patient-1")?, held.get("patient-9")?);
        // Rendezvous hashing gives each about the half of 64.
        (old + new == 64 && (16..=48).contains(new)).then_some(())
    })
    .await;
    register(&front, &token, "of-two").await;
    leave(joined).await;
    eventually("the shards are back", || async {
        (holders(&front, &token).await.get("patient-1") == Some(&64)).then_some(())
    })
    .await;
    let registered = load.end().await;
    let summary = front.counted(&token).await;
    assert_eq!(summary["totalPatients"], json!(registered.len() + 2));
}

#[tokio::test]
async fn a_restart_of_every_node_in_turn_fails_no_request() {
    let nodes = [
        ("front-1", "front"),
        ("front-2", "front"),
        ("patient-1", "patient"),
        ("patient-2", "patient"),
        ("rest-1", "billing,bridge,analytics"),
        ("rest-2", "billing,bridge,analytics"),
    ];
    // The clients ask a front as soon as it listens, whether it is ready or not: it waits for the others then.
    let fleet = Fleet::of(&nodes).await.set("HYGEIA__ACTORS__ASK_NO_NODE_WAIT_MS", "10000");
    let names = nodes.map(|(name, _)| name);
    let mut running = Vec::from(fleet.start_all(names).await);
    let token = running[0].login().await;
    let load = Load::begin(&[&running[0], &running[1]], &token, 3);
    for name in names {
        leave(running.remove(0)).await;
        running.push(fleet.start(name).await);
    }
    let registered = load.end().await;
    let (front, token) = (&running[0], running[0].login().await);
    assert_eq!(holders(front, &token).await.values().sum::<usize>(), 64);
    for id in registered.iter().rev().take(20) {
        // Opened by whichever node of billing is at it.
        becomes(front, &token, &format!("/api/billing/accounts/{id}"), StatusCode::OK).await;
    }
    let summary = front.counted(&token).await;
    assert_eq!(summary["totalPatients"], json!(registered.len()));
    assert_eq!(summary["byEventType"]["PATIENT_UPDATED"], json!(registered.len()));
}

#[tokio::test]
async fn a_cluster_with_certificates_serves_as_one_without() {
    let nodes = [("front", "front"), ("patient-1", "patient"), ("rest", "billing,bridge,analytics")];
    let fleet = Fleet::with_certificates(&nodes).await;
    let [front, _patients, rest] = fleet.start_all(nodes.map(|(name, _)| name)).await;
    let token = front.login().await;
    let id = register(&front, &token, "certified").await;
    assert_eq!(answer(&front, &token, &format!("/api/patients/{id}")).await.0, StatusCode::OK);
    let account = becomes(&front, &token, &format!("/api/billing/accounts/{id}"), StatusCode::OK).await;
    assert_eq!(account["patientId"], json!(id));
    let status = front.get_json(&token, "/cluster").await;
    for node in status["nodes"].as_array().expect("a list") {
        let sessions = node["sessions"].as_array().expect("a list");
        assert!(sessions.len() == 2 && sessions.iter().all(|s| s["state"] == "live"), "{node}");
    }
    let mut client = super::billing_client(rest.grpc_url()).await;
    let request =
        BillingRequest { patient_id: id, name: "Patient certified".into(), email: "a@example.com".into() };
    let opened = client.create_billing_account(super::as_caller(request, &token, "")).await.expect("opened");
    assert_eq!(opened.into_inner().account_id, account["id"].as_str().expect("an id"));
}
