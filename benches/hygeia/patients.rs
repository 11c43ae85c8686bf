//! Patients over HTTP: reads beside a bare axum handler, registrations beside pgbench.

use std::time::Duration;

use crate::disk::Disk;
use crate::load::{self, Outcome, Task, Work};
use crate::node::{self, Node, Site, token_without_node};
use crate::report::{Reach, Report, Row};
use crate::stats::{Spread, by_turns, median};
use crate::yardstick::{self, PatientView};
use crate::{Effort, Result, broker, pg, relay, say};

const READERS: usize = 64;
const WRITERS: usize = 64;
const PGBENCH_CLIENTS: usize = 32;
const HOT_PATIENTS: usize = 1_000;

/// `GET` by id of patients that are in memory, as it is by default and with the log at `warn`.
pub(crate) async fn get(effort: Effort, report: &mut Report) -> Result<()> {
    for (what, log) in [("GET by id, hot", None), ("the same, log at `warn`", Some("warn"))] {
        let mut site = Site::embedded()?;
        if let Some(filter) = log {
            site = site.with("HYGEIA_LOG", filter);
        }
        let node = site.start().await?;
        let token = node.token().await?;
        load::run(post_task(&node, &token, 16, "hot", HOT_PATIENTS, None)).await?;
        node.quiet().await?;
        let patients: Vec<PatientView> = node.patients(&token, HOT_PATIENTS).await?;
        let reach = log.is_none().then_some(Reach::AtLeast(0.5));
        beside_axum(effort, report, what, (&node, &token), &patients, reach).await?;
        node.stop().await?;
    }
    Ok(())
}

/// The same through a front whose patients are on another node.
pub(crate) async fn remote_get(effort: Effort, report: &mut Report) -> Result<()> {
    let database = pg::Postgres::shared().create_database().await;
    // Neither of the two nodes speaks to it.
    let no_broker = "127.0.0.1:9";
    let address = free_address()?;
    let front = Site::on(database.url(), no_broker)?
        .with("HYGEIA__NODE__NAME", "front")
        .with("HYGEIA__NODE__ROLES", "front")
        .with("HYGEIA__CLUSTER__SECRET", node::JWT_SECRET)
        .with("HYGEIA__CLUSTER__LISTEN", &address);
    let serving = Site::embedded()?
        .with("HYGEIA__STORE__URL", database.url())
        .with("HYGEIA__KAFKA__BROKERS", no_broker)
        .with("HYGEIA__NODE__NAME", "patient-1")
        .with("HYGEIA__NODE__ROLES", "patient")
        .with("HYGEIA__CLUSTER__SECRET", node::JWT_SECRET)
        .with("HYGEIA__CLUSTER__JOIN", &address);
    let (serving, front) = tokio::try_join!(serving.start(), front.start())?;
    let token = front.token().await?;
    load::run(post_task(&front, &token, 16, "hot", HOT_PATIENTS, None)).await?;
    serving.quiet().await?;
    front.quiet().await?;
    let patients: Vec<PatientView> = front.patients(&token, HOT_PATIENTS).await?;
    let what = "GET by id, hot, of another node";
    beside_axum(effort, report, what, (&front, &token), &patients, Some(Reach::AtLeast(0.4))).await?;
    front.stop().await?;
    serving.stop().await
}

/// Where nobody listens.
fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.to_string())
}

/// Reads `patients` at `node`, and at an axum handler.
async fn beside_axum(
    effort: Effort,
    report: &mut Report,
    what: &str,
    (node, token): (&Node, &str),
    patients: &[PatientView],
    reach: Option<Reach>,
) -> Result<()> {
    let yardstick = yardstick::start(patients.last().ok_or("no patients")?.clone()).await?;
    let paths: Vec<String> = patients.iter().map(|p| format!("/api/patients/{}", p.id)).collect();
    let their_token = token_without_node()?;
    let measure = async |name, address, token: &str, measured: Duration| {
        let outcome = load::run(Task {
            address,
            token: token.into(),
            connections: READERS,
            measured_ms: u64::try_from(measured.as_millis()).ok(),
            work: Work::Get { paths: paths.clone() },
        });
        let outcome = outcome.await?;
        say(&format!("{name} {:.0}/s", outcome.rate()));
        Result::Ok(outcome)
    };
    let own = async |measured| measure("ours", node.http, token, measured).await;
    let bare = async |measured| measure("axum", yardstick.address, &their_token, measured).await;
    own(Duration::from_secs(1)).await?;
    bare(Duration::from_secs(1)).await?;
    let (ours, theirs) =
        by_turns(effort.rounds, async |_| own(effort.measured).await, async |_| bare(effort.measured).await)
            .await?;
    report.add(Row {
        what: format!("{what} ({READERS} connections)"),
        beside: "bare axum that logs nothing, HS256 checked each time, same JSON".into(),
        ours: format!("{:.0}/s, {}", rate(&ours), latencies(&ours)),
        yardstick: format!("{:.0}/s, {}", rate(&theirs), latencies(&theirs)),
        ratio: Spread::of_ratios(&rates(&ours), &rates(&theirs)),
        reach,
    });
    Ok(())
}

/// Registrations over PostgreSQL, with everything that follows from one, and pgbench on the same server.
pub(crate) async fn post(effort: Effort, report: &mut Report) -> Result<()> {
    let server = pg::Postgres::shared();
    let broker = broker::start().await?;
    let yard = pg::yardstick_database(server).await?;
    let database = server.create_database().await;
    let site = Site::on(database.url(), &broker.address)?;
    let node = site.start().await?;
    let token = node.token().await?;
    let mut disk = Disk::default();
    disk.look().await?;
    let own = async |pair: usize, connections: usize| {
        let tag = format!("r{pair}c{connections}");
        let task = post_task(&node, &token, connections, &tag, usize::MAX, Some(effort.measured));
        let outcome = load::run(task).await?;
        say(&format!("ours, {connections} clients: {:.0} rows/s", outcome.rate()));
        at_rest(&node, &database).await?;
        Result::Ok(outcome)
    };
    let (many, bench_many) = by_turns(
        effort.rounds,
        async |pair| own(pair, WRITERS).await,
        async |_| pg::pgbench(&yard, PGBENCH_CLIENTS, effort.measured).await,
    )
    .await?;
    disk.look().await?;
    let (one, bench_one) = by_turns(
        effort.rounds,
        async |pair| own(pair, 1).await,
        async |_| pg::pgbench(&yard, 1, effort.measured).await,
    )
    .await?;
    disk.look().await?;
    let disk = disk.told();
    let their_rates: Vec<f64> = bench_many.iter().map(|o| o.rate).collect();
    report.add(Row {
        what: format!("POST patient, PostgreSQL, {WRITERS} clients"),
        beside: format!("pgbench, {PGBENCH_CLIENTS} clients, the same rows one per transaction{disk}"),
        ours: format!("{:.0} rows/s, {}", rate(&many), latencies(&many)),
        yardstick: format!("{:.0} rows/s", median(&their_rates)),
        ratio: Spread::of_ratios(&rates(&many), &their_rates),
        reach: Some(Reach::AtLeast(2.0)),
    });
    let our_us: Vec<f64> = one.iter().map(|o| o.mean_us).collect();
    let their_us: Vec<f64> = bench_one.iter().map(|o| o.mean_us).collect();
    report.add(Row {
        what: "POST patient, PostgreSQL, one client".into(),
        beside: format!("pgbench, one client: one such transaction{disk}"),
        ours: format!("{:.0} us mean, {}", median(&our_us), latencies(&one)),
        yardstick: format!("{:.0} us mean", median(&their_us)),
        ratio: Spread::of_ratios(&our_us, &their_us),
        reach: Some(Reach::AtMost(1.5)),
    });
    node.stop().await?;
    Ok(())
}

/// The yardsticks alone: what this machine does without us.
pub(crate) async fn yardsticks(effort: Effort) -> Result<()> {
    let bare = yardstick::start(PatientView::sample()).await?;
    let get = Task {
        address: bare.address,
        token: token_without_node()?,
        connections: READERS,
        measured_ms: u64::try_from(effort.measured.as_millis()).ok(),
        work: Work::Get { paths: vec![format!("/api/patients/{}", uuid::Uuid::nil())] },
    };
    let yard = pg::yardstick_database(pg::Postgres::shared()).await?;
    let broker = broker::start().await?;
    for _ in 0..effort.rounds {
        let read = load::run(get.clone()).await?;
        say(&format!("axum: {:.0}/s, {}", read.rate(), latencies(&[read])));
        for clients in [PGBENCH_CLIENTS, 1] {
            let pg::Outcome { rate, mean_us } = pg::pgbench(&yard, clients, effort.measured).await?;
            say(&format!("pgbench, {clients} clients: {rate:.0} rows/s, {mean_us:.0} us mean"));
        }
        say(&format!("bare producer: {:.0} messages/s", relay::bare_rate(&broker).await?));
    }
    Ok(())
}

/// Waits until what our load has left for later is done, so that the next measurement has the machine
/// for itself.
async fn at_rest(node: &Node, database: &pg::Database) -> Result<()> {
    let began = std::time::Instant::now();
    while pg::rows_waiting(database).await? > 0 && began.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    node.quiet().await
}

/// Registers `count` patients at `node`, or as many as can be in the time given.
pub(crate) fn post_task(
    node: &Node,
    token: &str,
    connections: usize,
    tag: &str,
    count: usize,
    measured: Option<Duration>,
) -> Task {
    Task {
        address: node.http,
        token: token.into(),
        connections,
        measured_ms: measured.and_then(|m| u64::try_from(m.as_millis()).ok()),
        work: Work::Post { tag: tag.into(), count },
    }
}

/// Requests per second of each.
pub(crate) fn rates(outcomes: &[Outcome]) -> Vec<f64> {
    outcomes.iter().map(Outcome::rate).collect()
}

/// Requests per second, the median.
pub(crate) fn rate(outcomes: &[Outcome]) -> f64 {
    median(&rates(outcomes))
}

pub(crate) fn latencies(outcomes: &[Outcome]) -> String {
    let of = |pick: fn(&Outcome) -> f64| median(&outcomes.iter().map(pick).collect::<Vec<_>>());
    format!("p50 {:.0} us, p99 {:.0} us", of(|o| o.p50_us), of(|o| o.p99_us))
}
