//! A database read that concurrent callers share (single flight).
//!
//! Invariant: each caller gets the result of a read that began after the call; at most one read is in flight.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::fault::Fault;

type Result<T> = std::result::Result<T, Fault>;

#[derive(Default)]
pub(super) struct Together {
    begun: AtomicU64,
    /// The number and the result of the last read.
    last: Mutex<Option<(u64, Result<()>)>>,
}

impl Together {
    /// Runs `look`, or returns the result of a read by another caller that began after this call.
    pub(super) async fn look(&self, look: impl Future<Output = Result<()>>) -> Result<()> {
        let asked = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if let Some((number, outcome)) = &*last
            && *number > asked
        {
            return outcome.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let outcome = look.await;
        *last = Some((number, outcome.clone()));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn all_who_wait_share_the_next_look_and_none_an_earlier_one() {
        let (together, looks) = (Arc::new(Together::default()), Arc::new(AtomicU64::new(0)));
        let (open, closed) = tokio::sync::oneshot::channel::<()>();
        let first = {
            let (together, looks) = (Arc::clone(&together), Arc::clone(&looks));
            let look = async move {
                looks.fetch_add(1, Ordering::SeqCst);
                let _ = closed.await;
                Ok(())
            };
            tokio::spawn(async move { together.look(look).await })
        };
        while looks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let waiting: Vec<_> = (0..9)
            .map(|_| {
                let (together, looks) = (Arc::clone(&together), Arc::clone(&looks));
                let look = async move {
                    looks.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                };
                tokio::spawn(async move { together.look(look).await })
            })
            .collect();
        // On this single thread, all tasks have reached the lock by now.
        tokio::task::yield_now().await;
        open.send(()).expect("somebody waits");
        first.await.expect("no panic").expect("looked");
        for each in waiting {
            each.await.expect("no panic").expect("looked");
        }
        assert_eq!(looks.load(Ordering::SeqCst), 2, "the first, and one for all who came meanwhile");
    }
}
