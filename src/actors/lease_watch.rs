//! Since when the leases of others stand as they stand, by this node's own boot-time clock.
//!
//! Invariant: a lease is said to have lapsed only if the database has held one and the same renewal of it for its
//! whole time to live. Its holder believes in it for less than that, and from before it asked for that renewal. So two
//! clocks that only measure have a say, the holder's and the taker's, and a step of the database's clock changes
//! nothing. Whether the holder has renewed it since the last look is for the database to compare, when it is taken.
//!
//! Who has not watched a lease yet has to wait for its whole time to live. So those who may have to take one look at
//! what others hold all along, and not only when its holder is gone.

use std::collections::HashMap;
use std::time::Duration;

use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::store::{LeaseMark, OthersLease};

/// See above. At most one entry a shard.
pub(super) struct LeaseWatch {
    ttl_unsaid: Duration,
    seen: HashMap<ShardNo, Seen>,
}

struct Seen {
    mark: LeaseMark,
    /// Up to when the holder may believe in it.
    until: MonoTime,
}

impl LeaseWatch {
    /// Nothing was seen yet. Leases whose holders do not say for how long they believe in them, as those of an
    /// older version, are taken to hold for `ttl_unsaid`.
    pub(super) fn new(ttl_unsaid: Duration) -> Self {
        LeaseWatch { ttl_unsaid, seen: HashMap::new() }
    }

    /// Takes note of what others hold. `answered_at` is when the answer had come: a lease may have been renewed at
    /// any moment until then.
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

    /// The last renewal of the shard's lease, if its holder does not believe in it any more.
    pub(super) fn lapsed(&self, shard: ShardNo, now: MonoTime) -> Option<LeaseMark> {
        self.seen.get(&shard).filter(|seen| now >= seen.until).map(|seen| seen.mark)
    }

    /// How long it takes until the shard's lease has lapsed, unless it is renewed.
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

        // A renewal, and another taking, begin it anew; even with marks that are smaller.
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
