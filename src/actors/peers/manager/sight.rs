//! Reachability: which nodes are in the view.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::super::members::{Member, View};
use super::super::TARGET;
use super::super::session::Session;
use super::super::status::{SessionInfo, SessionState};
use super::PeersManager;
use crate::proto::cluster::KnownPeer;

impl PeersManager {
    /// Ends a session, if it exists.
    pub(super) fn end(&mut self, ticket: u64, reason: &str) {
        let Some(session) = self.sessions.remove(&ticket) else { return };
        session.end();
        if session.live {
            self.seen_at = self.now();
        }
        let (peer, owner) = (&*session.name, &*session.owner);
        let leaving = self.stopped || session.state.as_ref().is_some_and(|state| state.draining);
        match (session.live, leaving) {
            (true, true) => tracing::info!(target: TARGET, peer, owner, reason, "a node is out of sight"),
            (true, false) => tracing::warn!(target: TARGET, peer, owner, reason, "a node is out of sight"),
            (false, _) => tracing::debug!(target: TARGET, peer, owner, reason, "a session came to nothing"),
        }
        self.relink();
        self.publish();
    }

    pub(super) fn relink(&self) {
        let links = self.sessions.values().map(|session| (session.link_in, Arc::clone(&session.link)));
        self.links.store(Arc::new(links.collect::<HashMap<_, _>>()));
    }

    /// Publishes the view and announces the known peers, if the live nodes have changed.
    pub(super) fn publish(&mut self) {
        let announced = self.args.announced.state.load_full();
        let me = Member { draining: announced.draining, ..self.args.me.clone() };
        let live = self.sessions.values().filter_map(Session::member);
        let view = View::new(Arc::clone(&me.name), live.chain([me]).collect());
        let changed = self.args.view.send_if_modified(|current| {
            let changed = !same(current.members(), view.members());
            if changed {
                *current = Arc::new(view);
            }
            changed
        });
        if !changed {
            return;
        }
        let known = |session: &Session| KnownPeer {
            name: session.name.to_string(),
            owner: session.owner.to_string(),
            address: session.advertised.clone(),
            listed: self.targets.is_listed(&session.name),
        };
        let known: Vec<_> = self.sessions.values().filter(|session| session.live).map(known).collect();
        metrics::gauge!("hygeia_peer_sessions").set(known.len() as f64);
        self.args.announced.set_known(known);
    }

    pub(super) fn infos(&self) -> Vec<SessionInfo> {
        let of_session = |session: &Session| SessionInfo {
            name: Some(Arc::clone(&session.name)),
            owner: Some(Arc::clone(&session.owner)),
            address: session.advertised.clone(),
            state: if session.live { SessionState::Live } else { SessionState::Half },
            round_trip_us: session.pulse.round_trip.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
            misses: session.pulse.misses,
            since: Some(session.since),
        };
        let connected =
            |name: &str| name == &*self.args.me.name || self.sessions.values().any(|s| *s.name == *name);
        let dialling = self.targets.unconnected(connected).map(|(name, address, failures)| SessionInfo {
            name,
            owner: None,
            address: address.to_owned(),
            state: SessionState::Dialling,
            round_trip_us: None,
            misses: failures,
            since: None,
        });
        self.sessions.values().map(of_session).chain(dialling).collect()
    }
}

fn same(left: &[Member], right: &[Member]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|(l, r)| {
            let same_wire = match (&l.wire, &r.wire) {
                (Some(l), Some(r)) => l.is(r),
                (l, r) => l.is_none() && r.is_none(),
            };
            same_wire && l.owner == r.owner && l.roles == r.roles && l.draining == r.draining
        })
}
