//! Limits the request rate of each subject with a bucket of requests that refills at a steady rate. Each edge
//! of a node has its own buckets. Nodes do not share buckets, so no request waits for another node to count
//! it.
//!
//! Implements the generic cell rate algorithm (ITU-T I.371, annex A) in its virtual scheduling form. Only one
//! time is stored per subject: the time at which its bucket is full again. No background task is needed.
//!
//! Invariants: at most `subjects_max` buckets are kept; the least recently used one is evicted first. An
//! evicted subject starts again with a full bucket, so the limit holds for subjects that send requests often.
//! Those are the subjects it is meant for.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::domain::time::MonoTime;

const SECOND_NS: u64 = 1_000_000_000;

/// The largest rate (requests per second) and the largest bucket that can be configured.
pub const RATE_MAX: u32 = 1_000_000;

/// The cost of a denied request, in requests. Each denial writes an audit entry although no record is read.
/// At the default limit a subject causes at most 100 such entries per second in the long run.
pub const DENIAL_COST: u32 = 10;

/// The remaining quota of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests that the subject may still make at once.
    pub left: u32,
    /// Seconds until the bucket is full again, rounded up.
    pub full_in_s: u32,
}

/// The buckets of recently seen subjects.
pub struct Limiter {
    /// The time between two requests at the steady rate.
    interval_ns: u64,
    /// The time in which an empty bucket fills.
    full_ns: u64,
    /// When each subject's bucket is full, in nanoseconds of the monotonic clock.
    full_at: Mutex<LruCache<Arc<str>, u64>>,
}

impl Limiter {
    /// Returns buckets of `burst` requests that refill at `per_s` requests per second, for at most
    /// `subjects_max` subjects. Returns `None` if `per_s` is 0: no limit.
    pub fn new(per_s: u32, burst: u32, subjects_max: usize) -> Option<Self> {
        if per_s == 0 {
            return None;
        }
        let interval_ns = SECOND_NS / u64::from(per_s.min(RATE_MAX));
        let subjects_max = NonZeroUsize::new(subjects_max).unwrap_or(NonZeroUsize::MIN);
        Some(Limiter {
            interval_ns,
            full_ns: interval_ns * u64::from(burst.clamp(1, RATE_MAX)),
            full_at: Mutex::new(LruCache::new(subjects_max)),
        })
    }

    /// Takes one request from the bucket of `subject`.
    ///
    /// # Errors
    /// Returns the quota if the bucket is empty. The bucket has one request again within a second (`per_s` is
    /// at least 1), unless the cost of denials is outstanding.
    pub fn take(&self, subject: &Arc<str>, now: MonoTime) -> Result<Quota, Quota> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get_or_insert_mut(Arc::clone(subject), || 0);
        let spent_ns = full_at.saturating_sub(now.0);
        if spent_ns + self.interval_ns > self.full_ns {
            return Err(self.quota(spent_ns));
        }
        *full_at = now.0 + spent_ns + self.interval_ns;
        Ok(self.quota(spent_ns + self.interval_ns))
    }

    /// Charges the rest of `DENIAL_COST` after the last request of `subject` was denied. The bucket may go
    /// into debt; no request passes until the debt is paid.
    pub fn charge_denial(&self, subject: &Arc<str>, now: MonoTime) {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get_or_insert_mut(Arc::clone(subject), || 0);
        *full_at = (*full_at).max(now.0) + u64::from(DENIAL_COST - 1) * self.interval_ns;
    }

    fn quota(&self, spent_ns: u64) -> Quota {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Quota {
            left: small(self.full_ns.saturating_sub(spent_ns) / self.interval_ns),
            full_in_s: small(spent_ns.div_ceil(SECOND_NS)),
        }
    }

    /// Returns the number of seconds in which an empty bucket fills, rounded up.
    pub fn window_s(&self) -> u64 {
        self.full_ns.div_ceil(SECOND_NS)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: MonoTime = MonoTime(5 * SECOND_NS);

    fn at(ms: u64) -> MonoTime {
        START.plus(Duration::from_millis(ms))
    }

    #[test]
    fn a_bucket_is_emptied_at_once_and_fills_steadily() {
        let (limiter, ada) = (Limiter::new(10, 3, 8).expect("a limit"), Arc::from("ada"));
        for left in [2, 1, 0] {
            assert_eq!(limiter.take(&ada, at(0)), Ok(Quota { left, full_in_s: 1 }));
        }
        assert_eq!(limiter.take(&ada, at(0)), Err(Quota { left: 0, full_in_s: 1 }));
        assert_eq!(limiter.take(&ada, at(99)), Err(Quota { left: 0, full_in_s: 1 }));
        assert_eq!(limiter.take(&ada, at(100)), Ok(Quota { left: 0, full_in_s: 1 }));
        assert!(limiter.take(&ada, at(101)).is_err());
        // A bucket never exceeds its size, however long the subject is idle. Another thread may have read the
        // clock slightly earlier; that does no harm.
        assert_eq!(limiter.take(&ada, at(60_000)), Ok(Quota { left: 2, full_in_s: 1 }));
        assert_eq!(limiter.take(&ada, at(59_990)), Ok(Quota { left: 0, full_in_s: 1 }));
    }

    #[test]
    fn a_denial_stands_for_many_requests() {
        let (limiter, eve) = (Limiter::new(1000, 100, 8).expect("a limit"), Arc::from("eve"));
        let denied = (0..10_000).filter(|ms| {
            let taken = limiter.take(&eve, at(*ms)).is_ok();
            if taken {
                limiter.charge_denial(&eve, at(*ms));
            }
            taken
        });
        assert_eq!(denied.count(), 12 + 998, "a bucket of them, then one each 10 ms");
        assert!(
            limiter.take(&eve, at(10_200)).is_ok_and(|quota| quota.left == 99),
            "and then it is full again"
        );
    }

    #[test]
    fn over_a_long_time_the_rate_is_kept() {
        let (limiter, ada) = (Limiter::new(50, 100, 8).expect("a limit"), Arc::from("ada"));
        let taken = (0..10_000).filter(|ms| limiter.take(&ada, at(*ms)).is_ok()).count();
        assert_eq!(taken, 100 + 499, "the bucket, and what came into it in ten seconds but the last 20 ms");
    }

    #[test]
    fn each_subject_has_a_bucket_and_there_is_an_end_of_them() {
        let limiter = Limiter::new(1, 1, 2).expect("a limit");
        let [ada, bob, eve] = ["ada", "bob", "eve"].map(Arc::<str>::from);
        assert!(limiter.take(&ada, at(0)).is_ok() && limiter.take(&bob, at(0)).is_ok());
        assert!(limiter.take(&ada, at(1)).is_err() && limiter.take(&bob, at(1)).is_err());
        // A third subject evicts the least recently used one.
        assert!(limiter.take(&eve, at(2)).is_ok());
        assert!(limiter.take(&bob, at(3)).is_err());
        assert!(limiter.take(&ada, at(4)).is_ok());
        assert_eq!(limiter.full_at.lock().expect("held briefly").len(), 2);
    }

    #[test]
    fn zero_is_no_limit_and_the_extremes_do_not_overflow() {
        assert!(Limiter::new(0, 10, 10).is_none());
        let (widest, ada) = (Limiter::new(1, RATE_MAX, 1).expect("a limit"), Arc::from("ada"));
        assert_eq!(widest.window_s(), u64::from(RATE_MAX));
        assert_eq!(widest.take(&ada, at(0)), Ok(Quota { left: RATE_MAX - 1, full_in_s: 1 }));
        let fastest = Limiter::new(u32::MAX, u32::MAX, 0).expect("a limit");
        assert_eq!(fastest.take(&ada, at(0)), Ok(Quota { left: RATE_MAX - 1, full_in_s: 1 }));
    }
}
