//! The links of a node to all others: who is there, and how to send to it. Knows nothing of patients.
//!
//! ```text
//! accept ─┐                                      ┌─ Gate ◄── pings of all sessions
//!         ├─ TLS ─ greeting ─► PeersActor ───────┼─ Desk     what sessions ask of a node server
//! dial ───┘  (net)             (manager)         └─ NodeSession, one for each other node
//!                                  │                  │
//!                                  │             its stream ◄─► frames, past ractor (shortcut)
//!                                  ▼ View (members), on every change
//! ```
//!
//! Invariants:
//! - Nobody reaches ractor without having shown that it holds the cluster's secret, and, with TLS, a
//!   certificate for its name.
//! - There is one session for each two nodes, and one incarnation of each name (`admit`).
//! - A node is in the `View` only while each of the two can send to the other, so an answer finds its way.
//! - A node that answers no ping for `silence_max` is out of the `View` with all that was on its way; one
//!   whose connection breaks, at once.
//! - Remote actors of ractor are never stopped, only sessions.
//! - What a node can have this one keep is bounded, whatever it says (`control`).

mod admit;
mod control;
mod expiry;
mod gate;
mod greeting;
mod manager;
mod net;
mod session;
mod settings;
mod shortcut;
mod status;
mod stream;
mod targets;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use self::gate::Announced;
use self::greeting::{Identity, PROTOCOL};
use self::manager::{PeersActor, PeersArgs, PeersMessage};
use self::net::{Net, Refusals};
use super::address::Address;
use super::members::{FrameSink, Member, Members, View};
use super::supervisor::ChildSpec;
use super::system::ask;
use crate::domain::cluster::NodeRole;
use crate::domain::time::{Clock, Timestamp};
use crate::proto::cluster::PeerState;

pub use self::settings::{Secret, Settings, Tls};
pub use self::status::{Fatal, SessionInfo, SessionState};

/// Where the lines of this room come from.
const TARGET: &str = "hygeia::peers";
/// How long the actor may take to answer the handle.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// A node of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is reached, as `host:port`.
    pub address: String,
}

/// What is needed.
pub struct Args {
    /// This node's name, the same over restarts.
    pub name: Arc<str>,
    /// `name#boot-id`; of two boots, the id of the later one is greater.
    pub owner: Arc<str>,
    /// What it runs.
    pub roles: BTreeSet<NodeRole>,
    /// The nodes of the configuration; this one may be among them.
    pub nodes: Vec<NodeAddress>,
    /// Addresses of nodes to join by.
    pub join: Vec<String>,
    /// The bounds.
    pub settings: Settings,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Gets all frames.
    pub frame_sink: FrameSink,
}

/// Why there are no links.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is missing or cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The address cannot be listened on.
    #[error("cluster.listen {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Where others reach this node: as it is told, else as the list says, else where it listens.
fn advertised(
    settings: &Settings,
    nodes: &[NodeAddress],
    name: &str,
    listening: SocketAddr,
) -> Result<String, Error> {
    let listed = || nodes.iter().find(|node| *node.name == *name).map(|node| node.address.clone());
    let own = || (!listening.ip().is_unspecified()).then(|| listening.to_string());
    settings.advertise.clone().or_else(listed).or_else(own).ok_or_else(|| {
        let reason = "not set: needed by a node that is in no list and listens on every address";
        Error::Settings(format!("cluster.advertise: {reason}"))
    })
}

/// The handle. Cloning is cheap.
#[derive(Clone)]
pub struct Peers {
    args: PeersArgs,
    address: Address<PeersMessage>,
    members: Members,
    fatal: watch::Receiver<Option<Fatal>>,
    listening: SocketAddr,
}

impl Peers {
    /// Takes the address. Other nodes are accepted and dialled once `child` is started.
    ///
    /// # Errors
    /// See `Error`.
    pub async fn bind(args: Args) -> Result<Self, Error> {
        let Args { name, owner, roles, nodes, join, settings, clock, frame_sink } = args;
        if let Some((key, reason)) = settings.problems().into_iter().next() {
            return Err(Error::Settings(format!("cluster.{key}: allowed: {reason}")));
        }
        let Some(secret) = &settings.secret else {
            let (key, reason) = settings.missing().unwrap_or_default();
            return Err(Error::Settings(format!("cluster.{key}: {reason}")));
        };
        let names: BTreeSet<_> = nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let tls = tls::Tls::load(&settings.tls, names)?;
        for certificate in ["node", "authority"] {
            let end = tls.iter().flat_map(|tls| &tls.ends).find(|(known, _)| *known == certificate);
            metrics::gauge!("hygeia_certificate_end_timestamp_seconds", "certificate" => certificate)
                .set(end.map_or(f64::INFINITY, |(_, end)| end.0 as f64 / 1e6));
        }
        let failed = |source| Error::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let listening = listener.local_addr().map_err(failed)?;
        let advertised = advertised(&settings, &nodes, &name, listening)?;
        let announced = Announced::default();
        announced.state.store(Arc::new(PeerState {
            protocol: PROTOCOL,
            cluster: settings.name.clone(),
            name: name.to_string(),
            owner: owner.to_string(),
            roles: roles.iter().map(|role| role.as_str().to_owned()).collect(),
            advertised: advertised.clone(),
            ..PeerState::default()
        }));
        let identity =
            Identity::new(Arc::clone(&name), Arc::clone(&owner), &settings.name, advertised, secret);
        let me = Member { name: Arc::clone(&name), owner, roles, draining: false, wire: None };
        let (view, members) = watch::channel(Arc::new(View::new(name, vec![me.clone()])));
        let (fatal, failed) = watch::channel(None);
        let args = PeersArgs {
            net: Arc::new(Net { identity, tls, settings, refusals: Refusals::default() }),
            listener: Arc::new(listener),
            nodes: nodes.into(),
            join: join.into(),
            me,
            sink: frame_sink,
            clock,
            announced: Arc::new(announced),
            view,
            fatal,
            tickets: Arc::new(AtomicU64::new(1)),
        };
        Ok(Peers { args, address: Address::default(), members, fatal: failed, listening })
    }

    /// What the node's supervisor starts.
    pub fn child(&self) -> ChildSpec {
        ChildSpec::new("peers", || PeersActor, self.args.clone(), self.address.clone())
    }

    /// The live nodes, as of now and as they change.
    pub fn members(&self) -> Members {
        self.members.clone()
    }

    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listening
    }

    /// Tells all others, soon, whether this node is to be spared: while it is, nothing is placed on it. It is
    /// when it is about to leave, and as long as it cannot do its work.
    pub fn set_draining(&self, draining: bool) {
        self.args.announced.set_draining(draining);
        self.address.cast(PeersMessage::Draining);
    }

    /// Until when certificates hold: the node's own (`node`), and the first of its authorities (`authority`).
    pub fn certificate_ends(&self) -> Vec<(&'static str, Timestamp)> {
        self.args.net.tls.as_ref().map(|tls| tls.ends.clone()).unwrap_or_default()
    }

    /// The ways to all other nodes that are known. Empty if the actor does not answer.
    pub async fn sessions(&self) -> Vec<SessionInfo> {
        ask(&self.address, PeersMessage::Sessions, ANSWER_LIMIT).await.unwrap_or_default()
    }

    /// Resolves when the node cannot go on, which must end its process.
    pub async fn failed(&self) -> Fatal {
        let mut fatal = self.fatal.clone();
        match fatal.wait_for(Option::is_some).await.map(|fatal| *fatal) {
            Ok(Some(fatal)) => fatal,
            // Nobody is left to say so.
            _ => std::future::pending().await,
        }
    }

    /// Ends all sessions, and takes and makes no more.
    pub async fn stop(&self) {
        let _ = ask(&self.address, PeersMessage::Stop, ANSWER_LIMIT).await;
    }
}
