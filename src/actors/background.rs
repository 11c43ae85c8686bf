//! What actors do that takes time: tasks that report back, and how long to wait after a failure.

use std::future::Future;
use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::JoinSet;

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

#[cfg(test)]
mod tests {
    use super::*;

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
