//! Tools for work that actors do outside `handle`: tasks that report back, a time limit for the database, the
//! pause after a failure, and the poll rate.

use std::future::Future;
use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::JoinSet;

use crate::domain::time::MonoTime;
use crate::store;

/// The tasks of one actor. They are aborted when the actor ends.
#[derive(Default)]
pub(super) struct Tasks(JoinSet<()>);

impl Tasks {
    /// Runs `work` in a task. The `actor` receives its result, or `lost` if the task panics.
    pub(super) fn run<M: Message>(
        &mut self,
        actor: &ActorRef<M>,
        lost: M,
        work: impl Future<Output = M> + Send + 'static,
    ) {
        while self.0.try_join_next().is_some() {}
        let mut promise = Promise { actor: actor.clone(), lost: Some(lost) };
        self.0.spawn(async move {
            let result = work.await;
            promise.lost = None;
            // The actor may have ended; then the result is not needed.
            let _ = promise.actor.cast(result);
        });
    }
}

struct Promise<M: Message> {
    actor: ActorRef<M>,
    lost: Option<M>,
}

impl<M: Message> Drop for Promise<M> {
    fn drop(&mut self) {
        if let Some(lost) = self.lost.take() {
            let _ = self.actor.cast(lost);
        }
    }
}

/// Waits for the database for at most `limit`. A statement that takes longer may still take effect.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = store::Result<T>>,
) -> store::Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(store::Error::Unknown("no answer in time".into())),
    }
}

/// The pause after failures. It doubles from `min` to `max`. Each pause is shortened at random by up to a
/// half, so that parts that failed together do not retry together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// The pause after the first failure.
    pub(super) min: Duration,
    /// The longest pause.
    pub(super) max: Duration,
}

impl Backoff {
    /// Returns the pause after this many consecutive failures, counted from 1.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

/// Limits how often a queue is polled while new rows keep arriving. After an idle period the first poll runs
/// at once. Further polls wait until `gap` has passed since the last one. Each poll ends in a transaction,
/// which competes with the writers of the queue for the database, and a later poll finds more rows for the
/// same cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    gap: Duration,
    last: Option<MonoTime>,
    waiting: bool,
}

/// Whether to poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Poll now.
    Now,
    /// Poll after this time: set a timer, and call `Pace::waited` when it fires.
    In(Duration),
    /// A timer is already set.
    Later,
}

impl Pace {
    /// Allows one poll per `gap`.
    pub(super) fn new(gap: Duration) -> Self {
        Pace { gap, last: None, waiting: false }
    }

    /// Returns whether to poll. `Look::Now` counts as a poll at `now`.
    pub(super) fn look(&mut self, now: MonoTime) -> Look {
        if self.waiting {
            return Look::Later;
        }
        let left = self.last.map_or(Duration::ZERO, |last| self.gap.saturating_sub(now.since(last)));
        if left.is_zero() {
            self.last = Some(now);
            return Look::Now;
        }
        self.waiting = true;
        Look::In(left)
    }

    /// Records that the timer has fired.
    pub(super) fn waited(&mut self) {
        self.waiting = false;
    }

    /// Records that the last poll left rows in the queue, so the next poll need not wait.
    pub(super) fn hurry(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_is_at_once_and_further_ones_keep_their_distance() {
        let at = |ms: u64| MonoTime(ms * 1_000_000);
        let mut pace = Pace::new(Duration::from_millis(20));
        assert_eq!(pace.look(at(100)), Look::Now);
        assert_eq!(pace.look(at(105)), Look::In(Duration::from_millis(15)));
        assert_eq!(pace.look(at(110)), Look::Later, "one timer at a time");
        pace.waited();
        assert_eq!(pace.look(at(120)), Look::Now);
        pace.hurry();
        assert_eq!(pace.look(at(121)), Look::Now, "there was more than one look could take");
        assert_eq!(pace.look(at(500)), Look::Now);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_vary() {
        let backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };
        for (failures, full) in [(1, 100), (2, 200), (4, 800), (5, 1_000), (u32::MAX, 1_000)] {
            let full = Duration::from_millis(full);
            for _ in 0..100 {
                let pause = backoff.pause(failures);
                assert!(pause <= full && pause >= full / 2, "{failures}: {pause:?}");
            }
        }
    }
}
