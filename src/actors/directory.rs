//! The directory: knows which node serves which shard, and routes each request there, either to the region of
//! this node or over the link to another node. One per kind and node; child of the node's supervisor. Callers
//! use it through an `Asker`.
//!
//! Invariants:
//! - A request is answered by its deadline, whatever fails on the way.
//! - A write of unknown outcome is repeated under the same command id, marked `maybe_done`, so it acts once.
//!   The caller gets `OutcomeUnknown` when the deadline has passed, or when a lost attempt may still arrive
//!   and a later attempt has not settled the outcome.
//! - Every node computes the same placement of a shard from the live nodes. The actual owner may differ, and
//!   only the node asked knows it. The directory remembers the owner it names, one hint per shard, until the
//!   hint proves wrong or that node leaves.

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

/// The messages of a directory.
pub enum DirectoryMessage<E: Entity> {
    /// From an asker: forwarded to the region that serves the shard; the shard answers.
    Ask(Box<Ask<E>>),
    /// From an asker: forwarded to any region of the kind, which answers.
    Query(Box<QueryAsk<E>>),
    /// From an asker: the node that was asked for `id` does not serve it.
    Moved {
        /// The entity that was asked for.
        id: Uuid,
        /// The owner of its shard, if the node named one: `node-name#boot-id`.
        owner: Option<Arc<str>>,
    },
    /// From the link: a request for `id` was passed on, and `owner` answered it.
    Found {
        /// The entity that was asked for.
        id: Uuid,
        /// The node that serves the entity: `node-name#boot-id`.
        owner: Arc<str>,
    },
}

impl<E: Entity> ractor::Message for DirectoryMessage<E> {}

/// The arguments of a directory.
pub struct DirectoryArgs<E: Entity> {
    /// The region of this node, if the node runs one.
    pub region: Option<Address<RegionMessage<E>>>,
    /// The links to other nodes; `None` outside a cluster.
    pub courier: Option<Arc<dyn Courier<E>>>,
    /// The live nodes.
    pub members: Members,
    /// The number of shards per kind.
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

/// The state of one incarnation of the directory.
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
        // A directory has no children. The default would stop the actor at any event.
        Ok(())
    }
}

impl<E: Entity> DirectoryState<E> {
    fn look_around(&mut self) {
        // Outside a cluster the sender of views is gone, and `has_changed` returns an error.
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

/// Sends a request to the region. If no region is running, answers `NotServing` at once: without that, the
/// lost request would leave the outcome unknown. Returns the outcome for the log.
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

/// Answers that no region is running. Nothing was done, so the asker retries.
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
