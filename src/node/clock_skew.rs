//! How the node's wall clock stands to the database's.
//!
//! Nothing that is promised hangs on it: leases go by the boot-time clocks of their holders and takers, and the order
//! of events is that of their versions. What suffers are texts: the moments in records and
//! log lines, ages, and tokens, which end by the wall clock of the node that looks at them. So it is told, and
//! the node serves on.

use std::time::Duration;

use metrics::Gauge;

use crate::domain::time::Timestamp;
use crate::health::{Health, Status};

/// The part's name in health.
const PART: &str = "clock";

/// Follows it.
pub(super) struct Watch {
    health: Health,
    most: Duration,
    meter: Gauge,
    /// It was off at the last look.
    off: bool,
}

impl Watch {
    /// It is told when the clocks differ by more than `most`.
    pub(super) fn new(health: Health, most: Duration) -> Self {
        let meter = metrics::gauge!("hygeia_clock_skew_seconds");
        health.report(PART, Status::Ready);
        Watch { health, most, meter, off: false }
    }

    /// The database was asked at `asked_at`, and its answer, which came after `took`, was that it is `theirs`.
    pub(super) fn learn(&mut self, asked_at: Timestamp, took: Duration, theirs: Timestamp) {
        let skew_us = skew_us(asked_at, took, theirs);
        self.meter.set(skew_us as f64 / 1e6);
        let off = Duration::from_micros(skew_us.unsigned_abs()) > self.most;
        // Told once with its size, not anew with every second.
        if off == self.off {
            return;
        }
        self.off = off;
        let status = if off {
            let side = if skew_us > 0 { "ahead of" } else { "behind" };
            let by = (skew_us as f64 / 1e6).abs().round();
            Status::Explained(format!(
                "the wall clocks of node and database differ: the node is {by} s {side} it"
            ))
        } else {
            Status::Ready
        };
        self.health.report(PART, status);
    }
}

/// The least difference that fits, in microseconds; positive: the node is ahead. The database read its clock at
/// some moment between question and answer, so what is within that is nobody's fault.
fn skew_us(asked_at: Timestamp, took: Duration, theirs: Timestamp) -> i64 {
    let took_us = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
    let (earliest, latest) = (asked_at.0, asked_at.0.saturating_add(took_us));
    if theirs.0 < earliest {
        earliest - theirs.0
    } else if theirs.0 > latest {
        latest - theirs.0
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_way_there_and_back_explains_is_no_skew() {
        let skew = |theirs| skew_us(Timestamp(1_000_000), Duration::from_micros(500), Timestamp(theirs));
        assert_eq!([skew(1_000_000), skew(1_000_250), skew(1_000_500)], [0, 0, 0]);
        assert_eq!(skew(999_990), 10, "the node is ahead");
        assert_eq!(skew(1_000_700), -200, "the node is behind");
    }

    #[test]
    fn it_is_told_at_the_limit_and_once() {
        let health = Health::default();
        let mut watch = Watch::new(health.clone(), Duration::from_secs(1));
        let part = || health.snapshot().1["clock"].clone();
        let mut learn = |theirs| {
            watch.learn(Timestamp(10_000_000), Duration::ZERO, Timestamp(theirs));
            part()
        };
        assert_eq!(learn(9_000_000), Status::Ready, "at the limit");
        let told = learn(8_999_999);
        assert!(matches!(&told, Status::Explained(reason) if reason.contains("1 s ahead of")), "{told:?}");
        assert_eq!(learn(2_000_000), told, "not told anew");
        assert_eq!(learn(10_000_000), Status::Ready);
    }
}
