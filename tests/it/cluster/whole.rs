//! The file of the repository as its reader runs it: five nodes by `cluster up`, and what can be seen of them.

use std::collections::{BTreeMap, BTreeSet};

use hygeia::proto::BillingRequest;
use rdkafka::mocking::MockCluster;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use super::{SECRET, Site, as_caller, billing_client};
use crate::harness::{PASSWORD, PATIENCE, USER, eventually};
use crate::postgres::Postgres;
use crate::process::within;

const NODES: [&str; 5] = ["analytics", "billing", "front", "patient-1", "patient-2"];

/// The file, but for its ports.
fn cluster_toml() -> String {
    let mut file = std::fs::read_to_string("cluster.toml").expect("the file of the repository");
    for port in [8080, 8082, 8083, 8084, 8085, 9001] {
        file = file.replace(&format!("\"127.0.0.1:{port}\""), "\"127.0.0.1:0\"");
    }
    let ports = super::free_ports::<5>();
    for (nth, port) in ports.into_iter().enumerate() {
        let before = file.clone();
        file = file.replace(&format!("127.0.0.1:{}", 7101 + nth), &format!("127.0.0.1:{port}"));
        assert_ne!(file, before, "a node for each address");
    }
    file
}

/// What a client does at the front, each within a trace of its own.
struct Caller {
    client: Client,
    front: String,
    token: String,
}

fn trace_id(number: u8) -> String {
    format!("0af7651916cd43dd8448eb211c8031{number:02x}")
}

fn traceparent(number: u8) -> String {
    format!("00-{}-b7ad6b7169203331-01", trace_id(number))
}

impl Caller {
    async fn ask(&self, trace: u8, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, String) {
        let request = self.client.request(method, format!("{}{path}", self.front)).bearer_auth(&self.token);
        let request = request.header("traceparent", traceparent(trace));
        let request = if let Some(body) = body { request.json(body) } else { request };
        let answer = request.send().await.expect("an answer");
        (answer.status(), answer.text().await.expect("text"))
    }

    async fn get(&self, trace: u8, path: &str) -> Value {
        let (status, text) = self.ask(trace, Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

/// The hops of a drawn trace, each as the way to it from the top; shards and nodes that hold patients go without
/// their numbers.
fn ways(drawn: &str) -> BTreeSet<String> {
    let mut lines = drawn.lines().skip(1);
    let width = lines.next().and_then(|head| head.find("node")).expect("a head");
    let mut above: Vec<String> = Vec::new();
    let mut ways = BTreeSet::new();
    for line in lines {
        let label: String = line.chars().take(width).collect();
        let rest: String = line.chars().skip(width).collect();
        let hop = label.trim_start_matches(['│', '├', '└', '─', ' ']).trim_end();
        let depth = (label.trim_end().chars().count() - hop.chars().count()) / 3;
        let node = rest.split_whitespace().next().expect("a node");
        let mut words = hop.split(' ').map(|word| match word.rsplit_once("-shard-") {
            Some((kind, _)) => format!("{kind}-shard"),
            None => word.to_owned(),
        });
        let who = words.next().expect("an actor");
        let what = words.next().unwrap_or_default();
        above.truncate(depth);
        above.push(format!("{who} {what}@{}", node.trim_end_matches(['-', '1', '2'])));
        ways.insert(above.join(" > "));
    }
    ways
}

/// The ways of a request that is drawn as `chain`, each hop caused by the one before it.
fn chain(top: &str, hops: &[&str]) -> BTreeSet<String> {
    let mut way = top.to_owned();
    let mut ways = BTreeSet::from([way.clone()]);
    for hop in hops {
        way = format!("{way} > {hop}");
        ways.insert(way.clone());
    }
    ways
}

fn registration() -> BTreeSet<String> {
    let top = "POST /api/patients@front";
    let to_commit = [
        "patient-directory Register@front",
        "gate Register@patient",
        "patient-region Register@patient",
        "patient-shard Register@patient",
        "journal Append@patient",
    ];
    let committed = format!("{top} > {}", to_commit.join(" > "));
    let mut all = chain(top, &to_commit);
    all.extend(chain(&committed, &["patient-shard Appended@patient"]));
    all.extend(chain(&committed, &["kafka-bridge Publish@analytics", "analytics Count@analytics"]));
    let account = [
        "billing-relay OpenAccount@billing",
        "billing-directory Open@billing",
        "billing-region Open@billing",
        "billing-shard Open@billing",
        "journal Append@billing",
        "billing-shard Appended@billing",
    ];
    all.extend(chain(&committed, &account));
    all
}

#[tokio::test]
async fn the_whole_way_through_the_five_nodes_of_the_file() {
    let database = Postgres::shared_fast().create_database().await;
    let broker = MockCluster::new(1).expect("a broker");
    let site =
        Site::new(database, &cluster_toml()).with("HYGEIA__KAFKA__BROKERS", &broker.bootstrap_servers());
    site.run(&["migrate"], "");
    site.run(&["user", "add", USER, "--role", "ADMIN"], PASSWORD);
    let mut up = site.up(&[]);
    let mut nodes = BTreeMap::new();
    for name in NODES {
        site.says_up(name).await;
        let file = site.path().join("hygeia-data").join(name).join("runtime.json");
        let addresses: Value = serde_json::from_slice(&std::fs::read(file).expect("written")).expect("JSON");
        nodes.insert(name, addresses);
    }
    let http = |name: &str| format!("http://{}", nodes[name]["http"].as_str().expect("an address"));
    let client = Client::builder().no_proxy().build().expect("a client");
    for name in NODES {
        let url = format!("{}/health/ready", http(name));
        eventually(&format!("{name} is ready"), || async {
            let ready: Value = client.get(&url).send().await.ok()?.json().await.ok()?;
            // Not only that it serves, but that it sees all it needs.
            let parts = ready["parts"].as_object()?.values().all(|part| part["status"] == "ready");
            (ready["status"] == "ready" && parts).then_some(())
        })
        .await;
    }

    let canary = json!({
        "name": "Canaryname Xyzzy", "email": "canary-mail@canary-host.example", "address": "77 Canarystreet",
        "dateOfBirth": "1931-07-29", "registeredDate": "2001-02-03",
    });
    let login = json!({"email": USER, "password": PASSWORD});
    let answer =
        client.post(format!("{}/auth/login", http("front"))).json(&login).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    let token = answer["token"].as_str().expect("a token").to_owned();
    let caller = Caller { client: client.clone(), front: http("front"), token: token.clone() };

    let (status, made) = caller.ask(1, Method::POST, "/api/patients", Some(&canary)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let id = made["id"].as_str().expect("an id").to_owned();
    assert_eq!(caller.get(2, &format!("/api/patients/{id}")).await, made);
    assert_eq!(caller.get(3, "/api/patients").await, json!([made]));
    let account = eventually("the account is open", || async {
        let path = format!("/api/billing/accounts/{id}");
        let (status, text) = caller.ask(4, Method::GET, &path, None).await;
        (status == StatusCode::OK).then(|| serde_json::from_str::<Value>(&text).expect("JSON"))
    })
    .await;
    eventually("it is counted", || async {
        let summary = caller.get(10, "/api/analytics/summary").await;
        (summary["lag"] == 0 && summary["totalPatients"] == 1).then_some(())
    })
    .await;
    caller.get(5, "/api/analytics/summary").await;
    let grpc = format!("http://{}", nodes["billing"]["grpc"].as_str().expect("an address"));
    let request = BillingRequest {
        patient_id: id.clone(),
        name: "Canaryname Xyzzy".into(),
        email: "canary-mail@canary-host.example".into(),
    };
    let asked = as_caller(request, &token, &traceparent(6));
    let opened =
        billing_client(&grpc).await.create_billing_account(asked).await.expect("opened").into_inner();
    assert_eq!(json!(opened.account_id), account["id"]);
    // Taken, invalid, and of nobody: refusals come from other nodes too.
    let mut said = String::new();
    let mut invalid = canary.clone();
    invalid["dateOfBirth"] = json!("1931-07-99");
    for (path, method, body) in [
        ("/api/patients".to_owned(), Method::POST, &canary),
        ("/api/patients".to_owned(), Method::POST, &invalid),
        (format!("/api/patients/{}", uuid::Uuid::now_v7()), Method::PUT, &canary),
    ] {
        let (status, text) = caller.ask(7, method, &path, Some(body)).await;
        assert!(status.is_client_error(), "{status}: {text}");
        said += &text;
    }

    // What the front and the commands tell of the cluster.
    let status = caller.get(8, "/cluster").await;
    let told = site.command(&["cluster", "status", "--json"]).env("HYGEIA_TOKEN", &token).output().unwrap();
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    for status in [&status, &told] {
        let names: Vec<&Value> =
            status["nodes"].as_array().expect("a list").iter().map(|node| &node["name"]).collect();
        assert_eq!(names, NODES);
        for node in status["nodes"].as_array().expect("a list") {
            let peers: Vec<&str> = node["sessions"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(|s| s["peer"].as_str())
                .collect();
            let others: Vec<&str> = NODES.into_iter().filter(|name| node["name"] != *name).collect();
            assert_eq!((peers, &node["answers"]), (others, &json!(true)), "{node}");
        }
        let held = |kind: &str| {
            let leases = status["leases"].as_array().expect("a list").iter();
            leases.filter(|lease| lease["kind"] == kind && lease["expired"] == false).count()
        };
        assert_eq!((held("patient"), held("billing"), held("outbox")), (64, 64, 2), "{status}");
        assert_eq!(
            status["outbox"],
            json!({
                "unpublishedRows": 0, "unbilledRows": 0, "parkedEvents": 0, "parkedRegistrations": 0
            })
        );
        assert_eq!(status["unknown"], json!([]));
    }
    let table = site.command(&["cluster", "status"]).env("HYGEIA_TOKEN", &token).output().unwrap();
    let table = String::from_utf8(table.stdout).expect("UTF-8");
    assert!(
        table.starts_with("cluster hygeia, seen from front\n") && !table.contains("not known"),
        "{table}"
    );
    assert!(table.contains("analytics  bridge,analytics  live"), "{table}");

    // The traces, from the nodes' own lines.
    let drawn = |number: u8| {
        let drawn = site.command(&["trace", &trace_id(number), "log"]).output().unwrap();
        String::from_utf8(drawn.stdout).expect("UTF-8")
    };
    let drawn = &drawn;
    let read = [
        "patient-directory Read@front",
        "gate Read@patient",
        "patient-region Read@patient",
        "patient-shard Read@patient",
    ];
    let list = ["patient-directory Query@front", "gate Query@patient", "patient-region Query@patient"];
    let open =
        ["billing-directory Open@billing", "billing-region Open@billing", "billing-shard Open@billing"];
    for (number, wanted) in [
        (1, registration()),
        (2, chain("GET /api/patients/{id}@front", &read)),
        (3, chain("GET /api/patients@front", &list)),
        (
            5,
            chain(
                "GET /api/analytics/summary@front",
                &["gate Summary@analytics", "analytics Summary@analytics"],
            ),
        ),
        (6, chain("gRPC BillingService/CreateBillingAccount@billing", &open)),
        (8, chain("GET /cluster@front", &["gate Status@billing"])),
        (8, chain("GET /cluster@front", &["gate Status@patient"])),
    ] {
        let whole = || async {
            let text = drawn(number);
            (text.lines().count() > 2 && ways(&text).is_superset(&wanted)).then_some(text)
        };
        let Some(text) = within(PATIENCE, whole).await else {
            panic!("{wanted:#?}\nare not all in\n{}", drawn(number))
        };
        assert!(!text.contains('*'), "in a whole log every hop has its cause:\n{text}");
    }

    // Nothing of a patient, and no secret.
    for name in NODES {
        let metrics = client.get(format!("{}/metrics", http(name))).send().await.expect("an answer");
        said += &metrics.text().await.expect("text");
    }
    rustix::process::kill_process(up.pid(), rustix::process::Signal::INT).unwrap();
    assert!(up.ended().await.success(), "{}", site.log());
    said += &site.log();
    let secrets = [PASSWORD, SECRET, &token];
    let patients = ["Canaryname", "canary-mail", "canary-host", "Canarystreet", "1931-07-29", "2001-02-03"];
    for canary in patients.into_iter().chain(secrets) {
        if let Some(line) = said.lines().find(|line| line.contains(canary)) {
            panic!("{canary} came up in: {line}");
        }
    }
}
