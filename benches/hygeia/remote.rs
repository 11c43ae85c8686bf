//! A question to another process and its answer: ours over a link, and ractor_cluster as it is.
//!
//! Each side is a pair of processes, one that asks and one that answers, which live as long as the scenario:
//! who asks is told how, again and again.

mod bare;
mod ours;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ask::{MANY, asks_of};
use crate::report::{Reach, Report, Row};
use crate::role::{self, Process};
use crate::stats::{Spread, by_turns, median};
use crate::{Effort, Result, say};

/// How to ask.
#[derive(Serialize, Deserialize)]
struct Task {
    askers: usize,
    measured_ms: u64,
}

/// What came of it.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Outcome {
    asks: usize,
    seconds: f64,
}

impl Outcome {
    fn rate(self) -> f64 {
        self.asks as f64 / self.seconds
    }

    /// With one asker: how long an ask takes, in microseconds.
    fn mean_us(self) -> f64 {
        self.seconds * 1e6 / self.asks as f64
    }
}

/// Two processes. The one that asks ends first.
struct Pair {
    asking: Arc<Mutex<Process>>,
    _answering: Process,
}

impl Pair {
    /// Starts the processes of `side`, the second of which is told what the first one says.
    async fn start(side: &'static str) -> Result<Pair> {
        let started = tokio::task::spawn_blocking(move || -> Result<Pair> {
            let mut answering = Process::start(&format!("{side}-answers"), &())?;
            let met_at: String = answering.heard()?;
            let mut asking = Process::start(&format!("{side}-asks"), &met_at)?;
            let () = asking.heard()?;
            Ok(Pair { asking: Arc::new(Mutex::new(asking)), _answering: answering })
        });
        started.await?
    }

    async fn measure(&self, askers: usize, measured: Duration) -> Result<Outcome> {
        let asking = Arc::clone(&self.asking);
        let measured = tokio::task::spawn_blocking(move || -> Result<Outcome> {
            let mut asking = asking.lock().unwrap_or_else(PoisonError::into_inner);
            asking.say(&Task { askers, measured_ms: u64::try_from(measured.as_millis())? })?;
            asking.heard()
        });
        measured.await?
    }
}

/// Asks each by turns, with as many in flight on both sides.
pub(crate) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let (own, bare) = (Pair::start("ours").await?, Pair::start("bare").await?);
    for askers in [1, MANY] {
        for pair in [&own, &bare] {
            pair.measure(askers, Duration::from_secs(1)).await?;
        }
        let (ours, theirs) = by_turns(
            effort.rounds,
            async |_| own.measure(askers, effort.measured).await,
            async |_| bare.measure(askers, effort.measured).await,
        )
        .await?;
        let each = |of: fn(Outcome) -> f64, side: &[Outcome]| side.iter().map(|o| of(*o)).collect::<Vec<_>>();
        let (figure, unit, reach): (fn(Outcome) -> f64, _, _) = match askers {
            1 => (Outcome::mean_us, " us", Some(Reach::AtMost(1.2))),
            _ => (Outcome::rate, "/s", None),
        };
        let (ours, theirs) = (each(figure, &ours), each(figure, &theirs));
        say(&format!(
            "{askers} in flight: ours {:.0}{unit}, bare {:.0}{unit}",
            median(&ours),
            median(&theirs)
        ));
        report.add(Row {
            what: format!("cross-node ask: a patient in memory, {askers} in flight"),
            beside: format!("ractor_cluster, bare, {askers} in flight"),
            ours: format!("{:.0}{unit}", median(&ours)),
            yardstick: format!("{:.0}{unit}", median(&theirs)),
            ratio: Spread::of_ratios(&ours, &theirs),
            reach,
        });
    }
    Ok(())
}

const ROLES: [&str; 4] = ["ours-answers", "ours-asks", "bare-answers", "bare-asks"];

/// Whether a process of this scenario is called so.
pub(crate) fn is_role(name: &str) -> bool {
    ROLES.contains(&name)
}

/// One of the processes.
pub(crate) fn role(name: &str) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match name {
            "ours-answers" => ours::answer().await,
            "ours-asks" => ours::ask().await,
            "bare-answers" => bare::answer().await,
            _ => bare::ask().await,
        }
    })
}

/// Asks as it is told to, until it is dismissed.
async fn ask_as_told<F>(ask: impl Fn() -> F + Send + Sync + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let ask = Arc::new(ask);
    role::tell(&())?;
    while let Some(Task { askers, measured_ms }) =
        tokio::task::spawn_blocking(role::next_task::<Task>).await??
    {
        let began = Instant::now();
        let asks = asks_of(askers, Duration::from_millis(measured_ms), &ask).await?;
        role::tell(&Outcome { asks, seconds: began.elapsed().as_secs_f64() })?;
    }
    Ok(())
}
