//! A rolling restart under load: what clients see who ask again only where that is safe.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Bench, spread};
use crate::api::{Api, Attempt};
use crate::cluster::{Cluster, Layout, Restarted};
use crate::machinery::history::Tag;
use crate::process::{PATIENCE, within};

/// Clients; they share the fronts.
const CLIENTS: usize = 12;
/// Patients of each client.
const KEYS_EACH: usize = 3;
/// The pace of a client.
const PAUSE: Duration = Duration::from_millis(8);
/// How long the load runs before the first node is told to end, and after the last one is back.
const CALM: Duration = Duration::from_secs(1);
/// The pause of a client that has found no front at all.
const NO_FRONT_PAUSE: Duration = Duration::from_millis(20);
/// How long a client looks for a front.
const NO_FRONT_MAX: Duration = Duration::from_secs(5);

/// What all clients saw.
#[derive(Default)]
pub(crate) struct Rolled {
    restarted: Vec<Restarted>,
    reads_ms: Vec<f64>,
    writes_ms: Vec<f64>,
    /// Requests that went to another front, as there was no connection to the first one.
    moved_on: usize,
    /// Reads that were asked again, as the connection broke.
    reads_again: usize,
    /// What failed, and how often.
    pub(crate) failed: BTreeMap<String, usize>,
}

impl Rolled {
    fn add(&mut self, other: Rolled) {
        self.restarted.extend(other.restarted);
        self.reads_ms.extend(other.reads_ms);
        self.writes_ms.extend(other.writes_ms);
        self.moved_on += other.moved_on;
        self.reads_again += other.reads_again;
        for (what, count) in other.failed {
            *self.failed.entry(what).or_default() += count;
        }
    }

    /// How many requests were answered as they should be.
    pub(crate) fn good(&self) -> usize {
        self.reads_ms.len() + self.writes_ms.len()
    }
}

/// Figures of `rounds` rolling restarts.
pub(crate) async fn rolling(layout: Layout, rounds: usize) -> Result<Value, String> {
    let bench = Bench::start(layout).await?;
    let mut all = Rolled::default();
    for _ in 0..rounds {
        all.add(roll_under_load(&bench.cluster, &bench.api).await?);
    }
    let mut nodes: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for Restarted { name, ended, back } in &all.restarted {
        let (ended_ms, back_ms) = nodes.entry(name).or_default();
        ended_ms.push(ended.as_secs_f64() * 1e3);
        back_ms.push(back.as_secs_f64() * 1e3);
    }
    let nodes: BTreeMap<_, _> = nodes
        .into_iter()
        .map(|(name, (ended, back))| {
            (name, json!({"ended_ms": spread(ended), "ready_again_ms": spread(back)}))
        })
        .collect();
    Ok(json!({
        "what": "rolling restart", "rounds": rounds, "failed": all.failed,
        "moved_on": all.moved_on, "reads_again": all.reads_again,
        "read_ms": spread(all.reads_ms), "write_ms": spread(all.writes_ms), "nodes": nodes,
    }))
}

/// Restarts every node in turn while clients read and write.
pub(crate) async fn roll_under_load(cluster: &Cluster, api: &Api) -> Result<Rolled, String> {
    let enough = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut keys = Vec::new();
        for _ in 0..KEYS_EACH {
            // Two of such tags are hardly ever the same.
            let tag = fastrand::u64(1 << 40..1 << 60);
            let register = || api.try_register(number % api.fronts(), tag);
            keys.push((within(PATIENCE, register).await.ok_or("no patient can be registered")?, tag));
        }
        let front = number % api.fronts();
        let client = Client { api: api.clone(), front, keys, seen: Rolled::default() };
        clients.spawn(client.work(Arc::clone(&enough)));
    }
    tokio::time::sleep(CALM).await;
    let restarted = cluster.roll().await;
    tokio::time::sleep(CALM).await;
    enough.store(true, Ordering::Relaxed);
    let mut all = Rolled { restarted: restarted?, ..Rolled::default() };
    clients.join_all().await.into_iter().for_each(|seen| all.add(seen));
    Ok(all)
}

struct Client {
    api: Api,
    /// The front that is asked, until there is no connection to it.
    front: usize,
    keys: Vec<(Uuid, Tag)>,
    seen: Rolled,
}

impl Client {
    async fn work(mut self, enough: Arc<AtomicBool>) -> Rolled {
        let mut turn = 0;
        while !enough.load(Ordering::Relaxed) {
            let (id, made_by) = self.keys[turn / 2 % self.keys.len()];
            let reads = turn % 2 == 0;
            turn += 1;
            let begun = Instant::now();
            match self.one(id, (!reads).then_some(made_by), begun).await {
                Ok(()) => {
                    let took = begun.elapsed().as_secs_f64() * 1e3;
                    if reads { self.seen.reads_ms.push(took) } else { self.seen.writes_ms.push(took) }
                }
                Err(why) => *self.seen.failed.entry(why).or_default() += 1,
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.seen
    }

    /// Asks until there is an answer: what was not sent goes to the next front, and so does a read whose
    /// connection broke. A change whose connection broke may have been made: its client was failed.
    async fn one(&mut self, id: Uuid, writes: Option<Tag>, begun: Instant) -> Result<(), String> {
        let name = if writes.is_some() { "write" } else { "read" };
        loop {
            let attempt = match writes {
                Some(made_by) => self.api.try_update(self.front, id, made_by).await,
                None => self.api.try_read(self.front, id).await,
            };
            match attempt {
                Attempt::Answered(StatusCode::OK, _) => return Ok(()),
                Attempt::Answered(status, body) => {
                    let code = body["code"].as_str().unwrap_or("no code");
                    let detail = body["detail"].as_str().unwrap_or_default();
                    return Err(format!("{name}: {} {code}: {detail}", status.as_u16()));
                }
                Attempt::Broken if writes.is_some() => return Err(format!("{name}: the connection broke")),
                Attempt::Broken => self.seen.reads_again += 1,
                Attempt::GaveUp => return Err(format!("{name}: no answer")),
                Attempt::NotSent => self.seen.moved_on += 1,
            }
            if begun.elapsed() > NO_FRONT_MAX {
                return Err(format!("{name}: no front takes it"));
            }
            self.front = (self.front + 1) % self.api.fronts();
            if self.front == 0 {
                tokio::time::sleep(NO_FRONT_PAUSE).await;
            }
        }
    }
}
