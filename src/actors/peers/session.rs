//! One session with another node, from its admission to its end, and the part of `ractor_cluster` that
//! carries it.
//!
//! `ractor_cluster::NodeServer` is not used. It always opens a listener of its own, and decides between
//! sessions by names that any peer may claim. `Desk` answers the few requests that a `NodeSession` sends to a
//! node server: the handshake has already established the peer's identity, and that the session is the only
//! one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use ractor_cluster::node::{NodeConnectionMode, SessionCheckReply};
use ractor_cluster::{NetworkStream, NodeServerMessage, NodeSession, NodeSessionMessage};
use tokio_util::sync::CancellationToken;

use super::super::members::{FrameSink, Member, Wire};
use super::gate::{GateMessage, Link};
use super::greeting::Guest;
use super::net::Opened;
use super::shortcut;
use super::stream::{Frames, Outgoing, Reading, Reason, Writing};
use crate::domain::cluster::NodeRole;
use crate::domain::time::{MonoTime, Timestamp};
use crate::proto::cluster::PeerState;

/// Answers the requests of sessions to a node server. Supervised by `PeersActor`.
pub(super) struct Desk;

impl Actor for Desk {
    type Msg = NodeServerMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // The session that asked may be gone.
            NodeServerMessage::CheckSession { reply, .. } => {
                let _ = reply.send(SessionCheckReply::NoOtherConnection);
            }
            NodeServerMessage::GetSessions(reply) => {
                let _ = reply.send(HashMap::new());
            }
            _ => {}
        }
        Ok(())
    }
}

/// The heartbeat of a session.
pub(super) struct Pulse {
    pub(super) in_flight: bool,
    pub(super) next_at: MonoTime,
    pub(super) misses: u32,
    pub(super) round_trip: Option<Duration>,
}

/// A session, or the place reserved for one.
pub(super) struct Session {
    pub(super) ticket: u64,
    pub(super) name: Arc<str>,
    pub(super) owner: Arc<str>,
    pub(super) advertised: String,
    pub(super) dialled: bool,
    pub(super) begun: MonoTime,
    pub(super) since: Timestamp,
    pub(super) link: Arc<Link>,
    pub(super) link_in: u64,
    pub(super) link_out: u64,
    pub(super) remote: String,
    actor: Option<ActorRef<NodeSessionMessage>>,
    cancel: CancellationToken,
    outgoing: Option<Outgoing>,
    reason: Reason,
    pub(super) gate: Option<ActorRef<GateMessage>>,
    pub(super) pulse: Pulse,
    /// The last state that the peer announced.
    pub(super) state: Option<PeerState>,
    /// Whether both nodes see each other.
    pub(super) live: bool,
}

impl Session {
    pub(super) fn reserved(
        ticket: u64,
        guest: &Guest,
        dialled: bool,
        begun: MonoTime,
        since: Timestamp,
    ) -> Self {
        let link = Link { ticket, owner: Arc::clone(&guest.owner), wire: OnceLock::new() };
        Session {
            ticket,
            name: Arc::clone(&guest.name),
            owner: Arc::clone(&guest.owner),
            advertised: guest.advertised.clone(),
            dialled,
            begun,
            since,
            link: Arc::new(link),
            link_in: guest.link_in,
            link_out: guest.link_out,
            remote: String::new(),
            actor: None,
            cancel: CancellationToken::new(),
            outgoing: None,
            reason: Reason::default(),
            gate: None,
            pulse: Pulse { in_flight: false, next_at: begun, misses: 0, round_trip: None },
            state: None,
            live: false,
        }
    }

    /// Hands the connection to ractor.
    ///
    /// # Errors
    /// Returns the error of a session actor that did not start.
    pub(super) async fn adopt(
        &mut self,
        opened: Opened,
        carrier: &Carrier,
        supervisor: ActorCell,
    ) -> Result<(), SpawnErr> {
        let Opened { reader, writer, remote } = opened;
        self.remote = remote.to_string();
        let frames =
            Frames { link_in: self.link_in, link: Arc::clone(&self.link), sink: Arc::clone(&carrier.sink) };
        let (max, reason) = (carrier.frame_max_bytes, Arc::clone(&self.reason));
        let reading = Reading::new(reader, &self.cancel, max, Some(frames), Arc::clone(&reason));
        let outgoing = Outgoing::start(writer, self.cancel.clone(), reason);
        self.outgoing = Some(outgoing.clone());
        let stream = NetworkStream::External {
            peer_label: Some(self.owner.to_string()),
            local_label: Some(carrier.owner.to_string()),
            reader: Box::new(reading),
            writer: Box::new(Writing(outgoing)),
        };
        let session = carrier.session(self.ticket, !self.dialled);
        let (actor, _) = Actor::spawn_linked(None, session, stream, supervisor).await?;
        self.actor = Some(actor);
        Ok(())
    }

    pub(super) fn is_actor(&self, cell: &ActorCell) -> bool {
        self.actor.as_ref().is_some_and(|actor| actor.get_id() == cell.get_id())
    }

    /// Records the other node's gate; from now on this node can send to it.
    pub(super) fn found(&mut self, gate: ActorRef<GateMessage>, now: MonoTime) {
        let Some(outgoing) = self.outgoing.clone() else { return };
        let (to, link) = (gate.get_id().pid(), self.link_out);
        let wire =
            Wire::new(self.cancel.clone(), move |frame| outgoing.send(shortcut::write(to, link, &frame)));
        if self.link.wire.set(wire).is_ok() {
            self.gate = Some(gate);
            self.pulse.next_at = now;
        }
    }

    /// Ends the session. Messages in transit are lost.
    pub(super) fn end(&self) {
        self.cancel.cancel();
        if let Some(actor) = &self.actor {
            actor.stop(None);
        }
    }

    /// Returns why the session ended, if this node did not end it.
    pub(super) fn end_reason(&self) -> &str {
        self.reason.get().map_or("what came over it could not be understood", String::as_str)
    }

    /// Returns the node as a member of the view, if the session is live.
    pub(super) fn member(&self) -> Option<Member> {
        let state = self.state.as_ref().filter(|_| self.live)?;
        Some(Member {
            name: Arc::clone(&self.name),
            owner: Arc::clone(&self.owner),
            roles: state.roles.iter().filter_map(|role| NodeRole::from_name(role)).collect::<BTreeSet<_>>(),
            draining: state.draining,
            wire: Some(self.link.wire.get()?.clone()),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// The context shared by all sessions of a node.
pub(super) struct Carrier {
    pub(super) owner: Arc<str>,
    pub(super) cookie: String,
    pub(super) frame_max_bytes: u64,
    pub(super) sink: FrameSink,
    pub(super) desk: ActorRef<NodeServerMessage>,
}

impl Carrier {
    fn session(&self, ticket: u64, is_server: bool) -> NodeSession {
        // `ractor_cluster` does not export the type of the name, so it is inferred.
        let mut name = last_but_one(NodeSession::new);
        name.name = self.owner.to_string();
        name.connection_string = self.owner.to_string();
        let mode = NodeConnectionMode::Isolated;
        NodeSession::new(ticket, is_server, self.cookie.clone(), self.desk.clone(), name, mode)
            .with_max_inbound_frame_size(self.frame_max_bytes)
    }
}

fn last_but_one<A, B, C, D, E: Default, F, R>(_: impl Fn(A, B, C, D, E, F) -> R) -> E {
    E::default()
}
