//! The directory: knows which node serves which shard, and sends each question there: to the region of
//! this node, or over the link to another one. One per kind and node; child of the node's supervisor.
//! `Asker` is the side of it that callers hold.
//!
//! Invariants:
//! - A question is answered by its deadline, whatever happens on the way.
//! - A write whose outcome is not known is asked again under the same command id, as `maybe_done`: it
//!   acts once. Only when the time is up is the caller told that the outcome is unknown.
//! - Where a shard should be is computed from the live nodes, alike everywhere; where it is, only the one
//!   asked knows. What it says is remembered, one hint per shard, until it proves wrong or that node leaves.

mod asker;
mod counted;
mod refusal;
mod routes;

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use uuid::Uuid;

pub(super) use self::asker::no_node;
pub use self::asker::{AskSettings, Asker};
pub(super) use self::refusal::restricted;
use self::routes::{Routes, Target};
use super::address::Address;
use super::entity::{Entity, Failure};
use super::link::Courier;
use super::members::Members;
use super::region::{QueryAsk, RegionMessage};
use super::shard::Ask;
use crate::context::Hop;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::shard_of;
use crate::domain::time::Clock;

/// What a directory is told.
pub enum DirectoryMessage<E: Entity> {
    /// By an asker: goes on to the region that serves the shard; the shard answers.
    Ask(Box<Ask<E>>),
    /// By an asker: goes on to any region of the kind, which answers.
    Query(Box<QueryAsk<E>>),
    /// By an asker: whoever was asked for `id` does not serve it.
    Moved {
        /// What was asked for.
        id: Uuid,
        /// Who serves it, as far as they know: `node-name#boot-id`.
        owner: Option<Arc<str>>,
    },
    /// By the link: a question for `id` was passed on, and answered by `owner`.
    Found {
        /// What was asked for.
        id: Uuid,
        /// Who serves it: `node-name#boot-id`.
        owner: Arc<str>,
    },
}

impl<E: Entity> ractor::Message for DirectoryMessage<E> {}

/// What a directory needs.
pub struct DirectoryArgs<E: Entity> {
    /// The region on this node, if it runs one.
    pub region: Option<Address<RegionMessage<E>>>,
    /// The way to other nodes, if there may be any.
    pub courier: Option<Arc<dyn Courier<E>>>,
    /// The live nodes.
    pub members: Members,
    /// The number of shards of the cluster.
    pub shards: u16,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

impl<E: Entity> Clone for DirectoryArgs<E> {
    fn clone(&self) -> Self {
        DirectoryArgs {
            region: self.region.clone(),
            courier: self.courier.clone(),
            members: self.members.clone(),
            shards: self.shards,
            clock: Arc::clone(&self.clock),
        }
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
    routes: Routes,
    name: String,
}

impl<E: Entity> Actor for Directory<E> {
    type Msg = DirectoryMessage<E>;
    type State = DirectoryState<E>;
    type Arguments = DirectoryArgs<E>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        mut args: DirectoryArgs<E>,
    ) -> Result<Self::State, ActorProcessingErr> {
        let view = Arc::clone(&args.members.borrow_and_update());
        let routes = Routes::new(E::KIND, args.shards, args.region.is_some(), view);
        Ok(DirectoryState { args, routes, name: format!("{}-directory", E::KIND.as_str()) })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.look_around();
        match message {
            DirectoryMessage::Ask(ask) => state.ask(ask),
            DirectoryMessage::Query(query) => state.query(query),
            DirectoryMessage::Moved { id, owner } => {
                state.routes.moved(shard_of(id, state.args.shards), owner);
            }
            DirectoryMessage::Found { id, owner } => {
                state.routes.found(shard_of(id, state.args.shards), owner);
            }
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
    fn look_around(&mut self) {
        // A node without a cluster has nobody who could tell of a change: an error.
        if self.args.members.has_changed().unwrap_or(false) {
            let view = Arc::clone(&self.args.members.borrow_and_update());
            self.routes.changed(view);
        }
    }

    fn ask(&self, mut ask: Box<Ask<E>>) {
        let begun = self.args.clock.mono();
        let trace = ask.trace.child();
        let (id, message, queued) = (ask.id, ask.op.name(), begun.since(ask.sent_at));
        ask.trace = trace;
        ask.sent_at = begun;
        let outcome = match self.routes.target(shard_of(id, self.args.shards)) {
            Target::Here => self.forward(RegionMessage::Ask(ask)),
            Target::There { owner, wanted } => match &self.args.courier {
                Some(courier) => {
                    courier.ask(&owner, wanted, ask);
                    "sent"
                }
                None => fail_ask(*ask, Failure::NotServing(None)),
            },
            Target::Nowhere => fail_ask(*ask, Failure::NoNode(NodeRole::serving(E::KIND))),
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
        let outcome = match (self.routes.any(), &self.args.courier) {
            (Target::Here, _) => self.forward(RegionMessage::Query(query)),
            (Target::There { owner, .. }, Some(courier)) => {
                courier.query(&owner, query);
                "sent"
            }
            (Target::There { .. } | Target::Nowhere, _) => {
                let failure = Failure::NoNode(NodeRole::serving(E::KIND));
                let outcome = failure.as_str();
                query.reply.send(Err(failure));
                outcome
            }
        };
        let handled = self.args.clock.mono().since(begun);
        Hop { actor: &self.name, message: "Query", entity: None, trace: &trace, queued, handled, outcome }
            .log();
    }

    fn forward(&self, message: RegionMessage<E>) -> &'static str {
        match &self.args.region {
            Some(region) => forward(region, message),
            None => refuse(message),
        }
    }
}

/// Hands a question to the region, or answers it if nobody is there: nothing was done then, which its loss
/// would leave open. What became of it, for the log.
pub(super) fn forward<E: Entity>(
    region: &Address<RegionMessage<E>>,
    message: RegionMessage<E>,
) -> &'static str {
    let Some(actor) = region.actor() else { return refuse(message) };
    match actor.send_message(message) {
        Ok(()) => "forwarded",
        Err(ractor::MessagingErr::SendErr(message)) => refuse(message),
        Err(_) => "dropped",
    }
}

/// The region is gone and will be started again: nothing was done, so the asker is told to ask again.
fn refuse<E: Entity>(message: RegionMessage<E>) -> &'static str {
    match message {
        RegionMessage::Ask(ask) => fail_ask(*ask, Failure::NotServing(None)),
        RegionMessage::Query(query) => {
            query.reply.send(Err(Failure::NotServing(None)));
            "not_serving"
        }
        _ => "dropped",
    }
}

fn fail_ask<E: Entity>(ask: Ask<E>, failure: Failure) -> &'static str {
    let outcome = failure.as_str();
    ask.reply.send(Err(failure));
    outcome
}
