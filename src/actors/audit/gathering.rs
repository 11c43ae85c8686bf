//! The accesses that the edges of a node have recorded and that are in no batch yet.
//!
//! Edges add to this queue themselves, under a lock held for a moment. They notify the journal only if it
//! does not know of waiting accesses, so the actor gets one message per batch and not one per access.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::domain::audit::Access;
use crate::error::{Error, ErrorCode, Result};

/// An access on its way to the database. If it is dropped, its recorder sees the reply channel close.
pub(super) struct Waiting {
    pub(super) access: Access,
    pub(super) told: oneshot::Sender<Result<()>>,
}

/// The accesses that wait for a batch. At most `queue_max` wait; further ones are refused.
pub struct Gathering {
    queue_max: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Whether the journal was notified, or is writing and will check the queue again.
    journal_knows: bool,
}

impl Gathering {
    /// Creates a queue with room for `queue_max` accesses.
    pub fn new(queue_max: usize) -> Self {
        Gathering { queue_max, queue: Mutex::default() }
    }

    /// Adds an access. Returns whether the caller must notify the journal.
    ///
    /// # Errors
    /// `Overloaded` if too many accesses wait.
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

    /// Takes up to `most` accesses, oldest first. If the queue is empty, the next `add` asks its caller to
    /// notify the journal.
    pub(super) fn take(&self, most: usize) -> Vec<Waiting> {
        let mut queue = self.queue();
        queue.journal_knows = !queue.waiting.is_empty();
        let size = queue.waiting.len().min(most);
        queue.waiting.drain(..size).collect()
    }

    /// Drops all waiting accesses, because no journal is running.
    pub(super) fn abandon(&self) {
        let abandoned = std::mem::take(&mut *self.queue());
        drop(abandoned);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
