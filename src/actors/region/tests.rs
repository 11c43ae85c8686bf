//! Region, shards, journal and directory together, over a store in memory with injected faults.

mod believed;
mod cluster;
mod hung_commit;
mod limits;
mod moves;
mod sum_leases;
mod tenure;
mod timed_leases;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use uuid::Uuid;

use super::*;
use crate::actors::address::Address;
use crate::actors::directory::{AskSettings, Asker, Directory, DirectoryArgs, DirectoryMessage};
use crate::actors::entity::{Applied, Decision, Loaded, Refused, Stamp, Write};
use crate::actors::journal::{Journal, JournalArgs};
use crate::actors::members;
use crate::actors::restart::RestartPolicy;
use crate::actors::shard;
use crate::actors::supervisor::{ChildSpec, Supervisor, SupervisorArgs};
use crate::clock::SystemClock;
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::Caller;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::{CommandId, Epoch, Kind, ShardNo};
use crate::domain::time::{Clock, Timestamp};
use crate::error::ErrorCode;
use crate::health::Health;
use crate::store::{self, AppendOutcome, LeaseStore};

/// A number to which commands add. Command 666 panics in the shard; command 0 is refused.
pub(super) struct Sum;

pub(super) struct SumAppend {
    id: Uuid,
    epoch: Epoch,
    shard: ShardNo,
    before: i64,
    after: i64,
    command: CommandId,
}

#[derive(Default)]
pub(super) struct SumStore {
    sums: Mutex<HashMap<Uuid, i64>>,
    done: Mutex<HashSet<CommandId>>,
    epochs: Mutex<HashMap<ShardNo, (i64, String)>>,
    /// The next commit is carried out, but its answer is lost.
    lose_answer: AtomicBool,
    /// As `lose_answer`, for every commit.
    lose_answers: AtomicBool,
    /// The task of the next commit panics before it does anything.
    panic: AtomicBool,
    /// Every read fails.
    away: AtomicBool,
    /// Commits wait for `go`.
    hold: AtomicBool,
    go: Notify,
    held: AtomicU32,
    commits: AtomicU32,
    /// No lease can be taken.
    refuse_leases: AtomicBool,
    leases_refused: AtomicU32,
    /// The next statement that takes leases, or renews them, is never answered.
    hang_taking: AtomicBool,
    hang_renewal: AtomicBool,
}

impl Entity for Sum {
    const KIND: Kind = Kind::Patient;
    type State = i64;
    type Command = i64;
    type Answer = i64;
    type Append = SumAppend;
    type Query = ();
    type QueryAnswer = usize;
    type Store = SumStore;

    fn command_name(_: &i64) -> &'static str {
        "Add"
    }

    fn read(state: &i64) -> Result<i64, Refused> {
        Ok(*state)
    }

    fn decide(id: Uuid, state: &i64, write: &Write<Self>, stamp: &Stamp) -> Decision<Self> {
        assert!(write.command != 666, "as asked");
        if write.command == 0 {
            return Decision::Refuse(Refused::NotFound);
        }
        Decision::Append(SumAppend {
            id,
            epoch: stamp.epoch,
            shard: stamp.shard,
            before: *state,
            after: state + write.command,
            command: write.command_id,
        })
    }

    fn presumed(_: &i64) -> Option<i64> {
        None
    }

    fn committed(append: &SumAppend) -> (i64, i64) {
        (append.after, append.after)
    }

    fn worth_keeping(_: &i64) -> bool {
        true
    }

    async fn load(store: &SumStore, id: Uuid, command: Option<CommandId>) -> store::Result<Loaded<Self>> {
        if store.away.load(Ordering::SeqCst) {
            return Err(store::Error::Unavailable("as asked".into()));
        }
        let state = store.sums.lock().unwrap().get(&id).copied().unwrap_or(0);
        let done = command.filter(|c| store.done.lock().unwrap().contains(c));
        let applied = done.map(|_| Applied { answer: state, fingerprint: None, at: Timestamp(0) });
        Ok(Loaded { state, applied })
    }

    async fn commit(
        store: &SumStore,
        batch: &[SumAppend],
        _audit: Option<&store::AuditBatch>,
    ) -> store::Result<Vec<AppendOutcome>> {
        assert!(!store.panic.swap(false, Ordering::SeqCst), "as asked");
        if store.hold.load(Ordering::SeqCst) {
            store.held.fetch_add(1, Ordering::SeqCst);
            store.go.notified().await;
        }
        store.commits.fetch_add(1, Ordering::SeqCst);
        let outcomes = batch.iter().map(|append| store.commit_one(append)).collect();
        let lose_all = store.lose_answers.load(Ordering::SeqCst);
        if store.lose_answer.swap(false, Ordering::SeqCst) || lose_all {
            return Err(store::Error::Unknown("as asked".into()));
        }
        Ok(outcomes)
    }

    async fn query(store: &SumStore, (): &()) -> store::Result<usize> {
        if store.hold.load(Ordering::SeqCst) {
            store.held.fetch_add(1, Ordering::SeqCst);
            store.go.notified().await;
        }
        Ok(store.sums.lock().unwrap().len())
    }
}

impl SumStore {
    /// Makes the store accept commits of `shard` only under `epoch`.
    pub(super) fn set_epoch(&self, shard: ShardNo, epoch: i64, owner: &str) {
        self.epochs.lock().unwrap().insert(shard, (epoch, owner.to_owned()));
    }

    fn commit_one(&self, append: &SumAppend) -> AppendOutcome {
        if self.epochs.lock().unwrap().get(&append.shard).is_none_or(|(epoch, _)| *epoch != append.epoch.0) {
            return AppendOutcome::Fenced;
        }
        let mut sums = self.sums.lock().unwrap();
        let sum = sums.entry(append.id).or_default();
        if *sum != append.before || !self.done.lock().unwrap().insert(append.command) {
            return AppendOutcome::Conflict;
        }
        *sum = append.after;
        AppendOutcome::Committed
    }
}

struct Rig {
    store: Arc<SumStore>,
    asker: Asker<Sum>,
    region: Address<RegionMessage<Sum>>,
    health: Health,
    supervisor: tokio::task::JoinHandle<()>,
}

const SHARDS: u16 = 4;

async fn rig(limits: shard::Limits, journal_queue_rows_max: usize) -> Rig {
    // Longer than any of these tests, so that a few changes never start a further transaction.
    rig_with(limits, journal_queue_rows_max, Duration::from_secs(60)).await
}

async fn rig_with(limits: shard::Limits, journal_queue_rows_max: usize, batch_wait: Duration) -> Rig {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Arc::new(SumStore::default());
    let health = Health::default();
    let (journal, region, directory) = (Address::default(), Address::default(), Address::default());
    let restart = RestartPolicy { restarts_max: 3, period_ms: 60_000, pause_ms: 1, pause_max_ms: 1 };
    let region_args = RegionArgs::<Sum> {
        store: Arc::clone(&store),
        leases: Arc::clone(&store) as Arc<dyn LeaseStore>,
        clock: Arc::clone(&clock),
        health: health.clone(),
        journal: journal.clone(),
        owner: "me#1".into(),
        members: members::alone("me".into(), "me#1".into(), NodeRole::ALL.into()),
        released: Arc::new(|_, _, _| {}),
        able: Arc::new(|_, _| {}),
        shards: SHARDS,
        limits,
        queries_max: 1,
        handovers_max: 2,
        lease_times: LeaseTimes {
            ttl: Duration::from_millis(300),
            margin: Duration::from_millis(10),
            acquire_poll: Duration::from_millis(20),
            alone_grace: Duration::from_millis(300),
        },
        restart,
    };
    let journal_args = JournalArgs::<Sum> {
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        limits: crate::actors::journal::Limits {
            queue_rows_max: journal_queue_rows_max,
            batch_rows_max: 8,
            batch_rows_min: 8,
            batch_wait,
            transactions_max: 2,
        },
        nudges: Vec::new(),
        audit: None,
    };
    let directory_args = DirectoryArgs::<Sum> {
        region: Some(region.clone()),
        courier: None,
        members: crate::actors::members::alone("me".into(), "me#1".into(), [NodeRole::Patient].into()),
        shards: SHARDS,
        clock: Arc::clone(&clock),
    };
    let children = vec![
        ChildSpec::new("journal", Journal::default, journal_args, journal),
        ChildSpec::new("region", Region::default, region_args, region.clone()),
        ChildSpec::new("directory", Directory::default, directory_args, Address::clone(&directory)),
    ];
    let args = SupervisorArgs { children, restart, clock: Arc::clone(&clock) };
    let (_, supervisor) = Actor::spawn(None, Supervisor, args).await.expect("starts");
    let directory: Address<DirectoryMessage<Sum>> = directory;
    let pauses = AskSettings {
        pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(20),
        moving_pause: Duration::from_millis(1),
        moving_pause_max: Duration::from_millis(20),
        no_node_wait: Duration::from_millis(100),
        waiting_max: 128,
    };
    Rig { store, asker: Asker::new(directory, clock, pauses), region, health, supervisor }
}

pub(super) const ROOMY: shard::Limits = shard::Limits {
    hot_entities_max: 100,
    active_entities_max: 100,
    entity_queue_max: 100,
    load_timeout: Duration::from_secs(2),
};

pub(super) fn ctx(budget_ms: u64) -> RequestContext {
    let budget = Duration::from_millis(budget_ms);
    RequestContext::new(Caller::system("test"), TraceContext::root(), &SystemClock, budget)
}

const ID: Uuid = Uuid::from_u128(7);

#[tokio::test]
async fn what_is_written_is_read_and_what_is_refused_is_not_written() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 5).await, Ok(5));
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 4).await, Ok(9));
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 0).await.map_err(|e| e.code), Err(ErrorCode::NotFound));
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(9));
    assert_eq!(rig.asker.query(&ctx(5_000), || ()).await, Ok(1));
    assert!(rig.health.snapshot().0);
}

#[tokio::test]
async fn a_lost_answer_is_looked_up_and_acts_once_under_a_new_epoch() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 5).await, Ok(5));
    let shard = crate::domain::ids::shard_of(ID, SHARDS);
    let epoch = |rig: &Rig| rig.store.epochs.lock().unwrap()[&shard].0;
    let before = epoch(&rig);
    rig.store.lose_answer.store(true, Ordering::SeqCst);
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 3).await, Ok(8));
    assert!(epoch(&rig) > before, "the zombie of an unknown outcome was not fenced");
    assert_eq!(rig.store.commits.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_panicking_commit_is_answered_and_repeated() {
    let rig = rig(ROOMY, 100).await;
    rig.store.panic.store(true, Ordering::SeqCst);
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 3).await, Ok(3));
    assert_eq!(rig.store.sums.lock().unwrap()[&ID], 3);
}

#[tokio::test]
async fn a_panic_in_a_shard_restarts_it_and_loses_nothing() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 5).await, Ok(5));
    // The poisonous command kills the shard at every attempt, until its deadline passes.
    let killer = ctx(30);
    assert_eq!(rig.asker.write(&killer, ID, 666).await.map_err(|e| e.code), Err(ErrorCode::OutcomeUnknown));
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(5));
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 1).await, Ok(6));
}

#[tokio::test]
async fn a_shard_whose_lease_is_not_to_be_had_after_a_panic_is_tried_again() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 5).await, Ok(5));
    rig.store.refuse_leases.store(true, Ordering::SeqCst);
    let killed = rig.asker.write(&ctx(30), ID, 666).await;
    assert_eq!(killed.map_err(|e| e.code), Err(ErrorCode::OutcomeUnknown));
    let refused = async {
        while rig.store.leases_refused.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("the shard asks for its lease");
    rig.store.refuse_leases.store(false, Ordering::SeqCst);
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(5));
}

#[tokio::test]
async fn a_shard_that_fails_too_often_fails_the_node() {
    let rig = rig(ROOMY, 100).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !rig.supervisor.is_finished() {
        assert!(tokio::time::Instant::now() < deadline, "the node did not give up");
        let _ = rig.asker.write(&ctx(50), ID, 666).await;
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.read(&ctx(5_000), Uuid::nil()).await, Ok(0));
    rig.store.away.store(true, Ordering::SeqCst);
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await.map_err(|e| e.code), Err(ErrorCode::Unavailable));
    rig.store.away.store(false, Ordering::SeqCst);
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(0));
}

#[tokio::test]
async fn another_owner_is_noticed_and_nothing_is_answered_from_memory() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 5).await, Ok(5));
    for (_, owner) in rig.store.epochs.lock().unwrap().values_mut() {
        *owner = "other#1".into();
    }
    // The next renewal reports the loss. From then on the shard is requested in vain.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while rig.asker.read(&ctx(40), ID).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "still answering from memory");
    }
    assert!(!rig.health.snapshot().0);
    for (_, owner) in rig.store.epochs.lock().unwrap().values_mut() {
        *owner = "me#1".into();
    }
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(5));
}

#[tokio::test]
async fn full_queues_are_said_to_be_full() {
    let rig = rig(shard::Limits { entity_queue_max: 1, active_entities_max: 2, ..ROOMY }, 1).await;
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(0));
    rig.store.hold.store(true, Ordering::SeqCst);
    let ask = |id: Uuid| {
        let asker = rig.asker.clone();
        tokio::spawn(async move { asker.write(&ctx(5_000), id, 1).await.map_err(|e| e.code) })
    };
    let mut answers: FuturesUnordered<_> = (0..4).map(|_| ask(ID)).collect();
    // One request commits and one waits. The other two are refused while the commit is held.
    for _ in 0..2 {
        let turned_away = answers.next().await.expect("an answer").expect("no panic");
        assert_eq!(turned_away, Err(ErrorCode::Overloaded));
    }
    rig.store.hold.store(false, Ordering::SeqCst);
    rig.store.go.notify_waiters();
    while let Some(answer) = answers.next().await {
        assert!(answer.expect("no panic").is_ok());
    }
}

#[tokio::test]
async fn a_full_journal_turns_away_and_what_waits_too_long_in_it_is_not_begun() {
    let rig = rig(ROOMY, 1).await;
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(0));
    rig.store.hold.store(true, Ordering::SeqCst);
    let ask = |n: u128, budget_ms| {
        let asker = rig.asker.clone();
        tokio::spawn(
            async move { asker.write(&ctx(budget_ms), Uuid::from_u128(n), 1).await.map_err(|e| e.code) },
        )
    };
    let first = ask(1, 5_000);
    while rig.store.held.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // One write is being committed. Of the next two, one fills the queue and the other is refused.
    let mut two: FuturesUnordered<_> = [ask(2, 300), ask(3, 300)].into_iter().collect();
    assert_eq!(two.next().await.expect("an answer").expect("no panic"), Err(ErrorCode::Overloaded));
    assert_eq!(two.next().await.expect("an answer").expect("no panic"), Err(ErrorCode::OutcomeUnknown));
    rig.store.hold.store(false, Ordering::SeqCst);
    rig.store.go.notify_waiters();
    assert_eq!(first.await.expect("no panic"), Ok(1));
    // The write that waited too long was never begun.
    assert_eq!(rig.asker.read(&ctx(5_000), Uuid::from_u128(2)).await, Ok(0));
    assert_eq!(rig.asker.read(&ctx(5_000), Uuid::from_u128(3)).await, Ok(0));
    assert_eq!(rig.store.commits.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn draining_ends_what_was_begun_and_releases_the_leases() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.read(&ctx(5_000), ID).await, Ok(0));
    rig.store.hold.store(true, Ordering::SeqCst);
    let writing = {
        let asker = rig.asker.clone();
        tokio::spawn(async move { asker.write(&ctx(5_000), ID, 2).await })
    };
    // A drain completes only commits in progress, so wait until the commit is.
    let (reply, drained) = tokio::sync::oneshot::channel();
    let begun = async { while rig.asker.read(&ctx(10), ID).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), begun).await.expect("the write was not begun");
    assert!(rig.region.cast(RegionMessage::Drain(reply.into())));
    rig.store.hold.store(false, Ordering::SeqCst);
    rig.store.go.notify_waiters();
    assert_eq!(writing.await.expect("no panic"), Ok(2));
    tokio::time::timeout(Duration::from_secs(10), drained).await.expect("drains").expect("answers");
    assert_eq!(rig.store.sums.lock().unwrap()[&ID], 2);
}
