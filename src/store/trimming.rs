//! The schedule of the outbox clean-up ("trimming"). Trimming deletes rows of `outbox_sent` that analytics
//! has applied. It runs only after a number of events, so that the cost of its transactions does not matter.
//!
//! Invariant: on average trimming scans more rows than are added, so an applied row is found however old it
//! is. `republish_forgotten` deletes the rows that a process did not reach.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Number of applied events after which trimming is due.
pub(super) const TRIM_AFTER_EVENTS: u64 = 2_000;
/// Maximum number of rows that one trimming scans.
const TRIM_ROWS_MAX: u64 = 20_000;

/// Maximum number of rows that one transaction of a trimming scans, so that other writers do not wait long.
pub(super) const TRIM_CHUNK_ROWS: u32 = 2_000;

/// The state of trimming, in the memory of one process.
pub(super) struct Trimming {
    applied: AtomicU64,
    from: AtomicI64,
}

impl Trimming {
    pub(super) fn new() -> Self {
        Trimming { applied: AtomicU64::new(0), from: AtomicI64::new(i64::MIN) }
    }

    /// Records that `counted` events were applied. Returns the number of rows to scan if trimming is due.
    pub(super) fn due(&self, counted: u64) -> Option<u32> {
        let applied = self.applied.fetch_add(counted, Ordering::Relaxed).saturating_add(counted);
        if applied < TRIM_AFTER_EVENTS {
            return None;
        }
        self.applied.store(0, Ordering::Relaxed);
        u32::try_from(applied.saturating_mul(2).min(TRIM_ROWS_MAX)).ok()
    }

    /// The scan continues with rows above this number.
    pub(super) fn from(&self) -> i64 {
        self.from.load(Ordering::Relaxed)
    }

    /// Records that `seen` of at most `rows_max` rows were scanned, the last of them with the number `last`.
    /// If fewer than `rows_max` were seen, the end is reached and the next trimming starts over. Returns
    /// whether more rows are left.
    pub(super) fn seen(&self, rows_max: u32, seen: i64, last: Option<i64>) -> bool {
        let next = next_after(rows_max, seen, last);
        self.from.store(next.unwrap_or(i64::MIN), Ordering::Relaxed);
        next.is_some()
    }
}

/// Returns the number after which the scan continues when `seen` of at most `rows_max` rows were scanned, the
/// last of them with the number `last`; `None` at the end.
pub(super) fn next_after(rows_max: u32, seen: i64, last: Option<i64>) -> Option<i64> {
    last.filter(|_| seen >= i64::from(rows_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_after_enough_events_and_goes_round() {
        let trimming = Trimming::new();
        assert_eq!(trimming.due(TRIM_AFTER_EVENTS - 1), None);
        assert_eq!(trimming.due(1), Some(4_000));
        assert_eq!(trimming.due(1), None);
        assert_eq!(trimming.due(1 << 40), Some(20_000), "bounded");
        assert!(trimming.seen(10, 10, Some(70)));
        assert_eq!(trimming.from(), 70);
        assert!(!trimming.seen(10, 9, Some(90)));
        assert_eq!(trimming.from(), i64::MIN);
        assert!(!trimming.seen(10, 0, None));
        assert_eq!(trimming.from(), i64::MIN);
    }
}
