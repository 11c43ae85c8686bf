//! Backpressure for the embedded broker, which drops its oldest messages at 5 MiB per partition, read or
//! unread. The gate counts the unread bytes per partition and makes publishing wait before that limit. So no
//! event is dropped before analytics has counted it.
//!
//! The partition of a message is known only after its delivery, so a batch is first reserved against every
//! partition. A message may be read before its delivery is reported. A message reported below the applied
//! position counts as read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Position;

/// Counts unread bytes per partition of one topic.
pub(super) struct Gate {
    limit_bytes: u64,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Default)]
struct State {
    reserved_bytes: u64,
    waiting: usize,
    partitions: BTreeMap<i32, Unread>,
}

#[derive(Default)]
struct Unread {
    bytes: u64,
    /// Everything before this offset has been read.
    applied: i64,
    /// Runs of messages: the last offset and the bytes of each.
    runs: VecDeque<(i64, u64)>,
}

/// The bytes that a batch reserves in the gate; released when dropped.
pub(super) struct Reservation {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Gate {
    /// Returns a gate that allows `limit_bytes` unread per partition.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Gate { limit_bytes, state: Mutex::default(), freed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `bytes` more fit into every partition. A batch larger than the limit passes when
    /// everything has been read and nothing is in flight.
    pub(super) async fn reserve(self: &Arc<Self>, bytes: u64) -> Reservation {
        let _waiting = Waiting::begin(self);
        loop {
            let freed = self.freed.notified();
            if self.try_reserve(bytes) {
                return Reservation { gate: Arc::clone(self), bytes };
            }
            freed.await;
        }
    }

    fn try_reserve(&self, bytes: u64) -> bool {
        let mut state = self.lock();
        let taken = state.reserved_bytes + state.fullest();
        let fits = taken == 0 || taken + bytes <= self.limit_bytes;
        if fits {
            state.reserved_bytes += bytes;
        }
        fits
    }

    /// Records that messages up to `last_offset` of `partition` are in the log, `bytes` of them new.
    pub(super) fn landed(&self, partition: i32, last_offset: i64, bytes: u64) {
        let mut state = self.lock();
        let unread = state.partitions.entry(partition).or_default();
        if last_offset >= unread.applied {
            unread.bytes += bytes;
            unread.runs.push_back((last_offset, bytes));
        }
    }

    /// Records that everything before these positions has been read and has taken effect.
    pub(super) fn applied(&self, positions: &[Position]) {
        let mut state = self.lock();
        for position in positions {
            let unread = state.partitions.entry(position.partition).or_default();
            unread.applied = unread.applied.max(position.next_offset);
            // Concurrent batches may land in any order, so the runs are not sorted.
            unread.runs.retain(|(last_offset, bytes)| {
                let read = *last_offset < unread.applied;
                if read {
                    unread.bytes -= bytes;
                }
                !read
            });
        }
        drop(state);
        self.freed.notify_waiters();
    }

    /// Returns whether a batch is waiting.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().waiting > 0
    }
}

impl State {
    fn fullest(&self) -> u64 {
        self.partitions.values().map(|p| p.bytes).max().unwrap_or(0)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gate.lock().reserved_bytes -= self.bytes;
        self.gate.freed.notify_waiters();
    }
}

/// Counts a batch as waiting until dropped, also if the call of `reserve` is cancelled.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn begin(gate: &'a Gate) -> Self {
        gate.lock().waiting += 1;
        Waiting(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_held(gate: &Arc<Gate>, bytes: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(20), gate.reserve(bytes)).await.is_err()
    }

    #[tokio::test]
    async fn a_full_partition_holds_batches_back_until_it_is_read() {
        let gate = Arc::new(Gate::new(100));
        let first = gate.reserve(60).await;
        assert!(is_held(&gate, 60).await, "60 are reserved of 100");
        gate.landed(0, 9, 60);
        drop(first);
        assert!(is_held(&gate, 60).await, "60 are unread of 100");
        assert!(!is_held(&gate, 40).await);
        let held = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.reserve(60).await.bytes }
        });
        gate.applied(&[Position { partition: 0, next_offset: 9 }]);
        assert!(is_held(&gate, 60).await, "offset 9 itself is unread");
        gate.applied(&[Position { partition: 0, next_offset: 10 }]);
        assert_eq!(held.await.expect("reserved"), 60);
        assert!(!gate.is_closed());
    }

    #[tokio::test]
    async fn the_fullest_partition_counts_and_one_batch_always_passes() {
        let gate = Arc::new(Gate::new(100));
        assert!(!is_held(&gate, 1_000).await, "an empty gate lets anything pass");
        gate.landed(0, 0, 50);
        gate.landed(1, 0, 90);
        assert!(is_held(&gate, 11).await);
        gate.applied(&[Position { partition: 1, next_offset: 1 }]);
        assert!(!is_held(&gate, 50).await);
    }

    #[tokio::test]
    async fn what_was_read_before_its_delivery_was_reported_is_not_unread() {
        let gate = Arc::new(Gate::new(100));
        gate.applied(&[Position { partition: 0, next_offset: 10 }]);
        gate.landed(0, 9, 90);
        assert!(!is_held(&gate, 100).await, "all of it was read");
        // A consumer that restarts at an earlier position does not make messages unread.
        gate.applied(&[Position { partition: 0, next_offset: 3 }]);
        gate.landed(0, 8, 90);
        assert!(!is_held(&gate, 100).await);
        gate.landed(0, 10, 90);
        assert!(is_held(&gate, 11).await, "offset 10 is unread");
        gate.applied(&[Position { partition: 0, next_offset: 11 }]);
        assert!(!is_held(&gate, 100).await);
    }

    #[tokio::test]
    async fn runs_may_land_in_any_order() {
        let gate = Arc::new(Gate::new(100));
        gate.landed(0, 9, 50);
        gate.landed(0, 4, 50);
        gate.applied(&[Position { partition: 0, next_offset: 5 }]);
        assert!(!is_held(&gate, 50).await && is_held(&gate, 51).await);
    }
}
