//! The journal: gathers the appends of all shards of one kind on this node into transactions (group commit).
//! Child of the node's supervisor.
//!
//! While a transaction is in flight, appends gather for the next one. So an idle system adds no wait, and a
//! busy one writes large batches. Several transactions may be in flight. A further one starts when enough
//! appends have gathered, or when one of them has waited longer than a commit normally takes, because the
//! transactions in flight may be stuck.
//!
//! Invariants:
//! - Every append ends in exactly one `Appended` to its shard, even if an actor or a task dies: see
//!   `AppendTicket`.
//! - No append waits for a transaction that hangs, as long as a further one may start.
//! - An append whose deadline passes before its transaction begins is not begun.
//! - `handle` never awaits.
//! - A commit is reported only after it is durable. Nudges follow the commit.
//! - A change and its audit entry commit in the same transaction, or neither does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use uuid::Uuid;

use super::entity::Entity;
use super::shard::{Ended, ShardMessage};
use crate::audit::Chains;
use crate::context::{Hop, TraceContext};
use crate::domain::time::{Clock, MonoTime};
use crate::store::{self, AppendOutcome};

/// The limits of a journal.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Appends that may wait for a transaction. Further ones end as `NotCommitted::Full`.
    pub queue_rows_max: usize,
    /// The maximum number of rows per transaction.
    pub batch_rows_max: usize,
    /// The number of waiting rows that starts a further transaction beside one in flight.
    pub batch_rows_min: usize,
    /// The longest time that a row waits for others to gather.
    pub batch_wait: Duration,
    /// The maximum number of transactions in flight.
    pub transactions_max: usize,
}

/// Why an append was not committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCommitted {
    /// The queue was full. The append was not begun.
    Full,
    /// The deadline passed in the queue. The append was not begun.
    Late,
    /// The store returned this error.
    Store(store::Error),
}

/// The result of an append.
pub type AppendResult = std::result::Result<AppendOutcome, NotCommitted>;

/// An append on its way to the database.
pub struct JournalEntry<E: Entity> {
    /// The data to write.
    pub append: E::Append,
    /// The time after which the transaction is not begun.
    pub deadline: MonoTime,
    /// The time at which the shard sent the append.
    pub sent_at: MonoTime,
    /// Reports the result to the shard.
    pub ticket: AppendTicket<E>,
}

/// The obligation to report the result of an append to its shard. A ticket that is dropped unused, by a dying
/// journal or a panicking task, reports an unknown outcome, so that no shard waits for ever.
pub struct AppendTicket<E: Entity> {
    id: Uuid,
    trace: TraceContext,
    clock: Arc<dyn Clock>,
    shard: Option<ActorRef<ShardMessage<E>>>,
}

impl<E: Entity> AppendTicket<E> {
    /// Creates the ticket for an append of entity `id` by `shard`, as a child of the trace context `trace`.
    pub fn new(
        id: Uuid,
        trace: TraceContext,
        clock: Arc<dyn Clock>,
        shard: ActorRef<ShardMessage<E>>,
    ) -> Self {
        AppendTicket { id, trace: trace.child(), clock, shard: Some(shard) }
    }

    /// Returns the trace context of the append.
    pub fn trace(&self) -> &TraceContext {
        &self.trace
    }

    /// Reports the result to the shard.
    pub fn end(mut self, result: AppendResult) {
        self.tell(result);
    }

    fn tell(&mut self, result: AppendResult) {
        if let Some(shard) = self.shard.take() {
            let ended = Ended { id: self.id, trace: self.trace, sent_at: self.clock.mono(), result };
            // A shard that has ended is replaced by one with a new epoch, which reads the database.
            let _ = shard.send_message(ShardMessage::Appended(Box::new(ended)));
        }
    }
}

impl<E: Entity> Drop for AppendTicket<E> {
    fn drop(&mut self) {
        self.tell(Err(NotCommitted::Store(store::Error::Unknown("the journal ended early".into()))));
    }
}

/// The messages of a journal.
pub enum JournalMessage<E: Entity> {
    /// From a shard: answered with `Appended`.
    Append(Box<JournalEntry<E>>),
    /// From the journal's own task: a transaction has ended.
    TransactionEnded,
    /// From the journal's own timer: the oldest waiting row may have waited long enough.
    Gathered,
    /// From the node when it stops: answered when nothing waits and nothing is in flight.
    Flush(RpcReplyPort<()>),
}

impl<E: Entity> ractor::Message for JournalMessage<E> {}

/// Called after each commit of at least one row. A hint that saves its receiver a poll.
pub type Nudge = Arc<dyn Fn() + Send + Sync>;

/// What a journal needs from the node.
pub struct JournalArgs<E: Entity> {
    /// The database.
    pub store: Arc<E::Store>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The limits of the journal.
    pub limits: Limits,
    /// Called after a commit.
    pub nudges: Vec<Nudge>,
    /// The chains for the audit entries of commits; `None` where nothing is audited.
    pub audit: Option<Chains>,
}

impl<E: Entity> Clone for JournalArgs<E> {
    fn clone(&self) -> Self {
        JournalArgs {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            limits: self.limits,
            nudges: self.nudges.clone(),
            audit: self.audit.clone(),
        }
    }
}

/// The actor.
pub struct Journal<E: Entity>(std::marker::PhantomData<E>);

impl<E: Entity> Default for Journal<E> {
    fn default() -> Self {
        Journal(std::marker::PhantomData)
    }
}

/// The state of one incarnation.
pub struct JournalState<E: Entity> {
    args: JournalArgs<E>,
    queue: VecDeque<JournalEntry<E>>,
    in_flight: usize,
    /// Whether a `Gathered` message is due.
    timed: bool,
    flushing: Vec<RpcReplyPort<()>>,
    meters: Meters,
}

/// The load of the journal now.
struct Meters {
    waiting_rows: Gauge,
    transactions: Gauge,
    rejected: Counter,
}

impl Meters {
    fn of<E: Entity>() -> Self {
        let kind = E::KIND.as_str();
        Meters {
            waiting_rows: metrics::gauge!("hygeia_journal_waiting_rows", "kind" => kind),
            transactions: metrics::gauge!("hygeia_journal_transactions", "kind" => kind),
            rejected: metrics::counter!("hygeia_journal_rejected_total", "kind" => kind),
        }
    }
}

impl<E: Entity> Actor for Journal<E> {
    type Msg = JournalMessage<E>;
    type State = JournalState<E>;
    type Arguments = JournalArgs<E>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: JournalArgs<E>,
    ) -> Result<Self::State, ActorProcessingErr> {
        let meters = Meters::of::<E>();
        let (queue, flushing) = (VecDeque::new(), Vec::new());
        Ok(JournalState { args, queue, in_flight: 0, timed: false, flushing, meters })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JournalMessage::Append(entry) => state.enqueue(*entry),
            JournalMessage::TransactionEnded => state.in_flight -= 1,
            JournalMessage::Gathered => state.timed = false,
            JournalMessage::Flush(reply) => state.flushing.push(reply),
        }
        state.start_transactions(&myself);
        state.measure();
        if state.in_flight == 0 && state.queue.is_empty() {
            for reply in state.flushing.drain(..) {
                let _ = reply.send(());
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
        // A journal has no children; the default would stop it at any event.
        Ok(())
    }
}

impl<E: Entity> JournalState<E> {
    fn enqueue(&mut self, entry: JournalEntry<E>) {
        if self.queue.len() >= self.args.limits.queue_rows_max {
            self.meters.rejected.increment(1);
            return entry.ticket.end(Err(NotCommitted::Full));
        }
        self.queue.push_back(entry);
    }

    fn start_transactions(&mut self, myself: &ActorRef<JournalMessage<E>>) {
        let limits = self.args.limits;
        while self.in_flight < limits.transactions_max && !self.queue.is_empty() {
            if self.in_flight > 0
                && self.queue.len() < limits.batch_rows_min
                && let Some(left) = self.left_to_gather()
            {
                return self.come_back_in(left, myself);
            }
            let batch = self.next_batch();
            if batch.is_empty() {
                continue;
            }
            self.in_flight += 1;
            let ended = TransactionGuard(myself.clone());
            let args = self.args.clone();
            let chains = args.audit.clone();
            tokio::spawn(async move {
                commit(args, batch).await;
                drop(ended);
                if let Some(chains) = chains {
                    chains.look().await;
                }
            });
        }
    }

    /// Returns how much longer the first row may wait for others, or `None` if it has waited long enough.
    fn left_to_gather(&self) -> Option<Duration> {
        let first = self.queue.front()?;
        let waited = self.args.clock.mono().since(first.sent_at);
        self.args.limits.batch_wait.checked_sub(waited).filter(|left| !left.is_zero())
    }

    fn come_back_in(&mut self, left: Duration, myself: &ActorRef<JournalMessage<E>>) {
        if !self.timed {
            self.timed = true;
            myself.send_after(left, || JournalMessage::Gathered);
        }
    }

    fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a queue has far fewer than 2^52 rows")]
        self.meters.waiting_rows.set(self.queue.len() as f64);
        #[expect(clippy::cast_precision_loss, reason = "there are a few of them")]
        self.meters.transactions.set(self.in_flight as f64);
    }

    /// Takes the oldest entries from the queue, and ends those whose deadline has passed.
    fn next_batch(&mut self) -> Vec<JournalEntry<E>> {
        let now = self.args.clock.mono();
        let mut batch = Vec::with_capacity(self.queue.len().min(self.args.limits.batch_rows_max));
        while batch.len() < self.args.limits.batch_rows_max
            && let Some(entry) = self.queue.pop_front()
        {
            if now < entry.deadline {
                batch.push(entry);
            } else {
                entry.ticket.end(Err(NotCommitted::Late));
            }
        }
        batch
    }
}

/// Reports the end of a transaction, even if its task panics.
struct TransactionGuard<E: Entity>(ActorRef<JournalMessage<E>>);

impl<E: Entity> Drop for TransactionGuard<E> {
    fn drop(&mut self) {
        let _ = self.0.send_message(JournalMessage::TransactionEnded);
    }
}

/// Runs one transaction, and reports the results to the shards and the nudges.
async fn commit<E: Entity>(args: JournalArgs<E>, batch: Vec<JournalEntry<E>>) {
    let begun = args.clock.mono();
    let (mut appends, mut waiting) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    for JournalEntry { append, sent_at, ticket, .. } in batch {
        appends.push(append);
        waiting.push((sent_at, ticket));
    }
    let result = commit_audited(&args, &appends).await;
    let took = args.clock.mono().since(begun);
    metrics::histogram!("hygeia_journal_commit_seconds", "kind" => E::KIND.as_str())
        .record(took.as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 rows")]
    metrics::histogram!("hygeia_journal_batch_rows", "kind" => E::KIND.as_str()).record(appends.len() as f64);
    if let Err(error) = &result {
        tracing::warn!(kind = E::KIND.as_str(), rows = appends.len(), %error, "a batch was not committed");
    }
    let mut outcomes = result.map(VecDeque::from);
    let mut committed = false;
    for (sent_at, ticket) in waiting {
        let result = match &mut outcomes {
            Ok(outcomes) => outcomes
                .pop_front()
                .ok_or_else(|| store::Error::Unknown("the store answered with too few outcomes".into())),
            Err(error) => Err(error.clone()),
        }
        .map_err(NotCommitted::Store);
        committed |= result == Ok(AppendOutcome::Committed);
        Hop {
            actor: "journal",
            message: "Append",
            entity: Some(ticket.id),
            trace: &ticket.trace,
            queued: begun.since(sent_at),
            handled: took,
            outcome: outcome_name(&result),
        }
        .log();
        ticket.end(result);
    }
    if committed {
        args.nudges.iter().for_each(|nudge| nudge());
    }
}

/// Commits the batch together with its audit entries. Without them, nothing is committed.
async fn commit_audited<E: Entity>(
    args: &JournalArgs<E>,
    appends: &[E::Append],
) -> store::Result<Vec<AppendOutcome>> {
    let accesses = || appends.iter().filter_map(E::access).collect::<Vec<_>>();
    let Some((chains, accesses)) = args.audit.as_ref().map(|chains| (chains, accesses())) else {
        return E::commit(&args.store, appends, None).await;
    };
    if accesses.is_empty() {
        return E::commit(&args.store, appends, None).await;
    }
    let chain = chains.take();
    let batch = chains.seal(&chain, accesses);
    let result = E::commit(&args.store, appends, Some(&batch)).await;
    chains.ended(chain, &batch, &result);
    result
}

fn outcome_name(result: &AppendResult) -> &'static str {
    match result {
        Err(NotCommitted::Full) => "full",
        Err(NotCommitted::Late) => "late",
        Ok(AppendOutcome::Committed) => "committed",
        Ok(AppendOutcome::EmailTaken) => "email_taken",
        Ok(AppendOutcome::Fenced) => "fenced",
        Ok(AppendOutcome::Conflict) => "conflict",
        Err(NotCommitted::Store(store::Error::Unavailable(_))) => "unavailable",
        Err(NotCommitted::Store(store::Error::Unknown(_))) => "unknown",
        Err(NotCommitted::Store(store::Error::Broken(_))) => "broken",
    }
}

#[cfg(test)]
mod invariants;
