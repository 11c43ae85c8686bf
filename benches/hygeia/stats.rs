//! Numbers from samples, and how the samples of two sides are taken.

use crate::Result;

/// The middle one of `values`; the mean of the two middle ones if their number is even; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// A figure that was measured several times: its median, and the values between which half of the measurements lie.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
    /// How often it was measured.
    pub(crate) times: usize,
}

impl Spread {
    /// That of `values`.
    pub(crate) fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quarter = sorted.len() / 4;
        let low = sorted.get(quarter).copied().unwrap_or(f64::NAN);
        let high = sorted.iter().rev().nth(quarter).copied().unwrap_or(f64::NAN);
        Spread { low, median: median(values), high, times: sorted.len() }
    }

    /// That of the ratios of pairs. The two sides of a pair are measured one right after the other, so that a machine
    /// that is slower from one minute to the next is slower for both.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Spread {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Spread::of(&ratios)
    }
}

/// Measures both sides `pairs` times. Which side of a pair comes first changes from pair to pair, so that neither
/// always finds the machine as the other has left it.
pub(crate) async fn by_turns<A, B>(
    pairs: usize,
    mut ours: impl AsyncFnMut(usize) -> Result<A>,
    mut theirs: impl AsyncFnMut(usize) -> Result<B>,
) -> Result<(Vec<A>, Vec<B>)> {
    let (mut own, mut others) = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
    for pair in 0..pairs {
        if pair % 2 == 1 {
            own.push(ours(pair).await?);
            others.push(theirs(pair).await?);
        } else {
            others.push(theirs(pair).await?);
            own.push(ours(pair).await?);
        }
    }
    Ok((own, others))
}

/// The value below which the share `p` of `sorted` lies.
pub(crate) fn percentile(sorted: &[u32], p: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * p).round() as usize).copied().map_or(f64::NAN, f64::from)
}

/// What the processors of this machine have done since it started, in ticks of any length.
#[derive(Clone, Copy)]
pub(crate) struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    /// Up to now; nothing where they are not told.
    pub(crate) fn now() -> Processors {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)); who waits for a disk is idle, too.
        let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
        Processors { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().sum() }
    }

    /// The share of their time since `earlier` in which they had nothing to do; NaN if it is not told.
    pub(crate) fn idle_since(self, earlier: Processors) -> f64 {
        self.idle.saturating_sub(earlier.idle) as f64 / self.all.saturating_sub(earlier.all) as f64
    }
}
