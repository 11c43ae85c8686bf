//! The directory: knows which region serves which shard, and sends each question there. One per kind
//! and front; child of the node's supervisor. `Asker` is the side of it that callers hold.
//!
//! Invariants:
//! - A question is answered by its deadline, whatever happens on the way.
//! - A write whose outcome is not known is asked again under the same command id, as `maybe_done`: it
//!   acts once. Only when the time is up is the caller told that the outcome is unknown.

mod asker;

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

pub use self::asker::{AskSettings, Asker};
use super::address::Address;
use super::entity::{Entity, Failure};
use super::region::{QueryAsk, RegionMessage};
use super::shard::Ask;
use crate::context::Hop;
use crate::domain::time::Clock;

/// What a directory is told.
pub enum DirectoryMessage<E: Entity> {
    /// By an asker: goes on to the region that serves the shard; the shard answers.
    Ask(Box<Ask<E>>),
    /// By an asker: goes on to any region of the kind, which answers.
    Query(Box<QueryAsk<E>>),
}

impl<E: Entity> ractor::Message for DirectoryMessage<E> {}

/// What a directory needs.
pub struct DirectoryArgs<E: Entity> {
    /// The region on this node.
    pub region: Address<RegionMessage<E>>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

impl<E: Entity> Clone for DirectoryArgs<E> {
    fn clone(&self) -> Self {
        DirectoryArgs { region: self.region.clone(), clock: Arc::clone(&self.clock) }
    }
}

/// The actor.
pub struct Directory<E: Entity>(std::marker::PhantomData<E>);

impl<E: Entity> Default for Directory<E> {
    fn default() -> Self {
        Directory(std::marker::PhantomData)
    }
}

/// The state of one incarnation.
pub struct DirectoryState<E: Entity> {
    args: DirectoryArgs<E>,
    name: String,
}

impl<E: Entity> Actor for Directory<E> {
    type Msg = DirectoryMessage<E>;
    type State = DirectoryState<E>;
    type Arguments = DirectoryArgs<E>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: DirectoryArgs<E>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(DirectoryState { args, name: format!("{}-directory", E::KIND.as_str()) })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DirectoryMessage::Ask(ask) => state.ask(ask),
            DirectoryMessage::Query(query) => state.query(query),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        _event: SupervisionEvent,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // A directory has no children; the default would stop it at any event.
        Ok(())
    }
}

impl<E: Entity> DirectoryState<E> {
    fn ask(&self, mut ask: Box<Ask<E>>) {
        let begun = self.args.clock.mono();
        let trace = ask.trace.child();
        let (id, message, queued) = (ask.id, ask.op.name(), begun.since(ask.sent_at));
        ask.trace = trace;
        ask.sent_at = begun;
        let outcome = match self.args.region.actor() {
            Some(region) => match region.send_message(RegionMessage::Ask(ask)) {
                Ok(()) => "forwarded",
                Err(error) => refuse(error),
            },
            None => {
                let _ = ask.reply.send(Err(Failure::NotServing));
                Failure::NotServing.as_str()
            }
        };
        let handled = self.args.clock.mono().since(begun);
        Hop { actor: &self.name, message, entity: Some(id), trace: &trace, queued, handled, outcome }.log();
    }

    fn query(&self, mut query: Box<QueryAsk<E>>) {
        let begun = self.args.clock.mono();
        let trace = query.trace.child();
        let queued = begun.since(query.sent_at);
        query.trace = trace;
        query.sent_at = begun;
        let outcome = match self.args.region.actor() {
            Some(region) => match region.send_message(RegionMessage::Query(query)) {
                Ok(()) => "forwarded",
                Err(error) => refuse(error),
            },
            None => {
                let _ = query.reply.send(Err(Failure::NotServing));
                Failure::NotServing.as_str()
            }
        };
        let handled = self.args.clock.mono().since(begun);
        Hop { actor: &self.name, message: "Query", entity: None, trace: &trace, queued, handled, outcome }
            .log();
    }
}

/// The region is gone and will be started again: nothing was done, so the asker is told to ask again.
fn refuse<E: Entity>(error: ractor::MessagingErr<RegionMessage<E>>) -> &'static str {
    if let ractor::MessagingErr::SendErr(message) = error {
        match message {
            RegionMessage::Ask(ask) => drop(ask.reply.send(Err(Failure::NotServing))),
            RegionMessage::Query(query) => drop(query.reply.send(Err(Failure::NotServing))),
            _ => {}
        }
    }
    Failure::NotServing.as_str()
}
