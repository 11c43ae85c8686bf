//! Breaks a cluster and looks at what its clients were told.
//!
//! ```text
//! chaos                       one short run with a fixed seed, and a rolling restart: what `cargo test` does
//! chaos seeds                 CHAOS_SEEDS seeds (5), or the one of HYGEIA_CHAOS_SEED: all faults, and long stops
//! chaos counterproof          a build without the fence: the same must find a violation
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

mod api;
mod broker;
mod cluster;
mod driver;
mod invariants;
mod judgement;
#[path = "machinery.rs"]
mod machinery;
mod measure;
#[path = "../harness/postgres.rs"]
mod postgres;
#[path = "../harness/process.rs"]
mod process;
mod run;
mod topic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cluster::Layout;
use crate::measure::frozen::What;
use crate::measure::{How, frozen, rolling};
use crate::run::{Kind, Plan};

/// The nodes of a run, if nothing else is asked for.
const LAYOUT_DEFAULT: Layout = Layout::Cluster;
/// The seed of the short run: with it nodes are stopped, killed and cut off within few seconds.
const SHORT_SEED: u64 = 7;
/// How long the short run breaks things.
const SHORT_SPAN: Duration = Duration::from_secs(12);
/// How long the others do.
const SPAN: Duration = Duration::from_secs(25);
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
            "seeds" => seeds(&[Kind::Any, Kind::Stops]).await,
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
    let Plan { seed, layout, kind, .. } = plan;
    let (layout, kind) = (layout.name(), kind.name());
    println!("seed {seed}, nodes: {layout}, faults: {kind}");
    let begun = Instant::now();
    let judged = run::run(plan).await;
    let took = begun.elapsed().as_secs_f64();
    match &judged {
        Ok(line) => println!("  holds after {took:.1} s: {line}"),
        Err(problem) => {
            println!("  VIOLATED after {took:.1} s:\n{problem}");
            println!("  seed {seed}: HYGEIA_CHAOS_SEED={seed} HYGEIA_CHAOS_LAYOUT={layout} replays it");
        }
    }
    judged.is_ok()
}

/// With the fence switched off, the same has to be found wrong: else it proves nothing when it finds nothing.
async fn counterproof() -> ExitCode {
    for seed in chosen() {
        for kind in [Kind::Stops, Kind::Any] {
            if !one(Plan { seed, layout: layout(), span: span(), kind, rolls: false }).await {
                println!("without the fence a violation is found, as it has to be");
                return ExitCode::SUCCESS;
            }
        }
    }
    println!("no violation was found: the fence is on, or nothing here would see that it is off");
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
