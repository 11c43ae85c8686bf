//! The actor that keeps the sessions of a node. Child of the node's supervisor; supervises the `Gate`, the
//! `Desk` and every session, so that it learns of the end of a session at once.
//!
//! The actor awaits only the start of other actors, which just set up their memory. Connecting, handshakes
//! and pings run in tasks that report back. When this actor ends, its tasks and sessions end with it.

mod admission;
mod pulse;
mod sight;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::background::Tasks;
use super::super::members::{FrameSink, Member, View};
use super::gate::{Announced, Gate, GateArgs, Links};
use super::greeting::{Guest, Refusal};
use super::net::{self, Net, Opened};
use super::session::{Carrier, Desk, Session};
use super::status::{Fatal, SessionInfo};
use super::targets::Targets;
use super::{NodeAddress, TARGET};
use crate::domain::time::{Clock, MonoTime};
use crate::proto::cluster::{Outcome, PeerState};

/// The process group of the gates; the same in every version.
pub(super) const SCOPE: &str = "hygeia";
pub(super) const GROUP: &str = "gates";

/// A request for a session from a node that has passed the handshake.
pub(super) struct Admission {
    pub(super) guest: Guest,
    /// The number of the target, if this node dialled.
    pub(super) dialled: Option<u64>,
    /// Receives the number of the session, or the reason for the refusal.
    pub(super) reply: RpcReplyPort<Result<u64, Outcome>>,
}

/// The messages of the actor.
#[derive(RactorMessage)]
pub(super) enum PeersMessage {
    /// From a timer, often: handle everything that is due.
    Tick,
    /// From a connection that completed the handshake. Answered at once, or after the other incarnation was
    /// probed.
    Admit(Box<Admission>),
    /// From the task that probed the other incarnation.
    Probed { held: u64, alive: bool, admission: Box<Admission> },
    /// From an admitted connection, which is now open.
    Adopt { ticket: u64, opened: Box<Opened> },
    /// From an admitted connection that failed.
    Abandon { ticket: u64 },
    /// From a connection: the peer reported that this node's name is taken.
    NameTaken,
    /// From the task that dialled.
    Dialled { target: u64, address: String, result: Result<(), Refusal> },
    /// From the task that pinged.
    Ponged { ticket: u64, answer: Option<Vec<u8>>, round_trip: Duration },
    /// From the gate: a node has pinged and sent its state.
    Heard { ticket: u64, state: Box<PeerState> },
    /// From the handle: the draining flag of this node has changed.
    Draining,
    /// From the handle; answered at once.
    Sessions(RpcReplyPort<Vec<SessionInfo>>),
    /// From the handle: close all sessions. Answered when they are closed; the actor opens no further ones.
    Stop(RpcReplyPort<()>),
}

/// The arguments of the actor, which outlive a restart.
#[derive(Clone)]
pub(super) struct PeersArgs {
    pub(super) net: Arc<Net>,
    pub(super) listener: Arc<TcpListener>,
    pub(super) nodes: Arc<[NodeAddress]>,
    pub(super) join: Arc<[String]>,
    pub(super) me: Member,
    pub(super) sink: FrameSink,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) announced: Arc<Announced>,
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) fatal: watch::Sender<Option<Fatal>>,
    /// The next session number. Numbers are never reused, because ractor identifies remote actors by them.
    pub(super) tickets: Arc<AtomicU64>,
}

/// The actor.
pub(super) struct PeersActor;

/// The state of the actor.
pub(super) struct PeersManager {
    args: PeersArgs,
    sessions: BTreeMap<u64, Session>,
    targets: Targets,
    links: Links,
    carrier: Carrier,
    gate: ActorId,
    tasks: Tasks,
    /// Keeps accepting after the node has stopped, so that peers are refused at once instead of waiting. Ends
    /// with this actor.
    _accepting: JoinSet<()>,
    /// When this node last lost a live session, or when it started.
    seen_at: MonoTime,
    stopped: bool,
}

impl Drop for PeersManager {
    /// Without this actor no other node can be reached.
    fn drop(&mut self) {
        self.sessions.clear();
        self.publish();
    }
}

impl Actor for PeersActor {
    type Msg = PeersMessage;
    type State = PeersManager;
    type Arguments = PeersArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<PeersMessage>,
        args: PeersArgs,
    ) -> Result<PeersManager, ActorProcessingErr> {
        // Set the gauge to 0 at the start, so that a node that never finds another one is noticed.
        metrics::gauge!("hygeia_peer_sessions").set(0.0);
        let links = Links::default();
        let gate_args = GateArgs {
            links: Arc::clone(&links),
            announced: Arc::clone(&args.announced),
            sink: Arc::clone(&args.sink),
            peers: myself.clone(),
        };
        let (gate, _) = Actor::spawn_linked(None, Gate, gate_args, myself.get_cell()).await?;
        let (desk, _) = Actor::spawn_linked(None, Desk, (), myself.get_cell()).await?;
        pg::monitor_scope(SCOPE.to_owned(), myself.get_cell());
        pg::join_scoped(SCOPE.to_owned(), GROUP.to_owned(), vec![gate.get_cell()]);
        let settings = &args.net.settings;
        let carrier = Carrier {
            owner: Arc::clone(&args.me.owner),
            cookie: args.net.identity.cookie(),
            frame_max_bytes: settings.frame_max_bytes,
            sink: Arc::clone(&args.sink),
            desk,
        };
        let targets = Targets::new(
            Arc::clone(&args.me.name),
            &args.nodes,
            &args.join,
            settings.peers_max,
            settings.dial_pause(),
            settings.silence_max() * 2,
        );
        let mut accepting = JoinSet::new();
        accepting.spawn(net::accept(Arc::clone(&args.listener), Arc::clone(&args.net), myself.clone()));
        let tick =
            (settings.heartbeat_interval() / 10).clamp(Duration::from_millis(5), Duration::from_millis(50));
        myself.send_interval(tick, || PeersMessage::Tick);
        let stopped = args.fatal.borrow().is_some();
        let mut manager = PeersManager {
            sessions: BTreeMap::new(),
            targets,
            links,
            carrier,
            gate: gate.get_id(),
            tasks: Tasks::default(),
            _accepting: accepting,
            seen_at: args.clock.mono(),
            stopped,
            args,
        };
        manager.publish();
        Ok(manager)
    }

    async fn handle(
        &self,
        myself: ActorRef<PeersMessage>,
        message: PeersMessage,
        state: &mut PeersManager,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PeersMessage::Tick => state.tick(&myself),
            PeersMessage::Admit(admission) => state.admit(&myself, admission, None),
            PeersMessage::Probed { held, alive, admission } => {
                state.admit(&myself, admission, Some((held, alive)));
            }
            PeersMessage::Adopt { ticket, opened } => state.adopt(&myself, ticket, *opened).await,
            PeersMessage::Abandon { ticket } => state.end(ticket, "the connection came to nothing"),
            PeersMessage::NameTaken => state.name_taken(),
            PeersMessage::Dialled { target, address, result } => state.dialled(target, &address, result),
            PeersMessage::Ponged { ticket, answer, round_trip } => state.ponged(ticket, answer, round_trip),
            PeersMessage::Heard { ticket, state: said } => state.heard(ticket, *said),
            PeersMessage::Draining => state.drain(&myself),
            PeersMessage::Sessions(reply) => {
                let _ = reply.send(state.infos());
            }
            PeersMessage::Stop(reply) => {
                state.stop("this node leaves");
                let _ = reply.send(());
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<PeersMessage>,
        event: SupervisionEvent,
        state: &mut PeersManager,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Join(_, group, cells))
                if group == GROUP =>
            {
                cells.into_iter().for_each(|cell| state.gate_found(cell));
            }
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Leave(_, group, cells))
                if group == GROUP =>
            {
                cells.iter().for_each(|cell| state.gate_lost(cell));
            }
            SupervisionEvent::ActorTerminated(cell, _, _) | SupervisionEvent::ActorFailed(cell, _) => {
                let id = cell.get_id();
                if id == state.gate || id == state.carrier.desk.get_id() {
                    return Err("the gate or the desk ended".into());
                }
                state.session_ended(&cell);
            }
            _ => {}
        }
        Ok(())
    }
}

impl PeersManager {
    fn now(&self) -> MonoTime {
        self.args.clock.mono()
    }

    fn tick(&mut self, myself: &ActorRef<PeersMessage>) {
        if self.stopped {
            return;
        }
        let now = self.now();
        let handshake = self.args.net.settings.handshake_timeout();
        let late = |s: &&Session| !s.live && now.since(s.begun) >= handshake;
        let late: Vec<u64> = self.sessions.values().filter(late).map(|s| s.ticket).collect();
        for ticket in late {
            self.end(ticket, "the two did not see each other in time");
        }
        self.ping_those_due(myself, now);
        let settings = &self.args.net.settings;
        let lonely = self.sessions.is_empty() && now.since(self.seen_at) >= settings.silence_max();
        let sessions = &self.sessions;
        let connected = |name: &str| sessions.values().any(|s| *s.name == *name);
        for due in self.targets.due(now, lonely, connected) {
            let (net, peers) = (Arc::clone(&self.args.net), myself.clone());
            let (target, address) = (due.target, due.address.clone());
            let lost = Err(Refusal::Broken(std::io::ErrorKind::Other.into()));
            let lost = PeersMessage::Dialled { target, address: address.clone(), result: lost };
            self.tasks.run(myself, lost, async move {
                let result = net.dial(&due, &peers).await;
                PeersMessage::Dialled { target, address, result }
            });
        }
    }

    fn gate_found(&mut self, cell: ActorCell) {
        let (ActorId::Remote { node_id, .. }, now) = (cell.get_id(), self.now()) else { return };
        if let Some(session) = self.sessions.get_mut(&node_id) {
            session.found(cell.into(), now);
        }
    }

    fn gate_lost(&mut self, cell: &ActorCell) {
        let ActorId::Remote { node_id, .. } = cell.get_id() else { return };
        let ours =
            |session: &Session| session.gate.as_ref().is_some_and(|gate| gate.get_id() == cell.get_id());
        if let Some(session) = self.sessions.get(&node_id).filter(|session| ours(session)) {
            let reason = session.end_reason().to_owned();
            self.end(node_id, &reason);
        }
    }

    fn session_ended(&mut self, cell: &ActorCell) {
        if let Some(session) = self.sessions.values().find(|session| session.is_actor(cell)) {
            let (ticket, reason) = (session.ticket, session.end_reason().to_owned());
            self.end(ticket, &reason);
        }
    }

    fn dialled(&mut self, target: u64, address: &str, result: Result<(), Refusal>) {
        let now = self.now();
        match result {
            Ok(()) => self.targets.reached(target, now),
            Err(Refusal::Ours(Outcome::Self_) | Refusal::Theirs(Outcome::Self_)) => {
                self.targets.is_self(target)
            }
            Err(refusal) => {
                metrics::counter!("hygeia_peer_dial_failures_total", "reason" => refusal.label())
                    .increment(1);
                let first = self.targets.failed(target, refusal.label(), now);
                if first && !refusal.is_harmless() {
                    tracing::warn!(target: TARGET, address, reason = refusal.label(), "a node cannot be reached: {refusal}");
                }
                if matches!(refusal, Refusal::Theirs(Outcome::NameTaken)) {
                    self.name_taken();
                }
            }
        }
    }

    fn stop(&mut self, reason: &str) {
        self.stopped = true;
        let tickets: Vec<u64> = self.sessions.keys().copied().collect();
        tickets.into_iter().for_each(|ticket| self.end(ticket, reason));
    }
}
