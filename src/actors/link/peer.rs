//! One end of the exchange with one incarnation of a peer: its unanswered requests, ours, and the items to
//! send.
//!
//! Invariants:
//! - A request is answered once: by its reply, or as dropped when the session ends.
//! - A request counts against the limits until then, whether or not its caller still waits.
//! - A lone item is sent at once, in the caller's task. If more is in progress, items gather until all ready
//!   tasks have run, and then share one frame. No timer is involved.
//! - No callback, drop or send happens under the lock, because an answer may lead to another link, or back to
//!   this one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::runtime::Handle;

use super::wire::{self, Answer};
use crate::actors::entity::Failure;
use crate::actors::members::Wire;
use crate::actors::reply::ReplyTo;
use crate::domain::time::{Clock, MonoTime};
use crate::proto::cluster as pb;
use crate::proto::cluster::reply::Outcome;

/// The fields of `Frame`.
#[derive(Clone, Copy)]
enum Field {
    Requests = 1,
    Replies = 2,
    Hints = 3,
}

/// The limits of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) unanswered_max: usize,
    pub(super) unanswered_bytes_max: usize,
    pub(super) owed_max: usize,
    pub(super) frame_items_max: usize,
    pub(super) frame_bytes_max: usize,
    pub(super) item_bytes_max: usize,
    pub(super) nudge_pause: Duration,
}

/// Handles a reply; `None` means that there will be none.
type Deliver = Box<dyn FnOnce(Option<pb::Reply>) + Send + Sync>;

/// An unanswered request.
struct Unanswered {
    deliver: Deliver,
    bytes: usize,
}

/// A frame that is being filled.
#[derive(Default)]
struct Gathering {
    bytes: Vec<u8>,
    items: usize,
}

#[derive(Default)]
struct State {
    closed: bool,
    unanswered: HashMap<u64, Unanswered>,
    unanswered_bytes: usize,
    /// Requests of the peer that are not answered yet.
    owed: usize,
    gathering: Gathering,
    full: Vec<Vec<u8>>,
    /// Whether a task is about to send the gathered items.
    flushing: bool,
    due_nudge: pb::Nudge,
    nudged_at: Option<MonoTime>,
    nudge_timer: bool,
    garbled: u64,
}

/// What to do after the lock is released.
#[must_use]
enum Next {
    Nothing,
    Send(Vec<u8>),
    Flush,
}

/// The load of a link.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LinkFacts {
    /// The peer: `node-name#boot-id`.
    pub owner: String,
    /// Requests that the peer has not answered.
    pub unanswered: usize,
    /// The bytes counted for them.
    pub unanswered_bytes: usize,
    /// Requests of the peer that this node has not answered.
    pub owed: usize,
}

/// One end of the exchange with one incarnation of a peer.
pub(super) struct Link {
    pub(super) owner: Arc<str>,
    pub(super) wire: Wire,
    limits: Limits,
    /// Shared by all links of the node, so that a late reply never matches a later request.
    ids: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    /// Frames and items sent. Their ratio shows how well items gather.
    frames: metrics::Counter,
    items: metrics::Counter,
    /// Requests that no peer has answered yet, over all links of the node.
    unanswered: metrics::Gauge,
    state: Mutex<State>,
}

impl Link {
    pub(super) fn new(
        owner: Arc<str>,
        wire: Wire,
        limits: Limits,
        ids: Arc<AtomicU64>,
        clock: Arc<dyn Clock>,
        runtime: Handle,
    ) -> Arc<Self> {
        let frames = metrics::counter!("hygeia_link_frames_total");
        let items = metrics::counter!("hygeia_link_items_total");
        let unanswered = metrics::gauge!("hygeia_link_unanswered");
        let state = Mutex::default();
        Arc::new(Link { owner, wire, limits, ids, clock, runtime, frames, items, unanswered, state })
    }

    /// Locks the state. A poisoned lock is safe to use, because no panic leaves the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `request` under a new id. Its answer goes to `reply`. `answer_bytes` is the estimated size of
    /// the answer; it counts against the limit, like the request, until the reply arrives. If a node other
    /// than this peer has answered, `found` is called with its owner name.
    pub(super) fn ask<T: Answer>(
        self: &Arc<Self>,
        mut request: pb::Request,
        answer_bytes: usize,
        reply: ReplyTo<T>,
        found: impl FnOnce(Arc<str>) + Send + Sync + 'static,
    ) {
        request.id = self.ids.fetch_add(1, Ordering::Relaxed);
        let len = request.encoded_len();
        let bytes = len + answer_bytes;
        let mut state = self.lock();
        let refusal = if state.closed {
            Some(Failure::NotServing(None))
        } else if len > self.limits.item_bytes_max
            || state.unanswered.len() >= self.limits.unanswered_max
            || (state.unanswered_bytes + bytes > self.limits.unanswered_bytes_max
                && !state.unanswered.is_empty())
        {
            Some(Failure::Busy)
        } else {
            None
        };
        if let Some(failure) = refusal {
            drop(state);
            if failure == Failure::Busy {
                metrics::counter!("hygeia_link_refused_total").increment(1);
            }
            return reply.send(Err(failure));
        }
        let deliver: Deliver = Box::new(move |answer| {
            let Some(pb::Reply { answered_by, outcome, .. }) = answer else { return drop(reply) };
            if !answered_by.is_empty() {
                found(answered_by.into());
            }
            match wire::read(outcome) {
                Some(result) => reply.send(result),
                // Dropped: the caller gets an unknown outcome.
                None => drop(reply),
            }
        });
        let alone = state.unanswered.is_empty();
        state.unanswered.insert(request.id, Unanswered { deliver, bytes });
        state.unanswered_bytes += bytes;
        self.unanswered.increment(1.0);
        let next = state.put(&self.limits, Field::Requests, &request, len, alone);
        drop(state);
        self.go_on(next);
    }

    /// Handles received replies.
    pub(super) fn replies(&self, replies: Vec<pb::Reply>) {
        let mut answered = Vec::with_capacity(replies.len());
        let mut state = self.lock();
        for reply in replies {
            // An unknown id belongs to a session that has ended.
            if let Some(unanswered) = state.unanswered.remove(&reply.id) {
                state.unanswered_bytes -= unanswered.bytes;
                self.unanswered.decrement(1.0);
                answered.push((unanswered.deliver, reply));
            }
        }
        drop(state);
        for (deliver, reply) in answered {
            deliver(Some(reply));
        }
    }

    /// Counts `count` received requests. Returns how many of them may be accepted; the caller must refuse the
    /// others.
    pub(super) fn owe(&self, count: usize) -> usize {
        let mut state = self.lock();
        let taken = count.min(self.limits.owed_max.saturating_sub(state.owed));
        // Refused requests count too, until the caller has answered them.
        state.owed += count;
        taken
    }

    /// Answers a request of the peer. Must be called once per received request. `by` names the node that
    /// answered, if the request was passed on.
    pub(super) fn answer(self: &Arc<Self>, id: u64, outcome: Outcome, by: Option<&str>) {
        let answered_by = by.unwrap_or_default().to_owned();
        let mut reply = pb::Reply { id, answered_by, outcome: Some(outcome) };
        let mut len = reply.encoded_len();
        if len > self.limits.item_bytes_max {
            tracing::warn!(peer = %self.owner, bytes = len, "an answer is too large to be sent");
            reply.outcome = Some(wire::failed(&Failure::Unavailable));
            len = reply.encoded_len();
        }
        let mut state = self.lock();
        state.owed = state.owed.saturating_sub(1);
        if state.closed {
            return;
        }
        let alone = state.owed == 0;
        let next = state.put(&self.limits, Field::Replies, &reply, len, alone);
        drop(state);
        self.go_on(next);
    }

    /// Sends a hint, which may be lost.
    pub(super) fn hint(self: &Arc<Self>, hint: pb::hint::Hint) {
        let hint = pb::Hint { hint: Some(hint) };
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let next = state.put(&self.limits, Field::Hints, &hint, hint.encoded_len(), false);
        drop(state);
        self.go_on(next);
    }

    /// Tells the peer that the outbox has new rows, at once unless the last nudge was sent less than
    /// `nudge_pause` ago. Nudges within the pause are combined into one at its end.
    pub(super) fn nudge(self: &Arc<Self>, relay: bool, bridge: bool) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.due_nudge.relay |= relay;
        state.due_nudge.bridge |= bridge;
        if state.nudge_timer {
            return;
        }
        let now = self.clock.mono();
        let rest = state.nudged_at.map(|at| self.limits.nudge_pause.saturating_sub(now.since(at)));
        if let Some(rest) = rest.filter(|rest| !rest.is_zero()) {
            state.nudge_timer = true;
            drop(state);
            let link = Arc::clone(self);
            self.runtime.spawn(async move {
                tokio::time::sleep(rest).await;
                link.send_nudge();
            });
        } else {
            drop(state);
            self.send_nudge();
        }
    }

    fn send_nudge(self: &Arc<Self>) {
        let mut state = self.lock();
        state.nudge_timer = false;
        state.nudged_at = Some(self.clock.mono());
        let nudge = std::mem::take(&mut state.due_nudge);
        drop(state);
        self.hint(pb::hint::Hint::Nudge(nudge));
    }

    /// Records an unreadable frame. Returns whether it is the first one.
    pub(super) fn garbled(&self) -> bool {
        let mut state = self.lock();
        state.garbled += 1;
        state.garbled == 1
    }

    /// Closes the link after its session has ended. All unanswered requests end as dropped.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let unanswered = std::mem::take(&mut state.unanswered);
        state.unanswered_bytes = 0;
        let gathered = (std::mem::take(&mut state.gathering), std::mem::take(&mut state.full));
        drop(state);
        drop(gathered);
        if !unanswered.is_empty() {
            metrics::counter!("hygeia_link_dropped_total").increment(unanswered.len() as u64);
            self.unanswered.decrement(unanswered.len() as f64);
        }
        for unanswered in unanswered.into_values() {
            (unanswered.deliver)(None);
        }
    }

    pub(super) fn facts(&self) -> LinkFacts {
        let state = self.lock();
        LinkFacts {
            owner: self.owner.as_ref().to_owned(),
            unanswered: state.unanswered.len(),
            unanswered_bytes: state.unanswered_bytes,
            owed: state.owed,
        }
    }

    fn go_on(self: &Arc<Self>, next: Next) {
        self.items.increment(1);
        match next {
            Next::Nothing => {}
            Next::Send(frame) => self.send(frame),
            Next::Flush => drop(self.runtime.spawn(Arc::clone(self).flush())),
        }
    }

    /// Sends the gathered items until no more gather.
    async fn flush(self: Arc<Self>) {
        loop {
            // Run after all ready tasks, which may add to the frame.
            tokio::task::yield_now().await;
            let frames = {
                let mut state = self.lock();
                if state.gathering.items == 0 {
                    state.flushing = false;
                    return;
                }
                let last = std::mem::take(&mut state.gathering);
                let mut frames = std::mem::take(&mut state.full);
                frames.push(last.bytes);
                frames
            };
            for frame in frames {
                self.send(frame);
            }
        }
    }

    fn send(&self, frame: Vec<u8>) {
        self.frames.increment(1);
        if !self.wire.send(frame) {
            self.close();
        }
    }
}

impl State {
    /// Adds an item to the current frame. `alone`: no other item in progress could join the frame.
    fn put(&mut self, limits: &Limits, field: Field, item: &impl Message, len: usize, alone: bool) -> Next {
        let frame = &mut self.gathering;
        if frame.items > 0
            && (frame.items >= limits.frame_items_max || frame.bytes.len() + len > limits.frame_bytes_max)
        {
            self.full.push(std::mem::take(frame).bytes);
        }
        let frame = &mut self.gathering;
        frame.bytes.reserve(len + ITEM_OVERHEAD_BYTES_MAX);
        // A protobuf message is a sequence of fields in any order, so a frame grows by appending fields.
        prost::encoding::message::encode(field as u32, item, &mut frame.bytes);
        frame.items += 1;
        if self.flushing {
            Next::Nothing
        } else if alone {
            Next::Send(std::mem::take(frame).bytes)
        } else {
            self.flushing = true;
            Next::Flush
        }
    }
}

/// The largest size of an item's tag and length.
const ITEM_OVERHEAD_BYTES_MAX: usize = 11;
