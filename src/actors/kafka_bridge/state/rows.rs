//! The bridge's work on rows of the outbox: reading, publishing, marking and parking.

use std::sync::Arc;

use ractor::ActorRef;

use super::super::task::{self, Found, Reading};
use super::super::window::{Parking, Sent, UNREADABLE};
use super::super::{BridgeMessage, NAME, Outcome, Tops};
use super::{BridgeState, Role};
use crate::actors::background::{Look, within};
use crate::domain::event::OutboxEvent;
use crate::domain::time::Timestamp;
use crate::kafka::Link;
use crate::store::{self, ParkRow, Queue};

impl BridgeState {
    pub(super) fn end_read(&mut self, log_no: i64, found: store::Result<Found>) {
        if log_no != self.log_no() {
            // The read belongs to a window that was replaced.
            return;
        }
        let Some(Found { rows, replay_done, more }) = self.heed(found) else {
            return self.window.end_read(Vec::new(), &[]);
        };
        self.caught_up = !rows.full;
        if let Some(log) = self.log.as_mut().filter(|log| replay_done && !log.replay_done) {
            log.replay_done = true;
            tracing::info!(no = log.no, "all that the new log has to hold is in the outbox");
        }
        for row in rows.unreadable.iter().filter(|row| row.parks == 0) {
            metrics::counter!("hygeia_outbox_unreadable_total", "reader" => NAME).increment(1);
            tracing::error!(
                actor = NAME, seq = row.seq, patient = %row.patient_id, version = row.version,
                "an event in the outbox cannot be read; it and what follows it for this patient is parked"
            );
        }
        // Read again at once only if the next read can find something else.
        if more || (rows.full && !(rows.events.is_empty() && rows.unreadable.is_empty())) {
            self.unread = true;
            self.pace.hurry();
        }
        self.window.end_read(rows.events, &rows.unreadable);
        if replay_done {
            self.tell_health();
        }
    }

    pub(super) fn read(&mut self, myself: &ActorRef<BridgeMessage>) {
        if !self.unread || !self.window.may_read() {
            return;
        }
        match self.pace.look(self.args.clock.mono()) {
            Look::Now => {}
            Look::In(left) => {
                myself.send_after(left, || BridgeMessage::Gathered);
                return;
            }
            Look::Later => return,
        }
        let Some(read) = self.window.begin_read() else { return };
        self.unread = false;
        let (args, log_no) = (self.args.clone(), self.log_no());
        let reading = Reading {
            log_no,
            replaying: self.log.as_ref().is_some_and(|log| !log.replay_done),
            caught_up: self.caught_up,
            known: read.known,
            rows_max: u32::try_from(read.rows_max).unwrap_or(u32::MAX),
        };
        let lost = Err(store::Error::Unavailable("the read was lost".into()));
        self.run(myself, Outcome::Read(log_no, lost), async move {
            Outcome::Read(log_no, task::read(args, reading).await)
        });
    }

    pub(super) fn publish(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        batch: u64,
        rows: Arc<Vec<OutboxEvent>>,
    ) {
        let (args, log_no, floor) = (self.args.clone(), self.log_no(), Arc::clone(&self.tops));
        let lost = Outcome::Published { batch, floor: Arc::clone(&floor), sent: Vec::new() };
        self.run(myself, lost, async move {
            Outcome::Published { batch, floor, sent: task::publish(args, log_no, rows).await }
        });
    }

    /// Handles the results of a batch. `floor` holds the highest offsets known when the batch was handed
    /// over. In the same log, the events of the batch have higher offsets.
    pub(super) fn published(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        batch: u64,
        floor: &Arc<Tops>,
        sent: &[Sent],
    ) {
        let may_park = self.args.broker.link() == Link::Up;
        let known = self.window.is_at_producer(batch);
        let rest = self.window.settle(batch, sent, may_park);
        if known {
            self.note_places(myself, floor, sent);
        }
        let Some(rest) = rest else { return };
        if !matches!(self.role, Role::Active | Role::Preparing(_)) {
            return self.window.forget();
        }
        let pause = self.args.settings.backoff().pause(rest.failures);
        // If the task is lost, the rest ends early.
        self.run(myself, Outcome::Rested(rest.id), async move {
            tokio::time::sleep(pause).await;
            Outcome::Rested(rest.id)
        });
    }

    pub(super) fn mark(&mut self, myself: &ActorRef<BridgeMessage>) {
        let log_no = self.log_no();
        if log_no == 0 || self.mark_paused {
            return;
        }
        let Some(mark) = self.window.begin_mark() else { return };
        let (outbox, limit) = (Arc::clone(&self.args.outbox), self.args.settings.store_timeout());
        let lost = Err(store::Error::Unknown("the marking was lost".into()));
        self.run(myself, Outcome::Marked(log_no, lost), async move {
            let marked = outbox.mark_published(&mark.seqs, log_no, &mark.anchors);
            Outcome::Marked(log_no, within(limit, marked).await)
        });
    }

    pub(super) fn marked(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        log_no: i64,
        result: store::Result<bool>,
    ) {
        if log_no != self.log_no() {
            return;
        }
        let marked = self.heed(result);
        self.mark_paused = marked != Some(true);
        self.window.end_mark(marked == Some(true));
        if marked == Some(false) {
            self.doubt(myself, "another node has begun a new one".into());
        }
    }

    pub(super) fn park(&mut self, myself: &ActorRef<BridgeMessage>) {
        if self.park_paused {
            return;
        }
        let Some(rows) = self.window.begin_park() else { return };
        let (outbox, limit) = (Arc::clone(&self.args.outbox), self.args.settings.store_timeout());
        let log_no = self.log_no();
        let rows: Vec<_> = rows.into_iter().map(|row| self.park_row(row)).collect();
        let lost = Err(store::Error::Unknown("the parking was lost".into()));
        self.run(myself, Outcome::Parked(log_no, lost), async move {
            Outcome::Parked(log_no, within(limit, outbox.park(Queue::Kafka, &rows)).await)
        });
    }

    pub(super) fn park_row(&self, row: Parking) -> ParkRow {
        let Parking { seq, patient_id, parks, reason } = row;
        let parks = parks.saturating_add(1);
        let pause = self.args.settings.parking().pause(parks);
        let retry_us = i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
        if parks == 1 && reason != UNREADABLE {
            tracing::error!(
                actor = NAME, seq, patient = %patient_id, reason,
                "an event cannot be published; it and what follows it for this patient is parked"
            );
        }
        let retry_at = Timestamp(self.args.clock.now().0.saturating_add(retry_us));
        ParkRow { seq, patient_id, parks, retry_at, reason }
    }

    pub(super) fn parked(&mut self, log_no: i64, result: store::Result<()>) {
        if log_no != self.log_no() {
            return;
        }
        let parked = self.heed(result).is_some();
        self.park_paused = !parked;
        self.window.end_park(parked);
        if parked {
            self.unread = true;
            self.pace.hurry();
            self.measured_at = None;
        }
    }
}
