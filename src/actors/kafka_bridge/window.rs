//! The rows of the outbox that the bridge has in hand, and what may be done with them next. A state machine
//! without I/O.
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
//! - A row in hand is not admitted a second time (`known`) until it is marked.
//! - At most `window_rows` rows are in hand. A row that fails repeatedly is parked, so that such rows never
//!   keep others out: its patient's rows leave the window, and the store returns none of them for a while.
//! - While rows are being parked, nothing is read. The result of a read that began before is dropped, because
//!   it may hold later rows of their patients.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::domain::event::OutboxEvent;
use crate::domain::ids::{EventId, PatientId};
use crate::domain::topic_log::LogAnchor;
use crate::kafka::Place;
use crate::store::UnreadableRow;

/// The reason for parking a row that cannot be read.
pub(super) const UNREADABLE: &str = "unreadable";

/// The limits of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Maximum number of rows in hand.
    pub(super) window_rows: usize,
    /// Maximum number of rows per read.
    pub(super) read_rows: usize,
    /// Maximum number of rows per batch for the producer.
    pub(super) batch_rows: usize,
    /// Maximum number of batches at the producer.
    pub(super) batches: usize,
    /// Maximum number of rows marked in one call.
    pub(super) mark_rows: usize,
    /// Number of failures after which a row is parked.
    pub(super) park_after: u32,
}

/// The result of a row at the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The row is in the log, at this place if it is known.
    Delivered(Option<Place>),
    /// The broker refuses this row.
    Refused,
    /// The row was not acknowledged.
    Failed,
}

/// A row that is delivered but not yet marked.
#[derive(Clone, Copy)]
struct Delivered {
    seq: i64,
    event_id: EventId,
    place: Option<Place>,
}

/// The failures of a row.
#[derive(Clone, Copy)]
struct Failing {
    times: u32,
    /// The value of `Window::delivered_rows` at the first failure.
    delivered_before: u64,
}

/// A row to park.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parking {
    /// The sequence number of the row.
    pub(super) seq: i64,
    /// The patient of the row.
    pub(super) patient_id: PatientId,
    /// How often the row was parked before.
    pub(super) parks: u32,
    /// The reason.
    pub(super) reason: &'static str,
}

/// Rows to mark, and the last of them in each partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The sequence numbers of the rows.
    pub(super) seqs: Vec<i64>,
    /// The place of the last row in each partition.
    pub(super) anchors: Vec<LogAnchor>,
}

/// The window; see the module.
pub(super) struct Window {
    limits: Limits,
    known: HashSet<i64>,
    busy: HashSet<PatientId>,
    /// Rows that are not at the producer, ordered by `seq` for each patient.
    waiting: VecDeque<OutboxEvent>,
    at_producer: HashMap<u64, Arc<Vec<OutboxEvent>>>,
    resting: HashMap<u64, Vec<OutboxEvent>>,
    /// The failures of rows in hand, by sequence number.
    failures: HashMap<i64, Failing>,
    delivered: VecDeque<Delivered>,
    /// The number of rows delivered since the start.
    delivered_rows: u64,
    marking: Vec<Delivered>,
    /// Rows to park. The first `parking_now` of them are being parked.
    parking: Vec<Parking>,
    parking_now: usize,
    reading: Reading,
    batches_taken: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    No,
    Yes,
    /// A read is in progress, but its rows will be dropped.
    InVain,
}

/// The parameters of the next read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    /// The sequence numbers of the rows in hand.
    pub(super) known: Vec<i64>,
    /// The maximum number of further rows.
    pub(super) rows_max: usize,
}

/// Failed rows that wait before a retry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// The argument for `Window::wake`.
    pub(super) id: u64,
    /// The highest number of failures of any of the rows.
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

    /// Returns an empty window that ignores the batches which this window has at the producer.
    pub(super) fn renewed(&self) -> Window {
        Window { batches_taken: self.batches_taken, ..Window::new(self.limits) }
    }

    fn room(&self) -> usize {
        self.limits.window_rows.saturating_sub(self.known.len())
    }

    /// Returns whether there is enough room for a read and no read is in progress.
    pub(super) fn may_read(&self) -> bool {
        let room = self.room();
        let worthwhile = self.limits.read_rows.min(self.limits.window_rows).div_ceil(2);
        // Rows that keep failing occupy room for long. They must not keep other rows from being read.
        let stuck = self.waiting.is_empty() && self.at_producer.is_empty();
        let free = self.reading == Reading::No && self.parking.is_empty();
        free && room > 0 && (room >= worthwhile || stuck)
    }

    /// Begins the next read, if one may begin.
    pub(super) fn begin_read(&mut self) -> Option<Read> {
        if !self.may_read() {
            return None;
        }
        let room = self.room();
        self.reading = Reading::Yes;
        let known = self.known.iter().copied().collect();
        Some(Read { known, rows_max: room.min(self.limits.read_rows) })
    }

    /// Ends the read with these rows, ordered by `seq`, and these unreadable ones. Both are empty if the read
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

    /// Takes the next batch for the producer: the first rows in hand of patients that are not busy.
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

    /// Returns whether this window has the batch at the producer.
    pub(super) fn is_at_producer(&self, batch: u64) -> bool {
        self.at_producer.contains_key(&batch)
    }

    /// Records the results of a batch, in the order of its rows; rows beyond `sent` failed. Failed rows rest
    /// until they are woken. With `may_park`, rows that are likely to fail again are parked instead.
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

    /// Returns whether a row that has just failed should be parked. It must have failed often enough, and the
    /// failures must be specific to the row: the broker refused it, other rows succeeded meanwhile, or it was
    /// parked before. A row is also parked if no room is left to try others.
    fn is_hopeless(&self, row: &OutboxEvent, refused: bool) -> bool {
        let Some(failing) = self.failures.get(&row.seq) else { return false };
        let often = failing.times >= self.limits.park_after || row.parks > 0;
        let alone = self.delivered_rows > failing.delivered_before;
        often && (refused || alone || row.parks > 0 || self.room() == 0)
    }

    /// Ends a rest: its rows wait for the producer again.
    pub(super) fn wake(&mut self, rest: u64) {
        for row in self.resting.remove(&rest).into_iter().flatten().rev() {
            self.busy.remove(&row.recorded.patient_id());
            self.waiting.push_front(row);
        }
    }

    /// Returns the rows to mark next, unless rows are being marked.
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

    /// Ends the marking. If it failed, the rows must be marked again.
    pub(super) fn end_mark(&mut self, marked: bool) {
        for row in std::mem::take(&mut self.marking) {
            if marked {
                // A read in progress has left the row out, because it was known when the read began.
                self.known.remove(&row.seq);
            } else {
                self.delivered.push_front(row);
            }
        }
    }

    /// Returns the rows to park next, unless rows are being parked.
    pub(super) fn begin_park(&mut self) -> Option<Vec<Parking>> {
        if self.parking_now > 0 || self.parking.is_empty() {
            return None;
        }
        self.parking_now = self.parking.len();
        Some(self.parking.clone())
    }

    /// Ends the parking. If it failed, the rows must be parked again.
    pub(super) fn end_park(&mut self, parked: bool) {
        let rows = std::mem::take(&mut self.parking_now);
        if !parked {
            return;
        }
        let mut patients = HashSet::new();
        for row in self.parking.drain(..rows) {
            self.failures.remove(&row.seq);
            // An unreadable row was never in hand. Earlier rows of its patient may be, and they stay.
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

    /// Drops the rows that wait, rest, or still have to be parked. Rows at the producer may still be settled.
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

    /// Returns whether nothing is at the producer and nothing has to be marked.
    pub(super) fn is_settled(&self) -> bool {
        self.at_producer.is_empty() && self.delivered.is_empty() && self.marking.is_empty()
    }

    /// Returns the number of rows in hand.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests;
