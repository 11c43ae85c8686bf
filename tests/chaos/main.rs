//! Breaks a cluster and judges what its clients were told.
//!
//! ```text
//! chaos                       one short run with a fixed seed, and a rolling restart: what `cargo test` does
//! chaos seeds                 CHAOS_SEEDS seeds (5), or the one of HYGEIA_CHAOS_SEED: any faults, and long ones by turns
//! chaos counterproof          a build without one of the fences must be found to break what that fence protects
//! chaos measure failover kill|stop|cut [ROUNDS]
//! chaos measure move [ROUNDS]
//! chaos measure rolling [ROUNDS]
//! chaos measure frozen peer|database|broker [SECONDS]
//!                             figures as JSON, on the layout `cluster` unless another is named
//! chaos broker                the helper process that is the broker
//! ```
//!
//! `HYGEIA_CHAOS_LAYOUT` (alone, pair, cluster) says which nodes there are.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program, and seeds are printed")]

mod act;
#[allow(dead_code, reason = "the cluster in containers uses more of it")]
mod api;
mod broker;
mod cluster;
mod driver;
mod invariants;
mod judgement;
#[path = "machinery.rs"]
mod machinery;
mod measure;
mod memory;
mod outages;
#[path = "../harness/postgres.rs"]
mod postgres;
#[path = "../harness/process.rs"]
mod process;
mod quiet;
mod run;
mod topic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cluster::Layout;
use crate::machinery::findings::Missed;
use crate::machinery::prompt::Outage;
use crate::measure::frozen::What;
use crate::measure::{How, frozen, rolling};
use crate::run::{Judged, Kind, Plan};

/// The nodes of a run, if nothing else is asked for.
const LAYOUT_DEFAULT: Layout = Layout::Cluster;
/// The seed of the short run.
const SHORT_SEED: u64 = 7;
/// How long the short run breaks things: long enough for a node that holds patients to be stopped for longer than its
/// leases hold.
const SHORT_SPAN: Duration = Duration::from_secs(14);
/// How long the others do.
const SPAN: Duration = Duration::from_secs(35);
/// Violations that are told in full.
const TOLD_MAX: usize = 5;
const SEEDS_DEFAULT: u64 = 5;
const FAILOVER_ROUNDS: usize = 20;
const MOVE_ROUNDS: usize = 5;
const ROLLING_ROUNDS: usize = 3;
const FROZEN_SECONDS: usize = 60;

fn main() -> ExitCode {
    let subcommand = std::env::args().nth(1).unwrap_or_default();
    if subcommand == broker::SUBCOMMAND {
        broker::serve();
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        match subcommand.as_str() {
            "seeds" => seeds(&[Kind::Any, Kind::Turns]).await,
            "counterproof" => counterproof().await,
            "measure" => measured().await,
            // What the test runner of cargo may ask of every test binary.
            "--list" => ExitCode::SUCCESS,
            filter if !filter.is_empty() && !filter.starts_with('-') && !"chaos".contains(filter) => {
                ExitCode::SUCCESS
            }
            _ => short().await,
        }
    })
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not understood")))
}

fn named_layout() -> Option<Layout> {
    let name = std::env::var("HYGEIA_CHAOS_LAYOUT").ok().filter(|name| !name.is_empty())?;
    Some(Layout::of(&name).unwrap_or_else(|| panic!("no layout is called {name}")))
}

fn layout() -> Layout {
    named_layout().unwrap_or(LAYOUT_DEFAULT)
}

fn span() -> Duration {
    setting("HYGEIA_CHAOS_SECONDS").map_or(SPAN, Duration::from_secs)
}

async fn short() -> ExitCode {
    let seed = setting("HYGEIA_CHAOS_SEED").unwrap_or(SHORT_SEED);
    // Restarts without a failed request need nodes that know each other.
    let rolls = layout() == Layout::Cluster;
    exit(one(Plan { seed, layout: layout(), span: SHORT_SPAN, kind: Kind::Any, rolls }).await)
}

/// The seeds to run: the one asked for, or as many as asked for.
fn chosen() -> Vec<u64> {
    let count = setting("CHAOS_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let fixed: Option<u64> = setting("HYGEIA_CHAOS_SEED");
    fixed.map_or_else(|| (0..count).map(|_| fastrand::u64(..)).collect(), |seed| vec![seed])
}

async fn seeds(kinds: &[Kind]) -> ExitCode {
    for seed in chosen() {
        for kind in kinds {
            if !one(Plan { seed, layout: layout(), span: span(), kind: *kind, rolls: false }).await {
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Whether it holds.
async fn one(plan: Plan) -> bool {
    let Some(judged) = judged(plan).await else { return false };
    if judged.found.is_empty() {
        return true;
    }
    let (seed, layout) = (plan.seed, plan.layout.name());
    println!("  seed {seed}: HYGEIA_CHAOS_SEED={seed} HYGEIA_CHAOS_LAYOUT={layout} replays it");
    false
}

/// Runs it, and prints what came of it. None if it could not be run.
async fn judged(plan: Plan) -> Option<Judged> {
    let Plan { seed, layout, kind, .. } = plan;
    println!("seed {seed}, nodes: {}, faults: {}", layout.name(), kind.name());
    let begun = Instant::now();
    let judged = run::run(plan).await;
    let took = begun.elapsed().as_secs_f64();
    match judged {
        Err(problem) => {
            println!("  COULD NOT BE RUN, after {took:.1} s: {problem}");
            None
        }
        Ok(judged) if judged.found.is_empty() => {
            println!("  holds after {took:.1} s: {}", judged.line);
            Some(judged)
        }
        Ok(judged) => {
            println!("  VIOLATED after {took:.1} s: {}", judged.line);
            judged.found.iter().take(TOLD_MAX).for_each(|finding| println!("  - {}", finding.text));
            let more = judged.found.len().saturating_sub(TOLD_MAX);
            if more > 0 {
                println!("  … and {more} more");
            }
            judged.logs.iter().for_each(|logs| println!("  logs: {}", logs.display()));
            Some(judged)
        }
    }
}

/// The fence that this build lacks: what its absence must be found to do, how that is recognised, and the faults that
/// bring it about.
type Missing = (&'static str, fn(&Missed, &[Outage]) -> bool, Kind);

fn missing_fence() -> Missing {
    match (cfg!(feature = "unfenced_commit"), cfg!(feature = "unfenced_read")) {
        (true, false) => ("an acknowledged change is lost", Missed::is_lost_change, Kind::Lates),
        (false, true) => ("a stale read under load", Missed::is_stale_read, Kind::FrontStops),
        _ => panic!("build with the feature unfenced_commit or unfenced_read, and not with both"),
    }
}

/// Without one of the fences, what that fence prevents has to be found; else the runs that find nothing prove nothing.
/// No other violation counts.
async fn counterproof() -> ExitCode {
    let (what, is_it, kind) = missing_fence();
    for seed in chosen() {
        let plan = Plan { seed, layout: layout(), span: span(), kind, rolls: false };
        let Some(judged) = judged(plan).await else { continue };
        let missed = judged
            .found
            .iter()
            .filter(|finding| finding.missed.is_some_and(|missed| is_it(&missed, &judged.outages)));
        let found: Vec<_> = missed.collect();
        if let Some(finding) = found.first() {
            println!("found {} times, as it has to be: {what}\n{}", found.len(), finding.text);
            return ExitCode::SUCCESS;
        }
        println!("  not found with this seed: {what}");
    }
    println!("not found: {what}. The fence is on, or nothing here would see that it is off");
    ExitCode::FAILURE
}

async fn measured() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let layout = named_layout().unwrap_or(Layout::Cluster);
    let rounds = |text: Option<&&str>, default| text.map_or(default, |text| text.parse().expect("a number"));
    let figures = match words.as_slice() {
        ["failover", how, rest @ ..] => {
            let how = How::of(how).unwrap_or_else(|| panic!("{how} is not kill, stop or cut"));
            measure::failover(layout, how, rounds(rest.first(), FAILOVER_ROUNDS)).await
        }
        ["move", rest @ ..] => measure::graceful_move(layout, rounds(rest.first(), MOVE_ROUNDS)).await,
        ["rolling", rest @ ..] => rolling::rolling(layout, rounds(rest.first(), ROLLING_ROUNDS)).await,
        ["frozen", what, rest @ ..] => {
            let part = What::of(what).unwrap_or_else(|| panic!("{what} is not peer, database or broker"));
            let seconds = rounds(rest.first(), FROZEN_SECONDS) as u64;
            frozen::frozen(layout, part, Duration::from_secs(seconds)).await
        }
        _ => Err("measure what? failover, move, rolling or frozen".into()),
    };
    match figures {
        Ok(figures) => println!("{figures}"),
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
