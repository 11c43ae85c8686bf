//! How long a region relies on its leases, by a clock that only the test moves.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::super::*;
use super::cluster::until;
use super::{ROOMY, Sum, SumStore};
use crate::actors::address::Address;
use crate::actors::entity::Op;
use crate::actors::members;
use crate::actors::reply::ReplyTo;
use crate::actors::restart::RestartPolicy;
use crate::context::TraceContext;
use crate::domain::access::Caller;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::{Kind, ShardNo};
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::health::Health;
use crate::store::{self, LeaseRow, LeaseStore, OthersLease, Refenced, Taken, TakenLease, Wanted};

const TTL: Duration = Duration::from_secs(30);
const MARGIN: Duration = Duration::from_secs(3);
const ID: Uuid = Uuid::from_u128(7);

/// A clock set by hand.
#[derive(Default)]
struct Hand(AtomicU64);

impl Hand {
    fn set(&self, seconds: f64) {
        self.0.store((seconds * 1e9) as u64, Ordering::SeqCst);
    }

    fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    fn mono(&self) -> MonoTime {
        MonoTime(self.0.load(Ordering::SeqCst))
    }
}

/// Leases in memory. Time passes while a statement is in progress.
struct Slow {
    sums: SumStore,
    clock: Arc<Hand>,
    takes: Duration,
    renewals: AtomicUsize,
    /// Whether renewals end with an error, after the same time.
    cut: AtomicBool,
    /// The times to live that were passed to the store.
    told: Mutex<Vec<Duration>>,
}

#[async_trait]
impl LeaseStore for Slow {
    async fn shard_count(&self, proposed: u16) -> store::Result<u16> {
        Ok(proposed)
    }

    async fn take(&self, kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> store::Result<Taken> {
        self.told.lock().unwrap().push(ttl);
        let taken = self.sums.take(kind, wanted, owner, ttl).await;
        self.clock.pass(self.takes);
        taken
    }

    async fn refence(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> store::Result<Refenced> {
        self.sums.refence(kind, held, owner, ttl).await
    }

    async fn others(&self, kind: Kind, owner: &str) -> store::Result<Vec<OthersLease>> {
        self.sums.others(kind, owner).await
    }

    async fn renew(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> store::Result<Vec<ShardNo>> {
        self.told.lock().unwrap().push(ttl);
        let kept = self.sums.renew(kind, held, owner, ttl).await;
        self.clock.pass(self.takes);
        self.renewals.fetch_add(1, Ordering::SeqCst);
        match self.cut.load(Ordering::SeqCst) {
            true => Err(store::Error::Unavailable("as asked".into())),
            false => kept,
        }
    }

    async fn release(&self, kind: Kind, held: &[TakenLease], owner: &str) -> store::Result<()> {
        self.sums.release(kind, held, owner).await
    }

    async fn leases(&self, kind: Kind) -> store::Result<Vec<LeaseRow>> {
        self.sums.leases(kind).await
    }
}

struct Rig {
    clock: Arc<Hand>,
    leases: Arc<Slow>,
    region: ActorRef<RegionMessage<Sum>>,
}

impl Rig {
    /// Creates a region that asked for its leases at second 100 and got them `takes` later.
    async fn new(takes: Duration) -> Self {
        let clock = Arc::new(Hand::default());
        clock.set(100.0);
        let leases = Arc::new(Slow {
            sums: SumStore::default(),
            clock: Arc::clone(&clock),
            takes,
            renewals: AtomicUsize::default(),
            cut: AtomicBool::default(),
            told: Mutex::default(),
        });
        let args = RegionArgs::<Sum> {
            store: Arc::new(SumStore::default()),
            leases: Arc::clone(&leases) as Arc<dyn LeaseStore>,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            health: Health::default(),
            journal: Address::default(),
            owner: "me#1".into(),
            members: members::alone("me".into(), "me#1".into(), NodeRole::ALL.into()),
            released: Arc::new(|_, _, _| {}),
            able: Arc::new(|_, _| {}),
            shards: 1,
            limits: ROOMY,
            queries_max: 1,
            handovers_max: 1,
            lease_times: LeaseTimes { ttl: TTL, margin: MARGIN, acquire_poll: TTL, alone_grace: TTL },
            restart: RestartPolicy { restarts_max: 1, period_ms: 1_000, pause_ms: 1, pause_max_ms: 1 },
        };
        let (region, _) = Actor::spawn(None, Region::default(), args).await.expect("starts");
        let rig = Rig { clock, leases, region };
        until("it serves", async || rig.serves_now().await).await;
        rig
    }

    /// Returns whether the region answers a read at `second`.
    async fn serves(&self, second: f64) -> bool {
        self.clock.set(second);
        self.serves_now().await
    }

    async fn serves_now(&self) -> bool {
        let (reply, answer) = ReplyTo::here();
        let ask = Ask {
            id: ID,
            op: Op::Read,
            trace: TraceContext::root(),
            deadline: MonoTime(u64::MAX),
            sent_at: self.clock.mono(),
            caller: Caller::system("test"),
            reply,
        };
        self.region.send_message(RegionMessage::Ask(Box::new(ask))).expect("it runs");
        match answer.await.expect("an answer") {
            Ok(_) => true,
            Err(Failure::NotServing(_)) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Renews the leases at `second`, and returns after the store has answered.
    async fn renew(&self, second: f64) {
        let before = self.leases.renewals.load(Ordering::SeqCst);
        self.clock.set(second);
        self.region.send_message(RegionMessage::Tick).expect("it runs");
        until("it is renewed", async || self.leases.renewals.load(Ordering::SeqCst) > before).await;
    }
}

#[tokio::test]
async fn a_lease_is_believed_from_before_it_was_asked_for_less_the_margin() {
    let rig = Rig::new(Duration::from_secs(5)).await;
    // Requested at 100 and received at 105: until 100 + 30 - 3.
    assert!(rig.serves(105.0).await);
    assert!(rig.serves(126.999).await);
    assert!(!rig.serves(127.0).await, "the margin, or the time under way, is counted in");
    assert_eq!(*rig.leases.told.lock().unwrap(), [TTL], "the store is told the whole time to live");
}

#[tokio::test]
async fn a_renewal_is_believed_from_before_it_was_asked_for_less_the_margin() {
    let rig = Rig::new(Duration::from_secs(5)).await;
    rig.renew(110.0).await;
    // Requested at 110 and answered at 115: until 110 + 30 - 3.
    until("the renewal is noted", async || rig.serves(127.0).await).await;
    assert!(rig.serves(136.999).await);
    assert!(!rig.serves(137.0).await, "the margin, or the time under way, is counted in");
}

#[tokio::test]
async fn a_renewal_that_fails_prolongs_nothing() {
    let rig = Rig::new(Duration::from_secs(5)).await;
    rig.leases.cut.store(true, Ordering::SeqCst);
    rig.renew(110.0).await;
    // The next renewal begins only after the answer of the first was recorded.
    rig.renew(118.0).await;
    assert!(rig.serves(126.999).await);
    assert!(!rig.serves(127.0).await);
}

#[tokio::test]
async fn an_answer_that_comes_late_takes_nothing_back() {
    let rig = Rig::new(Duration::from_secs(5)).await;
    rig.renew(110.0).await;
    until("the renewal is noted", async || rig.serves(127.0).await).await;
    // A renewal that was requested earlier is answered now.
    let held = vec![TakenLease { shard: 0, epoch: crate::domain::ids::Epoch(1) }];
    let asked_at = MonoTime(101_000_000_000);
    let late = RegionMessage::Renewed { asked_at, held, result: Ok(vec![0]) };
    rig.region.send_message(late).expect("it runs");
    assert!(rig.serves(136.999).await);
}
