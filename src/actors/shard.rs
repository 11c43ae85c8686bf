//! A shard: the one actor that decides for the entities hashed to it. Child of its `Region`.
//!
//! Invariants: `handle` never awaits. All rules about order and leases are in `core`. Reads of the database
//! run in tasks of their own, and each task reports its end to the shard, even if it panics.

mod core;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use uuid::Uuid;

use self::core::{Core, Effect, Request, World};
use super::address::Address;
use super::entity::{Entity, LeaseView, Loaded, Op};
use super::journal::{AppendResult, AppendTicket, JournalEntry, JournalMessage};
use super::region::{HeldLease, RegionMessage};
use super::reply::ReplyTo;
use crate::context::{Hop, TraceContext};
use crate::domain::access::Caller;
use crate::domain::ids::{CommandId, EventId, ShardNo};
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::store;

/// The limits of one shard.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entities kept in memory with nothing in progress. The least recently used are evicted first.
    pub hot_entities_max: usize,
    /// Entities with a load or an append in progress. Further requests are answered with `Busy`.
    pub active_entities_max: usize,
    /// Requests that may wait for one entity. Further ones are answered with `Busy`.
    pub entity_queue_max: usize,
    /// How long one read of the database may take.
    pub load_timeout: Duration,
}

/// A request for one entity, on its way from the directory to the shard.
pub struct Ask<E: Entity> {
    /// The entity.
    pub id: Uuid,
    /// The operation.
    pub op: Op<E>,
    /// The trace context of the last hop.
    pub trace: TraceContext,
    /// The time after which the caller no longer waits.
    pub deadline: MonoTime,
    /// The time at which the last hop sent the request.
    pub sent_at: MonoTime,
    /// The caller.
    pub caller: Caller,
    /// The handle for the answer. Dropped without an answer if an actor on the way dies.
    pub reply: ReplyTo<E::Answer>,
}

/// The messages of a shard.
pub enum ShardMessage<E: Entity> {
    /// From the region: answered on `reply` as soon as possible.
    Ask(Box<Ask<E>>),
    /// From the shard's own task: a read of the database has ended.
    Loaded(Box<Ended<store::Result<Loaded<E>>>>),
    /// From the journal: an append has ended.
    Appended(Box<Ended<AppendResult>>),
    /// From the region: the lease is held under its next epoch.
    Refenced(HeldLease),
    /// From the region: the lease is lost or is to be given up. The shard stops itself when its commits in
    /// progress have ended.
    StopServing,
}

impl<E: Entity> ractor::Message for ShardMessage<E> {}

/// The end of a load or an append that the shard started.
pub struct Ended<R> {
    /// The entity.
    pub id: Uuid,
    /// The trace context of the load or append.
    pub trace: TraceContext,
    /// The time at which this message was sent.
    pub sent_at: MonoTime,
    /// The result.
    pub result: R,
}

/// What a shard needs from the node.
pub struct ShardEnv<E: Entity> {
    /// The database.
    pub store: Arc<E::Store>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The node's journal of this kind.
    pub journal: Address<JournalMessage<E>>,
    /// The shard's region.
    pub region: ActorRef<RegionMessage<E>>,
    /// The limits of the shard.
    pub limits: Limits,
}

impl<E: Entity> Clone for ShardEnv<E> {
    fn clone(&self) -> Self {
        ShardEnv {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            journal: self.journal.clone(),
            region: self.region.clone(),
            limits: self.limits,
        }
    }
}

/// The arguments of one incarnation.
pub struct ShardArgs<E: Entity> {
    /// The number of the shard.
    pub shard: ShardNo,
    /// The lease under which the shard serves.
    pub lease: HeldLease,
    /// What the shard needs from the node.
    pub env: ShardEnv<E>,
}

/// The actor.
pub struct Shard<E: Entity>(std::marker::PhantomData<E>);

impl<E: Entity> Default for Shard<E> {
    fn default() -> Self {
        Shard(std::marker::PhantomData)
    }
}

/// The handle for an answer.
type Ticket<E> = ReplyTo<<E as Entity>::Answer>;

/// The state of one incarnation.
pub struct ShardState<E: Entity> {
    core: Core<E, Ticket<E>>,
    effects: Vec<Effect<E, Ticket<E>>>,
    shard: ShardNo,
    name: String,
    lease: HeldLease,
    env: ShardEnv<E>,
    stopping: bool,
}

struct ShardWorld<'a> {
    clock: &'a dyn Clock,
    lease: &'a HeldLease,
}

impl World for ShardWorld<'_> {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn mono(&self) -> MonoTime {
        self.clock.mono()
    }

    fn event_id(&self) -> EventId {
        EventId(Uuid::now_v7())
    }

    fn lease(&self) -> &dyn LeaseView {
        self.lease
    }
}

impl<E: Entity> Actor for Shard<E> {
    type Msg = ShardMessage<E>;
    type State = ShardState<E>;
    type Arguments = ShardArgs<E>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: ShardArgs<E>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(ShardState {
            core: Core::new(args.shard, args.lease.epoch(), args.env.limits),
            effects: Vec::new(),
            shard: args.shard,
            name: format!("{}-shard-{}", E::KIND.as_str(), args.shard),
            lease: args.lease,
            env: args.env,
            stopping: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let clock = Arc::clone(&state.env.clock);
        let lease = state.lease.clone();
        let world = ShardWorld { clock: &*clock, lease: &lease };
        match message {
            ShardMessage::Ask(ask) => state.ask(*ask, &world),
            ShardMessage::Loaded(ended) => {
                state.note("Loaded", *ended, |core, id, result| core.loaded(id, result, &world));
            }
            ShardMessage::Appended(ended) => {
                state.note("Appended", *ended, |core, id, result| core.appended(id, result, &world));
            }
            ShardMessage::Refenced(lease) => {
                state.core.refenced(lease.epoch(), &ShardWorld { clock: &*clock, lease: &lease });
                state.lease = lease;
            }
            ShardMessage::StopServing => {
                state.stopping = true;
                state.core.stop_serving();
            }
        }
        state.carry_out(&myself);
        if state.stopping && state.core.is_idle() {
            myself.stop(None);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        _event: SupervisionEvent,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // A shard has no children; the default would stop it at any event.
        Ok(())
    }
}

impl<E: Entity> ShardState<E> {
    fn ask(&mut self, ask: Ask<E>, world: &ShardWorld<'_>) {
        let begun = self.env.clock.mono();
        let Ask { id, op, trace, deadline, sent_at, reply, .. } = ask;
        let trace = trace.child();
        let message = op.name();
        self.core.request(Request { id, op, deadline, trace, ticket: reply }, world);
        Hop {
            actor: &self.name,
            message,
            entity: Some(id),
            trace: &trace,
            queued: begun.since(sent_at),
            handled: self.env.clock.mono().since(begun),
            outcome: self.outcome(),
        }
        .log();
    }

    /// Passes the end of a load or an append to the core, and logs it.
    fn note<R>(
        &mut self,
        message: &'static str,
        ended: Ended<R>,
        tell: impl FnOnce(&mut Core<E, Ticket<E>>, Uuid, R),
    ) {
        let begun = self.env.clock.mono();
        tell(&mut self.core, ended.id, ended.result);
        Hop {
            actor: &self.name,
            message,
            entity: Some(ended.id),
            trace: &ended.trace.child(),
            queued: begun.since(ended.sent_at),
            handled: self.env.clock.mono().since(begun),
            outcome: self.outcome(),
        }
        .log();
    }

    /// Returns the outcome of the message just handled, for the log. Its effects are the last ones.
    fn outcome(&self) -> &'static str {
        match self.core.last_effect() {
            Some(Effect::Reply(_, Ok(_))) => "ok",
            Some(Effect::Reply(_, Err(failure))) => failure.as_str(),
            Some(Effect::Load { .. }) => "loading",
            Some(Effect::Append { .. }) => "appending",
            Some(Effect::Refence | Effect::Lost) | None => "waiting",
        }
    }

    fn carry_out(&mut self, myself: &ActorRef<ShardMessage<E>>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.core.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Reply(ticket, result) => ticket.send(result),
                Effect::Load { id, command, trace } => self.load(myself.clone(), id, command, trace),
                Effect::Append { id, mut append, deadline, trace } => {
                    let ticket = AppendTicket::new(id, trace, Arc::clone(&self.env.clock), myself.clone());
                    E::committed_by(&mut append, ticket.trace());
                    let entry = JournalEntry { append, deadline, sent_at: self.env.clock.mono(), ticket };
                    // If no journal is running, the ticket is dropped, which reports that to this shard.
                    self.env.journal.cast(JournalMessage::Append(Box::new(entry)));
                }
                Effect::Refence => {
                    let _ = self.env.region.send_message(RegionMessage::Refence(self.shard));
                }
                Effect::Lost => {
                    let _ = self.env.region.send_message(RegionMessage::LeaseLost(self.shard));
                }
            }
        }
        self.effects = effects;
    }

    fn load(
        &self,
        myself: ActorRef<ShardMessage<E>>,
        id: Uuid,
        command: Option<CommandId>,
        trace: TraceContext,
    ) {
        let store = Arc::clone(&self.env.store);
        let limit = self.env.limits.load_timeout;
        let clock = Arc::clone(&self.env.clock);
        let report = LoadReport { id, trace, clock, shard: Some(myself) };
        tokio::spawn(async move {
            let result = match tokio::time::timeout(limit, E::load(&store, id, command)).await {
                Ok(result) => result,
                Err(_) => Err(store::Error::Unavailable("reading took too long".into())),
            };
            report.end(result);
        });
    }
}

/// Reports the end of a read to the shard, even if the task panics. Without a report the entity would wait
/// for ever.
struct LoadReport<E: Entity> {
    id: Uuid,
    trace: TraceContext,
    clock: Arc<dyn Clock>,
    shard: Option<ActorRef<ShardMessage<E>>>,
}

impl<E: Entity> LoadReport<E> {
    fn end(mut self, result: store::Result<Loaded<E>>) {
        self.tell(result);
    }

    fn tell(&mut self, result: store::Result<Loaded<E>>) {
        if let Some(shard) = self.shard.take() {
            let ended = Ended { id: self.id, trace: self.trace, sent_at: self.clock.mono(), result };
            let _ = shard.send_message(ShardMessage::Loaded(Box::new(ended)));
        }
    }
}

impl<E: Entity> Drop for LoadReport<E> {
    fn drop(&mut self) {
        self.tell(Err(store::Error::Unavailable("the reading task ended early".into())));
    }
}
