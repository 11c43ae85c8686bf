//! What the sharded core needs to know of a kind of entity: patients and accounts share one region,
//! one shard and one journal, and differ in this trait alone.

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
    /// Its name.
    const KIND: Kind;
    /// What the shard keeps in memory of one entity.
    type State: Clone + Send + Sync + 'static;
    /// A wish to change one entity.
    type Command: Clone + Send + Sync + 'static;
    /// What a caller is answered.
    type Answer: Clone + Send + Sync + 'static;
    /// What is written to the database.
    type Append: Send + Sync + 'static;
    /// A question about many entities, answered by the database.
    type Query: Send + Sync + 'static;
    /// Its answer.
    type QueryAnswer: Send + Sync + 'static;
    /// The store's trait that this kind needs.
    type Store: Send + Sync + ?Sized + 'static;

    /// The command's name in logs.
    fn command_name(command: &Self::Command) -> &'static str;

    /// What a reader is answered.
    ///
    /// # Errors
    /// There is nothing to read.
    fn read(state: &Self::State) -> Result<Self::Answer, Refused>;

    /// What a command comes to, by the pure rules.
    fn decide(id: Uuid, state: &Self::State, write: &Write<Self>, stamp: &Stamp) -> Decision<Self>;

    /// The state that a command may be decided on without reading it first, since only that one would let
    /// it through: a registration presumes that there is nothing. The store must refuse the append with
    /// `Conflict` if the state is another.
    fn presumed(command: &Self::Command) -> Option<Self::State>;

    /// The state and the answer once `append` is durable.
    fn committed(append: &Self::Append) -> (Self::State, Self::Answer);

    /// Whether an answer to a change holds whatever becomes of an earlier try of it that may still be under way. It does
    /// where the command is known to have been carried out, and not where it was found to change nothing.
    fn is_settled(_answer: &Self::Answer) -> bool {
        true
    }

    /// Whether a state is worth a place in memory. The absence of an entity is not: anyone could fill
    /// the memory with absences.
    fn worth_keeping(state: &Self::State) -> bool;

    /// Reads one entity, and what became of `command` if one is given.
    fn load(
        store: &Self::Store,
        id: Uuid,
        command: Option<CommandId>,
    ) -> impl Future<Output = store::Result<Loaded<Self>>> + Send;

    /// Notes that the hop `trace` commits `append`: what follows from the commit goes on from there.
    fn committed_by(_append: &mut Self::Append, _trace: &TraceContext) {}

    /// What the audit keeps of `append`; none of what is no access to a patient's record.
    fn access(_append: &Self::Append) -> Option<Access> {
        None
    }

    /// Commits a batch in one transaction, together with `audit`, which holds the accesses of all of it.
    fn commit(
        store: &Self::Store,
        batch: &[Self::Append],
        audit: Option<&AuditBatch>,
    ) -> impl Future<Output = store::Result<Vec<AppendOutcome>>> + Send;

    /// Answers a question about many entities.
    fn query(
        store: &Self::Store,
        query: &Self::Query,
    ) -> impl Future<Output = store::Result<Self::QueryAnswer>> + Send;
}

/// A command with what is recorded of its sender.
pub struct Write<E: Entity> {
    /// What is wanted.
    pub command: E::Command,
    /// Under what conditions.
    pub conditions: Conditions,
    /// The intention: the same id never acts twice.
    pub command_id: CommandId,
    /// Who wants it.
    pub caller: Caller,
    /// The hop that wants it. The hop that commits it is recorded in its place (`Entity::committed_by`).
    pub traceparent: Box<str>,
    /// Whether an earlier try may have been carried out: then the database is asked first.
    pub maybe_done: bool,
}

/// What a decision takes from outside of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The time of the event.
    pub now: Timestamp,
    /// The id of the event, drawn for it.
    pub event_id: EventId,
    /// The shard that decides.
    pub shard: ShardNo,
    /// The epoch it decides under.
    pub epoch: Epoch,
}

/// What the rules say.
pub enum Decision<E: Entity> {
    /// Write this, then answer.
    Append(E::Append),
    /// Nothing is to be done; answer this.
    Answer(E::Answer),
    /// No.
    Refuse(Refused),
}

/// An entity as read from the database.
pub struct Loaded<E: Entity> {
    /// Its state.
    pub state: E::State,
    /// What became of the command asked for, if it was carried out.
    pub applied: Option<Applied<E::Answer>>,
}

/// A change that was carried out.
#[derive(Clone)]
pub struct Applied<A> {
    /// What was answered, or would have been.
    pub answer: A,
    /// What the request said, if its caller may repeat it under a key.
    pub fingerprint: Option<Fingerprint>,
    /// When it was decided.
    pub at: Timestamp,
}

impl<A> Applied<A> {
    /// What to say at `now` to who asks for it again under `conditions`.
    ///
    /// # Errors
    /// The key stands for another request, or is too old.
    pub fn again(self, conditions: &Conditions, now: Timestamp) -> Result<A, Refused> {
        match repetition(conditions.fingerprint, self.fingerprint, self.at, now) {
            Repetition::Same => Ok(self.answer),
            Repetition::Another => Err(Refused::KeyReused),
            Repetition::Expired => Err(Refused::KeyExpired),
        }
    }
}

/// A refusal by the rules: final, and nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no such entity.
    NotFound,
    /// The id is taken.
    IdTaken,
    /// The e-mail address is taken.
    EmailTaken,
    /// It is restricted, and the caller may not see it.
    Restricted,
    /// The entity has another version than the caller expects.
    OtherVersion,
    /// Another request was carried out under the same key.
    KeyReused,
    /// A request was carried out under the same key, too long ago to be answered again.
    KeyExpired,
}

impl Refused {
    /// Whether it holds whatever becomes of an earlier try of the same command that may still be under way. It does where
    /// the id or the command id is taken: what still arrives is refused for that too.
    pub const fn is_settled(self) -> bool {
        matches!(self, Refused::IdTaken | Refused::KeyReused | Refused::KeyExpired)
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The rules say no.
    Refused(Refused),
    /// Too many wait. Nothing was done.
    Busy,
    /// The deadline passed before it was begun. Nothing was done.
    Expired,
    /// This shard is not served here now. Nothing was done; ask again: the owner of its lease
    /// (`node-name#boot-id`), if whoever says so knows another one.
    NotServing(Option<Arc<str>>),
    /// No live node has the role that would serve it. Nothing was done; one may come back.
    NoNode(NodeRole),
    /// The node that was asked does not know this kind of request: it runs another version. Nothing was
    /// done.
    Unsupported,
    /// The database could not be read or written. Nothing was done.
    Unavailable,
    /// The commit's outcome is not known. Asking again with `maybe_done` is safe.
    Unknown,
}

impl Failure {
    /// The name in logs and metrics.
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

/// What is asked of one entity.
pub enum Op<E: Entity> {
    /// Its state as of now.
    Read,
    /// A change.
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
    /// The name in logs.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Read => "Read",
            Op::Write(write) => E::command_name(&write.command),
        }
    }
}

/// Whether and until when a shard is held, as the holder may believe it.
pub trait LeaseView {
    /// Whether the lease holds at this moment, by the holder's own clock, with the margin taken off.
    fn holds(&self, now: MonoTime) -> bool;
}
