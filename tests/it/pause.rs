//! A node that stops and goes on. If another took over meanwhile, what comes out of it is not older than what the
//! other acknowledged, and it acknowledges nothing that is not kept. No client is taken for slow because the node was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Node, PATIENCE, Site, eventually, patient};
use crate::postgres::Postgres;

const PATIENTS: usize = 8;
/// How often each patient is read and changed in each part of the test: many times what a shard does at once.
const OFTEN: usize = 10;

/// What clients were told, by patient.
#[derive(Default)]
struct Told {
    /// The latest version that any answer showed: no question asked from now on may get an older one.
    latest: Mutex<BTreeMap<String, i64>>,
    /// Changes acknowledged. Two owners at a time would acknowledge the same version twice.
    changes: Mutex<BTreeSet<(String, i64)>>,
    /// What was answered with a record, by the front that it came from, the patient, and whether it is a change.
    answered: Mutex<BTreeMap<(&'static str, String, bool), usize>>,
}

impl Told {
    fn latest(&self, id: &str) -> i64 {
        self.latest.lock().expect("sane").get(id).copied().unwrap_or_default()
    }

    fn count(&self, front: &'static str, id: &str, writes: bool) {
        *self.answered.lock().expect("sane").entry((front, id.to_owned(), writes)).or_default() += 1;
    }

    /// Until each of `ids` was read and changed through `front` that often more.
    async fn each_often_more(&self, front: &'static str, ids: &[String]) {
        let answered = |id: &String, writes| {
            let answered = self.answered.lock().expect("sane");
            answered.get(&(front, id.clone(), writes)).copied().unwrap_or_default()
        };
        for (id, writes) in ids.iter().flat_map(|id| [(id, true), (id, false)]) {
            let enough = answered(id, writes) + OFTEN;
            eventually(&format!("{id} is asked for through the {front}"), || async {
                (answered(id, writes) >= enough).then_some(())
            })
            .await;
        }
    }

    /// The answer to a question about `id` that was asked when `floor` was the latest.
    fn read(&self, id: &str, floor: i64, status: StatusCode, body: &Value) {
        if status == StatusCode::OK {
            let version = body["version"].as_i64().expect("a version");
            assert!(version >= floor, "stale: version {version} of {id} after {floor} was told");
            self.advance(id, version);
        } else {
            assert!(is_away(status), "{status}: {body}");
        }
    }

    /// The answer to a change of `id` that was sent when `floor` was the latest; whether it was made.
    fn changed(&self, id: &str, floor: i64, status: StatusCode, body: &Value) -> bool {
        if status != StatusCode::OK {
            assert!(is_away(status), "{status}: {body}");
            return false;
        }
        let version = body["version"].as_i64().expect("a version");
        assert!(version > floor, "a change of {id} made version {version} after {floor} was told");
        let first = self.changes.lock().expect("sane").insert((id.to_owned(), version));
        assert!(first, "version {version} of {id} was acknowledged twice");
        self.advance(id, version);
        true
    }

    fn advance(&self, id: &str, version: i64) {
        let mut latest = self.latest.lock().expect("sane");
        let known = latest.entry(id.to_owned()).or_default();
        *known = version.max(*known);
    }
}

fn is_away(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// A way to one node.
#[derive(Clone)]
struct Caller {
    front: &'static str,
    base: String,
    client: Client,
    token: String,
    told: Arc<Told>,
}

/// A form that no other change has sent.
fn form(id: &str) -> Value {
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let mut form = patient(id);
    form["address"] = format!("{} Road", SENT.fetch_add(1, Ordering::Relaxed)).into();
    form
}

impl Caller {
    fn of(front: &'static str, node: &Node, token: &str, told: &Arc<Told>) -> Self {
        let (base, client) = (node.http_url().to_owned(), node.client().clone());
        Caller { front, base, client, token: token.to_owned(), told: Arc::clone(told) }
    }

    async fn send(&self, method: Method, id: &str) -> (StatusCode, Value) {
        let request = self.client.request(method, format!("{}/api/patients/{id}", self.base));
        let answer = request.bearer_auth(&self.token).json(&form(id)).send().await.expect("an answer");
        (answer.status(), answer.json().await.expect("JSON"))
    }

    async fn read(&self, id: &str) {
        let floor = self.told.latest(id);
        let (status, body) = self.send(Method::GET, id).await;
        self.told.read(id, floor, status, &body);
        if status == StatusCode::OK {
            self.told.count(self.front, id, false);
        }
    }

    async fn change(&self, id: &str) -> bool {
        let floor = self.told.latest(id);
        let (status, body) = self.send(Method::PUT, id).await;
        let changed = self.told.changed(id, floor, status, &body);
        if changed {
            self.told.count(self.front, id, true);
        }
        changed
    }

    /// One writer and one reader of each patient, until `enough`.
    fn load(&self, ids: &[String], tasks: &mut JoinSet<()>, enough: &CancellationToken) {
        for id in ids {
            for writes in [true, false] {
                let (caller, id, enough) = (self.clone(), id.clone(), enough.clone());
                tasks.spawn(async move {
                    while !enough.is_cancelled() {
                        if writes {
                            caller.change(&id).await;
                        } else {
                            caller.read(&id).await;
                        }
                    }
                });
            }
        }
    }

    /// Sends a question without awaiting the answer. When this returns the kernel has the whole of it, also if
    /// the node is paused.
    async fn ask(&self, method: Method, id: &str) -> Asked {
        let floor = self.told.latest(id);
        let address = self.base.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.expect("the kernel takes it");
        let (token, body) = (&self.token, form(id).to_string());
        let request = format!(
            "{method} /api/patients/{id} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             authorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("the kernel takes it");
        Asked { stream, floor, id: id.to_owned(), writes: method == Method::PUT }
    }
}

/// A question under way.
struct Asked {
    stream: TcpStream,
    floor: i64,
    id: String,
    writes: bool,
}

impl Asked {
    async fn answered(mut self, told: &Told) {
        let mut answer = String::new();
        let reading = self.stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time").expect("readable");
        let status = answer.get(9..12).and_then(|code| code.parse().ok()).expect("a status line");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        let body: Value = serde_json::from_str(body).expect("JSON");
        if self.writes {
            told.changed(&self.id, self.floor, status, &body);
        } else {
            told.read(&self.id, self.floor, status, &body);
        }
    }
}

async fn becomes(node: &Node, status: StatusCode) {
    eventually(&format!("readiness {status}"), || async {
        (node.readiness().await == Some(status)).then_some(())
    })
    .await;
}

/// Each patient is changed by `caller`, however often that must be tried.
async fn each_changed(caller: &Caller, ids: &[String]) {
    for id in ids {
        eventually("the change is made", || async { caller.change(id).await.then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_node_paused_for_longer_than_its_leases_tells_nothing_stale() {
    let database = Postgres::shared().create_database().await;
    // With the user remembered, nothing but the lease stands between a question and the memory of a shard.
    let site = Site::on_postgres(database.url()).with("HYGEIA__AUTH__USER_CACHE_MS", "60000");
    let told = Arc::new(Told::default());
    let first = site.start().await;
    let token = first.login().await;
    let mut ids = Vec::new();
    for n in 0..PATIENTS {
        let created = first.post_patient(&token, &patient(n)).await.expect("an answer");
        assert_eq!(created.status(), StatusCode::CREATED);
        let created: Value = created.json().await.expect("JSON");
        ids.push(created["id"].as_str().expect("an id").to_owned());
    }
    let through_first = Caller::of("first", &first, &token, &told);
    let (mut load, enough) = (JoinSet::new(), CancellationToken::new());
    through_first.load(&ids, &mut load, &enough);
    told.each_often_more("first", &ids).await;

    first.pause();
    let other_site =
        Site::bare().with("HYGEIA__STORE__URL", database.url()).with("HYGEIA__NODE__NAME", "node-2").set_up();
    // It is ready when it has every lease: when those of the first have run out.
    let second = other_site.start().await;
    let through_second = Caller::of("second", &second, &token, &told);
    each_changed(&through_second, &ids).await;
    // While the first is paused the second reads and changes everything that the first has in memory.
    through_second.load(&ids, &mut load, &enough);
    told.each_often_more("second", &ids).await;
    let mut asked = Vec::new();
    for id in &ids {
        asked.push(through_first.ask(Method::GET, id).await);
        asked.push(through_first.ask(Method::PUT, id).await);
    }
    first.resume();
    for question in asked {
        question.answered(&told).await;
    }
    becomes(&first, StatusCode::SERVICE_UNAVAILABLE).await;
    told.each_often_more("second", &ids).await;
    assert_eq!(second.readiness().await, Some(StatusCode::OK));
    enough.cancel();
    while let Some(ended) = load.join_next().await {
        ended.expect("nothing stale, nothing twice");
    }

    // What was acknowledged by either of them is there when nobody has it in memory.
    second.kill().await;
    becomes(&first, StatusCode::OK).await;
    for id in &ids {
        through_first.read(id).await;
        assert!(through_first.change(id).await, "the first serves again");
    }
}

/// Reads until `answers` answers in all have begun, with what was read before in `seen`.
async fn answered(stream: &mut TcpStream, seen: &mut Vec<u8>, answers: usize) {
    let status = b"HTTP/1.1 200 OK\r\n";
    let reading = async {
        while seen.windows(status.len()).filter(|part| part == status).count() < answers {
            let read = stream.read_buf(seen).await.expect("no reset");
            assert_ne!(read, 0, "the connection was closed");
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer in time");
}

#[tokio::test]
async fn a_request_that_came_while_the_node_was_stopped_is_not_taken_for_late() {
    let limit = Duration::from_secs(2);
    let site = Site::bare().with("HYGEIA__HTTP__HEADER_TIMEOUT_MS", &limit.as_millis().to_string());
    let node = site.start().await;
    let address = node.http_url().trim_start_matches("http://").to_owned();
    let request = format!("GET /health/live HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut connections = Vec::new();
    for _ in 0..128 {
        let mut stream = TcpStream::connect(&address).await.expect("the node");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut seen = Vec::new();
        answered(&mut stream, &mut seen, 1).await;
        connections.push((stream, seen));
    }
    // The node goes on with the limits of all connections run out, and with a request in each of them.
    node.pause();
    for (stream, _) in &mut connections {
        stream.write_all(request.as_bytes()).await.expect("the kernel takes it");
    }
    tokio::time::sleep(limit).await;
    node.resume();
    for (mut stream, mut seen) in connections {
        answered(&mut stream, &mut seen, 2).await;
    }
}
