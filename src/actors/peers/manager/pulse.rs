//! Heartbeats, and the node states that travel with them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use ractor::ActorRef;

use super::super::TARGET;
use super::super::gate::{Announced, GateMessage};
use super::super::settings::{is_address, is_name};
use super::{PeersManager, PeersMessage};
use crate::domain::time::MonoTime;
use crate::proto::cluster::PeerState;

/// The pause between two pings until both nodes see each other.
const FIRST_PINGS_PAUSE: Duration = Duration::from_millis(10);

impl PeersManager {
    pub(super) fn ping_those_due(&mut self, myself: &ActorRef<PeersMessage>, now: MonoTime) {
        let limit = self.args.net.settings.heartbeat_timeout();
        for session in self.sessions.values_mut() {
            let Some(gate) = session.gate.as_ref().filter(|_| !session.pulse.in_flight) else { continue };
            if now < session.pulse.next_at {
                continue;
            }
            session.pulse.in_flight = true;
            let (ticket, ping) = (session.ticket, ping(gate, session.link_out, &self.args.announced, limit));
            let clock = Arc::clone(&self.args.clock);
            let lost = PeersMessage::Ponged { ticket, answer: None, round_trip: Duration::ZERO };
            self.tasks.run(myself, lost, async move {
                let answer = ping.await;
                PeersMessage::Ponged { ticket, answer, round_trip: clock.mono().since(now) }
            });
        }
    }

    pub(super) fn ponged(&mut self, ticket: u64, answer: Option<Vec<u8>>, round_trip: Duration) {
        let (now, settings) = (self.now(), &self.args.net.settings);
        let Some(session) = self.sessions.get_mut(&ticket) else { return };
        let pulse = &mut session.pulse;
        pulse.in_flight = false;
        let Some(said) = answer.and_then(|bytes| PeerState::decode(&*bytes).ok()) else {
            pulse.misses += 1;
            pulse.next_at = now;
            metrics::counter!("hygeia_peer_pings_missed_total").increment(1);
            if pulse.misses >= settings.misses_max {
                let reason = format!("{} pings in a row were not answered", pulse.misses);
                self.end(ticket, &reason);
            }
            return;
        };
        metrics::histogram!("hygeia_peer_ping_seconds").record(round_trip);
        pulse.misses = 0;
        pulse.round_trip = Some(round_trip);
        let both = session.live || said.sees_you;
        pulse.next_at = now.plus(if both { settings.heartbeat_interval() } else { FIRST_PINGS_PAUSE });
        if both && !session.live {
            session.live = true;
            tracing::info!(target: TARGET, peer = &*session.name, owner = &*session.owner, "a node is in sight");
        }
        self.heard(ticket, said);
    }

    pub(super) fn heard(&mut self, ticket: u64, said: PeerState) {
        let (now, me) = (self.now(), Arc::clone(&self.args.me.name));
        let Some(session) = self.sessions.get_mut(&ticket) else { return };
        let known = self.args.net.settings.peers_max;
        for peer in said.known.iter().take(known).filter(|peer| *peer.name != *me) {
            if is_name(&peer.name) && is_address(&peer.address) {
                self.targets.heard(&peer.name, &peer.address, peer.listed, now);
            }
        }
        session.state = Some(PeerState { known: Vec::new(), ..said });
        self.publish();
    }

    pub(super) fn drain(&mut self, myself: &ActorRef<PeersMessage>) {
        let now = self.now();
        for session in self.sessions.values_mut() {
            // A ping in flight may still carry the old flag, so send another at once.
            session.pulse.in_flight = false;
            session.pulse.next_at = now;
        }
        self.publish();
        self.ping_those_due(myself, now);
    }
}

/// Asks a gate for the state of its node. Returns `None` if the gate does not answer within `limit`.
pub(super) fn ping(
    gate: &ActorRef<GateMessage>,
    link: u64,
    announced: &Announced,
    limit: Duration,
) -> impl Future<Output = Option<Vec<u8>>> + Send + use<> {
    // A node pings only peers that it can send to.
    let state = announced.to(true).encode_to_vec();
    let gate = gate.clone();
    async move {
        let call = gate.call(|reply| GateMessage::Ping { link, state, reply }, Some(limit));
        // ractor's own time limit starts only after its unbounded mailbox, so this one is needed.
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(ractor::rpc::CallResult::Success(answer))) => Some(answer),
            _ => None,
        }
    }
}
