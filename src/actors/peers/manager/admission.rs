//! Admission: which nodes get a session.

use std::sync::atomic::Ordering;

use ractor::ActorRef;

use super::super::TARGET;
use super::super::admit::{self, Decision};
use super::super::net::Opened;
use super::super::session::Session;
use super::super::status::Fatal;
use super::pulse::ping;
use super::{Admission, PeersManager, PeersMessage};
use crate::proto::cluster::Outcome;

impl PeersManager {
    /// Decides on a request for a session. `probed` is the number of the existing session that was probed,
    /// and whether its node answered.
    pub(super) fn admit(
        &mut self,
        myself: &ActorRef<PeersMessage>,
        admission: Box<Admission>,
        probed: Option<(u64, bool)>,
    ) {
        if let Some(target) = admission.dialled {
            self.targets.answered(target, &admission.guest.name);
        }
        match self.decision(myself, admission, probed) {
            Some((admission, Ok(held))) => {
                if let Some(held) = held {
                    self.end(held, "the node has connected anew");
                }
                let Admission { guest, dialled, reply } = *admission;
                let ticket = self.args.tickets.fetch_add(1, Ordering::Relaxed);
                let session =
                    Session::reserved(ticket, &guest, dialled.is_some(), self.now(), self.args.clock.now());
                self.sessions.insert(ticket, session);
                self.relink();
                if reply.send(Ok(ticket)).is_err() {
                    self.end(ticket, "the connection came to nothing");
                }
            }
            Some((admission, Err(outcome))) => {
                let _ = admission.reply.send(Err(outcome));
            }
            None => {}
        }
    }

    /// Returns the session to replace, or the reason for a refusal. Returns `None` if the existing session
    /// must be probed first.
    #[allow(clippy::type_complexity, reason = "named nowhere else")]
    pub(super) fn decision(
        &mut self,
        myself: &ActorRef<PeersMessage>,
        admission: Box<Admission>,
        probed: Option<(u64, bool)>,
    ) -> Option<(Box<Admission>, Result<Option<u64>, Outcome>)> {
        let guest = &admission.guest;
        let held = self.sessions.values().find(|s| s.name == guest.name);
        let known = held.map(|s| admit::Held { owner: &s.owner, live: s.live, dialled: s.dialled });
        let asking =
            admit::Asking { name: &guest.name, owner: &guest.owner, dialled: admission.dialled.is_some() };
        let me = &self.args.me;
        let full = self.sessions.len() >= self.args.net.settings.peers_max;
        let verdict = match admit::decide(&me.name, &me.owner, known, asking) {
            _ if self.stopped => Err(Outcome::TryLater),
            Decision::Take if full && held.is_none() => Err(Outcome::TooMany),
            Decision::Take => Ok(held.map(|s| s.ticket)),
            Decision::Refuse(outcome) => Err(outcome),
            Decision::WeAreSecond => {
                self.name_taken();
                Err(Outcome::TryLater)
            }
            Decision::AskHeld => match (held, probed) {
                (Some(held), Some((ticket, true))) if held.ticket == ticket => Err(Outcome::NameTaken),
                (Some(held), None) if held.gate.is_some() => {
                    self.probe(myself, held.ticket, admission);
                    return None;
                }
                // The other incarnation does not answer. Its missed heartbeats will soon end its session.
                _ => Err(Outcome::TryLater),
            },
        };
        Some((admission, verdict))
    }

    pub(super) fn probe(&mut self, myself: &ActorRef<PeersMessage>, held: u64, admission: Box<Admission>) {
        let Some(session) = self.sessions.get(&held) else { return };
        let Some(gate) = &session.gate else { return };
        let limit = self.args.net.settings.heartbeat_timeout();
        let ping = ping(gate, session.link_out, &self.args.announced, limit);
        // If the task panics, the admission is dropped, and the connection is told to try later.
        self.tasks.run(myself, PeersMessage::Tick, async move {
            let alive = ping.await.is_some();
            PeersMessage::Probed { held, alive, admission }
        });
    }

    pub(super) async fn adopt(&mut self, myself: &ActorRef<PeersMessage>, ticket: u64, opened: Opened) {
        let Some(session) = self.sessions.get_mut(&ticket) else { return };
        if let Err(error) = session.adopt(opened, &self.carrier, myself.get_cell()).await {
            self.end(ticket, &format!("it did not start: {error}"));
        }
    }

    pub(super) fn name_taken(&mut self) {
        if self.args.fatal.borrow().is_none() {
            let name = &*self.args.me.name;
            tracing::warn!(target: TARGET, name, "another live node has this node's name; this one must leave");
            self.args.fatal.send_replace(Some(Fatal::NameTaken));
            self.stop("its name is taken");
        }
    }
}
