//! Compares the node's wall clock with the database's.
//!
//! No guarantee depends on wall clocks: leases follow the boot-time clocks of their holders and takers, and
//! versions order the events. A wrong clock affects the times in records and log lines, ages, and the expiry
//! of tokens, which each node checks by its own clock. So a difference is reported, and the node keeps
//! serving.

use std::time::Duration;

use metrics::Gauge;

use crate::domain::time::Timestamp;
use crate::health::{Health, Status};

/// The name of the part in health.
const PART: &str = "clock";

/// Tracks the difference and reports it.
pub(super) struct Watch {
    health: Health,
    most: Duration,
    meter: Gauge,
    /// Whether the difference exceeded the limit at the last check.
    off: bool,
}

impl Watch {
    /// Creates the watch, which reports a difference of more than `most`.
    pub(super) fn new(health: Health, most: Duration) -> Self {
        let meter = metrics::gauge!("hygeia_clock_skew_seconds");
        health.report(PART, Status::Ready);
        Watch { health, most, meter, off: false }
    }

    /// Records one measurement: the database was asked at `asked_at`, and after `took` it answered that its
    /// time is `theirs`.
    pub(super) fn learn(&mut self, asked_at: Timestamp, took: Duration, theirs: Timestamp) {
        let skew_us = skew_us(asked_at, took, theirs);
        self.meter.set(skew_us as f64 / 1e6);
        let off = Duration::from_micros(skew_us.unsigned_abs()) > self.most;
        // Report a difference once, with its size, and not again every second.
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

/// Returns the smallest possible difference in microseconds; positive if the node is ahead. The database read
/// its clock at some moment between request and answer, so a difference within that interval counts as zero.
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
