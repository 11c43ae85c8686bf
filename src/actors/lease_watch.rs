//! Tracks how long the leases of other owners have gone without renewal, by this node's own boot-time clock.
//!
//! Invariant: a lease counts as lapsed only if this node has seen no newer renewal of it for its whole time
//! to live. The holder relies on its lease for less than that, counted from before it sent the renewal. So
//! only two clocks matter, the holder's and the taker's, and both only measure durations. A step of the
//! database's clock changes nothing. The database checks at the taking whether the holder has renewed the
//! lease since the last read.
//!
//! A node that has not yet watched a lease must wait for its whole time to live. Nodes that may have to take
//! a lease therefore read the leases of others all the time, not only after a holder has failed.

use std::collections::HashMap;
use std::time::Duration;

use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::store::{LeaseMark, OthersLease};

/// The leases of others, at most one entry per shard.
pub(super) struct LeaseWatch {
    ttl_unsaid: Duration,
    seen: HashMap<ShardNo, Seen>,
}

struct Seen {
    mark: LeaseMark,
    /// The latest time at which the holder may rely on the lease.
    until: MonoTime,
}

impl LeaseWatch {
    /// Creates a watch that has seen no lease. `ttl_unsaid` is the time to live of leases whose rows name
    /// none, which an older version wrote.
    pub(super) fn new(ttl_unsaid: Duration) -> Self {
        LeaseWatch { ttl_unsaid, seen: HashMap::new() }
    }

    /// Records the leases of other owners. `answered_at` is the time at which the answer arrived, because a
    /// lease may have been renewed at any moment until then.
    pub(super) fn note(&mut self, others: &[OthersLease], answered_at: MonoTime) {
        for other in others {
            let known = self.seen.get(&other.shard).is_some_and(|seen| seen.mark == other.mark);
            if !known {
                let ttl = if other.ttl.is_zero() { self.ttl_unsaid } else { other.ttl };
                let until = answered_at.plus(ttl);
                self.seen.insert(other.shard, Seen { mark: other.mark, until });
            }
        }
    }

    /// Returns the mark of the last renewal of the shard's lease, if its holder no longer relies on the
    /// lease.
    pub(super) fn lapsed(&self, shard: ShardNo, now: MonoTime) -> Option<LeaseMark> {
        self.seen.get(&shard).filter(|seen| now >= seen.until).map(|seen| seen.mark)
    }

    /// Returns the time until the shard's lease lapses, unless it is renewed.
    pub(super) fn left(&self, shard: ShardNo, now: MonoTime) -> Option<Duration> {
        self.seen.get(&shard).map(|seen| seen.until.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::Epoch;

    const TTL: Duration = Duration::from_secs(3);

    fn at(ms: u64) -> MonoTime {
        MonoTime(ms * 1_000_000)
    }

    fn lease(epoch: i64, renewal: i64, ttl: Duration) -> [OthersLease; 1] {
        [OthersLease { shard: 7, owner: "b#1".into(), mark: LeaseMark { epoch: Epoch(epoch), renewal }, ttl }]
    }

    #[test]
    fn a_lease_lapses_a_time_to_live_after_its_last_renewal_was_seen_first() {
        let mut watch = LeaseWatch::new(TTL);
        assert_eq!((watch.lapsed(7, at(9_000)), watch.left(7, at(0))), (None, None), "never seen");
        watch.note(&lease(1, 10, TTL), at(1_000));
        watch.note(&lease(1, 10, TTL), at(3_999));
        assert_eq!(watch.lapsed(7, at(3_999)), None);
        assert_eq!(watch.left(7, at(3_999)), Some(Duration::from_millis(1)));
        assert_eq!(watch.lapsed(7, at(4_000)), Some(LeaseMark { epoch: Epoch(1), renewal: 10 }));

        // A renewal or a new taking restarts the time to live, even if its mark is smaller.
        for (nth, (epoch, renewal)) in [(1, 11), (2, 11), (2, 5)].into_iter().enumerate() {
            let begun = 10_000 * (nth as u64 + 1);
            watch.note(&lease(epoch, renewal, TTL), at(begun));
            assert_eq!(watch.lapsed(7, at(begun + 2_999)), None);
            assert!(watch.lapsed(7, at(begun + 3_000)).is_some());
        }
    }

    #[test]
    fn the_holders_time_to_live_counts_if_it_says_one() {
        for (theirs, lapses_after) in [(Duration::ZERO, 3_000), (TTL / 2, 1_500), (TTL * 2, 6_000)] {
            let mut watch = LeaseWatch::new(TTL);
            watch.note(&lease(1, 1, theirs), at(0));
            assert_eq!(watch.lapsed(7, at(lapses_after - 1)), None, "{theirs:?}");
            assert!(watch.lapsed(7, at(lapses_after)).is_some(), "{theirs:?}");
        }
    }
}
