//! Every node is restarted in turn while clients work through the balancer. No request may fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::task::JoinSet;

use crate::api::{Api, Attempt};
use crate::cluster::Cluster;
use crate::machinery::history::{Email, Outcome};
use crate::machinery::prompt::Heard;

/// Clients at the same time.
const CLIENTS: u64 = 8;
/// The pause of a client between two requests: the rolling restart is looked at, not the load.
const PAUSE: Duration = Duration::from_millis(20);
/// The least number of requests that show anything.
const REQUESTS_MIN: u64 = 1_000;
/// How many failures are told.
const TOLD_MAX: usize = 20;

/// What all clients share.
#[derive(Default)]
struct Load {
    requests: AtomicU64,
    failed: Mutex<Vec<String>>,
    enough: AtomicBool,
}

/// Restarts them all, and fails if a request did.
pub(crate) async fn every_node(cluster: &Cluster) -> Result<(), String> {
    println!("every node is restarted in turn under load");
    let api = cluster.api().await?;
    let load = Arc::new(Load::default());
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    for number in 0..CLIENTS {
        clients.spawn(work(api.clone(), Arc::clone(&load), number, begun));
    }
    let restarted = cluster.restart_in_turn().await;
    load.enough.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| error.to_string())?;
    }
    restarted?;
    let requests = load.requests.load(Ordering::Relaxed);
    let failed = std::mem::take(&mut *load.failed.lock().expect("sane"));
    println!("  {requests} requests in {:.1} s, {} failed", begun.elapsed().as_secs_f64(), failed.len());
    if failed.is_empty() && requests >= REQUESTS_MIN {
        return Ok(());
    }
    let told = failed[..failed.len().min(TOLD_MAX)].join("\n");
    Err(format!(
        "{} of {requests} requests failed (at least {REQUESTS_MIN} are wanted):\n{told}",
        failed.len()
    ))
}

/// Registers, reads, changes, opens accounts and asks for the counts until it is enough.
async fn work(api: Api, load: Arc<Load>, number: u64, begun: Instant) {
    let failed = |what: &str| {
        let text = format!("  {:>6.1} s  client {number}: {what}", begun.elapsed().as_secs_f64());
        load.failed.lock().expect("sane").push(text);
    };
    let asked = || load.requests.fetch_add(1, Ordering::Relaxed);
    let mut tag = fastrand::u64(1 << 40..1 << 50);
    while !load.enough.load(Ordering::Relaxed) {
        tag += 1;
        asked();
        let Some(patient) = api.try_register(0, tag).await else {
            failed("a registration");
            continue;
        };
        for _ in 0..5 {
            tokio::time::sleep(PAUSE).await;
            asked();
            good(api.try_read(0, patient).await).unwrap_or_else(|how| failed(&format!("a read: {how}")));
            tokio::time::sleep(PAUSE).await;
            asked();
            let changed = good(api.try_update(0, patient, tag).await);
            changed.unwrap_or_else(|how| failed(&format!("a change: {how}")));
        }
        asked();
        let (_, heard, mut opened) = api.open_account(0, patient, (tag, Email::Own)).await;
        if heard == Heard::Broken {
            // Other clients of gRPC do this by themselves: a call that met the end of its connection, and that may be
            // repeated, is made again on the next one.
            (_, _, opened) = api.open_account(0, patient, (tag, Email::Own)).await;
        }
        if !matches!(opened.outcome, Outcome::Account(_)) {
            failed(&format!("an account: {:?} {:?}", opened.outcome, opened.surprise));
        }
        asked();
        if api.json(0, "/api/analytics/summary").await.is_none() {
            failed("the counts");
        }
    }
}

/// How it went wrong, if it did.
fn good(attempt: Attempt) -> Result<(), String> {
    match attempt {
        Attempt::Answered(StatusCode::OK, _) => Ok(()),
        Attempt::Answered(status, body) => Err(format!("{status} {body}")),
        Attempt::NotSent => Err("no connection".into()),
        Attempt::Broken => Err("the connection broke".into()),
        Attempt::GaveUp => Err("no answer in time".into()),
    }
}
