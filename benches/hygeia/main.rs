//! `make bench`: Hygeia beside its yardsticks, in one run on one machine.
//!
//! `cargo bench --bench hygeia` runs every scenario and writes `docs/BENCHMARKS.md`; with names of
//! scenarios (`-- get post`) it runs those and only prints. Ours is always the release binary as a
//! process of its own; load, yardsticks and the broker are processes too: this binary again, in a role.
//! The two sides of a pair are measured one after the other, by turns which first; a row tells the median of the ratios of
//! its pairs and how far they spread.
//!
//! `BENCH_ROUNDS` (5) and `BENCH_SECONDS` (5, per measurement) make it shorter or longer.

/// That of the product, for the yardsticks as well.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod ask;
mod audit;
mod broker;
mod disk;
mod growth;
mod hostile;
mod load;
mod logins;
mod memory;
mod node;
mod patients;
mod pg;
mod relay;
mod remote;
mod report;
mod role;
mod stats;
mod yardstick;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::report::Report;

/// What went wrong, for whoever runs the benchmark.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// How long and how often everything is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// How often each side of a pair is measured.
    pub(crate) rounds: usize,
    /// How long each measurement takes.
    pub(crate) measured: Duration,
}

impl Effort {
    /// As many pairs of turns as take the time of all rounds, and one at least.
    pub(crate) fn pairs_of(self, turn: Duration) -> usize {
        let each = (self.measured.as_millis() / turn.as_millis().max(1)).max(1);
        self.rounds.saturating_mul(usize::try_from(each).unwrap_or(usize::MAX))
    }
}

const SCENARIOS: [&str; 13] = [
    "get",
    "remote-get",
    "hostile",
    "post",
    "audit",
    "ask",
    "remote-ask",
    "relay",
    "memory",
    "start",
    "tokens",
    "login",
    "flood",
];
/// Not a part of the table: what this machine does without us.
const YARDSTICKS: &str = "yardsticks";
/// Not a part of the table either: it has a page of its own.
const GROWTH: &str = "growth";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let outcome = if arguments.first().is_some_and(|first| first == role::FLAG) {
        arguments.drain(..1);
        role::run(&arguments)
    } else {
        bench(&arguments)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A line for whoever watches.
pub(crate) fn say(line: &str) {
    // There is nobody to tell that nobody listens.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn bench(chosen: &[String]) -> Result<()> {
    let known = |name: &str| SCENARIOS.contains(&name) || [YARDSTICKS, GROWTH].contains(&name);
    if let Some(unknown) = chosen.iter().find(|name| !known(name)) {
        return Err(format!(
            "no scenario {unknown}; there are {}, {YARDSTICKS}, {GROWTH}",
            SCENARIOS.join(", ")
        )
        .into());
    }
    let number = |name: &str, default: u64| -> Result<u64> {
        std::env::var(name).map_or(Ok(default), |text| Ok(text.parse()?))
    };
    let effort = Effort {
        rounds: usize::try_from(number("BENCH_ROUNDS", 5)?)?.max(1),
        measured: Duration::from_secs(number("BENCH_SECONDS", 5)?.max(1)),
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut report = Report::new(effort);
    let all: Vec<String> = SCENARIOS.map(str::to_owned).into();
    for name in if chosen.is_empty() { &all } else { chosen } {
        say(&format!("== {name}"));
        runtime.block_on(scenario(name, effort, &mut report))?;
    }
    report.print()?;
    if chosen.is_empty() { report.write() } else { Ok(()) }
}

async fn scenario(name: &str, effort: Effort, report: &mut Report) -> Result<()> {
    match name {
        "get" => patients::get(effort, report).await,
        "remote-get" => patients::remote_get(effort, report).await,
        "hostile" => hostile::run(effort, report).await,
        "post" => patients::post(effort, report).await,
        "audit" => audit::run(effort, report).await,
        "ask" => ask::run(effort, report).await,
        "remote-ask" => remote::run(effort, report).await,
        "relay" => relay::run(effort, report).await,
        "memory" => memory::hot(report).await,
        "start" => memory::start(effort, report).await,
        "tokens" => logins::tokens(effort, report).await,
        "login" => logins::login(effort, report).await,
        "flood" => logins::flood(effort, report).await,
        YARDSTICKS => patients::yardsticks(effort).await,
        GROWTH => growth::run(effort).await,
        other => Err(format!("no scenario {other}").into()),
    }
}
