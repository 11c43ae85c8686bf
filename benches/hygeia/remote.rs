//! A question to another process and its answer: ours over a link, and ractor_cluster as it is.
//!
//! Each side is a pair of processes, one that asks and one that answers, which live as long as the scenario:
//! who asks is told how, again and again.

mod bare;
mod ours;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ask::{MANY, asks_of};
use crate::report::{Reach, Report, Row};
use crate::role::{self, Process};
use crate::stats::median;
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

/// Two processes. Who asks ends first.
struct Pair {
    asking: Process,
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
            Ok(Pair { asking, _answering: answering })
        });
        started.await?
    }

    async fn measure(mut self, askers: usize, measured: Duration) -> Result<(Pair, Outcome)> {
        let measured = tokio::task::spawn_blocking(move || -> Result<(Pair, Outcome)> {
            self.asking.say(&Task { askers, measured_ms: u64::try_from(measured.as_millis())? })?;
            let outcome = self.asking.heard()?;
            Ok((self, outcome))
        });
        measured.await?
    }
}

#[derive(Default)]
struct Rounds {
    one: Vec<Outcome>,
    many: Vec<Outcome>,
}

impl Rounds {
    async fn measure(&mut self, pair: Pair, measured: Duration) -> Result<Pair> {
        let (pair, one) = pair.measure(1, measured / 2).await?;
        let (pair, many) = pair.measure(MANY, measured / 2).await?;
        say(&format!("one {:.1} us, {MANY} in flight {:.0}/s", one.mean_us(), many.rate()));
        self.one.push(one);
        self.many.push(many);
        Ok(pair)
    }

    fn one_us(&self) -> f64 {
        median(&self.one.iter().map(|o| o.mean_us()).collect::<Vec<_>>())
    }

    fn one_rate(&self) -> f64 {
        median(&self.one.iter().map(|o| o.rate()).collect::<Vec<_>>())
    }

    fn many_rate(&self) -> f64 {
        median(&self.many.iter().map(|o| o.rate()).collect::<Vec<_>>())
    }
}

/// Asks each by turns.
pub(crate) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let (mut own, mut theirs) = (Pair::start("ours").await?, Pair::start("bare").await?);
    let mut warm = Rounds::default();
    own = warm.measure(own, Duration::from_secs(1)).await?;
    theirs = warm.measure(theirs, Duration::from_secs(1)).await?;
    let (mut ours, mut bare) = (Rounds::default(), Rounds::default());
    for _ in 0..effort.rounds {
        theirs = bare.measure(theirs, effort.measured).await?;
        own = ours.measure(own, effort.measured).await?;
    }
    report.add(Row {
        what: "cross-node ask: a patient in memory, 1 in flight".into(),
        beside: "ractor_cluster, bare, 1 in flight".into(),
        ours: format!("{:.1} us", ours.one_us()),
        yardstick: format!("{:.1} us", bare.one_us()),
        ratio: ours.one_us() / bare.one_us(),
        reach: Some(Reach::AtMost(1.2)),
    });
    let beside = [("one by one", bare.one_rate(), Some(Reach::AtLeast(3.0)))].into_iter().chain([(
        "as many in flight",
        bare.many_rate(),
        None,
    )]);
    for (how, rate, reach) in beside {
        report.add(Row {
            what: format!("cross-node asks, {MANY} in flight"),
            beside: format!("ractor_cluster, bare, {how}"),
            ours: format!("{:.0}/s", ours.many_rate()),
            yardstick: format!("{rate:.0}/s"),
            ratio: ours.many_rate() / rate,
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
