//! The node's part in the cluster: the other nodes, and what the node reports to them. A node without a
//! cluster opens no port and waits for no other node.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use super::Error;
use super::children::Actors;
use crate::actors::billing_relay::BillingRelayMessage;
use crate::actors::kafka_bridge::BridgeMessage;
use crate::actors::link::{AskStatus, Inbox, Links, SelfStatus, Served, ToTake};
use crate::actors::members::{self, AbleHook, Members, ReleasedHook, View};
use crate::actors::peers::{self, NodeAddress, Peers};
use crate::actors::slice_lease::{BRIDGE_SLICE, RELAY_SLICE};
use crate::actors::status::{SessionStatus, StatusProvider};
use crate::config::Config;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::Kind;
use crate::domain::time::Clock;
use crate::health::{Health, Status};

/// The name of the part in health.
const PART: &str = "cluster";
/// How long the node may take to compile its status for another node.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// Lists the sessions with other nodes.
pub(super) type Sessions = Arc<dyn Fn() -> BoxFuture<'static, Vec<SessionStatus>> + Send + Sync>;

/// The node's part in the cluster.
#[derive(Clone)]
pub(super) struct Cluster {
    /// The nodes that this node can see.
    pub(super) members: Members,
    /// Asks other nodes for their status; `None` for a node without a cluster.
    pub(super) ask_status: Option<AskStatus>,
    /// The sessions; `None` for a node without a cluster.
    pub(super) sessions: Option<Sessions>,
    /// The links to other nodes; `None` for a node without a cluster.
    pub(super) ways: Option<Ways>,
}

/// The links of a node to the other nodes of its cluster.
#[derive(Clone)]
pub(super) struct Ways {
    pub(super) peers: Peers,
    pub(super) links: Links,
    /// Provides the node's own status; set once the provider exists.
    teller: Arc<OnceLock<Arc<dyn StatusProvider>>>,
    spared: Arc<Spared>,
}

/// The reasons why nothing should be placed on the node, one bit each; zero if there is none.
#[derive(Default)]
struct Spared(Mutex<u8>);

impl Spared {
    const LEAVING: u8 = 1;

    fn because_of(kind: Kind) -> u8 {
        match kind {
            Kind::Patient => 2,
            Kind::Billing => 4,
            Kind::Outbox => 8,
        }
    }

    /// Records whether `reason` holds and announces the result, under one lock. Otherwise two concurrent
    /// calls might announce in the wrong order, and the older state would stay.
    fn note(&self, reason: u8, holds: bool, announce: impl FnOnce(bool)) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *reasons = if holds { *reasons | reason } else { *reasons & !reason };
        announce(*reasons != 0);
    }
}

impl Cluster {
    /// Joins the cluster: binds the node's address, if the node has a cluster.
    ///
    /// # Errors
    /// The address is in use, or the certificates cannot be used.
    pub(super) async fn start(
        config: &Config,
        owner: &Arc<str>,
        actors: &Actors,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let name: Arc<str> = config.node.name.as_str().into();
        let Some(place) = config.place() else {
            let members = members::alone(name, Arc::clone(owner), config.node.roles.clone());
            return Ok(Cluster { members, ask_status: None, sessions: None, ways: None });
        };
        let inbox = Inbox::default();
        let nodes = config.cluster.nodes.iter();
        let nodes =
            nodes.map(|node| NodeAddress { name: node.name.as_str().into(), address: node.address.clone() });
        let args = peers::Args {
            name,
            owner: Arc::clone(owner),
            roles: config.node.roles.clone(),
            nodes: nodes.collect(),
            join: place.join.clone(),
            settings: config.cluster.settings(&place),
            clock: Arc::clone(clock),
            frame_sink: inbox.sink(),
        };
        let peers = Peers::bind(args).await.map_err(super::failed)?;
        let spared = Arc::<Spared>::default();
        let runs = |role: NodeRole| config.node.roles.contains(&role);
        if runs(NodeRole::Patient) && !runs(NodeRole::Front) {
            // Nothing is placed on the node until its region has seen a front that could ask it. Other nodes
            // must not give up shards to it before.
            spared.note(Spared::because_of(Kind::Patient), true, |spared| peers.set_draining(spared));
        }
        let teller = Arc::default();
        let served = served(config, actors, Arc::clone(&teller));
        let links = Links::start(peers.members(), Arc::clone(clock), &config.link, served);
        inbox.open(&links);
        Ok(Cluster {
            members: peers.members(),
            ask_status: Some(links.ask_status()),
            sessions: Some(sessions(peers.clone(), links.clone())),
            ways: Some(Ways { peers, links, teller, spared }),
        })
    }

    /// Sets the provider of the node's own status for other nodes.
    pub(super) fn tell_of(&self, provider: Arc<dyn StatusProvider>) {
        if let Some(ways) = &self.ways {
            // Set once, when the node is assembled.
            let _ = ways.teller.set(provider);
        }
    }

    /// Announces that the node is about to leave, so that nothing is placed on it any more.
    pub(super) fn set_draining(&self) {
        if let Some(Ways { peers, spared, .. }) = &self.ways {
            spared.note(Spared::LEAVING, true, |spared| peers.set_draining(spared));
        }
    }

    /// The hook by which regions report whether they can hold leases. A region that cannot, because the
    /// database does not answer, leaves its shards to other nodes.
    pub(super) fn able(&self) -> AbleHook {
        match self.ways.clone() {
            None => Arc::new(|_, _| {}),
            Some(Ways { peers, spared, .. }) => Arc::new(move |kind, able| {
                spared.note(Spared::because_of(kind), !able, |spared| peers.set_draining(spared));
            }),
        }
    }

    /// The hook to call after giving up a lease for another node.
    pub(super) fn released(&self) -> ReleasedHook {
        match &self.ways {
            None => Arc::new(|_, _, _| {}),
            Some(ways) => ways.links.released(),
        }
    }

    /// Resolves when the node can no longer belong to its cluster.
    pub(super) async fn failed(&self) -> peers::Fatal {
        match &self.ways {
            Some(ways) => ways.peers.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the sessions.
    pub(super) async fn leave(&self) {
        if let Some(ways) = &self.ways {
            ways.peers.stop().await;
        }
    }
}

/// The requests of other nodes that this node answers.
fn served(config: &Config, actors: &Actors, teller: Arc<OnceLock<Arc<dyn StatusProvider>>>) -> Served {
    let runs = |role: NodeRole| config.node.roles.contains(&role);
    let (relay, bridge) = (actors.relay.clone(), actors.bridge.clone());
    let status: SelfStatus = Arc::new(move || {
        let teller = Arc::clone(&teller);
        Box::pin(async move {
            let Some(provider) = teller.get() else { return Vec::new() };
            serde_json::to_vec(&provider.node(STATUS_LIMIT).await).unwrap_or_default()
        })
    });
    Served {
        patients: runs(NodeRole::Patient).then(|| actors.patients.region().clone()),
        accounts: runs(NodeRole::Billing).then(|| actors.accounts.region().clone()),
        patient_directory: actors.patients.directory_address().clone(),
        account_directory: actors.accounts.directory_address().clone(),
        analytics: runs(NodeRole::Analytics).then(|| actors.analytics.clone()),
        status: Some(status),
        relay_nudged: runs(NodeRole::Billing).then(|| {
            Arc::new(move || {
                relay.cast(BillingRelayMessage::Nudge);
            }) as _
        }),
        bridge_nudged: runs(NodeRole::Bridge).then(|| {
            Arc::new(move || {
                bridge.cast(BridgeMessage::Nudge);
            }) as _
        }),
        sessions: Some(actors.sessions.clone()),
        released: Some(to_take(actors)),
    }
}

/// Forwards the hint that leases were released for this node to the actor that takes them.
fn to_take(actors: &Actors) -> ToTake {
    let (patients, accounts) = (actors.patients.clone(), actors.accounts.clone());
    let (relay, bridge) = (actors.relay.clone(), actors.bridge.clone());
    Arc::new(move |kind, shards| match kind {
        Kind::Patient => patients.released_elsewhere(shards),
        Kind::Billing => accounts.released_elsewhere(shards),
        Kind::Outbox => {
            if shards.contains(&BRIDGE_SLICE) {
                bridge.cast(BridgeMessage::LeaseReleased);
            }
            if shards.contains(&RELAY_SLICE) {
                relay.cast(BillingRelayMessage::LeaseReleased);
            }
        }
    })
}

fn sessions(peers: Peers, links: Links) -> Sessions {
    Arc::new(move || {
        let (peers, links) = (peers.clone(), links.clone());
        Box::pin(async move {
            let facts = links.facts();
            let in_flight = |owner: &str| {
                let link = facts.iter().find(|link| link.owner == owner)?;
                u64::try_from(link.unanswered).ok()
            };
            let told = peers.sessions().await.into_iter().map(|session| SessionStatus {
                peer: session.name.as_deref().unwrap_or(&session.address).to_owned(),
                state: Some(session.state.as_str().to_owned()),
                round_trip_us: session.round_trip_us,
                in_flight: session.owner.as_deref().and_then(in_flight),
            });
            let mut told: Vec<_> = told.collect();
            told.sort_by(|a, b| a.peer.cmp(&b.peer));
            told
        })
    })
}

/// Reports which roles have no live node, until the node stops. Runs on a front of a cluster.
pub(super) async fn follow_roles(mut members: Members, health: Health) {
    loop {
        let status = roles_status(&members.borrow_and_update());
        health.report(PART, status);
        // The sender lives as long as the node.
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// A front is not ready without a patient node. Only some requests need the other roles, so their absence
/// makes it degraded.
fn roles_status(view: &View) -> Status {
    let missing: Vec<_> =
        NodeRole::ALL.into_iter().filter(|role| view.with_role(*role).next().is_none()).collect();
    if missing.is_empty() {
        return Status::Ready;
    }
    let names: Vec<_> = missing.iter().map(|role| role.as_str()).collect();
    let reason = format!("no live node has the role {}", names.join(", "));
    if missing.contains(&NodeRole::Patient) { Status::NotReady(reason) } else { Status::Explained(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_needs_patients_and_tells_of_what_else_is_missing() {
        let view = |roles: &[NodeRole]| {
            View::alone("front".into(), "front#1".into(), roles.iter().copied().collect())
        };
        assert_eq!(roles_status(&view(&NodeRole::ALL)), Status::Ready);
        assert_eq!(
            roles_status(&view(&[NodeRole::Front, NodeRole::Patient, NodeRole::Bridge])),
            Status::Explained("no live node has the role billing, analytics".into())
        );
        assert_eq!(
            roles_status(&view(&[NodeRole::Front])),
            Status::NotReady("no live node has the role patient, billing, bridge, analytics".into())
        );
    }

    #[tokio::test]
    async fn readiness_follows_the_view() {
        let health = Health::default();
        let view = |roles: &[NodeRole]| {
            Arc::new(View::alone("front".into(), "front#1".into(), roles.iter().copied().collect()))
        };
        let (sender, members) = tokio::sync::watch::channel(view(&[NodeRole::Front]));
        let following = tokio::spawn(follow_roles(members, health.clone()));
        let is = |ready: bool| {
            let health = health.clone();
            async move {
                while health.snapshot().1.get(PART).map(|status| *status == Status::Ready) != Some(ready) {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), is(false)).await.expect("not ready");
        sender.send_replace(view(&NodeRole::ALL));
        tokio::time::timeout(Duration::from_secs(10), is(true)).await.expect("ready");
        drop(sender);
        following.await.expect("it ends with the node");
    }
}
