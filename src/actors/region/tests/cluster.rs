//! The rig for tests with several regions: nodes that share one table of expiring leases, a directory that
//! reaches them all, and writers and readers that run throughout.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use uuid::Uuid;

use super::super::*;
use super::timed_leases::Leases;
use super::{ROOMY, Sum, SumStore, ctx};
use crate::actors::address::Address;
use crate::actors::directory::{AskSettings, Asker, DirectoryMessage};
use crate::actors::entity::Op;
use crate::actors::journal::{self, Journal, JournalArgs, JournalMessage};
use crate::actors::members::{AbleHook, Member, ReleasedHook};
use crate::actors::reply::ReplyTo;
use crate::actors::restart::RestartPolicy;
use crate::clock::SystemClock;
use crate::context::TraceContext;
use crate::domain::access::Caller;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::{Epoch, Kind, ShardNo, shard_of};
use crate::domain::time::Clock;
use crate::health::Health;
use crate::store::LeaseStore;

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

type RegionRef = ActorRef<RegionMessage<Sum>>;
type Regions = Arc<Mutex<BTreeMap<String, (Arc<str>, RegionRef)>>>;

/// A substitute for a directory that reaches all regions. It asks the node where the shard is placed, or the
/// owner that a region has named.
struct Router;

#[derive(Clone)]
struct Routes {
    shards: u16,
    regions: Regions,
    view: watch::Receiver<Arc<View>>,
    hints: Arc<Mutex<HashMap<ShardNo, Arc<str>>>>,
}

impl Routes {
    fn region(&self, shard: ShardNo) -> Option<RegionRef> {
        let hint = self.hints.lock().unwrap().remove(&shard);
        let regions = self.regions.lock().unwrap();
        let hinted = hint.and_then(|owner| regions.values().find(|(known, _)| *known == owner));
        let view = self.view.borrow();
        let placed = || regions.get(&*view.placed(Kind::Patient, shard)?.name);
        hinted.or_else(placed).map(|(_, region)| region.clone())
    }
}

impl Actor for Router {
    type Msg = DirectoryMessage<Sum>;
    type State = Routes;
    type Arguments = Routes;

    async fn pre_start(&self, _: ActorRef<Self::Msg>, routes: Routes) -> Result<Routes, ActorProcessingErr> {
        Ok(routes)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        routes: &mut Routes,
    ) -> Result<(), ActorProcessingErr> {
        let DirectoryMessage::Ask(mut ask) = message else { return Ok(()) };
        let shard = shard_of(ask.id, routes.shards);
        let Some(region) = routes.region(shard) else {
            ask.reply.send(Err(Failure::NotServing(None)));
            return Ok(());
        };
        let (asked, hints) = (ask.reply, Arc::clone(&routes.hints));
        ask.reply = ReplyTo::away(move |answer| {
            if let Some(Err(Failure::NotServing(Some(owner)))) = &answer {
                hints.lock().unwrap().insert(shard, Arc::clone(owner));
            }
            if let Some(answer) = answer {
                asked.send(answer);
            }
        });
        let _ = region.send_message(RegionMessage::Ask(ask));
        Ok(())
    }
}

pub(super) struct Node {
    pub(super) owner: Arc<str>,
    region: RegionRef,
    journal: ActorRef<JournalMessage<Sum>>,
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) health: Health,
}

pub(super) struct Cluster {
    shards: u16,
    pub(super) times: LeaseTimes,
    pub(super) sums: Arc<SumStore>,
    pub(super) leases: Arc<Leases>,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) draining: BTreeSet<String>,
    /// Nodes that have reported that they cannot hold leases.
    pub(super) unable: Arc<Mutex<BTreeSet<String>>>,
    /// Nodes that cannot reach others and that others cannot reach.
    pub(super) hidden: BTreeSet<String>,
    /// Nodes that can reach all others except the front. The front cannot reach them either.
    pub(super) blind: BTreeSet<String>,
    pub(super) regions: Regions,
    view: watch::Sender<Arc<View>>,
    pub(super) asker: Asker<Sum>,
    pub(super) lose_hints: Arc<AtomicBool>,
    boots: u32,
}

pub(super) fn times(ttl_ms: u64) -> LeaseTimes {
    let ttl = Duration::from_millis(ttl_ms);
    LeaseTimes { ttl, margin: ttl / 10, acquire_poll: Duration::from_millis(20), alone_grace: ttl }
}

pub(super) fn member(name: &str, owner: Arc<str>, role: NodeRole, draining: bool) -> Member {
    Member { name: name.into(), owner, roles: [role].into(), draining, wire: None }
}

impl Cluster {
    pub(super) async fn new(shards: u16, times: LeaseTimes) -> Self {
        let sums = Arc::new(SumStore::default());
        let leases = Arc::new(Leases::new(Arc::clone(&sums)));
        let view = watch::Sender::new(Arc::new(View::new("front".into(), Vec::new())));
        let regions = Regions::default();
        let hints = Arc::default();
        let routes = Routes { shards, regions: Arc::clone(&regions), view: view.subscribe(), hints };
        let (router, _) = Actor::spawn(None, Router, routes).await.expect("starts");
        let directory = Address::default();
        directory.set(router);
        let pauses = AskSettings {
            pause: Duration::from_millis(5),
            pause_max: Duration::from_millis(50),
            moving_pause: Duration::from_millis(3),
            moving_pause_max: Duration::from_millis(25),
            no_node_wait: Duration::from_millis(100),
            waiting_max: 128,
        };
        let asker = Asker::new(directory, Arc::new(SystemClock), pauses);
        Cluster {
            shards,
            times,
            sums,
            leases,
            nodes: BTreeMap::new(),
            draining: BTreeSet::new(),
            unable: Arc::default(),
            hidden: BTreeSet::new(),
            blind: BTreeSet::new(),
            regions,
            view,
            asker,
            lose_hints: Arc::default(),
            boots: 0,
        }
    }

    /// Returns the view of `me` (`front` is not a node of its own here).
    pub(super) fn view_of(&self, me: &str) -> Arc<View> {
        let seen = |name: &&String| {
            let cut = me == "front" && self.blind.contains(*name);
            *name == me || !(cut || self.hidden.contains(*name) || self.hidden.contains(me))
        };
        let unable = self.unable.lock().unwrap();
        let nodes = self.nodes.keys().filter(seen).map(|name| {
            let draining = self.draining.contains(name) || unable.contains(name);
            member(name, Arc::clone(&self.nodes[name].owner), NodeRole::Patient, draining)
        });
        let mut members: Vec<_> = nodes.collect();
        if !self.hidden.contains(me) && !self.hidden.contains("front") && !self.blind.contains(me) {
            members.push(member("front", "front#1".into(), NodeRole::Front, false));
        }
        Arc::new(View::new(me.into(), members))
    }

    pub(super) fn publish(&self) {
        for (name, node) in &self.nodes {
            node.view.send_replace(self.view_of(name));
        }
        self.view.send_replace(self.view_of("front"));
    }

    fn hook(&self) -> ReleasedHook {
        let (regions, lose) = (Arc::clone(&self.regions), Arc::clone(&self.lose_hints));
        Arc::new(move |kind, shards, to| {
            assert_eq!(kind, Kind::Patient);
            if lose.load(Ordering::SeqCst) {
                return;
            }
            if let Some((_, region)) = regions.lock().unwrap().get(&*to.name) {
                let _ = region.send_message(RegionMessage::ReleasedElsewhere { shards: shards.to_vec() });
            }
        })
    }

    fn able_hook(&self, name: &str) -> AbleHook {
        let (unable, name) = (Arc::clone(&self.unable), name.to_owned());
        Arc::new(move |_, able| {
            match able {
                true => unable.lock().unwrap().remove(&name),
                false => unable.lock().unwrap().insert(name.clone()),
            };
        })
    }

    pub(super) async fn start(&mut self, name: &str) {
        self.boots += 1;
        let owner: Arc<str> = format!("{name}#{}", self.boots).into();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let journal_args = JournalArgs::<Sum> {
            store: Arc::clone(&self.sums),
            clock: Arc::clone(&clock),
            limits: journal::Limits {
                queue_rows_max: 1_000,
                batch_rows_max: 8,
                batch_rows_min: 8,
                batch_wait: Duration::from_millis(20),
                transactions_max: 2,
            },
            audit: None,
            nudges: Vec::new(),
        };
        let (journal, _) = Actor::spawn(None, Journal::default(), journal_args).await.expect("starts");
        let address = Address::default();
        address.set(journal.clone());
        let mine = member(name, Arc::clone(&owner), NodeRole::Patient, false);
        let view = watch::Sender::new(Arc::new(View::new(name.into(), vec![mine])));
        let health = Health::default();
        let args = RegionArgs::<Sum> {
            store: Arc::clone(&self.sums),
            leases: Arc::clone(&self.leases) as Arc<dyn LeaseStore>,
            clock,
            health: health.clone(),
            journal: address,
            owner: Arc::clone(&owner),
            members: view.subscribe(),
            released: self.hook(),
            able: self.able_hook(name),
            shards: self.shards,
            limits: ROOMY,
            queries_max: 1,
            handovers_max: 8,
            lease_times: self.times,
            restart: RestartPolicy::default(),
        };
        let (region, _) = Actor::spawn(None, Region::default(), args).await.expect("starts");
        self.regions.lock().unwrap().insert(name.into(), (Arc::clone(&owner), region.clone()));
        self.nodes.insert(name.into(), Node { owner, region, journal, view, health });
        self.publish();
        if self.view_of(name).get("front").is_some() {
            // The node reported itself as unable before it reached the front. Wait for its new report.
            until("able", async || !self.unable.lock().unwrap().contains(name)).await;
            self.publish();
        }
    }

    fn forget(&mut self, name: &str) -> Node {
        self.regions.lock().unwrap().remove(name);
        self.draining.remove(name);
        self.hidden.remove(name);
        self.unable.lock().unwrap().remove(name);
        let node = self.nodes.remove(name).expect("a node of that name");
        self.publish();
        node
    }

    /// Ends a node as SIGKILL does: nothing is handed over.
    pub(super) async fn kill(&mut self, name: &str) {
        let node = self.forget(name);
        // Cut the node off from the database too, as if the machine were gone.
        self.leases.cut.lock().unwrap().insert(node.owner.to_string());
        node.region.kill_and_wait(None).await.expect("dead");
        node.journal.kill_and_wait(None).await.expect("dead");
    }

    /// Stops a node as SIGTERM does.
    pub(super) async fn leave(&mut self, name: &str) {
        self.draining.insert(name.into());
        self.publish();
        let drained = self.nodes[name].region.call(RegionMessage::Drain, Some(PATIENCE)).await;
        assert!(matches!(drained, Ok(ractor::rpc::CallResult::Success(()))), "not drained");
        let node = self.forget(name);
        let kept = async || (0..self.shards).any(|n| self.leases.owner(n).as_deref() == Some(&*node.owner));
        if self.leases.slow.load(Ordering::SeqCst) {
            // Leases that were not released in time expire.
            until("its leases are free", async || !kept().await).await;
        } else {
            assert!(!kept().await, "a lease was kept");
        }
    }

    pub(super) async fn status(&self, name: &str) -> RegionStatus {
        status_of(&self.nodes[name].region).await.expect("an answer")
    }

    /// Returns the shards that a node serves.
    pub(super) async fn served(&self, name: &str) -> Vec<ShardNo> {
        let status = self.status(name).await;
        let serving = status.shards.iter().filter(|shard| shard.state == ShardState::Serving);
        serving.map(|shard| shard.shard).collect()
    }

    /// Waits until each shard is served exactly where it is placed.
    pub(super) async fn settled(&self) {
        let deadline = Instant::now() + PATIENCE;
        let placed = |name: &str| -> Vec<ShardNo> {
            let view = self.view.borrow();
            let here = |shard: &ShardNo| &*view.placed(Kind::Patient, *shard).expect("a node").name == name;
            (0..self.shards).filter(here).collect()
        };
        for name in self.nodes.keys() {
            loop {
                let status = self.status(name).await;
                let wanted = placed(name);
                let is =
                    |shard: &ShardStatus| shard.state == ShardState::Serving && wanted.contains(&shard.shard);
                if status.shards.len() == wanted.len() && status.shards.iter().all(is) {
                    break;
                }
                assert!(Instant::now() < deadline, "{name} has {status:?}");
                // The view includes whether each region can hold leases.
                self.publish();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Asks one region, and no other, for the first entity of a shard.
    pub(super) async fn ask(&self, name: &str, shard: ShardNo) -> Result<i64, Failure> {
        self.ask_of(name, id_in(shard, self.shards), Op::Read).await
    }

    /// Sends a request to one region, and no other.
    pub(super) async fn ask_of(&self, name: &str, id: Uuid, op: Op<Sum>) -> Result<i64, Failure> {
        let (reply, answer) = ReplyTo::here();
        let clock = SystemClock;
        let ask = Ask::<Sum> {
            id,
            op,
            trace: TraceContext::root(),
            deadline: clock.mono().plus(PATIENCE),
            sent_at: clock.mono(),
            caller: Caller::system("test"),
            reply,
        };
        self.nodes[name].region.send_message(RegionMessage::Ask(Box::new(ask))).expect("alive");
        // A shard that ends while it holds the request sends no answer.
        answer.await.unwrap_or(Err(Failure::Unknown))
    }
}

pub(super) async fn status_of(region: &RegionRef) -> Option<RegionStatus> {
    match region.call(RegionMessage::Status, Some(PATIENCE)).await {
        Ok(ractor::rpc::CallResult::Success(status)) => Some(status),
        _ => None,
    }
}

/// Returns the first id of the shard.
pub(super) fn id_in(shard: ShardNo, shards: u16) -> Uuid {
    ids_in(shard, shards).next().expect("one of them")
}

/// Returns the ids of the shard.
pub(super) fn ids_in(shard: ShardNo, shards: u16) -> impl Iterator<Item = Uuid> {
    (0..).map(Uuid::from_u128).filter(move |id| shard_of(*id, shards) == shard)
}

pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writers and readers of one entity per shard, which check their answers.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    /// The number of acknowledged writes, by shard.
    pub(super) acknowledged: Vec<Arc<AtomicUsize>>,
    tasks: Vec<tokio::task::JoinHandle<Vec<Duration>>>,
}

impl Load {
    pub(super) fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut tasks, mut all) = (Vec::new(), Vec::new());
        for shard in 0..cluster.shards {
            let id = id_in(shard, cluster.shards);
            let acknowledged = Arc::new(AtomicUsize::new(0));
            all.push(Arc::clone(&acknowledged));
            let (asker, ended, known) = (cluster.asker.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
            tasks.push(tokio::spawn(async move {
                let mut took = Vec::new();
                while !ended.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    let sum = asker.write(&ctx(60_000), id, 1).await.expect("no write fails");
                    took.push(begun.elapsed());
                    let before = known.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(sum, before as i64 + 1, "shard {shard}: lost or twice");
                }
                took
            }));
            let (asker, ended) = (cluster.asker.clone(), Arc::clone(&stop));
            tasks.push(tokio::spawn(async move {
                let mut took = Vec::new();
                while !ended.load(Ordering::SeqCst) {
                    let at_least = acknowledged.load(Ordering::SeqCst) as i64;
                    let begun = Instant::now();
                    let sum = asker.read(&ctx(60_000), id).await.expect("no read fails");
                    took.push(begun.elapsed());
                    assert!(sum >= at_least, "shard {shard}: {sum} is stale, {at_least} was acknowledged");
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
                took
            }));
        }
        Load { stop, acknowledged: all, tasks }
    }

    /// Stops the load. Returns how long each request took, in ascending order.
    pub(super) async fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::SeqCst);
        let mut took = Vec::new();
        for task in self.tasks {
            took.extend(task.await.expect("what was told holds"));
        }
        took.sort_unstable();
        took
    }
}

/// Reads the status of all regions in turn. After an epoch was seen serving, no smaller epoch may serve.
pub(super) fn watch_epochs(regions: Regions) -> (Arc<AtomicBool>, tokio::task::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    let task = tokio::spawn(async move {
        let mut newest: HashMap<ShardNo, (Epoch, String)> = HashMap::new();
        let mut looks = 0;
        while !ended.load(Ordering::SeqCst) {
            let all: Vec<_> =
                regions.lock().unwrap().iter().map(|(name, (_, r))| (name.clone(), r.clone())).collect();
            for (name, region) in all {
                let Some(status) = status_of(&region).await else { continue };
                for shard in status.shards.iter().filter(|shard| shard.state == ShardState::Serving) {
                    let epoch = shard.epoch.expect("what is served has an epoch");
                    let seen = newest.entry(shard.shard).or_insert((epoch, name.clone()));
                    assert!(epoch >= seen.0, "{name} believes {epoch} of {}, after {seen:?}", shard.shard);
                    assert!(epoch > seen.0 || seen.1 == name, "{name} and {} share {epoch}", seen.1);
                    *seen = (epoch, name.clone());
                    looks += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        looks
    });
    (stop, task)
}
