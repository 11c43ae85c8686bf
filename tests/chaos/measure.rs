//! Figures, not judgements: how long the patients of a broken node are away, what a graceful move or a rolling
//! restart costs, and what too much to do costs while a part is stopped. One JSON object on standard output.

pub(crate) mod frozen;
pub(crate) mod rolling;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::{Api, Attempt};
use crate::cluster::{Cluster, Layout, Node};
use crate::machinery::history::Tag;
use crate::machinery::proxy::Rules;
use crate::process::{PATIENCE, within};

/// Patients to write to: enough that each node has some.
const KEYS: usize = 48;
/// Clients, each with keys of its own.
const CLIENTS: usize = 16;
/// The pace of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// How long the load runs before anything is broken.
const CALM: Duration = Duration::from_secs(1);
/// How long one round waits for every patient to be back.
const BACK_TIMEOUT: Duration = Duration::from_secs(30);

/// A write that begins so long after a node has ended may still meet the move.
const AFTERMATH: Duration = Duration::from_millis(500);

/// How a node is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// Silence between it and everybody else, the database included.
    Cut,
}

impl How {
    /// The one of that name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name {
            "kill" => Some(How::Kill),
            "stop" => Some(How::Stop),
            "cut" => Some(How::Cut),
            _ => None,
        }
    }
}

/// One write.
#[derive(Clone, Copy)]
struct Sample {
    key: usize,
    begun: Instant,
    took: Duration,
    good: bool,
}

impl Sample {
    fn is_good(&self) -> bool {
        self.good
    }
}

/// Clients that write to `keys` through one front until they are told to stop.
struct Load {
    clients: JoinSet<Vec<Sample>>,
    enough: Arc<AtomicBool>,
}

impl Load {
    fn start(api: &Api, front: usize, keys: &[Uuid]) -> Self {
        let (mut clients, enough) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        for client in 0..CLIENTS {
            let own: Vec<_> =
                keys.iter().copied().enumerate().filter(|(key, _)| key % CLIENTS == client).collect();
            let (api, enough) = (api.clone(), Arc::clone(&enough));
            clients.spawn(async move {
                let mut samples = Vec::new();
                for (key, id) in own.iter().cycle() {
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    let attempt = api.try_update(front, *id, tag(*key)).await;
                    let good = matches!(attempt, Attempt::Answered(StatusCode::OK, _));
                    samples.push(Sample { key: *key, begun, took: begun.elapsed(), good });
                    tokio::time::sleep(PAUSE).await;
                }
                samples
            });
        }
        Load { clients, enough }
    }

    async fn stop(self) -> Vec<Sample> {
        self.enough.store(true, Ordering::Relaxed);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

fn tag(key: usize) -> Tag {
    key as Tag + 1
}

/// A cluster with patients to write to, and the front that is asked: one that is not broken itself.
struct Bench {
    cluster: Arc<Cluster>,
    api: Api,
    keys: Vec<Uuid>,
    front: usize,
}

impl Bench {
    async fn start(layout: Layout) -> Result<Self, String> {
        let cluster = Arc::new(Cluster::start(layout).await);
        let api = cluster.api().await?;
        let fronts = cluster.fronts();
        let front =
            fronts.iter().position(|node| !node.roles.contains(&"patient")).unwrap_or(fronts.len() - 1);
        let mut keys = Vec::new();
        for key in 0..KEYS {
            let register = || api.try_register(0, tag(key));
            keys.push(within(PATIENCE, register).await.ok_or("no patient can be registered")?);
        }
        Ok(Bench { cluster, api, keys, front })
    }

    /// The keys that this node serves, by the leases in the database.
    async fn keys_of(&self, node: &Node) -> Result<Vec<usize>, String> {
        let said = |error: sqlx::Error| error.to_string();
        let mut connection = PgConnection::connect(self.cluster.database.url()).await.map_err(said)?;
        let held = "SELECT DISTINCT e.patient_id FROM patient_events e JOIN leases l ON l.shard = e.shard \
                    WHERE l.kind = 'patient' AND l.expires_at > now() AND l.owner LIKE $1 || '#%'";
        let rows = sqlx::query(held).bind(node.name).fetch_all(&mut connection).await.map_err(said)?;
        connection.close().await.ok();
        let held: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        Ok((0..KEYS).filter(|key| held.contains(&self.keys[*key])).collect())
    }

    /// Awaits that the node has patients of ours: after it was away, its shards come back to it.
    async fn has_keys(&self, number: usize) -> Result<Vec<usize>, String> {
        let node = &self.cluster.nodes[number];
        let keys =
            within(PATIENCE, || async { self.keys_of(node).await.ok().filter(|keys| !keys.is_empty()) });
        keys.await.ok_or_else(|| format!("{} has no patients", node.name))
    }

    async fn break_node(&self, number: usize, how: How, broken: bool) {
        let node = &self.cluster.nodes[number];
        match (how, broken) {
            (How::Kill, true) => drop(node.end(Signal::KILL).await),
            (How::Kill, false) => node.start().await,
            (How::Stop, true) => node.signal(Signal::STOP).await,
            (How::Stop, false) => node.signal(Signal::CONT).await,
            (How::Cut, _) => {
                let rules = if broken { Rules::SILENT } else { Rules::PASS };
                node.to_database(rules);
                for other in (0..self.cluster.nodes.len()).filter(|other| *other != number) {
                    self.cluster.between(number, other, rules);
                }
            }
        }
    }

    /// Nodes that hold patients, without the front that is asked.
    fn victims(&self) -> Vec<usize> {
        let asked = self.cluster.fronts()[self.front].name;
        self.cluster
            .holders()
            .into_iter()
            .filter(|number| self.cluster.nodes[*number].name != asked)
            .collect()
    }
}

/// How long after a break the first write to each of the broken node's patients is acknowledged, and how many
/// writes to other nodes' patients fail meanwhile.
pub(crate) async fn failover(layout: Layout, how: How, rounds: usize) -> Result<Value, String> {
    let bench = Bench::start(layout).await?;
    let victims = bench.victims();
    let (mut first_ms, mut each_ms, mut errors_elsewhere, mut writes_elsewhere) = (vec![], vec![], 0, 0);
    for round in 0..rounds {
        let victim = victims[round % victims.len()];
        let mine = bench.has_keys(victim).await?;
        let load = Load::start(&bench.api, bench.front, &bench.keys);
        tokio::time::sleep(CALM).await;
        let broken_at = Instant::now();
        bench.break_node(victim, how, true).await;
        let back = || async {
            let held = bench.keys_of(&bench.cluster.nodes[victim]).await.ok()?;
            held.is_empty().then_some(())
        };
        within(BACK_TIMEOUT, back).await.ok_or("nobody takes the patients of a broken node")?;
        // A write that waits has its answer by then, and its client has come round to every key.
        tokio::time::sleep(CALM * 3).await;
        let samples = load.stop().await;
        bench.break_node(victim, how, false).await;
        bench.cluster.all_serve().await?;
        let mut firsts = Vec::new();
        for key in &mine {
            let good = samples.iter().filter(|s| s.key == *key && s.begun >= broken_at && s.is_good());
            match good.map(|s| s.begun + s.took).min() {
                Some(first) => firsts.push(first.duration_since(broken_at).as_secs_f64() * 1e3),
                None => return Err(format!("round {round}: a patient was not back within {BACK_TIMEOUT:?}")),
            }
        }
        first_ms.push(firsts.iter().copied().fold(f64::INFINITY, f64::min));
        each_ms.extend(firsts);
        let elsewhere = samples.iter().filter(|s| !mine.contains(&s.key) && s.begun + s.took >= broken_at);
        writes_elsewhere += elsewhere.clone().count();
        errors_elsewhere += elsewhere.filter(|s| !s.is_good()).count();
    }
    Ok(json!({
        "what": "first good write", "how": format!("{how:?}").to_lowercase(), "rounds": rounds,
        "first_ms": spread(first_ms), "each_patient_ms": spread(each_ms),
        "elsewhere": {"writes": writes_elsewhere, "errors": errors_elsewhere},
    }))
}

/// What requests see while a node that is told to end hands its shards over, and while they come back to it.
pub(crate) async fn graceful_move(layout: Layout, rounds: usize) -> Result<Value, String> {
    let bench = Bench::start(layout).await?;
    let victims = bench.victims();
    let (mut ended_ms, mut calm_ms, mut leaving_ms, mut returning_ms, mut failed) =
        (vec![], vec![], vec![], vec![], 0);
    for round in 0..rounds {
        let victim = victims[round % victims.len()];
        let node = &bench.cluster.nodes[victim];
        bench.has_keys(victim).await?;
        let load = Load::start(&bench.api, bench.front, &bench.keys);
        tokio::time::sleep(CALM).await;
        let begun = Instant::now();
        let status = node.end(Signal::TERM).await;
        let ended = Instant::now();
        ended_ms.push((ended - begun).as_secs_f64() * 1e3);
        if !status.is_some_and(|status| status.success()) {
            return Err(format!("{} did not end well: {status:?}", node.name));
        }
        node.start().await;
        bench.has_keys(victim).await?;
        tokio::time::sleep(CALM).await;
        for sample in load.stop().await {
            failed += usize::from(!sample.is_good());
            let took = sample.took.as_secs_f64() * 1e3;
            if sample.begun + sample.took < begun {
                calm_ms.push(took);
            } else if sample.begun < ended + AFTERMATH {
                leaving_ms.push(took);
            } else {
                returning_ms.push(took);
            }
        }
    }
    Ok(json!({
        "what": "graceful move", "rounds": rounds, "failed": failed, "node_ended_ms": spread(ended_ms),
        "write_before_ms": spread(calm_ms), "write_leaving_ms": spread(leaving_ms),
        "write_returning_ms": spread(returning_ms),
    }))
}

/// Count, median, 95th and 99th percentile and the greatest.
fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * values.len() as f64).ceil() as usize;
        values.get(place.max(1) - 1).map(|value| (value * 10.0).round() / 10.0)
    };
    json!({"n": values.len(), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)})
}
