//! One run: a cluster, its clients, the faults of a seed, and the judgement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Layout};
use crate::driver::Driver;
use crate::judgement::{settle, verdict};
use crate::machinery::proxy::Rules;
use crate::machinery::schedule::{Break, Fault, Timed, schedule, stops};
use crate::measure::rolling::roll_under_load;

/// How late a slow link is.
const SLOW: Duration = Duration::from_millis(120);
/// How often it is looked whether a node has ended by itself.
const WATCH: Duration = Duration::from_millis(200);

/// What a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) layout: Layout,
    /// How long the clients work under faults.
    pub(crate) span: Duration,
    pub(crate) kind: Kind,
    /// Whether, after all that, every node is restarted in turn under load, which must fail nobody.
    pub(crate) rolls: bool,
}

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All there are.
    Any,
    /// Nodes that hold patients are stopped for longer than their leases hold.
    Stops,
}

impl Kind {
    /// Its name in arguments and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Any => "any",
            Kind::Stops => "stops",
        }
    }
}

/// Runs it: what it came to in one line, or every violation in words.
pub(crate) async fn run(plan: Plan) -> Result<String, String> {
    let Plan { seed, layout, span, kind, rolls } = plan;
    let cluster = Arc::new(Cluster::start(layout).await);
    let faults = match kind {
        Kind::Any => schedule(seed, cluster.shape(), span),
        Kind::Stops => stops(seed, &cluster.holders(), span),
    };
    for timed in &faults {
        let (at, lasts) = (timed.at.as_secs_f64(), timed.lasts.as_secs_f64());
        println!("  {at:>6.2} s for {lasts:>5.2} s  {}", named(&cluster, timed.fault));
    }
    let mut judged = drive_and_judge(&cluster, seed, span, faults).await;
    if let Ok(line) = &mut judged
        && rolls
    {
        match rolled(&cluster).await {
            Ok(more) => line.push_str(&more),
            Err(problem) => judged = Err(problem),
        }
    }
    match judged {
        Ok(line) => Ok(line),
        Err(problem) => {
            let logs = match Arc::try_unwrap(cluster) {
                Ok(cluster) => cluster.keep_logs(),
                Err(cluster) => cluster.logs().to_owned(),
            };
            Err(format!("{problem}\nlogs: {}", logs.display()))
        }
    }
}

/// A rolling restart under load, which must fail no request.
async fn rolled(cluster: &Cluster) -> Result<String, String> {
    let rolled = roll_under_load(cluster, &cluster.api().await?).await?;
    match rolled.failed.is_empty() {
        true => Ok(format!("; {} requests during a rolling restart, none failed", rolled.good())),
        false => Err(format!("requests failed during a rolling restart: {:?}", rolled.failed)),
    }
}

async fn drive_and_judge(
    cluster: &Arc<Cluster>,
    seed: u64,
    span: Duration,
    faults: Vec<Timed>,
) -> Result<String, String> {
    let driver = Driver::new(cluster.api().await?, cluster.layout != Layout::Pair);
    let clients = driver.start(seed);
    let begun = Instant::now();
    let broken = break_things(cluster, faults, begun, span).await;
    driver.stop(clients).await;
    cluster.heal().await;
    let healed = Instant::now();
    let settling = async {
        cluster.all_serve().await?;
        settle(&driver, cluster.database.url(), || cluster.broker.events()).await
    };
    let mut wrong = settling.await.unwrap_or_else(|problem| vec![problem]);
    let settled = healed.elapsed().as_secs_f64();
    wrong.extend(broken.problems);
    let line = verdict(&driver, wrong)?;
    Ok(format!("{line}; at rest {settled:.1} s after healing; {} nodes ended by themselves", broken.ended))
}

/// What came of breaking things.
struct Broken {
    /// Nodes that ended without being told to.
    ended: usize,
    problems: Vec<String>,
}

/// Breaks what the schedule says, and heals it, until `span` is over and everything is healed.
async fn break_things(cluster: &Arc<Cluster>, faults: Vec<Timed>, begun: Instant, span: Duration) -> Broken {
    let mut breaking = JoinSet::new();
    // A rolling restart takes as long as it takes, and has to go well: nothing else is broken meanwhile.
    let turn = Arc::new(RwLock::new(()));
    for timed in faults {
        let (cluster, turn) = (Arc::clone(cluster), Arc::clone(&turn));
        breaking.spawn(async move {
            tokio::time::sleep_until((begun + timed.at).into()).await;
            if timed.fault == Fault::RollingRestart {
                let _alone = turn.write().await;
                cluster.roll().await.err()
            } else {
                let _beside_others = turn.read().await;
                one_fault(&cluster, timed).await;
                None
            }
        });
    }
    let mut broken = Broken { ended: 0, problems: Vec::new() };
    while !breaking.is_empty() || begun.elapsed() < span {
        tokio::select! {
            Some(done) = breaking.join_next() => broken.problems.extend(done.expect("no panic")),
            () = tokio::time::sleep(WATCH) => broken.ended += cluster.restart_ended().await,
        }
    }
    broken
}

async fn one_fault(cluster: &Cluster, timed: Timed) {
    let over = tokio::time::sleep(timed.lasts);
    match timed.fault {
        Fault::Kill(node) => {
            cluster.nodes[node].end(Signal::KILL).await;
            over.await;
            cluster.nodes[node].start().await;
        }
        Fault::Stop(node) => {
            cluster.nodes[node].signal(Signal::STOP).await;
            over.await;
            cluster.nodes[node].signal(Signal::CONT).await;
        }
        Fault::Database(node, how) => {
            cluster.nodes[node].to_database(rules(how));
            over.await;
            cluster.nodes[node].to_database(Rules::PASS);
        }
        Fault::Between(a, b, how) => {
            cluster.between(a, b, rules(how));
            over.await;
            cluster.between(a, b, Rules::PASS);
        }
        Fault::Apart(node, how) => {
            let others = || (0..cluster.nodes.len()).filter(|other| *other != node);
            others().for_each(|other| cluster.between(node, other, rules(how)));
            over.await;
            others().for_each(|other| cluster.between(node, other, Rules::PASS));
        }
        Fault::PausedDatabase => {
            cluster.postgres.pause();
            over.await;
            cluster.postgres.resume();
        }
        Fault::PausedBroker => {
            cluster.broker.pause();
            over.await;
            cluster.broker.resume();
        }
        Fault::RollingRestart => {}
    }
}

fn rules(how: Break) -> Rules {
    match how {
        Break::Reset => Rules::CUT,
        Break::Silent => Rules::SILENT,
        Break::Deaf => Rules::DEAF,
        Break::Mute => Rules::MUTE,
        Break::Slow => Rules::slow(SLOW),
    }
}

fn named(cluster: &Cluster, fault: Fault) -> String {
    let name = |node: usize| cluster.nodes[node].name;
    match fault {
        Fault::Kill(node) => format!("{} is killed", name(node)),
        Fault::Stop(node) => format!("{} is stopped", name(node)),
        Fault::Database(node, how) => format!("{} to the database: {how:?}", name(node)),
        Fault::Between(a, b, how) => format!("{} to {}: {how:?}", name(a), name(b)),
        Fault::Apart(node, how) => format!("{} to all others: {how:?}", name(node)),
        Fault::PausedDatabase => "the database is stopped".into(),
        Fault::PausedBroker => "the broker is stopped".into(),
        Fault::RollingRestart => "every node is restarted in turn".into(),
    }
}
