//! The status of the node and of its cluster; see `actors::status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;

use super::cluster::Cluster;
use crate::actors::billing::Accounts;
use crate::actors::members::Member;
use crate::actors::patients::Patients;
use crate::actors::status::{ClusterStatus, EndStatus, NodeStatus, ShardStatus, StatusProvider};
use crate::actors::system::Chain;
use crate::auth::Auth;
use crate::context::TraceContext;
use crate::domain::time::{Clock, MonoTime};
use crate::http::InFlight;
use crate::store::Store;

/// Maximum size of another node's status.
const STATUS_BYTES_MAX: usize = 1024 * 1024;

/// Collects the status.
pub(super) struct Reporter {
    /// The cluster's name; `None` for a node without a cluster.
    pub(super) cluster_name: Option<String>,
    /// The names of the configured nodes, which should all be reachable.
    pub(super) named: Vec<String>,
    pub(super) cluster: Cluster,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) begun: MonoTime,
    /// Set once HTTP listens.
    pub(super) in_flight: OnceLock<InFlight>,
    pub(super) draining: AtomicBool,
    /// Present where the node checks tokens.
    pub(super) auth: Option<Auth>,
    pub(super) patients: Chain<Patients>,
    pub(super) accounts: Chain<Accounts>,
}

#[async_trait]
impl StatusProvider for Reporter {
    async fn node(&self, limit: Duration) -> NodeStatus {
        let view = Arc::clone(&self.cluster.members.borrow());
        let mut status = view.get(view.me()).map(known).unwrap_or_default();
        status.answers = true;
        status.draining |= self.draining.load(Ordering::Relaxed);
        status.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        let uptime = self.clock.mono().since(self.begun);
        status.uptime_ms = Some(u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX));
        if let Some(sessions) = &self.cluster.sessions {
            status.sessions = tokio::time::timeout(limit, sessions()).await.ok();
        }
        status.shards = self.shards(limit).await;
        status.in_flight = self.in_flight.get().map(|count| count() as u64);
        status.ends = self.ends();
        status
    }

    async fn cluster(&self, trace: &TraceContext, limit: Duration) -> ClusterStatus {
        let view = Arc::clone(&self.cluster.members.borrow());
        let mut status = ClusterStatus {
            cluster: self.cluster_name.clone(),
            seen_from: Some(view.me().to_string()),
            ..ClusterStatus::default()
        };
        let nodes = join_all(view.members().iter().map(|member| self.status_of(member, trace, limit)));
        let database = status.ask_database(&*self.store, self.clock.now(), limit);
        let (nodes, ()) = tokio::join!(nodes, database);
        let silent = nodes.iter().filter(|node| !node.answers);
        status.unknown.extend(silent.map(|node| format!("{}: the node does not answer", node.name)));
        let missing = self.named.iter().filter(|name| view.get(name).is_none());
        status
            .unknown
            .extend(missing.map(|name| format!("{name}: a node of cluster.nodes, and not in sight")));
        status.nodes = nodes;
        status
    }
}

impl Reporter {
    /// When the node's certificates expire, and when the key for tokens is due for rotation.
    fn ends(&self) -> Vec<EndStatus> {
        let now = self.clock.now();
        let mut ends =
            self.cluster.ways.as_ref().map(|ways| ways.peers.certificate_ends()).unwrap_or_default();
        ends.extend(self.auth.as_ref().and_then(Auth::key_due).map(|due| ("token-key", due)));
        ends.into_iter()
            .map(|(what, end)| EndStatus { what: what.to_owned(), in_ms: (end.0 - now.0) / 1_000 })
            .collect()
    }

    /// The shards of the regions that run on this node and answer in time.
    async fn shards(&self, limit: Duration) -> Option<BTreeMap<String, Vec<ShardStatus>>> {
        let regions = tokio::join!(self.patients.status(limit), self.accounts.status(limit));
        let told: BTreeMap<_, _> = [regions.0, regions.1]
            .into_iter()
            .flatten()
            .map(|region| {
                let shards = region.shards.into_iter().map(|shard| ShardStatus {
                    shard: shard.shard,
                    epoch: shard.epoch.map(|epoch| epoch.0),
                    state: Some(shard.state.as_str().to_owned()),
                });
                (region.kind.as_str().to_owned(), shards.collect())
            })
            .collect();
        (!told.is_empty()).then_some(told)
    }

    /// The node's own status of itself; if it does not answer, what the membership says of it.
    async fn status_of(&self, member: &Member, trace: &TraceContext, limit: Duration) -> NodeStatus {
        if member.wire.is_none() {
            return self.node(limit).await;
        }
        let Some(ask) = &self.cluster.ask_status else { return known(member) };
        let answer = tokio::time::timeout(limit, ask(member.clone(), *trace, limit)).await.ok().flatten();
        let told = answer.filter(|bytes| bytes.len() <= STATUS_BYTES_MAX);
        let told = told.and_then(|bytes| serde_json::from_slice::<NodeStatus>(&bytes).ok());
        match told {
            // The session decides the peer's identity, not its answer.
            Some(told) => NodeStatus {
                name: member.name.to_string(),
                owner: member.owner.to_string(),
                roles: member.roles.iter().copied().collect(),
                draining: member.draining || told.draining,
                answers: true,
                ..told
            },
            None => known(member),
        }
    }
}

/// The status of a node as far as the membership knows it.
fn known(member: &Member) -> NodeStatus {
    NodeStatus {
        name: member.name.to_string(),
        owner: member.owner.to_string(),
        roles: member.roles.iter().copied().collect(),
        draining: member.draining,
        ..NodeStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::actors::link::AskStatus;
    use crate::actors::members::{View, Wire};
    use crate::actors::status::SessionStatus;
    use crate::clock::SystemClock;
    use crate::domain::cluster::NodeRole;

    fn member(name: &str, role: NodeRole, wire: Option<Wire>) -> Member {
        let owner = format!("{name}#1").into();
        Member { name: name.into(), owner, roles: [role].into(), draining: false, wire }
    }

    /// A front that sees three other nodes: one answers, one does not answer in time, one answers nonsense.
    async fn reporter(directory: &std::path::Path) -> (Reporter, watch::Sender<Arc<View>>) {
        let away = |name| member(name, NodeRole::Patient, Some(Wire::nowhere()));
        let members =
            vec![member("front", NodeRole::Front, None), away("told"), away("silent"), away("nonsense")];
        let (sender, members) = watch::channel(Arc::new(View::new("front".into(), members)));
        let ask: AskStatus = Arc::new(|member, _, _| {
            Box::pin(async move {
                match &*member.name {
                    "told" => {
                        let told = NodeStatus {
                            name: "somebody else".into(),
                            uptime_ms: Some(7),
                            ..NodeStatus::default()
                        };
                        serde_json::to_vec(&told).ok()
                    }
                    "silent" => std::future::pending().await,
                    _ => Some(b"nonsense".to_vec()),
                }
            })
        });
        let session = SessionStatus { peer: "told".into(), ..SessionStatus::default() };
        let url = format!("sqlite:{}", directory.join("status.db").display());
        let settings = crate::store::Settings { url, ..crate::store::Settings::default() };
        let store = crate::store::open(&settings, crate::store::Use::Serve).await.expect("a database");
        store.prepare().await.expect("tables");
        let reporter = Reporter {
            cluster_name: Some("hygeia".into()),
            named: vec!["front".into(), "gone".into()],
            cluster: Cluster {
                members,
                ask_status: Some(ask),
                sessions: Some(Arc::new(move || {
                    let session = session.clone();
                    Box::pin(async move { vec![session] })
                })),
                ways: None,
            },
            store,
            clock: Arc::new(SystemClock),
            begun: SystemClock.mono(),
            in_flight: OnceLock::new(),
            draining: true.into(),
            auth: None,
            patients: Chain::default(),
            accounts: Chain::default(),
        };
        (reporter, sender)
    }

    #[tokio::test]
    async fn a_front_asks_every_node_and_tells_who_does_not_answer() {
        let directory = tempfile::tempdir().expect("a directory");
        let (reporter, _sender) = reporter(directory.path()).await;
        assert!(reporter.in_flight.set(Arc::new(|| 3)).is_ok());
        let limit = Duration::from_millis(500);
        let status = reporter.cluster(&TraceContext::root(), limit).await;
        let names: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["front", "nonsense", "silent", "told"]);
        let [front, nonsense, silent, told] = status.nodes.as_slice() else { panic!("four nodes") };
        assert!(front.answers && front.draining && front.in_flight == Some(3));
        assert_eq!(front.sessions.as_ref().map(Vec::len), Some(1));
        assert_eq!((told.answers, told.uptime_ms, told.owner.as_str()), (true, Some(7), "told#1"));
        assert_eq!(told.roles, [NodeRole::Patient], "what it runs is for the session to say");
        for node in [nonsense, silent] {
            assert!(!node.answers && node.roles == [NodeRole::Patient] && node.uptime_ms.is_none());
        }
        assert_eq!(
            status.unknown,
            [
                "nonsense: the node does not answer",
                "silent: the node does not answer",
                "gone: a node of cluster.nodes, and not in sight"
            ]
        );
        assert!(status.leases.is_empty() && status.outbox.is_some());
    }
}
