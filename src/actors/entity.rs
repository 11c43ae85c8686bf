//! The interface between the sharded core and a kind of entity. Patients and accounts use the same region,
//! shard and journal; the trait `Entity` holds all their differences.

use std::future::Future;
use std::sync::Arc;

use uuid::Uuid;

use crate::context::TraceContext;
use crate::domain::access::Caller;
use crate::domain::audit::Access;
use crate::domain::cluster::NodeRole;
use crate::domain::conditions::{Conditions, Repetition, repetition};
use crate::domain::ids::{CommandId, Epoch, EventId, Fingerprint, Kind, ShardNo};
use crate::domain::time::{MonoTime, Timestamp};
use crate::store::{self, AppendOutcome, AuditBatch};

/// A kind of sharded, durable entity.
pub trait Entity: Sized + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;
    /// The state of one entity that a shard keeps in memory.
    type State: Clone + Send + Sync + 'static;
    /// A request to change one entity.
    type Command: Clone + Send + Sync + 'static;
    /// The answer to a caller.
    type Answer: Clone + Send + Sync + 'static;
    /// The data written to the database for one change.
    type Append: Send + Sync + 'static;
    /// A query about many entities, answered by the database.
    type Query: Send + Sync + 'static;
    /// The answer to a query.
    type QueryAnswer: Send + Sync + 'static;
    /// The store trait that this kind needs.
    type Store: Send + Sync + ?Sized + 'static;

    /// Returns the command's name for logs.
    fn command_name(command: &Self::Command) -> &'static str;

    /// Returns the answer to a read.
    ///
    /// # Errors
    /// `Refused::NotFound` if the entity does not exist.
    fn read(state: &Self::State) -> Result<Self::Answer, Refused>;

    /// Decides a command by the pure rules.
    fn decide(id: Uuid, state: &Self::State, write: &Write<Self>, stamp: &Stamp) -> Decision<Self>;

    /// Returns the only state on which the command could succeed, if there is just one: a registration
    /// presumes that the entity does not exist. The shard may decide on it without a read. The store must
    /// refuse the append with `Conflict` if the actual state is another.
    fn presumed(command: &Self::Command) -> Option<Self::State>;

    /// Returns the state and the answer after `append` is durable.
    fn committed(append: &Self::Append) -> (Self::State, Self::Answer);

    /// Returns whether an answer to a write stays correct even if an earlier attempt at the same command is
    /// still in progress. It does if the command is known to have been carried out. It does not if the
    /// command was found to change nothing.
    fn is_settled(_answer: &Self::Answer) -> bool {
        true
    }

    /// Returns whether the shard should keep the state in memory. The absence of an entity should not be
    /// kept, because any caller could fill the memory with absences.
    fn worth_keeping(state: &Self::State) -> bool;

    /// Reads one entity and, if `command` is given, the result of that command.
    fn load(
        store: &Self::Store,
        id: Uuid,
        command: Option<CommandId>,
    ) -> impl Future<Output = store::Result<Loaded<Self>>> + Send;

    /// Records that the trace context `trace` commits `append`, so that traces of its consequences continue
    /// from there.
    fn committed_by(_append: &mut Self::Append, _trace: &TraceContext) {}

    /// Returns the audit entry of `append`, or `None` if it is not an access to a patient's record.
    fn access(_append: &Self::Append) -> Option<Access> {
        None
    }

    /// Commits a batch in one transaction, together with `audit`, which holds the accesses of the whole
    /// batch.
    fn commit(
        store: &Self::Store,
        batch: &[Self::Append],
        audit: Option<&AuditBatch>,
    ) -> impl Future<Output = store::Result<Vec<AppendOutcome>>> + Send;

    /// Answers a query about many entities.
    fn query(
        store: &Self::Store,
        query: &Self::Query,
    ) -> impl Future<Output = store::Result<Self::QueryAnswer>> + Send;
}

/// A command with the properties of its request.
pub struct Write<E: Entity> {
    /// The command.
    pub command: E::Command,
    /// The conditions under which the command may be carried out.
    pub conditions: Conditions,
    /// The id of the command. Attempts with the same id take effect once.
    pub command_id: CommandId,
    /// The caller.
    pub caller: Caller,
    /// The trace context of the request. The one of the commit replaces it (`Entity::committed_by`).
    pub traceparent: Box<str>,
    /// Whether an earlier attempt may have been carried out. If so, the database is read first.
    pub maybe_done: bool,
}

/// The inputs of a decision that come from outside the rules.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The time of the event.
    pub now: Timestamp,
    /// The id of the event, newly generated.
    pub event_id: EventId,
    /// The shard that makes the decision.
    pub shard: ShardNo,
    /// The epoch under which the shard decides.
    pub epoch: Epoch,
}

/// The result of a decision.
pub enum Decision<E: Entity> {
    /// Write this append, then answer.
    Append(E::Append),
    /// Nothing is to be written; answer this.
    Answer(E::Answer),
    /// Refuse the command.
    Refuse(Refused),
}

/// An entity as read from the database.
pub struct Loaded<E: Entity> {
    /// The state of the entity.
    pub state: E::State,
    /// The result of the command that was looked up, if it was carried out.
    pub applied: Option<Applied<E::Answer>>,
}

/// A change that was carried out.
#[derive(Clone)]
pub struct Applied<A> {
    /// The answer that the change got, or would have got.
    pub answer: A,
    /// The fingerprint of the request, if it had an idempotency key.
    pub fingerprint: Option<Fingerprint>,
    /// The time of the decision.
    pub at: Timestamp,
}

impl<A> Applied<A> {
    /// Returns the answer at `now` to a repeated request with `conditions`.
    ///
    /// # Errors
    /// `KeyReused` if the key belongs to another request, `KeyExpired` if the change is too old.
    pub fn again(self, conditions: &Conditions, now: Timestamp) -> Result<A, Refused> {
        match repetition(conditions.fingerprint, self.fingerprint, self.at, now) {
            Repetition::Same => Ok(self.answer),
            Repetition::Another => Err(Refused::KeyReused),
            Repetition::Expired => Err(Refused::KeyExpired),
        }
    }
}

/// A refusal by the rules. It is final, and nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The entity does not exist.
    NotFound,
    /// The id is already in use.
    IdTaken,
    /// The e-mail address is already in use.
    EmailTaken,
    /// The record is restricted, and the caller may not see it.
    Restricted,
    /// The version of the entity is not one that the caller expects.
    OtherVersion,
    /// Another request was carried out under the same key.
    KeyReused,
    /// A request was carried out under the same key, too long ago to repeat its answer.
    KeyExpired,
}

impl Refused {
    /// Returns whether the refusal stays correct even if an earlier attempt at the same command is still in
    /// progress. It does if the id or the command id is in use, because the earlier attempt will be refused
    /// for the same reason.
    pub const fn is_settled(self) -> bool {
        matches!(self, Refused::IdTaken | Refused::KeyReused | Refused::KeyExpired)
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The rules refuse the request.
    Refused(Refused),
    /// Too many requests are waiting. Nothing was done.
    Busy,
    /// The deadline passed before the work began. Nothing was done.
    Expired,
    /// This shard is not served here now. Nothing was done, and the caller may retry. Carries the owner of
    /// the lease (`node-name#boot-id`), if the node that answers knows another owner.
    NotServing(Option<Arc<str>>),
    /// No live node has the role that serves this request. Nothing was done. Such a node may come back.
    NoNode(NodeRole),
    /// The node that was asked does not know this kind of request, because it runs another version. Nothing
    /// was done.
    Unsupported,
    /// The database could not be read or written. Nothing was done.
    Unavailable,
    /// The outcome of the commit is not known. A retry with `maybe_done` is safe.
    Unknown,
}

impl Failure {
    /// Returns the name for logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Failure::Refused(Refused::NotFound) => "not_found",
            Failure::Refused(Refused::IdTaken) => "id_taken",
            Failure::Refused(Refused::EmailTaken) => "email_taken",
            Failure::Refused(Refused::Restricted) => "restricted",
            Failure::Refused(Refused::OtherVersion) => "other_version",
            Failure::Refused(Refused::KeyReused) => "key_reused",
            Failure::Refused(Refused::KeyExpired) => "key_expired",
            Failure::Busy => "busy",
            Failure::Expired => "expired",
            Failure::NotServing(_) => "not_serving",
            Failure::NoNode(_) => "no_node",
            Failure::Unsupported => "unsupported",
            Failure::Unavailable => "unavailable",
            Failure::Unknown => "unknown",
        }
    }
}

/// An operation on one entity.
pub enum Op<E: Entity> {
    /// Read the current state.
    Read,
    /// Change the entity.
    Write(Write<E>),
}

impl<E: Entity> Clone for Write<E> {
    fn clone(&self) -> Self {
        Write {
            command: self.command.clone(),
            conditions: self.conditions.clone(),
            command_id: self.command_id,
            caller: self.caller.clone(),
            traceparent: self.traceparent.clone(),
            maybe_done: self.maybe_done,
        }
    }
}

impl<E: Entity> Clone for Op<E> {
    fn clone(&self) -> Self {
        match self {
            Op::Read => Op::Read,
            Op::Write(write) => Op::Write(write.clone()),
        }
    }
}

impl<E: Entity> Op<E> {
    /// Returns the name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Read => "Read",
            Op::Write(write) => E::command_name(&write.command),
        }
    }
}

/// The lease of a shard, as its holder sees it.
pub trait LeaseView {
    /// Returns whether the lease holds at `now`, by the holder's own clock and less the margin.
    fn holds(&self, now: MonoTime) -> bool;
}
