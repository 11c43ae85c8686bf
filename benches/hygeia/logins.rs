//! What tokens and passwords cost: reads with either kind of token, logins beside bare BCrypt, and reads while
//! logins pour in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::load::{self, Connection, Outcome, Task, Work};
use crate::node::{Node, Site};
use crate::patients::{latencies, post_task, rate, rates};
use crate::report::{Reach, Report, Row};
use crate::stats::{Spread, by_turns, median};
use crate::yardstick::PatientView;
use crate::{Effort, Result, say};

const READERS: usize = 64;
const HOT_PATIENTS: usize = 1_000;
/// Logins come that many times as fast as they can be answered.
const FLOOD: f64 = 4.0;
/// Connections of the flood at once, at most.
const FLOOD_CONNECTIONS: usize = 128;
/// The cost of hashes on every node by default.
const COST: u32 = 12;

fn site() -> Result<Site> {
    // The bench logs in as one user from one address, and all at once.
    Ok(Site::embedded()?
        .with("HYGEIA__AUTH__LOGIN_ACCOUNT_FAILURES_MAX", "1000000")
        .with("HYGEIA__AUTH__LOGIN_ADDRESS_FAILURES_MAX", "1000000"))
}

/// A node with patients in memory, a token, and the paths to read.
async fn with_patients(site: &Site) -> Result<(Node, String, Vec<String>)> {
    let node = site.start().await?;
    let token = node.token().await?;
    load::run(post_task(&node, &token, 16, "hot", HOT_PATIENTS, None)).await?;
    node.quiet().await?;
    let patients: Vec<PatientView> = node.patients(&token, HOT_PATIENTS).await?;
    Ok((node, token, patients.iter().map(|p| format!("/api/patients/{}", p.id)).collect()))
}

async fn read(node: &Node, token: &str, paths: &[String], measured: Duration) -> Result<Outcome> {
    let measured_ms = u64::try_from(measured.as_millis()).ok();
    let work = Work::Get { paths: paths.to_vec() };
    load::run(Task { address: node.http, token: token.into(), connections: READERS, measured_ms, work }).await
}

/// `GET` by id with EdDSA tokens, beside the same with HS256.
pub(crate) async fn tokens(effort: Effort, report: &mut Report) -> Result<()> {
    let (eddsa, hs256) = (site()?, site()?.with("HYGEIA__AUTH__TOKEN_ALGORITHM", "HS256"));
    let (node, token, paths) = with_patients(&eddsa).await?;
    let (other, other_token, other_paths) = with_patients(&hs256).await?;
    read(&node, &token, &paths, Duration::from_secs(1)).await?;
    read(&other, &other_token, &other_paths, Duration::from_secs(1)).await?;
    let (ours, theirs) = by_turns(
        effort.rounds,
        async |_| read(&node, &token, &paths, effort.measured).await,
        async |_| read(&other, &other_token, &other_paths, effort.measured).await,
    )
    .await?;
    report.add(Row {
        what: format!("GET by id, hot, EdDSA tokens ({READERS} connections)"),
        beside: "the same with HS256 tokens".into(),
        ours: format!("{:.0}/s, {}", rate(&ours), latencies(&ours)),
        yardstick: format!("{:.0}/s, {}", rate(&theirs), latencies(&theirs)),
        ratio: Spread::of_ratios(&rates(&ours), &rates(&theirs)),
        reach: Some(Reach::AtLeast(0.9)),
    });
    node.stop().await?;
    other.stop().await
}

/// How many threads hash by default: what `auth.hashing_threads_max` says.
fn hashing_threads() -> usize {
    (std::thread::available_parallelism().map_or(1, std::num::NonZero::get) / 2).max(1)
}

/// Hashes per second of one thread that does nothing else.
async fn hashes_per_second(measured: Duration) -> Result<f64> {
    let hashing = tokio::task::spawn_blocking(move || -> Result<f64> {
        let (began, mut hashes) = (Instant::now(), 0);
        while began.elapsed() < measured {
            bcrypt::hash_with_salt("a password", COST, [7; 16])?;
            hashes += 1;
        }
        Ok(f64::from(hashes) / began.elapsed().as_secs_f64())
    });
    hashing.await?
}

fn login_request(node: &Node, body: &str) -> Arc<[u8]> {
    let host = node.http;
    let head = format!("POST /auth/login HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n");
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes().into()
}

/// Logins per second that are answered with tokens, with one client more than there are threads, so that none of
/// those waits for the next.
async fn logins_per_second(node: &Node, request: &Arc<[u8]>, measured: Duration) -> Result<f64> {
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..=hashing_threads() {
        let (request, address) = (Arc::clone(request), node.http);
        clients.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut logins = 0_usize;
            while began.elapsed() < measured {
                match connection.exchange(&request).await? {
                    200 => logins += 1,
                    status => return Err(format!("status {status} at a login").into()),
                }
            }
            Result::Ok(logins)
        });
    }
    let mut logins = 0;
    while let Some(client) = clients.join_next().await {
        logins += client??;
    }
    Ok(logins as f64 / began.elapsed().as_secs_f64())
}

/// Logins, beside bare BCrypt on as many threads as the node has for it.
pub(crate) async fn login(effort: Effort, report: &mut Report) -> Result<()> {
    let node = site()?.start().await?;
    let request = login_request(&node, &node.another_user(&node.token().await?, "CLINICIAN").await?);
    node.quiet().await?;
    let (ours, theirs) = by_turns(
        effort.rounds,
        async |_| logins_per_second(&node, &request, effort.measured).await,
        async |_| Ok(hashes_per_second(effort.measured).await? * hashing_threads() as f64),
    )
    .await?;
    report.add(Row {
        what: "logins".into(),
        beside: format!("BCrypt of cost {COST}, {} threads' worth", hashing_threads()),
        ours: format!("{:.2}/s", median(&ours)),
        yardstick: format!("{:.2}/s", median(&theirs)),
        ratio: Spread::of_ratios(&ours, &theirs),
        reach: Some(Reach::AtLeast(0.9)),
    });
    node.stop().await
}

/// Reads while logins come faster than they can be answered, beside reads without.
pub(crate) async fn flood(effort: Effort, report: &mut Report) -> Result<()> {
    let (node, token, paths) = with_patients(&site()?).await?;
    let request = login_request(&node, &node.another_user(&token, "CLINICIAN").await?);
    let capacity = logins_per_second(&node, &request, effort.measured).await?;
    let sent = Arc::new(AtomicUsize::new(0));
    read(&node, &token, &paths, Duration::from_secs(1)).await?;
    let beset = async |_| {
        let pouring =
            tokio::spawn(pour(node.http, Arc::clone(&request), capacity * FLOOD, Arc::clone(&sent)));
        // Until the queue is full.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let outcome = read(&node, &token, &paths, effort.measured).await;
        pouring.abort();
        outcome
    };
    let alone = async |_| {
        node.quiet().await?;
        read(&node, &token, &paths, effort.measured).await
    };
    let (flooded, calm) = by_turns(effort.rounds, beset, alone).await?;
    let p99 = |outcomes: &[Outcome]| outcomes.iter().map(|o| o.p99_us).collect::<Vec<_>>();
    say(&format!("{capacity:.2} logins/s can be answered; {} were sent", sent.load(Ordering::Relaxed)));
    report.add(Row {
        what: format!("p99 of GET by id, hot, under {FLOOD:.0} times as many logins as can be answered"),
        beside: "the same without logins".into(),
        ours: format!("{:.0}/s, {}", rate(&flooded), latencies(&flooded)),
        yardstick: format!("{:.0}/s, {}", rate(&calm), latencies(&calm)),
        ratio: Spread::of_ratios(&p99(&flooded), &p99(&calm)),
        reach: Some(Reach::AtMost(2.0)),
    });
    node.stop().await
}

/// Sends `per_second` logins, each on a connection of its own, whatever is answered.
async fn pour(address: std::net::SocketAddr, request: Arc<[u8]>, per_second: f64, sent: Arc<AtomicUsize>) {
    let mut every = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second.max(0.1)));
    let mut under_way = JoinSet::new();
    loop {
        every.tick().await;
        while under_way.try_join_next().is_some() {}
        if under_way.len() >= FLOOD_CONNECTIONS {
            continue;
        }
        sent.fetch_add(1, Ordering::Relaxed);
        let request = Arc::clone(&request);
        under_way.spawn(async move {
            let mut connection = Connection::open(address).await.ok()?;
            connection.exchange(&request).await.ok()
        });
    }
}
