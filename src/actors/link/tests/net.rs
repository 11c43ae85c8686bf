//! Nodes in one process whose wires are pipes. A test can make a pipe slow or lossy, or cut it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use prost::Message;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use time::macros::date;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::actors::address::Address;
use crate::actors::link::{Inbox, Links, Served, Settings};
use crate::actors::members::{FrameSink, Member, View, Wire};
use crate::actors::patients::Patients;
use crate::actors::region::RegionMessage;
use crate::clock::SystemClock;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::PatientId;
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::time::{Clock, Timestamp};
use crate::proto::cluster as pb;

/// The faults of the pipes.
#[derive(Default)]
pub(super) struct Weather {
    /// Lost frames per thousand.
    pub(super) lost_per_mille: AtomicU64,
    /// The longest delay of a frame, in microseconds.
    pub(super) delay_us_max: AtomicU64,
    /// Frames and items that were carried.
    pub(super) frames: AtomicUsize,
    pub(super) items: AtomicUsize,
}

impl Weather {
    pub(super) fn reset(&self) {
        self.frames.store(0, Ordering::SeqCst);
        self.items.store(0, Ordering::SeqCst);
    }
}

struct Pipe {
    wire: Wire,
    cut: Arc<AtomicBool>,
    held: watch::Sender<bool>,
    ended: CancellationToken,
}

/// One node.
pub(super) struct Node {
    pub(super) owner: Arc<str>,
    pub(super) links: Links,
    pub(super) view: watch::Sender<Arc<View>>,
    roles: BTreeSet<NodeRole>,
}

/// All nodes. At first each node sees every other one.
pub(super) struct Net {
    pub(super) nodes: BTreeMap<&'static str, Node>,
    pub(super) weather: Arc<Weather>,
    pipes: BTreeMap<(&'static str, &'static str), Pipe>,
    draining: Mutex<BTreeSet<&'static str>>,
}

/// The specification of a node.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) roles: &'static [NodeRole],
    pub(super) served: Served,
    pub(super) settings: Settings,
}

pub(super) fn spec(name: &'static str, roles: &'static [NodeRole], served: Served) -> Spec {
    Spec { name, roles, served, settings: Settings::default() }
}

fn owner(name: &str) -> Arc<str> {
    format!("{name}#1").into()
}

pub(super) fn net(seed: u64, specs: Vec<Spec>) -> Net {
    let weather = Arc::new(Weather::default());
    let sinks: BTreeMap<&'static str, Arc<OnceLock<FrameSink>>> =
        specs.iter().map(|spec| (spec.name, Arc::default())).collect();
    let names: Vec<&'static str> = sinks.keys().copied().collect();
    let mut pipes = BTreeMap::new();
    let mut ends = Vec::new();
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            let (send, receive) = mpsc::unbounded_channel::<Vec<u8>>();
            let cut = Arc::new(AtomicBool::new(false));
            let is_cut = Arc::clone(&cut);
            let ended = CancellationToken::new();
            let wire = Wire::new(ended.clone(), move |frame| {
                !is_cut.load(Ordering::SeqCst) && send.send(frame).is_ok()
            });
            let (held, holding) = watch::channel(false);
            pipes.insert((*from, *to), Pipe { wire, cut, held, ended });
            ends.push((*from, *to, receive, holding));
        }
    }
    let mut net =
        Net { nodes: BTreeMap::new(), weather: Arc::clone(&weather), pipes, draining: Mutex::default() };
    for spec in specs {
        let roles: BTreeSet<NodeRole> = spec.roles.iter().copied().collect();
        let me = Member {
            name: spec.name.into(),
            owner: owner(spec.name),
            roles: roles.clone(),
            draining: false,
            wire: None,
        };
        let (view, members) = watch::channel(Arc::new(View::new(spec.name.into(), vec![me])));
        let links = Links::start(members, Arc::new(SystemClock), &spec.settings, spec.served);
        let inbox = Inbox::default();
        assert!(sinks[spec.name].set(inbox.sink()).is_ok());
        inbox.open(&links);
        net.nodes.insert(spec.name, Node { owner: owner(spec.name), links, view, roles });
    }
    for name in &names {
        net.show(name, &names);
    }
    for (nth, (from, to, receive, held)) in ends.into_iter().enumerate() {
        let back = net.pipes[&(to, from)].wire.clone();
        let cut = Arc::clone(&net.pipes[&(from, to)].cut);
        let rng = fastrand::Rng::with_seed(seed.wrapping_add(nth as u64));
        tokio::spawn(pump(
            receive,
            owner(from),
            back,
            (cut, held),
            Arc::clone(&sinks[to]),
            Arc::clone(&weather),
            rng,
        ));
    }
    net
}

async fn pump(
    mut receive: mpsc::UnboundedReceiver<Vec<u8>>,
    from: Arc<str>,
    back: Wire,
    (cut, mut held): (Arc<AtomicBool>, watch::Receiver<bool>),
    sink: Arc<OnceLock<FrameSink>>,
    weather: Arc<Weather>,
    mut rng: fastrand::Rng,
) {
    while let Some(bytes) = receive.recv().await {
        let delay = weather.delay_us_max.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(rng.u64(0..=delay))).await;
        }
        if held.wait_for(|held| !held).await.is_err() {
            return;
        }
        let lost = rng.u64(0..1_000) < weather.lost_per_mille.load(Ordering::SeqCst);
        if lost || cut.load(Ordering::SeqCst) {
            continue;
        }
        if let Ok(frame) = pb::Frame::decode(&*bytes) {
            let items = frame.requests.len() + frame.replies.len() + frame.hints.len();
            weather.items.fetch_add(items, Ordering::SeqCst);
        }
        weather.frames.fetch_add(1, Ordering::SeqCst);
        (sink.get().expect("a sink"))(&from, &back, &bytes);
    }
}

impl Net {
    pub(super) fn links(&self, name: &str) -> &Links {
        &self.nodes[name].links
    }

    /// Sets the view of `name` to `others` and itself.
    pub(super) fn show(&self, name: &'static str, others: &[&'static str]) {
        let member = |other: &&'static str| {
            let node = &self.nodes[*other];
            let wire = (*other != name).then(|| self.pipes[&(name, *other)].wire.clone());
            let (owner, roles) = (Arc::clone(&node.owner), node.roles.clone());
            let draining = self.draining.lock().unwrap().contains(other);
            Member { name: (*other).into(), owner, roles, draining, wire }
        };
        let mut members: Vec<Member> = others.iter().filter(|other| **other != name).map(member).collect();
        members.push(member(&name));
        self.nodes[name].view.send_replace(Arc::new(View::new(name.into(), members)));
    }

    /// Lets every node see every other one, with `draining` marked as draining.
    pub(super) fn drain(&self, draining: &[&'static str]) {
        *self.draining.lock().unwrap() = draining.iter().copied().collect();
        let names: Vec<&'static str> = self.nodes.keys().copied().collect();
        names.iter().for_each(|name| self.show(name, &names));
    }

    /// With `cut`, frames between the two nodes are lost and sending fails.
    pub(super) fn cut(&self, one: &'static str, other: &'static str, cut: bool) {
        for ends in [(one, other), (other, one)] {
            self.pipes[&ends].cut.store(cut, Ordering::SeqCst);
        }
    }

    /// With `hold`, frames from one node to the other stay in transit until a call without it.
    pub(super) fn hold(&self, from: &'static str, to: &'static str, hold: bool) {
        self.pipes[&(from, to)].held.send_replace(hold);
    }

    /// Ends the session of the two nodes on the side of `name`, for good. Frames that are held on their way
    /// to `name` are not lost.
    pub(super) fn end_session(&self, name: &'static str, other: &'static str) {
        self.pipes[&(name, other)].ended.cancel();
    }

    /// Sends bytes from one node to the other.
    pub(super) fn send_raw(&self, from: &'static str, to: &'static str, frame: Vec<u8>) {
        assert!(self.pipes[&(from, to)].wire.send(frame));
    }
}

/// A region that passes every message to a function.
pub(super) struct Scripted;

/// The function of a scripted region.
pub(super) type Script = Arc<dyn Fn(RegionMessage<Patients>) + Send + Sync>;

impl Actor for Scripted {
    type Msg = RegionMessage<Patients>;
    type State = Script;
    type Arguments = Script;

    async fn pre_start(&self, _: ActorRef<Self::Msg>, script: Script) -> Result<Script, ActorProcessingErr> {
        Ok(script)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        script: &mut Script,
    ) -> Result<(), ActorProcessingErr> {
        script(message);
        Ok(())
    }
}

/// Returns the served parts of a node with a scripted region.
pub(super) async fn scripted(script: impl Fn(RegionMessage<Patients>) + Send + Sync + 'static) -> Served {
    let address = Address::default();
    let (region, _) = Actor::spawn(None, Scripted, Arc::new(script) as Script).await.expect("starts");
    address.set(region);
    Served { patients: Some(address), ..Served::default() }
}

/// A region that answers every request with the patient that was asked for.
pub(super) async fn answering() -> Served {
    scripted(|message| {
        if let RegionMessage::Ask(ask) = message {
            let patient = Arc::new(patient(ask.id));
            ask.reply.send(Ok(patient.into()));
        }
    })
    .await
}

/// A region that keeps every request.
pub(super) async fn holding() -> (Served, Arc<Mutex<Vec<RegionMessage<Patients>>>>) {
    let held = Arc::new(Mutex::new(Vec::new()));
    let hold = Arc::clone(&held);
    (scripted(move |message| hold.lock().unwrap().push(message)).await, held)
}

pub(super) fn patient(id: Uuid) -> Patient {
    Patient {
        restricted: false,
        id: PatientId(id),
        version: 3,
        created_at: Timestamp(1_700_000_000_000_001),
        details: PatientDetails {
            name: "Zoë Canary".into(),
            email: "Zoe.Canary@example.com".into(),
            address: "12 Canary Wharf".into(),
            date_of_birth: date!(1985 - 06 - 15),
            registered_date: date!(2024 - 01 - 10),
        },
    }
}

/// Waits for a condition; fails after 20 s.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = SystemClock.mono().plus(Duration::from_secs(20));
    while !condition() {
        assert!(SystemClock.mono() < deadline, "no patience left: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
