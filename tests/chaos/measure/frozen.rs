//! A part that is stopped for long while more is asked than the cluster can do: whether memory stays bounded,
//! whether every request is answered in time, and how soon all is as before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use super::{Bench, KEYS, spread, tag};
use crate::api::{Api, Attempt};
use crate::cluster::{Cluster, Layout};
use crate::machinery::proxy::Rules;
use crate::memory;

/// How far away the database is, each way. It bounds what the cluster does, since changes of one patient follow each
/// other; else the processors would, which this program shares with all nodes: they would be short for both.
const FAR: Duration = Duration::from_millis(120);
/// Clients of the run that finds out how much the cluster does.
const CLOSED_CLIENTS: usize = 128;
/// How long that takes.
const CLOSED_SPAN: Duration = Duration::from_secs(5);
/// Requests sent, in relation to what was found.
const OVERLOAD: f64 = 2.0;
/// How long too much is asked before anything is stopped.
const BEFORE: Duration = Duration::from_secs(6);
/// What of it counts as how it is when all is well: not the beginning.
const WARM: Duration = Duration::from_secs(2);
/// How long it goes on after it is woken.
const AFTER: Duration = Duration::from_secs(15);
/// How often requests are sent, as many as are due.
const BEAT: Duration = Duration::from_millis(5);
/// Requests of this program on their way, over all fronts; further ones are not sent, and counted. Each takes a
/// connection, and beyond what the fronts hold connections wait in the kernel's queue, where nobody answers.
const OPEN_MAX: u64 = 2_000;
/// In such windows it is looked whether as much succeeds as before, or nearly.
const WINDOW: Duration = Duration::from_millis(500);
const NEARLY: f64 = 0.8;
/// The request deadline of the nodes, and what a client may wait beyond it.
const DEADLINE: Duration = Duration::from_millis(5_200);

/// What is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A node that holds patients and is no front.
    Peer,
    /// The database.
    Database,
    /// The broker.
    Broker,
}

impl What {
    /// The one of that name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name {
            "peer" => Some(What::Peer),
            "database" => Some(What::Database),
            "broker" => Some(What::Broker),
            _ => None,
        }
    }
}

/// One request.
#[derive(Clone)]
struct Sample {
    begun: Instant,
    took: Duration,
    /// `good`, the code of a refusal, or that none was heard.
    answer: String,
}

impl Sample {
    fn ended(&self) -> Instant {
        self.begun + self.took
    }
}

/// Asks once: a read or a change of one of `keys`, by turns, over all fronts.
async fn once(api: &Api, keys: &[Uuid], nth: usize) -> Sample {
    let key = nth / 2 % KEYS;
    let front = nth % api.fronts();
    let begun = Instant::now();
    let attempt = match nth % 4 < 2 {
        true => api.try_read(front, keys[key]).await,
        false => api.try_update(front, keys[key], tag(key)).await,
    };
    let answer = match attempt {
        Attempt::Answered(StatusCode::OK, _) => "good".to_owned(),
        Attempt::Answered(status, body) => {
            format!("{} {}", status.as_u16(), body["code"].as_str().unwrap_or("no code"))
        }
        Attempt::NotSent => "no connection".to_owned(),
        Attempt::Broken | Attempt::GaveUp => "unheard".to_owned(),
    };
    Sample { begun, took: begun.elapsed(), answer }
}

/// How many requests per second the cluster answers well, if each client waits for its answer.
async fn capacity(api: &Api, keys: &[Uuid]) -> f64 {
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    for client in 0..CLOSED_CLIENTS {
        let (api, keys) = (api.clone(), keys.to_vec());
        clients.spawn(async move {
            let mut good = 0_u32;
            for nth in (client * 7..).take_while(|_| begun.elapsed() < CLOSED_SPAN) {
                good += u32::from(once(&api, &keys, nth).await.answer == "good");
            }
            good
        });
    }
    let good: u32 = clients.join_all().await.into_iter().sum();
    f64::from(good) / begun.elapsed().as_secs_f64()
}

/// So many requests per second, whether answers come or not.
struct Flood {
    sending: JoinHandle<()>,
    enough: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    unsent: Arc<AtomicU64>,
}

impl Flood {
    fn start(api: &Api, keys: &[Uuid], per_second: f64) -> Self {
        let (enough, unsent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (api, keys): (Api, Arc<[Uuid]>) = (api.clone(), keys.into());
        let (told, kept, left) = (Arc::clone(&enough), Arc::clone(&samples), Arc::clone(&unsent));
        let sending = tokio::spawn(async move {
            let (begun, mut sent, mut open) = (Instant::now(), 0_u64, JoinSet::new());
            while !told.load(Ordering::Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * per_second) as u64;
                for nth in sent..due {
                    while open.try_join_next().is_some() {}
                    if open.len() as u64 >= OPEN_MAX {
                        left.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let (api, keys, kept) = (api.clone(), Arc::clone(&keys), Arc::clone(&kept));
                    open.spawn(async move {
                        let sample = once(&api, &keys, nth as usize).await;
                        kept.lock().expect("sane").push(sample);
                    });
                }
                sent = due;
                tokio::time::sleep(BEAT).await;
            }
            while open.join_next().await.is_some() {}
        });
        Flood { sending, enough, samples, unsent }
    }

    /// All that was sent, once it is answered, and how many were not sent.
    async fn stop(self) -> (Vec<Sample>, u64) {
        self.enough.store(true, Ordering::Relaxed);
        self.sending.await.expect("no panic");
        let samples = std::mem::take(&mut *self.samples.lock().expect("sane"));
        (samples, self.unsent.load(Ordering::Relaxed))
    }
}

/// Stops `what` for `lasts` while twice as much is asked as the cluster does.
pub(crate) async fn frozen(layout: Layout, what: What, lasts: Duration) -> Result<Value, String> {
    let bench = Bench::start(layout).await?;
    // Not a front: its own clients would wait for it to wake up.
    let is_front = |number: &usize| bench.cluster.nodes[*number].roles.contains(&"front");
    let victim = bench.victims().into_iter().find(|number| !is_front(number));
    let Bench { cluster, api, keys, .. } = bench;
    cluster.nodes.iter().for_each(|node| node.to_database(Rules::slow(FAR)));
    let capacity = capacity(&api, &keys).await;
    tokio::time::sleep(WARM).await;
    let rest = memory::now(&cluster).await;
    let watched = memory::Watch::start(&cluster);
    let flood = Flood::start(&api, &keys, capacity * OVERLOAD);
    let begun = Instant::now();
    tokio::time::sleep(BEFORE).await;
    let before = memory::now(&cluster).await;
    let frozen_at = Instant::now();
    set_frozen(&cluster, what, victim, true).await;
    tokio::time::sleep(lasts).await;
    set_frozen(&cluster, what, victim, false).await;
    let woken_at = Instant::now();
    let published = published(&cluster, woken_at).await;
    tokio::time::sleep(AFTER.saturating_sub(woken_at.elapsed())).await;
    let (samples, unsent) = flood.stop().await;
    let most = watched.most();
    let ended = cluster.restart_ended().await.len();

    let good_between = |from: Instant, to: Instant| {
        let ended = samples.iter().filter(|s| s.answer == "good" && s.ended() >= from && s.ended() < to);
        ended.count() as f64 / to.duration_since(from).as_secs_f64()
    };
    let usual = good_between(begun + WARM, frozen_at);
    let windows = (AFTER.as_millis() / WINDOW.as_millis()) as u32;
    let is_usual = |n: u32| {
        let from = woken_at + WINDOW * n;
        good_between(from, from + WINDOW) >= usual * NEARLY
    };
    // Two windows in a row, so that a burst of what had waited does not count.
    let normal = (0..windows - 1).find(|n| is_usual(*n) && is_usual(n + 1));
    let mib = |bytes: u64| (bytes as f64 / 1024.0 / 1024.0 * 10.0).round() / 10.0;
    let memory: BTreeMap<_, _> = most
        .iter()
        .map(|(name, most)| {
            let (rest, before) =
                (rest.get(name).copied().unwrap_or(0), before.get(name).copied().unwrap_or(0));
            let grown = mib(most.saturating_sub(rest));
            (
                *name,
                json!({"at_rest": mib(rest), "when_frozen": mib(before), "most": mib(*most), "grown": grown}),
            )
        })
        .collect();
    let late = samples.iter().filter(|sample| sample.took > DEADLINE).count();
    Ok(json!({
        "what": "frozen", "database_away_ms": FAR.as_millis() as u64 * 2, "part": format!("{what:?}").to_lowercase(), "seconds": lasts.as_secs(),
        "capacity_per_s": capacity.round(), "asked_per_s": (capacity * OVERLOAD).round(), "not_sent": unsent,
        "memory_mib": memory, "answers_later_than_deadline_and_200_ms": late,
        "before": told(&samples, begun, frozen_at), "frozen": told(&samples, frozen_at, woken_at),
        "after": told(&samples, woken_at, Instant::now()),
        "good_per_s_before": usual.round(), "good_per_s_frozen": good_between(frozen_at, woken_at).round(),
        "normal_after_ms": normal.map(|n| u64::from(n) * WINDOW.as_millis() as u64),
        "published_again_after_ms": published.map(|after| after.as_millis() as u64),
        "nodes_ended_by_themselves": ended,
    }))
}

async fn set_frozen(cluster: &Cluster, what: What, victim: Option<usize>, frozen: bool) {
    match (what, frozen) {
        (What::Peer, _) => {
            let signal = if frozen { Signal::STOP } else { Signal::CONT };
            let node = victim.and_then(|number| cluster.nodes.get(number));
            node.expect("a node that holds patients and is no front").signal(signal).await;
        }
        (What::Database, true) => cluster.postgres.pause(),
        (What::Database, false) => cluster.postgres.resume(),
        (What::Broker, true) => cluster.broker.pause(),
        (What::Broker, false) => cluster.broker.resume(),
    }
}

/// How long after `since` the event that has waited longest is published.
async fn published(cluster: &Cluster, since: Instant) -> Option<Duration> {
    const OLDEST: &str = "SELECT min(seq) FROM outbox";
    let mut first = None;
    while since.elapsed() < AFTER {
        let asked = async {
            let mut connection = PgConnection::connect(cluster.database.url()).await.ok()?;
            let oldest: Option<i64> = sqlx::query_scalar(OLDEST).fetch_one(&mut connection).await.ok()?;
            connection.close().await.ok();
            Some(oldest)
        };
        if let Ok(Some(oldest)) = tokio::time::timeout(Duration::from_secs(1), asked).await {
            match (first, oldest) {
                (_, None) => return Some(since.elapsed()),
                (None, Some(seq)) => first = Some(seq),
                (Some(first), Some(seq)) if seq > first => return Some(since.elapsed()),
                _ => {}
            }
        }
        tokio::time::sleep(BEAT * 10).await;
    }
    None
}

/// What those were told whose request began in that time.
fn told(samples: &[Sample], from: Instant, to: Instant) -> Value {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut took = Vec::new();
    for sample in samples.iter().filter(|sample| sample.begun >= from && sample.begun < to) {
        *counts.entry(&sample.answer).or_default() += 1;
        took.push(sample.took.as_secs_f64() * 1e3);
    }
    json!({"answers": counts, "took_ms": spread(took)})
}
