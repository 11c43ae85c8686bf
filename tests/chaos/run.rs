//! One run: a cluster, its clients, the faults of a seed, and the judgement.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Layout};
use crate::driver::Driver;
use crate::invariants;
use crate::judgement::{Window, answered, explained, operations, settle, slowness, summed};
use crate::machinery::findings::Finding;
use crate::machinery::histories::{History, second_opinion};
use crate::machinery::ledger::versions;
use crate::machinery::prompt::Outage;
use crate::machinery::proxy::Rules;
use crate::machinery::schedule::{Break, Fault, Timed, schedule, stops};
use crate::measure::rolling::roll_under_load;
use crate::memory;
use crate::postgres::Stop;

/// How late a slow link is.
const SLOW: Duration = Duration::from_millis(120);
/// How often it is looked whether a node has ended by itself.
const WATCH: Duration = Duration::from_millis(200);
/// By how much the memory of a node may grow, in MiB, over what it held when it had started.
const GROWTH_MAX_MIB: u64 = 64;

/// What a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) layout: Layout,
    /// How long the clients work under faults.
    pub(crate) span: Duration,
    pub(crate) kind: Kind,
    /// Whether, after all that, every node is restarted in turn under load, which must fail no request.
    pub(crate) rolls: bool,
}

impl Plan {
    /// The name of its history.
    fn name(&self) -> String {
        format!("{}-{}-{}", self.layout.name(), self.kind.name(), self.seed)
    }
}

/// Which faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All there are.
    Any,
    /// Nodes that hold patients are stopped by turns for longer than their leases hold.
    Stops,
    /// The same, but only nodes that are fronts too: a client there is answered from the memory of the node.
    FrontStops,
}

impl Kind {
    /// Its name in arguments and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Any => "any",
            Kind::Stops => "stops",
            Kind::FrontStops => "front-stops",
        }
    }
}

/// What came of a run.
pub(crate) struct Judged {
    /// What was done, in one line.
    pub(crate) line: String,
    pub(crate) found: Vec<Finding>,
    pub(crate) outages: Vec<Outage>,
    /// Where the logs of the nodes are, if anything was found.
    pub(crate) logs: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// The run could not be begun: nothing was judged.
pub(crate) async fn run(plan: Plan) -> Result<Judged, String> {
    let Plan { seed, layout, span, kind, rolls } = plan;
    let cluster = Arc::new(Cluster::start(layout).await);
    let holders = cluster.holders();
    let faults = match kind {
        Kind::Any => schedule(seed, &cluster.shape(), span),
        Kind::Stops => stops(seed, &holders, span),
        Kind::FrontStops => {
            let is_front = |number: &usize| cluster.nodes[*number].roles.contains(&"front");
            stops(seed, &holders.into_iter().filter(is_front).collect::<Vec<_>>(), span)
        }
    };
    for timed in &faults {
        let (at, lasts) = (timed.at.as_secs_f64(), timed.lasts.as_secs_f64());
        println!("  {at:>6.2} s for {lasts:>5.2} s  {}", named(&cluster, timed.fault));
    }
    let mut judged = drive_and_judge(&cluster, plan, faults).await?;
    if judged.found.is_empty() && rolls {
        match rolled(&cluster).await {
            Ok(more) => judged.line.push_str(&more),
            Err(problem) => judged.found.push(problem.into()),
        }
    }
    if !judged.found.is_empty() {
        judged.logs = cluster.keep_logs();
    }
    Ok(judged)
}

/// A rolling restart under load, which must fail no request.
async fn rolled(cluster: &Cluster) -> Result<String, String> {
    let rolled = roll_under_load(cluster, &cluster.api().await?).await?;
    match rolled.failed.is_empty() {
        true => Ok(format!("; {} requests during a rolling restart, none failed", rolled.good())),
        false => Err(format!("requests failed during a rolling restart: {:?}", rolled.failed)),
    }
}

async fn drive_and_judge(cluster: &Arc<Cluster>, plan: Plan, faults: Vec<Timed>) -> Result<Judged, String> {
    let Plan { seed, span, .. } = plan;
    let driver = Driver::new(cluster.api().await?, cluster.layout != Layout::Pair);
    let (base, watch) = (memory::now(cluster).await, memory::Watch::start(cluster));
    let clients = driver.start(seed);
    let begun = Instant::now();
    let broken = break_things(cluster, faults, begun, span).await;
    driver.stop(clients).await;
    cluster.heal().await;
    let healed = Instant::now();
    let settling = async {
        cluster.all_serve().await?;
        let mut wrong = settle(&driver, cluster.database.url(), || cluster.broker.events()).await?;
        wrong.extend(cluster.verify_audit().await.err());
        Ok(wrong)
    };
    let settled = settling.await.unwrap_or_else(|problem: String| vec![problem]);
    let rest = healed.elapsed().as_secs_f64();
    let (most, outages) = (watch.most(), cluster.outages.of(&driver.recorder));
    let at = |(from, to): &(Instant, Instant)| (driver.recorder.at(*from), driver.recorder.at(*to));
    let windows: Vec<Window> = broken.windows.iter().map(at).collect();
    let events = invariants::events(cluster.database.url()).await?;
    let mut found = explained(&driver, &events);
    found.extend(answered(&driver, &outages, &windows));
    let history = History {
        operations: operations(&driver, &outages),
        tables: events.keys().map(|id| (*id, versions(&events, *id))).collect(),
    };
    found.extend(second_opinion(&history, &plan.name()).await.into_iter().map(Finding::from));
    found.extend(settled.into_iter().chain(broken.problems).map(Finding::from));
    let mut grown = 0;
    for (name, most) in most {
        let growth = most.saturating_sub(base.get(name).copied().unwrap_or(most)) / 1024 / 1024;
        grown = grown.max(growth);
        if growth > GROWTH_MAX_MIB {
            found.push(format!("the memory of {name} grew by {growth} MiB").into());
        }
    }
    let summed = summed(&history.operations);
    let line = format!(
        "{summed}; {}; at rest {rest:.1} s after healing; memory grew by {grown} MiB at most",
        slowness(&driver.recorder.tries(), &outages)
    );
    Ok(Judged { line, found, outages, logs: None })
}

/// What came of breaking things.
#[derive(Default)]
struct Broken {
    problems: Vec<String>,
    /// From when to when a node that holds patients was stopped or cut off for longer than a lease.
    windows: Vec<(Instant, Instant)>,
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
            let mut broken = Broken::default();
            if timed.fault == Fault::RollingRestart {
                let _alone = turn.write().await;
                broken.problems.extend(cluster.roll().await.err());
            } else {
                let _beside_others = turn.read().await;
                let from = Instant::now();
                one_fault(&cluster, timed).await;
                let is_long = cluster.shape().is_long(timed.fault, timed.lasts);
                broken.windows.extend(is_long.then(|| (from, Instant::now())));
            }
            broken
        });
    }
    let mut broken = Broken::default();
    while !breaking.is_empty() || begun.elapsed() < span {
        tokio::select! {
            Some(done) = breaking.join_next() => {
                let done = done.expect("no panic");
                broken.problems.extend(done.problems);
                broken.windows.extend(done.windows);
            }
            () = tokio::time::sleep(WATCH) => broken.problems.extend(cluster.restart_ended().await),
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
            cluster.apart(node, rules(how));
            over.await;
            cluster.apart(node, Rules::PASS);
        }
        Fault::CutOff(node, how) => {
            cluster.nodes[node].to_database(rules(how));
            cluster.apart(node, rules(how));
            over.await;
            cluster.apart(node, Rules::PASS);
            cluster.nodes[node].to_database(Rules::PASS);
        }
        Fault::PausedDatabase => {
            cluster.postgres.pause();
            over.await;
            cluster.postgres.resume();
        }
        Fault::KilledDatabase => {
            tokio::task::block_in_place(|| cluster.postgres.stop(Stop::Kill));
            over.await;
            tokio::task::block_in_place(|| cluster.postgres.start());
        }
        Fault::PausedBroker => {
            cluster.broker.pause();
            over.await;
            cluster.broker.resume();
        }
        Fault::KilledBroker => {
            cluster.broker.kill().await;
            over.await;
            cluster.broker.start_again().await;
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
        Fault::CutOff(node, how) => format!("{} to all others and the database: {how:?}", name(node)),
        Fault::PausedDatabase => "the database is stopped".into(),
        Fault::KilledDatabase => "the database is killed".into(),
        Fault::PausedBroker => "the broker is stopped".into(),
        Fault::KilledBroker => "the broker is killed".into(),
        Fault::RollingRestart => "every node is restarted in turn".into(),
    }
}
