//! The rows of the outbox that the bridge has in hand, and what may be done with them next: a state
//! machine without I/O.
//!
//! ```text
//! read ─► waiting ─► at the producer ─► delivered ─► marked
//!            ▲             │ failed
//!            └── resting ◄─┴─► parked
//! ```
//!
//! Invariants:
//! - For each patient at most one row is at the producer or resting (`busy`), and it is the first of that
//!   patient's rows in hand. This alone keeps the order: see `kafka_bridge`.
//! - A row in hand is never admitted a second time (`known`), until it is marked.
//! - At most `window_rows` rows are in hand. A row that fails again and again is parked, so that such rows never
//!   keep others out: its patient's rows leave the window, and the store gives none of them out for a while.
//! - While rows are on their way to being parked nothing is read, and a read from before does not count: it could
//!   have later rows of their patients.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::domain::event::OutboxEvent;
use crate::domain::ids::{EventId, PatientId};
use crate::domain::topic_log::LogAnchor;
use crate::kafka::Place;
use crate::store::UnreadableRow;

/// Why a row is parked that cannot be read.
pub(super) const UNREADABLE: &str = "unreadable";

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
    /// How often a row fails before it is parked.
    pub(super) park_after: u32,
}

/// What became of a row at the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is in the log, and where if that is known.
    Delivered(Option<Place>),
    /// The broker does not take this row.
    Refused,
    /// It failed.
    Failed,
}

/// A row that is delivered and not marked yet.
#[derive(Clone, Copy)]
struct Delivered {
    seq: i64,
    event_id: EventId,
    place: Option<Place>,
}

/// How a row fails.
#[derive(Clone, Copy)]
struct Failing {
    times: u32,
    /// What `Window::delivered_rows` was at its first failure.
    delivered_before: u64,
}

/// A row to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parking {
    /// The row.
    pub(super) seq: i64,
    /// Whose it is.
    pub(super) patient_id: PatientId,
    /// How often it was parked before.
    pub(super) parks: u32,
    /// Why.
    pub(super) reason: &'static str,
}

/// Rows to be marked, and the last of them in each partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The rows.
    pub(super) seqs: Vec<i64>,
    /// Where the log has the last of them.
    pub(super) anchors: Vec<LogAnchor>,
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
    /// The rows in hand that have failed.
    failures: HashMap<i64, Failing>,
    delivered: VecDeque<Delivered>,
    /// How many rows were ever delivered.
    delivered_rows: u64,
    marking: Vec<Delivered>,
    /// Rows to be parked, and how many of them, from the first on, are being parked.
    parking: Vec<Parking>,
    parking_now: usize,
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
            delivered_rows: 0,
            marking: Vec::new(),
            parking: Vec::new(),
            parking_now: 0,
            reading: Reading::No,
            batches_taken: 0,
        }
    }

    /// A window with nothing in hand, that does not know what this one has at the producer.
    pub(super) fn renewed(&self) -> Window {
        Window { batches_taken: self.batches_taken, ..Window::new(self.limits) }
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
        let free = self.reading == Reading::No && self.parking.is_empty();
        free && room > 0 && (room >= worthwhile || stuck)
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

    /// The read has ended with these rows, in the order of `seq`, and with these that cannot be read; none if it
    /// failed.
    pub(super) fn end_read(&mut self, rows: Vec<OutboxEvent>, unreadable: &[UnreadableRow]) {
        if std::mem::replace(&mut self.reading, Reading::No) == Reading::InVain {
            return;
        }
        self.parking.extend(unreadable.iter().map(|row| Parking {
            seq: row.seq,
            patient_id: row.patient_id,
            parks: row.parks,
            reason: UNREADABLE,
        }));
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

    /// Whether a batch is at the producer, as far as this window knows.
    pub(super) fn is_at_producer(&self, batch: u64) -> bool {
        self.at_producer.contains_key(&batch)
    }

    /// A batch has come back: what became of its rows, in order; rows beyond `sent` failed. Those that failed
    /// rest until they are woken, or, with `may_park`, are parked if it seems that they will fail again.
    pub(super) fn settle(&mut self, batch: u64, sent: &[Sent], may_park: bool) -> Option<Rest> {
        let rows = self.at_producer.remove(&batch)?;
        let sent = |index: usize| sent.get(index).copied().unwrap_or(Sent::Failed);
        let delivered = (0..rows.len()).filter(|index| matches!(sent(*index), Sent::Delivered(_))).count();
        self.delivered_rows += delivered as u64;
        let mut failed = Vec::new();
        let mut worst = 0;
        for (index, row) in rows.iter().enumerate() {
            match sent(index) {
                Sent::Delivered(place) => {
                    self.busy.remove(&row.recorded.patient_id());
                    self.failures.remove(&row.seq);
                    let event_id = row.recorded.event_id;
                    self.delivered.push_back(Delivered { seq: row.seq, event_id, place });
                }
                how => {
                    let times = self.note_failure(row.seq);
                    if may_park && self.is_hopeless(row, how == Sent::Refused) {
                        self.parking.push(Parking {
                            seq: row.seq,
                            patient_id: row.recorded.patient_id(),
                            parks: row.parks,
                            reason: if how == Sent::Refused { "refused" } else { "failed" },
                        });
                    } else {
                        worst = worst.max(times);
                        failed.push(row.clone());
                    }
                }
            }
        }
        if failed.is_empty() {
            return None;
        }
        self.resting.insert(batch, failed);
        Some(Rest { id: batch, failures: worst })
    }

    fn note_failure(&mut self, seq: i64) -> u32 {
        let first = Failing { times: 0, delivered_before: self.delivered_rows };
        let failing = self.failures.entry(seq).or_insert(first);
        failing.times = failing.times.saturating_add(1);
        failing.times
    }

    /// Whether a row that has just failed is better left alone: it failed often enough, and this says something of
    /// the row, since others got through meanwhile or since it keeps others from being tried.
    fn is_hopeless(&self, row: &OutboxEvent, refused: bool) -> bool {
        let Some(failing) = self.failures.get(&row.seq) else { return false };
        let often = failing.times >= self.limits.park_after || row.parks > 0;
        let alone = self.delivered_rows > failing.delivered_before;
        often && (refused || alone || row.parks > 0 || self.room() == 0)
    }

    /// The rest is over.
    pub(super) fn wake(&mut self, rest: u64) {
        for row in self.resting.remove(&rest).into_iter().flatten().rev() {
            self.busy.remove(&row.recorded.patient_id());
            self.waiting.push_front(row);
        }
    }

    /// The rows to be marked next, if none are being marked.
    pub(super) fn begin_mark(&mut self) -> Option<Mark> {
        if !self.marking.is_empty() || self.delivered.is_empty() {
            return None;
        }
        let rows = self.delivered.len().min(self.limits.mark_rows);
        self.marking = self.delivered.drain(..rows).collect();
        let mut anchors: BTreeMap<i32, LogAnchor> = BTreeMap::new();
        for row in &self.marking {
            let Some(Place { partition, offset }) = row.place else { continue };
            let anchor = LogAnchor { partition, offset, event_id: Some(row.event_id) };
            let last = anchors.entry(partition).or_insert(anchor);
            if last.offset < offset {
                *last = anchor;
            }
        }
        let seqs = self.marking.iter().map(|row| row.seq).collect();
        Some(Mark { seqs, anchors: anchors.into_values().collect() })
    }

    /// The marking has ended; if it failed, the rows have to be marked again.
    pub(super) fn end_mark(&mut self, marked: bool) {
        for row in std::mem::take(&mut self.marking) {
            if marked {
                // A read under way has left the row out, since it was known when the read began.
                self.known.remove(&row.seq);
            } else {
                self.delivered.push_front(row);
            }
        }
    }

    /// The rows to be parked next, if none are being parked.
    pub(super) fn begin_park(&mut self) -> Option<Vec<Parking>> {
        if self.parking_now > 0 || self.parking.is_empty() {
            return None;
        }
        self.parking_now = self.parking.len();
        Some(self.parking.clone())
    }

    /// The parking has ended; if it failed, the rows have to be parked again.
    pub(super) fn end_park(&mut self, parked: bool) {
        let rows = std::mem::take(&mut self.parking_now);
        if !parked {
            return;
        }
        let mut patients = HashSet::new();
        for row in self.parking.drain(..rows) {
            self.failures.remove(&row.seq);
            // A row that could not be read was never in hand, and earlier ones of its patient may be.
            if self.known.remove(&row.seq) {
                self.busy.remove(&row.patient_id);
                patients.insert(row.patient_id);
            }
        }
        let known = &mut self.known;
        self.waiting.retain(|row| {
            let stays = !patients.contains(&row.recorded.patient_id());
            if !stays {
                known.remove(&row.seq);
            }
            stays
        });
        if self.reading == Reading::Yes {
            self.reading = Reading::InVain;
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
        for row in self.parking.drain(self.parking_now..) {
            self.failures.remove(&row.seq);
            if self.known.remove(&row.seq) {
                self.busy.remove(&row.patient_id);
            }
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
