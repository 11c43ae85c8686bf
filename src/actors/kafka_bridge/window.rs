//! The rows of the outbox that the bridge has in hand, and what may be done with them next: a state
//! machine without I/O.
//!
//! ```text
//! read ─► waiting ─► at the producer ─► delivered ─► marked
//!            ▲             │ failed
//!            └── resting ◄─┘
//! ```
//!
//! Invariants:
//! - For each patient at most one row is at the producer or resting (`busy`), and it is the first of that
//!   patient's rows in hand. This alone keeps the order: see `kafka_bridge`.
//! - A row in hand is never admitted a second time (`known`), until it is marked.
//! - At most `window_rows` rows are in hand.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::domain::event::OutboxEvent;
use crate::domain::ids::PatientId;

/// The bounds of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Rows in hand.
    pub(super) window_rows: usize,
    /// Rows of one read.
    pub(super) read_rows: usize,
    /// Rows of one batch for the producer.
    pub(super) batch_rows: usize,
    /// Batches at the producer.
    pub(super) batches: usize,
    /// Rows marked at once.
    pub(super) mark_rows: usize,
}

/// See above.
pub(super) struct Window {
    limits: Limits,
    known: HashSet<i64>,
    busy: HashSet<PatientId>,
    /// In the order of `seq` for each patient.
    waiting: VecDeque<OutboxEvent>,
    at_producer: HashMap<u64, Arc<Vec<OutboxEvent>>>,
    resting: HashMap<u64, Vec<OutboxEvent>>,
    /// How often a row in hand has failed, if it has.
    failures: HashMap<i64, u32>,
    delivered: VecDeque<i64>,
    marking: Vec<i64>,
    reading: Reading,
    batches_taken: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    No,
    Yes,
    /// The rows that come were forgotten before they came.
    InVain,
}

/// What to read next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    /// The rows in hand.
    pub(super) known: Vec<i64>,
    /// How many further ones.
    pub(super) rows_max: usize,
}

/// Rows that failed and have to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// What `Window::wake` is told.
    pub(super) id: u64,
    /// How often the worst of them has failed.
    pub(super) failures: u32,
}

impl Window {
    pub(super) fn new(limits: Limits) -> Self {
        Window {
            limits,
            known: HashSet::new(),
            busy: HashSet::new(),
            waiting: VecDeque::new(),
            at_producer: HashMap::new(),
            resting: HashMap::new(),
            failures: HashMap::new(),
            delivered: VecDeque::new(),
            marking: Vec::new(),
            reading: Reading::No,
            batches_taken: 0,
        }
    }

    fn room(&self) -> usize {
        self.limits.window_rows.saturating_sub(self.known.len())
    }

    /// Whether there is room for a worthwhile read and none is under way.
    pub(super) fn may_read(&self) -> bool {
        let room = self.room();
        let worthwhile = self.limits.read_rows.min(self.limits.window_rows).div_ceil(2);
        // Rows that keep failing take room for long: they must not keep the others from being read.
        let stuck = self.waiting.is_empty() && self.at_producer.is_empty();
        self.reading == Reading::No && room > 0 && (room >= worthwhile || stuck)
    }

    /// The next read, if there may be one.
    pub(super) fn begin_read(&mut self) -> Option<Read> {
        if !self.may_read() {
            return None;
        }
        let room = self.room();
        self.reading = Reading::Yes;
        let known = self.known.iter().copied().collect();
        Some(Read { known, rows_max: room.min(self.limits.read_rows) })
    }

    /// The read has ended with these rows, in the order of `seq`; none if it failed.
    pub(super) fn end_read(&mut self, rows: Vec<OutboxEvent>) {
        if std::mem::replace(&mut self.reading, Reading::No) == Reading::InVain {
            return;
        }
        for row in rows {
            if self.known.insert(row.seq) {
                self.waiting.push_back(row);
            }
        }
    }

    /// The next batch for the producer: the first rows in hand of patients that are not busy.
    pub(super) fn take(&mut self) -> Option<(u64, Arc<Vec<OutboxEvent>>)> {
        if self.at_producer.len() >= self.limits.batches {
            return None;
        }
        let mut batch = Vec::new();
        let mut passed_over = Vec::new();
        while batch.len() < self.limits.batch_rows
            && let Some(row) = self.waiting.pop_front()
        {
            if self.busy.insert(row.recorded.patient_id()) {
                batch.push(row);
            } else {
                passed_over.push(row);
            }
        }
        for row in passed_over.into_iter().rev() {
            self.waiting.push_front(row);
        }
        if batch.is_empty() {
            return None;
        }
        let batch = Arc::new(batch);
        self.batches_taken += 1;
        self.at_producer.insert(self.batches_taken, Arc::clone(&batch));
        Some((self.batches_taken, batch))
    }

    /// A batch has come back: which of its rows were delivered, in order; rows beyond `delivered` were
    /// not. The others rest until they are woken.
    pub(super) fn settle(&mut self, batch: u64, delivered: &[bool]) -> Option<Rest> {
        let rows = self.at_producer.remove(&batch)?;
        let mut failed = Vec::new();
        let mut worst = 0;
        for (index, row) in rows.iter().enumerate() {
            if delivered.get(index).copied().unwrap_or(false) {
                self.busy.remove(&row.recorded.patient_id());
                self.failures.remove(&row.seq);
                self.delivered.push_back(row.seq);
            } else {
                let failures = self.failures.entry(row.seq).or_insert(0);
                *failures = failures.saturating_add(1);
                worst = worst.max(*failures);
                failed.push(row.clone());
            }
        }
        if failed.is_empty() {
            return None;
        }
        self.resting.insert(batch, failed);
        Some(Rest { id: batch, failures: worst })
    }

    /// The rest is over.
    pub(super) fn wake(&mut self, rest: u64) {
        for row in self.resting.remove(&rest).into_iter().flatten().rev() {
            self.busy.remove(&row.recorded.patient_id());
            self.waiting.push_front(row);
        }
    }

    /// The rows to be marked next, if none are being marked.
    pub(super) fn begin_mark(&mut self) -> Option<Vec<i64>> {
        if !self.marking.is_empty() || self.delivered.is_empty() {
            return None;
        }
        let rows = self.delivered.len().min(self.limits.mark_rows);
        self.marking = self.delivered.drain(..rows).collect();
        Some(self.marking.clone())
    }

    /// The marking has ended; if it failed, the rows have to be marked again.
    pub(super) fn end_mark(&mut self, marked: bool) {
        for seq in std::mem::take(&mut self.marking) {
            if marked {
                // A read under way has left the row out, since it was known when the read began.
                self.known.remove(&seq);
            } else {
                self.delivered.push_front(seq);
            }
        }
    }

    /// Forgets what was read and is not at the producer. What is there may still be settled.
    pub(super) fn forget(&mut self) {
        if self.reading == Reading::Yes {
            self.reading = Reading::InVain;
        }
        for row in std::mem::take(&mut self.waiting) {
            self.known.remove(&row.seq);
        }
        for row in std::mem::take(&mut self.resting).into_values().flatten() {
            self.known.remove(&row.seq);
            self.busy.remove(&row.recorded.patient_id());
            self.failures.remove(&row.seq);
        }
    }

    /// Whether nothing is at the producer and nothing has to be marked.
    pub(super) fn is_settled(&self) -> bool {
        self.at_producer.is_empty() && self.delivered.is_empty() && self.marking.is_empty()
    }

    /// Rows in hand.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests;
