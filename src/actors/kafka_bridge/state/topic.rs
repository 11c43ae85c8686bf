//! The topic's log: how the bridge identifies it, checks it, and continues with another log.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;

use super::super::log::{self, Identified};
use super::super::window::Sent;
use super::super::{BridgeMessage, Outcome, Tops, task};
use super::{BridgeState, Role};
use crate::kafka::Link;

impl BridgeState {
    /// Returns the number of the log in use, or zero before the first one.
    pub(super) fn log_no(&self) -> i64 {
        self.log.as_ref().map_or(0, |log| log.no)
    }

    pub(super) fn prepare(&mut self, myself: &ActorRef<BridgeMessage>) {
        if self.preparing {
            return;
        }
        self.preparing = true;
        let args = self.args.clone();
        self.run(myself, Outcome::Prepared(Err("the preparation was lost".into())), async move {
            Outcome::Prepared(task::prepare(args).await.map(Box::new))
        });
    }

    pub(super) fn prepared(&mut self, result: Result<Box<Identified>, String>) {
        self.preparing = false;
        // If the role has changed, the bridge prepares again when the lease comes back.
        if !matches!(self.role, Role::Preparing(_)) {
            return;
        }
        match result {
            Ok(identified) => {
                self.take_log(*identified);
                self.checked_at = Some(self.args.clock.mono());
                self.role = Role::Active;
                self.unread = true;
            }
            Err(reason) => self.role = Role::Preparing(Some(reason)),
        }
        self.tell_health();
    }

    /// Continues with this log. If it is another log than before, the window is emptied. Rows that were
    /// delivered but not marked are at most in the previous log, and they are still in the outbox.
    pub(super) fn take_log(&mut self, Identified { log, anchors }: Identified) {
        if self.log_no() != log.no {
            self.window = self.window.renewed();
            if self.log.is_some() {
                self.args.broker.renew_publisher();
            }
            let mut tops = Tops::new();
            for anchor in anchors {
                let top = tops.entry(anchor.partition).or_insert(anchor.offset);
                *top = anchor.offset.max(*top);
            }
            self.tops = Arc::new(tops);
            self.caught_up = false;
        }
        self.log = Some(log);
    }

    /// Checks whether the topic still has the log, if the check is due.
    pub(super) fn check(&mut self, myself: &ActorRef<BridgeMessage>) {
        if self.checking || !matches!(self.role, Role::Active) {
            return;
        }
        let now = self.args.clock.mono();
        if matches!(self.args.broker.link(), Link::Away(_)) {
            // The broker may come back with another log, so check as soon as it answers.
            self.checked_at = None;
            return;
        }
        let every = Duration::from_millis(self.args.settings.log_check_ms);
        if self.checked_at.is_some_and(|at| now.since(at) < every) {
            return;
        }
        self.checked_at = Some(now);
        self.checking = true;
        let (args, log_no) = (self.args.clone(), self.log_no());
        self.run(myself, Outcome::Checked(Ok(None)), async move {
            Outcome::Checked(log::departure(&args, log_no).await.map(|(_, reason)| reason))
        });
    }

    pub(super) fn checked(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        result: Result<Option<String>, String>,
    ) {
        self.checking = false;
        match result {
            Ok(None) => {}
            Ok(Some(reason)) => self.doubt(myself, reason),
            Err(reason) => {
                tracing::debug!(reason, "the log could not be checked and is checked again at the next tick");
                self.checked_at = None;
            }
        }
    }

    /// Stops publishing until the topic's log is known, because the topic seems to have another log.
    pub(super) fn doubt(&mut self, myself: &ActorRef<BridgeMessage>, reason: String) {
        if matches!(self.role, Role::Active) {
            self.role = Role::Preparing(Some(format!("the topic seems to have another log: {reason}")));
            self.prepare(myself);
            self.tell_health();
        }
    }

    pub(super) fn note_places(&mut self, myself: &ActorRef<BridgeMessage>, floor: &Tops, sent: &[Sent]) {
        let mut back = None;
        let tops = Arc::make_mut(&mut self.tops);
        for sent in sent {
            let Sent::Delivered(Some(place)) = sent else { continue };
            if floor.get(&place.partition).is_some_and(|top| place.offset <= *top) {
                back = Some(*place);
            }
            let top = tops.entry(place.partition).or_insert(place.offset);
            *top = place.offset.max(*top);
        }
        if let Some(place) = back {
            let (partition, offset) = (place.partition, place.offset);
            self.doubt(myself, format!("partition {partition} gave offset {offset} a second time"));
        }
    }
}
