//! The bridge between a database in memory and a broker with the real protocol.

mod new_log;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use async_trait::async_trait;

use super::*;
use crate::actors::fake_store::{FakeStore, Fault, event, patient, until};
use crate::actors::members;
use crate::clock::SystemClock;
use crate::domain::cluster::NodeRole;
use crate::domain::topic_log::{LogAnchor, PartitionSight};
use crate::kafka::testing::{PATIENCE, Refusal, embedded, read_topic, settings};
use crate::kafka::{self, Consumer, Delivery, Incoming, Kafka, Names, Outgoing, Publisher, wire};

fn quick() -> Settings {
    Settings {
        poll_ms: 50,
        lease_ttl_ms: 600,
        depth_poll_ms: 50,
        retry_min_ms: 5,
        retry_max_ms: 50,
        store_timeout_ms: 1_000,
        drain_timeout_ms: 500,
        batch_rows_max: 16,
        log_check_ms: 200,
        replay: ReplayOf::Everything,
        park_min_ms: 20,
        park_max_ms: 200,
        ..Settings::default()
    }
}

struct Bridge {
    actor: ActorRef<BridgeMessage>,
    health: Health,
}

impl Bridge {
    async fn start(store: &Arc<FakeStore>, broker: Arc<dyn Broker>, owner: &str, settings: Settings) -> Self {
        let alone = members::alone("a".into(), "a#1".into(), NodeRole::ALL.into());
        Self::start_among(store, broker, owner, settings, alone, Arc::new(|_, _, _| {})).await
    }

    async fn start_among(
        store: &Arc<FakeStore>,
        broker: Arc<dyn Broker>,
        owner: &str,
        settings: Settings,
        members: Members,
        released: ReleasedHook,
    ) -> Self {
        let health = Health::default();
        let args = KafkaBridgeArgs {
            outbox: Arc::clone(store) as Arc<dyn OutboxStore>,
            logs: Arc::clone(store) as Arc<dyn TopicLogStore>,
            leases: Arc::clone(store) as Arc<dyn LeaseStore>,
            broker,
            health: health.clone(),
            clock: Arc::new(SystemClock),
            owner: owner.into(),
            members,
            released,
            settings,
        };
        let (actor, _) = KafkaBridge::spawn(None, KafkaBridge, args).await.expect("spawn");
        Bridge { actor, health }
    }

    fn status(&self) -> Status {
        self.health.snapshot().1["bridge"].clone()
    }

    fn explains(&self, what: &str) -> bool {
        matches!(self.status(), Status::Explained(reason) if reason.contains(what))
    }

    async fn ready(&self) {
        until("ready", || self.status() == Status::Ready).await;
    }

    async fn drain(&self) -> bool {
        let answer = self.actor.call(BridgeMessage::Drain, Some(PATIENCE)).await.expect("alive");
        let ractor::rpc::CallResult::Success(settled) = answer else { panic!("no answer to the drain") };
        settled
    }

    /// Ends the bridge as a crash does, without a drain.
    async fn kill(&self) {
        self.actor.kill();
        self.actor.wait(Some(PATIENCE)).await.expect("dead");
    }
}

/// Returns `versions` events of each of `patients`, interleaved.
fn workload(patients: usize, versions: i64) -> impl Iterator<Item = crate::domain::event::RecordedEvent> {
    (1..=versions).flat_map(move |version| (0..patients).map(move |n| event(n, version)))
}

/// Returns the versions of each patient in the order in which they first appear.
fn first_appearances(log: &[Incoming]) -> HashMap<crate::domain::ids::PatientId, Vec<i64>> {
    let mut seen: HashMap<_, Vec<i64>> = HashMap::new();
    for message in log {
        let observed = wire::decode(message).expect("readable");
        let versions = seen.entry(observed.patient_id).or_default();
        if !versions.contains(&observed.version) {
            versions.push(observed.version);
        }
    }
    seen
}

async fn assert_complete_and_in_order(kafka: &Kafka, patients: usize, versions: i64) -> Vec<Incoming> {
    let wanted = patients * versions as usize;
    let topic = kafka.names().topic;
    let log = read_topic(kafka, &topic, move |log| {
        log.len() >= wanted && first_appearances(log).values().map(Vec::len).sum::<usize>() >= wanted
    })
    .await;
    let seen = first_appearances(&log);
    for n in 0..patients {
        assert_eq!(seen.get(&patient(n)), Some(&(1..=versions).collect()), "patient {n}");
    }
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_published_in_order_and_marked() {
    let kafka = Kafka::connect(&settings("bridge")).expect("connect");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(40, 5));
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", quick()).await;
    until("all marked", || store.unpublished_count() == 0).await;
    assert_eq!(bridge.status(), Status::Ready);
    let log = assert_complete_and_in_order(&kafka, 40, 5).await;
    assert_eq!(log.len(), 200, "nothing twice on a good day");
    let trace = log[0].traceparent.as_deref().and_then(crate::context::TraceContext::parse).expect("a trace");
    assert_eq!(trace.trace_id, 0x0af7651916cd43dd8448eb211c80319c);
    assert_ne!(trace.span_id, 0xb7ad6b7169203331, "a hop of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nudge_is_faster_than_the_poll_and_a_lost_one_costs_only_time() {
    let kafka = Kafka::connect(&embedded("nudge")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let slow_poll = Settings { poll_ms: 60_000, lease_ttl_ms: 3_000, ..quick() };
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", slow_poll).await;
    bridge.ready().await;
    let mut times = Vec::new();
    for version in 1..=8 {
        let since = Instant::now();
        store.commit_all([event(0, version)]);
        bridge.actor.cast(BridgeMessage::Nudge).expect("alive");
        until("published", || store.unpublished_count() == 0).await;
        times.push(since.elapsed());
    }
    times.sort();
    println!("from commit to marked: {times:?}");
    assert!(times[3] < Duration::from_millis(300), "{times:?}");
    store.commit_all([event(0, 9)]);
    until("without a nudge", || store.unpublished_count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_broker_and_store_change_no_order_and_lose_nothing() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let kafka = Kafka::connect(&embedded("refusals")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let kinds =
        [Refusal::NotEnoughReplicas, Refusal::NotLeader, Refusal::Disconnect, Refusal::Desynchronized];
    let refusals: Vec<_> = (0..12).map(|_| kinds[rng.usize(..4)]).collect();
    let faults = [Fault::Unavailable, Fault::UnknownDone, Fault::UnknownNotDone, Fault::Panic];
    for call in ["unpublished", "mark_published", "republish_forgotten", "acquire", "renew"] {
        let ordered: Vec<_> = (0..4).map(|_| faults[rng.usize(..4)]).collect();
        store.order(call, &ordered);
    }
    kafka.refuse(&refusals);
    let _bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", quick()).await;
    for version in 1..=10 {
        store.commit_all((0..30).map(|n| event(n, version)));
        tokio::task::yield_now().await;
    }
    until("all marked", || store.unpublished_count() == 0).await;
    until("all faults met", || store.faults_left() == 0).await;
    assert_complete_and_in_order(&kafka, 30, 10).await;
}

/// A broker whose producer loses, delays and repeats messages at random, and may report a delivered one as
/// failed.
struct Unruly {
    kafka: Kafka,
    rng: Mutex<fastrand::Rng>,
}

impl Unruly {
    fn dice(&self, sides: u8) -> bool {
        self.rng.lock().expect("rng").u8(..sides) == 0
    }
}

#[async_trait]
impl Publisher for Unruly {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Delivery> {
        assert!(!self.dice(12), "as ordered: the task dies");
        if self.dice(3) {
            let pause = Duration::from_millis(self.rng.lock().expect("rng").u64(..30));
            tokio::time::sleep(pause).await;
        }
        let fate: Vec<u8> = batch.iter().map(|_| self.rng.lock().expect("rng").u8(..10)).collect();
        let sent: Vec<_> = batch.iter().zip(&fate).filter(|(_, f)| **f > 1).map(|(m, _)| m.clone()).collect();
        assert!(self.kafka.publisher().publish(&sent).await.iter().all(Delivery::is_delivered));
        // 0 and 1 were not sent; 2 was sent but is reported as failed.
        let failed = || Delivery::Failed("as ordered".into());
        let tell = |f: &u8| if *f > 2 { Delivery::Delivered(None) } else { failed() };
        fate.iter().map(tell).collect()
    }
}

#[async_trait]
impl Broker for Arc<Unruly> {
    async fn cluster_id(&self) -> kafka::Result<String> {
        self.kafka.cluster_id().await
    }

    async fn departure(&self, anchors: &[LogAnchor]) -> kafka::Result<Option<String>> {
        self.kafka.departure(anchors).await
    }

    async fn retention(&self) -> kafka::Result<Option<Duration>> {
        Ok(None)
    }

    fn renew_publisher(&self) {
        self.kafka.renew_publisher();
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(self) as Arc<dyn Publisher>
    }

    async fn consumer(&self) -> kafka::Result<Box<dyn Consumer>> {
        self.kafka.consumer().await
    }

    async fn watermarks(&self) -> kafka::Result<Vec<PartitionSight>> {
        self.kafka.watermarks().await
    }

    fn link(&self) -> kafka::Link {
        self.kafka.link()
    }

    async fn probe(&self) -> kafka::Result<()> {
        self.kafka.probe().await
    }

    fn names(&self) -> Names {
        self.kafka.names()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_unruly_producer_crashes_and_two_bridges_the_order_holds() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let kafka = Kafka::connect(&settings("unruly")).expect("connect");
    let unruly = Arc::new(Unruly { kafka: kafka.clone(), rng: Mutex::new(rng.fork()) });
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(20, 12));
    // Both bridges believe they hold the lease: each start is another owner, and the fake admits the second.
    let mut bridges = Vec::new();
    for n in 0..6 {
        let settings = Settings { lease_ttl_ms: 30, poll_ms: 10, ..quick() };
        bridges.push(Bridge::start(&store, Arc::new(Arc::clone(&unruly)), &format!("b{n}"), settings).await);
        let goal = store.unpublished_count().saturating_sub(rng.usize(1..60));
        until("some progress", || store.unpublished_count() <= goal).await;
        if rng.bool() {
            bridges.swap_remove(rng.usize(..bridges.len())).kill().await;
        }
    }
    bridges.push(Bridge::start(&store, Arc::new(Arc::clone(&unruly)), "last", quick()).await);
    until("all marked", || store.unpublished_count() == 0).await;
    assert_complete_and_in_order(&kafka, 20, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_comes_back_to_everything() {
    let settings = kafka::Settings { delivery_timeout_ms: 500, metadata_timeout_ms: 500, ..embedded("away") };
    let kafka = Kafka::connect(&settings).expect("connect");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(10, 1));
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", quick()).await;
    until("first", || store.unpublished_count() == 0).await;
    kafka.go_down();
    store.commit_all((2..=6).flat_map(|v| (0..10).map(move |n| event(n, v))));
    until("told", || bridge.explains("broker is away")).await;
    assert!(bridge.health.snapshot().0, "the node serves on");
    assert!(!bridge.drain().await, "nothing can be settled in time");
    drop(bridge);
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", quick()).await;
    kafka.come_up();
    until("all marked", || store.unpublished_count() == 0).await;
    bridge.ready().await;
    assert_complete_and_in_order(&kafka, 10, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_wait_too_long_are_told_although_the_broker_answers() {
    let kafka = Kafka::connect(&embedded("waiting")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let settings = Settings { waiting_max_ms: 300, ..quick() };
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", settings).await;
    bridge.ready().await;
    kafka.refuse(&[Refusal::NotEnoughReplicas; 10_000]);
    store.commit_all([event(0, 1)]);
    until("told", || bridge.explains("events wait for Kafka for longer than bridge.waiting_max_ms, 300 ms"))
        .await;
    kafka.refuse_no_more();
    bridge.ready().await;
    assert_eq!(store.unpublished_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bridge_works_and_the_other_takes_over_at_once_after_a_drain() {
    let kafka = Kafka::connect(&embedded("lease")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let long = Settings { lease_ttl_ms: 60_000, ..quick() };
    let first = Bridge::start(&store, Arc::new(kafka.clone()), "a", long.clone()).await;
    first.ready().await;
    let second = Bridge::start(&store, Arc::new(kafka.clone()), "b", long).await;
    until("standby", || second.explains("stands by")).await;
    store.commit_all(workload(5, 2));
    until("published", || store.unpublished_count() == 0).await;
    assert!(first.drain().await);
    until("taken over", || second.status() == Status::Ready).await;
    store.commit_all((0..5).map(|n| event(n, 3)));
    until("published", || store.unpublished_count() == 0).await;
    assert!(first.explains("stopping"));
    let log = assert_complete_and_in_order(&kafka, 5, 3).await;
    assert_eq!(log.len(), 15, "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_dies_is_replaced_when_its_lease_runs_out() {
    let kafka = Kafka::connect(&embedded("takeover")).expect("connect");
    let store = Arc::new(FakeStore::default());
    // A tick of 500 ms.
    let slow = Settings { lease_ttl_ms: 1_500, poll_ms: 60_000, ..quick() };
    let first = Bridge::start(&store, Arc::new(kafka.clone()), "a", slow.clone()).await;
    first.ready().await;
    let (standing, takes) = (Instant::now(), store.takes());
    let second = Bridge::start(&store, Arc::new(kafka.clone()), "b", slow).await;
    until("standby", || second.explains("stands by")).await;
    assert!(second.health.snapshot().0, "who stands by is no failure");
    until("some ticks", || store.takes() > takes + 4).await;
    assert!(standing.elapsed() > Duration::from_millis(1_500), "more than one question per tick");
    store.commit_all(workload(5, 1));
    until("published", || store.unpublished_count() == 0).await;
    first.kill().await;
    let killed = Instant::now();
    second.ready().await;
    println!("taken over after {:?}", killed.elapsed());
    // The time to live and a tick, plus some time for a busy machine. Any other wake-up comes only after a
    // minute.
    assert!(killed.elapsed() < Duration::from_millis(1_500 + 500 + 3_000), "{:?}", killed.elapsed());
    store.commit_all((0..5).map(|n| event(n, 2)));
    second.actor.cast(BridgeMessage::Nudge).expect("alive");
    until("published", || store.unpublished_count() == 0).await;
    assert_complete_and_in_order(&kafka, 5, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_leaves_tells_the_next_one() {
    let kafka = Kafka::connect(&embedded("told")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let long = Settings { lease_ttl_ms: 600_000, poll_ms: 600_000, ..quick() };
    let member = |name: &str| members::Member {
        name: name.into(),
        owner: format!("{name}#1").into(),
        roles: [NodeRole::Bridge].into(),
        draining: false,
        wire: None,
    };
    let view = members::View::new("a".into(), vec![member("a"), member("b")]);
    let sees = tokio::sync::watch::Sender::new(Arc::new(view)).subscribe();
    let second: Arc<std::sync::OnceLock<ActorRef<BridgeMessage>>> = Arc::default();
    let told = Arc::clone(&second);
    let released: ReleasedHook = Arc::new(move |kind, slices, to| {
        assert_eq!((kind, slices, &*to.name), (crate::domain::ids::Kind::Outbox, &[0][..], "b"));
        told.get().expect("started").cast(BridgeMessage::LeaseReleased).expect("alive");
    });
    let first = Bridge::start_among(&store, Arc::new(kafka.clone()), "a", long.clone(), sees, released).await;
    first.ready().await;
    let standby = Bridge::start(&store, Arc::new(kafka.clone()), "b", long).await;
    until("standby", || standby.explains("stands by")).await;
    assert!(second.set(standby.actor.clone()).is_ok());
    assert!(first.drain().await);
    standby.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_committed_late_is_found() {
    let kafka = Kafka::connect(&embedded("late")).expect("connect");
    let store = Arc::new(FakeStore::default());
    store.commit(10, event(1, 1));
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", quick()).await;
    until("the larger", || store.unpublished_count() == 0).await;
    store.commit(5, event(0, 1));
    bridge.actor.cast(BridgeMessage::Nudge).expect("alive");
    until("the smaller", || store.unpublished_count() == 0).await;
    assert_complete_and_in_order(&kafka, 2, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_forgot_is_published_to_the_next() {
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(10, 3));
    let settings = embedded("forgotten");
    let forgetful = Kafka::connect(&settings).expect("connect");
    let bridge = Bridge::start(&store, Arc::new(forgetful.clone()), "a", quick()).await;
    until("published", || store.unpublished_count() == 0).await;
    bridge.kill().await;
    drop(forgetful);
    let next = Kafka::connect(&settings).expect("connect");
    let _bridge = Bridge::start(&store, Arc::new(next.clone()), "a", quick()).await;
    assert_complete_and_in_order(&next, 10, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_at_the_start_is_explained() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("addr").port();
    let settings = kafka::Settings {
        brokers: format!("127.0.0.1:{port}"),
        metadata_timeout_ms: 100,
        ..embedded("start")
    };
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(2, 1));
    let kafka = Kafka::connect(&settings).expect("connect");
    let bridge = Bridge::start(&store, Arc::new(kafka), "a", quick()).await;
    until("told", || bridge.explains("broker is away")).await;
    assert_eq!(store.unpublished_count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_hold_back_their_patients_alone() {
    let kafka = Kafka::connect(&embedded("unreadable")).expect("connect");
    let store = Arc::new(FakeStore::default());
    // Patients 0 to 19 have one row each, and all but the last are unreadable: many more than one read
    // returns.
    store.commit_all(workload(20, 1));
    (1..=19).for_each(|seq| store.spoil(seq));
    store.commit_all((2..=3).flat_map(|version| (0..30).map(move |n| event(n, version))));
    let hour = 3_600_000;
    let narrow =
        Settings { window_rows_max: 8, read_rows_max: 4, park_min_ms: hour, park_max_ms: hour, ..quick() };
    let bridge = Bridge::start(&store, Arc::new(kafka.clone()), "a", narrow).await;
    // 19 patients with three rows each are still waiting.
    until("the others are published", || store.unpublished_count() == 57).await;
    until("told", || bridge.explains("19 events of the outbox are parked")).await;
    assert!(bridge.health.snapshot().0, "the node serves on");
    let log = read_topic(&kafka, &kafka.names().topic, |log| log.len() >= 23).await;
    let seen = first_appearances(&log);
    assert_eq!(seen[&patient(19)], [1, 2, 3]);
    assert!((0..19).all(|n| !seen.contains_key(&patient(n))), "nothing after what is held back");
}
