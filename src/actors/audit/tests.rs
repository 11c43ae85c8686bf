//! The journal over a database that answers on command.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use ractor::ActorStatus;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use super::*;
use crate::audit::{Growth, read};
use crate::clock::SystemClock;
use crate::domain::access::{Action, Caller};
use crate::domain::audit::{Change, Outcome};
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::store::{AuditBatch, AuditFound, AuditHead, AuditSearch};

const PATIENCE: Duration = Duration::from_secs(20);

/// A database in which each append waits for a permit.
struct Gate {
    permits: Semaphore,
    /// The number of appends that arrived, and how many of them are still waiting.
    came: Semaphore,
    there: AtomicUsize,
    there_most: AtomicUsize,
    refuses: AtomicUsize,
    rows: Mutex<Vec<AuditBatch>>,
    /// How often the maintenance ran. Every second run fails.
    tended: AtomicUsize,
}

#[async_trait]
impl AuditStore for Gate {
    async fn append_audit(&self, batch: &AuditBatch) -> store::Result<()> {
        let there = self.there.fetch_add(1, Ordering::SeqCst) + 1;
        self.there_most.fetch_max(there, Ordering::SeqCst);
        self.came.add_permits(1);
        self.permits.acquire().await.expect("open").forget();
        self.there.fetch_sub(1, Ordering::SeqCst);
        let refuses =
            self.refuses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refuses.is_ok() {
            return Err(store::Error::Unavailable("as ordered".into()));
        }
        self.rows.lock().unwrap().push(batch.clone());
        Ok(())
    }

    async fn audit_heads(&self, _before: Option<Uuid>, _limit_rows: u32) -> store::Result<Vec<AuditHead>> {
        Ok(Vec::new())
    }

    async fn audit_batches(&self, _chain: Uuid, _seq: i64, _limit: u32) -> store::Result<Vec<AuditBatch>> {
        Ok(Vec::new())
    }

    async fn search_audit(&self, _search: &AuditSearch) -> store::Result<AuditFound> {
        Ok(AuditFound::default())
    }

    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> store::Result<Vec<bool>> {
        Ok(vec![true; changes.len()])
    }

    async fn tend_audit(&self) -> store::Result<Option<u32>> {
        match self.tended.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Ok(Some(3)),
            _ => Err(store::Error::Unavailable("as ordered".into())),
        }
    }
}

impl Gate {
    /// Waits until one more append has arrived.
    async fn visited(&self) {
        let came = tokio::time::timeout(PATIENCE, self.came.acquire()).await;
        came.expect("in time").expect("open").forget();
    }

    /// Returns the numbers of the accesses in each row.
    fn rows(&self) -> Vec<Vec<u128>> {
        let rows = self.rows.lock().unwrap();
        let entries = |row: &AuditBatch| read(&row.body, row.at).expect("ours").entries;
        rows.iter().map(|row| entries(row).iter().map(|access| access.trace_id).collect()).collect()
    }
}

struct Stage {
    gate: Arc<Gate>,
    args: AuditArgs,
    address: Address<AuditMessage>,
    handle: AuditHandle,
    journal: ActorRef<AuditMessage>,
}

impl Stage {
    async fn set(queue_max: usize, batch_max: usize) -> Stage {
        // Longer than any test, so that no batch counts as stuck, except in the test of that.
        let batch_wait_ms = 60_000;
        Stage::with(Settings { queue_max, batch_max, batch_wait_ms, ..Settings::default() }).await
    }

    async fn with(settings: Settings) -> Stage {
        let gate = Arc::new(Gate {
            permits: Semaphore::new(0),
            came: Semaphore::new(0),
            there: AtomicUsize::new(0),
            there_most: AtomicUsize::new(0),
            refuses: AtomicUsize::new(0),
            rows: Mutex::default(),
            tended: AtomicUsize::new(0),
        });
        let (store, clock): (Arc<dyn AuditStore>, Arc<dyn Clock>) =
            (Arc::clone(&gate) as _, Arc::new(SystemClock));
        let key = Key::of(b"a secret of the tests, of 32 bytes");
        let chains = Chains::new(
            key,
            "test".into(),
            Arc::clone(&store),
            Arc::clone(&clock),
            Duration::from_secs(60),
            Growth::default(),
        );
        let gathering = Arc::new(Gathering::new(settings.queue_max));
        let address = Address::default();
        let handle = AuditHandle::new(Arc::clone(&gathering), address.clone());
        let args = AuditArgs { store, clock, chains, settings, gathering };
        let journal = begin(&args, &address).await;
        Stage { gate, args, address, handle, journal }
    }

    /// Records access `n` in a task of its own, and waits until it has gathered or was refused.
    async fn record(&self, n: u128) -> JoinHandle<Result<()>> {
        let handle = self.handle.clone();
        let mut recording = Box::pin(async move { handle.record(access(n)).await });
        match futures::poll!(&mut recording) {
            std::task::Poll::Ready(result) => tokio::spawn(async move { result }),
            std::task::Poll::Pending => tokio::spawn(recording),
        }
    }
}

async fn begin(args: &AuditArgs, address: &Address<AuditMessage>) -> ActorRef<AuditMessage> {
    let (journal, _ended) = Actor::spawn(None, AuditJournal, args.clone()).await.expect("it starts");
    address.set(journal.clone());
    journal
}

fn access(n: u128) -> Access {
    Access {
        at: Timestamp(1),
        action: Action::PatientRead,
        outcome: Outcome::Done,
        caller: Caller::system("test"),
        patients: vec![PatientId(Uuid::from_u128(n))],
        trace_id: n,
        reason: None,
        change: None,
        detail: None,
    }
}

async fn told(recording: JoinHandle<Result<()>>) -> std::result::Result<(), ErrorCode> {
    let told = tokio::time::timeout(PATIENCE, recording).await.expect("in time");
    told.expect("no panic").map_err(|error| error.code)
}

#[tokio::test]
async fn who_records_is_told_when_it_is_durable_and_what_comes_meanwhile_goes_together() {
    let stage = Stage::set(100, 100).await;
    let first = stage.record(1).await;
    stage.gate.visited().await;
    let more = [stage.record(2).await, stage.record(3).await, stage.record(4).await];
    assert!(stage.gate.rows().is_empty() && !first.is_finished(), "nothing is durable yet");
    stage.gate.permits.add_permits(1);
    assert_eq!(told(first).await, Ok(()));
    stage.gate.visited().await;
    assert!(more.iter().all(|recording| !recording.is_finished()));
    stage.gate.permits.add_permits(1);
    for recording in more {
        assert_eq!(told(recording).await, Ok(()));
    }
    assert_eq!(stage.gate.rows(), [vec![1], vec![2, 3, 4]]);
    // An idle journal is notified of the next access.
    let last = stage.record(5).await;
    stage.gate.permits.add_permits(1);
    assert_eq!(told(last).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn none_of_many_is_left_behind_and_one_batch_is_written_at_a_time() {
    let stage = Stage::set(1_000, 7).await;
    stage.gate.permits.add_permits(1_000);
    let mut recorders = JoinSet::new();
    for recorder in 0..16_u128 {
        let handle = stage.handle.clone();
        recorders.spawn(async move {
            for n in 0..50 {
                handle.record(access(recorder * 50 + n)).await.expect("recorded");
            }
        });
    }
    tokio::time::timeout(PATIENCE, recorders.join_all()).await.expect("in time");
    let rows = stage.gate.rows();
    assert!(rows.iter().all(|row| row.len() <= 7), "no batch is larger than allowed");
    let mut recorded = rows.concat();
    recorded.sort_unstable();
    assert_eq!(recorded, (0..800).collect::<Vec<_>>(), "each once");
    assert_eq!(stage.gate.there_most.load(Ordering::SeqCst), 1);
}

/// A batch that hangs delays no other, and no more batches are in flight than the store allows.
#[tokio::test]
async fn a_batch_that_hangs_holds_up_no_other() {
    let stage = Stage::with(Settings { batch_wait_ms: 1, ..Settings::default() }).await;
    let mut recordings = Vec::new();
    for n in 1..=AUDIT_BATCHES_MAX as u128 {
        recordings.push(stage.record(n).await);
        stage.gate.visited().await;
    }
    recordings.push(stage.record(100).await);
    let beyond = tokio::time::timeout(Duration::from_millis(50), stage.gate.visited()).await;
    assert!(beyond.is_err(), "no further batch is begun");
    stage.gate.permits.add_permits(100);
    for recording in recordings {
        assert_eq!(told(recording).await, Ok(()));
    }
    assert_eq!(stage.gate.there_most.load(Ordering::SeqCst), AUDIT_BATCHES_MAX);
    let mut recorded = stage.gate.rows().concat();
    recorded.sort_unstable();
    assert_eq!(recorded, [1, 2, 3, 100]);
    let chains: std::collections::BTreeSet<_> =
        stage.gate.rows.lock().unwrap().iter().map(|row| row.chain).collect();
    assert_eq!(chains.len(), AUDIT_BATCHES_MAX, "two batches never have the same place");
}

#[tokio::test]
async fn beyond_the_limit_recorders_are_refused_and_the_others_are_not() {
    let stage = Stage::set(2, 100).await;
    let writing = stage.record(1).await;
    stage.gate.visited().await;
    let waiting = [stage.record(2).await, stage.record(3).await];
    assert_eq!(told(stage.record(4).await).await, Err(ErrorCode::Overloaded));
    stage.gate.permits.add_permits(2);
    for recording in [writing].into_iter().chain(waiting) {
        assert_eq!(told(recording).await, Ok(()));
    }
    assert_eq!(stage.gate.rows(), [vec![1], vec![2, 3]]);
}

#[tokio::test]
async fn who_cannot_be_recorded_is_told_and_the_next_batch_goes_on() {
    let stage = Stage::set(100, 100).await;
    stage.gate.refuses.store(1, Ordering::SeqCst);
    let lost = stage.record(1).await;
    stage.gate.visited().await;
    let next = stage.record(2).await;
    stage.gate.permits.add_permits(2);
    assert_eq!(told(lost).await, Err(ErrorCode::Unavailable));
    assert_eq!(told(next).await, Ok(()));
    assert_eq!(stage.gate.rows(), [vec![2]]);
}

#[tokio::test]
async fn what_has_gathered_when_a_journal_ends_is_written_by_the_next_one() {
    let stage = Stage::set(100, 100).await;
    let under_way = stage.record(1).await;
    stage.gate.visited().await;
    let waiting = stage.record(2).await;
    stage.journal.stop_and_wait(None, Some(PATIENCE)).await.expect("it stops");
    let next = begin(&stage.args, &stage.address).await;
    stage.gate.permits.add_permits(2);
    assert_eq!((told(under_way).await, told(waiting).await), (Ok(()), Ok(())));

    next.stop_and_wait(None, Some(PATIENCE)).await.expect("it stops");
    assert_eq!(next.get_status(), ActorStatus::Stopped);
    assert_eq!(told(stage.record(3).await).await, Err(ErrorCode::Unavailable), "nobody is there");
    begin(&stage.args, &stage.address).await;
    let after = stage.record(4).await;
    stage.gate.permits.add_permits(1);
    assert_eq!(told(after).await, Ok(()));
}

/// The maintenance runs at the start and at each timer message, also while a batch is in flight and after a
/// failure.
#[tokio::test]
async fn the_database_is_tended_again_and_again() {
    let stage = Stage::set(100, 100).await;
    let writing = stage.record(1).await;
    stage.gate.visited().await;
    for times in 1..=4 {
        let tended = async {
            while stage.gate.tended.load(Ordering::SeqCst) < times {
                tokio::time::sleep(Duration::from_millis(1)).await;
                stage.journal.send_message(AuditMessage::Tend).expect("it lives");
            }
        };
        tokio::time::timeout(PATIENCE, tended).await.expect("in time");
    }
    stage.gate.permits.add_permits(1);
    assert_eq!(told(writing).await, Ok(()));
}
