//! What the edges of a node have recorded and no batch has yet.
//!
//! Edges add to it themselves, under a lock held for a moment, and tell the journal when there is something to
//! begin with: a message to the actor for each batch, and not for each access.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::domain::audit::Access;
use crate::error::{Error, ErrorCode, Result};

/// An access on its way. Dropped without a word, it tells its recorder by that.
pub(super) struct Waiting {
    pub(super) access: Access,
    pub(super) told: oneshot::Sender<Result<()>>,
}

/// The accesses that wait for a batch. No more than `queue_max` do; who comes then is refused.
pub struct Gathering {
    queue_max: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// The journal has been told, or is at work and will look again.
    journal_knows: bool,
}

impl Gathering {
    /// With room for `queue_max`.
    pub fn new(queue_max: usize) -> Self {
        Gathering { queue_max, queue: Mutex::default() }
    }

    /// Adds one. Whether the journal is to be told.
    ///
    /// # Errors
    /// `Overloaded`: too many wait.
    pub(super) fn add(&self, waiting: Waiting) -> Result<bool> {
        let mut queue = self.queue();
        if queue.waiting.len() >= self.queue_max {
            drop(queue);
            metrics::counter!("hygeia_audit_rejected_total").increment(1);
            return Err(Error::new(ErrorCode::Overloaded, "Too many accesses wait to be recorded"));
        }
        queue.waiting.push_back(waiting);
        Ok(!std::mem::replace(&mut queue.journal_knows, true))
    }

    /// Up to `most` of them, the oldest first. If there are none, the next one is told of.
    pub(super) fn take(&self, most: usize) -> Vec<Waiting> {
        let mut queue = self.queue();
        queue.journal_knows = !queue.waiting.is_empty();
        let size = queue.waiting.len().min(most);
        queue.waiting.drain(..size).collect()
    }

    /// Gives them all up: there is no journal.
    pub(super) fn abandon(&self) {
        let abandoned = std::mem::take(&mut *self.queue());
        drop(abandoned);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
