//! The relay over fakes that fail, hang, and count their calls.

mod parked;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ::time::macros::date;
use async_trait::async_trait;
use uuid::Uuid;

use super::*;
use crate::actors::members;
use crate::clock::SystemClock;
use crate::context::{RequestContext, TraceContext};
use crate::domain::account::{Account, AccountStatus};
use crate::domain::event::{OutboxEvent, RecordedEvent};
use crate::domain::ids::{AccountId, CommandId, EventId, PatientId};
use crate::domain::patient::{Patient, PatientDetails, PatientEvent};
use crate::domain::time::{MonoTime, Timestamp};
use crate::domain::topic_log::LogAnchor;
use crate::error::{Error, ErrorCode};
use crate::store::{self, OutboxDepth, OutboxRead, OutboxRows, ParkRow, PutBack, Queue, UnreadableRow};

/// The longest wait for a condition before a test fails. Generous, because machines are busy.
const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
const SPAN: u64 = 0xb7ad_6b71_6920_3331;

fn patient(seq: i64) -> PatientId {
    PatientId(Uuid::from_u128(u128::try_from(seq).unwrap()))
}

fn registration(seq: i64) -> OutboxEvent {
    let record = Patient {
        restricted: false,
        id: patient(seq),
        version: 1,
        created_at: Timestamp(0),
        details: PatientDetails {
            name: "Some Body".into(),
            email: format!("p{seq}@example.com").into(),
            address: "Somewhere".into(),
            date_of_birth: date!(1990 - 01 - 01),
            registered_date: date!(2026 - 01 - 01),
        },
    };
    let recorded = RecordedEvent {
        event_id: EventId(Uuid::from_u128(1_000 + record.id.0.as_u128())),
        command_id: CommandId(Uuid::nil()),
        event: PatientEvent::Registered(Arc::new(record)),
        at: Timestamp(0),
        subject: "someone".into(),
        traceparent: format!("00-{TRACE:032x}-{SPAN:016x}-01").into(),
        fingerprint: None,
    };
    OutboxEvent { seq, shard: 0, recorded, replay: false, parks: 0 }
}

/// An outbox in memory, with switches for what may go wrong.
#[derive(Default)]
struct FakeStore {
    rows: Mutex<BTreeMap<i64, OutboxEvent>>,
    spoiled: Mutex<Vec<i64>>,
    parked: Mutex<BTreeMap<i64, ParkRow>>,
    marked: Mutex<Vec<i64>>,
    reads: AtomicUsize,
    widest: AtomicUsize,
    reads_fail: AtomicBool,
    reads_panic: AtomicBool,
    marks_fail: AtomicBool,
    marks_hang: AtomicBool,
    marks_begun: AtomicUsize,
}

impl FakeStore {
    fn with(seqs: impl IntoIterator<Item = i64>) -> Arc<Self> {
        let store = Arc::new(FakeStore::default());
        store.add(seqs);
        store
    }

    fn add(&self, seqs: impl IntoIterator<Item = i64>) {
        self.rows.lock().unwrap().extend(seqs.into_iter().map(|seq| (seq, registration(seq))));
    }

    fn marked(&self) -> Vec<i64> {
        let mut marked = self.marked.lock().unwrap().clone();
        marked.sort_unstable();
        marked
    }
}

#[async_trait]
impl OutboxStore for FakeStore {
    async fn read_unpublished(&self, _: OutboxRead<'_>) -> store::Result<OutboxRows> {
        unreachable!("not the relay's")
    }

    async fn mark_published(&self, _: &[i64], _: i64, _: &[LogAnchor]) -> store::Result<bool> {
        unreachable!("not the relay's")
    }

    async fn park(&self, queue: Queue, rows: &[ParkRow]) -> store::Result<()> {
        assert_eq!(queue, Queue::Billing);
        self.parked.lock().unwrap().extend(rows.iter().map(|row| (row.seq, *row)));
        Ok(())
    }

    async fn republish_forgotten(&self, _: &str, _: Option<i64>, _: u32) -> store::Result<PutBack> {
        unreachable!("not the relay's")
    }

    async fn any_forgotten(&self, _: &str) -> store::Result<bool> {
        unreachable!("not the relay's")
    }

    async fn outbox_depth(&self) -> store::Result<OutboxDepth> {
        unreachable!("not the relay's")
    }

    async fn unbilled(&self, now: Timestamp, limit_rows: u32) -> store::Result<OutboxRows> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.widest.fetch_max(limit_rows as usize, Ordering::SeqCst);
        assert!(!self.reads_panic.swap(false, Ordering::SeqCst), "a panic on purpose");
        if self.reads_fail.load(Ordering::SeqCst) {
            return Err(store::Error::Unavailable("away on purpose".into()));
        }
        let (rows, parked) = (self.rows.lock().unwrap(), self.parked.lock().unwrap());
        let rows = rows.values().filter(|event| parked.get(&event.seq).is_none_or(|row| row.retry_at <= now));
        let spoiled = self.spoiled.lock().unwrap();
        let read = rows.take(limit_rows as usize).map(|event| {
            let (seq, patient_id) = (event.seq, event.recorded.patient_id());
            let broken = || store::Error::Broken("spoiled".into());
            let parks = parked.get(&seq).map_or(0, |row| row.parks);
            let event = OutboxEvent { parks, ..event.clone() };
            let read = if spoiled.contains(&seq) { Err(broken()) } else { Ok(event) };
            Ok((UnreadableRow { seq, patient_id, version: 1, parks }, read))
        });
        OutboxRows::gather(read, limit_rows)
    }

    async fn mark_billed(&self, seqs: &[i64]) -> store::Result<()> {
        self.marks_begun.fetch_add(1, Ordering::SeqCst);
        if self.marks_hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.marks_fail.load(Ordering::SeqCst) {
            return Err(store::Error::Unknown("cut off on purpose".into()));
        }
        self.rows.lock().unwrap().retain(|seq, _| !seqs.contains(seq));
        self.marked.lock().unwrap().extend(seqs);
        Ok(())
    }
}

/// The result of opening one patient's account.
#[derive(Clone, Copy)]
enum Fate {
    Refuse(ErrorCode),
    Panic,
    Hang,
}

/// Billing in memory: the same patient gets the same account.
#[derive(Default)]
struct FakeAccounts {
    fates: Mutex<HashMap<PatientId, Fate>>,
    everyone: Mutex<Option<Fate>>,
    asked: Mutex<Vec<(PatientId, RequestContext)>>,
    accounts: Mutex<HashMap<PatientId, Arc<Account>>>,
    at_once: AtomicUsize,
    at_once_most: AtomicUsize,
}

impl FakeAccounts {
    fn asked(&self, seq: i64) -> usize {
        self.asked.lock().unwrap().iter().filter(|(id, _)| *id == patient(seq)).count()
    }

    fn doom(&self, seqs: impl IntoIterator<Item = i64>, fate: Fate) {
        self.fates.lock().unwrap().extend(seqs.into_iter().map(|seq| (patient(seq), fate)));
    }
}

#[async_trait]
impl OpenAccounts for FakeAccounts {
    async fn open(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        name: &str,
        email: &str,
    ) -> crate::error::Result<Arc<Account>> {
        self.asked.lock().unwrap().push((id, ctx.clone()));
        let now_at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.at_once_most.fetch_max(now_at_once, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        let fate = self.everyone.lock().unwrap().or(self.fates.lock().unwrap().get(&id).copied());
        match fate {
            Some(Fate::Refuse(code)) => return Err(Error::new(code, "on purpose")),
            Some(Fate::Panic) => panic!("on purpose"),
            Some(Fate::Hang) => std::future::pending::<()>().await,
            None => {}
        }
        let account = || {
            Arc::new(Account {
                id: AccountId(Uuid::now_v7()),
                patient_id: id,
                name: name.into(),
                email: email.into(),
                status: AccountStatus::Active,
                opened_at: Timestamp(0),
            })
        };
        Ok(Arc::clone(self.accounts.lock().unwrap().entry(id).or_insert_with(account)))
    }
}

/// Returns settings with waits so short that the tests are quick.
fn quick() -> Settings {
    Settings {
        poll_ms: 10,
        open_timeout_ms: 30,
        store_timeout_ms: 200,
        pause_min_ms: 2,
        pause_max_ms: 20,
        row_backoff_min_ms: 2,
        row_backoff_max_ms: 20,
        park_min_ms: 5,
        park_max_ms: 40,
        ..Settings::default()
    }
}

fn args(store: &Arc<FakeStore>, accounts: &Arc<FakeAccounts>, settings: Settings) -> Args {
    Args {
        store: Arc::clone(store) as _,
        accounts: Arc::clone(accounts) as _,
        clock: Arc::new(SystemClock),
        health: Health::default(),
        leases: Arc::new(crate::actors::fake_store::FakeStore::default()),
        owner: "a#1".into(),
        members: members::alone("a".into(), "a#1".into(), NodeRole::ALL.into()),
        released: Arc::new(|_, _, _| {}),
        settings,
    }
}

async fn start(args: &Args) -> ActorRef<BillingRelayMessage> {
    Actor::spawn(None, BillingRelay, args.clone()).await.expect("the relay starts").0
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn health_of(args: &Args) -> Status {
    args.health.snapshot().1.get(NAME).cloned().expect("the relay said how it is")
}

#[tokio::test]
async fn every_registration_gets_one_account_and_its_trace_goes_on() {
    let (store, accounts) = (FakeStore::with(1..=40), Arc::new(FakeAccounts::default()));
    let args = args(&store, &accounts, Settings { batch_rows_max: 7, poll_ms: 60_000, ..quick() });
    let relay = start(&args).await;
    until("40 rows marked in batches of 7 by one tick", || store.marked().len() == 40).await;
    assert_eq!(accounts.accounts.lock().unwrap().len(), 40);
    {
        let asked = accounts.asked.lock().unwrap();
        assert_eq!(asked.len(), 40);
        for (id, ctx) in asked.iter() {
            let TraceContext { trace_id, parent_id, span_id, .. } = ctx.trace;
            assert!(trace_id == TRACE && parent_id == SPAN && span_id != SPAN);
            assert_eq!(&*ctx.caller.subject, "system:billing-relay");
            assert_eq!(ctx.command_id.0.as_u128(), 1_000 + id.0.as_u128());
        }
    }
    assert_eq!(health_of(&args), Status::Ready);
    store.add(41..=41);
    for _ in 0..100 {
        relay.cast(BillingRelayMessage::Nudge).unwrap();
    }
    until("a nudge is enough", || store.marked().len() == 41).await;
    relay.stop_and_wait(None, None).await.unwrap();
}

#[tokio::test]
async fn many_nudges_cause_few_rounds() {
    let (store, accounts) = (FakeStore::with([]), Arc::new(FakeAccounts::default()));
    let relay = start(&args(&store, &accounts, Settings { poll_ms: 60_000, ..quick() })).await;
    for _ in 0..1_000 {
        relay.cast(BillingRelayMessage::Nudge).unwrap();
    }
    ractor::call!(relay, BillingRelayMessage::Drain).expect("drained");
    assert!(store.reads.load(Ordering::SeqCst) < 500, "nudges are not rounds");
    relay.stop(None);
}

#[tokio::test]
async fn a_crash_between_open_and_mark_opens_again_and_marks_once() {
    let (store, accounts) = (FakeStore::with([7]), Arc::new(FakeAccounts::default()));
    store.marks_hang.store(true, Ordering::SeqCst);
    let args = args(&store, &accounts, quick());
    let relay = start(&args).await;
    until("the mark is in flight", || store.marks_begun.load(Ordering::SeqCst) == 1).await;
    let first = accounts.accounts.lock().unwrap()[&patient(7)].id;
    relay.kill_and_wait(None).await.unwrap();
    assert!(store.marked().is_empty());

    store.marks_hang.store(false, Ordering::SeqCst);
    let relay = start(&args).await;
    until("the row is marked", || store.marked() == [7]).await;
    assert_eq!(accounts.asked(7), 2);
    assert_eq!(accounts.accounts.lock().unwrap()[&patient(7)].id, first);
    relay.stop(None);
}

#[tokio::test]
async fn the_relay_outlives_a_store_that_fails_panics_hangs_or_does_not_mark() {
    let (store, accounts) = (FakeStore::with([]), Arc::new(FakeAccounts::default()));
    let args = args(&store, &accounts, quick());
    let relay = start(&args).await;
    until("ready", || health_of(&args) == Status::Ready).await;

    store.reads_fail.store(true, Ordering::SeqCst);
    until("told", || health_of(&args) == Status::Explained("the outbox does not answer".into())).await;
    store.add([1]);
    store.reads_fail.store(false, Ordering::SeqCst);
    until("recovered from failing reads", || store.marked() == [1]).await;

    store.reads_panic.store(true, Ordering::SeqCst);
    until("panicked", || !store.reads_panic.load(Ordering::SeqCst)).await;
    store.add([2]);
    until("recovered from a dead round", || store.marked() == [1, 2]).await;

    store.marks_fail.store(true, Ordering::SeqCst);
    store.add([3]);
    until("opened more than once", || accounts.asked(3) > 1).await;
    store.marks_fail.store(false, Ordering::SeqCst);
    until("marked in the end", || store.marked() == [1, 2, 3]).await;

    store.marks_hang.store(true, Ordering::SeqCst);
    store.add([4]);
    until("told of a store that hangs", || {
        health_of(&args) == Status::Explained("the outbox does not answer".into())
    })
    .await;
    store.marks_hang.store(false, Ordering::SeqCst);
    until("recovered from a hang", || store.marked() == [1, 2, 3, 4]).await;
    until("ready again", || health_of(&args) == Status::Ready).await;
    relay.stop(None);
}

#[tokio::test]
async fn poison_rows_do_not_keep_others_from_their_accounts() {
    let fates =
        [Fate::Refuse(ErrorCode::Internal), Fate::Refuse(ErrorCode::OutcomeUnknown), Fate::Panic, Fate::Hang];
    for fate in fates {
        // More failing rows than a batch holds, all of them older than the good rows.
        let (store, accounts) = (FakeStore::with(1..=20), Arc::new(FakeAccounts::default()));
        accounts.doom(1..=20, fate);
        let settings = Settings { batch_rows_max: 4, concurrency_max: 4, ..quick() };
        let args = args(&store, &accounts, settings);
        let relay = start(&args).await;
        until("poison is tried again", || accounts.asked(1) > 1).await;
        store.add(21..=60);
        until("the good rows get through", || store.marked() == (21..=60).collect::<Vec<_>>()).await;
        assert!((21..=60).all(|seq| accounts.asked(seq) == 1));
        until("told", || matches!(health_of(&args), Status::Explained(_))).await;
        accounts.fates.lock().unwrap().clear();
        until("mended rows get through", || store.marked().len() == 60).await;
        relay.stop_and_wait(None, None).await.unwrap();
    }
}

#[tokio::test]
async fn an_outage_of_billing_pauses_the_relay_and_ends_by_itself() {
    let (store, accounts) = (FakeStore::with(1..=200), Arc::new(FakeAccounts::default()));
    *accounts.everyone.lock().unwrap() = Some(Fate::Refuse(ErrorCode::Overloaded));
    let settings = Settings { concurrency_max: 4, poll_ms: 60_000, ..quick() };
    let args = args(&store, &accounts, settings);
    let relay = start(&args).await;
    until("told", || health_of(&args) == Status::Explained("accounts cannot be opened".into())).await;
    assert!(accounts.asked.lock().unwrap().len() < 50, "a round of an outage stops early");
    *accounts.everyone.lock().unwrap() = None;
    until("recovered without nudge or poll", || store.marked().len() >= 190).await;
    relay.stop(None);
}

#[tokio::test]
async fn no_more_accounts_at_once_and_no_wider_reads_than_the_limits() {
    let (store, accounts) = (FakeStore::with(1..=100), Arc::new(FakeAccounts::default()));
    accounts.doom(1..=50, Fate::Refuse(ErrorCode::Internal));
    let settings = Settings { batch_rows_max: 10, concurrency_max: 3, failing_rows_max: 60, ..quick() };
    let relay = start(&args(&store, &accounts, settings)).await;
    until("done", || store.marked().len() == 50).await;
    assert_eq!(accounts.at_once_most.load(Ordering::SeqCst), 3);
    assert!(store.widest.load(Ordering::SeqCst) <= 70);
    relay.stop(None);
}

#[tokio::test]
async fn a_drain_waits_for_the_round_and_begins_no_other() {
    let (store, accounts) = (FakeStore::with([1]), Arc::new(FakeAccounts::default()));
    accounts.doom([1], Fate::Hang);
    let relay = start(&args(&store, &accounts, quick())).await;
    until("opening", || accounts.asked(1) == 1).await;
    let reads = store.reads.load(Ordering::SeqCst);
    ractor::call_t!(relay, BillingRelayMessage::Drain, 60_000).expect("the round ends by its own limits");
    relay.cast(BillingRelayMessage::Nudge).unwrap();
    ractor::call_t!(relay, BillingRelayMessage::Drain, 60_000).expect("drained already");
    assert_eq!(store.reads.load(Ordering::SeqCst), reads);
    relay.stop(None);
}

#[tokio::test]
async fn one_relay_works_and_the_other_takes_over_when_it_leaves_or_dies() {
    let (store, accounts) = (FakeStore::with(1..=20), Arc::new(FakeAccounts::default()));
    let leases = Arc::new(crate::actors::fake_store::FakeStore::default());
    let with = |owner: &str| Args {
        leases: Arc::clone(&leases) as _,
        owner: owner.into(),
        health: Health::default(),
        ..args(&store, &accounts, Settings { lease_ttl_ms: 600, ..quick() })
    };
    let stands_by =
        |args: &Args| matches!(health_of(args), Status::Explained(why) if why.contains("stands by"));
    let (a, b, c) = (with("a#1"), with("b#1"), with("c#1"));
    let first = start(&a).await;
    until("the first works", || store.marked().len() == 20).await;
    let second = start(&b).await;
    until("the second stands by", || stands_by(&b)).await;
    assert!(b.health.snapshot().0, "who stands by is no failure");
    store.add(21..=40);
    for _ in 0..100 {
        second.cast(BillingRelayMessage::Nudge).unwrap();
    }
    until("the first goes on", || store.marked().len() == 40).await;
    assert!((1..=40).all(|seq| accounts.asked(seq) == 1), "an account was opened twice");

    ractor::call_t!(first, BillingRelayMessage::Drain, 60_000).expect("drained");
    let left = std::time::Instant::now();
    until("the second takes over", || health_of(&b) == Status::Ready).await;
    assert!(left.elapsed() < Duration::from_millis(400), "not before the lease has run out");
    store.add(41..=60);
    until("the second works", || store.marked().len() == 60).await;
    let third = start(&c).await;
    until("the third stands by", || stands_by(&c)).await;
    second.kill_and_wait(None).await.unwrap();
    store.add(61..=80);
    until("the third works", || store.marked().len() == 80).await;
    assert!((1..=80).all(|seq| accounts.asked(seq) == 1), "an account was opened twice");
    first.stop(None);
    third.stop(None);
}

#[test]
fn waits_double_up_to_their_bound_and_memory_has_one() {
    let settings = Settings { failing_rows_max: 3, ..Settings::default() };
    let mut backlog = Backlog::default();
    let now = MonoTime(1_000_000_000_000);
    let failed: Vec<_> = (0..5).map(|seq| (seq, ErrorCode::Unavailable)).collect();
    for round in 0..30u32 {
        let report = Report { window: Some((0..5).collect()), failed: failed.clone(), ..Report::default() };
        backlog.round_ended(&settings, Some(&report), now);
        let pause = backlog.resume_in(now).expect("nothing works").as_secs_f64() * 1_000.0;
        let full = f64::min(100.0 * f64::from(round.min(20)).exp2(), 5_000.0);
        assert!(pause >= full / 2.0 - 1.0 && pause <= full + 1.0, "{pause} ms in round {round}");
        assert_eq!(backlog.failing_rows(), 3);
    }
    assert!(backlog.plan(&settings, now).is_none());
    let plan = backlog.plan(&settings, now.plus(Duration::from_millis(5_001))).expect("the pause is over");
    assert_eq!((plan.limit_rows, plan.not_due.len()), (256 + 3, 3));
    let plan = backlog.plan(&settings, now.plus(Duration::from_millis(15_001))).expect("no pause");
    assert_eq!((plan.limit_rows, plan.due.len(), plan.not_due.len()), (259, 3, 0));
    // Rows that left the window are forgotten.
    backlog.round_ended(&settings, Some(&Report { window: Some([1].into()), ..Report::default() }), now);
    assert_eq!(backlog.failing_rows(), 1);
}
