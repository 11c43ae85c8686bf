//! What the access audit costs: the same load with it and without it, by turns, in one run. The turns of reads are of a
//! second each, whatever a measurement takes elsewhere: many short pairs say more than a few long ones.

use std::time::Duration;

use crate::load::{self, Outcome, Task, Work};
use crate::node::{Node, Site};
use crate::patients::{latencies, post_task, rate, rates};
use crate::report::{Reach, Report, Row};
use crate::stats::{Spread, by_turns, median};
use crate::yardstick::PatientView;
use crate::{Effort, Result, broker, pg, say};

/// Writers.
const CONNECTIONS: usize = 64;
/// Readers, and what the audit must leave of their rate with as many as the defaults let in. With more of them the
/// processors are what is short on both sides; with few each waits for its entry's commit while they have time left.
const READERS: [(usize, Option<f64>); 3] = [(448, None), (224, Some(0.8)), (64, None)];
const HOT_PATIENTS: usize = 1_000;
/// How long one side of a pair of reads is measured.
const TURN: Duration = Duration::from_secs(1);

/// Reads over both databases, registrations over PostgreSQL.
pub(crate) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    reads(effort, report, "SQLite", for_many(Site::embedded()?), for_many(Site::embedded()?)).await?;
    let broker = broker::start().await?;
    let server = pg::Postgres::shared();
    let (with, without) = (server.create_database().await, server.create_database().await);
    let topic =
        |site: Site, name: &str| site.with("HYGEIA__KAFKA__TOPIC", name).with("HYGEIA__KAFKA__GROUP", name);
    let sites = (Site::on(with.url(), &broker.address)?, Site::on(without.url(), &broker.address)?);
    let sites = (for_many(topic(sites.0, "with")), for_many(topic(sites.1, "without")));
    reads(effort, report, "PostgreSQL", sites.0, sites.1).await?;
    let (with, without) = (server.create_database().await, server.create_database().await);
    let sites = (Site::on(with.url(), &broker.address)?, Site::on(without.url(), &broker.address)?);
    writes(effort, report, topic(sites.0, "with-w"), topic(sites.1, "without-w")).await
}

fn off(site: Site) -> Site {
    site.with("HYGEIA__AUDIT__ENABLED", "false")
}

/// None of the readers is turned away.
fn for_many(site: Site) -> Site {
    site.with("HYGEIA__HTTP__IN_FLIGHT_MAX", "512")
}

async fn reads(effort: Effort, report: &mut Report, over: &str, with: Site, without: Site) -> Result<()> {
    let (with, without) = (with.start().await?, off(without).start().await?);
    let sides = [side(&with).await?, side(&without).await?];
    for (connections, least) in READERS {
        let (audited, plain) = read_by_turns(effort, connections, &sides).await?;
        let (on, off) = (rate(&audited), rate(&plain));
        say(&format!("{over}, {connections} connections: with {on:.0}/s, without {off:.0}/s"));
        let what = format!("GET by id, hot, {over}, access audit on ({connections} connections)");
        add(report, what, &audited, &plain, least);
    }
    drop(sides);
    with.stop().await?;
    without.stop().await
}

async fn side(node: &Node) -> Result<Side<'_>> {
    let token = node.token().await?;
    load::run(post_task(node, &token, 16, "hot", HOT_PATIENTS, None)).await?;
    node.quiet().await?;
    let patients: Vec<PatientView> = node.patients(&token, HOT_PATIENTS).await?;
    Ok((node, token, patients.iter().map(|p| format!("/api/patients/{}", p.id)).collect()))
}

/// A node, a token, and what to read there.
type Side<'n> = (&'n Node, String, Vec<String>);

/// Reads with the audit, and without.
async fn read_by_turns(
    effort: Effort,
    connections: usize,
    [with, without]: &[Side<'_>; 2],
) -> Result<(Vec<Outcome>, Vec<Outcome>)> {
    let read = async |(node, token, paths): &Side<'_>, measured: Duration| {
        let task = Task {
            address: node.http,
            token: token.clone(),
            connections,
            measured_ms: u64::try_from(measured.as_millis()).ok(),
            work: Work::Get { paths: paths.clone() },
        };
        load::run(task).await
    };
    for side in [with, without] {
        read(side, TURN).await?;
    }
    let pairs = effort.pairs_of(TURN);
    by_turns(pairs, async |_| read(with, TURN).await, async |_| read(without, TURN).await).await
}

async fn writes(effort: Effort, report: &mut Report, with: Site, without: Site) -> Result<()> {
    let (with, without) = (with.start().await?, off(without).start().await?);
    let tokens = (with.token().await?, without.token().await?);
    let write = async |pair: usize, node: &Node, token: &str| {
        let tag = format!("r{pair}");
        let task = post_task(node, token, CONNECTIONS, &tag, usize::MAX, Some(effort.measured));
        let outcome = load::run(task).await?;
        node.quiet().await?;
        Result::Ok(outcome)
    };
    let (audited, plain) = by_turns(
        effort.rounds,
        async |pair| write(pair, &with, &tokens.0).await,
        async |pair| write(pair, &without, &tokens.1).await,
    )
    .await?;
    say(&format!("POST: with {:.0}/s, without {:.0}/s", rate(&audited), rate(&plain)));
    let what = format!("POST patient, PostgreSQL, access audit on ({CONNECTIONS} connections)");
    add(report, what, &audited, &plain, Some(0.9));
    with.stop().await?;
    without.stop().await
}

fn add(report: &mut Report, what: String, audited: &[Outcome], plain: &[Outcome], least: Option<f64>) {
    report.add(Row {
        what,
        beside: "the same with `audit.enabled = false`".into(),
        ours: told(audited),
        yardstick: told(plain),
        ratio: Spread::of_ratios(&rates(audited), &rates(plain)),
        reach: least.map(Reach::AtLeast),
    });
}

fn told(outcomes: &[Outcome]) -> String {
    let idle = median(&outcomes.iter().map(|outcome| outcome.idle * 100.0).collect::<Vec<_>>());
    format!("{:.0}/s, {}, processors idle {idle:.0} %", rate(outcomes), latencies(outcomes))
}
