//! One run: a cluster, its clients, the faults of a seed, and the judgement.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Layout};
use crate::driver::Driver;
use crate::invariants;
use crate::judgement::{Window, answered, explained, operations, settle, slowness, summed};
use crate::machinery::findings::Finding;
use crate::machinery::histories::{History, second_opinion};
use crate::machinery::ledger::versions;
use crate::machinery::prompt::{Outage, Why};
use crate::machinery::proxy::Rules;
use crate::machinery::schedule::{
    Break, Fault, LAST_CALM, LATE, LATE_AT_DATABASE, STOP, Timed, by_turns, schedule,
};
use crate::measure::rolling::roll_under_load;
use crate::memory;
use crate::postgres::Stop;
use crate::quiet::change_quiet;

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
    /// Nodes that hold patients are by turns stopped, and made too late at the database, for longer than their leases
    /// hold.
    Turns,
    /// Nodes that hold patients and are fronts too are stopped for longer: a client there is answered from the memory
    /// of the node.
    FrontStops,
    /// What nodes that hold patients send to the database comes later than their leases hold.
    Lates,
}

impl Kind {
    /// Its name in arguments and reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Any => "any",
            Kind::Turns => "turns",
            Kind::FrontStops => "front-stops",
            Kind::Lates => "lates",
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
        Kind::Turns => by_turns(seed, &holders, &[STOP, LATE_AT_DATABASE], span),
        Kind::Lates => by_turns(seed, &holders, &[LATE_AT_DATABASE], span),
        Kind::FrontStops => {
            let is_front = |number: &usize| cluster.nodes[*number].roles.contains(&"front");
            by_turns(seed, &holders.into_iter().filter(is_front).collect::<Vec<_>>(), &[STOP], span)
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
    let broken = break_things(cluster, &driver, faults, begun, span).await;
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
    /// From when to when a node that holds patients was stopped, cut off or late for longer than a lease.
    windows: Vec<(Instant, Instant)>,
}

/// Breaks what the schedule says, and heals it, until `span` is over and everything is healed.
async fn break_things(
    cluster: &Arc<Cluster>,
    driver: &Arc<Driver>,
    faults: Vec<Timed>,
    begun: Instant,
    span: Duration,
) -> Broken {
    let mut breaking = JoinSet::new();
    let ends = watch::Sender::new(vec![None; faults.len()]);
    for (number, timed) in faults.iter().copied().enumerate() {
        let (cluster, driver) = (Arc::clone(cluster), Arc::clone(driver));
        let (ends, mut ended) = (ends.clone(), ends.subscribe());
        let pauses: Vec<_> = faults.iter().map(|earlier| earlier.pause_before(&timed)).collect();
        breaking.spawn(async move {
            let mut begins = None;
            let may_begin = |ends: &Vec<_>| {
                begins = earliest(begun + timed.at, &pauses, ends);
                begins.is_some()
            };
            ended.wait_for(may_begin).await.expect("this task holds a sender");
            tokio::time::sleep_until(begins.expect("awaited").into()).await;
            let (mut broken, from) = (Broken::default(), Instant::now());
            if timed.fault == Fault::RollingRestart {
                broken.problems.extend(cluster.roll().await.err());
            } else {
                one_fault(&cluster, &driver, timed).await;
                let is_long = cluster.shape().is_long(timed.fault, timed.lasts);
                broken.windows.extend(is_long.then(|| (from, Instant::now())));
            }
            ends.send_modify(|ends| ends[number] = Some(Instant::now()));
            broken
        });
    }
    let (mut broken, mut until) = (Broken::default(), begun + span);
    while !breaking.is_empty() || Instant::now() < until {
        tokio::select! {
            Some(done) = breaking.join_next() => {
                let done = done.expect("no panic");
                broken.problems.extend(done.problems);
                broken.windows.extend(done.windows);
                until = until.max(Instant::now() + LAST_CALM);
            }
            () = tokio::time::sleep(WATCH) => broken.problems.extend(cluster.restart_ended().await),
        }
    }
    broken
}

/// When a fault begins that is planned for `planned`, and `pauses` after the ends of the earlier ones. None while one of
/// those is not over: a rolling restart takes as long as it takes, and so does what is started again on a busy machine.
fn earliest(planned: Instant, pauses: &[Option<Duration>], ends: &[Option<Instant>]) -> Option<Instant> {
    let earlier = pauses.iter().zip(ends).filter_map(|(pause, end)| Some(((*pause)?, *end)));
    earlier.map(|(pause, end)| Some(end? + pause)).try_fold(planned, |latest, next| Some(latest.max(next?)))
}

async fn one_fault(cluster: &Cluster, driver: &Driver, timed: Timed) {
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
        Fault::Database(node, Break::Late) => {
            cluster.outages.begin(Why::Late(node));
            cluster.nodes[node].to_database(rules(Break::Late));
            let healing = async {
                over.await;
                cluster.nodes[node].to_database(Rules::PASS);
                cluster.outages.end(Why::Late(node));
            };
            // The changes are on their way when the leases lapse.
            tokio::join!(change_quiet(driver), healing);
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
            cluster.broker.kill();
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
        Break::Late => Rules::late(LATE),
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
