//! `kill -9` at any moment: what was acknowledged is there, and every effect of it happens once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Node, Site, eventually, patient};
use crate::postgres::Postgres;

const WRITERS: usize = 8;
/// What each round has acknowledged before its fault, at least.
const FLOOR: Counts = Counts { registered: 60, changed: 20, deleted: 8 };

/// Acknowledged requests, by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    registered: usize,
    changed: usize,
    deleted: usize,
}

impl Counts {
    fn reaches_floor_after(&self, before: &Counts) -> bool {
        self.registered >= before.registered + FLOOR.registered
            && self.changed >= before.changed + FLOOR.changed
            && self.deleted >= before.deleted + FLOOR.deleted
    }
}

/// What the clients were told, over all rounds.
#[derive(Default)]
struct Told {
    /// Acknowledged registrations by id, with the highest version acknowledged.
    acknowledged: BTreeMap<String, i64>,
    deleted: Vec<String>,
    counts: Counts,
    /// Requests that a dying node has left without an answer.
    cut_off: usize,
}

/// One client: registers, changes and now and then deletes, until the node is gone or `enough`.
struct Writer {
    base: String,
    client: reqwest::Client,
    token: String,
    name: String,
    told: Arc<Mutex<Told>>,
    enough: CancellationToken,
}

/// The node is gone.
struct Gone;

impl Writer {
    async fn run(self) {
        for n in 0.. {
            if self.enough.is_cancelled() {
                return;
            }
            if self.one(n).await.is_err() {
                self.told().cut_off += 1;
                return;
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("sane")
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Result<(StatusCode, Value), Gone> {
        let request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        let response = request.json(body).send().await.map_err(|_| Gone)?;
        let status = response.status();
        let text = response.text().await.map_err(|_| Gone)?;
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    async fn one(&self, n: usize) -> Result<(), Gone> {
        let mut body = patient(format!("{}-{n}", self.name));
        let (status, created) = self.send(Method::POST, "/api/patients", &body).await?;
        if status != StatusCode::CREATED {
            return Ok(());
        }
        let id = created["id"].as_str().expect("an id").to_owned();
        self.told().counts.registered += 1;
        self.told().acknowledged.insert(id.clone(), 1);
        let path = format!("/api/patients/{id}");
        if n.is_multiple_of(2) {
            body["address"] = json!("2 Other Road");
            if self.send(Method::PUT, &path, &body).await?.0 == StatusCode::OK {
                self.told().counts.changed += 1;
                self.told().acknowledged.insert(id.clone(), 2);
            }
        }
        if n.is_multiple_of(5) {
            // From the moment it is sent the record may be gone.
            self.told().acknowledged.remove(&id);
            if self.send(Method::DELETE, &path, &Value::Null).await?.0 == StatusCode::NO_CONTENT {
                self.told().counts.deleted += 1;
                self.told().deleted.push(id);
            }
        }
        Ok(())
    }
}

/// Clients of `node`, at work.
fn write_to(
    node: &Node,
    token: &str,
    round: usize,
    told: &Arc<Mutex<Told>>,
    enough: &CancellationToken,
) -> JoinSet<()> {
    let writer = |w: usize| Writer {
        base: node.http_url().to_owned(),
        client: node.client().clone(),
        token: token.to_owned(),
        name: format!("{round}-{w}"),
        told: Arc::clone(told),
        enough: enough.clone(),
    };
    (0..WRITERS).map(|w| writer(w).run()).collect()
}

/// Until the floor is reached once more.
async fn enough_is_written(told: &Mutex<Told>) {
    let counts = || told.lock().expect("sane").counts;
    let before = counts();
    eventually("enough is acknowledged", || async { counts().reaches_floor_after(&before).then_some(()) })
        .await;
}

const ROUNDS: usize = 4;

async fn crash_rounds(site: &Site, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let told = Arc::new(Mutex::new(Told::default()));
    for round in 0..ROUNDS {
        let node = site.start().await;
        let token = node.login().await;
        let mut writers = write_to(&node, &token, round, &told, &CancellationToken::new());
        enough_is_written(&told).await;
        // The fault's own schedule, from the seed: the moment of the kill must not follow from what was seen last.
        tokio::time::sleep(Duration::from_millis(rng.u64(0..1_000))).await;
        node.kill().await;
        while let Some(ended) = writers.join_next().await {
            ended.expect("no panic");
        }
    }
    let node = site.start().await;
    let told = std::mem::take(&mut *told.lock().expect("sane"));
    assert_eq!(told.cut_off, ROUNDS * WRITERS, "every kill was in the midst of the work of every client");
    check(&node, &told).await;
}

async fn check(node: &Node, told: &Told) {
    let token = node.login().await;
    let listed = all_patients(node, &token).await;
    println!("{:?} acknowledged, {} cut off", told.counts, told.cut_off);
    for (id, version) in &told.acknowledged {
        let found = listed.get(id).unwrap_or_else(|| panic!("acknowledged and lost: {id}"));
        assert!(found["version"].as_i64() >= Some(*version), "an acknowledged change of {id} is lost");
        assert_eq!(node.get_json(&token, &format!("/api/patients/{id}")).await, *found);
    }
    for id in &told.deleted {
        assert!(!listed.contains_key(id), "acknowledged as deleted and there: {id}");
    }
    let summary = node.counted(&token).await;
    assert_eq!(summary["totalPatients"], json!(listed.len()), "analytics is not exact");
    for id in listed.keys() {
        eventually("every patient has an account", || async {
            let response = node.get(&token, &format!("/api/billing/accounts/{id}")).await;
            (response.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
}

/// Every living patient, by id, over all pages.
async fn all_patients(node: &Node, token: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut path = "/api/patients?limit=1000".to_owned();
    loop {
        let response = node.get(token, &path).await;
        assert_eq!(response.status(), StatusCode::OK);
        let link = response.headers().get("link").map(|l| l.to_str().expect("text").to_owned());
        let page: Vec<Value> = response.json().await.expect("JSON");
        all.extend(page.into_iter().map(|p| (p["id"].as_str().expect("an id").to_owned(), p)));
        let Some(link) = link else { return all };
        let target = link.split(['<', '>']).nth(1).expect("a target in the link");
        path = target.strip_prefix(node.http_url()).unwrap_or(target).to_owned();
    }
}

fn seed() -> u64 {
    let seed =
        std::env::var("HYGEIA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("replay with HYGEIA_SEED={seed}");
    seed
}

#[tokio::test]
async fn sqlite_loses_nothing() {
    crash_rounds(&Site::fresh(), seed()).await;
}

#[tokio::test]
async fn postgres_loses_nothing() {
    let database = Postgres::shared().create_database().await;
    crash_rounds(&Site::on_postgres(database.url()), seed()).await;
}

/// The database itself dies and comes back: the node goes on by itself.
#[tokio::test]
async fn a_crash_of_postgres_is_survived() {
    let server = Postgres::start_private(crate::postgres::Durability::Full);
    let database = server.create_database().await;
    let site = Site::on_postgres(database.url());
    let node = site.start().await;
    let token = node.login().await;
    let told = Arc::new(Mutex::new(Told::default()));
    for round in 0..2 {
        let enough = CancellationToken::new();
        let mut writers = write_to(&node, &token, round, &told, &enough);
        enough_is_written(&told).await;
        server.stop(crate::postgres::Stop::Kill);
        eventually("the node says it is not ready", || async {
            (node.readiness().await == Some(StatusCode::SERVICE_UNAVAILABLE)).then_some(())
        })
        .await;
        server.start();
        eventually("the node is ready again", || async {
            (node.readiness().await == Some(StatusCode::OK)).then_some(())
        })
        .await;
        // The same clients, who never left off.
        enough_is_written(&told).await;
        enough.cancel();
        while let Some(ended) = writers.join_next().await {
            ended.expect("no panic");
        }
    }
    let told = std::mem::take(&mut *told.lock().expect("sane"));
    assert_eq!(told.cut_off, 0, "the node answers whatever the database does");
    check(&node, &told).await;
}
