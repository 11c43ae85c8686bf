//! A node with clients that write, and what must hold of its table, its topic and its totals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hygeia::proto::patient::events::PatientEvent;
use prost::Message as _;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Node, Site, patient};
use crate::kafka::topic::{self, Message};
use crate::postgres::{Database, Postgres};
use crate::process::within;

/// Clients that write at the same time.
const CLIENTS: usize = 4;
/// How long a client rests between two writes: what is tried is the broker, not how much this machine can do.
const RESTS: Duration = Duration::from_millis(20);
/// How long a condition is awaited. After 45 s without a broker much is left to be done, and machines are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// An event as the table has it: its version, its id and its kind.
type Recorded = (i64, Uuid, i16);

/// One node, its clients' way in, and its database.
pub(super) struct Clinic {
    /// Removed after the node, which goes first.
    _site: Site,
    node: Node,
    token: String,
    database: Database,
    bootstrap: String,
    topic: String,
}

impl Clinic {
    /// A node at these brokers, with topics of its own. `settings` is the text of its configuration file.
    pub(super) async fn open(bootstrap: &str, settings: &str) -> Self {
        let database = Postgres::shared_fast().create_database().await;
        let topic = format!("patient-{}", Uuid::now_v7());
        let site = Site::on_postgres(database.url())
            .with("HYGEIA__KAFKA__BROKERS", bootstrap)
            .with("HYGEIA__KAFKA__TOPIC", &topic)
            .with("HYGEIA__KAFKA__DEAD_LETTER_TOPIC", &dead_letters_of(&topic))
            .with("HYGEIA__KAFKA__GROUP", &topic);
        let file = site.path().join("settings.toml");
        std::fs::write(&file, settings).expect("written");
        let file = file.display().to_string();
        let site = site.with("HYGEIA_CONFIG", &file);
        let node = site.start().await;
        let token = node.login().await;
        let bootstrap = bootstrap.to_owned();
        let clinic = Clinic { _site: site, node, token, database, bootstrap, topic };
        clinic.says("bridge", "ready").await;
        clinic.says("analytics", "ready").await;
        clinic
    }

    /// The topic of events.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// The topic of what cannot be read.
    pub(super) fn dead_letters(&self) -> String {
        dead_letters_of(&self.topic)
    }

    /// Clients that register, change and end patients until they are stopped, whatever becomes of the broker.
    pub(super) fn load(&self) -> Load {
        // No two patients have the same address.
        let number = fastrand::u32(..);
        let mut load =
            Load { written: Arc::default(), enough: CancellationToken::new(), clients: JoinSet::new() };
        for client in 0..CLIENTS {
            let client = Writer {
                name: format!("{number}-{client}"),
                base: format!("{}/api/patients", self.node.http_url()),
                client: self.node.client().clone(),
                token: self.token.clone(),
                written: Arc::clone(&load.written),
            };
            let enough = load.enough.clone();
            load.clients.spawn(async move {
                for n in 0.. {
                    if enough.is_cancelled() {
                        break;
                    }
                    client.life(n).await;
                }
            });
        }
        load
    }

    /// Awaits that the bridge has noticed another log of the topic, and has said so.
    pub(super) async fn begins_a_new_log(&self) {
        let said =
            || async { self.node.log().contains("the topic has another log than before").then_some(()) };
        assert!(
            within(PATIENCE, said).await.is_some(),
            "nobody has noticed the new log:\n{}",
            self.log_end()
        );
    }

    /// Awaits that the clients have written `count` events more.
    pub(super) async fn written(&self, load: &Load, count: usize) {
        let wanted = load.written.load(Ordering::Relaxed) + count;
        let written = || async { (load.written.load(Ordering::Relaxed) >= wanted).then_some(()) };
        assert!(within(PATIENCE, written).await.is_some(), "the clients do not get on:\n{}", self.log_end());
    }

    /// Awaits that the broker has acknowledged `count` events more than until now.
    pub(super) async fn published(&self, load: &Load, count: i64) {
        self.written(load, 1).await;
        let connection = tokio::sync::Mutex::new(self.connect().await);
        let sent = || async {
            let mut connection = connection.lock().await;
            let count = "SELECT (SELECT count(*) FROM patient_events) - (SELECT count(*) FROM outbox)";
            sqlx::query_scalar::<_, i64>(count).fetch_one(&mut *connection).await.expect("a count")
        };
        let wanted = sent().await + count;
        let enough = || async { (sent().await >= wanted).then_some(()) };
        assert!(within(PATIENCE, enough).await.is_some(), "nothing is published:\n{}", self.log_end());
    }

    /// Awaits that readiness says so of a part, while the node itself serves: it can, without a broker.
    pub(super) async fn says(&self, part: &str, status: &str) {
        let told = std::sync::Mutex::new(Value::Null);
        let says = || async {
            let url = format!("{}/health/ready", self.node.http_url());
            let answer = self.node.client().get(url).send().await.expect("an answer");
            let serves = answer.status() == StatusCode::OK;
            let body: Value = answer.json().await.expect("JSON");
            let right = serves && body["parts"][part]["status"] == json!(status);
            *told.lock().expect("sane") = body;
            right.then_some(())
        };
        let said = within(PATIENCE, says).await;
        assert!(said.is_some(), "{part} is not {status}: {}", told.lock().expect("sane"));
    }

    /// Awaits that analytics has counted everything, and gives its totals.
    pub(super) async fn counted(&self) -> Value {
        let last = std::sync::Mutex::new(Value::Null);
        let counted = within(PATIENCE, || async {
            let answer = self.node.get(&self.token, "/api/analytics/summary").await;
            let summary: Value = answer.json().await.ok()?;
            last.lock().expect("sane").clone_from(&summary);
            (summary["lag"] == json!(0)).then_some(summary)
        });
        let counted = counted.await;
        counted.unwrap_or_else(|| panic!("not counted: {}\n{}", last.lock().expect("sane"), self.log_end()))
    }

    /// Awaits that something of ours is in a partition.
    pub(super) async fn uses_partition(&self, partition: i32) {
        let used = || async {
            let messages = topic::read(&self.bootstrap, &self.topic).await.ok()?;
            messages.iter().any(|message| message.partition == partition).then_some(())
        };
        assert!(within(PATIENCE, used).await.is_some(), "nothing is written to partition {partition}");
    }

    /// Everything has come to rest, and everything is right: see the module above.
    pub(super) async fn proven(&self) {
        self.proven_of(|_| ()).await;
    }

    /// The same, where a patient's events may lie in several partitions: they are taken in the order of their times.
    pub(super) async fn proven_by_time(&self) {
        self.proven_of(|messages| messages.sort_by_key(|message| message.at_ms)).await;
    }

    async fn proven_of(&self, order: impl Fn(&mut Vec<Message>)) {
        let table = self.table().await;
        let wrong = std::sync::Mutex::new(Vec::new());
        let complete = || async {
            let mut messages = match topic::read(&self.bootstrap, &self.topic).await {
                Ok(messages) => messages,
                Err(problem) => {
                    *wrong.lock().expect("sane") = vec![problem];
                    return None;
                }
            };
            order(&mut messages);
            let found = differences(&table, &messages);
            let good = found.is_empty();
            *wrong.lock().expect("sane") = found;
            good.then_some(())
        };
        let complete = within(PATIENCE, complete).await;
        let wrong = wrong.into_inner().expect("sane");
        assert!(
            complete.is_some(),
            "{} patients differ in the topic: {:?}\n{}",
            wrong.len(),
            &wrong[..wrong.len().min(5)],
            self.log_end()
        );
        totals_equal(&table, &self.counted().await);
        self.says("bridge", "ready").await;
        self.says("analytics", "ready").await;
    }

    /// The events of each patient, by version.
    pub(super) async fn table(&self) -> BTreeMap<Uuid, Vec<Recorded>> {
        let mut connection = self.connect().await;
        let all =
            "SELECT patient_id, version, event_id, kind FROM patient_events ORDER BY patient_id, version";
        let rows = sqlx::query(all).fetch_all(&mut connection).await.expect("the events");
        let mut table: BTreeMap<Uuid, Vec<Recorded>> = BTreeMap::new();
        for row in rows {
            table.entry(row.get(0)).or_default().push((row.get(1), row.get(2), row.get(3)));
        }
        table
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(self.database.url()).await.expect("a connection")
    }

    fn log_end(&self) -> String {
        let log = self.node.log();
        let telling = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        let lines: Vec<_> = log.lines().filter(telling).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

fn dead_letters_of(topic: &str) -> String {
    format!("{topic}.dlq")
}

/// What the topic says of each patient that is not what the table says. First appearances are in the order of
/// versions; repeats are allowed, and exact.
fn differences(table: &BTreeMap<Uuid, Vec<Recorded>>, messages: &[Message]) -> Vec<String> {
    let mut seen: BTreeMap<Uuid, Vec<(i64, Uuid)>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for message in messages {
        let decoded = message.value.as_deref().map(PatientEvent::decode);
        let Some(Ok(event)) = decoded else { continue };
        let (Ok(patient), Ok(id)) = (event.patient_id.parse::<Uuid>(), event.event_id.parse()) else {
            continue;
        };
        let of_patient = seen.entry(patient).or_default();
        let next = i64::try_from(of_patient.len()).expect("few") + 1;
        if event.version == next {
            of_patient.push((event.version, id));
        } else if !of_patient.contains(&(event.version, id)) {
            wrong.push(format!("version {} of {patient} where {next} is next", event.version));
        }
    }
    for (patient, events) in table {
        let told: Vec<_> = events.iter().map(|(version, id, _)| (*version, *id)).collect();
        let found = seen.get(patient).map_or(&[][..], Vec::as_slice);
        if found != told {
            wrong.push(format!("{} of {} events of {patient}", found.len(), told.len()));
        }
    }
    let unknown: BTreeSet<_> = seen.keys().filter(|patient| !table.contains_key(patient)).collect();
    wrong.extend(unknown.into_iter().map(|patient| format!("{patient} is not in the table")));
    wrong
}

/// Analytics has counted every event of the table once.
fn totals_equal(table: &BTreeMap<Uuid, Vec<Recorded>>, summary: &Value) {
    const DELETED: i16 = 3;
    let ended = |events: &&Vec<Recorded>| events.last().is_some_and(|(_, _, kind)| *kind == DELETED);
    let living = table.len() - table.values().filter(ended).count();
    assert_eq!(summary["totalPatients"], json!(living), "{summary}");
    let of_kind = |wanted: i16| table.values().flatten().filter(|(_, _, kind)| *kind == wanted).count();
    for (kind, name) in [(1, "PATIENT_CREATED"), (2, "PATIENT_UPDATED"), (DELETED, "PATIENT_DELETED")] {
        assert_eq!(summary["byEventType"][name], json!(of_kind(kind)), "{name}: {summary}");
    }
}

/// Messages that others may write: each is unreadable for us in its own way.
pub(super) fn foreign_messages() -> Vec<topic::Foreign> {
    // What has our fields and names no patient, and what the original system writes: it has no versions.
    let nobodys = PatientEvent { patient_id: "nobody".into(), version: 1, ..PatientEvent::default() };
    let original = PatientEvent {
        patient_id: Uuid::new_v4().to_string(),
        name: "Somebody".into(),
        email: "somebody@example.com".into(),
        event_type: "PATIENT_CREATED".into(),
        ..PatientEvent::default()
    };
    vec![
        (None, Some(b"no protobuf".to_vec())),
        (Some(b"\xff\xfe".to_vec()), Some(vec![0xff; 64])),
        (Some(Uuid::new_v4().to_string().into_bytes()), None),
        (None, Some(Vec::new())),
        (Some(b"nobody".to_vec()), Some(nobodys.encode_to_vec())),
        (Some(original.patient_id.clone().into_bytes()), Some(original.encode_to_vec())),
    ]
}

/// Clients at work.
pub(super) struct Load {
    /// Events acknowledged so far.
    written: Arc<AtomicUsize>,
    enough: CancellationToken,
    clients: JoinSet<()>,
}

impl Load {
    /// Tells the clients to end, and waits for them.
    pub(super) async fn stop(mut self) {
        self.enough.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("every write is answered as it should be");
        }
    }
}

/// One client.
struct Writer {
    /// Its patients' names begin with it.
    name: String,
    base: String,
    client: Client,
    token: String,
    written: Arc<AtomicUsize>,
}

impl Writer {
    /// A patient who is registered and changed; every third one is ended. On a machine that is too busy a write may be
    /// answered too late; then the patient is left as it is.
    async fn life(&self, n: usize) -> Option<()> {
        let name = format!("{}-{n}", self.name);
        let made = self.send(Method::POST, &self.base, Some(patient(&name)), StatusCode::CREATED).await?;
        let url = format!("{}/{}", self.base, made["id"].as_str().expect("an id"));
        for change in 0..2 {
            let mut changed = patient(&name);
            changed["address"] = json!(format!("{change} Low Street"));
            self.send(Method::PUT, &url, Some(changed), StatusCode::OK).await?;
        }
        if n % 3 == 2 {
            self.send(Method::DELETE, &url, None, StatusCode::NO_CONTENT).await?;
        }
        Some(())
    }

    /// What was answered, if it was answered in time.
    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<Value>,
        wanted: StatusCode,
    ) -> Option<Value> {
        let mut request = self.client.request(method.clone(), url).bearer_auth(&self.token);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let answer = request.send().await.expect("an answer");
        if matches!(answer.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
            return None;
        }
        assert_eq!(answer.status(), wanted, "{method} {url}");
        self.written.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(RESTS).await;
        Some(answer.json().await.unwrap_or_default())
    }
}
