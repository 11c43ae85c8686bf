//! Numbers from samples.

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

/// How `ours` does beside `theirs`, pair by pair: the ratio of which a quarter of the pairs are below, the middle one, and
/// that of which a quarter are above. A pair is measured at one time, so that what a shared machine gives from minute to
/// minute is in both of its sides.
pub(crate) fn ratios_of_pairs(ours: &[f64], theirs: &[f64]) -> [f64; 3] {
    let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    ratios.sort_by(f64::total_cmp);
    let quarter = ratios.len() / 4;
    let low = ratios.get(quarter).copied().unwrap_or(f64::NAN);
    let high = ratios.iter().rev().nth(quarter).copied().unwrap_or(f64::NAN);
    [low, median(&ratios), high]
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
