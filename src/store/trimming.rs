//! When the outbox forgets what analytics has applied: not after every batch, but after so many events
//! that the cost of another transaction does not matter; and where it goes on looking.
//!
//! Invariant: on average more rows are looked at than are added, so what is applied is found, however
//! long ago it was sent. What a process does not come to, `republish_forgotten` does.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Trimming waits for this many events.
pub(super) const TRIM_AFTER_EVENTS: u64 = 2_000;
/// The most rows that one trimming looks at.
const TRIM_ROWS_MAX: u64 = 20_000;

/// The most rows that one transaction of a trimming looks at: others must not wait long for their turn.
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

    /// Notes that `counted` events were applied. If it is time: look at this many rows.
    pub(super) fn due(&self, counted: u64) -> Option<u32> {
        let applied = self.applied.fetch_add(counted, Ordering::Relaxed).saturating_add(counted);
        if applied < TRIM_AFTER_EVENTS {
            return None;
        }
        self.applied.store(0, Ordering::Relaxed);
        u32::try_from(applied.saturating_mul(2).min(TRIM_ROWS_MAX)).ok()
    }

    /// Rows after this number are looked at.
    pub(super) fn from(&self) -> i64 {
        self.from.load(Ordering::Relaxed)
    }

    /// Notes that `seen` of at most `rows_max` rows were looked at, the `last` of them with this number.
    /// Fewer than asked for means the end: the next trimming begins anew. Answers whether there are more.
    pub(super) fn seen(&self, rows_max: u32, seen: i64, last: Option<i64>) -> bool {
        let next = next_after(rows_max, seen, last);
        self.from.store(next.unwrap_or(i64::MIN), Ordering::Relaxed);
        next.is_some()
    }
}

/// After which number to go on, when `seen` of at most `rows_max` rows were looked at, the `last` of them
/// with this number; `None` at the end.
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
