//! The invariants of the journal, with a store that commits on command and a shard that only records results.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::actors::entity::{Decision, Loaded, Refused, Stamp, Write};
use crate::clock::SystemClock;
use crate::domain::ids::{CommandId, Kind};
use crate::store::AuditBatch;

/// An entity whose rows are numbers.
struct Row;

/// A store whose transactions wait for a permit and return the prepared answers.
struct Paused {
    /// One permit lets one transaction continue.
    go: Semaphore,
    begun: Mutex<Vec<Vec<u64>>>,
    /// The answers to transactions, in reverse order. If there is none, every row is committed.
    answers: Mutex<Vec<store::Result<Vec<AppendOutcome>>>>,
}

impl Entity for Row {
    const KIND: Kind = Kind::Patient;
    type State = ();
    type Command = ();
    type Answer = ();
    type Append = u64;
    type Query = ();
    type QueryAnswer = ();
    type Store = Paused;

    fn command_name((): &()) -> &'static str {
        "Append"
    }

    fn read((): &()) -> Result<(), Refused> {
        Ok(())
    }

    fn decide(_: Uuid, (): &(), _: &Write<Self>, _: &Stamp) -> Decision<Self> {
        Decision::Answer(())
    }

    fn presumed((): &()) -> Option<()> {
        None
    }

    fn committed(_: &u64) -> ((), ()) {
        ((), ())
    }

    fn worth_keeping((): &()) -> bool {
        false
    }

    async fn load(_: &Paused, _: Uuid, _: Option<CommandId>) -> store::Result<Loaded<Self>> {
        Ok(Loaded { state: (), applied: None })
    }

    async fn commit(
        store: &Paused,
        batch: &[u64],
        _: Option<&AuditBatch>,
    ) -> store::Result<Vec<AppendOutcome>> {
        store.begun.lock().unwrap().push(batch.to_vec());
        store.go.acquire().await.expect("open").forget();
        let ordered = store.answers.lock().unwrap().pop();
        ordered.unwrap_or_else(|| Ok(vec![AppendOutcome::Committed; batch.len()]))
    }

    async fn query(_: &Paused, (): &()) -> store::Result<()> {
        Ok(())
    }
}

/// Passes on the result of each append.
struct Listener;

type Told = (u64, AppendResult);

impl Actor for Listener {
    type Msg = ShardMessage<Row>;
    type State = mpsc::UnboundedSender<Told>;
    type Arguments = mpsc::UnboundedSender<Told>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        told: Self::State,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(told)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        told: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let ShardMessage::Appended(ended) = message {
            let _ = told.send((ended.id.as_u128() as u64, ended.result));
        }
        Ok(())
    }
}

struct Rig {
    store: Arc<Paused>,
    journal: ActorRef<JournalMessage<Row>>,
    shard: ActorRef<ShardMessage<Row>>,
    told: mpsc::UnboundedReceiver<Told>,
    nudged: Arc<AtomicUsize>,
}

const LIMITS: Limits = Limits {
    queue_rows_max: 6,
    batch_rows_max: 3,
    batch_rows_min: 2,
    batch_wait: PATIENCE,
    transactions_max: 2,
};
const PATIENCE: Duration = Duration::from_secs(20);
const FAR: MonoTime = MonoTime(u64::MAX);

impl Rig {
    async fn new() -> Self {
        let store =
            Arc::new(Paused { go: Semaphore::new(0), begun: Mutex::default(), answers: Mutex::default() });
        let nudged = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&nudged);
        let args = JournalArgs::<Row> {
            store: Arc::clone(&store),
            clock: Arc::new(SystemClock),
            limits: LIMITS,
            nudges: vec![Arc::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            })],
            audit: None,
        };
        let (journal, _) = Actor::spawn(None, Journal::default(), args).await.expect("starts");
        let (sender, told) = mpsc::unbounded_channel();
        let (shard, _) = Actor::spawn(None, Listener, sender).await.expect("starts");
        Rig { store, journal, shard, told, nudged }
    }

    fn append_until(&self, row: u64, deadline: MonoTime) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let id = Uuid::from_u128(row.into());
        let ticket = AppendTicket::new(id, TraceContext::root(), clock, self.shard.clone());
        let entry = JournalEntry { append: row, deadline, sent_at: SystemClock.mono(), ticket };
        self.journal.send_message(JournalMessage::Append(Box::new(entry))).expect("it runs");
    }

    fn append(&self, rows: impl IntoIterator<Item = u64>) {
        rows.into_iter().for_each(|row| self.append_until(row, FAR));
    }

    /// Waits until `count` transactions have begun since the start. Returns all of them.
    async fn begun(&self, count: usize) -> Vec<Vec<u64>> {
        let there = async {
            loop {
                let begun = self.store.begun.lock().unwrap().clone();
                if begun.len() >= count {
                    return begun;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.expect("a transaction is begun")
    }

    async fn ended(&mut self) -> Told {
        tokio::time::timeout(PATIENCE, self.told.recv()).await.expect("a row ends").expect("it runs")
    }

    fn go(&self, transactions: usize) {
        self.store.go.add_permits(transactions);
    }
}

#[tokio::test]
async fn what_gathers_goes_into_batches_of_bounded_size_and_number() {
    let mut rig = Rig::new().await;
    rig.append([1]);
    assert_eq!(rig.begun(1).await, [[1]], "an idle journal waits for nothing");
    // While the first is in flight, the second transaction takes the gathered rows, and nothing starts a
    // third.
    rig.append([2, 3]);
    assert_eq!(rig.begun(2).await, [vec![1], vec![2, 3]]);
    rig.append([4, 5, 6, 7, 8, 9]);
    // One row more than the queue holds.
    rig.append([10]);
    assert_eq!(rig.ended().await, (10, Err(NotCommitted::Full)));
    assert_eq!(rig.store.begun.lock().unwrap().len(), 2, "two transactions at most");
    rig.go(1);
    // The third takes the oldest rows, as many as a batch holds.
    assert_eq!(rig.begun(3).await[2], [4, 5, 6]);
    rig.go(9);
    let mut committed = Vec::new();
    while committed.len() < 9 {
        let (row, result) = rig.ended().await;
        assert_eq!(result, Ok(AppendOutcome::Committed));
        committed.push(row);
    }
    committed.sort_unstable();
    assert_eq!(committed, (1..=9).collect::<Vec<_>>(), "each is told once");
    let rows: Vec<_> = rig.store.begun.lock().unwrap().concat();
    assert_eq!(rows, (1..=9).collect::<Vec<_>>(), "each is written once, in order");
}

#[tokio::test]
async fn an_append_whose_deadline_has_passed_is_not_begun() {
    let mut rig = Rig::new().await;
    rig.append([1]);
    rig.begun(1).await;
    rig.append_until(2, MonoTime(0));
    rig.append([3]);
    let told = rig.ended().await;
    assert_eq!(told, (2, Err(NotCommitted::Late)));
    rig.go(2);
    assert_eq!(rig.begun(2).await, [[1], [3]]);
}

#[tokio::test]
async fn each_row_is_told_its_own_outcome_and_whoever_follows_is_nudged_after_a_commit() {
    let mut rig = Rig::new().await;
    let outcomes = [AppendOutcome::Fenced, AppendOutcome::Committed];
    rig.store.answers.lock().unwrap().extend([Ok(outcomes.to_vec()), Ok(vec![AppendOutcome::Conflict])]);
    rig.append([1]);
    rig.begun(1).await;
    rig.append([2, 3]);
    rig.begun(2).await;
    assert_eq!(rig.nudged.load(Ordering::SeqCst), 0, "nothing is committed yet");
    rig.go(1);
    assert_eq!(rig.ended().await, (1, Ok(AppendOutcome::Conflict)));
    rig.go(1);
    let mut told = vec![rig.ended().await, rig.ended().await];
    told.sort_unstable_by_key(|(row, _)| *row);
    assert_eq!(told, [(2, Ok(outcomes[0])), (3, Ok(outcomes[1]))]);
    let flushed = rig.journal.call(JournalMessage::Flush, Some(PATIENCE)).await;
    assert!(flushed.is_ok_and(|flushed| flushed.is_success()));
    assert_eq!(rig.nudged.load(Ordering::SeqCst), 1, "once for the batch of which a row was committed");
}

#[tokio::test]
async fn what_the_store_does_not_say_is_unknown() {
    let mut rig = Rig::new().await;
    let away = store::Error::Unavailable("as asked".into());
    rig.store.answers.lock().unwrap().extend([Ok(vec![AppendOutcome::Committed]), Err(away.clone())]);
    rig.append([1]);
    rig.begun(1).await;
    rig.append([2, 3]);
    rig.begun(2).await;
    rig.go(1);
    assert_eq!(rig.ended().await, (1, Err(NotCommitted::Store(away))));
    rig.go(1);
    // The store answered for one row of two.
    assert_eq!(rig.ended().await, (2, Ok(AppendOutcome::Committed)));
    let (row, result) = rig.ended().await;
    let is_unknown = matches!(result, Err(NotCommitted::Store(store::Error::Unknown(_))));
    assert!(row == 3 && is_unknown, "{row} {result:?}");
}

#[tokio::test]
async fn a_flush_ends_when_nothing_waits_and_nothing_is_in_flight() {
    let mut rig = Rig::new().await;
    rig.append([1]);
    rig.begun(1).await;
    let (reply, flushed) = tokio::sync::oneshot::channel();
    rig.journal.send_message(JournalMessage::Flush(reply.into())).expect("it runs");
    let mut flushed = flushed;
    rig.append([2]);
    rig.go(1);
    assert_eq!(rig.ended().await.0, 1);
    // The second transaction begins after the first. While it is in flight, the flush waits.
    rig.begun(2).await;
    tokio::task::yield_now().await;
    assert!(flushed.try_recv().is_err(), "a row is still in flight");
    rig.go(1);
    assert_eq!(rig.ended().await.0, 2);
    tokio::time::timeout(PATIENCE, flushed).await.expect("flushed").expect("answered");
}

#[tokio::test]
async fn a_journal_that_dies_says_that_nobody_knows() {
    let mut rig = Rig::new().await;
    rig.append([1]);
    rig.begun(1).await;
    rig.append([2]);
    // Rows that wait die with the journal. Rows in flight have a task of their own.
    rig.journal.kill();
    let (row, result) = rig.ended().await;
    let is_unknown = matches!(result, Err(NotCommitted::Store(store::Error::Unknown(_))));
    assert!(row == 2 && is_unknown, "{row} {result:?}");
    rig.go(1);
    assert_eq!(rig.ended().await, (1, Ok(AppendOutcome::Committed)));
}
