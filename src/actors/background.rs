//! What actors do that takes time: tasks that report back, how long they wait for the database, how long
//! after a failure, and how often they look.

use std::future::Future;
use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::JoinSet;

use crate::domain::time::MonoTime;
use crate::store;

/// The tasks of one actor. They end with it.
#[derive(Default)]
pub(super) struct Tasks(JoinSet<()>);

impl Tasks {
    /// Runs `work`; `actor` is sent its result, or `lost` if the task ends without one, by a panic.
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
            // An actor that is gone needs no report.
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

/// Waits for the database at most so long. What comes too late may happen still.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = store::Result<T>>,
) -> store::Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(store::Error::Unknown("no answer in time".into())),
    }
}

/// How long to wait after failures: doubling from `min` to `max`, each time shortened at random by up to
/// a half so that those who failed together do not try again together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// After the first failure.
    pub(super) min: Duration,
    /// At most.
    pub(super) max: Duration,
}

impl Backoff {
    /// The pause after this many failures in a row, the first being 1.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

/// How often a queue is looked at when there is always something new in it. The first look after a rest is
/// at once; further ones wait until `gap` has passed since the last, and find more for the same price: each
/// look ends in a transaction, and those share the database with whoever fills the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    gap: Duration,
    last: Option<MonoTime>,
    waiting: bool,
}

/// Whether to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Now.
    Now,
    /// Not before this has passed: set a timer, and call `Pace::waited` when it rings.
    In(Duration),
    /// A timer is set already.
    Later,
}

impl Pace {
    /// A look at most every `gap`.
    pub(super) fn new(gap: Duration) -> Self {
        Pace { gap, last: None, waiting: false }
    }

    /// Whether to look; `Look::Now` counts as a look at `now`.
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

    /// The timer has rung.
    pub(super) fn waited(&mut self) {
        self.waiting = false;
    }

    /// The last look did not find all there was: the next need not wait.
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
