//! Dispatch of the frames of a peer. Runs in the session that received the frame, one frame at a time, so it
//! only hands messages over and never waits.

use std::sync::Arc;

use futures::future::BoxFuture;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use uuid::Uuid;

use super::peer::Link;
use super::portable::{self, Passage, Portable, Question, Said};
use super::wire::{self, Answer};
use super::{FRAME_ITEMS_MAX, Inner};
use crate::actors::address::Address;
use crate::actors::analytics::{AnalyticsMessage, SummaryAsk};
use crate::actors::billing::Accounts;
use crate::actors::directory::{DirectoryMessage, forward};
use crate::actors::entity::{Entity, Failure, Op};
use crate::actors::journal::Nudge;
use crate::actors::members::Wire;
use crate::actors::patients::{PatientQuery, Patients};
use crate::actors::region::{QueryAsk, RegionMessage};
use crate::actors::reply::ReplyTo;
use crate::actors::sessions::SessionsMessage;
use crate::actors::shard::Ask;
use crate::context::{Hop, RequestContext, TraceContext};
use crate::domain::access::Caller;
use crate::domain::ids::{CommandId, Kind, SessionId, ShardNo};
use crate::domain::time::MonoTime;
use crate::proto::cluster as pb;
use crate::proto::cluster::reply::Outcome;

/// The name of this part in logs.
const NAME: &str = "gate";

/// Returns the status of this node, as JSON.
pub type SelfStatus = Arc<dyn Fn() -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// Called with the shards of a kind that were released for this node.
pub type ToTake = Arc<dyn Fn(Kind, Vec<ShardNo>) + Send + Sync>;

/// The parts of this node that answer other nodes; `None` if the node does not run the part.
#[derive(Clone, Default)]
pub struct Served {
    /// The region of patients.
    pub patients: Option<Address<RegionMessage<Patients>>>,
    /// The region of billing accounts.
    pub accounts: Option<Address<RegionMessage<Accounts>>>,
    /// The directory of patients, which learns where a patient was found.
    pub patient_directory: Address<DirectoryMessage<Patients>>,
    /// The directory of billing accounts, which learns where an account was found.
    pub account_directory: Address<DirectoryMessage<Accounts>>,
    /// Analytics.
    pub analytics: Option<Address<AnalyticsMessage>>,
    /// The status of the node.
    pub status: Option<SelfStatus>,
    /// Called when the outbox has new registrations to bill.
    pub relay_nudged: Option<Nudge>,
    /// Called when the outbox has new events to publish.
    pub bridge_nudged: Option<Nudge>,
    /// The actor that receives revoked sessions.
    pub sessions: Option<Address<SessionsMessage>>,
    /// Called when leases were given up for this node.
    pub released: Option<ToTake>,
}

/// A received request without its body.
struct Arrival {
    link: Arc<Link>,
    id: u64,
    trace: TraceContext,
    begun: MonoTime,
    deadline: MonoTime,
    caller: Caller,
    hops: u32,
    wanted_owner: String,
}

/// The data to pass a request on.
struct Again<E: Entity> {
    id: Uuid,
    op: Op<E>,
    trace: TraceContext,
    deadline: MonoTime,
    caller: Caller,
}

/// Decodes a frame. Returns `None` if it cannot be decoded, or if it has more than `FRAME_ITEMS_MAX` items: an empty
/// item is two bytes in the frame and hundreds in memory.
fn decode(frame: &[u8]) -> Option<pb::Frame> {
    let (mut rest, mut items) = (frame, 0);
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
        items += 1;
        if items > FRAME_ITEMS_MAX {
            return None;
        }
    }
    pb::Frame::decode(frame).ok()
}

impl Inner {
    /// Handles a frame from `owner`.
    pub(super) fn receive(self: &Arc<Self>, owner: &Arc<str>, wire: &Wire, frame: &[u8]) {
        if wire.has_ended() {
            // The callers of these requests already got an unknown outcome, and have retried since.
            metrics::counter!("hygeia_link_frames_late_total").increment(1);
            return;
        }
        let link = self.link_of(owner, wire);
        let Some(frame) = decode(frame) else {
            metrics::counter!("hygeia_link_frames_unreadable_total").increment(1);
            if link.garbled() {
                tracing::warn!(peer = %owner, bytes = frame.len(), "a frame cannot be read; further ones are only counted");
            }
            self.begin_anew(&link);
            return;
        };
        if !frame.replies.is_empty() {
            link.replies(frame.replies);
        }
        let taken = link.owe(frame.requests.len());
        for (nth, request) in frame.requests.into_iter().enumerate() {
            if nth < taken {
                self.request(&link, request);
            } else {
                link.answer(request.id, wire::failed(&Failure::Busy), None);
            }
        }
        for hint in frame.hints {
            self.hint(hint);
        }
    }

    fn request(self: &Arc<Self>, link: &Arc<Link>, request: pb::Request) {
        let begun = self.clock.mono();
        let pb::Request { id, envelope, hops, wanted_owner, body } = request;
        let Some((said, question)) = portable::read(envelope, body) else {
            metrics::counter!("hygeia_link_requests_unsupported_total").increment(1);
            return link.answer(id, wire::failed(&Failure::Unsupported), None);
        };
        let Said { trace, budget, caller } = said;
        let trace = trace.child();
        let deadline = begun.plus(budget);
        let arrival =
            Arrival { link: Arc::clone(link), id, trace, begun, deadline, caller, hops, wanted_owner };
        let (message, entity) = match &question {
            Question::Patient(id, op) => (op.name(), Some(*id)),
            Question::Account(id, op) => (op.name(), Some(*id)),
            Question::Patients(_) => ("Query", None),
            Question::Summary => ("Summary", None),
            Question::Status => ("Status", None),
        };
        let outcome = if budget.is_zero() {
            arrival.fail(Failure::Expired)
        } else {
            match question {
                Question::Patient(id, op) => self.ask(arrival, id, op, self.served.patients.as_ref()),
                Question::Account(id, op) => self.ask(arrival, id, op, self.served.accounts.as_ref()),
                Question::Patients(list) => self.list(arrival, list),
                Question::Summary => self.summarize(arrival),
                Question::Status => self.status(arrival),
            }
        };
        let handled = self.clock.mono().since(begun);
        let queued = std::time::Duration::ZERO;
        Hop { actor: NAME, message, entity, trace: &trace, queued, handled, outcome }.log();
    }

    fn ask<E: Portable>(
        self: &Arc<Self>,
        arrival: Arrival,
        id: Uuid,
        op: Op<E>,
        region: Option<&Address<RegionMessage<E>>>,
    ) -> &'static str {
        let may_pass_on = arrival.hops == 0;
        if may_pass_on && let Some(next) = self.next_hop(&arrival.wanted_owner, &arrival.link) {
            arrival.again(id, op).pass_on(self, next, Arc::clone(&arrival.link), arrival.id);
            return "passed_on";
        }
        let Some(region) = region else { return arrival.fail(Failure::NotServing(None)) };
        let again = may_pass_on.then(|| arrival.again(id, op.clone()));
        let (inner, link, request) = (Arc::clone(self), Arc::clone(&arrival.link), arrival.id);
        let reply = ReplyTo::away(move |result: Option<Result<E::Answer, Failure>>| {
            if let (Some(Err(Failure::NotServing(Some(owner)))), Some(again)) = (&result, again)
                && let Some(next) = inner.next_hop(owner, &link)
            {
                return again.pass_on(&inner, next, link, request);
            }
            link.answer(request, said(result), None);
        });
        let Arrival { trace, begun, deadline, caller, .. } = arrival;
        let ask = Ask { id, op, trace, deadline, sent_at: begun, caller, reply };
        forward(region, RegionMessage::Ask(Box::new(ask)))
    }

    /// Returns the link to `owner`, unless `owner` is unreachable, this node, or the node that asks.
    fn next_hop(&self, owner: &str, asker: &Link) -> Option<Arc<Link>> {
        if owner.is_empty() || *asker.owner == *owner {
            return None;
        }
        self.links.load().get(owner).cloned()
    }

    fn list(&self, arrival: Arrival, query: PatientQuery) -> &'static str {
        let Some(region) = &self.served.patients else { return arrival.fail(Failure::NotServing(None)) };
        let reply = arrival.reply();
        let Arrival { trace, begun, deadline, caller, .. } = arrival;
        let ask = QueryAsk { query, trace, deadline, sent_at: begun, caller, reply };
        forward(region, RegionMessage::Query(Box::new(ask)))
    }

    fn summarize(&self, arrival: Arrival) -> &'static str {
        let actor = self.served.analytics.as_ref().and_then(Address::actor);
        let Some(actor) = actor else { return arrival.fail(Failure::NotServing(None)) };
        let reply = arrival.reply();
        let Arrival { trace, begun, deadline, caller, .. } = arrival;
        let ctx = RequestContext { trace, deadline, command_id: CommandId(Uuid::nil()), caller };
        // If the actor has just ended, the message and its reply are dropped, which tells the caller.
        let ask = SummaryAsk::new(ctx, begun, reply);
        let _ = actor.send_message(AnalyticsMessage::Summary(Box::new(ask)));
        "forwarded"
    }

    /// Collects the status in a task. Only operators ask for it, so the cost does not matter.
    fn status(&self, arrival: Arrival) -> &'static str {
        let Some(provider) = &self.served.status else { return arrival.fail(Failure::Unsupported) };
        let (status, reply) = (provider(), arrival.reply());
        let budget = arrival.deadline.since(arrival.begun);
        self.runtime.spawn(async move {
            let status = tokio::time::timeout(budget, status).await;
            reply.send(status.map_err(|_| Failure::Expired));
        });
        "forwarded"
    }

    fn hint(&self, hint: pb::Hint) {
        use pb::hint::Hint;
        match hint.hint {
            Some(Hint::Nudge(nudge)) => {
                let told =
                    [(nudge.relay, &self.served.relay_nudged), (nudge.bridge, &self.served.bridge_nudged)];
                told.iter().filter(|(due, _)| *due).filter_map(|(_, who)| who.as_ref()).for_each(|who| who());
            }
            Some(Hint::ShardsReleased(released)) => {
                let kind = [Kind::Patient, Kind::Billing, Kind::Outbox]
                    .into_iter()
                    .find(|kind| kind.as_str() == released.kind);
                let shards = released.shards.into_iter().filter_map(|shard| shard.try_into().ok()).collect();
                if let (Some(kind), Some(told)) = (kind, &self.served.released) {
                    told(kind, shards);
                }
            }
            Some(Hint::SessionsRevoked(revoked)) => {
                let ids = revoked.sessions.into_iter().filter_map(|id| wire::uuid(Some(id)));
                let sessions: Vec<SessionId> = ids.map(SessionId).collect();
                if let Some(told) = &self.served.sessions {
                    told.cast(SessionsMessage::Revoked(sessions));
                }
            }
            // A hint of another version. Hints may be ignored.
            None => {}
        }
    }
}

impl Arrival {
    fn fail(&self, failure: Failure) -> &'static str {
        let outcome = failure.as_str();
        self.link.answer(self.id, wire::failed(&failure), None);
        outcome
    }

    fn reply<T: Answer>(&self) -> ReplyTo<T> {
        let (link, id) = (Arc::clone(&self.link), self.id);
        ReplyTo::away(move |result| link.answer(id, said(result), None))
    }

    fn again<E: Entity>(&self, id: Uuid, op: Op<E>) -> Again<E> {
        let (trace, deadline, caller) = (self.trace, self.deadline, self.caller.clone());
        Again { id, op, trace, deadline, caller }
    }
}

impl<E: Portable> Again<E> {
    /// Sends the request to `next`, and answers `request` of `asker` with the result.
    fn pass_on(self, inner: &Inner, next: Arc<Link>, asker: Arc<Link>, request: u64) {
        metrics::counter!("hygeia_link_passed_on_total").increment(1);
        let Again { id, op, trace, deadline, caller } = self;
        let by = Arc::clone(&next.owner);
        let reply = ReplyTo::away(move |result: Option<Result<E::Answer, Failure>>| {
            // Only a node that serves the entity is named to the asker.
            let served = matches!(result, Some(Ok(_) | Err(Failure::Refused(_))));
            asker.answer(request, said(result), served.then_some(&*by));
        });
        let ask = Ask { id, op, trace, deadline, sent_at: inner.clock.mono(), caller, reply };
        inner.send(&next, Passage { hops: 1, wanted_owner: None }, ask);
    }
}

fn said<T: Answer>(result: Option<Result<T, Failure>>) -> Outcome {
    match result {
        Some(Ok(answer)) => answer.outcome(),
        Some(Err(failure)) => wire::failed(&failure),
        None => wire::dropped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_no_more_items_than_any_node_sends() {
        /// An empty request, an empty reply and an empty hint.
        const EMPTY: [[u8; 2]; 3] = [[0x0a, 0], [0x12, 0], [0x1a, 0]];
        for item in EMPTY {
            let frame = decode(&item.repeat(FRAME_ITEMS_MAX)).expect("a frame");
            assert_eq!(frame.requests.len() + frame.replies.len() + frame.hints.len(), FRAME_ITEMS_MAX);
            assert!(decode(&item.repeat(FRAME_ITEMS_MAX + 1)).is_none());
        }
        assert!(decode(&EMPTY.concat().repeat(FRAME_ITEMS_MAX / 3 + 1)).is_none());
        assert!(decode(&[0x0a, 5, 1]).is_none(), "the item ends before its length");
    }
}
